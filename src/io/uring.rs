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
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::{ReadStream, StreamRead};
use crate::concurrent::lock;

/// Idle rings that the pool keeps.
const POOL_MAX: usize = 8;
/// Rings in use. Each is a descriptor and memory of the kernel. With so many callers the device is
/// busy, so the streams of further callers are read without a ring.
const USED_MAX: usize = 64;
/// Queued reads are submitted once they are 1 / `SUBMIT_SHARE` of the depth. That saves system
/// calls, and the device never waits for many reads.
const SUBMIT_SHARE: usize = 16;
/// At most 1 / `PLANNED_SHARE` of the depth is planned ahead while all slots are in use.
const PLANNED_SHARE: usize = 4;

/// Pause between two looks at reads in flight, where the kernel refuses to be waited for.
pub(super) const LOOK: Duration = Duration::from_micros(50);

/// A pool of rings.
pub(crate) struct Rings {
    idle: Mutex<Vec<InFlight>>,
    /// Streams that have a ring.
    used: AtomicUsize,
    /// The kernel refused a ring after the probe, for example because the process entered a sandbox
    /// since. No ring is used any more.
    are_refused: AtomicBool,
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
        // A sandbox may allow a ring to be made and not to be entered.
        window.ring.submit()?;
        Ok(Self { idle: Mutex::new(vec![window]), used: AtomicUsize::new(0), are_refused: AtomicBool::new(false), depth })
    }

    /// Whether the kernel refused a ring since the probe, or the pool was closed.
    pub(crate) fn are_refused(&self) -> bool {
        self.are_refused.load(Ordering::Relaxed)
    }

    /// Performs reads of a stream. False if no ring is available, and some reads are left to the
    /// caller.
    pub(crate) fn read(&self, stream: &mut dyn ReadStream) -> bool {
        if self.are_refused() {
            return false;
        }
        let _use = Use::of(&self.used);
        if self.used.load(Ordering::Relaxed) > USED_MAX {
            return false;
        }
        let Some(mut window) = lock(&self.idle).pop().or_else(|| InFlight::new(self.depth).ok()) else { return false };
        if let Err(error) = window.pass(stream) {
            tracing::warn!(%error, "io_uring is refused; reads go on without it");
            self.are_refused.store(true, Ordering::Relaxed);
            window.abandon(stream);
            return false;
        }
        let mut idle = lock(&self.idle);
        if idle.len() < POOL_MAX && !self.are_refused() {
            idle.push(window);
        }
        true
    }

    /// Frees all rings. Later streams are read without.
    pub(crate) fn close(&self) {
        let mut idle = lock(&self.idle);
        self.are_refused.store(true, Ordering::Relaxed);
        idle.clear();
    }

    /// Idle rings in the pool.
    #[cfg(test)]
    pub(crate) fn idle(&self) -> usize {
        lock(&self.idle).len()
    }

    /// Streams that have a ring.
    #[cfg(test)]
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// Counts a stream while it lasts, also if its caller panics.
struct Use<'a>(&'a AtomicUsize);

impl<'a> Use<'a> {
    fn of(used: &'a AtomicUsize) -> Self {
        used.fetch_add(1, Ordering::Relaxed);
        Self(used)
    }
}

impl Drop for Use<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
    /// Slots of `reads` that are not submitted yet, in the order of their entries.
    queued: VecDeque<usize>,
    ended: VecDeque<StreamRead>,
}

impl InFlight {
    fn new(depth: u32) -> io::Result<Self> {
        let ring = IoUring::new(depth.next_power_of_two())?;
        let (reads, free) = ((0..depth).map(|_| None).collect(), (0..depth as usize).rev().collect());
        Ok(Self { ring, planned: VecDeque::new(), reads, free, queued: VecDeque::new(), ended: VecDeque::new() })
    }

    /// Performs all reads of `stream`. Fails if the kernel refuses the ring; then some are left.
    fn pass(&mut self, stream: &mut dyn ReadStream) -> io::Result<()> {
        let depth = self.reads.len();
        let (submit_at, planned_max) = ((depth / SUBMIT_SHARE).max(1), depth.div_ceil(PLANNED_SHARE));
        loop {
            self.reap();
            while !self.free.is_empty()
                && let Some(read) = self.planned.pop_front()
            {
                self.push(read);
            }
            if self.queued.len() >= submit_at {
                self.enter(0)?;
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
                return Ok(());
            } else {
                self.enter(1)?;
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
        self.queued.push_back(slot);
    }

    /// Submits the queued reads, and waits until `wanted` reads have ended. Fails if the kernel
    /// refuses.
    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(wanted) {
            Ok(taken) => {
                self.queued.drain(..taken.min(self.queued.len()));
                Ok(())
            }
            Err(e) if is_passing(&e) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Ends all reads of a ring that the kernel refuses, and gives them back to `stream`. It must
    /// not be entered again.
    fn abandon(&mut self, stream: &mut dyn ReadStream) {
        self.take_back();
        while let Some(read) = self.ended.pop_front().or_else(|| self.planned.pop_front()) {
            stream.ended(read.retried());
        }
    }

    /// Waits until the kernel holds no buffer. Entries that it never took are void once the ring is
    /// not entered any more. Reads that it took end by themselves.
    fn take_back(&mut self) {
        for slot in std::mem::take(&mut self.queued) {
            if let Some(read) = self.reads[slot].take() {
                self.free.push(slot);
                self.ended.push_back(read);
            }
        }
        while !self.is_empty() {
            self.reap();
            #[expect(clippy::disallowed_methods, reason = "the kernel refuses to be waited for")]
            thread::sleep(LOOK);
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
            if self.enter(1).is_err() {
                return self.take_back();
            }
            self.reap();
        }
    }
}

/// Whether the system call has to be repeated. It was interrupted, memory was short, or the
/// completion queue must be emptied first.
pub(super) fn is_passing(error: &io::Error) -> bool {
    [Errno::INTR, Errno::AGAIN, Errno::BUSY, Errno::NOMEM].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}
