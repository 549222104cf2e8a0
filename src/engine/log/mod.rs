//! From a mutation to durable bytes.
//!
//! ```text
//! append ─► segment ring, WAL ring ─► flush, seal ─► segment files
//!                                 └─► sync ────────► WAL files, `durable`
//! ```
//! - `stream` owns the rings, the log lock and the stripes. `state` is the data under the log lock.
//! - `append` places a record, and `mark` appends a mark.
//! - `flush` writes the segment ring to segment files. `seal` gives full segments their footers.
//! - `sync` makes everything durable, and `failed` takes a segment out of use.
//! - `durability` holds the locks of flush, seal and sync, and knows how old the oldest unsynced
//!   mutation is.
//! - `pace` decides when a checkpoint is due, and `watermarks` counts how far each step has come.

pub(in crate::engine) mod append;
pub(in crate::engine) mod durability;
pub(in crate::engine) mod failed;
pub(in crate::engine) mod flush;
pub(in crate::engine) mod mark;
pub(in crate::engine) mod pace;
pub(in crate::engine) mod seal;
pub(in crate::engine) mod state;
pub(in crate::engine) mod stream;
pub(in crate::engine) mod sync;
pub(in crate::engine) mod watermarks;
