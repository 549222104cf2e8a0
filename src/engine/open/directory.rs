//! Decides whether a directory holds a store, may take a new one, or belongs to another program.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use crate::clock::Clock;
use crate::concurrent::Event;
use crate::config::Options;
use crate::engine::file_names;
use crate::error::{Error, Result};
use crate::io::host;
use crate::io::posix::{self, LOCK_FILE};
use crate::io::{Disk, DiskLock, LockError};
use crate::manifest::{self, LoadError, Manifest};

/// How long an opening waits for a live process that holds the lock.
const GRACE: Duration = Duration::from_millis(200);
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

/// The real disk of the options' directory, which is created if it is missing.
pub(super) fn posix_disk(options: &Options) -> Result<posix::PosixDisk> {
    let dir = prepare_directory(options)?;
    let handle = fs::File::open(dir).map_err(Error::io("open the directory", dir))?;
    posix::PosixDisk::new(dir, handle, options.backend, options.depth, options.read_threads)
        .map_err(|e| Error::InvalidOption { name: "backend", reason: format!("io_uring cannot be used here: {e}") })
}

/// Checks that the directory exists, or creates it if the options allow that.
fn prepare_directory(options: &Options) -> Result<&Path> {
    let dir = options.dir.as_path();
    match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => {
            return Err(Error::io("open the directory", dir)(std::io::ErrorKind::NotADirectory.into()));
        }
        Ok(_) => return Ok(dir),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && options.create => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Err(Error::NotFound { path: dir.to_owned() }),
        Err(e) => return Err(Error::io("open the directory", dir)(e)),
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(Error::io("create the directory", dir))?;
    Ok(dir)
}

/// Refuses a directory of another program, before anything is created in it, and a store whose
/// manifest is missing.
pub(super) fn check_contents(disk: &dyn Disk, options: &Options) -> Result<()> {
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

/// Locks the directory. Waits up to `lock_timeout` for a holder that has died, since its last
/// writes may still reach the disk. A live process gets at most [`GRACE`], and this process no time
/// at all.
pub(super) fn take(disk: &dyn Disk, options: &Options, clock: &dyn Clock) -> Result<Box<dyn DiskLock>> {
    let never = Event::default();
    let started = clock.monotonic();
    loop {
        match disk.lock() {
            Ok(guard) => return Ok(guard),
            Err(LockError::Io(e)) => return Err(Error::io("lock", &options.dir)(e)),
            Err(LockError::Held { pid }) => {
                let patience = match host::is_alive(pid) {
                    true if pid == std::process::id() => Duration::ZERO,
                    true => GRACE.min(options.lock_timeout),
                    false => options.lock_timeout,
                };
                if clock.monotonic().saturating_sub(started) >= patience {
                    return Err(Error::Locked { path: options.dir.clone(), pid });
                }
                never.wait(never.count(), Some(LOCK_RETRY));
            }
        }
    }
}
