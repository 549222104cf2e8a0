//! Scan: iteration over all live entries, in no particular order.
//!
//! A scan visits the index partition by partition. It copies the slots of a partition at once,
//! sorts them by location so that neighbouring records are read one after the other, and reads
//! records until one is live. No lock is held between calls.
//!
//! Mutations and reclaim go on meanwhile, so the record of a copied slot may be gone. The scan then
//! copies the partition again and looks for a slot with the same tag. A slot with another location
//! takes the place of the old one. So an entry that only moved is still visited, and an entry that
//! is put, replaced or deleted during the scan may be visited or not.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::read::ReadFailed;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id::{Key, Lsn, NamespaceGeneration};
use crate::io::is_loss;
use crate::segment::format::{Kind, Life};

/// A live entry, as [`crate::Cache::entries`] returns it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Entry {
    /// Name of the namespace, empty for the default namespace.
    pub namespace: Arc<str>,
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// Version of the entry: the LSN of the put that wrote it.
    pub version: Lsn,
    /// Milliseconds until the entry expires, from when the iterator read it. `None` if it never
    /// expires.
    pub expires_in_ms: Option<u64>,
}

/// Progress of an iteration.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// Generations of the namespaces whose entries are wanted, with their names.
    namespaces: HashMap<NamespaceGeneration, Arc<str>>,
    /// Number of the next partition of the index.
    partition: usize,
    /// Slots that are still to be read, of the partition before `partition`.
    pending: Vec<u64>,
    /// The last copy of a partition. Kept for its allocation.
    slots: Vec<u64>,
}

impl Scan {
    /// An iteration over the entries in these generations of namespaces.
    pub(crate) fn new(namespaces: impl IntoIterator<Item = (NamespaceGeneration, Arc<str>)>) -> Self {
        Self { namespaces: namespaces.into_iter().collect(), ..Self::default() }
    }
}

impl Engine {
    /// The next live entry, `None` at the end. An entry that is put, replaced or deleted during the
    /// iteration may be returned or not.
    pub(crate) fn scan_next(&self, scan: &mut Scan) -> Result<Option<Entry>> {
        self.health.check_readable()?;
        loop {
            let geometry = self.index.geometry();
            while let Some(slot) = scan.pending.pop() {
                match self.read_slot(slot, scan) {
                    Visited::Live(entry) => return Ok(Some(entry)),
                    Visited::Compressed => return Err(crate::error::Error::NeedsZstd),
                    Visited::Skipped => {}
                    Visited::Refused(error) => {
                        self.health.check_readable()?;
                        return Err(Error::io("read a segment in", &self.context.dir)(error));
                    }
                    Visited::Overtaken(life) => {
                        // The entry moved, was replaced or left since the copy.
                        self.index.copy_partition(scan.partition - 1, &mut scan.slots);
                        let (tag, location_of) = (geometry.tag_of(slot), |slot| geometry.unpack(slot).location);
                        let current = scan.slots.iter().copied().find(|current| geometry.tag_of(*current) == tag);
                        if current.is_some_and(|current| location_of(current) != location_of(slot)) {
                            scan.pending.extend(current);
                        } else if current.is_some() && life.is_some() && self.table.life(location_of(slot).segment) == life {
                            // Same slot, same life: not overtaken, so the record is damaged.
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
            // Slots are popped from the end, so the highest location comes first here.
            scan.pending.sort_by_key(|slot| std::cmp::Reverse(geometry.unpack(*slot).location));
            scan.partition += 1;
        }
    }

    /// Reads the record that a slot of the partition before `scan.partition` named when it was
    /// copied. Its entry is live if it is in a wanted namespace and the index still names it.
    fn read_slot(&self, slot: u64, scan: &Scan) -> Visited {
        let geometry = self.index.geometry();
        let entry = geometry.unpack(slot);
        let life = self.table.life(entry.location.segment);
        let found = match life.as_ref().map_or(Ok(None), |life| self.read(&entry, life)) {
            Ok(Some(found)) => found,
            Ok(None) => return Visited::Overtaken(life),
            Err(ReadFailed(error)) if is_loss(&error) => return Visited::Skipped,
            Err(ReadFailed(error)) => return Visited::Refused(error),
        };
        // The index names puts only, so any other record is of a later life.
        let Kind::Put { namespace, key, .. } = &found.record.kind else { return Visited::Overtaken(None) };
        let hash = self.context.hash(Key { namespace: *namespace, bytes: &found.bytes()[key.clone()] });
        if (geometry.partition(hash), geometry.tag(hash)) != (scan.partition - 1, geometry.tag_of(slot)) {
            // The record has another fingerprint: the segment began another life since the copy.
            return Visited::Overtaken(None);
        }
        match self.index.get(hash) {
            Some(current) if current.location == entry.location => {}
            Some(_) => return Visited::Overtaken(None),
            None => return Visited::Skipped,
        }
        // The namespace may have been dropped since the iteration began.
        let Some(namespace) = scan.namespaces.get(namespace).filter(|name| self.namespaces.generation_of(name) == Some(*namespace)) else {
            return Visited::Skipped;
        };
        if self.needs_zstd(&found) {
            return Visited::Compressed;
        }
        let Some(item) = self.item_of(hash, found.bytes(), &found.record) else { return Visited::Skipped };
        let now = self.context.time.now_ms();
        let (version, expires_ms) = (item.lsn(), item.expires_ms());
        if let Some(at) = expires_ms.filter(|at| *at <= now) {
            self.record_time_passed(at);
            return Visited::Skipped;
        }
        let (key, value) = (Bytes::copy_from_slice(item.key()), item.into_bytes());
        Visited::Live(Entry { namespace: Arc::clone(namespace), key, value, version, expires_in_ms: expires_ms.map(|at| at - now) })
    }
}

/// The result of reading the record of a slot.
enum Visited {
    /// The entry is live.
    Live(Entry),
    /// The record cannot be read now, for a reason that says nothing of its bytes.
    Refused(io::Error),
    /// The entry is of another namespace, expired, deleted or unreadable.
    Skipped,
    /// The entry is live, and this build cannot decompress its value.
    Compressed,
    /// The record is not there, or the index does not name it any more. If no record verified, the
    /// life of the segment at that time.
    Overtaken(Option<Life>),
}
