//! Lists the records of a sealed segment: from its footer, or from the records themselves where the
//! footer is damaged.

use std::io;

use super::footer::{self, FooterEntry};
use super::format::{self, DATA_START};
use super::table::Row;
use crate::codec::{round_down, round_up};
use crate::id::StoreId;
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, SECTOR};

/// Bytes per read of a [`SegmentView`] that is to be fast.
pub(crate) const WINDOW: usize = 1 << 20;
/// Bytes per read of a [`SegmentView`] in the background: other reads wait less for a short one.
pub(crate) const SMALL_WINDOW: usize = 64 << 10;

/// The contents of a sealed segment.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    /// All known records, in the order of their positions.
    pub(crate) entries: Vec<FooterEntry>,
    /// Number of stretches for which neither the footer block nor the records verify.
    pub(crate) lost: u64,
    /// Offset at which the last lost stretch ends.
    pub(crate) lost_to: u32,
}

/// Lists the records of a sealed segment. A block that cannot be read counts as one that does not
/// verify.
pub(crate) fn entries(store: StoreId, row: &Row, hash_seed: u64, file: &dyn File) -> Contents {
    let block = BLOCK as u64;
    let trailer_at = row.size - block;
    let mut trailer = AlignedBuf::zeroed(BLOCK);
    read_or_zero(file, trailer_at, &mut trailer);
    let stated = format::decode_trailer(store, &trailer).filter(|(life, _)| *life == row.life).map(|(_, t)| t);
    // A trailer that verifies and states nonsense is as good as none.
    let stated = stated.filter(|t| {
        let footer_at = trailer_at.checked_sub(u64::from(t.footer_blocks) * block);
        footer_at.is_some_and(|at| (DATA_START.into()..=at).contains(&t.data_end.into()))
    });
    let footer_at = match stated {
        Some(trailer) => trailer_at - u64::from(trailer.footer_blocks) * block,
        None => first_footer_block(store, row, file),
    };
    let data_end = stated.map_or(footer_at as u32, |t| t.data_end);
    let mut bytes = AlignedBuf::zeroed((trailer_at - footer_at).max(block) as usize);
    if footer_at < trailer_at {
        read_or_zero(file, footer_at, &mut bytes);
    }
    let mut contents = Contents { entries: Vec::with_capacity(bytes.len() / footer::ENTRY_LEN_MIN), ..Contents::default() };
    let mut known_to = DATA_START;
    // Without a trailer the number of footer blocks is unknown: blocks may be missing at the front.
    let mut gap = stated.is_none();
    for (i, chunk) in bytes[..(trailer_at - footer_at) as usize].chunks_exact(BLOCK).enumerate() {
        let at = row.life.base.plus(footer_at + (i * BLOCK) as u64);
        let in_order = |entries: &Vec<FooterEntry>| {
            entries.first().is_none_or(|e| e.offset >= known_to) && entries.last().is_none_or(|e| e.offset + e.len <= data_end)
        };
        let Some(block_entries) = footer::decode_block(store, at, chunk).filter(in_order) else {
            gap = true;
            continue;
        };
        if let (true, Some(first)) = (gap, block_entries.first()) {
            scan(store, row, hash_seed, file, known_to..first.offset, &mut contents);
            gap = false;
        }
        known_to = block_entries.last().map_or(known_to, |e| e.offset + e.len);
        contents.entries.extend(block_entries);
    }
    if gap {
        scan(store, row, hash_seed, file, known_to..data_end, &mut contents);
    }
    contents
}

/// Fills `buf`, block by block if one read of it all fails. A block that cannot be read becomes
/// zeros.
fn read_or_zero(file: &dyn File, offset: u64, buf: &mut [u8]) {
    if file.read_at(offset, buf).is_err() {
        for (i, block) in buf.chunks_mut(BLOCK).enumerate() {
            let read: io::Result<()> = file.read_at(offset + (i * BLOCK) as u64, block);
            if read.is_err() {
                block.fill(0);
            }
        }
    }
}

/// Offset of the first footer block, found without a trailer. Steps back from the trailer block as
/// long as blocks verify.
fn first_footer_block(store: StoreId, row: &Row, file: &dyn File) -> u64 {
    let mut at = row.size - BLOCK as u64;
    let mut block = AlignedBuf::zeroed(BLOCK);
    while at > u64::from(DATA_START) + BLOCK as u64 {
        read_or_zero(file, at - BLOCK as u64, &mut block);
        if footer::decode_block(store, row.life.base.plus(at - BLOCK as u64), &block).is_none() {
            break;
        }
        at -= BLOCK as u64;
    }
    at
}

/// Adds the records in `range`, one after the other. A record that does not verify ends the scan,
/// and the rest of the range is lost.
fn scan(store: StoreId, row: &Row, hash_seed: u64, file: &dyn File, range: std::ops::Range<u32>, contents: &mut Contents) {
    if range.is_empty() {
        return;
    }
    let start = round_down(range.start.into(), SECTOR as u64);
    let end = round_up(range.end.into(), SECTOR as u64).min(row.size);
    let mut bytes = AlignedBuf::zeroed((end - start) as usize);
    read_or_zero(file, start, &mut bytes);
    let mut offset = range.start;
    while offset < range.end {
        let here = &bytes[(u64::from(offset) - start) as usize..];
        let at = row.life.base.plus(offset.into());
        let Some(record) = format::decode_record(store, at, row.life.base_lsn, here) else {
            contents.lost += 1;
            contents.lost_to = range.end;
            return;
        };
        let (hash, tombstone) = record.effect(hash_seed, here);
        contents.entries.push(FooterEntry { hash, offset, len: record.len as u32, lsn: record.lsn, tombstone });
        offset += record.len as u32;
    }
}

