//! Keeps empty segments ready, and has the oldest one emptied when none is free.
//!
//! A free segment becomes ready in three steps: its file and header are written and synced, a
//! manifest states its new life, and the log may open it. So recovery knows every segment that can
//! hold a record.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::occupancy::ready_wanted;
use super::reclaim::Keep;
use super::rescue::Rescued;
use crate::codec::round_up;
use crate::engine::Engine;
use crate::engine::disk_room::Asker;
use crate::engine::refused::Helps;
use crate::error::Result;
use crate::id::{Position, SegmentId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, is_full, is_shortage};
use crate::manifest::ManifestStore;
use crate::segment::format::{self, Life};
use crate::segment::table::{Row, Stage};

/// A segment that found no room or no descriptor, and the error that says so.
type Shortage = (SegmentId, io::Error);

/// A disk that gives fewer segments than these gets no moves: the oldest segment is evicted whole.
const MOVES_SEGMENTS_MIN: u64 = 8;

impl Engine {
    /// Prepares segments if too few are ready, or empties the oldest one if none is free. Returns
    /// whether it did either, or moved records of a failed segment.
    pub(crate) fn step_prepare(&self) -> Result<bool> {
        let mut manifest = self.manifest.lock();
        if self.health.is_stopping() {
            return Ok(false);
        }
        self.balance_memory();
        if self.occupancy.take_space_denied() {
            // Wake waiters so that those with a deadline can check it.
            self.events.room.signal();
        }
        let made_room = self.health.disk_room().take_request() && self.give_back(&mut manifest)?;
        self.shorten_wal(&mut manifest)?;
        let Rescued { changed, waits, found_shortage } = self.step_rescue(&mut manifest)?;
        let is_free = self.free_segments(1).next().is_some();
        let (ready, wanted) = (self.log.lock().ready_count(), ready_wanted(self.context.settings.segments));
        // A move would need room in the WAL.
        let keep = if self.health.disk_room().is_requested() { Keep::Nothing } else { Keep::Wanted };
        let is_index_too_large = self.index_is_over_budget() && waits.is_none();
        let busy = match is_free {
            true if ready < wanted => self.prepare(wanted - ready, &mut manifest)?,
            // The rescue has a ready segment to append to.
            _ if waits.is_some() && ready > 0 => false,
            // Segments are emptied one ahead, so that hot entries of the oldest segment find a
            // ready one.
            false => self.drain_oldest(keep).is_some() || (is_index_too_large && self.seal_early()?),
            true => is_index_too_large && (self.drain_oldest(keep).is_some() || self.seal_early()?),
        };
        if let Some(cause) = waits
            && !changed
            && !busy
        {
            if cause.helped_by() != Helps::WriteOut && ready == 0 && !is_free && !found_shortage {
                return Err(self.fail("rescuing a segment", &io::Error::other("no other segment has room for its records")));
            }
            self.occupancy.deny_space();
        }
        Ok(changed || busy || made_room)
    }

    /// Gives up to `wanted` free segments new lives. The files, the headers and one manifest that
    /// states all lives are durable before the first record is stored. Returns false if the disk
    /// has no room for any. A segment that cannot be written is quarantined.
    fn prepare(&self, wanted: usize, manifest: &mut ManifestStore) -> Result<bool> {
        let size = self.context.settings.segment_size;
        let base_lsn = self.log.lock().next_lsn();
        let next_base = Position(round_up(manifest.next_base.0, size));
        let ids = self.free_segments(wanted);
        let lives: Vec<Life> = ids.zip(0..).map(|(id, n)| Life { id, base: next_base.plus(n * size), base_lsn }).collect();
        let changes_size = |life: &Life| {
            let before = self.table.row(life.id);
            before.life.base > Position(0) && before.size != size
        };
        if lives.iter().any(changes_size) {
            // A file gets another length here. That must not look like damage of the life that a
            // manifest may still state.
            self.write_manifest(manifest)?;
        }
        let grows = lives.iter().any(|life| !self.table.has_file(life.id, size));
        let (ready, shortage) = self.begin_lives(lives, size)?;
        match &shortage {
            Some(shortage) => {
                if let Some(busy) = self.meet_shortage(shortage, ready.is_empty(), manifest)? {
                    return Ok(busy);
                }
            }
            None if grows => {
                self.health.disk_room().set_small(false);
                self.health.disk_room().set_full(false);
            }
            None => {}
        }
        self.health.disk_room().set_found();
        for life in &ready {
            self.table.begin(life, size);
            manifest.next_base = life.base.plus(size);
        }
        self.write_manifest(manifest)?;
        ready.iter().for_each(|life| self.table.publish(life));
        self.log.lock().add_ready(ready.into_iter().map(|life| (life, size)));
        self.events.room.signal();
        Ok(true)
    }

