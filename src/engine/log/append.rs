//! Appends a record: gives it an LSN, a place in the segment stream and a frame in the WAL.
//!
//! [`Engine::append`] admits the record or refuses it with the cause, places it, and wakes the
//! threads that have work now. All of that happens under the log lock. The record is stored before
//! its frame, so a frame never names a record that was not stored.

use rustix::io::Errno;

use super::state::{LogState, Opened};
use crate::engine::Engine;
use crate::engine::refused::Refused;
use crate::id::{KeyHash, Location, Lsn, Position, SegmentId};
use crate::index::geometry::IndexEntry;
use crate::io::ring::Ring;
use crate::segment::footer::FooterEntry;
use crate::segment::format::{DATA_START, Draft, PREFIX_LEN};
use crate::segment::writer::record_len_max;
use crate::wal::format::{Frame, Mutation};
use crate::wal::writer::Wal;

/// Writers wait while the oldest unsynced mutation is older than this many sync intervals.
const UNSYNCED_INTERVALS_MAX: u32 = 3;
/// The age is checked only if the next LSN is a multiple of this. While such a mutation is refused,
/// the next LSN stays, so later mutations wait as well.
const AGE_CHECK_LSNS: u64 = 64;
/// Puts wait while the index exceeds its share of the budget by more than one byte in this many of
/// `memory`.
const INDEX_EXCESS_SHARE: u64 = 64;
/// The flush thread is woken once per piece of the segment ring. Upper bound of the length of such
/// a piece.
const FLUSH_PIECE_MAX: u64 = 1 << 20;

/// A record to append.
#[derive(Debug)]
pub(in crate::engine) struct Append<'a> {
    pub(in crate::engine) hash: KeyHash,
    pub(in crate::engine) draft: &'a Draft<'a>,
    pub(in crate::engine) kind: Appending,
}

/// Why a record is appended.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) enum Appending {
    /// A put or a delete of a user.
    Mutation {
        tombstone: bool,
        /// The record is a tombstone, or the index has an entry with this fingerprint.
        supersedes: bool,
        /// The WAL holds the record's bytes too.
        inline: bool,
    },
    /// A record that is appended again because its segment is emptied or has failed. It keeps its
    /// LSN.
    Move {
        lsn: Lsn,
        /// Its segment failed, so it goes before everything else.
        urgent: bool,
    },
    /// A tombstone for a lost record of a failed segment. As urgent as a move of that record.
    Burial,
    /// A change of the catalog. The WAL holds its bytes.
    CatalogChange,
}

impl Appending {
    /// The LSN that the record already has.
    fn lsn(self) -> Option<Lsn> {
        match self {
            Self::Move { lsn, .. } => Some(lsn),
            _ => None,
        }
    }

    fn is_urgent(self) -> bool {
        matches!(self, Self::Move { urgent: true, .. } | Self::Burial)
    }

    /// Whether the record helps to make room, so that it may take room that is kept for this.
    fn makes_room(self) -> bool {
        matches!(self, Self::Move { .. } | Self::Burial)
    }

    /// A catalog change takes the place of a tombstone: the index never names it.
    fn is_tombstone(self) -> bool {
        match self {
            Self::Mutation { tombstone, .. } => tombstone,
            Self::Move { .. } => false,
            Self::Burial | Self::CatalogChange => true,
        }
    }

    fn supersedes(self) -> bool {
        match self {
            Self::Mutation { supersedes, .. } => supersedes,
            Self::Move { .. } | Self::Burial => true,
            Self::CatalogChange => false,
        }
    }

    fn is_inline(self) -> bool {
        match self {
            Self::Mutation { inline, .. } => inline,
            Self::Move { .. } | Self::Burial => false,
            Self::CatalogChange => true,
        }
    }
}

/// Where a record went.
#[derive(Clone, Copy, Debug)]
pub(in crate::engine) struct Placed {
    pub(in crate::engine) lsn: Lsn,
    pub(in crate::engine) entry: IndexEntry,
}

/// A record that was admitted, and where it goes.
struct Admitted {
    lsn: Lsn,
    life_base: Position,
    at: Position,
    location: Location,
    /// Position at which its frame ends in the WAL.
    frame_end: u64,
    prefix: [u8; PREFIX_LEN],
}

