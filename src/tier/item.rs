//! A record's key and value in DRAM: one counted allocation, shared by the memory tier and by
//! callers that hold the value.
//!
//! ```text
//! node (header, links, count of handles) | optional words | key | value, unless detached
//! ```
//! The links of the memory tier's buckets and queues are in the header, so a hit reaches the value
//! from its bucket without another pointer.
//!
//! [`Item`] owns one handle, which keeps the allocation. [`NodeRef`] borrows an allocation that a
//! handle keeps.
#![allow(unsafe_code, reason = "a counted allocation of a length known at run time, with links in it")]

use std::alloc::{self, Layout};
use std::fmt;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};

use bytes::Bytes;

use crate::id::{Key, KeyHash, Lsn, NamespaceGeneration};
use crate::io::aligned::{MAPPED_LEN_MIN, Meter};

/// The largest frequency. Uses beyond it are not counted.
pub(super) const FREQUENCY_MAX: u8 = 3;

/// The fields of an item besides key and value.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ItemMeta {
    pub(crate) hash: KeyHash,
    pub(crate) namespace: NamespaceGeneration,
    pub(crate) lsn: Lsn,
    pub(crate) expires_ms: Option<u64>,
}

/// A handle to a key and its value. The last handle frees the allocation.
pub(crate) struct Item(NonNull<Node>);

/// The front of an item's allocation.
///
/// After it come the optional words, the key, and the value unless that is detached.
#[derive(Debug)]
pub(super) struct Node {
    /// How many [`Item`]s point here. The memory tier's own handle counts as one.
    handles: AtomicU32,
    value_len: u32,
    key_len: u16,
    /// Uses, up to [`FREQUENCY_MAX`].
    pub(super) frequency: AtomicU8,
    /// Whether the node is in its shard's main queue. Stored under the shard's lock.
    pub(super) in_main: AtomicBool,
    /// Which words follow: a set of [`NAMESPACE`], [`EXPIRES`] and [`DETACHED`], in that order.
    optional_words: u8,
    /// The next node of the bucket. Stored under the shard's lock.
    pub(super) next: AtomicPtr<Node>,
    pub(super) hash: KeyHash,
    lsn: Lsn,
    /// The neighbours in the shard's queue. Loaded and stored under the shard's lock.
    pub(super) older: AtomicPtr<Node>,
    pub(super) newer: AtomicPtr<Node>,
    meter: Meter,
}

/// The word with the key's namespace. The first namespace has none.
const NAMESPACE: u8 = 1;
/// The word with the expiry in ms. An entry that does not expire has none.
const EXPIRES: u8 = 2;
/// The word with a pointer to a boxed [`Detached`]. A value that follows the key has none.
const DETACHED: u8 = 4;
const WORD: usize = size_of::<u64>();

/// A value in a buffer of its own, and the bytes of DRAM that the buffer takes.
type Detached = (Bytes, usize);

/// Bytes of DRAM that an item takes besides key, value, optional words and allocator overhead.
pub(super) const NODE_LEN: usize = size_of::<Node>();
const _: () = assert!(NODE_LEN <= 64 && align_of::<Node>() <= WORD && size_of::<*mut Detached>() <= WORD);

// SAFETY: a handle may end on another thread than it began on. The count is atomic, and the parts
// that the last handle drops (`Meter`, `Bytes`) are `Send`.
unsafe impl Send for Item {}
// SAFETY: the fields that change while handles are shared are atomics; all other bytes are written
// by `Item::new` before the first handle exists. `Meter` and `Bytes` are `Sync`.
unsafe impl Sync for Item {}

impl Item {
    /// Copies key and value. `meter` counts the bytes while the item lives.
    pub(crate) fn copied(meta: ItemMeta, key: &[u8], value: &[u8], meter: &Meter) -> Self {
        if key.len() + value.len() < MAPPED_LEN_MIN {
            return Self::new(meta, key, value, None, meter);
        }
        let buf = meter.copy(value);
        let held = buf.held();
        Self::sharing(meta, key, Bytes::from_owner(buf), held, meter)
    }

