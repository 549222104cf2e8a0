//! Gives full segments their footers.

use std::io;
use std::sync::atomic::Ordering;

use crate::config::Activity;
use crate::engine::Engine;
use crate::error::Result;
use crate::segment::writer::{Full, write_footer};

impl Engine {
    /// Seals full segments that were flushed, oldest first. Returns whether there was one.
    pub(crate) fn step_seal(&self) -> Result<bool> {
        if !self.log.lock().has_full() {
            return Ok(false);
        }
        let _exclusive = self.durability.exclusive();
        let mut busy = false;
        while !self.health.is_over()
            && let Some(full) = self.next_to_seal()
        {
            busy = true;
            let life = full.life;
            if let Err(failed) = self.seal(full) {
                let (full, error) = *failed;
                let mut dirty = self.durability.flushing();
                self.log.lock().push_full_front(full);
                self.fail_segment(&mut dirty, life.id, &error)?;
            }
        }
        if busy {
            self.events.room.signal();
        }
        Ok(busy)
    }

    /// Retires the open segment, so that it can be sealed. Called once no record is appended any
    /// more.
    pub(in crate::engine) fn retire_last(&self) {
        let _observed = self.context.observe(Activity::Seal);
        self.retire_open(&mut self.log.lock());
    }

    /// Takes the oldest full segment, if it has left the ring.
    fn next_to_seal(&self) -> Option<Full> {
        let mut log = self.log.lock();
        log.pop_written(self.log.segment_ring().written())
    }

    /// Writes and syncs the footer of a full segment that was flushed.
    fn seal(&self, full: Full) -> std::result::Result<(), Box<(Full, io::Error)>> {
        let _observed = self.context.observe(Activity::Seal);
        let (id, last_lsn) = (full.life.id, full.last_lsn);
        let written = self.table.file(id).and_then(|file| {
            let written = write_footer(self.context.store, &full, file.as_ref(), self.context.settings.work_buffer)?;
            file.sync().map(|()| written)
        });
        match written {
            Ok(written) => self.counters.segment_bytes.fetch_add(written, Ordering::Relaxed),
            Err(error) => return Err(Box::new((full, error))),
        };
        self.durability.flushing().0.remove(&id);
        self.table.seal(id, last_lsn);
        self.log.marks().raise_written(last_lsn);
        Ok(())
    }
}
