//! The operations that users call.
//!
//! | file | contents |
//! |---|---|
//! | `options` | parameters of a single call: TTL, acknowledgement, condition, waiting, placement |
//! | `value` | the result of a get |
//! | `read_path` | the memory tier and the buffers that reads use |
//! | `read` | get |
//! | `read_many` | get of many keys, with their device reads in flight together |
//! | `write` | put, delete and touch |
//! | `single_flight` `fill` | get or fill: one caller loads a missing value, the others wait for it |
//! | `nesting` | the loads that run on this thread |
//! | `scan` | iteration over all live entries |
//! | `tasks` | the same operations for async callers |

pub(in crate::engine) mod fill;
pub(in crate::engine) mod nesting;
pub(in crate::engine) mod options;
pub(in crate::engine) mod read;
pub(in crate::engine) mod read_many;
pub(in crate::engine) mod read_path;
pub(in crate::engine) mod scan;
pub(in crate::engine) mod single_flight;
mod tasks;
pub(in crate::engine) mod value;
pub(in crate::engine) mod write;
