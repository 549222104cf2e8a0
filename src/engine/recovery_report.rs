//! What recovery tells the user.

use std::time::Duration;

use crate::id::Lsn;

/// What kind of stop preceded an open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// None: the store is new.
    #[default]
    Created,
    /// An orderly close.
    Clean,
    /// The process ended without closing; the host went on.
    Process,
    /// The host went down.
    Host,
}

/// What recovery found and did.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// What preceded.
    pub kind: Start,
    /// Entries loaded from the checkpoint.
    pub checkpoint_entries: u64,
    /// Whether the checkpoint was missing, damaged or of another geometry, so that the index was rebuilt from footers alone.
    pub rebuilt: bool,
    /// Entries applied from footers of segments that the checkpoint does not cover.
    pub footer_entries: u64,
    /// WAL frames read.
    pub wal_frames: u64,
    /// Entries in the index afterwards.
    pub entries: u64,
    /// Bytes of WAL above the durable watermark that were not whole and were cut.
    pub torn_bytes: u64,
    /// Whether one copy of the manifest was missing or not whole: its writing was interrupted, or it rotted. The other copy says everything.
    pub manifest_repaired: bool,
    /// Segments that a write or a sync had failed for: what verifies of them is in new files.
    pub segments_renewed: u64,
    /// What was found damaged, one line each.
    pub damaged: Vec<String>,
    /// The host went down: mutations after this LSN may be missing, since they were not synced. Everything up to it is there.
    pub maybe_lost_after: Option<Lsn>,
    /// The store was alive at least until this store time, in ms since 1970.
    pub alive_until_ms: u64,
    /// From the call of open until the cache could serve.
    pub took: Duration,
    /// Of it, the time to load what sealed segments say: the checkpoint and footers. If recovery had to begin again, only the last time counts.
    pub load_took: Duration,
    /// Of it, the time to replay the WAL, likewise.
    pub replay_took: Duration,
}
