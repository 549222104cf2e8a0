//! Marks: WAL frames that state the durable LSN and the clocks.

use std::time::Duration;

use crate::clock::whole_ms;
use crate::config::Ack;
use crate::engine::Engine;
use crate::id::Lsn;
use crate::wal::format::{Frame, Mark};
use crate::wal::writer::Wal;

/// Age at which the newest mark of an idle store is followed by another. The thread that checks it
/// has other work, so this is less than the minute that is promised.
const ALIVE_INTERVAL: Duration = Duration::from_secs(50);

impl Engine {
    /// Appends a mark. If the WAL ring has no room for it, the next sync makes room and appends one
    /// itself.
    pub(super) fn append_mark(&self) {
        let mut log = self.log.lock();
        if self.health.is_closing() || self.health.is_read_only() {
            return;
        }
        let (end, wal, marks) = (log.wal_end(), self.log.wal(), self.log.marks());
        if !wal.has_room(Wal::end_of(end.position, 0)) {
            return self.request_sync();
        }
        let now = self.context.time.now();
        let mark = Mark {
            durable: marks.durable(),
            appended: Lsn(end.lsn.0 - 1),
            time_ms: now.store_ms,
            wall_offset_ms: now.wall_offset_ms(),
            heard: marks.is_heard(),
        };
        log.push_mark(wal.append(end.position, &Frame::Mark(mark), &[]));
        marks.raise_marked(now.store_ms);
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

    /// Makes the log state that the store is alive, if nothing did recently. A store that has been
    /// idle for so long has been heard.
    pub(crate) fn step_alive(&self) {
        let recent = self.context.time.now_ms().saturating_sub(whole_ms(ALIVE_INTERVAL));
        if !self.log.marks().is_marked(recent) {
            self.log.marks().set_heard();
            self.append_mark();
        }
    }

    /// A user's wait for a sync of everything is over: the report of the opening counts as heard.
    /// If it did not before, the log states it.
    pub(in crate::engine) fn record_persisted(&self, level: Ack) {
        if level >= Ack::Host && self.log.marks().set_heard() {
            self.append_mark();
        }
    }
}
