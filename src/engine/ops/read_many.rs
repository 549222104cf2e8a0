//! Many gets at once: what DRAM does not hold is read from flash together.

use super::read::Found;
use super::value::{Tier, Value};
use crate::engine::Engine;
use crate::error::Result;
use crate::id::{Key, KeyHash};
use crate::index::geometry::IndexEntry;
use crate::io::{ReadStream, SECTOR, StreamRead};
use crate::segment::extent::Extent;
use crate::segment::format::{self, Life};

/// A record that must be read from flash.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Wanted {
    hash: KeyHash,
    entry: IndexEntry,
    life: Life,
}

/// The reads of one call, and the values so far.
struct Keys<'a> {
    engine: &'a Engine,
    keys: &'a [Key<'a>],
    /// The number of the next key to look for.
    next: usize,
    in_flight: usize,
    /// What is in flight, by the number of its key.
    wanted: Vec<Option<Wanted>>,
    values: Vec<Option<Value>>,
    closed: Result<()>,
}

impl Engine {
    /// The values of `keys`, in their order. Same answers as [`Engine::get`] for each.
    pub(crate) fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Value>>> {
        self.health.check_readable()?;
        let nothing = keys.len();
        let mut stream =
            Keys { engine: self, keys, next: 0, in_flight: 0, wanted: vec![None; nothing], values: vec![None; nothing], closed: Ok(()) };
        self.context.disk.read_stream(&mut stream);
        stream.closed.map(|()| stream.values)
    }

    /// Whether the buffers of reads in flight take as much as they may.
    pub(in crate::engine) fn reads_are_full(&self) -> bool {
        self.reads.is_full(self.context.settings.memory)
    }

    /// The read that the value of `key` takes, if its record is on flash and in neither DRAM tier nor write buffer, and there is room for the read.
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

    /// The value that was read, if it verifies, is the key's, and the index still names it.
    pub(in crate::engine) fn take_read(&self, key: Key<'_>, want: &Wanted, read: StreamRead, promote: bool) -> Option<Value> {
        if !read.done {
            return None;
        }
        let (entry, life) = (&want.entry, &want.life);
        let at = life.base.plus(entry.location.offset.into());
        let start = entry.location.offset as usize % SECTOR;
        let record = format::decode_record(self.context.store, at, life.base_lsn, &read.buf[start..])?;
        let found = Found { buf: read.buf, start, record, tier: Tier::Flash };
        let item = self.item_from(want.hash, entry, found)?;
        // Read long after the index was asked: a mutation that returned meanwhile must be seen.
        if !self.still_current(want.hash, entry, at) || !self.matches(key, entry, &item) {
            return None;
        }
        Some(self.hit(entry, at, item, Tier::Flash, promote))
    }
}

impl Keys<'_> {
    /// The value of a key in DRAM, or absent; or one that was overtaken or did not verify, for which the plain way is as good.
    fn get(&mut self, number: usize) {
        match self.engine.get(self.keys[number], true) {
            Ok(value) => self.values[number] = value,
            Err(error) => self.closed = Err(error),
        }
    }
}

impl ReadStream for Keys<'_> {
    fn next(&mut self) -> Option<StreamRead> {
        while self.closed.is_ok() && self.next < self.keys.len() {
            if self.in_flight > 0 && self.engine.reads_are_full() {
                // What has ended makes room first.
                return None;
            }
            let number = self.next;
            self.next += 1;
            if let Some((want, read)) = self.engine.plan(number, self.keys[number]) {
                self.wanted[number] = Some(want);
                self.in_flight += 1;
                return Some(read);
            }
            self.get(number);
        }
        None
    }

    fn ended(&mut self, read: StreamRead) {
        let number = read.number;
        let Some(want) = self.wanted[number].take() else { return };
        self.in_flight -= 1;
        self.values[number] = self.engine.take_read(self.keys[number], &want, read, true);
        match self.values[number] {
            Some(_) => self.engine.counters.hits_flash.add(),
            None => self.get(number),
        }
    }
}
