//! Whom a sync wakes: those it is for, and not those who wait for the next.

use crate::concurrent::Event;
use crate::concurrent::primitives::{AtomicU64, Ordering};
use crate::id::Lsn;

/// Those who wait for a sync, in two groups: whom the one under way is for, and whom the next one is for.
#[derive(Debug, Default)]
pub(super) struct SyncWaiters {
    events: [Event; 2],
    /// The newest LSN that the latest sync takes up, above one bit that says which event is its own.
    latest: AtomicU64,
}

impl SyncWaiters {
    /// How often each event happened. To be asked before whether an LSN is durable.
    pub(super) fn seen(&self) -> [u64; 2] {
        self.events.each_ref().map(Event::count)
    }

    /// Which event the sync for `lsn` signals, if that is not durable yet, and whether that sync has begun.
    pub(super) fn turn(&self, lsn: Lsn) -> (usize, bool) {
        let latest = self.latest.load(Ordering::SeqCst);
        let (own, has_begun) = ((latest & 1) as usize, lsn.0 <= latest >> 1);
        (if has_begun { own } else { 1 - own }, has_begun)
    }

    pub(super) fn event(&self, turn: usize) -> &Event {
        &self.events[turn]
    }

    /// A sync begins that takes up everything up to `lsn`.
    pub(super) fn begin(&self, lsn: Lsn) {
        let own = !self.latest.load(Ordering::Relaxed) & 1;
        self.latest.store(lsn.0 << 1 | own, Ordering::SeqCst);
    }

    /// It is over.
    pub(super) fn end(&self) {
        self.events[(self.latest.load(Ordering::Relaxed) & 1) as usize].signal();
    }

    /// It came to nothing: `durable` is as before.
    pub(super) fn give_up(&self, durable: Lsn) {
        self.latest.store(durable.0 << 1 | self.latest.load(Ordering::Relaxed) & 1, Ordering::SeqCst);
        self.signal_all();
    }

    /// Everybody looks again.
    pub(super) fn signal_all(&self) {
        self.events.iter().for_each(Event::signal);
    }
}
