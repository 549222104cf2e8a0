//! The unsealed segments of a recovery, and how replayed mutations change them.
//!
//! [`Tail::apply`] takes each mutation of the WAL, in order. It changes the index, collects the
//! footer entry, and writes the record into the segment file if the WAL holds its bytes. Records
//! that the WAL does not hold follow in `restore`, once the whole WAL is replayed.

use std::io;
use std::sync::Arc;

use crate::engine::recover::Recovery;
use crate::engine::recover::unaligned::UnalignedWriter;
use crate::engine::recovery_report::Start;
use crate::id::{Lsn, Position};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, Mapping, SECTOR, is_shortage};
use crate::manifest::catalog::CatalogChange;
use crate::segment::extent::Extent;
use crate::segment::footer::FooterEntry;
use crate::segment::format::{self, Kind, Record};
use crate::segment::table::{Row, Stage};
use crate::wal::format::Mutation;

/// A segment without a footer. Only the WAL describes its records.
pub(super) struct Unsealed {
    pub(super) row: Row,
    pub(super) entries: Vec<Listed>,
    /// The first failure of the file that is written.
    pub(super) error: Option<io::Error>,
    /// The file failed in an earlier life. It is only read, and a replacement takes its records.
    pub(super) needs_replacement: bool,
    /// The replacement, once there is a record to write.
    pub(super) replacement: Option<Arc<dyn File>>,
    /// Number of places in the file that could not be read.
    pub(super) unread: u64,
}

/// A record of an unsealed segment.
pub(super) struct Listed {
    pub(super) entry: FooterEntry,
    /// Whether `restore` leaves the record alone: its bytes went to the writer of the segment file,
    /// or it needs none.
    pub(super) placed: bool,
}

/// The end of the segment stream, which no footer describes.
pub(super) struct Tail<'r, 'a> {
    pub(super) recovery: &'r mut Recovery<'a>,
    /// Oldest first.
    pub(super) unsealed: Vec<Unsealed>,
    /// The segment ring.
    pub(super) ring: &'r dyn Mapping,
    pub(super) kind: Start,
    /// Position at which the last known record ends.
    pub(super) end: Position,
    /// Position of the newest record in a segment that the manifest does not know.
    pub(super) unknown: Position,
    /// The writer of a segment file, and the index of that segment in `unsealed`.
    pub(super) writer: Option<(usize, UnalignedWriter)>,
}

impl Tail<'_, '_> {
    /// Applies a mutation of the WAL. `bytes` are those of its record if the WAL holds them, and
    /// empty otherwise.
    pub(super) fn apply(&mut self, mutation: &Mutation, moved: bool, bytes: &[u8]) -> io::Result<()> {
        if mutation.record < self.end {
            // The record was applied before, in place of a lost frame.
            return Ok(());
        }
        self.end = mutation.record.plus(mutation.record_len.into());
        let Some(i) = self.unsealed.iter().position(|u| contains(&u.row, mutation.record)) else {
            // The footer of a sealed segment holds this entry. It does not hold the contents of a
            // catalog change, which a manifest that states the segment as sealed need not state. A
            // segment that the manifest does not know was stated by a lost manifest.
            let sealed = self.recovery.rows.iter().find(|row| row.stage == Stage::Sealed && contains(row, mutation.record));
            match sealed.map(|row| row.life.base_lsn) {
                Some(base_lsn) => drop(self.apply_catalog_change(mutation, base_lsn, bytes)),
                None => self.unknown = self.unknown.max(mutation.record),
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
                // The moved record was not written before the crash, so the move did not happen.
                // The old place still holds the record: it is not reused before its moves are
                // synced. The footer must describe these bytes, so it gets an entry that names no
                // key.
                Ok(false) => {
                    entry.hash = format::catalog_change_hash(self.recovery.hash_seed, &mutation.record.0.to_le_bytes());
                    entry.tombstone = true;
                    self.unsealed[i].entries.push(Listed { entry, placed: true });
                    return Ok(());
                }
                Err(error) if is_shortage(&error) => return Err(error),
                // The move may have lasted. Then every other known version of the key may be older.
                Err(_) => {
                    entry.tombstone = true;
                    self.unsealed[i].unread += 1;
                }
            }
        }
        self.recovery.apply(&row, &entry);
        let record = self.apply_catalog_change(mutation, row.life.base_lsn, bytes);
        let placed = record.is_some_and(|record| record.lsn == entry.lsn);
        if placed {
            self.place(i, offset, bytes)?;
        }
        self.unsealed[i].entries.push(Listed { entry, placed });
        Ok(())
    }

