//! The loads that run on this thread: blocking ones, and those of tasks while they are polled.
//!
//! A loader may fill its own key again, perhaps without knowing. That fill must not wait for the
//! load that waits for it. A load of a task leaves no trace on a thread between two polls, so a
//! fill in another task, on which the loader waits, is not seen here.

use std::cell::RefCell;
use std::task::Poll;

use super::single_flight::Fills;
use crate::id::KeyHash;

/// Most loads of one key within each other. One more is taken for a recursion without an end.
pub(in crate::engine) const NESTED_MAX: usize = 8;

thread_local! {
    /// The loads that run on this thread, outermost first: the address of the cache's flights, and
    /// the key.
    static LOADS: RefCell<Vec<(usize, KeyHash)>> = const { RefCell::new(Vec::new()) };
}

/// How many loads of a key run on this thread now, each within the one before.
pub(in crate::engine) fn depth<T>(fills: &Fills<T>, hash: KeyHash) -> usize {
    let own = (std::ptr::from_ref(fills).addr(), hash);
    // While the thread ends, its loads cannot be told.
    LOADS.try_with(|loads| loads.borrow().iter().filter(|load| **load == own).count()).unwrap_or(0)
}

/// A load runs on this thread until this is dropped.
struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        let _thread_ends = LOADS.try_with(|loads| loads.borrow_mut().pop());
    }
}

/// Runs a part of a load of a key: all of a blocking one, or one poll of a task's.
pub(in crate::engine) fn run<T, R>(fills: &Fills<T>, hash: KeyHash, part: impl FnOnce() -> R) -> R {
    let own = (std::ptr::from_ref(fills).addr(), hash);
    let _running = LOADS.try_with(|loads| loads.borrow_mut().push(own)).ok().map(|()| Running);
    part()
}

/// Runs the load of a key in a task.
pub(in crate::engine) async fn run_in_task<T, F: Future>(fills: &Fills<T>, hash: KeyHash, load: F) -> F::Output {
    let mut load = std::pin::pin!(load);
    std::future::poll_fn(|context| -> Poll<F::Output> { run(fills, hash, || load.as_mut().poll(context)) }).await
}
