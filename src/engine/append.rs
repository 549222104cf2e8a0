//! The log: where a mutation gets its LSN, its place in the segment stream and its frame in the WAL.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::rescue::Failed;
use crate::concurrent::lock;
use crate::config::Activity;
use crate::id::{KeyHash, Location, Lsn, Position};
use crate::index::geometry::IndexEntry;
use crate::io::ring::Ring;
use crate::segment::footer;
use crate::segment::format::{DATA_START, Draft, Life};
use crate::segment::table::{Stage, WalStart};
use crate::segment::writer::{Full, Open, record_len_max};
use crate::wal::format::{Frame, Mutation};
use crate::wal::writer::Wal;

/// While no more records than this would have to be replayed, no put waits for a checkpoint. A small store fills faster than its checkpoints are synced.
const REPLAY_AT_ONCE: u64 = 256 << 10;
/// Writers wait while the oldest unsynced mutation is older than this many sync intervals.
const OLDEST: u32 = 3;
/// One mutation in so many looks at that, and keeps those behind it waiting.
const LOOKS: u64 = 64;

/// What the log lock guards.
#[derive(Debug)]
pub(super) struct Log {
    pub(super) next_lsn: Lsn,
    pub(super) open: Option<Open>,
    /// The open segment was the last ready one. It is for records that are moved, until another one is ready.
    pub(super) reserved: bool,
    /// Segments whose life the manifest knows, in the order in which they will be filled.
    pub(super) ready: VecDeque<(Life, u64)>,
    /// Segments that wait for their footer, oldest first.
    pub(super) full: VecDeque<Full>,
    /// Segments that a write or a sync failed for, oldest first.
    pub(super) failed: VecDeque<Arc<Failed>>,
    /// How many there have been.
    pub(super) failures: u64,
    /// Where the next frame goes.
    pub(super) wal_head: u64,
    /// No record from here on is only in the segment stream: the WAL holds their bytes.
    pub(super) last_by_reference: Lsn,
}

/// There is no room right now, or the cache has closed; nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoRoom {
    /// A write-out or a sync makes room: a ring is full, or too much is unsynced.
    Unwritten,
    /// Another segment is needed, or nothing helps.
    Segment,
}

/// A record to append.
#[derive(Debug)]
pub(super) struct Append<'a> {
    pub(super) hash: KeyHash,
    pub(super) draft: &'a Draft<'a>,
    pub(super) tombstone: bool,
    /// Whether the index has an entry with this fingerprint.
    pub(super) supersedes: bool,
    /// Whether the WAL holds the record's bytes too.
    pub(super) inline: bool,
    /// The version of a record that is moved; a new one is assigned if there is none.
    pub(super) version: Option<Lsn>,
    /// Whether it goes before everything else: it comes from a segment that failed.
    pub(super) urgent: bool,
}

/// Where a record went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Placed {
    pub(super) lsn: Lsn,
    pub(super) entry: IndexEntry,
}

impl Log {
    /// Position of the next record, if a segment is open.
    pub(super) fn head(&self) -> Option<Position> {
        self.open.as_ref().map(Open::head)
    }
}

