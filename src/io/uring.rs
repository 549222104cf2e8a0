//! Streams of reads through `io_uring` (Axboe, 2019): many in flight together, one system call for
//! several.
//!
//! Each stream takes a ring of its own from a pool, and waits for all of its completions before it
//! ends. So the kernel never holds a buffer that could be freed, and no stream waits behind another
//! caller's reads. As one read ends the next one begins, while the caller processes the result.
//! Single reads do not come here: a plain `pread` is faster at depth 1.
#![allow(unsafe_code, reason = "the kernel writes into buffers behind a submission queue")]

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::{ReadStream, StreamRead};
use crate::concurrent::lock;

/// Idle rings that the pool keeps.
const POOL_MAX: usize = 8;
/// Queued reads are submitted once they are 1 / `SUBMIT_SHARE` of the depth. That saves system
/// calls, and the device never waits for many reads.
const SUBMIT_SHARE: usize = 16;
/// At most 1 / `PLANNED_SHARE` of the depth is planned ahead while all slots are in use.
const PLANNED_SHARE: usize = 4;

/// A pool of rings.
pub(crate) struct Rings {
    idle: Mutex<Vec<InFlight>>,
    /// Reads of one stream in flight together.
    depth: u32,
}

impl std::fmt::Debug for Rings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rings")
    }
}

impl Rings {
    /// A pool, if this process may use `io_uring`. The error gives the reason if not: the kernel
    /// lacks it, or a container or a sysctl forbids it.
    pub(crate) fn probe(depth: u32) -> io::Result<Self> {
        let window = InFlight::new(depth)?;
        let mut probe = io_uring::Probe::new();
        window.ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { idle: Mutex::new(vec![window]), depth })
    }

    /// Performs all reads of a stream. False, with nothing done, if no ring is available.
    pub(crate) fn read(&self, stream: &mut dyn ReadStream) -> bool {
        let Some(mut window) = lock(&self.idle).pop().or_else(|| InFlight::new(self.depth).ok()) else { return false };
        window.pass(stream);
        let mut idle = lock(&self.idle);
        if idle.len() < POOL_MAX {
            idle.push(window);
        }
        true
    }

    /// Idle rings in the pool.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        lock(&self.idle).len()
    }
}

/// A ring, and the reads of one stream: planned, in flight, ended.
struct InFlight {
    ring: IoUring,
    /// Reads that begin as soon as others end. They are planned ahead so that the stream need not
    /// be asked at that moment.
    planned: VecDeque<StreamRead>,
    /// Reads in flight, by the user data of their entries.
    reads: Vec<Option<StreamRead>>,
    free: Vec<usize>,
    /// Reads of `reads` that are not submitted yet.
    queued: usize,
    ended: VecDeque<StreamRead>,
}

impl InFlight {
    fn new(depth: u32) -> io::Result<Self> {
        let ring = IoUring::new(depth.next_power_of_two())?;
        let (reads, free) = ((0..depth).map(|_| None).collect(), (0..depth as usize).rev().collect());
        Ok(Self { ring, planned: VecDeque::new(), reads, free, queued: 0, ended: VecDeque::new() })
    }

    /// Performs all reads of `stream`.
    fn pass(&mut self, stream: &mut dyn ReadStream) {
        let depth = self.reads.len();
        let (submit_at, planned_max) = ((depth / SUBMIT_SHARE).max(1), depth.div_ceil(PLANNED_SHARE));
        loop {
            self.reap();
            while !self.free.is_empty()
                && let Some(read) = self.planned.pop_front()
            {
                self.push(read);
            }
            if self.queued >= submit_at {
                self.enter(0);
            }
            if !self.free.is_empty()
                && self.ended.len() < depth
                && let Some(read) = stream.next()
            {
                self.planned.push_back(read);
            } else if let Some(read) = self.ended.pop_front() {
                stream.ended(read.retried());
            } else if self.planned.len() < planned_max
                && let Some(read) = stream.next()
            {
                self.planned.push_back(read);
            } else if self.is_empty() {
                return;
            } else {
                self.enter(1);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.reads.len()
    }

    /// Queues a read in a free slot. A read that cannot be queued has ended.
    fn push(&mut self, mut read: StreamRead) {
        let (Some(fd), Some(slot)) = (read.file.descriptor(), self.free.last().copied()) else { return self.ended.push_back(read) };
        let (buf, len) = (read.buf.as_mut_ptr(), read.buf.len() as u32);
        let entry = opcode::Read::new(types::Fd(fd), buf, len).offset(read.offset).build().user_data(slot as u64);
        // SAFETY: the buffer and the descriptor belong to `read`. It stays in `reads` until its
        // completion is seen, and `drop` waits for that.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return self.ended.push_back(read);
        }
        self.free.pop();
        self.reads[slot] = Some(read);
        self.queued += 1;
    }

    /// Submits the queued reads, and waits until `wanted` reads have ended.
    fn enter(&mut self, wanted: usize) {
        match self.ring.submit_and_wait(wanted) {
            Ok(_) => self.queued = 0,
            Err(e) if is_passing(&e) => {}
            Err(e) => give_up(&e),
        }
    }

    /// Takes the completions out of the ring.
    fn reap(&mut self) {
        for completion in self.ring.completion() {
            let slot = completion.user_data() as usize;
            let Some(mut read) = self.reads[slot].take() else { continue };
            self.free.push(slot);
            read.done = completion.result() == read.buf.len() as i32;
            self.ended.push_back(read);
        }
    }
}

impl Drop for InFlight {
    /// Waits for the reads that a panicking stream left in flight.
    fn drop(&mut self) {
        while !self.is_empty() {
            self.enter(1);
            self.reap();
        }
    }
}

/// Whether the system call has to be repeated. It was interrupted, memory was short, or the
/// completion queue must be emptied first.
pub(super) fn is_passing(error: &io::Error) -> bool {
    [Errno::INTR, Errno::AGAIN, Errno::BUSY, Errno::NOMEM].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

/// Aborts the process. The kernel may own buffers and does not say when it lets go of them. A stop
/// is the only safe answer, and no worse than a kill.
pub(super) fn give_up(error: &io::Error) -> ! {
    tracing::error!(%error, "io_uring failed with reads in flight; the process stops");
    std::process::abort();
}
