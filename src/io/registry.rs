//! A list that signal handlers and children of `fork` may read: without locks, and nothing in it is
//! ever freed.
#![allow(unsafe_code, reason = "entries are shared through raw pointers")]

use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// A list that only grows. Owners mark entries as unused and take them again, so its length is the
/// most entries ever in use at once.
#[derive(Debug)]
pub(super) struct Registry<T: 'static>(AtomicPtr<Node<T>>);

#[derive(Debug)]
struct Node<T> {
    entry: T,
    next: AtomicPtr<Node<T>>,
}

impl<T: Sync + 'static> Registry<T> {
    pub(super) const fn new() -> Self {
        Self(AtomicPtr::new(ptr::null_mut()))
    }

    /// All entries.
    pub(super) fn iter(&self) -> impl Iterator<Item = &'static T> {
        let mut next = self.0.load(Ordering::Acquire);
        std::iter::from_fn(move || {
            // SAFETY: nodes are never freed, and whole before they are listed.
            let node = unsafe { next.as_ref() }?;
            next = node.next.load(Ordering::Relaxed);
            Some(&node.entry)
        })
    }

    /// Adds an entry for good.
    pub(super) fn add(&self, entry: T) -> &'static T {
        let node: &'static Node<T> = Box::leak(Box::new(Node { entry, next: AtomicPtr::new(ptr::null_mut()) }));
        let mut next = self.0.load(Ordering::Acquire);
        loop {
            node.next.store(next, Ordering::Relaxed);
            // Pairs with the acquire in `iter`: whoever finds the node finds it whole.
            match self.0.compare_exchange(next, ptr::from_ref(node).cast_mut(), Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return &node.entry,
                Err(other) => next = other,
            }
        }
    }
}