impl Engine {
    /// Appends a record. The caller holds the key's stripe lock and points the index at the result
    /// before it releases the stripe.
    pub(in crate::engine) fn append(&self, append: &Append<'_>) -> Result<Placed, Refused> {
        let mut log = self.log.lock();
        let admitted = self.admit(&mut log, append)?;
        let bytes = append.draft.len() as u64 + admitted.frame_end - log.wal_end().position;
        let end = self.place(&mut log, append, &admitted);
        // The caller finds the failure, and does not acknowledge the record.
        self.check_rings().map_err(|_recorded| Refused::Closing)?;
        self.wake_after_append(bytes, end.0 - self.log.segment_ring().written());
        Ok(Placed { lsn: admitted.lsn, entry: IndexEntry::new(admitted.location, append.draft.len()) })
    }

    /// Fails the engine if a load from a ring or a store into it did not reach its file.
    pub(super) fn check_rings(&self) -> crate::error::Result<()> {
        if self.log.rings_are_whole() { Ok(()) } else { Err(self.fail("an access to a ring", &Errno::IO.into())) }
    }

    /// Decides whether a record is appended now. May open the next segment for it. Asks the thread
    /// that makes room for the one kind of room that is missing.
    fn admit(&self, log: &mut LogState, append: &Append<'_>) -> Result<Admitted, Refused> {
        let (kind, len) = (append.kind, append.draft.len());
        let (settings, segment_ring, wal) = (&self.context.settings, self.log.segment_ring(), self.log.wal());
        if self.health.is_closing() || self.health.check_process().is_err() {
            // Checked under the log lock: a close seals and checkpoints every record that was
            // appended before it, and no record is appended after.
            return Err(Refused::Closing);
        }
        self.check_rings().map_err(|_recorded| Refused::Closing)?;
        if log.is_rescuing() && !kind.is_urgent() {
            return Err(Refused::RescueFirst);
        }
        let may_take_last = kind.makes_room() || self.health.disk_room().is_small();
        if log.is_reserved() && !may_take_last {
            self.events.prepare.signal();
            return Err(Refused::Reserved);
        }
        if len > record_len_max(settings.segment_size) || len as u64 > Ring::append_max(segment_ring.size()) {
            return Err(Refused::RecordTooLong);
        }
        // Half of the footers' share is for the open segment, and half for those that wait for
        // their seal. So a segment of small records is full before its file is.
        let footer_max = settings.footers_bytes_max / 2;
        if log.open_for(len, footer_max).is_none() {
            self.rotate(log, may_take_last)?;
        }
        if log.footers_with_one_more() > settings.footers_bytes_max {
            self.wake_to_seal();
            return Err(Refused::FootersFull);
        }
        let open = log.open_for(len, footer_max).ok_or(Refused::NoSegment)?;
        let (at, life) = (open.head(), open.life);
        let location = Location { segment: life.id, offset: open.cursor() };
        let wal_end = log.wal_end().position;
        let frame_end = Wal::end_of(wal_end, if kind.is_inline() { len } else { 0 });
        if !segment_ring.has_room(at.0 + len as u64) {
            self.events.flush.signal();
            return Err(Refused::SegmentRingFull);
        }
        // A slow sync holds writers back.
        let is_age_checked = !kind.makes_room() && log.next_lsn().0.is_multiple_of(AGE_CHECK_LSNS);
        if is_age_checked && self.unsynced_age() > UNSYNCED_INTERVALS_MAX * settings.sync_interval {
            self.events.sync.signal();
            return Err(Refused::UnsyncedAge);
        }
        if !wal.has_room(frame_end) {
            self.request_sync();
            return Err(Refused::WalRingFull);
        }
        if self.log.marks().unsynced_bytes() > 2 * settings.sync_bytes && !kind.is_urgent() {
            self.request_sync();
            return Err(Refused::UnsyncedBytes);
        }
        if !kind.makes_room() && self.pace.is_outrun(self.index.entries()) {
            return Err(Refused::CheckpointBehind);
        }
        let index_max = settings.index_bytes_max + settings.memory / INDEX_EXCESS_SHARE;
        if !kind.makes_room() && !kind.is_tombstone() && self.index.allocated() > index_max {
            self.events.prepare.signal();
            return Err(Refused::IndexFull);
        }
        let lsn = kind.lsn().unwrap_or(log.next_lsn());
        let Some(prefix) = append.draft.prefix(self.context.store, at, lsn, life.base_lsn) else {
            assert!(kind.lsn().is_some(), "a new LSN is near its segment's base");
            return Err(Refused::LsnTooFar);
        };
        Ok(Admitted { lsn, life_base: life.base, at, location, frame_end, prefix })
    }

