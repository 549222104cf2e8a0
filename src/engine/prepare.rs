//! Room for new segments: free ones are prepared, and the oldest is emptied when there is none.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::append::NoRoom;
use crate::codec::round_up;
use crate::concurrent::lock;
use crate::error::Result;
use crate::id::{Lsn, Position, SegmentId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, is_shortage};
use crate::manifest::ManifestStore;
use crate::segment::format::{self, Life};
use crate::segment::table::{Row, Stage, WalStart};

/// Empty segments that are kept ready, in stores of few and of many segments. Puts leave one of them to records that are moved.
const READY: [usize; 2] = [2, 4];
/// A store has many segments from here on.
const MANY: u32 = 64;

impl Engine {
    /// Prepares segments if too few are ready, or empties the oldest if none is free. Says whether it did either.
    pub(crate) fn step_prepare(&self) -> Result<bool> {
        let mut manifest = lock(&self.manifest);
        if self.failure.get().is_some() || self.closing.load(Ordering::Acquire) {
            return Ok(false);
        }
        self.balance_memory();
        if self.segment_space_denied.swap(false, Ordering::AcqRel) {
            // Whoever waits no longer than so long looks at the clock.
            self.events.room.signal();
        }
        let full_before = self.counters.disk_full.load(Ordering::Relaxed);
        let (rescued, waits) = self.step_rescue(&mut manifest)?;
        let is_free = self.free_segments(1).next().is_some();
        let ready = lock(&self.log).ready.len();
        let too_large = self.index_is_over_budget() && waits.is_none();
        let busy = match is_free {
            true if ready < self.ready_wanted() => self.prepare(self.ready_wanted() - ready, &mut manifest)?,
            // What is being rescued has a segment to go to.
            _ if waits.is_some() && ready > 0 => false,
            // One ahead, so that what is hot in the oldest segment finds a ready one to go to.
            false => self.drain_oldest() || (too_large && self.seal_early()?),
            true => too_large && (self.drain_oldest() || self.seal_early()?),
        };
        if let Some(waits) = waits
            && !rescued
            && !busy
        {
            if waits == NoRoom::Segment && ready == 0 && !is_free && self.counters.disk_full.load(Ordering::Relaxed) == full_before {
                return Err(self.fail("rescuing a segment", &io::Error::other("no other segment has room for what it held")));
            }
            self.segment_space_denied.store(true, Ordering::Release);
        }
        Ok(rescued || busy)
    }

    /// Gives free segments new lives, as many as are wanted: their files, their headers, and one manifest that says so, durable before the first record. False if the disk has
    /// no room for any. One that cannot be written is quarantined.
    fn prepare(&self, wanted: usize, manifest: &mut ManifestStore) -> Result<bool> {
        let size = self.settings.segment_size;
        let base_lsn = lock(&self.log).next_lsn;
        let next_base = Position(round_up(manifest.next_base.0, size));
        let ids = self.free_segments(wanted);
        let lives: Vec<Life> = ids.zip(0..).map(|(id, n)| Life { id, base: next_base.plus(n * size), base_lsn }).collect();
        let changes_size = |life: &Life| {
            let before = self.table.row(life.id);
            before.life.base > Position(0) && before.size != size
        };
        if lives.iter().any(changes_size) {
            // A file that gets another length must not look like damage of the life that a manifest may still state.
            self.write_manifest(manifest).map_err(|e| self.fail("writing the manifest", &e))?;
        }
        let (mut begun, mut shortage) = (Vec::new(), None);
        for life in lives {
            match self.begin_life(&life, size) {
                Ok(file) => begun.push((life, file)),
                Err(e) if is_shortage(&e) => {
                    shortage = Some(e);
                    break;
                }
                Err(e) => self.quarantine(life.id, Stage::Free, &e)?,
            }
        }
        // All are synced once all are written: of so many journals' commits, one has the work.
        let mut ready = Vec::new();
        for (life, file) in begun {
            match file.sync() {
                Ok(()) => ready.push(life),
                // Whatever the reason, what a failed sync left behind is not known.
                Err(e) => self.quarantine(life.id, Stage::Free, &e)?,
            }
        }
        match self.table.sync_names() {
            Ok(()) => {}
            Err(e) if is_shortage(&e) => {
                shortage = Some(e);
                ready.clear();
            }
            Err(e) => ready.drain(..).try_for_each(|life| self.quarantine(life.id, Stage::Free, &e))?,
        }
        if let Some(e) = shortage {
            self.record_shortage("no room for the next segment", &e);
            if ready.is_empty() {
                // Back-pressure: writers wait until there is room again, which is tried again and again.
                self.segment_space_denied.store(true, Ordering::Release);
                return self.state_failed(manifest).map(|()| false);
            }
        }
        for life in &ready {
            self.table.change(life.id, &[Stage::Free], |row| {
                *row = Row { stage: Stage::Ready, size, life: *life, last_lsn: Lsn::ZERO, wal_start: WalStart::default(), moved_until: 0 };
            });
            manifest.next_base = life.base.plus(size);
        }
        self.write_manifest(manifest).map_err(|e| self.fail("writing the manifest", &e))?;
        ready.iter().for_each(|life| self.table.publish(life));
        lock(&self.log).ready.extend(ready.into_iter().map(|life| (life, size)));
        self.events.room.signal();
        Ok(true)
    }

