//! The segments of an open store and their life cycle.
//!
//! ```text
//!         begin         open         fill          seal           drain
//!   Free ───────► Ready ──────► Open ──────► Full ──────► Sealed ──────► Draining
//!    ▲ │                         │            │             ▲               │
//!    │ │                         └── fail ────┤             └──── keep ─────┤
//!    │ │                                      ▼                             │
//!    │ └── quarantine ─► Quarantined ◄──── Failed                           │
//!    └──────────────────────────────── free ────────────────────────────────┘
//! ```
//! Each edge is a method of [`Table`]. A failed segment is quarantined once its entries are
//! rescued. A quarantined one is free again after the next opening, which removes its file.
//!
//! In the manifest `Ready`, `Open` and `Full` are "open", and `Draining` is still "sealed".

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::format::Life;
use crate::concurrent::lock;
use crate::id::{Lsn, Position, SegmentId, StoreId};
use crate::io::{Disk, File, create_or_resize, remove_own};
use crate::manifest::{self, SegmentState};

/// Names of segment files begin with this; the segment's number follows.
pub(crate) const FILE_PREFIX: &str = "segment.";

pub(crate) fn file_name(id: SegmentId) -> String {
    format!("{FILE_PREFIX}{id}")
}

/// Names of files that are to take the place of a segment's begin with this; its number follows.
pub(crate) const REPLACEMENT_PREFIX: &str = "renewed.";

pub(crate) fn replacement_name(id: SegmentId) -> String {
    format!("{REPLACEMENT_PREFIX}{id}")
}

/// Where a segment is in its life cycle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    Free,
    Ready,
    Open,
    Full,
    Sealed,
    Draining,
    /// A write or a sync failed while it held records without a footer, which are being rescued.
    Failed,
    /// Its file is never written again.
    Quarantined,
}

/// What the table knows of one segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    pub(crate) stage: Stage,
    pub(crate) size: u64,
    pub(crate) life: Life,
    pub(crate) last_lsn: Lsn,
    /// Where the frame of its first record lies in the WAL. Only while it is open or full.
    pub(crate) wal_start: WalStart,
    /// Bytes of both streams that had been appended when the last entry was moved out of it.
    pub(crate) moved_until: u64,
}

/// A place in the WAL, and the LSN that the next mutation had there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct WalStart {
    pub(crate) position: u64,
    pub(crate) lsn: Lsn,
}

/// The life of a segment as readers see it, without a lock.
#[derive(Debug, Default)]
struct PublishedLife {
    /// Base of the life, 0 if nothing of the segment may be read.
    base: AtomicU64,
    base_lsn: AtomicU64,
    file: RwLock<Option<Arc<dyn File>>>,
}

/// The segments of an open store.
#[derive(Debug)]
pub(crate) struct Table {
    disk: Arc<dyn Disk>,
    published: Box<[PublishedLife]>,
    rows: Mutex<Vec<Row>>,
    /// A file was created since the directory was last synced.
    names_unsynced: AtomicBool,
    is_closed: AtomicBool,
}

/// Rows as a manifest states them.
pub(crate) fn rows_of(segments: &[manifest::Segment]) -> Vec<Row> {
    let row = |(i, s): (usize, &manifest::Segment)| Row {
        stage: match s.state {
            SegmentState::Free => Stage::Free,
            SegmentState::Open => Stage::Full,
            SegmentState::Sealed => Stage::Sealed,
            SegmentState::Quarantined => Stage::Quarantined,
            SegmentState::Failed => Stage::Failed,
        },
        size: s.size,
        life: Life { id: SegmentId(i as u32), base: s.base, base_lsn: s.base_lsn },
        last_lsn: s.last_lsn,
        wal_start: WalStart::default(),
        moved_until: 0,
    };
    segments.iter().enumerate().map(row).collect()
}

impl Stage {
    /// Whether a write or a sync failed for the segment, so that it takes no records.
    pub(crate) fn is_out_of_use(self) -> bool {
        matches!(self, Self::Failed | Self::Quarantined)
    }
}

