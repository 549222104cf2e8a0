//! A simulated disk that must not be changed.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::SimDisk;
use crate::io::{Disk, DiskLock, File, LockError, Mapping};

/// The disk of a process that may only read. A change, a sync or the lock is a bug of ours and
/// panics.
pub(crate) struct ReadOnly {
    disk: SimDisk,
    /// Called before each operation, for what another process does meanwhile.
    before: Arc<dyn Fn() + Send + Sync>,
}

impl ReadOnly {
    pub(crate) fn new(disk: SimDisk) -> Self {
        Self::beside(disk, || ())
    }

    /// A disk that another process changes: by `before`, which is called before each operation.
    pub(crate) fn beside(disk: SimDisk, before: impl Fn() + Send + Sync + 'static) -> Self {
        Self { disk, before: Arc::new(before) }
    }

    fn disk(&self) -> &SimDisk {
        (self.before)();
        &self.disk
    }
}

impl fmt::Debug for ReadOnly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadOnly({:?})", self.disk)
    }
}

impl Disk for ReadOnly {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = self.disk().open(name)?;
        Ok(Arc::new(ReadOnlyFile { file, before: Arc::clone(&self.before) }))
    }

    fn create_raw(&self, name: &str, _len: u64) -> io::Result<Arc<dyn File>> {
        panic!("{name} is created");
    }

    fn resize_raw(&self, name: &str, _len: u64) -> io::Result<Arc<dyn File>> {
        panic!("{name} is resized");
    }

    fn map(&self, name: &str, _len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        panic!("{name} is mapped");
    }

    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        self.disk().view(name, len)
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.disk().list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        panic!("{name} is removed");
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        panic!("{from} is renamed to {to}");
    }

    fn sync_dir(&self) -> io::Result<()> {
        panic!("the directory is synced");
    }

    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError> {
        panic!("the directory is locked");
    }

    fn boot_id(&self) -> u64 {
        self.disk.boot_id()
    }

    fn is_cached(&self, name: &str) -> io::Result<bool> {
        self.disk().is_cached(name)
    }

    fn mark_cached(&self, name: &str) -> io::Result<bool> {
        panic!("{name} is marked");
    }
}

struct ReadOnlyFile {
    file: Arc<dyn File>,
    before: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for ReadOnlyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadOnlyFile({:?})", self.file)
    }
}

impl File for ReadOnlyFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        (self.before)();
        self.file.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, _buf: &[u8]) -> io::Result<()> {
        panic!("a file is written at {offset}");
    }

    fn sync(&self) -> io::Result<()> {
        panic!("a file is synced");
    }

    fn len(&self) -> u64 {
        self.file.len()
    }
}
