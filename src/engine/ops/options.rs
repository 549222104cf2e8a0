//! How one call differs from the cache's defaults.

use std::time::Duration;

use super::value::Value;
use crate::config::Ack;
use crate::id::Lsn;

/// When a mutation takes effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Condition {
    /// Always.
    #[default]
    Always,
    /// If the key has no value.
    IfAbsent,
    /// If the key has a value.
    IfPresent,
    /// If the key has the value of this version.
    IfVersion(Lsn),
}

/// What a mutation does when the write buffer is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Waits until there is room.
    #[default]
    Forever,
    /// Returns [`crate::Error::WouldBlock`].
    No,
    /// Waits this long for room, then returns [`crate::Error::TimedOut`]. A put that has found room at [`Ack::Host`] then waits for its sync.
    UpTo(Duration),
}

/// Where a value should be at first. Where it goes later depends on its use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hint {
    /// In the memory tier if the version before was there.
    #[default]
    Auto,
    /// In the memory tier.
    Memory,
    /// Not in the memory tier: it will not be read soon.
    Flash,
}

/// How one put differs from the defaults.
#[derive(Clone, Debug, Default)]
pub struct PutOptions {
    pub(in crate::engine) ttl: Option<Duration>,
    pub(in crate::engine) ack: Option<Ack>,
    pub(in crate::engine) condition: Condition,
    pub(in crate::engine) wait: Wait,
    pub(in crate::engine) hint: Hint,
}

impl PutOptions {
    /// Those of a put that gives what is there another expiry.
    pub(in crate::engine) fn touch(value: &Value, ttl: Option<Duration>) -> Self {
        Self { ttl, condition: Condition::IfVersion(value.version()), ..Self::default() }
    }

    /// No expiry, the cache's acknowledgement level, unconditional, waiting for room, no hint.
    pub fn new() -> Self {
        Self::default()
    }

    /// The entry expires after this time. Millisecond steps.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The level at which this put is acknowledged.
    #[must_use]
    pub fn ack(mut self, level: Ack) -> Self {
        self.ack = Some(level);
        self
    }

    /// When the put takes effect.
    #[must_use]
    pub fn condition(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// What happens when the write buffer is full.
    #[must_use]
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// Where the value should be at first.
    #[must_use]
    pub fn hint(mut self, hint: Hint) -> Self {
        self.hint = hint;
        self
    }
}

/// How one delete differs from the defaults.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    pub(in crate::engine) ack: Option<Ack>,
    pub(in crate::engine) condition: Condition,
    pub(in crate::engine) wait: Wait,
}

impl DeleteOptions {
    /// The cache's acknowledgement level, unconditional, waiting for room.
    pub fn new() -> Self {
        Self::default()
    }

    /// The level at which this delete is acknowledged.
    #[must_use]
    pub fn ack(mut self, level: Ack) -> Self {
        self.ack = Some(level);
        self
    }

    /// When the delete takes effect.
    #[must_use]
    pub fn condition(mut self, condition: Condition) -> Self {
        self.condition = condition;
        self
    }

    /// What happens when the write buffer is full.
    #[must_use]
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }
}

impl Condition {
    /// Whether it holds for a key whose value has this version.
    pub(in crate::engine) fn holds(self, version: Option<Lsn>) -> bool {
        match self {
            Self::Always => true,
            Self::IfAbsent => version.is_none(),
            Self::IfPresent => version.is_some(),
            Self::IfVersion(wanted) => version == Some(wanted),
        }
    }
}
