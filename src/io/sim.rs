//! The simulated disk: one directory in memory, on which tests run the whole engine and see what a crash would have left.
//!
//! # What is modelled
//!
//! *Live and durable.* A file is what running programs read (live) and what the medium holds (durable). Between them lies, in order, every change
//! since the last sync: sectors of 512 B and lengths. The directory likewise: names made, removed and given to another file. [`File::sync`] makes the changes of one file
//! durable, [`Disk::sync_dir`] those of the directory, and the lengths of the files it makes findable. Neither promises anything about the other.
//!
//! *Kill.* The process dies, the operating system lives: everything that was written or stored into a mapping is there. The operation that was under
//! way has happened not at all, in part or whole. Nothing becomes durable by it: a power cut may follow.
//!
//! *Power cut.* Any subset of the unsynced changes survives, so they may be lost, reordered, or torn inside a block, and a sector may show any of its
//! versions since the last sync. Mappings are files whose changes nobody ordered: each sector is as last synced or as last seen. What was under way
//! counts as unsynced. The boot id changes.
//!
//! *Faults.* A planned operation fails. A failed write may have happened in part; a failed creation leaves the name behind; a failed sync made
//! nothing durable and, if so planned, marked the pages clean as Linux does: they are still read, and never written again. A lost or misdirected
//! write succeeds, and its bytes are nowhere, or elsewhere. What is stuck does not end until it is released. A full disk refuses creation only,
//! because files are allocated whole.
//!
//! *Points.* Each state-changing operation (write, sync, create, a mapping that is made, remove, rename, directory sync) is one point, counted from 1. A
//! machine stopped at point n fails everything from then on, and stores into its mappings no longer count. A store is not a point: whoever wants a
//! kill between two stores takes [`SimDisk::after_kill`] there.
//!
//! Breaking the alignment rules of [`File`] is a bug of ours and panics. The lock has no file here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::io::Errno;

use super::{BLOCK, Disk, DiskLock, File, InMemory, LockError, Mapping, SECTOR};
use crate::clock::Clock;
use crate::concurrent::{Event, lock};

/// A disk in memory. Clones are the same disk; [`SimDisk::after_kill`] and [`SimDisk::after_power_cut`] make others.
#[derive(Clone)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
    released: Arc<Event>,
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

/// What happens when a file of this name is written to.
type Meanwhile = (String, Box<dyn FnOnce() + Send>);

/// Which operations a planned fault counts and hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultOp {
    /// [`Disk::open`], and [`Disk::map`] of a file that is there.
    Open,
    Read,
    Write,
    /// [`File::write_at`] that writes nothing and says that it did.
    WriteLost,
    /// [`File::write_at`] that writes to another place of some file, and says that it wrote where it was told.
    WriteMisdirected,
    /// [`File::sync`]; the changes stay unsynced.
    Sync,
    /// [`File::sync`]; the changes are forgotten, but still read.
    SyncDroppingPages,
    /// [`Disk::create`], and [`Disk::map`] that makes the file.
    Create,
    Remove,
    Rename,
    SyncDir,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Kind(io::ErrorKind),
    /// What has no kind of its own.
    Errno(Errno),
}

impl From<io::ErrorKind> for Failure {
    fn from(kind: io::ErrorKind) -> Self {
        Self::Kind(kind)
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Kind(kind) => kind.into(),
            Failure::Errno(errno) => errno.into(),
        }
    }
}

/// What a power cut does to unsynced changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerCut {
    KeepAll,
    LoseAll,
    /// By seed: some files whole, some not at all, some page by page, some pages sector by sector.
    Random,
}

impl SimDisk {
    /// An empty disk without a limit. `seed` decides how much of a failed or interrupted operation happens.
    pub(crate) fn new(seed: u64) -> Self {
        Self::from_state(State {
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            unsynced_names: Vec::new(),
            capacity: u64::MAX,
            boot_id: 1,
            random: Random(seed),
            locked: false,
            operations: 0,
            stop_at: u64::MAX,
            stop_after_fault: None,
            stopped: false,
            in_flight: None,
            faults: Vec::new(),
            faults_injected: 0,
            stuck: None,
            unreadable: Vec::new(),
            failed: BTreeSet::new(),
            reused: BTreeSet::new(),
        })
    }

