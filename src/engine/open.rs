//! Opening: take the directory, create or recover, start.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::append::Log;
use super::catalog::Registry;
use super::driver::Mode;
use super::heat::HeatState;
use super::recover::{self, Recovered, RecoveryReport, Start};
use super::{Engine, STRIPES, Watermarks, files, prepare};
use crate::clock::{Clock, StoreTime};
use crate::codec::round_up;
use crate::concurrent::Event;
use crate::config::{Activity, Observer, Options, RecoveryMode, Settings, Stored};
use crate::error::{Error, Result};
use crate::id::{Lsn, Position, StoreId};
use crate::index::Index;
use crate::index::geometry::Geometry;
use crate::io::aligned::{BufferPool, Meter};
use crate::io::host::{self, Descriptors};
use crate::io::posix::{self, LOCK_FILE};
use crate::io::ring::Ring;
use crate::io::{Disk, DiskLock, LockError, numbered};
use crate::manifest::catalog::Catalog;
use crate::manifest::{self, LoadError, Manifest, ManifestStore, Segment, SegmentState};
use crate::segment::table::{self, Stage, Table};
use crate::tier::memory::MemoryTier;
use crate::wal::writer::Wal;

/// How long a live holder may take to go away before it is named.
const GRACE: Duration = Duration::from_millis(200);
/// File descriptors that an open store may have beside those of its segments.
const DESCRIPTORS_BESIDE: u64 = 64;
/// One byte in this many of memory may be buffers of reads that are over.
const POOL_SHARE: u64 = 256;
/// They never take more than this.
const POOL_BYTES_MAX: u64 = 2 << 20;

/// Opens the store in the options' directory.
pub(crate) fn open(options: &Options, disk: Option<Arc<dyn Disk>>, clock: Arc<dyn Clock>, driver: Mode) -> Result<Arc<Engine>> {
    // Before anything is made.
    let settings = options.validate(None)?;
    check_memory(&settings)?;
    let is_real = disk.is_none();
    let disk = match disk {
        Some(disk) => disk,
        None => Arc::new(posix_disk(options)?),
    };
    let started = clock.monotonic();
    let dir = &options.dir;
    check_contents(disk.as_ref(), options)?;
    let guard = take(disk.as_ref(), options, clock.as_ref())?;
    let _observed = Observer::begin(options.activity.as_ref(), Activity::Recovery);
    let loaded = match manifest::load(disk.as_ref()) {
        Ok(loaded) => Some(loaded),
        // The first manifest is whole before any other file but rings exists: its writing was interrupted, or did not begin, and nothing was ever stored.
        Err(LoadError::Missing | LoadError::Corrupt) if is_interrupted_creation(disk.as_ref(), options)? => match options.create {
            true => None,
            false => return Err(Error::NotFound { path: dir.clone() }),
        },
        Err(LoadError::Newer { found }) => {
            let path = dir.join(manifest::FILES[0]);
            return Err(Error::NewerVersion { path, found, supported: manifest::format::VERSION });
        }
        Err(LoadError::TwoStores) => {
            return Err(Error::Corrupt { path: dir.join(manifest::FILES[0]), what: manifest::TWO_STORES.to_owned() });
        }
        Err(LoadError::Missing | LoadError::Corrupt) => {
            let what = "neither copy of the manifest is whole".to_owned();
            return Err(Error::Corrupt { path: dir.join(manifest::FILES[0]), what });
        }
        Err(LoadError::Io(e)) => return Err(Error::io("read the manifest in", dir)(e)),
    };
    let io_error = Error::io("recover the store in", dir);
    let descriptors;
    let recovered = match loaded {
        None => {
            // What was left open has its default now, and must fit the rest.
            let settings = options.clone().flash(settings.flash).validate(None)?;
            descriptors = check_machine(is_real, &settings)?;
            create(&settings, disk.as_ref(), clock.as_ref()).map(|r| (settings, r))
        }
        Some((manifest, damaged)) => {
            let entries = recover::checkpoint_header(disk.as_ref(), &manifest).map_or(0, |header| header.entries);
            let settings = options.validate(Some(Stored {
                flash: manifest.flash,
                segment_size: manifest.segment_size,
                segment_ring: manifest.segment_ring,
                wal_ring: manifest.wal_ring,
                entries,
            }))?;
            let geometry = recover::geometry(&manifest, &settings);
            let settings = fit_geometry(settings, options, &geometry)?;
            descriptors = check_machine(is_real, &settings)?;
            recover::recover(&disk, clock.as_ref(), &settings, manifest, damaged).map(|r| (settings, r))
        }
    };
    let (mut settings, mut recovered) = recovered.map_err(io_error)?;
    fit_index(&mut settings, options, recovered.index.allocated())?;
    if settings.recovery == RecoveryMode::Refuse && !recovered.report.damaged.is_empty() {
        return Err(Error::Corrupt { path: dir.clone(), what: recovered.report.damaged.join("; ") });
    }
    recovered.report.took = clock.monotonic().saturating_sub(started);
    let built =
        build(settings, options, Arc::clone(&disk), clock, driver, recovered, OpenGuards { _descriptors: descriptors, _lock: guard });
    let engine = Arc::new(built.map_err(Error::io("start the store in", dir))?);
    tracing::info!(dir = %dir.display(), report = ?engine.report, "open");
    Ok(engine)
}

