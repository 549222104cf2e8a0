//! Recovers a store for reading only, also while a live process writes to it.
//!
//! Recovery runs on an [`Overlay`], so its changes stay in DRAM. Without a live writer the files
//! stand still, and it finds what any opening finds.
//!
//! A live writer changes the files while they are read. These rules make the result a prefix of its
//! mutations, with every one that was acknowledged before the opening:
//!
//! 1. The manifest is read first.
//! 2. The WAL ring is copied. Then the frames that follow each other without a gap are walked, from
//!    the WAL files and the copy. Bytes leave the ring only after they are in a file. So the walk
//!    reaches every frame that was in the ring when the copy began. The log is cut where it ends,
//!    or at the first record in a segment that the manifest does not know.
//! 3. The part of the WAL before the cut is copied, and then the segment ring. A record is in its
//!    ring before its frame is. So each record of the log is in the copy, or already in its file.
//! 4. Recovery replays the log as far as the cut.
//! 5. The attempt counts if the cut was no hole: there is a frame at the cut by now.
//!
//! Meanwhile the writer may give up a WAL file, reuse a segment or replace the checkpoint. It
//! writes a manifest first. So the WAL is whole if the manifest still names its files after step 3.
//! The rest is found as damage. If anything does not hold, the opening begins again.

use std::io;
use std::sync::Arc;

use super::{Opened, directory, recover_store};
use crate::clock::Clock;
use crate::config::Options;
use crate::engine::file_names;
use crate::engine::recover::Recovered;
use crate::error::{Error, Result};
use crate::id::{Lsn, Position};
use crate::io::aligned::AlignedBuf;
use crate::io::overlay::Overlay;
use crate::io::{BLOCK, Disk, Mapping, numbered};
use crate::manifest::{Manifest, SegmentState};
use crate::wal::format::FileHeader;
use crate::wal::replay::Replay;
use crate::wal::writer::FILE_PREFIX;

/// Attempts to read a store that changes meanwhile. [`Options::read_only`] states the number.
const ATTEMPTS: usize = 20;

/// Recovers the store on `below`, which is only read. Returns the disk for its engine.
pub(super) fn open(below: &Arc<dyn Disk>, clock: &dyn Clock, options: &Options, is_real: bool) -> Result<(Arc<dyn Disk>, Opened)> {
    let mut failure = io::Error::new(io::ErrorKind::ResourceBusy, "the store changes faster than it can be read; try again");
    for _ in 0..ATTEMPTS {
        let loaded = load_manifest(below.as_ref(), options)?;
        let disk = Arc::new(Overlay::new(Arc::clone(below)));
        let mut attempt = Attempt { below: below.as_ref(), disk: &disk, manifest: loaded.0.clone(), ring: None, cut: None };
        // A file may be gone before it is opened.
        if let Err(error) = attempt.freeze() {
            failure = error;
            continue;
        }
        if attempt.cut.is_some() && !attempt.keeps_log(&load_manifest(below.as_ref(), options)?.0) {
            continue;
        }
        let layered: Arc<dyn Disk> = Arc::clone(&disk) as Arc<dyn Disk>;
        let cut = attempt.cut.map(|(position, _)| position);
        let opened = recover_store(&layered, clock, options, is_real, loaded, cut);
        let found = opened.as_ref().ok().map(|opened| &opened.recovered);
        let now = load_manifest(below.as_ref(), options)?.0;
        match attempt.counts(&now, found) {
            Ok(true) => return Ok((layered, opened?)),
            Ok(false) => {}
            Err(error) => failure = error,
        }
    }
    Err(Error::io("read the store in", &options.dir)(failure))
}

/// Loads the manifest of a store that exists. A copy that seems damaged may be in the middle of a
/// write, so it is read again.
fn load_manifest(disk: &dyn Disk, options: &Options) -> Result<(Manifest, bool)> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match directory::load_manifest(disk, options) {
            Ok(Some((manifest, damaged))) if !damaged || attempts == ATTEMPTS => return Ok((manifest, damaged)),
            Err(error) if attempts == ATTEMPTS => return Err(error),
            Ok(None) => return Err(Error::NotFound { path: options.dir.clone() }),
            Ok(Some(_)) | Err(_) => std::thread::yield_now(),
        }
    }
}

/// One attempt to read a store.
struct Attempt<'a> {
    below: &'a dyn Disk,
    disk: &'a Overlay,
    manifest: Manifest,
    /// The copy of the WAL ring, if the log is replayed.
    ring: Option<Arc<dyn Mapping>>,
    /// Where the log of a live writer is cut, and the LSN of the last mutation before it.
    cut: Option<(u64, Lsn)>,
}

