//! Shared concurrency helpers: locks that ignore poisoning on purpose, and events.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use primitives::{AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, fence};

/// Primitives of the small state machines. A model checker replaces them by its own.
pub(crate) mod primitives {
    #[cfg(not(loom))]
    pub(crate) use std::sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    };

    #[cfg(loom)]
    pub(crate) use loom::sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    };
}

/// Locks a mutex, even after another holder panicked. Every guarded structure here is valid between
/// statements. A panic is a bug of ours, and must not turn into a second one.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event that happens repeatedly. Threads and tasks may wait for it.
///
/// A waiter takes three steps: it reads the count, it checks its condition, and it waits for the
/// count to move. So it misses no occurrence between the check and the wait. Signalling without
/// waiters takes two atomic operations.
#[derive(Debug, Default)]
pub(crate) struct Event {
    count: AtomicU64,
    /// Waiting threads and listed tasks.
    waiters: AtomicUsize,
    tasks: Mutex<Tasks>,
    condvar: Condvar,
}

/// Listed tasks by their numbers, so that one leaves the list without a search.
#[derive(Debug, Default)]
struct Tasks {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Event {
    /// How often the event has happened.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Counts one occurrence, and wakes all waiters.
    pub(crate) fn signal(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fences in `wait` and `Happened::poll`: either the waiter sees the new
        // count, or this sees the waiter.
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            // A thread that saw the old count under this lock waits by the time the lock is free,
            // so it is notified. It is notified after the lock was released, so it does not find
            // the lock taken.
            let woken = std::mem::take(&mut lock(&self.tasks).wakers);
            self.condvar.notify_all();
            self.waiters.fetch_sub(woken.len(), Ordering::SeqCst);
            woken.into_values().for_each(wake);
        }
    }

    /// Waits until the event happened after `seen`, for at most `timeout` if there is one. False if
    /// the time ran out.
    pub(crate) fn wait(&self, seen: u64, timeout: Option<Duration>) -> bool {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fence in `signal`.
        fence(Ordering::SeqCst);
        let mut guard = lock(&self.tasks);
        match timeout {
            None => {
                while self.count() == seen {
                    guard = self.condvar.wait(guard).unwrap_or_else(PoisonError::into_inner);
                }
                drop(guard);
            }
            #[cfg(not(loom))]
            Some(timeout) => drop(self.condvar.wait_timeout_while(guard, timeout, |_| self.count() == seen)),
            #[cfg(loom)]
            Some(timeout) => unreachable!("{timeout:?}: a model has no clock"),
        }
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        self.count() != seen
    }

    /// Ready once the event happened after `seen`. May be dropped at any time.
    pub(crate) fn after(&self, seen: u64) -> Happened<'_> {
        Happened { event: self, seen, listed: None }
    }
}

/// Wakes a task. Its executor may panic, which must not end this thread before it woke the others.
pub(crate) fn wake(waker: Waker) {
    let woken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| waker.wake()));
    if woken.is_err() {
        tracing::error!("waking a task panicked");
    }
}

/// Polls `future` on this thread until it is ready, for at most `timeout` after each wake-up if
/// there is one. `None` if the time ran out.
pub(crate) fn block_on<F: Future + Unpin>(mut future: F, timeout: Option<Duration>) -> Option<F::Output> {
    struct Thread(Event);
    impl Wake for Thread {
        fn wake(self: Arc<Self>) {
            self.0.signal();
        }
    }
    let thread = Arc::new(Thread(Event::default()));
    let waker = Waker::from(Arc::clone(&thread));
    loop {
        let seen = thread.0.count();
        if let Poll::Ready(output) = Pin::new(&mut future).poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
        if !thread.0.wait(seen, timeout) {
            return None;
        }
    }
}

/// The future of [`Event::after`].
#[derive(Debug)]
pub(crate) struct Happened<'a> {
    event: &'a Event,
    seen: u64,
    /// Number of the waker that was listed last.
    listed: Option<u64>,
}

impl Happened<'_> {
    fn unlist(&mut self) {
        if let Some(listed) = self.listed.take() {
            let was_listed = lock(&self.event.tasks).wakers.remove(&listed).is_some();
            self.event.waiters.fetch_sub(usize::from(was_listed), Ordering::SeqCst);
        }
    }
}

impl Future for Happened<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        self.unlist();
        if self.event.count() != self.seen {
            return Poll::Ready(());
        }
        let number = {
            let mut tasks = lock(&self.event.tasks);
            tasks.next += 1;
            let number = tasks.next;
            tasks.wakers.insert(number, context.waker().clone());
            self.event.waiters.fetch_add(1, Ordering::SeqCst);
            number
        };
        self.listed = Some(number);
        // Pairs with the fence in `Event::signal`.
        fence(Ordering::SeqCst);
        if self.event.count() == self.seen {
            return Poll::Pending;
        }
        self.unlist();
        Poll::Ready(())
    }
}

impl Drop for Happened<'_> {
    fn drop(&mut self) {
        self.unlist();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    struct Woken(AtomicBool);
    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::SeqCst);
        }
    }

    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("an executor that cannot take the task");
        }
    }

    #[test]
    fn all_waiters_are_woken_even_if_waking_one_panics() {
        let event = Event::default();
        let woken = Arc::new(Woken(AtomicBool::new(false)));
        let (bad, good) = (Waker::from(Arc::new(Panics)), Waker::from(Arc::clone(&woken)));
        let (mut first, mut second) = (event.after(0), event.after(0));
        assert!(Pin::new(&mut first).poll(&mut Context::from_waker(&bad)).is_pending());
        assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&good)).is_pending());
        event.signal();
        assert!(woken.0.load(Ordering::SeqCst));
        assert!(Pin::new(&mut second).poll(&mut Context::from_waker(&good)).is_ready());
        assert_eq!(event.waiters.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_dropped_wait_is_listed_no_more() {
        let event = Event::default();
        let waker = Waker::from(Arc::new(Panics));
        let mut wait = event.after(0);
        assert!(Pin::new(&mut wait).poll(&mut Context::from_waker(&waker)).is_pending());
        assert_eq!(event.waiters.load(Ordering::SeqCst), 1);
        drop(wait);
        assert_eq!((event.waiters.load(Ordering::SeqCst), lock(&event.tasks).wakers.len()), (0, 0));
    }
}