    fn from_state(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)), released: Arc::default(), meanwhile: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The state, once operations of this kind are not stuck.
    fn unstuck(&self, op: FaultOp) -> MutexGuard<'_, State> {
        loop {
            let seen = self.released.count();
            let state = self.state();
            if state.stuck != Some(op) {
                return state;
            }
            drop(state);
            self.released.wait(seen, None);
        }
    }

    /// Whether the machine has stopped.
    pub(crate) fn has_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Points passed so far.
    pub(crate) fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Stops the machine at point `n`, or at the next one if `n` has passed.
    pub(crate) fn stop_at(&self, n: u64) {
        self.state().stop_at = n;
    }

    /// Stops the machine `more` points after the next planned failure.
    pub(crate) fn stop_after_fault(&self, more: u64) {
        self.state().stop_after_fault = Some(more);
    }

    /// Lets the `nth` operation of this kind from now (1 is the next one) fail: once, or with all that follow.
    pub(crate) fn fail(&self, op: FaultOp, nth: u64, how: impl Into<Failure>, repeat: bool) {
        self.state().faults.push(Fault { op, nth, how: how.into(), repeat });
    }

    /// Reads of a file fail from now on if they touch the block at `offset`.
    pub(crate) fn fail_reads_of(&self, name: &str, offset: u64) {
        let mut state = self.state();
        let file = state.names[name];
        state.unreadable.push((file, offset));
    }

    /// Reads, writes or syncs begin and do not end until [`SimDisk::release`].
    pub(crate) fn hold(&self, op: FaultOp) {
        self.state().stuck = Some(op);
    }

    /// Nothing is stuck any more.
    pub(crate) fn release(&self) {
        self.state().stuck = None;
        self.released.signal();
    }

    /// Calls `work` just before the first write to the file of this name while `during` runs: what another thread may do at that moment, on the thread that writes.
    pub(crate) fn meanwhile<T>(&self, name: &str, work: impl FnOnce() + Send + 'static, during: impl FnOnce() -> T) -> T {
        *lock(&self.meanwhile) = Some((name.to_owned(), Box::new(work)));
        let done = during();
        *lock(&self.meanwhile) = None;
        done
    }

    /// Does what was asked for at a write to this file.
    fn before_write(&self, file: usize) {
        let due = lock(&self.meanwhile).take_if(|(name, _)| self.state().find(name).is_ok_and(|named| named == file));
        if let Some((_, work)) = due {
            work();
        }
    }

    /// Nothing fails from now on.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// How many operations failed as planned by [`SimDisk::fail`].
    pub(crate) fn faults_injected(&self) -> u64 {
        self.state().faults_injected
    }

    /// Names of files that were written or synced again after that had failed, by whatever process.
    pub(crate) fn reused(&self) -> Vec<String> {
        let state = self.state();
        state.names.iter().filter(|(_, file)| state.reused.contains(file)).map(|(name, _)| name.clone()).collect()
    }

    /// Limits the sum of all file lengths.
    pub(crate) fn capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// The disk as the next process finds it if this one dies now, or died at the stop.
    pub(crate) fn after_kill(&self) -> Self {
        let mut image = self.state().clone();
        image.freeze();
        if let Some(op) = image.in_flight.take() {
            image.interrupt(op);
        }
        Self::from_state(image.restarted())
    }

    /// The disk as the next boot finds it if power fails now, or failed at the stop.
    pub(crate) fn after_power_cut(&self, seed: u64, damage: PowerCut) -> Self {
        let mut image = self.state().clone();
        image.freeze();
        match image.in_flight.take() {
            // Every subset of what it would have made durable is drawn from below anyway.
            None | Some(Operation::Sync { .. } | Operation::SyncDir) => {}
            Some(op) => drop(image.apply(&op)),
        }
        image.lose_power(seed, damage);
        Self::from_state(image.restarted())
    }

    /// Flips bits of one byte, in the cache and on the medium.
    pub(crate) fn corrupt(&self, name: &str, offset: u64, xor: u8) {
        self.state().named(name).corrupt(offset as usize, xor);
    }

    /// Puts `bytes` over a part of a file, in the cache and on the medium. Not while it is mapped.
    pub(crate) fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) {
        let mut state = self.state();
        let file = state.named(name);
        file.sync();
        assert!(file.pages.is_none(), "a mapped file is not written behind its mapping");
        for image in [&mut file.live, &mut file.durable] {
            let image = Arc::make_mut(image);
            let end = offset as usize + bytes.len();
            image.resize(image.len().max(end), 0);
            image[offset as usize..end].copy_from_slice(bytes);
        }
    }

    /// Takes a name away, in the cache and on the medium.
    pub(crate) fn lose(&self, name: &str) {
        let mut state = self.state();
        state.sync_dir();
        state.names.remove(name);
        state.durable_names.remove(name);
    }

    /// Cuts a file, in the cache and on the medium. Whoever has it mapped keeps memory that is no longer the file's.
    pub(crate) fn truncate(&self, name: &str, len: u64) {
        self.state().named(name).truncate(len as usize);
    }

    /// What a file holds, also of a stopped machine.
    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let mut state = self.state().clone();
        state.freeze();
        let file = state.names[name];
        state.files[file].live.to_vec()
    }

    /// Names and lengths of all files, also of a stopped machine.
    pub(crate) fn files(&self) -> Vec<(String, u64)> {
        let state = self.state();
        state.names.iter().map(|(name, &file)| (name.clone(), state.files[file].len())).collect()
    }

    /// Hash of all names and live contents: tells images apart.
    pub(crate) fn image_hash(&self) -> u64 {
        let mut image = self.state().clone();
        image.freeze();
        let mut hash = xxhash_rust::xxh3::Xxh3::new();
        for (name, &file) in &image.names {
            let live = &image.files[file].live;
            hash.update(&(name.len() as u64).to_le_bytes());
            hash.update(name.as_bytes());
            hash.update(&(live.len() as u64).to_le_bytes());
            hash.update(live);
        }
        hash.digest()
    }

    fn handle(&self, state: &State, file: usize) -> Arc<dyn File> {
        Arc::new(SimFile { disk: self.clone(), file, len: state.files[file].len() })
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk({} operations)", self.operations())
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        state.observe(FaultOp::Open)?;
        let file = state.find(name)?;
        Ok(self.handle(&state, file))
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        state.change(Operation::Create { name: name.to_owned(), len, emptied: false })?;
        let file = state.find(name)?;
        Ok(self.handle(&state, file))
    }

    fn map(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        assert!(len > 0 && len.is_multiple_of(BLOCK as u64), "a mapping is whole pages");
        let mut state = self.state();
        let fresh = state.find(name).map_or(true, |file| state.files[file].len() != len);
        if fresh {
            state.change(Operation::Create { name: name.to_owned(), len, emptied: true })?;
            // The zeros are written and synced before anybody stores; the name is not.
            state.named(name).sync();
        } else {
            state.observe(FaultOp::Open)?;
        }
        let file = state.named(name);
        let pages = file.pages.get_or_insert_with(|| Arc::new(Pages::holding(&file.live)));
        Ok((Arc::clone(pages) as Arc<dyn Mapping>, fresh))
    }

    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        let mut state = self.state();
        state.observe(FaultOp::Open)?;
        let copy = InMemory::zeroed(len);
        let Some(file) = state.find(name).ok().filter(|file| state.files[*file].len() == len) else { return Ok((Arc::new(copy), true)) };
        state.files[file].settle();
        copy.store(0, &state.files[file].live);
        let bad: Vec<u64> = state.unreadable.iter().filter(|(of, _)| *of == file).map(|(_, at)| *at).collect();
        bad.iter().for_each(|at| copy.store(*at, &[0; BLOCK]));
        Ok((Arc::new(copy), !bad.is_empty()))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.state().running()?;
        Ok(self.files())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        state.running()?;
        state.find(name)?;
        state.change(Operation::Remove { name: name.to_owned() })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut state = self.state();
        state.running()?;
        state.find(from)?;
        state.change(Operation::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.state().change(Operation::SyncDir)
    }

    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError> {
        let mut state = self.state();
        state.running().map_err(LockError::Io)?;
        if mem::replace(&mut state.locked, true) {
            return Err(LockError::Held { pid: std::process::id() });
        }
        Ok(Box::new(SimLock { disk: self.clone() }))
    }

    fn boot_id(&self) -> u64 {
        self.state().boot_id
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locked = false;
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    /// Index into [`State::files`]: it stays valid when the name is removed.
    file: usize,
    len: u64,
}

