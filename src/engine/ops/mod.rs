//! The operations of users.
//!
//! `options` says how one call differs from the defaults and `value` is what a get returns. `write`
//! puts and deletes, `read` gets, `read_many` gets many keys with their reads in flight together,
//! `fill` loads a missing value once for all callers that miss it, `scan` iterates, and `tasks` are
//! the same operations for async callers.

pub(in crate::engine) mod fill;
pub(in crate::engine) mod options;
pub(in crate::engine) mod read;
pub(in crate::engine) mod read_many;
pub(in crate::engine) mod read_path;
pub(in crate::engine) mod scan;
pub(in crate::engine) mod single_flight;
mod tasks;
pub(in crate::engine) mod value;
pub(in crate::engine) mod write;
