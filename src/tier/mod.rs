//! Where values live besides flash. Policies are pure and testable without a disk.

pub(crate) mod heat;
pub(crate) mod item;
pub(crate) mod memory;
mod queue;
