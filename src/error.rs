//! Typed errors. A variant exists where a caller acts differently.

use std::io;
use std::path::PathBuf;

/// Result of a [`crate::Cache`] operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Reason why an operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused or failed an operation on a store file.
    #[error("cannot {action} {path}")]
    Io {
        /// The attempted operation, beginning with a verb.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another process, or another cache in this process, has the directory open, and had it open
    /// throughout [`crate::Options::lock_timeout`].
    #[error("{path} is open in {holder}; close it there, or use another directory")]
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// Description of the process that holds the store, for people: its id, and the host name
        /// if it runs in another container.
        holder: String,
    },
    /// The directory holds no store, and the options do not allow creating one.
    #[error("{path} holds no everwarm store; check the path")]
    NotFound {
        /// The given directory.
        path: PathBuf,
    },
    /// The directory holds files that do not belong to a store, so none was created in it.
    #[error("{path} is not empty and holds no everwarm store ({found}); give an empty or new directory")]
    NotAStore {
        /// The given directory.
        path: PathBuf,
        /// Name of one unexpected file.
        found: String,
    },
    /// A file was written by a newer version of everwarm.
    #[error("{path} has format version {found}, this program reads up to {supported}; use a newer everwarm")]
    NewerVersion {
        /// The newer file.
        path: PathBuf,
        /// Format version of the file.
        found: u32,
        /// The newest format version that this version of everwarm reads.
        supported: u32,
    },
    /// The store has no usable manifest, or recovery found damage under
    /// [`crate::RecoveryMode::Refuse`].
    #[error("{path} is damaged: {what}")]
    Corrupt {
        /// The damaged file, or the store's directory.
        path: PathBuf,
        /// Description of the damage.
        what: String,
    },
    /// An option is out of its range or contradicts another one.
    #[error("option {name}: {reason}")]
    InvalidOption {
        /// Name of the option in [`crate::Options`].
        name: &'static str,
        /// The values that are allowed.
        reason: String,
    },
    /// Options in TOML cannot be parsed.
    #[error("the TOML options cannot be parsed: {reason}")]
    InvalidToml {
        /// The line and its error.
        reason: String,
    },
    /// The store needs a resize to fit the options, and [`crate::Options::resize`] forbids it: it
    /// has other sizes than the options, or more entries than `memory` can index.
    #[error("the store needs a resize: option {name}: {reason}")]
    NeedsResize {
        /// Name of the option in [`crate::Options`].
        name: &'static str,
        /// The given value, and the value of the store.
        reason: String,
    },
    /// The name of a namespace or resume token is too long, or the store has the maximum number of
    /// them.
    #[error("the name of a namespace or resume token is refused: {reason}")]
    InvalidName {
        /// The limit that applies.
        reason: String,
    },
    /// The namespace of this handle was removed. Mutations through the handle are refused, also if
    /// there is a namespace of the same name again; reads miss.
    #[error("the namespace of this handle was removed; get a handle of a namespace that exists")]
    NamespaceRemoved,
    /// A key is empty.
    #[error("the key is empty; give at least one byte")]
    EmptyKey,
    /// A key is longer than [`crate::KEY_LEN_MAX`], or too long for the segments or the write
    /// buffer of this store.
    #[error("the key has {len} bytes, the limit is {max}")]
    KeyTooLarge {
        /// Length of the key in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A value is too long for the segments or the write buffer of this store, or a resume token
    /// for the manifest.
    #[error("the value has {len} bytes, the limit of this store is {max}; raise segment_size or memory")]
    ValueTooLarge {
        /// Length of the value in bytes.
        len: usize,
        /// The limit in bytes for a value with this key.
        max: usize,
    },
    /// The value was stored compressed, and this program was built without the feature `zstd`. The
    /// entry stays, and a program with the feature reads it.
    #[error("the value is compressed, and everwarm was built without the feature `zstd`; build it with the feature")]
    NeedsZstd,
    /// The write buffer is full, and the caller chose not to wait.
    #[error("the write buffer is full; try again, or wait for room")]
    WouldBlock,
    /// The write buffer had no room before the caller's deadline.
    #[error("the deadline passed before the write buffer had room")]
    TimedOut,
    /// A write or a sync failed earlier. Mutations are refused until the store is opened again;
    /// reads go on.
    #[error("the store stopped accepting mutations: {reason}; open it again")]
    Failed {
        /// Description of the first failure.
        reason: String,
    },
    /// The disk has no room for the mutation, and the store has no entries on it that could be
    /// evicted to make room. A later call succeeds once the disk has room. A mutation that failed
    /// so while it waited for [`crate::Ack::Host`] has taken effect, and is not durable.
    #[error("the disk is full, and nothing can be evicted; free some space")]
    DiskFull,
    /// This process has had no free file descriptor for some seconds, and the store needs one to go
    /// on. A later call succeeds once there is one.
    #[error("no file descriptor is free; close some, or raise the limit of this process")]
    NoDescriptors,
    /// The cache was opened with [`crate::Options::read_only`], and the call would change the
    /// store.
    #[error("the cache is open for reading only; open it without read_only to change it")]
    ReadOnly,
    /// The cache was closed.
    #[error("the cache is closed")]
    Closed,
    /// The call was made in a child of `fork`, and the parent has the cache open.
    #[error("this process was forked from the one that opened the cache; use the cache there, or open it after the fork")]
    Forked,
}

impl Error {
    /// Wraps an error of the operating system with the attempted operation and its path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
