//! The operating system's files: positional direct I/O, or buffered I/O where the file system
//! refuses it.
#![allow(unsafe_code, reason = "a shared mapping is foreign memory")]

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, MmapOptions, MmapRaw};
use rustix::fs::{FallocateFlags, FlockOperation, OFlags};
use rustix::io::{Errno, retry_on_intr};

use super::aligned::AlignedBuf;
use super::async_read::{Operation, Reading};
use super::reactor::Reactor;
use super::read_threads::ReadThreads;
use super::uring::Rings;
use super::{BLOCK, Disk, DiskLock, File, InMemory, LockError, Mapping, ReadStream, StreamRead, read_one_by_one};
use crate::codec::{round_down, round_up};
use crate::config::Backend;

/// Name of the file whose lock locks the directory.
pub(crate) const LOCK_FILE: &str = "LOCK";

/// A directory of the operating system.
#[derive(Debug)]
pub(crate) struct PosixDisk {
    dir: PathBuf,
    /// The directory itself. It stays open so that a sync needs no new descriptor.
    handle: Option<fs::File>,
    writable: bool,
    rings: Option<Rings>,
    depth: u32,
    read_threads: u32,
    /// Whether the device's logical blocks are larger than [`SECTOR`]. Set by the first read that
    /// the device refuses for that reason.
    coarse: Arc<AtomicBool>,
    /// Performs the reads of tasks, where a ring is available.
    reactor: OnceLock<Option<Reactor>>,
    /// Performs the reads of tasks, where no ring is available.
    pool: OnceLock<ReadThreads>,
}

impl PosixDisk {
    /// `handle` is the directory `dir`. Fails only if `backend` insists on `io_uring` and that is
    /// not available.
    pub(crate) fn new(dir: &Path, handle: fs::File, backend: Backend, depth: u32, read_threads: u32) -> io::Result<Self> {
        let rings = match backend {
            Backend::Portable => None,
            Backend::IoUring => Some(Rings::probe(depth)?),
            Backend::Auto => Rings::probe(depth)
                .inspect(|_| tracing::info!(dir = %dir.display(), "reads go through io_uring"))
                .inspect_err(|error| tracing::info!(dir = %dir.display(), %error, "io_uring is not available; threads perform the reads"))
                .ok(),
        };
        Ok(Self { handle: Some(handle), writable: true, rings, depth, read_threads, ..Self::read_only(dir) })
    }

    /// A disk that opens existing files for reading, without rings and without a handle for
    /// directory syncs.
    pub(crate) fn read_only(dir: &Path) -> Self {
        let (reactor, pool) = (OnceLock::new(), OnceLock::new());
        Self {
            dir: dir.to_owned(),
            handle: None,
            writable: false,
            rings: None,
            depth: 1,
            read_threads: 1,
            coarse: Arc::default(),
            reactor,
            pool,
        }
    }

    fn options(&self) -> OpenOptions {
        let mut options = OpenOptions::new();
        options.read(true).write(self.writable).mode(0o600);
        options
    }

    fn file(&self, file: fs::File, len: u64) -> Arc<dyn File> {
        Arc::new(PosixFile { file, len, coarse: Arc::clone(&self.coarse) })
    }

    /// The ring for the reads of tasks. `None` if there is no ring, or if the device refuses reads
    /// of single sectors.
    fn reactor(&self) -> Option<&Reactor> {
        if self.rings.is_none() || self.coarse.load(Ordering::Relaxed) {
            return None;
        }
        let make = || {
            let no_ring =
                |error: &io::Error| tracing::info!(dir = %self.dir.display(), %error, "no io_uring for tasks; threads perform their reads");
            Reactor::new(self.depth).inspect_err(no_ring).ok()
        };
        self.reactor.get_or_init(make).as_ref()
    }

    /// Opens with `O_DIRECT`, or without it where the file system refuses the flag (tmpfs).
    fn open_direct(&self, path: &Path, create: bool) -> io::Result<fs::File> {
        let mut options = self.options();
        options.create(create).custom_flags(OFlags::DIRECT.bits() as i32);
        match options.open(path) {
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => options.custom_flags(0).open(path),
            other => other,
        }
    }
}

/// Allocates blocks for `[0, len)`. Where the file system cannot, writes zeros behind the existing
/// content.
fn allocate(file: &fs::File, len: u64) -> io::Result<()> {
    match retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len)) {
        Ok(()) => Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill_with_zeros(file, len),
        Err(e) => Err(e.into()),
    }
}

