//! The memory tier: values of hot records in DRAM, bounded by bytes, S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP'23).
//!
//! It is keyed by stream position, not by key: a position names one version of one key for ever, so nothing here is ever stale. Whoever asks has asked the index
//! first; an entry whose position the index no longer names is not asked for again and leaves with the others, or at once if its replacer says so.
//!
//! Hits take no lock: buckets are linked lists that are read under an epoch (Fraser, 2004), and a hit only raises the entry's frequency. Inserts and removals lock one
//! shard. Per entry beyond key and value: a node of about 100 B and 8 B in a queue, plus the allocator's; a bucket of 8 B for each 512 B of the first budget.
#![allow(unsafe_code, reason = "nodes are shared with readers that take no lock")]

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use bytes::Bytes;
use crossbeam::epoch::{self, Atomic, Guard, Owned, Shared};

use crate::id::{Key, KeyHash, Lsn, Position, Scope};
use crate::sync::lock;

const SHARDS_MAX: usize = 16;
/// A shard has at least this many bytes, so that large values find room.
const SHARD_BYTES_MIN: u64 = 4 << 20;
const BYTES_PER_BUCKET: u64 = 512;
/// Frequencies saturate here.
const FREQUENCY_MAX: u8 = 3;
/// One in this many bytes of a shard is for entries that have not proved themselves.
const SMALL_SHARE: u64 = 10;
/// Entries are freed some time after they went, when no reader can have them any more. Beyond this many bytes of a shard it is asked whether that is so.
const GARBAGE_MAX: u64 = 256 << 10;
/// What an entry costs besides its bytes: node, the counted owner of its bytes, queue place, ghost place, two places in lists of what is hot, three allocations.
const OVERHEAD: u64 = (size_of::<Node>() + 56 + 8 + 16 + 2 * 8 + 3 * 8) as u64;

/// A record's key and value as the tier holds them.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) hash: KeyHash,
    pub(crate) scope: Scope,
    pub(crate) lsn: Lsn,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) key_len: usize,
    /// Key, then value.
    pub(crate) bytes: Bytes,
    /// Bytes of DRAM that `bytes` keeps: more than its length if it is part of a read buffer.
    pub(crate) held: usize,
}

impl Item {
    pub(crate) fn key(&self) -> &[u8] {
        &self.bytes[..self.key_len]
    }

    /// Whether this is the record of `key`.
    pub(crate) fn is_of(&self, key: Key<'_>) -> bool {
        self.key() == key.bytes && self.scope == key.scope
    }

    pub(crate) fn value(&self) -> Bytes {
        self.bytes.slice(self.key_len..)
    }

    fn charge(&self) -> u64 {
        self.held as u64 + OVERHEAD
    }
}

#[derive(Debug)]
struct Node {
    position: u64,
    item: Item,
    frequency: AtomicU8,
    next: Atomic<Node>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct MemoryTier {
    buckets: Box<[Atomic<Node>]>,
    shards: Box<[Mutex<Shard>]>,
    /// For each shard.
    budget: AtomicU64,
    bytes: AtomicU64,
    entries: AtomicU64,
    /// Inserts so far: says whether the content changed.
    inserts: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    small: VecDeque<u64>,
    main: VecDeque<u64>,
    ghosts: VecDeque<u32>,
    ghost_set: HashSet<u32>,
    small_bytes: u64,
    bytes: u64,
    entries: usize,
    /// Bytes that were unlinked and may not be freed yet.
    garbage: u64,
}

impl MemoryTier {
    /// A tier that may take `budget` bytes, buckets included. It never has more buckets than `budget` says now.
    pub(crate) fn new(budget: u64) -> Self {
        let buckets = (budget / BYTES_PER_BUCKET).next_power_of_two().max(64) as usize;
        let shards = ((budget / SHARD_BYTES_MIN).max(1) as usize).next_power_of_two().min(SHARDS_MAX);
        let tier = Self {
            buckets: (0..buckets).map(|_| Atomic::null()).collect(),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            budget: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            inserts: AtomicU64::new(0),
        };
        tier.set_budget(budget);
        tier
    }

