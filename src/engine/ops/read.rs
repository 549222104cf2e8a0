//! Get: the newest value of a key, or a miss.
//!
//! A lookup asks one tier after the other:
//!
//! 1. The memory tier. It holds the newest version of a key or nothing, so a hit ends the lookup.
//! 2. The index. It maps the hash of the key to the location of a record. No entry is a miss.
//! 3. The bytes. The segment ring is asked first, since it holds the newest records. Otherwise one
//!    device read fetches the sectors of the record.
//! 4. Verification. The checksum covers the record and its position. Then the whole key is
//!    compared, because two keys may share a fingerprint, and the expiry is checked.
//! 5. Promotion. The value enters the memory tier, and a hit on flash marks the index entry as hot.
//!
//! A reader does not take the stripe of the key. So a mutation may replace the record during the
//! read, and reclaim may move the record and reuse its segment. If no record was obtained, the
//! reader compares the index entry and the life of the segment with those it began with:
//!
//! | entry and life | read | meaning |
//! |---|---|---|
//! | changed | any | overtaken: the lookup starts again at the index |
//! | unchanged | no bytes, or bytes that do not verify | damaged: the entry leaves the index, and the key misses |
//! | unchanged | the device refused it | [`ReadFailed`]: the entry stays, and the key misses for now |
//!
//! A build without the feature `zstd` cannot return a value that was stored compressed. The caller
//! gets an error then, because the entry is neither absent nor damaged.

use std::io;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::value::{Tier, Value};
use crate::compress;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id::{Key, KeyHash, Lsn, Position};
use crate::index::geometry::IndexEntry;
use crate::io::SECTOR;
use crate::io::aligned::AlignedBuf;
use crate::io::is_loss;
use crate::segment::extent::Extent;
use crate::segment::format::{self, Kind, Life, Record};
use crate::tier::item::{Item, ItemMeta};

/// Shortest value, in bytes, that may stay in its read buffer. It must also fill three quarters of
/// the buffer. Other values are copied, so that a handle keeps little more than its value in DRAM.
const SHARE_LEN_MIN: usize = 16 << 10;

/// A device read failed, and was counted. The key misses now, and a later read may find it.
#[derive(Debug)]
pub(in crate::engine) struct ReadFailed(pub(in crate::engine) io::Error);

/// A buffer with a verified record in it.
pub(in crate::engine) struct Found {
    pub(in crate::engine) buf: AlignedBuf,
    /// Offset of the record in `buf`.
    pub(in crate::engine) start: usize,
    pub(in crate::engine) record: Record,
    pub(in crate::engine) tier: Tier,
}

impl Found {
    /// The bytes of the record.
    pub(in crate::engine) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.record.len]
    }

    /// Whether the record is a put of `key`.
    fn is_of(&self, key: Key<'_>) -> bool {
        let Kind::Put { namespace, key: at, .. } = &self.record.kind else { return false };
        *namespace == key.namespace && self.bytes()[at.clone()] == *key.bytes
    }
}

impl Engine {
    /// Copies key and value out of a verified record that starts at the front of `bytes`. `None`
    /// for a tombstone, a catalog change, and a value that cannot be decompressed.
    pub(in crate::engine) fn item_of(&self, hash: KeyHash, bytes: &[u8], record: &Record) -> Option<Item> {
        let Kind::Put { namespace, key, value, raw_len, expires_ms } = &record.kind else { return None };
        let meta = ItemMeta { hash, namespace: *namespace, lsn: record.lsn, expires_ms: *expires_ms };
        let (key, value) = (&bytes[key.clone()], &bytes[value.clone()]);
        Some(match raw_len {
            None => Item::copied(meta, key, value, self.reads.values()),
            Some(raw_len) => Item::copied(meta, key, &compress::decompress(value, *raw_len)?, self.reads.values()),
        })
    }

    /// The value of `key`, if it has one. With `promote` the read counts as a use: it is counted in
    /// the statistics, and a hit may enter the memory tier.
    ///
    /// # Errors
    /// [`Error::Io`] if the record cannot be read now, for a reason that says nothing of its bytes.
    pub(crate) fn get(&self, key: Key<'_>, promote: bool) -> Result<Option<Value>> {
        self.health.check_readable()?;
        let value = match self.look_up(key, promote) {
            Ok(value) => value,
            // The medium lost the record, so this is a miss.
            Err(ReadFailed(error)) if is_loss(&error) => None,
            Err(ReadFailed(error)) => {
                // A close takes the files away from a read that has begun.
                self.health.check_readable()?;
                return Err(Error::io("read a segment in", &self.context.dir)(error));
            }
        };
        if promote {
            let counter = match value.as_ref().map(Value::tier) {
                Some(Tier::Memory) => &self.counters.hits_memory,
                Some(Tier::Buffer) => &self.counters.hits_buffer,
                Some(Tier::Flash) => &self.counters.hits_flash,
                None => &self.counters.misses,
            };
            counter.add();
        }
        if value.is_none() {
            self.check_compressed(key)?;
        }
        Ok(value)
    }