fn posix_disk(options: &Options) -> Result<posix::PosixDisk> {
    let dir = prepare_directory(options)?;
    let handle = fs::File::open(dir).map_err(Error::io("open the directory", dir))?;
    posix::PosixDisk::new(dir, handle, options.backend, options.depth, options.read_threads)
        .map_err(|e| Error::InvalidOption { name: "backend", reason: format!("io_uring cannot be used here: {e}") })
}

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

/// Makes room for an index that was rebuilt, if `memory` is left to the engine; else refuses to open if nothing is to be evicted.
pub(super) fn fit_index(settings: &mut Settings, options: &Options, index: u64) -> Result<()> {
    if index <= settings.index_bytes_max {
        return Ok(());
    }
    let more = index + index / 8 - settings.index_bytes_max;
    if options.memory.is_none() {
        settings.memory += more;
        settings.index_bytes_max += more;
    } else if !options.resize {
        let reason = format!("{} B given, the store's index needs at least {}", settings.memory, settings.memory + more);
        return Err(Error::NeedsResize { name: "memory", reason });
    }
    Ok(())
}

/// Refuses what this machine cannot give, before anything relies on it.
fn check_machine(is_real: bool, settings: &Settings) -> Result<Option<Descriptors>> {
    check_memory(settings)?;
    let (segments, needed) = (settings.segments, u64::from(settings.segments) + DESCRIPTORS_BESIDE);
    if !is_real {
        return Ok(None);
    }
    Descriptors::reserve(needed).map(Some).map_err(|limit| {
        let reason = format!(
            "{segments} segments need up to {needed} file descriptors, this process may have {limit} in all; raise its limit, or segment_size"
        );
        Error::InvalidOption { name: "segment_size", reason }
    })
}

fn check_memory(settings: &Settings) -> Result<()> {
    let there = host::physical_memory();
    if settings.memory > there {
        let reason = format!("{} B given, this machine has {there}", settings.memory);
        return Err(Error::InvalidOption { name: "memory", reason });
    }
    Ok(())
}

/// Makes room for an index that is large although it is empty, because of segments that were larger, or more, than those of `settings`; or refuses to, if `memory` is given.
fn fit_geometry(mut settings: Settings, options: &Options, geometry: &Geometry) -> Result<Settings> {
    let empty = geometry.partitions() as u64 * 16;
    if empty <= settings.index_bytes_max / 2 {
        return Ok(settings);
    }
    if options.memory.is_none() {
        let more = 2 * empty - settings.index_bytes_max;
        settings.memory += more;
        settings.index_bytes_max += more;
        return Ok(settings);
    }
    let reason = format!(
        "{} B given, the store's segments as they are need at least {}; once it has been emptied of them, less is enough",
        settings.memory,
        empty * 4
    );
    Err(Error::InvalidOption { name: "memory", reason })
}

