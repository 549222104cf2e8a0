//! Planned faults: which operations fail, how they fail, and the state that they leave.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;

use super::{DiskOp, Machine, SimDisk};
use crate::concurrent::lock;
use crate::io::{BLOCK, SECTOR, is_shortage};

/// Operations that a planned fault counts and hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FaultOp {
    /// `Disk::open`, and `Disk::map` of an existing file.
    Open,
    Read,
    Write,
    /// `File::write_at` that writes nothing and reports success.
    WriteLost,
    /// `File::write_at` that writes to another place of some file and reports success.
    WriteMisdirected,
    /// `File::sync`. The changes stay unsynced.
    Sync,
    /// `File::sync`. The changes are forgotten, but still read.
    SyncDroppingPages,
    /// `Disk::create`, and `Disk::map` that makes the file.
    Create,
    Remove,
    Rename,
    SyncDir,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    Kind(io::ErrorKind),
    /// An error without a kind of its own.
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
            // A device reports an error that has no kind of its own as this one.
            Failure::Kind(io::ErrorKind::Other) => Errno::IO.into(),
            Failure::Kind(kind) => kind.into(),
            Failure::Errno(errno) => errno.into(),
        }
    }
}

/// Name of a file, and work to run before the next write to it.
pub(super) type Meanwhile = (String, Box<dyn FnOnce() + Send>);

/// A planned failure.
#[derive(Clone)]
pub(super) struct Fault {
    pub(super) op: FaultOp,
    nth: u64,
    pub(super) how: Failure,
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

impl SimDisk {
    /// Makes the `nth` operation of this kind from now on fail (1 is the next one), once or with
    /// all that follow.
    pub(crate) fn fail(&self, op: FaultOp, nth: u64, how: impl Into<Failure>, repeat: bool) {
        self.machine().faults.push(Fault { op, nth, how: how.into(), repeat });
    }

    /// Makes all later reads of a file fail that touch the block at `offset`.
    pub(crate) fn fail_reads_of(&self, name: &str, offset: u64) {
        let mut machine = self.machine();
        let file = machine.names[name];
        machine.unreadable.push((file, offset));
    }

    /// Holds reads, writes or syncs: they begin, and do not end until [`SimDisk::release`].
    pub(crate) fn hold(&self, op: FaultOp) {
        self.machine().stuck = Some(op);
    }

    /// Lets held operations go on.
    pub(crate) fn release(&self) {
        self.machine().stuck = None;
        self.released.signal();
    }

    /// Runs `work` just before the first write to the file of this name while `during` runs. It
    /// stands for another thread's action at that moment, but runs on the thread that writes.
    pub(crate) fn meanwhile<T>(&self, name: &str, work: impl FnOnce() + Send + 'static, during: impl FnOnce() -> T) -> T {
        *lock(&self.meanwhile) = Some((name.to_owned(), Box::new(work)));
        let done = during();
        *lock(&self.meanwhile) = None;
        done
    }

    /// Runs the work of [`SimDisk::meanwhile`] that waits for a write to this file.
    pub(super) fn before_write(&self, file: usize) {
        let due = lock(&self.meanwhile).take_if(|(name, _)| self.machine().find(name).is_ok_and(|named| named == file));
        if let Some((_, work)) = due {
            work();
        }
    }

    /// Removes all planned faults.
    pub(crate) fn heal(&self) {
        self.machine().faults.clear();
    }

    /// How many operations failed by the plan of [`SimDisk::fail`].
    pub(crate) fn faults_injected(&self) -> u64 {
        self.machine().faults_injected
    }

    /// Names of files that were written or synced again after a failed write or sync, by this
    /// process or a later one.
    pub(crate) fn reused(&self) -> Vec<String> {
        let machine = self.machine();
        machine.names.iter().filter(|(_, file)| machine.reused.contains(file)).map(|(name, _)| name.clone()).collect()
    }

    /// Flips bits of one byte, in the cache and on the medium.
    pub(crate) fn corrupt(&self, name: &str, offset: u64, xor: u8) {
        self.machine().named(name).corrupt(offset as usize, xor);
    }

    /// Overwrites a part of a file, in the cache and on the medium. The file is not mapped.
    pub(crate) fn overwrite(&self, name: &str, offset: u64, bytes: &[u8]) {
        let mut machine = self.machine();
        let file = machine.named(name);
        file.sync();
        assert!(file.pages.is_none(), "a mapped file is not written behind its mapping");
        for image in [&mut file.live, &mut file.durable] {
            let image = Arc::make_mut(image);
            let end = offset as usize + bytes.len();
            image.resize(image.len().max(end), 0);
            image[offset as usize..end].copy_from_slice(bytes);
        }
    }

    /// Removes a name, in the cache and on the medium.
    pub(crate) fn lose(&self, name: &str) {
        let mut machine = self.machine();
        machine.sync_dir();
        machine.names.remove(name);
        machine.durable_names.remove(name);
    }

    /// Shortens a file, in the cache and on the medium. An existing mapping keeps memory that is no
    /// longer the file's.
    pub(crate) fn truncate(&self, name: &str, len: u64) {
        self.machine().named(name).truncate(len as usize);
    }
}

impl Machine {
    pub(super) fn due_fault(&mut self, site: FaultOp) -> Option<Fault> {
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

    /// Writes to a random place of a random file that is not mapped.
    pub(super) fn misdirect(&mut self, bytes: &[u8]) {
        let Self { files, names, random, .. } = self;
        let fits = |file: &usize| files[*file].pages.is_none() && files[*file].len() >= bytes.len() as u64;
        let fitting: Vec<usize> = names.values().copied().filter(fits).collect();
        let file = &mut files[fitting[random.below(fitting.len() as u64) as usize]];
        let blocks = (file.len() - bytes.len() as u64) / BLOCK as u64;
        file.write(random.below(blocks + 1) * BLOCK as u64, bytes, |_| true);
    }

    /// Applies the effects of a planned failure.
    pub(super) fn fail(&mut self, op: &DiskOp, fault: &Fault) {
        if let Some(more) = self.stop_after_fault.take() {
            self.stop_at = self.operations + more;
        }
        match op {
            // A write that fails for want of room may be repeated. A sync may not.
            DiskOp::Write { .. } if is_shortage(&fault.how.into()) => {}
            DiskOp::Write { file, .. } | DiskOp::Sync { file } => drop(self.failed.insert(*file)),
            _ => {}
        }
        match op {
            DiskOp::Write { file, offset, bytes } => self.write_part(*file, *offset, bytes),
            DiskOp::Create { name, .. } => drop(self.find_or_create(name)),
            DiskOp::Sync { file } if fault.op == FaultOp::SyncDroppingPages => {
                self.files[*file].forget_sectors();
            }
            DiskOp::Sync { .. } | DiskOp::Remove { .. } | DiskOp::Rename { .. } | DiskOp::SyncDir => {}
        }
    }

    /// Writes nothing, all, the front, or scattered sectors.
    pub(super) fn write_part(&mut self, file: usize, offset: u64, bytes: &[u8]) {
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
}
