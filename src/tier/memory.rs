//! The memory tier: values of hot records in DRAM, bounded by bytes.
//!
//! # Eviction
//! S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP'23), in each
//! shard:
//! - A new entry joins the *small* queue, or the *main* queue if its hash is a *ghost* or the
//!   caller says that it is proved.
//! - A hit raises the entry's frequency, up to 3, and moves nothing.
//! - While the shard is over its budget, it takes the oldest entry of the small queue if that has
//!   more than a tenth of the budget or the main queue is empty. Else it takes the oldest entry of
//!   the main queue.
//! - If the frequency of that entry is above 0, it becomes the newest of the main queue. An entry
//!   from the small queue starts there at 0, and an entry from the main queue loses one.
//! - If the frequency is 0, the entry is evicted. The hash of an entry from the small queue becomes
//!   a ghost. The oldest ghosts are dropped while a shard has more than entries, and more than 16.
//!
//! # Agreement with the index
//! The tier is keyed by the hash of the key and asked before the index. It holds the newest version
//! of a key or nothing:
//! - A mutation changes the index in [`MemoryTier::supersede`]. That holds the lock of the key's
//!   shard from the removal of the old version until the index names the new one.
//! - A reader inserts a record in [`MemoryTier::insert`] only if the index still names that record,
//!   which is checked under the same lock.
//!
//! An entry may stay here after the index has lost it. It remains the newest version until a
//! mutation supersedes it.
//!
//! # Concurrency
//! A hit takes no lock. Buckets are linked lists that are read under an epoch guard (Fraser, 2004),
//! and a hit stores the frequency and counts a handle. Changes hold the lock of the shard.
#![allow(unsafe_code, reason = "items are shared with readers that take no lock")]

use std::collections::{HashSet, VecDeque};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use crossbeam::epoch::{self, Guard};

use super::item::{FREQUENCY_MAX, Item, NODE_LEN, Node, NodeRef};
use super::queue::Queue;
use crate::concurrent::lock;
use crate::id::{Key, KeyHash};

const SHARDS_MAX: usize = 16;
/// Bytes that a shard has at least, so that large values find room.
const SHARD_BYTES_MIN: u64 = 4 << 20;
const BYTES_PER_BUCKET: u64 = 512;
/// The least number of buckets, a multiple of every possible number of shards.
const BUCKETS_MIN: usize = 64;
const _: () = assert!(BUCKETS_MIN.is_multiple_of(SHARDS_MAX));
/// One in this many bytes of a shard is for the small queue.
const SMALL_SHARE: u64 = 10;
/// Bytes that a shard may have retired before it asks the epoch to free them.
///
/// A retired entry is freed only when no reader can have it any more.
const GARBAGE_MAX: u64 = 256 << 10;
/// Bytes that an entry is charged with besides its own: node, allocator overhead, ghost, and a
/// place in each of two lists of hot keys.
const OVERHEAD: u64 = (NODE_LEN + 16 + 16 + 2 * 8) as u64;

/// Values of hot records in DRAM, keyed by the hash of the key.
#[derive(Debug)]
pub(crate) struct MemoryTier {
    /// Ordered by hash, as shards are, so that no bucket belongs to two shards.
    buckets: Box<[AtomicPtr<Node>]>,
    shards: Box<[Mutex<Shard>]>,
    /// Bytes for each shard.
    budget: AtomicU64,
    bytes: AtomicU64,
    entries: AtomicU64,
    /// Inserts so far. A change says that the content changed.
    inserts: AtomicU64,
}

/// The queues of a part of all hashes.
///
/// Each linked node is in one of the two queues: [`Shard::enter`] or [`Shard::replace`] follows
/// [`MemoryTier::link`], and [`Shard::leave`] or [`Shard::replace`] follows [`MemoryTier::unlink`],
/// under the same hold of the lock.
#[derive(Debug, Default)]
struct Shard {
    small: Queue,
    main: Queue,
    ghosts: VecDeque<u32>,
    ghost_set: HashSet<u32>,
    small_bytes: u64,
    bytes: u64,
    entries: usize,
    /// Bytes retired since the epoch was last asked to free.
    garbage: u64,
}

