//! Loading a checkpoint: one thread reads ahead, the caller checks chunks and cuts them into
//! stretches of partitions, and worker threads fill the partitions.
//!
//! Buffers that were used up go back to the reading thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::channel::{Receiver, Sender};

use super::format::{CHUNK_LEN, Header, PAYLOAD_LEN, chunk_check};
use crate::codec::Reader;
use crate::id::{Location, StoreId};
use crate::index::Index;
use crate::index::batch::{Changes, Pending};
use crate::index::geometry::Geometry;
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File};
use crate::parallel::{self, scope};

/// Chunks in one read.
const BATCH: usize = 16;
/// Buffers of [`BATCH`] chunks that are in use at the same time.
const READ_AHEAD: usize = 3;
/// Slots in a stretch, the share that a worker thread takes at once. A stretch ends with a
/// partition.
const STRETCH: usize = 32 << 10;
/// Step by which the heap of a worker thread grows.
///
/// Without it glibc extends the heap page by page, and the page faults of other threads wait for
/// each of these system calls.
const HEAP_STEP: usize = 96 << 10;

/// The result of loading a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// The number of slots that were kept.
    Entries(u64),
    /// The checkpoint has slots of another geometry. Nothing was loaded.
    OtherGeometry,
    /// The checkpoint does not verify. The caller discards the index, which may be filled in part.
    Broken,
}

/// Which slots of a checkpoint are kept: for each segment, those of records from an offset on.
#[derive(Debug)]
pub(crate) struct Keep(Vec<u32>);

impl Keep {
    /// Keeps every slot.
    pub(crate) fn all(geometry: Geometry) -> Self {
        Self(vec![0; 1 << geometry.segment_bits])
    }

    fn has(&self, location: Location) -> bool {
        self.0.get(location.segment.index()).is_some_and(|from| location.offset >= *from)
    }
}

impl FromIterator<Option<u32>> for Keep {
    /// The offsets of the segments, from the first segment on. Of a segment without an offset no
    /// slot is kept.
    fn from_iter<T: IntoIterator<Item = Option<u32>>>(offsets: T) -> Self {
        // No record begins at `u32::MAX`: offsets are multiples of `UNIT`.
        Self(offsets.into_iter().map(|from| from.unwrap_or(u32::MAX)).collect())
    }
}

/// Loads checkpoint `sequence` from `file` into the empty `index`, and applies the `changes` since.
///
/// `keep` gets the base positions that the checkpoint states, and decides which slots are kept.
pub(crate) fn load(
    store: StoreId,
    sequence: u64,
    file: &dyn File,
    index: &Index,
    mut changes: Pending,
    keep: impl FnOnce(&[u64]) -> Keep,
) -> io::Result<Loaded> {
    let mut block = AlignedBuf::zeroed(BLOCK);
    if file.len() < BLOCK as u64 {
        return Ok(Loaded::Broken);
    }
    file.read_at(0, &mut block)?;
    let header = match Header::decode(store, &block) {
        Some(header) if header.sequence == sequence => header,
        _ => return Ok(Loaded::Broken),
    };
    if header.geometry != index.geometry() {
        return Ok(Loaded::OtherGeometry);
    }
    assert_eq!(changes.geometry(), index.geometry(), "changes are for one geometry");
    if BLOCK as u64 + u64::from(header.chunks) * CHUNK_LEN as u64 > file.len() {
        return Ok(Loaded::Broken);
    }
    let (loaded, batches) = (AtomicU64::new(0), (header.chunks as usize).div_ceil(BATCH));
    let is_whole = scope(|workers| -> io::Result<bool> {
        let (to, from) = crossbeam::channel::bounded(1);
        let (give_back, spare) = crossbeam::channel::bounded(READ_AHEAD);
        for _ in 0..READ_AHEAD.min(batches) {
            give_back.send(AlignedBuf::zeroed(BATCH.min(header.chunks as usize) * CHUNK_LEN)).expect("there is room for all");
        }
        workers.spawn(move || read_ahead(file, header.chunks as usize, &spare, &to))?;
        let mut payload = Payload { store, header, from, give_back, batch: None, number: 0, rest: 0..0 };
        let mut bytes = Vec::new();
        if !payload.take(header.bases as usize * 8, &mut bytes)? {
            return Ok(false);
        }
        let keep = Arc::new(keep(&words(&bytes).collect::<Vec<u64>>()));
        let (to, from) = crossbeam::channel::bounded::<(Stretch, Changes)>(1);
        for number in 0..parallel::thread_count().min(batches) {
            let (from, keep, loaded) = (from.clone(), Arc::clone(&keep), &loaded);
            let fill = move || {
                let mut scratch = Vec::new();
                for (stretch, changes) in from {
                    loaded.fetch_add(stretch.load(index, &keep, &changes, &mut scratch), Ordering::Relaxed);
                }
            };
            match workers.spawn(fill) {
                // One worker is enough.
                Err(_) if number > 0 => break,
                spawned => spawned?,
            }
        }
        drop(from);
        payload.send_stretches(index.geometry().partitions(), &mut changes, &to)
    })?;
    Ok(if is_whole { Loaded::Entries(loaded.into_inner()) } else { Loaded::Broken })
}

