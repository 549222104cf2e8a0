//! One partition: an array of slots, sorted by value and so by tag, behind a seqlock.
//!
//! - Writers exclude each other by the seqlock's version. They move slots with relaxed stores.
//! - Readers take no lock. They search the array and start over if a writer came in between.
//! - A full array is replaced by a larger one, and one with much spare room by a smaller one. The
//!   epoch frees the old array once no reader can be in it (Fraser, 2004).
#![allow(unsafe_code, reason = "an array shared with readers that take no lock")]

use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::epoch::{self, Atomic, Guard, Owned, Pointer, Shared};

use super::geometry::Geometry;
use super::version::Version;

type Slots = [MaybeUninit<AtomicU64>];

#[derive(Debug)]
pub(super) struct Partition {
    version: Version,
    len: AtomicU32,
    slots: Atomic<Slots>,
}

impl Default for Partition {
    fn default() -> Self {
        Self { version: Version::default(), len: AtomicU32::new(0), slots: Atomic::null() }
    }
}

impl Drop for Partition {
    fn drop(&mut self) {
        let slots = std::mem::replace(&mut self.slots, Atomic::null());
        // SAFETY: `&mut self` proves that no reader or writer is left, and this partition alone
        // owns the array.
        drop(unsafe { slots.try_into_owned() });
    }
}

/// The number of slots in an array for `len` used ones.
///
/// A few are spare, so that an insert rarely copies the array. An empty partition has no array.
const fn capacity_for(len: usize) -> usize {
    if len == 0 { 0 } else { (len + 1 + len / 24).next_multiple_of(2) }
}

/// An array of `capacity` slots that begins with the `used` ones.
fn new_slots(capacity: usize, used: impl Iterator<Item = u64>) -> Owned<Slots> {
    let mut slots = Owned::<Slots>::init(capacity);
    for (slot, value) in slots.iter_mut().zip(used.chain(std::iter::repeat(0))) {
        slot.write(AtomicU64::new(value));
    }
    slots
}

/// The slots of an array. Null is an empty array.
fn view<'g>(slots: Shared<'g, Slots>) -> &'g [AtomicU64] {
    // SAFETY: `resize` leaves the freeing of an array to the epoch, which waits for the guard that
    // `'g` borrows. `drop` frees the last array when no method of the partition runs.
    let Some(slots) = (unsafe { slots.as_ref() }) else { return &[] };
    // SAFETY: `new_slots` initialises every slot before the array is shared, and `MaybeUninit<T>`
    // has the layout of `T`.
    unsafe { &*(std::ptr::from_ref::<Slots>(slots) as *const [AtomicU64]) }
}

fn values(slots: &[AtomicU64]) -> impl Iterator<Item = u64> {
    slots.iter().map(|slot| slot.load(Ordering::Relaxed))
}

/// The likely place of `tag` among `len` slots. It is a few slots off, since tags are uniform.
fn interpolate(geometry: &Geometry, len: usize, tag: u64) -> usize {
    ((u128::from(tag) * len as u128) >> geometry.tag_bits()) as usize
}

/// Starts to load the line at `address` into the processor's cache. The address need not be valid.
pub(super) fn prefetch(address: usize) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a prefetch is a hint and does not fault, so any address is allowed.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address));
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _no_such_hint = address;
}

/// The first slot whose tag is not below `tag`.
fn lower_bound(geometry: &Geometry, slots: &[AtomicU64], tag: u64) -> usize {
    let tag_at = |i: usize| geometry.tag_of(slots[i].load(Ordering::Relaxed));
    let mut i = interpolate(geometry, slots.len(), tag);
    while i < slots.len() && tag_at(i) < tag {
        i += 1;
    }
    while i > 0 && tag_at(i - 1) >= tag {
        i -= 1;
    }
    i
}

/// The place and value of the slot with this tag, or the place where it belongs.
fn search(geometry: &Geometry, slots: &[AtomicU64], tag: u64) -> Result<(usize, u64), usize> {
    let i = lower_bound(geometry, slots, tag);
    match slots.get(i).map(|s| s.load(Ordering::Relaxed)) {
        Some(slot) if geometry.tag_of(slot) == tag => Ok((i, slot)),
        _ => Err(i),
    }
}

impl Partition {
    /// Calls `read` with the used slots until it saw a consistent state.
    fn read<'g, R>(&self, guard: &'g Guard, mut read: impl FnMut(&'g [AtomicU64]) -> R) -> R {
        self.version.read(|| {
            let slots = view(self.slots.load(Ordering::Acquire, guard));
            let len = (self.len.load(Ordering::Relaxed) as usize).min(slots.len());
            read(&slots[..len])
        })
    }

    /// Calls `change` while other writers wait and readers start over.
    ///
    /// `change` gets the whole array and the number of used slots, and returns the new number.
    fn write<R>(&self, change: impl FnOnce(&Guard, &[AtomicU64], usize) -> (usize, R)) -> R {
        let guard = epoch::pin();
        self.version.write(|| {
            let slots = view(self.slots.load(Ordering::Relaxed, &guard));
            let (len, result) = change(&guard, slots, self.len.load(Ordering::Relaxed) as usize);
            self.len.store(len as u32, Ordering::Relaxed);
            result
        })
    }

