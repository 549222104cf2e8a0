//! Buffers that direct I/O accepts, and the count of what buffers take.
#![allow(unsafe_code, reason = "an over-aligned allocation has no safe form in std")]

use std::alloc::{self, Layout};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::BLOCK;

/// Bytes of the buffers that it counts and that somebody still has.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meter(Arc<AtomicU64>);

impl Meter {
    pub(crate) fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// `bytes`, counted until the last handle and slice of it is dropped.
    pub(crate) fn hold(&self, bytes: Box<[u8]>) -> Bytes {
        let counted = self.count(bytes.len());
        Bytes::from_owner(Held { bytes, _counted: counted })
    }

    fn count(&self, len: usize) -> Counted {
        self.0.fetch_add(len as u64, Ordering::Relaxed);
        Counted { meter: Arc::clone(&self.0), len }
    }
}

/// A part of what a meter shows.
struct Counted {
    meter: Arc<AtomicU64>,
    len: usize,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.meter.fetch_sub(self.len as u64, Ordering::Relaxed);
    }
}

struct Held {
    bytes: Box<[u8]>,
    _counted: Counted,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// An owned, zero-initialised buffer that starts at a multiple of [`BLOCK`].
pub(crate) struct AlignedBuf {
    ptr: NonNull<u8>,
    len: usize,
    counted: Option<Counted>,
}

impl AlignedBuf {
    /// `len` zero bytes; `len` is at least 1.
    pub(crate) fn zeroed(len: usize) -> Self {
        assert!(len > 0, "an aligned buffer holds something");
        let layout = Self::layout(len);
        // SAFETY: the layout has a size above zero, asserted above.
        let raw = unsafe { alloc::alloc_zeroed(layout) };
        let Some(ptr) = NonNull::new(raw) else { alloc::handle_alloc_error(layout) };
        Self { ptr, len, counted: None }
    }

    /// As [`AlignedBuf::zeroed`], counted by `meter`.
    pub(crate) fn counted(len: usize, meter: &Meter) -> Self {
        Self::zeroed(len).counted_by(meter)
    }

    /// The same buffer, counted by `meter` and no longer by another.
    pub(crate) fn counted_by(mut self, meter: &Meter) -> Self {
        self.counted = Some(meter.count(self.len));
        self
    }

    fn layout(len: usize) -> Layout {
        Layout::from_size_align(len, BLOCK).expect("a buffer is far smaller than the address space")
    }
}

impl Drop for AlignedBuf {
    fn drop(&mut self) {
        // SAFETY: `ptr` came from `alloc_zeroed` with this very layout, since `len` never changes.
        unsafe { alloc::dealloc(self.ptr.as_ptr(), Self::layout(self.len)) };
    }
}

impl Deref for AlignedBuf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `ptr` owns `len` initialised bytes, and `&self` forbids writers.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len) }
    }
}

impl DerefMut for AlignedBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: `ptr` owns `len` initialised bytes, and `&mut self` is the only access.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len) }
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

// SAFETY: the buffer is owned plain memory without thread affinity; `Deref` and `DerefMut` follow the borrow rules.
unsafe impl Send for AlignedBuf {}
// SAFETY: `&AlignedBuf` only gives `&[u8]`, which any number of threads may read.
unsafe impl Sync for AlignedBuf {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_meter_shows_what_is_alive() {
        let (reads, values) = (Meter::default(), Meter::default());
        let buf = AlignedBuf::counted(3 * BLOCK, &reads);
        let small = values.hold(vec![7; 100].into());
        assert_eq!((reads.bytes(), values.bytes()), (3 * BLOCK as u64, 100));
        let large = Bytes::from_owner(buf.counted_by(&values)).slice(10..20);
        let clone = small.clone();
        drop(small);
        assert_eq!((reads.bytes(), values.bytes()), (0, 3 * BLOCK as u64 + 100));
        drop(large);
        assert_eq!(values.bytes(), 100);
        drop(clone);
        assert_eq!(values.bytes(), 0);
    }
}
