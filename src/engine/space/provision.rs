//! Keeps empty segments ready, and has the oldest one emptied when none is free.
//!
//! A free segment becomes ready in three steps: its file and header are written and synced, a
//! manifest states its new life, and the log may open it. So recovery knows every segment that can
//! hold a record.

use std::io;
use std::sync::Arc;

use super::occupancy::ready_wanted;
use super::rescue::Rescued;
use crate::codec::round_up;
use crate::engine::Engine;
use crate::engine::refused::Helps;
use crate::error::Result;
use crate::id::{Position, SegmentId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, is_shortage};
use crate::manifest::ManifestStore;
use crate::segment::format::{self, Life};
use crate::segment::table::{Row, Stage};

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
        self.shorten_wal(&mut manifest)?;
        let Rescued { changed, waits, found_shortage } = self.step_rescue(&mut manifest)?;
        let is_free = self.free_segments(1).next().is_some();
        let (ready, wanted) = (self.log.lock().ready_count(), ready_wanted(self.context.settings.segments));
        let is_index_too_large = self.index_is_over_budget() && waits.is_none();
        let busy = match is_free {
            true if ready < wanted => self.prepare(wanted - ready, &mut manifest)?,
            // The rescue has a ready segment to append to.
            _ if waits.is_some() && ready > 0 => false,
            // Segments are emptied one ahead, so that hot entries of the oldest segment find a
            // ready one.
            false => self.drain_oldest() || (is_index_too_large && self.seal_early()?),
            true => is_index_too_large && (self.drain_oldest() || self.seal_early()?),
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
        Ok(changed || busy)
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
        let (ready, shortage) = self.begin_lives(lives, size)?;
        if let Some(e) = shortage {
            self.record_shortage("no room for the next segment; it is tried again", &e);
            if ready.is_empty() {
                // Back-pressure: writers wait until the disk has room. The prepare thread asks
                // again.
                self.occupancy.deny_space();
                return self.state_failed(manifest).map(|()| false);
            }
        }
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

    /// Makes the files and headers of new lives durable. Returns the lives that are ready, and the
    /// shortage that stopped the others.
    fn begin_lives(&self, lives: Vec<Life>, size: u64) -> Result<(Vec<Life>, Option<io::Error>)> {
        let (mut begun, mut shortage) = (Vec::new(), None);
        for life in lives {
            match self.begin_life(&life, size) {
                Ok(file) => begun.push((life, file)),
                Err(e) if is_shortage(&e) => {
                    shortage = Some(e);
                    break;
                }
                Err(e) => self.quarantine_free(life.id, &e)?,
            }
        }
        // All files are written before the first is synced: the file system then commits its
        // journal once.
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
                shortage = Some(e);
                ready.clear();
            }
            Err(e) => ready.drain(..).try_for_each(|life| self.quarantine_free(life.id, &e))?,
        }
        Ok((ready, shortage))
    }

    /// Makes the segment's file and writes the header of a new life. Neither is durable yet.
    fn begin_life(&self, life: &Life, size: u64) -> io::Result<Arc<dyn File>> {
        self.table.create(life.id, size)?;
        let mut block = AlignedBuf::zeroed(BLOCK);
        format::encode_header(self.context.store, life, &mut block);
        let file = self.table.file(life.id)?;
        file.write_at(0, &block)?;
        Ok(file)
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
        {
            let mut log = self.log.lock();
            if log.ready_count() == 0 || !self.retire_open(&mut log) {
                return Ok(false);
            }
        }
        Ok(self.step_flush()? | self.step_seal()?)
    }

    /// Up to `max` segments that are free and that flash has room for.
    fn free_segments(&self, max: usize) -> impl Iterator<Item = SegmentId> {
        let settings = &self.context.settings;
        let used: u64 = self.table.select(|r| r.stage != Stage::Free).iter().map(|r| r.size).sum();
        let room = (settings.flash.saturating_sub(used) / settings.segment_size) as usize;
        let free = self.table.select(|r| r.stage == Stage::Free && r.life.id.0 < settings.segments);
        free.into_iter().map(|r| r.life.id).take(room.min(max))
    }
}
