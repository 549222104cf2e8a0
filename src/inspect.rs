//! Read-only decoding of the files of a store, beside a live owner or after a crash.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::{file_names, page_cache_is_whole};
use crate::error::{Error, Result};
use crate::id::SegmentId;
use crate::index::Index;
use crate::index::batch::Pending;
use crate::index::checkpoint::{Keep, Loaded};
use crate::index::geometry::Geometry;
use crate::io::aligned::AlignedBuf;
use crate::io::directory::Directory;
use crate::io::posix::PosixDisk;
use crate::io::{BLOCK, Disk, InMemory, Mapping, numbered};
use crate::manifest::{self, LoadError, Manifest, SegmentState};
use crate::segment::format::{self, Life};
use crate::segment::reader::{Listing, SegmentView, WINDOW};
use crate::segment::table::{self, Row, Stage, WalStart};
use crate::wal::format::FileHeader;
use crate::wal::replay::{IgnoreAll, Replay};
use crate::wal::writer;
use crate::{index, segment, tier, wal};

/// Name and byte table of every kind of file, in the words of the code that reads it. `everwarm
/// inspect layout` prints them.
pub const LAYOUT: [(&str, &str); 7] = [
    ("manifest", manifest::format::LAYOUT),
    ("segment", segment::format::LAYOUT),
    ("footer", segment::footer::LAYOUT),
    ("catalog", manifest::catalog::LAYOUT),
    ("wal", wal::format::LAYOUT),
    ("checkpoint", index::checkpoint::LAYOUT),
    ("heat", tier::warmth_list::LAYOUT),
];

/// Contents of the directory of a store, found by [`inspect`] or [`verify`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Inspection {
    /// The directory.
    pub dir: PathBuf,
    /// Identity of the store, drawn at creation, in hexadecimal.
    pub store_id: String,
    /// Sequence number of the newest manifest.
    pub manifest_sequence: u64,
    /// Whether both copies of the manifest are there and verify.
    pub manifest_whole: bool,
    /// Whether the store was closed in order. False also while it is open.
    pub clean: bool,
    /// LSN up to which the manifest knows every mutation to be synced.
    pub durable: u64,
    /// Entries with an LSN up to this one may have been evicted; newer ones were not.
    pub reclaimed: u64,
    /// Store time of the manifest, in ms. It began as the wall clock at the creation.
    pub time_ms: u64,
    /// Wall clock at the manifest, in ms since 1970.
    pub wall_ms: u64,
    /// Whether the next report repeats that of the last opening, because nobody can have heard it
    /// when this manifest was written.
    pub report_pending: bool,
    /// Bytes of flash for segments.
    pub flash: u64,
    /// Bytes of one segment.
    pub segment_size: u64,
    /// All segments that are not free, in the order of their numbers.
    pub segments: Vec<SegmentInspection>,
    /// Number of free segments.
    pub segments_free: usize,
    /// Number and file name of each WAL file in use, oldest first.
    pub wal_files: Vec<(u64, String)>,
    /// Sequence number and entries of the checkpoint that the manifest names. `None` if the
    /// manifest names none, or if the header of the file does not verify.
    pub checkpoint: Option<(u64, u64)>,
    /// Findings of [`verify`]. `None` after [`inspect`].
    pub verified: Option<Verified>,
    /// Everything that does not verify, one line each. Beside a live owner this may include bytes
    /// that the owner is writing.
    pub problems: Vec<String>,
}

/// Counts of the records, frames and entries that verify.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Verified {
    /// Records of puts in sealed segments.
    pub records: u64,
    /// WAL frames that an opening would replay. 0 after a clean stop, which leaves no WAL to
    /// replay.
    pub wal_frames: u64,
    /// LSN of the newest mutation in the WAL.
    pub wal_last: u64,
    /// Bytes of a torn WAL tail above the durable watermark.
    pub torn_bytes: u64,
    /// Entries of the checkpoint.
    pub checkpoint_entries: u64,
}

/// Contents of one segment, from the manifest and from its footer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SegmentInspection {
    /// Number of the segment and of its file.
    pub id: u32,
    /// `open`, `sealed`, `failed` or `quarantined`.
    pub state: &'static str,
    /// Stream position of the first byte.
    pub base: u64,
    /// Bytes of the segment.
    pub size: u64,
    /// Puts that the footer describes. 0 unless the segment is sealed.
    pub puts: u64,
    /// Tombstones that the footer describes. 0 unless the segment is sealed.
    pub tombstones: u64,
    /// Bytes of the records that the footer describes. 0 unless the segment is sealed.
    pub data_bytes: u64,
    /// Stretches of the segment in which neither the footer block nor the records verify.
    pub lost: u64,
}

