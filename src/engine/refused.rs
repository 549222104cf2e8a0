//! Causes for which an append is refused, and the kind of work that makes room.
//!
//! A refused append changed nothing, so the caller may try it again. [`Refused`] names the one
//! limit that was reached. [`Helps`] tells the caller whether to write out, to wait for other room,
//! or to give up.

/// Cause for which a record was not appended. The refused append changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Refused {
    /// The cache is closing.
    Closing,
    /// A segment failed. Its records go first, and mutations wait until they are appended again.
    RescueFirst,
    /// The open segment is the last one with room. It is reserved for moves.
    Reserved,
    /// No segment is ready.
    NoSegment,
    /// The record is longer than a segment or the segment ring can take. Only a moved record can
    /// be: it was written when segments or the ring were larger.
    RecordTooLong,
    /// The LSN of a moved record is too far from the base LSN of the open segment.
    LsnTooFar,
    /// The footers of segments that are not sealed take their whole share of the memory budget.
    FootersFull,
    /// The segment ring has no room: too many of its bytes are not flushed.
    SegmentRingFull,
    /// The WAL ring has no room: too many of its bytes are not written out.
    WalRingFull,
    /// More than twice `sync_bytes` are unsynced.
    UnsyncedBytes,
    /// The oldest unsynced mutation is older than three sync intervals.
    UnsyncedAge,
    /// Too many records were appended since the running checkpoint began. A recovery would replay
    /// them.
    CheckpointBehind,
    /// The index takes more than its share of the memory budget.
    IndexFull,
    /// The manifest's files are too short for the catalog.
    ManifestFull,
}

/// The kind of work that makes room for a refused record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Helps {
    /// A flush of the segment ring, a seal, or a sync.
    WriteOut,
    /// Another segment, a checkpoint or an eviction.
    Room,
    /// None: the same record would be refused again.
    Nothing,
}

impl Refused {
    /// Number of causes.
    pub(in crate::engine) const COUNT: usize = Self::ManifestFull as usize + 1;

    /// The kind of work that makes room after this cause.
    pub(in crate::engine) fn helped_by(self) -> Helps {
        match self {
            Self::FootersFull | Self::SegmentRingFull | Self::WalRingFull | Self::UnsyncedBytes | Self::UnsyncedAge => Helps::WriteOut,
            Self::Closing | Self::RecordTooLong | Self::LsnTooFar => Helps::Nothing,
            Self::RescueFirst | Self::Reserved | Self::NoSegment | Self::CheckpointBehind | Self::IndexFull | Self::ManifestFull => {
                Helps::Room
            }
        }
    }
}
