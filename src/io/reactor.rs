//! Reads of many tasks in flight in one `io_uring`. Callers submit, and one thread waits for
//! completions.
//!
//! A caller may be refused by the kernel, for example in a sandbox that it entered since. Then the
//! thread submits for it. If the thread is refused as well, it takes all reads back, performs them
//! itself, and the reactor is not used again.
#![allow(unsafe_code, reason = "the kernel writes into buffers behind a submission queue")]

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use io_uring::{IoUring, opcode, types};
use rustix::event::{EventfdFlags, eventfd};

use super::async_read::{Operation, WAITING_MAX};
use super::uring::{LOOK, is_passing};
use crate::concurrent::lock;

/// `IORING_ENTER_GETEVENTS`.
const GET_EVENTS: u32 = 1;
/// User data of the read of the event descriptor, which wakes the thread.
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
    /// A write to it wakes the thread, which always has a read of it in flight.
    event: OwnedFd,
    /// Takes the value of the event. Only the kernel accesses it.
    event_value: UnsafeCell<u64>,
}

// SAFETY: `event_value` is never accessed by this process, and the other fields are `Sync`.
unsafe impl Sync for Shared {}

#[derive(Default)]
struct Submission {
    /// Operations by the user data of their entries.
    in_flight: Vec<Option<Arc<Operation>>>,
    free: Vec<u32>,
    /// Entries in the submission queue that no thread has begun to submit.
    queued: u32,
    /// User data of the entries that were last pushed, oldest first. At least those that the kernel
    /// has not taken.
    pushed: VecDeque<u64>,
    /// Threads that are submitting now.
    submitting: u32,
    waiting: VecDeque<Arc<Operation>>,
    closed: bool,
    /// The kernel refused the thread. Nothing is queued any more.
    refused: bool,
}

impl Submission {
    /// Reads that were submitted, or are being submitted, and are not known to have ended.
    fn told(&self) -> u32 {
        ((self.in_flight.len() - self.free.len()) as u32).saturating_sub(self.queued)
    }

