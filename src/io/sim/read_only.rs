//! A simulated disk that must not be changed.

use std::io;
use std::sync::Arc;

use super::SimDisk;
use crate::io::{Disk, DiskLock, File, LockError, Mapping};

/// The disk of a process that may only read. A change, a sync or the lock is a bug of ours and
/// panics.
#[derive(Debug)]
pub(crate) struct ReadOnly(pub(crate) SimDisk);

impl Disk for ReadOnly {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(ReadOnlyFile(self.0.open(name)?)))
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
        self.0.view(name, len)
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.0.list()
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
        self.0.boot_id()
    }

    fn is_cached(&self, name: &str) -> io::Result<bool> {
        self.0.is_cached(name)
    }

    fn mark_cached(&self, name: &str) -> io::Result<bool> {
        panic!("{name} is marked");
    }
}

#[derive(Debug)]
struct ReadOnlyFile(Arc<dyn File>);

impl File for ReadOnlyFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, _buf: &[u8]) -> io::Result<()> {
        panic!("a file is written at {offset}");
    }

    fn sync(&self) -> io::Result<()> {
        panic!("a file is synced");
    }

    fn len(&self) -> u64 {
        self.0.len()
    }
}
