//! Completes the unsealed segments after the replay.
//!
//! Each record that the WAL named without its bytes is looked for in the segment ring, and is
//! written into the segment file if it verifies there. A record that is not in the ring was written
//! out before. It is read from the file if there is a reason to doubt that. A record that is lost
//! becomes a tombstone in the footer, so that no older version of its key is served. At the end
//! each segment gets its footer, or is free if it has no records.

use std::io;

use super::footers;
use super::tail::{Found, Tail, Unsealed};
use crate::engine::recovery_report::Start;
use crate::id::{Location, Lsn, Position, UNIT};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, is_shortage};
use crate::segment::footer::{self, CHUNK_BLOCKS, FooterEntry};
use crate::segment::format;
use crate::segment::table::{self, Row, Stage};
use crate::segment::writer::{Full, write_footer};
use crate::wal::replay::Summary;

impl Tail<'_, '_> {
    /// Reports the findings of the replay. Drops every entry that a lost frame may have superseded.
    pub(super) fn report(&mut self, summary: &Summary, durable: Lsn) {
        self.recovery.batch.merge(&self.recovery.index);
        let report = &mut self.recovery.report;
        report.wal_frames = summary.frames;
        report.torn_bytes = summary.torn_bytes;
        if self.kind == Start::Host {
            report.maybe_lost_after = Some(durable);
        }
        if self.unknown > Position(0) {
            report.damaged.push("the WAL names a segment that the manifest does not know; every older entry is dropped".to_owned());
            self.recovery.raise_floor(self.unknown);
        }
        for hole in &summary.holes {
            let outcome = if hole.repaired { "their contents were restored from the records" } else { "every older entry is dropped" };
            self.recovery.report.damaged.push(format!("WAL bytes {} to {} are lost; {outcome}", hole.from, hole.to));
            if !hole.repaired {
                self.recovery.raise_floor(hole.floor);
            }
        }
    }

    /// Writes records that only the ring holds into the segment files.
    ///
    /// These records may be lost, and are verified:
    /// - records with an LSN above `verify_after`, if it is given;
    /// - records of a segment whose file failed in an earlier life;
    /// - every record, if recovery trusts nothing.
    ///
    /// A lost record becomes a tombstone.
    pub(super) fn restore(&mut self, verify_after: Option<Lsn>) -> io::Result<()> {
        for i in 0..self.unsealed.len() {
            if self.unsealed[i].needs_replacement
                && self.unsealed[i].footer.entries() > 0
                && let Err(error) = self.target(i)?
            {
                self.record_failure(i, error)?;
            }
            if let Err(error) = self.restore_segment(i, verify_after) {
                self.record_failure(i, error)?;
            }
        }
        self.flush_writer()
    }

    /// Restores or verifies each record of unsealed segment `i` that was not placed yet.
    fn restore_segment(&mut self, i: usize, verify_after: Option<Lsn>) -> io::Result<()> {
        let (row, store) = (self.unsealed[i].row, self.recovery.store);
        let (taken, blocks) = (self.unsealed[i].footer.taken(), self.unsealed[i].footer.blocks());
        let mut number = 0;
        // The first blocks are in the file, unless the segment gets no footer there: then its
        // records are lost, or this attempt of a recovery is.
        let in_file = if self.unsealed[i].is_writable() { taken } else { 0 };
        for first in (0..in_file).step_by(CHUNK_BLOCKS) {
            let file = self.target(i)??;
            let mut chunk = footers::read(store, &row, first, CHUNK_BLOCKS, file.as_ref())?;
            let mut changed = false;
            for block in chunk.chunks_exact_mut(BLOCK) {
                changed |= self.restore_block(i, block, &mut number, verify_after)?;
            }
            if changed {
                self.write_blocks(i, first, chunk)?;
            }
        }
        if in_file < taken {
            return Ok(());
        }
        for at in taken..blocks {
            let mut block = self.unsealed[i].footer.block(at).to_vec();
            if self.restore_block(i, &mut block, &mut number, verify_after)? {
                self.unsealed[i].footer.block_mut(at).copy_from_slice(&block);
            }
        }
        Ok(())
    }

    /// Restores or verifies the records in a block of the footer of unsealed segment `i`. The first
    /// one has this `number` in the segment. Returns whether the block was changed: a lost record
    /// becomes a tombstone.
    fn restore_block(&mut self, i: usize, block: &mut [u8], number: &mut usize, verify_after: Option<Lsn>) -> io::Result<bool> {
        let (mut changed, mut bytes) = (false, Vec::new());
        for (n, entry) in footer::entries_of(block).unwrap_or_default().iter().enumerate() {
            let placed = self.unsealed[i].placed.get(*number);
            *number += 1;
            if !placed && self.is_lost(i, entry, verify_after, &mut bytes)? {
                footer::bury(block, n);
                changed = true;
            }
        }
        Ok(changed)
    }

