//! A record's key and value in DRAM: one allocation for both and what is known of them, shared by the memory tier and by users that have the value.
//!
//! Its links are the memory tier's, so that a hit leads from a bucket to the value without another step.
#![allow(unsafe_code, reason = "a counted allocation of a length known at run time, with links in it")]

use std::alloc::{self, Layout};
use std::fmt;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicU32, Ordering};

use bytes::Bytes;

use crate::id::{Key, KeyHash, Lsn, NamespaceGeneration};
use crate::io::aligned::{MAPPED_LEN_MIN, Meter};

/// Frequencies saturate here.
pub(super) const FREQUENCY_MAX: u8 = 3;

/// What an item knows besides its bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ItemMeta {
    pub(crate) hash: KeyHash,
    pub(crate) namespace: NamespaceGeneration,
    pub(crate) lsn: Lsn,
    pub(crate) expires_ms: Option<u64>,
}

/// A counted handle.
pub(crate) struct Item(NonNull<Node>);

/// The front of the allocation. What few items have follows, a word each; then the key; and then the value, unless that is in a buffer of its own.
#[derive(Debug)]
pub(super) struct Node {
    handles: AtomicU32,
    value_len: u32,
    key_len: u16,
    pub(super) frequency: AtomicU8,
    /// In which of its shard's queues it is. Guarded by the shard's lock.
    pub(super) in_main: AtomicBool,
    /// The words that follow: of [`NAMESPACE`], [`EXPIRES`] and [`APART`], in that order.
    words: u8,
    /// The next one in its bucket. Changed under the shard's lock.
    pub(super) next: AtomicPtr<Node>,
    pub(super) hash: KeyHash,
    lsn: Lsn,
    /// Its neighbours in its shard's queue. Guarded by the shard's lock.
    pub(super) older: AtomicPtr<Node>,
    pub(super) newer: AtomicPtr<Node>,
    meter: Meter,
}

/// The number of the key's namespace, unless that is the first.
const NAMESPACE: u8 = 1;
/// When it expires, ms, if it does.
const EXPIRES: u8 = 2;
/// A box with the value that does not follow the key.
const APART: u8 = 4;
const WORD: usize = size_of::<u64>();

/// A value in a buffer of its own, and the bytes of DRAM that it keeps.
type Detached = (Bytes, usize);

/// Bytes of DRAM that an item takes besides key and value, without what its allocator adds and the words that few have.
pub(super) const NODE_LEN: usize = size_of::<Node>();
const _: () = assert!(NODE_LEN <= 64 && align_of::<Node>() <= WORD && size_of::<*mut Detached>() <= WORD);

// SAFETY: what is shared is atomic or never changes after the allocation was filled.
unsafe impl Send for Item {}
// SAFETY: as above.
unsafe impl Sync for Item {}

impl Item {
    /// A copy of key and value, counted by `meter`.
    pub(crate) fn copied(about: ItemMeta, key: &[u8], value: &[u8], meter: &Meter) -> Self {
        if key.len() + value.len() < MAPPED_LEN_MIN {
            return Self::new(about, key, value, None, meter);
        }
        let buf = meter.copy(value);
        let held = buf.held();
        Self::sharing(about, key, Bytes::from_owner(buf), held, meter)
    }

    /// A copy of the key, with a value that keeps `held` bytes of DRAM, which are counted already.
    pub(crate) fn sharing(about: ItemMeta, key: &[u8], value: Bytes, held: usize, meter: &Meter) -> Self {
        Self::new(about, key, &[], Some((value, held)), meter)
    }

    fn new(about: ItemMeta, key: &[u8], inline: &[u8], apart: Option<Detached>, meter: &Meter) -> Self {
        let namespace = Some(about.namespace.0).filter(|_| about.namespace != NamespaceGeneration::FIRST);
        let value_len = apart.as_ref().map_or(inline.len(), |apart| apart.0.len());
        let (key_len, value_len) = (key.len().try_into().expect("keys are short"), value_len.try_into().expect("values are below 4 GiB"));
        let node = Node {
            handles: AtomicU32::new(1),
            value_len,
            key_len,
            frequency: AtomicU8::new(0),
            in_main: AtomicBool::new(false),
            words: namespace.map_or(0, |_| NAMESPACE) | about.expires_ms.map_or(0, |_| EXPIRES) | apart.as_ref().map_or(0, |_| APART),
            next: AtomicPtr::default(),
            hash: about.hash,
            lsn: about.lsn,
            older: AtomicPtr::default(),
            newer: AtomicPtr::default(),
            meter: meter.clone(),
        };
        meter.add(node.own_len());
        let layout = node.layout();
        // SAFETY: the layout is that of a node and more, so not empty.
        let Some(at) = NonNull::new(unsafe { alloc::alloc(layout) }) else { alloc::handle_alloc_error(layout) };
        let at = at.cast::<Node>();
        // SAFETY: the allocation is aligned for a node and has room for it; nobody else knows of it yet.
        unsafe { at.write(node) };
        for (which, number) in [(NAMESPACE, namespace), (EXPIRES, about.expires_ms)] {
            if let (Some(to), Some(number)) = (word(at, which), number) {
                // SAFETY: the layout has room for the words that the node has, and the allocation is aligned for them.
                unsafe { to.write(number) };
            }
        }
        if let (Some(to), Some(apart)) = (word(at, APART), apart) {
            // SAFETY: as above; a pointer is no longer than a word.
            unsafe { to.cast::<*mut Detached>().write(Box::into_raw(Box::new(apart))) };
        }
        let mut to = following(at);
        for part in [key, inline] {
            // SAFETY: the layout has room for both behind the words.
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
        self.get().hash
    }

    pub(crate) fn lsn(&self) -> Lsn {
        self.get().lsn
    }

    pub(crate) fn expires_ms(&self) -> Option<u64> {
        number(self.0, EXPIRES)
    }

    pub(crate) fn key(&self) -> &[u8] {
        &self.following()[..self.get().key_len.into()]
    }

    pub(crate) fn value(&self) -> &[u8] {
        apart(self.0).map_or_else(|| &self.following()[self.get().key_len.into()..], |apart| &apart.0)
    }

    fn namespace(&self) -> NamespaceGeneration {
        number(self.0, NAMESPACE).map_or(NamespaceGeneration::FIRST, NamespaceGeneration)
    }

    /// Whether this is the record of `key`.
    pub(crate) fn is_of(&self, key: Key<'_>) -> bool {
        self.namespace() == key.namespace && self.key() == key.bytes
    }

    /// The value, as long as anybody wants it.
    pub(crate) fn into_bytes(self) -> Bytes {
        match apart(self.0) {
            Some(apart) => apart.0.clone(),
            None => Bytes::from_owner(ValueOf(self)),
        }
    }

    fn following(&self) -> &[u8] {
        let len = self.get().following_len();
        // SAFETY: so many bytes follow the words, written by `new` before there was a handle and never changed.
        unsafe { slice::from_raw_parts(following(self.0), len) }
    }
}

impl Node {
    /// Bytes of the key, and of the value if it follows.
    fn following_len(&self) -> usize {
        usize::from(self.key_len) + if self.words & APART == 0 { self.value_len as usize } else { 0 }
    }