/// Reads a checkpoint of `chunks` chunks in order, into buffers from `spare`, until the receiver is
/// gone.
fn read_ahead(file: &dyn File, chunks: usize, spare: &Receiver<AlignedBuf>, to: &Sender<io::Result<AlignedBuf>>) {
    for first in (0..chunks).step_by(BATCH) {
        let Ok(mut buf) = spare.recv() else { return };
        let len = BATCH.min(chunks - first) * CHUNK_LEN;
        let read = file.read_at((BLOCK + first * CHUNK_LEN) as u64, &mut buf[..len]);
        if to.send(read.map(|()| buf)).is_err() {
            return;
        }
    }
}

/// The slots of consecutive partitions.
struct Stretch {
    first: usize,
    /// The number of slots of each partition.
    counts: Vec<u32>,
    slots: Vec<u64>,
}

impl Stretch {
    fn beginning_at(first: usize) -> Self {
        Self { first, counts: Vec::new(), slots: Vec::new() }
    }

    /// Fills the partitions. Returns the number of slots that were kept.
    fn load(mut self, index: &Index, keep: &Keep, changes: &Changes, scratch: &mut Vec<u64>) -> u64 {
        let (geometry, mut loaded, mut rest) = (index.geometry(), 0, &mut self.slots[..]);
        let mut room = 0;
        for (number, count) in (self.first..).zip(self.counts) {
            let need = size_of::<u64>() * count as usize;
            if room < need {
                // The freed block stays in the heap and serves the next allocations.
                drop(std::hint::black_box(Vec::<u8>::with_capacity(HEAP_STEP)));
                room = HEAP_STEP;
            }
            room = room.saturating_sub(need);
            let (slots, behind) = rest.split_at_mut(count as usize);
            let mut kept = 0;
            for i in 0..slots.len() {
                slots[kept] = slots[i];
                kept += usize::from(keep.has(geometry.location(slots[i])));
            }
            let changed = changes.apply(number, &slots[..kept], scratch);
            if !changed.is_empty() {
                index.load_partition(number, changed);
            }
            loaded += kept as u64;
            rest = behind;
        }
        loaded
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks::<8>().0.iter().map(|b| u64::from_le_bytes(*b))
}

/// Reads the payload from front to back, and checks each chunk.
struct Payload {
    store: StoreId,
    header: Header,
    from: Receiver<io::Result<AlignedBuf>>,
    give_back: Sender<AlignedBuf>,
    /// The buffer with the open chunk.
    batch: Option<AlignedBuf>,
    /// The next chunk to open.
    number: u32,
    /// The unread bytes of the open chunk, as a range of `batch`.
    rest: std::ops::Range<usize>,
}

impl Payload {
    /// Sends all partitions to the workers, in order. Returns whether they verify.
    fn send_stretches(&mut self, partitions: usize, changes: &mut Pending, to: &Sender<(Stretch, Changes)>) -> io::Result<bool> {
        let (mut stretch, mut bytes) = (Stretch::beginning_at(0), Vec::new());
        for partition in 0..partitions {
            let count = match self.take(4, &mut bytes)? {
                true => Reader::new(&bytes).u32().unwrap_or(0),
                false => return Ok(false),
            };
            if !self.take(count as usize * 8, &mut bytes)? {
                return Ok(false);
            }
            stretch.counts.push(count);
            stretch.slots.extend(words(&bytes));
            if stretch.slots.len() >= STRETCH || partition + 1 == partitions {
                let full = std::mem::replace(&mut stretch, Stretch::beginning_at(partition + 1));
                let changes = changes.next(full.first..partition + 1);
                to.send((full, changes)).expect("the workers end after this thread");
            }
        }
        Ok(true)
    }

    /// Puts the next `len` bytes into `out`. Returns false if fewer bytes verify.
    fn take(&mut self, len: usize, out: &mut Vec<u8>) -> io::Result<bool> {
        out.clear();
        if len as u64 > u64::from(self.header.chunks) * PAYLOAD_LEN as u64 {
            return Ok(false);
        }
        while out.len() < len {
            if self.rest.is_empty() && !self.open_chunk()? {
                return Ok(false);
            }
            let n = self.rest.len().min(len - out.len());
            let Some(batch) = &self.batch else { return Ok(false) };
            out.extend_from_slice(&batch[self.rest.start..self.rest.start + n]);
            self.rest.start += n;
        }
        Ok(true)
    }

