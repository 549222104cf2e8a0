//! The unsealed segments of a recovery, and how replayed mutations change them.
//!
//! [`Tail::apply`] takes each mutation of the WAL, in order. It changes the index, adds the record
//! to the segment's footer, and writes the record into the segment file if the WAL holds its bytes.
//! Records that the WAL does not hold follow in `restore`, once the whole WAL is replayed.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::footers::{self, Bits};
use crate::engine::recover::Recovery;
use crate::engine::recover::unaligned::UnalignedWriter;
use crate::engine::recovery_report::Start;
use crate::id::{KeyHash, Lsn, Position};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, Mapping, SECTOR, is_shortage, read_twice};
use crate::manifest::catalog::CatalogChange;
use crate::segment::extent::Extent;
use crate::segment::footer::{Builder, CHUNK_BLOCKS, FooterEntry};
use crate::segment::format::{self, Kind, Record};
use crate::segment::table::{Row, Stage};
use crate::wal::format::Mutation;

/// A segment without a footer. Only the WAL describes its records.
pub(super) struct Unsealed {
    pub(super) row: Row,
    /// Lists its records. The first blocks may be in the segment file already.
    pub(super) footer: Builder,
    /// For each record: whether `restore` leaves it alone, since its bytes went to the writer of
    /// the segment file, or are known to be there, or are not needed.
    pub(super) placed: Bits,
    /// The highest LSN of a record.
    pub(super) last_lsn: Lsn,
    /// The first failure of the file that is written.
    pub(super) error: Option<io::Error>,
    /// The file failed in an earlier life. It is only read, and a replacement takes its records.
    pub(super) needs_replacement: bool,
    /// The replacement, once there is a record to write.
    pub(super) replacement: Option<Arc<dyn File>>,
    /// Number of places in the file that could not be read.
    pub(super) unread: u64,
}

impl Unsealed {
    pub(super) fn new(row: Row) -> Self {
        Self {
            row,
            footer: Builder::default(),
            placed: Bits::default(),
            last_lsn: Lsn::ZERO,
            error: None,
            needs_replacement: row.stage == Stage::Failed,
            replacement: None,
            unread: 0,
        }
    }

    /// Whether the segment gets a footer in the file that is written now.
    pub(super) fn is_writable(&self) -> bool {
        self.error.is_none() && footers::fits(&self.row, self.footer.data_end(), self.footer.blocks())
    }
}

/// Where the bytes of a record are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Ring,
    File,
    /// The file can be read at its place, and holds something else.
    Nowhere,
    Unreadable,
}

/// The end of the segment stream, which no footer describes.
pub(super) struct Tail<'r, 'a> {
    pub(super) recovery: &'r mut Recovery<'a>,
    /// Oldest first.
    pub(super) unsealed: Vec<Unsealed>,
    /// The segment ring.
    pub(super) ring: &'r dyn Mapping,
    pub(super) kind: Start,
    /// The highest LSN that the log states to be durable. Only after a host crash.
    pub(super) durable: Option<Lsn>,
    /// The last frame of each key that has a record in a failed segment.
    pub(super) covers: HashMap<KeyHash, Mutation>,
    /// Position at which the last known record ends.
    pub(super) end: Position,
    /// Position of the newest record in a segment that the manifest does not know.
    pub(super) unknown: Position,
    /// The writer of a segment file, and the index of that segment in `unsealed`.
    pub(super) writer: Option<(usize, UnalignedWriter)>,
}

