//! A record's key and value in DRAM: one allocation for both and what is known of them, shared by the memory tier and by users that have the value.
//!
//! Its links are the memory tier's, so that a hit leads from a bucket to the value without another step.
#![allow(unsafe_code, reason = "a counted allocation of a length known at run time, with links in it")]

use std::alloc::{self, Layout};
use std::fmt;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering};

use bytes::Bytes;

use crate::id::{Key, KeyHash, Lsn, Scope};
use crate::io::aligned::{MAPPED_LEN_MIN, Meter};

/// Frequencies saturate here.
pub(super) const FREQUENCY_MAX: u8 = 3;

/// What an item knows besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About {
    pub(crate) hash: KeyHash,
    pub(crate) scope: Scope,
    pub(crate) lsn: Lsn,
    pub(crate) expires_ms: Option<u64>,
}

/// A counted handle.
pub(crate) struct Item(NonNull<Node>);

/// The front of the allocation. The key follows, and then the value, unless that is in a buffer of its own.
#[derive(Debug)]
#[repr(C)]
pub(super) struct Node {
    handles: AtomicUsize,
    /// The next one in its bucket. Changed under the shard's lock.
    pub(super) next: AtomicPtr<Node>,
    pub(super) about: About,
    key_len: u16,
    pub(super) frequency: AtomicU8,
    /// In which of its shard's queues it is. Guarded by the shard's lock.
    pub(super) in_main: AtomicBool,
    value_len: u32,
    /// The value, if it does not follow the key, and the bytes of DRAM that it keeps.
    apart: Option<Box<(Bytes, usize)>>,
    /// Its neighbours in its shard's queue. Guarded by the shard's lock.
    pub(super) older: AtomicPtr<Node>,
    pub(super) newer: AtomicPtr<Node>,
    meter: Meter,
}

/// Bytes of DRAM that an item takes besides key and value, without what its allocator adds.
pub(super) const NODE_LEN: usize = size_of::<Node>();

// SAFETY: what is shared is atomic or never changes after the allocation was filled.
unsafe impl Send for Item {}
// SAFETY: as above.
unsafe impl Sync for Item {}

impl Item {
    /// A copy of key and value, counted by `meter`.
    pub(crate) fn copied(about: About, key: &[u8], value: &[u8], meter: &Meter) -> Self {
        if key.len() + value.len() < MAPPED_LEN_MIN {
            return Self::new(about, key, value, None, meter);
        }
        let buf = meter.copy(value);
        let held = buf.held();
        Self::sharing(about, key, Bytes::from_owner(buf), held, meter)
    }

    /// A copy of the key, with a value that keeps `held` bytes of DRAM, which are counted already.
    pub(crate) fn sharing(about: About, key: &[u8], value: Bytes, held: usize, meter: &Meter) -> Self {
        Self::new(about, key, &[], Some(Box::new((value, held))), meter)
    }

