//! The engine: open, put, get, delete, persist, close, and the background steps.
//!
//! Every file here is one verb. Background work is step functions on [`Engine`]; `driver` owns the threads that call them.

mod append;
mod catalog;
mod checkpoint;
pub(crate) mod driver;
pub(crate) mod files;
mod fill;
mod flights;
mod flush;
mod heat;
mod multiget;
mod open;
mod prepare;
mod read;
mod reclaim;
mod recover;
mod rescue;
mod scan;
pub(crate) mod stats;
mod sync;
mod tasks;
mod turns;
mod write;

#[cfg(any(test, fuzzing))]
pub(crate) mod tests;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use crate::clock::StoreTime;
use crate::concurrent::Event;
use crate::config::{Activity, Listener, Observer, Settings};
use crate::error::{Error, Result};
use crate::id::{Key, KeyHash, Lsn, StoreId};
use crate::index::Index;
use crate::io::Disk;
use crate::io::aligned::{BufferPool, Meter};
use crate::io::ring::Ring;
use crate::manifest::ManifestStore;
use crate::segment::table::Table;
use crate::tier::memory::MemoryTier;
use crate::wal::writer::Wal;
use append::Log;
pub(crate) use catalog::Namespace;
pub use fill::FillError;
pub(crate) use open::open;
pub use read::{Tier, Value};
pub use recover::{RecoveryReport, Start};
pub use scan::Entry;
pub(crate) use scan::Scan;
use stats::Counters;
pub use stats::Stats;
pub use write::{Condition, DeleteOptions, Hint, PutOptions, Wait};

/// Stripes that order mutations of one key. A power of two.
const STRIPES: usize = 1024;

/// An open store.
#[derive(Debug)]
pub(crate) struct Engine {
    settings: Settings,
    store: StoreId,
    hash_seed: u64,
    dir: std::path::PathBuf,
    disk: Arc<dyn Disk>,
    time: StoreTime,
    index: Index,
    table: Table,
    memory: MemoryTier,
    /// Buffers of reads in flight.
    reads: Meter,
    /// Buffers of reads that are over.
    buffers: BufferPool,
    /// Values, in the memory tier and in the hands of users.
    values: Meter,
    segment_ring: Ring,
    wal: Wal,
    log: Mutex<Log>,
    /// Held from the choice of a record's position until the index names it.
    stripes: Box<[Mutex<()>]>,
    /// One sync of a stream at a time, footers with it: of two syncs of a file one could hide the other's failure. Before the flush lock.
    syncing: Mutex<()>,
    /// One writer-out of the segment ring at a time. Before the log lock.
    flushing: Mutex<flush::Dirty>,
    /// What the newest manifest on disk says. Before the log lock.
    manifest: Mutex<ManifestStore>,
    /// One checkpoint at a time. Before every other lock.
    checkpointing: Mutex<()>,
    heat: Mutex<heat::HeatState>,
    fills: flights::Fills,
    /// Namespaces and resume tokens. After the manifest lock, before the log lock.
    registry: Mutex<catalog::Registry>,
    /// Bytes that the manifest's files have for the catalog.
    catalog_room: AtomicUsize,
    /// Bytes that the largest catalog takes that a note waits for.
    catalog_wanted: AtomicUsize,
    /// Of segments that were emptied, older ones weighing less: bytes of records, and of the segments. Begins as if all had been full of records.
    recent_occupancy: Mutex<[u64; 2]>,
    marks: Watermarks,
    events: Events,
    counters: Counters,
    observer: Option<Observer>,
    listener: Option<Listener>,
    /// The first failed write or sync: from then on mutations are refused.
    failure: OnceLock<String>,
    closing: AtomicBool,
    /// Somebody waits for a sync.
    sync_now: AtomicBool,
    /// The thread that syncs has nothing to do, and must be woken for the first mutation.
    sync_rests: AtomicBool,
    /// The disk had no room for the next segment.
    segment_space_denied: AtomicBool,
    /// It had no room for a longer manifest.
    manifest_space_denied: AtomicBool,
    /// A checkpoint was asked for since the last one began.
    checkpoint_asked: AtomicBool,
    /// A checkpoint is being written.
    checkpoint_runs: AtomicBool,
    driver: driver::Mode,
    report: RecoveryReport,
    /// Released last: field order is drop order.
    _held: open::OpenGuards,
}

/// Watermarks that are read without the log lock. They only grow.
#[derive(Debug, Default)]
struct Watermarks {
    appended: AtomicU64,
    written: AtomicU64,
    durable: AtomicU64,
    reclaimed: AtomicU64,
    /// Bytes of both streams appended and synced so far.
    appended_bytes: AtomicU64,
    synced_bytes: AtomicU64,
    /// When the oldest mutation was appended that no sync has taken up, ms since open plus one; 0 if there is none.
    unsynced_since_ms: AtomicU64,
    /// The same of those that the sync under way has taken up.
    syncing_since_ms: AtomicU64,
    /// A sync that could not be done is not tried again before this, ms since open.
    sync_retry_ms: AtomicU64,
    /// Syncs that the thread for them knows of.
    syncs_seen: AtomicU64,
    /// Records appended since the last checkpoint began.
    since_checkpoint: AtomicU64,
    /// Store time that the newest mark states, ms.
    marked_ms: AtomicU64,
}

/// What waits for what.
#[derive(Debug, Default)]
struct Events {
    /// There may be room again.
    room: Event,
    /// `durable` grew, or never will.
    durable: turns::SyncWaiters,
    flush: Event,
    sync: Event,
    prepare: Event,
    checkpoint: Event,
    heat: Event,
    /// The cache closes, or the engine failed.
    stop: Event,
}

impl Engine {
    fn hash(&self, key: Key<'_>) -> KeyHash {
        KeyHash::of(self.hash_seed, key)
    }

    fn stripe(&self, hash: KeyHash) -> &Mutex<()> {
        &self.stripes[hash.0 as usize & (STRIPES - 1)]
    }

    /// Refuses mutations once the engine failed or closes.
    pub(crate) fn check_open(&self) -> Result<()> {
        if let Some(reason) = self.failure.get() {
            return Err(Error::Failed { reason: reason.clone() });
        }
        if self.closing.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Records the first failure and wakes everybody who waits for what will not happen any more.
    fn fail(&self, what: &'static str, error: &std::io::Error) -> Error {
        let reason = format!("{what} failed: {error}");
        tracing::error!(dir = %self.dir.display(), "{reason}");
        let first = self.failure.get_or_init(|| reason).clone();
        self.wake_all();
        Error::Failed { reason: first }
    }

    fn observe(&self, activity: Activity) -> impl Drop + use<> {
        Observer::begin(self.observer.as_ref(), activity)
    }

    pub(crate) fn recovery(&self) -> &RecoveryReport {
        &self.report
    }

    /// The newest mutation.
    pub(crate) fn appended(&self) -> Lsn {
        Lsn(self.marks.appended.load(Ordering::Acquire))
    }

    fn durable(&self) -> Lsn {
        Lsn(self.marks.durable.load(Ordering::Acquire))
    }

    /// Age of the oldest unsynced mutation.
    fn unsynced_age(&self) -> Duration {
        let since = |mark: &AtomicU64| Some(mark.load(Ordering::Acquire)).filter(|since| *since > 0);
        match since(&self.marks.syncing_since_ms).or_else(|| since(&self.marks.unsynced_since_ms)) {
            None => Duration::ZERO,
            Some(since) => self.time.monotonic().saturating_sub(Duration::from_millis(since - 1)),
        }
    }
}
