//! Namespaces and resume tokens of an open store.
//!
//! Each change is a record in the log, so that it keeps its place among mutations. It is applied to
//! the catalog in memory as it is appended, and a manifest states it later.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::concurrent::lock;
use crate::config::Ack;
use crate::engine::Engine;
use crate::engine::log::append::{Append, Appending, Placed};
use crate::engine::refused::Refused;
use crate::error::{Error, Result};
use crate::id::{Key, Lsn, NamespaceGeneration};
use crate::manifest::catalog::{Catalog, CatalogChange, NAME_LEN_MAX, NAMESPACES_MAX, TOKEN_LEN_MAX, TOKENS_MAX};
use crate::segment::format::{self, Draft};

/// A change makes the catalog longer by its own length and at most this: a generation, and the
/// lengths of a name and a value.
const CHANGE_OVERHEAD: usize = 8 + 2 + 2;

/// A handle of a namespace that is in use.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    /// The current generation.
    generation: AtomicU64,
}

impl Namespace {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// A key of this namespace.
    pub(crate) fn key<'a>(&self, bytes: &'a [u8]) -> Key<'a> {
        Key { namespace: self.generation(), bytes }
    }

    /// The current generation, or [`NamespaceGeneration::REMOVED`] if the namespace was removed.
    pub(crate) fn generation(&self) -> NamespaceGeneration {
        // Pairs with the release in `Registry::apply`: a caller for which a drop returned sees the
        // generation after it.
        NamespaceGeneration(self.generation.load(Ordering::Acquire))
    }
}

impl Namespace {
    /// Whether it was not removed. Under the registry's lock that stays so.
    pub(in crate::engine) fn exists(&self) -> bool {
        self.generation() != NamespaceGeneration::REMOVED
    }

    /// The version of a clear, or the error of one that was unwanted.
    pub(in crate::engine) fn cleared(&self, lsn: Lsn) -> Result<Lsn> {
        if lsn > Lsn::ZERO { Ok(lsn) } else { Err(Error::NamespaceRemoved) }
    }
}

/// The current catalog, and the part of it that a manifest may state.
#[derive(Debug)]
struct Registry {
    current: Catalog,
    /// The catalog without the changes in `pending`.
    settled: Catalog,
    /// Changes that a power cut may still take back, together with every mutation before them.
    /// Oldest first.
    pending: VecDeque<(Lsn, Vec<u8>)>,
    handles: BTreeMap<String, Arc<Namespace>>,
}

impl Registry {
    /// Moves changes that are in sealed segments or durable from `pending` to `settled`.
    fn settle(&mut self, wal_start: Lsn, durable: Lsn) {
        while let Some((lsn, change)) = self.pending.pop_front_if(|(lsn, _)| *lsn < wal_start || *lsn <= durable) {
            if let Some(change) = CatalogChange::decode(&change) {
                self.settled.apply(lsn, &change);
            }
        }
    }

    /// Applies an appended change to the current catalog and to the handles.
    fn apply(&mut self, lsn: Lsn, change: &CatalogChange<'_>, durable: Lsn) {
        self.current.apply(lsn, change);
        self.pending.push_back((lsn, change.encode()));
        self.handles.retain(|name, handle| {
            let generation = self.current.generation(name);
            // Pairs with the acquire in `Namespace::generation`.
            handle.generation.store(generation.unwrap_or(NamespaceGeneration::REMOVED).0, Ordering::Release);
            // A namespace that gets the name later has handles of its own.
            generation.is_some()
        });
        self.settle(Lsn::ZERO, durable);
    }

    fn handle(&mut self, name: &str) -> Option<Arc<Namespace>> {
        let generation = self.current.generation(name)?;
        let make = || Arc::new(Namespace { name: name.to_owned(), generation: AtomicU64::new(generation.0) });
        Some(Arc::clone(self.handles.entry(name.to_owned()).or_insert_with(make)))
    }
}

/// The catalog of an open store, and how much of it the manifest's files can take.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Taken after the manifest lock and before the log lock.
    registry: Mutex<Registry>,
    /// Bytes that the manifest's files have for the catalog.
    room: AtomicUsize,
    /// Size of the largest catalog that a waiting change needs.
    wanted: AtomicUsize,
}

impl Namespaces {
    pub(in crate::engine) fn new(catalog: &Catalog, room: usize) -> Self {
        let (current, settled) = (catalog.clone(), catalog.clone());
        let registry = Registry { current, settled, pending: VecDeque::new(), handles: BTreeMap::new() };
        Self { registry: Mutex::new(registry), room: room.into(), wanted: 0.into() }
    }