    /// Counts an entry that was pushed into the queue, which now holds `queue_len` entries.
    fn note_pushed(&mut self, user_data: u64, queue_len: usize) {
        self.queued += 1;
        self.pushed.push_back(user_data);
        self.pushed.drain(..self.pushed.len().saturating_sub(queue_len));
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
        // again by then. So there is space for two entries a slot, and one more for the event.
        let ring = IoUring::new((2 * depth + 1).next_power_of_two())?;
        let submission = Submission { in_flight: vec![None; depth as usize], free: (0..depth).rev().collect(), ..Submission::default() };
        let event = eventfd(0, EventfdFlags::CLOEXEC)?;
        let shared = Arc::new(Shared { ring, submission: Mutex::new(submission), event, event_value: UnsafeCell::new(0) });
        shared.watch_event(&mut lock(&shared.submission))?;
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name("everwarm-reap".to_owned()).spawn(move || of_thread.reap())?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Whether the kernel refused the ring. Then [`Reactor::start`] performs reads on the caller's
    /// thread.
    pub(super) fn is_refused(&self) -> bool {
        lock(&self.shared.submission).refused
    }

    pub(super) fn start(&self, operation: Arc<Operation>) {
        let mut submission = lock(&self.shared.submission);
        if submission.refused {
            drop(submission);
            return operation.run();
        }
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
        self.shared.submit(submission, due);
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
        submission.free.pop();
        submission.in_flight[slot as usize] = Some(operation);
        submission.note_pushed(slot.into(), queue.len());
        Ok(())
    }

    /// Queues a read of the event descriptor.
    fn watch_event(&self, submission: &mut Submission) -> io::Result<()> {
        let entry = opcode::Read::new(types::Fd(self.event.as_raw_fd()), self.event_value.get().cast(), 8).build().user_data(WAKE_UP);
        // SAFETY: the caller holds the lock on `submission`, so this is the only handle on the
        // submission queue.
        let mut queue = unsafe { self.ring.submission_shared() };
        // SAFETY: the buffer belongs to `self`, which the thread keeps until this read has ended.
        unsafe { queue.push(&entry) }.map_err(io::Error::other)?;
        submission.note_pushed(WAKE_UP, queue.len());
        Ok(())
    }

    /// Wakes the thread.
    fn wake(&self) {
        let _counter_is_full = rustix::io::write(&self.event, &1u64.to_ne_bytes());
    }

    /// Submits `count` entries. Entries that the kernel refuses to take from this thread are left
    /// to the thread of the reactor.
    fn submit(&self, mut submission: MutexGuard<'_, Submission>, mut count: u32) {
        if count == 0 {
            return;
        }
        submission.submitting += 1;
        drop(submission);
        let mut refused = false;
        while count > 0 && !refused {
            match self.enter(count, 0, 0) {
                Ok(taken) => count -= taken,
                Err(_refused) => refused = true,
            }
        }
        let mut submission = lock(&self.submission);
        submission.submitting -= 1;
        submission.queued += count;
        if refused {
            self.wake();
        }
    }

    /// Submits up to `count` entries, and waits for `wanted` completions if `flags` says so.
    /// Returns how many entries the kernel took. Fails if it refuses the call for good.
    fn enter(&self, count: u32, wanted: u32, flags: u32) -> io::Result<u32> {
        // SAFETY: the kernel acts on published entries of the submission queue, and each was
        // complete before it was published. A read entry names the buffer and the descriptor of an
        // operation, or of the event. The lock on `submission` is held from the push until the
        // operation is in `in_flight`, where it stays until its completion is seen under that lock.
        // The argument is `None`, so the kernel reads no other memory.
        match unsafe { self.ring.submitter().enter::<()>(count, wanted, flags, None) } {
            Ok(taken) => Ok((taken as u32).min(count)),
            Err(e) if is_passing(&e) => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// Completes reads until the reactor is closed and nothing is in flight.
    fn reap(&self) {
        let mut finished = Vec::new();
        loop {
            let queued = std::mem::take(&mut lock(&self.submission).queued);
            let taken = match self.enter(queued, 1, GET_EVENTS) {
                Ok(taken) => taken,
                Err(error) => return self.abandon(&error),
            };
            let mut refused = Vec::new();
            let mut submission = lock(&self.submission);
            submission.queued += queued - taken;
            if self.take_completions(&mut submission, &mut finished) && !submission.closed {
                let _watched_until_now = self.watch_event(&mut submission);
            }
            while !submission.free.is_empty()
                && let Some(operation) = submission.waiting.pop_front()
            {
                if !operation.is_abandoned() {
                    refused.extend(self.push(&mut submission, operation).err());
                }
            }
            let ended = submission.closed && submission.in_flight.iter().all(Option::is_none);
            // Before tasks are woken, which may take long.
            let due = std::mem::take(&mut submission.queued);
            self.submit(submission, due);
            refused.drain(..).for_each(|operation: Arc<Operation>| operation.run());
            complete(&mut finished);
            if ended {
                return;
            }
        }
    }

    /// Takes completions out of the ring. Returns whether the event happened.
    fn take_completions(&self, submission: &mut Submission, finished: &mut Vec<(Arc<Operation>, i32)>) -> bool {
        // SAFETY: only the thread of the reactor accesses the completion queue.
        let completions = unsafe { self.ring.completion_shared() };
        let mut woken = false;
        for completion in completions {
            if completion.user_data() == WAKE_UP {
                woken = true;
                continue;
            }
            let slot = completion.user_data() as usize;
            if let Some(operation) = submission.in_flight[slot].take() {
                submission.free.push(slot as u32);
                finished.push((operation, completion.result()));
            }
        }
        woken
    }

    /// User data of the entries that the kernel has not taken.
    fn untaken(&self, submission: &mut Submission) -> VecDeque<u64> {
        // SAFETY: the caller holds the lock on `submission`, so this is the only handle on the
        // submission queue.
        let len = unsafe { self.ring.submission_shared() }.len();
        let taken = submission.pushed.len().saturating_sub(len);
        submission.pushed.split_off(taken)
    }

    /// Ends all reads after the kernel refused this thread. Entries that it never took are void,
    /// because the ring is not entered any more. Reads that it took end by themselves.
    fn abandon(&self, error: &io::Error) {
        tracing::warn!(%error, "io_uring is refused; tasks read without it");
        lock(&self.submission).refused = true;
        let (mut finished, mut waits_for_event) = (Vec::new(), true);
        self.wake();
        loop {
            let mut submission = lock(&self.submission);
            waits_for_event &= !self.take_completions(&mut submission, &mut finished);
            let mut void = Vec::new();
            if submission.submitting == 0 {
                // No thread enters the ring any more, so the kernel takes no more entries.
                let untaken = self.untaken(&mut submission);
                for slot in untaken {
                    if slot == WAKE_UP {
                        waits_for_event = false;
                    } else if let Some(operation) = submission.in_flight[slot as usize].take() {
                        submission.free.push(slot as u32);
                        void.push(operation);
                    }
                }
            }
            void.extend(submission.waiting.drain(..));
            let ended = !waits_for_event && submission.submitting == 0 && submission.in_flight.iter().all(Option::is_none);
            drop(submission);
            void.into_iter().for_each(|operation| operation.run());
            complete(&mut finished);
            if ended {
                return;
            }
            #[expect(clippy::disallowed_methods, reason = "the kernel refuses to be waited for")]
            thread::sleep(LOOK);
        }
    }
}

/// Wakes the tasks of reads that have ended.
fn complete(finished: &mut Vec<(Arc<Operation>, i32)>) {
    for (operation, result) in finished.drain(..) {
        let whole = operation.with(|read| result >= 0 && result as usize == read.buf.len());
        operation.complete(whole == Some(true));
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        lock(&self.shared.submission).closed = true;
        self.shared.wake();
        // A task may run on the thread that wakes it. So the reaping thread may drop the last
        // handle of a cache. It is not joined then, and ends by itself.
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != thread::current().id()) {
            let _panicked = thread.join();
        }
    }
}
