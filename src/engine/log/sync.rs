//! Group commit: one sync makes durable everything that was appended before it.
//!
//! A sync writes out and syncs the segment stream first, if it holds records that the WAL does not
//! hold itself, and then the WAL. Only then does `durable` grow, and the waiters of that sync wake.
//! A caller that finds no sync running or requested syncs on its own thread, which saves two thread
//! wake-ups; otherwise the sync thread does.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::state::SyncPoint;
use crate::config::{Ack, Activity, INLINE_LEN_MAX};
use crate::engine::Engine;
use crate::engine::disk_room::Asker;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::id::Lsn;
use crate::io::{is_full, is_shortage};
use crate::wal::writer::Wal;

/// A postponed sync is tried again after this time, or after a sync interval if that is shorter.
const RETRY_MAX: Duration = Duration::from_millis(200);

/// The outcome of a sync that did not fail the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Synced {
    /// Nothing was unsynced.
    Nothing,
    /// Everything that was appended before the sync is durable.
    Done,
    /// The disk has no room for the WAL. The sync is tried again later.
    NoRoom,
    /// A segment failed, and its records are not all elsewhere. The sync is tried again later.
    RescueFirst,
}

impl Engine {
    /// Syncs everything that was appended before the call. True if a sync succeeded.
    pub(crate) fn step_sync(&self) -> Result<bool> {
        Ok(self.sync()? == Synced::Done)
    }

    /// Syncs everything that was appended before the call.
    pub(in crate::engine) fn sync(&self) -> Result<Synced> {
        let _exclusive = self.durability.exclusive();
        self.sync_exclusive()
    }

    /// Syncs on the caller's thread, unless a sync is running, requested by others, or postponed.
    /// True if it was tried.
    fn try_sync(&self) -> bool {
        let durability = &self.durability;
        if durability.is_requested() || !durability.until_retry(self.context.time.monotonic()).is_zero() {
            return false;
        }
        let Some(_exclusive) = durability.try_exclusive() else { return false };
        // As on a background thread, a panic (perhaps of a user's observer) fails the engine. The
        // engine records the failure, and the caller checks that next.
        let _recorded = match panic::catch_unwind(AssertUnwindSafe(|| self.sync_exclusive())) {
            Ok(synced) => synced,
            Err(_reported) => Err(self.fail("a sync", &io::Error::other("it panicked"))),
        };
        if self.log.marks().unsynced_bytes() > self.context.settings.sync_bytes {
            self.request_sync();
        }
        true
    }

    /// Syncs. The caller holds `syncing`.
    fn sync_exclusive(&self) -> Result<Synced> {
        if self.health.is_over() {
            return Ok(Synced::Nothing);
        }
        let (wal, marks) = (self.log.wal(), self.log.marks());
        let (point, bytes, began_ms) = {
            let log = self.log.lock();
            self.durability.begin_sync();
            (log.sync_point(), marks.appended_bytes(), self.context.time.now_ms())
        };
        let SyncPoint { appended, wal_head, last_by_reference, is_rescued, failures } = point;
        let is_by_reference = last_by_reference > marks.durable();
        let nothing_new = appended <= marks.durable() && bytes == marks.synced_bytes();
        // Marks alone may have filled the ring, and a mutation may wait until the longest frame
        // fits.
        if nothing_new && wal.has_room(Wal::end_of(wal_head, INLINE_LEN_MAX)) {
            self.durability.end_idle_sync();
            return Ok(Synced::Nothing);
        }
        let _observed = self.context.observe(Activity::Sync);
        self.events.durable.begin(appended);
        if is_by_reference {
            self.sync_segments()?;
        }
        let is_unrescued = || !is_rescued || self.log.lock().failures() != failures;
        if is_unrescued() && wal.has_room(Wal::end_of(wal_head, INLINE_LEN_MAX)) {
            // The frames name records that are in no file. A host crash must not find them before
            // the frames of their rescue, unless the rescue needs the room that they take.
            self.postpone_sync();
            return Ok(Synced::RescueFirst);
        }
        let written = match wal.write_out(wal_head) {
            Ok(written) => written,
            Err(e) if is_shortage(&e) => {
                self.counters.disk_full.fetch_add(1, Ordering::Relaxed);
                self.context.warn_of("no room for the WAL; the sync is tried again", None, &e);
                if is_full(&e) {
                    // The oldest segment makes room.
                    self.health.disk_room().request(Asker::Wal);
                    self.events.prepare.signal();
                } else {
                    self.health.disk_room().miss_descriptor();
                }
                self.postpone_sync();
                return Ok(Synced::NoRoom);
            }
            Err(e) => return Err(self.fail("writing the WAL", &e)),
        };
        self.counters.wal_bytes.fetch_add(written, Ordering::Relaxed);
        marks.raise_written(appended);
        self.events.room.signal();
        wal.sync().map_err(|e| self.fail("syncing the WAL", &e))?;
        self.check_written()?;
        if is_unrescued() {
            // Some records of a failed segment would not survive a host crash yet, or were appended
            // again after this sync began.
            self.postpone_sync();
            return Ok(Synced::RescueFirst);
        }
        marks.raise_durable(appended, began_ms);
        marks.set_synced_bytes(bytes);
        self.durability.end_sync();
        self.health.disk_room().grant(Asker::Wal);
        self.append_mark();
        self.events.durable.end();
        self.events.room.signal();
        Ok(Synced::Done)
    }