    /// Copies the key and shares the value, whose buffer takes `held` bytes that are counted
    /// already.
    pub(crate) fn sharing(meta: ItemMeta, key: &[u8], value: Bytes, held: usize, meter: &Meter) -> Self {
        Self::new(meta, key, &[], Some((value, held)), meter)
    }

    fn new(meta: ItemMeta, key: &[u8], inline: &[u8], detached: Option<Detached>, meter: &Meter) -> Self {
        let namespace = Some(meta.namespace.0).filter(|_| meta.namespace != NamespaceGeneration::FIRST);
        let value_len = detached.as_ref().map_or(inline.len(), |detached| detached.0.len());
        let (key_len, value_len) = (key.len().try_into().expect("keys are short"), value_len.try_into().expect("values are below 4 GiB"));
        let node = Node {
            handles: AtomicU32::new(1),
            value_len,
            key_len,
            frequency: AtomicU8::new(0),
            in_main: AtomicBool::new(false),
            optional_words: namespace.map_or(0, |_| NAMESPACE)
                | meta.expires_ms.map_or(0, |_| EXPIRES)
                | detached.as_ref().map_or(0, |_| DETACHED),
            next: AtomicPtr::default(),
            hash: meta.hash,
            lsn: meta.lsn,
            older: AtomicPtr::default(),
            newer: AtomicPtr::default(),
            meter: meter.clone(),
        };
        meter.add(node.own_len());
        let layout = node.layout();
        // SAFETY: the layout is not empty: it begins with a `Node`.
        let Some(at) = NonNull::new(unsafe { alloc::alloc(layout) }) else { alloc::handle_alloc_error(layout) };
        let at = at.cast::<Node>();
        // SAFETY: the allocation is new, aligned for a `Node` and has room for it.
        unsafe { at.write(node) };
        // SAFETY: the node is written, and the one handle that it counts is returned below.
        let node = unsafe { NodeRef::new(at) };
        for (which, number) in [(NAMESPACE, namespace), (EXPIRES, meta.expires_ms)] {
            if let (Some(to), Some(number)) = (node.word(which), number) {
                // SAFETY: the layout has room for each word in the set, the allocation is aligned
                // for words, and no other handle exists.
                unsafe { to.write(number) };
            }
        }
        if let (Some(to), Some(detached)) = (node.word(DETACHED), detached) {
            // SAFETY: the layout has room for this word, a pointer is no longer than a word, and no
            // other handle exists.
            unsafe { to.cast::<*mut Detached>().write(Box::into_raw(Box::new(detached))) };
        }
        let mut to = node.following_start();
        for part in [key, inline] {
            // SAFETY: the layout has room for key and inline value after the words. The source is
            // another allocation.
            unsafe { to.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            to = to.wrapping_add(part.len());
        }
        Self(at)
    }

    /// Gives the handle away. [`Item::from_node`] takes it back.
    pub(super) fn into_node(self) -> NonNull<Node> {
        let node = self.0;
        std::mem::forget(self);
        node
    }

    /// Takes a handle back.
    ///
    /// # Safety
    /// [`Item::into_node`] gave this handle away, and no other call takes it back.
    pub(super) unsafe fn from_node(node: NonNull<Node>) -> Self {
        Self(node)
    }

    /// The node, which this handle keeps.
    pub(super) fn node(&self) -> NodeRef<'_> {
        // SAFETY: this handle keeps the allocation at least as long as `self` is borrowed.
        unsafe { NodeRef::new(self.0) }
    }

    fn get(&self) -> &Node {
        self.node().node()
    }

    pub(crate) fn hash(&self) -> KeyHash {
        self.get().hash
    }

    pub(crate) fn lsn(&self) -> Lsn {
        self.get().lsn
    }

    pub(crate) fn expires_ms(&self) -> Option<u64> {
        self.node().number(EXPIRES)
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.node().following()[..self.get().key_len.into()]
    }

    pub(crate) fn value(&self) -> &[u8] {
        let node = self.node();
        node.detached().map_or_else(|| &node.following()[self.get().key_len.into()..], |detached| &detached.0)
    }