/// Reads the directory of a store without changing it, also beside a live owner: the manifest,
/// headers and footers of segments, headers of WAL files and of the checkpoint.
///
/// It does not read records, WAL frames and the body of the checkpoint; [`verify`] does. Damage in
/// the files that it reads is listed in [`Inspection::problems`] and is no error.
///
/// # Errors
/// - [`Error::NotFound`]: the directory does not exist, or holds no store.
/// - [`Error::NewerVersion`]: a newer version of this crate wrote the store.
/// - [`Error::Corrupt`]: no copy of the manifest verifies.
/// - [`Error::Io`]: the operating system failed a read.
///
/// # Examples
/// ```
/// # use everwarm::{Cache, Options};
/// # fn main() -> everwarm::Result<()> {
/// # let temporary = tempfile::tempdir().unwrap();
/// # let dir = temporary.path().join("store");
/// let cache = Cache::open(Options::new(&dir).memory(1 << 20).flash(1 << 20))?;
/// cache.put("key", "value")?;
/// cache.close()?;
///
/// let found = everwarm::inspect(&dir)?;
/// assert!(found.clean && found.problems.is_empty());
/// assert_eq!(found.flash, 1 << 20);
/// assert_eq!(found.segments.iter().map(|segment| segment.puts).sum::<u64>(), 1);
/// assert_eq!(found.checkpoint.map(|(_, entries)| entries), Some(1));
/// # Ok(())
/// # }
/// ```
pub fn inspect(dir: impl AsRef<Path>) -> Result<Inspection> {
    let dir = dir.as_ref();
    inspect_manifest(&disk_of(dir)?, dir).map(|(_, found)| found)
}

/// Reads the directory of a store like [`inspect`], and every record of sealed segments, every WAL
/// frame and the whole checkpoint as well. Changes nothing.
///
/// Takes as long as reading all of flash, and DRAM for the index.
///
/// # Errors
/// Those of [`inspect`].
pub fn verify(dir: impl AsRef<Path>) -> Result<Inspection> {
    let dir = dir.as_ref();
    let disk = disk_of(dir)?;
    let (manifest, mut found) = inspect_manifest(&disk, dir)?;
    let mut verified = Verified::default();
    for (i, segment) in manifest.segments.iter().enumerate().filter(|(_, s)| s.state == SegmentState::Sealed) {
        verify_records(&disk, &manifest, &row_of(i, segment), &mut verified, &mut found);
    }
    if !manifest.clean {
        verify_wal(&disk, &manifest, &mut verified, &mut found).map_err(Error::io("read the WAL in", dir))?;
    }
    verify_checkpoint(&disk, &manifest, &mut verified, &mut found);
    found.verified = Some(verified);
    Ok(found)
}

fn disk_of(dir: &Path) -> Result<PosixDisk> {
    match Directory::open(dir, false) {
        Ok(dir) => Ok(PosixDisk::without_rings(dir)),
        Err(e) if e.kind() == ErrorKind::NotFound => Err(Error::NotFound { path: dir.to_owned() }),
        Err(e) => Err(Error::io("open the directory", dir)(e)),
    }
}

fn inspect_manifest(disk: &PosixDisk, dir: &Path) -> Result<(Manifest, Inspection)> {
    let path = || dir.join(manifest::FILES[0]);
    let (manifest, damaged) = manifest::load(disk).map_err(|e| match e {
        LoadError::Missing if has_others(disk) => {
            Error::Corrupt { path: path(), what: "both copies of the manifest are missing".to_owned() }
        }
        LoadError::Missing => Error::NotFound { path: dir.to_owned() },
        LoadError::Newer { found } => Error::NewerVersion { path: path(), found, supported: manifest::format::VERSION },
        LoadError::Corrupt => Error::Corrupt { path: path(), what: "neither copy of the manifest verifies".to_owned() },
        LoadError::TwoStores => Error::Corrupt { path: path(), what: manifest::TWO_STORES.to_owned() },
        LoadError::Io(source) => Error::Io { action: "read", path: path(), source },
    })?;
    let mut out = Inspection {
        dir: dir.to_owned(),
        store_id: manifest.store.to_string(),
        manifest_sequence: manifest.sequence,
        manifest_whole: !damaged,
        clean: manifest.clean,
        durable: manifest.durable.0,
        reclaimed: manifest.reclaimed.0,
        time_ms: manifest.time.store_ms,
        wall_ms: manifest.time.wall_ms,
        report_pending: manifest.report.pending.is_some(),
        flash: manifest.flash,
        segment_size: manifest.segment_size,
        segments: Vec::new(),
        segments_free: manifest.segments.iter().filter(|s| s.state == SegmentState::Free).count(),
        wal_files: Vec::new(),
        checkpoint: None,
        verified: None,
        problems: Vec::new(),
    };
    if damaged {
        out.problems.push("one copy of the manifest is missing or does not verify".to_owned());
    }
    inspect_segments(disk, &manifest, &mut out);
    inspect_wal(disk, &manifest, &mut out).map_err(Error::io("read the WAL in", dir))?;
    inspect_checkpoint(disk, &manifest, &mut out);
    Ok((manifest, out))
}

