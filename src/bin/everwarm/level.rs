//! Acknowledgement levels as command-line arguments.

use everwarm::Ack;
use serde::{Deserialize, Serialize};

/// [`Ack`] as a command-line argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum AckLevel {
    /// Returns at once; a kill may lose the newest mutations
    Memory,
    /// Survives a kill; a power cut may lose the newest mutations
    Process,
    /// Returns after a sync; survives a power cut
    Host,
}

impl From<AckLevel> for Ack {
    fn from(level: AckLevel) -> Self {
        match level {
            AckLevel::Memory => Self::Memory,
            AckLevel::Process => Self::Process,
            AckLevel::Host => Self::Host,
        }
    }
}
