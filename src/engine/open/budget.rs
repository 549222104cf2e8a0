//! What the machine and the budget must give before a store is opened.

use crate::config::{Options, Settings};
use crate::error::{Error, Result};
use crate::index::geometry::Geometry;
use crate::io::host::{self, Descriptors};

/// File descriptors that an open store may have beside those of its segments.
const DESCRIPTORS_BESIDE: u64 = 64;

/// Makes room for the index that recovery built. Only if `memory` is left to the engine; else the
/// oldest entries are evicted later.
///
/// # Errors
/// [`Error::NeedsResize`] if the options forbid that.
pub(in crate::engine) fn fit_index(mut settings: Settings, options: &Options, index: u64) -> Result<Settings> {
    if index <= settings.index_bytes_max {
        return Ok(settings);
    }
    let more = index + index / 8 - settings.index_bytes_max;
    if options.memory.is_none() {
        settings.memory += more;
        settings.index_bytes_max += more;
    } else if !options.resize {
        let reason = format!("{} B given, the store's index needs at least {}", settings.memory, settings.memory + more);
        return Err(Error::NeedsResize { name: "memory", reason });
    }
    Ok(settings)
}

/// Refuses what this machine cannot give, before anything relies on it.
pub(super) fn check_machine(is_real: bool, settings: &Settings) -> Result<Option<Descriptors>> {
    check_memory(settings)?;
    let (segments, needed) = (settings.segments, u64::from(settings.segments) + DESCRIPTORS_BESIDE);
    if !is_real {
        return Ok(None);
    }
    Descriptors::reserve(needed).map(Some).map_err(|limit| {
        let reason = format!(
            "{segments} segments need up to {needed} file descriptors, this process may have {limit} in all; raise its limit, or segment_size"
        );
        Error::InvalidOption { name: "segment_size", reason }
    })
}

pub(super) fn check_memory(settings: &Settings) -> Result<()> {
    let there = host::physical_memory();
    if settings.memory > there {
        let reason = format!("{} B given, this machine has {there}", settings.memory);
        return Err(Error::InvalidOption { name: "memory", reason });
    }
    Ok(())
}

/// Makes room for an index that is large although it is empty, because of segments that were larger, or more, than those of `settings`; or refuses to, if `memory` is given.
pub(super) fn fit_geometry(mut settings: Settings, options: &Options, geometry: &Geometry) -> Result<Settings> {
    let empty = geometry.partitions() as u64 * 16;
    if empty <= settings.index_bytes_max / 2 {
        return Ok(settings);
    }
    if options.memory.is_none() {
        let more = 2 * empty - settings.index_bytes_max;
        settings.memory += more;
        settings.index_bytes_max += more;
        return Ok(settings);
    }
    let reason = format!(
        "{} B given, the store's segments as they are need at least {}; once it has been emptied of them, less is enough",
        settings.memory,
        empty * 4
    );
    Err(Error::InvalidOption { name: "memory", reason })
}
