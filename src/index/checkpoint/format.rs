//! The header and the chunks of a checkpoint.
//!
#![doc = concat!("```text\n", include_str!("format.layout.txt"), "```")]
//! The payloads of all chunks are one sequence:
//! 1. the base position of each segment (u64);
//! 2. for each partition, the number of its slots (u32) and the slots (u64).

use crate::codec::{self, HeaderBlock, Put};
use crate::id::StoreId;
use crate::index::geometry::Geometry;

/// The table above, as `inspect layout` prints it.
pub(crate) const LAYOUT: &str = include_str!("format.layout.txt");
const CHUNK_MAGIC: u32 = u32::from_le_bytes(*b"EWCC");
pub(crate) const VERSION: u32 = 1;
const HEADER: HeaderBlock = HeaderBlock::new(*b"EWCP", VERSION);
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
        let mut fields = Vec::with_capacity(24);
        fields.put_u32(self.geometry.partition_bits);
        fields.put_u32(self.geometry.segment_bits);
        fields.put_u32(self.geometry.offset_bits);
        fields.put_u32(self.bases);
        fields.put_u64(self.entries);
        HEADER.encode(store, self.chunks, self.sequence, &fields, block);
    }

    pub(crate) fn decode(store: StoreId, block: &[u8]) -> Option<Self> {
        let (chunks, sequence, mut r) = HEADER.decode(store, block)?;
        let geometry = Geometry::of_bits(r.u32()?, r.u32()?, r.u32()?)?;
        let header = Self { sequence, geometry, chunks, bases: r.u32()?, entries: r.u64()? };
        // A slot of an entry takes eight bytes of the chunks.
        let room = u64::from(chunks) * PAYLOAD_LEN as u64 / 8;
        (header.entries <= room && u64::from(header.bases) <= room).then_some(header)
    }
}

/// The checksum of chunk `number`.
pub(super) fn chunk_check(store: StoreId, sequence: u64, number: u32, chunk: &[u8]) -> u32 {
    codec::checksum(store, CHUNK_MAGIC, sequence | u64::from(number) << 40, &[&chunk[4..]])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BLOCK;

    #[test]
    fn a_header_that_verifies_and_states_nonsense_is_none() {
        let sound = Header { sequence: 3, geometry: Geometry::new(8, 64 << 10), chunks: 2, bases: 8, entries: 700 };
        let decoded = |header: &Header| {
            let mut block = [0; BLOCK];
            header.encode(StoreId(1), &mut block);
            Header::decode(StoreId(1), &block)
        };
        assert_eq!(decoded(&sound), Some(sound));
        let largest = Geometry::new(4_096, 1 << 31);
        assert_eq!(decoded(&Header { geometry: largest, ..sound }).map(|header| header.geometry), Some(largest));
        let widths = [(4, 3, 60), (63, 3, 13), (64, 3, 13), (u32::MAX, 3, 13), (4, 32, 13), (4, u32::MAX, 13), (4, 3, u32::MAX)];
        for (partition_bits, segment_bits, offset_bits) in widths {
            let geometry = Geometry { partition_bits, segment_bits, offset_bits };
            assert_eq!(decoded(&Header { geometry, ..sound }), None, "{geometry:?}");
        }
        assert_eq!(decoded(&Header { entries: u64::MAX, ..sound }), None);
        assert_eq!(decoded(&Header { bases: u32::MAX, ..sound }), None);
    }
}
