//! Every place where a test looks below the engine's own interface.

#![cfg_attr(not(test), allow(dead_code, reason = "fuzzing uses only a part"))]

use std::sync::Arc;

use crate::clock::{Clock, SystemClock};
use crate::config::{Options, Settings};
use crate::engine::background::{INLINE, Threads};
use crate::engine::context::Mode;
use crate::engine::open::budget::fit_index;
use crate::engine::ops::write::{Observed, Tried};
use crate::engine::{Engine, PutOptions, open};
use crate::error::Error;
use crate::id::{Key, Location, Lsn, SegmentId};
use crate::index::geometry::IndexEntry;
use crate::io::BLOCK;
use crate::io::sim::SimDisk;
use crate::segment::reader::Listing;
use crate::segment::table::Stage;

/// Index changes that recovery merges at once here: so few that small stores need several merges.
const BATCH_LEN_MAX: usize = 200;

/// Opens the store on a simulated disk. A call that must wait does the background work itself, so
/// that every run of a test takes the same course.
pub(super) fn open_inline(options: &Options, disk: &SimDisk, clock: Arc<dyn Clock>) -> Result<Arc<Engine>, Error> {
    let options = Options { batch_len_max: BATCH_LEN_MAX, ..options.clone() };
    open(&options, Some(Arc::new(disk.clone())), clock, INLINE)
}

/// Store time in milliseconds.
pub(super) fn now_ms(engine: &Engine) -> u64 {
    engine.context.time.now_ms()
}

/// The wall clock that the store reads, in milliseconds.
pub(super) fn wall_ms(engine: &Engine) -> u64 {
    engine.context.time.now().wall_ms
}

/// The first failure of the store as a whole, if there was one.
pub(super) fn failure(engine: &Engine) -> Option<Error> {
    engine.health.check_sound().err()
}

/// Sequence number of the checkpoint that the manifest names.
pub(super) fn named_checkpoint(engine: &Engine) -> Option<u64> {
    engine.manifest.lock().checkpoint.map(|checkpoint| checkpoint.sequence)
}

/// Opens the store with its background threads, on the clock of this machine.
pub(super) fn open_with_threads(options: &Options, disk: &SimDisk) -> (Arc<Engine>, Threads) {
    let clock = Arc::new(SystemClock);
    let engine = open(options, Some(Arc::new(disk.clone())), clock, Mode::Threads).unwrap();
    let threads = Threads::start(&engine).unwrap();
    (engine, threads)
}

/// Writes the manifest, as the background thread for segments does.
pub(super) fn write_manifest(engine: &Engine) {
    engine.write_manifest(&mut engine.manifest.lock()).unwrap();
}

/// Calls `change`, and seals what it appended. The manifest states that, but otherwise what was so
/// before, as if it had been read meanwhile.
pub(super) fn seal_behind_the_manifest(engine: &Engine, change: impl FnOnce()) {
    let (start, durable) = (engine.log.lock().wal_end(), engine.log.marks().durable());
    let catalog = engine.manifest.lock().catalog.clone();
    change();
    engine.retire_last();
    engine.step_flush().unwrap();
    engine.step_seal().unwrap();
    write_manifest(engine);
    let mut manifest = engine.manifest.lock();
    (manifest.wal_start, manifest.wal_lsn) = (start.position, start.lsn);
    (manifest.durable, manifest.catalog) = (durable, catalog);
    manifest.store().unwrap();
}

/// Gives the next mutation this LSN, as if the mutations in between had come and gone.
pub(super) fn skip_to_lsn(engine: &Engine, lsn: Lsn) {
    engine.log.lock().skip_to_lsn(lsn);
}

/// Appends a mark that states this time.
pub(super) fn record_time_passed(engine: &Engine, ms: u64) {
    engine.record_time_passed(ms);
}

/// Where the index says that the record of a key lies.
pub(super) fn location_of(engine: &Engine, key: Key<'_>) -> Location {
    engine.index.get(engine.context.hash(key)).unwrap().location
}

/// The segments that are out of use.
pub(super) fn quarantined(engine: &Engine) -> Vec<SegmentId> {
    engine.table.select(|row| row.stage == Stage::Quarantined).iter().map(|row| row.life.id).collect()
}

/// Takes a key out of the index alone, as if its segment had become unreadable while it drained.
pub(super) fn drop_from_index(engine: &Engine, key: Key<'_>) {
    assert!(engine.index.remove(engine.context.hash(key)).is_some());
}

/// Makes the index name the record of `key` for `alias` too, as if their fingerprints were equal.
pub(super) fn alias_in_index(engine: &Engine, key: Key<'_>, alias: Key<'_>) {
    engine.index.insert(engine.context.hash(alias), &engine.index.get(engine.context.hash(key)).unwrap());
}

pub(super) fn index_entries(engine: &Engine) -> u64 {
    engine.index.entries()
}

/// Bytes of memory that the index has allocated.
pub(super) fn index_bytes(engine: &Engine) -> u64 {
    engine.index.allocated()
}

/// Bytes of memory of footers under construction, and of failed segments.
pub(super) fn footer_bytes(engine: &Engine) -> u64 {
    engine.log.lock().allocated()
}

pub(super) fn settings(engine: &Engine) -> &Settings {
    &engine.context.settings
}

/// The settings with room for an index of `index` bytes, if `options` allow it.
pub(super) fn fit(settings: Settings, options: &Options, index: u64) -> Result<Settings, Error> {
    fit_index(settings, options, index)
}

/// Attempts a put that has seen `version` in the memory tier alone. Whether a mutation of the key
/// overtook it.
pub(super) fn put_is_overtaken(
    engine: &Engine,
    key: Key<'_>,
    value: &[u8],
    version: Lsn,
    options: &PutOptions,
    meanwhile: impl FnOnce(),
) -> bool {
    let request = engine.put_request(key, value, None, options);
    let seen = Observed { at: None, version: Some(version) };
    meanwhile();
    matches!(engine.attempt(&request, Some(&seen), None), Ok(Tried::Overtaken))
}

/// Appends the entries of the one segment that failed elsewhere.
pub(super) fn rescue_failed(engine: &Engine) {
    let failed: Vec<_> = engine.log.lock().failed();
    assert_eq!(failed.len(), 1);
    engine.rescue(&failed[0]).unwrap();
    assert!(failed[0].is_done());
}

/// Moves the entries of a sealed segment, as reclaiming does, until there is no room. Calls
/// `between` after each move.
pub(super) fn move_entries(engine: &Engine, mut between: impl FnMut()) {
    let row = engine.table.select(|r| r.stage == Stage::Sealed)[0];
    engine.table.drain(row.life.id);
    let file = engine.table.file(row.life.id).unwrap();
    let listing = Listing::new(engine.context.store, &row, engine.context.hash_seed, file.as_ref(), BLOCK);
    let entries: Vec<_> = listing.flatten().collect();
    assert!(entries.len() > 50);
    for entry in &entries {
        let place = IndexEntry::new(Location { segment: row.life.id, offset: entry.offset }, entry.len as usize);
        let found = engine.read(&place, &row.life).unwrap().unwrap();
        if engine.reinsert(&row, entry, &found.record, found.bytes()).is_err() {
            break;
        }
        between();
    }
}

/// Time until a postponed sync may be tried again.
pub(super) fn until_sync_retry(engine: &Engine) -> std::time::Duration {
    engine.durability.until_retry(engine.context.time.monotonic())
}
