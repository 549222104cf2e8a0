//! Get or fill: of all who miss a key at once, one loads its value and the others wait for it.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::options::PutOptions;
use super::single_flight::Landing;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::id::Key;

/// Why [`crate::Cache::get_or_fill`] has no value.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FillError<E> {
    /// The caller's loader failed. Those who waited for it try themselves.
    #[error("the loader failed")]
    Loader(#[source] E),
    /// The cache failed.
    #[error(transparent)]
    Cache(#[from] Error),
}

impl Engine {
    /// The value of `key`: what the cache has, else what `load` gives, which is stored unless the key was put or deleted meanwhile.
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
            let (flight, mine) = self.fills.board(hash);
            if mine {
                let _landing = Landing { fills: &self.fills, hash, flight: &flight };
                // Somebody else's load may have landed between the miss and the boarding.
                if let Some(value) = self.get(key, false)? {
                    return Ok(value.into_bytes());
                }
                let loaded = load().map_err(FillError::Loader)?;
                let stored = self.put_if(key, &loaded, options, &|| !flight.superseded.load(Ordering::SeqCst));
                return match stored {
                    // A value that cannot be kept can still be used.
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
