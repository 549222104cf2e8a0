//! Decides whether a directory holds a store, may take a new one, or belongs to another program.

use std::io;
use std::time::Duration;

use crate::clock::Clock;
use crate::concurrent::Event;
use crate::config::Options;
use crate::engine::file_names;
use crate::error::{Error, Result};
use crate::io::directory::{self, Directory, LOCK_FILE};
use crate::io::posix::PosixDisk;
use crate::io::{Disk, DiskLock, LockError};
use crate::manifest::{self, LoadError, Manifest};

/// Pause between two attempts to take a held lock.
const LOCK_RETRY: Duration = Duration::from_millis(2);

/// Loads the manifest. The flag says whether a copy of it was damaged. `None` if the store is yet
/// to be created.
pub(super) fn load_manifest(disk: &dyn Disk, options: &Options) -> Result<Option<(Manifest, bool)>> {
    let (dir, path) = (&options.dir, options.dir.join(manifest::FILES[0]));
    match manifest::load(disk) {
        Ok(loaded) => Ok(Some(loaded)),
        // The first manifest is whole before any other file but the rings exists. So the creation
        // of the store was interrupted, and nothing was ever stored.
        Err(LoadError::Missing | LoadError::Corrupt) if is_interrupted_creation(disk, options)? => match options.create {
            true => Ok(None),
            false => Err(Error::NotFound { path: dir.clone() }),
        },
        Err(LoadError::Newer { found }) => Err(Error::NewerVersion { path, found, supported: manifest::format::VERSION }),
        Err(LoadError::TwoStores) => Err(Error::Corrupt { path, what: manifest::TWO_STORES.to_owned() }),
        Err(LoadError::Missing | LoadError::Corrupt) => {
            Err(Error::Corrupt { path, what: "neither copy of the manifest is whole".to_owned() })
        }
        Err(LoadError::Io(e)) => Err(Error::io("read the manifest in", dir)(e)),
    }
}

/// The real disk of the options' directory, which is created if it is missing and the options allow
/// that.
pub(super) fn posix_disk(options: &Options) -> Result<PosixDisk> {
    let path = options.dir.as_path();
    let dir = match Directory::open(path, !options.read_only) {
        Err(e) if e.kind() == io::ErrorKind::NotFound && options.create => {
            directory::create_durably(path).map_err(Error::io("create the directory", path))?;
            Directory::open(path, true)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Error::NotFound { path: path.to_owned() }),
        opened => opened,
    };
    let dir = dir.map_err(Error::io("open the directory", path))?;
    PosixDisk::new(dir, options.backend, options.depth, options.read_threads)
        .map_err(|e| Error::InvalidOption { name: "backend", reason: format!("io_uring cannot be used here: {e}") })
}

/// Refuses a directory of another program, before anything is created in it, and a store whose
/// manifest is missing.
pub(super) fn check_contents(disk: &dyn Disk, options: &Options) -> Result<()> {
    let is_ours = |name: &str| file_names::is_store_file(name) || manifest::is_manifest_file(name) || file_names::is_ring(name);
    if !options.read_only
        && let Some((name, why)) = disk.find_shared(&is_ours).map_err(Error::io("list the directory", &options.dir))?
    {
        return Err(Error::io("use", options.dir.join(name))(io::Error::new(io::ErrorKind::InvalidInput, format!("it {why}"))));
    }
    let files = disk.list().map_err(Error::io("list the directory", &options.dir))?;
    if let Some((found, _)) = files.iter().find(|(name, _)| manifest::is_manifest_file(name)) {
        // The lock file is created before the manifest, so a directory that has one belongs to a
        // store.
        let is_ours = files.iter().any(|(name, _)| name == LOCK_FILE)
            || !matches!(manifest::load(disk), Err(LoadError::Missing | LoadError::Corrupt))
            || manifest::may_be_interrupted_creation(disk).map_err(Error::io("read the manifest in", &options.dir))?;
        return match is_ours {
            true => Ok(()),
            false => Err(Error::Corrupt {
                path: options.dir.join(found),
                what: "it is not a manifest, and the directory has no other".to_owned(),
            }),
        };
    }
    if let Some((found, _)) = files.iter().find(|(name, _)| file_names::is_store_file(name)) {
        let what = format!("the manifest is missing, but {found} exists");
        return Err(Error::Corrupt { path: options.dir.join(manifest::FILES[0]), what });
    }
    if let Some((found, _)) = files.iter().find(|(name, _)| name != LOCK_FILE && !file_names::is_ring(name)) {
        return Err(Error::NotAStore { path: options.dir.clone(), found: found.clone() });
    }
    if !options.create {
        return Err(Error::NotFound { path: options.dir.clone() });
    }
    Ok(())
}

/// Whether the directory holds a store whose creation was interrupted, so that the creation can
/// begin again.
fn is_interrupted_creation(disk: &dyn Disk, options: &Options) -> Result<bool> {
    let files = disk.list().map_err(Error::io("list the directory", &options.dir))?;
    if files.iter().any(|(name, _)| file_names::is_store_file(name)) {
        return Ok(false);
    }
    let may_be_ours = |name: &str| name == LOCK_FILE || manifest::is_manifest_file(name) || file_names::is_ring(name);
    if let Some((found, _)) = files.iter().find(|(name, _)| !may_be_ours(name)) {
        return Err(Error::NotAStore { path: options.dir.clone(), found: found.clone() });
    }
    manifest::may_be_interrupted_creation(disk).map_err(Error::io("read the manifest in", &options.dir))
}

/// Locks the directory. Waits up to `lock_timeout` for the holder: a live process may be about to
/// close, and the last writes of a dead one may still reach the disk.
pub(super) fn take(disk: &dyn Disk, options: &Options, clock: &dyn Clock) -> Result<Box<dyn DiskLock>> {
    let never = Event::default();
    let started = clock.monotonic();
    loop {
        match disk.lock() {
            Ok(guard) => return Ok(guard),
            Err(LockError::Io(e)) => return Err(Error::io("lock", &options.dir)(e)),
            Err(LockError::NotOurs) => return Err(Error::NotAStore { path: options.dir.clone(), found: LOCK_FILE.to_owned() }),
            Err(LockError::Held { holder }) => {
                if clock.monotonic().saturating_sub(started) >= options.lock_timeout {
                    return Err(Error::Locked { path: options.dir.clone(), holder });
                }
                never.wait(never.count(), Some(LOCK_RETRY));
            }
        }
    }
}
