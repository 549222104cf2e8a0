//! Whether the engine still serves: the first failure, and the close.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Engine;
use crate::error::{Error, Result};

/// The first failure, and whether the cache closes. Neither is ever taken back.
#[derive(Debug, Default)]
pub(in crate::engine) struct Health {
    /// Why the engine failed first: mostly a failed write or sync of the WAL or the manifest.
    /// Mutations are refused from then on.
    failure: OnceLock<String>,
    closing: AtomicBool,
}

impl Health {
    /// Whether a failure was recorded. Mutations are refused, and the background does no more.
    pub(in crate::engine) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    /// Whether the cache closes. A close refuses mutations and reads.
    pub(in crate::engine) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether appends are refused for good.
    pub(in crate::engine) fn is_stopping(&self) -> bool {
        self.is_closing() || self.has_failed()
    }

    /// The first failure as an error.
    ///
    /// # Errors
    /// [`Error::Failed`] with the reason of the first failure.
    pub(in crate::engine) fn check_sound(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |reason| Err(Error::Failed { reason: reason.clone() }))
    }

    /// Refuses reads once the cache closes.
    ///
    /// # Errors
    /// [`Error::Closed`].
    pub(in crate::engine) fn check_readable(&self) -> Result<()> {
        if self.is_closing() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Refuses mutations once the engine failed or the cache closes.
    ///
    /// # Errors
    /// [`Error::Failed`] before [`Error::Closed`].
    pub(in crate::engine) fn check_mutable(&self) -> Result<()> {
        self.check_sound()?;
        self.check_readable()
    }
}

impl Engine {
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

    /// Begins the close: mutations and reads are refused from here on, and background threads end.
    pub(crate) fn begin_close(&self) {
        self.health.closing.store(true, Ordering::Release);
        self.events.signal_all();
    }
}