/// A place in a shard's queues during [`MemoryTier::supersede`]. If the change panics, the node
/// that left its bucket leaves its queue too.
struct Place<'a> {
    shard: MutexGuard<'a, Shard>,
    left_by: Option<NodeRef<'a>>,
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
    /// A tier that may take `budget` bytes, buckets included. The number of buckets never changes.
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

    /// Sets the number of bytes that the tier may take, and evicts at once if it takes more.
    pub(crate) fn set_budget(&self, budget: u64) {
        let each = budget.saturating_sub(self.buckets_len()) / self.shards.len() as u64;
        if each < self.budget.swap(each, Ordering::Relaxed) {
            for shard in &self.shards {
                // Pinned anew for each shard, so that the entries of the shards before can be
                // freed.
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

    fn bucket(&self, hash: KeyHash) -> usize {
        part(hash, self.buckets.len())
    }

    fn shard(&self, hash: KeyHash) -> &Mutex<Shard> {
        &self.shards[part(hash, self.shards.len())]
    }

    /// The nodes of a bucket. They live as long as the guard, even if they are evicted meanwhile.
    fn nodes<'g>(&'g self, bucket: usize, _guard: &'g Guard) -> impl Iterator<Item = NodeRef<'g>> {
        let mut link = &self.buckets[bucket];
        std::iter::from_fn(move || {
            // Pairs with the release stores in `link` and `unlink`.
            let at = NonNull::new(link.load(Ordering::Acquire))?;
            // SAFETY: `_guard` was pinned before this load, so the walk reaches only nodes that
            // were linked at some moment since then. (An unlinked node keeps its `next`, which
            // names the node that was linked behind it.) The tier had a handle to the node at that
            // moment. `retire` drops it by a deferred call of the epoch, which runs only after
            // `_guard` has ended.
            let at = unsafe { NodeRef::new(at) };
            link = &at.node().next;
            Some(at)
        })
    }

    /// The node of the entry for `hash`.
    fn find<'g>(&'g self, hash: KeyHash, guard: &'g Guard) -> Option<NodeRef<'g>> {
        self.nodes(self.bucket(hash), guard).find(|at| at.node().hash == hash)
    }

    /// The record of `key`, whose hash is `hash`, if it is here. Counts as a use.
    pub(crate) fn get(&self, hash: KeyHash, key: Key<'_>) -> Option<Item> {
        let guard = epoch::pin();
        let at = self.find(hash, &guard)?;
        let item = at.item();
        let frequency = &at.node().frequency;
        let uses = frequency.load(Ordering::Relaxed);
        if uses < FREQUENCY_MAX {
            frequency.store(uses + 1, Ordering::Relaxed);
        }
        item.is_of(key).then_some(item)
    }

    /// The record of `key`, whose hash is `hash`, if it is here. Does not count as a use.
    pub(crate) fn peek(&self, hash: KeyHash, key: Key<'_>) -> Option<Item> {
        let guard = epoch::pin();
        self.find(hash, &guard).map(|at| at.item()).filter(|item| item.is_of(key))
    }

    /// Whether a record with this hash is here. Does not count as a use.
    pub(crate) fn holds(&self, hash: KeyHash) -> bool {
        self.find(hash, &epoch::pin()).is_some()
    }

    /// Inserts a record that was read from flash, and evicts others until the shard is within its
    /// budget.
    ///
    /// - `is_current` is called under the shard's lock and says whether the index still names the
    ///   record.
    /// - `proved` puts the record into the main queue, because it was used often before.
    ///
    /// Returns false if the record is superseded or too large.
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
        let linked = self.link(&shard, item.clone(), &guard);
        shard.enter(linked, proved);
        self.shrink(&mut shard, budget, &guard);
        true
    }

    /// Calls `change`, which makes the index name another version of the key with this hash, or
    /// none.
    ///
    /// The version before is out of the tier when `change` begins. `successor` takes its place
    /// afterwards, unless it is too large. All of it happens under the shard's lock.
    pub(crate) fn supersede<T>(&self, hash: KeyHash, successor: Option<Item>, change: impl FnOnce() -> T) -> T {
        let guard = epoch::pin();
        let mut place = Place { shard: lock(self.shard(hash)), left_by: None, guard: &guard };
        if let Some(old) = self.find(hash, &guard) {
            self.unlink(&place.shard, old);
            place.left_by = Some(old);
        }
        let changed = change();
        let budget = successor.as_ref().and_then(|item| self.budget_for(item));
        match (place.left_by.take(), successor.filter(|_| budget.is_some())) {
            (None, None) => {}
            (Some(old), None) => place.shard.leave(old, &guard),
            (old, Some(item)) => {
                let linked = self.link(&place.shard, item, &guard);
                match old {
                    None => place.shard.enter(linked, false),
                    Some(old) => place.shard.replace(old, linked, &guard),
                }
            }
        }
        if let Some(budget) = budget {
            self.shrink(&mut place.shard, budget, &guard);
        }
        changed
    }

    /// Removes `item` if it is here. Returns whether it was.
    pub(crate) fn forget(&self, item: &Item) -> bool {
        let (hash, guard) = (item.hash(), epoch::pin());
        let mut shard = lock(self.shard(hash));
        let found = self.find(hash, &guard).filter(|at| *at == item.node());
        if let Some(at) = found {
            self.unlink(&shard, at);
            shard.leave(at, &guard);
        }
        found.is_some()
    }

    /// The budget of a shard, unless this item takes more than a quarter of it.
    fn budget_for(&self, item: &Item) -> Option<u64> {
        let budget = self.budget.load(Ordering::Relaxed);
        (charge(item.node()) <= budget / 4).then_some(budget)
    }

    /// Makes an item the first of its bucket. `_locked` is the item's shard, which the caller gives
    /// the node to.
    fn link<'g>(&self, _locked: &Shard, item: Item, _guard: &'g Guard) -> NodeRef<'g> {
        let bucket = &self.buckets[self.bucket(item.hash())];
        // SAFETY: the tier has the handle that `into_node` gives away. `retire` drops it by a
        // deferred call of the epoch, which runs only after `_guard` has ended.
        let at = unsafe { NodeRef::new(item.into_node()) };
        at.node().next.store(bucket.load(Ordering::Relaxed), Ordering::Relaxed);
        // Pairs with the acquire load in `nodes`.
        bucket.store(at.as_ptr(), Ordering::Release);
        self.bytes.fetch_add(charge(at), Ordering::Relaxed);
        self.entries.fetch_add(1, Ordering::Relaxed);
        self.inserts.fetch_add(1, Ordering::Relaxed);
        at
    }

    /// Takes a linked node out of its bucket. `_locked` is the node's shard. The caller gives the
    /// node to its [`Shard::leave`] or [`Shard::replace`].
    fn unlink(&self, _locked: &Shard, unlinked: NodeRef<'_>) {
        let mut link = &self.buckets[self.bucket(unlinked.node().hash)];
        while let Some(at) = NonNull::new(link.load(Ordering::Relaxed)).filter(|at| *at != unlinked.as_non_null()) {
            // SAFETY: the shard's lock is held, so every node in the bucket stays linked, and the
            // tier has a handle to a linked node.
            link = &unsafe { NodeRef::new(at) }.node().next;
        }
        // Pairs with the acquire load in `nodes`.
        link.store(unlinked.node().next.load(Ordering::Relaxed), Ordering::Release);
        self.bytes.fetch_sub(charge(unlinked), Ordering::Relaxed);
        self.entries.fetch_sub(1, Ordering::Relaxed);
    }

    /// Evicts until the shard is within its budget.
    fn shrink(&self, shard: &mut Shard, budget: u64, guard: &Guard) {
        while shard.bytes > budget {
            let from_small = shard.small_bytes > budget / SMALL_SHARE || shard.main.is_empty();
            let oldest = if from_small { shard.small.oldest(guard) } else { shard.main.oldest(guard) };
            let Some(at) = oldest else { return };
            let Node { frequency, hash, .. } = at.node();
            let uses = frequency.load(Ordering::Relaxed);
            if uses > 0 {
                frequency.store(if from_small { 0 } else { uses - 1 }, Ordering::Relaxed);
                shard.promote(at);
                continue;
            }
            self.unlink(shard, at);
            if from_small {
                shard.remember_ghost(*hash);
            }
            shard.leave(at, guard);
        }
    }

    /// The hashes of at most `max` entries, hottest first, and how many of them are in main queues.
    pub(crate) fn hottest(&self, max: usize) -> (Vec<KeyHash>, usize) {
        // A list for each frequency in the small queue, then for each in the main queue: coldest
        // first.
        let mut degrees = [const { Vec::new() }; 2 * (FREQUENCY_MAX as usize + 1)];
        // Takes one bucket of each shard in turn. A tier that is refilled in this order fills its
        // shards alike.
        let (shards, of_shard) = (self.shards.len(), self.buckets.len() / self.shards.len());
        for first in (0..of_shard).step_by(64) {
            // Pinned anew for every 64 buckets of a shard, so that entries evicted meanwhile are
            // freed.
            let guard = epoch::pin();
            let next = (first..of_shard.min(first + 64)).flat_map(|n| (0..shards).map(move |shard| shard * of_shard + n));
            for at in next.flat_map(|bucket| self.nodes(bucket, &guard)) {
                let Node { frequency, in_main, hash, .. } = at.node();
                let proved = usize::from(in_main.load(Ordering::Relaxed)) * (FREQUENCY_MAX as usize + 1);
                degrees[proved + usize::from(frequency.load(Ordering::Relaxed).min(FREQUENCY_MAX))].push(*hash);
            }
        }
        let proved: usize = degrees[degrees.len() / 2..].iter().map(Vec::len).sum();
        let mut hottest: Vec<KeyHash> = Vec::new();
        for degree in degrees.iter_mut().rev() {
            // The first list is taken over without a copy. Each other one is freed once it is
            // copied.
            match hottest.is_empty() {
                true => hottest = std::mem::take(degree),
                false => hottest.extend(std::mem::take(degree)),
            }
        }
        hottest.truncate(max);
        (hottest, proved.min(max))
    }

    /// Whether the tier takes at least 15/16 of its budget.
    pub(crate) fn is_full(&self) -> bool {
        let budget = self.budget.load(Ordering::Relaxed) * self.shards.len() as u64;
        self.bytes() >= budget - budget / 16
    }
}

