//! What sealed segments say: the checkpoint, and the footers of what was sealed since.

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
    /// Brings the index to where sealed segments say: the checkpoint, then the footers of what was sealed since. Without a checkpoint, all footers. `header` is what the
    /// checkpoint states of itself, and `room` bytes of DRAM are free beside its entries.
    pub(super) fn load_sealed(&mut self, named: Option<Checkpoint>, header: Option<&Header>, room: u64) -> io::Result<()> {
        if let Some(checkpoint) = named {
            let is_other = header.is_some_and(|header| header.geometry != self.index.geometry());
            let entries = header.map_or(0, |header| header.entries);
            if !is_other && self.with_footers(Some(checkpoint), entries, room)? {
                return Ok(());
            }
            // Another geometry is as good a reason as damage: footers say everything.
            self.report.rebuilt = true;
            self.report.footer_entries = 0;
            self.index = Index::new(self.index.geometry());
        }
        self.with_footers(None, 0, room).map(drop)
    }

    /// Applies the footers of segments that were sealed after a checkpoint, oldest first; of all without one. They are read by a thread of their own. The checkpoint is loaded with
    /// the first of what they say, which may be so much that it fits where its `entries` are to be, since it goes as they come; the rest, `room` bytes of changes at once, is
    /// merged into the index. False if the checkpoint is of no use: nothing but the index and the report has changed then.
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
                // Whoever wants no more has given up on the checkpoint.
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
                    // At another time it can be.
                    Err(error) if is_shortage(error) => return contents.map(|_| false),
                    Err(_) => true,
                };
                // What is lost drops everything before it, not what comes after.
                if is_damaged && !merge(self, &mut batch)? {
                    return Ok(false);
                }
                let contents = contents.unwrap_or_else(|error| self.lose_segment(&row, &error));
                if contents.lost > 0 {
                    self.lose(&row, &format!("{} stretches lost", contents.lost), contents.lost_to);
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

    /// The whole of a sealed segment is lost.
    fn lose_segment(&mut self, row: &Row, error: &io::Error) -> Contents {
        self.rows[row.life.id.index()].stage = Stage::Free;
        self.lose(row, &format!("it cannot be read ({error})"), row.size as u32);
        Contents::default()
    }

    /// A stretch of a sealed segment is lost: what it superseded or deleted is unknown, so nothing before its end is served.
    fn lose(&mut self, row: &Row, what: &str, to: u32) {
        self.report.damaged.push(format!("segment {}: {what}; everything older is dropped", row.life.id));
        self.raise_floor(row.life.base.plus(to.into()));
    }

    /// Loads a checkpoint, with the `changes` since. False if it is not there, not whole, or of another geometry.
    fn load_checkpoint(&mut self, sequence: u64, changes: Batch) -> io::Result<bool> {
        let file = match self.disk.open(&file_names::checkpoint(sequence)) {
            Ok(file) => file,
            Err(e) if is_shortage(&e) => return Err(e),
            Err(e) => return Ok(self.checkpoint_unreadable(&e)),
        };
        let (rows, floor) = (&self.rows, self.floor);
        // Of the lives of segments that the checkpoint knew, what lies above the floor.
        let keep = |bases: &[u64]| -> Keep {
            let of_row = |(row, base): (&Row, &u64)| match *base != 0 && row.life.base.0 == *base && row.stage != Stage::Free {
                true => u32::try_from(floor.0.saturating_sub(*base)).ok(),
                false => None,
            };
            rows.iter().zip(bases).map(of_row).collect()
        };
        let loaded = match index::checkpoint::load(self.store, sequence, file.as_ref(), &self.index, changes.into_pending(), keep) {
            Ok(loaded) => loaded,
            // No thread to be had, or no descriptor.
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

    /// A checkpoint that cannot be read costs time only.
    fn checkpoint_unreadable(&mut self, error: &io::Error) -> bool {
        self.report.damaged.push(format!("the checkpoint cannot be read: {error}"));
        false
    }
}