fn row_of(number: usize, segment: &manifest::Segment) -> Row {
    Row {
        stage: Stage::Sealed,
        size: segment.size,
        life: Life { id: SegmentId(number as u32), base: segment.base, base_lsn: segment.base_lsn },
        last_lsn: segment.last_lsn,
        wal_start: WalStart::default(),
        moved_until: 0,
    }
}

fn verify_records(disk: &dyn Disk, manifest: &Manifest, row: &Row, verified: &mut Verified, out: &mut Inspection) {
    // `inspect_segments` has reported a file that cannot be opened.
    let Ok(file) = disk.open(&table::file_name(row.life.id)) else { return };
    let listing = Listing::new(manifest.store, row, manifest.hash_seed, file.as_ref(), WINDOW);
    let mut window = SegmentView::new(file.as_ref(), row.size, WINDOW);
    let mut bad = 0u64;
    // A tombstone in a footer may stand for a record that was lost, so that no older version is
    // served. Its own record need not verify.
    for entry in listing.flatten().filter(|entry| !entry.tombstone) {
        let at = row.life.base.plus(entry.offset.into());
        let bytes = window.bytes(entry.offset, entry.len).ok();
        let record = bytes.and_then(|bytes| format::decode_record(manifest.store, at, row.life.base_lsn, bytes));
        match record.filter(|record| record.lsn == entry.lsn) {
            Some(_) => verified.records += 1,
            None => bad += 1,
        }
    }
    if bad > 0 {
        out.problems.push(format!("segment {}: {bad} records cannot be read or do not verify", row.life.id));
    }
}

fn verify_wal(disk: &dyn Disk, manifest: &Manifest, verified: &mut Verified, out: &mut Inspection) -> std::io::Result<()> {
    let ring: Arc<dyn Mapping> = match disk.open(&file_names::wal_ring(manifest.wal_ring)) {
        Ok(file) if file.len() == manifest.wal_ring => Arc::new(InMemory::copy_of(file.as_ref())?),
        // `inspect_wal` has reported a ring that is missing.
        _ => Arc::new(InMemory::zeroed(manifest.wal_ring)),
    };
    let page_cache_whole = page_cache_is_whole(manifest, disk)?;
    let mut replay = Replay::open(disk, manifest.store, ring, manifest.wal_payload)?;
    let summary = replay.run((manifest.wal_start, manifest.wal_lsn), manifest.durable, page_cache_whole, &mut IgnoreAll)?;
    (verified.wal_frames, verified.wal_last, verified.torn_bytes) = (summary.frames, summary.last.0, summary.torn_bytes);
    for hole in &summary.holes {
        out.problems.push(format!("the WAL has a hole from {} to {}", hole.from, hole.to));
    }
    Ok(())
}

fn verify_checkpoint(disk: &dyn Disk, manifest: &Manifest, verified: &mut Verified, out: &mut Inspection) {
    let Some(named) = manifest.checkpoint else { return };
    // That it is not there was said before.
    let Ok(file) = disk.open(&file_names::checkpoint(named.sequence)) else { return };
    let mut block = AlignedBuf::zeroed(BLOCK);
    let header = file.read_at(0, &mut block).ok().and_then(|()| index::checkpoint::Header::decode(manifest.store, &block));
    let Some(header) = header else { return };
    let size = manifest.segments.iter().map(|segment| segment.size).max().unwrap_or(0).max(manifest.segment_size);
    if header.geometry.partitions() > Geometry::new(manifest.segments.len() as u32, size).partitions() {
        out.problems.push(format!("checkpoint {} is of a larger store; the next open rebuilds the index from footers", named.sequence));
        return;
    }
    let index = Index::new(header.geometry);
    match index::checkpoint::load(manifest.store, named.sequence, file.as_ref(), &index, Pending::none(header.geometry), |_| {
        Keep::all(header.geometry)
    }) {
        Ok(Loaded::Entries(entries)) => verified.checkpoint_entries = entries,
        Ok(_) => out.problems.push(format!("checkpoint {} does not verify; the next open rebuilds the index from footers", named.sequence)),
        Err(error) => out.problems.push(format!("checkpoint {}: {error}", named.sequence)),
    }
}

/// Whether the directory holds files that a store creates only after its first manifest.
fn has_others(disk: &dyn Disk) -> bool {
    disk.list().is_ok_and(|files| files.iter().any(|(name, _)| file_names::is_store_file(name)))
}

