//! A queue of items, linked through them: first in, first out, and any of them can leave.

use std::ptr::{self, NonNull};
use std::sync::atomic::Ordering::Relaxed;

use super::item::Node;

/// Nodes from oldest to newest. Whoever calls holds the lock of the shard that it belongs to, and sees to it that nodes live as long as they are in it.
#[derive(Debug, Default)]
pub(super) struct Queue {
    ends: Option<(NonNull<Node>, NonNull<Node>)>,
}

#[allow(unsafe_code, reason = "nodes know their neighbours")]
// SAFETY: only the links of the nodes are touched, which are atomic, and the shard's lock orders it.
unsafe impl Send for Queue {}

#[allow(unsafe_code, reason = "nodes know their neighbours")]
fn get<'a>(node: NonNull<Node>) -> &'a Node {
    // SAFETY: as the queue's users promise, it lives as long as it is in the queue.
    unsafe { node.as_ref() }
}

impl Queue {
    pub(super) fn oldest(&self) -> Option<NonNull<Node>> {
        self.ends.map(|(oldest, _)| oldest)
    }

    pub(super) fn push(&mut self, node: NonNull<Node>) {
        get(node).newer.store(ptr::null_mut(), Relaxed);
        get(node).older.store(self.ends.map_or(ptr::null_mut(), |(_, newest)| newest.as_ptr()), Relaxed);
        self.ends = match self.ends {
            None => Some((node, node)),
            Some((oldest, newest)) => {
                get(newest).newer.store(node.as_ptr(), Relaxed);
                Some((oldest, node))
            }
        };
    }

    /// Takes out a node that is in this queue.
    pub(super) fn remove(&mut self, node: NonNull<Node>) {
        let older = NonNull::new(get(node).older.load(Relaxed));
        let newer = NonNull::new(get(node).newer.load(Relaxed));
        let link = |node: Option<NonNull<Node>>| node.map_or(ptr::null_mut(), NonNull::as_ptr);
        if let Some(older) = older {
            get(older).newer.store(link(newer), Relaxed);
        }
        if let Some(newer) = newer {
            get(newer).older.store(link(older), Relaxed);
        }
        self.ends = self.ends.and_then(|(oldest, newest)| {
            let oldest = if oldest == node { newer } else { Some(oldest) };
            let newest = if newest == node { older } else { Some(newest) };
            oldest.zip(newest)
        });
    }

    /// Puts `new` where `old` is.
    pub(super) fn replace(&mut self, old: NonNull<Node>, new: NonNull<Node>) {
        let (older, newer) = (get(old).older.load(Relaxed), get(old).newer.load(Relaxed));
        get(new).older.store(older, Relaxed);
        get(new).newer.store(newer, Relaxed);
        if let Some(older) = NonNull::new(older) {
            get(older).newer.store(new.as_ptr(), Relaxed);
        }
        if let Some(newer) = NonNull::new(newer) {
            get(newer).older.store(new.as_ptr(), Relaxed);
        }
        let new_for = |end: NonNull<Node>| if end == old { new } else { end };
        self.ends = self.ends.map(|(oldest, newest)| (new_for(oldest), new_for(newest)));
    }

    /// From oldest to newest.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Node> {
        std::iter::successors(self.oldest(), |node| NonNull::new(get(*node).newer.load(Relaxed))).map(get)
    }
}