    /// Changes how many bytes the tier may take. Takes effect with the next insert in each shard.
    pub(crate) fn set_budget(&self, budget: u64) {
        let each = budget.saturating_sub(self.buckets_len()) / self.shards.len() as u64;
        self.budget.store(each, Ordering::Relaxed);
    }

    fn buckets_len(&self) -> u64 {
        (self.buckets.len() * size_of::<Atomic<Node>>()) as u64
    }

    /// Bytes of DRAM held.
    pub(crate) fn allocated(&self) -> u64 {
        self.buckets_len() + self.bytes()
    }

    /// Bytes that entries are charged with.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that the keys and values of entries take.
    pub(crate) fn value_bytes(&self) -> u64 {
        self.bytes().saturating_sub(self.entries() * OVERHEAD)
    }

    pub(crate) fn entries(&self) -> u64 {
        self.entries.load(Ordering::Relaxed)
    }

    pub(crate) fn inserts(&self) -> u64 {
        self.inserts.load(Ordering::Relaxed)
    }

    fn bucket(&self, position: u64) -> usize {
        // Fibonacci hashing (Knuth, TAOCP 3, 6.4): positions are multiples of 8 and close together.
        (position.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize & (self.buckets.len() - 1)
    }

    fn shard(&self, bucket: usize) -> &Mutex<Shard> {
        &self.shards[bucket & (self.shards.len() - 1)]
    }

    /// The node at `position`, as long as `guard` lives.
    fn find<'g>(&self, bucket: usize, position: u64, guard: &'g Guard) -> Option<&'g Node> {
        let mut at = self.buckets[bucket].load(Ordering::Acquire, guard);
        // SAFETY: nodes are destroyed only after they were unlinked and the epoch of every guard that could reach them has ended.
        while let Some(node) = unsafe { at.as_ref() } {
            if node.position == position {
                return Some(node);
            }
            at = node.next.load(Ordering::Acquire, guard);
        }
        None
    }

    /// The record at `position`, if it is here. Counts as a use.
    pub(crate) fn get(&self, position: Position) -> Option<Item> {
        let guard = epoch::pin();
        let node = self.find(self.bucket(position.0), position.0, &guard)?;
        let frequency = node.frequency.load(Ordering::Relaxed);
        if frequency < FREQUENCY_MAX {
            node.frequency.store(frequency + 1, Ordering::Relaxed);
        }
        Some(node.item.clone())
    }

    /// Whether the record at `position` is here.
    pub(crate) fn holds(&self, position: Position) -> bool {
        self.find(self.bucket(position.0), position.0, &epoch::pin()).is_some()
    }

    /// Takes in the record at `position`, and evicts others until it fits. False if it is too large for that.
    pub(crate) fn insert(&self, position: Position, item: Item) -> bool {
        self.insert_as(position, item, false)
    }

    /// As [`MemoryTier::insert`]. `proved` says that it was used often before.
    pub(crate) fn insert_as(&self, position: Position, item: Item, proved: bool) -> bool {
        let budget = self.budget.load(Ordering::Relaxed);
        let charge = item.charge();
        if charge > budget / 4 {
            return false;
        }
        let (bucket, hash) = (self.bucket(position.0), item.hash);
        let guard = epoch::pin();
        let mut shard = lock(self.shard(bucket));
        if self.find(bucket, position.0, &guard).is_some() {
            return true;
        }
        let head = self.buckets[bucket].load(Ordering::Relaxed, &guard);
        let node = Owned::new(Node { position: position.0, item, frequency: AtomicU8::new(0), next: Atomic::null() });
        node.next.store(head, Ordering::Relaxed);
        // Pairs with the acquire loads in `find`.
        self.buckets[bucket].store(node, Ordering::Release);
        shard.enter(position.0, hash, charge, proved);
        self.bytes.fetch_add(charge, Ordering::Relaxed);
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.inserts.fetch_add(1, Ordering::Relaxed);
        self.shrink(&mut shard, budget, &guard);
        true
    }

