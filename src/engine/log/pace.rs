//! The pace of checkpoints: bounds how many records a recovery must replay.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::concurrent::lock;

/// No put waits for a checkpoint while at most this many records must be replayed: a small store
/// fills faster than its checkpoints are synced.
const REPLAY_FREE: u64 = 256 << 10;
/// Fewest records between two checkpoints.
const INTERVAL_MIN: u64 = 32_768;
/// A checkpoint is due after one record per this many entries of the index.
const ENTRIES_PER_RECORD: u64 = 6;

/// Counts the records since the last checkpoint began.
#[derive(Debug)]
pub(in crate::engine) struct CheckpointPace {
    /// One checkpoint at a time. Taken before every other lock.
    checkpointing: Mutex<()>,
    records: AtomicU64,
    /// The checkpoint thread was asked for a checkpoint since the last one began.
    is_asked: AtomicBool,
    is_running: AtomicBool,
}

/// Records after which a checkpoint is due in a store of `entries`: few enough to be replayed
/// quickly, many enough that checkpoints write little.
fn interval(entries: u64) -> u64 {
    (entries / ENTRIES_PER_RECORD).max(INTERVAL_MIN)
}

impl CheckpointPace {
    /// The pace of a store whose recovery replayed `records`.
    pub(in crate::engine) fn new(records: u64) -> Self {
        let (is_asked, is_running) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { checkpointing: Mutex::default(), records: records.into(), is_asked, is_running }
    }

    /// Counts a record. True if the checkpoint thread must be woken, which happens once: at the
    /// first record for which a checkpoint is due.
    pub(super) fn add_record(&self, entries: u64) -> bool {
        let before = self.records.fetch_add(1, Ordering::Relaxed);
        before >= interval(entries) && !self.is_asked.swap(true, Ordering::SeqCst)
    }

    /// Whether writers outrun the running checkpoint: the next one is due before it ends. Puts then
    /// wait. So recovery replays little more than two intervals, or than one interval and
    /// [`REPLAY_FREE`].
    pub(super) fn is_outrun(&self, entries: u64) -> bool {
        self.is_running.load(Ordering::Relaxed) && self.records.load(Ordering::Relaxed) >= interval(entries).max(REPLAY_FREE)
    }

    /// Whether a checkpoint is due. The next record for which one is due wakes the thread again.
    pub(in crate::engine) fn take_due(&self, entries: u64) -> bool {
        // Reset before the count is read, so that a record which is counted later wakes the thread
        // again.
        self.is_asked.store(false, Ordering::SeqCst);
        self.records.load(Ordering::Relaxed) >= interval(entries)
    }

    /// Waits for the checkpoint that is being written, and excludes others.
    pub(in crate::engine) fn exclusive(&self) -> MutexGuard<'_, ()> {
        lock(&self.checkpointing)
    }

    /// Runs a checkpoint, which writers may outrun meanwhile. The caller excludes others.
    pub(in crate::engine) fn run<T>(&self, checkpoint: impl FnOnce() -> T) -> T {
        self.is_running.store(true, Ordering::Relaxed);
        let taken = checkpoint();
        self.is_running.store(false, Ordering::Relaxed);
        taken
    }

    /// The copy of the index begins: records from here on count for the next checkpoint.
    pub(in crate::engine) fn restart(&self) {
        self.records.store(0, Ordering::Relaxed);
    }
}