    fn open_chunk(&mut self) -> io::Result<bool> {
        if self.number == self.header.chunks {
            return Ok(false);
        }
        let slot = self.number as usize % BATCH;
        if slot == 0 {
            // The reading thread may have ended, and then the buffer is dropped.
            let _unwanted = self.batch.take().map(|read| self.give_back.send(read));
            self.batch = self.from.recv().ok().transpose()?;
        }
        let Some(batch) = &self.batch else { return Ok(false) };
        let chunk = &batch[slot * CHUNK_LEN..(slot + 1) * CHUNK_LEN];
        let mut r = Reader::new(chunk);
        let (Some(check), Some(used)) = (r.u32(), r.u32()) else { return Ok(false) };
        if check != chunk_check(self.store, self.header.sequence, self.number, chunk) || used as usize > PAYLOAD_LEN || used == 0 {
            return Ok(false);
        }
        let start = slot * CHUNK_LEN + 8;
        self.rest = start..start + used as usize;
        self.number += 1;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{KeyHash, Location, SegmentId};
    use crate::index::batch::Batch;
    use crate::index::checkpoint::write::{file_len, write};
    use crate::index::geometry::IndexEntry;
    use crate::io::sim::SimDisk;

    fn hash(n: u64) -> KeyHash {
        KeyHash(xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()))
    }

    fn entry(segment: u32, n: u64) -> IndexEntry {
        IndexEntry::new(Location { segment: SegmentId(segment), offset: n as u32 * 8 }, 100)
    }

    fn insert(index: &Index, n: u64, entry: &IndexEntry) {
        index.insert(hash(n), entry);
    }

    /// Every slot of every partition.
    fn slots(index: &Index) -> Vec<Vec<u64>> {
        let mut all = vec![Vec::new(); index.geometry().partitions()];
        all.iter_mut().enumerate().for_each(|(number, slots)| index.copy_partition(number, slots));
        all
    }

    #[test]
    fn a_checkpoint_of_any_number_of_batches_is_loaded_as_it_was() {
        // Less than a chunk; then partial and full write batches, which do not coincide with read
        // batches.
        for entries in [10, 20_000, 31_000, 170_000] {
            let geometry = Geometry::new(4, 4 << 20);
            let (index, loaded) = (Index::new(geometry), Index::new(geometry));
            (0..entries).for_each(|n| insert(&index, n, &entry(1, n)));
            let file = SimDisk::new(1).create("checkpoint", file_len(&index, 2)).unwrap();
            let written = write(StoreId(1), 7, &index, &[5, 6], file.as_ref()).unwrap().unwrap();
            assert!(written <= file.len() && written > entries * 8);
            let keep = |bases: &[u64]| {
                assert_eq!(bases, [5, 6]);
                Keep::all(geometry)
            };
            let came = load(StoreId(1), 7, file.as_ref(), &loaded, Pending::none(geometry), keep).unwrap();
            assert_eq!(came, Loaded::Entries(index.entries()));
            assert_eq!(slots(&loaded), slots(&index));
        }
    }

    #[test]
    fn kept_slots_have_the_changes_since_and_no_other_slot_comes_back() {
        // Many partitions, and fewer than there are buckets of changes.
        for (entries, geometry) in
            [(10, Geometry::new(4, 4 << 20)), (170_000, Geometry::new(64, 4 << 20)), (3_000, Geometry::new(4, 1 << 16))]
        {
            let before = |n: u64| entry((n % 3) as u32, n % 8_000);
            let (index, loaded, expected) = (Index::new(geometry), Index::new(geometry), Index::new(geometry));
            (0..entries).for_each(|n| insert(&index, n, &before(n)));
            let file = SimDisk::new(1).create("checkpoint", file_len(&index, 3)).unwrap();
            write(StoreId(1), 7, &index, &[5, 6, 7], file.as_ref()).unwrap().unwrap();
            // Keeps the first segment, a part of the second, and nothing of the third.
            let from = 1_000 * 8;
            let is_kept = |n: u64| match n % 3 {
                0 => true,
                1 => n % 8_000 >= 1_000,
                _ => false,
            };
            (0..entries).filter(|n| is_kept(*n)).for_each(|n| insert(&expected, n, &before(n)));
            let kept = expected.entries();
            let mut changes = Batch::new(geometry, usize::MAX);
            // If a key is changed twice, the later change counts.
            let (first, second) = ((0..2 * entries).filter(|n| n % 7 < 3), (0..entries).step_by(5));
            let is_put = |n: u64| n.is_multiple_of(2);
            for (n, is_put) in first.map(|n| (n, is_put(n))).chain(second.map(|n| (n, !is_put(n)))) {
                if is_put {
                    changes.insert(hash(n), &entry(3, n % 8_000));
                    insert(&expected, n, &entry(3, n % 8_000));
                } else {
                    changes.remove(hash(n));
                    expected.remove(hash(n));
                }
            }
            let keep = |_: &[u64]| [Some(0), Some(from), None].into_iter().collect();
            let came = load(StoreId(1), 7, file.as_ref(), &loaded, changes.into_pending(), keep).unwrap();
            assert_eq!(came, Loaded::Entries(kept));
            assert_eq!(slots(&loaded), slots(&expected));
            assert_eq!((loaded.entries(), loaded.record_bytes()), (expected.entries(), expected.record_bytes()));
        }
    }
}