impl Drop for MemoryTier {
    fn drop(&mut self) {
        for bucket in &mut self.buckets {
            let mut next = *bucket.get_mut();
            while let Some(linked) = NonNull::new(next) {
                // SAFETY: `link` gave the tier a handle to each node in a bucket, and `retire`
                // takes back only those of unlinked nodes. `&mut self` proves that there is no
                // reader.
                let item = unsafe { Item::from_node(linked) };
                next = item.node().node().next.load(Ordering::Relaxed);
            }
        }
    }
}

/// The number of the part that a hash is in, if all hashes are divided into `parts` equal ones.
fn part(hash: KeyHash, parts: usize) -> usize {
    ((u128::from(hash.0) * parts as u128) >> u64::BITS) as usize
}

/// Bytes that an entry counts against the budget.
fn charge(at: NodeRef<'_>) -> u64 {
    at.held() + OVERHEAD
}

impl Shard {
    /// Takes in a node that was just linked.
    fn enter(&mut self, at: NodeRef<'_>, proved: bool) {
        self.bytes += charge(at);
        self.entries += 1;
        if proved || self.ghost_set.contains(&ghost(at.node().hash)) {
            self.push_main(at);
        } else {
            // SAFETY: the node was just linked, so it is in no queue and the tier has a handle to
            // it. `retire` gives that up, after `leave` or `replace` took the node out of its
            // queue.
            unsafe { self.small.push(at) };
            self.small_bytes += charge(at);
        }
    }

