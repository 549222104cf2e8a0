//! The directory of a store, as it was opened.
//!
//! Every file is reached through the directory's descriptor. So a directory that is renamed stays
//! the same store, and a name that begins to mean another directory does not matter. No file is
//! reached through a symbolic link, and no file is written that another directory has a name for.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::process::LockDescriptor;
use super::signals::without_size_signal;
use super::{DiskLock, LockError};

/// Name of the file whose lock locks the directory.
pub(crate) const LOCK_FILE: &str = "LOCK";
/// Bytes of the text in the lock file. A new text replaces the old one at the same length, since a
/// full disk has no room for a longer one.
const LOCK_TEXT_LEN: usize = 256;

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    /// `None` once the store was closed.
    handle: RwLock<Option<Arc<OwnedFd>>>,
    writable: bool,
}

impl Directory {
    /// Opens an existing directory, for a store that is only read unless it is `writable`.
    pub(crate) fn open(path: &Path, writable: bool) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { handle: RwLock::new(Some(Arc::new(handle))), writable })
    }

    fn handle(&self) -> io::Result<Arc<OwnedFd>> {
        let handle = self.handle.read().unwrap_or_else(PoisonError::into_inner).clone();
        handle.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the store was closed"))
    }

    /// Closes the descriptor. Every later call fails.
    pub(super) fn close(&self) {
        *self.handle.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Opens an existing file. `flags` are further flags of `open`.
    pub(super) fn open_file(&self, name: &str, flags: OFlags) -> io::Result<fs::File> {
        let access = if self.writable { OFlags::RDWR } else { OFlags::RDONLY };
        self.open_as(name, access | flags)
    }

    /// Creates a file. Fails with `AlreadyExists` if the name exists, whatever it names.
    pub(super) fn create_file(&self, name: &str, flags: OFlags) -> io::Result<fs::File> {
        let file = self.open_as(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | flags)?;
        self.give_to_owner(&file)?;
        Ok(file)
    }

    fn open_as(&self, name: &str, flags: OFlags) -> io::Result<fs::File> {
        // Without the flag `NONBLOCK` the opening of a named pipe could wait without end.
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{name} {why}")));
        let file = match rustix::fs::openat(&*self.handle()?, name, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => fs::File::from(fd),
            Err(Errno::LOOP) => return refused("is a symbolic link; a store consists of plain files".to_owned()),
            Err(e) => return Err(e.into()),
        };
        let found = file.metadata()?;
        match found.nlink() {
            _ if !found.is_file() => refused("is not a plain file; a store consists of plain files".to_owned()),
            links if links > 1 && self.writable => refused(shared(links)),
            _ => Ok(file),
        }
    }

    /// Gives a file that root made to the owner of the directory. Otherwise the service that owns
    /// the store could not open it any more.
    fn give_to_owner(&self, file: &fs::File) -> io::Result<()> {
        if !rustix::process::geteuid().is_root() {
            return Ok(());
        }
        let dir = rustix::fs::fstat(&*self.handle()?)?;
        let made = file.metadata()?;
        if (dir.st_uid, dir.st_gid) != (made.uid(), made.gid()) {
            rustix::fs::fchown(file, Some(rustix::fs::Uid::from_raw(dir.st_uid)), Some(rustix::fs::Gid::from_raw(dir.st_gid)))?;
        }
        Ok(())
    }

    fn stat(&self, name: impl rustix::path::Arg) -> io::Result<Stat> {
        Ok(rustix::fs::statat(&*self.handle()?, name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Names and metadata of everything in the directory, sorted. A file that is removed meanwhile
    /// is left out.
    fn entries(&self) -> io::Result<Vec<(String, Stat)>> {
        let mut found = Vec::new();
        for entry in rustix::fs::Dir::read_from(&*self.handle()?)? {
            let entry = entry?;
            let name = entry.file_name();
            if [c".", c".."].contains(&name) {
                continue;
            }
            match self.stat(name) {
                Ok(stat) => found.push((OsStr::from_bytes(name.to_bytes()).to_string_lossy().into_owned(), stat)),
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(found)
    }

    /// Names and lengths of everything in the directory, sorted.
    pub(super) fn list(&self) -> io::Result<Vec<(String, u64)>> {
        Ok(self.entries()?.into_iter().map(|(name, stat)| (name, stat.st_size as u64)).collect())
    }

    /// The first of these files that another directory has a name for too, and why that is refused.
    pub(super) fn find_shared(&self, is_ours: &dyn Fn(&str) -> bool) -> io::Result<Option<(String, String)>> {
        let is_shared = |(name, stat): &(String, Stat)| is_ours(name) && stat.st_nlink > 1 && stat.st_mode & 0o170_000 == 0o100_000;
        let found = self.entries()?.into_iter().find(is_shared);
        Ok(found.map(|(name, stat)| (name, shared(stat.st_nlink))))
    }

    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&*self.handle()?, name, AtFlags::empty())?)
    }

    pub(super) fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let handle = self.handle()?;
        Ok(rustix::fs::renameat(&*handle, from, &*handle, to)?)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        match self.writable {
            true => Ok(rustix::fs::fsync(&*self.handle()?)?),
            false => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        }
    }

    /// Locks the directory itself, and then its lock file. The first holds whatever happens to the
    /// names in the directory. The second keeps out versions that lock only the file.
    pub(super) fn lock(&self) -> Result<DirectoryLock, LockError> {
        let io = |e: Errno| LockError::Io(e.into());
        let handle = self.handle().map_err(LockError::Io)?;
        // A lock belongs to a descriptor, so it gets one of its own.
        let dir = rustix::fs::openat(&*handle, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).map_err(io)?;
        let mut file = self.lock_file().map_err(LockError::Io)?;
        let own = file.try_clone().map_err(LockError::Io)?.into();
        // A child of `fork` closes these descriptors from here on, so it inherits no lock.
        let lock = DirectoryLock { dir: LockDescriptor::new(dir), file: LockDescriptor::new(own) };
        self.try_lock(&lock.dir)?;
        self.try_lock(&lock.file)?;
        if !lock.names_file().map_err(LockError::Io)? {
            return Err(LockError::Held { holder: "another program, which removes the file LOCK".to_owned() });
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(LockError::Io)?;
        if Holder::parse(&text).is_none() && !text.is_empty() {
            return Err(LockError::NotOurs);
        }
        let text = format!("{:<width$}\n", Holder::this_process().to_string(), width = LOCK_TEXT_LEN - 1);
        without_size_signal(|| file.write_all_at(text.as_bytes(), 0)).map_err(LockError::Io)?;
        Ok(lock)
    }

    /// The lock file, which is created if it is missing.
    fn lock_file(&self) -> io::Result<fs::File> {
        match self.open_file(LOCK_FILE, OFlags::empty()) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => match self.create_file(LOCK_FILE, OFlags::empty()) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.open_file(LOCK_FILE, OFlags::empty()),
                created => created,
            },
            found => found,
        }
    }

    fn try_lock(&self, file: &LockDescriptor) -> Result<(), LockError> {
        let Some(file) = file.get() else { return Err(LockError::Io(io::ErrorKind::InvalidInput.into())) };
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(()),
            Err(Errno::WOULDBLOCK) => Err(LockError::Held { holder: self.holder() }),
            Err(e) => Err(LockError::Io(e.into())),
        }
    }

    /// Description of the process that holds the lock, as it described itself in the lock file.
    fn holder(&self) -> String {
        let mut text = Vec::new();
        let read = self.open_as(LOCK_FILE, OFlags::RDONLY).and_then(|mut file| file.read_to_end(&mut text));
        let holder = read.ok().and_then(|_| Holder::parse(&text));
        holder.map_or_else(|| "another process".to_owned(), |holder| holder.seen_from(&Holder::this_process()))
    }
}

