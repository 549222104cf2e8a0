//! Room for new segments: free ones are prepared, and the oldest is emptied when there is none.

use std::io;
use std::sync::atomic::Ordering;

use super::Engine;
use super::append::Append;
use crate::codec::round_up;
use crate::config::Activity;
use crate::error::Result;
use crate::id::{Location, Lsn, Position, SegmentId};
use crate::io::BLOCK;
use crate::io::aligned::AlignedBuf;
use crate::manifest::{self, Manifest};
use crate::segment::format::{self, Draft, Life};
use crate::segment::table::{Row, State};
use crate::segment::{footer, reader};
use crate::sync::lock;

/// Empty segments that are kept ready.
const READY: usize = 2;
/// At most one in this many bytes of a drained segment is reinserted, so that reclaiming always wins room.
const REINSERT_SHARE: u64 = 4;

impl Engine {
    /// Prepares one segment if fewer than two are ready, or empties the oldest if none is free. Says whether it did either.
    pub(crate) fn step_prepare(&self) -> Result<bool> {
        let mut manifest = lock(&self.manifest);
        if self.failure.get().is_some() || self.closing.load(Ordering::Acquire) {
            return Ok(false);
        }
        self.balance_memory();
        let free = self.free_segment();
        if lock(&self.log).ready.len() >= READY {
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

    /// A segment that is free and that flash has room for.
    fn free_segment(&self) -> Option<SegmentId> {
        let used: u64 = self.table.select(|r| r.state != State::Free).iter().map(|r| r.size).sum();
        if used + self.settings.segment_size > self.settings.flash {
            return None;
        }
        self.table.select(|r| r.state == State::Free && r.life.id.0 < self.settings.segments).first().map(|r| r.life.id)
    }

    fn drain_oldest(&self) -> bool {
        let oldest = self.table.select(|r| r.state == State::Sealed).first().copied();
        oldest.inspect(|row| self.drain(row)).is_some()
    }

    /// Empties a sealed segment: what is hot is appended again, the rest is forgotten.
    fn drain(&self, row: &Row) {
        let _during = self.during(Activity::Reclaim);
        let id = row.life.id;
        self.table.change(id, &[State::Sealed], |row| row.state = State::Draining);
        // Said before the first entry goes, so that whoever misses one can know why.
        self.marks.reclaimed.fetch_max(row.last_lsn.0, Ordering::AcqRel);
        let mut budget = row.size / REINSERT_SHARE;
        let entries = self.table.file(id).and_then(|file| reader::entries(self.store, row, self.hash_seed, file.as_ref()));
        match entries {
            Ok(contents) => {
                self.counters.damaged.fetch_add(contents.lost, Ordering::Relaxed);
                for entry in contents.entries.iter().filter(|e| !e.tombstone) {
                    self.drop_or_reinsert(id, entry, &mut budget);
                }
            }
            Err(error) => {
                self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(dir = %self.dir.display(), segment = %id, %error, "a footer cannot be read; its entries will miss one by one");
            }
        }
        self.table.withdraw(id);
        self.table.change(id, &[State::Draining], |row| row.state = State::Free);
        self.counters.reclaimed.fetch_add(1, Ordering::Relaxed);
        self.events.prepare.signal();
    }

    fn drop_or_reinsert(&self, id: SegmentId, entry: &footer::Entry, budget: &mut u64) {
        let location = Location { segment: id, offset: entry.offset };
        let Some(current) = self.index.get(entry.hash).filter(|now| now.location == location) else { return };
        let hot = current.hot || self.position(&current).is_some_and(|at| self.memory.holds(at));
        if hot && u64::from(entry.len) <= *budget && self.reinsert(entry, location) {
            *budget -= u64::from(entry.len);
            return;
        }
        self.index.remove_if_at(entry.hash, location);
    }

    /// Appends the record again under its old version, if the index still names it.
    fn reinsert(&self, entry: &footer::Entry, location: Location) -> bool {
        let Ok(Some((_, at, found))) = self.find(entry.hash) else { return false };
        let Some(draft) = Draft::of_record(found.bytes(), &found.record) else { return false };
        let _in_order = lock(self.stripe(entry.hash));
        if self.index.get(entry.hash).is_none_or(|now| now.location != location) {
            return false;
        }
        let version = Some(found.record.lsn);
        let what = Append { hash: entry.hash, draft: &draft, tombstone: false, supersedes: true, inline: false, version };
        let Ok(placed) = self.append(&what) else { return false };
        self.index.insert(entry.hash, &placed.entry);
        if let Some(moved_to) = self.position(&placed.entry) {
            self.memory.rename(at, moved_to);
        }
        self.counters.reinserted.fetch_add(1, Ordering::Relaxed);
        true
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
            *row = Row { state: State::Ready, size, life, last_lsn: Lsn::ZERO, wal_start: 0 };
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
            (log.next_lsn, log.wal_head)
        };
        // The head was read first: if no segment is open now, everything before it is in sealed segments.
        let (segments, wal_start) = self.table.describe(wal_head);
        manifest.segments = segments;
        manifest.wal_start = wal_start;
        manifest.next_lsn = next_lsn;
        manifest.durable = self.durable();
        manifest.reclaimed = Lsn(self.marks.reclaimed.load(Ordering::Acquire));
        manifest.time_ms = self.time.now_ms();
        let written = manifest::store(&self.disk, manifest)?;
        self.counters.manifest_bytes.fetch_add(written, Ordering::Relaxed);
        self.wal.trim(wal_start)
    }
}