    /// Forgets the record at `position`: it was replaced or deleted. Says whether it was here.
    pub(crate) fn remove(&self, position: Position) -> bool {
        let guard = epoch::pin();
        let bucket = self.bucket(position.0);
        if self.find(bucket, position.0, &guard).is_none() {
            return false;
        }
        let mut shard = lock(self.shard(bucket));
        let removed = self.unlink(position.0, &guard);
        if let Some(node) = removed {
            // Its place in a queue is found empty later; whether that was the small one is not known here.
            shard.leave(node.item.charge(), &guard);
            if shard.small.len() + shard.main.len() > 2 * shard.entries + 64 {
                self.drop_empty_places(&mut shard, &guard);
            }
        }
        removed.is_some()
    }

    /// The record at `old` lies at `new` now.
    pub(crate) fn rename(&self, old: Position, new: Position) {
        if let Some(item) = self.get(old)
            && self.remove(old)
        {
            self.insert(new, item);
        }
    }

    /// Takes the node at `position` out of its bucket. The caller has the shard.
    fn unlink<'g>(&self, position: u64, guard: &'g Guard) -> Option<&'g Node> {
        let mut link = &self.buckets[self.bucket(position)];
        loop {
            let at: Shared<'g, Node> = link.load(Ordering::Acquire, guard);
            // SAFETY: as in `find`.
            let node = unsafe { at.as_ref() }?;
            if node.position == position {
                // Pairs with the acquire loads in `find`.
                link.store(node.next.load(Ordering::Relaxed, guard), Ordering::Release);
                // SAFETY: it was linked once, is unlinked now, and the shard lock makes this the only unlinking.
                unsafe { guard.defer_destroy(at) };
                self.bytes.fetch_sub(node.item.charge(), Ordering::Relaxed);
                self.entries.fetch_sub(1, Ordering::Relaxed);
                return Some(node);
            }
            link = &node.next;
        }
    }

    /// Evicts until the shard is within its budget.
    fn shrink(&self, shard: &mut Shard, budget: u64, guard: &Guard) {
        while shard.bytes > budget {
            let from_small = shard.small_bytes > budget / SMALL_SHARE || shard.main.is_empty();
            let popped = if from_small { shard.small.pop_front() } else { shard.main.pop_front() };
            let Some(position) = popped else {
                if from_small {
                    shard.small_bytes = 0;
                }
                if shard.small.is_empty() && shard.main.is_empty() {
                    return;
                }
                continue;
            };
            let Some(node) = self.find(self.bucket(position), position, guard) else { continue };
            let charge = node.item.charge();
            if from_small {
                shard.small_bytes = shard.small_bytes.saturating_sub(charge);
            }
            let frequency = node.frequency.load(Ordering::Relaxed);
            if frequency > 0 {
                // Used since it came in, or since it was last looked at: it stays, one use poorer.
                node.frequency.store(if from_small { 0 } else { frequency - 1 }, Ordering::Relaxed);
                shard.main.push_back(position);
                continue;
            }
            self.unlink(position, guard);
            shard.leave(charge, guard);
            if from_small {
                shard.haunt(node.item.hash);
            }
        }
    }

    /// Drops queue places whose entries were removed.
    fn drop_empty_places(&self, shard: &mut Shard, guard: &Guard) {
        let charge = |p: u64| self.find(self.bucket(p), p, guard).map(|node| node.item.charge());
        shard.main.retain(|p| charge(*p).is_some());
        let mut small_bytes = 0;
        shard.small.retain(|p| charge(*p).inspect(|n| small_bytes += n).is_some());
        shard.small_bytes = small_bytes;
    }

    /// Hashes of what is here, hottest first and at most `most`, and how many of them have proved themselves.
    pub(crate) fn hottest(&self, most: usize) -> (Vec<KeyHash>, usize) {
        // One list for each degree of heat, coldest first: what has proved itself comes after what has not.
        let mut degrees = [const { Vec::new() }; 2 * (FREQUENCY_MAX as usize + 1)];
        for shard in &self.shards {
            // Pinned anew for each, so that what is evicted meanwhile is freed.
            let (guard, shard) = (epoch::pin(), lock(shard));
            for (queue, first) in [(&shard.small, 0), (&shard.main, degrees.len() / 2)] {
                for node in queue.iter().filter_map(|p| self.find(self.bucket(*p), *p, &guard)) {
                    degrees[first + usize::from(node.frequency.load(Ordering::Relaxed).min(FREQUENCY_MAX))].push(node.item.hash);
                }
            }
        }
        let proved: usize = degrees[degrees.len() / 2..].iter().map(Vec::len).sum();
        let mut hottest: Vec<KeyHash> = Vec::new();
        for degree in degrees.iter_mut().rev() {
            // The first one is taken over as it is; the others are let go one by one.
            match hottest.is_empty() {
                true => hottest = std::mem::take(degree),
                false => hottest.extend(std::mem::take(degree)),
            }
        }
        hottest.truncate(most);
        (hottest, proved.min(most))
    }

    /// Whether the tier holds about as much as it may.
    pub(crate) fn is_full(&self) -> bool {
        let budget = self.budget.load(Ordering::Relaxed) * self.shards.len() as u64;
        self.bytes() >= budget - budget / 16
    }
}

