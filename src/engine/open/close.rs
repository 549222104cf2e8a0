//! Closes a store in order: everything is sealed, and the last manifest is marked as clean.

use crate::engine::Engine;
use crate::error::Result;
use crate::segment::table::Stage;

impl Engine {
    /// Makes everything durable and sealed, takes a checkpoint, and writes a manifest that states a
    /// clean close. Called after [`Engine::begin_close`], when no background thread runs any more.
    /// A store that was opened for reading only stays as it is.
    pub(crate) fn finish(&self) -> Result<()> {
        if self.health.is_read_only() {
            return Ok(());
        }
        if let Err(failed) = self.health.check_sound() {
            self.state_failed_if_possible();
            return Err(failed);
        }
        self.retire_last();
        self.step_flush()?;
        self.step_seal()?;
        self.step_sync()?;
        if self.log.marks().durable() < self.appended() || self.table.count(Stage::Failed) > 0 {
            // The next opening replays the WAL, as after a process crash.
            self.state_failed(&mut self.manifest.lock())?;
            return Err(self.fail("closing", &std::io::Error::other("some mutations could not be made durable")));
        }
        self.step_checkpoint(true)?;
        self.step_record_warmth()?;
        self.state_clean()
    }

    /// Releases the files, the mappings and the lock of the directory. Called after
    /// [`Engine::finish`]. Handles of the cache may live on; each call through them is refused.
    pub(crate) fn release(&self) {
        {
            // No step that other handles began is running any more, and none begins.
            let _checkpoint = self.pace.exclusive();
            let _manifest = self.manifest.lock();
            let _sync = self.durability.exclusive();
            let _flush = self.durability.flushing();
            self.health.set_released();
        }
        self.manifest.lock().close();
        self.table.close();
        self.log.close();
        self.context.disk.close();
        self.guards.release();
        self.events.signal_all();
    }
}
