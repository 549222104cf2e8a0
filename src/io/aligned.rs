//! Buffers for direct I/O, the pool that keeps them, and the meter that counts their bytes.
//!
//! A general allocator serves such buffers badly. Aligned pieces of a few KiB leave holes between
//! small allocations, and large pieces that come and go leave larger holes. The process would grow
//! beyond the bytes it has allocated. So buffers of small reads are kept and reused, and large
//! buffers are mappings of their own.
#![allow(unsafe_code, reason = "an over-aligned allocation has no safe form in std")]

use std::alloc::{self, Layout};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;
use memmap2::MmapMut;

use super::BLOCK;

/// A buffer of at least this many bytes is a mapping of its own.
pub(crate) const MAPPED_LEN_MIN: usize = 128 << 10;
/// Number of buffers of this process that are mappings.
static MAPPED: AtomicUsize = AtomicUsize::new(0);
/// Most buffers that are mappings. By default a process may have 65,530 mappings in all, and other
/// code needs some.
const MAPPED_MAX: usize = 16 << 10;
/// Lengths of the buffers that a pool keeps.
const POOLED: [usize; 3] = [BLOCK, 2 * BLOCK, 4 * BLOCK];

/// Bytes of live buffers, of those that it counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter(Arc<AtomicU64>);

impl Meter {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn add(&self, len: usize) {
        self.0.fetch_add(len as u64, Ordering::Relaxed);
    }

    pub(crate) fn subtract(&self, len: usize) {
        self.0.fetch_sub(len as u64, Ordering::Relaxed);
    }

    /// A copy of `bytes`, counted as long as it lives.
    pub(crate) fn copy(&self, bytes: &[u8]) -> AlignedBuf {
        let mut buf = AlignedBuf::counted(bytes.len(), self);
        buf.copy_from_slice(bytes);
        buf
    }

    fn count(&self, len: usize) -> Counted {
        self.add(len);
        Counted { meter: self.clone(), len }
    }
}

/// The share of one buffer in a meter. Subtracted when it is dropped.
struct Counted {
    meter: Meter,
    len: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.meter.subtract(self.len);
    }
}

/// Memory that starts at a multiple of [`BLOCK`].
enum Raw {
    Heap { ptr: NonNull<u8>, capacity: usize },
    Mapped(MmapMut),
}

impl Raw {
    fn zeroed(capacity: usize) -> Self {
        if capacity >= MAPPED_LEN_MIN
            && MAPPED.load(Ordering::Relaxed) < MAPPED_MAX
            && let Ok(map) = MmapMut::map_anon(capacity)
        {
            MAPPED.fetch_add(1, Ordering::Relaxed);
            return Self::Mapped(map);
        }
        let layout = Self::layout(capacity);
        // SAFETY: the layout has a size above zero. `AlignedBuf::zeroed` asserts that of its
        // length, and `BufferPool::take` passes a length of `POOLED`.
        let raw = unsafe { alloc::alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { alloc::handle_alloc_error(layout) };
        Self::Heap { ptr, capacity }
    }

    fn layout(capacity: usize) -> Layout {
        Layout::from_size_align(capacity, BLOCK).expect("a buffer is far smaller than the address space")
    }

    fn bytes(&self) -> &[u8] {
        match self {
            // SAFETY: `ptr` owns `capacity` initialised bytes, and `&self` forbids writers.
            Self::Heap { ptr, capacity } => unsafe { std::slice::from_raw_parts(ptr.as_ptr(), *capacity) },
            Self::Mapped(map) => map,
        }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            // SAFETY: `ptr` owns `capacity` initialised bytes, and `&mut self` is the only access.
            Self::Heap { ptr, capacity } => unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), *capacity) },
            Self::Mapped(map) => map,
        }
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        match self {
            // SAFETY: `ptr` came from `alloc_zeroed` with this very layout, since `capacity` never
            // changes.
            Self::Heap { ptr, capacity } => unsafe { alloc::dealloc(ptr.as_ptr(), Self::layout(*capacity)) },
            Self::Mapped(_) => drop(MAPPED.fetch_sub(1, Ordering::Relaxed)),
        }
    }
}

// SAFETY: the memory is owned and has no thread affinity; `bytes` and `bytes_mut` follow the borrow
// rules.
unsafe impl Send for Raw {}
// SAFETY: `&Raw` only gives `&[u8]`, which any number of threads may read.
unsafe impl Sync for Raw {}

/// Words that start at a multiple of [`BLOCK`] and are zero at first. A page that is never stored
/// to takes no memory, if there are enough words for a mapping.
pub(crate) struct ZeroedWords {
    words: NonNull<AtomicU64>,
    len: usize,
    /// The memory of `words`, which is not used but through them.
    _memory: Raw,
}

impl ZeroedWords {
    /// `len` words.
    pub(crate) fn new(len: usize) -> Self {
        let mut memory = Raw::zeroed((len * size_of::<AtomicU64>()).max(BLOCK));
        let words = NonNull::from(memory.bytes_mut()).cast();
        Self { words, len, _memory: memory }
    }
}

impl Deref for ZeroedWords {
    type Target = [AtomicU64];
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: `words` points to `len` initialised words, aligned to a page, which `_memory`
        // owns as long as `self` lives. They are accessed through these atomics alone.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.len) }
    }
}

impl fmt::Debug for ZeroedWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ZeroedWords({})", self.len)
    }
}

// SAFETY: the memory is owned and has no thread affinity.
unsafe impl Send for ZeroedWords {}
// SAFETY: `&ZeroedWords` only gives atomics, which any number of threads may use.
unsafe impl Sync for ZeroedWords {}

