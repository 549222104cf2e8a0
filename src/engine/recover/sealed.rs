//! Rebuilds the index of sealed segments from the checkpoint and from footers.
//!
//! The checkpoint holds every entry before its start position. The footers of segments that reach
//! beyond that position hold all later changes, in order. One thread reads footers while the caller
//! applies them. If the checkpoint is missing, damaged or of another geometry, it is left aside,
//! and the footers of all segments are applied to an empty index.

use std::io;

use crossbeam::channel::{SendError, Sender};

use super::{CHANGES_OF_FOOTERS_SHARE_MIN, Recovery, change, open_segment};
use crate::engine::file_names;
use crate::id::Position;
use crate::index::batch::Batch;
use crate::index::checkpoint::{Header, Keep, Loaded};
use crate::index::{self, Index};
use crate::io::is_shortage;
use crate::manifest::Checkpoint;
use crate::parallel::scope;
use crate::segment::footer::FooterEntry;
use crate::segment::reader::Listing;
use crate::segment::table::{Row, Stage};

/// One result of reading a sealed segment.
enum Piece {
    /// Some of its records, in the order of their positions.
    Entries(Vec<FooterEntry>),
    /// There are no more. `lost` stretches of it are damaged, the last of which ends at `lost_to`.
    End { lost: u64, lost_to: u32 },
    /// Its file cannot be opened.
    Unopened(io::Error),
}

/// Sends all records of a segment, in pieces that take up to about a quarter of `bytes`.
fn send_listing(to: &Sender<(Row, Piece)>, row: Row, mut listing: Listing<'_>, bytes: usize) -> Result<(), SendError<(Row, Piece)>> {
    let mut piece = Vec::new();
    for mut entries in listing.by_ref() {
        piece.append(&mut entries);
        if piece.len() * size_of::<FooterEntry>() * 4 >= bytes {
            to.send((row, Piece::Entries(std::mem::take(&mut piece))))?;
        }
    }
    to.send((row, Piece::Entries(piece)))?;
    to.send((row, Piece::End { lost: listing.lost(), lost_to: listing.lost_to() }))
}

