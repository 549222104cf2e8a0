//! Fuzz targets: each decoder on arbitrary bytes, as if their checksums held, and the whole engine
//! on arbitrary steps. `fuzz/` runs them, and so do the tests, on the inputs of `fuzz/corpus`.

use std::sync::Arc;

use crate::codec::unchecked;
use crate::config::{Ack, Options};
use crate::engine::tests::model::{Evictions, History, Keys, Step};
use crate::engine::tests::store::{Machine, Store, small};
use crate::id::{Lsn, Position, SegmentId, StoreId};
use crate::index::batch::Pending;
use crate::index::geometry::Geometry;
use crate::index::{Index, checkpoint};
use crate::io::sim::{PowerCut, SimDisk};
use crate::io::{BLOCK, Disk, File};
use crate::manifest::Manifest;
use crate::segment::format::{self, Life, Trailer};
use crate::segment::reader::Listing;
use crate::segment::table::{Row, Stage, WalStart};
use crate::tier::warmth_list::WarmthList;
use crate::wal::format::{FileHeader, Mutation};
use crate::wal::replay::{Hole, PastEnd, Replay, Visitor};

/// Takes the bytes, and panics if a check fails.
type Target = fn(&[u8]);

/// Every target, by the name of its binary and of its corpus.
pub const TARGETS: [(&str, Target); 8] = [
    ("manifest", manifest),
    ("record", record),
    ("footer", footer),
    ("wal", wal),
    ("checkpoint", checkpoint_file),
    ("heat", heat),
    ("options", options),
    ("operations", operations),
];

const STORE: StoreId = StoreId(0);

/// A file of `len` bytes that begins with `bytes`.
fn file(disk: &SimDisk, name: &str, len: usize, bytes: &[u8]) -> Arc<dyn File> {
    let file = disk.create(name, len as u64).expect("room");
    disk.overwrite(name, 0, &bytes[..bytes.len().min(len)]);
    file
}

/// A manifest that decodes is equal after encoding and decoding it again.
pub fn manifest(data: &[u8]) {
    unchecked(|| {
        if let Ok(manifest) = Manifest::decode(data) {
            assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));
        }
    });
}

/// A record, and the header and trailer of a segment.
pub fn record(data: &[u8]) {
    unchecked(|| {
        if let Some(record) = format::decode_record(STORE, Position(1 << 20), Lsn(1), data) {
            record.effect(7, data);
            assert!(record.len.is_multiple_of(crate::id::UNIT));
        }
        let mut block = [0; BLOCK];
        let part = data.len().min(BLOCK);
        block[..part].copy_from_slice(&data[..part]);
        let _ = (format::decode_header(STORE, &block), format::decode_trailer(STORE, &block));
    });
}

/// The footer of a segment, which ends where the trailer says. The first two bytes are the
/// trailer's fields.
pub fn footer(data: &[u8]) {
    const SIZE: usize = 16 * BLOCK;
    let Some(([blocks, end], rest)) = data.split_first_chunk() else { return };
    let life = Life { id: SegmentId(0), base: Position(SIZE as u64), base_lsn: Lsn(1) };
    let row = Row { stage: Stage::Sealed, size: SIZE as u64, life, last_lsn: Lsn(1), wal_start: WalStart::default(), moved_until: 0 };
    let trailer = Trailer { footer_blocks: u32::from(*blocks), data_end: u32::from(*end) * 512, entries: 1 };
    let mut segment = vec![0; SIZE];
    let part = rest.len().min(SIZE - BLOCK);
    segment[SIZE - BLOCK - part.next_multiple_of(BLOCK)..][..part].copy_from_slice(&rest[..part]);
    let disk = SimDisk::new(1);
    unchecked(|| {
        format::encode_trailer(STORE, &life, &trailer, &mut segment[SIZE - BLOCK..]);
        let file = file(&disk, "segment.0", SIZE, &segment);
        Listing::new(STORE, &row, 7, file.as_ref(), 2 * BLOCK).flatten().count()
    });
}

