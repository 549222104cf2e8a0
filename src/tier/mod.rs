//! Where values live besides flash. Policies are pure and testable without a disk.

pub(crate) mod item;
pub(crate) mod memory;
mod queue;
pub(crate) mod warmth_list;