impl Drop for MemoryTier {
    fn drop(&mut self) {
        for bucket in &mut self.buckets {
            let mut at = std::mem::replace(bucket, Atomic::null());
            // SAFETY: `&mut self` says that no reader is left, and each node is owned by the one link that is taken here.
            while let Some(node) = unsafe { at.try_into_owned() } {
                at = std::mem::replace(&mut node.into_box().next, Atomic::null());
            }
        }
    }
}

impl Shard {
    fn enter(&mut self, position: u64, hash: KeyHash, charge: u64, proved: bool) {
        self.bytes += charge;
        self.entries += 1;
        if proved || self.ghost_set.contains(&ghost(hash)) {
            self.main.push_back(position);
        } else {
            self.small.push_back(position);
            self.small_bytes += charge;
        }
    }

    /// An entry was unlinked under `guard`.
    fn leave(&mut self, charge: u64, guard: &Guard) {
        self.bytes -= charge;
        self.entries -= 1;
        self.garbage += charge;
        if self.garbage > GARBAGE_MAX {
            // Else it would lie in this thread's list until that is full: of large values, many bytes.
            guard.flush();
            self.garbage = 0;
        }
    }

    /// Remembers an entry that left without having proved itself; as many as there are entries.
    fn haunt(&mut self, hash: KeyHash) {
        if self.ghost_set.insert(ghost(hash)) {
            self.ghosts.push_back(ghost(hash));
        }
        while self.ghosts.len() > self.entries.max(16) {
            if let Some(oldest) = self.ghosts.pop_front() {
                self.ghost_set.remove(&oldest);
            }
        }
    }
}

