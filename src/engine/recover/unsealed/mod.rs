//! Brings the records that only the WAL and the rings hold into the segment files, and seals them.
//!
//! `tail` holds the unsealed segments and applies mutations to them. `second_copy` reads records in
//! place of frames that are lost. `restore` writes the records that only a ring holds, and the
//! footers.

mod restore;
mod second_copy;
mod tail;

use std::io;
use std::sync::Arc;

use self::tail::{Tail, Unsealed};
use super::Recovery;
use crate::engine::recovery_report::Start;
use crate::id::{Lsn, Position};
use crate::io::Mapping;
use crate::manifest::Manifest;
use crate::segment::table::{Row, Stage};
use crate::wal::format::Mutation;
use crate::wal::replay::{Hole, PastEnd, Replay, Summary, Visitor};

/// Applies the WAL, brings what only the rings hold into the segment files, and seals them.
pub(in crate::engine::recover) fn replay(
    recovery: &mut Recovery<'_>,
    replay: &mut Replay,
    manifest: &Manifest,
    kind: Start,
    (ring, ring_lost): &(Arc<dyn Mapping>, bool),
) -> io::Result<Summary> {
    let mut rows: Vec<Row> = recovery.rows.iter().filter(|r| matches!(r.stage, Stage::Full | Stage::Failed)).copied().collect();
    rows.sort_by_key(|r| r.life.base);
    let unsealed = |row: Row| Unsealed {
        row,
        entries: Vec::new(),
        error: None,
        needs_replacement: row.stage == Stage::Failed,
        renewed: None,
        unread: 0,
    };
    let unsealed = rows.into_iter().map(unsealed).collect();
    let mut tail = Tail { recovery, unsealed, ring: ring.as_ref(), kind, end: Position(0), unknown: Position(0), patch: None };
    let summary = replay.run((manifest.wal_start, manifest.wal_lsn), manifest.durable, kind == Start::Process, &mut tail)?;
    let durable = summary.durable.max(manifest.durable);
    tail.report(&summary, durable);
    // Which records may be nowhere: after a power cut those that were not synced, and all if the ring is gone that held what the files do not hold yet.
    let verify_after = match kind {
        Start::Host => Some(durable),
        _ if *ring_lost => Some(Lsn::ZERO),
        _ => None,
    };
    if kind == Start::Process && *ring_lost {
        tail.recovery.report.damaged.push("the ring of the segments is lost, or parts of it; entries that only it held miss".to_owned());
    }
    tail.restore(verify_after)?;
    (0..tail.unsealed.len()).try_for_each(|i| tail.seal(i))?;
    Ok(summary)
}

impl Visitor for Tail<'_, '_> {
    fn visit(&mut self, mutation: &Mutation, moved: bool, bytes: &[u8]) -> io::Result<()> {
        self.apply(mutation, moved, bytes)
    }

    fn repair(&mut self, hole: &Hole) -> io::Result<bool> {
        let whole = self.read_records(hole)? && hole.bounded;
        if !whole {
            // One that was set in the hole would be newer.
            self.recovery.catalog.tokens.clear();
        }
        Ok(whole)
    }

    fn resume_past_end(&mut self, last: Lsn) -> io::Result<PastEnd> {
        let (mut next, mut records) = (last.next(), 0);
        let mut is_torn = self.read_on(Position(u64::MAX), &mut next, |_| true, &mut records)?;
        if self.kind == Start::Process && (is_torn || self.is_followed(next)?) {
            is_torn = true;
            // One that was set by what is lost would be newer.
            self.recovery.catalog.tokens.clear();
        }
        Ok(PastEnd { last: Lsn(next.0 - 1), records, is_torn })
    }
}