    /// Restores or verifies a record of unsealed segment `i`. Returns whether it is lost. `bytes`
    /// is room for it.
    fn is_lost(&mut self, i: usize, entry: &FooterEntry, verify_after: Option<Lsn>, bytes: &mut Vec<u8>) -> io::Result<bool> {
        if self.is_in_ring(i, entry, bytes) {
            return self.place(i, entry.offset, bytes).map(|()| false);
        }
        let (is_expected, needs_replacement) =
            (verify_after.is_none_or(|durable| entry.lsn <= durable), self.unsealed[i].needs_replacement);
        if is_expected && !needs_replacement && !self.recovery.trusts_nothing {
            return Ok(false);
        }
        let row = self.unsealed[i].row;
        // A replacement can mark each record as unreadable, so the failed file may be missing. Any
        // other segment fails without its file.
        let file = if needs_replacement { self.file_of(&row)? } else { Some(self.recovery.file(row.life.id)?) };
        let found = file.map_or(Found::Unreadable, |file| self.find_in(file.as_ref(), &row, entry, bytes));
        if found == Found::File {
            if needs_replacement {
                self.place(i, entry.offset, bytes)?;
            }
            return Ok(false);
        }
        // The frame is there and the record is lost: a get of the key misses, and no older version
        // of the key is served.
        let could_read = found == Found::Nowhere;
        let was_named = self.recovery.index.remove_if_at(entry.hash, Location { segment: row.life.id, offset: entry.offset });
        self.unsealed[i].unread += u64::from(was_named && (is_expected || !could_read));
        if needs_replacement && !could_read {
            // A later recovery must see that the record could not be read. Otherwise it would take
            // the record for one that was never written.
            self.place(i, entry.offset, &format::UNREAD.repeat(entry.len as usize / UNIT))?;
        }
        Ok(true)
    }

    /// Writes the footer of an unsealed segment. Its first blocks may be in the file already.
    fn write_whole_footer(&self, row: &Row, full: &Full, file: &dyn File) -> io::Result<()> {
        let (store, at_once) = (self.recovery.store, self.recovery.settings.work_buffer);
        let (taken, blocks) = (full.footer.taken(), full.footer.blocks());
        if taken == 0 {
            return write_footer(store, full, file, at_once).map(drop);
        }
        let mut rest = AlignedBuf::zeroed((blocks - taken) * BLOCK);
        (taken..).zip(rest.chunks_exact_mut(BLOCK)).for_each(|(number, block)| block.copy_from_slice(full.footer.block(number)));
        footers::write(store, row, taken, rest, file)?;
        footers::finish(store, row, full, file, at_once)
    }

    /// Writes the footer of unsealed segment `i`, or frees the segment if it has no records. A
    /// segment file that cannot be written is not used again.
    pub(super) fn seal(&mut self, i: usize) -> io::Result<()> {
        let Unsealed { row, needs_replacement, unread, last_lsn, .. } = self.unsealed[i];
        let (footer, error) = (std::mem::take(&mut self.unsealed[i].footer), self.unsealed[i].error.take());
        let id = row.life.id;
        if unread > 0 {
            self.recovery.report.damaged.push(format!("segment {id}: {unread} places cannot be read; gets of the entries there miss"));
        }
        if footer.entries() == 0 {
            self.recovery.rows[id.index()].stage = if needs_replacement { Stage::Quarantined } else { Stage::Free };
            return Ok(());
        }
        let fits = footers::fits(&row, footer.data_end(), footer.blocks());
        let full = Full { life: row.life, size: row.size, data_end: footer.data_end(), footer, last_lsn };
        let is_sound = error.is_none() && !needs_replacement;
        let sealed = match error {
            Some(error) => Err(error),
            // Each gap between records takes room in the footer. A damaged WAL may leave more gaps
            // than the segment has room for.
            None if !fits => Err(io::Error::other("the footer does not fit into the segment")),
            None => self.target(i)?.and_then(|file| {
                self.write_whole_footer(&row, &full, file.as_ref())?;
                // Not a shortage, even if the error says so: the state that a failed sync left
                // behind is unknown.
                file.sync().map_err(io::Error::other)
            }),
        };
        let state = match sealed {
            Ok(()) => {
                if needs_replacement {
                    self.recovery.disk.rename(&table::replacement_name(id), &table::file_name(id))?;
                    self.recovery.report.segments_renewed += 1;
                }
                Stage::Sealed
            }
            Err(error) if is_shortage(&error) => return Err(error),
            Err(error) if !needs_replacement && (fits || !is_sound) => {
                tracing::warn!(segment = %id, %error, "a segment file cannot be written; the segment gets a new file");
                self.recovery.failed.push(id);
                Stage::Quarantined
            }
            Err(error) => {
                // Without the footer it is unknown which older entries the segment superseded.
                self.recovery.report.damaged.push(format!("segment {id} cannot be restored: {error}; every older entry is dropped"));
                self.recovery.raise_floor(row.life.base.plus(row.size));
                if is_sound { Stage::Free } else { Stage::Quarantined }
            }
        };
        let row = &mut self.recovery.rows[id.index()];
        row.stage = state;
        row.last_lsn = last_lsn;
        Ok(())
    }
}
