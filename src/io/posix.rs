//! The operating system's files: positional direct I/O, or buffered I/O where the file system
//! refuses it.
#![allow(unsafe_code, reason = "a shared mapping is foreign memory")]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::{Errno, retry_on_intr};
use rustix::process::{Resource, getrlimit};

use super::aligned::AlignedBuf;
use super::async_read::{Operation, Reading};
use super::directory::Directory;
#[cfg(not(feature = "io-uring"))]
use super::no_uring::{Reactor, Rings};
#[cfg(feature = "io-uring")]
use super::reactor::Reactor;
use super::read_threads::ReadThreads;
use super::signals::{FaultGuard, without_size_signal};
#[cfg(feature = "io-uring")]
use super::uring::Rings;
use super::{BLOCK, Disk, DiskLock, File, InMemory, LockError, Mapping, ReadStream, StreamRead, is_loss, read_one_by_one};
use crate::codec::{round_down, round_up};
use crate::concurrent::lock;
use crate::config::Backend;

/// Unit of the block count of a file's metadata.
const STAT_BLOCK: u64 = 512;

/// A directory of the operating system.
#[derive(Debug)]
pub(crate) struct PosixDisk {
    dir: Directory,
    rings: Option<Rings>,
    depth: u32,
    read_threads: u32,
    /// Whether the device's logical blocks are larger than [`SECTOR`]. Set by the first read that
    /// the device refuses for that reason.
    coarse: Arc<AtomicBool>,
    /// Performs the reads of tasks.
    task_reads: Mutex<TaskReads>,
}

/// The performer of the reads of tasks, which the first such read starts.
#[derive(Clone, Debug, Default)]
enum TaskReads {
    #[default]
    NotStarted,
    Ring(Arc<Reactor>),
    Threads(Arc<ReadThreads>),
    Closed,
}

impl PosixDisk {
    /// Fails only if `backend` insists on `io_uring` and that is not available.
    pub(crate) fn new(dir: Directory, backend: Backend, depth: u32, read_threads: u32) -> io::Result<Self> {
        let rings = match backend {
            Backend::Portable => None,
            Backend::IoUring => Some(Rings::probe(depth)?),
            Backend::Auto => Rings::probe(depth)
                .inspect(|_| tracing::info!("reads go through io_uring"))
                .inspect_err(|error| tracing::info!(%error, "io_uring is not available; threads perform the reads"))
                .ok(),
        };
        Ok(Self { rings, depth, read_threads, ..Self::without_rings(dir) })
    }

    /// A disk that reads without rings.
    pub(crate) fn without_rings(dir: Directory) -> Self {
        Self { dir, rings: None, depth: 1, read_threads: 1, coarse: Arc::default(), task_reads: Mutex::default() }
    }

    fn file(&self, file: fs::File, len: u64) -> Arc<dyn File> {
        Arc::new(PosixFile { file, len, coarse: Arc::clone(&self.coarse) })
    }

    /// The performer of the reads of tasks: a ring, or threads if there is none or if the device
    /// refuses reads of single sectors.
    fn task_reads(&self) -> TaskReads {
        let mut reads = lock(&self.task_reads);
        let is_refused = self.coarse.load(Ordering::Relaxed) || self.rings.as_ref().is_none_or(Rings::are_refused);
        *reads = match std::mem::take(&mut *reads) {
            TaskReads::NotStarted if !is_refused => match Reactor::new(self.depth) {
                Ok(reactor) => TaskReads::Ring(Arc::new(reactor)),
                Err(error) => {
                    tracing::info!(%error, "no io_uring for tasks; threads perform their reads");
                    TaskReads::Threads(Arc::new(ReadThreads::new(self.read_threads)))
                }
            },
            TaskReads::NotStarted => TaskReads::Threads(Arc::new(ReadThreads::new(self.read_threads))),
            TaskReads::Ring(_) if is_refused => TaskReads::Threads(Arc::new(ReadThreads::new(self.read_threads))),
            TaskReads::Ring(reactor) if reactor.is_refused() => TaskReads::Threads(Arc::new(ReadThreads::new(self.read_threads))),
            other => other,
        };
        reads.clone()
    }
}

