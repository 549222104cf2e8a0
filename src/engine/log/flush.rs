//! Writes the segment ring to segment files.

use std::io;
use std::sync::atomic::Ordering;

use super::durability::Dirty;
use super::state::Unwritten;
use crate::codec::round_down;
use crate::engine::Engine;
use crate::error::Result;
use crate::id::SegmentId;
use crate::io::BLOCK;
use crate::segment::format::{DATA_START, Life};

impl Engine {
    /// Flushes full segments whole, and the open one up to the last whole block. True if it wrote
    /// anything.
    pub(crate) fn step_flush(&self) -> Result<bool> {
        let mut dirty = self.durability.flushing();
        if self.health.is_over() {
            return Ok(false);
        }
        self.flush(&mut dirty, false)
    }

    /// Flushes everything, the last partial block too. Returns the segments that must be synced.
    pub(super) fn flush_all(&self) -> Result<Vec<SegmentId>> {
        let mut dirty = self.durability.flushing();
        self.flush(&mut dirty, true)?;
        Ok(std::mem::take(&mut dirty.0).into_iter().collect())
    }

    fn flush(&self, dirty: &mut Dirty, partial: bool) -> Result<bool> {
        let ring = self.log.segment_ring();
        let mut busy = false;
        while let Some(Unwritten { life, end, full }) = self.oldest_unwritten() {
            let to = if partial || full.is_some() { end } else { round_down(end, BLOCK as u64) };
            // Everything before this segment was written, so the ring continues at its first
            // record.
            busy |= ring.skip_to(life.base.0 + u64::from(DATA_START));
            if to > ring.written() {
                busy = true;
                if let Err(error) = self.write_out(&life, to, dirty) {
                    self.fail_segment(dirty, life.id, &error)?;
                    continue;
                }
            }
            let Some(size) = full else { break };
            ring.skip_to(life.base.0 + size);
            self.events.sync.signal();
            busy = true;
        }
        if busy {
            self.events.room.signal();
        }
        Ok(busy)
    }

    /// The oldest segment that has not left the ring. It is looked up under one hold of the log
    /// lock: otherwise the open segment could retire in between, and its last records would be
    /// taken for written.
    fn oldest_unwritten(&self) -> Option<Unwritten> {
        let log = self.log.lock();
        log.oldest_unwritten(self.log.segment_ring().written())
    }

    /// Writes the ring up to `to` into the segment with this life.
    fn write_out(&self, life: &Life, to: u64, dirty: &mut Dirty) -> io::Result<()> {
        let file = self.table.file(life.id)?;
        dirty.0.insert(life.id);
        let mut written = 0;
        self.log.segment_ring().write_out(to, |at, bytes| {
            file.write_at(at - life.base.0, bytes)?;
            written += bytes.len() as u64;
            self.events.room.signal();
            Ok(())
        })?;
        self.counters.segment_bytes.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }
}
