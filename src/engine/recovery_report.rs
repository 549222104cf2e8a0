//! The report of a recovery, for users.
//!
//! Recovery fills a [`RecoveryReport`] while it brings a store back. The open cache keeps it and
//! never changes it.

use std::time::Duration;

use crate::id::Lsn;

/// The kind of stop that preceded an opening. It decides which mutations survived.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Start {
    /// There was no store. The opening created it.
    #[default]
    Created,
    /// The cache was closed with [`crate::Cache::close`]. Nothing was lost.
    Clean,
    /// The cache was not closed, for example because the process was killed, and the host kept
    /// running. Mutations acknowledged at [`crate::Ack::Process`] or higher survived.
    Process,
    /// The host went down, by a power cut or a kernel crash. Mutations acknowledged at
    /// [`crate::Ack::Host`] survived.
    Host,
}

/// The result of the recovery at the opening of a cache: its sources, its losses and its duration.
///
/// `kind`, `maybe_lost_after` and `alive_until_ms` are repeated until a program can have heard
/// them. If an opening is cut off, or the store stops again before its first sync, the next report
/// states what both lost: the worst kind, the lowest LSN and the earliest time. It is no longer
/// repeated once the open store
///
/// - has synced a mutation, or a [`crate::Cache::persist`] at [`crate::Ack::Host`] returned;
/// - or was closed;
/// - or was idle for about a minute.
///
/// [`crate::Cache::recovery`] returns it.
///
/// ```
/// # fn main() -> everwarm::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let options = everwarm::Options::new(dir.path()).memory(1 << 20).flash(1 << 20);
/// use everwarm::{Cache, Start};
///
/// let cache = Cache::open(options.clone())?;
/// assert_eq!(cache.recovery().kind, Start::Created);
/// cache.put("user:17", "Ada")?;
/// cache.close()?;
///
/// let cache = Cache::open(options)?;
/// let report = cache.recovery();
/// assert_eq!((report.kind, report.entries), (Start::Clean, 1));
/// assert!(report.damaged.is_empty() && report.maybe_lost_after.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The kind of stop before the opening. The worst one, if several stops are reported.
    pub kind: Start,
    /// Entries that were loaded from the checkpoint.
    pub checkpoint_entries: u64,
    /// Whether a checkpoint was set aside and the index was rebuilt from footers alone. The
    /// checkpoint was missing, damaged or of another geometry, or [`crate::RecoveryMode::Rebuild`]
    /// asked for it.
    pub rebuilt: bool,
    /// Entries and tombstones that were applied from footers of segments sealed after the
    /// checkpoint, or of all segments without one.
    pub footer_entries: u64,
    /// WAL frames that were replayed.
    pub wal_frames: u64,
    /// Entries in the index after recovery.
    pub entries: u64,
    /// Bytes of torn WAL that were cut off. No mutation in them was known to be durable.
    pub torn_bytes: u64,
    /// Whether one of the two copies of the manifest was missing or damaged, by an interrupted
    /// write or by bit rot. The other copy is complete, so nothing was lost.
    pub manifest_repaired: bool,
    /// Segments that failed earlier, and whose readable records were written to replacement files.
    pub segments_renewed: u64,
    /// Descriptions of all damage that was found, one line for each. Empty if there was none.
    pub damaged: Vec<String>,
    /// After a host crash, the LSN up to which every mutation survived. Later mutations were not
    /// synced and may be missing. [`Lsn::ZERO`] if the store started empty under
    /// [`crate::OnHostCrash::Cold`]. `None` after any other stop.
    pub maybe_lost_after: Option<Lsn>,
    /// Wall time up to which the store is known to have been open, in ms since 1970. Every mutation
    /// that returned before it survived, if [`RecoveryReport::damaged`] is empty. 0 if the time is
    /// unknown or the store is new.
    ///
    /// It is never later than the truth, as far as the host's clocks tell. Within one boot of the
    /// host it is measured back from now, so it is right whatever the wall clock showed meanwhile.
    /// After a reboot it is what the wall clock showed. If the wall clock is behind that now, it is
    /// the time that the opening before reported, or now if that is earlier.
    pub alive_until_ms: u64,
    /// How far the wall clock is behind what it showed at the last sign of life. Zero if it is not.
    pub clock_went_back: Duration,
    /// Duration of the opening up to the end of recovery, with the wait for the directory lock.
    pub took: Duration,
    /// Share of `took` in which the checkpoint and the footers of sealed segments were loaded. If
    /// recovery started again, the share of its last attempt.
    pub load_took: Duration,
    /// Share of `took` in which the WAL was replayed and unsealed segments were restored. If
    /// recovery started again, the share of its last attempt. Zero after a clean close.
    pub replay_took: Duration,
}
