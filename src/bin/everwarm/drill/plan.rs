//! The workload as a mapped file, so that a restarted child needs no time to read it: time counts
//! from its spawn.
//!
//! ```text
//! keys: u64 | requests: u64 | length of each key | request codes
//! ```

use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::ensure;

use super::words::Words;
use crate::workload::{Request, Workload};

const HEADER: usize = 2;

/// A mapped workload. The parent writes it before any child starts; afterwards it is only read.
pub(crate) struct Plan {
    words: Words,
    keys: usize,
    requests: usize,
}

impl Plan {
    /// Writes `workload` to a new file at `path`.
    pub(crate) fn write(path: &Path, workload: &Workload) -> anyhow::Result<()> {
        let (keys, requests) = (workload.key_lens.len(), workload.requests.len());
        let words = Words::create(path, HEADER + keys + requests)?;
        let header = [keys as u64, requests as u64].into_iter();
        let key_lens = workload.key_lens.iter().map(|len| u64::from(*len));
        let codes = workload.requests.iter().map(|request| request.code());
        for (word, value) in words.all().iter().zip(header.chain(key_lens).chain(codes)) {
            word.store(value, Relaxed);
        }
        Ok(())
    }

    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let words = Words::open(path)?;
        let count = |at: usize| words.all().get(at).map_or(0, |word| word.load(Relaxed) as usize);
        let (keys, requests) = (count(0), count(1));
        ensure!(words.all().len() == HEADER + keys + requests, "{} is not a plan of a drill: its length is wrong", path.display());
        Ok(Self { words, keys, requests })
    }

    pub(crate) fn keys(&self) -> usize {
        self.keys
    }

    pub(crate) fn requests(&self) -> usize {
        self.requests
    }

    pub(crate) fn key_len(&self, key: u32) -> usize {
        self.words.all()[HEADER + key as usize].load(Relaxed) as usize
    }

    pub(crate) fn request(&self, at: usize) -> Request {
        Request::from_code(self.words.all()[HEADER + self.keys + at].load(Relaxed))
    }
}
