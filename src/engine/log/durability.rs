//! The locks of flush, seal and sync, and when the next sync is due.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use crate::clock::whole_ms;
use crate::concurrent::{Event, lock};
use crate::engine::Engine;
use crate::engine::context::Mode;
use crate::engine::events::RoomPlace;
use crate::engine::refused::Refused;
use crate::id::SegmentId;

/// Segments with bytes that were written and not synced.
#[derive(Debug, Default)]
pub(in crate::engine) struct Dirty(pub(super) BTreeSet<SegmentId>);

/// The locks of flush, seal and sync, and the times of the oldest unsynced mutation. Times are in
/// ms since the opening.
#[derive(Debug, Default)]
pub(in crate::engine) struct Durability {
    /// Serialises syncing and sealing: of two concurrent syncs of one file, one may swallow the
    /// error meant for the other. Taken before `flushing`.
    syncing: Mutex<()>,
    /// One write-out of the segment ring at a time. Taken before the log lock.
    flushing: Mutex<Dirty>,
    /// A sync was requested, without regard to the interval.
    is_requested: AtomicBool,
    /// The sync thread idles without a deadline, and must be woken for the first mutation.
    is_idle: AtomicBool,
    /// When the oldest mutation was appended that no sync covers yet, plus 1. 0 without one.
    unsynced_since_ms: AtomicU64,
    /// When the oldest mutation was appended that the running sync covers, plus 1. 0 without one.
    syncing_since_ms: AtomicU64,
    /// A postponed sync is not tried again before this time.
    retry_ms: AtomicU64,
    /// Syncs that succeeded.
    syncs: AtomicU64,
    /// Successful syncs that the sync thread has seen.
    syncs_seen: AtomicU64,
}

impl Durability {
    /// Waits for the running sync or seal, and excludes others.
    pub(in crate::engine) fn exclusive(&self) -> MutexGuard<'_, ()> {
        lock(&self.syncing)
    }

    /// Excludes other syncs and seals, unless one is running.
    pub(super) fn try_exclusive(&self) -> Option<MutexGuard<'_, ()>> {
        match self.syncing.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Takes the flush lock.
    pub(in crate::engine) fn flushing(&self) -> MutexGuard<'_, Dirty> {
        lock(&self.flushing)
    }

    /// Asks for a sync without regard to the interval.
    pub(super) fn request(&self) {
        self.is_requested.store(true, Ordering::Release);
    }

    pub(in crate::engine) fn is_requested(&self) -> bool {
        self.is_requested.load(Ordering::Acquire)
    }

    /// Records that a mutation was appended at `now`, which is called only for the oldest unsynced
    /// one. Returns whether the sync thread must be woken for it.
    pub(super) fn add_mutation(&self, now: impl FnOnce() -> u64) -> bool {
        if self.unsynced_since_ms.load(Ordering::Relaxed) != 0 {
            return false;
        }
        // Pairs with the load in `has_unsynced`: either the sync thread sees this mutation before
        // it idles, or this thread sees that it idles.
        self.unsynced_since_ms.store(now() + 1, Ordering::SeqCst);
        self.is_idle.load(Ordering::SeqCst) && self.is_idle.swap(false, Ordering::SeqCst)
    }

    /// A sync begins that covers everything that was appended. Called under the log lock.
    pub(super) fn begin_sync(&self) {
        self.is_requested.store(false, Ordering::Release);
        let since = self.unsynced_since_ms.swap(0, Ordering::AcqRel);
        self.syncing_since_ms.store(since, Ordering::Release);
    }

    /// The sync found nothing unsynced.
    pub(super) fn end_idle_sync(&self) {
        self.syncing_since_ms.store(0, Ordering::Release);
    }

    /// The sync succeeded.
    pub(super) fn end_sync(&self) {
        self.retry_ms.store(0, Ordering::Release);
        self.syncing_since_ms.store(0, Ordering::Release);
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// The sync could not be done at `now`. Its mutations keep their age, and it is not tried again
    /// before `delay` has passed.
    pub(super) fn postpone_sync(&self, now: Duration, delay: Duration) {
        self.retry_ms.store(whole_ms(now + delay), Ordering::Release);
        let since = match self.syncing_since_ms.swap(0, Ordering::AcqRel) {
            // Only marks were unsynced.
            0 => whole_ms(now) + 1,
            since => since,
        };
        self.unsynced_since_ms.store(since, Ordering::Release);
    }

    /// Lets a postponed sync be tried again at once.
    pub(in crate::engine) fn forgive(&self) {
        self.retry_ms.store(0, Ordering::Release);
    }

    /// Time until a postponed sync is tried again.
    pub(in crate::engine) fn until_retry(&self, now: Duration) -> Duration {
        Duration::from_millis(self.retry_ms.load(Ordering::Acquire)).saturating_sub(now)
    }

    /// Whether a mutation waits for a sync that has not begun.
    pub(in crate::engine) fn has_unsynced(&self) -> bool {
        self.unsynced_since_ms.load(Ordering::SeqCst) > 0
    }

    /// Age of the oldest unsynced mutation.
    pub(in crate::engine) fn unsynced_age(&self, now: Duration) -> Duration {
        let since = |time: &AtomicU64| Some(time.load(Ordering::Acquire)).filter(|since| *since > 0);
        match since(&self.syncing_since_ms).or_else(|| since(&self.unsynced_since_ms)) {
            None => Duration::ZERO,
            Some(since) => now.saturating_sub(Duration::from_millis(since - 1)),
        }
    }

    /// Syncs that succeeded since the opening.
    pub(in crate::engine) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }

    /// Whether a sync succeeded since the last call. Only the sync thread calls this.
    pub(in crate::engine) fn take_progress(&self) -> bool {
        let syncs = self.syncs();
        self.syncs_seen.swap(syncs, Ordering::Relaxed) != syncs
    }

    /// The sync thread is about to idle without a deadline.
    pub(in crate::engine) fn set_idle(&self) {
        self.is_idle.store(true, Ordering::SeqCst);
    }
}

impl Engine {
    /// Wakes the sync thread without regard to the interval.
    pub(in crate::engine) fn request_sync(&self) {
        self.durability.request();
        self.events.sync.signal();
    }

    /// Age of the oldest unsynced mutation.
    pub(in crate::engine) fn unsynced_age(&self) -> Duration {
        self.durability.unsynced_age(self.context.time.monotonic())
    }

    /// Waits until `event` happens after it was `seen`. In inline mode it runs the pending steps
    /// instead.
    pub(in crate::engine) fn wait(&self, event: &Event, seen: u64, timeout: Option<Duration>) {
        match self.context.mode {
            Mode::Threads => {
                event.wait(seen, timeout);
            }
            #[cfg(any(test, fuzzing))]
            Mode::Inline(step_all) => {
                // The engine records a failure, and the caller checks that next.
                let _recorded = step_all(self);
            }
        }
    }

    /// Waits for room after a caller found none for `cause`. `seen` is the count of the signals for
    /// room before it tried. In inline mode it runs the pending steps instead.
    pub(in crate::engine) fn wait_for_room(&self, place: &mut RoomPlace<'_>, cause: Refused, seen: u64, timeout: Option<Duration>) {
        match self.context.mode {
            Mode::Threads => {
                place.found_none(cause as usize, seen);
                self.events.watch_room();
                place.wait(timeout);
            }
            #[cfg(any(test, fuzzing))]
            Mode::Inline(step_all) => {
                let _recorded = step_all(self);
            }
        }
    }
}
