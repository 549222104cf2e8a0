//! The bytes of a segment file. `docs/FORMAT.md` explains them.
//!
#![doc = concat!("```text\n", include_str!("format.layout.txt"), "```")]
//! A tombstone has no key; its value is the 8-byte key hash. A catalog change has no key either.

use std::ops::Range;

use crate::codec::{self, HeaderBlock, Put, Reader, varint_len};
use crate::config::{KEY_LEN_MAX, RING_MAX};
use crate::id::{Key, KeyHash, Lsn, NamespaceGeneration, Position, SegmentId, StoreId, UNIT};
use crate::io::BLOCK;

/// The table above, which `inspect layout` prints.
pub(crate) const LAYOUT: &str = include_str!("format.layout.txt");
pub(crate) const VERSION: u32 = 1;
const HEADER: HeaderBlock = HeaderBlock::new(*b"EWSH", VERSION);
const TRAILER: HeaderBlock = HeaderBlock::new(*b"EWST", VERSION);
const RECORD_MAGIC: u32 = u32::from_le_bytes(*b"EWSR");

const TOMBSTONE: u8 = 1;
const COMPRESSED: u8 = 2;
const EXPIRES: u8 = 4;
const IN_NAMESPACE: u8 = 8;
const CATALOG_CHANGE: u8 = 16;
const FAR: u8 = 32;
const KNOWN_FLAGS: u8 = TOMBSTONE | COMPRESSED | EXPIRES | IN_NAMESPACE | CATALOG_CHANGE | FAR;

/// Bytes before the flags: the check and the relative LSN. Both depend on the record's position.
pub(crate) const PREFIX_LEN: usize = 8;

/// Offset of the first record.
pub(crate) const DATA_START: u32 = BLOCK as u32;

/// One life of a segment, as its header and trailer state it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life {
    pub(crate) id: SegmentId,
    pub(crate) base: Position,
    pub(crate) base_lsn: Lsn,
}

/// The fields of a sealed segment's trailer, beside its [`Life`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub(crate) footer_blocks: u32,
    /// Offset at which the last record ends.
    pub(crate) data_end: u32,
    /// Number of entries in the footer.
    pub(crate) entries: u64,
}

/// Fills `block` with the header of a segment that begins a life.
pub(crate) fn encode_header(store: StoreId, life: &Life, block: &mut [u8]) {
    HEADER.encode(store, life.id.0, life.base.0, &life.base_lsn.0.to_le_bytes(), block);
}

/// The life that a header block states, if it verifies and is of this store.
pub(crate) fn decode_header(store: StoreId, block: &[u8]) -> Option<Life> {
    decode_life(HEADER, store, block).map(|(life, _)| life)
}

/// Fills `block` with the trailer of a sealed segment.
pub(crate) fn encode_trailer(store: StoreId, life: &Life, trailer: &Trailer, block: &mut [u8]) {
    let mut fields = Vec::with_capacity(24);
    fields.put_u64(life.base_lsn.0);
    fields.put_u32(trailer.footer_blocks);
    fields.put_u32(trailer.data_end);
    fields.put_u64(trailer.entries);
    TRAILER.encode(store, life.id.0, life.base.0, &fields, block);
}

/// The life and the trailer that a trailer block states, if it verifies and is of this store.
pub(crate) fn decode_trailer(store: StoreId, block: &[u8]) -> Option<(Life, Trailer)> {
    let (life, mut r) = decode_life(TRAILER, store, block)?;
    Some((life, Trailer { footer_blocks: r.u32()?, data_end: r.u32()?, entries: r.u64()? }))
}

fn decode_life(kind: HeaderBlock, store: StoreId, block: &[u8]) -> Option<(Life, Reader<'_>)> {
    let (id, base, mut r) = kind.decode(store, block)?;
    Some((Life { id: SegmentId(id), base: Position(base), base_lsn: Lsn(r.u64()?) }, r))
}

/// Marks a [`UNIT`] that could not be read when the bytes around it were rewritten. Its contents
/// are unknown.
pub(crate) const UNREAD: [u8; UNIT] = *b"EWunread";

/// Whether `bytes`, which belong to a record, hold the mark of an unreadable unit.
pub(crate) fn was_unread(bytes: &[u8]) -> bool {
    bytes.as_chunks().0.contains(&UNREAD)
}

