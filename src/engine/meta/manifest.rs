//! Writes the manifest of an open store: segments, WAL start, catalog, watermarks and checkpoint.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::concurrent::lock;
use crate::engine::Engine;
use crate::engine::disk_room::Asker;
use crate::error::Result;
use crate::id::Position;
use crate::io::{is_full, is_shortage};
use crate::manifest::{Checkpoint, ManifestStore, SegmentState};
use crate::segment::table::Row;

/// The newest manifest on disk.
#[derive(Debug)]
pub(in crate::engine) struct ManifestKeeper {
    /// Taken before the namespaces, a stripe and the log lock.
    store: Mutex<ManifestStore>,
    /// The disk had no room for longer manifest files.
    is_space_denied: AtomicBool,
}

impl ManifestKeeper {
    pub(in crate::engine) fn new(store: ManifestStore) -> Self {
        Self { store: Mutex::new(store), is_space_denied: AtomicBool::new(false) }
    }

    /// Takes the manifest lock.
    pub(in crate::engine) fn lock(&self) -> MutexGuard<'_, ManifestStore> {
        lock(&self.store)
    }

    /// Whether the last attempt to make the files longer found no room on the disk.
    pub(in crate::engine) fn is_space_denied(&self) -> bool {
        self.is_space_denied.load(Ordering::Acquire)
    }
}

/// Bytes that the catalog may take before the files of the manifest must become longer.
pub(in crate::engine) fn catalog_room(manifest: &ManifestStore) -> usize {
    (manifest.len() as usize).saturating_sub(manifest.len_with(0))
}

impl Engine {
    /// Writes the current state of the engine into the manifest. Then trims the WAL before the
    /// position from which a recovery would replay it.
    pub(in crate::engine) fn write_manifest(&self, manifest: &mut ManifestStore) -> Result<()> {
        self.store_manifest(manifest).map_err(|e| self.fail("writing the manifest", &e))
    }

    fn store_manifest(&self, manifest: &mut ManifestStore) -> io::Result<()> {
        self.guards.check()?;
        let (wal_end, now) = {
            let log = self.log.lock();
            (log.wal_end(), self.context.time.now())
        };
        // The end was read first: if no segment is open now, everything before it is in sealed
        // segments.
        let (segments, wal_start) = self.table.describe(wal_end);
        let durable = self.log.marks().durable();
        let is_all_durable = durable.next() >= wal_end.lsn;
        manifest.catalog = self.namespaces.settle(wal_start.lsn, durable);
        manifest.segments = segments;
        manifest.wal_start = wal_start.position;
        manifest.wal_lsn = wal_start.lsn;
        manifest.next_lsn = wal_end.lsn;
        manifest.durable = durable;
        manifest.reclaimed = self.log.marks().reclaimed();
        manifest.time = now;
        manifest.durable_ms = if is_all_durable { now.store_ms } else { self.log.marks().durable_ms() };
        if self.log.marks().is_heard() {
            manifest.report.pending = None;
        }
        let written = manifest.store()?;
        self.counters.manifest_bytes.fetch_add(written, Ordering::Relaxed);
        self.log.wal().trim(wal_start.position);
        Ok(())
    }

    /// Makes the manifest state every failed segment, since a later process could not find out.
    pub(in crate::engine) fn state_failed(&self, manifest: &mut ManifestStore) -> Result<()> {
        let is_stated =
            |row: &Row| matches!(manifest.segments[row.life.id.index()].state, SegmentState::Failed | SegmentState::Quarantined);
        if self.table.select(|row| row.stage.is_out_of_use()).iter().all(is_stated) {
            return Ok(());
        }
        self.write_manifest(manifest)
    }

    /// States failed segments after a failure of the engine, if the manifest can still be written.
    pub(in crate::engine) fn state_failed_if_possible(&self) {
        let _stated = self.state_failed(&mut self.manifest.lock());
    }

    /// Makes the manifest name a checkpoint.
    pub(in crate::engine) fn name_checkpoint(&self, sequence: u64, start: Position) -> Result<()> {
        let mut manifest = self.manifest.lock();
        manifest.checkpoint = Some(Checkpoint { sequence, start });
        self.write_manifest(&mut manifest)
    }

    /// Makes the manifest state that the store was closed in order.
    pub(in crate::engine) fn state_clean(&self) -> Result<()> {
        let mut manifest = self.manifest.lock();
        manifest.clean = true;
        // A close is the end of a store that was served.
        self.log.marks().set_heard();
        self.write_manifest(&mut manifest)
    }

    /// Makes the files of the manifest longer if a catalog change waits for that. Returns false if
    /// none waits, or if the disk has no room.
    pub(crate) fn step_grow(&self) -> Result<bool> {
        if self.manifest.is_space_denied.swap(false, Ordering::AcqRel) {
            // Catalog changes that still wait ask again.
            self.events.room.signal();
        }
        if !self.namespaces.waits_for_room() {
            return Ok(false);
        }
        let mut manifest = self.manifest.lock();
        if self.health.is_stopping() {
            return Ok(false);
        }
        let len = manifest.len_with(self.namespaces.wanted()) as u64;
        match manifest.grow(len) {
            Ok(()) => self.health.disk_room().grant(Asker::Manifest),
            Err(e) if is_shortage(&e) => {
                self.namespaces.forget_wanted();
                self.manifest.is_space_denied.store(true, Ordering::Release);
                self.record_shortage("no room for a longer manifest; it is tried again", &e);
                if is_full(&e) {
                    self.health.disk_room().request(Asker::Manifest);
                    self.events.prepare.signal();
                } else {
                    self.health.disk_room().miss_descriptor();
                }
                return Ok(false);
            }
            Err(e) => return Err(self.fail("growing the manifest", &e)),
        }
        self.namespaces.set_room(catalog_room(&manifest));
        self.events.room.signal();
        Ok(true)
    }

    /// Counts and logs that the disk had no room. It may be asked again many times a second.
    pub(in crate::engine) fn record_shortage(&self, message: &'static str, error: &io::Error) {
        self.counters.disk_full.fetch_add(1, Ordering::Relaxed);
        self.context.warn_of(message, None, error);
    }
}
