//! A value that a read returned.

use std::ops::{Deref, Range};

use bytes::Bytes;

use crate::id::Lsn;
use crate::tier::item::Item;

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The memory tier.
    Memory,
    /// The write buffer: it was put recently.
    Buffer,
    /// Flash.
    Flash,
}

/// A value, its version and where it came from. Cheap to clone; it may outlive the cache.
#[derive(Clone, Debug)]
pub struct Value {
    item: Item,
    tier: Tier,
}

impl Value {
    pub(super) fn new(item: Item, tier: Tier) -> Self {
        Self { item, tier }
    }

    /// A part of the value, cut to its length, which shares it.
    pub(crate) fn into_range(self, range: Range<usize>) -> Bytes {
        let len = self.len();
        let start = range.start.min(len);
        self.into_bytes().slice(start..range.end.clamp(start, len))
    }

    /// The value as shared bytes, without a copy.
    pub fn into_bytes(self) -> Bytes {
        self.item.into_bytes()
    }

    /// The LSN of the put.
    pub fn version(&self) -> Lsn {
        self.item.lsn()
    }

    /// Where it was found.
    pub fn tier(&self) -> Tier {
        self.tier
    }
}

impl Deref for Value {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.item.value()
    }
}

impl AsRef<[u8]> for Value {
    fn as_ref(&self) -> &[u8] {
        self
    }
}
