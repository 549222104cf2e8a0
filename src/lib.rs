//! A persistent cache that opens warm after a stop or a crash, and never serves wrong bytes.
//!
//! Everwarm keeps entries in one directory on flash, with a memory tier for hot values. After a
//! clean stop, a `kill -9`, a panic or an out-of-memory kill it opens with the entries that it had
//! acknowledged, and serves them at once. A [`get`](Cache::get) returns the bytes of the newest put
//! of exactly that key, verified by a checksum and by the full key, or it misses.
//!
//! It is not a database: an entry may be evicted at any time to make room. It is not shared: one
//! process at a time opens the directory. It runs on Linux, and makes its promises for ext4 and
//! xfs.
//!
//! ```
//! use everwarm::{Ack, Cache, Options, PutOptions};
//! use std::time::Duration;
//!
//! # fn main() -> everwarm::Result<()> {
//! # let temporary = tempfile::tempdir().unwrap();
//! # let dir = temporary.path().join("store");
//! let options = Options::new(&dir).memory(1 << 20).flash(1 << 20);
//! let cache = Cache::open(options.clone())?;
//! cache.put("user:17", "Ada")?;
//!
//! // This put survives a power cut, and expires after an hour.
//! let careful = PutOptions::new().ack(Ack::Host).ttl(Duration::from_secs(3600));
//! cache.put_with("session:4", "token", &careful)?;
//! cache.close()?;
//!
//! let cache = Cache::open(options)?;
//! assert_eq!(cache.get("user:17")?.as_deref(), Some(&b"Ada"[..]));
//! assert_eq!(cache.get("session:4")?.as_deref(), Some(&b"token"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! # Where to look
//!
//! | task | items |
//! |---|---|
//! | open and size a cache | [`Options`], [`Cache::open`], [`Cache::close`] |
//! | read | [`Cache::get`], [`Cache::get_many`], [`Cache::peek`], [`Value`] |
//! | write | [`Cache::put`], [`Cache::put_with`], [`PutOptions`], [`Cache::delete`], [`Condition`] |
//! | load on a miss, once for all callers | [`Cache::get_or_fill`] |
//! | use it from async code | [`Cache::for_tasks`], [`AsyncCache`] |
//! | separate key spaces, and drop one in constant time | [`Cache::namespace`], [`Cache::clear`] |
//! | resume a change stream after a restart | [`Cache::set_resume_token`] |
//! | choose a durability | [`Ack`], [`Cache::persist`] |
//! | watch it | [`Cache::stats`], [`Cache::recovery`], [`Options::on_evict`] |
//! | look into a directory | [`inspect`](fn@inspect), [`verify`], [`LAYOUT`] |
//!
//! # Durability
//!
//! | level | acknowledged when | clean stop | kill -9, panic, OOM kill | power cut, kernel crash |
//! |---|---|---|---|---|
//! | [`Ack::Memory`] | every reader sees it | survives | may be lost | may be lost |
//! | [`Ack::Process`] (default) | both are in the page cache or on the device | survives | **survives** | survives up to the last sync |
//! | [`Ack::Host`] | both are synced | survives | **survives** | **survives** |
//!
//! *Both* are the record of the mutation and its WAL frame. *Up to the last sync*: if a completed
//! sync covers the mutation.
//!
//! - A mutation *survives* if no older version of its key is served again. The entry itself may be
//!   evicted at any time, at every level.
//! - A sync covers every mutation before it. So an acknowledgement at [`Ack::Host`] covers all
//!   earlier mutations.
//! - A sync begins when a caller waits at [`Ack::Host`], after [`Options::sync_interval`] (100 ms),
//!   or once [`Options::sync_bytes`] (64 MiB) are unsynced.
//! - A mutation that fails, or whose caller dies, is in doubt: the old or the new value is served,
//!   never a third one.
//!
//! # Memory
//!
//! [`Options::memory`] is the sum of all that the cache allocates:
//!
//! | part | bytes |
//! |---|---|
//! | index | 8 x (1.03 x entries + 2 x partitions) + 32 x partitions; about 8.2 an entry for small records |
//! | rings | segment ring + WAL ring, and 1/32 of each (4 KiB to 128 KiB) for a bounce buffer |
//! | footers | 10.5 x entries in unsealed segments, at most 1/16 of `memory` |
//! | reads in flight | at most 1/64 of the budget, or 1 MiB if that is more, and one record for each thread |
//! | read buffers kept for reuse | at most 1/256 of the budget, and at most 2 MiB |
//! | memory tier | the rest; an entry takes its key, its value and about 112 |
//!
//! - A partition covers 64 KiB of [`Options::flash`], rounded up to a power of two.
//! - The segment ring is a quarter of the lesser of `memory` and `flash`, rounded down to a power
//!   of two, between 128 KiB and 32 MiB. The WAL ring is a quarter of it, or as large with
//!   [`WalValues::Always`].
//! - An entry of the memory tier takes 8 B more with an expiry, 8 B more in a namespace, and 48 B
//!   more if its value has a buffer of its own. The buckets of the tier take 8 B for each 512 B of
//!   it.
//! - If the index outgrows the part of the budget that the rings leave, the oldest entries are
//!   evicted.
//! - Values that a caller holds are outside the budget. [`Stats::kept_value_bytes`] counts them.
//! - A general allocator may keep more memory from the system than is allocated.
//!
//! # Features
//!
//! - `cli` (default): the `everwarm` program. A library user disables it.
//! - `io-uring` (default): reads that are in flight together go through `io_uring` where the
//!   process may use it. Without the feature threads perform them, and [`Backend::IoUring`] is
//!   refused.
//! - `zstd` (default): [`Compression::Zstd`]. Needs a C compiler. Without the feature the option is
//!   refused, and a read of a value that was stored compressed fails with [`Error::NeedsZstd`].
//! - `toml`: [`Options::from_toml`](Options#method.from_toml) and `parse_size`.
//!
//! No feature changes the bytes that are written for the same options, so builds with different
//! features open the same store.
//!
//! # Targets
//!
//! Linux on a 64-bit little-endian processor, such as x86-64 and AArch64. The tests run on x86-64.
//! Any other system or processor is refused when the crate is compiled.

#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(all(target_os = "linux", target_pointer_width = "64", target_endian = "little")))]
compile_error!(
    "everwarm runs on Linux with 64-bit little-endian processors only, such as x86_64-unknown-linux-gnu and aarch64-unknown-linux-gnu"
);

#[cfg(test)]
extern crate self as everwarm;

mod clock;
mod codec;
mod compress;
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
pub use engine::{
    Condition, DeleteOptions, Entry, FillError, Hint, NotStored, PerCause, PutOptions, RecoveryReport, Start, Stats, Tier, Value, Wait,
};
pub use error::{Error, Result};
pub use id::Lsn;
pub use inspect::{Inspection, LAYOUT, SegmentInspection, Verified, inspect, verify};

/// Compiles the examples of the README as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
