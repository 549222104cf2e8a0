//! Begins the next life of a store: creates its rings, writes its first manifest, and builds the
//! engine.
//!
//! The order matters. A ring of a new length is created before the manifest names it, and rings and
//! segment files that are no longer named are removed after the manifest is durable. Both streams
//! continue above every position that an earlier life can have used, so that no old record or frame
//! verifies in the new life.

use std::io;
use std::sync::{Arc, Mutex};

use super::OpenGuards;
use crate::clock::{Clock, Moment, StoreTime, whole_ms};
use crate::codec::round_up;
use crate::config::{Options, Settings};
use crate::engine::context::{Context, Mode};
use crate::engine::health::Health;
use crate::engine::log::pace::CheckpointPace;
use crate::engine::log::state::LogState;
use crate::engine::log::stream::Log;
use crate::engine::log::watermarks::Watermarks;
use crate::engine::meta::manifest::{ManifestKeeper, catalog_room};
use crate::engine::meta::namespaces::Namespaces;
use crate::engine::ops::read_path::ReadPath;
use crate::engine::recover::Recovered;
use crate::engine::recovery_report::{RecoveryReport, Start};
use crate::engine::space::occupancy::Occupancy;
use crate::engine::warmth::WarmthState;
use crate::engine::{Engine, file_names};
use crate::id::{Lsn, Position, StoreId};
use crate::index::Index;
use crate::index::geometry::Geometry;
use crate::io::aligned::BufferPool;
use crate::io::ring::Ring;
use crate::io::{Disk, numbered, remove_own};
use crate::manifest::catalog::Catalog;
use crate::manifest::{Manifest, ManifestStore, OpeningReport, Segment, SegmentState};
use crate::segment::table::{self, Table};
use crate::tier::memory::MemoryTier;
use crate::wal::writer::Wal;

