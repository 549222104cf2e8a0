//! The bytes of the WAL. `docs/FORMAT.md` explains them.
//!
#![doc = concat!("```text\n", include_str!("format.layout.txt"), "```")]

use crate::clock::WALL_OFFSET_BITS;
use crate::codec::{self, Checksum, HeaderBlock, Reader};
use crate::id::{KeyHash, Lsn, NUMBER_MAX, Position, StoreId};

/// The table above, which `inspect layout` prints.
pub(crate) const LAYOUT: &str = include_str!("format.layout.txt");
pub(crate) const VERSION: u32 = 1;
const HEADER: HeaderBlock = HeaderBlock::new(*b"EWWH", VERSION);
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"EWWF");

/// Bytes of a frame without a record.
pub(crate) const FRAME_LEN: usize = 40;
/// Bytes of the longest frame.
pub(crate) const FRAME_LEN_MAX: usize = FRAME_LEN + crate::config::INLINE_LEN_MAX;

const INLINE: u8 = 1;
const SUPERSEDES: u8 = 2;
const HEARD: u8 = 4;
/// The field of a mark before its wall offset, which has the other bits of the same word.
const WALL_OFFSET_SHIFT: u32 = u64::BITS - WALL_OFFSET_BITS;

/// The header of a WAL file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    /// The file holds the stream from position `number * payload` on.
    pub(crate) number: u64,
    /// Bytes of stream in each file.
    pub(crate) payload: u64,
}

impl FileHeader {
    /// Fills `block` with the header.
    pub(crate) fn encode(&self, store: StoreId, block: &mut [u8]) {
        HEADER.encode(store, 0, self.number, &self.payload.to_le_bytes(), block);
    }

    /// The header in `block`, if it verifies and is of this store.
    pub(crate) fn decode(store: StoreId, block: &[u8]) -> Option<Self> {
        let (_, number, mut r) = HEADER.decode(store, block)?;
        let payload = r.u64()?;
        // A header that verifies may still state nonsense: the stream ends far below this.
        let is_sound = payload.is_power_of_two() && number < NUMBER_MAX / payload;
        is_sound.then_some(Self { number, payload })
    }
}

/// The contents of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A record with a new LSN was appended to the segment stream.
    Mutation(Mutation),
    /// A record was appended again under its old LSN, at another position.
    Move(Mutation),
    Mark(Mark),
}

/// The state of the store when the mark was appended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Everything up to this LSN was synced.
    pub(crate) durable: Lsn,
    /// The newest mutation.
    pub(crate) appended: Lsn,
    /// Store time, ms.
    pub(crate) time_ms: u64,
    /// The time by which the wall clock was ahead of store time, ms, within
    /// [`WALL_OFFSET_BITS`] bits. 0 in a store of version 1, where both were the same.
    pub(crate) wall_offset_ms: i64,
    /// The report of the opening counts as heard.
    pub(crate) heard: bool,
}

/// One put or delete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mutation {
    pub(crate) lsn: Lsn,
    pub(crate) hash: KeyHash,
    /// A delete, or a catalog change.
    pub(crate) tombstone: bool,
    /// The record may replace an entry. Set for each delete and move, and for a put if the index
    /// had an entry with the same fingerprint. Readers ignore it.
    pub(crate) supersedes: bool,
    /// Position of the record.
    pub(crate) record: Position,
    pub(crate) record_len: u32,
}

/// The first bytes of a frame. The bytes of `record` follow them, if the frame holds the record.
pub(crate) fn encode_frame(store: StoreId, at: u64, frame: &Frame, record: &[&[u8]]) -> [u8; FRAME_LEN] {
    let inline: usize = record.iter().map(|p| p.len()).sum();
    let len = (FRAME_LEN + inline).next_multiple_of(8) as u32;
    let (kind, flags, record_len, words) = match frame {
        Frame::Mutation(m) | Frame::Move(m) => {
            let kind = match frame {
                Frame::Move(_) => 4,
                _ if m.tombstone => 2,
                _ => 1,
            };
            let flags = if m.supersedes { SUPERSEDES } else { 0 };
            (kind, flags, m.record_len, [m.lsn.0, m.hash.0, m.record.0])
        }
        Frame::Mark(mark) => (3, if mark.heard { HEARD } else { 0 }, 0, [mark.durable.0, mark.time_ms, mark.appended.0]),
    };
    let mut out = [0u8; FRAME_LEN];
    out[4..8].copy_from_slice(&len.to_le_bytes());
    out[8] = kind;
    out[9] = flags | if inline > 0 { INLINE } else { 0 };
    out[12..16].copy_from_slice(&record_len.to_le_bytes());
    if let Frame::Mark(mark) = frame {
        out[10..16].copy_from_slice(&mark.wall_offset_ms.to_le_bytes()[..6]);
    }
    for (to, word) in out[16..].chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    let zeros = [0u8; 8];
    let padding = &zeros[..len as usize - FRAME_LEN - inline];
    let mut check = Checksum::new(store, FRAME_MAGIC, at);
    check.update(&out[4..]);
    record.iter().for_each(|part| check.update(part));
    check.update(padding);
    out[..4].copy_from_slice(&check.finish().to_le_bytes());
    out
}

