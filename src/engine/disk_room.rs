//! Whether the disk has room for the store.
//!
//! A shortage may pass, so the first one only makes its caller wait. If the next attempt finds no
//! room either, the oldest entries are evicted to make room.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The room that the disk gave at the last attempts.
#[derive(Debug, Default)]
pub(in crate::engine) struct DiskRoom {
    /// The disk had no room for a further segment. So flash is what the disk gave before.
    is_full: AtomicBool,
    /// How often the WAL or the manifest found no room since they last did, or since a segment was
    /// given back to the disk.
    requests: AtomicU32,
    /// The disk gives so few segments that none is reserved for moves.
    is_small: AtomicBool,
    /// There is no room, and no segment that could make room.
    is_exhausted: AtomicBool,
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
    pub(in crate::engine) fn request(&self) {
        self.requests.fetch_add(1, Ordering::AcqRel);
    }

    /// Whether the WAL or the manifest waits for room. Segments leave free room to them.
    pub(in crate::engine) fn is_requested(&self) -> bool {
        self.requests.load(Ordering::Acquire) > 0
    }

    /// States that the WAL or the manifest found room.
    pub(in crate::engine) fn grant(&self) {
        self.requests.store(0, Ordering::Release);
        self.set_exhausted(false);
    }

    /// No segment can be given back. Then segments and the others take the room that comes.
    pub(in crate::engine) fn refuse(&self) {
        self.requests.store(0, Ordering::Release);
    }

    /// Whether a segment is to be given back to the disk now. The next request then counts as
    /// repeated.
    pub(in crate::engine) fn take_request(&self) -> bool {
        self.requests.fetch_update(Ordering::AcqRel, Ordering::Acquire, |requests| (requests > 1).then_some(1)).is_ok()
    }

    /// States whether the disk gives so few segments that none is reserved for moves.
    pub(in crate::engine) fn set_small(&self, is_small: bool) {
        self.is_small.store(is_small, Ordering::Release);
    }

    /// Whether no segment is reserved for moves.
    pub(in crate::engine) fn is_small(&self) -> bool {
        self.is_small.load(Ordering::Acquire)
    }

    /// States whether the disk is full and no segment can make room.
    pub(in crate::engine) fn set_exhausted(&self, is_exhausted: bool) {
        self.is_exhausted.store(is_exhausted, Ordering::Release);
    }

    /// Whether the disk is full and no segment can make room.
    pub(in crate::engine) fn is_exhausted(&self) -> bool {
        self.is_exhausted.load(Ordering::Acquire)
    }
}
