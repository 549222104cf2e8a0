//! Reads records in place of frames that are lost.
//!
//! A record has the LSN and the key of its frame, and records lie in the segment stream in the
//! order of their frames, without gaps. So the records from the end of the last known one onward
//! repeat the lost frames.

use std::io;

use super::tail::{Tail, read};
use crate::id::{Lsn, Position, UNIT};
use crate::segment::format::{self, DATA_START};
use crate::wal::format::Mutation;
use crate::wal::replay::Hole;

/// How many bytes past the last known record are searched for a later one.
const LOOK_AHEAD: u64 = 256 << 10;

impl Tail<'_, '_> {
    /// Applies the records of the frames in a hole. Returns whether every mutation that the hole is
    /// known to have held was found.
    pub(super) fn read_records(&mut self, hole: &Hole) -> io::Result<bool> {
        let (mut next, mut records) = (hole.after.next(), 0);
        self.read_on(hole.floor, &mut next, |lsn| lsn < hole.before, &mut records)?;
        Ok(next == hole.before)
    }

    /// Applies records in place of their frames, one after the other, from the last known record up
    /// to position `limit`.
    ///
    /// A new record must have the LSN `next`, and that LSN must be `wanted`. A record with an older
    /// LSN is a move. Raises `next`, and counts the applied `records`. Returns true if it stops at
    /// a record with a later LSN: the records in between are lost.
    pub(super) fn read_on(&mut self, limit: Position, next: &mut Lsn, wanted: impl Fn(Lsn) -> bool, records: &mut u64) -> io::Result<bool> {
        for row in self.unsealed.iter().map(|u| u.row).collect::<Vec<_>>() {
            if self.end >= row.life.base.plus(row.size) {
                continue;
            }
            let mut at = self.end.max(row.life.base.plus(DATA_START.into()));
            while at < limit
                && let Some((record, bytes)) = self.record_at(&row, at)?
            {
                let moved = record.lsn < *next;
                if !moved && (record.lsn != *next || !wanted(record.lsn)) {
                    return Ok(record.lsn != *next);
                }
                let (hash, tombstone) = record.effect(self.recovery.hash_seed, &bytes);
                let (lsn, record_len) = (record.lsn, record.len as u32);
                self.apply(&Mutation { lsn, hash, tombstone, supersedes: true, record: at, record_len }, moved, &bytes)?;
                at = at.plus(record_len.into());
                *next = if moved { *next } else { next.next() };
                *records += 1;
            }
        }
        Ok(false)
    }

    /// Whether a valid record lies up to [`LOOK_AHEAD`] bytes past the last known one, in the ring
    /// or in the file. No position is used twice, so such a record was appended later, and records
    /// before it are lost.
    ///
    /// Among many places one checksum may match by chance. So the record must have an LSN that can
    /// come soon after `next`, or another valid record must follow it.
    pub(super) fn is_followed(&mut self, next: Lsn) -> io::Result<bool> {
        let mut left = LOOK_AHEAD.min(self.ring.words().len() as u64 * 8);
        let soon = next.0..next.0.saturating_add(left / UNIT as u64);
        let mut bytes = Vec::new();
        for row in self.unsealed.iter().map(|u| u.row).collect::<Vec<_>>() {
            let from = self.end.max(row.life.base.plus(DATA_START.into()));
            let len = row.life.base.plus(row.size).0.saturating_sub(from.0).min(left);
            left -= len;
            if len == 0 {
                continue;
            }
            let store = self.recovery.store;
            let record = |bytes: &[u8], offset: usize| {
                bytes.get(offset..).and_then(|bytes| format::decode_record(store, from.plus(offset as u64), row.life.base_lsn, bytes))
            };
            let is_record = |bytes: &[u8], offset: usize| {
                record(bytes, offset).is_some_and(|found| soon.contains(&found.lsn.0) || record(bytes, offset + found.len).is_some())
            };
            bytes.resize(len as usize, 0);
            crate::io::ring::copy(self.ring.words(), from.0, &mut bytes);
            if (0..bytes.len()).step_by(UNIT).any(|offset| is_record(&bytes, offset)) {
                return Ok(true);
            }
            let in_file = match self.file_of(&row)? {
                Some(file) => read(&row, from, len as usize, file.as_ref(), &mut bytes).is_ok(),
                None => false,
            };
            if in_file && (0..bytes.len()).step_by(UNIT).any(|offset| is_record(&bytes, offset)) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}
