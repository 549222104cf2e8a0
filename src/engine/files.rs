//! Names of the files that belong to the engine as a whole.

/// The ring of the segment stream, and the ring of the WAL.
pub(crate) const RINGS: [&str; 2] = ["ring.segments", "ring.wal"];
/// Names of the two checkpoint files begin with this.
pub(crate) const CHECKPOINT_PREFIX: &str = "checkpoint.";
/// Names of the two heat files begin with this.
pub(crate) const HEAT_PREFIX: &str = "heat.";

/// The file of a checkpoint: two take turns.
pub(crate) fn checkpoint(sequence: u64) -> String {
    format!("{CHECKPOINT_PREFIX}{}", sequence % 2)
}

/// The heat file with this sequence: two take turns.
pub(crate) fn heat(sequence: u64) -> String {
    format!("{HEAT_PREFIX}{}", sequence % 2)
}
