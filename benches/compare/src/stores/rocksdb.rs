use std::path::Path;

use anyhow::Result;
use bytes::Bytes;
use rocksdb::{BlockBasedOptions, Cache, DB, Options, WaitForCompactOptions, WriteOptions};

use super::{Key, Size, Store};

struct Rocks(DB);

/// Opens RocksDB with BlobDB, which stores values separately from keys. Half of the DRAM is for the
/// block cache, half for memtables.
pub fn open(dir: &Path, size: Size) -> Result<impl Store + use<>> {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(size.memory as usize / 2));
    blocks.set_bloom_filter(10.0, false);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.increase_parallelism(2);
    options.set_write_buffer_size(size.memory as usize / 4);
    options.set_max_write_buffer_number(2);
    options.set_block_based_table_factory(&blocks);
    options.set_enable_blob_files(true);
    options.set_min_blob_size(256);
    options.set_enable_blob_gc(true);
    options.set_use_direct_reads(true);
    options.set_use_direct_io_for_flush_and_compaction(true);
    Ok(Rocks(DB::open(&options, dir)?))
}

impl Store for Rocks {
    /// Returns when the WAL is in the page cache, as Everwarm does at the level `Process`.
    fn put(&self, key: Key, value: Bytes) -> Result<()> {
        Ok(self.0.put_opt(key, value.as_ref(), &WriteOptions::default())?)
    }

    fn get(&self, key: Key) -> Result<Option<Bytes>> {
        Ok(self.0.get(key)?.map(Bytes::from))
    }

    fn settle(&self) -> Result<()> {
        self.0.flush()?;
        Ok(self.0.wait_for_compact(&WaitForCompactOptions::default())?)
    }
}