impl Recovery<'_> {
    /// Loads the entries of sealed segments: those of the checkpoint, then those of later footers.
    /// Without a usable checkpoint all footers are applied. `header` is the header of the
    /// checkpoint.
    pub(super) fn load_sealed(&mut self, named: Option<Checkpoint>, header: Option<&Header>) -> io::Result<()> {
        if let Some(checkpoint) = named {
            let is_other = header.is_some_and(|header| header.geometry != self.index.geometry());
            let entries = header.map_or(0, |header| header.entries);
            if !is_other && self.with_footers(Some(checkpoint), entries)? {
                return Ok(());
            }
            // A checkpoint of another geometry is as useless as a damaged one. The footers of all
            // segments hold every entry.
            self.report.rebuilt = true;
            self.report.footer_entries = 0;
            self.index = Index::new(self.index.geometry());
        }
        self.with_footers(None, 0).map(drop)
    }

    /// Applies the footers of segments that were sealed after the checkpoint began, oldest first.
    /// Without a checkpoint it applies all footers. A thread of its own reads them.
    ///
    /// The first batch of footer changes is applied while the checkpoint loads its `entries`. Later
    /// batches are merged into the loaded index.
    ///
    /// Returns false if the checkpoint is unusable. Then only the index and the report have
    /// changed.
    fn with_footers(&mut self, mut named: Option<Checkpoint>, entries: u64) -> io::Result<bool> {
        let start = named.map_or(Position(0), |checkpoint| checkpoint.start);
        let after = |r: &&Row| r.stage == Stage::Sealed && r.life.base.plus(r.size) > start;
        let mut rows: Vec<Row> = self.rows.iter().filter(after).copied().collect();
        rows.sort_by_key(|r| r.life.base);
        let (disk, store, hash_seed) = (self.disk, self.store, self.hash_seed);
        let (to, from) = crossbeam::channel::bounded(0);
        let at_once = self.settings.work_buffer;
        let read_all = move || {
            for row in rows {
                let read = match open_segment(disk, &row) {
                    Ok(file) => send_listing(&to, row, Listing::new(store, &row, hash_seed, file.as_ref(), at_once), at_once),
                    Err(error) => to.send((row, Piece::Unopened(error))),
                };
                // The receiver is gone: the checkpoint is unusable.
                if read.is_err() {
                    return;
                }
            }
        };
        let mut merge = |recovery: &mut Self, batch: &mut Batch| -> io::Result<bool> {
            let merged = match named.take() {
                Some(checkpoint) => {
                    let changes = std::mem::replace(batch, Batch::new(recovery.index.geometry(), 0));
                    recovery.load_checkpoint(checkpoint.sequence, changes)?
                }
                None => {
                    batch.merge(&recovery.index);
                    true
                }
            };
            *batch = recovery.new_batch(0, CHANGES_OF_FOOTERS_SHARE_MIN);
            Ok(merged)
        };
        scope(|workers| {
            workers.spawn(read_all)?;
            let mut batch = self.new_batch(entries, CHANGES_OF_FOOTERS_SHARE_MIN);
            for (row, piece) in from {
                match piece {
                    Piece::Entries(entries) => {
                        entries.iter().for_each(|entry| change(&mut batch, &row, entry, self.floor));
                        self.report.footer_entries += entries.len() as u64;
                    }
                    Piece::End { lost: 0, .. } => {}
                    // A shortage is not damage. A later opening may have enough descriptors or
                    // memory.
                    Piece::Unopened(error) if is_shortage(&error) => return Err(error),
                    // A lost stretch drops everything older, and nothing newer. So all changes so
                    // far are merged before the floor rises.
                    damage => {
                        if !merge(self, &mut batch)? {
                            return Ok(false);
                        }
                        self.lose_part(&row, &damage);
                    }
                }
                if batch.is_full() && !merge(self, &mut batch)? {
                    return Ok(false);
                }
            }
            merge(self, &mut batch)
        })
    }

    /// Drops what a damaged segment may have superseded, and the segment if it cannot be opened.
    fn lose_part(&mut self, row: &Row, damage: &Piece) {
        match damage {
            Piece::Entries(_) => {}
            Piece::End { lost, lost_to } => self.lose(row, &format!("{lost} stretches are damaged"), *lost_to),
            Piece::Unopened(error) => {
                self.rows[row.life.id.index()].stage = Stage::Free;
                self.lose(row, &format!("its file cannot be opened ({error})"), row.size as u32);
            }
        }
    }

    /// Reports that a sealed segment lost the bytes before offset `to`. The lost records may have
    /// superseded or deleted older ones, so nothing below the end of the stretch is served.
    fn lose(&mut self, row: &Row, damage: &str, to: u32) {
        self.report.damaged.push(format!("segment {}: {damage}; every older entry is dropped", row.life.id));
        self.raise_floor(row.life.base.plus(to.into()));
    }

    /// Loads a checkpoint and applies the later `changes`. Returns false if the checkpoint is
    /// missing, damaged or of another geometry.
    fn load_checkpoint(&mut self, sequence: u64, changes: Batch) -> io::Result<bool> {
        let file = match self.disk.open(&file_names::checkpoint(sequence)) {
            Ok(file) => file,
            Err(e) if is_shortage(&e) => return Err(e),
            Err(e) => return Ok(self.checkpoint_unreadable(&e)),
        };
        let (rows, floor) = (&self.rows, self.floor);
        // Keep entries above the floor, of segments that still have the life that the checkpoint
        // knew.
        let keep = |bases: &[u64]| -> Keep {
            let of_row = |(row, base): (&Row, &u64)| match *base != 0 && row.life.base.0 == *base && row.stage != Stage::Free {
                true => u32::try_from(floor.0.saturating_sub(*base)).ok(),
                false => None,
            };
            rows.iter().zip(bases).map(of_row).collect()
        };
        let loaded = match index::checkpoint::load(self.store, sequence, file.as_ref(), &self.index, changes.into_pending(), keep) {
            Ok(loaded) => loaded,
            // The machine has no thread or no descriptor left.
            Err(e) if is_shortage(&e) || e.kind() == io::ErrorKind::WouldBlock => return Err(e),
            Err(e) => return Ok(self.checkpoint_unreadable(&e)),
        };
        match loaded {
            Loaded::Entries(entries) => self.report.checkpoint_entries = entries,
            Loaded::OtherGeometry => {}
            Loaded::Broken => self.report.damaged.push("the checkpoint does not verify".to_owned()),
        }
        Ok(matches!(loaded, Loaded::Entries(_)))
    }

    /// Reports a checkpoint that cannot be read. Opening takes longer, and no entry is lost. Always
    /// false.
    fn checkpoint_unreadable(&mut self, error: &io::Error) -> bool {
        self.report.damaged.push(format!("the checkpoint cannot be read: {error}"));
        false
    }
}