    /// Acts on a shortage that a new life met. If `none_is_ready`, returns whether room was made.
    fn meet_shortage(&self, (id, error): &Shortage, none_is_ready: bool, manifest: &mut ManifestStore) -> Result<Option<bool>> {
        self.counters.disk_full.fetch_add(1, Ordering::Relaxed);
        if !is_full(error) {
            // An eviction would win no descriptor.
            self.context.warn_of("no descriptor for another segment; it is tried again", None, error);
            if none_is_ready {
                self.health.disk_room().miss_descriptor();
                self.occupancy.deny_space();
                self.state_failed(manifest)?;
            }
            return Ok(none_is_ready.then_some(false));
        }
        let was_full = self.health.disk_room().set_full(true);
        if !was_full {
            self.context.warn_of("no room for another segment; the oldest entries make room", None, error);
        }
        if self.table.has_file(*id, self.context.settings.segment_size) {
            // The file shares its blocks with a copy, so it is of no use on a full disk. Recovery
            // must not miss the file of a segment that a manifest states as sealed.
            self.write_manifest(manifest)?;
            if let Err(error) = self.table.give_back(*id, self.context.store) {
                self.context.warn_of("the file of an empty segment cannot be removed", Some(*id), &error);
            }
            if none_is_ready {
                // The next segment may be of no use either, so they do not go all at once.
                self.occupancy.deny_space();
                return Ok(Some(false));
            }
        }
        if none_is_ready {
            self.state_failed(manifest)?;
            return self.make_room(was_full).map(Some);
        }
        Ok(None)
    }

    /// Makes the files and headers of new lives durable. Returns the lives that are ready, and the
    /// shortage that stopped the others.
    fn begin_lives(&self, lives: Vec<Life>, size: u64) -> Result<(Vec<Life>, Option<Shortage>)> {
        let (mut begun, mut shortage) = (Vec::new(), None);
        for life in lives {
            match self.begin_life(&life, size) {
                Ok(file) => begun.push((life, file)),
                Err(e) if is_shortage(&e) => {
                    shortage = Some((life.id, e));
                    break;
                }
                Err(e) => self.quarantine_free(life.id, &e)?,
            }
        }
        // All files are written before the first is synced: the file system then commits its
        // journal once.
        let last = begun.last().map(|(life, _)| life.id);
        let mut ready = Vec::new();
        for (life, file) in begun {
            match file.sync() {
                Ok(()) => ready.push(life),
                // Not a shortage, even if the error says so: the state that a failed sync left
                // behind is unknown.
                Err(e) => self.quarantine_free(life.id, &e)?,
            }
        }
        match self.table.sync_names() {
            Ok(()) => {}
            Err(e) if is_shortage(&e) => {
                shortage = shortage.or(last.map(|id| (id, e)));
                ready.clear();
            }
            Err(e) => ready.drain(..).try_for_each(|life| self.quarantine_free(life.id, &e))?,
        }
        Ok((ready, shortage))
    }

    /// Makes the segment's file and writes the header of a new life. Neither is durable yet.
    fn begin_life(&self, life: &Life, size: u64) -> io::Result<Arc<dyn File>> {
        self.table.create(life.id, size, self.context.store)?;
        let mut block = AlignedBuf::zeroed(BLOCK);
        format::encode_header(self.context.store, life, &mut block);
        let file = self.table.file(life.id)?;
        file.write_at(0, &block)?;
        Ok(file)
    }