    /// The record in `bytes`, if the WAL holds it. Applies it to the catalog if it is a change of
    /// that.
    fn apply_catalog_change(&mut self, mutation: &Mutation, base_lsn: Lsn, bytes: &[u8]) -> Option<Record> {
        let record = format::decode_record(self.recovery.store, mutation.record, base_lsn, bytes)?;
        if let Record { kind: Kind::CatalogChange(change), lsn, .. } = &record
            && let Some(change) = CatalogChange::decode(&bytes[change.clone()])
        {
            self.recovery.catalog.apply(*lsn, &change);
        }
        Some(record)
    }

    /// The file of an unsealed segment, or `None` if it cannot be opened. A shortage is an error.
    pub(super) fn file_of(&mut self, row: &Row) -> io::Result<Option<Arc<dyn File>>> {
        match self.recovery.file(row.life.id) {
            Err(error) if is_shortage(&error) => Err(error),
            file => Ok(file.ok()),
        }
    }

    /// The valid record at `at` and its bytes, from the ring or else from the file.
    pub(super) fn record_at(&mut self, row: &Row, at: Position) -> io::Result<Option<(Record, Vec<u8>)>> {
        let store = self.recovery.store;
        let room = (row.life.base.0 + row.size).saturating_sub(at.0) as usize;
        let max = room.min(self.ring.words().len() * 8);
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
            // The stated length is not verified yet, so it is bounded before it is used.
            let record = match fetch(max.min(BLOCK)) {
                Some((len, None)) if (BLOCK + 1..=max).contains(&len) => fetch(len).and_then(|(_, record)| record),
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

    /// Whether the record of `entry` is in the ring or the file. An error if its place cannot be
    /// read.
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
            None if format::was_unread(&bytes) => Err(io::Error::other("the record could not be read at an earlier opening")),
            None => Ok(false),
        }
    }

    /// Writes the bytes of a record at `offset` of unsealed segment `i`.
    pub(super) fn place(&mut self, i: usize, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if self.unsealed[i].error.is_some() {
            return Ok(());
        }
        if self.writer.as_ref().is_none_or(|(number, _)| *number != i) {
            self.flush_writer()?;
            match self.target(i)? {
                Ok(file) => self.writer = Some((i, UnalignedWriter::new(file))),
                Err(error) => self.record_failure(i, error)?,
            }
        }
        if let Some((_, writer)) = &mut self.writer
            && let Err(error) = writer.write(offset, bytes)
        {
            self.writer = None;
            self.record_failure(i, error)?;
        }
        Ok(())
    }

    /// Writes the bytes that are still buffered into their segment file.
    pub(super) fn flush_writer(&mut self) -> io::Result<()> {
        let Some((i, mut writer)) = self.writer.take() else { return Ok(()) };
        let flushed = writer.flush();
        self.unsealed[i].unread += writer.unread;
        flushed.or_else(|error| self.record_failure(i, error))
    }

    /// The file into which the records of unsealed segment `i` are written: its own, or its
    /// replacement. The outer error refuses the opening. Then the failed file is still there, and a
    /// later opening can create the replacement.
    pub(super) fn target(&mut self, i: usize) -> io::Result<io::Result<Arc<dyn File>>> {
        let Unsealed { row, needs_replacement, ref replacement, .. } = self.unsealed[i];
        if !needs_replacement {
            return Ok(self.recovery.file(row.life.id));
        }
        if let Some(replacement) = replacement {
            return Ok(Ok(Arc::clone(replacement)));
        }
        let file = self.recovery.create_replacement(&row)?;
        self.unsealed[i].replacement = Some(Arc::clone(&file));
        let mut header = AlignedBuf::zeroed(BLOCK);
        format::encode_header(self.recovery.store, &row.life, &mut header);
        Ok(file.write_at(0, &header).map(|()| file))
    }

    /// Records that the file of unsealed segment `i` failed. A shortage is not a failure of the
    /// file: it refuses the opening, and a later one may succeed.
    pub(super) fn record_failure(&mut self, i: usize, error: io::Error) -> io::Result<()> {
        if is_shortage(&error) {
            return Err(error);
        }
        self.unsealed[i].error.get_or_insert(error);
        Ok(())
    }
}

/// Whether position `at` lies in a segment.
pub(super) fn contains(row: &Row, at: Position) -> bool {
    (row.life.base.0..row.life.base.0 + row.size).contains(&at.0)
}

/// Reads `len` bytes at position `at` of a segment into `bytes`.
pub(super) fn read(row: &Row, at: Position, len: usize, file: &dyn File, bytes: &mut Vec<u8>) -> io::Result<()> {
    let offset = at.0 - row.life.base.0;
    let extent = Extent::of(offset as u32, len, row.size);
    let mut buf = AlignedBuf::zeroed(extent.len().max(SECTOR));
    file.read_at(extent.start(), &mut buf)?;
    bytes.clear();
    bytes.extend_from_slice(&buf[extent.range_of(offset as u32, len)]);
    Ok(())
}