/// Upper bound of the length of a value before compression. It must fit into the segment ring like
/// one that is not compressed.
const RAW_LEN_MAX: usize = RING_MAX as usize;
/// Length of the longest [`Draft`] head: flags, three lengths, expiry, namespace, LSN.
const HEAD_LEN_MAX: usize = 1 + 3 + 5 + 5 + 8 + 10 + 8;

/// A record that has no position yet: its flags, lengths, key and value, and their CRC-32. It is
/// built outside every lock.
#[derive(Debug)]
pub(crate) struct Draft<'a> {
    head: [u8; HEAD_LEN_MAX],
    head_len: usize,
    key: &'a [u8],
    value: &'a [u8],
    crc: u32,
}

/// A value on its way to flash.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content<'a> {
    /// The value as the caller gave it.
    Plain(&'a [u8]),
    /// The value compressed with zstd, and its length before compression.
    Zstd(&'a [u8], usize),
}

impl<'a> Draft<'a> {
    /// The record of a put.
    pub(crate) fn put(key: Key<'a>, content: Content<'a>, expires_ms: Option<u64>) -> Self {
        let (value, raw_len) = match content {
            Content::Plain(bytes) => (bytes, None),
            Content::Zstd(bytes, raw_len) => (bytes, Some(raw_len)),
        };
        let mut head = ArrayWriter::default();
        let compressed = if raw_len.is_some() { COMPRESSED } else { 0 };
        let expires = if expires_ms.is_some() { EXPIRES } else { 0 };
        let in_namespace = if key.namespace == NamespaceGeneration::FIRST { 0 } else { IN_NAMESPACE };
        head.put_u8(compressed | expires | in_namespace);
        head.put_varint(key.bytes.len() as u64);
        head.put_varint(value.len() as u64);
        if let Some(raw_len) = raw_len {
            head.put_varint(raw_len as u64);
        }
        if let Some(at) = expires_ms {
            head.put_u64(at);
        }
        if in_namespace != 0 {
            head.put_varint(key.namespace.0);
        }
        Self::finish(head, key.bytes, value)
    }

    /// The record of an encoded catalog change.
    pub(crate) fn catalog_change(change: &'a [u8]) -> Self {
        let mut head = ArrayWriter::default();
        head.put_u8(CATALOG_CHANGE);
        head.put_varint(0);
        head.put_varint(change.len() as u64);
        Self::finish(head, &[], change)
    }

    /// The record of a delete.
    pub(crate) fn tombstone(hash: KeyHash) -> Self {
        let mut head = ArrayWriter::default();
        head.put_u8(TOMBSTONE);
        head.put_varint(0);
        head.put_varint(8);
        head.put_u64(hash.0);
        Self::finish(head, &[], &[])
    }

    fn finish(head: ArrayWriter, key: &'a [u8], value: &'a [u8]) -> Self {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&head.bytes[..head.len]);
        crc.update(key);
        crc.update(value);
        Self { head: head.bytes, head_len: head.len, key, value, crc: crc.finalize() }
    }

    /// Length of the record in bytes, a multiple of [`UNIT`].
    pub(crate) fn len(&self) -> usize {
        (PREFIX_LEN + self.head_len + self.key.len() + self.value.len()).next_multiple_of(UNIT)
    }

    /// The first eight bytes of the record at position `at`. `None` if the LSN is too far from the
    /// segment's base LSN.
    pub(crate) fn prefix(&self, store: StoreId, at: Position, lsn: Lsn, base_lsn: Lsn) -> Option<[u8; PREFIX_LEN]> {
        let base_lsn = if self.head[0] & FAR == 0 { base_lsn } else { lsn };
        prefix(store, at, lsn, base_lsn, self.crc)
    }

    /// The bytes after the prefix, without the zeros that pad the record.
    pub(crate) fn parts(&self) -> [&[u8]; 3] {
        [&self.head[..self.head_len], self.key, self.value]
    }
}

struct ArrayWriter {
    bytes: [u8; HEAD_LEN_MAX],
    len: usize,
}

impl Default for ArrayWriter {
    fn default() -> Self {
        Self { bytes: [0; HEAD_LEN_MAX], len: 0 }
    }
}

impl Put for ArrayWriter {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }
}

