//! The waiters of a group commit, in two generations: a sync wakes the waiters that it covers, and
//! not those that wait for the next sync.

use crate::concurrent::Event;
use crate::concurrent::primitives::{AtomicU64, Ordering};
use crate::id::Lsn;

/// One event for the waiters of the running sync, and one for the waiters of the next.
#[derive(Debug, Default)]
pub(crate) struct SyncWaiters {
    events: [Event; 2],
    /// The newest LSN that the latest sync takes up, above one bit: the number of its event.
    latest: AtomicU64,
}

impl SyncWaiters {
    /// How often each event happened. A waiter asks before it asks whether its LSN is durable.
    pub(crate) fn seen(&self) -> [u64; 2] {
        self.events.each_ref().map(Event::count)
    }

    /// The number of the event that the sync for `lsn` signals, and whether that sync has begun.
    pub(crate) fn generation_of(&self, lsn: Lsn) -> (usize, bool) {
        let latest = self.latest.load(Ordering::SeqCst);
        let (own, has_begun) = ((latest & 1) as usize, lsn.0 <= latest >> 1);
        (if has_begun { own } else { 1 - own }, has_begun)
    }

    /// The event with this number.
    pub(crate) fn event(&self, generation: usize) -> &Event {
        &self.events[generation]
    }

    /// A sync begins that takes up everything up to `lsn`.
    pub(crate) fn begin(&self, lsn: Lsn) {
        let own = !self.latest.load(Ordering::Relaxed) & 1;
        self.latest.store(lsn.0 << 1 | own, Ordering::SeqCst);
    }

    /// The running sync succeeded: its waiters wake.
    pub(crate) fn end(&self) {
        self.events[(self.latest.load(Ordering::Relaxed) & 1) as usize].signal();
    }

    /// The running sync failed to advance `durable`: every waiter looks again.
    pub(crate) fn give_up(&self, durable: Lsn) {
        self.latest.store(durable.0 << 1 | self.latest.load(Ordering::Relaxed) & 1, Ordering::SeqCst);
        self.signal_all();
    }

    /// Wakes the waiters of both generations.
    pub(crate) fn signal_all(&self) {
        self.events.iter().for_each(Event::signal);
    }
}
