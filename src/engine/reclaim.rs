//! Room for new segments: free ones are prepared, and the oldest is emptied when there is none.

use std::io;
use std::sync::atomic::Ordering;

use super::Engine;
use super::append::{Append, NoRoom};
use crate::codec::{round_down, round_up};
use crate::config::Activity;
use crate::error::Error;
use crate::id::{Location, Lsn, Position, SegmentId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, SECTOR};
use crate::manifest::{self, Manifest};
use crate::segment::format::{self, Draft, Kind, Life};
use crate::segment::table::{Row, State, WalStart};
use crate::segment::{footer, reader};
use crate::sync::lock;

/// Empty segments that are kept ready, in stores of few and of many segments. Puts leave one of them to reinsertion.
const READY: [usize; 2] = [2, 4];
/// A store has many segments from here on.
const MANY: u32 = 64;
/// While live entries take up to this share (in percent) of what records can take of flash, all of them are to be kept: there is garbage enough to win room from.
const KEEP_ALL_PERCENT: u64 = 75;
/// Segments besides the ready ones that hold no sealed records: free, open, and waiting for their footer.
const SEGMENTS_IN_FLIGHT: u64 = 4;
/// Beyond that, at most one in this many bytes of a drained segment is reinserted, what is hot, so that reclaiming always wins room.
const REINSERT_SHARE: u64 = 4;
/// Bytes that are read at once while a segment is drained.
const WINDOW: usize = 1 << 20;

impl Engine {
    /// Prepares one segment if too few are ready, or empties the oldest if none is free. Says whether it did either.
    pub(crate) fn step_prepare(&self) -> Result<bool, Error> {
        let mut manifest = lock(&self.manifest);
        if self.failure.get().is_some() || self.closing.load(Ordering::Acquire) {
            return Ok(false);
        }
        self.balance_memory();
        self.starved.store(false, Ordering::Release);
        let free = self.free_segment();
        if lock(&self.log).ready.len() >= self.ready_wanted() {
            // One ahead, so that what is hot in the oldest segment finds a ready one to go to.
            return Ok(free.is_none() && self.drain_oldest());
        }
        let Some(id) = free else { return Ok(self.drain_oldest()) };
        let prepared = self.prepare(id, &mut manifest);
        self.starved.store(prepared.is_err(), Ordering::Release);
        match prepared {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::StorageFull => {
                // Back-pressure: writers wait until space returns.
                self.counters.disk_full.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(dir = %self.dir.display(), "the disk is full: no room for the next segment");
                Ok(false)
            }
            Err(e) => Err(self.fail("preparing a segment", &e)),
        }
    }

    fn ready_wanted(&self) -> usize {
        READY[usize::from(self.settings.segments >= MANY)]
    }

    /// A segment that is free and that flash has room for.
    fn free_segment(&self) -> Option<SegmentId> {
        let used: u64 = self.table.select(|r| r.state != State::Free).iter().map(|r| r.size).sum();
        if used + self.settings.segment_size > self.settings.flash {
            return None;
        }
        self.table.select(|r| r.state == State::Free && r.life.id.0 < self.settings.segments).first().map(|r| r.life.id)
    }

    /// Empties the oldest sealed segment. False if there is none, or if it could not be freed yet.
    fn drain_oldest(&self) -> bool {
        let oldest = self.table.select(|r| r.state == State::Sealed).first().copied();
        let drained = oldest.map(|row| self.drain(&row));
        self.starved.store(drained == Some(false), Ordering::Release);
        drained == Some(true)
    }

    /// Empties a sealed segment: what is to be kept is appended again, the rest is forgotten. False if what was moved could not be synced, or the engine stops: the
    /// segment stays, and what is left of it is emptied at another time.
    fn drain(&self, row: &Row) -> bool {
        let _during = self.during(Activity::Reclaim);
        let id = row.life.id;
        self.table.change(id, &[State::Sealed], |row| row.state = State::Draining);
        // Said before the first entry goes, so that whoever misses one can know why.
        self.marks.reclaimed.fetch_max(row.last_lsn.0, Ordering::AcqRel);
        let finished = self.drain_entries(row).unwrap_or_else(|error| {
            self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(dir = %self.dir.display(), segment = %id, %error, "a segment cannot be read; its entries are forgotten");
            self.index.remove_segment(id);
            true
        });
        if !finished || !self.moves_are_synced() {
            self.table.change(id, &[State::Draining], |row| row.state = State::Sealed);
            return false;
        }
        self.table.withdraw(id);
        self.table.change(id, &[State::Draining], |row| row.state = State::Free);
        self.counters.reclaimed.fetch_add(1, Ordering::Relaxed);
        self.events.prepare.signal();
        true
    }

