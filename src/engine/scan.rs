//! Iteration over everything that is live, in no order.

use bytes::Bytes;

use super::Engine;
use crate::error::Result;
use crate::id::{Key, Lsn, Scope};
use crate::index::geometry::Entry as Slot;
use crate::segment::format::Kind;
use crate::tier::memory::Item;

/// A live entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// The LSN of the put.
    pub version: Lsn,
    /// Milliseconds until it expires, if it does.
    pub expires_in_ms: Option<u64>,
}

/// Where an iteration stands.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    scope: Scope,
    /// The next partition of the index.
    partition: usize,
    pending: Vec<Slot>,
    slots: Vec<u64>,
}

impl Scan {
    /// An iteration over what is in this life of a namespace.
    pub(crate) fn new(scope: Scope) -> Self {
        Self { scope, ..Self::default() }
    }

    pub(crate) fn is_of(&self, scope: Scope) -> bool {
        self.scope == scope
    }
}

impl Engine {
    /// The next live entry. One that is put, replaced or deleted meanwhile may be seen or not.
    pub(crate) fn scan_next(&self, scan: &mut Scan) -> Result<Option<Entry>> {
        loop {
            while let Some(slot) = scan.pending.pop() {
                if let Some(entry) = self.live(&slot, scan.scope)? {
                    return Ok(Some(entry));
                }
            }
            let geometry = self.index.geometry();
            if scan.partition == geometry.partitions() {
                return Ok(None);
            }
            self.index.copy_partition(scan.partition, &mut scan.slots);
            scan.pending.extend(scan.slots.iter().map(|slot| geometry.unpack(*slot)));
            // Popped from the end: in the order of their places, so that neighbours are read one after the other.
            scan.pending.sort_by_key(|slot| std::cmp::Reverse(slot.location));
            scan.partition += 1;
        }
    }

    /// The entry that `slot` names, if it is in the namespace and the index still names it when it has been read.
    fn live(&self, slot: &Slot, wanted: Scope) -> Result<Option<Entry>> {
        let Some(life) = self.table.life(slot.location.segment) else { return Ok(None) };
        let Some(found) = self.read(slot, &life)? else { return Ok(None) };
        let Kind::Put { scope, key, .. } = &found.record.kind else { return Ok(None) };
        let hash = self.hash(Key { scope: *scope, bytes: &found.bytes()[key.clone()] });
        if *scope != wanted || self.index.get(hash).is_none_or(|now| now.location != slot.location) {
            return Ok(None);
        }
        let Some(item) = Self::item_of(hash, found.bytes(), &found.record) else { return Ok(None) };
        let now = self.time.now_ms();
        let Item { lsn: version, expires_ms, .. } = item;
        if expires_ms.is_some_and(|at| at <= now) {
            return Ok(None);
        }
        let (key, value) = (item.bytes.slice(..item.key_len), item.value());
        Ok(Some(Entry { key, value, version, expires_in_ms: expires_ms.map(|at| at - now) }))
    }
}