    fn words_len(&self) -> usize {
        self.words.count_ones() as usize * WORD
    }

    /// Bytes of what was allocated for it alone, without the node.
    fn own_len(&self) -> usize {
        self.words_len() + self.following_len() + if self.words & APART == 0 { 0 } else { size_of::<Detached>() }
    }

    fn layout(&self) -> Layout {
        let whole = NODE_LEN + self.words_len() + self.following_len();
        Layout::from_size_align(whole, align_of::<Node>()).expect("a key and a value are shorter than the address space")
    }

    fn share(&self) {
        // As in `Arc`: whoever shares has a handle, so nothing needs to be ordered, and handles that are forgotten without end must not wrap round.
        if self.handles.fetch_add(1, Ordering::Relaxed) > u32::MAX / 2 {
            std::process::abort();
        }
    }
}

/// A node that the memory tier has a handle to, as it does to each that is linked, and to one that was unlinked until it is retired. The tier's code keeps to that: whoever looks at a
/// node holds the lock of its shard, under which it is unlinked, or a guard of the epoch, which keeps the handle.
pub(super) fn node<'a>(at: NonNull<Node>) -> &'a Node {
    // SAFETY: the handle keeps it.
    unsafe { at.as_ref() }
}

/// Where a word is, if the node has it.
fn word(at: NonNull<Node>, which: u8) -> Option<*mut u64> {
    let words = node(at).words;
    let before = (words & (which - 1)).count_ones() as usize;
    (words & which != 0).then(|| at.as_ptr().wrapping_add(1).cast::<u64>().wrapping_add(before))
}

fn number(at: NonNull<Node>, which: u8) -> Option<u64> {
    // SAFETY: the node has this word, which `new` wrote before there was a handle, and it never changes.
    word(at, which).map(|word| unsafe { word.read() })
}

fn apart<'a>(at: NonNull<Node>) -> Option<&'a Detached> {
    // SAFETY: as above.
    let apart = word(at, APART).map(|word| unsafe { word.cast::<*mut Detached>().read() });
    // SAFETY: the box lives as long as the node.
    apart.map(|apart| unsafe { &*apart })
}

/// Where key and value are in a node's allocation.
fn following(at: NonNull<Node>) -> *mut u8 {
    at.as_ptr().wrapping_add(1).cast::<u8>().wrapping_add(node(at).words_len())
}

/// Bytes of what an item has besides its node: where the value is in a buffer that is longer, that buffer's.
pub(super) fn held(at: NonNull<Node>) -> u64 {
    let buffer = apart(at).map_or(0, |apart| apart.1);
    (node(at).own_len() + buffer) as u64
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
        self.get().meter.subtract(self.get().own_len());
        if let Some(apart) = word(self.0, APART) {
            // SAFETY: the node has this word.
            let apart = unsafe { apart.cast::<*mut Detached>().read() };
            // SAFETY: `new` made it of a box, and this was the last handle.
            drop(unsafe { Box::from_raw(apart) });
        }
        // SAFETY: this was the last handle, so nobody else has the node.
        unsafe { ptr::drop_in_place(self.0.as_ptr()) };
        // SAFETY: it was allocated with this layout.
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
            let about = ItemMeta { hash: KeyHash(7), namespace, lsn: Lsn(3), expires_ms };
            let buf = meter.copy(b"in a buffer");
            let kept = buf.held();
            let apart = Item::sharing(about, b"key", Bytes::from_owner(buf), kept, &meter);
            let inline = Item::copied(about, b"key", b"following", &meter);
            assert_eq!(held(apart.node()) + held(inline.node()), meter.bytes());
            assert_eq!(held(apart.node()) - held(inline.node()) + 9, (kept + WORD + size_of::<Detached>()) as u64);
            for (item, value) in [(apart, &b"in a buffer"[..]), (inline, b"following")] {
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