/// The length that the frame at the front of `bytes` claims, if a frame can have that length.
pub(crate) fn frame_len(bytes: &[u8]) -> Option<usize> {
    let len = Reader::new(bytes.get(4..)?).u32()? as usize;
    ((FRAME_LEN..=FRAME_LEN_MAX).contains(&len) && len.is_multiple_of(8)).then_some(len)
}

/// Decodes and verifies the frame in `bytes`. The slice holds the record, or is empty without one.
pub(crate) fn decode_frame(store: StoreId, at: u64, bytes: &[u8]) -> Option<(Frame, &[u8])> {
    let mut r = Reader::new(bytes);
    if r.u32()? != codec::checksum(store, FRAME_MAGIC, at, &[bytes.get(4..)?]) || r.u32()? as usize != bytes.len() {
        return None;
    }
    let wall_offset_ms = i64::from_le_bytes(bytes.get(8..16)?.try_into().ok()?) >> WALL_OFFSET_SHIFT;
    let (kind, flags) = (r.u8()?, r.u8()?);
    r.u16()?;
    let record_len = r.u32()?;
    let [first, second, third] = [r.u64()?, r.u64()?, r.u64()?];
    if first >= NUMBER_MAX || third >= NUMBER_MAX {
        return None;
    }
    let mutation = Mutation {
        lsn: Lsn(first),
        hash: KeyHash(second),
        tombstone: kind == 2,
        supersedes: flags & SUPERSEDES != 0,
        record: Position(third),
        record_len,
    };
    let frame = match kind {
        1 | 2 => Frame::Mutation(mutation),
        4 => Frame::Move(mutation),
        3 => Frame::Mark(Mark { durable: Lsn(first), appended: Lsn(third), time_ms: second, wall_offset_ms, heard: flags & HEARD != 0 }),
        _ => return None,
    };
    let record = if flags & INLINE == 0 { &[] } else { bytes.get(FRAME_LEN..FRAME_LEN + record_len as usize)? };
    Some((frame, record))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::BLOCK;
    use proptest::prelude::*;

    const STORE: StoreId = StoreId(11);

    proptest! {
        #[test]
        fn a_frame_round_trips_and_any_flipped_bit_is_noticed(
            lsn in 0..NUMBER_MAX, hash in any::<u64>(), record in 0..NUMBER_MAX, words in 0usize..60,
            tombstone in any::<bool>(), supersedes in any::<bool>(), at in any::<u32>(), flip in any::<prop::sample::Index>(),
        ) {
            let at = u64::from(at) * 8;
            let body = vec![0xab; words * 8];
            let record_len = if words > 0 { body.len() as u32 } else { 64 };
            let mutation = Mutation { lsn: Lsn(lsn), hash: KeyHash(hash), tombstone, supersedes, record: Position(record), record_len };
            let mut bytes = encode_frame(STORE, at, &Frame::Mutation(mutation), &[&body]).to_vec();
            bytes.extend_from_slice(&body);
            prop_assert_eq!(frame_len(&bytes), Some(bytes.len()));
            prop_assert_eq!(decode_frame(STORE, at, &bytes), Some((Frame::Mutation(mutation), &body[..])));
            prop_assert_eq!(decode_frame(STORE, at + 8, &bytes), None);
            let bit = flip.index(bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode_frame(STORE, at, &bytes), None);
        }

        #[test]
        fn arbitrary_bytes_never_decode_and_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _claimed = frame_len(&bytes);
            prop_assert!(decode_frame(STORE, 0, &bytes).is_none());
            prop_assert!(FileHeader::decode(STORE, &bytes).is_none());
        }
    }

    #[test]
    fn a_mark_and_a_file_header_round_trip() {
        let wall_offsets = [0, 1, -1, 86_400_123, -86_400_123, (1 << 47) - 1, 1 - (1 << 47)];
        for (wall_offset_ms, heard) in wall_offsets.into_iter().flat_map(|offset| [(offset, false), (offset, true)]) {
            let mark = Frame::Mark(Mark { durable: Lsn(5), appended: Lsn(6), time_ms: 17, wall_offset_ms, heard });
            assert_eq!(decode_frame(STORE, 64, &encode_frame(STORE, 64, &mark, &[])), Some((mark, &[][..])));
        }
        let header = FileHeader { number: 9, payload: 1 << 20 };
        let mut block = [0; BLOCK];
        header.encode(STORE, &mut block);
        assert_eq!(FileHeader::decode(STORE, &block), Some(header));
        assert_eq!(FileHeader::decode(StoreId(1), &block), None);
    }

    #[test]
    fn a_frame_or_header_that_verifies_and_states_nonsense_is_none() {
        let frame = |lsn: u64, record: u64| {
            let record = Position(record);
            let mutation = Mutation { lsn: Lsn(lsn), hash: KeyHash(1), tombstone: false, supersedes: false, record, record_len: 64 };
            decode_frame(STORE, 0, &encode_frame(STORE, 0, &Frame::Mutation(mutation), &[])).is_some()
        };
        assert!(frame(7, 1 << 40));
        assert!(!frame(u64::MAX, 1 << 40) && !frame(7, u64::MAX - 8));
        for (number, payload) in [(0, 0), (0, 3), (u64::MAX, 1 << 20), (1 << 42, 1 << 20)] {
            let mut block = [0; BLOCK];
            FileHeader { number, payload }.encode(STORE, &mut block);
            assert_eq!(FileHeader::decode(STORE, &block), None, "{number} x {payload}");
        }
    }
}
