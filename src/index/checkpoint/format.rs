//! The header and the chunks of a checkpoint.
//!
#![doc = concat!("```text\n", include_str!("format.layout.txt"), "```")]
//! The payloads of all chunks are one sequence:
//! 1. the base position of each segment (u64);
//! 2. for each partition, the number of its slots (u32) and the slots (u64).

use crate::codec::{self, Put, Reader};
use crate::id::StoreId;
use crate::index::geometry::Geometry;

/// The table above, as `inspect layout` prints it.
pub(crate) const LAYOUT: &str = include_str!("format.layout.txt");
const HEADER_MAGIC: u32 = u32::from_le_bytes(*b"EWCP");
const CHUNK_MAGIC: u32 = u32::from_le_bytes(*b"EWCC");
pub(crate) const VERSION: u32 = 1;
pub(crate) const CHUNK_LEN: usize = 64 << 10;
pub(super) const PAYLOAD_LEN: usize = CHUNK_LEN - 8;

/// The header of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) sequence: u64,
    pub(crate) geometry: Geometry,
    pub(crate) chunks: u32,
    pub(crate) bases: u32,
    pub(crate) entries: u64,
}

impl Header {
    pub(crate) fn encode(&self, store: StoreId, block: &mut [u8]) {
        let mut out = Vec::with_capacity(64);
        out.put_u32(self.chunks);
        out.put_u64(store.0);
        out.put_u64(self.sequence);
        out.put_u32(self.geometry.partition_bits);
        out.put_u32(self.geometry.segment_bits);
        out.put_u32(self.geometry.offset_bits);
        out.put_u32(self.bases);
        out.put_u64(self.entries);
        block.fill(0);
        block[..4].copy_from_slice(&HEADER_MAGIC.to_le_bytes());
        block[4..8].copy_from_slice(&VERSION.to_le_bytes());
        block[12..12 + out.len()].copy_from_slice(&out);
        let check = codec::checksum(store, HEADER_MAGIC, self.sequence, &[&block[12..]]);
        block[8..12].copy_from_slice(&check.to_le_bytes());
    }

    pub(crate) fn decode(store: StoreId, block: &[u8]) -> Option<Self> {
        let mut r = Reader::new(block);
        if r.u32()? != HEADER_MAGIC || r.u32()? != VERSION {
            return None;
        }
        let check = r.u32()?;
        let chunks = r.u32()?;
        let owner = r.u64()?;
        let sequence = r.u64()?;
        let geometry = Geometry { partition_bits: r.u32()?, segment_bits: r.u32()?, offset_bits: r.u32()? };
        let header = Self { sequence, geometry, chunks, bases: r.u32()?, entries: r.u64()? };
        let expected = codec::checksum(store, HEADER_MAGIC, sequence, &[block.get(12..)?]);
        (owner == store.0 && check == expected).then_some(header)
    }
}

/// The checksum of chunk `number`.
pub(super) fn chunk_check(store: StoreId, sequence: u64, number: u32, chunk: &[u8]) -> u32 {
    codec::checksum(store, CHUNK_MAGIC, sequence | u64::from(number) << 40, &[&chunk[4..]])
}
