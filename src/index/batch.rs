//! Many changes at once, for recovery: sorted by fingerprint and merged into each partition in one pass. They are dealt into buckets as they come, so that each is sorted in
//! a processor's cache.

use std::num::NonZeroU64;

use super::Index;
use super::geometry::{Entry, Geometry};
use crate::id::KeyHash;

/// Changes that are merged at once: bounds the DRAM that recovery takes, and each merge passes over the whole index.
const LEN_MAX: usize = 1 << 21;
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
}

impl Batch {
    /// Changes to an index of this geometry.
    pub(crate) fn new(geometry: Geometry) -> Self {
        let bits = BUCKET_BITS.min(geometry.partition_bits);
        Self { geometry, buckets: vec![Vec::new(); 1 << bits], len: 0 }
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
        self.len >= LEN_MAX
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Puts the changes into the order in which they are merged. Needs no index, so it can be done beside other work.
    pub(crate) fn sort(&mut self) {
        let geometry = self.geometry;
        // Stable, so that changes of one fingerprint stay in order. In order already, it costs one look at each.
        self.buckets.iter_mut().for_each(|bucket| bucket.sort_by_key(|(hash, _)| geometry.fingerprint(*hash)));
    }

    /// Merges what was collected into `index`, and forgets it. Only while nobody else uses the index.
    pub(crate) fn merge(&mut self, index: &Index) {
        self.sort();
        let geometry = self.geometry;
        assert_eq!(geometry, index.geometry, "a batch is for one geometry");
        let (mut old, mut new) = (Vec::new(), Vec::new());
        let partition = |change: &Change| geometry.partition(change.0);
        for of_partition in self.buckets.iter().flat_map(|bucket| bucket.chunk_by(|a, b| partition(a) == partition(b))) {
            let number = geometry.partition(of_partition[0].0);
            index.copy_partition(number, &mut old);
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
            index.replace_partition(number, &old, &new);
        }
        self.buckets.iter_mut().for_each(Vec::clear);
        self.len = 0;
    }
}
