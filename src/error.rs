//! Typed errors. A variant exists where a caller would act differently.

use std::io;
use std::path::PathBuf;

/// What [`crate::Cache`] operations return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused or failed an operation on a store file.
    #[error("cannot {action} {path}")]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The file or directory concerned.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Another live process, or another cache in this process, has the directory open.
    #[error("{path} is open in process {pid}; close it there, or use another directory")]
    Locked {
        /// The store's directory.
        path: PathBuf,
        /// The holder's process id, 0 if it could not be read.
        pid: u32,
    },
    /// The directory holds no store, and the caller asked for an existing one.
    #[error("{path} holds no everwarm store")]
    NotFound {
        /// The directory that was looked at.
        path: PathBuf,
    },
    /// The directory holds files that are not a store's, so nothing was created in it.
    #[error("{path} is not empty and holds no everwarm store ({found}); give an empty or new directory")]
    NotAStore {
        /// The directory that was looked at.
        path: PathBuf,
        /// The name of one unexpected file.
        found: String,
    },
    /// A file was written by a newer version of everwarm.
    #[error("{path} has format version {found}, this program reads up to {supported}; use a newer everwarm")]
    NewerVersion {
        /// The file concerned.
        path: PathBuf,
        /// The version it states.
        found: u32,
        /// The newest version understood here.
        supported: u32,
    },
    /// What governs the whole store is damaged in every copy.
    #[error("{path} is damaged: {what}")]
    Corrupt {
        /// The file concerned.
        path: PathBuf,
        /// What did not hold.
        what: String,
    },
    /// An option is out of its range or contradicts another one.
    #[error("option {name}: {reason}")]
    InvalidOption {
        /// The option's name as in [`crate::Options`].
        name: &'static str,
        /// What was expected.
        reason: String,
    },
    /// Options in TOML cannot be read.
    #[error("the options cannot be read: {reason}")]
    InvalidToml {
        /// The line, and what is wrong there.
        reason: String,
    },
    /// The store has other sizes than the options, or more entries than `memory` can index, and [`crate::Options::resize`] says that it is to stay as it is.
    #[error("the store would have to be resized: option {name}: {reason}")]
    NeedsResize {
        /// The option's name as in [`crate::Options`].
        name: &'static str,
        /// What was given, and what the store has.
        reason: String,
    },
    /// A namespace or resume token has a name that is too long, or would be one too many.
    #[error("the name of a namespace or resume token is refused: {reason}")]
    InvalidName {
        /// What was expected.
        reason: String,
    },
    /// A key has no bytes.
    #[error("a key has at least one byte")]
    EmptyKey,
    /// A key is longer than [`crate::KEY_LEN_MAX`], or fits no segment (or the write buffer) of this store.
    #[error("the key has {len} bytes, the limit is {max}")]
    KeyTooLarge {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// A value does not fit one segment (or the write buffer) of this store.
    #[error("the value has {len} bytes, the limit of this store is {max}; raise segment_size or memory")]
    ValueTooLarge {
        /// Bytes given.
        len: usize,
        /// Bytes allowed with this key.
        max: usize,
    },
    /// There is no room right now and the caller chose not to wait.
    #[error("the write buffer is full; try again, or wait")]
    WouldBlock,
    /// There was no room before the caller's deadline.
    #[error("the deadline passed before there was room")]
    TimedOut,
    /// A write or a sync failed earlier. Mutations are refused until the store is opened again; reads go on.
    #[error("the store stopped accepting mutations: {reason}")]
    Failed {
        /// The first failure.
        reason: String,
    },
    /// The cache was closed.
    #[error("the cache is closed")]
    Closed,
}

impl Error {
    /// Wraps a system error with what was attempted and where.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