fn prefix(store: StoreId, at: Position, lsn: Lsn, base_lsn: Lsn, crc: u32) -> Option<[u8; PREFIX_LEN]> {
    let delta = i32::try_from(lsn.0.wrapping_sub(base_lsn.0) as i64).ok()?;
    let mut prefix = [0; PREFIX_LEN];
    prefix[..4].copy_from_slice(&record_check(store, at, lsn, crc).to_le_bytes());
    prefix[4..].copy_from_slice(&delta.to_le_bytes());
    Some(prefix)
}

fn record_check(store: StoreId, at: Position, lsn: Lsn, crc: u32) -> u32 {
    codec::checksum(store, RECORD_MAGIC, at.0, &[&lsn.0.to_le_bytes(), &crc.to_le_bytes()])
}

/// A verified record, as ranges of the bytes it was decoded from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) lsn: Lsn,
    pub(crate) kind: Kind,
    /// Length on flash in bytes, a multiple of [`UNIT`].
    pub(crate) len: usize,
}

/// The contents of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The key has this value.
    Put {
        namespace: NamespaceGeneration,
        key: Range<usize>,
        value: Range<usize>,
        /// Length before compression, if compressed.
        raw_len: Option<usize>,
        expires_ms: Option<u64>,
    },
    /// Keys with this hash have no value.
    Tombstone(KeyHash),
    /// An encoded catalog change.
    CatalogChange(Range<usize>),
}

/// The fields before a record's key, not verified. Ranges may exceed the bytes that are present.
struct Head {
    check: u32,
    flags: u8,
    lsn: Lsn,
    namespace: NamespaceGeneration,
    key: Range<usize>,
    value: Range<usize>,
    raw_len: Option<usize>,
    expires_ms: Option<u64>,
}

impl Head {
    fn decode(base_lsn: Lsn, bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        let check = r.u32()?;
        let near = base_lsn.0.checked_add_signed(i64::from(r.i32()?));
        let flags = r.u8()?;
        if flags & !KNOWN_FLAGS != 0 {
            return None;
        }
        let key_len = usize::try_from(r.varint()?).ok().filter(|len| *len <= KEY_LEN_MAX)?;
        let value_len = usize::try_from(r.varint()?).ok()?;
        let raw_len = match flags & COMPRESSED {
            0 => None,
            _ => Some(usize::try_from(r.varint()?).ok().filter(|len| *len <= RAW_LEN_MAX)?),
        };
        let expires_ms = match flags & EXPIRES {
            0 => None,
            _ => Some(r.u64()?),
        };
        let namespace = match flags & IN_NAMESPACE {
            0 => NamespaceGeneration::FIRST,
            _ => NamespaceGeneration(r.varint()?),
        };
        let lsn = match flags & FAR {
            0 => Lsn(near?),
            _ => Lsn(r.u64()?),
        };
        let start = bytes.len() - r.remaining();
        let key = start..start.checked_add(key_len)?;
        let value = key.end..key.end.checked_add(value_len)?;
        value.end.checked_next_multiple_of(UNIT)?;
        Some(Self { check, flags, lsn, namespace, key, value, raw_len, expires_ms })
    }

    fn record_len(&self) -> usize {
        self.value.end.next_multiple_of(UNIT)
    }
}

/// The length that the record at the front of `bytes` states, if its head is complete. Not
/// verified.
pub(crate) fn stated_len(bytes: &[u8]) -> Option<usize> {
    Head::decode(Lsn(1 << 32), bytes).map(|head| head.record_len())
}

/// Decodes and verifies the record at the front of `bytes`. `None` if it is incomplete, or does not
/// belong to position `at` of this store.
pub(crate) fn decode_record(store: StoreId, at: Position, base_lsn: Lsn, bytes: &[u8]) -> Option<Record> {
    let head = Head::decode(base_lsn, bytes)?;
    let payload = bytes.get(PREFIX_LEN..head.value.end)?;
    if head.check != record_check(store, at, head.lsn, crc32fast::hash(payload)) {
        return None;
    }
    let len = head.record_len();
    let Head { flags, lsn, namespace, key, value, raw_len, expires_ms, .. } = head;
    let kind = match flags & (TOMBSTONE | CATALOG_CHANGE) {
        0 => Kind::Put { namespace, key, value, raw_len, expires_ms },
        TOMBSTONE => Kind::Tombstone(KeyHash(Reader::new(&bytes[value]).u64()?)),
        CATALOG_CHANGE => Kind::CatalogChange(value),
        _ => return None,
    };
    Some(Record { lsn, kind, len })
}

