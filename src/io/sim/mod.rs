//! The simulated disk: one directory in memory, on which tests run the whole engine and see the
//! state that a crash leaves.
//!
//! # Model
//!
//! *Live and durable.* A file has a live content, which running programs read, and a durable
//! content, which the medium holds. Between them lies, in order, every change since the last sync:
//! sectors of 512 B and lengths. The directory has the same two states. Its changes are names made,
//! removed and given to another file.
//!
//! [`File::sync`] makes the changes of one file durable. [`Disk::sync_dir`] makes the changes of
//! the directory durable, and the lengths of the files whose names become durable. Neither promises
//! anything about the other.
//!
//! *Kill.* The process dies and the operating system lives. Everything written, or stored into a
//! mapping, is there. The interrupted operation has happened not at all, in part or whole. A kill
//! makes nothing durable: a power cut may follow.
//!
//! *Power cut.* Any subset of the unsynced changes survives. So they may be lost, reordered, or
//! torn inside a block, and a sector may show any of its versions since the last sync. The changes
//! of a mapping have no order: each sector is as last synced or as last seen. The interrupted
//! operation counts as unsynced. The boot id changes.
//!
//! *Faults.* A planned operation fails, or misbehaves:
//!
//! - A failed write may have happened in part.
//! - A failed creation leaves the name behind.
//! - A failed sync makes nothing durable. If so planned, it also marks the pages clean as Linux
//!   does: they are still read, and never written again.
//! - A lost or misdirected write succeeds, and its bytes are nowhere, or elsewhere.
//! - A held operation does not end until it is released.
//! - A full disk refuses creation only, because files are allocated whole. The refused file keeps
//!   the blocks that it got.
//!
//! *Points.* Each state-changing operation is one point, counted from 1: write, sync, create, a
//! mapping that makes its file, remove, rename, directory sync. A machine stopped at point n fails
//! every operation from then on, and ignores later stores into its mappings. A store is not a
//! point: a test that wants a kill between two stores calls [`SimDisk::after_kill`] there.
//!
//! A call that breaks the alignment rules of [`File`] is a bug of ours and panics. The lock has no
//! file here.

mod faults;
mod medium;
mod power_cut;
mod random;
#[cfg(test)]
mod read_only;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard};

use rustix::io::Errno;

use self::faults::{Fault, Meanwhile};
use self::medium::{Inode, Pages};
use self::random::Random;
use super::{BLOCK, Disk, DiskLock, File, InMemory, LockError, Mapping, SECTOR};
use crate::concurrent::{Event, lock};

pub(crate) use self::faults::{Failure, FaultOp};
pub(crate) use self::power_cut::PowerCut;
#[cfg(test)]
pub(crate) use self::read_only::ReadOnly;

/// A disk in memory. Clones are the same disk; [`SimDisk::after_kill`] and
/// [`SimDisk::after_power_cut`] make others.
#[derive(Clone)]
pub(crate) struct SimDisk {
    machine: Arc<Mutex<Machine>>,
    released: Arc<Event>,
    meanwhile: Arc<Mutex<Option<Meanwhile>>>,
}

impl SimDisk {
    /// An empty disk of unlimited size. `seed` decides how much of a failed or interrupted
    /// operation happens.
    pub(crate) fn new(seed: u64) -> Self {
        Self::from_machine(Machine {
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

    fn from_machine(machine: Machine) -> Self {
        Self { machine: Arc::new(Mutex::new(machine)), released: Arc::default(), meanwhile: Arc::default() }
    }

    fn machine(&self) -> MutexGuard<'_, Machine> {
        lock(&self.machine)
    }

    /// The machine, as soon as it does not hold operations of this kind.
    fn unstuck(&self, op: FaultOp) -> MutexGuard<'_, Machine> {
        loop {
            let seen = self.released.count();
            let machine = self.machine();
            if machine.stuck != Some(op) {
                return machine;
            }
            drop(machine);
            self.released.wait(seen, None);
        }
    }

    /// Whether the machine has stopped.
    pub(crate) fn has_stopped(&self) -> bool {
        self.machine().stopped
    }

    /// Points passed so far.
    pub(crate) fn operations(&self) -> u64 {
        self.machine().operations
    }

    /// Stops the machine at point `n`, or at the next one if `n` has passed.
    pub(crate) fn stop_at(&self, n: u64) {
        self.machine().stop_at = n;
    }

    /// Stops the machine `more` points after the next planned failure.
    pub(crate) fn stop_after_fault(&self, more: u64) {
        self.machine().stop_after_fault = Some(more);
    }

    /// Limits the sum of all file lengths.
    pub(crate) fn capacity(&self, bytes: u64) {
        self.machine().capacity = bytes;
    }

    /// Content of a file, also of a stopped machine.
    pub(crate) fn content(&self, name: &str) -> Vec<u8> {
        let mut machine = self.machine().clone();
        machine.freeze();
        let file = machine.names[name];
        machine.files[file].live.to_vec()
    }

    /// Names and lengths of all files, also of a stopped machine.
    pub(crate) fn files(&self) -> Vec<(String, u64)> {
        let machine = self.machine();
        machine.names.iter().map(|(name, &file)| (name.clone(), machine.files[file].len())).collect()
    }

    /// Hash of all names and live contents, to tell images apart.
    pub(crate) fn image_hash(&self) -> u64 {
        let mut image = self.machine().clone();
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

    /// Creates a file, or brings an existing one to this length.
    pub(crate) fn create(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        if self.machine().find(name).is_ok() { self.resize_raw(name, len) } else { self.create_raw(name, len) }
    }

    fn handle(&self, machine: &Machine, file: usize) -> Arc<dyn File> {
        Arc::new(SimFile { disk: self.clone(), file, len: machine.files[file].len() })
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimDisk({} operations)", self.operations())
    }
}

impl Disk for SimDisk {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        let mut machine = self.machine();
        machine.observe(FaultOp::Open)?;
        let file = machine.find(name)?;
        Ok(self.handle(&machine, file))
    }

    fn create_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let mut machine = self.machine();
        if machine.running().is_ok() && machine.find(name).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        machine.change(DiskOp::Create { name: name.to_owned(), len, emptied: false })?;
        let file = machine.find(name)?;
        Ok(self.handle(&machine, file))
    }

