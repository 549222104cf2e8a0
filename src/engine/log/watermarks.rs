//! How far the two streams have come. Watermarks are read without a lock, and only grow.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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
    /// Every mutation that returned before this store time is durable, ms.
    durable_ms: AtomicU64,
    /// The newest LSN at the opening.
    opened: Lsn,
    /// The report of the opening counts as heard: the store was served, and then a sync succeeded
    /// or time passed. So the next opening need not repeat it.
    heard: AtomicBool,
}

impl Watermarks {
    /// Watermarks of a store that opens at store time `now_ms`. Everything up to `last` is durable.
    pub(in crate::engine) fn new(last: Lsn, reclaimed: Lsn, now_ms: u64) -> Self {
        Self {
            appended: last.0.into(),
            written: last.0.into(),
            durable: last.0.into(),
            reclaimed: reclaimed.0.into(),
            marked_ms: now_ms.into(),
            durable_ms: now_ms.into(),
            opened: last,
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

    /// A sync succeeded that began at store time `began_ms`.
    pub(super) fn raise_durable(&self, lsn: Lsn, began_ms: u64) {
        self.durable.fetch_max(lsn.0, Ordering::AcqRel);
        self.durable_ms.fetch_max(began_ms, Ordering::AcqRel);
        // Only a user of the open store assigns LSNs.
        if lsn > self.opened {
            self.set_heard();
        }
    }

    /// Every mutation that returned before this store time is durable.
    pub(in crate::engine) fn durable_ms(&self) -> u64 {
        self.durable_ms.load(Ordering::Acquire)
    }

    /// Whether the report of the opening counts as heard.
    pub(in crate::engine) fn is_heard(&self) -> bool {
        self.heard.load(Ordering::Relaxed)
    }

    /// True if the report of the opening did not count as heard before.
    pub(in crate::engine) fn set_heard(&self) -> bool {
        !self.heard.swap(true, Ordering::Relaxed)
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