    /// Stores the record, then its frame. Returns the position of the next record.
    fn place(&self, log: &mut LogState, append: &Append<'_>, to: &Admitted) -> Position {
        let (kind, len) = (append.kind, append.draft.len() as u32);
        let [head, key, value] = append.draft.parts();
        let parts = [&to.prefix, head, key, value];
        self.log.segment_ring().append(to.at.0, &parts);
        let mutation = Mutation {
            lsn: to.lsn,
            hash: append.hash,
            tombstone: kind.is_tombstone(),
            supersedes: kind.supersedes(),
            record: to.at,
            record_len: len,
        };
        let frame = if kind.lsn().is_some() { Frame::Move(mutation) } else { Frame::Mutation(mutation) };
        let inline: &[&[u8]] = if kind.is_inline() { &parts } else { &[] };
        let wal_end = self.log.wal().append(log.wal_end().position, &frame, inline);
        let offset = to.location.offset;
        let entry = FooterEntry { hash: append.hash, offset, len, lsn: to.lsn, tombstone: kind.is_tombstone() };
        let assigned = kind.lsn().is_none().then_some(to.lsn);
        log.push_frame(wal_end);
        log.push_record(&entry, assigned, kind.is_inline());
        if let Some(lsn) = assigned {
            self.log.marks().set_appended(lsn);
        }
        to.life_base.plus(u64::from(offset) + u64::from(len))
    }

    /// Wakes the threads that have work now.
    fn wake_after_append(&self, bytes: u64, unflushed: u64) {
        let (settings, marks) = (&self.context.settings, self.log.marks());
        marks.add_appended_bytes(bytes);
        let unsynced = marks.unsynced_bytes();
        if self.durability.add_mutation(|| self.context.uptime_ms()) {
            self.events.sync.signal();
        }
        if unsynced > settings.sync_bytes && unsynced - bytes <= settings.sync_bytes {
            self.request_sync();
        }
        let piece = (settings.segment_ring / 4).min(FLUSH_PIECE_MAX);
        if unflushed > piece && (unflushed / piece) != ((unflushed - bytes.min(unflushed)) / piece) {
            self.events.flush.signal();
        }
        if self.pace.add_record(self.index.entries()) {
            self.events.checkpoint.signal();
        }
    }

    /// Opens the next ready segment and retires the open one. The last ready one is for moves:
    /// emptying the next segment depends on it.
    fn rotate(&self, log: &mut LogState, may_take_last: bool) -> Result<(), Refused> {
        let Some(Opened { life, wal_start, retired, is_first }) = log.open_next(may_take_last) else {
            self.events.prepare.signal();
            return Err(Refused::NoSegment);
        };
        self.table.open(life.id, wal_start);
        if let Some(id) = retired {
            self.fill_segment(id);
        } else if is_first {
            // Nothing is unwritten: the ring continues where this segment's records begin.
            self.log.segment_ring().skip_to(life.base.0 + u64::from(DATA_START));
        }
        self.events.prepare.signal();
        Ok(())
    }

    /// Retires the open segment, so that it can be sealed. False without one.
    pub(in crate::engine) fn retire_open(&self, log: &mut LogState) -> bool {
        let retired = log.retire_open();
        retired.into_iter().for_each(|id| self.fill_segment(id));
        retired.is_some()
    }

    /// States that a segment is full, and wakes the threads that flush and seal it.
    fn fill_segment(&self, id: SegmentId) {
        self.table.fill(id);
        self.wake_to_seal();
    }

    /// Wakes the threads that flush and seal full segments.
    fn wake_to_seal(&self) {
        self.events.flush.signal();
        // All of them may be flushed already.
        self.events.sync.signal();
    }
}