/// Bytes that a file of this process may have (`RLIMIT_FSIZE`). `None` without a limit.
pub(crate) fn file_size_max() -> Option<u64> {
    getrlimit(Resource::Fsize).current
}

/// Calls `open` with `O_DIRECT`, or without it where the file system refuses the flag (tmpfs).
fn direct(mut open: impl FnMut(OFlags) -> io::Result<fs::File>) -> io::Result<fs::File> {
    match open(OFlags::DIRECT) {
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => open(OFlags::empty()),
        other => other,
    }
}

/// Brings a file to `len` bytes, with blocks of its own for all of them: blocks that it lacks are
/// allocated, and blocks that it shares with a copy are replaced. Where the file system cannot do
/// that, writes zeros behind the existing content.
fn allocate(file: &fs::File, len: u64) -> io::Result<()> {
    if file.metadata()?.len() > len {
        file.set_len(len)?;
    }
    let allocate = |flags| without_size_signal(|| Ok(retry_on_intr(|| rustix::fs::fallocate(file, flags, 0, len))?));
    match allocate(FallocateFlags::empty()) {
        Err(e) if is_unsupported(&e) => fill_with_zeros(file, len)?,
        allocated => allocated?,
    }
    unshare(file, len)
}

/// Gives a file blocks of its own in place of those that it shares with a copy. A later write then
/// needs no room. Only some file systems share blocks.
fn unshare(file: &fs::File, len: u64) -> io::Result<()> {
    match without_size_signal(|| Ok(retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::UNSHARE_RANGE, 0, len))?)) {
        Err(e) if is_unsupported(&e) => Ok(()),
        unshared => unshared,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    [Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Extends a file to `len` bytes with zeros. Its existing whole blocks stay unchanged.
fn fill_with_zeros(file: &fs::File, len: u64) -> io::Result<()> {
    let zeros = AlignedBuf::zeroed(1 << 20);
    let mut at = round_down(file.metadata()?.len(), BLOCK as u64);
    while at < len {
        let n = (zeros.len() as u64).min(len - at);
        without_size_signal(|| file.write_all_at(&zeros[..n as usize], at))?;
        at += n;
    }
    Ok(())
}

/// Writes a file's content to its own place, so that every block of it is there.
fn rewrite(file: &fs::File, len: u64) -> io::Result<()> {
    let mut piece = AlignedBuf::zeroed(1 << 20);
    for at in (0..len).step_by(piece.len()) {
        let piece = &mut piece[..(len - at).min(1 << 20) as usize];
        file.read_exact_at(piece, at)?;
        without_size_signal(|| file.write_all_at(piece, at))?;
    }
    file.sync_all()
}

/// Whether all of a mapping can be read. This call reports an unreadable page, where a load or a
/// store would kill the process.
///
/// Also false where the kernel lacks `MADV_POPULATE_READ` (before 5.14).
fn is_readable(map: &MmapRaw) -> bool {
    map.advise(Advice::PopulateRead).is_ok()
}

/// Calls `with` for each block of a file: with its bytes, or with `None` if it cannot be read.
fn each_block(
    read: impl Fn(u64, &mut [u8]) -> io::Result<()>,
    mut with: impl FnMut(u64, Option<&[u8]>) -> io::Result<()>,
    len: u64,
) -> io::Result<()> {
    let mut buf = [0; BLOCK];
    for block in (0..len).step_by(BLOCK) {
        match read(block, &mut buf) {
            Ok(()) => with(block, Some(&buf))?,
            Err(error) if !is_loss(&error) => return Err(error),
            Err(error) => {
                tracing::warn!(block, %error, "a block of a ring cannot be read");
                with(block, None)?;
            }
        }
    }
    Ok(())
}

impl Disk for PosixDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = direct(|flags| self.dir.open_file(name, flags))?;
        let len = file.metadata()?.len();
        Ok(self.file(file, len))
    }

    fn create_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let mut first = true;
        let file = direct(|flags| {
            // A file system may make the file and then refuse the flag.
            match std::mem::take(&mut first) {
                true => self.dir.create_file(name, flags),
                false => self.dir.create_file(name, flags).or_else(|_| self.dir.open_file(name, flags)),
            }
        })?;
        allocate(&file, len)?;
        Ok(self.file(file, len))
    }

    fn resize_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let file = direct(|flags| self.dir.open_file(name, flags))?;
        allocate(&file, len)?;
        Ok(self.file(file, len))
    }

    fn map(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        let (file, fresh) = match self.dir.open_file(name, OFlags::empty()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => (self.dir.create_file(name, OFlags::empty())?, true),
            file => file.and_then(|file| file.metadata().map(|found| (file, found.len() != len)))?,
        };
        if fresh {
            // The zeros are written, not only allocated. A store into an unwritten extent would
            // have to convert it, and could find the disk full.
            let filled = file.set_len(0).and_then(|()| fill_with_zeros(&file, len)).and_then(|()| file.sync_all());
            if let Err(error) = filled {
                // Give the space back to other files.
                let _left_if_it_must = self.dir.remove(name);
                return Err(error);
            }
        } else {
            // A copy of a store may share blocks with it, or lack blocks of zeros.
            unshare(&file, len)?;
            if file.metadata()?.blocks() * STAT_BLOCK < len {
                rewrite(&file, len)?;
            }
        }
        let map = MmapOptions::new().len(len as usize).map_raw(&file)?;
        let mapping = PosixMapping::new(map);
        if !is_readable(&mapping.map) {
            let replace = |block: u64, bytes: Option<&[u8]>| if bytes.is_none() { file.write_all_at(&[0; BLOCK], block) } else { Ok(()) };
            each_block(|at, buf| file.read_exact_at(buf, at), replace, len)?;
        }
        Ok((Arc::new(mapping), fresh))
    }

    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        let file = match self.dir.open_file(name, OFlags::empty()) {
            Ok(file) if file.metadata()?.len() == len => file,
            Ok(_) => return Ok((Arc::new(InMemory::zeroed(len)), true)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Arc::new(InMemory::zeroed(len)), true)),
            Err(e) => return Err(e),
        };
        let mapping = PosixMapping::new(MmapOptions::new().len(len as usize).map_raw_read_only(&file)?);
        if is_readable(&mapping.map) {
            return Ok((Arc::new(mapping), false));
        }
        let (copy, mut lost) = (InMemory::zeroed(len), false);
        let keep = |block: u64, bytes: Option<&[u8]>| {
            match bytes {
                Some(bytes) => copy.store(block, bytes),
                None => lost = true,
            }
            Ok(())
        };
        each_block(|at, buf| file.read_exact_at(buf, at), keep, len)?;
        Ok((Arc::new(copy), lost))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.dir.list()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.dir.remove(name)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.dir.rename(from, to)
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.dir.sync()
    }

    fn find_shared(&self, is_ours: &dyn Fn(&str) -> bool) -> io::Result<Option<(String, String)>> {
        self.dir.find_shared(is_ours)
    }

    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError> {
        Ok(Box::new(self.dir.lock()?))
    }

    fn read_stream(&self, stream: &mut dyn ReadStream) {
        let rings = self.rings.as_ref().filter(|_| !self.coarse.load(Ordering::Relaxed));
        if !rings.is_some_and(|rings| rings.read(stream)) {
            read_one_by_one(stream);
        }
    }

    fn start_read(&self, read: StreamRead) -> Reading {
        let operation = Operation::new(read);
        match self.task_reads() {
            TaskReads::Ring(reactor) => reactor.start(Arc::clone(&operation)),
            TaskReads::Threads(threads) => threads.start(Arc::clone(&operation)),
            TaskReads::NotStarted | TaskReads::Closed => operation.run(),
        }
        Reading::new(operation)
    }

    fn reads_together(&self) -> bool {
        self.rings.as_ref().is_some_and(|rings| !rings.are_refused())
    }

    fn boot_id(&self) -> u64 {
        match fs::read("/proc/sys/kernel/random/boot_id") {
            Ok(text) => xxhash_rust::xxh3::xxh3_64(&text),
            // A new value each time, since the last process may have been stopped by a power cut.
            Err(_not_there) => crate::clock::Clock::entropy(&crate::clock::SystemClock),
        }
    }

    fn mark_cached(&self, name: &str) -> io::Result<bool> {
        Ok(cached::mark(&self.dir.open_file(name, OFlags::empty())?))
    }

    fn is_cached(&self, name: &str) -> io::Result<bool> {
        match self.dir.open_file(name, OFlags::empty()) {
            Ok(file) => Ok(cached::is_marked(&file)),
            // Its loss is found when it is read.
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(e),
        }
    }

    fn close(&self) {
        self.dir.close();
        let reads = std::mem::replace(&mut *lock(&self.task_reads), TaskReads::Closed);
        drop(reads);
        if let Some(rings) = &self.rings {
            rings.close();
        }
    }
}