    /// The current version of `key`, `None` without a value.
    ///
    /// # Errors
    /// [`Error::Io`] if the record cannot be read now, and [`Error::NeedsZstd`]. A condition must
    /// not be decided on a miss that may pass.
    pub(in crate::engine) fn version(&self, key: Key<'_>) -> Result<Option<Lsn>> {
        self.health.check_readable()?;
        let found = self.look_up(key, false).map_err(|ReadFailed(error)| Error::io("read a segment in", &self.context.dir)(error))?;
        if found.is_none() {
            self.check_compressed(key)?;
        }
        Ok(found.map(|value| value.version()))
    }

    /// Fails if a lookup found no value only because this build cannot decompress it.
    ///
    /// # Errors
    /// [`Error::NeedsZstd`].
    fn check_compressed(&self, key: Key<'_>) -> Result<()> {
        if compress::IS_SUPPORTED {
            return Ok(());
        }
        match self.find(self.context.hash(key)) {
            Ok(Some((_, _, found))) if self.needs_zstd(&found) && found.is_of(key) => Err(Error::NeedsZstd),
            _ => Ok(()),
        }
    }

    /// Whether a record holds a value that has not expired and that this build cannot decompress.
    pub(in crate::engine) fn needs_zstd(&self, found: &Found) -> bool {
        let Kind::Put { raw_len: Some(_), expires_ms, .. } = found.record.kind else { return false };
        !compress::IS_SUPPORTED && expires_ms.is_none_or(|at| at > self.context.time.now_ms())
    }

    /// The value of `key`, from the memory tier, the segment ring or flash.
    fn look_up(&self, key: Key<'_>, promote: bool) -> Result<Option<Value>, ReadFailed> {
        let hash = self.context.hash(key);
        let memory = self.reads.memory();
        let in_memory = if promote { memory.get(hash, key) } else { memory.peek(hash, key) };
        if let Some(item) = in_memory {
            if self.expired_at(&item).is_none() {
                return Ok(Some(Value::new(item, Tier::Memory)));
            }
            // The lookup below finds the record expired too, and removes its index entry.
            memory.forget(&item);
        }
        let Some((entry, at, found)) = self.find(hash)? else { return Ok(None) };
        let tier = found.tier;
        let Some(item) = self.item_from(hash, &entry, found) else { return Ok(None) };
        if !self.matches(key, &entry, &item) {
            return Ok(None);
        }
        Ok(Some(self.hit(&entry, at, item, tier, promote)))
    }

    /// Returns the value of a record that was read at position `at`. With `promote` it also enters
    /// the memory tier, and an entry on flash becomes hot in the index.
    pub(in crate::engine) fn hit(&self, entry: &IndexEntry, at: Position, item: Item, tier: Tier, promote: bool) -> Value {
        if promote {
            if tier == Tier::Flash {
                self.index.warm(item.hash(), entry.location);
            }
            self.reads.memory().insert(&item, false, || self.still_current(item.hash(), entry, at));
        }
        Value::new(item, tier)
    }

    /// Whether the index still names the record that it named with `entry`, whose position was
    /// `at`.
    pub(in crate::engine) fn still_current(&self, hash: KeyHash, entry: &IndexEntry, at: Position) -> bool {
        // The order matters. An entry leaves the index before its segment begins another life, so
        // if the index names a record of a later life at this location, the position differs below.
        self.index.names(hash, entry.location) && self.position(entry) == Some(at)
    }

    /// The position of the record that an entry names now. `None` if readers may not use the
    /// segment.
    pub(in crate::engine) fn position(&self, entry: &IndexEntry) -> Option<Position> {
        let life = self.table.life(entry.location.segment)?;
        Some(life.base.plus(entry.location.offset.into()))
    }

    /// False only if `key` certainly has no value. True also if another key has the fingerprint, or
    /// the entry is expired or unreadable. Reads DRAM only.
    pub(crate) fn may_contain(&self, key: Key<'_>) -> bool {
        if self.health.check_process().is_err() {
            // A lock may be held by a thread that this process does not have.
            return true;
        }
        let hash = self.context.hash(key);
        self.reads.memory().holds(hash) || self.index.get(hash).is_some()
    }

    /// The verified record that the index names for `hash`, with its position. Starts again as
    /// often as the reader is overtaken.
    fn find(&self, hash: KeyHash) -> Result<Option<(IndexEntry, Position, Found)>, ReadFailed> {
        while let Some(entry) = self.index.get(hash) {
            let life = self.table.life(entry.location.segment);
            let read = life.as_ref().map_or(Ok(None), |life| self.read(&entry, life));
            let read = match (read, &life) {
                (Ok(Some(found)), Some(life)) => return Ok(Some((entry, life.base.plus(entry.location.offset.into()), found))),
                (read, _) => read,
            };
            if self.index.names(hash, entry.location) && self.table.life(entry.location.segment) == life {
                // Not overtaken: the device refused the read, or the record is damaged.
                read?;
                self.record_damage(hash, &entry, life.as_ref());
                return Ok(None);
            }
        }
        Ok(None)
    }