impl Tail<'_, '_> {
    /// Applies a mutation of the WAL. `bytes` are those of its record if the WAL holds them, and
    /// empty otherwise. Returns false, with nothing changed, if the log ends before it.
    pub(super) fn apply(&mut self, mutation: &Mutation, moved: bool, bytes: &[u8]) -> io::Result<bool> {
        if mutation.record < self.end {
            // The record was applied before, in place of a lost frame.
            return Ok(true);
        }
        let end = mutation.record.plus(mutation.record_len.into());
        let Some(i) = self.unsealed.iter().position(|u| contains(&u.row, mutation.record)) else {
            self.end = end;
            self.apply_of_other(mutation, bytes);
            return Ok(true);
        };
        let row = self.unsealed[i].row;
        let offset = (mutation.record.0 - row.life.base.0) as u32;
        let mut entry =
            FooterEntry { hash: mutation.hash, offset, len: mutation.record_len, lsn: mutation.lsn, tombstone: mutation.tombstone };
        let is_inline = self.decode(&row, mutation.record, bytes).is_some_and(|record| record.lsn == entry.lsn);
        let mut placed = is_inline;
        if self.is_in_doubt(i, mutation, moved) && !is_inline {
            let mut found = Vec::new();
            match self.find(i, &entry, &mut found)? {
                // The moved record was not written before the crash, so the move did not happen.
                // The old place still holds the record: it is not reused before its moves are
                // synced. The footer must describe these bytes, so it gets an entry that names no
                // key.
                Found::Nowhere if moved => {
                    self.end = end;
                    entry.hash = format::catalog_change_hash(self.recovery.hash_seed, &mutation.record.0.to_le_bytes());
                    entry.tombstone = true;
                    return self.list(i, &entry, true).map(|()| true);
                }
                // The record was in a segment that failed, and a later one takes its place.
                Found::Nowhere if self.is_covered(mutation)? => {}
                // Records are synced before their frames, so no later mutation was acknowledged as
                // durable. The frame is here because the kernel wrote the ring back by itself.
                Found::Nowhere => return Ok(false),
                // The move may have lasted. Then every other known version of the key may be older.
                Found::Unreadable if moved => {
                    entry.tombstone = true;
                    self.unsealed[i].unread += 1;
                }
                Found::Ring => {
                    self.place(i, offset, &found)?;
                    placed = true;
                }
                Found::File => placed = !self.unsealed[i].needs_replacement,
                // `restore` takes it for lost.
                Found::Unreadable => {}
            }
        }
        self.end = end;
        self.recovery.apply(&row, &entry);
        self.apply_catalog_change(&row, mutation.record, bytes);
        if is_inline {
            self.place(i, offset, bytes)?;
        }
        self.list(i, &entry, placed).map(|()| true)
    }

    /// Whether the record of a frame may be missing although the segment's file is sound.
    fn is_in_doubt(&self, i: usize, mutation: &Mutation, moved: bool) -> bool {
        match moved {
            true => self.unsealed[i].needs_replacement || self.kind == Start::Host,
            false => self.durable.is_some_and(|durable| mutation.lsn > durable),
        }
    }

    /// Whether the log has a later record of the same key, or the same record in another place.
    fn is_covered(&mut self, lost: &Mutation) -> io::Result<bool> {
        let later = self.covers.get(&lost.hash).filter(|later| later.record > lost.record && later.lsn >= lost.lsn);
        let Some(Mutation { lsn, hash, tombstone, record, record_len, .. }) = later.copied() else { return Ok(false) };
        let Some(i) = self.unsealed.iter().position(|u| contains(&u.row, record)) else {
            return Ok(self.recovery.rows.iter().any(|row| row.stage == Stage::Sealed && contains(row, record)));
        };
        let offset = (record.0 - self.unsealed[i].row.life.base.0) as u32;
        let found = self.find(i, &FooterEntry { hash, offset, len: record_len, lsn, tombstone }, &mut Vec::new())?;
        Ok(!matches!(found, Found::Nowhere))
    }

    /// Applies a mutation whose record is in no unsealed segment.
    fn apply_of_other(&mut self, mutation: &Mutation, bytes: &[u8]) {
        let holds_it = |row: &&Row| matches!(row.stage, Stage::Sealed | Stage::Quarantined) && contains(row, mutation.record);
        match self.recovery.rows.iter().find(holds_it).copied() {
            // The footer of a sealed segment holds this entry. The records of a quarantined one
            // were appended again. Neither says what the record did to the catalog, and the
            // manifest's catalog may be older.
            Some(row) => self.apply_catalog_change(&row, mutation.record, bytes),
            // The segment was stated by a lost manifest.
            None => self.unknown = self.unknown.max(mutation.record),
        }
    }

    /// Applies the catalog change in the bytes of a record, if it is one.
    fn apply_catalog_change(&mut self, row: &Row, at: Position, bytes: &[u8]) {
        if let Some(Record { kind: Kind::CatalogChange(change), lsn, .. }) = self.decode(row, at, bytes)
            && let Some(change) = CatalogChange::decode(&bytes[change])
        {
            self.recovery.catalog.apply(lsn, &change);
        }
    }

