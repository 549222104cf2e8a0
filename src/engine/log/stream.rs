//! The two streams of an open store, and the locks that order new records.

use std::sync::{Mutex, MutexGuard};

use super::state::LogState;
use super::watermarks::Watermarks;
use crate::concurrent::lock;
use crate::id::KeyHash;
use crate::io::ring::Ring;
use crate::wal::writer::Wal;

/// Stripes that order mutations of one key. A power of two.
const STRIPES: usize = 1024;

/// The segment stream and the WAL, each behind its ring.
#[derive(Debug)]
pub(in crate::engine) struct Log {
    state: Mutex<LogState>,
    segment_ring: Ring,
    wal: Wal,
    /// One is held from the choice of a record's position until the index points to that position.
    stripes: Box<[Mutex<()>]>,
    marks: Watermarks,
}

impl Log {
    pub(in crate::engine) fn new(state: LogState, segment_ring: Ring, wal: Wal, marks: Watermarks) -> Self {
        let stripes = (0..STRIPES).map(|_| Mutex::default()).collect();
        Self { state: Mutex::new(state), segment_ring, wal, stripes, marks }
    }

    /// Takes the log lock. It is taken after a stripe, `syncing` and `flushing`.
    pub(in crate::engine) fn lock(&self) -> MutexGuard<'_, LogState> {
        lock(&self.state)
    }

    /// Takes the stripe lock of a key. It is taken before the log lock.
    pub(in crate::engine) fn stripe(&self, hash: KeyHash) -> MutexGuard<'_, ()> {
        lock(&self.stripes[hash.0 as usize & (STRIPES - 1)])
    }

    /// Takes and releases each stripe once, so that every mutation whose position was chosen before
    /// the call is in the index after it.
    pub(in crate::engine) fn pass_stripes(&self) {
        for stripe in &self.stripes {
            drop(lock(stripe));
        }
    }

    pub(in crate::engine) fn segment_ring(&self) -> &Ring {
        &self.segment_ring
    }

    pub(in crate::engine) fn wal(&self) -> &Wal {
        &self.wal
    }

    /// Whether every append reached the files of the rings.
    pub(in crate::engine) fn rings_are_whole(&self) -> bool {
        self.segment_ring.is_whole() && self.wal.is_whole()
    }

    /// Closes the files of the WAL, and releases the rings.
    pub(in crate::engine) fn close(&self) {
        self.segment_ring.close();
        self.wal.close();
    }

    pub(in crate::engine) fn marks(&self) -> &Watermarks {
        &self.marks
    }
}
