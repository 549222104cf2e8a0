//! Rebuilds the index of sealed segments from the checkpoint and from footers.
//!
//! The checkpoint holds every entry before its start position. The footers of segments that reach
//! beyond that position hold all later changes, in order. One thread reads footers while the caller
//! applies them. If the checkpoint is missing, damaged or of another geometry, it is left aside,
//! and the footers of all segments are applied to an empty index.

use std::io;

use super::{Recovery, SLOT_BYTES, change, new_batch, open_segment};
use crate::engine::file_names;
use crate::id::Position;
use crate::index::batch::Batch;
use crate::index::checkpoint::{Header, Keep, Loaded};
use crate::index::{self, Index};
use crate::io::is_shortage;
use crate::manifest::Checkpoint;
use crate::parallel::scope;
use crate::segment::reader::{self, Contents};
use crate::segment::table::{Row, Stage};

impl Recovery<'_> {
    /// Loads the entries of sealed segments: those of the checkpoint, then those of later footers.
    /// Without a usable checkpoint all footers are applied. `header` is the header of the
    /// checkpoint, and `room` is the number of bytes of DRAM that are free beside its entries.
    pub(super) fn load_sealed(&mut self, named: Option<Checkpoint>, header: Option<&Header>, room: u64) -> io::Result<()> {
        if let Some(checkpoint) = named {
            let is_other = header.is_some_and(|header| header.geometry != self.index.geometry());
            let entries = header.map_or(0, |header| header.entries);
            if !is_other && self.with_footers(Some(checkpoint), entries, room)? {
                return Ok(());
            }
            // A checkpoint of another geometry is as useless as a damaged one. The footers of all
            // segments hold every entry.
            self.report.rebuilt = true;
            self.report.footer_entries = 0;
            self.index = Index::new(self.index.geometry());
        }
        self.with_footers(None, 0, room).map(drop)
    }

    /// Applies the footers of segments that were sealed after the checkpoint began, oldest first.
    /// Without a checkpoint it applies all footers. A thread of its own reads them.
    ///
    /// The first batch of footer changes is applied while the checkpoint loads. It may use the
    /// memory that the checkpoint's `entries` will take, plus `room`, because the batch is freed as
    /// partitions fill. Later batches hold at most `room` bytes and are merged into the loaded
    /// index.
    ///
    /// Returns false if the checkpoint is unusable. Then only the index and the report have
    /// changed.
    fn with_footers(&mut self, mut named: Option<Checkpoint>, entries: u64, room: u64) -> io::Result<bool> {
        let start = named.map_or(Position(0), |checkpoint| checkpoint.start);
        let after = |r: &&Row| r.stage == Stage::Sealed && r.life.base.plus(r.size) > start;
        let mut rows: Vec<Row> = self.rows.iter().filter(after).copied().collect();
        rows.sort_by_key(|r| r.life.base);
        let (disk, store, hash_seed, geometry) = (self.disk, self.store, self.hash_seed, self.index.geometry());
        let batch_len_max = self.batch_len_max;
        let (to, from) = crossbeam::channel::bounded(0);
        let read_all = move || {
            for row in rows {
                let contents = open_segment(disk, &row).map(|file| reader::entries(store, &row, hash_seed, file.as_ref()));
                // The receiver is gone: the checkpoint is unusable.
                if to.send((row, contents)).is_err() {
                    return;
                }
            }
        };
        let mut merge = |recovery: &mut Self, batch: &mut Batch| {
            let mut full = std::mem::replace(batch, new_batch(geometry, room, batch_len_max));
            match named.take() {
                Some(checkpoint) => recovery.load_checkpoint(checkpoint.sequence, full),
                None => {
                    full.merge(&recovery.index);
                    Ok(true)
                }
            }
        };
        scope(|workers| {
            workers.spawn(read_all)?;
            let mut batch = new_batch(geometry, entries.saturating_mul(SLOT_BYTES).saturating_add(room), batch_len_max);
            for (row, contents) in from {
                let is_damaged = match &contents {
                    Ok(contents) => contents.lost > 0,
                    // A shortage is not damage. A later opening may have enough descriptors or
                    // memory.
                    Err(error) if is_shortage(error) => return contents.map(|_| false),
                    Err(_) => true,
                };
                // A lost stretch drops everything older, and nothing newer. So changes from older
                // segments are merged before the floor rises.
                if is_damaged && !merge(self, &mut batch)? {
                    return Ok(false);
                }
                let contents = contents.unwrap_or_else(|error| self.lose_segment(&row, &error));
                if contents.lost > 0 {
                    self.lose(&row, &format!("{} stretches are damaged", contents.lost), contents.lost_to);
                }
                contents.entries.iter().for_each(|entry| change(&mut batch, &row, entry, self.floor));
                self.report.footer_entries += contents.entries.len() as u64;
                drop(contents);
                if batch.is_full() && !merge(self, &mut batch)? {
                    return Ok(false);
                }
            }
            merge(self, &mut batch)
        })
    }

    /// Drops a sealed segment whose file cannot be opened, and everything older.
    fn lose_segment(&mut self, row: &Row, error: &io::Error) -> Contents {
        self.rows[row.life.id.index()].stage = Stage::Free;
        self.lose(row, &format!("its file cannot be opened ({error})"), row.size as u32);
        Contents::default()
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
