//! One interface to every engine. Each engine is opened with a directory, a budget of DRAM and a
//! capacity of flash.

mod everwarm;
mod fjall;
mod foyer;
mod memory;
#[cfg(feature = "rocksdb")]
mod rocksdb;
mod servers;

use std::path::Path;

pub use everwarm::options as everwarm_options;

use ::everwarm::Ack;
use anyhow::Result;
use bytes::Bytes;
use clap::ValueEnum;

pub type Key = [u8; 16];

/// The size of the data and the resources of a store.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    pub entries: u64,
    /// Bytes of a value.
    pub value_len: usize,
    /// Bytes of DRAM besides the index.
    pub memory: u64,
    /// Flash capacity in multiples of the entries' bytes, without a small reserve for segments that
    /// are being filled.
    pub flash_times: u64,
}

/// An open store of some engine.
pub trait Store: Send + Sync {
    /// Returns once the store has accepted the entry.
    fn put(&self, key: Key, value: Bytes) -> Result<()>;
    fn get(&self, key: Key) -> Result<Option<Bytes>>;
    /// Calls `seen` with the value, if there is one, and returns whether there is one. Uses the
    /// handle to the value that the engine gives its users.
    fn look(&self, key: Key, seen: &mut dyn FnMut(&[u8])) -> Result<bool> {
        Ok(self.get(key)?.map(|value| seen(&value)).is_some())
    }
    /// Returns once flash holds all accepted entries, as far as the engine can wait for that.
    fn settle(&self) -> Result<()>;
}

/// The engines, with the settings that are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Engine {
    /// Everwarm, values in segments only.
    Everwarm,
    /// Everwarm, values of up to 4 KiB in the WAL as well.
    EverwarmWal,
    /// foyer, O_DIRECT, io_uring, tombstone log.
    FoyerUring,
    /// foyer, O_DIRECT, pread and pwrite, tombstone log.
    FoyerPsync,
    /// fjall, values stored separately from keys.
    Fjall,
    /// RocksDB with BlobDB, values stored separately from keys.
    #[value(name = "rocksdb")]
    RocksDb,
    /// Everwarm, mutations at the level `Memory`.
    EverwarmMemory,
    /// foyer without its flash tier.
    FoyerMemory,
    QuickCache,
    /// memcached with extstore.
    Memcached,
    /// Redis with an append-only file.
    Redis,
    Moka,
}

impl Engine {
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
    }

    pub fn open(self, dir: &Path, size: Size) -> Result<Box<dyn Store>> {
        Ok(match self {
            Self::Everwarm => Box::new(everwarm::open(dir, size, Ack::Process, false)?),
            Self::EverwarmWal => Box::new(everwarm::open(dir, size, Ack::Process, true)?),
            Self::FoyerUring => Box::new(foyer::open(dir, size, true)?),
            Self::FoyerPsync => Box::new(foyer::open(dir, size, false)?),
            Self::Fjall => Box::new(fjall::open(dir, size)?),
            #[cfg(feature = "rocksdb")]
            Self::RocksDb => Box::new(rocksdb::open(dir, size)?),
            #[cfg(not(feature = "rocksdb"))]
            Self::RocksDb => anyhow::bail!("this program was built without the feature `rocksdb`"),
            Self::EverwarmMemory => Box::new(everwarm::open(dir, size, Ack::Memory, false)?),
            Self::FoyerMemory => Box::new(foyer::open_memory(size)),
            Self::QuickCache => Box::new(memory::quick_cache(size)),
            Self::Memcached => Box::new(servers::memcached(dir, size)?),
            Self::Redis => Box::new(servers::redis(dir)?),
            Self::Moka => Box::new(memory::moka(size)),
        })
    }
}
