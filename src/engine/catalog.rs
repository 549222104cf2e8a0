//! Namespaces and resume tokens of an open store: changed by notes in the log, so that they keep their place among mutations.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Engine;
use super::append::{Append, Placed};
use crate::concurrent::lock;
use crate::config::Ack;
use crate::error::{Error, Result};
use crate::id::{Key, Lsn, NamespaceGeneration};
use crate::manifest::catalog::{Catalog, CatalogChange, NAME_LEN_MAX, NAMESPACES_MAX, TOKEN_LEN_MAX, TOKENS_MAX};
use crate::segment::format::{self, Draft};

/// A note makes the catalog longer by its own length and at most this: a generation, and the lengths of a name and a value.
const CHANGE_OVERHEAD: usize = 8 + 2 + 2;

/// A namespace that somebody uses.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
    /// The life that it is in.
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

    pub(crate) fn generation(&self) -> NamespaceGeneration {
        // Pairs with the release in `Registry::apply`: whoever knows that a drop returned sees the life after it.
        NamespaceGeneration(self.generation.load(Ordering::Acquire))
    }
}

/// The catalog as it is, and as a manifest may state it.
#[derive(Debug)]
pub(super) struct Registry {
    current: Catalog,
    /// Without the notes of `pending`.
    settled: Catalog,
    /// Notes that a power cut might still take back, and everything before them with them; oldest first.
    pending: VecDeque<(Lsn, Vec<u8>)>,
    spaces: BTreeMap<String, Arc<Namespace>>,
}

impl Registry {
    pub(super) fn new(catalog: &Catalog) -> Self {
        Self { current: catalog.clone(), settled: catalog.clone(), pending: VecDeque::new(), spaces: BTreeMap::new() }
    }

    /// What a manifest may state: notes before `wal_start`, where everything is in sealed segments, and notes that are `durable`, so that a note never outlives a
    /// mutation before it. Replay finds the others.
    pub(super) fn settle(&mut self, wal_start: Lsn, durable: Lsn) -> Catalog {
        while let Some((lsn, note)) = self.pending.pop_front_if(|(lsn, _)| *lsn < wal_start || *lsn <= durable) {
            if let Some(note) = CatalogChange::decode(&note) {
                self.settled.apply(lsn, &note);
            }
        }
        self.settled.clone()
    }

    fn apply(&mut self, lsn: Lsn, note: &CatalogChange<'_>, durable: Lsn) {
        self.current.apply(lsn, note);
        self.pending.push_back((lsn, note.encode()));
        for (name, space) in &self.spaces {
            let generation = self.current.generation(name).unwrap_or_default();
            space.generation.store(generation.0, Ordering::Release);
        }
        self.settle(Lsn::ZERO, durable);
    }

    fn space(&mut self, name: &str) -> Option<Arc<Namespace>> {
        let generation = self.current.generation(name)?;
        let make = || Arc::new(Namespace { name: name.to_owned(), generation: AtomicU64::new(generation.0) });
        Some(Arc::clone(self.spaces.entry(name.to_owned()).or_insert_with(make)))
    }
}

impl Engine {
    /// The namespace with this name, which is made if there is none.
    pub(crate) fn namespace(&self, name: &str) -> Result<Arc<Namespace>> {
        loop {
            if let Some(space) = lock(&self.registry).space(name) {
                return Ok(space);
            }
            self.change_catalog(&CatalogChange::Namespace(name), None, |catalog| catalog.generation(name).is_none())?;
        }
    }

