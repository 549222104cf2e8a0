//! Operations for async tasks: where a thread would wait, the task returns to its executor.
//!
//! A task waits for a device read, for room, for a sync, or for the load of another task. Each wait
//! is a future of the disk, of an [`crate::concurrent::Event`] or of the queues for room, so any
//! executor works. The timer thread wakes a task whose time to wait is over. All other work is that
//! of the blocking operations, in the same order, and partly by the same functions.
//!
//! A future may be dropped at any time. A dropped read has no effect. A dropped mutation took
//! effect whole or not at all: it is one call of [`Engine::attempt`], which never yields. A dropped
//! load ends its flight, since its [`Landing`] is dropped too.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::fill::{Boarded, FillError, Loaded};
use super::nesting;
use super::options::{DeleteOptions, PutOptions};
use super::single_flight::{Flight, Landing};
use super::value::Value;
use super::write::{NoRoom, Observed, Request, Tried, is_unmet};
use crate::config::Ack;
use crate::engine::Engine;
use crate::engine::counters::NotStored;
use crate::engine::events::RoomPlace;
use crate::engine::meta::namespaces::{Changed, Namespace};
use crate::engine::refused::Refused;
use crate::error::{Error, Result};
use crate::id::{Key, Lsn};
use crate::manifest::catalog::CatalogChange;

/// A caller's own check, which is made under the stripe of the key.
type Allowed<'a> = &'a (dyn Fn() -> bool + Sync);

impl Engine {
    /// The value of `key`, as [`Engine::get`] returns it. Waits for a device read without blocking
    /// the thread.
    pub(crate) async fn get_in_task(&self, key: Key<'_>, promote: bool) -> Result<Option<Value>> {
        self.health.check_readable()?;
        match self.get_from_flash(key, promote).await {
            Some(value) => Ok(Some(value)),
            // The value is in DRAM, or there is none. Or its record was overtaken, expired, damaged
            // or unreadable, which is rare: then this thread may read the device.
            None => self.get(key, promote),
        }
    }

    /// The value of `key`, if its record is only on flash, is not overtaken and verifies. `None`
    /// otherwise: the caller then uses a blocking lookup.
    async fn get_from_flash(&self, key: Key<'_>, promote: bool) -> Option<Value> {
        let (wanted, read) = self.plan(0, key)?;
        let read = self.context.disk.start_read(read).await;
        let value = self.take_read(key, &wanted, read, promote)?;
        if promote {
            self.counters.hits_flash.add();
        }
        Some(value)
    }

