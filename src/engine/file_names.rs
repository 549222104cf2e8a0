//! Names of the files that belong to the engine as a whole.

use crate::io::numbered;
use crate::segment::table;
use crate::wal::writer;

/// Names of the rings of the segment stream begin with this; the logarithm of the length follows, so that one of another length can be made before it is used.
const SEGMENT_RING_PREFIX: &str = "ring.segments.";
/// The same of the rings of the WAL.
const WAL_RING_PREFIX: &str = "ring.wal.";
/// Names of the two checkpoint files begin with this.
const CHECKPOINT_PREFIX: &str = "checkpoint.";
/// Names of the two heat files begin with this.
const HEAT_PREFIX: &str = "heat.";

/// Whether a file with this name belongs to a store and is made only after its first manifest.
pub(crate) fn is_store_file(name: &str) -> bool {
    let prefixes = [table::FILE_PREFIX, table::REPLACEMENT_PREFIX, writer::FILE_PREFIX, CHECKPOINT_PREFIX, HEAT_PREFIX];
    prefixes.iter().any(|prefix| numbered(name, prefix).is_some())
}

/// Whether a file with this name is a ring.
pub(crate) fn is_ring(name: &str) -> bool {
    [SEGMENT_RING_PREFIX, WAL_RING_PREFIX].iter().any(|prefix| numbered(name, prefix).is_some())
}

/// The ring of the segment stream that has this length.
pub(crate) fn segment_ring(len: u64) -> String {
    format!("{SEGMENT_RING_PREFIX}{}", len.ilog2())
}

/// The ring of the WAL that has this length.
pub(crate) fn wal_ring(len: u64) -> String {
    format!("{WAL_RING_PREFIX}{}", len.ilog2())
}

/// The file of a checkpoint: two take turns.
pub(crate) fn checkpoint(sequence: u64) -> String {
    format!("{CHECKPOINT_PREFIX}{}", sequence % 2)
}

/// The heat file with this sequence: two take turns.
pub(crate) fn heat(sequence: u64) -> String {
    format!("{HEAT_PREFIX}{}", sequence % 2)
}