impl Table {
    /// The table that a manifest describes.
    pub(crate) fn new(disk: Arc<dyn Disk>, segments: &[manifest::Segment]) -> Self {
        let rows = rows_of(segments);
        let table = Self {
            disk,
            published: segments.iter().map(|_| PublishedLife::default()).collect(),
            rows: Mutex::default(),
            names_unsynced: AtomicBool::default(),
            is_closed: AtomicBool::default(),
        };
        for row in &rows {
            if matches!(row.stage, Stage::Full | Stage::Sealed) {
                table.publish(&row.life);
            }
        }
        *lock(&table.rows) = rows;
        table
    }

    /// Rows as the manifest states them, and where replay must begin once it states them: the
    /// oldest frame of a segment that is not sealed, else `wal_end`.
    pub(crate) fn describe(&self, wal_end: WalStart) -> (Vec<manifest::Segment>, WalStart) {
        let rows = lock(&self.rows);
        // A segment that was sealed after one failed must be replayed after it, so the manifest
        // states both as open.
        let failed = rows.iter().filter(|r| r.stage == Stage::Failed).map(|r| r.life.base).min().unwrap_or(Position(u64::MAX));
        let row = |r: &Row| manifest::Segment {
            state: match r.stage {
                Stage::Free => SegmentState::Free,
                Stage::Sealed | Stage::Draining if r.life.base > failed => SegmentState::Open,
                Stage::Ready | Stage::Open | Stage::Full => SegmentState::Open,
                Stage::Sealed | Stage::Draining => SegmentState::Sealed,
                Stage::Quarantined => SegmentState::Quarantined,
                Stage::Failed => SegmentState::Failed,
            },
            size: r.size,
            base: r.life.base,
            base_lsn: r.life.base_lsn,
            last_lsn: r.last_lsn,
        };
        let open = rows.iter().filter(|r| matches!(r.stage, Stage::Open | Stage::Full | Stage::Failed));
        (rows.iter().map(row).collect(), open.map(|r| r.wal_start).min().unwrap_or(wal_end))
    }

