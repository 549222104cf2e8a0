//! Many changes at once, for recovery: sorted by fingerprint and merged into each partition in one pass. They are dealt into buckets as they come, which
//! processors share.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use super::Index;
use super::geometry::{Geometry, IndexEntry};
use crate::concurrent::lock;
use crate::id::KeyHash;
use crate::parallel::{self, scope};

/// Bytes of DRAM for a change, with what its vector has to spare.
const CHANGE_BYTES: u64 = 32;
/// Buckets that a thread takes at once.
const SHARE: usize = 4;
/// Fewer changes are merged by the thread that has them.
const SHARED_MIN: usize = 1 << 15;
/// The upper bits of a hash choose a bucket, as they choose a partition: at most so many.
const BUCKET_BITS: u32 = 8;

/// The hash, and the new slot, or none for a removal. A slot that names a record is never 0, since offset 0 of a segment is its header.
type Change = (KeyHash, Option<NonZeroU64>);

/// Insertions and removals in order; the last one for a fingerprint wins.
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

    /// The changes to what is yet to be loaded.
    pub(crate) fn into_pending(mut self) -> Pending {
        let geometry = self.geometry;
        self.share(|| {
            let mut spare = Vec::new();
            move |bucket| sort(geometry, bucket, &mut spare)
        });
        Pending { geometry, buckets: self.buckets.into_iter().map(Arc::new).collect() }
    }

    /// Merges what was collected into `index`, and forgets it. Only while nobody else uses the index.
    pub(crate) fn merge(&mut self, index: &Index) {
        assert_eq!(self.geometry, index.geometry, "a batch is for one geometry");
        self.share(|| {
            let mut scratch = Scratch::default();
            move |bucket| merge(bucket, index, &mut scratch)
        });
        self.len = 0;
    }

    /// Does the work that `begin` prepares, in each thread, to every bucket.
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
            // Where no more threads are to be had, there is more to do for this one.
            let _fewer = (1..threads).try_for_each(|_| workers.spawn(work));
            work();
        });
    }
}

/// Changes to an index that is loaded front to back. What was applied takes no DRAM any more.
#[derive(Debug)]
pub(crate) struct Pending {
    geometry: Geometry,
    /// Sorted.
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

    /// The changes to partitions that are loaded next, and follow each other. Keeps none to those before the last.
    pub(super) fn next(&mut self, partitions: Range<usize>) -> Changes {
        let shift = self.geometry.partition_bits - bucket_bits(self.geometry);
        let bucket = |partition: usize| partition >> shift;
        let (first, last) = (bucket(partitions.start), bucket(partitions.end - 1));
        let buckets = self.buckets[first..=last].to_vec();
        self.buckets[first.saturating_sub(1)..last].fill(Arc::default());
        Changes { geometry: self.geometry, first, shift, buckets }
    }
}

/// Changes to some partitions.
#[derive(Debug)]
pub(super) struct Changes {
    geometry: Geometry,
    /// The first of its buckets.
    first: usize,
    shift: u32,
    buckets: Vec<Arc<Vec<Change>>>,
}

impl Changes {
    /// Those to one partition.
    fn of(&self, partition: usize) -> &[Change] {
        let bucket = &self.buckets[(partition >> self.shift) - self.first];
        let below = |limit: usize| bucket.partition_point(|(hash, _)| self.geometry.partition(*hash) < limit);
        &bucket[below(partition)..below(partition + 1)]
    }

    /// What the `old` slots of a partition are after them.
    pub(super) fn apply<'s>(&self, partition: usize, old: &'s [u64], scratch: &'s mut Vec<u64>) -> &'s [u64] {
        let changes = self.of(partition);
        if changes.is_empty() {
            return old;
        }
        merge_slots(self.geometry, old, changes, scratch);
        scratch
    }
}

/// How many of a hash's upper bits choose a bucket.
fn bucket_bits(geometry: Geometry) -> u32 {
    BUCKET_BITS.min(geometry.partition_bits)
}

/// Sorts a bucket by fingerprint. Stable, so that changes of one fingerprint stay in order. They are dealt to their partitions first: each has so few that a comparison
/// sort of them is cheap.
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

/// What merging needs again and again.
#[derive(Default)]
struct Scratch {
    spare: Vec<Change>,
    old: Vec<u64>,
    new: Vec<u64>,
}

/// Merges the changes of a bucket into its partitions, and forgets them.
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

/// Writes to `new` what the `old` slots of a partition are after sorted `changes`. By how much more the bytes of their records are than before, modulo 2^64.
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
