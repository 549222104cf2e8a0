//! Acknowledgement levels as arguments.

use everwarm::Ack;
use serde::{Deserialize, Serialize};

/// [`Ack`] as an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
pub(crate) enum AckLevel {
    /// A kill may take the newest mutations away.
    Memory,
    Process,
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
