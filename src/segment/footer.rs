//! The footer lists the records of a segment without their values. It is written when the segment
//! is sealed. Recovery rebuilds the index from footers, and applies newer footers to a checkpoint.
//!
#![doc = concat!("```text\n", include_str!("footer.layout.txt"), "```")]
//! The records of one block follow each other, so the lengths of earlier entries give the offset of
//! an entry. Each block can be decoded alone: damage to one loses only its own entries.

use std::collections::VecDeque;

use crate::codec::{self, Put, Reader, unzigzag, varint_len, zigzag};
use crate::id::{KeyHash, Lsn, Position, StoreId, UNIT};
use crate::io::BLOCK;
use crate::io::aligned::{AlignedBuf, MAPPED_LEN_MIN};

/// The table above, which `inspect layout` prints.
pub(crate) const LAYOUT: &str = include_str!("footer.layout.txt");
const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"EWSF");
const HEAD_LEN: usize = 24;
/// One record as the footer lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    pub(crate) hash: KeyHash,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) lsn: Lsn,
    pub(crate) tombstone: bool,
}

/// Blocks in one buffer of a [`Builder`]. The buffer is a mapping, which goes back to the system.
pub(crate) const CHUNK_BLOCKS: usize = MAPPED_LEN_MIN / BLOCK;
/// Most bytes of an entry: two varints of 32 and 64 bits, and a hash.
const ENTRY_LEN_MAX: usize = 5 + 10 + 8;

/// Collects entries into blocks while a segment is filled.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    /// Blocks without their checks, which depend on the position of the footer. Each buffer holds
    /// [`CHUNK_BLOCKS`] of them, so the blocks are never copied as their number grows.
    chunks: VecDeque<AlignedBuf>,
    /// Number of blocks before those in `chunks`, which were taken out.
    taken: usize,
    /// Number of blocks, those included that were taken out.
    blocks: usize,
    /// Bytes used of the last block.
    used: usize,
    /// LSN of the last entry.
    previous: Lsn,
    /// Offset of a record that follows the last one directly.
    next_offset: u32,
    entries: u64,
}

