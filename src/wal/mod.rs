//! The write-ahead log: in order, every mutation that no durable segment footer describes yet.

pub(crate) mod format;
pub(crate) mod replay;
pub(crate) mod writer;