/// Describes a new store without entries. Writes nothing.
pub(super) fn create(settings: &Settings, disk: &dyn Disk, clock: &dyn Clock) -> std::io::Result<Recovered> {
    let wall_ms = clock.wall_ms();
    let time = Moment { store_ms: wall_ms, wall_ms, boot_ms: Some(whole_ms(clock.monotonic())) };
    let manifest = Manifest {
        store: StoreId(clock.entropy()),
        sequence: 0,
        hash_seed: clock.entropy(),
        boot_id: disk.boot_id(),
        clean: false,
        rings_marked: false,
        next_lsn: Lsn(1),
        durable: Lsn::ZERO,
        reclaimed: Lsn::ZERO,
        time,
        durable_ms: wall_ms,
        // Before it is created, a store has nothing to lose.
        report: OpeningReport { pending: None, lost_after: None, alive_ms: wall_ms, alive_wall_ms: wall_ms },
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
    Ok(Recovered { manifest, index, stop: Start::Created, report, wal_limit: 0 })
}

/// Creates the rings, since the disk may have no room for them. A ring with the length that
/// `before` states (segment ring, WAL ring) is left alone. Until the next manifest counts, recovery
/// needs the contents of such a ring, or the fact that it is missing.
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

/// Removes files that the store no longer uses:
/// - files of free segments beyond the end of a store that has become smaller;
/// - rings other than `rings`;
/// - replacements that an interrupted opening left.
fn remove_unused(disk: &dyn Disk, manifest: &Manifest, rings: &[String]) -> std::io::Result<()> {
    let segments = manifest.flash / manifest.segment_size;
    let is_free = |id: u32| manifest.segments.get(id as usize).is_none_or(|s| s.state == SegmentState::Free);
    let is_beyond = |name: &str| numbered(name, table::FILE_PREFIX).is_some_and(|id| u64::from(id) >= segments && is_free(id));
    for (name, _) in disk.list()? {
        let is_left = numbered(&name, table::REPLACEMENT_PREFIX).is_some();
        if (is_left || is_beyond(&name) || (file_names::is_ring(&name) && !rings.contains(&name)))
            && let Err(error) = remove_own(disk, &name, manifest.store)
        {
            tracing::warn!(name, %error, "an unused file cannot be removed; the next opening tries again");
        }
    }
    Ok(())
}

/// Where the streams of a new life begin.
struct Beginning {
    /// Position in the WAL.
    wal: u64,
    /// Position in the segment stream.
    stream: u64,
}

/// Makes a recovered manifest state a new life in which nothing is appended yet.
fn begin_opening(manifest: &mut Manifest, settings: &Settings, boot_id: u64, now: Moment, wal_limit: u64) -> Beginning {
    let wal = round_up(wal_limit.max(manifest.wal_start), manifest.wal_payload.max(settings.wal_payload));
    let stream = round_up(manifest.next_base.0, settings.segment_size);
    manifest.boot_id = boot_id;
    manifest.clean = false;
    manifest.rings_marked = false;
    manifest.durable = Lsn(manifest.next_lsn.0 - 1);
    manifest.time = now;
    manifest.durable_ms = now.store_ms;
    manifest.next_base = Position(stream);
    manifest.wal_start = wal;
    manifest.wal_lsn = manifest.next_lsn;
    manifest.wal_payload = settings.wal_payload;
    manifest.wal_ring = settings.wal_ring;
    manifest.segment_ring = settings.segment_ring;
    manifest.segment_size = settings.segment_size;
    manifest.flash = settings.flash;
    Beginning { wal, stream }
}

/// Writes the manifest of the new life and builds the engine. Until that manifest is durable, the
/// files that recovery read are as recovery left them.
pub(super) fn start(
    settings: Settings,
    options: &Options,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    mode: Mode,
    recovered: Recovered,
    guards: OpenGuards,
) -> io::Result<Engine> {
    let Recovered { mut manifest, index, stop, report, wal_limit } = recovered;
    // Only after a process crash do the rings hold bytes that recovery needs.
    let before = (stop == Start::Process).then_some((manifest.segment_ring, manifest.wal_ring));
    let time = StoreTime::resume(clock, &manifest.time);
    let begin = begin_opening(&mut manifest, &settings, disk.boot_id(), time.now(), wal_limit);
    let names = [file_names::segment_ring(settings.segment_ring), file_names::wal_ring(settings.wal_ring)];
    make_rings(disk.as_ref(), &names, &settings, before)?;
    // Files that the earlier process created or removed may not be synced in the directory, and no
    // later step syncs them.
    disk.sync_dir()?;
    let mut manifest = ManifestStore::begin(Arc::clone(&disk), manifest)?;
    remove_unused(disk.as_ref(), &manifest, &names)?;
    let segment_ring = Ring::new(disk.map(&names[0], settings.segment_ring)?.0, begin.stream);
    let wal_ring = Ring::new(disk.map(&names[1], settings.wal_ring)?.0, begin.wal);
    disk.sync_dir()?;
    // Not before the manifest: the marks of the last life tell how it stopped until then. The next
    // manifest states them, and no record is appended before it.
    manifest.rings_marked = disk.mark_cached(&names[0])? && disk.mark_cached(&names[1])?;
    let wal = Wal::new(Arc::clone(&disk), manifest.store, wal_ring, settings.wal_payload)?;
    let marks = Watermarks::new(Lsn(manifest.next_lsn.0 - 1), manifest.reclaimed, manifest.time.store_ms);
    let log = Log::new(LogState::new(manifest.next_lsn, begin.wal), segment_ring, wal, marks);
    let warmth = WarmthState::load(disk.as_ref(), manifest.store, settings.memory);
    let pool = BufferPool::new(settings.pool_bytes);
    let rings = Ring::allocated(settings.segment_ring) + Ring::allocated(settings.wal_ring);
    let besides_tier = rings + index.allocated() + pool.bytes_max();
    let memory = MemoryTier::new(settings.memory.saturating_sub(besides_tier));
    Ok(Engine {
        table: Table::new(Arc::clone(&disk), &manifest.segments),
        index,
        log,
        durability: Default::default(),
        pace: CheckpointPace::new(report.footer_entries + report.wal_frames),
        namespaces: Namespaces::new(&manifest.catalog, catalog_room(&manifest)),
        occupancy: Occupancy::new(settings.flash),
        reads: ReadPath::new(memory, pool),
        fills: Default::default(),
        warmth: Mutex::new(warmth),
        health: Health::new(options.read_only),
        events: Default::default(),
        counters: Default::default(),
        context: Context {
            store: manifest.store,
            hash_seed: manifest.hash_seed,
            dir: options.dir.clone(),
            disk,
            time,
            observer: options.activity.clone(),
            listener: options.listener.clone(),
            mode,
            report,
            log_limit: Default::default(),
            settings,
        },
        manifest: ManifestKeeper::new(manifest),
        guards,
    })
}
