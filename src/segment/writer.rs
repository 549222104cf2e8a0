//! The segment that takes records, and the footer that it gets once it is full.
//!
//! Guarded by the log lock.

use std::io;

use super::footer::{self, Builder, FooterEntry};
use super::format::{self, DATA_START, Life, Trailer};
use crate::id::{Lsn, Position, StoreId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File};

/// A segment that takes records.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) life: Life,
    size: u64,
    /// Offset of the next record.
    cursor: u32,
    footer: Builder,
    last_lsn: Lsn,
}

/// A segment that takes no more records, with everything that its footer needs.
#[derive(Debug)]
pub(crate) struct Full {
    pub(crate) life: Life,
    pub(crate) size: u64,
    pub(crate) data_end: u32,
    pub(crate) footer: Builder,
    pub(crate) last_lsn: Lsn,
}

impl Open {
    pub(crate) fn new(life: Life, size: u64) -> Self {
        Self { life, size, cursor: DATA_START, footer: Builder::default(), last_lsn: Lsn::ZERO }
    }

    /// Whether a record of `len` bytes and its footer entry fit.
    pub(crate) fn fits(&self, len: usize) -> bool {
        u64::from(self.cursor) + len as u64 + self.footer.len_with_one_more() as u64 + BLOCK as u64 <= self.size
    }

    /// Position of the next record.
    pub(crate) fn head(&self) -> Position {
        self.life.base.plus(u64::from(self.cursor))
    }

    pub(crate) fn cursor(&self) -> u32 {
        self.cursor
    }

    /// Takes the record that was stored at [`Open::head`].
    pub(crate) fn push(&mut self, entry: &FooterEntry) {
        assert_eq!(entry.offset, self.cursor, "records lie one after the other");
        self.footer.push(entry);
        self.cursor += entry.len;
        self.last_lsn = self.last_lsn.max(entry.lsn);
    }

    /// Bytes of DRAM held.
    pub(crate) fn allocated(&self) -> usize {
        self.footer.allocated()
    }

    /// Bytes of DRAM held after one more record, at most.
    pub(crate) fn allocated_with_one_more(&self) -> usize {
        self.footer.allocated_with_one_more()
    }

    pub(crate) fn retire(self) -> Full {
        Full { life: self.life, size: self.size, data_end: self.cursor, footer: self.footer, last_lsn: self.last_lsn }
    }
}

impl Full {
    /// Position at which its records end.
    pub(crate) fn end(&self) -> Position {
        self.life.base.plus(u64::from(self.data_end))
    }

    /// The trailer for the footer as it is now.
    pub(crate) fn trailer(&self) -> Trailer {
        Trailer { footer_blocks: self.footer.blocks() as u32, data_end: self.data_end, entries: self.footer.entries() }
    }
}

/// Longest record that a segment of this size can hold.
pub(crate) const fn record_len_max(segment_size: u64) -> usize {
    segment_size as usize - DATA_START as usize - 2 * BLOCK
}

/// Writes the footer and the trailer of `full` at the end of its file, `at_once` bytes at a time.
/// Returns the bytes written.
pub(crate) fn write_footer(store: StoreId, full: &Full, file: &dyn File, at_once: usize) -> io::Result<u64> {
    let (life, blocks) = (full.life, full.footer.blocks());
    let len = (blocks + 1) * BLOCK;
    let start = full.size - len as u64;
    assert!(start >= u64::from(full.data_end), "the footer lies after the records");
    let mut buf = AlignedBuf::zeroed((at_once / BLOCK * BLOCK).clamp(BLOCK, len));
    for first in (0..=blocks).step_by(buf.len() / BLOCK) {
        let offset = start + (first * BLOCK) as u64;
        let piece = buf.len().min(len - first * BLOCK);
        for (number, block) in (first..).zip(buf[..piece].chunks_exact_mut(BLOCK)) {
            if number < blocks {
                block.copy_from_slice(full.footer.block(number));
                footer::finish_block(store, life.base.plus(start + (number * BLOCK) as u64), block);
            } else {
                block.fill(0);
                format::encode_trailer(store, &life, &full.trailer(), block);
            }
        }
        file.write_at(offset, &buf[..piece])?;
    }
    Ok(len as u64)
}