fn inspect_segments(disk: &dyn Disk, manifest: &Manifest, out: &mut Inspection) {
    for (i, segment) in manifest.segments.iter().enumerate().filter(|(_, s)| s.state != SegmentState::Free) {
        let id = SegmentId(i as u32);
        let row = row_of(i, segment);
        let life = row.life;
        let state = match segment.state {
            SegmentState::Free | SegmentState::Open => "open",
            SegmentState::Sealed => "sealed",
            SegmentState::Quarantined => "quarantined",
            SegmentState::Failed => "failed",
        };
        let mut found =
            SegmentInspection { id: id.0, state, base: segment.base.0, size: segment.size, puts: 0, tombstones: 0, data_bytes: 0, lost: 0 };
        let read = disk.open(&table::file_name(id)).and_then(|file| {
            let mut block = AlignedBuf::zeroed(BLOCK);
            file.read_at(0, &mut block)?;
            // A segment that was emptied may already have the header of its next life, which the
            // manifest does not state yet.
            if !format::decode_header(manifest.store, &block)
                .is_some_and(|found| found == life || (found.id == id && found.base > life.base))
            {
                out.problems.push(format!("segment {id}: its header does not match the manifest"));
            }
            if segment.state != SegmentState::Sealed {
                return Ok(());
            }
            let mut listing = Listing::new(manifest.store, &row, manifest.hash_seed, file.as_ref(), WINDOW);
            for entry in listing.by_ref().flatten() {
                found.tombstones += u64::from(entry.tombstone);
                found.puts += u64::from(!entry.tombstone);
                found.data_bytes += u64::from(entry.len);
            }
            found.lost = listing.lost();
            Ok(())
        });
        match read {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
                out.problems.push(format!("segment {id}: its file is shorter than {} B, its size in the manifest", segment.size));
            }
            Err(error) => out.problems.push(format!("segment {id}: {error}")),
            Ok(()) => {}
        }
        if found.lost > 0 {
            out.problems.push(format!("segment {id}: {} stretches are lost: neither footer nor records verify", found.lost));
        }
        out.segments.push(found);
    }
}

fn inspect_wal(disk: &dyn Disk, manifest: &Manifest, out: &mut Inspection) -> std::io::Result<()> {
    let mut block = AlignedBuf::zeroed(BLOCK);
    for (name, len) in disk.list()? {
        if numbered(&name, writer::FILE_PREFIX).is_none() || len < BLOCK as u64 {
            continue;
        }
        disk.open(&name)?.read_at(0, &mut block)?;
        // A spare file has no header of this store, or that of an earlier use.
        let header = FileHeader::decode(manifest.store, &block);
        out.wal_files.extend(header.filter(|h| (h.number + 1) * h.payload > manifest.wal_start).map(|h| (h.number, name)));
    }
    out.wal_files.sort();
    for (before, after) in out.wal_files.iter().zip(out.wal_files.iter().skip(1)) {
        if after.0 != before.0 + 1 {
            out.problems.push(format!("the WAL has a gap: the numbers of {} and {} are not consecutive", before.1, after.1));
        }
    }
    let first = manifest.wal_start / manifest.wal_payload;
    if let Some((number, name)) = out.wal_files.first().filter(|(number, _)| *number > first) {
        out.problems.push(format!("the WAL begins with {name}, whose number is {number} instead of {first}"));
    }
    if !manifest.clean {
        let rings = [
            (file_names::segment_ring(manifest.segment_ring), manifest.segment_ring),
            (file_names::wal_ring(manifest.wal_ring), manifest.wal_ring),
        ];
        for (name, expected) in rings {
            match disk.list()?.iter().find(|(there, _)| *there == name) {
                Some((_, len)) if *len == expected => {}
                Some((_, len)) => out.problems.push(format!("{name} has {len} B instead of {expected} B")),
                None => out.problems.push(format!("{name} is missing")),
            }
        }
    }
    Ok(())
}

fn inspect_checkpoint(disk: &dyn Disk, manifest: &Manifest, out: &mut Inspection) {
    let Some(named) = manifest.checkpoint else { return };
    let mut block = AlignedBuf::zeroed(BLOCK);
    let read = disk.open(&file_names::checkpoint(named.sequence)).and_then(|file| file.read_at(0, &mut block));
    match read.map(|()| index::checkpoint::Header::decode(manifest.store, &block)) {
        Ok(Some(header)) if header.sequence == named.sequence => out.checkpoint = Some((header.sequence, header.entries)),
        Ok(_) => out
            .problems
            .push(format!("checkpoint {}: its header does not verify; the next open rebuilds the index from footers", named.sequence)),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => {
            out.problems
                .push(format!("checkpoint {}: its file is too short; the next open rebuilds the index from footers", named.sequence));
        }
        Err(error) => out.problems.push(format!("checkpoint {}: {error}", named.sequence)),
    }
}
