//! Closes a store in order: everything is sealed, and the last manifest is marked as clean.

use crate::engine::Engine;
use crate::error::Result;
use crate::segment::table::Stage;

impl Engine {
    /// Makes everything durable and sealed, takes a checkpoint, and writes a manifest that states a
    /// clean close. Called after [`Engine::begin_close`], when no background thread runs any more.
    pub(crate) fn finish(&self) -> Result<()> {
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
}