/// Refuses a directory that is somebody else's, before anything is made in it, and a store whose manifest is missing.
fn check_contents(disk: &dyn Disk, options: &Options) -> Result<()> {
    let files = disk.list().map_err(Error::io("list the directory", &options.dir))?;
    if let Some((found, _)) = files.iter().find(|(name, _)| manifest::is_manifest_file(name)) {
        // Whoever makes a store takes its lock first.
        let is_ours = files.iter().any(|(name, _)| name == LOCK_FILE)
            || !matches!(manifest::load(disk), Err(LoadError::Missing | LoadError::Corrupt))
            || manifest::may_be_interrupted_creation(disk).map_err(Error::io("read the manifest in", &options.dir))?;
        return match is_ours {
            true => Ok(()),
            false => Err(Error::Corrupt { path: options.dir.join(found), what: "it is no manifest, and there is no other".to_owned() }),
        };
    }
    if let Some((found, _)) = files.iter().find(|(name, _)| files::is_store_file(name)) {
        let what = format!("it is missing, but there is {found}");
        return Err(Error::Corrupt { path: options.dir.join(manifest::FILES[0]), what });
    }
    if let Some((found, _)) = files.iter().find(|(name, _)| name != LOCK_FILE && !files::is_ring(name)) {
        return Err(Error::NotAStore { path: options.dir.clone(), found: found.clone() });
    }
    if !options.create {
        return Err(Error::NotFound { path: options.dir.clone() });
    }
    Ok(())
}

/// Whether what is there is a store whose creation was interrupted, so that it can begin again.
fn is_interrupted_creation(disk: &dyn Disk, options: &Options) -> Result<bool> {
    let files = disk.list().map_err(Error::io("list the directory", &options.dir))?;
    if files.iter().any(|(name, _)| files::is_store_file(name)) {
        return Ok(false);
    }
    let may_be_ours = |name: &str| name == LOCK_FILE || manifest::is_manifest_file(name) || files::is_ring(name);
    if let Some((found, _)) = files.iter().find(|(name, _)| !may_be_ours(name)) {
        return Err(Error::NotAStore { path: options.dir.clone(), found: found.clone() });
    }
    manifest::may_be_interrupted_creation(disk).map_err(Error::io("read the manifest in", &options.dir))
}

/// Takes the directory. A holder that has died is waited for, since its last writes may still be landing.
fn take(disk: &dyn Disk, options: &Options, clock: &dyn Clock) -> Result<Box<dyn DiskLock>> {
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
                never.wait(never.count(), Some(Duration::from_millis(2)));
            }
        }
    }
}

/// A store without entries.
fn create(settings: &Settings, disk: &dyn Disk, clock: &dyn Clock) -> std::io::Result<Recovered> {
    let manifest = Manifest {
        store: StoreId(clock.entropy()),
        sequence: 0,
        hash_seed: clock.entropy(),
        boot_id: disk.boot_id(),
        clean: false,
        next_lsn: Lsn(1),
        durable: Lsn::ZERO,
        reclaimed: Lsn::ZERO,
        time_ms: clock.wall_ms(),
        next_base: Position(settings.segment_size),
        floor: Position(0),
        wal_start: 0,
        wal_lsn: Lsn(1),
        wal_payload: settings.wal_payload,
        wal_ring: settings.wal_ring,
        segment_ring: settings.segment_ring,
        segment_size: settings.segment_size,
        flash: settings.flash,
        checkpoint: None,
        catalog: Catalog::default(),
        segments: vec![Segment { size: settings.segment_size, ..Segment::default() }; settings.segments as usize],
    };
    let index = Index::new(Geometry::new(settings.segments, settings.segment_size));
    let report = RecoveryReport { kind: Start::Created, ..RecoveryReport::default() };
    Ok(Recovered { manifest, index, report, wal_limit: 0 })
}

