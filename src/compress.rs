//! Compression of values with zstd, the only user of that library.

use std::io;

#[cfg(feature = "zstd")]
use zstd::bulk;

/// Whether this build can compress and decompress.
pub(crate) const IS_SUPPORTED: bool = cfg!(feature = "zstd");

/// Stands in for the library in a build without the feature `zstd`.
#[cfg(not(feature = "zstd"))]
mod bulk {
    use std::io;

    pub(super) fn compress(_value: &[u8], _level: i32) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn decompress(_compressed: &[u8], _len_max: usize) -> io::Result<Vec<u8>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Compresses a value at a level of zstd. Always fails unless [`IS_SUPPORTED`].
pub(crate) fn compress(value: &[u8], level: i32) -> io::Result<Vec<u8>> {
    bulk::compress(value, level)
}

/// Decompresses a value. `None` if it does not decompress to `len` bytes; always unless
/// [`IS_SUPPORTED`].
pub(crate) fn decompress(compressed: &[u8], len: usize) -> Option<Vec<u8>> {
    bulk::decompress(compressed, len).ok().filter(|value| value.len() == len)
}
