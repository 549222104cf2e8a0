//! Many index changes at once, for recovery.
//!
//! Changes go into buckets by the upper bits of their hash as they arrive. Worker threads then
//! share the buckets: each bucket is sorted by fingerprint, and its changes are merged into each
//! partition in one pass. [`Batch::merge`] does so for an index in DRAM. [`Batch::into_pending`]
//! sorts the changes for an index that a checkpoint is about to fill.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::Index;
use super::geometry::{Geometry, IndexEntry};
use crate::concurrent::lock;
use crate::id::KeyHash;
use crate::parallel::{self, scope};

/// Bytes of DRAM for a change, with the spare room of its vector.
const CHANGE_BYTES: u64 = 32;
/// Buckets that a worker thread takes at once.
const SHARE: usize = 4;
/// With fewer changes than this, the calling thread does all the work.
const SHARED_MIN: usize = 1 << 15;
/// The most upper bits of a hash that choose a bucket. More bits choose the partition.
const BUCKET_BITS: u32 = 8;

/// A hash and its new slot, or `None` for a removal.
///
/// A slot is never 0, since offset 0 of a segment is its header and not a record.
type Change = (KeyHash, Option<NonZeroU64>);

/// Insertions and removals in order. Of several changes with one fingerprint, the last one counts.
#[derive(Debug)]
pub(crate) struct Batch {
    geometry: Geometry,
    buckets: Vec<Vec<Change>>,
    len: usize,
    len_max: usize,
}

impl Batch {
    /// An empty batch for an index of this geometry. It is full at `len_max` changes.
    pub(crate) fn new(geometry: Geometry, len_max: usize) -> Self {
        Self { geometry, buckets: vec![Vec::new(); 1 << bucket_bits(geometry)], len: 0, len_max }
    }

    /// The number of changes that `room` bytes of DRAM hold.
    pub(crate) const fn len_for(room: u64) -> usize {
        (room / CHANGE_BYTES) as usize
    }

    /// Sets the entry for `hash`.
    pub(crate) fn insert(&mut self, hash: KeyHash, entry: &IndexEntry) {
        let slot = self.geometry.pack(self.geometry.tag(hash), entry);
        self.push((hash, NonZeroU64::new(slot)));
    }

    /// Removes the entry for `hash`.
    pub(crate) fn remove(&mut self, hash: KeyHash) {
        self.push((hash, None));
    }

    fn push(&mut self, change: Change) {
        self.buckets[(change.0.0 >> (64 - bucket_bits(self.geometry))) as usize].push(change);
        self.len += 1;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.len_max
    }

    /// Sorts the changes, for an index that is yet to be loaded.
    pub(crate) fn into_pending(mut self) -> Pending {
        let geometry = self.geometry;
        self.share(|| {
            let mut spare = Vec::new();
            move |bucket| sort(geometry, bucket, &mut spare)
        });
        Pending { geometry, buckets: self.buckets.into_iter().map(Arc::new).collect() }
    }

    /// Merges the changes into `index`, and empties the batch.
    ///
    /// No other thread may use the index meanwhile.
    pub(crate) fn merge(&mut self, index: &Index) {
        assert_eq!(self.geometry, index.geometry, "a batch is for one geometry");
        self.share(|| {
            let mut scratch = Scratch::default();
            move |bucket| merge(bucket, index, &mut scratch)
        });
        self.len = 0;
    }

    /// Calls a function for every bucket, on several threads. Each thread gets its own from
    /// `begin`.
    fn share<W: FnMut(&mut Vec<Change>)>(&mut self, begin: impl Fn() -> W + Sync) {
        let threads = if self.len < SHARED_MIN { 1 } else { parallel::thread_count() };
        let shares = Mutex::new(self.buckets.chunks_mut(SHARE));
        let next = || lock(&shares).next();
        let work = || {
            let mut work = begin();
            while let Some(buckets) = next() {
                buckets.iter_mut().for_each(&mut work);
            }
        };
        scope(|workers| {
            // If a thread cannot be started, the others do its share.
            let _fewer = (1..threads).try_for_each(|_| workers.spawn(work));
            work();
        });
    }
}

/// Changes to an index that is loaded from its first partition to its last.
///
/// Changes to partitions that were loaded are freed.
#[derive(Debug)]
pub(crate) struct Pending {
    geometry: Geometry,
    /// Each is sorted by fingerprint.
    buckets: Vec<Arc<Vec<Change>>>,
}

