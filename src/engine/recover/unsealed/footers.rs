//! The footers of unsealed segments, while recovery collects them.
//!
//! A segment that an older program filled may have so many records that its footer takes more DRAM
//! than the budget allows. Then whole pieces of the footer go into the segment file at once. The
//! length of the footer is not known yet, so the blocks lie in reverse order at the end of the
//! file, where the segment has room for the footer:
//!
//! ```text
//!  records ...   │ free    │ block 3 │ block 2 │ block 1 │ block 0 │ trailer │
//! ```
//! Once all records are known, [`finish`] reverses the blocks in their place. Only the manifest
//! that states "sealed" makes the footer count, so a recovery that is cut off begins again.

use std::io;

use crate::id::{Position, StoreId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, read_twice};
use crate::segment::footer;
use crate::segment::format;
use crate::segment::table::Row;
use crate::segment::writer::Full;

/// Bits in a piece of [`Bits`].
const PIECE_BITS: usize = 8 * BLOCK;

/// A bit for each record of a segment. It grows without copies.
#[derive(Debug, Default)]
pub(super) struct Bits {
    pieces: Vec<Box<[u64; BLOCK / 8]>>,
    len: usize,
}

impl Bits {
    pub(super) fn push(&mut self, bit: bool) {
        if self.len.is_multiple_of(PIECE_BITS) {
            self.pieces.push(Box::new([0; BLOCK / 8]));
        }
        let within = self.len % PIECE_BITS;
        self.pieces[self.len / PIECE_BITS][within / 64] |= u64::from(bit) << (within % 64);
        self.len += 1;
    }

    pub(super) fn get(&self, number: usize) -> bool {
        let within = number % PIECE_BITS;
        self.pieces[number / PIECE_BITS][within / 64] >> (within % 64) & 1 == 1
    }
}

/// Offset of a block of the footer before [`finish`]. The segment must have room for it.
fn offset_of(row: &Row, number: usize) -> u64 {
    row.size - ((number + 2) * BLOCK) as u64
}

/// Whether a segment whose records end at `data_end` has room for a footer of `blocks` blocks.
pub(super) fn fits(row: &Row, data_end: u32, blocks: usize) -> bool {
    u64::from(data_end) + ((blocks + 1) * BLOCK) as u64 <= row.size
}

fn reverse(blocks: &mut [u8]) {
    let (len, mut swap) = (blocks.len() / BLOCK, [0; BLOCK]);
    for i in 0..len / 2 {
        let (front, back) = blocks.split_at_mut((len - 1 - i) * BLOCK);
        let (front, back) = (&mut front[i * BLOCK..(i + 1) * BLOCK], &mut back[..BLOCK]);
        swap.copy_from_slice(front);
        front.copy_from_slice(back);
        back.copy_from_slice(&swap);
    }
}

/// Writes the blocks in `blocks`, from number `first` on, to their places before [`finish`].
pub(super) fn write(store: StoreId, row: &Row, first: usize, mut blocks: AlignedBuf, file: &dyn File) -> io::Result<()> {
    let at = offset_of(row, first + blocks.len() / BLOCK - 1);
    reverse(&mut blocks);
    for (place, block) in (at..).step_by(BLOCK).zip(blocks.chunks_exact_mut(BLOCK)) {
        footer::finish_block(store, row.life.base.plus(place), block);
    }
    file.write_at(at, &blocks)
}

/// Reads `count` blocks, from number `first` on, from their places before [`finish`].
pub(super) fn read(store: StoreId, row: &Row, first: usize, count: usize, file: &dyn File) -> io::Result<AlignedBuf> {
    let mut blocks = AlignedBuf::zeroed(count * BLOCK);
    read_verified(store, row, offset_of(row, first + count - 1), &mut blocks, file)?;
    reverse(&mut blocks);
    Ok(blocks)
}

/// Reads blocks that [`write`] wrote at `at`.
fn read_verified(store: StoreId, row: &Row, at: u64, blocks: &mut [u8], file: &dyn File) -> io::Result<()> {
    read_twice(|| file.read_at(at, blocks))?;
    let mut places = (at..).step_by(BLOCK).zip(blocks.chunks_exact(BLOCK));
    match places.all(|(place, block)| footer::verifies(store, row.life.base.plus(place), block)) {
        true => Ok(()),
        false => Err(io::Error::new(io::ErrorKind::InvalidData, "a block of a footer does not verify after it was written")),
    }
}