    /// The catalog that a manifest may state: with every change below `wal_start`, where all
    /// records are in sealed segments, and with every `durable` change. So a change never outlives
    /// a mutation before it. Replay finds the other changes.
    pub(super) fn settle(&self, wal_start: Lsn, durable: Lsn) -> Catalog {
        let mut registry = lock(&self.registry);
        registry.settle(wal_start, durable);
        registry.settled.clone()
    }

    /// Whether a catalog change waits for longer files of the manifest.
    pub(super) fn waits_for_room(&self) -> bool {
        self.wanted() > self.room.load(Ordering::Relaxed)
    }

    /// Size of the largest catalog that a waiting change needs.
    pub(super) fn wanted(&self) -> usize {
        self.wanted.load(Ordering::Acquire)
    }

    /// Forgets the size that waiting changes asked for, since the disk has no room. They ask again.
    pub(super) fn forget_wanted(&self) {
        self.wanted.store(0, Ordering::Release);
    }

    /// Records that the files of the manifest have room for a catalog of `bytes`.
    pub(super) fn set_room(&self, bytes: usize) {
        // Pairs with the acquire in `beyond_room`: a change that sees the room finds the files that
        // have it.
        self.room.store(bytes, Ordering::Release);
    }

    /// Upper bound of the size of `catalog` with one more change, if the files of the manifest are
    /// too short for it.
    fn beyond_room(&self, catalog: &Catalog, change_len: usize) -> Option<usize> {
        let wanted = catalog.len_at_most() + change_len + CHANGE_OVERHEAD;
        (wanted > self.room.load(Ordering::Acquire)).then_some(wanted)
    }

    /// The handle of the namespace with this name, if there is one.
    pub(crate) fn handle(&self, name: &str) -> Option<Arc<Namespace>> {
        lock(&self.registry).handle(name)
    }

    /// Names of all namespaces but the default one.
    pub(crate) fn names(&self) -> Vec<String> {
        lock(&self.registry).current.namespaces.keys().filter(|name| !name.is_empty()).cloned().collect()
    }

    /// The current generation of the namespace with this name, if there is one.
    pub(in crate::engine) fn generation_of(&self, name: &str) -> Option<NamespaceGeneration> {
        lock(&self.registry).current.generation(name)
    }

    /// The current generations of all namespaces. An entry of another generation was dropped.
    pub(in crate::engine) fn generations(&self) -> HashSet<NamespaceGeneration> {
        lock(&self.registry).current.generations()
    }

    /// The current generations of all namespaces, with their names.
    pub(crate) fn named_generations(&self) -> Vec<(NamespaceGeneration, Arc<str>)> {
        let registry = lock(&self.registry);
        let names = registry.current.namespaces.keys().map(String::as_str).filter(|name| !name.is_empty());
        names.chain([""]).filter_map(|name| Some((registry.current.generation(name)?, name.into()))).collect()
    }

    pub(crate) fn resume_token(&self, name: &str) -> Option<Vec<u8>> {
        lock(&self.registry).current.tokens.get(name).cloned()
    }

    /// Names of all resume tokens.
    pub(crate) fn resume_tokens(&self) -> Vec<String> {
        lock(&self.registry).current.tokens.keys().cloned().collect()
    }
}

impl Engine {
    /// Namespaces and resume tokens.
    pub(crate) fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The namespace with this name, which is made if there is none.
    pub(crate) fn namespace(&self, name: &str) -> Result<Arc<Namespace>> {
        self.health.check_readable()?;
        loop {
            if let Some(handle) = self.namespaces.handle(name) {
                return Ok(handle);
            }
            self.change_catalog(&CatalogChange::Namespace(name), None, |catalog| catalog.generation(name).is_none())?;
        }
    }

    /// Drops every entry of a namespace.
    pub(crate) fn clear(&self, namespace: &Namespace, ack: Option<Ack>) -> Result<Lsn> {
        let lsn = self.change_catalog(&CatalogChange::Namespace(&namespace.name), ack, |_| namespace.exists())?;
        namespace.cleared(lsn)
    }

    /// Removes a namespace with its entries. `None` if there is none.
    pub(crate) fn drop_namespace(&self, name: &str, ack: Option<Ack>) -> Result<Option<Lsn>> {
        let exists = |catalog: &Catalog| catalog.generation(name).is_some();
        let lsn = self.change_catalog(&CatalogChange::Removal(name), ack, exists)?;
        Ok(Some(lsn).filter(|lsn| *lsn > Lsn::ZERO))
    }

    /// Drops every entry.
    pub(crate) fn clear_all(&self, ack: Option<Ack>) -> Result<Lsn> {
        self.change_catalog(&CatalogChange::AllNamespaces, ack, |_| true)
    }

