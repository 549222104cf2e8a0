//! Takes a segment out of use when a write or a sync fails for it.

use std::io;
use std::sync::atomic::Ordering;

use super::durability::Dirty;
use crate::engine::Engine;
use crate::error::Result;
use crate::id::SegmentId;
use crate::segment::failed::Failed;
use crate::segment::table::Stage;

/// The store refuses mutations once more than one byte in this many of its flash is out of use.
const FAILED_SHARE_MAX: u64 = 4;

impl Engine {
    /// Takes an open or full segment out of use, with its records and its unflushed bytes. They are
    /// rescued later.
    pub(super) fn fail_segment(&self, dirty: &mut Dirty, id: SegmentId, error: &io::Error) -> Result<()> {
        dirty.0.remove(&id);
        let mut log = self.log.lock();
        let Some(full) = log.take_filling(id) else { return Ok(()) };
        let (ring, end) = (self.log.segment_ring(), full.end().0);
        let start = ring.written().clamp(full.life.base.0, end);
        let mut unwritten = vec![0; (end - start) as usize];
        // These bytes were not flushed, so the ring still holds them.
        let _held = unwritten.is_empty() || ring.load(start, &mut unwritten);
        self.table.fail(id);
        let unwritten_from = (start - full.life.base.0) as u32;
        log.push_failed(Failed::new(self.table.row(id), full.footer, unwritten_from, unwritten));
        drop(log);
        self.events.prepare.signal();
        self.events.room.signal();
        self.record_failure(id, error)
    }

    /// Takes a free segment out of use. It holds no records.
    pub(in crate::engine) fn quarantine_free(&self, id: SegmentId, error: &io::Error) -> Result<()> {
        self.table.quarantine(id, Stage::Free);
        self.record_failure(id, error)
    }

    /// Bytes of the segments that are out of use: failed or quarantined, also by an earlier life.
    pub(in crate::engine) fn failed_bytes(&self) -> u64 {
        self.table.select(|row| row.stage.is_out_of_use()).iter().map(|row| row.size).sum()
    }

    fn record_failure(&self, id: SegmentId, error: &io::Error) -> Result<()> {
        self.counters.write_errors.fetch_add(1, Ordering::Relaxed);
        tracing::error!(
            dir = %self.context.dir.display(), segment = %id, %error,
            "a segment cannot be written; it is not used again before the next opening"
        );
        if self.failed_bytes() * FAILED_SHARE_MAX > self.context.settings.flash {
            return Err(self.fail("writing too many segments", error));
        }
        Ok(())
    }
}
