//! Caches in DRAM only. Values are shared bytes; an entry's weight is its length in bytes.

use anyhow::Result;
use bytes::Bytes;

use super::{Key, Size, Store};

#[derive(Clone)]
struct Weight;

impl quick_cache::Weighter<Key, Bytes> for Weight {
    fn weight(&self, _: &Key, value: &Bytes) -> u64 {
        (size_of::<Key>() + value.len()) as u64
    }
}

struct Quick(quick_cache::sync::Cache<Key, Bytes, Weight>);

struct Moka(moka::sync::Cache<Key, Bytes>);

pub fn quick_cache(size: Size) -> impl Store {
    Quick(quick_cache::sync::Cache::with_weighter(size.entries as usize, size.memory, Weight))
}

pub fn moka(size: Size) -> impl Store {
    let weigher = |_: &Key, value: &Bytes| (size_of::<Key>() + value.len()) as u32;
    Moka(moka::sync::Cache::builder().max_capacity(size.memory).weigher(weigher).build())
}

impl Store for Quick {
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.0.insert(key, value);
        Ok(())
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        Ok(self.0.get(&key))
    }

    fn settle(&self) -> Result<()> {
        Ok(())
    }
}

impl Store for Moka {
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        self.0.insert(key, value);
        Ok(())
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        Ok(self.0.get(&key))
    }

    fn settle(&self) -> Result<()> {
        self.0.run_pending_tasks();
        Ok(())
    }
}