/// Why a file with this many names is refused, as the end of a sentence. The number has another
/// type on each processor.
fn shared(links: impl Into<u64>) -> String {
    let links = links.into();
    format!(
        "has {links} hard links, so another directory shares the file; remove the other links, or replace the file by a copy of itself \
         (cp -a)"
    )
}

/// A process, as the lock file describes it: its id, the name of its host, and its namespace of
/// process ids.
#[derive(Debug, PartialEq, Eq)]
struct Holder {
    pid: u32,
    /// Empty in lock files of earlier versions.
    host: String,
    namespace: String,
}

impl Holder {
    fn this_process() -> Self {
        let host = rustix::system::uname().nodename().to_string_lossy().split_whitespace().collect::<String>();
        let namespace = fs::read_link("/proc/self/ns/pid").map_or(String::new(), |link| link.to_string_lossy().into_owned());
        Self { pid: std::process::id(), host: host.chars().take(64).collect(), namespace: namespace.chars().take(64).collect() }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(text).ok()?.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let mut word = || words.next().unwrap_or_default().to_owned();
        Some(Self { pid, host: word(), namespace: word() })
    }

    fn seen_from(&self, other: &Self) -> String {
        match self {
            Self { pid, namespace, .. } if namespace.is_empty() || *namespace == other.namespace => format!("process {pid}"),
            Self { pid, host, .. } => format!("process {pid} of another container (host name {host})"),
        }
    }
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.pid, self.host, self.namespace)
    }
}

