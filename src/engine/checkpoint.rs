//! Checkpoints of the index, taken while writers go on.

use std::io;
use std::sync::atomic::Ordering;

use super::{Engine, files};
use crate::concurrent::lock;
use crate::config::Activity;
use crate::error::Result;
use crate::id::Position;
use crate::index::checkpoint;
use crate::io::is_shortage;
use crate::manifest::Checkpoint;

impl Engine {
    /// Takes a checkpoint if one is due, or if `force` says so. Says whether it did.
    pub(crate) fn step_checkpoint(&self, force: bool) -> Result<bool> {
        if self.failure.get().is_some() {
            return Ok(false);
        }
        // Before the look at what is due: whoever finds it due after that asks again.
        self.checkpoint_asked.store(false, Ordering::SeqCst);
        if !force && self.marks.since_checkpoint.load(Ordering::Relaxed) < self.checkpoint_interval() {
            return Ok(false);
        }
        let _one_at_a_time = lock(&self.checkpointing);
        let _observed = self.observe(Activity::Checkpoint);
        self.checkpoint_runs.store(true, Ordering::Relaxed);
        let taken = self.checkpoint();
        self.checkpoint_runs.store(false, Ordering::Relaxed);
        self.events.room.signal();
        taken
    }

    fn checkpoint(&self) -> Result<bool> {
        let sequence = lock(&self.manifest).checkpoint.map_or(0, |c| c.sequence) + 1;
        let start = match self.write_checkpoint(sequence) {
            Ok(start) => start,
            Err(e) if is_shortage(&e) => {
                // A store without a fresh checkpoint is slower to open, nothing else.
                self.counters.disk_full.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(dir = %self.dir.display(), error = %e, "no room for a checkpoint");
                return Ok(false);
            }
            Err(e) => {
                // Nothing relies on the file: the next checkpoint makes a new one.
                self.counters.write_errors.fetch_add(1, Ordering::Relaxed);
                tracing::error!(dir = %self.dir.display(), error = %e, "a checkpoint cannot be written");
                let _gone_or_not = self.disk.remove(&files::checkpoint(sequence));
                return Ok(false);
            }
        };
        // The copy may show mutations that are not synced yet. Named before they are, it could outlive them: a selection of mutations, not a prefix.
        let shown = self.marks.appended_bytes.load(Ordering::Acquire);
        self.step_sync()?;
        if self.marks.synced_bytes.load(Ordering::Acquire) < shown {
            return Ok(false);
        }
        let mut manifest = lock(&self.manifest);
        manifest.checkpoint = Some(Checkpoint { sequence, start });
        self.write_manifest(&mut manifest).map_err(|e| self.fail("writing the manifest", &e))?;
        self.counters.checkpoints.fetch_add(1, Ordering::Relaxed);
        Ok(true)
    }

    /// Writes the checkpoint file. The position from which it must be added to.
    fn write_checkpoint(&self, sequence: u64) -> io::Result<Position> {
        self.marks.since_checkpoint.store(0, Ordering::Relaxed);
        let start = self.quiesced_position();
        // Taken before the copy: an entry of a life that begins later fails the comparison at load, and is replayed instead.
        let bases = self.table.bases();
        loop {
            let len = checkpoint::file_len(&self.index, bases.len());
            let name = files::checkpoint(sequence);
            let file = self.disk.create(&name, len)?;
            self.disk.sync_dir()?;
            if let Some(written) = checkpoint::write(self.store, sequence, &self.index, &bases, file.as_ref())? {
                self.counters.checkpoint_bytes.fetch_add(written, Ordering::Relaxed);
                return Ok(start);
            }
        }
    }

    /// A position such that every mutation before it is in the index: whoever had chosen one held a stripe, and all were free once since.
    fn quiesced_position(&self) -> Position {
        let start = {
            // Under the manifest, so that no segment becomes ready between a look at the log and the answer.
            let manifest = lock(&self.manifest);
            let log = lock(&self.log);
            let next_life = log.ready.front().map(|(life, _)| life.base);
            log.head().or(next_life).unwrap_or(manifest.next_base)
        };
        for stripe in &self.stripes {
            drop(lock(stripe));
        }
        start
    }
}
