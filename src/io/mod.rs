//! The only interface to the kernel: a directory of aligned files, mappings and a lock.
//!
//! The layers above work on [`Disk`]. Three backends exist:
//!
//! - [`posix`]: the operating system.
//! - [`overlay`]: another disk that is only read. What is written stays in DRAM.
//! - [`sim`]: a disk in memory. It can stop at any operation, and gives the image that a crash
//!   leaves.
//!
//! Faults enter the engine only here.

pub(crate) mod aligned;
mod async_read;
#[cfg(test)]
mod conformance;
pub(crate) mod directory;
pub(crate) mod host;
#[cfg(not(feature = "io-uring"))]
mod no_uring;
pub(crate) mod overlay;
pub(crate) mod posix;
pub(crate) mod process;
#[cfg(feature = "io-uring")]
mod reactor;
mod read_threads;
mod registry;
pub(crate) mod ring;
mod signals;
#[cfg(any(test, fuzzing))]
#[cfg_attr(not(test), allow(dead_code, unused_imports, reason = "the tests use more of it"))]
pub(crate) mod sim;
#[cfg(feature = "io-uring")]
mod uring;
pub(crate) mod watched;

use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use crate::codec;
use crate::id::StoreId;
use async_read::Reading;

/// Unit of writes, and the alignment of every write's offset and length: one page, which is also
/// the physical block of today's devices.
///
/// A write of one block may tear at 512 B. So a block that holds acknowledged bytes is rewritten
/// only with those bytes unchanged.
pub(crate) const BLOCK: usize = 4096;

/// Alignment of a read's offset and length: the smallest logical block of devices in use.
pub(crate) const SECTOR: usize = 512;

/// A directory that holds one store.
pub(crate) trait Disk: Send + Sync + Debug {
    /// Opens an existing file. Fails with `NotFound` if there is none.
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>>;

    /// Creates a file of `len` bytes and allocates all of its blocks. Fails with `AlreadyExists` if
    /// the name exists. The name is durable after [`Disk::sync_dir`].
    ///
    /// Fails with `StorageFull` if the file system cannot promise the space. The file then exists,
    /// and keeps the blocks that it got. [`create`] gives them back.
    fn create_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>>;

    /// Brings an existing file to a length of `len` bytes and allocates all of its blocks.
    ///
    /// Fails with `StorageFull` if the file system cannot promise the space. The file may then have
    /// any length between the old and the new one. [`resize`] gives blocks back.
    fn resize_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>>;

    /// Maps an existing file of exactly `len` bytes, or a new one of that length whose blocks are
    /// allocated and zeroed. A store into the mapping is in the page cache at once. Unreadable
    /// blocks are overwritten with zeros.
    ///
    /// The flag says whether this call made the file, or made it anew.
    fn map(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)>;

    /// The content of a mapped file of `len` bytes, for reading: the file stays unchanged.
    /// Unreadable blocks are zeros. A file that is missing or of another length is zeros
    /// throughout.
    ///
    /// The flag says whether any content is lost.
    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)>;

    /// Names and lengths of all files.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;

    /// Removes a file's name. Durable after [`Disk::sync_dir`].
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Gives a file another name in one atomic step. A file that had the new name loses it. Durable
    /// after [`Disk::sync_dir`].
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes creations, removals and new names durable.
    fn sync_dir(&self) -> io::Result<()>;

    /// The first of these files that another directory has a name for too, with a text that begins
    /// with a verb and says so. To write it would change the other directory's file.
    fn find_shared(&self, _is_ours: &dyn Fn(&str) -> bool) -> io::Result<Option<(String, String)>> {
        Ok(None)
    }

    /// Locks the directory for one cache until the guard is dropped. Fails with [`LockError::Held`]
    /// if it is locked.
    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError>;

    /// Performs all reads of a stream, many in flight together where the backend can.
    fn read_stream(&self, stream: &mut dyn ReadStream) {
        read_one_by_one(stream);
    }

    /// Starts a read for a task, which awaits the result.
    fn start_read(&self, read: StreamRead) -> Reading {
        Reading::at_once(read)
    }

    /// Whether reads of a stream are in flight together.
    fn reads_together(&self) -> bool {
        false
    }

    /// Identity of this run of the operating system.
    fn boot_id(&self) -> u64;

    /// Marks a file in the page cache, so that [`Disk::is_cached`] can tell whether the cache has
    /// kept it. False if the operating system cannot do that.
    fn mark_cached(&self, name: &str) -> io::Result<bool>;

    /// Whether the page cache has kept this file since [`Disk::mark_cached`], or the file is gone.
    ///
    /// It has not if the operating system or the file system was started again, or if the file is a
    /// copy. Also false if the operating system dropped the file from the cache after writing it
    /// back.
    fn is_cached(&self, name: &str) -> io::Result<bool>;

    /// Bytes of DRAM that stand in for bytes of files.
    fn bytes_in_memory(&self) -> u64 {
        0
    }

    /// Releases descriptors, threads and mappings. Nothing else is called afterwards, except by
    /// calls that had begun.
    fn close(&self) {}
}

