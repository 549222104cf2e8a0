//! Every decoder on bytes that nobody wrote, as if their checksums held, and the whole engine on operations that nobody thought of. `fuzz/` runs these; so do the tests, on
//! what `fuzz/corpus` keeps.

use std::collections::HashMap;
use std::sync::Arc;

use crate::clock::SimClock;
use crate::codec::unchecked;
use crate::config::{Ack, Options};
use crate::engine::background::INLINE;
use crate::engine::{self, DeleteOptions, Engine, PutOptions};
use crate::id::{Lsn, Position, SegmentId, StoreId};
use crate::index::batch::Pending;
use crate::index::geometry::Geometry;
use crate::index::{Index, checkpoint};
use crate::io::sim::{PowerCut, SimDisk};
use crate::io::{BLOCK, Disk, File};
use crate::manifest::Manifest;
use crate::segment::format::{self, Life, Trailer};
use crate::segment::reader;
use crate::segment::table::{Row, Stage, WalStart};
use crate::tier::warmth_list::WarmthList;
use crate::wal::format::{FileHeader, Mutation};
use crate::wal::replay::{Hole, PastEnd, Replay, Visitor};

/// Takes the bytes, and panics if they do harm.
type Target = fn(&[u8]);

/// Every target by its name: that of its binary and of its corpus.
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

/// A manifest that is taken for one says the same once it is written again.
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

/// The footer of a segment, which ends where the trailer says: the first two bytes are what the trailer is made of.
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
        reader::entries(STORE, &row, 7, file.as_ref())
    });
}

/// A WAL of one file, half of it in the ring.
pub fn wal(data: &[u8]) {
    const PAYLOAD: usize = 4 * BLOCK;
    struct InOrder(Lsn);
    impl Visitor for InOrder {
        fn visit(&mut self, mutation: &Mutation, moved: bool, _: &[u8]) -> std::io::Result<()> {
            if !moved {
                assert!(mutation.lsn > self.0, "{mutation:?} after {}", self.0);
                self.0 = mutation.lsn;
            }
            Ok(())
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
        let replay = || {
            Replay::open(&disk, STORE, Arc::clone(&ring), PAYLOAD as u64)?.run((0, Lsn(1)), Lsn(3), page_cache_whole, &mut InOrder(Lsn(0)))
        };
        unchecked(|| replay().map(drop)).expect("no fault is planned");
    }
}

/// A checkpoint: the first five bytes are what its header is made of, the others begin its chunks.
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

/// The list of what was hot.
pub fn heat(data: &[u8]) {
    let disk = SimDisk::new(1);
    let file = file(&disk, "heat.0", data.len().next_multiple_of(BLOCK).max(BLOCK), data);
    for most in [usize::MAX, 3] {
        let list = unchecked(|| WarmthList::read(STORE, file.as_ref(), most)).expect("no fault is planned");
        assert!(list.is_none_or(|list| list.hashes.len() <= most && list.proved <= list.hashes.len()));
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

/// A store whose operations, kills and power cuts the bytes say. Nothing older than what was acknowledged, and durable if power failed, is ever served.
pub fn operations(data: &[u8]) {
    let mut lives = Lives::new();
    for (n, step) in data.chunks_exact(2).take(400).enumerate() {
        lives.step(n as u64, step[0], step[1]);
    }
    lives.check_all();
}

/// What a key has had: the versions in their order, `None` for a removal, each with its LSN.
type History = Vec<(Lsn, Option<u64>)>;

struct Lives {
    disk: SimDisk,
    clock: Arc<SimClock>,
    engine: Option<Arc<Engine>>,
    keys: HashMap<u8, History>,
}

impl Lives {
    fn new() -> Self {
        let mut lives = Self { disk: SimDisk::new(1), clock: Arc::new(SimClock::new(2)), engine: None, keys: HashMap::new() };
        lives.open();
        lives
    }

    fn open(&mut self) {
        let options = Options::new("sim").memory(1 << 20).flash(1 << 20).segment_size(64 << 10);
        self.engine =
            Some(engine::open(&options, Some(Arc::new(self.disk.clone())), self.clock.clone(), INLINE).expect("no fault is planned"));
    }

    fn engine(&self) -> &Engine {
        self.engine.as_deref().expect("it is open")
    }

    fn step(&mut self, n: u64, what: u8, which: u8) {
        let key = which % 16;
        let ack = if which & 64 != 0 { Ack::Host } else { Ack::Process };
        match what % 16 {
            0..=5 => {
                let mut value = n.to_le_bytes().to_vec();
                value.resize(8 + usize::from(what / 16) * 800, key);
                let lsn = self.engine().put((&[key]).into(), &value, &PutOptions::new().ack(ack)).expect("no fault is planned");
                self.keys.entry(key).or_default().push((lsn.expect("unconditional"), Some(n)));
            }
            6 | 7 => {
                let lsn = self.engine().delete((&[key]).into(), &DeleteOptions::new().ack(ack)).expect("no fault is planned");
                self.keys.entry(key).or_default().push((lsn.expect("unconditional"), None));
            }
            8 | 9 => self.check(key),
            10 => self.engine().step_all().expect("no fault is planned"),
            11 => drop(self.engine().step_checkpoint(true).expect("no fault is planned")),
            12 => {
                let after = self.disk.after_kill();
                self.engine = None;
                self.disk = after;
                self.open();
            }
            13 => {
                let engine = self.engine.take().expect("it is open");
                engine.begin_close();
                engine.finish().expect("no fault is planned");
                drop(engine);
                self.open();
            }
            14 => self.stop_at(u64::from(which)),
            _ => self.power_cut(which),
        }
    }

    /// Dies at one of the operations of what is to be done in the background.
    fn stop_at(&mut self, operation: u64) {
        self.disk.stop_at(self.disk.operations() + operation % 24);
        let _stopped_or_not = self.engine().step_all();
        let after = self.disk.after_kill();
        self.engine = None;
        self.disk = after;
        self.open();
    }

    fn power_cut(&mut self, seed: u8) {
        let durable = self.engine().stats().durable;
        let after = self.disk.after_power_cut(u64::from(seed), PowerCut::Random);
        self.engine = None;
        self.disk = after;
        self.open();
        for key in 0..16 {
            let history = self.keys.entry(key).or_default();
            let kept = history.iter().rposition(|(lsn, _)| *lsn <= durable).unwrap_or(0);
            let found = Self::version(self.engine.as_deref().expect("it is open"), key);
            let may = history.iter().skip(kept).any(|(_, version)| *version == found);
            assert!(found.is_none() || may, "key {key} has version {found:?} after a power cut at {durable}: {history:?}");
            *history = vec![(durable, found)];
        }
    }

    fn version(engine: &Engine, key: u8) -> Option<u64> {
        let value = engine.get((&[key]).into(), true).expect("open")?;
        assert!(value[8..].iter().all(|byte| *byte == key), "the bytes are those of key {key}");
        Some(u64::from_le_bytes(value[..8].try_into().expect("eight bytes")))
    }

    /// A miss is always right, and lasts.
    fn check(&mut self, key: u8) {
        let found = Self::version(self.engine(), key);
        let history = self.keys.entry(key).or_default();
        let newest = history.last().and_then(|(_, version)| *version);
        assert!(found.is_none() || found == newest, "key {key} has version {found:?}: {history:?}");
    }

    fn check_all(&mut self) {
        (0..16).for_each(|key| self.check(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_corpora_keep_does_no_harm() {
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
