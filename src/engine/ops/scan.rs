//! Iteration over everything that is live, in no order.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use crate::engine::Engine;
use crate::error::Result;
use crate::id::{Key, Lsn, NamespaceGeneration};
use crate::segment::format::{Kind, Life};

/// A live entry.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// The name of its namespace, empty for the default one.
    pub namespace: Arc<str>,
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
    /// The lives of namespaces that it looks for, and their names.
    spaces: HashMap<NamespaceGeneration, Arc<str>>,
    /// The next partition of the index.
    partition: usize,
    /// Slots of the partition before `partition` that are to come.
    pending: Vec<u64>,
    slots: Vec<u64>,
}

impl Scan {
    /// An iteration over what is in these lives of namespaces.
    pub(crate) fn new(spaces: impl IntoIterator<Item = (NamespaceGeneration, Arc<str>)>) -> Self {
        Self { spaces: spaces.into_iter().collect(), ..Self::default() }
    }
}

impl Engine {
    /// The next live entry. One that is put, replaced or deleted meanwhile may be seen or not.
    pub(crate) fn scan_next(&self, scan: &mut Scan) -> Result<Option<Entry>> {
        loop {
            let geometry = self.index.geometry();
            while let Some(slot) = scan.pending.pop() {
                match self.live(slot, scan) {
                    Live::Entry(entry) => return Ok(Some(entry)),
                    Live::No => {}
                    Live::Overtaken(life) => {
                        // Moved, replaced or gone since the copy: its partition tells.
                        self.index.copy_partition(scan.partition - 1, &mut scan.slots);
                        let (tag, place) = (geometry.tag_of(slot), |slot| geometry.unpack(slot).location);
                        let now = scan.slots.iter().copied().find(|now| geometry.tag_of(*now) == tag);
                        if now.is_some_and(|now| place(now) != place(slot)) {
                            scan.pending.extend(now);
                        } else if now.is_some() && life.is_some() && self.table.life(place(slot).segment) == life {
                            // Nobody overtook this reader.
                            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
            if scan.partition == geometry.partitions() {
                return Ok(None);
            }
            self.index.copy_partition(scan.partition, &mut scan.slots);
            scan.pending.extend(&scan.slots);
            // Popped from the end: in the order of their places, so that neighbours are read one after the other.
            scan.pending.sort_by_key(|slot| std::cmp::Reverse(geometry.unpack(*slot).location));
            scan.partition += 1;
        }
    }

    /// The entry that a slot of the partition before `scan.partition` named when it was copied, if it is in one of the namespaces and the index still names it.
    fn live(&self, slot: u64, scan: &Scan) -> Live {
        let geometry = self.index.geometry();
        let place = geometry.unpack(slot);
        let life = self.table.life(place.location.segment);
        let found = match life.as_ref().map_or(Ok(None), |life| self.read(&place, life)) {
            Ok(Some(found)) => found,
            Ok(None) => return Live::Overtaken(life),
            Err(_counted) => return Live::No,
        };
        // The index names puts only.
        let Kind::Put { namespace, key, .. } = &found.record.kind else { return Live::Overtaken(None) };
        let hash = self.context.hash(Key { namespace: *namespace, bytes: &found.bytes()[key.clone()] });
        if (geometry.partition(hash), geometry.tag(hash)) != (scan.partition - 1, geometry.tag_of(slot)) {
            // The segment has had another life since the copy, and this is a record of it.
            return Live::Overtaken(None);
        }
        match self.index.get(hash) {
            Some(now) if now.location == place.location => {}
            Some(_) => return Live::Overtaken(None),
            None => return Live::No,
        }
        // Its namespace may have been dropped since the iteration began.
        let Some(namespace) = scan.spaces.get(namespace).filter(|name| self.namespaces.generation_of(name) == Some(*namespace)) else {
            return Live::No;
        };
        let Some(item) = self.item_of(hash, found.bytes(), &found.record) else { return Live::No };
        let now = self.context.time.now_ms();
        let (version, expires_ms) = (item.lsn(), item.expires_ms());
        if let Some(at) = expires_ms.filter(|at| *at <= now) {
            self.record_time_passed(at);
            return Live::No;
        }
        let (key, value) = (Bytes::copy_from_slice(item.key()), item.into_bytes());
        Live::Entry(Entry { namespace: Arc::clone(namespace), key, value, version, expires_in_ms: expires_ms.map(|at| at - now) })
    }
}

/// What a slot of the index turned out to be.
enum Live {
    Entry(Entry),
    /// Not of these namespaces, expired, gone, or not to be had.
    No,
    /// The record is not there, or not the one that the index names: it named another one before. If nothing verifies, the life that its segment has.
    Overtaken(Option<Life>),
}