impl File for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(SECTOR as u64), "a read starts at a sector: {offset}");
        assert!(buf.len().is_multiple_of(SECTOR), "a read is whole sectors: {}", buf.len());
        assert!(buf.as_ptr().addr().is_multiple_of(SECTOR), "a read's buffer starts at a sector");
        let mut state = self.disk.unstuck(FaultOp::Read);
        state.observe(FaultOp::Read)?;
        let range = offset..offset + buf.len() as u64;
        if state.unreadable.iter().any(|(file, at)| *file == self.file && *at < range.end && at + BLOCK as u64 > range.start) {
            return Err(io::Error::other("a bad block"));
        }
        let file = &mut state.files[self.file];
        file.settle();
        let start = offset as usize;
        let bytes = file.live.get(start..start + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(BLOCK as u64), "a write starts at a block: {offset}");
        assert!(buf.len().is_multiple_of(BLOCK), "a write is whole blocks: {}", buf.len());
        assert!(buf.as_ptr().addr().is_multiple_of(BLOCK), "a write's buffer starts at a block");
        self.disk.before_write(self.file);
        let mut state = self.disk.unstuck(FaultOp::Write);
        state.running()?;
        if offset + buf.len() as u64 > state.files[self.file].len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a write beyond the file's end"));
        }
        state.change(Operation::Write { file: self.file, offset, bytes: buf.to_vec() })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.unstuck(FaultOp::Sync).change(Operation::Sync { file: self.file })
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// A state-changing operation: one point.
#[derive(Clone)]
enum Operation {
    Write {
        file: usize,
        offset: u64,
        bytes: Vec<u8>,
    },
    Sync {
        file: usize,
    },
    Create {
        name: String,
        len: u64,
        /// An existing file loses its contents first.
        emptied: bool,
    },
    Remove {
        name: String,
    },
    Rename {
        from: String,
        to: String,
    },
    SyncDir,
}

impl Operation {
    fn site(&self) -> FaultOp {
        match self {
            Self::Write { .. } => FaultOp::Write,
            Self::Sync { .. } => FaultOp::Sync,
            Self::Create { .. } => FaultOp::Create,
            Self::Remove { .. } => FaultOp::Remove,
            Self::Rename { .. } => FaultOp::Rename,
            Self::SyncDir => FaultOp::SyncDir,
        }
    }
}

/// A planned failure.
#[derive(Clone)]
struct Fault {
    op: FaultOp,
    nth: u64,
    how: Failure,
    repeat: bool,
}

impl Fault {
    fn counts(&self, site: FaultOp) -> bool {
        match self.op {
            FaultOp::SyncDroppingPages => site == FaultOp::Sync,
            FaultOp::WriteLost | FaultOp::WriteMisdirected => site == FaultOp::Write,
            op => op == site,
        }
    }
}

/// A name made (with its file), removed (without), or taken over from another one, not yet synced.
#[derive(Clone)]
struct Entry {
    name: String,
    file: Option<usize>,
    /// The name that the file had, and loses at the same moment.
    before: Option<String>,
}

impl Entry {
    fn enter(&self, names: &mut BTreeMap<String, usize>) {
        if let Some(before) = &self.before {
            names.remove(before);
        }
        match self.file {
            Some(file) => names.insert(self.name.clone(), file),
            None => names.remove(&self.name),
        };
    }
}

#[derive(Clone)]
struct State {
    /// Never shortened: handles outlive names.
    files: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// What leads from `durable_names` to `names`, in order.
    unsynced_names: Vec<Entry>,
    capacity: u64,
    boot_id: u64,
    random: Random,
    locked: bool,
    operations: u64,
    stop_at: u64,
    /// That many points after the next planned failure.
    stop_after_fault: Option<u64>,
    stopped: bool,
    /// The operation that the stop interrupted.
    in_flight: Option<Operation>,
    faults: Vec<Fault>,
    faults_injected: u64,
    /// What is under way and does not end.
    stuck: Option<FaultOp>,
    /// File and offset of blocks that have gone bad.
    unreadable: Vec<(usize, u64)>,
    /// Files that a write or a sync failed for, other than for want of room.
    failed: BTreeSet<usize>,
    /// Those of them that were written or synced again.
    reused: BTreeSet<usize>,
}

impl State {
    fn running(&self) -> io::Result<()> {
        if self.stopped {
            return Err(io::Error::other("the simulated machine has stopped"));
        }
        Ok(())
    }

    /// Admits an operation that changes nothing.
    fn observe(&mut self, site: FaultOp) -> io::Result<()> {
        self.running()?;
        self.due_fault(site).map_or(Ok(()), |fault| Err(fault.how.into()))
    }

    /// Does an operation, unless the machine stops at it or it is planned to fail.
    fn change(&mut self, op: Operation) -> io::Result<()> {
        self.running()?;
        self.operations += 1;
        if self.operations >= self.stop_at {
            self.freeze();
            self.stopped = true;
            self.in_flight = Some(op);
            return self.running();
        }
        if let Operation::Write { file, .. } | Operation::Sync { file } = &op
            && self.failed.contains(file)
        {
            self.reused.insert(*file);
        }
        match (self.due_fault(op.site()), op) {
            (Some(Fault { op: FaultOp::WriteLost, .. }), _) => Ok(()),
            (Some(Fault { op: FaultOp::WriteMisdirected, .. }), Operation::Write { bytes, .. }) => {
                self.misdirect(&bytes);
                Ok(())
            }
            (Some(fault), op) => {
                self.fail(&op, &fault);
                Err(fault.how.into())
            }
            (None, op) => self.apply(&op),
        }
    }

    fn due_fault(&mut self, site: FaultOp) -> Option<Fault> {
        let mut due = None;
        for (index, fault) in self.faults.iter_mut().enumerate().filter(|(_, f)| f.counts(site)) {
            if fault.nth > 1 {
                fault.nth -= 1;
            } else if due.is_none() {
                due = Some(index);
            }
        }
        let index = due?;
        self.faults_injected += 1;
        let fault = self.faults[index].clone();
        if !fault.repeat {
            self.faults.remove(index);
        }
        Some(fault)
    }

    fn apply(&mut self, op: &Operation) -> io::Result<()> {
        match op {
            Operation::Write { file, offset, bytes } => {
                self.files[*file].write(*offset, bytes, |_| true);
            }
            Operation::Sync { file } => self.files[*file].sync(),
            Operation::Create { name, len, emptied } => return self.create(name, *len, *emptied),
            Operation::Remove { name } => self.enter(Entry { name: name.clone(), file: None, before: None }),
            Operation::Rename { from, to } => {
                let file = Some(self.find(from)?);
                self.enter(Entry { name: to.clone(), file, before: Some(from.clone()) });
            }
            Operation::SyncDir => self.sync_dir(),
        }
        Ok(())
    }