    /// Whether everything that was moved is durable in its new place. It must be before its old place is reused: it may have been durable there.
    fn moves_are_synced(&self) -> bool {
        let synced = || self.marks.synced_bytes.load(Ordering::Relaxed) >= self.marks.moved_until_bytes.load(Ordering::Relaxed);
        if !synced() {
            let _recorded = self.step_sync();
        }
        synced()
    }

    /// Whether appends are refused for good.
    fn is_stopping(&self) -> bool {
        self.closing.load(Ordering::Acquire) || self.failure.get().is_some()
    }

    /// Moves or forgets every live entry of a segment. False if the engine stops before that is done.
    fn drain_entries(&self, row: &Row) -> io::Result<bool> {
        let file = self.table.file(row.life.id)?;
        let contents = reader::entries(self.store, row, self.hash_seed, file.as_ref())?;
        self.counters.damaged.fetch_add(contents.lost, Ordering::Relaxed);
        let location = |entry: &footer::Entry| Location { segment: row.life.id, offset: entry.offset };
        let is_live = |e: &&footer::Entry| !e.tombstone && self.index.get(e.hash).is_some_and(|now| now.location == location(e));
        let live: Vec<&footer::Entry> = contents.entries.iter().filter(is_live).collect();
        let live_bytes: u64 = live.iter().map(|e| u64::from(e.len)).sum();
        let data_bytes = contents.entries.iter().map(|e| u64::from(e.len)).sum();
        let keep_all = self.room_for_all(live_bytes, live.len() as u64, data_bytes, row.size);
        let mut budget = if keep_all { row.size } else { row.size / REINSERT_SHARE };
        let mut window = Window::new(file.as_ref(), row.size);
        for entry in live {
            let at = row.life.base.plus(entry.offset.into());
            let keep = u64::from(entry.len) <= budget && (keep_all || self.is_hot(entry, location(entry)));
            if keep && self.try_reinsert(row, entry, at, window.bytes(entry.offset, entry.len)?) {
                budget -= u64::from(entry.len);
            } else if self.is_stopping() {
                return Ok(false);
            } else if self.index.remove_if_at(entry.hash, location(entry)) {
                self.counters.evicted.fetch_add(1, Ordering::Relaxed);
            }
        }
        if contents.lost > 0 {
            self.index.remove_segment(row.life.id);
        }
        Ok(true)
    }

    /// Reinserts, and if a ring is full writes it out and tries once more: nobody else may be about to.
    fn try_reinsert(&self, row: &Row, entry: &footer::Entry, at: Position, bytes: &[u8]) -> bool {
        let again = |NoRoom| {
            let _recorded = self.step_flush().and_then(|_| self.step_sync());
            self.reinsert(row, entry, at, bytes)
        };
        self.reinsert(row, entry, at, bytes).or_else(again) == Ok(true)
    }

    /// Whether flash has room for every live entry, going by segments that were emptied lately: the mean length of their live records, and the share of a segment that
    /// records can take beside header, footer and what no record fitted into.
    fn room_for_all(&self, live_bytes: u64, live: u64, data_bytes: u64, size: u64) -> bool {
        let lately = {
            let mut lately = lock(&self.lately);
            for (sum, now) in lately.iter_mut().zip([live_bytes, live, data_bytes, size]) {
                *sum = *sum - *sum / 8 + now;
            }
            *lately
        };
        let [live_bytes, live, data_bytes, sizes] = lately.map(u128::from);
        let in_flight = SEGMENTS_IN_FLIGHT + self.ready_wanted() as u64;
        let usable = u128::from(self.settings.flash.saturating_sub(in_flight * self.settings.segment_size));
        let needed = u128::from(self.index.entries()) * live_bytes / live.max(1);
        needed * 100 * sizes <= usable * data_bytes * u128::from(KEEP_ALL_PERCENT)
    }

    fn is_hot(&self, entry: &footer::Entry, location: Location) -> bool {
        let Some(current) = self.index.get(entry.hash).filter(|now| now.location == location) else { return false };
        current.hot || self.position(&current).is_some_and(|at| self.memory.holds(at))
    }

