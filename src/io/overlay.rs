//! A disk whose changes stay in DRAM, over another disk that is only read.
//!
//! A store that is opened for reading runs on this disk. So recovery and the engine work as on any
//! other disk, and the directory below stays as it is:
//!
//! - A read returns the bytes of the file below, with the blocks that were written here.
//! - A write keeps its blocks in DRAM. A block that the file below holds already is not kept.
//! - Files are created, resized, removed and renamed here alone. A sync does nothing.
//! - A view of a ring is a copy. Every later view is the same copy, although another process may
//!   change the ring.
//! - The lock is not taken.
//!
//! A file without blocks in DRAM gives the descriptor of the file below, so that its reads may go
//! through `io_uring`.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::aligned::AlignedBuf;
use super::async_read::Reading;
use super::{BLOCK, Disk, DiskLock, File, InMemory, LockError, Mapping, ReadStream, SECTOR, StreamRead};
use crate::codec::round_down;
use crate::concurrent::lock;

/// Most bytes that one write compares with the file below at a time.
const PIECE: usize = 1 << 20;

/// A disk over `below`, which is never changed.
#[derive(Debug)]
pub(crate) struct Overlay {
    below: Arc<dyn Disk>,
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    /// Files that were opened or made here. `None` for a file below that was removed here.
    files: BTreeMap<String, Option<Arc<Layered>>>,
    /// Copies of rings below, by name and length. The flag says whether bytes are lost.
    views: BTreeMap<(String, u64), (Arc<InMemory>, bool)>,
}

impl Overlay {
    pub(crate) fn new(below: Arc<dyn Disk>) -> Self {
        Self { below, names: Mutex::default() }
    }

    /// Copies the bytes of a file below from `from` to `to` into DRAM, in whole blocks. Later
    /// changes of the file below do not matter there.
    pub(crate) fn pin(&self, name: &str, from: u64, to: u64) -> io::Result<()> {
        let file = self.find(&mut self.names(), name)?;
        let mut at = round_down(from, BLOCK as u64);
        while at < to {
            let len = (to - at).next_multiple_of(BLOCK as u64).min(PIECE as u64);
            let mut piece = AlignedBuf::zeroed(len as usize);
            file.read(at, &mut piece)?;
            file.write_state().keep(at, &piece, |_| false);
            at += len;
        }
        Ok(())
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        lock(&self.names)
    }

    /// The file with this name.
    fn find(&self, names: &mut Names, name: &str) -> io::Result<Arc<Layered>> {
        match names.files.get(name) {
            Some(Some(file)) => Ok(Arc::clone(file)),
            Some(None) => Err(io::ErrorKind::NotFound.into()),
            None => {
                let file = Arc::new(Layered::over(self.below.open(name)?));
                names.files.insert(name.to_owned(), Some(Arc::clone(&file)));
                Ok(file)
            }
        }
    }

    /// The content of a ring below: a copy, which the first call takes.
    fn view_below(&self, names: &mut Names, name: &str, len: u64) -> io::Result<(Arc<InMemory>, bool)> {
        if let Some((copy, lost)) = names.views.get(&(name.to_owned(), len)) {
            return Ok((Arc::clone(copy), *lost));
        }
        let (view, lost) = self.below.view(name, len)?;
        let copy = Arc::new(InMemory::copy_of_mapping(view.as_ref()));
        names.views.insert((name.to_owned(), len), (Arc::clone(&copy), lost));
        Ok((copy, lost))
    }
}

