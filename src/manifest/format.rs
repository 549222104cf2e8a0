//! The bytes of the manifest. `docs/FORMAT.md` explains them.
//!
#![doc = concat!("```text\n", include_str!("format.layout.txt"), "```")]

use super::catalog::{self, Catalog};
use crate::codec::{self, Put, Reader};
use crate::id::{Lsn, Position, StoreId};

/// The table above, which `inspect layout` prints.
pub(crate) const LAYOUT: &str = include_str!("format.layout.txt");
pub(crate) const MAGIC: u32 = u32::from_le_bytes(*b"EWMF");
pub(crate) const VERSION: u32 = 1;
const HEAD_LEN: usize = 184;
const SEGMENT_LEN: usize = 32;
/// Length of the longest manifest file, in bytes.
pub(crate) const LEN_MAX: u64 =
    (2 * (HEAD_LEN + SEGMENT_LEN * 2 * crate::config::SEGMENTS_MAX as usize + catalog::LEN_MAX) as u64).next_power_of_two();

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

/// The decoded manifest. The table of the module describes its fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) store: StoreId,
    pub(crate) sequence: u64,
    pub(crate) hash_seed: u64,
    pub(crate) boot_id: u64,
    pub(crate) clean: bool,
    pub(crate) next_lsn: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) reclaimed: Lsn,
    pub(crate) time_ms: u64,
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
        out.put_u64(self.time_ms);
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
            VERSION => Self::decode_body(&head, r).ok_or(Damage::Broken),
            0 => Err(Damage::Broken),
            newer => Err(Damage::Newer(newer)),
        }
    }

    fn decode_body(head: &Head, mut r: Reader<'_>) -> Option<Self> {
        let Head { store, sequence, len, .. } = *head;
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
            next_lsn: Lsn(r.u64()?),
            durable: Lsn(r.u64()?),
            reclaimed: Lsn(r.u64()?),
            time_ms: r.u64()?,
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
        if len != HEAD_LEN + count.checked_mul(SEGMENT_LEN)? + catalog_len {
            return None;
        }
        manifest.segments = (0..count).map(|_| decode_segment(&mut r)).collect::<Option<_>>()?;
        manifest.catalog = Catalog::decode(r.bytes(catalog_len)?)?;
        manifest.plausible().then_some(manifest)
    }

    /// Whether the fields that serve as lengths have values that a store can have.
    fn plausible(&self) -> bool {
        let ring = |n: u64| n.is_power_of_two() && (1 << 12..=1 << 30).contains(&n);
        ring(self.wal_ring) && ring(self.segment_ring) && ring(self.wal_payload) && self.segment_size.is_power_of_two()
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
    let size = 1u64.checked_shl(r.u32()?).filter(|size| *size <= 1 << 31)?;
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
            base: Position(i << 20),
            base_lsn: Lsn(i * 100),
            last_lsn: Lsn(i * 100 + 50),
        };
        Manifest {
            store: StoreId(0x0123_4567_89ab_cdef),
            sequence: 12,
            hash_seed: 5,
            boot_id: 6,
            clean: true,
            next_lsn: Lsn(1000),
            durable: Lsn(900),
            reclaimed: Lsn(100),
            time_ms: 1_700_000_000_000,
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

    #[test]
    fn a_newer_version_is_named() {
        let mut bytes = sample().encode();
        bytes[4] = 2;
        assert_eq!(Manifest::decode(&bytes), Err(Damage::Broken), "a flipped bit is not a newer version");
        let check = codec::checksum(sample().store, MAGIC, sample().sequence, &[&bytes[..8], &bytes[12..]]);
        bytes[8..12].copy_from_slice(&check.to_le_bytes());
        assert_eq!(Manifest::decode(&bytes), Err(Damage::Newer(2)));
    }
}
