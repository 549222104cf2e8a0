//! Get: the index says where, the rings or one device read say what, the checksum and the key say whether.

use std::io;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::value::{Tier, Value};
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id::{Key, KeyHash, Lsn, Position};
use crate::index::geometry::IndexEntry;
use crate::io::SECTOR;
use crate::io::aligned::AlignedBuf;
use crate::segment::extent::Extent;
use crate::segment::format::{self, Kind, Life, Record};
use crate::tier::item::{Item, ItemMeta};

/// A value that fills at least this much of its read buffer keeps the buffer; a smaller one is copied, so that a kept handle pins nothing else.
const SHARE_LEN_MIN: usize = 16 << 10;

/// The disk refused a read, which was counted: whatever was asked for is a miss now, and may be there another time.
#[derive(Debug)]
pub(in crate::engine) struct ReadFailed(io::Error);

/// Bytes that hold a verified record.
pub(in crate::engine) struct Found {
    pub(in crate::engine) buf: AlignedBuf,
    /// Where the record starts in `buf`.
    pub(in crate::engine) start: usize,
    pub(in crate::engine) record: Record,
    pub(in crate::engine) tier: Tier,
}

impl Found {
    /// The record's bytes.
    pub(in crate::engine) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.start + self.record.len]
    }
}

impl Engine {
    /// Key and value of a verified record that starts at the front of `bytes`, copied. `None` for a tombstone or a note, and for what cannot be decompressed.
    pub(in crate::engine) fn item_of(&self, hash: KeyHash, bytes: &[u8], record: &Record) -> Option<Item> {
        let Kind::Put { namespace, key, value, raw_len, expires_ms } = &record.kind else { return None };
        let meta = ItemMeta { hash, namespace: *namespace, lsn: record.lsn, expires_ms: *expires_ms };
        let (key, value) = (&bytes[key.clone()], &bytes[value.clone()]);
        Some(match raw_len {
            None => Item::copied(meta, key, value, self.reads.values()),
            Some(raw_len) => Item::copied(meta, key, &unpack(value, *raw_len)?, self.reads.values()),
        })
    }

    /// The value of `key`, if it has one. `promote` says that it counts as a use.
    pub(crate) fn get(&self, key: Key<'_>, promote: bool) -> Result<Option<Value>> {
        self.health.check_readable()?;
        let value = self.look_up(key, promote).unwrap_or(None);
        if promote {
            let counter = match value.as_ref().map(Value::tier) {
                Some(Tier::Memory) => &self.counters.hits_memory,
                Some(Tier::Buffer) => &self.counters.hits_buffer,
                Some(Tier::Flash) => &self.counters.hits_flash,
                None => &self.counters.misses,
            };
            counter.add();
        }
        Ok(value)
    }

    /// The version that `key` has. An error if that cannot be read now: what a condition is decided on must be known.
    pub(in crate::engine) fn version(&self, key: Key<'_>) -> Result<Option<Lsn>> {
        self.health.check_readable()?;
        let found = self.look_up(key, false).map_err(|ReadFailed(error)| Error::io("read a segment in", &self.context.dir)(error))?;
        Ok(found.map(|value| value.version()))
    }

    fn look_up(&self, key: Key<'_>, promote: bool) -> Result<Option<Value>, ReadFailed> {
        let hash = self.context.hash(key);
        if let Some(item) = self.reads.memory().get(hash, key) {
            if self.expired_at(&item).is_none() {
                return Ok(Some(Value::new(item, Tier::Memory)));
            }
            // What comes next finds it expired too, and makes the index forget it.
            self.reads.memory().forget(&item);
        }
        let Some((entry, at, found)) = self.find(hash)? else { return Ok(None) };
        let tier = found.tier;
        let Some(item) = self.item_from(hash, &entry, found) else { return Ok(None) };
        if !self.matches(key, &entry, &item) {
            return Ok(None);
        }
        Ok(Some(self.hit(&entry, at, item, tier, promote)))
    }

    /// Hands out a record that was read, and promotes it if it counts as used.
    pub(in crate::engine) fn hit(&self, entry: &IndexEntry, at: Position, item: Item, tier: Tier, promote: bool) -> Value {
        if promote {
            if tier == Tier::Flash {
                self.index.warm(item.hash(), entry.location);
            }
            self.reads.memory().insert(&item, false, || self.still_current(item.hash(), entry, at));
        }
        Value::new(item, tier)
    }

