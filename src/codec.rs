//! Bounded little-endian reading and writing over byte slices, seeded checksums and header blocks.
//! No I/O.

use crate::id::StoreId;

/// Reads fields from the front of a slice. Every method returns `None` at the end instead of
/// reading past it.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(head)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N).and_then(|b| b.try_into().ok())
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn i32(&mut self) -> Option<i32> {
        self.array().map(i32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// A canonical LEB128 varint of at most 10 bytes. `None` for an encoding that is longer than
    /// needed.
    pub(crate) fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return (byte != 0 || shift == 0).then_some(value);
            }
        }
        None
    }
}

/// Appends fields to a buffer.
pub(crate) trait Put {
    fn put(&mut self, bytes: &[u8]);

    fn put_u8(&mut self, v: u8) {
        self.put(&[v]);
    }
    fn put_u32(&mut self, v: u32) {
        self.put(&v.to_le_bytes());
    }
    fn put_u64(&mut self, v: u64) {
        self.put(&v.to_le_bytes());
    }
    fn put_varint(&mut self, mut v: u64) {
        while v >= 0x80 {
            self.put_u8(v as u8 | 0x80);
            v >>= 7;
        }
        self.put_u8(v as u8);
    }
}

impl Put for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// Bytes that [`Put::put_varint`] writes for `v`.
pub(crate) const fn varint_len(v: u64) -> usize {
    (64 - (v | 1).leading_zeros() as usize).div_ceil(7)
}

/// Maps numbers of small magnitude and either sign to small numbers.
pub(crate) const fn zigzag(v: i64) -> u64 {
    ((v << 1) ^ (v >> 63)) as u64
}

/// Inverse of [`zigzag`].
pub(crate) const fn unzigzag(v: u64) -> i64 {
    (v >> 1) as i64 ^ -((v & 1) as i64)
}

#[cfg(any(test, fuzzing))]
thread_local! {
    static UNCHECKED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `with` on this thread, with every checksum being 0. Fuzzed bytes then reach the code behind
/// the checks.
#[cfg(any(test, fuzzing))]
pub(crate) fn unchecked<R>(with: impl FnOnce() -> R) -> R {
    UNCHECKED.set(true);
    let result = with();
    UNCHECKED.set(false);
    result
}

/// CRC-32/ISO-HDLC of `parts`, seeded with their store, kind and place, so that recycled, misplaced
/// or foreign bytes do not verify.
///
/// `kind` is the magic of the structure. `place` is a position, number or sequence that no other
/// life of these bytes has.
pub(crate) fn checksum(store: StoreId, kind: u32, place: u64, parts: &[&[u8]]) -> u32 {
    let mut checksum = Checksum::new(store, kind, place);
    parts.iter().for_each(|part| checksum.update(part));
    checksum.finish()
}

/// Computes a [`checksum`] of parts that arrive one after the other.
pub(crate) struct Checksum(crc32fast::Hasher);

impl Checksum {
    pub(crate) fn new(store: StoreId, kind: u32, place: u64) -> Self {
        let mut seed = [0u8; 20];
        seed[..8].copy_from_slice(&store.0.to_le_bytes());
        seed[8..12].copy_from_slice(&kind.to_le_bytes());
        seed[12..].copy_from_slice(&place.to_le_bytes());
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&seed);
        Self(hasher)
    }

    pub(crate) fn update(&mut self, part: &[u8]) {
        self.0.update(part);
    }

    pub(crate) fn finish(self) -> u32 {
        #[cfg(any(test, fuzzing))]
        if UNCHECKED.get() {
            return 0;
        }
        self.0.finalize()
    }
}

/// A kind of header block: its magic and the version of its layout.
///
/// Every kind begins with the same fields. A kind adds its own from 32 on.
///
/// ```text
///  0  u32  magic
///  4  u32  version
///  8  u32  check       over the block after it; seeded with store, magic, place
/// 12  u32  number      the kind gives it a meaning
/// 16  u64  store id
/// 24  u64  place       a position, number or sequence that no other life of the block has
/// 32  fields of the kind, zeros to the end of the block
/// ```
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeaderBlock {
    magic: u32,
    version: u32,
}

impl HeaderBlock {
    pub(crate) const fn new(magic: [u8; 4], version: u32) -> Self {
        Self { magic: u32::from_le_bytes(magic), version }
    }

