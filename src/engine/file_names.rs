//! Names of the files that belong to no single part of the store.

use crate::io::numbered;
use crate::segment::table;
use crate::wal::writer;

/// The name of a ring of the segment stream begins with this. The binary logarithm of its length
/// follows, so that a ring of another length can be created before it is used.
const SEGMENT_RING_PREFIX: &str = "ring.segments.";
/// The name of a ring of the WAL begins with this. The binary logarithm of its length follows.
const WAL_RING_PREFIX: &str = "ring.wal.";
/// The name of a checkpoint file begins with this. 0 or 1 follows.
const CHECKPOINT_PREFIX: &str = "checkpoint.";
/// The name of a warmth list begins with this. 0 or 1 follows.
const WARMTH_LIST_PREFIX: &str = "heat.";

/// Whether a file with this name belongs to a store and is created only after its first manifest.
pub(crate) fn is_store_file(name: &str) -> bool {
    let prefixes = [table::FILE_PREFIX, table::REPLACEMENT_PREFIX, writer::FILE_PREFIX, CHECKPOINT_PREFIX, WARMTH_LIST_PREFIX];
    prefixes.iter().any(|prefix| numbered(name, prefix).is_some())
}

/// Whether a file with this name is a ring.
pub(crate) fn is_ring(name: &str) -> bool {
    [SEGMENT_RING_PREFIX, WAL_RING_PREFIX].iter().any(|prefix| numbered(name, prefix).is_some())
}

/// Name of the ring of the segment stream with length `len`.
pub(crate) fn segment_ring(len: u64) -> String {
    format!("{SEGMENT_RING_PREFIX}{}", len.ilog2())
}

/// Name of the ring of the WAL with length `len`.
pub(crate) fn wal_ring(len: u64) -> String {
    format!("{WAL_RING_PREFIX}{}", len.ilog2())
}

/// Name of the file of a checkpoint. Two files take turns.
pub(crate) fn checkpoint(sequence: u64) -> String {
    format!("{CHECKPOINT_PREFIX}{}", sequence % 2)
}

/// Name of the file of a warmth list. Two files take turns.
pub(crate) fn warmth_list(sequence: u64) -> String {
    format!("{WARMTH_LIST_PREFIX}{}", sequence % 2)
}
