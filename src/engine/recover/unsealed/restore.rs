//! Completes the unsealed segments after the replay.
//!
//! Each record that the WAL named without its bytes is looked for in the segment ring, and is
//! written into the segment file if it verifies there. A record that is not in the ring was written
//! out before. It is read from the file if there is a reason to doubt that. A record that is lost
//! becomes a tombstone in the footer, so that no older version of its key is served. At the end
//! each segment gets its footer, or is free if it has no records.

use std::io;

use super::tail::{Listed, Tail, Unsealed, read};
use crate::engine::recovery_report::Start;
use crate::id::{Location, Lsn, Position, UNIT};
use crate::io::{BLOCK, is_shortage, read_twice};
use crate::segment::footer;
use crate::segment::format;
use crate::segment::table::{self, Stage};
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
                && !self.unsealed[i].entries.is_empty()
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
        let mut bytes = Vec::new();
        for n in 0..self.unsealed[i].entries.len() {
            let Listed { entry, placed } = self.unsealed[i].entries[n];
            let at = row.life.base.plus(entry.offset.into());
            if placed {
                continue;
            }
            bytes.resize(entry.len as usize, 0);
            crate::io::ring::copy(self.ring.words(), at.0, &mut bytes);
            if format::decode_record(store, at, row.life.base_lsn, &bytes).is_some() {
                self.place(i, entry.offset, &bytes)?;
                continue;
            }
            let (is_expected, needs_replacement) =
                (verify_after.is_none_or(|durable| entry.lsn <= durable), self.unsealed[i].needs_replacement);
            if is_expected && !needs_replacement && !self.recovery.trusts_nothing {
                continue;
            }
            // A replacement can mark each record as unreadable, so the failed file may be missing.
            // Any other segment fails without its file.
            let file = if needs_replacement { self.file_of(&row)? } else { Some(self.recovery.file(row.life.id)?) };
            let mut read_record = || read(&row, at, entry.len as usize, file.as_deref().ok_or(io::ErrorKind::NotFound)?, &mut bytes);
            let could_read = read_twice(&mut read_record).is_ok();
            let verifies = could_read && format::decode_record(store, at, row.life.base_lsn, &bytes).is_some();
            let could_read = could_read && (verifies || !format::was_unread(&bytes));
            if verifies {
                if needs_replacement {
                    self.place(i, entry.offset, &bytes)?;
                }
                continue;
            }
            // The frame is there and the record is lost: a get of the key misses, and no older
            // version of the key is served.
            let was_named = self.recovery.index.remove_if_at(entry.hash, Location { segment: row.life.id, offset: entry.offset });
            self.unsealed[i].unread += u64::from(was_named && (is_expected || !could_read));
            self.unsealed[i].entries[n].entry.tombstone = true;
            if needs_replacement && !could_read {
                // A later recovery must see that the record could not be read. Otherwise it would
                // take the record for one that was never written.
                self.place(i, entry.offset, &format::UNREAD.repeat(entry.len as usize / UNIT))?;
            }
        }
        Ok(())
    }

    /// Writes the footer of unsealed segment `i`, or frees the segment if it has no records. A
    /// segment file that cannot be written is not used again.
    pub(super) fn seal(&mut self, i: usize) -> io::Result<()> {
        let Unsealed { row, needs_replacement, unread, .. } = self.unsealed[i];
        let (entries, error) = (std::mem::take(&mut self.unsealed[i].entries), self.unsealed[i].error.take());
        let id = row.life.id;
        if unread > 0 {
            self.recovery.report.damaged.push(format!("segment {id}: {unread} places cannot be read; gets of the entries there miss"));
        }
        let Some(Listed { entry: last, .. }) = entries.last() else {
            self.recovery.rows[id.index()].stage = if needs_replacement { Stage::Quarantined } else { Stage::Free };
            return Ok(());
        };
        let mut builder = footer::Builder::default();
        entries.iter().for_each(|listed| builder.push(&listed.entry));
        let last_lsn = entries.iter().map(|listed| listed.entry.lsn).max().unwrap_or(Lsn::ZERO);
        let data_end = last.offset + last.len;
        let fits = u64::from(data_end) + u64::from(builder.blocks() + 1) * BLOCK as u64 <= row.size;
        let full = Full { life: row.life, size: row.size, data_end, footer: builder, last_lsn };
        let is_sound = error.is_none() && !needs_replacement;
        let sealed = match error {
            Some(error) => Err(error),
            // Each gap between records takes room in the footer. A damaged WAL may leave more gaps
            // than the segment has room for.
            None if !fits => Err(io::Error::other("the footer does not fit into the segment")),
            None => self.target(i)?.and_then(|file| {
                write_footer(self.recovery.store, &full, file.as_ref())?;
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
