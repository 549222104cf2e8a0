//! The index: hash of a key to the location of its record, in about 8.2 bytes an entry.
//!
//! It knows neither keys nor the content of segments.
//!
//! The upper bits of the hash choose a partition. Its slots are sorted by the next bits of the
//! hash, and a lookup finds a slot by interpolation (Peterson, 1957; Perl, Itai and Avni, 1978).
//! Readers take no lock.
//!
//! Two keys with the same fingerprint share a slot. The later key replaces the earlier one, which
//! is a miss from then on. It is never a wrong answer, since readers compare the whole key.

pub(crate) mod batch;
pub(crate) mod checkpoint;
pub(crate) mod geometry;
mod partition;
mod version;

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::epoch;

use crate::id::{KeyHash, Location, SegmentId};
use geometry::{Geometry, IndexEntry};
use partition::{Partition, prefetch};

/// Hashes of keys and the locations of their records.
#[derive(Debug)]
pub(crate) struct Index {
    geometry: Geometry,
    partitions: Box<[Partition]>,
    entries: AtomicU64,
    /// Expected bytes of the records of all entries.
    bytes: AtomicU64,
    /// Slots allocated, used or not.
    slots: AtomicU64,
}

impl Index {
    pub(crate) fn new(geometry: Geometry) -> Self {
        let partitions = (0..geometry.partitions()).map(|_| Partition::default()).collect();
        Self { geometry, partitions, entries: AtomicU64::new(0), bytes: AtomicU64::new(0), slots: AtomicU64::new(0) }
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    fn locate(&self, hash: KeyHash) -> (&Partition, u64) {
        (&self.partitions[self.geometry.partition(hash)], self.geometry.tag(hash))
    }

    /// Starts to load the partition of `hash` into the processor's cache, while the caller works
    /// on.
    ///
    /// A lookup needs the partition first.
    pub(crate) fn prefetch(&self, hash: KeyHash) {
        prefetch(std::ptr::from_ref(self.locate(hash).0).addr());
    }

    /// Starts to load the slots near `hash` into the processor's cache.
    ///
    /// A lookup needs them after its partition, which [`Index::prefetch`] loads.
    pub(crate) fn prefetch_slots(&self, hash: KeyHash) {
        let (partition, tag) = self.locate(hash);
        partition.prefetch(&self.geometry, tag, &epoch::pin());
    }

    /// The entry for `hash`, if any.
    pub(crate) fn get(&self, hash: KeyHash) -> Option<IndexEntry> {
        let (partition, tag) = self.locate(hash);
        let slot = partition.find(&self.geometry, tag, &epoch::pin())?;
        Some(self.geometry.unpack(slot))
    }

    /// Whether the entry for `hash` still names the record at `location`.
    pub(crate) fn names(&self, hash: KeyHash, location: Location) -> bool {
        self.get(hash).is_some_and(|now| now.location == location)
    }

    /// Sets the entry for `hash`. Returns the entry that it replaces, if any.
    pub(crate) fn insert(&self, hash: KeyHash, entry: &IndexEntry) -> Option<IndexEntry> {
        let (partition, tag) = self.locate(hash);
        let slot = self.geometry.pack(tag, entry);
        let (old, grown) = partition.upsert(&self.geometry, slot);
        if grown != 0 {
            self.slots.fetch_add(grown as u64, Ordering::Relaxed);
        }
        self.account(old, Some(slot));
        old.map(|slot| self.geometry.unpack(slot))
    }

    /// Removes the entry for `hash` unconditionally, and returns it.
    pub(crate) fn remove(&self, hash: KeyHash) -> Option<IndexEntry> {
        self.remove_where(hash, |_| true)
    }

    /// Removes the entry for `hash` if it still names `location`.
    pub(crate) fn remove_if_at(&self, hash: KeyHash, location: Location) -> bool {
        self.remove_where(hash, |entry| entry.location == location).is_some()
    }

    fn remove_where(&self, hash: KeyHash, condition: impl Fn(&IndexEntry) -> bool) -> Option<IndexEntry> {
        let (partition, tag) = self.locate(hash);
        self.remove_slot(partition, tag, |slot| condition(&self.geometry.unpack(slot))).map(|old| self.geometry.unpack(old))
    }

    fn remove_slot(&self, partition: &Partition, tag: u64, condition: impl Fn(u64) -> bool) -> Option<u64> {
        let (old, grown) = partition.remove(&self.geometry, tag, condition);
        if grown != 0 {
            self.slots.fetch_add(grown as u64, Ordering::Relaxed);
        }
        self.account(old, None);
        old
    }

    /// Counts the replacement of slot `old` by slot `new`.
    fn account(&self, old: Option<u64>, new: Option<u64>) {
        let len = |slot: Option<u64>| slot.map_or(0, |slot| self.geometry.len_expected(slot));
        if old.is_some() != new.is_some() {
            self.entries.fetch_add(u64::from(new.is_some()).wrapping_sub(u64::from(old.is_some())), Ordering::Relaxed);
        }
        let (before, after) = (len(old), len(new));
        if before != after {
            self.bytes.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
        }
    }

    /// Removes every entry for which `keep` is false. No other thread may use the index meanwhile.
    pub(crate) fn retain(&self, keep: impl Fn(&IndexEntry) -> bool) {
        let mut slots = Vec::new();
        for number in 0..self.partitions.len() {
            self.copy_partition(number, &mut slots);
            let kept: Vec<u64> = slots.iter().copied().filter(|slot| keep(&self.geometry.unpack(*slot))).collect();
            if slots.len() != kept.len() {
                self.replace_partition(number, slots.len(), &kept, self.bytes_of(&kept).wrapping_sub(self.bytes_of(&slots)));
            }
        }
    }

    /// Removes every entry that names `segment`. The caller makes sure that no new ones appear.
    pub(crate) fn remove_segment(&self, segment: SegmentId) {
        let mut slots = Vec::new();
        for (number, partition) in self.partitions.iter().enumerate() {
            self.copy_partition(number, &mut slots);
            for slot in &slots {
                let names = |slot| self.geometry.unpack(slot).location.segment == segment;
                if names(*slot) {
                    self.remove_slot(partition, self.geometry.tag_of(*slot), names);
                }
            }
        }
    }

    /// Marks the entry for `hash` as hot if it still names `location`. The mark may get lost.
    pub(crate) fn warm(&self, hash: KeyHash, location: Location) {
        let (partition, tag) = self.locate(hash);
        partition.warm(&self.geometry, tag, |slot| self.geometry.unpack(slot).location == location);
    }

    /// Copies all slots of partition `number`, in order and consistently.
    pub(crate) fn copy_partition(&self, number: usize, out: &mut Vec<u64>) {
        self.partitions[number].copy(&epoch::pin(), out);
    }

    /// Fills the empty partition `number` with sorted slots of an index of the same geometry.
    ///
    /// No other thread may use the partition meanwhile.
    pub(crate) fn load_partition(&self, number: usize, slots: &[u64]) {
        self.replace_partition(number, 0, slots, self.bytes_of(slots));
    }

    /// Replaces the `old` slots of partition `number`. The records of all its slots grow by
    /// `bytes`, modulo 2^64.
    ///
    /// No other thread may use the partition meanwhile.
    fn replace_partition(&self, number: usize, old: usize, new: &[u64], bytes: u64) {
        let grown = self.partitions[number].replace(new);
        self.slots.fetch_add(grown as u64, Ordering::Relaxed);
        self.entries.fetch_add((new.len() as u64).wrapping_sub(old as u64), Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The expected bytes of the records of `slots`.
    fn bytes_of(&self, slots: &[u64]) -> u64 {
        slots.iter().map(|slot| self.geometry.len_expected(*slot)).sum()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    /// The bytes of all records, estimated from their read lengths.
    pub(crate) fn record_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes of DRAM held.
    pub(crate) fn allocated(&self) -> u64 {
        let slots = self.slots.load(Ordering::Relaxed) * 8;
        slots + (self.partitions.len() * size_of::<Partition>()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn spread(n: u64) -> KeyHash {
        KeyHash(xxhash_rust::xxh3::xxh3_64(&n.to_le_bytes()))
    }

    fn at(offset: u32) -> IndexEntry {
        IndexEntry::new(Location { segment: SegmentId(1), offset: offset * 8 }, 100 + offset as usize)
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u32),
        Remove(u64),
        RemoveIfAt(u64, u32),
    }

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let op = prop_oneof![
            3 => (0u64..400, 0u32..8000).prop_map(|(k, o)| Op::Insert(k, o)),
            1 => (0u64..400).prop_map(Op::Remove),
            1 => (0u64..400, 0u32..8000).prop_map(|(k, o)| Op::RemoveIfAt(k, o)),
        ];
        prop::collection::vec(op, 0..1500)
    }

    proptest! {
        #[test]
        fn a_batch_does_what_its_changes_do_one_by_one(first in ops(), second in ops()) {
            let (one_by_one, batched) = (Index::new(Geometry::new(8, 1 << 16)), Index::new(Geometry::new(8, 1 << 16)));
            let mut batch = batch::Batch::new(batched.geometry(), usize::MAX);
            for (n, op) in first.iter().chain(&second).enumerate() {
                match op {
                    Op::Insert(k, o) => {
                        one_by_one.insert(spread(*k), &at(*o));
                        batch.insert(spread(*k), &at(*o));
                    }
                    Op::Remove(k) | Op::RemoveIfAt(k, _) => {
                        one_by_one.remove(spread(*k));
                        batch.remove(spread(*k));
                    }
                }
                if n == first.len() {
                    batch.merge(&batched);
                }
            }
            batch.merge(&batched);
            prop_assert_eq!(one_by_one.entries(), batched.entries());
            prop_assert_eq!(one_by_one.record_bytes(), batched.record_bytes());
            let (mut a, mut b) = (Vec::new(), Vec::new());
            for p in 0..batched.geometry().partitions() {
                one_by_one.copy_partition(p, &mut a);
                batched.copy_partition(p, &mut b);
                prop_assert_eq!(&a, &b);
            }
        }

        #[test]
        fn the_index_agrees_with_a_map(ops in ops()) {
            let index = Index::new(Geometry::new(8, 1 << 16));
            let mut model: HashMap<u64, u32> = HashMap::new();
            for op in ops {
                match op {
                    Op::Insert(k, o) => {
                        let old = index.insert(spread(k), &at(o)).map(|e| e.location.offset / 8);
                        prop_assert_eq!(old, model.insert(k, o));
                    }
                    Op::Remove(k) => {
                        let old = index.remove(spread(k)).map(|e| e.location.offset / 8);
                        prop_assert_eq!(old, model.remove(&k));
                    }
                    Op::RemoveIfAt(k, o) => {
                        let hit = model.get(&k) == Some(&o);
                        if hit { model.remove(&k); }
                        prop_assert_eq!(index.remove_if_at(spread(k), at(o).location), hit);
                    }
                }
            }
            prop_assert_eq!(index.entries(), model.len() as u64);
            let slot = |o: &u32| index.geometry.pack(0, &at(*o));
            prop_assert_eq!(index.record_bytes(), model.values().map(|o| index.geometry.len_expected(slot(o))).sum::<u64>());
            for k in 0..400 {
                prop_assert_eq!(index.get(spread(k)).map(|e| e.location.offset / 8), model.get(&k).copied());
            }
            let copy = Index::new(index.geometry());
            let mut slots = Vec::new();
            for p in 0..index.geometry().partitions() {
                index.copy_partition(p, &mut slots);
                prop_assert!(slots.is_sorted());
                copy.load_partition(p, &slots);
            }
            for (k, o) in &model {
                prop_assert_eq!(copy.get(spread(*k)), Some(at(*o)));
            }
        }
    }

    #[test]
    fn an_entry_takes_less_than_nine_bytes_at_every_size() {
        let index = Index::new(Geometry::new(512, 8 << 20));
        for n in 0..12_000_000u64 {
            index.insert(spread(n), &at((n % 1000) as u32));
            if n >= 3_000_000 && n % 250_000 == 0 {
                let each = index.allocated() as f64 / n as f64;
                assert!(each < 9.0, "{each} B an entry at {n}");
            }
        }
        let lost = 12_000_000 - index.entries();
        assert!(lost <= 120, "{lost} keys shared a fingerprint");
    }

    #[test]
    fn warmth_is_kept_with_the_entry() {
        let index = Index::new(Geometry::new(8, 1 << 16));
        index.insert(spread(1), &at(5));
        assert!(!index.get(spread(1)).unwrap().hot);
        index.warm(spread(1), at(6).location);
        assert!(!index.get(spread(1)).unwrap().hot, "another version was asked for");
        index.warm(spread(1), at(5).location);
        assert!(index.get(spread(1)).unwrap().hot);
    }

    #[test]
    fn readers_see_old_or_new_while_writers_move_slots() {
        let index = Index::new(Geometry::new(8, 1 << 16));
        for k in 0..64 {
            index.insert(spread(k), &at(k as u32));
        }
        std::thread::scope(|s| {
            let writer = s.spawn(|| {
                for round in 0..if cfg!(miri) { 1 } else { 200u64 } {
                    for k in 1000..1100 {
                        index.insert(spread(k), &at((round % 9) as u32));
                    }
                    for k in 1000..1100 {
                        index.remove(spread(k));
                    }
                }
            });
            while !writer.is_finished() {
                for k in 0..64 {
                    assert_eq!(index.get(spread(k)), Some(at(k as u32)));
                }
            }
        });
    }
}
