//! The memory tier: values of hot records in DRAM, bounded by bytes, S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP'23).
//!
//! It is keyed by the key's hash, and asked before the index. What is here is what the index names, or nothing is: whoever changes what the index says of a key does it in
//! [`MemoryTier::supersede`], which holds the key's shard from the moment that the version before is out until the index names the new one; and whoever brings in what was read
//! says with [`MemoryTier::insert`] whether the index still names it, under the same lock. So a hit is the newest version. An entry that has left the index may stay here a while;
//! that it was the newest version remains true until a mutation supersedes it.
//!
//! Hits take no lock: buckets are linked lists that are read under an epoch (Fraser, 2004), and a hit only raises the entry's frequency and counts a handle.
#![allow(unsafe_code, reason = "items are shared with readers that take no lock")]

use std::collections::{HashSet, VecDeque};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crossbeam::epoch::{self, Guard};

use super::item::{FREQUENCY_MAX, Item, NODE_LEN, Node, held, node};
use super::queue::Queue;
use crate::concurrent::lock;
use crate::id::{Key, KeyHash};

const SHARDS_MAX: usize = 16;
/// A shard has at least this many bytes, so that large values find room.
const SHARD_BYTES_MIN: u64 = 4 << 20;
const BYTES_PER_BUCKET: u64 = 512;
/// No fewer buckets, and a multiple of any number of shards.
const BUCKETS_MIN: usize = 64;
const _: () = assert!(BUCKETS_MIN.is_multiple_of(SHARDS_MAX));
/// One in this many bytes of a shard is for entries that have not proved themselves.
const SMALL_SHARE: u64 = 10;
/// Entries are freed some time after they went, when no reader can have them any more. PastEnd this many bytes of a shard it is asked whether that is so.
const GARBAGE_MAX: u64 = 256 << 10;
/// What an entry costs besides its bytes: node, what the allocator adds, ghost place, two places in lists of what is hot.
const OVERHEAD: u64 = (NODE_LEN + 16 + 16 + 2 * 8) as u64;

/// See the module.
#[derive(Debug)]
pub(crate) struct MemoryTier {
    /// In the order of the hashes that belong there, as shards are: each shard has buckets of its own.
    buckets: Box<[AtomicPtr<Node>]>,
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
    small: Queue,
    main: Queue,
    ghosts: VecDeque<u32>,
    ghost_set: HashSet<u32>,
    small_bytes: u64,
    bytes: u64,
    entries: usize,
    /// Bytes that were unlinked and may not be freed yet.
    garbage: u64,
}

/// A place in a shard's queues while what holds it changes. If that panics, what has left its bucket leaves its queue too.
struct Place<'a> {
    shard: MutexGuard<'a, Shard>,
    left_by: Option<NonNull<Node>>,
    guard: &'a Guard,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some(old) = self.left_by.take() {
            self.shard.leave(old, self.guard);
        }
    }
}

impl MemoryTier {
    /// A tier that may take `budget` bytes, buckets included. It never has more buckets than `budget` says now.
    pub(crate) fn new(budget: u64) -> Self {
        let shards = ((budget / SHARD_BYTES_MIN).max(1) as usize).next_power_of_two().min(SHARDS_MAX);
        let buckets = ((budget / BYTES_PER_BUCKET) as usize).next_multiple_of(shards).max(BUCKETS_MIN);
        let tier = Self {
            buckets: (0..buckets).map(|_| AtomicPtr::default()).collect(),
            shards: (0..shards).map(|_| Mutex::default()).collect(),
            budget: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            entries: AtomicU64::new(0),
            inserts: AtomicU64::new(0),
        };
        tier.set_budget(budget);
        tier
    }

    /// Changes how many bytes the tier may take.
    pub(crate) fn set_budget(&self, budget: u64) {
        let each = budget.saturating_sub(self.buckets_len()) / self.shards.len() as u64;
        if each < self.budget.swap(each, Ordering::Relaxed) {
            for shard in &self.shards {
                // Pinned anew for each, as in `hottest`.
                let guard = epoch::pin();
                self.shrink(&mut lock(shard), each, &guard);
            }
        }
    }

