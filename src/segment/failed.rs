//! A segment for which a write or a sync failed while it held records without a footer.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::extent::Extent;
use super::footer::{Builder, FooterEntry};
use super::format::{self, Record};
use super::table::Row;
use crate::id::{KeyHash, Location, StoreId};
use crate::io::aligned::AlignedBuf;
use crate::io::{File, is_loss, read_twice};

/// The records that must be rescued, and the bytes that the file does not hold.
#[derive(Debug)]
pub(crate) struct Failed {
    row: Row,
    /// Its footer, which is not written.
    footer: Builder,
    /// Entries that are rescued or buried.
    done: AtomicUsize,
    /// Offset of the first byte that was not flushed.
    unwritten_from: u32,
    unwritten: Vec<u8>,
}

impl Failed {
    pub(crate) fn new(row: Row, footer: Builder, unwritten_from: u32, unwritten: Vec<u8>) -> Self {
        Self { row, footer, done: AtomicUsize::new(0), unwritten_from, unwritten }
    }

    pub(crate) fn row(&self) -> &Row {
        &self.row
    }

    /// Bytes of DRAM held.
    pub(crate) fn allocated(&self) -> usize {
        self.footer.allocated() + self.unwritten.len()
    }

    /// Entries that are rescued or buried.
    pub(crate) fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// Whether every entry is rescued or buried.
    pub(crate) fn is_done(&self) -> bool {
        // Pairs with the release in `advance`: the records that were appended before are seen too.
        self.done.load(Ordering::Acquire) as u64 == self.footer.entries()
    }

    /// Entries that are neither rescued nor buried yet, in the order of their positions.
    pub(crate) fn remaining(&self) -> impl Iterator<Item = FooterEntry> {
        self.footer.iter().skip(self.done())
    }

    /// One more entry is rescued or buried.
    pub(crate) fn advance(&self) {
        self.done.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn location(&self, entry: &FooterEntry) -> Location {
        Location { segment: self.row.life.id, offset: entry.offset }
    }

    /// The hash of the record at an offset, if a record begins there.
    pub(crate) fn hash_at(&self, offset: u32) -> Option<KeyHash> {
        self.footer.iter().find(|entry| entry.offset == offset).map(|entry| entry.hash)
    }

    /// The record of an entry and its bytes, from the file and from memory, if they verify. Fails
    /// if the file cannot be read for a reason that says nothing of its bytes.
    pub(crate) fn record(
        &self,
        store: StoreId,
        entry: &FooterEntry,
        file: impl Fn() -> io::Result<Arc<dyn File>>,
    ) -> io::Result<Option<(Record, Vec<u8>)>> {
        let (life, offset, len) = (&self.row.life, entry.offset, entry.len as usize);
        let mut bytes = vec![0; len];
        let in_file = (self.unwritten_from as usize).saturating_sub(offset as usize).min(len);
        if in_file > 0 {
            let extent = Extent::of(offset, in_file, self.row.size);
            let mut buf = AlignedBuf::zeroed(extent.len());
            match read_twice(|| file().and_then(|file| file.read_at(extent.start(), &mut buf))) {
                Ok(()) => {}
                Err(error) if is_loss(&error) => return Ok(None),
                Err(error) => return Err(error),
            }
            bytes[..in_file].copy_from_slice(&buf[extent.range_of(offset, in_file)]);
        }
        if in_file < len {
            let start = (offset as usize + in_file) - self.unwritten_from as usize;
            let Some(unwritten) = self.unwritten.get(start..start + len - in_file) else { return Ok(None) };
            bytes[in_file..].copy_from_slice(unwritten);
        }
        let record = format::decode_record(store, life.base.plus(offset.into()), life.base_lsn, &bytes);
        Ok(record.map(|record| (record, bytes)))
    }
}
