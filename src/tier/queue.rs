//! A doubly linked queue of items: first in, first out, and any item can leave early.
//!
//! The links are in the items, so a queue allocates nothing.
#![allow(unsafe_code, reason = "links are pointers to items that the memory tier keeps")]

use std::ptr::NonNull;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::Relaxed;

use crossbeam::epoch::Guard;

use super::item::{Node, NodeRef};

/// Nodes from oldest to newest.
///
/// The queue is part of a shard, so the shard's lock guards it and the links of its nodes. The
/// memory tier has a handle to every node in the queue: [`Queue::push`] and [`Queue::replace`]
/// require it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    oldest: AtomicPtr<Node>,
    newest: AtomicPtr<Node>,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.oldest.load(Relaxed).is_null()
    }

    /// The oldest node. It stays valid during `'g`, even after it has left the queue.
    pub(super) fn oldest<'g>(&self, _guard: &'g Guard) -> Option<NodeRef<'g>> {
        // SAFETY: the node is in the queue, so the memory tier has a handle to it now. The tier
        // drops a handle by a deferred call of the epoch, which runs only after `_guard` has ended.
        NonNull::new(self.oldest.load(Relaxed)).map(|at| unsafe { NodeRef::new(at) })
    }

    /// Adds the newest node.
    ///
    /// # Safety
    /// - `at` is in no queue.
    /// - The memory tier has a handle to `at`, and takes `at` out of this queue before it gives the
    ///   handle up by a deferred call of the epoch. When the tier itself is dropped, it may drop
    ///   handles at once if it does not use the queue again.
    pub(super) unsafe fn push(&mut self, at: NodeRef<'_>) {
        // SAFETY: `newest` is this queue's own link.
        let newest = unsafe { self.follow(&self.newest) };
        self.join(newest, Some(at));
        self.join(Some(at), None);
    }

    /// Takes a node out.
    ///
    /// # Safety
    /// `at` is in this queue.
    pub(super) unsafe fn remove(&mut self, at: NodeRef<'_>) {
        // SAFETY: the link is that of a node in this queue, as `remove` requires.
        let older = unsafe { self.follow(&at.node().older) };
        // SAFETY: the link is that of a node in this queue, as `remove` requires.
        let newer = unsafe { self.follow(&at.node().newer) };
        self.join(older, newer);
    }

    /// Puts `new` in the place of `old`.
    ///
    /// # Safety
    /// `old` is in this queue. For `new` the conditions of [`Queue::push`] hold.
    pub(super) unsafe fn replace(&mut self, old: NodeRef<'_>, new: NodeRef<'_>) {
        // SAFETY: the link is that of a node in this queue, as `replace` requires of `old`.
        let older = unsafe { self.follow(&old.node().older) };
        self.join(older, Some(new));
        // SAFETY: the link is that of `old`, whose newer neighbour is still in this queue.
        let newer = unsafe { self.follow(&old.node().newer) };
        self.join(Some(new), newer);
    }

    /// All nodes, from oldest to newest.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = NodeRef<'_>> {
        // SAFETY: `oldest` is this queue's own link.
        let oldest = unsafe { self.follow(&self.oldest) };
        // SAFETY: the link is that of a node in this queue.
        std::iter::successors(oldest, |at| unsafe { self.follow(&at.node().newer) })
    }

    /// The node that a link names. Null, the end of the queue, is `None`.
    ///
    /// # Safety
    /// `link` is this queue's, or that of a node in it.
    unsafe fn follow(&self, link: &AtomicPtr<Node>) -> Option<NodeRef<'_>> {
        // SAFETY: such a link names a node in this queue, to which the memory tier has a handle. No
        // node leaves while the queue is borrowed.
        NonNull::new(link.load(Relaxed)).map(|at| unsafe { NodeRef::new(at) })
    }

    /// Makes two nodes neighbours. `None` stands for the end of the queue.
    fn join(&self, older: Option<NodeRef<'_>>, newer: Option<NodeRef<'_>>) {
        let to = |node: Option<NodeRef<'_>>| node.map_or(std::ptr::null_mut(), NodeRef::as_ptr);
        older.map_or(&self.oldest, |at| &at.node().newer).store(to(newer), Relaxed);
        newer.map_or(&self.newest, |at| &at.node().older).store(to(older), Relaxed);
    }
}
