//! Restores unsealed segments from the WAL and the segment ring, and seals them.
//!
//! - `tail` holds the unsealed segments. It applies each replayed mutation to the index and writes
//!   records that the WAL holds into the segment files.
//! - `second_copy` reads records from the segment stream in place of frames that are lost.
//! - `restore` reports the damage. It writes records that only the segment ring holds into the
//!   segment files, and then the footers.
//! - `footers` keeps a footer that takes more DRAM than its share in the segment file.
//! - This file runs those steps, and answers the questions of the replay as its `Visitor`.
//!
//! [`crate::wal::replay`] decides which kind of stop a gap in the WAL is. Recovery then acts:
//!
//! - **Torn** (only after a host crash): the log ends at the gap, and later frames are ignored.
//!   Records past the end are read as below.
//! - **Frame without a record** (only after a host crash, and above the durable LSN): the log ends
//!   before this frame, and later frames are ignored. A sync makes records durable before their
//!   frames, so none of these mutations was acknowledged as durable.
//! - **Hole**: the records of the lost frames are read from the segment stream. If every lost
//!   mutation is found, the hole is repaired. If not, every entry below the hole's floor is
//!   dropped, and so is every resume token: the lost frames may have superseded them.
//! - **Past the end** of the log: records that continue the LSNs of the log count, although their
//!   frames are missing. A process that dies between the two stores leaves one such record. After a
//!   process crash, more of them are reported as a hole. If a later record shows that records
//!   before it are lost, every entry and every resume token is dropped. After a host crash neither
//!   is damage, because records may be written out before their frames.

mod footers;
mod restore;
mod second_copy;
mod tail;

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use self::tail::{Tail, Unsealed, contains};
use super::Recovery;
use crate::engine::recovery_report::Start;
use crate::id::{KeyHash, Lsn, Position};
use crate::io::Mapping;
use crate::manifest::Manifest;
use crate::segment::table::{Row, Stage};
use crate::wal::format::Mutation;
use crate::wal::replay::{Hole, IgnoreAll, PastEnd, Replay, Summary, Visitor};

/// Replays the WAL, writes records that only the rings hold into the segment files, and seals the
/// unsealed segments.
pub(in crate::engine::recover) fn replay(
    recovery: &mut Recovery<'_>,
    replay: &mut Replay<'_>,
    manifest: &Manifest,
    kind: Start,
    (ring, ring_lost): &(Arc<dyn Mapping>, bool),
) -> io::Result<Summary> {
    let mut rows: Vec<Row> = recovery.rows.iter().filter(|r| matches!(r.stage, Stage::Full | Stage::Failed)).copied().collect();
    rows.sort_by_key(|r| r.life.base);
    let unsealed = rows.iter().copied().map(Unsealed::new).collect();
    let (start, stated, is_whole) = ((manifest.wal_start, manifest.wal_lsn), manifest.durable, kind == Start::Process);
    // After a host crash the log may end at a frame above the durable LSN, so that LSN is needed
    // first.
    let failed = rows.iter().filter(|row| row.stage == Stage::Failed).copied().collect();
    let mut covers = Covers { failed, last: HashMap::new() };
    let durable = match kind {
        Start::Host => Some(replay.run(start, stated, is_whole, &mut covers)?.durable),
        _ => None,
    };
    let (end, unknown, covers) = (Position(0), Position(0), covers.last);
    let mut tail = Tail { recovery, unsealed, ring: ring.as_ref(), kind, durable, covers, end, unknown, writer: None };
    let summary = replay.run(start, durable.unwrap_or(stated), is_whole, &mut tail)?;
    let durable = summary.durable.max(manifest.durable);
    tail.report(&summary, durable);
    // Records above this LSN may be lost. After a host crash that is every record that was not
    // synced. After a process crash that lost the segment ring, it is every record.
    let verify_after = match kind {
        Start::Host => Some(durable),
        _ if *ring_lost => Some(Lsn::ZERO),
        _ => None,
    };
    if kind == Start::Process && *ring_lost {
        tail.recovery.report.damaged.push("the segment ring lost bytes; gets of entries that only the ring held miss".to_owned());
    }
    tail.restore(verify_after)?;
    (0..tail.unsealed.len()).try_for_each(|i| tail.seal(i))?;
    Ok(summary)
}

/// The last frame of each key that has a record in a failed segment. A rescue appends such a record
/// again, or a tombstone, unless the log has a newer one of its key.
struct Covers {
    failed: Vec<Row>,
    last: HashMap<KeyHash, Mutation>,
}

impl Visitor for Covers {
    fn visit(&mut self, mutation: &Mutation, _moved: bool, _bytes: &[u8]) -> io::Result<bool> {
        if self.last.contains_key(&mutation.hash) || self.failed.iter().any(|row| contains(row, mutation.record)) {
            self.last.insert(mutation.hash, *mutation);
        }
        Ok(true)
    }

    fn repair(&mut self, hole: &Hole) -> io::Result<bool> {
        IgnoreAll.repair(hole)
    }

    fn resume_past_end(&mut self, last: Lsn) -> io::Result<PastEnd> {
        IgnoreAll.resume_past_end(last)
    }
}

impl Visitor for Tail<'_, '_> {
    fn visit(&mut self, mutation: &Mutation, moved: bool, bytes: &[u8]) -> io::Result<bool> {
        self.apply(mutation, moved, bytes)
    }

    fn repair(&mut self, hole: &Hole) -> io::Result<bool> {
        let whole = self.read_records(hole)? && hole.bounded;
        if !whole {
            // The hole may have held a newer resume token.
            self.recovery.catalog.tokens.clear();
        }
        Ok(whole)
    }

    fn resume_past_end(&mut self, last: Lsn) -> io::Result<PastEnd> {
        let (mut next, mut records) = (last.next(), 0);
        let mut is_torn = self.read_on(Position(u64::MAX), &mut next, |_| true, &mut records)?;
        if self.kind == Start::Process && (is_torn || self.is_followed(next)?) {
            is_torn = true;
            // The lost records may have set a newer resume token.
            self.recovery.catalog.tokens.clear();
        }
        Ok(PastEnd { last: Lsn(next.0 - 1), records, is_torn })
    }
}