    /// Whether the bytes that were written and synced are those that were appended, and in files
    /// that have names.
    fn check_written(&self) -> Result<()> {
        // Files of a removed directory are as good as lost, however durable their bytes are.
        self.check_directory()?;
        self.check_rings()
    }

    /// Leaves the waiters waiting until the sync is tried again.
    fn postpone_sync(&self) {
        let delay = self.context.settings.sync_interval.min(RETRY_MAX);
        self.durability.postpone_sync(self.context.time.monotonic(), delay);
        // A caller may have tried this sync, and not the sync thread.
        self.events.sync.signal();
        self.events.durable.give_up(self.log.marks().durable());
    }

    /// Flushes and syncs the segment stream, before the frames that name its records. The other
    /// order would be safe as well, since nothing is acknowledged in between. Flushes go on
    /// meanwhile.
    fn sync_segments(&self) -> Result<()> {
        for segment in self.flush_all()? {
            if let Err(error) = self.table.file(segment).and_then(|file| file.sync()) {
                self.fail_segment(&mut self.durability.flushing(), segment, &error)?;
            }
        }
        Ok(())
    }

    /// Whether everything up to `lsn` is durable.
    ///
    /// # Errors
    /// [`Error::Failed`] if it never will be, [`Error::DiskFull`] if the disk has no room for it.
    pub(in crate::engine) fn is_durable(&self, lsn: Lsn) -> Result<bool> {
        // Read first: a failure after the sync that made `lsn` durable does not count.
        let sound = self.health.check_sound();
        if self.log.marks().durable() >= lsn {
            return Ok(true);
        }
        sound.and(self.health.disk_room().check()).map(|()| false)
    }

    /// The number of the event that the sync for `lsn` signals. Requests that sync if it has not
    /// begun.
    pub(in crate::engine) fn sync_generation_of(&self, lsn: Lsn) -> usize {
        let (generation, has_begun) = self.events.durable.generation_of(lsn);
        if !has_begun {
            self.request_sync();
        }
        generation
    }

    /// Waits until everything up to `lsn` is as durable as `level` says.
    pub(in crate::engine) fn wait_for(&self, level: Ack, lsn: Lsn) -> Result<()> {
        if level < Ack::Host {
            return Ok(());
        }
        loop {
            let seen = self.events.durable.seen();
            if self.is_durable(lsn)? {
                return Ok(());
            }
            if self.try_sync() {
                continue;
            }
            let generation = self.sync_generation_of(lsn);
            if self.is_durable(lsn)? {
                // The generation may be that of a sync after the one that made it durable.
                return Ok(());
            }
            let event = self.events.durable.event(generation);
            self.wait(event, seen[generation], None);
        }
    }

    /// Makes everything that was acknowledged before the call as durable as `level` says.
    pub(crate) fn persist(&self, level: Ack) -> Result<()> {
        self.health.check_readable()?;
        self.health.check_writable()?;
        self.wait_for(level, self.log.marks().appended())?;
        if level >= Ack::Host {
            self.check_directory()?;
        }
        self.record_persisted(level);
        Ok(())
    }
}
