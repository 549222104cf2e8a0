//! What the cache does besides answering, by its own account.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use everwarm::Activity;

/// What is told apart: everything, nothing of the following, a checkpoint is written, segments are emptied.
pub(crate) const KINDS: [&str; 4] = ["all", "nothing", "checkpoint", "reclaim"];

/// How many of each are under way.
#[derive(Default)]
pub(crate) struct Background {
    checkpoints: AtomicUsize,
    reclaims: AtomicUsize,
}

impl Background {
    /// Something begins or ends.
    pub(crate) fn observe(&self, activity: Activity, begins: bool) {
        let count = match activity {
            Activity::Checkpoint => &self.checkpoints,
            Activity::Reclaim => &self.reclaims,
            _ => return,
        };
        if begins {
            count.fetch_add(1, Relaxed)
        } else {
            count.fetch_sub(1, Relaxed)
        };
    }

    /// Whether a checkpoint is written now, and whether segments are emptied.
    pub(crate) fn now(&self) -> [bool; 2] {
        [&self.checkpoints, &self.reclaims].map(|count| count.load(Relaxed) > 0)
    }
}