    /// Removes the index entry of a damaged record, and counts the damage once.
    fn record_damage(&self, hash: KeyHash, entry: &IndexEntry, life: Option<&Life>) {
        if self.index.remove_if_at(hash, entry.location) {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            const DAMAGED: &str = "a record does not verify; its key misses";
            let segment = entry.location.segment;
            if let Some(left_out) = self.context.may_log(DAMAGED, Some(segment)) {
                let (offset, known) = (entry.location.offset, life.is_some());
                tracing::warn!(dir = %self.context.dir.display(), %segment, offset, known, left_out, "{DAMAGED}");
            }
        }
    }

    /// Reads and verifies the record at `entry` in this life of its segment. `None` if the bytes
    /// there are not that record.
    pub(in crate::engine) fn read(&self, entry: &IndexEntry, life: &Life) -> Result<Option<Found>, ReadFailed> {
        let offset = entry.location.offset;
        let at = life.base.plus(offset.into());
        if let Some(found) = self.read_ring(entry, life, at) {
            return Ok(Some(found));
        }
        let extent = Extent::of_sectors(offset, entry.sectors, self.table.row(entry.location.segment).size);
        if extent.is_empty() {
            return Ok(None);
        }
        let mut buf = self.reads.buffer(extent.len());
        let read = self.table.file(entry.location.segment).and_then(|file| file.read_at(extent.start(), &mut buf));
        if let Err(error) = read {
            if self.health.is_closing() {
                return Err(ReadFailed(error));
            }
            // A missing or shortened file does not come back, so its records count as damaged.
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) {
                return Ok(None);
            }
            self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
            let message = "a read of a segment failed; the key misses until a read succeeds";
            self.context.warn_of(message, Some(entry.location.segment), &error);
            return Err(ReadFailed(error));
        }
        let start = extent.index_of(offset);
        let record = format::decode_record(self.context.store, at, life.base_lsn, &buf[start..]);
        Ok(record.map(|record| Found { buf, start, record, tier: Tier::Flash }))
    }

    /// The verified record at position `at`, if the segment ring still holds it.
    fn read_ring(&self, entry: &IndexEntry, life: &Life, at: Position) -> Option<Found> {
        let mut len = entry.sectors as usize * SECTOR - entry.location.offset as usize % SECTOR;
        len = len.min(self.log.segment_ring().size() as usize);
        if !self.log.segment_ring().may_hold(at.0) {
            return None;
        }
        let mut buf = self.reads.buffer(len);
        if !self.log.segment_ring().load(at.0, &mut buf) {
            return None;
        }
        let record = format::decode_record(self.context.store, at, life.base_lsn, &buf)?;
        Some(Found { buf, start: 0, record, tier: Tier::Buffer })
    }

    /// Whether a record belongs to `key` and has not expired. An expired record leaves the index.
    pub(in crate::engine) fn matches(&self, key: Key<'_>, entry: &IndexEntry, item: &Item) -> bool {
        if !item.is_of(key) {
            self.counters.collisions.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let Some(at) = self.expired_at(item) else { return true };
        // A mark is logged before the miss is returned, if the ring has room. So the entry stays
        // expired after a process crash, even if the wall clock goes back.
        self.record_time_passed(at);
        if self.index.remove_if_at(item.hash(), entry.location) {
            self.counters.expired.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    /// The store time in ms at which an item expired. `None` if it has not.
    fn expired_at(&self, item: &Item) -> Option<u64> {
        item.expires_ms().filter(|at| *at <= self.context.time.now_ms())
    }

    /// The key and the decompressed value of a record that was read. A large value stays in the
    /// read buffer, as [`SHARE_LEN_MIN`] says. `None` for a tombstone, a catalog change, and a
    /// value that cannot be decompressed.
    pub(in crate::engine) fn item_from(&self, hash: KeyHash, entry: &IndexEntry, found: Found) -> Option<Item> {
        if let Kind::Put { namespace, key, value, raw_len: None, expires_ms } = &found.record.kind
            && value.len() >= SHARE_LEN_MIN
            && value.len() * 4 >= found.buf.len() * 3
        {
            let meta = ItemMeta { hash, namespace: *namespace, lsn: found.record.lsn, expires_ms: *expires_ms };
            let (range, held) = (found.start + value.start..found.start + value.end, found.buf.held());
            let key: Box<[u8]> = found.bytes()[key.clone()].into();
            let value = Bytes::from_owner(found.buf.counted_by(self.reads.values())).slice(range);
            return Some(Item::sharing(meta, &key, value, held, self.reads.values()));
        }
        let item = self.item_of(hash, found.bytes(), &found.record);
        if item.is_none() && compress::IS_SUPPORTED && matches!(found.record.kind, Kind::Put { .. }) {
            // The checksum matches, so the value was compressed wrongly. It counts as damage too.
            self.record_damage(hash, entry, None);
        }
        item
    }
}