    fn resize_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        let mut machine = self.machine();
        machine.running()?;
        machine.find(name)?;
        machine.change(DiskOp::Create { name: name.to_owned(), len, emptied: false })?;
        let file = machine.find(name)?;
        Ok(self.handle(&machine, file))
    }

    fn map(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        assert!(len > 0 && len.is_multiple_of(BLOCK as u64), "a mapping is whole pages");
        let mut machine = self.machine();
        let fresh = machine.find(name).map_or(true, |file| machine.files[file].len() != len);
        if fresh {
            machine.change(DiskOp::Create { name: name.to_owned(), len, emptied: true })?;
            // The zeros are written and synced before the first store; the name is not.
            machine.named(name).sync();
        } else {
            machine.observe(FaultOp::Open)?;
        }
        let file = machine.named(name);
        let pages = file.pages.get_or_insert_with(|| Arc::new(Pages::holding(&file.live)));
        Ok((Arc::clone(pages) as Arc<dyn Mapping>, fresh))
    }

    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        let mut machine = self.machine();
        machine.observe(FaultOp::Open)?;
        let copy = InMemory::zeroed(len);
        let Some(file) = machine.find(name).ok().filter(|file| machine.files[*file].len() == len) else {
            return Ok((Arc::new(copy), true));
        };
        machine.files[file].settle();
        copy.store(0, &machine.files[file].live);
        let bad: Vec<u64> = machine.unreadable.iter().filter(|(of, _)| *of == file).map(|(_, at)| *at).collect();
        bad.iter().for_each(|at| copy.store(*at, &[0; BLOCK]));
        Ok((Arc::new(copy), !bad.is_empty()))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.machine().running()?;
        Ok(self.files())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut machine = self.machine();
        machine.running()?;
        machine.find(name)?;
        machine.change(DiskOp::Remove { name: name.to_owned() })
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let mut machine = self.machine();
        machine.running()?;
        machine.find(from)?;
        machine.change(DiskOp::Rename { from: from.to_owned(), to: to.to_owned() })
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.machine().change(DiskOp::SyncDir)
    }

    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError> {
        let mut machine = self.machine();
        machine.running().map_err(LockError::Io)?;
        if mem::replace(&mut machine.locked, true) {
            return Err(LockError::Held { holder: format!("process {}", std::process::id()) });
        }
        Ok(Box::new(SimLock { disk: self.clone() }))
    }

    fn boot_id(&self) -> u64 {
        self.machine().boot_id
    }

    fn is_cached(&self, name: &str) -> io::Result<bool> {
        let machine = self.machine();
        machine.running()?;
        Ok(machine.find(name).map_or(true, |file| machine.files[file].is_marked))
    }

    fn mark_cached(&self, name: &str) -> io::Result<bool> {
        let mut machine = self.machine();
        machine.running()?;
        machine.find(name)?;
        machine.named(name).is_marked = true;
        Ok(true)
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
}

impl DiskLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.machine().locked = false;
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    /// Index into [`Machine::files`]. It stays valid when the name is removed.
    file: usize,
    len: u64,
}

impl File for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        assert!(offset.is_multiple_of(SECTOR as u64), "a read starts at a sector: {offset}");
        assert!(buf.len().is_multiple_of(SECTOR), "a read is whole sectors: {}", buf.len());
        assert!(buf.as_ptr().addr().is_multiple_of(SECTOR), "a read's buffer starts at a sector");
        let mut machine = self.disk.unstuck(FaultOp::Read);
        machine.observe(FaultOp::Read)?;
        let range = offset..offset + buf.len() as u64;
        if machine.unreadable.iter().any(|(file, at)| *file == self.file && *at < range.end && at + BLOCK as u64 > range.start) {
            return Err(Errno::IO.into());
        }
        let file = &mut machine.files[self.file];
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
        let mut machine = self.disk.unstuck(FaultOp::Write);
        machine.running()?;
        if offset + buf.len() as u64 > machine.files[self.file].len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a write beyond the file's end"));
        }
        machine.change(DiskOp::Write { file: self.file, offset, bytes: buf.to_vec() })
    }

    fn sync(&self) -> io::Result<()> {
        self.disk.unstuck(FaultOp::Sync).change(DiskOp::Sync { file: self.file })
    }

    fn len(&self) -> u64 {
        self.len
    }
}

