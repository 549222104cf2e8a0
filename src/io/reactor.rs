//! Reads of many tasks in flight in one `io_uring`: each caller submits its own, one thread waits for completions.
#![allow(unsafe_code, reason = "the kernel writes into buffers behind a submission queue")]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;

use io_uring::{IoUring, opcode, types};

use super::reading::{Operation, WAITING_MAX};
use super::uring::is_passing;
use crate::sync::lock;

/// `IORING_ENTER_GETEVENTS`.
const GET_EVENTS: u32 = 1;
/// User data of the entry that wakes the thread so that it can end.
const WAKE_UP: u64 = u64::MAX;

/// See the module.
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
    /// By the entry's user data.
    in_flight: Vec<Option<Arc<Operation>>>,
    free: Vec<u32>,
    waiting: VecDeque<Arc<Operation>>,
    closed: bool,
}

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reactor")
    }
}

impl Reactor {
    /// A ring for `depth` reads, and its thread.
    pub(super) fn new(depth: u32) -> io::Result<Self> {
        // One entry more, for the wake-up.
        let ring = IoUring::new((depth + 1).next_power_of_two())?;
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
        self.shared.push(&mut submission, operation);
        self.shared.submit();
    }
}

impl Shared {
    /// Queues a read in a free slot. The caller submits.
    fn push(&self, submission: &mut Submission, operation: Arc<Operation>) {
        let Some(slot) = submission.free.pop() else { return operation.run() };
        let entry = operation.with(|read| {
            let fd = read.file.descriptor()?;
            let len = read.buf.len() as u32;
            Some(opcode::Read::new(types::Fd(fd), read.buf.as_mut_ptr(), len).offset(read.offset).build().user_data(slot.into()))
        });
        let Some(entry) = entry.flatten() else {
            submission.free.push(slot);
            return operation.run();
        };
        submission.in_flight[slot as usize] = Some(operation);
        // SAFETY: the lock on `submission` makes this the only handle on the submission queue.
        let mut queue = unsafe { self.ring.submission_shared() };
        // SAFETY: the buffer and the descriptor belong to the operation, which stays in `in_flight` until its completion was seen; nobody touches the buffer before.
        let pushed = unsafe { queue.push(&entry) };
        drop(queue);
        if pushed.is_err() {
            // There are more entries than slots, so this is an entry that the kernel did not take yet.
            submission.free.push(slot);
            if let Some(operation) = submission.in_flight[slot as usize].take() {
                operation.run();
            }
        }
    }

    /// Hands everything that was queued to the kernel. The caller holds the lock on `submission`.
    fn submit(&self) {
        loop {
            match self.ring.submit() {
                // SAFETY: the caller's lock makes this the only handle on the submission queue.
                Ok(_) if unsafe { self.ring.submission_shared() }.is_empty() => return,
                Ok(_) => {}
                Err(e) if is_passing(&e) => {}
                Err(e) => give_up(&e),
            }
        }
    }

    /// Completes reads until the reactor is closed and nothing is in flight.
    fn reap(&self) {
        let mut finished = Vec::new();
        loop {
            // SAFETY: no argument is passed that the kernel would read.
            match unsafe { self.ring.submitter().enter::<()>(0, 1, GET_EVENTS, None) } {
                Ok(_) => {}
                Err(e) if is_passing(&e) => {}
                Err(e) => give_up(&e),
            }
            let ended = {
                let mut submission = lock(&self.submission);
                // SAFETY: only this thread looks at the completion queue.
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
                        self.push(&mut submission, operation);
                        pushed = true;
                    }
                }
                if pushed {
                    self.submit();
                }
                submission.closed && submission.in_flight.iter().all(Option::is_none)
            };
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

/// The kernel may own buffers and will not say when it lets go: a stop is the only safe answer, and no worse than a kill.
fn give_up(error: &io::Error) -> ! {
    tracing::error!(%error, "io_uring stopped working with reads in flight");
    std::process::abort();
}

impl Drop for Reactor {
    fn drop(&mut self) {
        {
            let mut submission = lock(&self.shared.submission);
            submission.closed = true;
            let entry = opcode::Nop::new().build().user_data(WAKE_UP);
            // SAFETY: the lock on `submission` makes this the only handle on the submission queue.
            let mut queue = unsafe { self.shared.ring.submission_shared() };
            // SAFETY: the entry names no memory.
            let _full_means_others_wake_it = unsafe { queue.push(&entry) };
            drop(queue);
            self.shared.submit();
        }
        // Woken tasks run where they were woken, so the last handle of a cache may be dropped by that very thread: it ends by itself then.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            let _panicked = thread.join();
        }
    }
}
