//! Batches of reads through `io_uring` (Axboe, 2019): one system call for many, in flight together.
//!
//! Each batch takes a ring of its own from a pool, submits, and waits for all its completions before it returns, so the kernel never holds a buffer that the caller could
//! free, and nobody waits behind another caller's reads. Single reads are not sent here: a plain `pread` is faster at depth 1.
#![allow(unsafe_code, reason = "the kernel writes into buffers behind a submission queue")]

use std::io;
use std::os::fd::RawFd;
use std::sync::Mutex;

use io_uring::{IoUring, opcode, types};
use rustix::io::Errno;

use super::BatchRead;
use crate::sync::lock;

/// Rings that are kept for the next batch.
const POOL_MAX: usize = 8;

/// A pool of rings.
pub(crate) struct Rings {
    idle: Mutex<Vec<IoUring>>,
    /// Reads of one batch that are in flight together.
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
        let ring = new_ring(depth)?;
        let mut probe = io_uring::Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Read::CODE) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        Ok(Self { idle: Mutex::new(vec![ring]), depth })
    }

    /// Does all reads that name a descriptor. A read that fails, is short, or could not be submitted is left with `done` false.
    pub(crate) fn read(&self, reads: &mut [BatchRead]) {
        let Some(mut ring) = lock(&self.idle).pop().or_else(|| new_ring(self.depth).ok()) else { return };
        for batch in reads.chunks_mut(self.depth as usize) {
            read_together(&mut ring, batch);
        }
        let mut idle = lock(&self.idle);
        if idle.len() < POOL_MAX {
            idle.push(ring);
        }
    }
}

fn new_ring(depth: u32) -> io::Result<IoUring> {
    IoUring::new(depth.next_power_of_two())
}

/// Does at most as many reads as the ring has entries, all in flight together.
fn read_together(ring: &mut IoUring, reads: &mut [BatchRead]) {
    let mut pending = 0;
    for (i, read) in reads.iter_mut().enumerate() {
        let Some(fd) = read.file.descriptor() else { continue };
        let entry = read_entry(fd, read).user_data(i as u64);
        // SAFETY: the buffer belongs to `read`, which is borrowed mutably until this function returns, and it does not return before the completion of every entry that
        // was pushed; the descriptor is kept open by `read.file`.
        let pushed = unsafe { ring.submission().push(&entry) };
        pending += usize::from(pushed.is_ok());
    }
    while pending > 0 {
        match ring.submit_and_wait(1) {
            Ok(_) => {}
            Err(e) if is_passing(&e) => {}
            Err(e) => {
                // The kernel may own buffers and will not say when it lets go: a stop is the only safe answer, and no worse than a kill.
                tracing::error!(error = %e, "io_uring stopped working with reads in flight");
                std::process::abort();
            }
        }
        for completion in ring.completion() {
            pending -= 1;
            let read = &mut reads[completion.user_data() as usize];
            read.done = completion.result() == read.buf.len() as i32;
        }
    }
}

fn read_entry(fd: RawFd, read: &mut BatchRead) -> io_uring::squeue::Entry {
    opcode::Read::new(types::Fd(fd), read.buf.as_mut_ptr(), read.buf.len() as u32).offset(read.offset).build()
}

/// Whether the call is to be repeated: interrupted, out of memory for now, or the completion queue must be emptied first.
pub(super) fn is_passing(error: &io::Error) -> bool {
    [Errno::INTR, Errno::AGAIN, Errno::BUSY, Errno::NOMEM].iter().any(|e| error.raw_os_error() == Some(e.raw_os_error()))
}