/// A sliding view of a segment file for reading it from front to back.
pub(crate) struct SegmentView<'a> {
    file: &'a dyn File,
    size: u64,
    buf: AlignedBuf,
    /// Range of the file that `buf` holds.
    held: std::ops::Range<u64>,
}

impl<'a> SegmentView<'a> {
    /// A view of a file of `size` bytes that reads `at_once` bytes at a time.
    pub(crate) fn new(file: &'a dyn File, size: u64, at_once: usize) -> Self {
        Self { file, size, buf: AlignedBuf::zeroed(at_once.min(size as usize)), held: 0..0 }
    }

    /// The `len` bytes at `offset`.
    pub(crate) fn bytes(&mut self, offset: u32, len: u32) -> io::Result<&[u8]> {
        let (start, end) = (u64::from(offset), u64::from(offset) + u64::from(len));
        if start < self.held.start || end > self.held.end {
            let from = round_down(start, SECTOR as u64);
            let need = (round_up(end, SECTOR as u64) - from) as usize;
            if need > self.buf.len() {
                self.buf = AlignedBuf::zeroed(need);
                self.held = 0..0;
            }
            let to = (from + self.buf.len() as u64).min(self.size);
            let held = std::mem::replace(&mut self.held, 0..0);
            let mut kept = 0;
            if held.contains(&from) && held.end < to {
                kept = (held.end - from) as usize;
                self.buf.copy_within((from - held.start) as usize..(held.end - held.start) as usize, 0);
            }
            let whole = self.file.read_at(from + kept as u64, &mut self.buf[kept..(to - from) as usize]);
            self.held = match whole {
                Ok(()) => from..to,
                // Part of the window cannot be read. These bytes may still be readable on their
                // own.
                Err(_) => {
                    self.file.read_at(from, &mut self.buf[..need])?;
                    from..from + need as u64
                }
            };
        }
        let at = (start - self.held.start) as usize;
        Ok(&self.buf[at..at + len as usize])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{KeyHash, Lsn, Position, SegmentId};
    use crate::io::sim::SimDisk;
    use crate::segment::table::{Stage, WalStart};

    /// A segment without records whose footer lists `entry`, and whose trailer is `trailer`.
    fn contents(entry: &FooterEntry, trailer: format::Trailer) -> Contents {
        const SIZE: usize = 16 * BLOCK;
        let (store, disk) = (StoreId(3), SimDisk::new(1));
        let life = format::Life { id: SegmentId(0), base: Position(SIZE as u64), base_lsn: Lsn(1) };
        let row = Row { stage: Stage::Sealed, size: SIZE as u64, life, last_lsn: Lsn(1), wal_start: WalStart::default(), moved_until: 0 };
        let mut bytes = AlignedBuf::zeroed(SIZE);
        let mut footer = footer::Builder::default();
        footer.push(entry);
        let at = SIZE - 2 * BLOCK;
        bytes[at..at + BLOCK].copy_from_slice(&footer.finish(store, |_| life.base.plus(at as u64)));
        format::encode_trailer(store, &life, &trailer, &mut bytes[SIZE - BLOCK..]);
        let file = disk.create("segment.0", SIZE as u64).unwrap();
        file.write_at(0, &bytes).unwrap();
        entries(store, &row, 7, file.as_ref())
    }

    #[test]
    fn a_footer_that_verifies_and_states_nonsense_counts_as_damaged() {
        let entry = FooterEntry { hash: KeyHash(9), offset: DATA_START, len: 64, lsn: Lsn(1), tombstone: false };
        let trailer = format::Trailer { footer_blocks: 1, data_end: DATA_START + 64, entries: 1 };
        assert_eq!(contents(&entry, trailer).entries, [entry]);
        // Beyond the segment, beyond the data, before the data, and longer than the data.
        for (offset, len) in [(u32::MAX - 63, 56), (17 * BLOCK as u32, 64), (8 * BLOCK as u32, 64), (8, 64), (DATA_START, 1 << 30)] {
            let found = contents(&FooterEntry { offset, len, ..entry }, trailer);
            assert_eq!((found.entries.len(), found.lost), (0, 1), "{offset} + {len}");
        }
        for (footer_blocks, data_end) in [(16, DATA_START), (u32::MAX, DATA_START), (1, u32::MAX), (1, 15 * BLOCK as u32), (1, 0)] {
            let found = contents(&entry, format::Trailer { footer_blocks, data_end, entries: 1 });
            assert_eq!(found.entries, [entry], "the footer block is found without the trailer");
        }
    }

    #[test]
    fn a_view_shows_the_contents_of_the_file_wherever_it_moves() {
        const SIZE: usize = 64 * BLOCK;
        let disk = SimDisk::new(1);
        let file = disk.create("file", SIZE as u64).unwrap();
        let mut bytes = AlignedBuf::zeroed(SIZE);
        bytes.iter_mut().enumerate().for_each(|(i, byte)| *byte = (i / 251 + i) as u8);
        file.write_at(0, &bytes).unwrap();
        for (at_once, step, back) in
            [(BLOCK, 1_000, 0), (2 * BLOCK, 3_000, 0), (BLOCK, 9_000, 0), (4 * BLOCK, 700, 5_000), (1 << 20, 6_000, 90)]
        {
            let mut window = SegmentView::new(file.as_ref(), SIZE as u64, at_once);
            let mut at = 8;
            while at + step <= SIZE {
                assert_eq!(window.bytes(at as u32, step as u32).unwrap(), &bytes[at..at + step], "{at_once}, {step}, {at}");
                if back > 0 && at > back {
                    assert_eq!(window.bytes((at - back) as u32, 64).unwrap(), &bytes[at - back..at - back + 64]);
                }
                at += step + step / 7;
            }
        }
    }
}
