//! The memory tier and the list that warms it up after a restart. Eviction is testable without a
//! disk.

pub(crate) mod item;
pub(crate) mod memory;
mod queue;
pub(crate) mod warmth_list;
