//! Get or fill: read-through for a key whose value comes from a slower source.
//!
//! A hit returns the cached value. After a miss the caller boards the flight of the key, as
//! `single_flight` describes. The leader looks the key up once more, runs its loader, and stores
//! the value if no mutation superseded the flight. The check and the store are one step under the
//! key's stripe. A waiter starts again with the lookup once the flight has landed.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::options::PutOptions;
use super::single_flight::Landing;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id::Key;

/// Reason why [`crate::Cache::get_or_fill`] or [`crate::AsyncCache::get_or_fill`] returned no
/// value.
///
/// `E` is the error of the caller's loader.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FillError<E> {
    /// The loader of this call failed. Nothing was stored. The next waiter for the key runs its own
    /// loader.
    #[error("the loader of get_or_fill failed, so nothing was stored")]
    Loader(#[source] E),
    /// The lookup of the key failed, or the put of the loaded value.
    #[error(transparent)]
    Cache(#[from] Error),
}

impl Engine {
    /// The cached value of `key`, or the value that `load` returns. Stores a loaded value, unless
    /// the key was put or deleted since the load began.
    pub(crate) fn get_or_fill<E>(
        &self,
        key: Key<'_>,
        options: &PutOptions,
        load: impl FnOnce() -> Result<Bytes, E>,
    ) -> Result<Bytes, FillError<E>> {
        let hash = self.context.hash(key);
        loop {
            if let Some(value) = self.get(key, true)? {
                return Ok(value.into_bytes());
            }
            let (flight, is_leader) = self.fills.board(hash);
            if is_leader {
                let _landing = Landing { fills: &self.fills, hash, flight: &flight };
                // Another flight may have landed between the miss and the boarding.
                if let Some(value) = self.get(key, false)? {
                    return Ok(value.into_bytes());
                }
                let loaded = load().map_err(FillError::Loader)?;
                let stored = self.put_if(key, &loaded, options, Some(&|| !flight.superseded.load(Ordering::SeqCst)));
                return match stored {
                    // A value that is too large to store is still of use to the caller.
                    Ok(_) | Err(Error::ValueTooLarge { .. } | Error::KeyTooLarge { .. }) => Ok(loaded),
                    Err(e) => Err(e.into()),
                };
            }
            let seen = flight.over.count();
            if !flight.landed.load(Ordering::SeqCst) {
                flight.over.wait(seen, None);
            }
        }
    }
}