    /// Sets a resume token, or removes it if `value` is empty.
    pub(crate) fn set_resume_token(&self, name: &str, value: &[u8], ack: Option<Ack>) -> Result<Lsn> {
        self.change_catalog(&CatalogChange::Token(name, value), ack, |_| true)
    }

    /// Appends a catalog change and applies it, if it is still `wanted`.
    fn change_catalog(&self, change: &CatalogChange<'_>, ack: Option<Ack>, wanted: impl Fn(&Catalog) -> bool) -> Result<Lsn> {
        let mut place = self.events.room.place();
        loop {
            match self.try_change_catalog(change, &wanted)? {
                Changed::Done(lsn) => {
                    self.wait_for(ack.unwrap_or(self.context.settings.ack), lsn)?;
                    return Ok(lsn);
                }
                Changed::Unwanted => return Ok(Lsn::ZERO),
                Changed::NoRoom { cause, seen } => {
                    self.counters.waits.add(cause);
                    self.wait_for_room(&mut place, cause, seen, None);
                }
            }
        }
    }

    /// Appends a catalog change and applies it, as one step.
    pub(in crate::engine) fn try_change_catalog(&self, change: &CatalogChange<'_>, wanted: &dyn Fn(&Catalog) -> bool) -> Result<Changed> {
        check(change)?;
        // Before the check: a close that begins after it signals the event again.
        let seen = self.events.room.count();
        self.health.check_mutable()?;
        let bytes = change.encode();
        let draft = Draft::catalog_change(&bytes);
        let hash = format::catalog_change_hash(self.context.hash_seed, &bytes);
        let mut registry = lock(&self.namespaces.registry);
        if !wanted(&registry.current) {
            return Ok(Changed::Unwanted);
        }
        check_count(&registry.current, change)?;
        if let Some(wanted) = self.namespaces.beyond_room(&registry.current, bytes.len()) {
            self.namespaces.wanted.fetch_max(wanted, Ordering::AcqRel);
            self.events.checkpoint.signal();
            return Ok(Changed::NoRoom { cause: Refused::ManifestFull, seen });
        }
        match self.append(&Append { hash, draft: &draft, kind: Appending::CatalogChange }) {
            Ok(Placed { lsn, .. }) => {
                registry.apply(lsn, change, self.log.marks().durable());
                Ok(Changed::Done(lsn))
            }
            Err(cause) => Ok(Changed::NoRoom { cause, seen }),
        }
    }
}

/// The outcome of an attempt to change the catalog.
pub(in crate::engine) enum Changed {
    Done(Lsn),
    Unwanted,
    /// There is no room.
    NoRoom {
        cause: Refused,
        /// Count of the room event before the attempt.
        seen: u64,
    },
}

/// Checks the name and the lengths of a change.
fn check(change: &CatalogChange<'_>) -> Result<()> {
    let (name, value): (&str, &[u8]) = match change {
        CatalogChange::Namespace(name) => (name, &[]),
        CatalogChange::AllNamespaces => return Ok(()),
        CatalogChange::Removal("") => {
            return Err(Error::InvalidName { reason: "the default namespace cannot be removed; clear it".to_owned() });
        }
        CatalogChange::Removal(name) => (name, &[]),
        CatalogChange::Token(name, value) => (name, value),
    };
    if name.len() > NAME_LEN_MAX {
        return Err(Error::InvalidName { reason: format!("{} B given, the limit is {NAME_LEN_MAX}", name.len()) });
    }
    if value.len() > TOKEN_LEN_MAX {
        return Err(Error::ValueTooLarge { len: value.len(), max: TOKEN_LEN_MAX });
    }
    Ok(())
}

/// Refuses a change that would exceed the number of namespaces or resume tokens.
fn check_count(catalog: &Catalog, change: &CatalogChange<'_>) -> Result<()> {
    let (full, kind, max) = match change {
        CatalogChange::Namespace(name) => {
            // The default namespace exists before the catalog lists it.
            let named = catalog.namespaces.keys().filter(|name| !name.is_empty()).count();
            (catalog.generation(name).is_none() && named >= NAMESPACES_MAX, "namespaces", NAMESPACES_MAX)
        }
        CatalogChange::AllNamespaces | CatalogChange::Removal(_) => return Ok(()),
        CatalogChange::Token(name, value) => {
            (!value.is_empty() && !catalog.tokens.contains_key(*name) && catalog.tokens.len() >= TOKENS_MAX, "resume tokens", TOKENS_MAX)
        }
    };
    if full { Err(Error::InvalidName { reason: format!("there are {max} {kind} already, which is the limit") }) } else { Ok(()) }
}