impl Attempt<'_> {
    /// Copies what recovery reads and a live writer overwrites. After a close or a host crash there
    /// is no live writer.
    fn freeze(&mut self) -> io::Result<()> {
        let manifest = &self.manifest;
        if manifest.clean || manifest.boot_id != self.below.boot_id() {
            return Ok(());
        }
        let (ring, _) = self.disk.view(&file_names::wal_ring(manifest.wal_ring), manifest.wal_ring)?;
        self.ring = Some(Arc::clone(&ring));
        let start = (manifest.wal_start, manifest.wal_lsn);
        let (end, last) = self.walk(ring, start, |record| is_known(manifest, record))?;
        if self.has_moved()? {
            self.cut = Some((end, last));
            self.pin_log(end)?;
        }
        let Manifest { segment_ring, .. } = self.manifest;
        self.disk.view(&file_names::segment_ring(segment_ring), segment_ring).map(drop)
    }

    /// Whether no file of the log was given up before the manifest `now` was read.
    fn keeps_log(&self, now: &Manifest) -> bool {
        let (before, file) = (&self.manifest, self.manifest.wal_start / self.manifest.wal_payload);
        (now.store, now.wal_payload) == (before.store, before.wal_payload) && now.wal_start / now.wal_payload == file
    }

    /// Follows the frames from `start` in the files and in `ring`.
    fn walk(&self, ring: Arc<dyn Mapping>, start: (u64, Lsn), is_known: impl Fn(Position) -> bool) -> io::Result<(u64, Lsn)> {
        Replay::open(self.below, self.manifest.store, ring, self.manifest.wal_payload)?.end_of_run(start, is_known)
    }

    /// The WAL ring as it is now.
    fn ring_now(&self) -> io::Result<Arc<dyn Mapping>> {
        let name = file_names::wal_ring(self.manifest.wal_ring);
        self.below.view(&name, self.manifest.wal_ring).map(|(ring, _)| ring)
    }

    /// Whether the WAL ring has changed since it was copied.
    fn has_moved(&self) -> io::Result<bool> {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(before) = &self.ring else { return Ok(false) };
        let now = self.ring_now()?;
        Ok(before.words().iter().zip(now.words()).any(|(before, now)| before.load(Relaxed) != now.load(Relaxed)))
    }

    /// Copies the bytes of the log before `end` into DRAM, since the writer gives up and reuses its
    /// files.
    fn pin_log(&self, end: u64) -> io::Result<()> {
        let Manifest { store, wal_start, wal_payload, .. } = self.manifest;
        let mut block = AlignedBuf::zeroed(BLOCK);
        for (name, len) in self.disk.list()? {
            if numbered(&name, FILE_PREFIX).is_none() || len != wal_payload + BLOCK as u64 {
                continue;
            }
            self.disk.open(&name)?.read_at(0, &mut block)?;
            let Some(header) = FileHeader::decode(store, &block).filter(|header| header.payload == wal_payload) else { continue };
            let first = header.number * wal_payload;
            let (from, to) = (wal_start.max(first), end.min(first + wal_payload));
            if from < to {
                self.disk.pin(&name, 0, BLOCK as u64)?;
                self.disk.pin(&name, BLOCK as u64 + from - first, BLOCK as u64 + to - first)?;
            }
        }
        Ok(())
    }

    /// Whether recovery has `found` the store as it was at one moment. `now` is the manifest that
    /// was read afterwards.
    fn counts(&self, now: &Manifest, found: Option<&Recovered>) -> io::Result<bool> {
        let is_same = now.sequence == self.manifest.sequence && now.store == self.manifest.store;
        let is_undamaged = found.is_some_and(|found| found.report.damaged.is_empty());
        let Some((cut, last)) = self.cut else {
            // After a close everything is in the files that the manifest names.
            return Ok((is_same && !self.has_moved()?) || (self.manifest.clean && is_undamaged));
        };
        let is_whole = is_undamaged && found.is_some_and(|found| found.manifest.next_lsn > last);
        // With the same manifest nothing was reused, so the damage is not the writer's doing.
        let is_right = is_whole || is_same;
        Ok(is_right && self.walk(self.ring_now()?, (cut, last.next()), |_| true)?.0 > cut)
    }
}

/// Whether a manifest states the segment that holds this position.
fn is_known(manifest: &Manifest, at: Position) -> bool {
    let holds = |segment: &crate::manifest::Segment| (segment.base.0..segment.base.0 + segment.size).contains(&at.0);
    manifest.segments.iter().any(|segment| segment.state != SegmentState::Free && holds(segment))
}