    /// Writes to any place of a file that is not mapped.
    fn misdirect(&mut self, bytes: &[u8]) {
        let Self { files, names, random, .. } = self;
        let fits = |file: &usize| files[*file].pages.is_none() && files[*file].len() >= bytes.len() as u64;
        let fitting: Vec<usize> = names.values().copied().filter(fits).collect();
        let file = &mut files[fitting[random.below(fitting.len() as u64) as usize]];
        let blocks = (file.len() - bytes.len() as u64) / BLOCK as u64;
        file.write(random.below(blocks + 1) * BLOCK as u64, bytes, |_| true);
    }

    /// What a planned failure leaves.
    fn fail(&mut self, op: &Operation, fault: &Fault) {
        if let Some(more) = self.stop_after_fault.take() {
            self.stop_at = self.operations + more;
        }
        match op {
            // For want of room nothing is written, and that can be tried again. A sync has no such excuse.
            Operation::Write { .. } if super::is_shortage(&fault.how.into()) => {}
            Operation::Write { file, .. } | Operation::Sync { file } => drop(self.failed.insert(*file)),
            _ => {}
        }
        match op {
            Operation::Write { file, offset, bytes } => self.write_part(*file, *offset, bytes),
            Operation::Create { name, .. } => drop(self.find_or_enter(name)),
            Operation::Sync { file } if fault.op == FaultOp::SyncDroppingPages => {
                self.files[*file].forget_sectors();
            }
            Operation::Sync { .. } | Operation::Remove { .. } | Operation::Rename { .. } | Operation::SyncDir => {}
        }
    }

    /// What an operation leaves in the operating system whose process was killed in the middle of it.
    fn interrupt(&mut self, op: Operation) {
        match op {
            Operation::Write { file, offset, bytes } => self.write_part(file, offset, &bytes),
            Operation::Create { ref name, .. } if self.random.coin() => drop(self.find_or_enter(name)),
            op if self.random.coin() => drop(self.apply(&op)),
            _ => {}
        }
    }

    /// Writes nothing, all, the front, or scattered sectors.
    fn write_part(&mut self, file: usize, offset: u64, bytes: &[u8]) {
        let Self { files, random, .. } = self;
        let file = &mut files[file];
        match random.below(4) {
            0 => {}
            1 => file.write(offset, bytes, |_| true),
            2 => {
                let front = random.below((bytes.len() / SECTOR) as u64);
                file.write(offset, bytes, |sector| (sector as u64) < front);
            }
            _ => file.write(offset, bytes, |_| random.coin()),
        }
    }

    fn create(&mut self, name: &str, len: u64, emptied: bool) -> io::Result<()> {
        let file = self.find_or_enter(name);
        if emptied {
            self.files[file].pages = None;
            self.files[file].resize(0);
        }
        let used: u64 = self.names.values().map(|&file| self.files[file].len()).sum();
        if used - self.files[file].len() + len > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.files[file].resize(len as usize);
        Ok(())
    }

    fn sync_dir(&mut self) {
        for entry in mem::take(&mut self.unsynced_names) {
            entry.enter(&mut self.durable_names);
            if let Some(file) = entry.file {
                self.files[file].sync_length();
            }
        }
    }

    fn enter(&mut self, entry: Entry) {
        entry.enter(&mut self.names);
        self.unsynced_names.push(entry);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A name that is not there yet gets an empty file.
    fn find_or_enter(&mut self, name: &str) -> usize {
        self.find(name).unwrap_or_else(|_| {
            let file = self.files.len();
            self.files.push(Inode::default());
            self.enter(Entry { name: name.to_owned(), file: Some(file), before: None });
            file
        })
    }

    /// A file that the caller knows to exist.
    fn named(&mut self, name: &str) -> &mut Inode {
        let file = self.find(name).unwrap_or_else(|_| panic!("no file is named {name}"));
        &mut self.files[file]
    }

    /// Takes over what mappings hold now, and lets go of them: later stores go nowhere.
    fn freeze(&mut self) {
        for file in &mut self.files {
            file.settle();
            file.pages = None;
        }
    }

    /// Keeps a subset of what is unsynced.
    fn lose_power(&mut self, seed: u64, damage: PowerCut) {
        const DIRECTORY: u64 = u64::MAX;
        let cut = Cut { seed, damage };
        for (index, entry) in mem::take(&mut self.unsynced_names).into_iter().enumerate() {
            if cut.keeps(DIRECTORY, index as u64, 0) {
                entry.enter(&mut self.durable_names);
            }
        }
        self.names.clone_from(&self.durable_names);
        for (number, file) in self.files.iter_mut().enumerate() {
            file.lose_power(|page, change| cut.keeps(number as u64, page, change));
        }
        self.boot_id += 1;
    }

    /// The same directory under a new process, without what was planned for the old one.
    fn restarted(self) -> Self {
        Self {
            random: Random(draw(&[self.random.0, self.operations])),
            locked: false,
            operations: 0,
            stop_at: u64::MAX,
            stop_after_fault: None,
            stopped: false,
            in_flight: None,
            faults: Vec::new(),
            faults_injected: 0,
            stuck: None,
            ..self
        }
    }
}

/// One thing that happened to a file since its last sync.
#[derive(Clone)]
enum Change {
    Sector { index: usize, bytes: Arc<[u8; SECTOR]> },
    Length(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Length(len) => image.resize(*len, 0),
            Self::Sector { index, bytes } => {
                // PastEnd the end if the length that made room for it was lost.
                if let Some(sector) = image.as_chunks_mut().0.get_mut(*index) {
                    *sector = **bytes;
                }
            }
        }
    }

    /// What may fail independently of the rest.
    fn page(&self) -> u64 {
        match self {
            Self::Length(_) => u64::MAX,
            Self::Sector { index, .. } => (index * SECTOR / BLOCK) as u64,
        }
    }

    fn is_sector_below(&self, len: usize) -> bool {
        matches!(self, Self::Sector { index, .. } if (index + 1) * SECTOR <= len)
    }
}

/// A file without its name. Images share contents until one of them writes.
#[derive(Clone, Default)]
struct Inode {
    /// What is read. While `pages` is there, what was in them when last looked at.
    live: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    /// What leads from `durable` to `live`, in order, less what failed syncs forgot.
    unsynced: Vec<Change>,
    /// The page cache of a mapped file.
    pages: Option<Arc<Pages>>,
}

impl Inode {
    fn len(&self) -> u64 {
        self.live.len() as u64
    }

    fn change(&mut self, change: Change) {
        change.apply(Arc::make_mut(&mut self.live));
        self.unsynced.push(change);
    }