/// A WAL of one file, half of it in the ring.
pub fn wal(data: &[u8]) {
    const PAYLOAD: usize = 4 * BLOCK;
    struct InOrder(Lsn, u64);
    impl Visitor for InOrder {
        fn visit(&mut self, mutation: &Mutation, moved: bool, _: &[u8]) -> std::io::Result<bool> {
            if !moved {
                assert!(mutation.lsn > self.0, "{mutation:?} after {}", self.0);
                self.0 = mutation.lsn;
            }
            assert!(mutation.record.0 >= self.1, "{mutation:?} before the record of an earlier frame");
            self.1 = mutation.record.0.saturating_add(mutation.record_len.into());
            Ok(true)
        }

        fn repair(&mut self, hole: &Hole) -> std::io::Result<bool> {
            assert!(hole.from < hole.to, "{hole:?}");
            Ok(hole.from.is_multiple_of(16))
        }

        fn resume_past_end(&mut self, last: Lsn) -> std::io::Result<PastEnd> {
            Ok(PastEnd { last, records: last.0 % 3, is_torn: last.0.is_multiple_of(5) })
        }
    }
    let disk = SimDisk::new(1);
    let mut bytes = vec![0; BLOCK];
    unchecked(|| FileHeader { number: 0, payload: PAYLOAD as u64 }.encode(STORE, &mut bytes));
    let (in_file, in_ring) = data.split_at(data.len() / 2);
    bytes.extend_from_slice(in_file);
    file(&disk, "wal.0", PAYLOAD + BLOCK, &bytes);
    let (ring, _) = disk.map("ring.wal", 2 * BLOCK as u64).expect("room");
    for (word, bytes) in ring.words().iter().zip(in_ring.chunks_exact(8)) {
        word.store(u64::from_le_bytes(bytes.try_into().expect("eight bytes")), std::sync::atomic::Ordering::Relaxed);
    }
    for page_cache_whole in [true, false] {
        let mut in_order = InOrder(Lsn(0), 0);
        let mut replay =
            || Replay::open(&disk, STORE, Arc::clone(&ring), PAYLOAD as u64)?.run((0, Lsn(1)), Lsn(3), page_cache_whole, &mut in_order);
        unchecked(|| replay().map(drop)).expect("no fault is planned");
    }
}

/// A checkpoint. The first five bytes are its header's fields, the others begin its chunks.
pub fn checkpoint_file(data: &[u8]) {
    let Some(([chunks, bases @ ..], rest)) = data.split_first_chunk::<5>() else { return };
    let geometry = Geometry::new(8, 64 << 10);
    let header = checkpoint::Header { sequence: 1, geometry, chunks: u32::from(chunks % 3), bases: u32::from_le_bytes(*bases), entries: 1 };
    let mut bytes = vec![0; BLOCK];
    let disk = SimDisk::new(1);
    unchecked(|| {
        header.encode(STORE, &mut bytes);
        bytes.extend_from_slice(rest);
        let file = file(&disk, "checkpoint.1", BLOCK + header.chunks as usize * checkpoint::format::CHUNK_LEN, &bytes);
        checkpoint::load(STORE, 1, file.as_ref(), &Index::new(geometry), Pending::none(geometry), |_| checkpoint::Keep::all(geometry))
            .map(drop)
    })
    .expect("no fault is planned");
}

/// A list of hot entries.
pub fn heat(data: &[u8]) {
    let disk = SimDisk::new(1);
    let file = file(&disk, "heat.0", data.len().next_multiple_of(BLOCK).max(BLOCK), data);
    for max in [usize::MAX, 3] {
        let list = unchecked(|| WarmthList::read(STORE, file.as_ref(), max)).expect("no fault is planned");
        assert!(list.is_none_or(|list| list.hashes.len() <= max && list.proved <= list.hashes.len()));
    }
}

/// Options from TOML.
pub fn options(data: &[u8]) {
    #[cfg(feature = "toml")]
    if let Ok(options) = str::from_utf8(data).map_err(drop).and_then(|text| Options::from_toml(text).map_err(drop)) {
        let _valid = options.validate(None);
    }
    #[cfg(not(feature = "toml"))]
    let _ = data;
}

/// Runs the steps that the bytes stand for on a new store: mutations, reads, background work,
/// kills, stops and power cuts. Every answer and every restart is checked.
pub fn operations(data: &[u8]) {
    let keys = Keys { count: 16, len: 1 };
    let history = History::new(keys, 0, Evictions::Counted(Lsn::ZERO));
    let mut machine = Machine::new(Store::new(small()), history);
    let steps = data.chunks_exact(2).take(400).map(|bytes| step(bytes[0], bytes[1]));
    for step in steps.chain((0..16).map(Step::Get)) {
        machine.run(&step).expect("no fault is planned");
    }
}

fn step(kind: u8, detail: u8) -> Step {
    let key = detail % 16;
    let ack = if detail & 64 != 0 { Ack::Host } else { Ack::Process };
    match kind % 16 {
        0..=5 => Step::put(key, usize::from(kind / 16) * 800, ack),
        6 | 7 => Step::Delete(key, ack),
        8 | 9 => Step::Get(key),
        10 => Step::Work,
        11 => Step::Checkpoint,
        12 => Step::Kill,
        13 => Step::Close,
        14 => Step::StopDuringWork(u64::from(detail) % 24),
        _ => Step::PowerCut(detail.into(), PowerCut::Random),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inputs_of_the_corpora_pass() {
        let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in TARGETS {
            let mut inputs = 0;
            for entry in std::fs::read_dir(corpora.join(name)).unwrap_or_else(|e| panic!("the corpus of {name}: {e}")) {
                target(&std::fs::read(entry.expect("an entry").path()).expect("an input"));
                inputs += 1;
            }
            assert!(inputs > 0, "the corpus of {name} is empty");
        }
    }
}
