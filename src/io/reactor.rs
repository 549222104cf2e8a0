//! Reads of many tasks in flight in one `io_uring`. Callers submit, and one thread waits for
//! completions.
#![allow(unsafe_code, reason = "the kernel writes into buffers behind a submission queue")]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;

use io_uring::{IoUring, opcode, types};

use super::async_read::{Operation, WAITING_MAX};
use super::uring::{give_up, is_passing};
use crate::concurrent::lock;

/// `IORING_ENTER_GETEVENTS`.
const GET_EVENTS: u32 = 1;
/// User data of the entry that wakes the thread to end it.
const WAKE_UP: u64 = u64::MAX;

/// Queued entries are not submitted at once while they are fewer than 1 / `LEFT_SHARE` of the reads
/// in flight. The thread submits them when it returns with the next completion.
const LEFT_SHARE: u32 = 8;

/// A ring for the reads of tasks, and the thread that takes its completions.
pub(super) struct Reactor {
    shared: Arc<Shared>,
    thread: Option<thread::JoinHandle<()>>,
}

struct Shared {
    ring: IoUring,
    submission: Mutex<Submission>,
}

#[derive(Default)]
struct Submission {
    /// Operations by the user data of their entries.
    in_flight: Vec<Option<Arc<Operation>>>,
    free: Vec<u32>,
    /// Entries in the submission queue that are not submitted yet.
    queued: u32,
    waiting: VecDeque<Arc<Operation>>,
    closed: bool,
}

impl Submission {
    /// Reads that were submitted, or are being submitted, and are not known to have ended.
    fn told(&self) -> u32 {
        (self.in_flight.len() - self.free.len()) as u32 - self.queued
    }

    /// How many entries to submit now. A few are left for the thread, if it will soon return from
    /// waiting.
    fn due(&mut self) -> u32 {
        if self.queued * LEFT_SHARE >= self.told() { std::mem::take(&mut self.queued) } else { 0 }
    }
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reactor")
    }
}

impl Reactor {
    /// A ring for `depth` reads, and its thread.
    pub(super) fn new(depth: u32) -> io::Result<Self> {
        // An entry takes queue space until the kernel has taken it, and its slot may be in use
        // again by then. So there is space for two entries a slot, and one more for the wake-up.
        let ring = IoUring::new((2 * depth + 1).next_power_of_two())?;
        let submission = Submission { in_flight: vec![None; depth as usize], free: (0..depth).rev().collect(), ..Submission::default() };
        let shared = Arc::new(Shared { ring, submission: Mutex::new(submission) });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("everwarm-reap".to_owned()).spawn(move || of_thread.reap())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    pub(super) fn start(&self, operation: Arc<Operation>) {
        let mut submission = lock(&self.shared.submission);
        if submission.free.is_empty() {
            if submission.waiting.len() >= WAITING_MAX {
                submission.waiting.retain(|waiting| !waiting.is_abandoned());
            }
            if submission.waiting.len() >= WAITING_MAX {
                drop(submission);
                return operation.run();
            }
            submission.waiting.push_back(operation);
            return;
        }
        let pushed = self.shared.push(&mut submission, operation);
        let due = submission.due();
        drop(submission);
        self.shared.submit(due);
        if let Err(operation) = pushed {
            operation.run();
        }
    }
}

impl Shared {
    /// Queues a read in a free slot, or gives it back. The caller submits it.
    fn push(&self, submission: &mut Submission, operation: Arc<Operation>) -> Result<(), Arc<Operation>> {
        let Some(slot) = submission.free.last().copied() else { return Err(operation) };
        let entry = operation.with(|read| {
            let fd = read.file.descriptor()?;
            let len = read.buf.len() as u32;
            Some(opcode::Read::new(types::Fd(fd), read.buf.as_mut_ptr(), len).offset(read.offset).build().user_data(slot.into()))
        });
        let Some(entry) = entry.flatten() else { return Err(operation) };
        // SAFETY: the caller holds the lock on `submission`, so this is the only handle on the
        // submission queue.
        let mut queue = unsafe { self.ring.submission_shared() };
        // SAFETY: the buffer and the descriptor belong to the operation. It stays in `in_flight`
        // until its completion is seen, and no thread accesses the buffer before.
        if unsafe { queue.push(&entry) }.is_err() {
            return Err(operation);
        }
        drop(queue);
        submission.free.pop();
        submission.in_flight[slot as usize] = Some(operation);
        submission.queued += 1;
        Ok(())
    }

