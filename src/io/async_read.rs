//! A read that a task waits for. The buffer belongs to the operation, not to the future, so a future may be dropped while the kernel still writes to the buffer.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use super::StreamRead;
use crate::concurrent::{lock, wake};

/// Operations that may wait for their turn. Whoever brings one more does it on its own thread.
pub(super) const WAITING_MAX: usize = 4096;

/// One read, shared by whoever waits for it and whoever does it.
#[derive(Debug)]
pub(super) struct Operation {
    progress: Mutex<Progress>,
    abandoned: AtomicBool,
}

#[derive(Debug)]
struct Progress {
    /// Taken by the future once it is completed.
    read: Option<StreamRead>,
    completed: bool,
    waker: Option<Waker>,
}

impl Operation {
    pub(super) fn new(read: StreamRead) -> Arc<Self> {
        let progress = Progress { read: Some(read), completed: false, waker: None };
        Arc::new(Self { progress: Mutex::new(progress), abandoned: AtomicBool::new(false) })
    }

    /// Runs `with` on the read, which nobody takes away before [`Operation::complete`].
    pub(super) fn with<R>(&self, with: impl FnOnce(&mut StreamRead) -> R) -> Option<R> {
        lock(&self.progress).read.as_mut().map(with)
    }

    /// Whether nobody waits for it any more. Only of use before it has begun.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Relaxed)
    }

    /// The buffer holds what was asked for, if `done`.
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

    /// Does it here and now.
    pub(super) fn run(&self) {
        // Not under the lock, which the future takes when it is polled or dropped.
        let taken = lock(&self.progress).read.take();
        let Some(read) = taken.map(StreamRead::retried) else { return };
        let done = read.done;
        lock(&self.progress).read = Some(read);
        self.complete(done);
    }
}

/// The future of a read. Gives it back, with `done` saying whether it happened.
#[derive(Debug)]
pub(crate) struct Reading(Arc<Operation>);

impl Reading {
    pub(super) fn new(operation: Arc<Operation>) -> Self {
        Self(operation)
    }

    /// A read that is done by this call.
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
