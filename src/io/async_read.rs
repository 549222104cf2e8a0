//! A read that a task awaits.
//!
//! The buffer belongs to the operation, not to the future. So a future may be dropped while the
//! kernel still writes to the buffer.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::StreamRead;
use crate::concurrent::{lock, wake};

/// Most operations that wait for a slot or a thread. A caller that starts one more performs it
/// itself.
pub(super) const WAITING_MAX: usize = 4096;

/// One read, shared by the future that awaits it and the thread or ring that performs it.
#[derive(Debug)]
pub(super) struct Operation {
    progress: Mutex<Progress>,
    abandoned: AtomicBool,
}

#[derive(Debug)]
struct Progress {
    /// Taken out by [`Operation::run`] while it reads, and by the future after completion.
    read: Option<StreamRead>,
    completed: bool,
    waker: Option<Waker>,
}

impl Operation {
    pub(super) fn new(read: StreamRead) -> Arc<Self> {
        let progress = Progress { read: Some(read), completed: false, waker: None };
        Arc::new(Self { progress: Mutex::new(progress), abandoned: AtomicBool::new(false) })
    }

    /// Runs `with` on the read. `None` once the future has taken it, which is only after
    /// [`Operation::complete`].
    #[cfg_attr(not(feature = "io-uring"), allow(dead_code, reason = "only rings use it"))]
    pub(super) fn with<R>(&self, with: impl FnOnce(&mut StreamRead) -> R) -> Option<R> {
        lock(&self.progress).read.as_mut().map(with)
    }

    /// Whether the future was dropped. Useful only before the read has begun.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// Ends the read and wakes its task. `done` says whether the buffer was filled.
    pub(super) fn complete(&self, done: bool) {
        let waker = {
            let mut progress = lock(&self.progress);
            if let Some(read) = &mut progress.read {
                read.done = done;
            }
            progress.completed = true;
            progress.waker.take()
        };
        if let Some(waker) = waker {
            wake(waker);
        }
    }

    /// Performs the read on this thread.
    pub(super) fn run(&self) {
        // The lock is not held during the read: the future takes it when it is polled or dropped.
        let taken = lock(&self.progress).read.take();
        let Some(read) = taken.map(StreamRead::retried) else { return };
        let done = read.done;
        lock(&self.progress).read = Some(read);
        self.complete(done);
    }
}

/// The future of a read. It yields the read, whose `done` says whether it succeeded.
#[derive(Debug)]
pub(crate) struct Reading(Arc<Operation>);

impl Reading {
    pub(super) fn new(operation: Arc<Operation>) -> Self {
        Self(operation)
    }

    /// A read that this call performs.
    pub(crate) fn at_once(read: StreamRead) -> Self {
        let operation = Operation::new(read);
        operation.run();
        Self(operation)
    }
}

impl Future for Reading {
    type Output = StreamRead;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<StreamRead> {
        let mut progress = lock(&self.0.progress);
        if progress.completed {
            return Poll::Ready(progress.read.take().expect("a future is not polled after it was ready"));
        }
        progress.waker = Some(context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.0.abandoned.store(true, Ordering::Relaxed);
        lock(&self.0.progress).waker = None;
    }
}
