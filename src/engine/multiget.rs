//! Many gets at once: what DRAM does not hold is read from flash together.

use super::Engine;
use super::read::{Found, Tier, Value};
use crate::codec::round_down;
use crate::error::Result;
use crate::id::{Key, KeyHash};
use crate::index::geometry::Entry;
use crate::io::{BatchRead, SECTOR};
use crate::segment::format::{self, Life};

/// One byte in this many of the memory budget may be buffers of reads in flight; who finds them full reads by itself, one record at a time.
const READS_SHARE: u64 = 64;
/// They may take this much in any case.
const READS_BYTES_MIN: u64 = 1 << 20;

/// A key whose record must be read from flash.
pub(super) struct Wanted {
    /// Its number among the keys.
    pub(super) number: usize,
    hash: KeyHash,
    entry: Entry,
    life: Life,
}

impl Engine {
    /// The values of `keys`, in their order. Same answers as [`Engine::get`] for each.
    pub(crate) fn get_many(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Value>>> {
        self.check_reads()?;
        let mut values: Vec<Option<Value>> = vec![None; keys.len()];
        let (mut wanted, mut reads, mut rest) = (Vec::new(), Vec::new(), Vec::new());
        let mut numbered = keys.iter().enumerate().peekable();
        while let Some((number, key)) = numbered.next() {
            match self.plan(number, *key) {
                Some((want, read)) => {
                    wanted.push(want);
                    reads.push(read);
                }
                // In DRAM, absent, or overtaken: the plain way is as good.
                None => rest.push(number),
            }
            if numbered.peek().is_some() && !self.reads_are_full() {
                continue;
            }
            self.disk.read_batch(&mut reads);
            for (want, read) in wanted.drain(..).zip(reads.drain(..)) {
                match self.take_read(keys[want.number], &want, read, true) {
                    Some(value) => {
                        self.counters.hits_flash.add();
                        values[want.number] = Some(value);
                    }
                    None => rest.push(want.number),
                }
            }
            for number in rest.drain(..) {
                values[number] = self.get(keys[number], true)?;
            }
        }
        Ok(values)
    }

    /// Whether the buffers of reads in flight take as much as they may.
    pub(super) fn reads_are_full(&self) -> bool {
        self.reads.bytes() >= (self.settings.memory / READS_SHARE).max(READS_BYTES_MIN)
    }

    /// The read that the value of `key` takes, if its record is on flash and in neither DRAM tier nor write buffer, and there is room for the read.
    pub(super) fn plan(&self, number: usize, key: Key<'_>) -> Option<(Wanted, BatchRead)> {
        if self.reads_are_full() {
            return None;
        }
        let hash = self.hash(key);
        if self.memory.holds(hash) {
            return None;
        }
        let entry = self.index.get(hash)?;
        let life = self.table.life(entry.location.segment)?;
        let at = life.base.plus(entry.location.offset.into());
        if self.segment_ring.may_hold(at.0) {
            return None;
        }
        let file = self.table.file(entry.location.segment).ok()?;
        let offset = round_down(entry.location.offset.into(), SECTOR as u64);
        let len = (entry.sectors * SECTOR as u64).min(file.len().checked_sub(offset)?);
        let buf = self.buffers.take((len as usize).max(1), &self.reads);
        Some((Wanted { number, hash, entry, life }, BatchRead { file, offset, buf, done: false }))
    }

    /// The value that was read, if it verifies, is the key's, and the index still names it.
    pub(super) fn take_read(&self, key: Key<'_>, want: &Wanted, read: BatchRead, promote: bool) -> Option<Value> {
        if !read.done {
            return None;
        }
        let (entry, life) = (&want.entry, &want.life);
        let at = life.base.plus(entry.location.offset.into());
        let start = entry.location.offset as usize % SECTOR;
        let record = format::decode_record(self.store, at, life.base_lsn, &read.buf[start..])?;
        let found = Found { buf: read.buf, start, record, tier: Tier::Flash };
        let item = self.take_apart(want.hash, entry, found)?;
        // Read long after the index was asked: a mutation that returned meanwhile must be seen.
        if !self.names(want.hash, entry, at) || !self.accept(key, entry, &item) {
            return None;
        }
        Some(self.serve(entry, at, item, Tier::Flash, promote))
    }
}
