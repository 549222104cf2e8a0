//! A file of 64-bit words that several processes have mapped.
#![allow(unsafe_code, reason = "mapped memory is viewed as atomics, so that a killed process leaves every word whole")]

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, ensure};
use memmap2::MmapRaw;

/// See the module.
pub(crate) struct Words(MmapRaw);

impl Words {
    /// A new file of `count` zeros.
    pub(crate) fn create(path: &Path, count: usize) -> anyhow::Result<Self> {
        let context = || format!("cannot create {}", path.display());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).with_context(context)?;
        // Allocated, so that a store into the mapping never finds the disk full.
        let len = (count * size_of::<u64>()).max(1) as u64;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len).map_err(std::io::Error::from).with_context(context)?;
        Ok(Self(MmapRaw::map_raw(&file).with_context(context)?))
    }

    /// What another process created.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot map {}", path.display());
        let file = OpenOptions::new().read(true).write(true).open(path).with_context(context)?;
        let map = MmapRaw::map_raw(&file).with_context(context)?;
        ensure!(map.len().is_multiple_of(size_of::<u64>()), "{} is not whole words", path.display());
        Ok(Self(map))
    }

    pub(crate) fn all(&self) -> &[AtomicU64] {
        let start = self.0.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping starts at a page, is `len` bytes long and lives as long as `self`; nobody shortens the file; all bit patterns are
        // valid, and this process and the others touch the memory only as atomics.
        unsafe { std::slice::from_raw_parts(start, self.0.len() / size_of::<u64>()) }
    }
}
