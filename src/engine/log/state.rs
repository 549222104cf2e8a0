//! The data under the log lock: the next LSN, and every segment between ready and sealed.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::id::{Lsn, Position, SegmentId};
use crate::segment::failed::Failed;
use crate::segment::footer::FooterEntry;
use crate::segment::format::Life;
use crate::segment::table::WalStart;
use crate::segment::writer::{Full, Open};

/// The data under the log lock. Its methods do no I/O.
#[derive(Debug)]
pub(in crate::engine) struct LogState {
    next_lsn: Lsn,
    open: Option<Open>,
    /// The open segment was the last ready one. It is kept for moves until another segment is
    /// ready.
    is_reserved: bool,
    /// Segments whose life the manifest states, with their sizes, in the order of their bases.
    ready: VecDeque<(Life, u64)>,
    /// Segments that wait for their footer, oldest first.
    full: VecDeque<Full>,
    /// Segments for which a write or a sync failed, oldest first.
    failed: VecDeque<Arc<Failed>>,
    /// Segments that failed since the opening.
    failures: u64,
    /// Position of the next frame in the WAL.
    wal_head: u64,
    /// Marks since the last segment was opened, or since a manifest without an open one.
    marks: u64,
    /// Every mutation from this LSN on is in the WAL with its record. Older ones, and moves, may be
    /// in the segment stream alone.
    last_by_reference: Lsn,
}

/// A segment that was opened for records.
pub(super) struct Opened {
    pub(super) life: Life,
    pub(super) wal_start: WalStart,
    /// The segment that was open before. It is full now.
    pub(super) retired: Option<SegmentId>,
    /// No other segment is open or full, so the segment ring holds nothing unwritten.
    pub(super) is_first: bool,
}

/// A segment whose records may be in the segment ring alone.
pub(super) struct Unwritten {
    pub(super) life: Life,
    /// Position at which its records end.
    pub(super) end: u64,
    /// Its size, if it is full.
    pub(super) full: Option<u64>,
}

/// The state up to which a sync makes everything durable.
pub(super) struct SyncPoint {
    pub(super) appended: Lsn,
    pub(super) wal_head: u64,
    /// Records below this LSN, and moves before this sync, may be in the segment stream alone.
    pub(super) last_by_reference: Lsn,
    /// Every record of every failed segment was appended again, or has a tombstone.
    pub(super) is_rescued: bool,
    pub(super) failures: u64,
}

impl LogState {
    pub(in crate::engine) fn new(next_lsn: Lsn, wal_head: u64) -> Self {
        Self {
            next_lsn,
            open: None,
            is_reserved: false,
            ready: VecDeque::new(),
            full: VecDeque::new(),
            failed: VecDeque::new(),
            failures: 0,
            wal_head,
            marks: 0,
            last_by_reference: Lsn::ZERO,
        }
    }

    /// The LSN of the next mutation.
    pub(in crate::engine) fn next_lsn(&self) -> Lsn {
        self.next_lsn
    }

    /// Continues at `lsn`, as if every LSN before it had been used.
    #[cfg(any(test, fuzzing))]
    pub(in crate::engine) fn skip_to_lsn(&mut self, lsn: Lsn) {
        self.next_lsn = lsn;
    }

    /// Where the WAL ends, and the LSN that the next mutation will have there.
    pub(in crate::engine) fn wal_end(&self) -> WalStart {
        WalStart { position: self.wal_head, lsn: self.next_lsn }
    }

    /// Position of the next record: in the open segment, else at the base of the first ready one.
    pub(in crate::engine) fn next_position(&self) -> Option<Position> {
        let next_life = self.ready.front().map(|(life, _)| life.base);
        self.open.as_ref().map(Open::head).or(next_life)
    }

    /// Segments that are ready.
    pub(in crate::engine) fn ready_count(&self) -> usize {
        self.ready.len()
    }

    /// Adds segments whose life is durable in the manifest.
    pub(in crate::engine) fn add_ready(&mut self, lives: impl IntoIterator<Item = (Life, u64)>) {
        self.ready.extend(lives);
    }

    /// Whether the open segment is for moves alone.
    pub(super) fn is_reserved(&self) -> bool {
        self.is_reserved && self.ready.is_empty()
    }

    /// The open segment, if a record of `len` bytes fits into it, and its footer entry into
    /// `footer_max` bytes of DRAM.
    pub(super) fn open_for(&self, len: usize, footer_max: u64) -> Option<&Open> {
        self.open.as_ref().filter(|open| open.fits(len) && open.allocated_with_one_more() as u64 <= footer_max)
    }