impl Builder {
    /// Upper bound of the footer's length in bytes after one more entry.
    pub(crate) fn len_with_one_more(&self) -> usize {
        (self.blocks + 1) * BLOCK
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Offset at which the last record ends.
    pub(crate) fn data_end(&self) -> u32 {
        self.next_offset
    }

    /// Bytes of DRAM in use. Pages of a buffer that hold no block yet take none.
    pub(crate) fn allocated(&self) -> usize {
        (self.blocks - self.taken) * BLOCK
    }

    /// Bytes of DRAM in use after one more entry that directly follows the last one, at most.
    pub(crate) fn allocated_with_one_more(&self) -> usize {
        let needs_block = self.blocks == 0 || self.used + ENTRY_LEN_MAX > BLOCK;
        self.allocated() + if needs_block { BLOCK } else { 0 }
    }

    /// Adds a record that lies behind all earlier ones.
    pub(crate) fn push(&mut self, entry: &FooterEntry) {
        let length = u64::from(entry.len) / UNIT as u64 * 2 + u64::from(entry.tombstone);
        let delta = |previous: Lsn| zigzag(entry.lsn.0.wrapping_sub(previous.0) as i64);
        let need = varint_len(length) + varint_len(delta(self.previous)) + 8;
        if self.blocks == 0 || self.used + need > BLOCK || entry.offset != self.next_offset {
            self.open_block(entry);
        }
        let mut out = Vec::with_capacity(ENTRY_LEN_MAX);
        out.put_varint(length);
        out.put_varint(delta(self.previous));
        out.put_u64(entry.hash.0);
        let used = self.used;
        self.used += out.len();
        let now_used = self.used as u16;
        let block = self.block_mut(self.blocks - 1);
        block[used..used + out.len()].copy_from_slice(&out);
        let count = u16::from_le_bytes([block[4], block[5]]) + 1;
        block[4..6].copy_from_slice(&count.to_le_bytes());
        block[6..8].copy_from_slice(&now_used.to_le_bytes());
        self.previous = entry.lsn;
        self.next_offset = entry.offset + entry.len;
        self.entries += 1;
    }

    fn open_block(&mut self, first: &FooterEntry) {
        if (self.blocks - self.taken).is_multiple_of(CHUNK_BLOCKS) {
            self.chunks.push_back(AlignedBuf::zeroed(CHUNK_BLOCKS * BLOCK));
        }
        self.blocks += 1;
        let block = self.block_mut(self.blocks - 1);
        block[8..12].copy_from_slice(&first.offset.to_le_bytes());
        block[16..24].copy_from_slice(&first.lsn.0.to_le_bytes());
        self.used = HEAD_LEN;
        self.previous = first.lsn;
    }

    /// Number of blocks that were taken out.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// Takes the first [`CHUNK_BLOCKS`] blocks out, if no entry will be added to them. They have no
    /// checks yet.
    pub(crate) fn take_chunk(&mut self) -> Option<AlignedBuf> {
        if self.blocks - self.taken <= CHUNK_BLOCKS {
            return None;
        }
        self.taken += CHUNK_BLOCKS;
        self.chunks.pop_front()
    }

    /// A block that was not taken out. It has no check yet.
    pub(crate) fn block(&self, number: usize) -> &[u8] {
        let (chunk, at) = self.place(number);
        &self.chunks[chunk][at..at + BLOCK]
    }

    /// A block that was not taken out. It has no check yet.
    pub(crate) fn block_mut(&mut self, number: usize) -> &mut [u8] {
        let (chunk, at) = self.place(number);
        &mut self.chunks[chunk][at..at + BLOCK]
    }

    fn place(&self, number: usize) -> (usize, usize) {
        let number = number - self.taken;
        (number / CHUNK_BLOCKS, number % CHUNK_BLOCKS * BLOCK)
    }

    /// The entries of the blocks that were not taken out.
    pub(crate) fn iter(&self) -> impl Iterator<Item = FooterEntry> {
        (self.taken..self.blocks).filter_map(|number| entries_of(self.block(number))).flatten()
    }
}

/// Writes the check of a block, which will lie at position `at`.
pub(crate) fn finish_block(store: StoreId, at: Position, block: &mut [u8]) {
    let check = codec::checksum(store, FOOTER_MAGIC, at.0, &[&block[4..]]);
    block[..4].copy_from_slice(&check.to_le_bytes());
}

/// Turns the entry with this number in a block into a tombstone. Its length stays.
pub(crate) fn bury(block: &mut [u8], number: usize) {
    let mut at = HEAD_LEN;
    let past_varint = |block: &[u8], at: usize| at + 1 + block[at..].iter().take_while(|byte| **byte & 0x80 != 0).count();
    for _ in 0..number {
        at = past_varint(block, at);
        at = past_varint(block, at) + 8;
    }
    // The lowest bit of the first varint.
    block[at] |= 1;
}

/// The entries of the footer block at position `at`, or `None` if it does not verify.
pub(crate) fn decode_block(store: StoreId, at: Position, block: &[u8]) -> Option<Vec<FooterEntry>> {
    if !verifies(store, at, block) {
        return None;
    }
    entries_of(block)
}

/// Whether the check of the footer block at position `at` is right.
pub(crate) fn verifies(store: StoreId, at: Position, block: &[u8]) -> bool {
    let check = block.get(4..).map(|rest| codec::checksum(store, FOOTER_MAGIC, at.0, &[rest]));
    check.is_some() && Reader::new(block).u32() == check
}

/// The entries of a footer block, whose offsets and ends fit into 32 bits. Does not verify the
/// block.
pub(crate) fn entries_of(block: &[u8]) -> Option<Vec<FooterEntry>> {
    let mut r = Reader::new(block.get(4..)?);
    let (count, used) = (r.u16()?, r.u16()?);
    let mut offset = r.u32()?;
    r.u32()?;
    let mut lsn = r.u64()?;
    let mut r = Reader::new(block.get(HEAD_LEN..used.into())?);
    let mut entries = Vec::with_capacity(count.into());
    for _ in 0..count {
        let length = r.varint()?;
        let len = u32::try_from((length / 2).checked_mul(UNIT as u64)?).ok()?;
        lsn = lsn.wrapping_add_signed(unzigzag(r.varint()?));
        let hash = KeyHash(r.u64()?);
        entries.push(FooterEntry { hash, offset, len, lsn: Lsn(lsn), tombstone: length & 1 == 1 });
        offset = offset.checked_add(len)?;
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STORE: StoreId = StoreId(3);

    fn sample(count: usize, stride: u64) -> Vec<FooterEntry> {
        let mut offset = 4096;
        (0..count as u64)
            .map(|i| {
                let len = 8 * (1 + (i % 200) as u32);
                let entry = FooterEntry {
                    hash: KeyHash(i.wrapping_mul(0x9e37_79b9_7f4a_7c15)),
                    offset,
                    len,
                    lsn: Lsn((1000 + i * stride) ^ (i & 3)),
                    tombstone: i % 7 == 0,
                };
                offset += len;
                entry
            })
            .collect()
    }

    /// The footer as it would lie at position `at`.
    fn finish(builder: &Builder, at: Position) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..builder.blocks()).flat_map(|number| builder.block(number).to_vec()).collect();
        for (i, block) in bytes.chunks_exact_mut(BLOCK).enumerate() {
            finish_block(STORE, at.plus((i * BLOCK) as u64), block);
        }
        bytes
    }

