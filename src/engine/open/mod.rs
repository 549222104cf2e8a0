//! Opens a store, and closes it.
//!
//! The order of steps in [`open`]:
//!
//! 1. Validate the options, before anything is created.
//! 2. Check the contents of the directory. A directory that holds foreign files, or a store without
//!    its manifest, is refused before anything is written.
//! 3. Lock the directory. From here on no other process changes it.
//! 4. Load the manifest. Validate the options again, together with the sizes that it states, and
//!    reserve the file descriptors.
//! 5. Recover the store, or describe a new one without entries.
//! 6. Raise or check the memory budget, now that the size of the index is known. Under
//!    `RecoveryMode::Refuse` damage ends the opening here.
//! 7. Create missing rings, write the first manifest of the new life, and build the engine.
//!
//! The new life begins with the manifest of step 7. If the process dies earlier, the next opening
//! recovers the same store again.
//!
//! `directory` holds steps 2 to 4, `budget` the checks of memory and descriptors, `start` step 7,
//! and `close` the orderly end. An opening for reading only has no step 3, and performs the others
//! on a disk whose changes stay in DRAM, as `snapshot` describes.

pub(in crate::engine) mod budget;
mod close;
mod directory;
mod snapshot;
mod start;

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::Engine;
use super::context::Mode;
use super::recover::{self, Recovered};
use crate::clock::Clock;
use crate::concurrent::lock;
use crate::config::{Activity, Observer, Options, RecoveryMode, Settings, Stored};
use crate::error::{Error, Result};
use crate::io::host::{self, Descriptors};
use crate::io::overlay::NotLocked;
use crate::io::posix::file_size_max;
use crate::io::watched::Watched;
use crate::io::{BLOCK, Disk, DiskLock};
use crate::manifest::Manifest;

/// The directory's lock and the reserved descriptors, held until the store is closed or dropped.
#[derive(Debug)]
pub(super) struct OpenGuards(Mutex<Option<Guards>>);

#[derive(Debug)]
struct Guards {
    lock: Box<dyn DiskLock>,
    _descriptors: Option<Descriptors>,
}

impl OpenGuards {
    /// Fails if the directory was removed or may be locked by another process.
    pub(super) fn check(&self) -> io::Result<()> {
        lock(&self.0).as_ref().map_or(Ok(()), |guards| guards.lock.check())
    }

    /// Unlocks the directory.
    fn release(&self) {
        drop(lock(&self.0).take());
    }
}

/// Refuses a store whose files would be longer than this process may make them.
fn check_file_sizes(is_real: bool, settings: &Settings) -> Result<()> {
    let longest = settings.segment_size.max(settings.segment_ring).max(settings.wal_ring).max(settings.wal_payload + BLOCK as u64);
    match file_size_max() {
        Some(limit) if is_real && limit < longest => {
            let reason = format!("files of {longest} B are needed, this process may write {limit} (RLIMIT_FSIZE); raise the limit");
            Err(Error::InvalidOption { name: "segment_size", reason })
        }
        _ => Ok(()),
    }
}