    /// Bytes of DRAM that the footers of open and full segments take after one more record.
    pub(super) fn footers_with_one_more(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, Open::allocated_with_one_more);
        (open + self.full_footers()) as u64
    }

    fn full_footers(&self) -> usize {
        self.full.iter().map(|full| full.footer.allocated()).sum()
    }

    /// Opens the next ready segment and retires the open one. The last ready one only if
    /// `may_take_last`.
    pub(super) fn open_next(&mut self, may_take_last: bool) -> Option<Opened> {
        let (life, size) = if may_take_last || self.ready.len() > 1 { self.ready.pop_front()? } else { return None };
        self.is_reserved = self.ready.is_empty();
        self.marks = 0;
        let wal_start = self.wal_end();
        let retired = self.retire_open();
        let is_first = retired.is_none() && self.full.is_empty();
        self.open = Some(Open::new(life, size));
        Some(Opened { life, wal_start, retired, is_first })
    }

    /// Retires the open segment: it takes no more records and waits for its footer.
    pub(super) fn retire_open(&mut self) -> Option<SegmentId> {
        let open = self.open.take()?;
        let id = open.life.id;
        self.full.push_back(open.retire());
        Some(id)
    }

    /// Takes a frame that was stored in the WAL.
    pub(super) fn push_frame(&mut self, wal_end: u64) {
        self.wal_head = wal_end;
    }

    /// Takes a mark that was stored in the WAL.
    pub(super) fn push_mark(&mut self, wal_end: u64) {
        self.wal_head = wal_end;
        self.marks += 1;
    }

    /// Marks since the last segment was opened, or since [`LogState::forget_marks`].
    pub(in crate::engine) fn marks(&self) -> u64 {
        self.marks
    }

    /// A manifest that lets a recovery begin after these marks was written.
    pub(in crate::engine) fn forget_marks(&mut self) {
        self.marks = 0;
    }

    /// Takes a record that was stored at the open segment's head. `assigned` is its LSN if it is
    /// new.
    pub(super) fn push_record(&mut self, entry: &FooterEntry, assigned: Option<Lsn>, is_inline: bool) {
        if let Some(open) = &mut self.open {
            open.push(entry);
        }
        if let Some(lsn) = assigned {
            self.next_lsn = lsn.next();
        }
        if !is_inline {
            self.last_by_reference = self.next_lsn;
        }
    }

    /// The oldest segment with records above `written`. Without one, the open segment.
    pub(super) fn oldest_unwritten(&self, written: u64) -> Option<Unwritten> {
        let full = self.full.iter().find(|full| full.end().0 > written);
        let full = full.map(|full| Unwritten { life: full.life, end: full.end().0, full: Some(full.size) });
        full.or_else(|| self.open.as_ref().map(|open| Unwritten { life: open.life, end: open.head().0, full: None }))
    }

    pub(super) fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Takes the oldest full segment, if all of it is below `written`.
    pub(super) fn pop_written(&mut self, written: u64) -> Option<Full> {
        self.full.pop_front_if(|full| full.end().0 <= written)
    }

    /// Puts back a full segment that [`LogState::pop_written`] returned.
    pub(super) fn push_full_front(&mut self, full: Full) {
        self.full.push_front(full);
    }

    pub(super) fn sync_point(&self) -> SyncPoint {
        SyncPoint {
            appended: Lsn(self.next_lsn.0 - 1),
            wal_head: self.wal_head,
            last_by_reference: self.last_by_reference,
            is_rescued: self.failed.iter().all(|failed| failed.is_done()),
            failures: self.failures,
        }
    }

    /// Segments that failed since the opening.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// Takes a segment that is open or full out of use.
    pub(super) fn take_filling(&mut self, id: SegmentId) -> Option<Full> {
        match self.full.iter().position(|full| full.life.id == id) {
            Some(i) => self.full.remove(i),
            None => self.open.take_if(|open| open.life.id == id).map(Open::retire),
        }
    }

    /// Adds a segment whose records must be rescued.
    pub(super) fn push_failed(&mut self, failed: Failed) {
        self.failed.push_back(Arc::new(failed));
        self.failures += 1;
    }

    /// Whether a failed segment is not quarantined yet: its records are being rescued.
    pub(in crate::engine) fn is_rescuing(&self) -> bool {
        !self.failed.is_empty()
    }

    /// The failed segments, oldest first.
    pub(in crate::engine) fn failed(&self) -> Vec<Arc<Failed>> {
        self.failed.iter().cloned().collect()
    }

    /// Forgets the oldest `count` failed segments, which were rescued.
    pub(in crate::engine) fn forget_failed(&mut self, count: usize) {
        self.failed.drain(..count);
    }

    /// Bytes of DRAM held.
    pub(in crate::engine) fn allocated(&self) -> u64 {
        let open = self.open.as_ref().map_or(0, Open::allocated);
        let full = self.full_footers();
        let failed: usize = self.failed.iter().map(|failed| failed.allocated()).sum();
        (open + full + failed) as u64
    }
}
