//! Counters of events since the store was opened.
//!
//! They are reported in [`super::Stats`], and no decision depends on them. So every access is
//! relaxed, and two counters may be read at different instants. Counters that every get increments
//! are striped over cache lines; the others are single atomics.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use super::refused::Refused;

/// A counter for hot paths. Threads increment different cache lines, so they do not contend.
#[derive(Debug, Default)]
pub(in crate::engine) struct StripedCounter([CachePadded<AtomicU64>; STRIPES]);

/// Number of cache lines of a [`StripedCounter`], a power of two. More threads than that share
/// lines.
const STRIPES: usize = 8;

impl StripedCounter {
    pub(in crate::engine) fn add(&self) {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static STRIPE: usize = THREADS.fetch_add(1, Ordering::Relaxed) % STRIPES);
        self.0[STRIPE.with(|stripe| *stripe)].fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::engine) fn sum(&self) -> u64 {
        self.0.iter().map(|stripe| stripe.load(Ordering::Relaxed)).sum()
    }
}

/// The counters of one open store. [`super::Stats`] describes each of them.
#[derive(Debug, Default)]
pub(in crate::engine) struct Counters {
    pub(in crate::engine) hits_memory: StripedCounter,
    pub(in crate::engine) hits_buffer: StripedCounter,
    pub(in crate::engine) hits_flash: StripedCounter,
    pub(in crate::engine) misses: StripedCounter,
    pub(in crate::engine) puts: AtomicU64,
    pub(in crate::engine) deletes: AtomicU64,
    pub(in crate::engine) compressions: AtomicU64,
    pub(in crate::engine) expired: AtomicU64,
    pub(in crate::engine) collisions: AtomicU64,
    pub(in crate::engine) damaged: AtomicU64,
    pub(in crate::engine) read_errors: AtomicU64,
    pub(in crate::engine) disk_full: AtomicU64,
    pub(in crate::engine) write_errors: AtomicU64,
    pub(in crate::engine) reclaimed: AtomicU64,
    pub(in crate::engine) reinserted: AtomicU64,
    pub(in crate::engine) evicted: AtomicU64,
    pub(in crate::engine) segment_bytes: AtomicU64,
    pub(in crate::engine) wal_bytes: AtomicU64,
    pub(in crate::engine) manifest_bytes: AtomicU64,
    pub(in crate::engine) checkpoint_bytes: AtomicU64,
    pub(in crate::engine) checkpoints: AtomicU64,
    /// Times that a mutation waited for room, by cause.
    pub(in crate::engine) waits: PerCause,
    /// Mutations that failed with `WouldBlock` or `TimedOut`, by cause.
    pub(in crate::engine) refusals: PerCause,
    /// Loaded values that were returned and not stored.
    pub(in crate::engine) not_stored: FillCounts,
}

/// Why a loaded value was not stored. [`super::stats::NotStored`] describes each.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum NotStored {
    NoRoom,
    Stopped,
    Length,
    Io,
    Overtaken,
    Alone,
}

/// One counter for each [`NotStored`].
#[derive(Debug, Default)]
pub(in crate::engine) struct FillCounts([AtomicU64; NotStored::Alone as usize + 1]);

impl FillCounts {
    pub(in crate::engine) fn add(&self, why: NotStored) {
        self.0[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::engine) fn of(&self, why: NotStored) -> u64 {
        self.0[why as usize].load(Ordering::Relaxed)
    }
}

/// One counter for each cause of a refused append.
#[derive(Debug, Default)]
pub(in crate::engine) struct PerCause([AtomicU64; Refused::COUNT]);

impl PerCause {
    pub(in crate::engine) fn add(&self, cause: Refused) {
        self.0[cause as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(in crate::engine) fn of(&self, cause: Refused) -> u64 {
        self.0[cause as usize].load(Ordering::Relaxed)
    }
}