/// Opens the store in the options' directory.
pub(crate) fn open(options: &Options, disk: Option<Arc<dyn Disk>>, clock: Arc<dyn Clock>, mode: Mode) -> Result<Arc<Engine>> {
    let is_real = disk.is_none();
    // A store that is only read keeps its sizes.
    let reader = |options: Options| Options { create: false, resize: false, flash: None, segment_size: None, ..options };
    let options = if options.read_only { reader(options.clone()) } else { options.clone() };
    let options = &if is_real { Options { memory_max: host::memory_max(), ..options } } else { options };
    // Before anything is created.
    let settings = options.validate(None)?;
    budget::check_memory(&settings)?;
    let disk = match disk {
        Some(disk) => disk,
        None => Arc::new(directory::posix_disk(options)?),
    };
    let started = clock.monotonic();
    let dir = &options.dir;
    directory::check_contents(disk.as_ref(), options)?;
    if options.read_only {
        let _observed = Observer::begin(options.activity.as_ref(), Activity::Recovery);
        let (disk, opened) = snapshot::open(&disk, clock.as_ref(), options, is_real)?;
        return begin(options, disk, clock, mode, opened, Box::new(NotLocked), started);
    }
    let lock = directory::take(disk.as_ref(), options, clock.as_ref())?;
    let _observed = Observer::begin(options.activity.as_ref(), Activity::Recovery);
    let watched = Watched::new(Arc::clone(&disk));
    let loaded = directory::load_manifest(&watched, options);
    watched.check().map_err(Error::io("read the manifest in", dir))?;
    let opened = match loaded? {
        None => {
            // Options that were not set have their defaults now. The defaults must fit the other
            // options.
            let settings = options.clone().flash(settings.flash).validate(None)?;
            check_file_sizes(is_real, &settings)?;
            let descriptors = budget::check_machine(is_real, &settings)?;
            let created = start::create(&settings, disk.as_ref(), clock.as_ref());
            Opened { recovered: created.map_err(Error::io("recover the store in", dir))?, settings, descriptors }
        }
        Some((manifest, damaged)) => recover_store(&disk, clock.as_ref(), options, is_real, (manifest, damaged), None)?,
    };
    begin(options, disk, clock, mode, opened, lock, started)
}

/// A store that is described, with the settings and descriptors that it needs.
struct Opened {
    settings: Settings,
    recovered: Recovered,
    descriptors: Option<Descriptors>,
}

/// Recovers the store of a manifest, as far as `cut` if it is given (see [`recover::recover`]).
fn recover_store(
    disk: &Arc<dyn Disk>,
    clock: &dyn Clock,
    options: &Options,
    is_real: bool,
    (manifest, damaged): (Manifest, bool),
    cut: Option<u64>,
) -> Result<Opened> {
    let watched = Arc::new(Watched::new(Arc::clone(disk)));
    let disk: Arc<dyn Disk> = Arc::clone(&watched) as Arc<dyn Disk>;
    let entries = recover::checkpoint_header(disk.as_ref(), &manifest).map_or(0, |header| header.entries);
    let settings = options.validate(Some(Stored {
        flash: manifest.flash,
        segment_size: manifest.segment_size,
        segment_ring: manifest.segment_ring,
        wal_ring: manifest.wal_ring,
        entries,
    }))?;
    let geometry = recover::geometry(&manifest, &settings);
    let settings = budget::fit_geometry(settings, options, &geometry)?;
    if !options.read_only {
        check_file_sizes(is_real, &settings)?;
    }
    let descriptors = budget::check_machine(is_real, &settings)?;
    let recovered = recover::recover(&disk, clock, &settings, manifest, damaged, cut);
    let recovered = watched.check().and(recovered);
    Ok(Opened { settings, recovered: recovered.map_err(Error::io("recover the store in", &options.dir))?, descriptors })
}

/// Begins the life of a store that was recovered or described.
fn begin(
    options: &Options,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    mode: Mode,
    opened: Opened,
    lock: Box<dyn DiskLock>,
    started: Duration,
) -> Result<Arc<Engine>> {
    let (dir, Opened { settings, mut recovered, descriptors }) = (&options.dir, opened);
    let settings = budget::fit_index(settings, options, recovered.index.allocated())?;
    if settings.recovery == RecoveryMode::Refuse && !recovered.report.damaged.is_empty() {
        return Err(Error::Corrupt { path: dir.clone(), what: recovered.report.damaged.join("; ") });
    }
    recovered.report.took = clock.monotonic().saturating_sub(started);
    let guards = OpenGuards(Mutex::new(Some(Guards { lock, _descriptors: descriptors })));
    let started = start::start(settings, options, disk, clock, mode, recovered, guards);
    let engine = Arc::new(started.map_err(Error::io("start the store in", dir))?);
    tracing::info!(dir = %dir.display(), report = ?engine.context.report, "open");
    Ok(engine)
}