    fn namespace(&self) -> NamespaceGeneration {
        self.node().number(NAMESPACE).map_or(NamespaceGeneration::FIRST, NamespaceGeneration)
    }

    /// Whether this is the record of `key`.
    pub(crate) fn is_of(&self, key: Key<'_>) -> bool {
        self.namespace() == key.namespace && self.key() == key.bytes
    }

    /// The value as [`Bytes`], which keep the handle or share the detached buffer.
    pub(crate) fn into_bytes(self) -> Bytes {
        match self.node().detached() {
            Some(detached) => detached.0.clone(),
            None => Bytes::from_owner(ValueOf(self)),
        }
    }
}

impl Node {
    /// Bytes of the key, and of the value if it follows the key.
    fn following_len(&self) -> usize {
        usize::from(self.key_len) + if self.optional_words & DETACHED == 0 { self.value_len as usize } else { 0 }
    }

    fn words_len(&self) -> usize {
        self.optional_words.count_ones() as usize * WORD
    }

    /// Bytes allocated for this item, without the node, the detached buffer and allocator overhead.
    fn own_len(&self) -> usize {
        self.words_len() + self.following_len() + if self.optional_words & DETACHED == 0 { 0 } else { size_of::<Detached>() }
    }

    fn layout(&self) -> Layout {
        let whole = NODE_LEN + self.words_len() + self.following_len();
        Layout::from_size_align(whole, align_of::<Node>()).expect("a key and a value are shorter than the address space")
    }

    /// Counts one more handle.
    fn share(&self) {
        // Relaxed as in `Arc`: the caller's handle already keeps the node. The bound keeps handles
        // that are leaked in a loop from wrapping the count.
        if self.handles.fetch_add(1, Ordering::Relaxed) > u32::MAX / 2 {
            std::process::abort();
        }
    }
}

/// A node, and the proof that a handle keeps its allocation for `'a`.
///
/// It is a pointer and not a `&Node`: key, value and words are behind the node, and a reference to
/// the node may not reach them.
///
/// There are two kinds:
/// - [`Item::node`] borrows a handle, so `'a` is the borrow.
/// - The memory tier makes one of a node in a bucket or queue. There `'a` is the borrow of an epoch
///   guard: the tier drops its handle only when no guard is left that was pinned while the node was
///   linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeRef<'a> {
    at: NonNull<Node>,
    keeper: PhantomData<&'a Node>,
}

impl<'a> NodeRef<'a> {
    /// # Safety
    /// `at` points to a node that [`Item::new`] wrote, and a handle to it exists during all of
    /// `'a`.
    pub(super) unsafe fn new(at: NonNull<Node>) -> Self {
        Self { at, keeper: PhantomData }
    }

    pub(super) fn as_non_null(self) -> NonNull<Node> {
        self.at
    }

    pub(super) fn as_ptr(self) -> *mut Node {
        self.at.as_ptr()
    }

    pub(super) fn node(self) -> &'a Node {
        // SAFETY: `NodeRef::new` requires a written node and a handle that keeps it for `'a`. Only
        // its atomics change meanwhile.
        unsafe { self.at.as_ref() }
    }

    /// Another handle to the node.
    pub(super) fn item(self) -> Item {
        self.node().share();
        Item(self.at)
    }

    /// The place of an optional word. `None` if the node does not have it.
    fn word(self, which: u8) -> Option<*mut u64> {
        let words = self.node().optional_words;
        let before = (words & (which - 1)).count_ones() as usize;
        (words & which != 0).then(|| self.as_ptr().wrapping_add(1).cast::<u64>().wrapping_add(before))
    }

    fn number(self, which: u8) -> Option<u64> {
        // SAFETY: the node has this word. `Item::new` wrote it before it returned the first handle,
        // and it never changes.
        self.word(which).map(|word| unsafe { word.read() })
    }

    fn detached(self) -> Option<&'a Detached> {
        // SAFETY: the node has this word. `Item::new` wrote a pointer there before it returned the
        // first handle, and it never changes.
        let detached = self.word(DETACHED).map(|word| unsafe { word.cast::<*mut Detached>().read() });
        // SAFETY: `Item::new` took the pointer from a box, which the last handle frees. A handle
        // exists during `'a`.
        detached.map(|detached| unsafe { &*detached })
    }

    /// Where the key begins.
    fn following_start(self) -> *mut u8 {
        self.as_ptr().wrapping_add(1).cast::<u8>().wrapping_add(self.node().words_len())
    }

    /// The key, and the value if it follows the key.
    fn following(self) -> &'a [u8] {
        let len = self.node().following_len();
        // SAFETY: the allocation has `len` bytes here. `Item::new` wrote them before it returned
        // the first handle, they never change, and a handle exists during `'a`.
        unsafe { slice::from_raw_parts(self.following_start(), len) }
    }

    /// Bytes of DRAM that the item takes besides its node, with the buffer of a detached value.
    pub(super) fn held(self) -> u64 {
        let buffer = self.detached().map_or(0, |detached| detached.1);
        (self.node().own_len() + buffer) as u64
    }
}