    /// Whether the index names the record that was at `at` when it named `entry`.
    pub(in crate::engine) fn still_current(&self, hash: KeyHash, entry: &IndexEntry, at: Position) -> bool {
        // In this order: an entry leaves the index before its segment has another life.
        self.index.names(hash, entry.location) && self.position(entry) == Some(at)
    }

    /// The position of the record that an entry names now. `None` if its segment has no life.
    pub(in crate::engine) fn position(&self, entry: &IndexEntry) -> Option<Position> {
        let life = self.table.life(entry.location.segment)?;
        Some(life.base.plus(entry.location.offset.into()))
    }

    /// Whether the index knows a key with this fingerprint.
    pub(crate) fn may_contain(&self, key: Key<'_>) -> bool {
        let hash = self.context.hash(key);
        self.reads.memory().holds(hash) || self.index.get(hash).is_some()
    }

    /// The record that the index names for `hash`, verified, and its position.
    fn find(&self, hash: KeyHash) -> Result<Option<(IndexEntry, Position, Found)>, ReadFailed> {
        while let Some(entry) = self.index.get(hash) {
            let life = self.table.life(entry.location.segment);
            let read = life.as_ref().map_or(Ok(None), |life| self.read(&entry, life));
            let read = match (read, &life) {
                (Ok(Some(found)), Some(life)) => return Ok(Some((entry, life.base.plus(entry.location.offset.into()), found))),
                (read, _) => read,
            };
            if self.index.names(hash, entry.location) && self.table.life(entry.location.segment) == life {
                // Nobody overtook this reader: the bytes are bad, or not to be had now.
                read?;
                self.record_damage(hash, &entry, life.as_ref());
                return Ok(None);
            }
        }
        Ok(None)
    }

    fn record_damage(&self, hash: KeyHash, entry: &IndexEntry, life: Option<&Life>) {
        if self.index.remove_if_at(hash, entry.location) {
            self.counters.damaged.fetch_add(1, Ordering::Relaxed);
            let segment = entry.location.segment;
            tracing::warn!(dir = %self.context.dir.display(), %segment, offset = entry.location.offset, known = life.is_some(), "a record does not verify; its key misses");
        }
    }

    /// Reads and verifies the record at `entry` in this life of its segment. `None` if what lies there is not that record.
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
            // It will not come back by itself: as bad as bytes that do not verify.
            if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) {
                return Ok(None);
            }
            self.counters.read_errors.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(dir = %self.context.dir.display(), segment = %entry.location.segment, %error, "a segment cannot be read");
            return Err(ReadFailed(error));
        }
        let start = extent.index_of(offset);
        let record = format::decode_record(self.context.store, at, life.base_lsn, &buf[start..]);
        Ok(record.map(|record| Found { buf, start, record, tier: Tier::Flash }))
    }

    /// The record, if it is still in the write buffer.
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

    /// Whether a record is the one of `key` and has not expired.
    pub(in crate::engine) fn matches(&self, key: Key<'_>, entry: &IndexEntry, item: &Item) -> bool {
        if !item.is_of(key) {
            self.counters.collisions.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        let Some(at) = self.expired_at(item) else { return true };
        // Before anybody hears of it.
        self.record_time_passed(at);
        if self.index.remove_if_at(item.hash(), entry.location) {
            self.counters.expired.fetch_add(1, Ordering::Relaxed);
        }
        false
    }

    fn expired_at(&self, item: &Item) -> Option<u64> {
        item.expires_ms().filter(|at| *at <= self.context.time.now_ms())
    }

    /// Key and value of a record, the value as the user gave it: in the read buffer itself if they fill most of it. `None` for a tombstone or a note, and for what cannot be decompressed.
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
        if item.is_none() && matches!(found.record.kind, Kind::Put { .. }) {
            // The checksum held, so this was written wrong: treat it as damage all the same.
            self.record_damage(hash, entry, None);
        }
        item
    }
}

/// The value decompressed to `raw_len` bytes.
fn unpack(packed: &[u8], raw_len: usize) -> Option<Vec<u8>> {
    zstd::bulk::decompress(packed, raw_len).ok().filter(|plain| plain.len() == raw_len)
}
