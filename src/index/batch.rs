//! Many changes at once, for recovery: sorted by fingerprint and merged into each partition in one pass. They are dealt into buckets as they come, so that each is sorted in
//! a processor's cache, and processors share them.

use std::num::NonZeroU64;
use std::sync::Mutex;

use super::Index;
use super::geometry::{Entry, Geometry};
use crate::id::KeyHash;
use crate::sync::lock;
use crate::team::{self, together};

/// Changes that may be merged at once: bounds the DRAM that recovery takes, and each merge passes over the whole index.
const LEN_MAX_MIN: usize = 1 << 21;
/// Bytes of DRAM for a change: in a batch that is filled and in one that is merged, with what their vectors have to spare.
const CHANGE_BYTES: u64 = 64;
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
    /// Changes to an index of this geometry, where `room` bytes of DRAM are free.
    pub(crate) fn new(geometry: Geometry, room: u64) -> Self {
        let bits = BUCKET_BITS.min(geometry.partition_bits);
        let len_max = LEN_MAX_MIN.max((room / CHANGE_BYTES) as usize);
        Self { geometry, buckets: vec![Vec::new(); 1 << bits], len: 0, len_max }
    }

    /// Another one of the same kind.
    pub(crate) fn successor(&self) -> Self {
        Self { buckets: vec![Vec::new(); self.buckets.len()], len: 0, ..*self }
    }

    /// Sets the entry for `hash`.
    pub(crate) fn insert(&mut self, hash: KeyHash, entry: &Entry) {
        let slot = self.geometry.pack(self.geometry.tag(hash), entry);
        self.push((hash, NonZeroU64::new(slot)));
    }

    /// Removes the entry for `hash`.
    pub(crate) fn remove(&mut self, hash: KeyHash) {
        self.push((hash, None));
    }

    fn push(&mut self, change: Change) {
        let bits = self.buckets.len().trailing_zeros();
        self.buckets[(change.0.0 >> (64 - bits)) as usize].push(change);
        self.len += 1;
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.len_max
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts the changes into the order in which they are merged. Needs no index, so it can be done beside other work.
    pub(crate) fn sort(&mut self) {
        self.buckets.iter_mut().for_each(|bucket| sort(self.geometry, bucket));
    }

    /// Merges what was collected into `index`, and forgets it. Only while nobody else uses the index.
    pub(crate) fn merge(&mut self, index: &Index) {
        assert_eq!(self.geometry, index.geometry, "a batch is for one geometry");
        let threads = if self.len < SHARED_MIN { 1 } else { team::size() };
        let shares = Mutex::new(self.buckets.chunks_mut(SHARE));
        let next = || lock(&shares).next();
        let work = || {
            let mut scratch = (Vec::new(), Vec::new());
            while let Some(buckets) = next() {
                buckets.iter_mut().for_each(|bucket| merge(bucket, index, &mut scratch));
            }
        };
        together(|team| {
            // Where no more threads are to be had, there is more to do for this one.
            let _fewer = (1..threads).try_for_each(|_| team.spawn(work));
            work();
        });
        self.len = 0;
    }
}

fn sort(geometry: Geometry, bucket: &mut [Change]) {
    // Stable, so that changes of one fingerprint stay in order. In order already, it costs one look at each.
    bucket.sort_by_key(|(hash, _)| geometry.fingerprint(*hash));
}

/// Merges the changes of a bucket into its partitions, and forgets them.
fn merge(bucket: &mut Vec<Change>, index: &Index, (old, new): &mut (Vec<u64>, Vec<u64>)) {
    let geometry = index.geometry;
    sort(geometry, bucket);
    for of_partition in bucket.chunk_by(|a, b| geometry.partition(a.0) == geometry.partition(b.0)) {
        let number = geometry.partition(of_partition[0].0);
        index.copy_partition(number, old);
        new.clear();
        let mut rest = &old[..];
        for same in of_partition.chunk_by(|a, b| geometry.fingerprint(a.0) == geometry.fingerprint(b.0)) {
            let Some((hash, last)) = same.last() else { continue };
            let tag = geometry.tag(*hash);
            let below = rest.iter().position(|slot| geometry.tag_of(*slot) >= tag).unwrap_or(rest.len());
            new.extend_from_slice(&rest[..below]);
            rest = &rest[below..];
            if rest.first().is_some_and(|slot| geometry.tag_of(*slot) == tag) {
                rest = &rest[1..];
            }
            new.extend(last.map(NonZeroU64::get));
        }
        new.extend_from_slice(rest);
        index.replace_partition(number, old, new);
    }
    bucket.clear();
}