impl Clone for Item {
    fn clone(&self) -> Self {
        self.node().item()
    }
}

impl Drop for Item {
    fn drop(&mut self) {
        if self.get().handles.fetch_sub(1, Ordering::Release) != 1 {
            return;
        }
        // Pairs with the release in `fetch_sub` above, done by every other handle when it ended.
        self.get().handles.load(Ordering::Acquire);
        let layout = self.get().layout();
        self.get().meter.subtract(self.get().own_len());
        if let Some(word) = self.node().word(DETACHED) {
            // SAFETY: the node has this word, and `new` wrote a pointer there.
            let detached = unsafe { word.cast::<*mut Detached>().read() };
            // SAFETY: `new` took the pointer from a box. The count reached 0, so no other handle
            // uses the box or frees it.
            drop(unsafe { Box::from_raw(detached) });
        }
        // SAFETY: the count reached 0, so nothing else uses the node.
        unsafe { ptr::drop_in_place(self.0.as_ptr()) };
        // SAFETY: `new` allocated it with this layout, which lengths that never change determine.
        unsafe { alloc::dealloc(self.0.as_ptr().cast(), layout) };
    }
}

impl fmt::Debug for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Item({} B of {:?})", self.value().len(), self.get())
    }
}

/// An item as the owner of its value's bytes.
struct ValueOf(Item);

impl AsRef<[u8]> for ValueOf {
    fn as_ref(&self) -> &[u8] {
        self.0.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_in_comes_out_and_nothing_is_left_counted() {
        let meter = Meter::default();
        let namespaces = [NamespaceGeneration::FIRST, NamespaceGeneration(9), NamespaceGeneration::CATALOG];
        let all = namespaces.into_iter().flat_map(|namespace| [None, Some(0), Some(u64::MAX)].map(|expires_ms| (namespace, expires_ms)));
        for (namespace, expires_ms) in all {
            let meta = ItemMeta { hash: KeyHash(7), namespace, lsn: Lsn(3), expires_ms };
            let buf = meter.copy(b"in a buffer");
            let kept = buf.held();
            let detached = Item::sharing(meta, b"key", Bytes::from_owner(buf), kept, &meter);
            let inline = Item::copied(meta, b"key", b"following", &meter);
            assert_eq!(detached.node().held() + inline.node().held(), meter.bytes());
            assert_eq!(detached.node().held() - inline.node().held() + 9, (kept + WORD + size_of::<Detached>()) as u64);
            for (item, value) in [(detached, &b"in a buffer"[..]), (inline, b"following")] {
                assert_eq!((item.hash(), item.lsn(), item.expires_ms(), item.namespace()), (KeyHash(7), Lsn(3), expires_ms, namespace));
                assert_eq!((item.key(), item.value()), (&b"key"[..], value));
                assert!(
                    item.is_of(Key { namespace, bytes: b"key" }) && !item.is_of(Key { namespace: NamespaceGeneration(8), bytes: b"key" })
                );
                assert_eq!(item.clone().into_bytes(), value);
            }
        }
        assert_eq!(meter.bytes(), 0);
    }
}
