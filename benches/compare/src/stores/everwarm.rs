use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use everwarm::{Ack, Cache, Options, Value, WalValues};

use super::{Key, Size, Store};

/// Upper bound of the index's bytes for one entry.
const INDEX: u64 = 10;
/// Upper bound of the bytes of a record's header, key and footer entry.
const RECORD: u64 = 64;

pub fn open(dir: &Path, size: Size, ack: Ack, wal_values: bool) -> Result<Cache> {
    Ok(Cache::open(options(dir, size, ack, wal_values))?)
}

pub fn options(dir: &Path, size: Size, ack: Ack, wal_values: bool) -> Options {
    let bytes = size.entries * (size.value_len as u64 + RECORD);
    let flash = (bytes * size.flash_times + bytes / 8).next_multiple_of(64 << 20).max(256 << 20);
    let wal = if wal_values { WalValues::Always } else { WalValues::Never };
    Options::new(dir).memory(size.entries * INDEX + size.memory).flash(flash).wal_values(wal).ack(ack)
}

impl Store for Cache {
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        Cache::put(self, key, value)?;
        Ok(())
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        Ok(Cache::get(self, key)?.map(Value::into_bytes))
    }

    fn look(&self, key: Key, seen: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(Cache::get(self, key)?.map(|value| seen(&value)).is_some())
    }

    fn settle(&self) -> Result<()> {
        Ok(self.persist(Ack::Host)?)
    }
}