    /// Fills `block`, a whole block. `fields` are the encoded fields of the kind.
    pub(crate) fn encode(self, store: StoreId, number: u32, place: u64, fields: &[u8], block: &mut [u8]) {
        block.fill(0);
        block[..4].copy_from_slice(&self.magic.to_le_bytes());
        block[4..8].copy_from_slice(&self.version.to_le_bytes());
        block[12..16].copy_from_slice(&number.to_le_bytes());
        block[16..24].copy_from_slice(&store.0.to_le_bytes());
        block[24..32].copy_from_slice(&place.to_le_bytes());
        block[32..32 + fields.len()].copy_from_slice(fields);
        let check = checksum(store, self.magic, place, &[&block[12..]]);
        block[8..12].copy_from_slice(&check.to_le_bytes());
    }

    /// The number and the place that `block` states, and a reader of the fields of the kind. `None`
    /// if the block is of another kind, version or store, or does not verify.
    pub(crate) fn decode(self, store: StoreId, block: &[u8]) -> Option<(u32, u64, Reader<'_>)> {
        let mut r = Reader::new(block);
        if r.u32()? != self.magic || r.u32()? != self.version {
            return None;
        }
        let (check, number) = (r.u32()?, r.u32()?);
        let (owner, place) = (r.u64()?, r.u64()?);
        let verifies = owner == store.0 && check == checksum(store, self.magic, place, &[block.get(12..)?]);
        verifies.then_some((number, place, r))
    }
}

/// The store that a header block of any kind states, if the block verifies.
pub(crate) fn stated_store(block: &[u8]) -> Option<StoreId> {
    let mut r = Reader::new(block);
    let (magic, _version, check, _number) = (r.u32()?, r.u32()?, r.u32()?, r.u32()?);
    let (store, place) = (StoreId(r.u64()?), r.u64()?);
    (check == checksum(store, magic, place, &[block.get(12..)?])).then_some(store)
}

/// The next multiple of `to` (a power of two) at or above `n`.
pub(crate) const fn round_up(n: u64, to: u64) -> u64 {
    (n + to - 1) & !(to - 1)
}

/// The last multiple of `to` (a power of two) at or below `n`.
pub(crate) const fn round_down(n: u64, to: u64) -> u64 {
    n & !(to - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn varints_round_trip_and_state_their_length(v in any::<u64>(), shift in 0u32..64) {
            let v = v >> shift;
            let mut out = Vec::new();
            out.put_varint(v);
            prop_assert_eq!(out.len(), varint_len(v));
            let mut r = Reader::new(&out);
            prop_assert_eq!(r.varint(), Some(v));
            prop_assert_eq!(r.remaining(), 0);
        }

        #[test]
        fn zigzag_round_trips(v in any::<i64>()) {
            prop_assert_eq!(unzigzag(zigzag(v)), v);
        }
    }

    #[test]
    fn an_overlong_or_oversized_varint_is_refused() {
        assert_eq!(Reader::new(&[0x80, 0x00]).varint(), None);
        assert_eq!(Reader::new(&[0xff; 10]).varint(), None);
        assert_eq!(Reader::new(&[0x80]).varint(), None);
        assert_eq!(Reader::new(&[0]).varint(), Some(0));
    }

    #[test]
    fn a_header_block_is_only_read_by_its_kind_version_and_store() {
        let kind = HeaderBlock::new(*b"EWxx", 3);
        let mut block = [1; 64];
        kind.encode(StoreId(5), 7, 9, &[1, 2], &mut block);
        let (number, place, mut fields) = kind.decode(StoreId(5), &block).unwrap();
        assert_eq!((number, place, fields.u16(), fields.remaining()), (7, 9, Some(0x0201), 30));
        assert!(block[34..].iter().all(|byte| *byte == 0));
        assert!(HeaderBlock::new(*b"EWxy", 3).decode(StoreId(5), &block).is_none());
        assert!(HeaderBlock::new(*b"EWxx", 4).decode(StoreId(5), &block).is_none());
        assert!(kind.decode(StoreId(6), &block).is_none());
        assert!(kind.decode(StoreId(5), &block[..63]).is_none());
        assert_eq!(stated_store(&block), Some(StoreId(5)));
        block[63] = 1;
        assert!(kind.decode(StoreId(5), &block).is_none() && stated_store(&block).is_none());
    }

    #[test]
    fn a_checksum_depends_on_store_kind_and_place() {
        let base = checksum(StoreId(1), 2, 3, &[b"x"]);
        assert_ne!(base, checksum(StoreId(2), 2, 3, &[b"x"]));
        assert_ne!(base, checksum(StoreId(1), 3, 3, &[b"x"]));
        assert_ne!(base, checksum(StoreId(1), 2, 4, &[b"x"]));
    }
}
