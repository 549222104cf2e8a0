//! Write-out of the segment ring, and sealing.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::Ordering;

use super::Engine;
use crate::codec::round_down;
use crate::concurrent::lock;
use crate::config::Activity;
use crate::error::Result;
use crate::id::SegmentId;
use crate::io::BLOCK;
use crate::io::aligned::AlignedBuf;
use crate::segment::format::{self, DATA_START, Life};
use crate::segment::table::Stage;
use crate::segment::writer::Full;

/// Segments with bytes that were written and not synced. Guarded by the flush lock.
#[derive(Debug, Default)]
pub(super) struct Dirty(pub(super) BTreeSet<SegmentId>);

/// A segment of which a part is nowhere but in the ring.
struct Unwritten {
    life: Life,
    /// Where its records end.
    end: u64,
    /// Its size, if it takes no more of them.
    full: Option<u64>,
}

impl Engine {
    /// One step of write-out: all of full segments, whole blocks of the open one. Says whether it did something.
    pub(crate) fn step_flush(&self) -> Result<bool> {
        let mut dirty = lock(&self.flushing);
        if self.failure.get().is_some() {
            return Ok(false);
        }
        self.flush(&mut dirty, false)
    }

    /// Writes out full segments and the open one: of that whole blocks, or everything if `partial`.
    pub(super) fn flush(&self, dirty: &mut Dirty, partial: bool) -> Result<bool> {
        let mut busy = false;
        while let Some(Unwritten { life, end, full }) = self.oldest_unwritten() {
            let to = if partial || full.is_some() { end } else { round_down(end, BLOCK as u64) };
            // Everything before this segment was written, so its first record is where the ring goes on.
            busy |= self.segment_ring.skip_to(life.base.0 + u64::from(DATA_START));
            if to > self.segment_ring.written() {
                busy = true;
                if let Err(error) = self.write_out(&life, to, dirty) {
                    self.fail_segment(dirty, life.id, &error)?;
                    continue;
                }
            }
            let Some(size) = full else { break };
            self.segment_ring.skip_to(life.base.0 + size);
            self.events.sync.signal();
            busy = true;
        }
        if busy {
            self.events.room.signal();
        }
        Ok(busy)
    }

    /// The oldest segment that has not left the ring. One look at the log: between two, the open segment could be retired, and its last records be taken for written.
    fn oldest_unwritten(&self) -> Option<Unwritten> {
        let log = lock(&self.log);
        let written = self.segment_ring.written();
        let full = log.full.iter().find(|full| full.end().0 > written);
        let full = full.map(|full| Unwritten { life: full.life, end: full.end().0, full: Some(full.size) });
        full.or_else(|| log.open.as_ref().map(|open| Unwritten { life: open.life, end: open.head().0, full: None }))
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

    /// Seals full segments whose records were written. Says whether there was one.
    pub(crate) fn step_seal(&self) -> Result<bool> {
        if lock(&self.log).full.is_empty() {
            return Ok(false);
        }
        let _alone = lock(&self.syncing);
        let mut busy = false;
        while self.failure.get().is_none()
            && let Some(full) = self.next_to_seal()
        {
            busy = true;
            let life = full.life;
            if let Err((full, error)) = self.seal(full) {
                let mut dirty = lock(&self.flushing);
                lock(&self.log).full.push_front(full);
                self.fail_segment(&mut dirty, life.id, &error)?;
            }
        }
        if busy {
            self.events.room.signal();
        }
        Ok(busy)
    }

    /// Takes the oldest full segment, if it has left the ring.
    fn next_to_seal(&self) -> Option<Full> {
        let mut log = lock(&self.log);
        log.full.pop_front_if(|full| full.end().0 <= self.segment_ring.written())
    }

    /// Writes the footer of a segment whose records were written, and syncs it.
    fn seal(&self, full: Full) -> std::result::Result<(), (Full, io::Error)> {
        let _observed = self.observe(Activity::Seal);
        let (life, last_lsn) = (full.life, full.last_lsn);
        let written = self.table.file(life.id).and_then(|file| {
            let written = write_footer(self.store, &full, file.as_ref())?;
            file.sync().map(|()| written)
        });
        match written {
            Ok(written) => self.counters.segment_bytes.fetch_add(written, Ordering::Relaxed),
            Err(error) => return Err((full, error)),
        };
        lock(&self.flushing).0.remove(&life.id);
        self.table.change(life.id, &[Stage::Full], |row| {
            row.stage = Stage::Sealed;
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
