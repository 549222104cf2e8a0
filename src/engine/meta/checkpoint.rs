//! Checkpoints of the index, taken while writers go on.

use std::io;
use std::sync::atomic::Ordering;

use crate::config::Activity;
use crate::engine::{Engine, file_names};
use crate::error::Result;
use crate::id::Position;
use crate::index::checkpoint;
use crate::io::is_shortage;

impl Engine {
    /// Takes a checkpoint if one is due, or if `force` says so. Says whether it did.
    pub(crate) fn step_checkpoint(&self, force: bool) -> Result<bool> {
        if self.health.has_failed() {
            return Ok(false);
        }
        let is_due = self.pace.take_due(self.index.entries());
        if !force && !is_due {
            return Ok(false);
        }
        let taken = self.pace.run(|| {
            let _observed = self.context.observe(Activity::Checkpoint);
            self.checkpoint()
        });
        self.events.room.signal();
        taken
    }

    fn checkpoint(&self) -> Result<bool> {
        let sequence = self.manifest.lock().checkpoint.map_or(0, |c| c.sequence) + 1;
        let start = match self.write_checkpoint(sequence) {
            Ok(start) => start,
            Err(e) if is_shortage(&e) => {
                // A store without a fresh checkpoint is slower to open, nothing else.
                self.record_shortage("no room for a checkpoint", &e);
                return Ok(false);
            }
            Err(e) => {
                // Nothing relies on the file: the next checkpoint makes a new one.
                self.counters.write_errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!(dir = %self.context.dir.display(), error = %e, "a checkpoint cannot be written");
                let _gone_or_not = self.context.disk.remove(&file_names::checkpoint(sequence));
                return Ok(false);
            }
        };
        // The copy may show mutations that are not synced yet. Named before they are, it could outlive them: a selection of mutations, not a prefix.
        let shown = self.log.marks().appended_bytes();
        self.step_sync()?;
        if self.log.marks().synced_bytes() < shown {
            return Ok(false);
        }
        self.name_checkpoint(sequence, start)?;
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes the checkpoint file. The position from which it must be added to.
    fn write_checkpoint(&self, sequence: u64) -> io::Result<Position> {
        self.pace.restart();
        let start = self.quiesced_position();
        // Taken before the copy: an entry of a life that begins later fails the comparison at load, and is replayed instead.
        let bases = self.table.bases();
        loop {
            let len = checkpoint::file_len(&self.index, bases.len());
            let name = file_names::checkpoint(sequence);
            let file = self.context.disk.create(&name, len)?;
            self.context.disk.sync_dir()?;
            if let Some(written) = checkpoint::write(self.context.store, sequence, &self.index, &bases, file.as_ref())? {
                self.counters.checkpoint_bytes.fetch_add(written, Ordering::Relaxed);
                return Ok(start);
            }
        }
    }

    /// A position such that every mutation before it is in the index: whoever had chosen one held a stripe, and all were free once since.
    fn quiesced_position(&self) -> Position {
        let start = {
            // Under the manifest, so that no segment becomes ready between a look at the log and the answer.
            let manifest = self.manifest.lock();
            self.log.lock().next_position().unwrap_or(manifest.next_base)
        };
        self.log.pass_stripes();
        start
    }
}
