//! Options that are one of a few alternatives.

#[cfg(doc)]
use super::Options;
#[cfg(doc)]
use crate::error::Error;

/// When a mutation is acknowledged, weakest level first.
///
/// The table on the [crate page](crate#durability) states which stops each level survives. A level
/// is set for the cache with [`Options::ack`] and for one call with
/// [`PutOptions::ack`](crate::PutOptions::ack) or
/// [`DeleteOptions::ack`](crate::DeleteOptions::ack).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Ack {
    /// Once every reader in the process sees the mutation. Promises nothing after a crash.
    Memory,
    /// Once the record and its WAL frame are in the page cache or on the device. Survives a process
    /// crash: kill -9, panic, out-of-memory kill. The default.
    #[default]
    Process,
    /// Once the record and its WAL frame are synced. Survives a host crash: power cut, kernel
    /// crash.
    Host,
}

/// Which values the WAL holds in addition to the segment, which holds every value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum WalValues {
    /// No values. Each value is written to flash once.
    Never,
    /// Values of records up to 4 KiB that are put at [`Ack::Host`]. Their acknowledgement needs one
    /// synced file instead of two. The default.
    #[default]
    Host,
    /// Values of all records up to 4 KiB. Each of these values is written to flash twice.
    Always,
}

/// How values are compressed before they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Values are stored uncompressed. The default.
    #[default]
    None,
    /// zstd at this level, -7 to 22. Applies to values of at least 128 B that become smaller. Needs
    /// the feature `zstd`: without it, opening fails with [`Error::InvalidOption`].
    Zstd(i32),
}

/// How reads that can be in flight together are done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum Backend {
    /// `io_uring` if the process may use it, else `pread`.
    /// [`Stats::io_uring`](crate::Stats::io_uring) says which. The default.
    #[default]
    Auto,
    /// `io_uring`. Opening fails with [`Error::InvalidOption`] if it cannot be used, or in a build
    /// without the feature `io-uring`.
    #[cfg_attr(feature = "toml", serde(rename = "io_uring"))]
    IoUring,
    /// `pread`. A thread reads one record after the other; the reads of tasks are done by
    /// [`Options::read_threads`] threads.
    Portable,
}

/// How an opening treats the data of a store whose host crashed. Mutations that were not synced
/// before the crash may be missing from it. The crash counts until the report of it can have been
/// heard, see [`RecoveryReport`](crate::RecoveryReport).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum OnHostCrash {
    /// Serves the data.
    /// [`RecoveryReport::maybe_lost_after`](crate::RecoveryReport::maybe_lost_after) states the LSN
    /// up to which every mutation is present. The default.
    #[default]
    Serve,
    /// Starts empty.
    Cold,
}

/// How an opening treats damage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "toml", derive(serde::Deserialize), serde(rename_all = "snake_case"))]
pub enum RecoveryMode {
    /// Serves the data that verifies, and reports the rest in
    /// [`RecoveryReport::damaged`](crate::RecoveryReport::damaged). The default.
    #[default]
    Serve,
    /// Serves the data that verifies, but rebuilds the index from segment footers instead of
    /// loading the checkpoint. Slower.
    Rebuild,
    /// Fails with [`Error::Corrupt`] if anything that the opening reads is damaged. One damaged
    /// copy of the manifest is tolerated. The store can still be opened in another mode.
    Refuse,
}
