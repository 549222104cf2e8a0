//! The bytes of the manifest. `docs/FORMAT.md` explains them.
//!
#![doc = concat!("```text\n", include_str!("format.layout.txt"), "```")]

use super::catalog::{self, Catalog};
use crate::clock::Moment;
use crate::codec::{self, Put, Reader};
use crate::config::{FLASH_MAX, RING_MAX, SEGMENT_SIZE_MAX, SEGMENT_SIZE_MIN, SEGMENTS_MAX};
use crate::id::{Lsn, NUMBER_MAX, Position, StoreId};
use crate::io::BLOCK;

/// The table above, which `inspect layout` prints.
pub(crate) const LAYOUT: &str = include_str!("format.layout.txt");
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"EWMF");
pub(crate) const VERSION: u32 = 2;
/// Length of the fields before the segments in version 1. Later versions have more fields there.
const HEAD_LEN_1: usize = 184;
const HEAD_LEN: usize = 256;
/// Bytes at the end of the head that a writer fills with zeros.
const UNUSED_LEN: usize = 16;
const SEGMENT_LEN: usize = 32;
/// Maximum number of rows of the segment table: a store that has become smaller keeps its rows.
const SEGMENT_COUNT_MAX: usize = 2 * SEGMENTS_MAX as usize;
/// Sequences of checkpoints stay below this: the checks of chunks combine them with a number.
const CHECKPOINT_SEQUENCE_MAX: u64 = 1 << 40;
/// The field of a report that states no LSN.
const NONE: u64 = u64::MAX;
/// Length of the longest manifest file, in bytes.
pub(crate) const LEN_MAX: u64 = (2 * (HEAD_LEN + SEGMENT_LEN * SEGMENT_COUNT_MAX + catalog::LEN_MAX) as u64).next_power_of_two();

/// The state of a segment, as far as recovery needs it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum SegmentState {
    /// Holds no records.
    #[default]
    Free,
    /// May hold records that only the WAL describes.
    Open,
    /// A durable footer describes its records.
    Sealed,
    /// Its file failed and holds no entries that are needed. The next opening removes the file.
    Quarantined,
    /// A write or sync of its file failed while it was open. Only the WAL describes its records,
    /// and its file is not written again.
    Failed,
}

/// One row of the segment table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) state: SegmentState,
    /// Bytes of its file, a power of two.
    pub(crate) size: u64,
    /// Position of its first byte in this life. 0 before the first life.
    pub(crate) base: Position,
    pub(crate) base_lsn: Lsn,
    /// The newest LSN in it. 0 until it is sealed.
    pub(crate) last_lsn: Lsn,
}

/// The checkpoint that recovery loads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) sequence: u64,
    /// The checkpoint includes every record below this position.
    pub(crate) start: Position,
}

/// How a life of the store ended, in the order of what it may have lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    Clean = 1,
    Process = 2,
    Host = 3,
}

/// The report of the opening that began this life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct OpeningReport {
    /// The worst stop since somebody heard of one. `None` once this report counts as heard: then
    /// the next report does not repeat it.
    pub(crate) pending: Option<Stop>,
    /// Mutations with a higher LSN may be lost. `None` if none are.
    pub(crate) lost_after: Option<Lsn>,
    /// Store time up to which the report states that the store was alive.
    pub(crate) alive_ms: u64,
    /// The same as wall time, as the opening knew it.
    pub(crate) alive_wall_ms: u64,
}

/// The decoded manifest. The table of the module describes its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) store: StoreId,
    pub(crate) sequence: u64,
    pub(crate) hash_seed: u64,
    pub(crate) boot_id: u64,
    pub(crate) clean: bool,
    /// Whether the rings of this life have a mark in the page cache, which tells whether it was
    /// lost.
    pub(crate) rings_marked: bool,
    pub(crate) next_lsn: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) reclaimed: Lsn,
    /// When it was written.
    pub(crate) time: Moment,
    /// Every mutation that returned before this store time is durable.
    pub(crate) durable_ms: u64,
    pub(crate) report: OpeningReport,
    pub(crate) next_base: Position,
    pub(crate) floor: Position,
    pub(crate) wal_start: u64,
    pub(crate) wal_lsn: Lsn,
    pub(crate) wal_payload: u64,
    pub(crate) wal_ring: u64,
    pub(crate) segment_ring: u64,
    pub(crate) segment_size: u64,
    pub(crate) flash: u64,
    pub(crate) checkpoint: Option<Checkpoint>,
    pub(crate) segments: Vec<Segment>,
    pub(crate) catalog: Catalog,
}

