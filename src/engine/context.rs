//! Facts about an open store that never change until it is closed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

#[cfg(any(test, fuzzing))]
use super::Engine;
use super::log_limit::LogLimit;
use super::recovery_report::RecoveryReport;
use crate::clock::{StoreTime, whole_ms};
use crate::config::{Activity, Evicted, Listener, Observer, Settings};
#[cfg(any(test, fuzzing))]
use crate::error::Result;
use crate::id::{Key, KeyHash, SegmentId, StoreId};
use crate::io::Disk;

/// How background work gets done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Mode {
    /// Each kind of step has a thread of its own.
    Threads,
    /// A caller that must wait runs all pending steps on its own thread, which is deterministic.
    #[cfg(any(test, fuzzing))]
    Inline(fn(&Engine) -> Result<()>),
}

/// Settings, identity, and handles to the world outside the engine. Immutable, so its fields are
/// open to the whole engine.
#[derive(Debug)]
pub(in crate::engine) struct Context {
    pub(in crate::engine) settings: Settings,
    pub(in crate::engine) store: StoreId,
    pub(in crate::engine) hash_seed: u64,
    pub(in crate::engine) dir: PathBuf,
    pub(in crate::engine) disk: Arc<dyn Disk>,
    pub(in crate::engine) time: StoreTime,
    pub(in crate::engine) observer: Option<Observer>,
    pub(in crate::engine) listener: Option<Listener>,
    pub(in crate::engine) mode: Mode,
    pub(in crate::engine) report: RecoveryReport,
    pub(in crate::engine) log_limit: LogLimit,
}

impl Context {
    /// The hash of a key under this store's seed.
    pub(in crate::engine) fn hash(&self, key: Key<'_>) -> KeyHash {
        KeyHash::of(self.hash_seed, key)
    }

    /// Milliseconds since the store was opened.
    pub(in crate::engine) fn uptime_ms(&self) -> u64 {
        whole_ms(self.time.monotonic())
    }

    /// Reports an activity to the observer until the guard is dropped.
    pub(in crate::engine) fn observe(&self, activity: Activity) -> impl Drop + use<> {
        Observer::begin(self.observer.as_ref(), activity)
    }

    /// Tells the listener, if there is one, that an entry left flash.
    pub(in crate::engine) fn tell(&self, evicted: &Evicted<'_>) {
        const PANICKED: &str = "the eviction listener panicked";
        if let Some(listener) = &self.listener
            && !listener.call(evicted)
            && let Some(left_out) = self.may_log(PANICKED, None)
        {
            tracing::error!(dir = %self.dir.display(), left_out, "{PANICKED}");
        }
    }

    /// Whether a log line that users can cause at will may be written now: the number of such lines
    /// that were left out since the last one. `message` and `segment` name the line.
    pub(in crate::engine) fn may_log(&self, message: &'static str, segment: Option<SegmentId>) -> Option<u64> {
        self.log_limit.left_out(self.time.monotonic(), message, segment)
    }

    /// Warns of an error, if [`Context::may_log`] allows it.
    pub(in crate::engine) fn warn_of(&self, message: &'static str, segment: Option<SegmentId>, error: &io::Error) {
        if let Some(left_out) = self.may_log(message, segment) {
            let segment = segment.map(tracing::field::display);
            tracing::warn!(dir = %self.dir.display(), segment, %error, left_out, "{message}");
        }
    }
}
