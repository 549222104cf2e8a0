//! How the hash of a key and the location of its record share a slot of 64 bits.
//!
//! ```text
//! hash  [ partition: P bits | tag: T bits | unused ]
//! slot  [ tag: T bits | heat: 1 | read length: 6 | segment: S bits | offset / 8: O bits ]
//! ```
//! - `S` and `O` are wide enough for the segments of the store and for the offsets in one of them.
//! - `P = S + O - 13`, and at least 4. So one partition stands for 64 KiB of flash.
//! - `T` is the rest of the slot: `64 - 7 - S - O`.
//!
//! The partition and the tag together are the fingerprint. It has `P + T = 44` bits, and more in
//! stores so small that `P` is 4. Among N keys, a lookup or a blind replacement meets another key
//! with probability `N / 2^44`, which is 6 in a million at 100 M keys.
//!
//! Slots are compared as integers: the tag is on top, so the slots of a partition are sorted by
//! hash.

use crate::codec;
use crate::config::{SEGMENT_SIZE_MAX, SEGMENTS_MAX};
use crate::id::{KeyHash, Location, SegmentId, UNIT};
use crate::io::SECTOR;

const LEN_BITS: u32 = 6;
const HEAT_BITS: u32 = 1;
/// Read lengths up to this many sectors (16 KiB) are exact.
const EXACT_SECTORS: u64 = 32;

/// The widths of the fields of a slot in one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) partition_bits: u32,
    pub(crate) segment_bits: u32,
    pub(crate) offset_bits: u32,
}

/// The fields of a slot besides its tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) location: Location,
    /// Sectors to read for the whole record. Above 16 KiB it may be more than the record needs.
    pub(crate) sectors: u64,
    /// Whether the entry was read since its record was written.
    pub(crate) hot: bool,
}

impl IndexEntry {
    /// The entry for a record of `len` bytes at `location`.
    pub(crate) fn new(location: Location, len: usize) -> Self {
        let start = location.offset as usize % SECTOR;
        Self { location, sectors: (start + len).div_ceil(SECTOR) as u64, hot: false }
    }
}

impl Geometry {
    /// The widths for up to `segments` segments of up to `segment_size` bytes.
    pub(crate) fn new(segments: u32, segment_size: u64) -> Self {
        let segment_bits = ratio_ceil_log2(u64::from(segments), 1);
        let offset_bits = ratio_ceil_log2(segment_size, UNIT as u64);
        let partition_bits = (segment_bits + offset_bits).saturating_sub(13).max(4);
        Self { partition_bits, segment_bits, offset_bits }
    }

    /// The widths that a checkpoint states, if a store can have them.
    pub(crate) fn of_bits(partition_bits: u32, segment_bits: u32, offset_bits: u32) -> Option<Self> {
        let segments = 1u32.checked_shl(segment_bits).filter(|segments| u64::from(*segments) <= 2 * SEGMENTS_MAX)?;
        let segment_size = (UNIT as u64).checked_shl(offset_bits).filter(|size| *size <= SEGMENT_SIZE_MAX)?;
        Some(Self::new(segments, segment_size)).filter(|geometry| *geometry == Self { partition_bits, segment_bits, offset_bits })
    }

    pub(crate) const fn partitions(&self) -> usize {
        1 << self.partition_bits
    }

    const fn place_bits(&self) -> u32 {
        HEAT_BITS + LEN_BITS + self.segment_bits + self.offset_bits
    }

    pub(crate) const fn tag_bits(&self) -> u32 {
        64 - self.place_bits()
    }

    pub(crate) const fn partition(&self, hash: KeyHash) -> usize {
        (hash.0 >> (64 - self.partition_bits)) as usize
    }

    pub(crate) const fn tag(&self, hash: KeyHash) -> u64 {
        (hash.0 << self.partition_bits) >> (64 - self.tag_bits())
    }

    /// Partition and tag together: the bits of a hash that the index knows.
    pub(crate) const fn fingerprint(&self, hash: KeyHash) -> u64 {
        hash.0 >> (64 - self.partition_bits - self.tag_bits())
    }

    pub(crate) const fn tag_of(&self, slot: u64) -> u64 {
        slot >> self.place_bits()
    }

    /// The bit of [`IndexEntry::hot`].
    pub(crate) const fn heat_mask(&self) -> u64 {
        1 << (self.place_bits() - 1)
    }

    /// The code of the sectors to read for the record of a slot.
    fn len_code(&self, slot: u64) -> u64 {
        (slot >> (self.offset_bits + self.segment_bits)) & ((1 << LEN_BITS) - 1)
    }

    /// The expected length in bytes of the record of a slot.
    ///
    /// It is right on average over records that begin anywhere in a sector.
    pub(crate) fn len_expected(&self, slot: u64) -> u64 {
        LEN_EXPECTED[self.len_code(slot) as usize]
    }

