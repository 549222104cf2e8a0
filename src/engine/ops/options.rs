//! Parameters of a single mutation.
//!
//! Options of the whole cache are in [`crate::Options`]. The types here override them for one call,
//! or add to them: a TTL, a condition, a limit on waiting, a hint on placement.

use std::time::Duration;

use super::value::Value;
use crate::config::Ack;
use crate::id::Lsn;

/// The state of a key in which a mutation takes effect. In any other state, the call changes
/// nothing and returns `None`.
///
/// The check and the mutation are one atomic step. An expired entry counts as absent. To check a
/// condition other than [`Condition::Always`], the call reads the current version of the key, and
/// fails with [`crate::Error::Io`] if that read fails. The default is [`Condition::Always`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// In every state.
    #[default]
    Always,
    /// The key has no value.
    IfAbsent,
    /// The key has a value, of any version.
    IfPresent,
    /// The key has a value of this version, as [`crate::Value::version`] states it.
    IfVersion(Lsn),
}

/// The reaction of a mutation to back-pressure: the write buffer is full, or there is no room for
/// another record for one of the other causes in [`crate::PerCause`].
///
/// The default depends on the call:
///
/// | call | default | what is limited |
/// |---|---|---|
/// | put, delete, touch | [`Wait::Forever`] | the wait for room |
/// | [`crate::Cache::get_or_fill`] | [`Wait::No`] | the waits for room, for a sync, and for another caller's load |
///
/// - A mutation at [`Ack::Host`] that found room waits for its sync without a limit, except in a
///   fill.
/// - A fill with the default waits for the first segment after an opening, for at most 5 s. It
///   waits for a sync and for another's load for at most 5 s too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Wait until there is room. In a fill, also until the sync.
    Forever,
    /// Do not wait: the call fails with [`crate::Error::WouldBlock`]. A fill then returns the
    /// loaded value without storing it.
    No,
    /// Wait for room at most this long: after that the call fails with [`crate::Error::TimedOut`].
    /// A fill then returns the loaded value without storing it.
    ///
    /// In a fill each wait may take this long: for another caller's load, for room, for the sync.
    UpTo(Duration),
}

/// The tier in which a new value starts. Later use may move it to another tier. Every value is
/// written to flash as well. The default is [`Hint::Auto`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hint {
    /// The memory tier if it holds the previous version of the entry, else flash alone.
    #[default]
    Auto,
    /// The memory tier, for a value that is read soon. A value that is too large for the memory
    /// tier starts on flash alone.
    Memory,
    /// Flash alone, for a value that is not read soon.
    Flash,
}

/// Options of one put. The defaults are those of [`PutOptions::new`].
///
/// ```
/// # fn main() -> everwarm::Result<()> {
/// # let dir = tempfile::tempdir().unwrap();
/// # let options = everwarm::Options::new(dir.path()).memory(1 << 20).flash(1 << 20);
/// # let cache = everwarm::Cache::open(options)?;
/// use everwarm::{Ack, Condition, PutOptions};
/// use std::time::Duration;
///
/// // Take a lease for one minute, unless another worker holds it.
/// let minute = Duration::from_secs(60);
/// let lease = PutOptions::new().ttl(minute).ack(Ack::Host).condition(Condition::IfAbsent);
/// assert!(cache.put_with("lease:17", "worker-1", &lease)?.is_some());
/// assert!(cache.put_with("lease:17", "worker-2", &lease)?.is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    pub(in crate::engine) ttl: Option<Duration>,
    pub(in crate::engine) ack: Option<Ack>,
    pub(in crate::engine) condition: Condition,
    /// `None` is the default of the call.
    pub(in crate::engine) wait: Option<Wait>,
    pub(in crate::engine) hint: Hint,
}

impl PutOptions {
    /// Options of a put that only changes the expiry of the entry that holds `value`. The put takes
    /// no effect if the entry has another version by then.
    pub(in crate::engine) fn touch(value: &Value, ttl: Option<Duration>) -> Self {
        Self { ttl, condition: Condition::IfVersion(value.version()), ..Self::default() }
    }

    /// Whether the current version of the key must be read first.
    pub(in crate::engine) fn is_conditional(&self) -> bool {
        self.condition != Condition::Always
    }

    /// The defaults: no expiry, the acknowledgement level of the cache, [`Condition::Always`],
    /// [`Hint::Auto`], and the [`Wait`] of the call.
    pub fn new() -> Self {
        Self::default()
    }

    /// Time until the entry expires, rounded down to milliseconds. Default: the entry never
    /// expires.
    ///
    /// An expired entry is a miss, also after a restart and if the system clock goes back.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Level at which this put is acknowledged. Default: [`crate::Options::ack`]. A fill waits for
    /// no sync by default: it takes [`Ack::Process`] if that is lower.
    #[must_use]
    pub fn ack(mut self, level: Ack) -> Self {
        self.ack = Some(level);
        self
    }

    /// State of the key in which this put takes effect. Default: [`Condition::Always`].
    #[must_use]
    pub fn condition(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// Reaction of this put to back-pressure. Default: [`Wait::Forever`], and [`Wait::No`] in
    /// [`crate::Cache::get_or_fill`].
    #[must_use]
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = Some(wait);
        self
    }

    /// Tier in which the value starts. Default: [`Hint::Auto`].
    #[must_use]
    pub fn hint(mut self, hint: Hint) -> Self {
        self.hint = hint;
        self
    }
}

/// Options of one delete. The defaults are those of [`DeleteOptions::new`].
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub(in crate::engine) ack: Option<Ack>,
    pub(in crate::engine) condition: Condition,
    /// `None` is [`Wait::Forever`].
    pub(in crate::engine) wait: Option<Wait>,
}

impl DeleteOptions {
    /// The defaults: the acknowledgement level of the cache, [`Condition::Always`],
    /// [`Wait::Forever`].
    pub fn new() -> Self {
        Self::default()
    }

    /// Level at which this delete is acknowledged. Default: [`crate::Options::ack`].
    #[must_use]
    pub fn ack(mut self, level: Ack) -> Self {
        self.ack = Some(level);
        self
    }

    /// State of the key in which this delete takes effect. Default: [`Condition::Always`].
    #[must_use]
    pub fn condition(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// Reaction of this delete to back-pressure. Default: [`Wait::Forever`].
    #[must_use]
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = Some(wait);
        self
    }
}

impl Condition {
    /// Whether the condition holds for a key whose value has this version. `None` is a key without
    /// a value.
    pub(in crate::engine) fn holds(self, version: Option<Lsn>) -> bool {
        match self {
            Self::Always => true,
            Self::IfAbsent => version.is_none(),
            Self::IfPresent => version.is_some(),
            Self::IfVersion(wanted) => version == Some(wanted),
        }
    }
}
