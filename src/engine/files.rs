//! Names of the files that belong to the engine as a whole.

use crate::io::numbered;
use crate::segment::table;
use crate::wal::writer;

/// The ring of the segment stream, and the ring of the WAL.
pub(crate) const RINGS: [&str; 2] = ["ring.segments", "ring.wal"];
/// Names of the two checkpoint files begin with this.
const CHECKPOINT_PREFIX: &str = "checkpoint.";
/// Names of the two heat files begin with this.
const HEAT_PREFIX: &str = "heat.";

/// Whether a file with this name belongs to a store and is made only after its first manifest.
pub(crate) fn is_one(name: &str) -> bool {
    let prefixes = [table::FILE_PREFIX, writer::FILE_PREFIX, CHECKPOINT_PREFIX, HEAT_PREFIX];
    RINGS.contains(&name) || prefixes.iter().any(|prefix| numbered(name, prefix).is_some())
}

/// The file of a checkpoint: two take turns.
pub(crate) fn checkpoint(sequence: u64) -> String {
    format!("{CHECKPOINT_PREFIX}{}", sequence % 2)
}

/// The heat file with this sequence: two take turns.
pub(crate) fn heat(sequence: u64) -> String {
    format!("{HEAT_PREFIX}{}", sequence % 2)
}