    pub(crate) fn pack(&self, tag: u64, entry: &IndexEntry) -> u64 {
        let mut slot = tag << HEAT_BITS | u64::from(entry.hot);
        slot = slot << LEN_BITS | encode_sectors(entry.sectors);
        slot = slot << self.segment_bits | u64::from(entry.location.segment.0);
        slot << self.offset_bits | (u64::from(entry.location.offset) / UNIT as u64)
    }

    pub(crate) fn unpack(&self, slot: u64) -> IndexEntry {
        IndexEntry { location: self.location(slot), sectors: decode_sectors(self.len_code(slot)), hot: slot & self.heat_mask() != 0 }
    }

    /// The location of the record of a slot.
    pub(crate) fn location(&self, slot: u64) -> Location {
        let low = |value: u64, bits: u32| value & ((1 << bits) - 1);
        let offset = low(slot, self.offset_bits) as u32 * UNIT as u32;
        Location { segment: SegmentId(low(slot >> self.offset_bits, self.segment_bits) as u32), offset }
    }
}

/// The number of bits that number `n / unit` values, rounded up.
const fn ratio_ceil_log2(n: u64, unit: u64) -> u32 {
    n.div_ceil(unit).next_power_of_two().trailing_zeros()
}

/// The expected length in bytes of a record, by the code of its read length.
const LEN_EXPECTED: [u64; 1 << LEN_BITS] = {
    let mut lens = [0; 1 << LEN_BITS];
    let mut code = 0;
    while code < lens.len() {
        let most = decode_sectors(code as u64);
        let fewest = if code == 0 { 1 } else { decode_sectors(code as u64 - 1) + 1 };
        lens[code] = (fewest + most) * SECTOR as u64 / 2 - (SECTOR - UNIT) as u64;
        code += 1;
    }
    lens
};

/// The code of a read length, rounded up to one that has a code.
///
/// A code `c` below 32 means `c + 1` sectors. From 32 on it means `32 x 2^(k/3)` sectors rounded
/// up, with `k = c - 31`.
fn encode_sectors(sectors: u64) -> u64 {
    if sectors <= EXACT_SECTORS {
        return sectors.max(1) - 1;
    }
    (EXACT_SECTORS..(1 << LEN_BITS) - 1).find(|code| decode_sectors(*code) >= sectors).unwrap_or((1 << LEN_BITS) - 1)
}

const fn decode_sectors(code: u64) -> u64 {
    if code < EXACT_SECTORS {
        return code + 1;
    }
    // 2^(1/3) and 2^(2/3) in 16-bit fixed point.
    const ROOT: [u64; 3] = [1 << 16, 82_571, 104_032];
    let k = code - EXACT_SECTORS + 1;
    codec::round_up((EXACT_SECTORS * ROOT[(k % 3) as usize]) << (k / 3), 1 << 16) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_round_trip_and_order_by_tag() {
        for (segments, size) in [(8, 1 << 16), (512, 8 << 20), (1024, 1 << 30), (4096, 1 << 31)] {
            let g = Geometry::new(segments, size);
            let location = Location { segment: SegmentId(segments - 1), offset: (size - 8) as u32 };
            for sectors in [1, 2, 32] {
                let entry = IndexEntry { location, sectors, hot: sectors == 2 };
                let slot = g.pack(g.tag(KeyHash(u64::MAX)), &entry);
                assert_eq!(g.unpack(slot), entry);
                assert_eq!(g.tag_of(slot), g.tag(KeyHash(u64::MAX)));
            }
            assert!(g.partition_bits + g.tag_bits() >= 44, "{g:?}");
            assert!(g.partition_bits + g.tag_bits() <= 64, "{g:?}");
        }
    }

    #[test]
    fn the_expected_length_is_right_on_average() {
        let g = Geometry::new(512, 8 << 20);
        for len in [40, 100, 136, 512, 1064, 5000, 15_000] {
            let slots =
                (0..512 / UNIT as u32).map(|n| IndexEntry::new(Location { segment: SegmentId(1), offset: 4096 + n * UNIT as u32 }, len));
            let expected: u64 = slots.map(|entry| g.len_expected(g.pack(1, &entry))).sum();
            assert_eq!(expected, 64 * len.next_multiple_of(UNIT) as u64, "{len}");
        }
        let large: u64 = (32..2000)
            .map(|sectors| g.len_expected(g.pack(1, &IndexEntry::new(Location { segment: SegmentId(1), offset: 0 }, sectors * SECTOR))))
            .sum();
        let exact: u64 = (32..2000).map(|sectors| sectors * SECTOR as u64).sum();
        assert!(large.abs_diff(exact) < exact / 50, "{large} for {exact}");
    }

    #[test]
    fn a_read_length_is_never_short_and_exact_to_16_kib() {
        for sectors in 1..=50_000 {
            let read = decode_sectors(encode_sectors(sectors));
            assert!(read >= sectors);
            assert!(read <= sectors + sectors / 3, "{sectors} -> {read}");
            assert!(sectors > 32 || read == sectors);
        }
        assert!(decode_sectors(63) * SECTOR as u64 >= 16 << 20, "the longest record can be read at once");
    }
}