/// Keeps a directory locked while it lives. A thread that dies inside a write keeps the descriptors
/// open until the write has ended.
#[derive(Debug)]
pub(super) struct DirectoryLock {
    dir: LockDescriptor,
    file: LockDescriptor,
}

impl DirectoryLock {
    /// Whether the name of the lock file still names the locked file.
    fn names_file(&self) -> io::Result<bool> {
        let (Some(dir), Some(file)) = (self.dir.get(), self.file.get()) else { return Ok(false) };
        let locked = rustix::fs::fstat(file)?;
        match rustix::fs::statat(dir, LOCK_FILE, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(named) => Ok((named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino)),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }
}

impl DiskLock for DirectoryLock {
    fn check(&self) -> io::Result<()> {
        let Some(dir) = self.dir.get() else { return Err(io::Error::other("the directory is open in the parent process")) };
        if rustix::fs::fstat(dir)?.st_nlink == 0 {
            return Err(io::Error::other("the directory was removed"));
        }
        match self.names_file()? {
            true => Ok(()),
            false => Err(io::Error::other("the file LOCK was removed or replaced")),
        }
    }
}

/// Creates a directory and its missing parents, with access for its owner alone. Each new name is
/// durable when this returns.
pub(crate) fn create_durably(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound && parent != Path::new(".") => {
            create_durably(parent)?;
            DirBuilder::new().mode(0o700).create(path)?;
        }
        Err(e) => return Err(e),
    }
    match rustix::fs::openat(CWD, parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(parent) => Ok(rustix::fs::fsync(parent)?),
        // Only its owner can sync a directory that this process may not read.
        Err(Errno::ACCESS) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_named_as_its_container_sees_it() {
        let here = Holder { pid: 7, host: "a".to_owned(), namespace: "pid:[1]".to_owned() };
        assert_eq!(Holder::parse(here.to_string().as_bytes()).as_ref(), Some(&here));
        let there = Holder { pid: 1, host: "web-1".to_owned(), namespace: "pid:[2]".to_owned() };
        assert_eq!(there.seen_from(&here), "process 1 of another container (host name web-1)");
        let earlier = Holder::parse(b"123                \n").unwrap();
        assert_eq!(earlier.seen_from(&here), "process 123");
        assert!(Holder::parse(b"root:x:0:0").is_none() && Holder::parse(&[0xff]).is_none());
    }
}
