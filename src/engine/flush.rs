//! Write-out of the segment ring, and sealing.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;

use super::Engine;
use crate::codec::round_down;
use crate::config::Activity;
use crate::error::Result;
use crate::id::SegmentId;
use crate::io::BLOCK;
use crate::io::aligned::AlignedBuf;
use crate::segment::format::{self, DATA_START, Life};
use crate::segment::table::State;
use crate::segment::writer::Full;
use crate::sync::lock;

/// Segments with bytes that were written and not synced. Guarded by the flush lock.
#[derive(Debug, Default)]
pub(super) struct Dirty(pub(super) BTreeSet<SegmentId>);

impl Engine {
    /// One step of write-out: full segments are sealed, whole blocks of the open one are written. Says whether it did something.
    pub(crate) fn step_flush(&self) -> Result<bool> {
        let mut dirty = lock(&self.flushing);
        if self.failure.get().is_some() {
            return Ok(false);
        }
        self.flush(&mut dirty, false)
    }

    /// Seals what is full and writes out the open segment: whole blocks, or everything if `partial`.
    pub(super) fn flush(&self, dirty: &mut Dirty, partial: bool) -> Result<bool> {
        let mut busy = false;
        while let Some((life, end, full)) = self.oldest_unwritten() {
            let to = if partial || full { end } else { round_down(end, BLOCK as u64) };
            // Everything before this segment was written, so its first record is where the ring goes on.
            busy |= self.segment_ring.skip_to(life.base.0 + u64::from(DATA_START));
            if to > self.segment_ring.written() {
                busy = true;
                if let Err(error) = self.write_out(&life, to, dirty) {
                    self.fail_segment(dirty, life.id, &error)?;
                    continue;
                }
            }
            if !full {
                break;
            }
            busy = true;
            if let Err(error) = self.seal(dirty) {
                self.fail_segment(dirty, life.id, &error)?;
            }
        }
        if busy {
            self.events.room.signal();
        }
        Ok(busy)
    }

    /// The oldest segment that has not left the ring, where its records end, and whether it waits for its footer. One look at the log: between
    /// two, the open segment could be retired, and its last records be taken for written.
    fn oldest_unwritten(&self) -> Option<(Life, u64, bool)> {
        let log = lock(&self.log);
        let full = log.full.front().map(|full| (full.life, full.end().0, true));
        full.or_else(|| log.open.as_ref().map(|open| (open.life, open.head().0, false)))
    }

    /// Writes the ring up to `to` into the segment with this life.
    fn write_out(&self, life: &Life, to: u64, dirty: &mut Dirty) -> io::Result<()> {
        let file = self.table.file(life.id)?;
        dirty.0.insert(life.id);
        let mut written = 0;
        self.segment_ring.write_out(to, |at, bytes| {
            file.write_at(at - life.base.0, bytes)?;
            written += bytes.len() as u64;
            self.events.room.signal();
            Ok(())
        })?;
        self.counters.segment_bytes.fetch_add(written, Ordering::Relaxed);
        Ok(())
    }

    /// Writes the footer of the oldest full segment, whose records were written, and syncs it.
    fn seal(&self, dirty: &mut Dirty) -> io::Result<()> {
        let _during = self.during(Activity::Seal);
        let Some(full) = lock(&self.log).full.pop_front() else { return Ok(()) };
        let (life, last_lsn) = (full.life, full.last_lsn);
        let written = self.table.file(life.id).and_then(|file| {
            let written = write_footer(self.store, &full, file.as_ref())?;
            file.sync().map(|()| written)
        });
        let written = match written {
            Ok(written) => written,
            Err(error) => {
                lock(&self.log).full.push_front(full);
                return Err(error);
            }
        };
        self.counters.segment_bytes.fetch_add(written, Ordering::Relaxed);
        dirty.0.remove(&life.id);
        self.table.change(life.id, &[State::Full], |row| {
            row.state = State::Sealed;
            row.last_lsn = last_lsn;
        });
        self.marks.written.fetch_max(last_lsn.0, Ordering::AcqRel);
        Ok(())
    }
}

/// Writes the footer and the trailer of `full` at the end of its file. Bytes written.
pub(super) fn write_footer(store: crate::id::StoreId, full: &Full, file: &dyn crate::io::File) -> io::Result<u64> {
    let (life, size, end) = (full.life, full.size, u64::from(full.data_end));
    let trailer = full.trailer();
    let blocks = full.footer.finish(store, |len| life.base.plus(size - (BLOCK + len) as u64));
    let mut bytes = AlignedBuf::zeroed(blocks.len() + BLOCK);
    bytes[..blocks.len()].copy_from_slice(&blocks);
    format::encode_trailer(store, &life, &trailer, &mut bytes[blocks.len()..]);
    let offset = size - bytes.len() as u64;
    assert!(offset >= end, "the footer lies after the records");
    file.write_at(offset, &bytes)?;
    Ok(bytes.len() as u64)
}
