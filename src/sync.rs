//! Small shared helpers: locks that ignore poisoning on purpose, events, and integer logarithms.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Locks, also after another holder panicked: every guarded structure here is valid between statements, and a panic is one of our own bugs, which must not turn into a second one.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that happens again and again. Whoever waits first notes the count, then checks its condition, then waits for the count to move, so no occurrence between
/// check and wait is missed. Signalling without waiters is two atomic operations.
#[derive(Debug, Default)]
pub(crate) struct Event {
    count: AtomicU64,
    waiters: AtomicUsize,
    mutex: Mutex<()>,
    condvar: Condvar,
}

impl Event {
    /// How often it happened so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// It happened.
    pub(crate) fn signal(&self) {
        // Sequentially consistent with the two accesses in `wait`: either the waiter sees the new count, or this sees the waiter.
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            let _waiter_is_waiting_or_gone = lock(&self.mutex);
            self.condvar.notify_all();
        }
    }

    /// Waits until it happened after `seen`, for at most `timeout` if there is one. False if the time ran out.
    pub(crate) fn wait(&self, seen: u64, timeout: Option<Duration>) -> bool {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let guard = lock(&self.mutex);
        let not_yet = |(): &mut ()| self.count() == seen;
        match timeout {
            None => drop(self.condvar.wait_while(guard, not_yet)),
            Some(timeout) => drop(self.condvar.wait_timeout_while(guard, timeout, not_yet)),
        }
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        self.count() != seen
    }
}

/// Bits that tell `n / unit` values apart, rounded up.
pub(crate) const fn ratio_ceil_log2(n: u64, unit: u64) -> u32 {
    n.div_ceil(unit).next_power_of_two().trailing_zeros()
}
