//! What only the WAL and the rings hold: brought into the segment files, which are then sealed.

use std::io;
use std::sync::Arc;

use super::Recovery;
use super::unaligned::UnalignedWriter;
use crate::engine::recovery_report::Start;
use crate::id::{Location, Lsn, Position, UNIT};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, Mapping, SECTOR, is_shortage};
use crate::manifest::Manifest;
use crate::manifest::catalog::CatalogChange;
use crate::segment::footer;
use crate::segment::format::{self, DATA_START, Kind, Record};
use crate::segment::table::{self, Row, Stage};
use crate::segment::writer::{Full, write_footer};
use crate::wal::format::Mutation;
use crate::wal::replay::{Hole, PastEnd, Replay, Summary, Visitor};

/// How far beyond the last record that is known a later one is looked for.
const LOOK_AHEAD: u64 = 256 << 10;

/// A segment that only the WAL describes.
struct Unsealed {
    row: Row,
    entries: Vec<Listed>,
    /// The first failure of its file.
    error: Option<io::Error>,
    /// Its file had failed, and is only read: another one is to take its place.
    needs_replacement: bool,
    /// That one, once there is something to write.
    renewed: Option<Arc<dyn File>>,
    /// Places of it that could not be read.
    unread: u64,
}

/// A record of an unsealed segment.
struct Listed {
    entry: footer::FooterEntry,
    /// Whether its bytes are in the file, or on their way.
    placed: bool,
}

/// Applies the WAL, brings what only the rings hold into the segment files, and seals them.
pub(super) fn replay(
    recovery: &mut Recovery<'_>,
    replay: &mut Replay,
    manifest: &Manifest,
    kind: Start,
    (ring, ring_lost): &(Arc<dyn Mapping>, bool),
) -> io::Result<Summary> {
    let mut rows: Vec<Row> = recovery.rows.iter().filter(|r| matches!(r.stage, Stage::Full | Stage::Failed)).copied().collect();
    rows.sort_by_key(|r| r.life.base);
    let unsealed = |row: Row| Unsealed {
        row,
        entries: Vec::new(),
        error: None,
        needs_replacement: row.stage == Stage::Failed,
        renewed: None,
        unread: 0,
    };
    let unsealed = rows.into_iter().map(unsealed).collect();
    let mut tail = Tail { recovery, unsealed, ring: ring.as_ref(), kind, end: Position(0), unknown: Position(0), patch: None };
    let summary = replay.run((manifest.wal_start, manifest.wal_lsn), manifest.durable, kind == Start::Process, &mut tail)?;
    let durable = summary.durable.max(manifest.durable);
    tail.report(&summary, durable);
    // Which records may be nowhere: after a power cut those that were not synced, and all if the ring is gone that held what the files do not hold yet.
    let verify_after = match kind {
        Start::Host => Some(durable),
        _ if *ring_lost => Some(Lsn::ZERO),
        _ => None,
    };
    if kind == Start::Process && *ring_lost {
        tail.recovery.report.damaged.push("the ring of the segments is lost, or parts of it; entries that only it held miss".to_owned());
    }
    tail.restore(verify_after)?;
    (0..tail.unsealed.len()).try_for_each(|i| tail.seal(i))?;
    Ok(summary)
}

struct Tail<'r, 'a> {
    recovery: &'r mut Recovery<'a>,
    /// Oldest first.
    unsealed: Vec<Unsealed>,
    ring: &'r dyn Mapping,
    kind: Start,
    /// Where the last record that is known ends.
    end: Position,
    /// The highest record of a segment that the manifest does not know.
    unknown: Position,
    /// Of the segment with this number among the unsealed ones.
    patch: Option<(usize, UnalignedWriter)>,
}

