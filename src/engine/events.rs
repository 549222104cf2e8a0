//! The events on which threads and tasks of the engine wait.

use super::sync_waiters::SyncWaiters;
use crate::concurrent::Event;

/// One event for each thing that can be waited for.
#[derive(Debug, Default)]
pub(in crate::engine) struct Events {
    /// A refused mutation may find room now.
    pub(in crate::engine) room: Event,
    /// `durable` grew, or never will.
    pub(in crate::engine) durable: SyncWaiters,
    /// The flush thread has work.
    pub(in crate::engine) flush: Event,
    /// The sync thread has work.
    pub(in crate::engine) sync: Event,
    /// The prepare thread has work.
    pub(in crate::engine) prepare: Event,
    /// The checkpoint thread has work.
    pub(in crate::engine) checkpoint: Event,
    /// The warmth thread has work.
    pub(in crate::engine) warmth: Event,
    /// The cache closes, or the engine failed.
    pub(in crate::engine) stop: Event,
}

impl Events {
    /// Wakes every background thread and every waiter.
    pub(in crate::engine) fn signal_all(&self) {
        for event in [&self.flush, &self.sync, &self.prepare, &self.checkpoint, &self.warmth, &self.room] {
            event.signal();
        }
        self.durable.signal_all();
        self.stop.signal();
    }
}
