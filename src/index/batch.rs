//! Many changes at once, for recovery: sorted by fingerprint and merged into each partition in one pass.

use super::Index;
use super::geometry::Entry;
use crate::id::KeyHash;

/// Changes that are merged at once: bounds the DRAM that recovery takes to 32 MiB beyond the index.
const LEN_MAX: usize = 1 << 20;

/// Inserts and removals in order; the last one for a fingerprint wins.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// The hash, and the new slot, or none for a removal.
    changes: Vec<(KeyHash, Option<Slot>)>,
}

type Slot = std::num::NonZeroU64;

impl Batch {
    /// Sets the entry for `hash`.
    pub(crate) fn insert(&mut self, index: &Index, hash: KeyHash, entry: &Entry) {
        let slot = index.geometry.pack(index.geometry.tag(hash), entry);
        // Offset 0 of a segment is its header, so a slot that names a record is never 0.
        self.push(index, hash, Slot::new(slot));
    }

    /// Removes the entry for `hash`.
    pub(crate) fn remove(&mut self, index: &Index, hash: KeyHash) {
        self.push(index, hash, None);
    }

    fn push(&mut self, index: &Index, hash: KeyHash, slot: Option<Slot>) {
        self.changes.push((hash, slot));
        if self.changes.len() >= LEN_MAX {
            self.apply(index);
        }
    }

    /// Merges what was collected. Only while nobody else uses the index.
    pub(crate) fn apply(&mut self, index: &Index) {
        let geometry = index.geometry;
        let fingerprint = |hash: KeyHash| hash.0 >> (64 - geometry.partition_bits - geometry.tag_bits());
        // Stable, so that changes of one fingerprint stay in order.
        self.changes.sort_by_key(|(hash, _)| fingerprint(*hash));
        let (mut old, mut new) = (Vec::new(), Vec::new());
        for of_partition in self.changes.chunk_by(|a, b| geometry.partition(a.0) == geometry.partition(b.0)) {
            let number = geometry.partition(of_partition[0].0);
            index.copy_partition(number, &mut old);
            new.clear();
            let mut rest = &old[..];
            for same in of_partition.chunk_by(|a, b| fingerprint(a.0) == fingerprint(b.0)) {
                let Some((hash, last)) = same.last() else { continue };
                let tag = geometry.tag(*hash);
                let below = rest.partition_point(|slot| geometry.tag_of(*slot) < tag);
                new.extend_from_slice(&rest[..below]);
                rest = &rest[below..];
                if rest.first().is_some_and(|slot| geometry.tag_of(*slot) == tag) {
                    rest = &rest[1..];
                }
                new.extend(last.map(Slot::get));
            }
            new.extend_from_slice(rest);
            index.replace_partition(number, old.len(), &new);
        }
        self.changes.clear();
    }
}