    fn decode(&self, row: &Row, at: Position, bytes: &[u8]) -> Option<Record> {
        format::decode_record(self.recovery.store, at, row.life.base_lsn, bytes)
    }

    /// Adds a record to the footer of unsealed segment `i`. If the footers take more DRAM than
    /// their share then, their first blocks go to the segment files.
    fn list(&mut self, i: usize, entry: &FooterEntry, placed: bool) -> io::Result<()> {
        let listed = &mut self.unsealed[i];
        listed.footer.push(entry);
        listed.placed.push(placed);
        listed.last_lsn = listed.last_lsn.max(entry.lsn);
        let share = self.recovery.settings.footers_bytes_max;
        for older in 0..=i {
            while self.unsealed.iter().map(|u| u.footer.allocated() as u64).sum::<u64>() > share
                && let Some(chunk) = self.unsealed[older].footer.take_chunk()
            {
                let first = self.unsealed[older].footer.taken() - CHUNK_BLOCKS;
                self.write_blocks(older, first, chunk)?;
            }
        }
        Ok(())
    }

    /// Writes blocks of the footer of unsealed segment `i` into its file, where they stay until the
    /// footer is finished. Drops them if the segment gets no footer in that file.
    pub(super) fn write_blocks(&mut self, i: usize, first: usize, blocks: AlignedBuf) -> io::Result<()> {
        if !self.unsealed[i].is_writable() {
            return Ok(());
        }
        let (row, store) = (self.unsealed[i].row, self.recovery.store);
        let written = self.target(i)?.and_then(|file| footers::write(store, &row, first, blocks, file.as_ref()));
        written.or_else(|error| self.record_failure(i, error))
    }

    /// Looks for the record of `entry` in the ring, and then in the file of unsealed segment `i`.
    /// Fills `bytes` with it. A shortage is an error.
    pub(super) fn find(&mut self, i: usize, entry: &FooterEntry, bytes: &mut Vec<u8>) -> io::Result<Found> {
        if self.is_in_ring(i, entry, bytes) {
            return Ok(Found::Ring);
        }
        let row = self.unsealed[i].row;
        let Some(file) = self.file_of(&row)? else { return Ok(Found::Unreadable) };
        Ok(self.find_in(file.as_ref(), &row, entry, bytes))
    }

    /// Whether the ring holds the record of `entry`. Fills `bytes` with it then.
    pub(super) fn is_in_ring(&self, i: usize, entry: &FooterEntry, bytes: &mut Vec<u8>) -> bool {
        let row = &self.unsealed[i].row;
        let at = row.life.base.plus(entry.offset.into());
        bytes.resize(entry.len as usize, 0);
        crate::io::ring::copy(self.ring.words(), at.0, bytes);
        self.decode(row, at, bytes).is_some_and(|record| record.lsn == entry.lsn)
    }

    /// Looks for the record of `entry` in a segment file. Fills `bytes` with what is there.
    pub(super) fn find_in(&self, file: &dyn File, row: &Row, entry: &FooterEntry, bytes: &mut Vec<u8>) -> Found {
        let at = row.life.base.plus(entry.offset.into());
        let read = read_twice(|| read(row, at, entry.len as usize, file, bytes));
        match read.map(|()| self.decode(row, at, bytes)) {
            Ok(Some(record)) if record.lsn == entry.lsn => Found::File,
            Ok(_) if !format::was_unread(bytes) => Found::Nowhere,
            Ok(_) | Err(_) => Found::Unreadable,
        }
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

    /// Writes the bytes of a record at `offset` of unsealed segment `i`.
    pub(super) fn place(&mut self, i: usize, offset: u32, bytes: &[u8]) -> io::Result<()> {
        if self.unsealed[i].error.is_some() {
            return Ok(());
        }
        if self.writer.as_ref().is_none_or(|(number, _)| *number != i) {
            self.flush_writer()?;
            match self.target(i)? {
                Ok(file) => self.writer = Some((i, UnalignedWriter::new(file, self.recovery.settings.work_buffer))),
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