    /// Makes a node the newest of the main queue. It is in a queue.
    fn promote(&mut self, at: NodeRef<'_>) {
        self.withdraw(at);
        self.push_main(at);
    }

    /// Makes a node the newest of the main queue. It is linked and in no queue.
    fn push_main(&mut self, at: NodeRef<'_>) {
        at.node().in_main.store(true, Ordering::Relaxed);
        // SAFETY: `enter` has a node that was just linked, and `promote` has just withdrawn its
        // node, so the node is in no queue and the tier has a handle to it. `retire` gives that up,
        // after `leave` or `replace` took the node out of its queue.
        unsafe { self.main.push(at) };
    }

    /// Takes a node out of its queue.
    fn withdraw(&mut self, at: NodeRef<'_>) {
        if at.node().in_main.load(Ordering::Relaxed) {
            // SAFETY: a node that `enter` or `replace` took in and that did not leave is in the
            // queue that `in_main` names.
            unsafe { self.main.remove(at) };
        } else {
            // SAFETY: a node that `enter` or `replace` took in and that did not leave is in the
            // queue that `in_main` names.
            unsafe { self.small.remove(at) };
            self.small_bytes -= charge(at);
        }
    }

    /// Gives up a node that was unlinked under `guard`.
    fn leave(&mut self, at: NodeRef<'_>, guard: &Guard) {
        self.withdraw(at);
        self.entries -= 1;
        self.retire(at, guard);
    }