/// Puts the blocks of a whole footer, which [`write`] wrote, in order, and writes the trailer.
/// Takes about `at_once` bytes of DRAM.
pub(super) fn finish(store: StoreId, row: &Row, full: &Full, file: &dyn File, at_once: usize) -> io::Result<()> {
    let blocks = full.footer.blocks();
    let start = offset_of(row, blocks - 1);
    let position = |place: usize| -> Position { row.life.base.plus(start + (place * BLOCK) as u64) };
    let half = (at_once / 2 / BLOCK).clamp(1, blocks);
    let [mut front, mut back] = [AlignedBuf::zeroed(half * BLOCK), AlignedBuf::zeroed(half * BLOCK)];
    let (mut low, mut high) = (0, blocks);
    while low < high {
        // The block in the middle stays where it is.
        let count = half.min((high - low).div_ceil(2));
        let len = count * BLOCK;
        let (at_low, at_high) = (start + (low * BLOCK) as u64, start + ((high - count) * BLOCK) as u64);
        read_verified(store, row, at_low, &mut front[..len], file)?;
        read_verified(store, row, at_high, &mut back[..len], file)?;
        for (first, side) in [(high - count, &mut front), (low, &mut back)] {
            reverse(&mut side[..len]);
            for (place, block) in (first..).zip(side[..len].chunks_exact_mut(BLOCK)) {
                footer::finish_block(store, position(place), block);
            }
        }
        file.write_at(at_low, &back[..len])?;
        file.write_at(at_high, &front[..len])?;
        (low, high) = (low + count, high - count);
    }
    let mut trailer = AlignedBuf::zeroed(BLOCK);
    format::encode_trailer(store, &full.life, &full.trailer(), &mut trailer);
    file.write_at(row.size - BLOCK as u64, &trailer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{KeyHash, Lsn, SegmentId};
    use crate::io::sim::SimDisk;
    use crate::segment::footer::{Builder, CHUNK_BLOCKS, FooterEntry};
    use crate::segment::format::{DATA_START, Life};
    use crate::segment::reader::Listing;
    use crate::segment::table::{Stage, WalStart};

    const STORE: StoreId = StoreId(5);

    #[test]
    fn bits_are_those_that_were_pushed() {
        let mut bits = Bits::default();
        let bit = |n: usize| n.is_multiple_of(3) || n % 7 == 2;
        (0..2 * PIECE_BITS + 9).for_each(|n| bits.push(bit(n)));
        assert!((0..2 * PIECE_BITS + 9).all(|n| bits.get(n) == bit(n)));
    }

    #[test]
    fn a_footer_that_was_written_in_pieces_is_like_any_other() {
        let life = Life { id: SegmentId(0), base: Position(1 << 30), base_lsn: Lsn(1) };
        let row = Row { stage: Stage::Full, size: 4 << 20, life, last_lsn: Lsn(1), wal_start: WalStart::default(), moved_until: 0 };
        for (records, at_once) in [(14_000, BLOCK), (30_000, 4 * BLOCK), (43_210, 1 << 20), (60_001, 64 << 10)] {
            let disk = SimDisk::new(1);
            let file = disk.create("segment.0", row.size).unwrap();
            let (mut footer, mut entries, mut offset) = (Builder::default(), Vec::new(), DATA_START);
            for n in 0..records {
                let entry = FooterEntry { hash: KeyHash(n), offset, len: 24, lsn: Lsn(n + 1), tombstone: n % 5 == 0 };
                footer.push(&entry);
                entries.push(entry);
                offset += entry.len;
                while let Some(chunk) = footer.take_chunk() {
                    write(STORE, &row, footer.taken() - CHUNK_BLOCKS, chunk, file.as_ref()).unwrap();
                }
            }
            let taken = footer.taken();
            assert!(taken > 0 && fits(&row, offset, footer.blocks()));
            let first = read(STORE, &row, 0, taken, file.as_ref()).unwrap();
            let so_far = first.chunks_exact(BLOCK).flat_map(|block| footer::entries_of(block).unwrap());
            assert!(so_far.chain(footer.iter()).eq(entries.iter().copied()));
            let mut rest = AlignedBuf::zeroed((footer.blocks() - taken) * BLOCK);
            (taken..).zip(rest.chunks_exact_mut(BLOCK)).for_each(|(n, block)| block.copy_from_slice(footer.block(n)));
            write(STORE, &row, taken, rest, file.as_ref()).unwrap();
            let full = Full { life, size: row.size, data_end: offset, footer, last_lsn: Lsn(records) };
            finish(STORE, &row, &full, file.as_ref(), at_once).unwrap();
            let mut listing = Listing::new(STORE, &row, 7, file.as_ref(), BLOCK);
            assert!(listing.by_ref().flatten().eq(entries), "{records} records");
            assert_eq!((listing.lost(), listing.data_bytes()), (0, records * 24));
        }
    }
}
