//! A file of 64-bit words that several processes map.
#![allow(unsafe_code, reason = "mapped memory is viewed as atomics, so that a kill tears no word")]

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, ensure};
use memmap2::MmapRaw;

/// A mapped file of 64-bit words.
pub(crate) struct Words(MmapRaw);

impl Words {
    /// Creates a file of `count` zero words; fails if the file exists.
    pub(crate) fn create(path: &Path, count: usize) -> anyhow::Result<Self> {
        let context = || format!("cannot create {}", path.display());
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).with_context(context)?;
        // Allocated now, so that a later store into the mapping cannot fail for lack of space.
        let len = (count * size_of::<u64>()).max(1) as u64;
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, len).map_err(std::io::Error::from).with_context(context)?;
        Ok(Self(MmapRaw::map_raw(&file).with_context(context)?))
    }

    /// Maps a file that another process created.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let context = || format!("cannot map {}", path.display());
        let file = OpenOptions::new().read(true).write(true).open(path).with_context(context)?;
        let map = MmapRaw::map_raw(&file).with_context(context)?;
        ensure!(map.len().is_multiple_of(size_of::<u64>()), "the length of {} is not a multiple of 8 bytes", path.display());
        Ok(Self(map))
    }

    pub(crate) fn all(&self) -> &[AtomicU64] {
        let start = self.0.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: The mapping is page-aligned, is `len` bytes long and lives as long as `self`. No
        // process shortens the file. All bit patterns are valid. All processes access the memory
        // only as atomics.
        unsafe { std::slice::from_raw_parts(start, self.0.len() / size_of::<u64>()) }
    }
}
