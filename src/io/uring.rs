//! Streams of reads through `io_uring` (Axboe, 2019): many in flight together, one system call for several.
//!
//! Each stream takes a ring of its own from a pool and waits for all its completions before it ends, so the kernel never holds a buffer that somebody could free, and nobody waits
//! behind another caller's reads. As one read ends the next one begins, while what was read is looked at. Single reads are not sent here: a plain `pread` is faster at depth 1.
#![allow(unsafe_code, reason = "the kernel writes into buffers behind a submission queue")]

use std::io;
use std::sync::Mutex;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::{ReadStream, StreamRead};
use crate::sync::lock;

/// Rings that are kept for the next stream.
const POOL_MAX: usize = 8;
/// So many reads are submitted at once, while more are looked for.
const SUBMIT_AT: usize = 16;

/// A pool of rings.
pub(crate) struct Rings {
    idle: Mutex<Vec<Window>>,
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
        let window = Window::new(depth)?;
        let mut probe = io_uring::Probe::new();
        window.ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { idle: Mutex::new(vec![window]), depth })
    }

    /// Does all reads of a stream. False, and nothing was done, if there is no ring to be had.
    pub(crate) fn read(&self, stream: &mut dyn ReadStream) -> bool {
        let Some(mut window) = lock(&self.idle).pop().or_else(|| Window::new(self.depth).ok()) else { return false };
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

/// A ring and the reads that are in flight in it.
struct Window {
    ring: IoUring,
    /// By the entry's user data.
    reads: Vec<Option<StreamRead>>,
    free: Vec<usize>,
}

impl Window {
    fn new(depth: u32) -> io::Result<Self> {
        let ring = IoUring::new(depth.next_power_of_two())?;
        Ok(Self { ring, reads: (0..depth).map(|_| None).collect(), free: (0..depth as usize).rev().collect() })
    }

    /// Lets all reads of `stream` pass through.
    fn pass(&mut self, stream: &mut dyn ReadStream) {
        loop {
            let mut pushed = 0;
            while !self.free.is_empty()
                && let Some(read) = stream.next()
            {
                match self.push(read) {
                    Ok(()) => pushed += 1,
                    Err(read) => stream.ended(read.retried()),
                }
                if pushed == SUBMIT_AT {
                    self.enter(0);
                    pushed = 0;
                }
            }
            if self.is_empty() {
                return;
            }
            self.enter(1);
            while let Some(read) = self.reap() {
                stream.ended(read.retried());
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.free.len() == self.reads.len()
    }

    /// Queues a read in a free slot, or gives it back.
    fn push(&mut self, mut read: StreamRead) -> Result<(), StreamRead> {
        let (Some(fd), Some(slot)) = (read.file.descriptor(), self.free.last().copied()) else { return Err(read) };
        let (buf, len) = (read.buf.as_mut_ptr(), read.buf.len() as u32);
        let entry = opcode::Read::new(types::Fd(fd), buf, len).offset(read.offset).build().user_data(slot as u64);
        // SAFETY: the buffer and the descriptor belong to `read`, which stays in `reads` until its completion was seen, and `drop` waits for that.
        if unsafe { self.ring.submission().push(&entry) }.is_err() {
            return Err(read);
        }
        self.free.pop();
        self.reads[slot] = Some(read);
        Ok(())
    }

    /// Submits what is queued, and waits until so many have ended.
    fn enter(&self, wanted: usize) {
        match self.ring.submit_and_wait(wanted) {
            Ok(_) => {}
            Err(e) if is_passing(&e) => {}
            Err(e) => give_up(&e),
        }
    }

    /// One that has ended.
    fn reap(&mut self) -> Option<StreamRead> {
        let completion = self.ring.completion().next()?;
        let slot = completion.user_data() as usize;
        let mut read = self.reads[slot].take()?;
        self.free.push(slot);
        read.done = completion.result() == read.buf.len() as i32;
        Some(read)
    }
}

impl Drop for Window {
    /// A stream that panicked leaves reads behind.
    fn drop(&mut self) {
        while !self.is_empty() {
            self.enter(1);
            while self.reap().is_some() {}
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
