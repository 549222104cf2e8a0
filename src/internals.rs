//! Parts of the engine, each with the data that it works on, for `benches/pieces.rs`.
//!
//! Not part of the public interface: only the feature `internals` exposes this module, and it may
//! change in any version.

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::config::Backend;
use crate::id::{Key, KeyHash, Location, Lsn, Position, SegmentId, StoreId};
use crate::index::batch::Pending;
use crate::index::geometry::{Geometry, IndexEntry};
use crate::index::{self, checkpoint};
use crate::io::directory::Directory;
use crate::io::posix::PosixDisk;
use crate::io::ring::Ring;
use crate::io::{Disk, File, Mapping};
use crate::segment::format::{self, Content, Draft};
use crate::wal::format::{Frame, Mutation};
use crate::wal::replay::{IgnoreAll, Replay};
use crate::wal::writer::Wal;

const STORE: StoreId = StoreId(1);
const SEGMENTS: u32 = 512;
const SEGMENT_SIZE: u64 = 32 << 20;

/// The checksum of records and blocks: a seeded CRC-32 of `bytes`.
pub fn checksum(bytes: &[u8]) -> u32 {
    crate::codec::checksum(STORE, 1, 2, &[bytes])
}

/// The encoded record of a put.
#[derive(Debug)]
pub struct Record(Vec<u8>);

impl Record {
    /// Encodes a record like a put.
    pub fn new(key: &[u8], value: &[u8]) -> Self {
        let draft = Draft::put(Key { namespace: crate::id::NamespaceGeneration::FIRST, bytes: key }, Content::Plain(value), None);
        let prefix = draft.prefix(STORE, Position(0), Lsn(1), Lsn(1)).expect("the LSN is near");
        let mut bytes = Vec::with_capacity(draft.len());
        bytes.extend_from_slice(&prefix);
        draft.parts().iter().for_each(|part| bytes.extend_from_slice(part));
        Self(bytes)
    }

    /// Decodes and verifies the record like a get. Returns whether it verifies.
    pub fn is_whole(&self) -> bool {
        format::decode_record(STORE, Position(0), Lsn(1), &self.0).is_some()
    }
}

/// The index of a store with 16 GiB of flash.
#[derive(Debug)]
pub struct Index(index::Index);

impl Index {
    /// An index with the entries 0 to `entries - 1`.
    pub fn new(entries: u64) -> Self {
        let index = Self(index::Index::new(Geometry::new(SEGMENTS, SEGMENT_SIZE)));
        (0..entries).for_each(|n| index.insert(n));
        index
    }

    fn hash(n: u64) -> KeyHash {
        KeyHash(n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Inserts entry `n`, or replaces it.
    pub fn insert(&self, n: u64) {
        let location = Location { segment: SegmentId(n as u32 % SEGMENTS), offset: (n as u32).wrapping_mul(8) % SEGMENT_SIZE as u32 };
        self.0.insert(Self::hash(n), &IndexEntry::new(location, 1_000));
    }

    /// Whether the index holds entry `n`.
    pub fn contains(&self, n: u64) -> bool {
        self.0.get(Self::hash(n)).is_some()
    }

    /// Bytes of DRAM that the index takes.
    pub fn allocated(&self) -> u64 {
        self.0.allocated()
    }
}

/// A directory for the checkpoint and the WAL files of a benchmark.
#[derive(Debug)]
pub struct Dir(Arc<dyn Disk>);

impl Dir {
    /// Opens `dir`, which must exist and be empty.
    ///
    /// # Errors
    /// That of the system, if the directory cannot be opened.
    pub fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(PosixDisk::new(Directory::open(dir, true)?, Backend::Portable, 1, 1)?)))
    }

    /// Writes a checkpoint of `index` and syncs it.
    ///
    /// # Errors
    /// That of the failed write or sync.
    pub fn write_checkpoint(&self, index: &Index) -> io::Result<Checkpoint> {
        let file = crate::io::create_or_resize(self.0.as_ref(), "checkpoint.1", checkpoint::file_len(&index.0, 0), crate::id::StoreId(1))?;
        checkpoint::write(STORE, 1, &index.0, &[], file.as_ref())?.expect("no thread writes meanwhile");
        Ok(Checkpoint { file, geometry: index.0.geometry() })
    }

    /// Makes a WAL of `mutations` frames, written out and synced.
    ///
    /// # Errors
    /// That of the failed write or sync.
    pub fn write_wal(&self, mutations: u64) -> io::Result<Log> {
        const PAYLOAD: u64 = 16 << 20;
        let (ring, _) = self.0.map("ring", PAYLOAD / 2)?;
        let wal = Wal::new(Arc::clone(&self.0), STORE, Ring::new(Arc::clone(&ring), 0), PAYLOAD)?;
        let mut at = 0;
        for n in 1..=mutations {
            if !wal.has_room(Wal::end_of(at, 0)) {
                wal.write_out(at)?;
            }
            let (lsn, hash) = (Lsn(n), Index::hash(n));
            let mutation = Mutation { lsn, hash, tombstone: false, supersedes: false, record: Position(n * 1_024), record_len: 1_024 };
            at = wal.append(at, &Frame::Mutation(mutation), &[]);
        }
        wal.write_out(at)?;
        wal.sync()?;
        Ok(Log { disk: Arc::clone(&self.0), ring, payload: PAYLOAD })
    }
}

/// A checkpoint file on disk.
#[derive(Debug)]
pub struct Checkpoint {
    file: Arc<dyn File>,
    geometry: Geometry,
}

impl Checkpoint {
    /// Loads the checkpoint into an empty index like an opening. Returns the number of entries.
    ///
    /// # Errors
    /// That of the failed read, or one that says that the checkpoint does not verify.
    pub fn load(&self) -> io::Result<u64> {
        let index = index::Index::new(self.geometry);
        match checkpoint::load(STORE, 1, self.file.as_ref(), &index, Pending::none(self.geometry), |_| {
            checkpoint::Keep::all(self.geometry)
        })? {
            checkpoint::Loaded::Entries(entries) => Ok(entries),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }
}

/// A WAL on disk.
#[derive(Debug)]
pub struct Log {
    disk: Arc<dyn Disk>,
    ring: Arc<dyn Mapping>,
    payload: u64,
}

impl Log {
    /// Replays the WAL like an opening. Returns the number of frames.
    ///
    /// # Errors
    /// That of the failed read.
    pub fn replay(&self) -> io::Result<u64> {
        let mut replay = Replay::open(self.disk.as_ref(), STORE, Arc::clone(&self.ring), self.payload)?;
        Ok(replay.run((0, Lsn(1)), Lsn::ZERO, true, &mut IgnoreAll)?.frames)
    }
}