    /// Replaces the array by one of `capacity` slots that begins with the `used` ones. Only inside
    /// `write`.
    ///
    /// Returns the change in capacity.
    fn resize(&self, guard: &Guard, used: impl Iterator<Item = u64>, capacity: usize) -> isize {
        let slots = if capacity == 0 { Shared::null() } else { new_slots(capacity, used).into_shared(guard) };
        let old = self.slots.swap(slots, Ordering::AcqRel, guard);
        let old_capacity = view(old).len();
        if !old.is_null() {
            // SAFETY: `swap` made the old array unreachable for new readers. Readers that have it
            // are pinned.
            unsafe { guard.defer_destroy(old) };
        }
        capacity as isize - old_capacity as isize
    }

    /// Starts to load the slots near `tag` into the processor's cache.
    pub(super) fn prefetch(&self, geometry: &Geometry, tag: u64, guard: &Guard) {
        let slots = self.slots.load(Ordering::Relaxed, guard).into_usize();
        let guess = interpolate(geometry, self.len.load(Ordering::Relaxed) as usize, tag);
        // The allocation begins with the number of slots, one word.
        prefetch(slots.wrapping_add((guess + 1) * size_of::<AtomicU64>()));
    }

    /// The slot with this tag, if there is one.
    pub(super) fn find(&self, geometry: &Geometry, tag: u64, guard: &Guard) -> Option<u64> {
        // Loads the slots and the number of slots, which the search needs first, at the same time.
        self.prefetch(geometry, tag, guard);
        self.read(guard, |slots| search(geometry, slots, tag).ok().map(|(_, slot)| slot))
    }

    /// Sets the slot with this slot's tag.
    ///
    /// Returns the slot that it replaces, and the change in capacity.
    pub(super) fn upsert(&self, geometry: &Geometry, slot: u64) -> (Option<u64>, isize) {
        self.write(|guard, slots, len| {
            let at = match search(geometry, &slots[..len], geometry.tag_of(slot)) {
                Ok((i, old)) => {
                    slots[i].store(slot, Ordering::Relaxed);
                    return (len, (Some(old), 0));
                }
                Err(at) => at,
            };
            let mut grown = 0;
            let mut slots = slots;
            if len == slots.len() {
                grown = self.resize(guard, values(&slots[..len]), capacity_for(len + 1));
                slots = view(self.slots.load(Ordering::Relaxed, guard));
            }
            for i in (at..len).rev() {
                slots[i + 1].store(slots[i].load(Ordering::Relaxed), Ordering::Relaxed);
            }
            slots[at].store(slot, Ordering::Relaxed);
            (len + 1, (None, grown))
        })
    }

    /// Removes the slot with this tag if `condition` holds for it.
    ///
    /// Returns the slot that was removed, and the change in capacity.
    pub(super) fn remove(&self, geometry: &Geometry, tag: u64, condition: impl Fn(u64) -> bool) -> (Option<u64>, isize) {
        self.write(|guard, slots, len| match search(geometry, &slots[..len], tag) {
            Ok((at, old)) if condition(old) => {
                for i in at + 1..len {
                    slots[i - 1].store(slots[i].load(Ordering::Relaxed), Ordering::Relaxed);
                }
                let (len, wanted) = (len - 1, capacity_for(len - 1));
                let grown =
                    if slots.len() >= wanted + wanted / 8 + 4 || len == 0 { self.resize(guard, values(&slots[..len]), wanted) } else { 0 };
                (len, (Some(old), grown))
            }
            _ => (len, (None, 0)),
        })
    }

    /// Sets the heat bit of the slot with this tag if `condition` holds for it.
    ///
    /// It takes no lock, and writers move slots by separate loads and stores. So the bit may be
    /// lost, or be set in a copy that is about to be overwritten. Both are harmless.
    pub(super) fn warm(&self, geometry: &Geometry, tag: u64, condition: impl Fn(u64) -> bool) {
        let guard = epoch::pin();
        let slots = view(self.slots.load(Ordering::Acquire, &guard));
        let len = (self.len.load(Ordering::Relaxed) as usize).min(slots.len());
        if let Ok((i, slot)) = search(geometry, &slots[..len], tag)
            && slot & geometry.heat_mask() == 0
            && condition(slot)
        {
            let hot = slot | geometry.heat_mask();
            let _raced = slots[i].compare_exchange(slot, hot, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    /// Copies all used slots.
    pub(super) fn copy(&self, guard: &Guard, out: &mut Vec<u64>) {
        self.read(guard, |slots| {
            out.clear();
            out.extend(slots.iter().map(|s| s.load(Ordering::Relaxed)));
        });
    }

    /// Replaces all slots by sorted ones. Returns the change in capacity.
    pub(super) fn replace(&self, new: &[u64]) -> isize {
        self.write(|guard, slots, _| {
            if new.len() > slots.len() || capacity_for(new.len()) < slots.len() {
                return (new.len(), self.resize(guard, new.iter().copied(), capacity_for(new.len())));
            }
            for (to, from) in slots.iter().zip(new) {
                to.store(*from, Ordering::Relaxed);
            }
            (new.len(), 0)
        })
    }
}
