//! Background work of the cache (checkpoints and reclaims), as its activity callback reports it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use everwarm::Activity;
use serde::Serialize;

/// Classes of calls, by the background work that overlapped them: all calls, calls beside no
/// background work, calls beside a checkpoint, calls beside a reclaim. The last two may overlap.
pub(crate) const KINDS: [&str; 4] = ["all", "nothing", "checkpoint", "reclaim"];

/// Records when checkpoints and reclaims run.
pub(crate) struct Background {
    start: Instant,
    kinds: [Kind; 2],
}

/// One kind of background work. The cache runs at most one instance of a kind at a time.
#[derive(Default)]
struct Kind {
    /// Instances in progress.
    running: AtomicUsize,
    /// When the last instance began, in nanoseconds since `Background::start`; 0 for never.
    began: AtomicU64,
    /// When the last instance ended, in nanoseconds since `Background::start`; 0 for never.
    ended: AtomicU64,
    /// Instances that have ended.
    count: AtomicU64,
    /// Nanoseconds that all ended instances took.
    took: AtomicU64,
}

/// Ended instances of one kind of background work, failed ones included.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Done {
    count: u64,
    /// Milliseconds that all of them took together.
    ms: f64,
}

impl Done {
    /// The instances that ended after `earlier` was read.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { count: self.count - earlier.count, ms: self.ms - earlier.ms }
    }
}

impl Background {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), kinds: Default::default() }
    }

    /// Records that an activity begins or ends. Called by the cache.
    pub(crate) fn observe(&self, activity: Activity, begins: bool) {
        let kind = match activity {
            Activity::Checkpoint => &self.kinds[0],
            Activity::Reclaim => &self.kinds[1],
            _ => return,
        };
        let now = self.nanoseconds(Instant::now());
        if begins {
            kind.began.store(now, Relaxed);
            kind.running.fetch_add(1, Relaxed);
        } else {
            kind.ended.store(now, Relaxed);
            kind.running.fetch_sub(1, Relaxed);
            kind.count.fetch_add(1, Relaxed);
            kind.took.fetch_add(now - kind.began.load(Relaxed), Relaxed);
        }
    }

    /// Checkpoints and reclaims that have ended so far.
    pub(crate) fn done(&self) -> [Done; 2] {
        self.kinds.each_ref().map(|kind| Done { count: kind.count.load(Relaxed), ms: kind.took.load(Relaxed) as f64 / 1e6 })
    }

    /// Which of [`KINDS`] a call belongs to that was due at `began` and returns now.
    pub(crate) fn beside(&self, began: Instant) -> [bool; KINDS.len()] {
        let began = self.nanoseconds(began);
        let [checkpoint, reclaim] = self.kinds.each_ref().map(|kind| kind.running.load(Relaxed) > 0 || kind.ended.load(Relaxed) >= began);
        [true, !checkpoint && !reclaim, checkpoint, reclaim]
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        // At least 1, because 0 stands for never.
        at.saturating_duration_since(self.start).as_nanos() as u64 + 1
    }
}