impl Record {
    /// The hash under which footers and the index list the record, and whether they list it as a
    /// tombstone. `bytes` are the bytes of the record.
    pub(crate) fn effect(&self, hash_seed: u64, bytes: &[u8]) -> (KeyHash, bool) {
        match &self.kind {
            Kind::Put { namespace, key, .. } => (KeyHash::of(hash_seed, Key { namespace: *namespace, bytes: &bytes[key.clone()] }), false),
            Kind::Tombstone(hash) => (*hash, true),
            Kind::CatalogChange(change) => (catalog_change_hash(hash_seed, &bytes[change.clone()]), true),
        }
    }
}

/// The hash under which footers and frames list a catalog change. A key has it only by chance.
pub(crate) fn catalog_change_hash(hash_seed: u64, change: &[u8]) -> KeyHash {
    KeyHash::of(hash_seed, Key { namespace: NamespaceGeneration::CATALOG, bytes: change })
}

impl<'a> Draft<'a> {
    /// The draft of a verified put, for a move to another position. With `is_far` the record states
    /// its LSN in full.
    pub(crate) fn of_record(bytes: &'a [u8], record: &Record, is_far: bool) -> Option<Self> {
        let Kind::Put { key, value, .. } = &record.kind else { return None };
        let mut head = ArrayWriter::default();
        head.put(bytes.get(PREFIX_LEN..key.start)?);
        if is_far && head.bytes[0] & FAR == 0 {
            head.bytes[0] |= FAR;
            head.put_u64(record.lsn.0);
        }
        Some(Self::finish(head, &bytes[key.clone()], &bytes[value.clone()]))
    }
}