/// Creates a file of `len` bytes, as [`Disk::create_raw`] does. If that fails, nothing is left of
/// the file.
pub(crate) fn create(disk: &dyn Disk, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
    disk.create_raw(name, len).inspect_err(|error| {
        if error.kind() != io::ErrorKind::AlreadyExists {
            let _left_if_it_must = disk.remove(name);
        }
    })
}

/// Brings an existing file to a length of `len` bytes, as [`Disk::resize_raw`] does. If that fails,
/// the file has its old length again.
pub(crate) fn resize(disk: &dyn Disk, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
    let before = disk.open(name)?.len();
    disk.resize_raw(name, len).inspect_err(|_| {
        let _longer_if_it_must = disk.resize_raw(name, before);
    })
}

/// Creates a file of `len` bytes for `store`, or brings the existing one to that length. A file of
/// another store stays as it is, and is an error.
pub(crate) fn create_or_resize(disk: &dyn Disk, name: &str, len: u64, store: StoreId) -> io::Result<Arc<dyn File>> {
    let found = match disk.open(name) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return create(disk, name, len),
        found => found?,
    };
    check_owner(found.as_ref(), name, store)?;
    resize(disk, name, len)
}

/// Refuses a file whose first block states another store. A block that does not verify states none.
/// Fails if the block cannot be read.
fn check_owner(file: &dyn File, name: &str, store: StoreId) -> io::Result<()> {
    let mut block = aligned::AlignedBuf::zeroed(BLOCK);
    if file.len() < BLOCK as u64 {
        return Ok(());
    }
    read_twice(|| file.read_at(0, &mut block))?;
    match codec::stated_store(&block) {
        Some(other) if other != store => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} is a file of another store; move it to its own directory")))
        }
        _ => Ok(()),
    }
}

/// Removes a file, unless it belongs to another store. A file whose first block is lost belongs to
/// none.
pub(crate) fn remove_own(disk: &dyn Disk, name: &str, store: StoreId) -> io::Result<()> {
    open_own(disk, name, store)?;
    disk.remove(name)
}

/// Opens a file, unless it belongs to another store. A file whose first block is lost belongs to
/// none.
pub(crate) fn open_own(disk: &dyn Disk, name: &str, store: StoreId) -> io::Result<Arc<dyn File>> {
    let file = disk.open(name)?;
    match check_owner(file.as_ref(), name, store) {
        Err(error) if !is_loss(&error) => Err(error),
        _ => Ok(file),
    }
}

fn read_one_by_one(stream: &mut dyn ReadStream) {
    while let Some(read) = stream.next() {
        stream.ended(read.retried());
    }
}

/// Whether an error means a shortage that may pass: a full disk, a quota, no descriptor. Then
/// nothing was written, and the file is not to blame.
pub(crate) fn is_shortage(error: &io::Error) -> bool {
    const TOO_MANY_OPEN: [i32; 2] = [Errno::MFILE.raw_os_error(), Errno::NFILE.raw_os_error()];
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
        || error.raw_os_error().is_some_and(|code| TOO_MANY_OPEN.contains(&code))
}

/// Whether an error means a full disk or a used-up quota.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The number in a file name that consists of `prefix` and a number, in exactly the form that the
/// engine writes.
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

/// Whether an error says that bytes are lost: the medium cannot give them, or they are not there.
///
/// Any other error says nothing of the bytes: a permission, a stale handle, a lack of memory. A
/// later attempt may find them, so nothing may be dropped because of it.
pub(crate) fn is_loss(error: &io::Error) -> bool {
    const LOST: [Errno; 3] = [Errno::IO, Errno::UCLEAN, Errno::NODATA];
    match error.raw_os_error() {
        Some(code) => error.kind() == io::ErrorKind::NotFound || LOST.iter().any(|errno| errno.raw_os_error() == code),
        None => matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData),
    }
}

