//! The events on which threads and tasks of the engine wait.

use super::refused::Refused;
use super::room::{Place, Room};
use super::sync_waiters::SyncWaiters;
use super::timer::Timer;
use crate::concurrent::Event;
use crate::concurrent::primitives::{AtomicBool, Ordering};

/// The place of one caller in the queues for room.
pub(in crate::engine) type RoomPlace<'a> = Place<'a, { Refused::COUNT }>;

/// One event for each thing that can be waited for.
#[derive(Debug, Default)]
pub(in crate::engine) struct Events {
    /// A refused mutation may find room now.
    pub(in crate::engine) room: Room<{ Refused::COUNT }>,
    /// The first segments since the opening were prepared, as far as the disk has room for them.
    is_prepared: AtomicBool,
    /// The timer thread signals `room` now and then.
    is_room_watched: AtomicBool,
    /// The deadlines of tasks.
    pub(in crate::engine) timer: Timer,
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
        for event in [&self.flush, &self.sync, &self.prepare, &self.checkpoint, &self.warmth, &self.timer.changed] {
            event.signal();
        }
        self.room.signal_all();
        self.durable.signal_all();
        self.stop.signal();
    }

    /// Whether the first segments were prepared. Before that, room is only a moment away.
    pub(in crate::engine) fn is_prepared(&self) -> bool {
        self.is_prepared.load(Ordering::Relaxed)
    }

    /// The first segments were prepared.
    pub(in crate::engine) fn set_prepared(&self) {
        self.is_prepared.store(true, Ordering::Relaxed);
    }

    /// A caller begins to wait for room: the timer thread watches over it.
    pub(in crate::engine) fn watch_room(&self) {
        if !self.is_room_watched.swap(true, Ordering::SeqCst) {
            self.timer.changed.signal();
        }
    }

    /// Whether anybody waits for room. Called by the timer thread, which stops watching if not.
    pub(in crate::engine) fn is_room_waited_for(&self) -> bool {
        if !self.room.is_waited_for() {
            // Whoever waits from here on signals the timer.
            self.is_room_watched.store(false, Ordering::SeqCst);
        }
        self.room.is_waited_for()
    }
}
