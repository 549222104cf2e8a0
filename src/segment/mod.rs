//! Append-only regions on flash: their bytes, their life cycle, and the segment that takes records.

pub(crate) mod extent;
pub(crate) mod failed;
pub(crate) mod footer;
pub(crate) mod format;
pub(crate) mod reader;
pub(crate) mod table;
pub(crate) mod writer;
