//! Why a record is not appended now, and what would help.

/// Why a record was not appended. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Refused {
    /// The cache closes.
    Closing,
    /// A segment failed, and what room there is belongs to its records.
    RescueFirst,
    /// The open segment is the last one with room, and is kept for moves.
    Reserved,
    /// No segment is ready.
    NoSegment,
    /// A moved record comes from a time of larger segments, or of a larger ring.
    RecordTooLong,
    /// A moved record's LSN is too far from the base of the open segment.
    LsnTooFar,
    /// The segment ring holds too many bytes that are not flushed.
    SegmentRingFull,
    /// The WAL ring holds too many bytes that are not written out.
    WalRingFull,
    /// Too many bytes are unsynced.
    UnsyncedBytes,
    /// The oldest unsynced mutation is too old.
    UnsyncedAge,
    /// Too many records would have to be replayed before the running checkpoint ends.
    CheckpointBehind,
    /// The index takes more than its share of the memory budget.
    IndexFull,
    /// The manifest's files are too short for the catalog.
    ManifestFull,
}

/// What makes room for a record that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Helps {
    /// A flush or a sync.
    WriteOut,
    /// Another segment, a checkpoint or an eviction.
    Room,
    /// Nothing: the same record is refused again.
    Nothing,
}

impl Refused {
    /// Number of causes.
    pub(in crate::engine) const COUNT: usize = Self::ManifestFull as usize + 1;

    pub(in crate::engine) fn helped_by(self) -> Helps {
        match self {
            Self::SegmentRingFull | Self::WalRingFull | Self::UnsyncedBytes | Self::UnsyncedAge => Helps::WriteOut,
            Self::Closing | Self::RecordTooLong | Self::LsnTooFar => Helps::Nothing,
            Self::RescueFirst | Self::Reserved | Self::NoSegment | Self::CheckpointBehind | Self::IndexFull | Self::ManifestFull => {
                Helps::Room
            }
        }
    }
}