    /// Gives up `old`, which was unlinked under `guard`, and puts `new`, which was linked since,
    /// into its place. The queue and the frequency are inherited.
    fn replace(&mut self, old: NodeRef<'_>, new: NodeRef<'_>, guard: &Guard) {
        let (before, after) = (old.node(), new.node());
        after.frequency.store(before.frequency.load(Ordering::Relaxed), Ordering::Relaxed);
        after.in_main.store(before.in_main.load(Ordering::Relaxed), Ordering::Relaxed);
        if before.in_main.load(Ordering::Relaxed) {
            // SAFETY: `old` is in the queue that its `in_main` names. `new` was just linked, so it
            // is in no queue and the tier has a handle to it. `retire` gives that up, after `leave`
            // or `replace` took the node out of its queue.
            unsafe { self.main.replace(old, new) };
        } else {
            // SAFETY: `old` is in the queue that its `in_main` names. `new` was just linked, so it
            // is in no queue and the tier has a handle to it. `retire` gives that up, after `leave`
            // or `replace` took the node out of its queue.
            unsafe { self.small.replace(old, new) };
            self.small_bytes = self.small_bytes - charge(old) + charge(new);
        }
        self.bytes += charge(new);
        self.retire(old, guard);
    }

    /// Drops the tier's handle once no reader can come from a bucket. The node is out of its bucket
    /// and its queue.
    fn retire(&mut self, at: NodeRef<'_>, guard: &Guard) {
        let charge = charge(at);
        // SAFETY: `link` gave the handle to the tier. A node is unlinked once, and only `retire`
        // takes back the handle of an unlinked node.
        let item = unsafe { Item::from_node(at.as_non_null()) };
        guard.defer(move || drop(item));
        self.bytes -= charge;
        self.garbage += charge;
        if self.garbage > GARBAGE_MAX {
            // Without it the garbage waits in this thread's list until the list is full, which is
            // many bytes if values are large.
            guard.flush();
            self.garbage = 0;
        }
    }

    /// Adds the ghost of an entry that left the small queue unused.
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

/// The 32 bits of a hash that are remembered after an eviction.
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
        let meta = ItemMeta { hash: hash(n), namespace: NamespaceGeneration::FIRST, lsn: Lsn(lsn), expires_ms: None };
        Item::copied(meta, &n.to_le_bytes(), &vec![lsn as u8; len], &Meter::default())
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
    fn a_successor_takes_the_place_of_the_version_before() {
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
        // The version that an index would name, and the newest version whose successor is in place.
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