/// Extends a file to `len` bytes with zeros. Its existing whole blocks stay unchanged.
fn fill_with_zeros(file: &fs::File, len: u64) -> io::Result<()> {
    let zeros = AlignedBuf::zeroed(1 << 20);
    let mut at = round_down(file.metadata()?.len(), BLOCK as u64);
    while at < len {
        let n = (zeros.len() as u64).min(len - at);
        file.write_all_at(&zeros[..n as usize], at)?;
        at += n;
    }
    Ok(())
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
        let file = self.open_direct(&self.dir.join(name), false)?;
        let len = file.metadata()?.len();
        Ok(self.file(file, len))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let file = self.open_direct(&self.dir.join(name), true)?;
        if file.metadata()?.len() > len {
            file.set_len(len)?;
        }
        allocate(&file, len)?;
        Ok(self.file(file, len))
    }

    fn map(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        let path = self.dir.join(name);
        let file = self.options().create(true).truncate(false).open(&path)?;
        let fresh = file.metadata()?.len() != len;
        if fresh {
            // The zeros are written, not only allocated. A store into an unwritten extent would
            // have to convert it, and could find the disk full.
            let filled = file.set_len(0).and_then(|()| fill_with_zeros(&file, len)).and_then(|()| file.sync_all());
            if let Err(error) = filled {
                // Give the space back to other files.
                let _left_if_it_must = fs::remove_file(&path);
                return Err(error);
            }
        }
        let map = MmapOptions::new().len(len as usize).map_raw(&file)?;
        if !is_readable(&map) {
            let replace = |block: u64, bytes: Option<&[u8]>| if bytes.is_none() { file.write_all_at(&[0; BLOCK], block) } else { Ok(()) };
            each_block(|at, buf| file.read_exact_at(buf, at), replace, len)?;
        }
        Ok((Arc::new(PosixMapping { map }), fresh))
    }

    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        let file = match self.options().open(self.dir.join(name)) {
            Ok(file) if file.metadata()?.len() == len => file,
            Ok(_) => return Ok((Arc::new(InMemory::zeroed(len)), true)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Arc::new(InMemory::zeroed(len)), true)),
            Err(e) => return Err(e),
        };
        let map = MmapOptions::new().len(len as usize).map_raw(&file)?;
        if is_readable(&map) {
            return Ok((Arc::new(PosixMapping { map }), false));
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
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            names.push((entry.file_name().to_string_lossy().into_owned(), entry.metadata()?.len()));
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.dir.join(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.dir.join(from), self.dir.join(to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        match &self.handle {
            Some(dir) => dir.sync_all(),
            None => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError> {
        let open = self.options().create(true).truncate(false).open(self.dir.join(LOCK_FILE));
        let mut file = open.map_err(LockError::Io)?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _unreadable_means_unknown = file.read_to_string(&mut text);
                return Err(LockError::Held { pid: text.trim().parse().unwrap_or(0) });
            }
            Err(e) => return Err(LockError::Io(e.into())),
        }
        // The pid replaces that of the last holder at the same length, since a full disk has no
        // room for a longer text.
        file.write_all_at(format!("{:<19}\n", std::process::id()).as_bytes(), 0).map_err(LockError::Io)?;
        Ok(Box::new(PosixLock { _file: file }))
    }

    fn read_stream(&self, stream: &mut dyn ReadStream) {
        let rings = self.rings.as_ref().filter(|_| !self.coarse.load(Ordering::Relaxed));
        if !rings.is_some_and(|rings| rings.read(stream)) {
            read_one_by_one(stream);
        }
    }

    fn start_read(&self, read: StreamRead) -> Reading {
        let operation = Operation::new(read);
        match self.reactor() {
            Some(reactor) => reactor.start(Arc::clone(&operation)),
            None => self.pool.get_or_init(|| ReadThreads::new(self.read_threads)).start(Arc::clone(&operation)),
        }
        Reading::new(operation)
    }

    fn reads_together(&self) -> bool {
        self.rings.is_some()
    }

    fn boot_id(&self) -> u64 {
        match fs::read("/proc/sys/kernel/random/boot_id") {
            Ok(text) => xxhash_rust::xxh3::xxh3_64(&text),
            // A new value each time, since the last process may have been stopped by a power cut.
            Err(_not_there) => crate::clock::Clock::entropy(&crate::clock::SystemClock),
        }
    }
}

#[derive(Debug)]
struct PosixLock {
    /// The lock lasts as long as this descriptor is open. A thread that dies inside a write keeps
    /// it open until the write has ended.
    _file: fs::File,
}

impl DiskLock for PosixLock {}

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
        // This call completes short writes and repeats interrupted ones.
        self.file.write_all_at(buf, offset)
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
    map: MmapRaw,
}

impl Mapping for PosixMapping {
    fn words(&self) -> &[AtomicU64] {
        let ptr = self.map.as_mut_ptr().cast::<AtomicU64>();
        // SAFETY: the mapping is page-aligned, `len` bytes long, and lives as long as `self`. This
        // process accesses it only through these atomics and through `Ring::lend`. No other process
        // maps it while the directory is locked.
        unsafe { std::slice::from_raw_parts(ptr, self.map.len() / 8) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::conformance::read_all;

    #[test]
    fn blocks_that_cannot_be_read_are_told_from_others() {
        let read = |at: u64, buf: &mut [u8]| match at / BLOCK as u64 {
            0 | 70 | 149 => Err(io::ErrorKind::Other.into()),
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
            let disk = PosixDisk::new(dir.path(), fs::File::open(dir.path()).unwrap(), backend, 2, 1).unwrap();
            let file = disk.create("file", BLOCKS * BLOCK as u64).unwrap();
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
            let other = crate::io::sim::SimDisk::new(1).create("file", BLOCK as u64).unwrap();
            let read = || StreamRead { number: 0, file: Arc::clone(&other), offset: 0, buf: AlignedBuf::zeroed(BLOCK), done: false };
            assert!(read_all(&disk, [read()])[0].done && pollster::block_on(disk.start_read(read())).done, "{backend:?}, {disk:?}");
        }
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
            let disk = PosixDisk::new(dir.path(), fs::File::open(dir.path()).unwrap(), backend, 8, 1).unwrap();
            let (file, begun) = (disk.create("file", BLOCK as u64).unwrap(), Arc::new(AtomicU64::new(0)));
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
