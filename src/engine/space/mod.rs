//! Makes room for new records.
//!
//! `provision` keeps empty segments ready. When none is free, `reclaim` empties the oldest segment:
//! it keeps wanted entries and evicts the others. `rescue` moves the records of a failed segment.
//! Both append records again through `relocate`. `occupancy` decides whether flash has room for
//! every live entry, and `budget` divides the memory budget.

mod budget;
pub(in crate::engine) mod occupancy;
mod provision;
mod reclaim;
pub(in crate::engine) mod relocate;
pub(in crate::engine) mod rescue;