/// An operation that changes state: one point.
#[derive(Clone)]
enum DiskOp {
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
        /// Whether an existing file loses its content first.
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

impl DiskOp {
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

/// A change of the directory: a name made (with its file), removed (without), or taken over from
/// another file.
#[derive(Clone)]
struct NameChange {
    name: String,
    file: Option<usize>,
    /// The former name of the file, which it loses at the same moment.
    before: Option<String>,
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
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
struct Machine {
    /// Never shortened: handles outlive names.
    files: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes from `durable_names` to `names`, in order.
    unsynced_names: Vec<NameChange>,
    capacity: u64,
    boot_id: u64,
    random: Random,
    locked: bool,
    operations: u64,
    stop_at: u64,
    /// Sets `stop_at` to this many points after the next planned failure.
    stop_after_fault: Option<u64>,
    stopped: bool,
    /// The operation that the stop interrupted.
    in_flight: Option<DiskOp>,
    faults: Vec<Fault>,
    faults_injected: u64,
    /// The kind of operation that is held.
    stuck: Option<FaultOp>,
    /// Unreadable blocks: file and offset.
    unreadable: Vec<(usize, u64)>,
    /// Files with a failed write or sync, other than a write for want of room.
    failed: BTreeSet<usize>,
    /// Files of `failed` that were written or synced again.
    reused: BTreeSet<usize>,
}

impl Machine {
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

    /// Performs an operation, unless the machine stops at it or a fault is planned for it.
    fn change(&mut self, op: DiskOp) -> io::Result<()> {
        self.running()?;
        self.operations += 1;
        if self.operations >= self.stop_at {
            self.freeze();
            self.stopped = true;
            self.in_flight = Some(op);
            return self.running();
        }
        if let DiskOp::Write { file, .. } | DiskOp::Sync { file } = &op
            && self.failed.contains(file)
        {
            self.reused.insert(*file);
        }
        match (self.due_fault(op.site()), op) {
            (Some(Fault { op: FaultOp::WriteLost, .. }), _) => Ok(()),
            (Some(Fault { op: FaultOp::WriteMisdirected, .. }), DiskOp::Write { bytes, .. }) => {
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

    fn apply(&mut self, op: &DiskOp) -> io::Result<()> {
        match op {
            DiskOp::Write { file, offset, bytes } => {
                self.files[*file].write(*offset, bytes, |_| true);
            }
            DiskOp::Sync { file } => self.files[*file].sync(),
            DiskOp::Create { name, len, emptied } => return self.create(name, *len, *emptied),
            DiskOp::Remove { name } => self.change_names(NameChange { name: name.clone(), file: None, before: None }),
            DiskOp::Rename { from, to } => {
                let file = Some(self.find(from)?);
                self.change_names(NameChange { name: to.clone(), file, before: Some(from.clone()) });
            }
            DiskOp::SyncDir => self.sync_dir(),
        }
        Ok(())
    }

    fn create(&mut self, name: &str, len: u64, emptied: bool) -> io::Result<()> {
        let file = self.find_or_create(name);
        if emptied {
            self.files[file].pages = None;
            self.files[file].resize(0);
        }
        let used: u64 = self.names.values().map(|&file| self.files[file].len()).sum();
        let own = self.files[file].len();
        if used - own + len > self.capacity {
            // The file keeps the blocks that it got.
            let room = self.capacity.saturating_sub(used - own) / BLOCK as u64 * BLOCK as u64;
            self.files[file].resize(room.max(own) as usize);
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.files[file].resize(len as usize);
        Ok(())
    }

    fn sync_dir(&mut self) {
        for change in mem::take(&mut self.unsynced_names) {
            change.apply(&mut self.durable_names);
            if let Some(file) = change.file {
                self.files[file].sync_length();
            }
        }
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn find(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The file of this name. A new name gets an empty file.
    fn find_or_create(&mut self, name: &str) -> usize {
        self.find(name).unwrap_or_else(|_| {
            let file = self.files.len();
            self.files.push(Inode::default());
            self.change_names(NameChange { name: name.to_owned(), file: Some(file), before: None });
            file
        })
    }

    /// The file of this name, which the caller knows to exist.
    fn named(&mut self, name: &str) -> &mut Inode {
        let file = self.find(name).unwrap_or_else(|_| panic!("no file is named {name}"));
        &mut self.files[file]
    }

    /// Takes over the stores into mappings and detaches them: later stores have no effect.
    fn freeze(&mut self) {
        for file in &mut self.files {
            file.settle();
            file.pages = None;
        }
    }
}