#[derive(Debug)]
struct PosixFile {
    file: fs::File,
    len: u64,
    /// Shared with [`PosixDisk`]: whether logical blocks are larger than [`SECTOR`].
    coarse: Arc<AtomicBool>,
}

impl PosixFile {
    /// Reads the enclosing whole blocks, and copies the requested part. Direct I/O accepts no less
    /// where logical blocks are that large.
    fn read_blocks(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let start = round_down(offset, BLOCK as u64);
        let end = round_up(offset + buf.len() as u64, BLOCK as u64);
        let mut blocks = AlignedBuf::zeroed((end - start) as usize);
        self.file.read_exact_at(&mut blocks, start)?;
        buf.copy_from_slice(&blocks[(offset - start) as usize..][..buf.len()]);
        Ok(())
    }
}

impl File for PosixFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let is_whole = offset.is_multiple_of(BLOCK as u64) && buf.len().is_multiple_of(BLOCK);
        if is_whole || !self.coarse.load(Ordering::Relaxed) {
            // This call completes short reads and repeats interrupted ones.
            match self.file.read_exact_at(buf, offset) {
                Err(e) if !is_whole && e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {}
                done => return done,
            }
        }
        self.read_blocks(offset, buf)?;
        self.coarse.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        // `write_all_at` completes short writes and repeats interrupted ones.
        without_size_signal(|| self.file.write_all_at(buf, offset))
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn descriptor(&self) -> Option<RawFd> {
        Some(self.file.as_raw_fd())
    }
}