    fn read_back(bytes: &[u8], at: Position) -> Vec<FooterEntry> {
        let blocks = bytes.chunks_exact(BLOCK).enumerate();
        blocks.flat_map(|(i, b)| decode_block(STORE, at.plus((i * BLOCK) as u64), b).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn entries_round_trip(count in 0usize..2000, stride in 0u64..1 << 40) {
            let entries = sample(count, stride);
            let mut builder = Builder::default();
            for entry in &entries {
                let (bound, in_dram) = (builder.len_with_one_more(), builder.allocated_with_one_more());
                builder.push(entry);
                prop_assert!(builder.blocks() * BLOCK <= bound && builder.allocated() <= in_dram);
            }
            let at = Position(1 << 33);
            prop_assert_eq!(read_back(&finish(&builder, at), at), entries);
        }

        #[test]
        fn a_buried_entry_is_a_tombstone_and_the_others_stay(which in any::<prop::sample::Index>(), stride in 0u64..1 << 40) {
            let mut entries = sample(150, stride);
            let mut builder = Builder::default();
            entries.iter().for_each(|entry| builder.push(entry));
            prop_assert_eq!(builder.blocks(), 1);
            let which = which.index(entries.len());
            bury(builder.block_mut(0), which);
            entries[which].tombstone = true;
            prop_assert_eq!(builder.iter().collect::<Vec<_>>(), entries);
        }
    }

    #[test]
    fn a_damaged_block_is_refused_and_its_neighbours_stand() {
        let entries = sample(1500, 1);
        let mut builder = Builder::default();
        entries.iter().for_each(|e| builder.push(e));
        let mut bytes = finish(&builder, Position(0));
        bytes[BLOCK + 2000] ^= 4;
        let whole: Vec<bool> = (0..bytes.len() / BLOCK)
            .map(|i| decode_block(STORE, Position((i * BLOCK) as u64), &bytes[i * BLOCK..(i + 1) * BLOCK]).is_some())
            .collect();
        assert_eq!(whole.iter().filter(|w| !**w).count(), 1);
        assert!(!whole[1]);
    }

    #[test]
    fn chunks_that_are_taken_out_hold_the_first_blocks() {
        let entries = sample(40_000, 1);
        let (mut builder, mut all) = (Builder::default(), Vec::new());
        for entry in &entries {
            builder.push(entry);
            while let Some(chunk) = builder.take_chunk() {
                all.extend(chunk.chunks_exact(BLOCK).flat_map(|block| entries_of(block).unwrap()));
                assert!(builder.allocated() <= CHUNK_BLOCKS * BLOCK);
            }
        }
        assert!(builder.taken() >= 2 * CHUNK_BLOCKS);
        all.extend(builder.iter());
        assert_eq!(all, entries);
    }

    #[test]
    fn consecutive_small_records_take_ten_bytes_each() {
        let mut builder = Builder::default();
        let mut offset = 4096;
        for i in 0..4000u64 {
            builder.push(&FooterEntry { hash: KeyHash(i), offset, len: 112, lsn: Lsn(i + 1), tombstone: false });
            offset += 112;
        }
        assert!(builder.blocks() * BLOCK <= 4000 * 10 + BLOCK + 4000 * 10 / 100);
    }
}