fn ghost(hash: KeyHash) -> u32 {
    (hash.0 >> 16) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(n: u64, len: usize) -> Item {
        let hash = KeyHash(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut bytes = n.to_le_bytes().to_vec();
        bytes.resize(8 + len, n as u8);
        Item { hash, scope: Scope::FIRST, lsn: Lsn(n), expires_ms: None, key_len: 8, held: bytes.len(), bytes: bytes.into() }
    }

    fn at(n: u64) -> Position {
        Position(n * 8)
    }

    #[test]
    fn what_was_inserted_is_found_until_removed() {
        let tier = MemoryTier::new(1 << 20);
        for n in 0..100 {
            assert!(tier.insert(at(n), item(n, 100)));
        }
        for n in 0..100 {
            let found = tier.get(at(n)).unwrap();
            assert_eq!((found.key(), found.lsn), (&n.to_le_bytes()[..], Lsn(n)));
            assert_eq!(found.value(), vec![n as u8; 100]);
        }
        assert!(tier.remove(at(7)) && !tier.remove(at(7)));
        assert!(tier.get(at(7)).is_none());
        assert_eq!(tier.entries(), 99);
    }

    #[test]
    fn the_budget_holds_whatever_is_inserted_and_removed() {
        let tier = MemoryTier::new(1 << 20);
        for n in 0..50_000u64 {
            let len = [10, 100, 1000, 100_000, 300_000][(n % 5) as usize];
            let fits = tier.insert(at(n), item(n, len));
            assert_eq!(fits, len < 262_000);
            if n % 3 == 0 {
                tier.remove(at(n));
            }
            assert!(tier.allocated() <= 1 << 20, "{} at {n}", tier.allocated());
        }
        tier.set_budget(256 << 10);
        tier.insert(at(1 << 40), item(1, 10));
        assert!(tier.allocated() <= 256 << 10);
        let queued = places(&tier);
        assert!(queued <= 2 * tier.entries() as usize + 64, "{queued} places for {} entries", tier.entries());
    }

    /// Places in all queues, also those whose entries are gone.
    fn places(tier: &MemoryTier) -> usize {
        let of_shard = |shard: &Mutex<Shard>| {
            let shard = lock(shard);
            shard.small.len() + shard.main.len()
        };
        tier.shards.iter().map(of_shard).sum()
    }

    #[test]
    fn replacing_the_same_few_keys_for_ever_keeps_the_queues_short() {
        let tier = MemoryTier::new(1 << 20);
        for n in 0..100_000u64 {
            tier.insert(at(n), item(n % 10, 100));
            if n >= 10 {
                assert!(tier.remove(at(n - 10)));
            }
        }
        let queued = places(&tier);
        assert!(queued < 200, "{queued}");
        assert_eq!(tier.entries(), 10);
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_used() {
        let tier = MemoryTier::new(1 << 20);
        for n in 0..500 {
            tier.insert(at(n), item(n, 500));
            tier.get(at(n));
        }
        for n in 1_000..50_000 {
            tier.insert(at(n), item(n, 500));
            if n % 100 == 0 {
                (0..500).for_each(|hot| drop(tier.get(at(hot))));
            }
        }
        let kept = (0..500).filter(|n| tier.holds(at(*n))).count();
        assert!(kept > 450, "{kept}");
        let (hottest, proved) = tier.hottest(usize::MAX);
        let (first, proved_of_them) = tier.hottest(10);
        assert_eq!((&first[..], proved_of_them), (&hottest[..10], 10));
        let hot: HashSet<KeyHash> = (0..500).map(|n| item(n, 0).hash).collect();
        assert!(proved >= kept, "{proved} proved");
        assert!(hottest[..400].iter().filter(|h| hot.contains(h)).count() > 380);
    }

    #[test]
    fn readers_are_safe_while_entries_come_and_go() {
        let tier = MemoryTier::new(64 << 10);
        std::thread::scope(|s| {
            let writer = s.spawn(|| {
                for n in 0..if cfg!(miri) { 600 } else { 30_000u64 } {
                    tier.insert(at(n % 500), item(n % 500, 200));
                    if n % 7 == 0 {
                        tier.remove(at(n % 400));
                    }
                }
            });
            let mut n = 0;
            while !writer.is_finished() {
                n = (n + 1) % 500;
                if let Some(found) = tier.get(at(n)) {
                    assert_eq!(found.value(), vec![n as u8; 200]);
                }
            }
        });
    }
}
