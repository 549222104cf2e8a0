//! Ties an open store to the process that opened it.
//!
//! A child of `fork` inherits descriptors, locks and mappings, but not the background threads. So a
//! handler that runs in each child makes the child a stranger to every open store: it counts the
//! fork, and closes the inherited lock descriptors, so that a child does not keep a store locked.
#![allow(unsafe_code, reason = "a handler for `fork` has no safe interface")]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Once;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use super::registry::Registry;

/// Number of forks between this process and the one that first opened a store.
static FORKS: AtomicU64 = AtomicU64::new(0);

/// The process that made this value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThisProcess(u64);

impl ThisProcess {
    /// The process that calls.
    pub(crate) fn new() -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| {
            // SAFETY: the handler only changes atomics and closes descriptors, which a child of
            // `fork` may do.
            unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        });
        Self(FORKS.load(Ordering::Relaxed))
    }

    /// Whether this code runs in the process that made the value, not in a child of it.
    pub(crate) fn is_this(self) -> bool {
        self.0 == FORKS.load(Ordering::Relaxed)
    }
}

impl Default for ThisProcess {
    fn default() -> Self {
        Self::new()
    }
}

/// Descriptors that children of `fork` close; -1 for an unused entry.
static LOCKS: Registry<AtomicI32> = Registry::new();

extern "C" fn in_child() {
    FORKS.fetch_add(1, Ordering::Relaxed);
    for entry in LOCKS.iter() {
        let fd = entry.swap(-1, Ordering::Relaxed);
        if fd >= 0 {
            // SAFETY: the descriptor belongs to a `LockDescriptor`, which does not use it in a
            // child.
            unsafe { libc::close(fd) };
        }
    }
}

/// A descriptor that carries a lock. A child of `fork` does not inherit it.
#[derive(Debug)]
pub(super) struct LockDescriptor {
    fd: Option<OwnedFd>,
    process: ThisProcess,
}

impl LockDescriptor {
    pub(super) fn new(fd: OwnedFd) -> Self {
        let process = ThisProcess::new();
        let take = |entry: &AtomicI32| entry.compare_exchange(-1, fd.as_raw_fd(), Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if !LOCKS.iter().any(take) {
            LOCKS.add(AtomicI32::new(fd.as_raw_fd()));
        }
        Self { fd: Some(fd), process }
    }

    /// The descriptor. `None` in a child of `fork`.
    pub(super) fn get(&self) -> Option<&OwnedFd> {
        self.fd.as_ref().filter(|_| self.process.is_this())
    }
}

impl Drop for LockDescriptor {
    fn drop(&mut self) {
        let Some(fd) = self.fd.take() else { return };
        if !self.process.is_this() {
            // The handler of the child closed it. Its number may belong to another file by now.
            return std::mem::forget(fd);
        }
        let raw = fd.as_raw_fd();
        // A child that is made between the next two steps inherits the descriptor, but no lock.
        let _closed_anyway = rustix::fs::flock(&fd, rustix::fs::FlockOperation::Unlock);
        let is_listed = LOCKS.iter().any(|entry| entry.compare_exchange(raw, -1, Ordering::AcqRel, Ordering::Relaxed).is_ok());
        debug_assert!(is_listed, "the descriptor was listed when it was made");
    }
}