impl Disk for Overlay {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let file = self.find(&mut self.names(), name)?;
        Ok(file.handle())
    }

    fn create_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let mut names = self.names();
        match self.find(&mut names, name) {
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = Arc::new(Layered::zeroed(len));
        names.files.insert(name.to_owned(), Some(Arc::clone(&file)));
        Ok(file.handle())
    }

    fn resize_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let file = self.find(&mut self.names(), name)?;
        file.write_state().resize(len)?;
        Ok(file.handle())
    }

    fn map(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        let mut names = self.names();
        let file = match self.find(&mut names, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Arc::new(Layered::zeroed(0)),
            found => found?,
        };
        let is_fresh = file.read_state().len != len;
        let content = match (file.mapping(), is_fresh) {
            (Some(mapping), false) => mapping,
            (_, true) => Arc::new(InMemory::zeroed(len)),
            (None, false) if file.is_as_below() => Arc::new(InMemory::copy_of_mapping(self.view_below(&mut names, name, len)?.0.as_ref())),
            (None, false) => Arc::new(InMemory::copy_of(file.handle().as_ref())?),
        };
        file.write_state().become_mapping(&content, len);
        names.files.insert(name.to_owned(), Some(file));
        Ok((content, is_fresh))
    }

    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        let mut names = self.names();
        match names.files.get(name) {
            Some(Some(file)) if file.read_state().len != len => {}
            Some(None) => {}
            Some(Some(file)) if !file.is_as_below() => {
                let content = file.mapping().map_or_else(|| InMemory::copy_of(file.handle().as_ref()).map(Arc::new), Ok)?;
                return Ok((content, false));
            }
            _ => {
                let (copy, lost) = self.view_below(&mut names, name, len)?;
                return Ok((copy, lost));
            }
        }
        Ok((Arc::new(InMemory::zeroed(len)), true))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut found: BTreeMap<String, u64> = self.below.list()?.into_iter().collect();
        for (name, file) in &self.names().files {
            match file {
                Some(file) => drop(found.insert(name.clone(), file.read_state().len)),
                None => drop(found.remove(name)),
            }
        }
        Ok(found.into_iter().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut names = self.names();
        self.find(&mut names, name)?;
        names.files.insert(name.to_owned(), None);
        names.views.retain(|(of, _), _| of != name);
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut names = self.names();
        let file = self.find(&mut names, from)?;
        names.files.insert(from.to_owned(), None);
        names.files.insert(to.to_owned(), Some(file));
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError> {
        Ok(Box::new(NotLocked))
    }

    fn read_stream(&self, stream: &mut dyn ReadStream) {
        self.below.read_stream(stream);
    }

    fn start_read(&self, read: StreamRead) -> Reading {
        self.below.start_read(read)
    }

    fn reads_together(&self) -> bool {
        self.below.reads_together()
    }

    fn boot_id(&self) -> u64 {
        self.below.boot_id()
    }

    fn mark_cached(&self, _name: &str) -> io::Result<bool> {
        Ok(false)
    }

    fn is_cached(&self, name: &str) -> io::Result<bool> {
        self.below.is_cached(name)
    }

    fn bytes_in_memory(&self) -> u64 {
        self.names().files.values().flatten().map(|file| file.read_state().bytes_in_memory()).sum()
    }

    fn close(&self) {
        *self.names() = Names::default();
        self.below.close();
    }
}

/// No lock: nothing is written that another process could see.
#[derive(Debug)]
pub(crate) struct NotLocked;

impl DiskLock for NotLocked {}

/// A file below with the changes that were made here, or a file that was made here.
#[derive(Debug)]
struct Layered {
    below: Option<Arc<dyn File>>,
    state: RwLock<State>,
}

#[derive(Debug)]
struct State {
    len: u64,
    /// Bytes of the file below that are not cut off.
    shown: u64,
    /// The blocks that were written here, by their offset.
    blocks: BTreeMap<u64, AlignedBuf>,
    /// The whole content, once the file is mapped.
    mapping: Option<Arc<InMemory>>,
}

impl State {
    fn of_len(len: u64, shown: u64) -> RwLock<Self> {
        RwLock::new(Self { len, shown, blocks: BTreeMap::new(), mapping: None })
    }

    /// Keeps the blocks of `bytes` at `offset`, but for those that the file below has already.
    fn keep(&mut self, offset: u64, bytes: &[u8], is_below: impl Fn(usize) -> bool) {
        for (i, block) in bytes.chunks(BLOCK).enumerate() {
            let at = offset + (i * BLOCK) as u64;
            if is_below(i) {
                self.blocks.remove(&at);
                continue;
            }
            self.blocks.entry(at).or_insert_with(|| AlignedBuf::zeroed(BLOCK))[..block.len()].copy_from_slice(block);
        }
    }

