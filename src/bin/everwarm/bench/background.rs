//! What the cache does besides answering, by its own account.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use everwarm::Activity;
use serde::Serialize;

/// What is told apart: everything, nothing of the following, a checkpoint is written, segments are emptied.
pub(crate) const KINDS: [&str; 4] = ["all", "nothing", "checkpoint", "reclaim"];

/// Checkpoints and reclaims.
pub(crate) struct Background {
    start: Instant,
    kinds: [Kind; 2],
}

/// One at a time.
#[derive(Default)]
struct Kind {
    /// How many are under way.
    running: AtomicUsize,
    /// When the last one began and ended, in nanoseconds since the start.
    began: AtomicU64,
    ended: AtomicU64,
    /// How many have ended, and nanoseconds that they took.
    count: AtomicU64,
    took: AtomicU64,
}

/// What has ended of one kind, whatever came of it.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Done {
    count: u64,
    /// How long all of them together took.
    ms: f64,
}

impl Done {
    /// Of this, what came after `earlier`.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self { count: self.count - earlier.count, ms: self.ms - earlier.ms }
    }
}

impl Background {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), kinds: Default::default() }
    }

    /// Something begins or ends.
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

    /// Checkpoints and reclaims so far.
    pub(crate) fn done(&self) -> [Done; 2] {
        self.kinds.each_ref().map(|kind| Done { count: kind.count.load(Relaxed), ms: kind.took.load(Relaxed) as f64 / 1e6 })
    }

    /// Which of [`KINDS`] a call belongs to that should have begun then and has returned now.
    pub(crate) fn beside(&self, began: Instant) -> [bool; KINDS.len()] {
        let began = self.nanoseconds(began);
        let [checkpoint, reclaim] = self.kinds.each_ref().map(|kind| kind.running.load(Relaxed) > 0 || kind.ended.load(Relaxed) >= began);
        [true, !checkpoint && !reclaim, checkpoint, reclaim]
    }

    fn nanoseconds(&self, at: Instant) -> u64 {
        // From one on: 0 is never.
        at.saturating_duration_since(self.start).as_nanos() as u64 + 1
    }
}