    /// The values of `keys`, in their order, as [`Engine::get_many`] returns them. Device reads are
    /// in flight together until their buffers take their whole share of the memory budget.
    pub(crate) async fn get_many_in_task(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Value>>> {
        self.health.check_readable()?;
        let mut values: Vec<Option<Value>> = vec![None; keys.len()];
        let (mut started, mut unanswered) = (Vec::new(), Vec::new());
        let mut numbered = keys.iter().enumerate().peekable();
        while let Some((number, key)) = numbered.next() {
            match self.plan(number, *key) {
                Some((wanted, read)) => started.push((wanted, self.context.disk.start_read(read))),
                None => unanswered.push(number),
            }
            if numbered.peek().is_some() && !self.reads_are_full() {
                continue;
            }
            for (wanted, reading) in started.drain(..) {
                let read = reading.await;
                let number = read.number;
                values[number] = self.take_read(keys[number], &wanted, read, true);
                match values[number] {
                    Some(_) => self.counters.hits_flash.add(),
                    None => unanswered.push(number),
                }
            }
            for number in unanswered.drain(..) {
                values[number] = self.get(keys[number], true)?;
            }
        }
        Ok(values)
    }

    /// Sets the value of `key`. Returns its version, or `None` if the condition does not hold.
    pub(crate) async fn put_in_task(&self, key: Key<'_>, value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        let placed = self.put_unsynced_in_task(key, value, options, None).await?;
        if let Some(lsn) = placed {
            self.wait_in_task(options.ack.unwrap_or(self.context.settings.ack), lsn).await?;
        }
        Ok(placed)
    }

    /// Sets the values of many keys, in order, and waits for a sync once at the end. The entries
    /// before an error are stored.
    pub(crate) async fn put_many_in_task(&self, entries: &[(Key<'_>, &[u8])], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let mut placed = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            placed.push(self.put_unsynced_in_task(*key, value, options, None).await?);
        }
        let last = placed.iter().flatten().max().copied().unwrap_or(Lsn::ZERO);
        self.wait_in_task(options.ack.unwrap_or(self.context.settings.ack), last).await?;
        Ok(placed)
    }

    /// Gives the entry of `key` a new expiry, or none, by appending the record again. Returns the
    /// new version, or `None` without an entry.
    pub(crate) async fn touch_in_task(&self, key: Key<'_>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        self.health.check_writable()?;
        while let Some(value) = self.get_in_task(key, false).await? {
            if let Some(touched) = self.put_in_task(key, &value, &PutOptions::touch(&value, ttl)).await? {
                return Ok(Some(touched));
            }
        }
        Ok(None)
    }

    /// Sets the value of `key` if `allowed` returns true under the key's stripe lock. Does not wait
    /// for a sync.
    async fn put_unsynced_in_task(
        &self,
        key: Key<'_>,
        value: &[u8],
        options: &PutOptions,
        allowed: Option<Allowed<'_>>,
    ) -> Result<Option<Lsn>> {
        self.check_put(key, value)?;
        let observed = if options.is_conditional() { Some(self.observed_version_in_task(key).await?) } else { None };
        if is_unmet(options.condition, observed.as_ref(), allowed.map(|allowed| allowed as _)) {
            return Ok(None);
        }
        let compressed = self.compress(value)?;
        let request = self.put_request(key, value, compressed.as_deref(), options);
        self.carry_out_in_task(&request, observed, allowed).await
    }

    /// Removes the value of `key`, whether or not it has one. Returns the version of the removal,
    /// or `None` if the condition does not hold.
    pub(crate) async fn delete_in_task(&self, key: Key<'_>, options: &DeleteOptions) -> Result<Option<Lsn>> {
        let request = self.delete_request(key, options)?;
        let placed = self.carry_out_in_task(&request, None, None).await?;
        if let Some(lsn) = placed {
            self.wait_in_task(request.ack, lsn).await?;
        }
        Ok(placed)
    }

    /// Attempts a mutation as [`Engine::carry_out`] does. Does not wait for a sync.
    async fn carry_out_in_task(
        &self,
        request: &Request<'_>,
        mut observed: Option<Observed>,
        allowed: Option<Allowed<'_>>,
    ) -> Result<Option<Lsn>> {
        let deadline = self.deadline(request);
        let mut place = self.events.room.place();
        loop {
            if request.is_conditional() && observed.is_none() {
                observed = Some(self.observed_version_in_task(request.key).await?);
            }
            match self.attempt(request, observed.as_ref(), allowed.map(|allowed| allowed as _))? {
                Tried::Done(lsn) => return Ok(Some(lsn)),
                Tried::Unmet => return Ok(None),
                Tried::Overtaken => observed = None,
                Tried::NoRoom(NoRoom { cause, seen }) => {
                    self.time_to_wait(request, deadline, cause)?;
                    self.wait_for_room_in_task(&mut place, cause, seen, deadline).await;
                    observed = None;
                }
            }
        }
    }

    /// Waits for room as [`Engine::wait_for_room`] does, until `deadline` if there is one.
    async fn wait_for_room_in_task(&self, place: &mut RoomPlace<'_>, cause: Refused, seen: u64, deadline: Option<Duration>) {
        place.found_none(cause as usize, seen);
        self.events.watch_room();
        self.events.timer.limit(place, deadline).await;
    }

    /// Reads the version of `key`, with the position of its record, for a condition.
    async fn observed_version_in_task(&self, key: Key<'_>) -> Result<Observed> {
        loop {
            let at = self.position_of(key);
            let version = match self.get_from_flash(key, false).await {
                Some(value) => Some(value.version()),
                None => self.version(key)?,
            };
            if self.position_of(key) == at {
                return Ok(Observed { at, version });
            }
        }
    }

    /// Waits until everything up to `lsn` is as durable as `level` says. Leaves the sync to the
    /// sync thread, where [`Engine::wait_for`] may sync on its own thread.
    pub(crate) async fn wait_in_task(&self, level: Ack, lsn: Lsn) -> Result<()> {
        self.wait_until_in_task(level, lsn, None).await
    }

    /// Waits as [`Engine::wait_in_task`] does, until `deadline` if there is one.
    ///
    /// # Errors
    /// Also [`Error::TimedOut`] and [`Error::Closed`].
    async fn wait_until_in_task(&self, level: Ack, lsn: Lsn, deadline: Option<Duration>) -> Result<()> {
        if level < Ack::Host {
            return Ok(());
        }
        loop {
            let seen = self.events.durable.seen();
            if self.is_durable(lsn)? {
                return Ok(());
            }
            let generation = self.sync_generation_of(lsn);
            // The generation may be that of a sync after the one that made `lsn` durable.
            if self.is_durable(lsn)? {
                return Ok(());
            }
            if deadline.is_some_and(|at| self.time_left(at).is_zero()) {
                return Err(Error::TimedOut);
            }
            let synced = self.events.durable.event(generation).after(seen[generation]);
            self.events.timer.limit(synced, deadline).await;
            if deadline.is_some() && self.health.is_closing() && !self.is_durable(lsn)? {
                // The timer keeps no deadlines any more.
                return Err(Error::Closed);
            }
        }
    }

    /// The cached value of `key`, or the value that `load` returns, as [`Engine::get_or_fill`].
    pub(crate) async fn get_or_fill_in_task<E>(
        &self,
        key: Key<'_>,
        options: &PutOptions,
        load: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<Bytes, FillError<E>> {
        let hash = self.context.hash(key);
        let run = || async { nesting::run_in_task(&self.fills, hash, load).await.map_err(FillError::Loader) };
        let give_up = self.gives_up_at(options);
        loop {
            match self.get_in_task(key, true).await {
                Ok(Some(value)) => return Ok(value.into_bytes()),
                Ok(None) | Err(Error::NeedsZstd) => {}
                Err(error) => return run().await.inspect(|_| self.count_not_stored(&error)),
            }
            match self.board(hash, give_up)? {
                Boarded::Leads(flight) => {
                    // The flight also ends if this future is dropped.
                    let _landing = Landing { fills: &self.fills, hash, flight: &flight };
                    // Another flight may have landed between the miss and the boarding.
                    if let Ok(Some(value)) = self.get_in_task(key, false).await {
                        return Ok(value.into_bytes());
                    }
                    let loaded = run().await?;
                    self.store_in_task(key, options, &loaded, &flight).await;
                    flight.leave(Loaded::of(key, &loaded));
                    return Ok(loaded);
                }
                Boarded::LoadsAlone => return run().await.inspect(|_| self.counters.not_stored.add(NotStored::Alone)),
                Boarded::Waits(flight, until) => {
                    let seen = flight.over.count();
                    if !flight.landed.load(Ordering::SeqCst) {
                        self.events.timer.limit(flight.over.after(seen), Some(until)).await;
                    }
                    if let Some(value) = flight.left().and_then(|loaded| loaded.value_of(key)) {
                        return Ok(value);
                    }
                }
            }
        }
    }

    /// Stores a loaded value as [`Engine::get_or_fill`] does. Counts it if the value is not stored.
    async fn store_in_task(&self, key: Key<'_>, options: &PutOptions, loaded: &[u8], flight: &Flight<Loaded>) {
        let options = self.options_of_fill(options);
        let is_current = || !flight.superseded.load(Ordering::SeqCst);
        let acknowledged = match self.put_unsynced_in_task(key, loaded, &options, Some(&is_current)).await {
            Ok(Some(lsn)) => self.wait_until_in_task(options.ack.unwrap_or(Ack::Memory), lsn, self.sync_deadline(&options)).await,
            Ok(None) => return self.counters.not_stored.add(NotStored::Overtaken),
            Err(error) => Err(error),
        };
        if let Err(error) = acknowledged {
            self.count_not_stored(&error);
        }
    }

    /// Makes everything that was acknowledged before the first poll as durable as `level` says.
    pub(crate) async fn persist_in_task(&self, level: Ack) -> Result<()> {
        self.health.check_readable()?;
        self.health.check_writable()?;
        self.wait_in_task(level, self.appended()).await?;
        if level >= Ack::Host {
            self.check_directory()?;
        }
        self.record_persisted(level);
        Ok(())
    }

    /// Drops every entry of a namespace. Returns the version of the drop.
    pub(crate) async fn clear_in_task(&self, namespace: &Namespace) -> Result<Lsn> {
        let change = CatalogChange::Namespace(namespace.name());
        let lsn = self.change_catalog_in_task(&change, self.context.settings.ack, &|| namespace.exists()).await?;
        namespace.cleared(lsn)
    }

    /// Sets a resume token, or removes it if `value` is empty. Returns the LSN of the change.
    pub(crate) async fn set_resume_token_in_task(&self, name: &str, value: &[u8], ack: Ack) -> Result<Lsn> {
        self.change_catalog_in_task(&CatalogChange::Token(name, value), ack, &|| true).await
    }

    /// Appends a catalog change and applies it, once there is room and if it is still `wanted`.
    /// Waits for its sync.
    async fn change_catalog_in_task(&self, change: &CatalogChange<'_>, ack: Ack, wanted: &(dyn Fn() -> bool + Sync)) -> Result<Lsn> {
        let mut place = self.events.room.place();
        loop {
            let changed = self.try_change_catalog(change, &|_| wanted())?;
            match changed {
                Changed::Done(lsn) => {
                    self.wait_in_task(ack, lsn).await?;
                    return Ok(lsn);
                }
                Changed::Unwanted => return Ok(Lsn::ZERO),
                Changed::NoRoom { cause, seen } => {
                    self.counters.waits.add(cause);
                    self.wait_for_room_in_task(&mut place, cause, seen, None).await;
                }
            }
        }
    }
}