impl Visitor for Tail<'_, '_> {
    fn visit(&mut self, mutation: &Mutation, moved: bool, bytes: &[u8]) -> io::Result<()> {
        if mutation.record < self.end {
            // Found before its frame was, behind a hole.
            return Ok(());
        }
        self.end = mutation.record.plus(mutation.record_len.into());
        let Some(i) = self.unsealed.iter().position(|u| contains(&u.row, mutation.record)) else {
            // Sealed segments speak for themselves. One that the manifest does not know can only be a lost manifest's.
            if !self.recovery.rows.iter().any(|row| row.stage == Stage::Sealed && contains(row, mutation.record)) {
                self.unknown = self.unknown.max(mutation.record);
            }
            return Ok(());
        };
        let row = self.unsealed[i].row;
        let offset = (mutation.record.0 - row.life.base.0) as u32;
        let mut entry =
            footer::FooterEntry { hash: mutation.hash, offset, len: mutation.record_len, lsn: mutation.lsn, tombstone: mutation.tombstone };
        if moved && (self.kind == Start::Host || self.unsealed[i].needs_replacement) {
            match self.is_there(&row, &entry) {
                Ok(true) => {}
                // The move did not last, so it did not happen: the old place is not reused before the new one is synced. What takes its place in the footer names nothing.
                Ok(false) => {
                    entry.hash = format::catalog_change_hash(self.recovery.hash_seed, &mutation.record.0.to_le_bytes());
                    entry.tombstone = true;
                    self.unsealed[i].entries.push(Listed { entry, placed: true });
                    return Ok(());
                }
                Err(error) if is_shortage(&error) => return Err(error),
                // It may have lasted, and then what else is known of the key may be older.
                Err(_) => {
                    entry.tombstone = true;
                    self.unsealed[i].unread += 1;
                }
            }
        }
        self.recovery.apply(&row, &entry);
        let record = format::decode_record(self.recovery.store, mutation.record, row.life.base_lsn, bytes);
        if let Some(Record { kind: Kind::CatalogChange(note), lsn, .. }) = &record
            && let Some(note) = CatalogChange::decode(&bytes[note.clone()])
        {
            self.recovery.catalog.apply(*lsn, &note);
        }
        let placed = record.is_some_and(|record| record.lsn == entry.lsn);
        if placed {
            self.place(i, offset, bytes)?;
        }
        self.unsealed[i].entries.push(Listed { entry, placed });
        Ok(())
    }

    fn repair(&mut self, hole: &Hole) -> io::Result<bool> {
        let whole = self.read_records(hole)? && hole.bounded;
        if !whole {
            // One that was set in the hole would be newer.
            self.recovery.catalog.tokens.clear();
        }
        Ok(whole)
    }

    fn resume_past_end(&mut self, last: Lsn) -> io::Result<PastEnd> {
        let (mut next, mut records) = (last.next(), 0);
        let mut is_torn = self.read_on(Position(u64::MAX), &mut next, |_| true, &mut records)?;
        if self.kind == Start::Process && (is_torn || self.is_followed(next)?) {
            is_torn = true;
            // One that was set by what is lost would be newer.
            self.recovery.catalog.tokens.clear();
        }
        Ok(PastEnd { last: Lsn(next.0 - 1), records, is_torn })
    }
}

impl Tail<'_, '_> {
    /// The records say what their frames said, in the same order: those between the last one known and the next one are read one after the other. Whether that is all
    /// that the hole is known to have held.
    fn read_records(&mut self, hole: &Hole) -> io::Result<bool> {
        let (mut next, mut records) = (hole.after.next(), 0);
        self.read_on(hole.floor, &mut next, |lsn| lsn < hole.before, &mut records)?;
        Ok(next == hole.before)
    }

    /// Takes records for what their frames said, one after the other from the last one that is known, below `limit` and as long as the `next` version is one that is
    /// `wanted`. Counts them. Says whether it found one that only others before it could precede.
    fn read_on(&mut self, limit: Position, next: &mut Lsn, wanted: impl Fn(Lsn) -> bool, records: &mut u64) -> io::Result<bool> {
        for row in self.unsealed.iter().map(|u| u.row).collect::<Vec<_>>() {
            if self.end >= row.life.base.plus(row.size) {
                continue;
            }
            let mut at = self.end.max(row.life.base.plus(DATA_START.into()));
            while at < limit
                && let Some((record, bytes)) = self.record_at(&row, at)?
            {
                let moved = record.lsn < *next;
                if !moved && (record.lsn != *next || !wanted(record.lsn)) {
                    return Ok(record.lsn != *next);
                }
                let (hash, tombstone) = record.effect(self.recovery.hash_seed, &bytes);
                let (lsn, record_len) = (record.lsn, record.len as u32);
                self.visit(&Mutation { lsn, hash, tombstone, supersedes: true, record: at, record_len }, moved, &bytes)?;
                at = at.plus(record_len.into());
                *next = if moved { *next } else { next.next() };
                *records += 1;
            }
        }
        Ok(false)
    }

