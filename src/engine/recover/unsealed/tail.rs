//! The unsealed segments of a recovery, their records, and the files that take them.

use std::io;
use std::sync::Arc;

use crate::engine::recover::Recovery;
use crate::engine::recover::unaligned::UnalignedWriter;
use crate::engine::recovery_report::Start;
use crate::id::Position;
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, Mapping, SECTOR, is_shortage};
use crate::manifest::catalog::CatalogChange;
use crate::segment::extent::Extent;
use crate::segment::footer::FooterEntry;
use crate::segment::format::{self, Kind, Record};
use crate::segment::table::{Row, Stage};
use crate::wal::format::Mutation;

/// A segment that only the WAL describes.
pub(super) struct Unsealed {
    pub(super) row: Row,
    pub(super) entries: Vec<Listed>,
    /// The first failure of its file.
    pub(super) error: Option<io::Error>,
    /// Its file had failed, and is only read: another one is to take its place.
    pub(super) needs_replacement: bool,
    /// That one, once there is something to write.
    pub(super) renewed: Option<Arc<dyn File>>,
    /// Places of it that could not be read.
    pub(super) unread: u64,
}

/// A record of an unsealed segment.
pub(super) struct Listed {
    pub(super) entry: FooterEntry,
    /// Whether its bytes are in the file, or on their way.
    pub(super) placed: bool,
}

pub(super) struct Tail<'r, 'a> {
    pub(super) recovery: &'r mut Recovery<'a>,
    /// Oldest first.
    pub(super) unsealed: Vec<Unsealed>,
    pub(super) ring: &'r dyn Mapping,
    pub(super) kind: Start,
    /// Where the last record that is known ends.
    pub(super) end: Position,
    /// The highest record of a segment that the manifest does not know.
    pub(super) unknown: Position,
    /// Of the segment with this number among the unsealed ones.
    pub(super) patch: Option<(usize, UnalignedWriter)>,
}

impl Tail<'_, '_> {
    /// Applies a mutation of the WAL, whose record is `bytes` if the WAL holds it.
    pub(super) fn apply(&mut self, mutation: &Mutation, moved: bool, bytes: &[u8]) -> io::Result<()> {
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
            FooterEntry { hash: mutation.hash, offset, len: mutation.record_len, lsn: mutation.lsn, tombstone: mutation.tombstone };
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

    /// The file of an unsealed segment, if it can be opened. An error if there is a shortage.
    pub(super) fn file_of(&mut self, row: &Row) -> io::Result<Option<Arc<dyn File>>> {
        match self.recovery.file(row.life.id) {
            Err(error) if is_shortage(&error) => Err(error),
            file => Ok(file.ok()),
        }
    }

    /// The record at `at`, from the ring or the file, and its bytes.
    pub(super) fn record_at(&mut self, row: &Row, at: Position) -> io::Result<Option<(Record, Vec<u8>)>> {
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
    pub(super) fn is_there(&mut self, row: &Row, entry: &FooterEntry) -> io::Result<bool> {
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
    pub(super) fn place(&mut self, i: usize, offset: u32, bytes: &[u8]) -> io::Result<()> {
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

    pub(super) fn flush_patch(&mut self) -> io::Result<()> {
        let Some((i, mut patch)) = self.patch.take() else { return Ok(()) };
        let flushed = patch.flush();
        self.unsealed[i].unread += patch.unread;
        flushed.or_else(|error| self.record_failure(i, error))
    }

    /// The file of an unsealed segment that is written to. The outer error refuses the opening: the file that failed is there still, and another time a new one can be made.
    pub(super) fn target(&mut self, i: usize) -> io::Result<io::Result<Arc<dyn File>>> {
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
    pub(super) fn record_failure(&mut self, i: usize, error: io::Error) -> io::Result<()> {
        if is_shortage(&error) {
            return Err(error);
        }
        self.unsealed[i].error.get_or_insert(error);
        Ok(())
    }
}

pub(super) fn contains(row: &Row, at: Position) -> bool {
    (row.life.base.0..row.life.base.0 + row.size).contains(&at.0)
}

/// Reads `len` bytes at `at` of a segment into `bytes`.
pub(super) fn read(row: &Row, at: Position, len: usize, file: &dyn File, bytes: &mut Vec<u8>) -> io::Result<()> {
    let offset = at.0 - row.life.base.0;
    let extent = Extent::of(offset as u32, len, row.size);
    let mut buf = AlignedBuf::zeroed(extent.len().max(SECTOR));
    file.read_at(extent.start(), &mut buf)?;
    bytes.clear();
    bytes.extend_from_slice(&buf[extent.range_of(offset as u32, len)]);
    Ok(())
}
