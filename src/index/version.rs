//! A seqlock (Lameter, 2005): writers exclude each other; readers take no lock, and start over if a
//! writer came in between.
//!
//! The guarded data are atomics with `Relaxed` loads and stores. The fences here order them (Boehm,
//! 2012).

#[cfg(not(loom))]
use crossbeam::utils::Backoff;

use crate::concurrent::primitives::{AtomicU32, Ordering, fence};

/// Counts up at the beginning and at the end of each write. Odd while a writer changes the data.
#[derive(Debug, Default)]
pub(super) struct Version(AtomicU32);

impl Version {
    /// Calls `read` until no writer came in between, and returns the last result.
    ///
    /// The last call saw a consistent state. Earlier calls may have seen any mix of states.
    pub(super) fn read<R>(&self, mut read: impl FnMut() -> R) -> R {
        let backoff = Backoff::new();
        loop {
            let before = self.0.load(Ordering::Acquire);
            if before & 1 == 0 {
                let result = read();
                // Pairs with the release fence in `write`: if `read` saw a word that a writer
                // stored, the load below sees that writer's odd version or a later one.
                fence(Ordering::Acquire);
                if self.0.load(Ordering::Relaxed) == before {
                    return result;
                }
            }
            backoff.snooze();
        }
    }

    /// Calls `change` while other writers wait and readers start over.
    pub(super) fn write<R>(&self, change: impl FnOnce() -> R) -> R {
        let backoff = Backoff::new();
        let before = loop {
            let version = self.0.load(Ordering::Relaxed);
            if version & 1 == 0 && self.0.compare_exchange_weak(version, version + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                break version;
            }
            backoff.snooze();
        };
        // Pairs with the acquire fence in `read`.
        fence(Ordering::Release);
        let result = change();
        // Pairs with the acquire load in `read` and the acquire exchange of the next writer.
        self.0.store(before.wrapping_add(2), Ordering::Release);
        result
    }
}

/// Lets the model checker run another thread.
#[cfg(loom)]
struct Backoff;

#[cfg(loom)]
impl Backoff {
    fn new() -> Self {
        Self
    }

    fn snooze(&self) {
        loom::thread::yield_now();
    }
}
