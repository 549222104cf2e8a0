//! What the cache does besides answering, by its own account.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use everwarm::Activity;

/// What is told apart: everything, nothing of the following, a checkpoint is written, segments are emptied.
pub(crate) const KINDS: [&str; 4] = ["all", "nothing", "checkpoint", "reclaim"];

/// Checkpoints and reclaims.
pub(crate) struct Background {
    start: Instant,
    kinds: [Kind; 2],
}

#[derive(Default)]
struct Kind {
    /// How many are under way.
    running: AtomicUsize,
    /// When one ended last, in nanoseconds since the start.
    ended: AtomicU64,
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
        if begins {
            kind.running.fetch_add(1, Relaxed);
        } else {
            kind.ended.store(self.nanoseconds(Instant::now()), Relaxed);
            kind.running.fetch_sub(1, Relaxed);
        }
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