    /// The namespace with this name, if there is one.
    pub(crate) fn existing_namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        lock(&self.registry).space(name)
    }

    /// Names of all namespaces but the default one.
    pub(crate) fn namespaces(&self) -> Vec<String> {
        lock(&self.registry).current.namespaces.keys().filter(|name| !name.is_empty()).cloned().collect()
    }

    /// The life that the namespace with this name is in, if there is one.
    pub(super) fn generation_of(&self, name: &str) -> Option<NamespaceGeneration> {
        lock(&self.registry).current.generation(name)
    }

    /// Names of all namespaces, and the lives that they are in.
    pub(crate) fn spaces(&self) -> Vec<(NamespaceGeneration, Arc<str>)> {
        let registry = lock(&self.registry);
        let names = registry.current.namespaces.keys().map(String::as_str).filter(|name| !name.is_empty());
        names.chain([""]).filter_map(|name| Some((registry.current.generation(name)?, name.into()))).collect()
    }

    /// Drops everything that a namespace holds.
    pub(crate) fn clear(&self, space: &Namespace, ack: Option<Ack>) -> Result<Lsn> {
        self.change_catalog(&CatalogChange::Namespace(&space.name), ack, |_| true)
    }

    /// Drops everything.
    pub(crate) fn clear_all(&self, ack: Option<Ack>) -> Result<Lsn> {
        self.change_catalog(&CatalogChange::AllNamespaces, ack, |_| true)
    }

    /// Sets a resume token, or removes it if `value` is empty.
    pub(crate) fn set_resume_token(&self, name: &str, value: &[u8], ack: Option<Ack>) -> Result<Lsn> {
        self.change_catalog(&CatalogChange::Token(name, value), ack, |_| true)
    }

    pub(crate) fn resume_token(&self, name: &str) -> Option<Vec<u8>> {
        lock(&self.registry).current.tokens.get(name).cloned()
    }

    pub(crate) fn resume_tokens(&self) -> Vec<String> {
        lock(&self.registry).current.tokens.keys().cloned().collect()
    }

    /// The lives that namespaces are in. An entry of another one was dropped.
    pub(super) fn generations(&self) -> HashSet<NamespaceGeneration> {
        lock(&self.registry).current.generations()
    }

    /// As [`Engine::clear`].
    pub(crate) async fn clear_in_task(&self, space: &Namespace) -> Result<Lsn> {
        self.change_catalog_in_task(&CatalogChange::Namespace(&space.name), self.settings.ack).await
    }

    /// As [`Engine::set_resume_token`].
    pub(crate) async fn set_resume_token_in_task(&self, name: &str, value: &[u8], ack: Ack) -> Result<Lsn> {
        self.change_catalog_in_task(&CatalogChange::Token(name, value), ack).await
    }

    /// Appends a note and applies it if `wanted` still says so.
    fn change_catalog(&self, note: &CatalogChange<'_>, ack: Option<Ack>, wanted: impl Fn(&Catalog) -> bool) -> Result<Lsn> {
        loop {
            match self.try_change_catalog(note, &wanted)? {
                Changed::Done(lsn) => {
                    self.wait_for(ack.unwrap_or(self.settings.ack), lsn)?;
                    return Ok(lsn);
                }
                Changed::Unwanted => return Ok(Lsn::ZERO),
                Changed::NoRoom(seen) => self.wait(&self.events.room, seen, None),
            }
        }
    }

    async fn change_catalog_in_task(&self, note: &CatalogChange<'_>, ack: Ack) -> Result<Lsn> {
        loop {
            match self.try_change_catalog(note, &|_| true)? {
                Changed::Done(lsn) => {
                    self.wait_in_task(ack, lsn).await?;
                    return Ok(lsn);
                }
                Changed::Unwanted => return Ok(Lsn::ZERO),
                Changed::NoRoom(seen) => self.events.room.after(seen).await,
            }
        }
    }

    /// Appends a note and applies it, as one step.
    fn try_change_catalog(&self, note: &CatalogChange<'_>, wanted: &dyn Fn(&Catalog) -> bool) -> Result<Changed> {
        check(note)?;
        self.check_open()?;
        let bytes = note.encode();
        let draft = Draft::catalog_change(&bytes);
        let hash = format::catalog_change_hash(self.hash_seed, &bytes);
        let seen = self.events.room.count();
        let mut registry = lock(&self.registry);
        if !wanted(&registry.current) {
            return Ok(Changed::Unwanted);
        }
        check_count(&registry.current, note)?;
        if let Some(wanted) = self.catalog_beyond_room(&registry.current, bytes.len()) {
            self.catalog_wanted.fetch_max(wanted, Ordering::AcqRel);
            self.events.checkpoint.signal();
            return Ok(Changed::NoRoom(seen));
        }
        // In the WAL itself, where replay finds it.
        let what = Append { hash, draft: &draft, tombstone: true, supersedes: false, inline: true, version: None, urgent: false };
        let Ok(Placed { lsn, .. }) = self.append(&what) else { return Ok(Changed::NoRoom(seen)) };
        registry.apply(lsn, note, self.durable());
        Ok(Changed::Done(lsn))
    }

    /// The most bytes that `catalog` takes with one more note, if a manifest could not state it.
    fn catalog_beyond_room(&self, catalog: &Catalog, note_len: usize) -> Option<usize> {
        let wanted = catalog.len_at_most() + note_len + CHANGE_OVERHEAD;
        (wanted > self.catalog_room.load(Ordering::Acquire)).then_some(wanted)
    }
}

/// What came of an attempt to append a note.
enum Changed {
    Done(Lsn),
    Unwanted,
    /// The count of the event to wait for.
    NoRoom(u64),
}

fn check(note: &CatalogChange<'_>) -> Result<()> {
    let (name, value): (&str, &[u8]) = match note {
        CatalogChange::Namespace(name) => (name, &[]),
        CatalogChange::AllNamespaces => return Ok(()),
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

fn check_count(catalog: &Catalog, note: &CatalogChange<'_>) -> Result<()> {
    let (full, what, max) = match note {
        CatalogChange::Namespace(name) => {
            // The default one is there before it is listed.
            let named = catalog.namespaces.keys().filter(|name| !name.is_empty()).count();
            (catalog.generation(name).is_none() && named >= NAMESPACES_MAX, "namespaces", NAMESPACES_MAX)
        }
        CatalogChange::AllNamespaces => return Ok(()),
        CatalogChange::Token(name, value) => {
            (!value.is_empty() && !catalog.tokens.contains_key(*name) && catalog.tokens.len() >= TOKENS_MAX, "resume tokens", TOKENS_MAX)
        }
    };
    if full { Err(Error::InvalidName { reason: format!("there are {max} {what} already, which is the limit") }) } else { Ok(()) }
}