    /// Writes those sectors of `bytes` that land.
    fn write(&mut self, offset: u64, bytes: &[u8], mut lands: impl FnMut(usize) -> bool) {
        assert!(self.pages.is_none(), "a mapped file is not written behind its mapping");
        let first = offset as usize / SECTOR;
        for (index, sector) in bytes.as_chunks().0.iter().enumerate() {
            if lands(index) {
                self.change(Change::Sector { index: first + index, bytes: Arc::new(*sector) });
            }
        }
    }

    fn resize(&mut self, len: usize) {
        if self.live.len() != len {
            assert!(self.pages.is_none(), "a mapped file is not resized behind its mapping");
            self.change(Change::Length(len));
        }
    }

    /// Takes over what was stored into the mapping.
    fn settle(&mut self) {
        let Some(pages) = &self.pages else { return };
        let now = pages.bytes();
        let sectors = now.as_chunks().0.iter().zip(self.live.as_chunks().0).enumerate();
        let dirty = sectors.filter(|(_, (now, before))| now != before);
        self.unsynced.extend(dirty.map(|(index, (now, _))| Change::Sector { index, bytes: Arc::new(*now) }));
        self.live = Arc::new(now);
    }

    fn sync(&mut self) {
        self.settle();
        let durable = Arc::make_mut(&mut self.durable);
        self.unsynced.drain(..).for_each(|change| change.apply(durable));
    }

    fn sync_length(&mut self) {
        for change in mem::take(&mut self.unsynced) {
            if let Change::Length(len) = change {
                change.apply(Arc::make_mut(&mut self.durable));
                self.unsynced.retain(|earlier| earlier.is_sector_below(len));
            } else {
                self.unsynced.push(change);
            }
        }
    }

    /// Pages are marked clean although they were not written.
    fn forget_sectors(&mut self) {
        self.settle();
        self.unsynced.retain(|change| matches!(change, Change::Length(_)));
    }

    /// Leaves on the medium, and so in every cache, the changes that `keeps(page, change)` names.
    fn lose_power(&mut self, keeps: impl Fn(u64, u64) -> bool) {
        for (index, change) in mem::take(&mut self.unsynced).into_iter().enumerate() {
            if keeps(change.page(), index as u64) {
                change.apply(Arc::make_mut(&mut self.durable));
            }
        }
        self.live = Arc::clone(&self.durable);
    }

    fn corrupt(&mut self, offset: usize, xor: u8) {
        self.settle();
        Arc::make_mut(&mut self.live)[offset] ^= xor;
        if let Some(byte) = Arc::make_mut(&mut self.durable).get_mut(offset) {
            *byte ^= xor;
        }
        for change in &mut self.unsynced {
            if let Change::Sector { index, bytes } = change
                && *index == offset / SECTOR
            {
                Arc::make_mut(bytes)[offset % SECTOR] ^= xor;
            }
        }
        if let Some(pages) = &self.pages {
            let shift = 8 * (offset % 8);
            pages.words()[offset / 8].fetch_xor(u64::from(xor) << shift, Ordering::Relaxed);
        }
    }

    fn truncate(&mut self, len: usize) {
        self.settle();
        self.pages = None;
        Arc::make_mut(&mut self.live).truncate(len);
        Arc::make_mut(&mut self.durable).resize(self.live.len(), 0);
        self.unsynced.retain(|change| change.is_sector_below(len));
    }
}

/// Memory of a mapping, little-endian words from a page boundary on.
#[derive(Debug)]
struct Pages {
    /// More than the mapping, to find the boundary in it.
    allocated: Vec<AtomicU64>,
    first: usize,
    len: usize,
}

impl Pages {
    fn holding(content: &[u8]) -> Self {
        let len = content.len() / 8;
        let mut allocated = Vec::new();
        allocated.resize_with(len + BLOCK / 8, AtomicU64::default);
        let first = allocated.as_ptr().align_offset(BLOCK);
        let pages = Self { allocated, first, len };
        for (word, bytes) in pages.words().iter().zip(content.as_chunks().0) {
            word.store(u64::from_le_bytes(*bytes), Ordering::Relaxed);
        }
        pages
    }

    fn bytes(&self) -> Vec<u8> {
        let mut content = vec![0; self.len * 8];
        for (bytes, word) in content.as_chunks_mut().0.iter_mut().zip(self.words()) {
            *bytes = word.load(Ordering::Relaxed).to_le_bytes();
        }
        content
    }
}

impl Mapping for Pages {
    fn words(&self) -> &[AtomicU64] {
        &self.allocated[self.first..self.first + self.len]
    }
}

/// One power cut: says of each unsynced change whether it survives.
struct Cut {
    seed: u64,
    damage: PowerCut,
}

impl Cut {
    /// Fate is drawn for the file first, then for the page, then for the change, so that whole files and pages are often of one age: a
    /// fair coin for each of many sectors would never show that.
    fn keeps(&self, file: u64, page: u64, change: u64) -> bool {
        match self.damage {
            PowerCut::KeepAll => true,
            PowerCut::LoseAll => false,
            PowerCut::Random => {
                let fates: [&[u64]; 2] = [&[self.seed, file], &[self.seed, file, page]];
                for fate in fates {
                    match draw(fate) % 4 {
                        0 => return false,
                        1 => return true,
                        _ => {}
                    }
                }
                draw(&[self.seed, file, page, change]).is_multiple_of(2)
            }
        }
    }
}

