//! How far the two streams have come. Watermarks are read without a lock, and only grow.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::id::Lsn;

/// The watermarks of both streams. `durable <= written <= appended` are LSNs, and `synced_bytes <=
/// appended_bytes` count bytes.
#[derive(Debug, Default)]
pub(in crate::engine) struct Watermarks {
    appended: AtomicU64,
    written: AtomicU64,
    durable: AtomicU64,
    reclaimed: AtomicU64,
    /// Bytes of both streams that were appended.
    appended_bytes: AtomicU64,
    /// Bytes of both streams that are synced.
    synced_bytes: AtomicU64,
    /// Store time that the newest mark states, ms.
    marked_ms: AtomicU64,
}

impl Watermarks {
    /// Watermarks of a store in which everything up to `last` is durable.
    pub(in crate::engine) fn new(last: Lsn, reclaimed: Lsn, marked_ms: u64) -> Self {
        Self {
            appended: last.0.into(),
            written: last.0.into(),
            durable: last.0.into(),
            reclaimed: reclaimed.0.into(),
            marked_ms: marked_ms.into(),
            ..Self::default()
        }
    }

    /// LSN of the newest mutation.
    pub(in crate::engine) fn appended(&self) -> Lsn {
        Lsn(self.appended.load(Ordering::Acquire))
    }

    /// Called under the log lock, which orders the callers.
    pub(super) fn set_appended(&self, lsn: Lsn) {
        // Pairs with the acquire in `appended`.
        self.appended.store(lsn.0, Ordering::Release);
    }

    /// Every mutation up to this LSN is in a WAL or segment file, or is being rescued.
    pub(in crate::engine) fn written(&self) -> Lsn {
        Lsn(self.written.load(Ordering::Relaxed))
    }

    pub(super) fn raise_written(&self, lsn: Lsn) {
        self.written.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Every mutation up to this LSN is synced: its frame, and its record in the WAL or in a
    /// segment.
    pub(in crate::engine) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::Acquire))
    }

    pub(super) fn raise_durable(&self, lsn: Lsn) {
        self.durable.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// The highest LSN in a segment that was or is being emptied. Newer entries were not evicted.
    pub(in crate::engine) fn reclaimed(&self) -> Lsn {
        Lsn(self.reclaimed.load(Ordering::Acquire))
    }

    pub(in crate::engine) fn raise_reclaimed(&self, lsn: Lsn) {
        self.reclaimed.fetch_max(lsn.0, Ordering::AcqRel);
    }

    /// Bytes of both streams that were appended so far.
    pub(in crate::engine) fn appended_bytes(&self) -> u64 {
        self.appended_bytes.load(Ordering::Acquire)
    }

    pub(super) fn add_appended_bytes(&self, bytes: u64) {
        self.appended_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes of both streams that are synced so far.
    pub(in crate::engine) fn synced_bytes(&self) -> u64 {
        self.synced_bytes.load(Ordering::Acquire)
    }

    pub(super) fn set_synced_bytes(&self, bytes: u64) {
        self.synced_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Bytes of both streams that were appended and not yet synced.
    pub(in crate::engine) fn unsynced_bytes(&self) -> u64 {
        let synced = self.synced_bytes.load(Ordering::Relaxed);
        self.appended_bytes.load(Ordering::Relaxed).saturating_sub(synced)
    }

    /// Whether a mark states that store time `ms` has passed.
    pub(super) fn is_marked(&self, ms: u64) -> bool {
        self.marked_ms.load(Ordering::Relaxed) >= ms
    }

    pub(super) fn raise_marked(&self, ms: u64) {
        self.marked_ms.fetch_max(ms, Ordering::Relaxed);
    }
}
