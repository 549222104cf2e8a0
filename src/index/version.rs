//! A seqlock (Lameter, 2005): writers exclude each other, readers take no lock and start over if a writer was there.
//!
//! What it guards consists of atomics that are stored to and loaded from with `Relaxed`; the fences here order them (Boehm, 2012).

#[cfg(not(loom))]
use crossbeam::utils::Backoff;

use crate::concurrent::primitives::{AtomicU32, Ordering, fence};

/// Odd while a writer is in.
#[derive(Debug, Default)]
pub(super) struct Version(AtomicU32);

impl Version {
    /// Runs `read` until no writer was there meanwhile. What it saw then is consistent; what it saw before may be anything.
    pub(super) fn read<R>(&self, mut read: impl FnMut() -> R) -> R {
        let backoff = Backoff::new();
        loop {
            let before = self.0.load(Ordering::Acquire);
            if before & 1 == 0 {
                let result = read();
                // Pairs with the release fence in `write`: if a word was seen that a writer stored, so is its odd version.
                fence(Ordering::Acquire);
                if self.0.load(Ordering::Relaxed) == before {
                    return result;
                }
            }
            backoff.snooze();
        }
    }

    /// Runs `change` while other writers wait and readers start over.
    pub(super) fn write<R>(&self, change: impl FnOnce() -> R) -> R {
        let backoff = Backoff::new();
        let before = loop {
            let version = self.0.load(Ordering::Relaxed);
            if version & 1 == 0 && self.0.compare_exchange_weak(version, version + 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                break version;
            }
            backoff.snooze();
        };
        fence(Ordering::Release);
        let result = change();
        // Pairs with the acquire loads of the version.
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