/// Makes rings, since there may be no room for them, but for those that have the length of `before`: what they say, or that they are missing, counts until the next manifest does.
fn make_rings(disk: &dyn Disk, names: &[String; 2], settings: &Settings, before: Option<(u64, u64)>) -> std::io::Result<()> {
    if before.is_none_or(|(segment_ring, _)| segment_ring != settings.segment_ring) {
        disk.map(&names[0], settings.segment_ring)?;
    }
    if before.is_none_or(|(_, wal_ring)| wal_ring != settings.wal_ring)
        && let Err(error) = disk.map(&names[1], settings.wal_ring)
    {
        if before.is_none_or(|(segment_ring, _)| segment_ring != settings.segment_ring) {
            let _left_if_it_must = disk.remove(&names[0]);
        }
        return Err(error);
    }
    Ok(())
}

/// Removes the files of segments that a store which has become smaller does not use any more, of all rings but those, and what an interrupted opening left.
fn remove_unused(disk: &dyn Disk, manifest: &Manifest, rings: &[String]) -> std::io::Result<()> {
    let segments = manifest.flash / manifest.segment_size;
    let is_free = |id: u32| manifest.segments.get(id as usize).is_none_or(|s| s.state == SegmentState::Free);
    let is_beyond = |name: &str| numbered(name, table::FILE_PREFIX).is_some_and(|id| u64::from(id) >= segments && is_free(id));
    for (name, _) in disk.list()? {
        let is_left = numbered(&name, table::REPLACEMENT_PREFIX).is_some();
        if (is_left || is_beyond(&name) || (files::is_ring(&name) && !rings.contains(&name)))
            && let Err(error) = disk.remove(&name)
        {
            tracing::warn!(name, %error, "a file that is not used any more cannot be removed");
        }
    }
    Ok(())
}

