//! Marks: WAL frames that state the durable LSN and the store time.

use std::time::Duration;

use crate::engine::Engine;
use crate::id::Lsn;
use crate::wal::format::Frame;
use crate::wal::writer::Wal;

/// Age at which the newest mark of an idle store is followed by another. The thread that checks it
/// has other work, so this is less than the minute that is promised.
const ALIVE_INTERVAL: Duration = Duration::from_secs(50);

impl Engine {
    /// Appends a mark. If the WAL ring has no room for it, the next sync makes room and appends one
    /// itself.
    pub(super) fn append_mark(&self) {
        let mut log = self.log.lock();
        if self.health.is_closing() {
            return;
        }
        let (end, wal, marks) = (log.wal_end(), self.log.wal(), self.log.marks());
        if !wal.has_room(Wal::end_of(end.position, 0)) {
            return self.request_sync();
        }
        let (appended, time_ms) = (Lsn(end.lsn.0 - 1), self.context.time.now_ms());
        let frame = Frame::Mark { durable: marks.durable(), time_ms, appended };
        log.push_mark(wal.append(end.position, &frame, &[]));
        marks.raise_marked(time_ms);
        if log.marks() > self.context.settings.marks_max {
            // A segment that is never filled would keep them all.
            self.events.prepare.signal();
        }
    }

    /// Makes the log state that store time `ms` has passed, so that a later process knows it even
    /// if the wall clock goes back.
    pub(in crate::engine) fn record_time_passed(&self, ms: u64) {
        if !self.log.marks().is_marked(ms) {
            self.append_mark();
        }
    }

    /// Makes the log state that the store is alive, if nothing did recently.
    pub(crate) fn step_alive(&self) {
        let recent = self.context.time.now_ms().saturating_sub(ALIVE_INTERVAL.as_millis() as u64);
        self.record_time_passed(recent);
    }
}
