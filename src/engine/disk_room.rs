//! Whether the disk has room for the store.
//!
//! A shortage may pass, so the first one only makes its caller wait. If the next attempt finds no
//! room either, the oldest entries are evicted to make room. A lack of descriptors evicts nothing:
//! if it lasts, waiters fail.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use crate::error::{Error, Result};

/// Attempts in a row without a descriptor after which waiters fail. Attempts are 200 ms apart.
const DESCRIPTOR_ATTEMPTS: u32 = 25;

const DISK: u8 = 1;
const DESCRIPTORS: u8 = 2;

/// A part of the store that needs room on the disk beside the segments.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum Asker {
    Wal,
    Manifest,
}

/// The room that the disk gave at the last attempts.
#[derive(Debug, Default)]
pub(in crate::engine) struct DiskRoom {
    /// The disk had no room for a further segment. So flash is what the disk gave before.
    is_full: AtomicBool,
    /// How often each asker found no room since it last did, or since a segment was given back to
    /// the disk.
    requests: [AtomicU32; 2],
    /// Attempts in a row that found no descriptor.
    without_descriptor: AtomicU32,
    /// The disk gives so few segments that none is reserved for moves.
    is_small: AtomicBool,
    /// Why there is no room, and nothing that could make room. 0 if there is some.
    exhausted: AtomicU8,
}

impl DiskRoom {
    /// States whether the disk had room for a further segment. Returns the last such statement.
    pub(in crate::engine) fn set_full(&self, is_full: bool) -> bool {
        self.is_full.swap(is_full, Ordering::AcqRel)
    }

    /// Whether the disk gives less than the store's flash.
    pub(in crate::engine) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Acquire)
    }

    /// Asks for room on the disk beside the segments.
    pub(in crate::engine) fn request(&self, asker: Asker) {
        self.requests[asker as usize].fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the WAL or the manifest waits for room. Segments leave free room to them.
    pub(in crate::engine) fn is_requested(&self) -> bool {
        self.requests.iter().any(|requests| requests.load(Ordering::Acquire) > 0)
    }

    /// States that this asker found room.
    pub(in crate::engine) fn grant(&self, asker: Asker) {
        self.requests[asker as usize].store(0, Ordering::Release);
        self.set_found();
    }

    /// No segment can be given back. Then segments and the others take the room that comes.
    pub(in crate::engine) fn refuse(&self) {
        self.requests.iter().for_each(|requests| requests.store(0, Ordering::Release));
    }

    /// Whether a segment is to be given back to the disk now. The next request of the same asker
    /// then counts as repeated.
    pub(in crate::engine) fn take_request(&self) -> bool {
        let take = |requests: &AtomicU32| requests.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n > 1).then_some(1)).is_ok();
        // Both are looked at, also if the first one waits.
        self.requests.iter().filter(|requests| take(requests)).count() > 0
    }

    /// States that an attempt found no descriptor. If that lasts, waiters fail.
    pub(in crate::engine) fn miss_descriptor(&self) {
        if self.without_descriptor.fetch_add(1, Ordering::AcqRel) + 1 >= DESCRIPTOR_ATTEMPTS {
            self.exhausted.store(DESCRIPTORS, Ordering::Release);
        }
    }

    /// States whether the disk gives so few segments that none is reserved for moves.
    pub(in crate::engine) fn set_small(&self, is_small: bool) {
        self.is_small.store(is_small, Ordering::Release);
    }

    /// Whether no segment is reserved for moves.
    pub(in crate::engine) fn is_small(&self) -> bool {
        self.is_small.load(Ordering::Acquire)
    }

    /// States that the disk is full and no segment can make room.
    pub(in crate::engine) fn set_exhausted(&self) {
        self.exhausted.store(DISK, Ordering::Release);
    }

    /// States that an attempt found room.
    pub(in crate::engine) fn set_found(&self) {
        self.without_descriptor.store(0, Ordering::Release);
        self.exhausted.store(0, Ordering::Release);
    }

    /// Refuses to wait for room that cannot be made.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::NoDescriptors`].
    pub(in crate::engine) fn check(&self) -> Result<()> {
        match self.exhausted.load(Ordering::Acquire) {
            DISK => Err(Error::DiskFull),
            DESCRIPTORS => Err(Error::NoDescriptors),
            _ => Ok(()),
        }
    }
}