#[derive(Debug)]
struct PosixMapping {
    /// Dropped first: the guard must not outlive the mapping.
    guard: FaultGuard,
    map: MmapRaw,
}

impl PosixMapping {
    fn new(map: MmapRaw) -> Self {
        Self { guard: FaultGuard::new(map.as_ptr().addr(), map.len()), map }
    }
}

impl Mapping for PosixMapping {
    fn words(&self) -> &[AtomicU64] {
        let ptr = self.map.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping is page-aligned, `len` bytes long, and lives as long as `self`. This
        // process accesses it only through these atomics and through `Ring::lend`. No other process
        // maps it while the directory is locked.
        unsafe { std::slice::from_raw_parts(ptr, self.map.len() / 8) }
    }

    fn is_whole(&self) -> bool {
        self.guard.is_whole()
    }

    fn release(&self) {
        self.guard.release();
    }
}

/// Tells whether the page cache has kept a file, by a mark that exists only in memory: the write
/// hint of its inode (`F_SET_RW_HINT`, Linux 4.13). The mark goes when the kernel forgets the
/// inode, which it does when the file system is unmounted, and at a reboot. It forgets an inode
/// without unwritten pages also when memory is short.
mod cached {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    /// `F_GET_RW_HINT`.
    const GET: i32 = 1035;
    /// `F_SET_RW_HINT`.
    const SET: i32 = 1036;
    /// `RWH_WRITE_LIFE_SHORT`: also true of a ring.
    const SHORT: u64 = 2;

