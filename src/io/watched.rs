//! A disk that an opening reads, and that refuses everything after an error that says nothing of
//! the bytes.
//!
//! Recovery takes bytes that cannot be read for lost, and drops what they may have superseded. That
//! is right only if the medium cannot give them ([`is_loss`]). After any other error, such as a
//! missing permission, every further call fails. So nothing is written that would make the loss
//! true, and [`Watched::check`] refuses the opening.

use std::io;
use std::os::fd::RawFd;
use std::sync::{Arc, OnceLock};

use super::{Disk, DiskLock, File, LockError, Mapping, is_full, is_loss};

/// The first refusal: its kind, and its text with the name of the file.
type Refusal = Arc<OnceLock<(io::ErrorKind, String)>>;

/// A watched disk.
#[derive(Debug)]
pub(crate) struct Watched {
    disk: Arc<dyn Disk>,
    refusal: Refusal,
}

impl Watched {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, refusal: Refusal::default() }
    }

    /// Fails if any call so far failed for a reason other than a loss or a full disk.
    pub(crate) fn check(&self) -> io::Result<()> {
        check(&self.refusal)
    }

    /// Performs a call, unless an earlier one was refused.
    fn call<T>(&self, name: &str, call: impl FnOnce(&dyn Disk) -> io::Result<T>) -> io::Result<T> {
        self.check()?;
        note(&self.refusal, name, call(self.disk.as_ref()))
    }

    fn file(&self, name: &str, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(WatchedFile { file, name: name.to_owned(), refusal: Arc::clone(&self.refusal) })
    }
}

fn check(refusal: &Refusal) -> io::Result<()> {
    refusal.get().map_or(Ok(()), |(kind, text)| Err(io::Error::new(*kind, text.clone())))
}

/// Records an error that is neither a loss nor a full disk, and puts the name of its file into it.
/// On a full disk a caller may make room and go on.
fn note<T>(refusal: &Refusal, name: &str, done: io::Result<T>) -> io::Result<T> {
    done.map_err(|error| {
        if is_loss(&error) || is_full(&error) || error.kind() == io::ErrorKind::AlreadyExists {
            return error;
        }
        let (kind, text) = refusal.get_or_init(|| (error.kind(), format!("{name}: {error}")));
        io::Error::new(*kind, text.clone())
    })
}

impl Disk for Watched {
    fn open(&self, name: &str) -> io::Result<Arc<dyn File>> {
        Ok(self.file(name, self.call(name, |disk| disk.open(name))?))
    }

    fn create_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        Ok(self.file(name, self.call(name, |disk| disk.create_raw(name, len))?))
    }

    fn resize_raw(&self, name: &str, len: u64) -> io::Result<Arc<dyn File>> {
        Ok(self.file(name, self.call(name, |disk| disk.resize_raw(name, len))?))
    }

    fn map(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        self.call(name, |disk| disk.map(name, len))
    }

    fn view(&self, name: &str, len: u64) -> io::Result<(Arc<dyn Mapping>, bool)> {
        self.call(name, |disk| disk.view(name, len))
    }

    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.call("the directory", |disk| disk.list())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.call(name, |disk| disk.remove(name))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.call(from, |disk| disk.rename(from, to))
    }

    fn sync_dir(&self) -> io::Result<()> {
        self.check()?;
        // The state that a failed sync leaves behind is unknown, whatever the error says.
        self.disk.sync_dir()
    }

    fn find_shared(&self, is_ours: &dyn Fn(&str) -> bool) -> io::Result<Option<(String, String)>> {
        self.call("the directory", |disk| disk.find_shared(is_ours))
    }

    fn lock(&self) -> Result<Box<dyn DiskLock>, LockError> {
        self.disk.lock()
    }

    fn boot_id(&self) -> u64 {
        self.disk.boot_id()
    }

    fn mark_cached(&self, name: &str) -> io::Result<bool> {
        self.call(name, |disk| disk.mark_cached(name))
    }

    fn is_cached(&self, name: &str) -> io::Result<bool> {
        self.call(name, |disk| disk.is_cached(name))
    }
}

#[derive(Debug)]
struct WatchedFile {
    file: Arc<dyn File>,
    name: String,
    refusal: Refusal,
}

impl File for WatchedFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check(&self.refusal)?;
        note(&self.refusal, &self.name, self.file.read_at(offset, buf))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check(&self.refusal)?;
        note(&self.refusal, &self.name, self.file.write_at(offset, buf))
    }

    fn sync(&self) -> io::Result<()> {
        check(&self.refusal)?;
        // The state that a failed sync leaves behind is unknown, whatever the error says.
        self.file.sync()
    }

    fn len(&self) -> u64 {
        self.file.len()
    }

    fn descriptor(&self) -> Option<RawFd> {
        self.file.descriptor()
    }
}
