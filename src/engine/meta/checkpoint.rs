//! Writes checkpoints of the index while writers go on.
//!
//! 1. Choose a start position in the segment stream such that every mutation before it is in the
//!    index.
//! 2. Copy the index into a file. Writers change it meanwhile.
//! 3. Sync everything that the copy may show.
//! 4. Make the manifest name the file and the start position. Two files take turns, so the old
//!    checkpoint is whole until then.
//!
//! The copy is no snapshot: a mutation after the start position may be in it or not. That is
//! harmless. Recovery loads the copy and then applies, in order, every record from the start
//! position on. For a key with such a record, the last one decides and the copy does not matter.
//! For any other key the copy is right, since nothing has changed the key since the start. An entry
//! that points into a segment which was reused since is dropped at load: the checkpoint lists the
//! base of each segment.
//!
//! Step 3 comes before step 4 because a copy may show a mutation that is not durable. After a power
//! cut the store could serve that mutation without the ones before it.

use std::io;
use std::sync::atomic::Ordering;

use crate::config::Activity;
use crate::engine::{Engine, file_names};
use crate::error::Result;
use crate::id::Position;
use crate::index::checkpoint;
use crate::io::{create_or_resize, is_shortage, remove_own};

impl Engine {
    /// Takes a checkpoint if one is due, or in any case with `force`. Returns whether it did.
    pub(crate) fn step_checkpoint(&self, force: bool) -> Result<bool> {
        if self.health.is_over() {
            return Ok(false);
        }
        let is_due = self.pace.take_due(self.index.entries());
        if !force && !is_due {
            return Ok(false);
        }
        let _exclusive = self.pace.exclusive();
        if self.health.is_over() {
            return Ok(false);
        }
        let _observed = self.context.observe(Activity::Checkpoint);
        let taken = self.pace.run(|| self.checkpoint());
        self.events.room.signal();
        taken
    }

    /// Writes a checkpoint and makes the manifest name it. False if the disk refused the file or
    /// the sync.
    fn checkpoint(&self) -> Result<bool> {
        let sequence = self.manifest.lock().checkpoint.map_or(0, |c| c.sequence) + 1;
        let start = match self.write_checkpoint(sequence) {
            Ok(start) => start,
            Err(e) if is_shortage(&e) => {
                // Without a fresh checkpoint the store takes longer to open. Nothing else depends
                // on it.
                self.record_shortage("no room for a checkpoint; the next one is tried later", &e);
                return Ok(false);
            }
            Err(e) => {
                // No manifest names the file: the next checkpoint creates it again.
                self.counters.write_errors.fetch_add(1, Ordering::Relaxed);
                self.context.warn_of("a checkpoint cannot be written; the next one is tried later", None, &e);
                let _gone_or_not = remove_own(self.context.disk.as_ref(), &file_names::checkpoint(sequence), self.context.store);
                return Ok(false);
            }
        };
        // The copy may show mutations that are not synced. A manifest that names it before they are
        // would keep a selection of mutations instead of a prefix.
        let shown = self.log.marks().appended_bytes();
        self.step_sync()?;
        if self.log.marks().synced_bytes() < shown {
            return Ok(false);
        }
        self.name_checkpoint(sequence, start)?;
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes the checkpoint file. Returns the position from which recovery applies later records.
    fn write_checkpoint(&self, sequence: u64) -> io::Result<Position> {
        self.pace.restart();
        let start = self.quiesced_position();
        // Taken before the copy. An entry of a life that begins later does not match its base at
        // load, and is replayed instead.
        let bases = self.table.bases();
        loop {
            let len = checkpoint::file_len(&self.index, bases.len());
            let name = file_names::checkpoint(sequence);
            let file = create_or_resize(self.context.disk.as_ref(), &name, len, self.context.store)?;
            self.context.disk.sync_dir()?;
            if let Some(written) = checkpoint::write(self.context.store, sequence, &self.index, &bases, file.as_ref())? {
                self.counters.checkpoint_bytes.fetch_add(written, Ordering::Relaxed);
                return Ok(start);
            }
        }
    }

    /// A position such that every mutation before it is in the index. A writer holds a stripe from
    /// the choice of its position until the index has its entry, and each stripe was free once
    /// after this position was read.
    fn quiesced_position(&self) -> Position {
        let start = {
            // The manifest lock is held, so that no segment becomes ready between the look at the
            // log and the fallback to the next base.
            let manifest = self.manifest.lock();
            self.log.lock().next_position().unwrap_or(manifest.next_base)
        };
        self.log.pass_stripes();
        start
    }
}
