use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use fjall::{Config, Keyspace, KvSeparationOptions, PartitionCreateOptions, PartitionHandle, PersistMode};

use super::{Key, Size, Store};

struct Fjall {
    keyspace: Keyspace,
    partition: PartitionHandle,
}

pub fn open(dir: &Path, size: Size) -> Result<impl Store + use<>> {
    let keyspace = Config::new(dir).cache_size(size.memory / 2).max_write_buffer_size(size.memory / 2).open()?;
    let separated = KvSeparationOptions::default();
    let options = PartitionCreateOptions::default().with_kv_separation(separated).max_memtable_size((size.memory / 4).min(16 << 20) as u32);
    let partition = keyspace.open_partition("entries", options)?;
    Ok(Fjall { keyspace, partition })
}

impl Store for Fjall {
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        Ok(self.partition.insert(key, value.as_ref())?)
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        Ok(self.partition.get(key)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// Syncs the journal; does not wait for tables to be written.
    fn settle(&self) -> Result<()> {
        Ok(self.keyspace.persist(PersistMode::SyncAll)?)
    }
}
