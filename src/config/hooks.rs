//! Callbacks that a user may set, and their arguments.

use std::sync::Arc;

#[cfg(doc)]
use super::Options;
use crate::id::Lsn;

/// An activity of the engine, reported to [`Options::activity`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activity {
    /// Unsynced bytes are written out and synced.
    Sync,
    /// The footer of a full segment is written and synced.
    Seal,
    /// The index is written to a checkpoint.
    Checkpoint,
    /// The oldest segment is emptied.
    Reclaim,
    /// The store is recovered, or created.
    Recovery,
}

/// The callback of [`Options::activity`].
#[derive(Clone)]
pub(crate) struct Observer(Arc<dyn Fn(Activity, bool) + Send + Sync>);

impl Observer {
    pub(super) fn new(call: impl Fn(Activity, bool) + Send + Sync + 'static) -> Self {
        Self(Arc::new(call))
    }

    /// Reports the start of `activity` now, and its end when the guard is dropped.
    pub(crate) fn begin(observer: Option<&Self>, activity: Activity) -> impl Drop + use<> {
        struct During(Option<Observer>, Activity);
        impl Drop for During {
            fn drop(&mut self) {
                if let Some(Observer(call)) = &self.0 {
                    call(self.1, false);
                }
            }
        }
        if let Some(Self(call)) = observer {
            call(activity, true);
        }
        During(observer.cloned(), activity)
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Observer")
    }
}

/// Why an entry left flash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Space was needed, and the entry was not hot enough to be kept.
    Capacity,
    /// The entry had expired.
    Expired,
    /// The namespace of the entry had been cleared.
    Dropped,
}

/// An entry that left flash, reported to [`Options::on_evict`].
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Evicted<'a> {
    /// The key of the entry.
    pub key: &'a [u8],
    /// The LSN of the put that stored the entry.
    pub version: Lsn,
    /// Why the entry left.
    pub cause: Cause,
}

/// The callback of [`Options::on_evict`].
#[derive(Clone)]
pub(crate) struct Listener(Arc<dyn Fn(&Evicted<'_>) + Send + Sync>);

impl Listener {
    pub(super) fn new(call: impl Fn(&Evicted<'_>) + Send + Sync + 'static) -> Self {
        Self(Arc::new(call))
    }

    /// Calls the listener. False if it panicked: that does not reach the reclaiming thread.
    pub(crate) fn call(&self, evicted: &Evicted<'_>) -> bool {
        let call = std::panic::AssertUnwindSafe(|| (self.0)(evicted));
        std::panic::catch_unwind(call).is_ok()
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}