/// Buffers of ended reads, kept for later reads.
#[derive(Clone)]
pub(crate) struct BufferPool(Arc<[ArrayQueue<Raw>; 3]>);

impl BufferPool {
    /// A pool that keeps about `bytes` at most.
    pub(crate) fn new(bytes: u64) -> Self {
        let count = |len: usize| (bytes as usize / POOLED.len() / len).max(1);
        Self(Arc::new(POOLED.map(|len| ArrayQueue::new(count(len)))))
    }

    /// Bytes that the pool keeps at most.
    pub(crate) fn bytes_max(&self) -> u64 {
        self.0.iter().zip(POOLED).map(|(queue, len)| (queue.capacity() * len) as u64).sum()
    }

    /// Bytes that the pool keeps now.
    fn bytes(&self) -> u64 {
        self.0.iter().zip(POOLED).map(|(queue, len)| (queue.len() * len) as u64).sum()
    }

    /// A buffer of `len` bytes, at least 1, counted by `meter`. It may hold bytes of an earlier
    /// read.
    pub(crate) fn take(&self, len: usize, meter: &Meter) -> AlignedBuf {
        let Some(class) = POOLED.iter().position(|pooled| *pooled >= len) else { return AlignedBuf::counted(len, meter) };
        assert!(len > 0, "an aligned buffer is not empty");
        let raw = self.0[class].pop().unwrap_or_else(|| Raw::zeroed(POOLED[class]));
        let buf = AlignedBuf { raw: Some(raw), len, counted: None, home: Some((self.clone(), class)) };
        buf.counted_by(meter)
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool({} B)", self.bytes())
    }
}

/// An owned, initialised buffer that starts at a multiple of [`BLOCK`].
pub(crate) struct AlignedBuf {
    /// `None` only during `drop`.
    raw: Option<Raw>,
    len: usize,
    counted: Option<Counted>,
    /// The pool that the buffer returns to, and its length class there.
    home: Option<(BufferPool, usize)>,
}

impl AlignedBuf {
    /// `len` zero bytes; `len` is at least 1.
    pub(crate) fn zeroed(len: usize) -> Self {
        assert!(len > 0, "an aligned buffer is not empty");
        Self { raw: Some(Raw::zeroed(len)), len, counted: None, home: None }
    }

    /// `len` zero bytes, counted by `meter`. `len` is at least 1.
    pub(crate) fn counted(len: usize, meter: &Meter) -> Self {
        Self::zeroed(len).counted_by(meter)
    }

    /// The same buffer, counted by `meter` and no longer by another meter.
    pub(crate) fn counted_by(mut self, meter: &Meter) -> Self {
        self.counted = Some(meter.count(self.raw().len()));
        self
    }

    /// Bytes that the buffer occupies.
    pub(crate) fn held(&self) -> usize {
        self.raw().len()
    }

    fn raw(&self) -> &[u8] {
        self.raw.as_ref().expect("the memory is there until the buffer is dropped").bytes()
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        if let (Some((pool, class)), Some(raw)) = (&self.home, self.raw.take()) {
            // A full pool gives the buffer back, and it is freed.
            let _full = pool.0[*class].push(raw);
        }
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.raw()[..self.len]
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        let raw = self.raw.as_mut().expect("the memory is there until the buffer is dropped");
        &mut raw.bytes_mut()[..self.len]
    }
}

impl AsRef<[u8]> for AlignedBuf {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for AlignedBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AlignedBuf({} B)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn buffers_are_aligned_and_zero_and_return_to_their_pool() {
        for len in [1, 100, BLOCK, 5 * BLOCK, MAPPED_LEN_MIN, 3 * MAPPED_LEN_MIN + 1] {
            let mut buf = AlignedBuf::zeroed(len);
            assert_eq!((buf.len(), buf.as_ptr().addr() % BLOCK), (len, 0));
            assert!(buf.iter().all(|b| *b == 0));
            buf.fill(1);
        }
        let (pool, meter) = (BufferPool::new(64 << 10), Meter::default());
        let mut first = pool.take(1_000, &meter);
        first.fill(7);
        let place = first.as_ptr();
        assert_eq!((meter.bytes(), pool.bytes()), (BLOCK as u64, 0));
        drop(first);
        assert_eq!((meter.bytes(), pool.bytes()), (0, BLOCK as u64));
        let again = pool.take(BLOCK, &meter);
        assert_eq!((again.as_ptr(), again[0], pool.bytes()), (place, 7, 0));
        let many: Vec<_> = (0..100).map(|_| pool.take(3 * BLOCK, &meter)).collect();
        drop((many, again));
        assert!(pool.bytes() <= 64 << 10, "{}", pool.bytes());
        assert_eq!(pool.take(9 * BLOCK, &meter).len(), 9 * BLOCK);
        assert_eq!(meter.bytes(), 0);
    }

    #[test]
    fn a_meter_shows_what_is_alive() {
        let (reads, values) = (Meter::default(), Meter::default());
        let buf = AlignedBuf::counted(3 * BLOCK, &reads);
        let copy = values.copy(&[7; 100]);
        assert_eq!((&copy[..], copy.held()), (&[7; 100][..], 100));
        values.add(100);
        assert_eq!((reads.bytes(), values.bytes()), (3 * BLOCK as u64, 200));
        let large = Bytes::from_owner(buf.counted_by(&values)).slice(10..20);
        let clone = large.clone();
        drop(large);
        assert_eq!((reads.bytes(), values.bytes()), (0, 3 * BLOCK as u64 + 200));
        drop((clone, copy));
        values.subtract(100);
        assert_eq!(values.bytes(), 0);
    }
}