    fn buckets_len(&self) -> u64 {
        (self.buckets.len() * size_of::<AtomicPtr<Node>>()) as u64
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

    fn bucket(&self, hash: KeyHash) -> &AtomicPtr<Node> {
        &self.buckets[part(hash, self.buckets.len())]
    }

    fn shard(&self, hash: KeyHash) -> &Mutex<Shard> {
        &self.shards[part(hash, self.shards.len())]
    }

    /// The node of the entry for `hash`, which lives as long as the guard.
    fn find(&self, hash: KeyHash, _guard: &Guard) -> Option<NonNull<Node>> {
        let mut at = self.bucket(hash).load(Ordering::Acquire);
        while let Some(found) = NonNull::new(at).filter(|at| node(*at).hash != hash) {
            at = node(found).next.load(Ordering::Acquire);
        }
        NonNull::new(at)
    }

    /// The record of `key`, whose hash is `hash`, if it is here. Counts as a use.
    pub(crate) fn get(&self, hash: KeyHash, key: Key<'_>) -> Option<Item> {
        let guard = epoch::pin();
        let at = self.find(hash, &guard)?;
        // SAFETY: the tier's handle is dropped only once no guard is left from before the node was unlinked.
        let item = unsafe { Item::of(at) };
        let frequency = &node(at).frequency;
        let uses = frequency.load(Ordering::Relaxed);
        if uses < FREQUENCY_MAX {
            frequency.store(uses + 1, Ordering::Relaxed);
        }
        item.is_of(key).then_some(item)
    }

    /// Whether a record with this hash is here.
    pub(crate) fn holds(&self, hash: KeyHash) -> bool {
        self.find(hash, &epoch::pin()).is_some()
    }

    /// Takes in a record that was read, if it `is_current`, and evicts others until it fits. `proved` says that it was used often before. False if it is superseded or too large.
    pub(crate) fn insert(&self, item: &Item, proved: bool, is_current: impl FnOnce() -> bool) -> bool {
        let (hash, guard) = (item.hash(), epoch::pin());
        let mut shard = lock(self.shard(hash));
        let Some(budget) = self.budget_for(item) else { return false };
        if self.find(hash, &guard).is_some() {
            return true;
        }
        if !is_current() {
            return false;
        }
        shard.enter(self.link(item.clone()), proved);
        self.shrink(&mut shard, budget, &guard);
        true
    }

    /// Does what makes the index name another version of the key with this hash, or none, and puts `successor`, if there is one, in the place of the version before.
    pub(crate) fn supersede<T>(&self, hash: KeyHash, successor: Option<Item>, change: impl FnOnce() -> T) -> T {
        let guard = epoch::pin();
        let mut place = Place { shard: lock(self.shard(hash)), left_by: None, guard: &guard };
        if let Some(old) = self.find(hash, &guard) {
            self.unlink(old);
            place.left_by = Some(old);
        }
        let changed = change();
        let budget = successor.as_ref().and_then(|item| self.budget_for(item));
        match (place.left_by.take(), successor.filter(|_| budget.is_some())) {
            (None, None) => {}
            (Some(old), None) => place.shard.leave(old, &guard),
            (None, Some(item)) => place.shard.enter(self.link(item), false),
            (Some(old), Some(item)) => place.shard.replace(old, self.link(item), &guard),
        }
        if let Some(budget) = budget {
            self.shrink(&mut place.shard, budget, &guard);
        }
        changed
    }

    /// Forgets `item` if it is here. Says whether it was.
    pub(crate) fn forget(&self, item: &Item) -> bool {
        let (hash, guard) = (item.hash(), epoch::pin());
        let mut shard = lock(self.shard(hash));
        let found = self.find(hash, &guard).filter(|at| *at == item.node());
        if let Some(at) = found {
            self.unlink(at);
            shard.leave(at, &guard);
        }
        found.is_some()
    }

    /// What a shard may take, unless this item is too large for it.
    fn budget_for(&self, item: &Item) -> Option<u64> {
        let budget = self.budget.load(Ordering::Relaxed);
        (charge(item.node()) <= budget / 4).then_some(budget)
    }

    /// Makes an item the first of its bucket. The caller has the shard.
    fn link(&self, item: Item) -> NonNull<Node> {
        let bucket = self.bucket(item.hash());
        let at = item.into_node();
        node(at).next.store(bucket.load(Ordering::Relaxed), Ordering::Relaxed);
        // Pairs with the acquire loads in `find`.
        bucket.store(at.as_ptr(), Ordering::Release);
        self.bytes.fetch_add(charge(at), Ordering::Relaxed);
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.inserts.fetch_add(1, Ordering::Relaxed);
        at
    }

    /// Takes a node that is here out of its bucket. The caller has the shard, and gives the node to [`Shard::leave`] or [`Shard::replace`].
    fn unlink(&self, unlinked: NonNull<Node>) {
        let mut link = self.bucket(node(unlinked).hash);
        while let Some(at) = NonNull::new(link.load(Ordering::Relaxed)).filter(|at| *at != unlinked) {
            link = &node(at).next;
        }
        // Pairs with the acquire loads in `find`.
        link.store(node(unlinked).next.load(Ordering::Relaxed), Ordering::Release);
        self.bytes.fetch_sub(charge(unlinked), Ordering::Relaxed);
        self.entries.fetch_sub(1, Ordering::Relaxed);
    }

    /// Evicts until the shard is within its budget.
    fn shrink(&self, shard: &mut Shard, budget: u64, guard: &Guard) {
        while shard.bytes > budget {
            let from_small = shard.small_bytes > budget / SMALL_SHARE || shard.main.oldest().is_none();
            let oldest = if from_small { shard.small.oldest() } else { shard.main.oldest() };
            let Some(at) = oldest else { return };
            let Node { frequency, hash, .. } = node(at);
            let uses = frequency.load(Ordering::Relaxed);
            if uses > 0 {
                // Used since it came in, or since it was last looked at: it stays, one use poorer.
                frequency.store(if from_small { 0 } else { uses - 1 }, Ordering::Relaxed);
                shard.promote(at);
                continue;
            }
            self.unlink(at);
            if from_small {
                shard.remember_ghost(*hash);
            }
            shard.leave(at, guard);
        }
    }

    /// Hashes of what is here, hottest first and at most `most`, and how many of them have proved themselves.
    pub(crate) fn hottest(&self, most: usize) -> (Vec<KeyHash>, usize) {
        // One list for each degree of heat, coldest first: what has proved itself comes after what has not.
        let mut degrees = [const { Vec::new() }; 2 * (FREQUENCY_MAX as usize + 1)];
        // One bucket of each shard after the other: whoever refills the tier in this order fills its shards alike.
        let (shards, of_shard) = (self.shards.len(), self.buckets.len() / self.shards.len());
        for first in (0..of_shard).step_by(64) {
            // Pinned anew for each few, so that what is evicted meanwhile is freed.
            let _guard = epoch::pin();
            let next = (first..of_shard.min(first + 64)).flat_map(|n| (0..shards).map(move |shard| shard * of_shard + n));
            for bucket in next.map(|n| &self.buckets[n]) {
                let first = NonNull::new(bucket.load(Ordering::Acquire));
                for at in std::iter::successors(first, |at| NonNull::new(node(*at).next.load(Ordering::Acquire))) {
                    let Node { frequency, in_main, hash, .. } = node(at);
                    let proved = usize::from(in_main.load(Ordering::Relaxed)) * (FREQUENCY_MAX as usize + 1);
                    degrees[proved + usize::from(frequency.load(Ordering::Relaxed).min(FREQUENCY_MAX))].push(*hash);
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
            let mut at = *bucket.get_mut();
            while let Some(linked) = NonNull::new(at) {
                at = node(linked).next.load(Ordering::Relaxed);
                // SAFETY: `&mut self` says that no reader is left, and what is linked has the tier's handle.
                drop(unsafe { Item::from_node(linked) });
            }
        }
    }
}

/// Which of so many equal parts of all hashes this one is in.
fn part(hash: KeyHash, parts: usize) -> usize {
    ((u128::from(hash.0) * parts as u128) >> u64::BITS) as usize
}

fn charge(at: NonNull<Node>) -> u64 {
    held(at) + OVERHEAD
}

impl Shard {
    /// A node was linked.
    fn enter(&mut self, at: NonNull<Node>, proved: bool) {
        self.bytes += charge(at);
        self.entries += 1;
        if proved || self.ghost_set.contains(&ghost(node(at).hash)) {
            node(at).in_main.store(true, Ordering::Relaxed);
            self.main.push(at);
        } else {
            self.small.push(at);
            self.small_bytes += charge(at);
        }
    }

    /// The oldest of the small queue, or of the main one, becomes the newest of the main one.
    fn promote(&mut self, at: NonNull<Node>) {
        self.withdraw(at);
        node(at).in_main.store(true, Ordering::Relaxed);
        self.main.push(at);
    }

    /// Takes a node out of its queue.
    fn withdraw(&mut self, at: NonNull<Node>) {
        if node(at).in_main.load(Ordering::Relaxed) {
            self.main.remove(at);
        } else {
            self.small.remove(at);
            self.small_bytes -= charge(at);
        }
    }

    /// A node was unlinked under `guard`.
    fn leave(&mut self, at: NonNull<Node>, guard: &Guard) {
        self.withdraw(at);
        self.entries -= 1;
        self.retire(at, guard);
    }

    /// A node was unlinked under `guard`, and another one linked that takes its place and inherits its uses.
    fn replace(&mut self, old: NonNull<Node>, new: NonNull<Node>, guard: &Guard) {
        let (before, after) = (node(old), node(new));
        after.frequency.store(before.frequency.load(Ordering::Relaxed), Ordering::Relaxed);
        after.in_main.store(before.in_main.load(Ordering::Relaxed), Ordering::Relaxed);
        if before.in_main.load(Ordering::Relaxed) {
            self.main.replace(old, new);
        } else {
            self.small.replace(old, new);
            self.small_bytes = self.small_bytes - charge(old) + charge(new);
        }
        self.bytes += charge(new);
        self.retire(old, guard);
    }

    /// Drops the tier's handle once no reader can come from a bucket.
    fn retire(&mut self, at: NonNull<Node>, guard: &Guard) {
        let charge = charge(at);
        // SAFETY: it was linked, so it has the tier's handle, which is taken back here alone.
        let item = unsafe { Item::from_node(at) };
        guard.defer(move || drop(item));
        self.bytes -= charge;
        self.garbage += charge;
        if self.garbage > GARBAGE_MAX {
            // Else it would lie in this thread's list until that is full: of large values, many bytes.
            guard.flush();
            self.garbage = 0;
        }
    }

    /// Remembers an entry that left without having proved itself; as many as there are entries.
    fn remember_ghost(&mut self, hash: KeyHash) {
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
    use crate::id::{Lsn, NamespaceGeneration};
    use crate::io::aligned::Meter;
    use crate::tier::item::ItemMeta;

    fn hash(n: u64) -> KeyHash {
        KeyHash(n.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    fn item(n: u64, len: usize) -> Item {
        version(n, n, len)
    }

    fn version(n: u64, lsn: u64, len: usize) -> Item {
        let about = ItemMeta { hash: hash(n), namespace: NamespaceGeneration::FIRST, lsn: Lsn(lsn), expires_ms: None };
        Item::copied(about, &n.to_le_bytes(), &vec![lsn as u8; len], &Meter::default())
    }

    fn insert(tier: &MemoryTier, n: u64, len: usize) -> bool {
        tier.insert(&item(n, len), false, || true)
    }

    fn get(tier: &MemoryTier, n: u64) -> Option<Item> {
        tier.get(hash(n), (&n.to_le_bytes()).into())
    }

    fn remove(tier: &MemoryTier, n: u64) -> bool {
        let was_here = tier.holds(hash(n));
        tier.supersede(hash(n), None, || ());
        was_here
    }

    /// Items in all queues.
    fn queued(tier: &MemoryTier) -> usize {
        let of_shard = |shard: &Mutex<Shard>| {
            let shard = lock(shard);
            shard.small.iter().chain(shard.main.iter()).count()
        };
        tier.shards.iter().map(of_shard).sum()
    }

    #[test]
    fn what_was_inserted_is_found_until_removed() {
        let tier = MemoryTier::new(1 << 20);
        for n in 0..100 {
            assert!(insert(&tier, n, 100));
        }
        for n in 0..100 {
            let found = get(&tier, n).unwrap();
            assert_eq!((found.key(), found.lsn()), (&n.to_le_bytes()[..], Lsn(n)));
            assert_eq!(found.value(), vec![n as u8; 100]);
        }
        assert!(tier.get(hash(7), (b"another").into()).is_none(), "two keys of one hash are told apart");
        assert!(remove(&tier, 7) && !remove(&tier, 7));
        assert!(get(&tier, 7).is_none());
        assert_eq!((tier.entries(), queued(&tier)), (99, 99));
    }

    #[test]
    fn a_successor_takes_the_place_of_the_version_before_and_what_is_not_current_does_not() {
        let tier = MemoryTier::new(1 << 20);
        insert(&tier, 1, 100);
        let old = get(&tier, 1).unwrap();
        tier.supersede(hash(1), Some(version(1, 2, 50)), || {
            assert!(get(&tier, 1).is_none(), "the old version is out before the index changes")
        });
        assert_eq!(get(&tier, 1).map(|found| found.lsn()), Some(Lsn(2)));
        assert_eq!((old.value(), tier.entries(), queued(&tier)), (&[1; 100][..], 1, 1));
        assert!(!tier.forget(&old), "another version is here");
        let new = get(&tier, 1).unwrap();
        assert!(tier.forget(&new));
        assert!(!tier.insert(&old, false, || false));
        assert_eq!((tier.entries(), queued(&tier), tier.bytes()), (0, 0, 0));
    }

    #[test]
    fn the_budget_holds_whatever_is_inserted_and_removed() {
        let tier = MemoryTier::new(1 << 20);
        for n in 0..50_000u64 {
            let len = [10, 100, 1000, 100_000, 300_000][(n % 5) as usize];
            assert_eq!(insert(&tier, n, len), len < 262_000);
            if n % 3 == 0 {
                remove(&tier, n);
            }
            if n % 7 == 0 {
                tier.supersede(hash(n - n % 2), Some(item(n - n % 2, len / 3)), || ());
            }
            assert!(tier.allocated() <= 1 << 20, "{} at {n}", tier.allocated());
        }
        assert_eq!(queued(&tier), tier.entries() as usize);
        tier.set_budget(256 << 10);
        assert!(tier.allocated() <= 256 << 10);
        let of_shard = |shard: &Mutex<Shard>| {
            let shard = lock(shard);
            shard.small.iter().chain(shard.main.iter()).map(charge).sum::<u64>()
        };
        let kept: u64 = tier.shards.iter().map(of_shard).sum();
        assert_eq!(kept, tier.bytes());
    }

    #[test]
    fn no_two_shards_share_a_bucket() {
        for budget in [1, 5 << 20, 8 << 20, (17 << 20) + 513, (64 << 20) - 1, 1 << 30] {
            let tier = MemoryTier::new(budget);
            let (buckets, shards) = (tier.buckets.len(), tier.shards.len());
            for shard in 0..shards {
                let first = KeyHash((u128::from(shard as u64) << 64).div_ceil(shards as u128) as u64);
                let last = KeyHash((u128::from(shard as u64 + 1) << 64).div_ceil(shards as u128).wrapping_sub(1) as u64);
                assert_eq!([first, last].map(|hash| part(hash, shards)), [shard; 2], "{budget}");
                let own = buckets / shards * shard..buckets / shards * (shard + 1);
                assert_eq!([first, last].map(|hash| part(hash, buckets)), [own.start, own.end - 1], "{budget}");
            }
        }
    }

    #[test]
    fn what_is_listed_as_hottest_fills_all_shards_alike() {
        let tier = MemoryTier::new(32 << 20);
        (0..40_000).for_each(|n| assert!(insert(&tier, n, 10)));
        let (hottest, _) = tier.hottest(4_000);
        let mut of_shard = vec![0; tier.shards.len()];
        hottest.iter().for_each(|hash| of_shard[part(*hash, tier.shards.len())] += 1);
        assert!(of_shard.len() == 8 && of_shard.iter().all(|n| (400..600).contains(n)), "{of_shard:?}");
    }

    #[test]
    fn a_scan_does_not_push_out_what_is_used() {
        let tier = MemoryTier::new(1 << 20);
        for n in 0..500 {
            insert(&tier, n, 500);
            get(&tier, n);
        }
        for n in 1_000..50_000 {
            insert(&tier, n, 500);
            if n % 100 == 0 {
                (0..500).for_each(|hot| drop(get(&tier, hot)));
            }
        }
        let kept = (0..500).filter(|n| tier.holds(hash(*n))).count();
        assert!(kept > 450, "{kept}");
        let (hottest, proved) = tier.hottest(usize::MAX);
        let (first, proved_of_them) = tier.hottest(10);
        assert_eq!((&first[..], proved_of_them), (&hottest[..10], 10));
        let hot: HashSet<KeyHash> = (0..500).map(hash).collect();
        assert!(proved >= kept, "{proved} proved");
        assert!(hottest[..400].iter().filter(|h| hot.contains(h)).count() > 380);
    }

    #[test]
    fn readers_see_no_older_version_while_entries_come_and_go() {
        const KEYS: u64 = if cfg!(miri) { 40 } else { 500 };
        const ROUNDS: u64 = if cfg!(miri) { 2 } else { 60 };
        // One shard that evicts, and four.
        [64 << 10, 16 << 20].into_iter().for_each(|budget| no_older_version_is_seen(&MemoryTier::new(budget), KEYS, ROUNDS));
    }

    fn no_older_version_is_seen(tier: &MemoryTier, keys: u64, rounds: u64) {
        // What the index would name, and what has been superseded for certain.
        let [named, newest] = [(); 2].map(|()| (0..keys).map(|_| AtomicU64::new(0)).collect::<Vec<_>>());
        std::thread::scope(|s| {
            s.spawn(|| {
                for round in 1..=rounds {
                    for n in 0..keys {
                        let successor = (n % 3 != 0).then(|| version(n, round, 200));
                        tier.supersede(hash(n), successor, || named[n as usize].store(round, Ordering::Release));
                        newest[n as usize].store(round, Ordering::Release);
                    }
                }
            });
            let read = || {
                let mut n = 0;
                while newest[keys as usize - 1].load(Ordering::Acquire) < rounds {
                    n = (n + 1) % keys;
                    let least = newest[n as usize].load(Ordering::Acquire);
                    if let Some(found) = get(tier, n) {
                        assert!(found.lsn().0 >= least, "{:?} of {least}", found.lsn());
                        assert_eq!(found.value(), vec![found.lsn().0 as u8; 200]);
                    }
                    let now = || named[n as usize].load(Ordering::Acquire);
                    let seen = now();
                    tier.insert(&version(n, seen, 200), false, || now() == seen);
                }
            };
            s.spawn(read);
            read();
        });
    }
}
