//! Streams of reads through `io_uring` (Axboe, 2019): many in flight together, one system call for several.
//!
//! Each stream takes a ring of its own from a pool and waits for all its completions before it ends, so the kernel never holds a buffer that somebody could free, and nobody waits
//! behind another caller's reads. As one read ends the next one begins, while what was read is looked at. Single reads are not sent here: a plain `pread` is faster at depth 1.
#![allow(unsafe_code, reason = "the kernel writes into buffers behind a submission queue")]

use std::collections::VecDeque;
use std::io;
use std::sync::Mutex;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::{ReadStream, StreamRead};
use crate::concurrent::lock;

/// Rings that are kept for the next stream.
const POOL_MAX: usize = 8;
/// Reads are submitted when they are so small a share of those that may be in flight: fewer calls, and the device never waits for many.
const SUBMIT_SHARE: usize = 16;
/// What is planned ahead is at most such a share.
const PLANNED_SHARE: usize = 4;

/// A pool of rings.
pub(crate) struct Rings {
    idle: Mutex<Vec<InFlight>>,
    /// Reads of one stream that are in flight together.
    depth: u32,
}

impl std::fmt::Debug for Rings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rings")
    }
}

impl Rings {
    /// A pool, if this process may use `io_uring` here. The error says why not: the kernel lacks it, or a container or a sysctl forbids it.
    pub(crate) fn probe(depth: u32) -> io::Result<Self> {
        let window = InFlight::new(depth)?;
        let mut probe = io_uring::Probe::new();
        window.ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { idle: Mutex::new(vec![window]), depth })
    }

    /// Does all reads of a stream. False, and nothing was done, if there is no ring to be had.
    pub(crate) fn read(&self, stream: &mut dyn ReadStream) -> bool {
        let Some(mut window) = lock(&self.idle).pop().or_else(|| InFlight::new(self.depth).ok()) else { return false };
        window.pass(stream);
        let mut idle = lock(&self.idle);
        if idle.len() < POOL_MAX {
            idle.push(window);
        }
        true
    }

    /// Rings that wait for a stream.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        lock(&self.idle).len()
    }
}

/// A ring, and the reads of one stream: planned, in flight, ended.
struct InFlight {
    ring: IoUring,
    /// What begins as soon as something ends, so that nothing has to be looked for then.
    planned: VecDeque<StreamRead>,
    /// In flight, by the entry's user data.
    reads: Vec<Option<StreamRead>>,
    free: Vec<usize>,
    /// Those of them that the kernel does not know of yet.
    queued: usize,
    ended: VecDeque<StreamRead>,
}

impl InFlight {
    fn new(depth: u32) -> io::Result<Self> {
        let ring = IoUring::new(depth.next_power_of_two())?;
        let (reads, free) = ((0..depth).map(|_| None).collect(), (0..depth as usize).rev().collect());
        Ok(Self { ring, planned: VecDeque::new(), reads, free, queued: 0, ended: VecDeque::new() })
    }

    /// Lets all reads of `stream` pass through.
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

    /// Queues a read in a free slot. If it cannot be, it has ended.
    fn push(&mut self, mut read: StreamRead) {
        let (Some(fd), Some(slot)) = (read.file.descriptor(), self.free.last().copied()) else { return self.ended.push_back(read) };
        let (buf, len) = (read.buf.as_mut_ptr(), read.buf.len() as u32);
        let entry = opcode::Read::new(types::Fd(fd), buf, len).offset(read.offset).build().user_data(slot as u64);
        // SAFETY: the buffer and the descriptor belong to `read`, which stays in `reads` until its completion was seen, and `drop` waits for that.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return self.ended.push_back(read);
        }
        self.free.pop();
        self.reads[slot] = Some(read);
        self.queued += 1;
    }

    /// Submits what is queued, and waits until so many have ended.
    fn enter(&mut self, wanted: usize) {
        match self.ring.submit_and_wait(wanted) {
            Ok(_) => self.queued = 0,
            Err(e) if is_passing(&e) => {}
            Err(e) => give_up(&e),
        }
    }

    /// Takes in those that have ended.
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
    /// A stream that panicked leaves reads behind.
    fn drop(&mut self) {
        while !self.is_empty() {
            self.enter(1);
            self.reap();
        }
    }
}

/// Whether the call is to be repeated: interrupted, out of memory for now, or the completion queue must be emptied first.
pub(super) fn is_passing(error: &io::Error) -> bool {
    [Errno::INTR, Errno::AGAIN, Errno::BUSY, Errno::NOMEM].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}

/// The kernel may own buffers and will not say when it lets go: a stop is the only safe answer, and no worse than a kill.
pub(super) fn give_up(error: &io::Error) -> ! {
    tracing::error!(%error, "io_uring stopped working with reads in flight");
    std::process::abort();
}