    /// Marks the file. False if the kernel or the file system cannot, or if another user owns the
    /// file.
    pub(super) fn mark(file: &File) -> bool {
        let hint = SHORT;
        // SAFETY: the call reads the hint from a valid place.
        unsafe { libc::fcntl(file.as_raw_fd(), SET, &raw const hint) };
        is_marked(file)
    }

    pub(super) fn is_marked(file: &File) -> bool {
        let mut hint = 0u64;
        // SAFETY: the call writes the hint to a valid place.
        let known = unsafe { libc::fcntl(file.as_raw_fd(), GET, &raw mut hint) } == 0;
        known && hint == SHORT
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::conformance::read_all;

    #[test]
    fn blocks_that_cannot_be_read_are_told_from_others() {
        let read = |at: u64, buf: &mut [u8]| match at / BLOCK as u64 {
            0 | 70 | 149 => Err(Errno::IO.into()),
            n => {
                buf.fill(n as u8);
                Ok(())
            }
        };
        let mut unread = Vec::new();
        let with = |block: u64, bytes: Option<&[u8]>| {
            match bytes {
                Some(bytes) => assert_eq!(bytes, [(block / BLOCK as u64) as u8; BLOCK]),
                None => unread.push(block / BLOCK as u64),
            }
            Ok(())
        };
        each_block(read, with, 600 << 10).unwrap();
        assert_eq!(unread, [0, 70, 149]);
    }

    #[test]
    fn a_file_grows_by_zeros_where_blocks_cannot_be_allocated() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[7; 2 * BLOCK], 0).unwrap();
        fill_with_zeros(&file, 5 * BLOCK as u64).unwrap();
        let mut bytes = vec![1; 5 * BLOCK];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes[..2 * BLOCK].iter().all(|b| *b == 7) && bytes[2 * BLOCK..].iter().all(|b| *b == 0));
    }

    /// Many more reads than may be in flight or wait, through both backends. Some are dropped, and
    /// some lie beyond the file's end. Every read that is still awaited gets the right answer.
    #[test]
    fn reads_beyond_every_bound_are_all_answered() {
        const BLOCKS: u64 = 64;
        for backend in [Backend::Auto, Backend::Portable] {
            let dir = tempfile::tempdir().unwrap();
            let disk = PosixDisk::new(Directory::open(dir.path(), true).unwrap(), backend, 2, 1).unwrap();
            let file = crate::io::create(&disk, "file", BLOCKS * BLOCK as u64).unwrap();
            let mut blocks = AlignedBuf::zeroed(BLOCKS as usize * BLOCK);
            blocks.chunks_mut(BLOCK).zip(1..).for_each(|(block, n)| block.fill(n));
            file.write_at(0, &blocks).unwrap();
            let read = |n: u64| {
                // The last read of a round begins in the file and ends beyond it.
                let (offset, len) = (n % BLOCKS * BLOCK as u64, if n % BLOCKS == BLOCKS - 1 { 2 * BLOCK } else { BLOCK });
                StreamRead { number: n as usize, file: Arc::clone(&file), offset, buf: AlignedBuf::zeroed(len), done: false }
            };
            let is_right = |n: u64, read: &StreamRead| {
                let is_short = n % BLOCKS == BLOCKS - 1;
                read.done != is_short && (is_short || read.buf.iter().all(|byte| u64::from(*byte) == n % BLOCKS + 1))
            };
            let many = 3 * crate::io::async_read::WAITING_MAX as u64;
            let started: Vec<Option<Reading>> = (0..many).map(|n| Some(disk.start_read(read(n))).filter(|_| n % 3 != 0)).collect();
            for (n, reading) in started.into_iter().enumerate().filter_map(|(n, reading)| Some((n as u64, reading?))) {
                assert!(is_right(n, &pollster::block_on(reading)), "{backend:?}: {n}");
            }
            let ended = read_all(&disk, (0..200).map(read));
            ended.iter().enumerate().for_each(|(n, read)| assert!(is_right(n as u64, read), "{backend:?}: {n} of a stream"));
            // A file without a descriptor.
            let other = crate::io::create(&crate::io::sim::SimDisk::new(1), "file", BLOCK as u64).unwrap();
            let read = || StreamRead { number: 0, file: Arc::clone(&other), offset: 0, buf: AlignedBuf::zeroed(BLOCK), done: false };
            assert!(read_all(&disk, [read()])[0].done && pollster::block_on(disk.start_read(read())).done, "{backend:?}, {disk:?}");
        }
    }

    /// A stream may read another one. Beyond a bound they need no more descriptors.
    #[test]
    fn streams_beyond_the_bound_are_read_without_a_ring() {
        /// Reads a block, and at each depth the same through one more stream.
        struct Nested<'a> {
            disk: &'a PosixDisk,
            file: Arc<dyn File>,
            depth: usize,
            begun: bool,
            right: &'a mut usize,
        }
        impl ReadStream for Nested<'_> {
            fn next(&mut self) -> Option<StreamRead> {
                (!std::mem::replace(&mut self.begun, true)).then(|| StreamRead {
                    number: 0,
                    file: Arc::clone(&self.file),
                    offset: 0,
                    buf: AlignedBuf::zeroed(BLOCK),
                    done: false,
                })
            }

            fn ended(&mut self, read: StreamRead) {
                *self.right += usize::from(read.done);
                if let (Some(depth), Some(rings)) = (self.depth.checked_sub(1), &self.disk.rings) {
                    assert_eq!(rings.used(), (201 - self.depth).min(64));
                    let file = Arc::clone(&self.file);
                    self.disk.read_stream(&mut Nested { disk: self.disk, file, depth, begun: false, right: self.right });
                }
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let disk = PosixDisk::new(Directory::open(dir.path(), true).unwrap(), Backend::Auto, 8, 1).unwrap();
        let file = crate::io::create(&disk, "file", BLOCK as u64).unwrap();
        let mut right = 0;
        disk.read_stream(&mut Nested { disk: &disk, file, depth: 200, begun: false, right: &mut right });
        assert_eq!(right, if disk.rings.is_some() { 201 } else { 1 });
    }

    /// When a stream panics, the buffers of its reads in flight are freed only after the kernel let
    /// go of them. The next stream is not affected.
    #[test]
    fn a_stream_that_panics_takes_its_reads_back_first() {
        struct Panics(Arc<dyn File>, Arc<AtomicU64>);
        impl ReadStream for Panics {
            fn next(&mut self) -> Option<StreamRead> {
                let number = self.1.fetch_add(1, Ordering::Relaxed) as usize;
                (number < 8).then(|| StreamRead {
                    number,
                    file: Arc::clone(&self.0),
                    offset: 0,
                    buf: AlignedBuf::zeroed(BLOCK),
                    done: false,
                })
            }

            fn ended(&mut self, read: StreamRead) {
                panic!("{}", read.number);
            }
        }
        for backend in [Backend::Auto, Backend::Portable] {
            let dir = tempfile::tempdir().unwrap();
            let disk = PosixDisk::new(Directory::open(dir.path(), true).unwrap(), backend, 8, 1).unwrap();
            let (file, begun) = (crate::io::create(&disk, "file", BLOCK as u64).unwrap(), Arc::new(AtomicU64::new(0)));
            let mut stream = Panics(Arc::clone(&file), Arc::clone(&begun));
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disk.read_stream(&mut stream)));
            assert!(panicked.is_err() && begun.load(Ordering::Relaxed) > 0);
            let read = |number| StreamRead { number, file: Arc::clone(&file), offset: 0, buf: AlignedBuf::zeroed(BLOCK), done: false };
            assert!(read_all(&disk, (0..20).map(read)).iter().all(|read| read.done));
            if let Some(rings) = &disk.rings {
                // The ring of the stream that panicked is gone. The next stream took a new one.
                assert_eq!(rings.idle(), 1);
            }
        }
    }
}