    /// Empties the oldest segment because the disk has no room for another one. The next life
    /// begins in its file.
    ///
    /// The first shortage may pass: then writers only wait until the disk is asked again.
    fn make_room(&self, is_repeated: bool) -> Result<bool> {
        let is_urgent = self.log.lock().ready_count() == 0;
        if is_repeated {
            // Among few segments, entries that are kept would only go round.
            let is_small = self.flash() < MOVES_SEGMENTS_MIN * self.context.settings.segment_size;
            self.health.disk_room().set_small(is_small);
            let keep = if is_small { Keep::Nothing } else { Keep::Wanted };
            if self.drain_oldest(keep).is_some() || (is_urgent && self.seal_last()?) {
                return Ok(true);
            }
            self.state_exhausted();
        }
        if is_urgent {
            self.occupancy.deny_space();
        }
        Ok(false)
    }

    /// Empties the oldest segment and removes its file, because the WAL or the manifest found no
    /// room on the disk.
    fn give_back(&self, manifest: &mut ManifestStore) -> Result<bool> {
        self.health.disk_room().set_full(true);
        self.health.disk_room().set_small(self.flash() < MOVES_SEGMENTS_MIN * self.context.settings.segment_size);
        let Some(id) = self.drain_oldest(Keep::Nothing) else {
            let sealed = self.seal_last()?;
            if sealed {
                self.health.disk_room().request(Asker::Wal);
            } else {
                self.health.disk_room().refuse();
                self.state_exhausted();
            }
            return Ok(sealed);
        };
        // Recovery must not miss the file of a segment that a manifest states as sealed.
        self.write_manifest(manifest)?;
        if let Err(error) = self.table.give_back(id, self.context.store) {
            tracing::warn!(dir = %self.context.dir.display(), segment = %id, %error, "the file of an empty segment cannot be removed");
        }
        self.durability.forgive();
        self.events.sync.signal();
        Ok(true)
    }

    /// States that no segment can make room. Waiters then fail.
    fn state_exhausted(&self) {
        if self.table.select(|row| !matches!(row.stage, Stage::Free | Stage::Quarantined)).is_empty() {
            self.health.disk_room().set_exhausted();
        }
        self.events.room.signal();
        self.events.durable.signal_all();
    }

    /// Seals the open segment if the WAL grows by marks alone, so that a recovery need not replay
    /// them all.
    fn shorten_wal(&self, manifest: &mut ManifestStore) -> Result<()> {
        if self.log.lock().marks() <= self.context.settings.marks_max {
            return Ok(());
        }
        let is_unsealed = |row: &Row| matches!(row.stage, Stage::Open | Stage::Full | Stage::Failed);
        if self.seal_early()? || self.table.select(is_unsealed).is_empty() {
            self.write_manifest(manifest)?;
            self.log.lock().forget_marks();
        }
        Ok(())
    }

    /// Seals the open segment before it is full, so that it can be emptied. Returns false if no
    /// other segment is ready.
    fn seal_early(&self) -> Result<bool> {
        if self.log.lock().ready_count() == 0 {
            return Ok(false);
        }
        self.seal_last()
    }

    /// Seals the open segment before it is full. Returns false without one.
    fn seal_last(&self) -> Result<bool> {
        let retired = self.retire_open(&mut self.log.lock());
        Ok(retired && (self.step_flush()? | self.step_seal()?))
    }

    /// Up to `max` segments that are free and that flash has room for. On a full disk those that
    /// have a file come first, since they take no room. While others wait for room on the disk,
    /// there are no others.
    fn free_segments(&self, max: usize) -> impl Iterator<Item = SegmentId> {
        let settings = &self.context.settings;
        let used: u64 = self.table.select(|r| r.stage != Stage::Free).iter().map(|r| r.size).sum();
        let room = (settings.flash.saturating_sub(used) / settings.segment_size) as usize;
        let has_file = |row: &Row| self.table.has_file(row.life.id, settings.segment_size);
        let mut free = self.table.select(|r| r.stage == Stage::Free && r.life.id.0 < settings.segments);
        if self.health.disk_room().is_requested() {
            free.retain(has_file);
        } else if self.health.disk_room().is_full() {
            free.sort_by_cached_key(|row| !has_file(row));
        }
        free.into_iter().map(|r| r.life.id).take(room.min(max))
    }
}