    fn resize(&mut self, len: u64) -> io::Result<()> {
        if self.mapping.is_some() && self.len != len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a mapped file is not resized"));
        }
        self.len = len;
        self.shown = self.shown.min(len);
        self.blocks.retain(|at, _| *at < len);
        Ok(())
    }

    fn become_mapping(&mut self, content: &Arc<InMemory>, len: u64) {
        *self = Self { len, shown: 0, blocks: BTreeMap::new(), mapping: Some(Arc::clone(content)) };
    }

    fn bytes_in_memory(&self) -> u64 {
        self.blocks.len() as u64 * BLOCK as u64
    }
}

impl Layered {
    fn over(below: Arc<dyn File>) -> Self {
        let len = below.len();
        Self { below: Some(below), state: State::of_len(len, len) }
    }

    fn zeroed(len: u64) -> Self {
        Self { below: None, state: State::of_len(len, 0) }
    }

    fn handle(self: &Arc<Self>) -> Arc<dyn File> {
        Arc::new(Handle { file: Arc::clone(self), len: self.read_state().len })
    }

    fn read_state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_state(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn mapping(&self) -> Option<Arc<InMemory>> {
        self.read_state().mapping.clone()
    }

    /// Whether the file is the one below, unchanged.
    fn is_as_below(&self) -> bool {
        self.unchanged(&self.read_state()).is_some()
    }

    /// The file below, if it was not changed here.
    fn unchanged(&self, state: &State) -> Option<&Arc<dyn File>> {
        self.below
            .as_ref()
            .filter(|file| state.mapping.is_none() && state.blocks.is_empty() && state.shown == state.len && state.len == file.len())
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let state = self.read_state();
        if let Some(below) = self.unchanged(&state) {
            return below.read_at(offset, buf);
        }
        if offset + buf.len() as u64 > state.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(mapping) = &state.mapping {
            mapping.load(offset, buf);
            return Ok(());
        }
        let (mut at, mut rest) = (offset, buf);
        while !rest.is_empty() {
            let block = round_down(at, BLOCK as u64);
            let to_next = (block + BLOCK as u64 - at) as usize;
            let n = match state.blocks.range(block..).next() {
                Some((&first, held)) if first == block => {
                    let n = to_next.min(rest.len());
                    rest[..n].copy_from_slice(&held[(at - block) as usize..][..n]);
                    n
                }
                next => {
                    let n = next.map_or(rest.len(), |(&first, _)| rest.len().min((first - at) as usize));
                    self.read_below(&state, at, &mut rest[..n])?;
                    n
                }
            };
            at += n as u64;
            rest = &mut rest[n..];
        }
        Ok(())
    }

    /// Reads bytes of which none was written here: those of the file below, and then zeros.
    fn read_below(&self, state: &State, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let shown = round_down(state.shown, SECTOR as u64).saturating_sub(offset).min(buf.len() as u64) as usize;
        let (there, beyond) = buf.split_at_mut(shown);
        beyond.fill(0);
        match &self.below {
            Some(below) if !there.is_empty() => below.read_at(offset, there),
            _ => Ok(()),
        }
    }

    fn write(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut state = self.write_state();
        if offset + buf.len() as u64 > state.len {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a write beyond the file's end"));
        }
        if let Some(mapping) = &state.mapping {
            mapping.store(offset, buf);
            return Ok(());
        }
        let mut there = AlignedBuf::zeroed(buf.len().clamp(BLOCK, PIECE));
        for (i, piece) in buf.chunks(PIECE).enumerate() {
            let at = offset + (i * PIECE) as u64;
            let there = &mut there[..piece.len()];
            let could_read = self.read_below(&state, at, there).is_ok();
            let is_below = |block: usize| {
                let range = block * BLOCK..((block + 1) * BLOCK).min(piece.len());
                could_read && there[range.clone()] == piece[range]
            };
            state.keep(at, piece, is_below);
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Handle {
    file: Arc<Layered>,
    len: u64,
}

impl File for Handle {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.file.read(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.file.write(offset, buf)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn descriptor(&self) -> Option<RawFd> {
        self.file.unchanged(&self.file.read_state()).and_then(|below| below.descriptor())
    }
}
