//! Whether the engine still serves: the first failure, and the close.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Engine;
use super::disk_room::DiskRoom;
use crate::error::{Error, Result};
use crate::io::process::ThisProcess;

/// The first failure, and whether the cache closes. Neither is ever taken back.
#[derive(Debug, Default)]
pub(in crate::engine) struct Health {
    /// The process that opened the store. A child of it has no background threads, and shares the
    /// rings with it.
    process: ThisProcess,
    /// Why the engine failed first: mostly a failed write or sync of the WAL or the manifest.
    /// Mutations are refused from then on.
    failure: OnceLock<String>,
    closing: AtomicBool,
    /// Every mutation is refused.
    read_only: bool,
    /// The files were released after the close. Set while every lock of a step is held.
    released: AtomicBool,
    disk_room: DiskRoom,
}

impl Health {
    /// The health of a store that was just opened.
    pub(in crate::engine) fn new(read_only: bool) -> Self {
        Self { read_only, ..Self::default() }
    }

    /// Whether the store was opened for reading only.
    pub(in crate::engine) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether a failure was recorded. Mutations are refused, and the background does no more.
    pub(in crate::engine) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Whether the disk has room for the store.
    pub(in crate::engine) fn disk_room(&self) -> &DiskRoom {
        &self.disk_room
    }

    /// Whether no step of the background may run any more.
    pub(in crate::engine) fn is_over(&self) -> bool {
        self.has_failed() || self.released.load(Ordering::Acquire)
    }

    /// States that the files are released. The caller holds the lock of every step.
    pub(in crate::engine) fn set_released(&self) {
        self.released.store(true, Ordering::Release);
    }

    /// Whether the cache closes. A close refuses mutations and reads.
    pub(in crate::engine) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether appends are refused for good.
    pub(in crate::engine) fn is_stopping(&self) -> bool {
        self.is_closing() || self.has_failed() || !self.process.is_this()
    }

    /// Refuses every call in a child of the process that opened the store.
    ///
    /// # Errors
    /// [`Error::Forked`].
    pub(in crate::engine) fn check_process(&self) -> Result<()> {
        if self.process.is_this() { Ok(()) } else { Err(Error::Forked) }
    }

    /// The first failure as an error.
    ///
    /// # Errors
    /// [`Error::Failed`] with the reason of the first failure.
    pub(in crate::engine) fn check_sound(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |reason| Err(Error::Failed { reason: reason.clone() }))
    }

    /// Refuses reads once the cache closes, and in a child of the process.
    ///
    /// # Errors
    /// [`Error::Closed`], [`Error::Forked`].
    pub(in crate::engine) fn check_readable(&self) -> Result<()> {
        self.check_process()?;
        if self.is_closing() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Refuses mutations once the engine failed or the cache closes, and in a store that was opened
    /// for reading only.
    ///
    /// # Errors
    /// [`Error::Forked`] before [`Error::Failed`] before [`Error::Closed`] before
    /// [`Error::ReadOnly`].
    pub(in crate::engine) fn check_mutable(&self) -> Result<()> {
        self.check_process()?;
        self.check_sound()?;
        self.check_readable()?;
        self.check_writable()
    }

    /// Refuses what writes or promises durability, in a store that was opened for reading only.
    ///
    /// # Errors
    /// [`Error::ReadOnly`].
    pub(in crate::engine) fn check_writable(&self) -> Result<()> {
        if self.read_only { Err(Error::ReadOnly) } else { Ok(()) }
    }
}

impl Engine {
    /// As [`Health::check_process`].
    pub(crate) fn check_process(&self) -> Result<()> {
        self.health.check_process()
    }

    /// As [`Health::check_readable`].
    pub(crate) fn check_readable(&self) -> Result<()> {
        self.health.check_readable()
    }

    /// As [`Health::check_mutable`].
    pub(crate) fn check_mutable(&self) -> Result<()> {
        self.health.check_mutable()
    }

    /// Records the first failure and wakes every waiter. The first failure is what this and every
    /// later call returns.
    pub(in crate::engine) fn fail(&self, what: &'static str, error: &io::Error) -> Error {
        let reason = format!("{what} failed: {error}");
        tracing::error!(dir = %self.context.dir.display(), "{reason}");
        let first = self.health.failure.get_or_init(|| reason).clone();
        self.events.signal_all();
        Error::Failed { reason: first }
    }

    /// Fails the engine if the directory was removed, or if another process may have locked it.
    pub(in crate::engine) fn check_directory(&self) -> Result<()> {
        self.guards.check().map_err(|e| self.fail("keeping the directory", &e))
    }

    /// Begins the close: mutations and reads are refused from here on, and background threads end.
    pub(crate) fn begin_close(&self) {
        self.health.closing.store(true, Ordering::Release);
        self.events.signal_all();
    }
}
