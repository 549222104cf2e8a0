//! Making durable: one sync for all who wait.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::TryLockError;
use std::sync::atomic::Ordering;

use super::Engine;
use crate::concurrent::lock;
use crate::config::{Ack, Activity, INLINE_LEN_MAX};
use crate::error::{Error, Result};
use crate::id::Lsn;
use crate::io::is_shortage;
use crate::wal::writer::Wal;

impl Engine {
    /// Syncs everything that was appended before the call. Says whether there was anything.
    pub(crate) fn step_sync(&self) -> Result<bool> {
        let _alone = lock(&self.syncing);
        self.sync_alone()
    }

    /// The same, if no sync is under way, wanted by others, or postponed. Says whether it was tried.
    fn try_sync(&self) -> bool {
        if self.sync_now.load(Ordering::Acquire) || !self.until_sync_retry().is_zero() {
            return false;
        }
        let _alone = match self.syncing.try_lock() {
            Ok(alone) => alone,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        // As on a thread of the background: a panic, of a user's observer perhaps, fails the engine. What fails is recorded there, where the caller looks next.
        let _recorded = match panic::catch_unwind(AssertUnwindSafe(|| self.sync_alone())) {
            Ok(synced) => synced,
            Err(_reported) => Err(self.fail("a sync", &io::Error::other("it panicked"))),
        };
        if self.unsynced_bytes() > self.settings.sync_bytes {
            self.request_sync();
        }
        true
    }

    /// One at a time: `syncing` is held.
    fn sync_alone(&self) -> Result<bool> {
        if self.failure.get().is_some() {
            return Ok(false);
        }
        let (appended, wal_head, bytes, by_reference, rescued, failures) = {
            let log = lock(&self.log);
            self.sync_now.store(false, Ordering::Release);
            let since = self.marks.unsynced_since_ms.swap(0, Ordering::AcqRel);
            self.marks.syncing_since_ms.store(since, Ordering::Release);
            let bytes = self.marks.appended_bytes.load(Ordering::Relaxed);
            (
                log.next_lsn.0 - 1,
                log.wal_head,
                bytes,
                log.last_by_reference > self.durable(),
                log.failed.iter().all(|failed| failed.is_done()),
                log.failures,
            )
        };
        let nothing_new = appended <= self.durable().0 && bytes == self.marks.synced_bytes.load(Ordering::Relaxed);
        // Watermarks alone may have filled the ring, and somebody may wait for room for the longest frame.
        if nothing_new && self.wal.has_room(Wal::end_of(wal_head, INLINE_LEN_MAX)) {
            self.marks.syncing_since_ms.store(0, Ordering::Release);
            return Ok(false);
        }
        let _observed = self.observe(Activity::Sync);
        self.events.durable.begin(Lsn(appended));
        if by_reference {
            self.sync_segments()?;
        }
        let written = match self.wal.write_out(wal_head) {
            Ok(written) => written,
            Err(e) if is_shortage(&e) => {
                self.counters.disk_full.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(dir = %self.dir.display(), error = %e, "no room for the WAL");
                return Ok(self.postpone_sync());
            }
            Err(e) => return Err(self.fail("writing the WAL", &e)),
        };
        self.counters.wal_bytes.fetch_add(written, Ordering::Relaxed);
        self.marks.written.fetch_max(appended, Ordering::AcqRel);
        self.events.room.signal();
        self.wal.sync().map_err(|e| self.fail("syncing the WAL", &e))?;
        if !rescued || lock(&self.log).failures != failures {
            // Records that were appended are nowhere yet where they would outlive the host, or were appended again since.
            return Ok(self.postpone_sync());
        }
        self.marks.durable.fetch_max(appended, Ordering::AcqRel);
        self.marks.synced_bytes.store(bytes, Ordering::Relaxed);
        self.marks.syncing_since_ms.store(0, Ordering::Release);
        self.counters.syncs.fetch_add(1, Ordering::Relaxed);
        self.append_mark();
        self.events.durable.end();
        self.events.room.signal();
        Ok(true)
    }

    /// Whoever waits goes on waiting, and the next interval tries again. False: nothing was synced.
    fn postpone_sync(&self) -> bool {
        let retry = self.time.monotonic() + self.settings.sync_interval;
        self.marks.sync_retry_ms.store(retry.as_millis() as u64, Ordering::Release);
        // As old as they were.
        let since = self.marks.syncing_since_ms.swap(0, Ordering::AcqRel);
        self.marks.unsynced_since_ms.store(since.max(1), Ordering::Release);
        // It may not be the thread of this event that called.
        self.events.sync.signal();
        self.events.durable.give_up(self.durable());
        false
    }

    /// Writes out and syncs the segment stream. Before the frames that name its records; the other order would be as true, since nothing is acknowledged in between.
    /// Whoever writes out goes on meanwhile.
    fn sync_segments(&self) -> Result<()> {
        let mut dirty = lock(&self.flushing);
        self.flush(&mut dirty, true)?;
        let unsynced = std::mem::take(&mut dirty.0);
        drop(dirty);
        for segment in unsynced {
            if let Err(error) = self.table.file(segment).and_then(|file| file.sync()) {
                self.fail_segment(&mut lock(&self.flushing), segment, &error)?;
            }
        }
        Ok(())
    }

    /// Whether everything up to `lsn` is durable; an error if it never will be.
    pub(super) fn is_durable(&self, lsn: Lsn) -> Result<bool> {
        match self.failure.get() {
            _ if self.durable() >= lsn => Ok(true),
            Some(reason) => Err(Error::Failed { reason: reason.clone() }),
            None => Ok(false),
        }
    }

    /// Sees to it that a sync comes for `lsn`. Which event it signals.
    pub(super) fn sync_generation_of(&self, lsn: Lsn) -> usize {
        let (turn, has_begun) = self.events.durable.turn(lsn);
        if !has_begun {
            self.request_sync();
        }
        turn
    }

    /// Waits until everything up to `lsn` is as durable as `level` says.
    pub(super) fn wait_for(&self, level: Ack, lsn: Lsn) -> Result<()> {
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
            let turn = self.sync_generation_of(lsn);
            if self.is_durable(lsn)? {
                // The latest sync may be one more.
                return Ok(());
            }
            self.wait(self.events.durable.event(turn), seen[turn], None);
        }
    }

    /// Makes everything that was acknowledged before the call as durable as `level` says.
    pub(crate) fn persist(&self, level: Ack) -> Result<()> {
        self.wait_for(level, self.appended())
    }
}