    /// Appends the record again under its old version, if the index still names it. `bytes` are what lies at its place. Says whether it did.
    fn reinsert(&self, row: &Row, entry: &footer::Entry, at: Position, bytes: &[u8]) -> Result<bool, NoRoom> {
        let Some(record) = format::decode_record(self.store, at, row.life.base_lsn, bytes) else {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            return Ok(false);
        };
        let Some(draft) = Draft::of_record(bytes, &record) else { return Ok(false) };
        if matches!(record.kind, Kind::Put { expires_ms: Some(at), .. } if at <= self.time.now_ms()) {
            return Ok(false);
        }
        let location = Location { segment: row.life.id, offset: entry.offset };
        let _in_order = lock(self.stripe(entry.hash));
        if self.index.get(entry.hash).is_none_or(|now| now.location != location) {
            return Ok(false);
        }
        let what = Append { hash: entry.hash, draft: &draft, tombstone: false, supersedes: true, inline: false, version: Some(record.lsn) };
        let placed = self.append(&what)?;
        self.index.insert(entry.hash, &placed.entry);
        if let Some(moved_to) = self.position(&placed.entry) {
            self.memory.rename(at, moved_to);
        }
        self.counters.reinserted.fetch_add(1, Ordering::Relaxed);
        let appended = self.marks.appended_bytes.load(Ordering::Relaxed);
        self.marks.moved_until_bytes.fetch_max(appended, Ordering::Relaxed);
        Ok(true)
    }

    /// Gives a free segment a new life: its file, its header, and the manifest that says so, durable before the first record.
    fn prepare(&self, id: SegmentId, manifest: &mut Manifest) -> io::Result<()> {
        let size = self.settings.segment_size;
        if self.table.allocate(id, size)? {
            self.disk.sync_dir()?;
        }
        let base = Position(round_up(manifest.next_base.0, size));
        let life = Life { id, base, base_lsn: lock(&self.log).next_lsn };
        let mut block = AlignedBuf::zeroed(BLOCK);
        format::encode_header(self.store, &life, &mut block);
        let file = self.table.file(id)?;
        file.write_at(0, &block)?;
        file.sync()?;
        self.table.change(id, &[State::Free], |row| {
            *row = Row { state: State::Ready, size, life, last_lsn: Lsn::ZERO, wal_start: WalStart::default() };
        });
        manifest.next_base = base.plus(size);
        if let Err(e) = self.write_manifest(manifest) {
            self.table.change(id, &[State::Ready], |row| row.state = State::Free);
            return Err(e);
        }
        self.table.publish(&life);
        lock(&self.log).ready.push_back((life, size));
        self.events.room.signal();
        Ok(())
    }

    /// Writes what the engine knows now into the manifest, and gives up the WAL before the point where replay would begin.
    pub(super) fn write_manifest(&self, manifest: &mut Manifest) -> io::Result<()> {
        let (next_lsn, wal_head) = {
            let log = lock(&self.log);
            (log.next_lsn, WalStart { position: log.wal_head, lsn: log.next_lsn })
        };
        // The head was read first: if no segment is open now, everything before it is in sealed segments.
        let (segments, wal_start) = self.table.describe(wal_head);
        manifest.segments = segments;
        manifest.wal_start = wal_start.position;
        manifest.wal_lsn = wal_start.lsn;
        manifest.next_lsn = next_lsn;
        manifest.durable = self.durable();
        manifest.reclaimed = Lsn(self.marks.reclaimed.load(Ordering::Acquire));
        manifest.time_ms = self.time.now_ms();
        let written = manifest::store(&self.disk, manifest)?;
        self.counters.manifest_bytes.fetch_add(written, Ordering::Relaxed);
        self.wal.trim(wal_start.position)
    }
}

/// A sliding view of a segment file for reading it from front to back.
struct Window<'a> {
    file: &'a dyn File,
    size: u64,
    buf: AlignedBuf,
    /// Offsets in the file that `buf` holds.
    held: std::ops::Range<u64>,
}

impl<'a> Window<'a> {
    fn new(file: &'a dyn File, size: u64) -> Self {
        Self { file, size, buf: AlignedBuf::zeroed(WINDOW.min(size as usize)), held: 0..0 }
    }

    /// `len` bytes at `offset`.
    fn bytes(&mut self, offset: u32, len: u32) -> io::Result<&[u8]> {
        let (start, end) = (u64::from(offset), u64::from(offset) + u64::from(len));
        if start < self.held.start || end > self.held.end {
            let from = round_down(start, SECTOR as u64);
            let need = (round_up(end, SECTOR as u64) - from) as usize;
            if need > self.buf.len() {
                self.buf = AlignedBuf::zeroed(need);
            }
            let to = (from + self.buf.len() as u64).min(self.size);
            self.held = 0..0;
            self.file.read_at(from, &mut self.buf[..(to - from) as usize])?;
            self.held = from..to;
        }
        let at = (start - self.held.start) as usize;
        Ok(&self.buf[at..at + len as usize])
    }
}
