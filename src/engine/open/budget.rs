//! Checks that the machine and the memory budget suffice, before a store is opened.

use crate::config::{Options, Settings, has_room_for_empty};
use crate::error::{Error, Result};
use crate::index::geometry::Geometry;
use crate::io::host::{self, Descriptors};

/// File descriptors of an open store, those of its segments not counted.
const DESCRIPTORS_BESIDE: u64 = 64;

/// Raises the memory budget by `more` bytes for the index, as far as this process may use them.
fn raise(settings: &mut Settings, options: &Options, more: u64) {
    let more = more.min(options.memory_max.saturating_sub(settings.memory));
    settings.memory += more;
    settings.index_bytes_max += more;
}

/// Raises the memory budget so that the recovered index of `index` bytes fits, with an eighth to
/// spare. If the caller has set `memory`, the budget stays, and the oldest entries are evicted
/// later.
pub(in crate::engine) fn fit_index(mut settings: Settings, options: &Options, index: u64) -> Result<Settings> {
    if index <= settings.index_bytes_max {
        return Ok(settings);
    }
    let more = index + index / 8 - settings.index_bytes_max;
    if options.memory.is_none() {
        raise(&mut settings, options, more);
    } else if !options.resize {
        let reason = format!("{} B given, the store's index needs at least {}", settings.memory, settings.memory + more);
        return Err(Error::NeedsResize { name: "memory", reason });
    }
    Ok(settings)
}

/// Checks that this machine has the memory and the file descriptors that `settings` need, and
/// reserves the descriptors. A simulated disk (not `is_real`) needs none.
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

/// Refuses a memory budget above the memory that this process may use.
pub(super) fn check_memory(settings: &Settings) -> Result<()> {
    let there = host::memory_max();
    if settings.memory > there {
        let reason = format!("{} B given, this process may use {there} (of its machine, container or address space)", settings.memory);
        return Err(Error::InvalidOption { name: "memory", reason });
    }
    Ok(())
}

/// Raises the memory budget so that an empty index of this geometry takes at most half of its
/// share. An empty index is large if the store has more or larger segments than `settings` ask for.
/// If the caller has set `memory`, the opening is refused instead.
pub(super) fn fit_geometry(mut settings: Settings, options: &Options, geometry: &Geometry) -> Result<Settings> {
    let empty = geometry.partitions() as u64 * 16;
    if has_room_for_empty(settings.index_bytes_max, empty) {
        return Ok(settings);
    }
    if options.memory.is_none() {
        let more = (2 * empty).saturating_sub(settings.index_bytes_max);
        raise(&mut settings, options, more);
        return Ok(settings);
    }
    let reason = format!(
        "{} B given, the store's present segments need at least {}; less is enough once they are emptied",
        settings.memory,
        empty * 4
    );
    Err(Error::InvalidOption { name: "memory", reason })
}
