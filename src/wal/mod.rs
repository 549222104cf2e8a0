//! The write-ahead log: the order of what sealed segments do not yet describe.

pub(crate) mod format;
pub(crate) mod replay;
pub(crate) mod writer;
