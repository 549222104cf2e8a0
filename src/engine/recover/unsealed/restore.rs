//! Writes the records that only a ring holds into their segment files, and seals those.

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
    /// Says what was found, and drops what a hole may have superseded.
    pub(super) fn report(&mut self, summary: &Summary, durable: Lsn) {
        self.recovery.batch.merge(&self.recovery.index);
        let report = &mut self.recovery.report;
        report.wal_frames = summary.frames;
        report.torn_bytes = summary.torn_bytes;
        report.alive_until_ms = report.alive_until_ms.max(summary.time_ms);
        if self.kind == Start::Host {
            report.maybe_lost_after = Some(durable);
        }
        if self.unknown > Position(0) {
            report.damaged.push("the WAL names a segment that the manifest does not know; everything older is dropped".to_owned());
            self.recovery.raise_floor(self.unknown);
        }
        for hole in &summary.holes {
            let what = if hole.repaired { "what they said was read from the records" } else { "everything older is dropped" };
            self.recovery.report.damaged.push(format!("WAL bytes {} to {} are lost; {what}", hole.from, hole.to));
            if !hole.repaired {
                self.recovery.raise_floor(hole.floor);
            }
        }
    }

    /// Writes into segment files what only the ring holds of their records. Records later than `verify_after`, or of a file that had failed, may be nowhere: then they become
    /// tombstones.
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
        self.flush_patch()
    }

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
            // A new file holds what says of each record that it is lost, wherever the old one is.
            let file = if needs_replacement { self.file_of(&row)? } else { Some(self.recovery.file(row.life.id)?) };
            let mut again = || read(&row, at, entry.len as usize, file.as_deref().ok_or(io::ErrorKind::NotFound)?, &mut bytes);
            let could_read = read_twice(&mut again).is_ok();
            let verifies = could_read && format::decode_record(store, at, row.life.base_lsn, &bytes).is_some();
            let could_read = could_read && (verifies || !format::was_unread(&bytes));
            if verifies {
                if needs_replacement {
                    self.place(i, entry.offset, &bytes)?;
                }
                continue;
            }
            // Its frame is there, its bytes are not: the key misses, and no older version of it is served.
            let was_named = self.recovery.index.remove_if_at(entry.hash, Location { segment: row.life.id, offset: entry.offset });
            self.unsealed[i].unread += u64::from(was_named && (is_expected || !could_read));
            self.unsealed[i].entries[n].entry.tombstone = true;
            if needs_replacement && !could_read {
                // Whoever looks for it in the new file must not take it for one that never came.
                self.place(i, entry.offset, &format::UNREAD.repeat(entry.len as usize / UNIT))?;
            }
        }
        Ok(())
    }

    /// Writes the footer of a segment, or frees it if nothing is in it. One that cannot be written is not used again.
    pub(super) fn seal(&mut self, i: usize) -> io::Result<()> {
        let Unsealed { row, needs_replacement, unread, .. } = self.unsealed[i];
        let (entries, error) = (std::mem::take(&mut self.unsealed[i].entries), self.unsealed[i].error.take());
        let id = row.life.id;
        if unread > 0 {
            self.recovery.report.damaged.push(format!("segment {id}: {unread} places cannot be read; what they held misses"));
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
            // Gaps cost footer blocks of their own; more of them than a damaged WAL leaves room for.
            None if !fits => Err(io::Error::other("its footer does not fit")),
            None => self.target(i)?.and_then(|file| {
                write_footer(self.recovery.store, &full, file.as_ref())?;
                // Whatever the reason, what a failed sync left behind is not known.
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
                tracing::warn!(segment = %id, %error, "a segment cannot be written; it gets a new file");
                self.recovery.failed.push(id);
                Stage::Quarantined
            }
            Err(error) => {
                // What it superseded will not be known any more.
                self.recovery.report.damaged.push(format!("segment {id} cannot be restored: {error}; everything older is dropped"));
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
