//! A queue of items, linked through them: first in, first out, and any of them can leave.

use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::Relaxed;

use super::item::{Node, node};

/// Nodes from oldest to newest. Whoever calls holds the lock of the shard that it belongs to, and sees to it that nodes live as long as they are in it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    oldest: AtomicPtr<Node>,
    newest: AtomicPtr<Node>,
}

impl Queue {
    pub(super) fn oldest(&self) -> Option<NonNull<Node>> {
        NonNull::new(self.oldest.load(Relaxed))
    }

    pub(super) fn push(&mut self, at: NonNull<Node>) {
        self.join(self.newest.load(Relaxed), at.as_ptr());
        self.join(at.as_ptr(), ptr::null_mut());
    }

    /// Takes out a node that is in this queue.
    pub(super) fn remove(&mut self, at: NonNull<Node>) {
        self.join(node(at).older.load(Relaxed), node(at).newer.load(Relaxed));
    }

    /// Puts `new` where `old` is.
    pub(super) fn replace(&mut self, old: NonNull<Node>, new: NonNull<Node>) {
        self.join(node(old).older.load(Relaxed), new.as_ptr());
        self.join(new.as_ptr(), node(old).newer.load(Relaxed));
    }

    /// From oldest to newest.
    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = NonNull<Node>> {
        std::iter::successors(self.oldest(), |at| NonNull::new(node(*at).newer.load(Relaxed)))
    }

    /// Makes two nodes neighbours. Null stands for the end of the queue.
    fn join(&mut self, older: *mut Node, newer: *mut Node) {
        NonNull::new(older).map_or(&self.oldest, |at| &node(at).newer).store(newer, Relaxed);
        NonNull::new(newer).map_or(&self.newest, |at| &node(at).older).store(older, Relaxed);
    }
}