/// Writes the manifest of the life that begins, and puts the engine together. Until that manifest is durable, nothing that recovery read has changed but
/// files of segments that are not sealed.
fn build(
    settings: Settings,
    options: &Options,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    driver: Mode,
    recovered: Recovered,
    held: OpenGuards,
) -> std::io::Result<Engine> {
    let Recovered { mut manifest, index, report, wal_limit } = recovered;
    // Only then do rings say anything that counts.
    let before = (report.kind == Start::Process).then_some((manifest.segment_ring, manifest.wal_ring));
    let time = StoreTime::new(clock, manifest.time_ms);
    let wal_start = round_up(wal_limit.max(manifest.wal_start), manifest.wal_payload.max(settings.wal_payload));
    let ring_start = round_up(manifest.next_base.0, settings.segment_size);
    manifest.boot_id = disk.boot_id();
    manifest.clean = false;
    manifest.durable = Lsn(manifest.next_lsn.0 - 1);
    manifest.time_ms = time.now_ms();
    manifest.next_base = Position(ring_start);
    manifest.wal_start = wal_start;
    manifest.wal_lsn = manifest.next_lsn;
    manifest.wal_payload = settings.wal_payload;
    manifest.wal_ring = settings.wal_ring;
    manifest.segment_ring = settings.segment_ring;
    manifest.segment_size = settings.segment_size;
    manifest.flash = settings.flash;
    let names = [files::segment_ring(settings.segment_ring), files::wal_ring(settings.wal_ring)];
    make_rings(disk.as_ref(), &names, &settings, before)?;
    // Names that the process before made or removed may not have been synced, and nobody would do it later.
    disk.sync_dir()?;
    let manifest = ManifestStore::begin(Arc::clone(&disk), manifest)?;
    remove_unused(disk.as_ref(), &manifest, &names)?;
    let segment_ring = Ring::new(disk.map(&names[0], settings.segment_ring)?.0, ring_start);
    let wal_ring = Ring::new(disk.map(&names[1], settings.wal_ring)?.0, wal_start);
    disk.sync_dir()?;
    let wal = Wal::new(Arc::clone(&disk), manifest.store, wal_ring, settings.wal_payload)?;
    let marks = Watermarks::default();
    let last = manifest.next_lsn.0 - 1;
    for mark in [&marks.appended, &marks.written, &marks.durable] {
        mark.store(last, std::sync::atomic::Ordering::Relaxed);
    }
    marks.reclaimed.store(manifest.reclaimed.0, std::sync::atomic::Ordering::Relaxed);
    marks.marked_ms.store(manifest.time_ms, std::sync::atomic::Ordering::Relaxed);
    marks.since_checkpoint.store(report.footer_entries + report.wal_frames, std::sync::atomic::Ordering::Relaxed);
    let log = Log {
        next_lsn: manifest.next_lsn,
        open: None,
        reserved: false,
        ready: Default::default(),
        full: Default::default(),
        failed: Default::default(),
        failures: 0,
        wal_head: wal_start,
        last_by_reference: Lsn::ZERO,
    };
    let heat = HeatState::load(disk.as_ref(), manifest.store, settings.memory);
    let buffers = BufferPool::new((settings.memory / POOL_SHARE).min(POOL_BYTES_MAX));
    let rings = Ring::allocated(settings.segment_ring) + Ring::allocated(settings.wal_ring);
    let besides = rings + index.allocated() + buffers.bytes_max();
    let memory = MemoryTier::new(settings.memory.saturating_sub(besides));
    Ok(Engine {
        store: manifest.store,
        hash_seed: manifest.hash_seed,
        dir: options.dir.clone(),
        table: Table::new(Arc::clone(&disk), &manifest.segments),
        disk,
        time,
        index,
        memory,
        reads: Meter::default(),
        buffers,
        values: Meter::default(),
        segment_ring,
        wal,
        log: Mutex::new(log),
        stripes: (0..STRIPES).map(|_| Mutex::default()).collect(),
        syncing: Mutex::default(),
        flushing: Mutex::default(),
        registry: Mutex::new(Registry::new(&manifest.catalog)),
        catalog_room: prepare::catalog_room(&manifest).into(),
        catalog_wanted: 0.into(),
        manifest: Mutex::new(manifest),
        checkpointing: Mutex::default(),
        heat: Mutex::new(heat),
        fills: Default::default(),
        recent_occupancy: Mutex::new([settings.flash; 2]),
        marks,
        events: Default::default(),
        counters: Default::default(),
        observer: options.activity.clone(),
        listener: options.listener.clone(),
        failure: Default::default(),
        closing: false.into(),
        sync_now: false.into(),
        sync_rests: false.into(),
        segment_space_denied: false.into(),
        manifest_space_denied: false.into(),
        checkpoint_asked: false.into(),
        checkpoint_runs: false.into(),
        driver,
        report,
        settings,
        _held: held,
    })
}

/// What an open store keeps from others until it is dropped.
#[derive(Debug)]
pub(super) struct OpenGuards {
    _descriptors: Option<Descriptors>,
    _lock: Box<dyn DiskLock>,
}

impl Engine {
    /// Ends in order: everything durable and sealed, a checkpoint, a manifest that says so. The threads have been joined, or there are none.
    pub(crate) fn finish(&self) -> Result<()> {
        if let Some(reason) = self.failure.get() {
            let _stated_if_it_can = self.state_failed(&mut crate::concurrent::lock(&self.manifest));
            return Err(Error::Failed { reason: reason.clone() });
        }
        self.retire_open();
        self.step_flush()?;
        self.step_seal()?;
        self.step_sync()?;
        if self.durable() < self.appended() || self.segments(Stage::Failed) > 0 {
            // The next opening replays the WAL, as after a kill.
            self.state_failed(&mut crate::concurrent::lock(&self.manifest))?;
            return Err(self.fail("closing", &std::io::Error::other("not everything could be written")));
        }
        self.step_checkpoint(true)?;
        self.step_heat()?;
        let mut manifest = crate::concurrent::lock(&self.manifest);
        manifest.clean = true;
        self.write_manifest(&mut manifest).map_err(|e| self.fail("writing the manifest", &e))
    }

    /// Tells everybody that the cache closes. Mutations are refused from here on.
    pub(crate) fn begin_close(&self) {
        self.stop();
    }
}
