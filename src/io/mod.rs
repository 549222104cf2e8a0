//! The one seam to the kernel: a directory of aligned files, mappings and a lock.
//!
//! Everything above works on [`Disk`]. Two backends exist: [`posix`], the operating system, and [`sim`], a disk in memory that can be stopped at
//! any operation and says what a crash would have left. Faults enter the engine only here.

pub(crate) mod aligned;
#[cfg(test)]
mod conformance;
pub(crate) mod posix;
mod reactor;
mod reading;
pub(crate) mod ring;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code, reason = "the tests use more of it"))]
pub(crate) mod sim;
mod uring;

use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

pub(crate) use reading::Reading;

/// Unit of writes, and the alignment of every write's offset and length: a page, and the physical block of today's devices.
///
/// A write of one block may tear at 512 B. So a block that holds acknowledged bytes is only rewritten with those bytes unchanged.
pub(crate) const BLOCK: usize = 4096;

/// Alignment of a read's offset and length: the smallest logical block of devices in use.
pub(crate) const SECTOR: usize = 512;

/// A directory that holds one store.
pub(crate) trait Disk: Send + Sync + Debug {
    /// Opens an existing file. `NotFound` if there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Creates a file of `len` bytes, all of them allocated, or opens it and brings it to `len` if it exists. Fails with
    /// `StorageFull` without harm to others if the file system cannot promise the space. The name is durable after [`Disk::sync_dir`].
    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>>;

    /// Maps an existing file of exactly `len` bytes, or a new one of that length whose blocks are allocated and zeroed. A store into the mapping is
    /// in the page cache at once. Blocks that cannot be read are written over with zeros. Also says whether the file was made (or remade) by this call.
    fn map(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)>;

    /// What a mapped file of `len` bytes held, without changing it, and whether anything of that is lost: zeros where it cannot be read, or for all of a file that is missing
    /// or of another length.
    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)>;

    /// Names and lengths of all files.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// Removes a file's name. Durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name, at once; what had that name loses it. Durable after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes creations, removals and new names durable.
    fn sync_dir(&self) -> io::Result<()>;

    /// Takes the directory for this cache until the guard is dropped. `WouldBlock` with the holder's pid if it is taken.
    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError>;

    /// Does all reads of a stream, many in flight together where the backend can.
    fn read_stream(&self, stream: &mut dyn ReadStream) {
        read_one_by_one(stream);
    }

    /// Starts a read that a task waits for.
    fn start_read(&self, read: StreamRead) -> Reading {
        Reading::at_once(read)
    }

    /// Whether reads of a stream are in flight together.
    fn reads_together(&self) -> bool {
        false
    }

    /// Identity of this run of the operating system. The page cache survives as long as it stays the same.
    fn boot_id(&self) -> u64;
}

fn read_one_by_one(stream: &mut dyn ReadStream) {
    while let Some(read) = stream.next() {
        stream.ended(read.retried());
    }
}

/// Whether an error says that the system is short of something that may come back, so that nothing was written and the file is not to blame.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    const TOO_MANY_OPEN: [i32; 2] = [Errno::MFILE.raw_os_error(), Errno::NFILE.raw_os_error()];
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || error.raw_os_error().is_some_and(|code| TOO_MANY_OPEN.contains(&code))
}

/// The number in a file name that is `prefix` and a number, exactly as the engine writes such names.
pub(crate) fn numbered(name: &str, prefix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?;
    digits.parse().ok().filter(|number: &u32| number.to_string() == digits)
}

/// Calls `read`, and once more if it fails: the error of one read may be gone at the next.
///
/// Recovery reads so, because one failed read could cost it acknowledged data.
pub(crate) fn read_twice<T>(mut read: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    read().or_else(|_| read())
}

/// Why a directory could not be taken.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Somebody alive has it.
    Held {
        /// Process id of the holder, 0 if unknown.
        pid: u32,
    },
    /// The lock file could not be used.
    Io(io::Error),
}

/// Keeps a directory taken while it lives.
pub(crate) trait DiskLock: Send + Sync + Debug {}

/// A file of fixed length. All lengths and offsets are multiples of [`SECTOR`] for reads and [`BLOCK`] for writes, and buffers are
/// aligned likewise (see [`aligned::AlignedBuf`]), so that a backend may use direct I/O.
pub(crate) trait File: Send + Sync + Debug {
    /// Fills `buf` from `offset`, whole or not at all.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf` at `offset`. Durable after a [`File::sync`] that begins after this returned.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes completed writes durable. After a failure nothing that was written since the last success may be trusted, and the call must not be repeated.
    fn sync(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> u64;

    /// The operating system's descriptor, if there is one.
    fn descriptor(&self) -> Option<RawFd> {
        None
    }
}

/// Reads that are wanted one after another, and what becomes of them.
pub(crate) trait ReadStream {
    /// The next one. Asked for again after `None`.
    fn next(&mut self) -> Option<StreamRead>;

    /// One has ended, and says in `done` whether it happened. In any order.
    fn ended(&mut self, read: StreamRead);
}

/// One read of a stream, or of a task.
#[derive(Debug)]
pub(crate) struct StreamRead {
    /// By which the one who wants it knows it.
    pub(crate) number: usize,
    pub(crate) file: Arc<dyn File>,
    pub(crate) offset: u64,
    /// Filled from there, whole.
    pub(crate) buf: aligned::AlignedBuf,
    pub(crate) done: bool,
}

impl StreamRead {
    /// Done here and now, if it is not done.
    pub(crate) fn retried(mut self) -> Self {
        self.done = self.done || self.file.read_at(self.offset, &mut self.buf).is_ok();
        self
    }
}

/// A mapping of nothing: memory of this process alone.
#[derive(Debug)]
pub(crate) struct InMemory(Box<[AtomicU64]>);

impl InMemory {
    /// `len` zero bytes, a multiple of 8.
    pub(crate) fn zeroed(len: u64) -> Self {
        Self((0..len / 8).map(|_| AtomicU64::new(0)).collect())
    }

    /// What a file holds, whole blocks.
    pub(crate) fn copy_of(file: &dyn File) -> io::Result<Self> {
        let mut bytes = aligned::AlignedBuf::zeroed((file.len() as usize).max(BLOCK));
        file.read_at(0, &mut bytes[..file.len() as usize])?;
        let copy = Self::zeroed(file.len());
        copy.store(0, &bytes);
        Ok(copy)
    }

    /// Puts whole words at `at`.
    pub(crate) fn store(&self, at: u64, bytes: &[u8]) {
        for (to, word) in self.0[at as usize / 8..].iter().zip(bytes.as_chunks().0) {
            to.store(u64::from_le_bytes(*word), Ordering::Relaxed);
        }
    }
}

impl Mapping for InMemory {
    fn words(&self) -> &[AtomicU64] {
        &self.0
    }
}

/// Shared memory over a file's pages. As words, because other threads copy out of it while it is written.
pub(crate) trait Mapping: Send + Sync + Debug {
    /// The whole mapping.
    fn words(&self) -> &[AtomicU64];
}