    fn new(about: About, key: &[u8], inline: &[u8], apart: Option<Box<(Bytes, usize)>>, meter: &Meter) -> Self {
        let value_len = apart.as_ref().map_or(inline.len(), |apart| apart.0.len());
        let (key_len, value_len) = (key.len().try_into().expect("keys are short"), value_len.try_into().expect("values are below 4 GiB"));
        meter.add(key.len() + inline.len());
        let node = Node {
            handles: AtomicUsize::new(1),
            next: AtomicPtr::default(),
            about,
            key_len,
            frequency: AtomicU8::new(0),
            in_main: AtomicBool::new(false),
            value_len,
            apart,
            older: AtomicPtr::default(),
            newer: AtomicPtr::default(),
            meter: meter.clone(),
        };
        let layout = node.layout();
        // SAFETY: the layout is that of a node and more, so not empty.
        let Some(at) = NonNull::new(unsafe { alloc::alloc(layout) }) else { alloc::handle_alloc_error(layout) };
        let at = at.cast::<Node>();
        // SAFETY: the allocation is aligned for a node and has room for it; nobody else knows of it yet.
        unsafe { at.write(node) };
        let mut to = following(at);
        for part in [key, inline] {
            // SAFETY: the layout has room for both behind the node.
            unsafe { to.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            to = to.wrapping_add(part.len());
        }
        Self(at)
    }

    /// Gives the handle away, to be taken back by [`Item::from_node`].
    pub(super) fn into_node(self) -> NonNull<Node> {
        let node = self.0;
        std::mem::forget(self);
        node
    }

    /// Takes a handle back.
    ///
    /// # Safety
    /// It was given away by [`Item::into_node`], and is taken back once.
    pub(super) unsafe fn from_node(node: NonNull<Node>) -> Self {
        Self(node)
    }

    /// Another handle to a node that somebody has one to.
    ///
    /// # Safety
    /// There is a handle to it, which is not dropped before this returns.
    pub(super) unsafe fn of(node: NonNull<Node>) -> Self {
        // SAFETY: as the caller promised.
        unsafe { node.as_ref() }.share();
        Self(node)
    }

    pub(super) fn node(&self) -> NonNull<Node> {
        self.0
    }

    fn get(&self) -> &Node {
        // SAFETY: a handle keeps the node.
        unsafe { self.0.as_ref() }
    }

    pub(crate) fn hash(&self) -> KeyHash {
        self.get().about.hash
    }

    pub(crate) fn lsn(&self) -> Lsn {
        self.get().about.lsn
    }

    pub(crate) fn expires_ms(&self) -> Option<u64> {
        self.get().about.expires_ms
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.following()[..self.get().key_len.into()]
    }

    pub(crate) fn value(&self) -> &[u8] {
        let node = self.get();
        node.apart.as_ref().map_or_else(|| &self.following()[node.key_len.into()..], |apart| &apart.0)
    }

    /// Whether this is the record of `key`.
    pub(crate) fn is_of(&self, key: Key<'_>) -> bool {
        self.get().about.scope == key.scope && self.key() == key.bytes
    }

    /// The value, as long as anybody wants it.
    pub(crate) fn into_bytes(self) -> Bytes {
        match &self.get().apart {
            Some(apart) => apart.0.clone(),
            None => Bytes::from_owner(ValueOf(self)),
        }
    }

    fn following(&self) -> &[u8] {
        let len = self.get().following_len();
        // SAFETY: so many bytes follow the node, written by `new` before there was a handle and never changed.
        unsafe { slice::from_raw_parts(following(self.0), len) }
    }
}

impl Node {
    /// Bytes of key and value, where the value is in a buffer that is longer, that buffer's.
    pub(super) fn held(&self) -> u64 {
        let apart = self.apart.as_ref().map_or(0, |apart| apart.1);
        (self.following_len() + apart) as u64
    }

    /// Bytes that follow the node in its allocation.
    fn following_len(&self) -> usize {
        usize::from(self.key_len) + if self.apart.is_none() { self.value_len as usize } else { 0 }
    }

    fn layout(&self) -> Layout {
        let whole = NODE_LEN + self.following_len();
        Layout::from_size_align(whole, align_of::<Node>()).expect("a key and a value are shorter than the address space")
    }

    fn share(&self) {
        // As in `Arc`: whoever shares has a handle, so nothing needs to be ordered.
        self.handles.fetch_add(1, Ordering::Relaxed);
    }
}

/// A node that the memory tier has a handle to, as it does to each that is linked, and to one that was unlinked until it is retired. The tier's code keeps to that: whoever looks at a
/// node holds the lock of its shard, under which it is unlinked, or a guard of the epoch, which keeps the handle.
pub(super) fn node<'a>(at: NonNull<Node>) -> &'a Node {
    // SAFETY: the handle keeps it.
    unsafe { at.as_ref() }
}

/// Where the bytes are that follow a node in its allocation.
fn following(node: NonNull<Node>) -> *mut u8 {
    node.as_ptr().wrapping_add(1).cast()
}

impl Clone for Item {
    fn clone(&self) -> Self {
        self.get().share();
        Self(self.0)
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        if self.get().handles.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Pairs with the release of every other handle's end.
        self.get().handles.load(Ordering::Acquire);
        let layout = self.get().layout();
        self.get().meter.subtract(self.get().following_len());
        // SAFETY: this was the last handle, so nobody else has the node.
        unsafe { ptr::drop_in_place(self.0.as_ptr()) };
        // SAFETY: it was allocated with this layout.
        unsafe { alloc::dealloc(self.0.as_ptr().cast(), layout) };
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Item({} B of {:?})", self.value().len(), self.get().about)
    }
}

/// An item as the owner of its value's bytes.
struct ValueOf(Item);

impl AsRef<[u8]> for ValueOf {
    fn as_ref(&self) -> &[u8] {
        self.0.value()
    }
}
