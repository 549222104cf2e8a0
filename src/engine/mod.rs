//! The engine of an open store: mutations, reads, and the steps of the background.
//!
//! [`Engine`] is made of parts, and `impl Engine` orchestrates them. A part that changes owns its
//! state: its fields are private to its file, and it offers verbs. `Context` never changes, and
//! `Events` and `Counters` are shared, so their fields are open to the engine. The files stand in
//! wings, and a wing calls only the wings before it:
//!
//! | wing | files | what it does |
//! |---|---|---|
//! | | `context` `health` `events` `counters` `refused` ... | shared by all |
//! | `log` | `append` `flush` `seal` `sync` ... | makes mutations durable |
//! | `meta` | `manifest` `namespaces` `checkpoint` | keeps the store's metadata |
//! | `ops` | `write` `read` `fill` `scan` `tasks` ... | serves the operations of users |
//! | `space` | `provision` `reclaim` `rescue` ... | makes room for segments |
//! | | `warmth` `stats` `background` | refills DRAM, reports, and runs the steps |
//! | `recover` | `sealed` `unsealed` ... | brings a store back after a stop |
//! | `open` | `directory` `budget` `start` `close` | opens and closes a store |

pub(crate) mod background;
pub(crate) mod context;
mod counters;
mod disk_room;
mod events;
pub(crate) mod file_names;
mod health;
mod log;
mod log_limit;
mod meta;
mod open;
mod ops;
mod recover;
mod recovery_report;
mod refused;
mod room;
mod space;
pub(crate) mod stats;
mod sync_waiters;
mod timer;
mod warmth;

#[cfg(any(test, fuzzing))]
pub(crate) mod tests;

use std::sync::Mutex;

use crate::id::Lsn;
use crate::index::Index;
use crate::segment::table::Table;
use context::Context;
use counters::Counters;
use events::Events;
use health::Health;
use log::durability::Durability;
use log::pace::CheckpointPace;
use log::stream::Log;
use meta::manifest::ManifestKeeper;
pub(crate) use meta::namespaces::Namespace;
use meta::namespaces::Namespaces;
pub(crate) use open::open;
pub use ops::fill::FillError;
use ops::fill::Loaded;
pub use ops::options::{Condition, DeleteOptions, Hint, PutOptions, Wait};
use ops::read_path::ReadPath;
pub use ops::scan::Entry;
pub(crate) use ops::scan::Scan;
use ops::single_flight::Fills;
pub use ops::value::{Tier, Value};
pub(crate) use recover::page_cache_is_whole;
pub use recovery_report::{RecoveryReport, Start};
use space::occupancy::Occupancy;
pub use stats::{NotStored, PerCause, Stats};
use warmth::WarmthState;

/// An open store.
#[derive(Debug)]
pub(crate) struct Engine {
    context: Context,
    health: Health,
    events: Events,
    counters: Counters,
    index: Index,
    table: Table,
    log: Log,
    durability: Durability,
    pace: CheckpointPace,
    manifest: ManifestKeeper,
    namespaces: Namespaces,
    occupancy: Occupancy,
    reads: ReadPath,
    fills: Fills<Loaded>,
    /// Guarded by a lock of its own, under which only shards of the memory tier are taken.
    warmth: Mutex<WarmthState>,
    /// Dropped last: fields are dropped in their order.
    guards: open::OpenGuards,
}

impl Engine {
    /// What recovery found and did at the opening.
    pub(crate) fn recovery(&self) -> &RecoveryReport {
        &self.context.report
    }

    /// LSN of the newest mutation.
    pub(crate) fn appended(&self) -> Lsn {
        self.log.marks().appended()
    }
}
