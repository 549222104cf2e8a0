//! What sealed segments say: the checkpoint, and the footers of what was sealed since.

use std::io;
use std::sync::Arc;

use crossbeam::channel::Sender;

use super::{Recovery, SLOT_BYTES, change, open_segment};
use crate::engine::files;
use crate::id::{Location, Position, StoreId};
use crate::index::batch::Batch;
use crate::index::checkpoint::{Keep, Loaded};
use crate::index::geometry::Geometry;
use crate::index::{self, Index};
use crate::io::{Disk, is_shortage};
use crate::manifest::Checkpoint;
use crate::segment::reader::{self, Contents};
use crate::segment::table::{Row, State};
use crate::team::together;

impl Recovery<'_> {
    /// Brings the index to where sealed segments say: the checkpoint, then the footers of what was sealed since. Without a checkpoint, all footers. The checkpoint is said
    /// to have so many `entries`, and `room` bytes of DRAM are free beside them.
    pub(super) fn load_sealed(&mut self, named: Option<Checkpoint>, entries: u64, room: u64) -> io::Result<()> {
        if let Some(checkpoint) = named {
            if self
                .with_footers(checkpoint.start, entries, room, |recovery, changes| recovery.load_checkpoint(checkpoint.sequence, changes))?
            {
                return Ok(());
            }
            // Another geometry is as good a reason as damage: footers say everything.
            self.report.rebuilt = true;
            self.index = Index::new(self.index.geometry());
        }
        let merge = |recovery: &mut Self, mut changes: Batch| {
            changes.merge(&recovery.index);
            Ok(true)
        };
        self.with_footers(Position(0), 0, room, merge).map(drop)
    }

    /// Applies the footers of sealed segments that end after `start`, oldest first, which are read by a thread of their own: the first of what they say as `begin` does, which
    /// says whether to go on. It may be so much that it fits where so many `entries` are to be, since it goes as they come.
    fn with_footers(
        &mut self,
        start: Position,
        entries: u64,
        room: u64,
        begin: impl FnOnce(&mut Self, Batch) -> io::Result<bool>,
    ) -> io::Result<bool> {
        let after = |r: &&Row| r.state == State::Sealed && r.life.base.plus(r.size) > start;
        let mut rows: Vec<Row> = self.rows.iter().filter(after).copied().collect();
        rows.sort_by_key(|r| r.life.base);
        let reader = FooterReader {
            disk: self.disk,
            store: self.store,
            hash_seed: self.hash_seed,
            geometry: self.index.geometry(),
            // While one is merged, the next is filled.
            room: room / 2,
            floor: self.floor,
        };
        let first = Batch::new(self.index.geometry(), entries * SLOT_BYTES + room / 2);
        let (to, from) = crossbeam::channel::bounded(0);
        together(|team| {
            team.spawn(move || reader.read_all(&rows, first, &to))?;
            let mut begin = Some(begin);
            for part in from {
                match part {
                    Footers::Entries(mut batch, count) => {
                        self.report.footer_entries += count;
                        match begin.take() {
                            None => batch.merge(&self.index),
                            Some(begin) => {
                                if !begin(self, batch)? {
                                    return Ok(false);
                                }
                            }
                        }
                    }
                    Footers::Lost(row, lost, to) => self.lose(&row, &lost, to),
                    // At another time it can be.
                    Footers::Unreadable(_, error) if is_shortage(&error) => return Err(error),
                    Footers::Unreadable(row, error) => {
                        self.rows[row.life.id.index()].state = State::Free;
                        self.lose(&row, &format!("it cannot be read ({error})"), row.size as u32);
                    }
                }
            }
            Ok(true)
        })
    }

    /// A stretch of a sealed segment is lost: what it superseded or deleted is unknown, so nothing before its end is served.
    fn lose(&mut self, row: &Row, what: &str, to: u32) {
        self.report.damaged.push(format!("segment {}: {what}; everything older is dropped", row.life.id));
        self.raise_floor(row.life.base.plus(to.into()));
    }

    /// Loads a checkpoint, with the `changes` since. False if it is not there, not whole, or of another geometry.
    fn load_checkpoint(&mut self, sequence: u64, changes: Batch) -> io::Result<bool> {
        let file = match self.disk.open(&files::checkpoint(sequence)) {
            Ok(file) => file,
            Err(e) if is_shortage(&e) => return Err(e),
            Err(e) => return Ok(self.checkpoint_unreadable(&e)),
        };
        let (rows, floor) = (self.rows.clone(), self.floor);
        let keep = move |bases: &[u64]| -> Keep {
            let same: Vec<Option<Position>> = rows
                .iter()
                .zip(bases.iter().copied().chain(std::iter::repeat(0)))
                .map(|(row, base)| (base != 0 && row.life.base.0 == base && row.state != State::Free).then_some(row.life.base))
                .collect();
            Arc::new(move |at: Location| match same.get(at.segment.index()) {
                Some(Some(base)) => base.plus(at.offset.into()) >= floor,
                _ => false,
            })
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

/// A part of what footers say, in order. The first are entries.
enum Footers {
    /// Changes, and how many entries they come from.
    Entries(Batch, u64),
    /// Stretches of a segment are lost, up to this offset.
    Lost(Row, String, u32),
    Unreadable(Row, io::Error),
}

/// Reads footers while others merge what they say.
struct FooterReader<'a> {
    disk: &'a dyn Disk,
    store: StoreId,
    hash_seed: u64,
    geometry: Geometry,
    /// Bytes of DRAM for a batch of changes.
    room: u64,
    floor: Position,
}

impl FooterReader<'_> {
    /// Sends everything that the footers of `rows` say, until nobody wants it, the first of it in `batch`.
    fn read_all(&self, rows: &[Row], mut batch: Batch, to: &Sender<Footers>) {
        let mut count = 0;
        let send = |batch: &mut Batch, count: &mut u64| {
            let full = std::mem::replace(batch, Batch::new(self.geometry, self.room));
            to.send(Footers::Entries(full, std::mem::take(count)))
        };
        for row in rows {
            let read = open_segment(self.disk, row).map(|file| reader::entries(self.store, row, self.hash_seed, file.as_ref()));
            let (contents, damage) = match read {
                Ok(contents) if contents.lost == 0 => (contents, None),
                Ok(contents) => {
                    let lost = Footers::Lost(*row, format!("{} stretches lost", contents.lost), contents.lost_to);
                    (contents, Some(lost))
                }
                Err(error) => (Contents::default(), Some(Footers::Unreadable(*row, error))),
            };
            if batch.is_full() || damage.is_some() {
                let sent = send(&mut batch, &mut count);
                if sent.is_err() || damage.is_some_and(|damage| to.send(damage).is_err()) {
                    return;
                }
            }
            let floor = self.floor.max(row.life.base.plus(contents.lost_to.into()));
            contents.entries.iter().for_each(|entry| change(&mut batch, row, entry, floor));
            count += contents.entries.len() as u64;
        }
        // Whoever does not want it has given up on the checkpoint and asks again.
        let _unwanted = send(&mut batch, &mut count);
    }
}