    /// Base positions of all segments, 0 for a segment of which nothing may be read.
    pub(crate) fn bases(&self) -> Vec<u64> {
        self.published.iter().map(|s| s.base.load(Ordering::Acquire)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.published.len()
    }

    pub(crate) fn row(&self, id: SegmentId) -> Row {
        lock(&self.rows)[id.index()]
    }

    pub(crate) fn count(&self, state: Stage) -> usize {
        lock(&self.rows).iter().filter(|r| r.stage == state).count()
    }

    /// All rows for which `condition` holds, oldest position first.
    pub(crate) fn select(&self, condition: impl Fn(&Row) -> bool) -> Vec<Row> {
        let mut rows: Vec<Row> = lock(&self.rows).iter().filter(|r| condition(r)).copied().collect();
        rows.sort_by_key(|r| r.life.base);
        rows
    }

    /// Moves a segment to `to`. The engine's own bug if it is in none of the stages `from`.
    fn step(&self, id: SegmentId, from: &[Stage], to: Stage, change: impl FnOnce(&mut Row)) {
        let mut rows = lock(&self.rows);
        let row = &mut rows[id.index()];
        assert!(from.contains(&row.stage), "segment {id} is {:?}, not one of {from:?}", row.stage);
        row.stage = to;
        change(row);
    }

    /// A free segment begins a life, which the manifest does not state yet.
    pub(crate) fn begin(&self, life: &Life, size: u64) {
        self.step(life.id, &[Stage::Free], Stage::Ready, |row| {
            *row = Row { stage: Stage::Ready, size, life: *life, last_lsn: Lsn::ZERO, wal_start: WalStart::default(), moved_until: 0 };
        });
    }

    /// A ready segment takes records from here on. Its first frame will be at `wal_start`.
    pub(crate) fn open(&self, id: SegmentId, wal_start: WalStart) {
        self.step(id, &[Stage::Ready], Stage::Open, |row| row.wal_start = wal_start);
    }

    /// The open segment takes no more records, and waits for its footer.
    pub(crate) fn fill(&self, id: SegmentId) {
        self.step(id, &[Stage::Open], Stage::Full, |_| ());
    }

    /// A full segment has its footer, durably.
    pub(crate) fn seal(&self, id: SegmentId, last_lsn: Lsn) {
        self.step(id, &[Stage::Full], Stage::Sealed, |row| row.last_lsn = last_lsn);
    }

    /// A sealed segment is being emptied.
    pub(crate) fn drain(&self, id: SegmentId) {
        self.step(id, &[Stage::Sealed], Stage::Draining, |_| ());
    }

    /// A segment that could not be emptied stays sealed.
    pub(crate) fn keep(&self, id: SegmentId) {
        self.step(id, &[Stage::Draining], Stage::Sealed, |_| ());
    }

    /// A segment was emptied. Takes it away from readers first.
    pub(crate) fn free(&self, id: SegmentId) {
        self.withdraw(id);
        self.step(id, &[Stage::Draining], Stage::Free, |_| ());
    }

    /// A write or a sync failed for a segment that holds records without a footer.
    pub(crate) fn fail(&self, id: SegmentId) {
        self.step(id, &[Stage::Open, Stage::Full], Stage::Failed, |_| ());
    }

    /// A segment is not used again before the next opening: a free one that cannot be written, or a
    /// failed one whose records are elsewhere.
    pub(crate) fn quarantine(&self, id: SegmentId, from: Stage) {
        assert!(matches!(from, Stage::Free | Stage::Failed), "{from:?} segments hold records");
        self.step(id, &[from], Stage::Quarantined, |_| ());
    }

    /// An entry of a segment that is being emptied or rescued was moved elsewhere, when both
    /// streams had taken `appended_bytes`.
    pub(crate) fn record_move(&self, id: SegmentId, appended_bytes: u64) {
        let mut rows = lock(&self.rows);
        let row = &mut rows[id.index()];
        assert!(matches!(row.stage, Stage::Draining | Stage::Failed), "segment {id} is {:?}", row.stage);
        row.moved_until = appended_bytes;
    }

    /// Lets readers use this life of the segment.
    pub(crate) fn publish(&self, life: &Life) {
        let published = &self.published[life.id.index()];
        published.base_lsn.store(life.base_lsn.0, Ordering::Relaxed);
        // Pairs with the acquire in `life`.
        published.base.store(life.base.0, Ordering::Release);
    }

    /// Takes the segment away from readers. A reader that has begun finds another base, or bytes
    /// that do not verify.
    pub(crate) fn withdraw(&self, id: SegmentId) {
        self.published[id.index()].base.store(0, Ordering::Release);
    }

    /// The life that readers may use now, if any. If it ends meanwhile, records fail to verify,
    /// since their checksum is seeded with their position.
    pub(crate) fn life(&self, id: SegmentId) -> Option<Life> {
        let published = self.published.get(id.index())?;
        let base = published.base.load(Ordering::Acquire);
        let base_lsn = Lsn(published.base_lsn.load(Ordering::Relaxed));
        (base != 0).then_some(Life { id, base: Position(base), base_lsn })
    }

    /// The segment's file, which must exist.
    pub(crate) fn file(&self, id: SegmentId) -> io::Result<Arc<dyn File>> {
        let published = &self.published[id.index()];
        if let Some(file) = published.file.read().unwrap_or_else(PoisonError::into_inner).as_ref() {
            return Ok(Arc::clone(file));
        }
        let file = self.disk.open(&file_name(id))?;
        let mut slot = published.file.write().unwrap_or_else(PoisonError::into_inner);
        // Looked at under the lock, which `close` takes after it has set the flag.
        if self.is_closed.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        *slot = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Whether the segment has a file of `size` bytes, so that a new life takes no room on the
    /// disk.
    pub(crate) fn has_file(&self, id: SegmentId, size: u64) -> bool {
        self.file(id).is_ok_and(|file| file.len() == size)
    }

    /// Removes the file of a free segment, to give its room back to the disk.
    pub(crate) fn give_back(&self, id: SegmentId, store: StoreId) -> io::Result<()> {
        *self.published[id.index()].file.write().unwrap_or_else(PoisonError::into_inner) = None;
        remove_own(self.disk.as_ref(), &file_name(id), store)?;
        self.disk.sync_dir()
    }

    /// Closes the files.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        for published in &self.published {
            *published.file.write().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }

    /// Makes the names of files durable that [`Table::create`] made. After a failure the next call
    /// tries again.
    pub(crate) fn sync_names(&self) -> io::Result<()> {
        if self.names_unsynced.load(Ordering::Acquire) {
            self.disk.sync_dir()?;
            self.names_unsynced.store(false, Ordering::Release);
        }
        Ok(())
    }

    /// Makes sure that the segment's file exists, belongs to `store`, and has `size` bytes of
    /// blocks of its own. Only for a segment without a life, and by one caller at a time.
    pub(crate) fn create(&self, id: SegmentId, size: u64, store: StoreId) -> io::Result<()> {
        match self.file(id) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => self.names_unsynced.store(true, Ordering::Release),
            Err(e) => return Err(e),
        }
        // An open handle keeps the length that it was opened with, so it is dropped first: the
        // creation may fail.
        *self.published[id.index()].file.write().unwrap_or_else(PoisonError::into_inner) = None;
        create_or_resize(self.disk.as_ref(), &file_name(id), size, store).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::sim::SimDisk;

    const ID: SegmentId = SegmentId(0);
    const LIFE: Life = Life { id: ID, base: Position(65_536), base_lsn: Lsn(1) };

    type Verb = fn(&Table);
    /// Every edge of the life cycle: its name, from where, the verb, and to where.
    const EDGES: [(&str, Stage, Verb, Stage); 11] = [
        ("begin", Stage::Free, |t| t.begin(&LIFE, 65_536), Stage::Ready),
        ("open", Stage::Ready, |t| t.open(ID, WalStart::default()), Stage::Open),
        ("fill", Stage::Open, |t| t.fill(ID), Stage::Full),
        ("seal", Stage::Full, |t| t.seal(ID, Lsn(9)), Stage::Sealed),
        ("drain", Stage::Sealed, |t| t.drain(ID), Stage::Draining),
        ("keep", Stage::Draining, |t| t.keep(ID), Stage::Sealed),
        ("free", Stage::Draining, |t| t.free(ID), Stage::Free),
        ("fail", Stage::Open, |t| t.fail(ID), Stage::Failed),
        ("fail", Stage::Full, |t| t.fail(ID), Stage::Failed),
        ("quarantine", Stage::Free, |t| t.quarantine(ID, Stage::Free), Stage::Quarantined),
        ("quarantine", Stage::Failed, |t| t.quarantine(ID, Stage::Failed), Stage::Quarantined),
    ];
    const STAGES: [Stage; 8] =
        [Stage::Free, Stage::Ready, Stage::Open, Stage::Full, Stage::Sealed, Stage::Draining, Stage::Failed, Stage::Quarantined];

    fn table_in(stage: Stage) -> Table {
        let table = Table::new(Arc::new(SimDisk::new(1)), &[manifest::Segment { size: 65_536, ..manifest::Segment::default() }]);
        lock(&table.rows)[0].stage = stage;
        table
    }

    #[test]
    fn a_segment_moves_along_the_edges_of_the_diagram() {
        for (name, from, verb, to) in EDGES {
            let table = table_in(from);
            verb(&table);
            assert_eq!(table.row(ID).stage, to, "{name} from {from:?}");
        }
    }

    #[test]
    fn a_verb_refuses_every_other_stage() {
        for (name, from, verb, _) in EDGES {
            let allowed =
                |stage| EDGES.iter().any(|(other, edge, ..)| *other == name && *edge == stage && (name != "quarantine" || stage == from));
            for stage in STAGES.into_iter().filter(|stage| !allowed(*stage)) {
                let table = table_in(stage);
                let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| verb(&table)));
                assert!(moved.is_err(), "{name} from {stage:?}");
                assert_eq!(table.row(ID).stage, stage, "{name} from {stage:?}");
            }
        }
    }
}