/// A number that depends on every part of `of`.
fn draw(of: &[u64]) -> u64 {
    of.iter().fold(0, |state, part| Random(state ^ part).next())
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
#[derive(Clone)]
struct Random(u64);

impl Random {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(Self::GAMMA);
        Self::mix(self.0)
    }

    fn mix(state: u64) -> u64 {
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// Time that moves only when told to, and seeded entropy.
#[derive(Debug)]
pub(crate) struct SimClock {
    wall_ms: AtomicU64,
    monotonic_ns: AtomicU64,
    entropy: AtomicU64,
}

impl SimClock {
    /// Starts in November 2023.
    pub(crate) fn new(seed: u64) -> Self {
        Self { wall_ms: AtomicU64::new(1_700_000_000_000), monotonic_ns: AtomicU64::new(0), entropy: AtomicU64::new(seed) }
    }

    /// Time passes, on both clocks. The wall clock sees whole milliseconds of the sum.
    pub(crate) fn advance(&self, by: Duration) {
        let by = by.as_nanos() as u64;
        let before = self.monotonic_ns.fetch_add(by, Ordering::Relaxed);
        let whole_ms = (before + by) / 1_000_000 - before / 1_000_000;
        self.wall_ms.fetch_add(whole_ms, Ordering::Relaxed);
    }

    /// Somebody sets the wall clock.
    pub(crate) fn jump_wall(&self, ms: i64) {
        let jump = |wall: u64| Some(wall.saturating_add_signed(ms));
        let _always_jumps = self.wall_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, jump);
    }
}

impl Clock for SimClock {
    fn wall_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::Relaxed)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.monotonic_ns.load(Ordering::Relaxed))
    }

    fn entropy(&self) -> u64 {
        let before = self.entropy.fetch_add(Random::GAMMA, Ordering::Relaxed);
        Random::mix(before.wrapping_add(Random::GAMMA))
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::io::aligned::AlignedBuf;

    const NAME: &str = "a";
    const BLOCKS: u64 = 4;
    const LEN: u64 = BLOCKS * BLOCK as u64;
    const SECTORS: usize = BLOCK / SECTOR;
    const DAMAGES: [PowerCut; 3] = [PowerCut::KeepAll, PowerCut::LoseAll, PowerCut::Random];

    /// A disk with one synced file of zeros.
    fn prepared(seed: u64) -> (SimDisk, Arc<dyn File>) {
        let disk = SimDisk::new(seed);
        let file = disk.create(NAME, LEN).unwrap();
        file.sync().unwrap();
        disk.sync_dir().unwrap();
        (disk, file)
    }

    fn write(file: &dyn File, block: u64, fill: u8) -> io::Result<()> {
        let mut buf = AlignedBuf::zeroed(BLOCK);
        buf.fill(fill);
        file.write_at(block * BLOCK as u64, &buf)
    }

    /// The first byte of each sector of the first block; every sector holds one version whole.
    fn sectors(disk: &SimDisk) -> Vec<u8> {
        let mut buf = AlignedBuf::zeroed(BLOCK);
        disk.open(NAME).unwrap().read_at(0, &mut buf).unwrap();
        let whole = |sector: &[u8; SECTOR]| sector.iter().all(|byte| *byte == sector[0]);
        assert!(buf.as_chunks().0.iter().all(whole), "a sector does not tear");
        buf.as_chunks::<SECTOR>().0.iter().map(|sector| sector[0]).collect()
    }

    fn names(disk: &SimDisk) -> Vec<String> {
        disk.files().into_iter().map(|(name, _)| name).collect()
    }

    fn power_cuts(disk: &SimDisk) -> impl Iterator<Item = SimDisk> {
        (0..300).map(|seed| disk.after_power_cut(seed, PowerCut::Random))
    }

    #[test]
    fn a_synced_write_survives_everything() {
        let (disk, file) = prepared(0);
        write(&*file, 0, 7).unwrap();
        file.sync().unwrap();
        for image in DAMAGES.map(|damage| disk.after_power_cut(1, damage)) {
            assert_eq!(sectors(&image), [7; SECTORS]);
        }
        assert_eq!(sectors(&disk.after_kill()), [7; SECTORS]);
    }

    #[test]
    fn an_unsynced_write_may_be_lost_by_a_power_cut_but_not_by_a_kill() {
        let (disk, file) = prepared(0);
        write(&*file, 0, 7).unwrap();
        let killed = disk.after_kill();
        assert_eq!(sectors(&killed), [7; SECTORS]);
        for run in [&disk, &killed] {
            assert_eq!(sectors(&run.after_power_cut(0, PowerCut::KeepAll)), [7; SECTORS]);
            assert_eq!(sectors(&run.after_power_cut(0, PowerCut::LoseAll)), [0; SECTORS]);
        }
        assert_eq!(sectors(&disk), [7; SECTORS], "an image leaves the run alone");
        assert_eq!(killed.boot_id(), disk.boot_id());
        assert_ne!(disk.after_power_cut(0, PowerCut::KeepAll).boot_id(), disk.boot_id());
    }

    #[test]
    fn unsynced_writes_are_kept_lost_reordered_and_torn() {
        let (disk, file) = prepared(0);
        write(&*file, 0, 1).unwrap();
        write(&*file, 0, 2).unwrap();
        let seen: BTreeSet<_> = power_cuts(&disk).map(|image| sectors(&image)).collect();
        for version in [0, 1, 2] {
            let mixed = |s: &Vec<u8>| s.contains(&version) && s.iter().any(|v| *v != version);
            assert!(seen.iter().any(mixed), "version {version} next to another");
        }
        assert!(seen.contains(&vec![0; SECTORS]) && seen.contains(&vec![2; SECTORS]));

        write(&*file, 1, 3).unwrap();
        let block_1_alone = |image: SimDisk| {
            let mut buf = AlignedBuf::zeroed(SECTOR);
            image.open(NAME).unwrap().read_at(BLOCK as u64, &mut buf).unwrap();
            sectors(&image) == [0; SECTORS] && buf[0] == 3
        };
        assert!(power_cuts(&disk).any(block_1_alone), "the later write alone");
    }

    #[test]
    fn a_power_cut_is_repeated_by_its_seed() {
        let (disk, file) = prepared(0);
        for block in 0..BLOCKS {
            write(&*file, block, 9).unwrap();
        }
        let hashes = || power_cuts(&disk).map(|image| image.image_hash());
        assert!(hashes().eq(hashes()));
        assert!(hashes().collect::<BTreeSet<_>>().len() > 50, "seeds explore");
    }

    #[test]
    fn a_created_name_needs_a_directory_sync() {
        let disk = SimDisk::new(0);
        let file = disk.create(NAME, LEN).unwrap();
        write(&*file, 0, 7).unwrap();
        file.sync().unwrap();
        assert!(names(&disk.after_power_cut(0, PowerCut::LoseAll)).is_empty());
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::KeepAll)), [7; SECTORS]);
        let found: BTreeSet<_> = power_cuts(&disk).map(|image| names(&image).len()).collect();
        assert_eq!(found, BTreeSet::from([0, 1]));
        disk.sync_dir().unwrap();
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [7; SECTORS]);
    }

    #[test]
    fn a_removed_name_may_come_back_until_a_directory_sync() {
        let (disk, _file) = prepared(0);
        disk.remove(NAME).unwrap();
        assert_eq!(disk.remove(NAME).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(names(&disk.after_power_cut(0, PowerCut::LoseAll)), [NAME]);
        disk.sync_dir().unwrap();
        assert!(names(&disk.after_power_cut(0, PowerCut::LoseAll)).is_empty());
    }

    #[test]
    fn a_file_has_its_old_name_or_its_new_one_until_a_directory_sync() {
        let (disk, _file) = prepared(0);
        write(&*disk.create("new", LEN).unwrap(), 0, 7).unwrap();
        disk.open("new").unwrap().sync().unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(disk.rename("absent", NAME).unwrap_err().kind(), io::ErrorKind::NotFound);
        disk.rename("new", NAME).unwrap();
        assert_eq!((names(&disk), sectors(&disk)), (vec![NAME.to_owned()], vec![7; SECTORS]));
        let found: BTreeSet<_> = power_cuts(&disk).map(|image| (names(&image).len(), sectors(&image))).collect();
        assert_eq!(found, BTreeSet::from([(1, vec![7; SECTORS]), (2, vec![0; SECTORS])]));
        disk.sync_dir().unwrap();
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [7; SECTORS]);
    }

    #[test]
    fn what_is_written_again_after_a_failure_is_told() {
        let (disk, file) = prepared(0);
        disk.fail(FaultOp::Write, 1, io::ErrorKind::StorageFull, false);
        write(&*file, 0, 7).unwrap_err();
        file.sync().unwrap();
        assert!(disk.reused().is_empty(), "for want of room it was not written");
        disk.fail(FaultOp::Sync, 1, io::ErrorKind::Other, false);
        file.sync().unwrap_err();
        let next = disk.after_kill();
        assert!(next.reused().is_empty());
        next.open(NAME).unwrap().sync().unwrap();
        assert_eq!((next.reused(), disk.reused()), (vec![NAME.to_owned()], vec![]));
    }

    #[test]
    fn a_length_needs_a_sync() {
        let (disk, file) = prepared(0);
        write(&*file, 0, 7).unwrap();
        file.sync().unwrap();
        let lengths = |disk: &SimDisk| -> BTreeSet<u64> { power_cuts(disk).flat_map(|image| image.files()).map(|(_, len)| len).collect() };
        let shorter = disk.create(NAME, LEN / 2).unwrap();
        assert_eq!(lengths(&disk), BTreeSet::from([LEN / 2, LEN]));
        shorter.sync().unwrap();
        assert_eq!(lengths(&disk), BTreeSet::from([LEN / 2]));

        let new = disk.create("b", LEN).unwrap();
        assert!(lengths(&disk).contains(&0), "a name without its length");
        write(&*new, 0, 7).unwrap();
        disk.sync_dir().unwrap();
        assert_eq!(lengths(&disk), BTreeSet::from([LEN / 2, LEN]));
    }

    #[test]
    fn a_stopped_machine_changes_nothing_more() {
        let (disk, file) = prepared(0);
        let (ring, _) = disk.map("ring", LEN).unwrap();
        ring.words()[0].store(1, Ordering::Relaxed);
        let last = disk.operations();
        write(&*file, 0, 1).unwrap();
        assert_eq!(disk.operations(), last + 1);
        disk.stop_at(last + 2);
        disk.open(NAME).unwrap();
        assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::Other);
        let hash = disk.image_hash();

        ring.words()[0].store(2, Ordering::Relaxed);
        assert!(write(&*file, 0, 2).is_err());
        assert!(file.read_at(0, &mut AlignedBuf::zeroed(BLOCK)).is_err());
        assert!(disk.create("b", LEN).is_err());
        assert!(disk.map("ring", LEN).is_err());
        assert!(disk.remove(NAME).is_err());
        assert!(disk.sync_dir().is_err());
        assert!(disk.open(NAME).is_err());
        assert!(disk.list().is_err());
        assert!(matches!(disk.lock(), Err(LockError::Io(_))));
        assert_eq!(disk.image_hash(), hash);

        let image = disk.after_kill();
        assert_eq!(image.image_hash(), hash);
        assert_eq!(image.operations(), 0, "the next process is counted anew, and runs");
        assert_eq!(image.list().unwrap().len(), 2);
        assert_eq!(image.map("ring", LEN).unwrap().0.words()[0].load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_write_at_the_stop_may_have_happened_in_part() {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let (disk, file) = prepared(seed);
            disk.stop_at(disk.operations() + 1);
            write(&*file, 0, 7).unwrap_err();
            seen.insert(sectors(&disk.after_kill()));
            assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::KeepAll)), [7; SECTORS]);
            assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0; SECTORS]);
        }
        assert!(seen.contains(&vec![0; SECTORS]) && seen.contains(&vec![7; SECTORS]));
        assert!(seen.iter().any(|s| s.contains(&0) && s.contains(&7)), "torn");
    }

    #[test]
    fn the_creation_at_the_stop_may_have_happened_in_part() {
        let mut seen = BTreeSet::new();
        for seed in 0..100 {
            let disk = SimDisk::new(seed);
            disk.stop_at(1);
            disk.create(NAME, LEN).unwrap_err();
            seen.insert(disk.after_kill().files());
        }
        let file = |len| vec![(NAME.to_owned(), len)];
        assert_eq!(seen, BTreeSet::from([vec![], file(0), file(LEN)]));
    }

    #[test]
    fn a_failed_sync_is_not_repaired_by_a_second_one() {
        let (disk, file) = prepared(0);
        disk.fail(FaultOp::SyncDroppingPages, 1, io::ErrorKind::Other, false);
        write(&*file, 0, 7).unwrap();
        file.sync().unwrap_err();
        file.sync().unwrap();
        assert_eq!(sectors(&disk), [7; SECTORS], "the page cache still shows it");
        assert_eq!(sectors(&disk.after_kill()), [7; SECTORS]);
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::KeepAll)), [0; SECTORS]);
        write(&*file, 0, 8).unwrap();
        file.sync().unwrap();
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [8; SECTORS]);
    }

    #[test]
    fn a_sync_that_fails_with_pages_kept_makes_nothing_durable() {
        let (disk, file) = prepared(0);
        disk.fail(FaultOp::Sync, 1, io::ErrorKind::Other, false);
        write(&*file, 0, 7).unwrap();
        file.sync().unwrap_err();
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0; SECTORS]);
        file.sync().unwrap();
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [7; SECTORS]);
    }

    #[test]
    fn a_planned_fault_hits_the_nth_operation_of_its_kind() {
        use io::ErrorKind::{Interrupted, PermissionDenied, StorageFull};
        let (disk, file) = prepared(0);
        disk.fail(FaultOp::Write, 2, StorageFull, false);
        disk.fail(FaultOp::Read, 1, Interrupted, true);
        let writes = [0; 3].map(|_| write(&*file, 0, 1).map_err(|e| e.kind()));
        assert_eq!(writes, [Ok(()), Err(StorageFull), Ok(())]);
        for _ in 0..2 {
            let read = file.read_at(0, &mut AlignedBuf::zeroed(BLOCK));
            assert_eq!(read.unwrap_err().kind(), Interrupted);
        }
        assert_eq!(disk.faults_injected(), 3);

        for op in [FaultOp::Open, FaultOp::Create, FaultOp::Remove, FaultOp::SyncDir] {
            disk.fail(op, 1, PermissionDenied, false);
        }
        assert_eq!(disk.open(NAME).unwrap_err().kind(), PermissionDenied);
        assert_eq!(disk.create("b", LEN).unwrap_err().kind(), PermissionDenied);
        assert_eq!(disk.remove(NAME).unwrap_err().kind(), PermissionDenied);
        assert_eq!(disk.sync_dir().unwrap_err().kind(), PermissionDenied);
        assert_eq!(disk.list().unwrap(), [(NAME.to_owned(), LEN), ("b".to_owned(), 0)]);
    }

    #[test]
    fn a_full_disk_refuses_creation_only() {
        let (disk, file) = prepared(0);
        disk.capacity(LEN);
        assert_eq!(disk.create("b", LEN).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.map("c", LEN).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(disk.open("b").unwrap().len(), 0, "the name is left, as posix leaves it");
        write(&*file, BLOCKS - 1, 1).unwrap();
        file.sync().unwrap();
        disk.create(NAME, LEN).unwrap();
        disk.remove(NAME).unwrap();
        disk.create("b", LEN).unwrap();
    }

    #[test]
    fn a_mapping_is_whole_pages_of_the_file() {
        let disk = SimDisk::new(0);
        let (ring, fresh) = disk.map(NAME, LEN).unwrap();
        assert!(fresh);
        assert!(ring.words().as_ptr().addr().is_multiple_of(BLOCK));
        assert_eq!(ring.words().len() as u64 * 8, LEN);
        ring.words()[1].store(0x0102, Ordering::Relaxed);
        let mut buf = AlignedBuf::zeroed(SECTOR);
        disk.open(NAME).unwrap().read_at(0, &mut buf).unwrap();
        assert_eq!(buf[8..10], [2, 1]);

        let before = disk.operations();
        let (again, fresh) = disk.map(NAME, LEN).unwrap();
        assert!(!fresh && disk.operations() == before);
        assert_eq!(again.words()[1].load(Ordering::Relaxed), 0x0102);
        let (other_length, fresh) = disk.map(NAME, LEN / 2).unwrap();
        assert!(fresh && disk.operations() == before + 1);
        assert_eq!(other_length.words()[1].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn mappings_survive_a_kill_whole() {
        let disk = SimDisk::new(0);
        let (ring, _) = disk.map(NAME, LEN).unwrap();
        for word in ring.words() {
            word.store(5, Ordering::Relaxed);
        }
        let (after, fresh) = disk.after_kill().map(NAME, LEN).unwrap();
        assert!(!fresh);
        assert!(after.words().iter().all(|word| word.load(Ordering::Relaxed) == 5));
        after.words()[0].store(6, Ordering::Relaxed);
        assert_eq!(ring.words()[0].load(Ordering::Relaxed), 5, "an image has its own memory");
    }

    #[test]
    fn a_power_cut_leaves_a_mapping_partly_written_back() {
        let disk = SimDisk::new(0);
        let (ring, _) = disk.map(NAME, LEN).unwrap();
        disk.sync_dir().unwrap();
        for word in ring.words() {
            word.store(u64::from_le_bytes([5; 8]), Ordering::Relaxed);
        }
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::KeepAll)), [5; SECTORS]);
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0; SECTORS]);
        let torn = |image: SimDisk| sectors(&image).contains(&0) && sectors(&image).contains(&5);
        assert!(power_cuts(&disk).any(torn));
    }

    #[test]
    fn the_lock_has_one_holder() {
        let disk = SimDisk::new(0);
        let held = disk.lock().unwrap();
        let pid = std::process::id();
        assert!(matches!(disk.clone().lock(), Err(LockError::Held { pid: p }) if p == pid));
        disk.after_kill().lock().expect("a dead process holds nothing");
        drop(held);
        disk.lock().unwrap();
    }

    #[test]
    fn damage_reaches_the_cache_and_the_medium() {
        let (disk, file) = prepared(0);
        write(&*file, 0, 7).unwrap();
        let hash = disk.image_hash();
        for offset in 0..BLOCK as u64 {
            disk.corrupt(NAME, offset, 0x10);
        }
        assert_ne!(disk.image_hash(), hash);
        assert_eq!(sectors(&disk), [0x17; SECTORS]);
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0x10; SECTORS]);
        file.sync().unwrap();
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0x17; SECTORS]);

        let (ring, _) = disk.map("ring", LEN).unwrap();
        disk.corrupt("ring", 9, 0x10);
        assert_eq!(ring.words()[1].load(Ordering::Relaxed), 0x1000);

        disk.truncate(NAME, 100);
        assert_eq!(disk.files()[0], (NAME.to_owned(), 100));
        assert_eq!(disk.after_power_cut(0, PowerCut::LoseAll).files()[0].1, 100);
        let read = disk.open(NAME).unwrap().read_at(0, &mut AlignedBuf::zeroed(SECTOR));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_has_an_end() {
        let (disk, file) = prepared(0);
        let read = file.read_at(LEN, &mut AlignedBuf::zeroed(SECTOR));
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(write(&*file, BLOCKS, 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(disk.open("b").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    #[should_panic(expected = "a write is whole blocks")]
    fn a_write_of_half_a_block_is_our_bug() {
        let (_disk, file) = prepared(0);
        let _panics = file.write_at(0, &AlignedBuf::zeroed(BLOCK / 2));
    }

    #[test]
    #[should_panic(expected = "a read's buffer starts at a sector")]
    fn a_read_into_an_unaligned_buffer_is_our_bug() {
        let (_disk, file) = prepared(0);
        let _panics = file.read_at(0, &mut AlignedBuf::zeroed(BLOCK)[8..8 + SECTOR]);
    }

    #[test]
    fn the_clock_moves_only_when_told() {
        let clock = SimClock::new(1);
        let start = clock.wall_ms();
        clock.advance(Duration::from_micros(1500));
        clock.advance(Duration::from_micros(1500));
        assert_eq!(clock.monotonic(), Duration::from_millis(3));
        assert_eq!(clock.wall_ms(), start + 3);
        clock.jump_wall(-1000);
        assert_eq!(clock.wall_ms(), start - 997);
        assert_eq!(clock.monotonic(), Duration::from_millis(3));
        assert_ne!(clock.entropy(), clock.entropy());
        assert_eq!(SimClock::new(2).entropy(), SimClock::new(2).entropy());
    }
}