/// The reason why bytes cannot be decoded as a manifest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// The bytes do not verify or are not plausible.
    Broken,
    /// The bytes verify, but their format version is this newer one.
    Newer(u32),
}

impl Manifest {
    /// Encoded length in bytes, with a catalog of `catalog_len` bytes.
    pub(crate) fn len_with(&self, catalog_len: usize) -> usize {
        HEAD_LEN + self.segments.len() * SEGMENT_LEN + catalog_len
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let catalog = self.catalog.encode();
        let len = self.len_with(catalog.len());
        let mut out = Vec::with_capacity(len);
        out.put_u32(MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.put_u32(len as u32);
        out.put_u64(self.store.0);
        out.put_u64(self.sequence);
        out.put_u64(self.hash_seed);
        out.put_u64(self.boot_id);
        out.put_u32(u32::from(self.clean));
        out.put_u32(self.segments.len() as u32);
        out.put_u64(self.next_lsn.0);
        out.put_u64(self.durable.0);
        out.put_u64(self.reclaimed.0);
        out.put_u64(self.time.store_ms);
        out.put_u64(self.next_base.0);
        out.put_u64(self.floor.0);
        out.put_u64(self.wal_start);
        out.put_u64(self.wal_lsn.0);
        out.put_u64(self.wal_payload);
        out.put_u64(self.wal_ring);
        out.put_u64(self.segment_ring);
        out.put_u64(self.segment_size);
        out.put_u64(self.flash);
        out.put_u64(self.checkpoint.map_or(0, |c| c.sequence));
        out.put_u64(self.checkpoint.map_or(0, |c| c.start.0));
        out.put_u32(catalog.len() as u32);
        out.put_u32(0);
        out.put_u64(self.time.wall_ms);
        out.put_u64(self.time.boot_ms.unwrap_or(0));
        out.put_u64(self.durable_ms);
        out.put_u32(self.report.pending.map_or(0, |stop| stop as u32));
        out.put_u32(u32::from(self.rings_marked));
        out.put_u64(self.report.lost_after.map_or(NONE, |lsn| lsn.0));
        out.put_u64(self.report.alive_ms);
        out.put_u64(self.report.alive_wall_ms);
        out.put(&[0; UNUSED_LEN]);
        debug_assert_eq!(out.len(), HEAD_LEN, "the table at the top states this length");
        for segment in &self.segments {
            out.put_u64(segment.base.0);
            out.put_u64(segment.base_lsn.0);
            out.put_u64(segment.last_lsn.0);
            out.put_u32(segment.size.max(1).ilog2());
            out.put_u32(segment.state as u32);
        }
        out.put(&catalog);
        let check = codec::checksum(self.store, MAGIC, self.sequence, &[&out[..8], &out[12..]]);
        out[8..12].copy_from_slice(&check.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let (head, r) = Head::decode(bytes).ok_or(Damage::Broken)?;
        match head.version {
            1..=VERSION => Self::decode_body(&head, r).ok_or(Damage::Broken),
            0 => Err(Damage::Broken),
            newer => Err(Damage::Newer(newer)),
        }
    }

    fn decode_body(head: &Head, mut r: Reader<'_>) -> Option<Self> {
        let Head { version, store, sequence, len } = *head;
        let hash_seed = r.u64()?;
        let boot_id = r.u64()?;
        let clean = r.u32()? == 1;
        let count = r.u32()? as usize;
        let mut manifest = Self {
            store,
            sequence,
            hash_seed,
            boot_id,
            clean,
            rings_marked: false,
            next_lsn: Lsn(r.u64()?),
            durable: Lsn(r.u64()?),
            reclaimed: Lsn(r.u64()?),
            time: Moment { store_ms: r.u64()?, ..Moment::default() },
            durable_ms: 0,
            report: OpeningReport::default(),
            next_base: Position(r.u64()?),
            floor: Position(r.u64()?),
            wal_start: r.u64()?,
            wal_lsn: Lsn(r.u64()?),
            wal_payload: r.u64()?,
            wal_ring: r.u64()?,
            segment_ring: r.u64()?,
            segment_size: r.u64()?,
            flash: r.u64()?,
            checkpoint: Some(Checkpoint { sequence: r.u64()?, start: Position(r.u64()?) }).filter(|c| c.sequence > 0),
            segments: Vec::new(),
            catalog: Catalog::default(),
        };
        let catalog_len = r.u32()? as usize;
        r.u32()?;
        let head_len = manifest.decode_times(version, &mut r)?;
        if count > SEGMENT_COUNT_MAX || len != head_len + count.checked_mul(SEGMENT_LEN)? + catalog_len {
            return None;
        }
        manifest.segments = (0..count).map(|_| decode_segment(&mut r)).collect::<Option<_>>()?;
        manifest.catalog = Catalog::decode(r.bytes(catalog_len)?)?;
        manifest.plausible().then_some(manifest)
    }

    /// Decodes the fields that version 1 does not have. Returns the length of the head.
    fn decode_times(&mut self, version: u32, r: &mut Reader<'_>) -> Option<usize> {
        if version == 1 {
            // Version 1 takes store time for the wall clock, and for the time of the last sync.
            self.time.wall_ms = self.time.store_ms;
            self.durable_ms = self.time.store_ms;
            return Some(HEAD_LEN_1);
        }
        self.time.wall_ms = r.u64()?;
        self.time.boot_ms = Some(r.u64()?).filter(|boot| *boot > 0);
        self.durable_ms = r.u64()?;
        self.report.pending = match r.u32()? {
            0 => None,
            1 => Some(Stop::Clean),
            2 => Some(Stop::Process),
            3 => Some(Stop::Host),
            _ => return None,
        };
        self.rings_marked = r.u32()? == 1;
        self.report.lost_after = Some(r.u64()?).filter(|lsn| *lsn != NONE).map(Lsn);
        self.report.alive_ms = r.u64()?;
        self.report.alive_wall_ms = r.u64()?;
        r.bytes(UNUSED_LEN)?;
        Some(HEAD_LEN)
    }

    /// Whether every field has a value that a store can have. Checks that verify do not prove it: a
    /// program may have written nonsense.
    fn plausible(&self) -> bool {
        let ring = |n: u64, max: u64| n.is_power_of_two() && (BLOCK as u64..=max).contains(&n);
        let rings = ring(self.wal_ring, RING_MAX) && ring(self.segment_ring, RING_MAX) && ring(self.wal_payload, 2 * RING_MAX);
        let checkpoint = self.checkpoint.is_none_or(|c| c.sequence < CHECKPOINT_SEQUENCE_MAX && c.start.0 < NUMBER_MAX);
        let numbers = [self.sequence, self.next_base.0, self.wal_start, self.next_lsn.0, self.durable.0, self.reclaimed.0, self.wal_lsn.0];
        let lsns = self.catalog.generations().into_iter().map(|generation| generation.0).chain([self.catalog.lsn.0]);
        let lsns = lsns.chain(self.report.lost_after.map(|lsn| lsn.0));
        rings
            && checkpoint
            && is_segment_size(self.segment_size)
            && (SEGMENT_SIZE_MIN..=FLASH_MAX).contains(&self.flash)
            && self.next_lsn > Lsn::ZERO
            && self.floor <= self.next_base
            && numbers.into_iter().chain(lsns).all(|number| number < NUMBER_MAX)
            && self.segments.iter().all(|segment| segment.plausible(self.next_base))
    }
}

fn is_segment_size(size: u64) -> bool {
    size.is_power_of_two() && (SEGMENT_SIZE_MIN..=SEGMENT_SIZE_MAX).contains(&size)
}

impl Segment {
    /// Whether the row can belong to a store whose next life begins at `next_base`.
    fn plausible(&self, next_base: Position) -> bool {
        let in_stream = self.base.0.is_multiple_of(self.size) && self.base.0.checked_add(self.size).is_some_and(|end| end <= next_base.0);
        // A segment may be given up before its first life.
        let has_life = self.base > Position(0);
        let may_lack_life = matches!(self.state, SegmentState::Free | SegmentState::Quarantined);
        let lsns = self.base_lsn.0 < NUMBER_MAX && self.last_lsn.0 < NUMBER_MAX;
        is_segment_size(self.size) && lsns && if has_life { in_stream } else { may_lack_life }
    }
}

/// The fields that are the same in every format version, verified.
struct Head {
    version: u32,
    len: usize,
    store: StoreId,
    sequence: u64,
}

impl Head {
    fn decode(bytes: &[u8]) -> Option<(Self, Reader<'_>)> {
        let mut r = Reader::new(bytes);
        if r.u32()? != MAGIC {
            return None;
        }
        let (version, check, len) = (r.u32()?, r.u32()?, r.u32()? as usize);
        let (store, sequence) = (StoreId(r.u64()?), r.u64()?);
        let whole = check == codec::checksum(store, MAGIC, sequence, &[bytes.get(..8)?, bytes.get(12..len)?]);
        whole.then_some((Self { version, len, store, sequence }, r))
    }
}

fn decode_segment(r: &mut Reader<'_>) -> Option<Segment> {
    let (base, base_lsn, last_lsn) = (Position(r.u64()?), Lsn(r.u64()?), Lsn(r.u64()?));
    let size = 1u64.checked_shl(r.u32()?)?;
    let state = match r.u32()? {
        0 => SegmentState::Free,
        1 => SegmentState::Open,
        2 => SegmentState::Sealed,
        3 => SegmentState::Quarantined,
        4 => SegmentState::Failed,
        _ => return None,
    };
    Some(Segment { state, size, base, base_lsn, last_lsn })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NamespaceGeneration;

    fn sample() -> Manifest {
        let segment = |i: u64| Segment {
            state: [SegmentState::Free, SegmentState::Open, SegmentState::Sealed, SegmentState::Quarantined, SegmentState::Failed]
                [i as usize % 5],
            size: 1 << (16 + i % 3),
            base: Position((i + 1) << 20),
            base_lsn: Lsn(i * 100),
            last_lsn: Lsn(i * 100 + 50),
        };
        Manifest {
            store: StoreId(0x0123_4567_89ab_cdef),
            sequence: 12,
            hash_seed: 5,
            boot_id: 6,
            clean: true,
            rings_marked: true,
            next_lsn: Lsn(1000),
            durable: Lsn(900),
            reclaimed: Lsn(100),
            time: Moment { store_ms: 1_700_000_000_000, wall_ms: 1_700_000_500_000, boot_ms: Some(77) },
            durable_ms: 1_699_999_999_000,
            report: OpeningReport {
                pending: Some(Stop::Host),
                lost_after: Some(Lsn(850)),
                alive_ms: 1_699_000_000_000,
                alive_wall_ms: 1_699_000_000_001,
            },
            next_base: Position(1 << 30),
            floor: Position(3),
            wal_start: 1 << 20,
            wal_lsn: Lsn(800),
            wal_payload: 1 << 20,
            wal_ring: 1 << 16,
            segment_ring: 1 << 18,
            segment_size: 1 << 16,
            flash: 1 << 20,
            checkpoint: Some(Checkpoint { sequence: 4, start: Position(99) }),
            segments: (0..9).map(segment).collect(),
            catalog: Catalog {
                namespaces: [("users".to_owned(), NamespaceGeneration(7))].into(),
                tokens: [("t".to_owned(), vec![1, 2])].into(),
                lsn: Lsn(8),
            },
        }
    }

    #[test]
    fn a_manifest_round_trips() {
        let manifest = sample();
        assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let bytes = sample().encode();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Manifest::decode(&bad).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..len]).is_err(), "cut to {len}");
        }
    }

    /// The bytes with a check that verifies.
    fn checked(mut bytes: Vec<u8>) -> Vec<u8> {
        let len = u32::from_le_bytes(bytes[12..16].try_into().unwrap()) as usize;
        let sequence = u64::from_le_bytes(bytes[24..32].try_into().unwrap());
        let check = codec::checksum(sample().store, MAGIC, sequence, &[&bytes[..8], &bytes[12..len]]);
        bytes[8..12].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = sample().encode();
        bytes[4] = VERSION as u8 + 1;
        assert_eq!(Manifest::decode(&bytes), Err(Damage::Broken), "a flipped bit is not a newer version");
        assert_eq!(Manifest::decode(&checked(bytes)), Err(Damage::Newer(VERSION + 1)));
    }

    #[test]
    fn version_1_takes_store_time_for_the_wall_clock() {
        let mut bytes = sample().encode();
        bytes.drain(HEAD_LEN_1..HEAD_LEN);
        bytes[4] = 1;
        let len = bytes.len() as u32;
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        let store_ms = sample().time.store_ms;
        let time = Moment { store_ms, wall_ms: store_ms, boot_ms: None };
        let report = OpeningReport::default();
        let expected = Manifest { time, durable_ms: store_ms, report, rings_marked: false, ..sample() };
        assert_eq!(Manifest::decode(&checked(bytes)), Ok(expected));
    }

    #[test]
    fn a_manifest_that_verifies_and_states_nonsense_is_broken() {
        let put = |at: usize, field: &[u8]| {
            let mut bytes = sample().encode();
            bytes[at..at + field.len()].copy_from_slice(field);
            Manifest::decode(&checked(bytes))
        };
        assert_eq!(put(0, b""), Ok(sample()));
        let row = HEAD_LEN + 2 * SEGMENT_LEN;
        let words: [(usize, u64); 22] = [
            (24, u64::MAX),
            (56, u64::MAX),
            (56, 0),
            (64, u64::MAX - 5),
            (72, 1 << 62),
            (88, u64::MAX - 5),
            (88, 1 << 20),
            (96, (1 << 30) + 1),
            (104, u64::MAX - 5),
            (112, 1 << 63),
            (120, 1 << 30),
            (128, 1 << 30),
            (136, 1 << 11),
            (144, 1 << 15),
            (144, 1 << 32),
            (152, 1 << 60),
            (160, 1 << 40),
            (168, u64::MAX),
            (216, 1 << 62),
            (row, u64::MAX << 20),
            (row + 8, u64::MAX),
            (row + 16, 1 << 62),
        ];
        for (at, word) in words {
            assert_eq!(put(at, &word.to_le_bytes()), Err(Damage::Broken), "{word} at {at}");
        }
        let halves: [(usize, u32); 8] =
            [(52, u32::MAX), (176, u32::MAX), (208, 4), (row + 24, 0), (row + 24, 15), (row + 24, 32), (row + 24, 64), (row + 28, 5)];
        for (at, half) in halves {
            assert_eq!(put(at, &half.to_le_bytes()), Err(Damage::Broken), "{half} at {at}");
        }
        // A base that is no multiple of the size, and a segment with records and without a base.
        assert_eq!(put(row, &((3u64 << 20) + 4096).to_le_bytes()), Err(Damage::Broken));
        assert_eq!(put(row, &0u64.to_le_bytes()), Err(Damage::Broken));
    }

    #[test]
    fn a_catalog_beyond_its_limits_makes_a_manifest_broken() {
        let with = |change: &dyn Fn(&mut Catalog)| {
            let mut manifest = sample();
            change(&mut manifest.catalog);
            Manifest::decode(&manifest.encode())
        };
        assert!(with(&|_| ()).is_ok());
        let broken: [&dyn Fn(&mut Catalog); 5] = [
            &|catalog| catalog.lsn = Lsn(u64::MAX),
            &|catalog| catalog.namespaces = [("x".to_owned(), NamespaceGeneration::CATALOG)].into(),
            &|catalog| catalog.namespaces = (0..1_026).map(|n| (n.to_string(), NamespaceGeneration(7))).collect(),
            &|catalog| catalog.tokens = (0..65).map(|n| (n.to_string(), vec![1])).collect(),
            &|catalog| catalog.tokens = [("t".to_owned(), vec![1; 1_025])].into(),
        ];
        for (number, change) in broken.into_iter().enumerate() {
            assert_eq!(with(change), Err(Damage::Broken), "{number}");
        }
    }
}