/// Upper bound of [`Draft::len`] for a put of `key_len` and `value_len` bytes.
pub(crate) fn record_len_max(key_len: usize, value_len: usize) -> usize {
    let head = 1 + varint_len(key_len as u64) + 2 * varint_len(value_len as u64) + 8 + 10;
    (PREFIX_LEN + head + key_len + value_len).next_multiple_of(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const STORE: StoreId = StoreId(7);

    fn bytes_of(draft: &Draft, at: Position, lsn: Lsn, base: Lsn) -> Vec<u8> {
        let mut out = draft.prefix(STORE, at, lsn, base).unwrap().to_vec();
        for part in draft.parts() {
            out.extend_from_slice(part);
        }
        out.resize(draft.len(), 0);
        out
    }

    #[test]
    fn a_record_that_verifies_and_states_nonsense_is_none() {
        let (at, base) = (Position(4096), Lsn(1));
        let key = Key { namespace: NamespaceGeneration(u64::MAX), bytes: b"key" };
        // The longest head. Its record moves under a far LSN.
        let longest = bytes_of(&Draft::put(key, Content::Zstd(b"value", RAW_LEN_MAX), Some(u64::MAX)), at, Lsn(2), base);
        let record = decode_record(STORE, at, base, &longest).unwrap();
        assert!(Draft::of_record(&longest, &record, true).is_some());
        // A value that would take more memory than any value has, in a head that is longer still.
        for raw_len in [RAW_LEN_MAX + 1, usize::MAX] {
            let mut head = ArrayWriter::default();
            head.put_u8(COMPRESSED);
            head.put_varint(3);
            head.put_varint(5);
            head.put_varint(raw_len as u64);
            let bytes = bytes_of(&Draft::finish(head, b"key", b"value"), at, Lsn(2), base);
            assert_eq!(decode_record(STORE, at, base, &bytes), None, "{raw_len}");
        }
    }

    proptest! {
        #[test]
        fn a_record_round_trips_and_any_flipped_bit_is_noticed(
            key in prop::collection::vec(any::<u8>(), 1..300),
            value in prop::collection::vec(any::<u8>(), 0..900),
            expires in prop::option::of(any::<u64>()),
            namespace in prop::option::of(any::<u64>()),
            raw in prop::option::of(0usize..RAW_LEN_MAX),
            lsn in 1u64..1 << 40,
            back in -1000i64..1000,
            flip in any::<prop::sample::Index>(),
        ) {
            let base = Lsn(lsn.saturating_add_signed(back));
            let content = raw.map_or(Content::Plain(&value), |n| Content::Zstd(&value, n));
            let namespace = NamespaceGeneration(namespace.unwrap_or(0));
            let draft = Draft::put(Key { namespace, bytes: &key }, content, expires);
            let mut bytes = bytes_of(&draft, Position(4096), Lsn(lsn), base);
            prop_assert!(draft.len() <= record_len_max(key.len(), value.len().max(raw.unwrap_or(0))));
            let record = decode_record(STORE, Position(4096), base, &bytes).unwrap();
            prop_assert_eq!((record.lsn, record.len), (Lsn(lsn), bytes.len()));
            let Kind::Put { namespace: s, key: k, value: v, raw_len, expires_ms } = record.kind else { panic!("a put") };
            prop_assert_eq!(s, namespace);
            let end = v.end;
            prop_assert_eq!((&bytes[k], &bytes[v]), (&key[..], &value[..]));
            prop_assert_eq!((raw_len, expires_ms), (raw, expires));
            prop_assert!(decode_record(STORE, Position(4104), base, &bytes).is_none());
            prop_assert!(decode_record(StoreId(8), Position(4096), base, &bytes).is_none());
            let bit = flip.index(end * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(decode_record(STORE, Position(4096), base, &bytes).is_none());
        }

        #[test]
        fn arbitrary_bytes_never_decode_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(decode_record(STORE, Position(0), Lsn(5), &bytes).is_none());
            prop_assert!(decode_header(STORE, &bytes).is_none());
            prop_assert!(decode_trailer(STORE, &bytes).is_none());
        }
    }

    #[test]
    fn a_tombstone_round_trips_and_takes_24_bytes() {
        let draft = Draft::tombstone(KeyHash(99));
        let bytes = bytes_of(&draft, Position(0), Lsn(3), Lsn(3));
        assert_eq!(bytes.len(), 24);
        let record = decode_record(STORE, Position(0), Lsn(3), &bytes).unwrap();
        assert_eq!(record.kind, Kind::Tombstone(KeyHash(99)));
    }

    #[test]
    fn a_hundred_bytes_of_user_data_take_112() {
        assert_eq!(Draft::put((&[1; 16]).into(), Content::Plain(&[0; 84]), None).len(), 112);
    }

    #[test]
    fn header_and_trailer_round_trip_and_are_not_each_other() {
        let life = Life { id: SegmentId(3), base: Position(1 << 20), base_lsn: Lsn(77) };
        let mut block = [0; BLOCK];
        encode_header(STORE, &life, &mut block);
        assert_eq!(decode_header(STORE, &block), Some(life));
        assert_eq!(decode_trailer(STORE, &block), None);
        let trailer = Trailer { footer_blocks: 2, data_end: 8192, entries: 5 };
        encode_trailer(STORE, &life, &trailer, &mut block);
        assert_eq!(decode_trailer(STORE, &block), Some((life, trailer)));
        block[BLOCK - 1] ^= 1;
        assert_eq!(decode_trailer(STORE, &block), None);
    }

    #[test]
    fn a_moved_record_verifies_at_its_new_position_with_its_old_lsn() {
        let draft = Draft::put(b"key".into(), Content::Plain(b"value"), Some(9));
        let bytes = bytes_of(&draft, Position(64), Lsn(10), Lsn(9));
        let record = decode_record(STORE, Position(64), Lsn(9), &bytes).unwrap();
        let moved = Draft::of_record(&bytes, &record, false).unwrap();
        assert!(moved.prefix(STORE, Position(0), Lsn(10), Lsn(1 << 40)).is_none());
        let near = bytes_of(&moved, Position(1 << 30), Lsn(10), Lsn(500));
        assert_eq!(decode_record(STORE, Position(1 << 30), Lsn(500), &near), Some(record.clone()));
        assert_eq!((stated_len(&near[..24]), stated_len(&near[..9])), (Some(near.len()), None));
        let far = Draft::of_record(&bytes, &record, true).unwrap();
        let far = bytes_of(&far, Position(1 << 30), Lsn(10), Lsn(1 << 40));
        let found = decode_record(STORE, Position(1 << 30), Lsn(1 << 40), &far).unwrap();
        assert_eq!(found.lsn, Lsn(10));
        let again = Draft::of_record(&far, &found, true).unwrap();
        assert_eq!(again.len(), far.len(), "the LSN is not stated twice");
        let again = bytes_of(&again, Position(0), Lsn(10), Lsn(1 << 41));
        assert_eq!(decode_record(STORE, Position(0), Lsn(1 << 41), &again), Some(found));
    }
}
