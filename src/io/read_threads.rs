//! Threads that perform the reads of tasks where no ring is available.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex};
use std::thread;

use super::async_read::{Operation, WAITING_MAX};
use crate::concurrent::lock;

/// A pool of threads that read, each started when it is first needed.
#[derive(Debug)]
pub(super) struct ReadThreads {
    threads_max: usize,
    queue: Arc<Queue>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    condvar: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    waiting: VecDeque<Arc<Operation>>,
    idle: usize,
    closed: bool,
}

impl ReadThreads {
    /// A pool of at most `threads_max` threads.
    pub(super) fn new(threads_max: u32) -> Self {
        Self { threads_max: threads_max as usize, queue: Arc::default(), threads: Mutex::default() }
    }

    pub(super) fn start(&self, operation: Arc<Operation>) {
        let wanted = {
            let mut state = lock(&self.queue.state);
            if state.waiting.len() >= WAITING_MAX {
                state.waiting.retain(|waiting| !waiting.is_abandoned());
            }
            if state.waiting.len() < WAITING_MAX {
                state.waiting.push_back(Arc::clone(&operation));
                self.queue.condvar.notify_one();
                state.waiting.len() > state.idle
            } else {
                drop(state);
                return operation.run();
            }
        };
        let mut threads = lock(&self.threads);
        if wanted && threads.len() < self.threads_max {
            let queue = Arc::clone(&self.queue);
            let thread = thread::Builder::new().name("everwarm-read".to_owned()).spawn(move || queue.work());
            match thread {
                Ok(thread) => threads.push(thread),
                // The other threads will perform the read. Without any, this thread has to.
                Err(_) if !threads.is_empty() => {}
                Err(_) => self.queue.drain(),
            }
        }
    }
}

impl Queue {
    fn work(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some(operation) = state.waiting.pop_front() {
                drop(state);
                if !operation.is_abandoned() {
                    operation.run();
                }
                drop(operation);
                state = lock(&self.state);
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                state = self.condvar.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn drain(&self) {
        loop {
            let Some(operation) = lock(&self.state).waiting.pop_front() else { return };
            operation.run();
        }
    }
}

impl Drop for ReadThreads {
    fn drop(&mut self) {
        lock(&self.queue.state).closed = true;
        self.queue.condvar.notify_all();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // A task may run on the thread that wakes it. So one of these threads may drop the last
            // handle of a cache, and must not join itself.
            if thread.thread().id() != thread::current().id() {
                let _panicked = thread.join();
            }
        }
    }
}
