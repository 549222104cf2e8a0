//! A value that a read returned: shared bytes, a version, and the tier that answered.
//!
//! A [`Value`] is a counted handle to an item. The memory tier may share the same item, so a hit
//! copies no bytes. A value that is evicted or superseded meanwhile stays readable through its
//! handle.

use std::ops::{Deref, Range};

use bytes::Bytes;

use crate::id::Lsn;
use crate::tier::item::Item;

/// The tier that answered a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tier {
    /// The memory tier: values of hot entries in DRAM.
    Memory,
    /// The write buffer: the newest records, which may not be on flash yet. No device read was
    /// needed.
    Buffer,
    /// A segment file on flash. The value took one device read.
    Flash,
}

/// The value of an entry, with its version and the tier that answered.
///
/// It dereferences to the bytes of the value. A clone is cheap and shares the bytes. A value may
/// outlive the cache. While it lives, it keeps its bytes in DRAM;
/// [`crate::Stats::kept_value_bytes`] counts those outside the memory tier.
#[derive(Clone, Debug)]
pub struct Value {
    item: Item,
    tier: Tier,
}

impl Value {
    pub(super) fn new(item: Item, tier: Tier) -> Self {
        Self { item, tier }
    }

    /// The bytes of the value in `range`, cut to the length of the value. Shares the value's
    /// memory.
    pub(crate) fn into_range(self, range: Range<usize>) -> Bytes {
        let len = self.len();
        let start = range.start.min(len);
        self.into_bytes().slice(start..range.end.clamp(start, len))
    }

    /// The value as shared bytes. Copies nothing.
    pub fn into_bytes(self) -> Bytes {
        self.item.into_bytes()
    }

    /// The version of the entry: the LSN of the put that wrote it.
    ///
    /// [`crate::Condition::IfVersion`] with this version makes a later mutation fail if the entry
    /// has changed.
    pub fn version(&self) -> Lsn {
        self.item.lsn()
    }

    /// The tier that answered the read.
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
