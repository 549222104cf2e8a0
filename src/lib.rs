#![doc = include_str!("../README.md")]

#[cfg(test)]
extern crate self as everwarm;

mod clock;
mod codec;
mod concurrent;
mod config;
mod engine;
mod error;
mod id;
mod index;
mod inspect;
mod io;
mod manifest;
mod parallel;
mod segment;
mod tier;
mod wal;

mod cache;
#[cfg(any(test, fuzzing))]
#[allow(missing_docs, unreachable_pub)]
pub mod fuzzing;

#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;

pub use cache::{AsyncCache, Cache, Entries};
#[cfg(feature = "toml")]
pub use config::parse_size;
pub use config::{Ack, Activity, Backend, Cause, Compression, Evicted, KEY_LEN_MAX, OnHostCrash, Options, RecoveryMode, WalValues};
pub use engine::{Condition, DeleteOptions, Entry, FillError, Hint, PerCause, PutOptions, RecoveryReport, Start, Stats, Tier, Value, Wait};
pub use error::{Error, Result};
pub use id::Lsn;
pub use inspect::{Inspection, LAYOUT, SegmentInspection, Verified, inspect, verify};
