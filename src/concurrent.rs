//! Small shared helpers: locks that ignore poisoning on purpose, and events.

use std::pin::Pin;
use std::sync::PoisonError;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use primitives::{AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, fence};

/// What the small state machines are made of, so that a model checker can put its own in their place.
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

/// Locks, also after another holder panicked: every guarded structure here is valid between statements, and a panic is one of our own bugs, which must not turn into a second one.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Something that happens again and again. Whoever waits first notes the count, then checks its condition, then waits for the count to move, so no occurrence between
/// check and wait is missed. Signalling without waiters is two atomic operations. Threads and tasks may wait.
#[derive(Debug, Default)]
pub(crate) struct Event {
    count: AtomicU64,
    /// Threads that wait, and tasks that are listed.
    waiters: AtomicUsize,
    tasks: Mutex<Tasks>,
    condvar: Condvar,
}

#[derive(Debug, Default)]
struct Tasks {
    next: u64,
    wakers: Vec<(u64, Waker)>,
}

impl Event {
    /// How often it happened so far.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// It happened.
    pub(crate) fn signal(&self) {
        self.count.fetch_add(1, Ordering::SeqCst);
        // Pairs with the fences in `wait` and `Happened::poll`: either the waiter sees the new count, or this sees the waiter.
        fence(Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            // Whoever looked before the count moved and still holds the lock waits by the time that it is free. Woken after that, nobody finds it taken.
            let woken = std::mem::take(&mut lock(&self.tasks).wakers);
            self.condvar.notify_all();
            self.waiters.fetch_sub(woken.len(), Ordering::SeqCst);
            woken.into_iter().for_each(|(_, waker)| wake(waker));
        }
    }

    /// Waits until it happened after `seen`, for at most `timeout` if there is one. False if the time ran out.
    pub(crate) fn wait(&self, seen: u64, timeout: Option<Duration>) -> bool {
        self.waiters.fetch_add(1, Ordering::SeqCst);
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
            Some(timeout) => unreachable!("{timeout:?}: a model knows no time"),
        }
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        self.count() != seen
    }

    /// Ready once it happened after `seen`. May be dropped at any time.
    pub(crate) fn after(&self, seen: u64) -> Happened<'_> {
        Happened { event: self, seen, listed: None }
    }
}

/// Wakes a task. What its executor does then is not ours: a panic there must not end the thread that tells others as well.
pub(crate) fn wake(waker: Waker) {
    let woken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| waker.wake()));
    if woken.is_err() {
        tracing::error!("waking a task panicked");
    }
}

/// See [`Event::after`].
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
            let mut tasks = lock(&self.event.tasks);
            let before = tasks.wakers.len();
            tasks.wakers.retain(|(number, _)| *number != listed);
            let gone = before - tasks.wakers.len();
            self.event.waiters.fetch_sub(gone, Ordering::SeqCst);
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
            tasks.wakers.push((number, context.waker().clone()));
            self.event.waiters.fetch_add(1, Ordering::SeqCst);
            number
        };
        self.listed = Some(number);
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
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;
    use std::task::Wake;

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
    fn everyone_is_woken_also_if_waking_one_panics() {
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
