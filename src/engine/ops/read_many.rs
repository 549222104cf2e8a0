//! Get of many keys: their device reads are in flight together.
//!
//! `plan` looks a key up in DRAM. If its record is only on flash, it returns the device read to
//! issue. `take_read` then verifies the bytes and returns the value. Between the two, mutations and
//! reclaim go on. If the entry changed meanwhile, the bytes are dropped.
//!
//! Every other key takes the ordinary get: keys in DRAM, absent keys, and keys whose read was
//! overtaken, failed or did not verify. So each key has the same answer as with a single get.

use super::read::Found;
use super::value::{Tier, Value};
use crate::engine::Engine;
use crate::error::Result;
use crate::id::{Key, KeyHash};
use crate::index::geometry::IndexEntry;
use crate::io::{ReadStream, SECTOR, StreamRead};
use crate::segment::extent::Extent;
use crate::segment::format::{self, Life};

/// A record on flash that is to be read, as the index and the segment table named it.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Wanted {
    hash: KeyHash,
    entry: IndexEntry,
    life: Life,
}

/// One call that gets many keys: its reads in flight, and its values so far.
struct ManyGets<'a> {
    engine: &'a Engine,
    keys: &'a [Key<'a>],
    /// Number of the next key to look up.
    next: usize,
    in_flight: usize,
    /// Records whose reads are in flight, by the number of their key.
    wanted: Vec<Option<Wanted>>,
    values: Vec<Option<Value>>,
    /// The error that ends the call.
    outcome: Result<()>,
}

impl Engine {
    /// The values of `keys`, in their order. Each answer is that of [`Engine::get`].
    pub(crate) fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Value>>> {
        self.health.check_readable()?;
        let count = keys.len();
        let mut stream =
            ManyGets { engine: self, keys, next: 0, in_flight: 0, wanted: vec![None; count], values: vec![None; count], outcome: Ok(()) };
        self.context.disk.read_stream(&mut stream);
        stream.outcome.map(|()| stream.values)
    }

    /// Whether the buffers of reads in flight take their whole share of the memory budget.
    pub(in crate::engine) fn reads_are_full(&self) -> bool {
        self.reads.is_full(self.context.settings.memory)
    }

    /// The device read for the value of `key`, which identifies itself by `number`. `None` if the
    /// memory tier or the segment ring may hold the value, if the key is absent, or if the buffers
    /// of reads in flight take their whole share.
    pub(in crate::engine) fn plan(&self, number: usize, key: Key<'_>) -> Option<(Wanted, StreamRead)> {
        if self.reads_are_full() {
            return None;
        }
        let hash = self.context.hash(key);
        if self.reads.memory().holds(hash) {
            return None;
        }
        let entry = self.index.get(hash)?;
        let life = self.table.life(entry.location.segment)?;
        let at = life.base.plus(entry.location.offset.into());
        if self.log.segment_ring().may_hold(at.0) {
            return None;
        }
        let file = self.table.file(entry.location.segment).ok()?;
        let extent = Extent::of_sectors(entry.location.offset, entry.sectors, file.len());
        if extent.start() > file.len() {
            return None;
        }
        let buf = self.reads.buffer(extent.len().max(1));
        Some((Wanted { hash, entry, life }, StreamRead { number, file, offset: extent.start(), buf, done: false }))
    }

    /// The value that `read` fetched. `None` unless the read succeeded, the record verifies and
    /// belongs to `key`, and the index still names it.
    pub(in crate::engine) fn take_read(&self, key: Key<'_>, wanted: &Wanted, read: StreamRead, promote: bool) -> Option<Value> {
        if !read.done {
            return None;
        }
        let (entry, life) = (&wanted.entry, &wanted.life);
        let at = life.base.plus(entry.location.offset.into());
        let start = entry.location.offset as usize % SECTOR;
        let record = format::decode_record(self.context.store, at, life.base_lsn, &read.buf[start..])?;
        let found = Found { buf: read.buf, start, record, tier: Tier::Flash };
        let item = self.item_from(wanted.hash, entry, found)?;
        // The lookup in the index was long ago. A mutation that returned since must be seen.
        if !self.still_current(wanted.hash, entry, at) || !self.matches(key, entry, &item) {
            return None;
        }
        Some(self.hit(entry, at, item, Tier::Flash, promote))
    }
}

impl ManyGets<'_> {
    /// Gets a key that has no device read to wait for, as a single get does.
    fn get(&mut self, number: usize) {
        match self.engine.get(self.keys[number], true) {
            Ok(value) => self.values[number] = value,
            Err(error) => self.outcome = Err(error),
        }
    }
}

impl ReadStream for ManyGets<'_> {
    fn next(&mut self) -> Option<StreamRead> {
        while self.outcome.is_ok() && self.next < self.keys.len() {
            if self.in_flight > 0 && self.engine.reads_are_full() {
                // A read that ends frees its buffer, and this is called again.
                return None;
            }
            let number = self.next;
            self.next += 1;
            if let Some((wanted, read)) = self.engine.plan(number, self.keys[number]) {
                self.wanted[number] = Some(wanted);
                self.in_flight += 1;
                return Some(read);
            }
            self.get(number);
        }
        None
    }

    fn ended(&mut self, read: StreamRead) {
        let number = read.number;
        let Some(wanted) = self.wanted[number].take() else { return };
        self.in_flight -= 1;
        self.values[number] = self.engine.take_read(self.keys[number], &wanted, read, true);
        match self.values[number] {
            Some(_) => self.engine.counters.hits_flash.add(),
            None => self.get(number),
        }
    }
}