/// Why a directory could not be locked.
#[derive(Debug)]
pub(crate) enum LockError {
    /// Another cache holds the lock.
    Held {
        /// Description of the process.
        holder: String,
    },
    /// The file with the name of the lock file belongs to another program.
    NotOurs,
    /// The lock file could not be opened, locked or written.
    Io(io::Error),
}

/// Keeps a directory locked while it lives.
pub(crate) trait DiskLock: Send + Sync + Debug {
    /// Fails if the directory was removed, or if its lock file was removed or replaced. Then files
    /// written from here on may be in vain, or another process may lock the directory.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A file of fixed length.
///
/// Offsets and lengths are multiples of [`SECTOR`] for reads and of [`BLOCK`] for writes. Buffers
/// are aligned likewise (see [`aligned::AlignedBuf`]). So a backend may use direct I/O.
pub(crate) trait File: Send + Sync + Debug {
    /// Fills the whole of `buf` from `offset`, or fails.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf` at `offset`. Durable after a [`File::sync`] that begins after this
    /// returned.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Makes completed writes durable. After a failure no bytes written since the last success may
    /// be trusted, and the call must not be repeated.
    fn sync(&self) -> io::Result<()>;

    /// Length in bytes.
    fn len(&self) -> u64;

    /// The operating system's descriptor, if the file has one.
    #[cfg_attr(not(feature = "io-uring"), allow(dead_code, reason = "only rings use it"))]
    fn descriptor(&self) -> Option<RawFd> {
        None
    }
}

/// A source of reads, which also receives their results.
pub(crate) trait ReadStream {
    /// The next read, if one is wanted now. May be called again after `None`.
    fn next(&mut self) -> Option<StreamRead>;

    /// Takes back a read that has ended. Its `done` says whether it succeeded. Reads end in any
    /// order.
    fn ended(&mut self, read: StreamRead);
}

/// One read of a stream, or of a task.
#[derive(Debug)]
pub(crate) struct StreamRead {
    /// Identifies the read to the stream.
    pub(crate) number: usize,
    pub(crate) file: Arc<dyn File>,
    pub(crate) offset: u64,
    /// Takes the bytes from `offset` on. Filled whole if `done`.
    pub(crate) buf: aligned::AlignedBuf,
    pub(crate) done: bool,
}

impl StreamRead {
    /// Performs the read on this thread, unless it has succeeded already.
    pub(crate) fn retried(mut self) -> Self {
        self.done = self.done || self.file.read_at(self.offset, &mut self.buf).is_ok();
        self
    }
}

/// A mapping without a file: memory of this process alone.
#[derive(Debug)]
pub(crate) struct InMemory(aligned::ZeroedWords);

impl InMemory {
    /// `len` zero bytes. `len` is a multiple of 8.
    pub(crate) fn zeroed(len: u64) -> Self {
        Self(aligned::ZeroedWords::new(len as usize / 8))
    }

    /// A copy of another mapping, word by word. Its zeros take no memory.
    pub(crate) fn copy_of_mapping(other: &dyn Mapping) -> Self {
        let copy = Self::zeroed(other.words().len() as u64 * 8);
        for (to, from) in copy.0.iter().zip(other.words()) {
            let word = from.load(Ordering::Relaxed);
            if word != 0 {
                to.store(word, Ordering::Relaxed);
            }
        }
        copy
    }

    /// A copy of a file that consists of whole blocks.
    pub(crate) fn copy_of(file: &dyn File) -> io::Result<Self> {
        let mut bytes = aligned::AlignedBuf::zeroed((file.len() as usize).max(BLOCK));
        file.read_at(0, &mut bytes[..file.len() as usize])?;
        let copy = Self::zeroed(file.len());
        copy.store(0, &bytes);
        Ok(copy)
    }

    /// Copies whole words from byte `at` on.
    pub(crate) fn load(&self, at: u64, bytes: &mut [u8]) {
        for (word, to) in self.0[at as usize / 8..].iter().zip(bytes.as_chunks_mut().0) {
            *to = word.load(Ordering::Relaxed).to_le_bytes();
        }
    }

    /// Stores whole words from byte `at` on.
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

/// Shared memory over a file's pages. It consists of atomic words, because other threads copy from
/// it while it is written.
pub(crate) trait Mapping: Send + Sync + Debug {
    /// The whole mapping.
    fn words(&self) -> &[AtomicU64];

    /// Whether every load and store so far reached the file's pages. Otherwise some words may have
    /// read as zero, and some stores are lost.
    fn is_whole(&self) -> bool {
        true
    }

    /// Releases the file's pages. The words are zero from here on.
    fn release(&self) {}
}
