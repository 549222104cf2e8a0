use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use foyer::{
    BlockEngineConfig, Cache, CacheBuilder, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder, HybridCachePolicy,
    IoEngineConfig, PsyncIoEngineConfig, UringIoEngineConfig,
};
use tokio::runtime::{Builder, Runtime};

use super::{Key, Size, Store};

/// Entries on flash are aligned to this many bytes.
const PAGE: u64 = 4096;

struct Foyer {
    runtime: Runtime,
    cache: HybridCache<u128, Bytes>,
}

pub fn open(dir: &Path, size: Size, uring: bool) -> Result<impl Store + use<>> {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let entry = (size.value_len as u64 + 64).next_multiple_of(PAGE);
    let capacity = (size.entries * entry * 17 / 16).next_multiple_of(64 << 20);
    let io: Box<dyn IoEngineConfig> = if uring { Box::new(UringIoEngineConfig::new()) } else { Box::new(PsyncIoEngineConfig::new()) };
    let dir = dir.to_owned();
    let cache = runtime.block_on(async {
        let device = FsDeviceBuilder::new(dir).with_capacity(capacity as usize).with_direct(true).build()?;
        HybridCacheBuilder::new()
            .with_policy(HybridCachePolicy::WriteOnInsertion)
            .memory(size.memory as usize)
            .with_weighter(|_: &u128, value: &Bytes| size_of::<Key>() + value.len())
            .storage()
            .with_io_engine_config(io)
            .with_engine_config(BlockEngineConfig::new(device).with_tombstone_log(true).with_block_size(64 << 20))
            .build()
            .await
    })?;
    Ok(Foyer { runtime, cache })
}

struct FoyerMemory(Cache<u128, Bytes>);

pub fn open_memory(size: Size) -> impl Store {
    let weighter = |_: &u128, value: &Bytes| size_of::<Key>() + value.len();
    FoyerMemory(CacheBuilder::new(size.memory as usize).with_weighter(weighter).build())
}

impl Store for FoyerMemory {
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.0.insert(u128::from_le_bytes(key), value);
        Ok(())
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        Ok(self.0.get(&u128::from_le_bytes(key)).map(|entry| entry.value().clone()))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

impl Store for Foyer {
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.cache.insert(u128::from_le_bytes(key), value);
        Ok(())
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        let entry = self.runtime.block_on(async { self.cache.get(&u128::from_le_bytes(key)).await })?;
        Ok(entry.map(|entry| entry.value().clone()))
    }

    /// Closes the cache, because foyer has no other way to wait for its flushes.
    fn settle(&self) -> Result<()> {
        Ok(self.runtime.block_on(self.cache.close())?)
    }
}
