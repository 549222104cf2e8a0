//! The footer lists the records of a segment without their values. It is written when the segment
//! is sealed. Recovery rebuilds the index from footers, and applies newer footers to a checkpoint.
//!
#![doc = concat!("```text\n", include_str!("footer.layout.txt"), "```")]
//! The records of one block follow each other, so the lengths of earlier entries give the offset of
//! an entry. Each block can be decoded alone: damage to one loses only its own entries.

use crate::codec::{self, Put, Reader, unzigzag, varint_len, zigzag};
use crate::id::{KeyHash, Lsn, Position, StoreId, UNIT};
use crate::io::BLOCK;

/// The table above, which `inspect layout` prints.
pub(crate) const LAYOUT: &str = include_str!("footer.layout.txt");
const FOOTER_MAGIC: u32 = u32::from_le_bytes(*b"EWSF");
const HEAD_LEN: usize = 24;
/// Length of the shortest entry: two varints of one byte and a hash.
pub(crate) const ENTRY_LEN_MIN: usize = 10;

/// One record as the footer lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FooterEntry {
    pub(crate) hash: KeyHash,
    pub(crate) offset: u32,
    pub(crate) len: u32,
    pub(crate) lsn: Lsn,
    pub(crate) tombstone: bool,
}

/// Collects entries into blocks while a segment is filled.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    /// Whole blocks without their checks, which depend on the position of the footer.
    blocks: Vec<u8>,
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
        self.blocks.len() + BLOCK
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries
    }

    pub(crate) fn blocks(&self) -> u32 {
        (self.blocks.len() / BLOCK) as u32
    }

    /// Bytes of allocated memory.
    pub(crate) fn allocated(&self) -> usize {
        self.blocks.capacity()
    }

    /// Adds a record that lies behind all earlier ones.
    pub(crate) fn push(&mut self, entry: &FooterEntry) {
        let length = u64::from(entry.len) / UNIT as u64 * 2 + u64::from(entry.tombstone);
        let delta = |previous: Lsn| zigzag(entry.lsn.0.wrapping_sub(previous.0) as i64);
        let need = varint_len(length) + varint_len(delta(self.previous)) + 8;
        if self.blocks.is_empty() || self.used + need > BLOCK || entry.offset != self.next_offset {
            self.open_block(entry);
        }
        let start = self.blocks.len() - BLOCK;
        let mut out = Vec::with_capacity(24);
        out.put_varint(length);
        out.put_varint(delta(self.previous));
        out.put_u64(entry.hash.0);
        let block = &mut self.blocks[start..];
        block[self.used..self.used + out.len()].copy_from_slice(&out);
        self.used += out.len();
        let count = u16::from_le_bytes([block[4], block[5]]) + 1;
        block[4..6].copy_from_slice(&count.to_le_bytes());
        block[6..8].copy_from_slice(&(self.used as u16).to_le_bytes());
        self.previous = entry.lsn;
        self.next_offset = entry.offset + entry.len;
        self.entries += 1;
    }

    fn open_block(&mut self, first: &FooterEntry) {
        let start = self.blocks.len();
        self.blocks.resize(start + BLOCK, 0);
        self.blocks[start + 8..start + 12].copy_from_slice(&first.offset.to_le_bytes());
        self.blocks[start + 16..start + 24].copy_from_slice(&first.lsn.0.to_le_bytes());
        self.used = HEAD_LEN;
        self.previous = first.lsn;
    }

    /// The finished blocks. `place` maps their length to the position of the first block.
    pub(crate) fn finish(&self, store: StoreId, place: impl FnOnce(usize) -> Position) -> Vec<u8> {
        let at = place(self.blocks.len());
        let mut blocks = self.blocks.clone();
        for (i, block) in blocks.chunks_exact_mut(BLOCK).enumerate() {
            let check = codec::checksum(store, FOOTER_MAGIC, at.plus((i * BLOCK) as u64).0, &[&block[4..]]);
            block[..4].copy_from_slice(&check.to_le_bytes());
        }
        blocks
    }

    /// The entries added so far.
    pub(crate) fn entries_so_far(&self) -> Vec<FooterEntry> {
        self.blocks.chunks_exact(BLOCK).filter_map(entries_of).flatten().collect()
    }
}

/// The entries of the footer block at position `at`, or `None` if it does not verify.
pub(crate) fn decode_block(store: StoreId, at: Position, block: &[u8]) -> Option<Vec<FooterEntry>> {
    if Reader::new(block).u32()? != codec::checksum(store, FOOTER_MAGIC, at.0, &[block.get(4..)?]) {
        return None;
    }
    entries_of(block)
}

/// The entries of a footer block, whose offsets and ends fit into 32 bits. Does not verify the
/// block.
fn entries_of(block: &[u8]) -> Option<Vec<FooterEntry>> {
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
                let bound = builder.len_with_one_more();
                builder.push(entry);
                prop_assert!(builder.blocks.len() <= bound);
            }
            let at = Position(1 << 33);
            prop_assert_eq!(read_back(&builder.finish(STORE, |_| at), at), entries);
        }
    }

    #[test]
    fn a_damaged_block_is_refused_and_its_neighbours_stand() {
        let entries = sample(1500, 1);
        let mut builder = Builder::default();
        entries.iter().for_each(|e| builder.push(e));
        let mut bytes = builder.finish(STORE, |_| Position(0));
        bytes[BLOCK + 2000] ^= 4;
        let whole: Vec<bool> = (0..bytes.len() / BLOCK)
            .map(|i| decode_block(STORE, Position((i * BLOCK) as u64), &bytes[i * BLOCK..(i + 1) * BLOCK]).is_some())
            .collect();
        assert_eq!(whole.iter().filter(|w| !**w).count(), 1);
        assert!(!whole[1]);
    }

    #[test]
    fn consecutive_small_records_take_ten_bytes_each() {
        let mut builder = Builder::default();
        let mut offset = 4096;
        for i in 0..4000u64 {
            builder.push(&FooterEntry { hash: KeyHash(i), offset, len: 112, lsn: Lsn(i + 1), tombstone: false });
            offset += 112;
        }
        assert!(builder.finish(STORE, |_| Position(0)).len() <= 4000 * 10 + BLOCK + 4000 * 10 / 100);
    }
}