    /// Whether a record lies a little beyond the last one that is known: no position is used twice, so one that verifies there came later. Of so many places that are looked at,
    /// one may verify by chance; so its version must be one that could come `next` or soon, or another record must follow it.
    fn is_followed(&mut self, next: Lsn) -> io::Result<bool> {
        let mut left = LOOK_AHEAD.min(self.ring.words().len() as u64 * 8);
        let soon = next.0..next.0.saturating_add(left / UNIT as u64);
        let mut bytes = Vec::new();
        for row in self.unsealed.iter().map(|u| u.row).collect::<Vec<_>>() {
            let from = self.end.max(row.life.base.plus(DATA_START.into()));
            let len = row.life.base.plus(row.size).0.saturating_sub(from.0).min(left);
            left -= len;
            if len == 0 {
                continue;
            }
            let store = self.recovery.store;
            let record = |bytes: &[u8], offset: usize| {
                bytes.get(offset..).and_then(|bytes| format::decode_record(store, from.plus(offset as u64), row.life.base_lsn, bytes))
            };
            let is_record = |bytes: &[u8], offset: usize| {
                record(bytes, offset).is_some_and(|found| soon.contains(&found.lsn.0) || record(bytes, offset + found.len).is_some())
            };
            bytes.resize(len as usize, 0);
            crate::io::ring::copy(self.ring.words(), from.0, &mut bytes);
            if (0..bytes.len()).step_by(UNIT).any(|offset| is_record(&bytes, offset)) {
                return Ok(true);
            }
            let in_file = match self.file_of(&row)? {
                Some(file) => read(&row, from, len as usize, file.as_ref(), &mut bytes).is_ok(),
                None => false,
            };
            if in_file && (0..bytes.len()).step_by(UNIT).any(|offset| is_record(&bytes, offset)) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The file of an unsealed segment, if it can be opened. An error if there is a shortage.
    fn file_of(&mut self, row: &Row) -> io::Result<Option<Arc<dyn File>>> {
        match self.recovery.file(row.life.id) {
            Err(error) if is_shortage(&error) => Err(error),
            file => Ok(file.ok()),
        }
    }

    /// The record at `at`, from the ring or the file, and its bytes.
    fn record_at(&mut self, row: &Row, at: Position) -> io::Result<Option<(Record, Vec<u8>)>> {
        let store = self.recovery.store;
        let room = (row.life.base.0 + row.size).saturating_sub(at.0) as usize;
        let most = room.min(self.ring.words().len() * 8);
        let file = self.file_of(row)?;
        for from_file in [false, true] {
            let mut bytes = Vec::new();
            let mut fetch = |len: usize| {
                bytes.resize(len, 0);
                if !from_file {
                    crate::io::ring::copy(self.ring.words(), at.0, &mut bytes);
                } else {
                    read(row, at, len, file.as_ref()?.as_ref(), &mut bytes).ok()?;
                }
                Some((format::stated_len(&bytes)?, format::decode_record(store, at, row.life.base_lsn, &bytes)))
            };
            // What it says of its length is not verified yet.
            let record = match fetch(most.min(BLOCK)) {
                Some((len, None)) if (BLOCK + 1..=most).contains(&len) => fetch(len).and_then(|(_, record)| record),
                Some((_, record)) => record,
                None => None,
            };
            if let Some(record) = record {
                bytes.truncate(record.len);
                return Ok(Some((record, bytes)));
            }
        }
        Ok(None)
    }

    /// Whether the record of `entry` can be had. An error if its place cannot be read.
    fn is_there(&mut self, row: &Row, entry: &footer::FooterEntry) -> io::Result<bool> {
        let at = row.life.base.plus(entry.offset.into());
        if let Some((record, _)) = self.record_at(row, at)? {
            return Ok(record.lsn == entry.lsn);
        }
        let mut bytes = Vec::new();
        let file = self.recovery.file(row.life.id)?;
        read(row, at, entry.len as usize, file.as_ref(), &mut bytes)?;
        match format::decode_record(self.recovery.store, at, row.life.base_lsn, &bytes) {
            Some(record) => Ok(record.lsn == entry.lsn),
            None if format::was_unread(&bytes) => Err(io::Error::other("it could not be read before")),
            None => Ok(false),
        }
    }

    /// Puts bytes where they belong in the file of an unsealed segment.
    fn place(&mut self, i: usize, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if self.unsealed[i].error.is_some() {
            return Ok(());
        }
        if self.patch.as_ref().is_none_or(|(number, _)| *number != i) {
            self.flush_patch()?;
            match self.target(i)? {
                Ok(file) => self.patch = Some((i, UnalignedWriter::new(file))),
                Err(error) => self.record_failure(i, error)?,
            }
        }
        if let Some((_, patch)) = &mut self.patch
            && let Err(error) = patch.write(offset, bytes)
        {
            self.patch = None;
            self.record_failure(i, error)?;
        }
        Ok(())
    }

    fn flush_patch(&mut self) -> io::Result<()> {
        let Some((i, mut patch)) = self.patch.take() else { return Ok(()) };
        let flushed = patch.flush();
        self.unsealed[i].unread += patch.unread;
        flushed.or_else(|error| self.record_failure(i, error))
    }

    /// The file of an unsealed segment that is written to. The outer error refuses the opening: the file that failed is there still, and another time a new one can be made.
    fn target(&mut self, i: usize) -> io::Result<io::Result<Arc<dyn File>>> {
        let Unsealed { row, needs_replacement, ref renewed, .. } = self.unsealed[i];
        if !needs_replacement {
            return Ok(self.recovery.file(row.life.id));
        }
        if let Some(renewed) = renewed {
            return Ok(Ok(Arc::clone(renewed)));
        }
        let file = self.recovery.create_replacement(&row)?;
        self.unsealed[i].renewed = Some(Arc::clone(&file));
        let mut header = AlignedBuf::zeroed(BLOCK);
        format::encode_header(self.recovery.store, &row.life, &mut header);
        Ok(file.write_at(0, &header).map(|()| file))
    }

    /// The file of an unsealed segment failed. A shortage is no failure: the opening is refused, and may succeed at another time.
    fn record_failure(&mut self, i: usize, error: io::Error) -> io::Result<()> {
        if is_shortage(&error) {
            return Err(error);
        }
        self.unsealed[i].error.get_or_insert(error);
        Ok(())
    }

    /// Says what was found, and drops what a hole may have superseded.
    fn report(&mut self, summary: &Summary, durable: Lsn) {
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
    fn restore(&mut self, verify_after: Option<Lsn>) -> io::Result<()> {
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
            let could_read = again().or_else(|_| again()).is_ok();
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
    fn seal(&mut self, i: usize) -> io::Result<()> {
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

fn contains(row: &Row, at: Position) -> bool {
    (row.life.base.0..row.life.base.0 + row.size).contains(&at.0)
}

/// Reads `len` bytes at `at` of a segment into `bytes`.
fn read(row: &Row, at: Position, len: usize, file: &dyn File, bytes: &mut Vec<u8>) -> io::Result<()> {
    let offset = at.0 - row.life.base.0;
    let range = format::sectors(offset as u32, len);
    let range = range.start..range.end.min(row.size);
    let mut buf = AlignedBuf::zeroed((range.end - range.start).max(SECTOR as u64) as usize);
    file.read_at(range.start, &mut buf)?;
    let here = &buf[(offset - range.start) as usize..];
    bytes.clear();
    bytes.extend_from_slice(&here[..len.min(here.len())]);
    Ok(())
}