impl Engine {
    /// Appends a record. The caller holds the key's stripe lock and points the index at the result before it lets go.
    pub(super) fn append(&self, what: &Append<'_>) -> Result<Placed, NoRoom> {
        let len = what.draft.len();
        let mut log = lock(&self.log);
        if self.closing.load(Ordering::Acquire) {
            // Under the lock: what comes before is retired, sealed and in the last checkpoint; nothing comes after.
            return Err(NoRoom::Segment);
        }
        if !log.failed.is_empty() && !what.urgent {
            // Until what failed is elsewhere, nothing is synced, and what room there is belongs to it.
            return Err(NoRoom::Segment);
        }
        let first = what.version.is_some() || what.urgent;
        if !first && log.reserved && log.ready.is_empty() {
            // Emptying the next segment depends on what room there is.
            self.events.prepare.signal();
            return Err(NoRoom::Segment);
        }
        if len > record_len_max(self.settings.segment_size) || len as u64 > Ring::append_max(self.segment_ring.size()) {
            // A record that is moved may come from a time of larger segments, or of a larger ring.
            return Err(NoRoom::Segment);
        }
        if !log.open.as_ref().is_some_and(|open| open.fits(len)) {
            self.rotate(&mut log, first)?;
        }
        let log = &mut *log;
        let Some(open) = log.open.as_mut().filter(|open| open.fits(len)) else { return Err(NoRoom::Segment) };
        let at = open.head();
        let frame_end = Wal::end_of(log.wal_head, if what.inline { len } else { 0 });
        let bytes = len as u64 + frame_end - log.wal_head;
        if !self.segment_ring.has_room(at.0 + len as u64) {
            self.events.flush.signal();
            return Err(NoRoom::Unwritten);
        }
        let too_many = self.unsynced_bytes() > 2 * self.settings.sync_bytes && !what.urgent;
        // A sync that takes long holds writers back. Not everyone looks at the clock.
        let too_old = || self.unsynced_age() > OLDEST * self.settings.sync_interval;
        if !first && log.next_lsn.0.is_multiple_of(LOOKS) && too_old() {
            self.events.sync.signal();
            return Err(NoRoom::Unwritten);
        }
        if !self.wal.has_room(frame_end) || too_many {
            self.request_sync();
            return Err(NoRoom::Unwritten);
        }
        if !first && self.outruns_checkpoint() {
            return Err(NoRoom::Segment);
        }
        if !first && !what.tombstone && self.index.allocated() > self.settings.index_bytes_max + self.settings.memory / 64 {
            // Entries must go before others come.
            self.events.prepare.signal();
            return Err(NoRoom::Segment);
        }
        let lsn = what.version.unwrap_or(log.next_lsn);
        let Some(prefix) = what.draft.prefix(self.store, at, lsn, open.life.base_lsn) else {
            assert!(what.version.is_some(), "a new LSN is near its segment's base");
            return Err(NoRoom::Segment);
        };
        let [head, key, value] = what.draft.parts();
        let parts = [&prefix, head, key, value];
        self.segment_ring.append(at.0, &parts);
        let mutation =
            Mutation { lsn, hash: what.hash, tombstone: what.tombstone, supersedes: what.supersedes, record: at, record_len: len as u32 };
        let frame = if what.version.is_some() { Frame::Move(mutation) } else { Frame::Mutation(mutation) };
        let inline: &[&[u8]] = if what.inline { &parts } else { &[] };
        log.wal_head = self.wal.append(log.wal_head, &frame, inline);
        let offset = open.cursor();
        let entry = footer::FooterEntry { hash: what.hash, offset, len: len as u32, lsn, tombstone: what.tombstone };
        open.push(&entry);
        if what.version.is_none() {
            log.next_lsn = lsn.next();
            self.marks.appended.store(lsn.0, Ordering::Release);
        }
        let unwritten = open.head().0 - self.segment_ring.written();
        let segment = open.life.id;
        if !what.inline {
            log.last_by_reference = log.next_lsn;
        }
        self.after_append(bytes, unwritten);
        Ok(Placed { lsn, entry: IndexEntry::new(Location { segment, offset }, len) })
    }

    /// Opens the next ready segment, and retires the open one. The last ready one is for records that are moved: emptying the next segment depends on it.
    fn rotate(&self, log: &mut Log, moved: bool) -> Result<(), NoRoom> {
        let next = if moved || log.ready.len() > 1 { log.ready.pop_front() } else { None };
        let Some((life, size)) = next else {
            self.events.prepare.signal();
            return Err(NoRoom::Segment);
        };
        log.reserved = log.ready.is_empty();
        let wal_start = WalStart { position: log.wal_head, lsn: log.next_lsn };
        self.table.change(life.id, &[Stage::Ready], |row| {
            row.stage = Stage::Open;
            row.wal_start = wal_start;
        });
        if let Some(old) = log.open.replace(Open::new(life, size)) {
            self.retire(log, old);
        } else if log.full.is_empty() {
            // Nothing is unwritten: the ring goes on where this segment's records begin.
            self.segment_ring.skip_to(life.base.0 + u64::from(DATA_START));
        }
        self.events.prepare.signal();
        Ok(())
    }