    /// Makes the manifest's files longer if notes wait for that. Says whether it did; false as well if the disk has no room for it.
    pub(crate) fn step_grow(&self) -> Result<bool> {
        if self.manifest_space_denied.swap(false, Ordering::AcqRel) {
            // Whoever still waits asks again.
            self.events.room.signal();
        }
        if !self.catalog_change_waits() || self.failure.get().is_some() || self.closing.load(Ordering::Acquire) {
            return Ok(false);
        }
        let mut manifest = lock(&self.manifest);
        let wanted = self.catalog_wanted.load(Ordering::Acquire);
        let len = manifest.len_with(wanted) as u64;
        match manifest.grow(len) {
            Ok(()) => {}
            Err(e) if is_shortage(&e) => {
                self.catalog_wanted.store(0, Ordering::Release);
                self.manifest_space_denied.store(true, Ordering::Release);
                self.record_shortage("no room for a longer manifest", &e);
                return Ok(false);
            }
            Err(e) => return Err(self.fail("growing the manifest", &e)),
        }
        // Pairs with the acquire in `try_change_catalog`: whoever sees the room finds the files that have it.
        self.catalog_room.store(catalog_room(&manifest), Ordering::Release);
        self.events.room.signal();
        Ok(true)
    }

    /// Whether a note waits for longer files of the manifest.
    fn catalog_change_waits(&self) -> bool {
        self.catalog_wanted.load(Ordering::Acquire) > self.catalog_room.load(Ordering::Relaxed)
    }

    fn record_shortage(&self, what: &'static str, error: &io::Error) {
        self.counters.disk_full.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(dir = %self.dir.display(), %error, "{what}");
    }

    /// Makes the segment's file and writes the header of the life that begins. Neither is durable yet.
    fn begin_life(&self, life: &Life, size: u64) -> io::Result<Arc<dyn File>> {
        self.table.create(life.id, size)?;
        let mut block = AlignedBuf::zeroed(BLOCK);
        format::encode_header(self.store, life, &mut block);
        let file = self.table.file(life.id)?;
        file.write_at(0, &block)?;
        Ok(file)
    }

    /// Seals the open segment before it is full, so that it can be emptied. False if there is no other to go on with.
    fn seal_early(&self) -> Result<bool> {
        {
            let mut log = lock(&self.log);
            if log.ready.is_empty() {
                return Ok(false);
            }
            let Some(open) = log.open.take() else { return Ok(false) };
            self.retire(&mut log, open);
        }
        Ok(self.step_flush()? | self.step_seal()?)
    }

    pub(super) fn ready_wanted(&self) -> usize {
        READY[usize::from(self.settings.segments >= MANY)]
    }

    /// Segments that are free and that flash has room for, `most` at most.
    fn free_segments(&self, most: usize) -> impl Iterator<Item = SegmentId> {
        let used: u64 = self.table.select(|r| r.stage != Stage::Free).iter().map(|r| r.size).sum();
        let room = (self.settings.flash.saturating_sub(used) / self.settings.segment_size) as usize;
        let free = self.table.select(|r| r.stage == Stage::Free && r.life.id.0 < self.settings.segments);
        free.into_iter().map(|r| r.life.id).take(room.min(most))
    }

    /// Writes what the engine knows now into the manifest, and gives up the WAL before the point where replay would begin.
    pub(super) fn write_manifest(&self, manifest: &mut ManifestStore) -> io::Result<()> {
        let (next_lsn, wal_head) = {
            let log = lock(&self.log);
            (log.next_lsn, WalStart { position: log.wal_head, lsn: log.next_lsn })
        };
        // The head was read first: if no segment is open now, everything before it is in sealed segments.
        let (segments, wal_start) = self.table.describe(wal_head);
        let durable = self.durable();
        manifest.catalog = lock(&self.registry).settle(wal_start.lsn, durable);
        manifest.segments = segments;
        manifest.wal_start = wal_start.position;
        manifest.wal_lsn = wal_start.lsn;
        manifest.next_lsn = next_lsn;
        manifest.durable = durable;
        manifest.reclaimed = Lsn(self.marks.reclaimed.load(Ordering::Acquire));
        manifest.time_ms = self.time.now_ms();
        let written = manifest.store()?;
        self.counters.manifest_bytes.fetch_add(written, Ordering::Relaxed);
        self.wal.trim(wal_start.position);
        Ok(())
    }
}

/// Bytes that the catalog may take before the manifest's files must become longer.
pub(super) fn catalog_room(manifest: &ManifestStore) -> usize {
    (manifest.len() as usize).saturating_sub(manifest.len_with(0))
}