impl Pending {
    /// No changes.
    pub(crate) fn none(geometry: Geometry) -> Self {
        Self { geometry, buckets: vec![Arc::default(); 1 << bucket_bits(geometry)] }
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The changes to the next partitions, which are consecutive. Frees the buckets of earlier
    /// ones.
    pub(super) fn next(&mut self, partitions: Range<usize>) -> Changes {
        let shift = self.geometry.partition_bits - bucket_bits(self.geometry);
        let bucket = |partition: usize| partition >> shift;
        let (first, last) = (bucket(partitions.start), bucket(partitions.end - 1));
        let buckets = self.buckets[first..=last].to_vec();
        self.buckets[first.saturating_sub(1)..last].fill(Arc::default());
        Changes { geometry: self.geometry, first, shift, buckets }
    }
}

/// Changes to consecutive partitions.
#[derive(Debug)]
pub(super) struct Changes {
    geometry: Geometry,
    /// The number of the first bucket.
    first: usize,
    /// Bits of a partition's number below those of its bucket.
    shift: u32,
    buckets: Vec<Arc<Vec<Change>>>,
}

impl Changes {
    /// The changes to one partition.
    fn of(&self, partition: usize) -> &[Change] {
        let bucket = &self.buckets[(partition >> self.shift) - self.first];
        let below = |limit: usize| bucket.partition_point(|(hash, _)| self.geometry.partition(*hash) < limit);
        &bucket[below(partition)..below(partition + 1)]
    }

    /// The slots of a partition whose slots were `old`, after its changes.
    pub(super) fn apply<'s>(&self, partition: usize, old: &'s [u64], scratch: &'s mut Vec<u64>) -> &'s [u64] {
        let changes = self.of(partition);
        if changes.is_empty() {
            return old;
        }
        merge_slots(self.geometry, old, changes, scratch);
        scratch
    }
}

/// The number of upper bits of a hash that choose a bucket.
fn bucket_bits(geometry: Geometry) -> u32 {
    BUCKET_BITS.min(geometry.partition_bits)
}

/// Sorts a bucket by fingerprint.
///
/// The sort is stable, so changes with one fingerprint stay in order. A counting sort by partition
/// comes first: a partition has few changes, and a comparison sort of those is cheap.
fn sort(geometry: Geometry, bucket: &mut Vec<Change>, spare: &mut Vec<Change>) {
    let partitions = 1 << (geometry.partition_bits - bucket_bits(geometry));
    if bucket.len() < partitions {
        return bucket.sort_by_key(|(hash, _)| geometry.fingerprint(*hash));
    }
    let partition = |change: &Change| geometry.partition(change.0) % partitions;
    let mut next = vec![0; partitions];
    bucket.iter().for_each(|change| next[partition(change)] += 1);
    let mut before = 0;
    next.iter_mut().for_each(|place| before += std::mem::replace(place, before));
    spare.resize(bucket.len(), (KeyHash(0), None));
    for change in &*bucket {
        let place = &mut next[partition(change)];
        spare[*place] = *change;
        *place += 1;
    }
    std::mem::swap(bucket, spare);
    let of_partition = bucket.chunk_by_mut(|a, b| geometry.partition(a.0) == geometry.partition(b.0));
    of_partition.for_each(|changes| changes.sort_by_key(|(hash, _)| geometry.fingerprint(*hash)));
}

/// Buffers that merging uses again for each bucket.
#[derive(Default)]
struct Scratch {
    spare: Vec<Change>,
    old: Vec<u64>,
    new: Vec<u64>,
}

/// Merges the changes of a bucket into its partitions, and empties the bucket.
fn merge(bucket: &mut Vec<Change>, index: &Index, Scratch { spare, old, new }: &mut Scratch) {
    let geometry = index.geometry;
    sort(geometry, bucket, spare);
    for of_partition in bucket.chunk_by(|a, b| geometry.partition(a.0) == geometry.partition(b.0)) {
        let number = geometry.partition(of_partition[0].0);
        index.copy_partition(number, old);
        let bytes = merge_slots(geometry, old, of_partition, new);
        index.replace_partition(number, old.len(), new, bytes);
    }
    bucket.clear();
}

/// Writes the slots of a partition to `new`: the `old` ones after the sorted `changes`.
///
/// Returns how much the bytes of their records grew, modulo 2^64.
fn merge_slots(geometry: Geometry, old: &[u64], changes: &[Change], new: &mut Vec<u64>) -> u64 {
    new.clear();
    let (mut rest, mut bytes) = (old, 0u64);
    for same in changes.chunk_by(|a, b| geometry.fingerprint(a.0) == geometry.fingerprint(b.0)) {
        let Some((hash, last)) = same.last() else { continue };
        let tag = geometry.tag(*hash);
        let below = rest.iter().position(|slot| geometry.tag_of(*slot) >= tag).unwrap_or(rest.len());
        new.extend_from_slice(&rest[..below]);
        rest = &rest[below..];
        if let Some(slot) = rest.first().filter(|slot| geometry.tag_of(**slot) == tag) {
            bytes = bytes.wrapping_sub(geometry.len_expected(*slot));
            rest = &rest[1..];
        }
        if let Some(slot) = last {
            bytes = bytes.wrapping_add(geometry.len_expected(slot.get()));
            new.push(slot.get());
        }
    }
    new.extend_from_slice(rest);
    bytes
}