    /// Queues a segment for its footer.
    pub(super) fn retire(&self, log: &mut Log, open: Open) {
        self.table.change(open.life.id, &[Stage::Open], |row| row.stage = Stage::Full);
        log.full.push_back(open.retire());
        self.events.flush.signal();
        // It may be written already.
        self.events.sync.signal();
    }

    /// Wakes whoever has something to do now.
    fn after_append(&self, bytes: u64, unwritten: u64) {
        self.marks.appended_bytes.fetch_add(bytes, Ordering::Relaxed);
        let unsynced = self.unsynced_bytes();
        if self.marks.unsynced_since_ms.load(Ordering::Relaxed) == 0 {
            let now = self.time.monotonic().as_millis() as u64 + 1;
            self.marks.unsynced_since_ms.store(now, Ordering::SeqCst);
            if self.sync_rests.load(Ordering::SeqCst) && self.sync_rests.swap(false, Ordering::SeqCst) {
                self.events.sync.signal();
            }
        }
        if unsynced > self.settings.sync_bytes && unsynced - bytes <= self.settings.sync_bytes {
            self.request_sync();
        }
        let piece = (self.settings.segment_ring / 4).min(1 << 20);
        if unwritten > piece && (unwritten / piece) != ((unwritten - bytes.min(unwritten)) / piece) {
            self.events.flush.signal();
        }
        let since = self.marks.since_checkpoint.fetch_add(1, Ordering::Relaxed);
        if since >= self.checkpoint_interval() && !self.checkpoint_asked.swap(true, Ordering::SeqCst) {
            self.events.checkpoint.signal();
        }
    }

    /// Bytes of both streams that were appended and not yet synced.
    pub(super) fn unsynced_bytes(&self) -> u64 {
        let synced = self.marks.synced_bytes.load(Ordering::Relaxed);
        self.marks.appended_bytes.load(Ordering::Relaxed).saturating_sub(synced)
    }

    /// Asks for a sync now rather than when the interval is over.
    pub(super) fn request_sync(&self) {
        self.sync_now.store(true, Ordering::Release);
        self.events.sync.signal();
    }

    /// Whether the next checkpoint would be long due before the one that is being written is done: then puts wait, so that recovery never has much more to replay than two
    /// intervals, or than one and [`REPLAY_AT_ONCE`].
    fn outruns_checkpoint(&self) -> bool {
        self.checkpoint_runs.load(Ordering::Relaxed)
            && self.marks.since_checkpoint.load(Ordering::Relaxed) >= self.checkpoint_interval().max(REPLAY_AT_ONCE)
    }

    /// Records after which a checkpoint is due: few enough that replaying them is quick, many enough that checkpoints write little.
    pub(super) fn checkpoint_interval(&self) -> u64 {
        (self.index.entries() / 6).max(32_768)
    }

    /// Appends a mark that says what is durable, and what time it is. If there is no room, the next sync makes some, and says it itself.
    pub(super) fn append_mark(&self) {
        let mut log = lock(&self.log);
        if self.closing.load(Ordering::Acquire) {
            return;
        }
        if !self.wal.has_room(Wal::end_of(log.wal_head, 0)) {
            return self.request_sync();
        }
        let (appended, time_ms) = (Lsn(log.next_lsn.0 - 1), self.time.now_ms());
        log.wal_head = self.wal.append(log.wal_head, &Frame::Mark { durable: self.durable(), time_ms, appended }, &[]);
        self.marks.marked_ms.fetch_max(time_ms, Ordering::Relaxed);
    }

    /// Makes sure that a process after this one knows that `ms` has passed, whatever the wall clock says then.
    pub(super) fn record_time_passed(&self, ms: u64) {
        if self.marks.marked_ms.load(Ordering::Relaxed) < ms {
            self.append_mark();
        }
    }

    /// Retires the open segment, so that it can be sealed. Only when no more appends come.
    pub(super) fn retire_open(&self) {
        let _observed = self.observe(Activity::Seal);
        let mut log = lock(&self.log);
        if let Some(open) = log.open.take() {
            self.retire(&mut log, open);
        }
    }
}