    /// Submits `count` entries.
    fn submit(&self, mut count: u32) {
        while count > 0 {
            count -= self.enter(count, 0, 0);
        }
    }

    /// Submits up to `count` entries, and waits for `wanted` completions if `flags` says so.
    /// Returns how many entries the kernel took.
    fn enter(&self, count: u32, wanted: u32, flags: u32) -> u32 {
        // SAFETY: the kernel acts on published entries of the submission queue, and each was
        // complete before it was published. A read entry names the buffer and the descriptor of an
        // operation. The lock on `submission` is held from the push until the operation is in
        // `in_flight`, where it stays until its completion is seen under that lock. The wake-up
        // entry names no memory. The argument is `None`, so the kernel reads no other memory.
        match unsafe { self.ring.submitter().enter::<()>(count, wanted, flags, None) } {
            Ok(taken) => (taken as u32).min(count),
            Err(e) if is_passing(&e) => 0,
            Err(e) => give_up(&e),
        }
    }

    /// Completes reads until the reactor is closed and nothing is in flight.
    fn reap(&self) {
        let (mut finished, mut refused) = (Vec::new(), Vec::new());
        loop {
            let queued = std::mem::take(&mut lock(&self.submission).queued);
            let left = queued - self.enter(queued, 1, GET_EVENTS);
            let (due, ended) = {
                let mut submission = lock(&self.submission);
                submission.queued += left;
                // SAFETY: only this thread accesses the completion queue.
                let completions = unsafe { self.ring.completion_shared() };
                for completion in completions.filter(|completion| completion.user_data() != WAKE_UP) {
                    let slot = completion.user_data() as usize;
                    if let Some(operation) = submission.in_flight[slot].take() {
                        submission.free.push(slot as u32);
                        finished.push((operation, completion.result()));
                    }
                }
                let mut pushed = false;
                while !submission.free.is_empty()
                    && let Some(operation) = submission.waiting.pop_front()
                {
                    if !operation.is_abandoned() {
                        pushed = true;
                        refused.extend(self.push(&mut submission, operation).err());
                    }
                }
                let ended = submission.closed && submission.in_flight.iter().all(Option::is_none);
                (if pushed { std::mem::take(&mut submission.queued) } else { 0 }, ended)
            };
            // Before tasks are woken, which may take long.
            self.submit(due);
            refused.drain(..).for_each(|operation: Arc<Operation>| operation.run());
            for (operation, result) in finished.drain(..) {
                let whole = operation.with(|read| result >= 0 && result as usize == read.buf.len());
                operation.complete(whole == Some(true));
            }
            if ended {
                return;
            }
        }
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        {
            let mut submission = lock(&self.shared.submission);
            submission.closed = true;
            let entry = opcode::Nop::new().build().user_data(WAKE_UP);
            // SAFETY: the lock on `submission` is held, so this is the only handle on the
            // submission queue.
            let mut queue = unsafe { self.shared.ring.submission_shared() };
            // SAFETY: a `Nop` entry names no memory and no descriptor.
            let pushed = unsafe { queue.push(&entry) };
            drop(queue);
            // If the queue is full, the completions of its entries wake the thread.
            submission.queued += u32::from(pushed.is_ok());
            self.shared.submit(std::mem::take(&mut submission.queued));
        }
        // A task may run on the thread that wakes it. So the reaping thread may drop the last
        // handle of a cache. It is not joined then, and ends by itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            let _panicked = thread.join();
        }
    }
}
