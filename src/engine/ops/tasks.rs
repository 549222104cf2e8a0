//! The same operations for tasks: what would wait, returns to the executor instead. Works on any, and every future may be dropped at any time.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;

use super::fill::FillError;
use super::options::{DeleteOptions, PutOptions};
use super::single_flight::Landing;
use super::value::Value;
use super::write::{NoRoom, Observed, Request, Tried};
use crate::config::Ack;
use crate::engine::Engine;
use crate::engine::meta::namespaces::{Changed, Namespace};
use crate::error::{Error, Result};
use crate::id::{Key, Lsn};
use crate::manifest::catalog::CatalogChange;

impl Engine {
    /// As [`Engine::get`].
    pub(crate) async fn get_in_task(&self, key: Key<'_>, promote: bool) -> Result<Option<Value>> {
        self.health.check_readable()?;
        match self.get_from_flash(key, promote).await {
            Some(value) => Ok(Some(value)),
            // In DRAM or absent; or overtaken, expired or damaged, which is rare enough for a read on this thread.
            None => self.get(key, promote),
        }
    }

    /// The value of `key`, if it is on flash only and nothing comes in between.
    async fn get_from_flash(&self, key: Key<'_>, promote: bool) -> Option<Value> {
        let (want, read) = self.plan(0, key)?;
        let read = self.context.disk.start_read(read).await;
        let value = self.take_read(key, &want, read, promote)?;
        if promote {
            self.counters.hits_flash.add();
        }
        Some(value)
    }

    /// As [`Engine::get_many`].
    pub(crate) async fn get_many_in_task(&self, keys: &[Key<'_>]) -> Result<Vec<Option<Value>>> {
        self.health.check_readable()?;
        let mut values: Vec<Option<Value>> = vec![None; keys.len()];
        let (mut started, mut rest) = (Vec::new(), Vec::new());
        let mut numbered = keys.iter().enumerate().peekable();
        while let Some((number, key)) = numbered.next() {
            match self.plan(number, *key) {
                Some((want, read)) => started.push((want, self.context.disk.start_read(read))),
                None => rest.push(number),
            }
            if numbered.peek().is_some() && !self.reads_are_full() {
                continue;
            }
            for (want, reading) in started.drain(..) {
                let read = reading.await;
                let number = read.number;
                values[number] = self.take_read(keys[number], &want, read, true);
                match values[number] {
                    Some(_) => self.counters.hits_flash.add(),
                    None => rest.push(number),
                }
            }
            for number in rest.drain(..) {
                values[number] = self.get(keys[number], true)?;
            }
        }
        Ok(values)
    }

    /// As [`Engine::put`].
    pub(crate) async fn put_in_task(&self, key: Key<'_>, value: &[u8], options: &PutOptions) -> Result<Option<Lsn>> {
        self.put_in_task_if(key, value, options, None).await
    }

    /// As [`Engine::put_many`].
    pub(crate) async fn put_many_in_task(&self, entries: &[(Key<'_>, &[u8])], options: &PutOptions) -> Result<Vec<Option<Lsn>>> {
        let mut placed = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let compressed = self.compress(value)?;
            let request = self.put_request(*key, value, compressed.as_deref(), options)?;
            placed.push(self.place_in_task(&request, None).await?);
        }
        let last = placed.iter().flatten().max().copied().unwrap_or(Lsn::ZERO);
        self.wait_in_task(options.ack.unwrap_or(self.context.settings.ack), last).await?;
        Ok(placed)
    }

    /// As [`Engine::touch`].
    pub(crate) async fn touch_in_task(&self, key: Key<'_>, ttl: Option<Duration>) -> Result<Option<Lsn>> {
        while let Some(value) = self.get_in_task(key, false).await? {
            if let Some(touched) = self.put_in_task(key, &value, &PutOptions::touch(&value, ttl)).await? {
                return Ok(Some(touched));
            }
        }
        Ok(None)
    }

    async fn put_in_task_if(
        &self,
        key: Key<'_>,
        value: &[u8],
        options: &PutOptions,
        allowed: Option<&(dyn Fn() -> bool + Sync)>,
    ) -> Result<Option<Lsn>> {
        let compressed = self.compress(value)?;
        let request = self.put_request(key, value, compressed.as_deref(), options)?;
        self.carry_out_in_task(&request, allowed).await
    }

    /// As [`Engine::delete`].
    pub(crate) async fn delete_in_task(&self, key: Key<'_>, options: &DeleteOptions) -> Result<Option<Lsn>> {
        let request = self.delete_request(key, options)?;
        self.carry_out_in_task(&request, None).await
    }

    async fn carry_out_in_task(&self, request: &Request<'_>, allowed: Option<&(dyn Fn() -> bool + Sync)>) -> Result<Option<Lsn>> {
        let placed = self.place_in_task(request, allowed).await?;
        if let Some(lsn) = placed {
            self.wait_in_task(request.ack, lsn).await?;
        }
        Ok(placed)
    }

    /// As [`Engine::carry_out`]: what follows may still have to wait for a sync.
    async fn place_in_task(&self, request: &Request<'_>, allowed: Option<&(dyn Fn() -> bool + Sync)>) -> Result<Option<Lsn>> {
        let deadline = self.deadline(request);
        loop {
            let observed = if request.is_conditional() { Some(self.observed_version_in_task(request.key).await?) } else { None };
            match self.attempt(request, observed.as_ref(), allowed.map(|allowed| allowed as &dyn Fn() -> bool))? {
                Tried::Done(lsn) => return Ok(Some(lsn)),
                Tried::Unmet => return Ok(None),
                Tried::Overtaken => {}
                Tried::NoRoom(NoRoom { cause, seen }) => {
                    self.time_to_wait(request, deadline, cause)?;
                    self.events.room.after(seen).await;
                }
            }
        }
    }

    async fn observed_version_in_task(&self, key: Key<'_>) -> Result<Observed> {
        loop {
            let at = self.place_of(key);
            let version = match self.get_from_flash(key, false).await {
                Some(value) => Some(value.version()),
                None => self.version(key)?,
            };
            if self.place_of(key) == at {
                return Ok(Observed { at, version });
            }
        }
    }

    /// As [`Engine::wait_for`].
    pub(crate) async fn wait_in_task(&self, level: Ack, lsn: Lsn) -> Result<()> {
        if level < Ack::Host {
            return Ok(());
        }
        loop {
            let seen = self.events.durable.seen();
            if self.is_durable(lsn)? {
                return Ok(());
            }
            let generation = self.sync_generation_of(lsn);
            if self.is_durable(lsn)? {
                return Ok(());
            }
            self.events.durable.event(generation).after(seen[generation]).await;
        }
    }

    /// As [`Engine::get_or_fill`].
    pub(crate) async fn get_or_fill_in_task<E>(
        &self,
        key: Key<'_>,
        options: &PutOptions,
        load: impl Future<Output = Result<Bytes, E>>,
    ) -> Result<Bytes, FillError<E>> {
        let hash = self.context.hash(key);
        loop {
            if let Some(value) = self.get_in_task(key, true).await? {
                return Ok(value.into_bytes());
            }
            let (flight, mine) = self.fills.board(hash);
            if !mine {
                let seen = flight.over.count();
                if !flight.landed.load(Ordering::SeqCst) {
                    flight.over.after(seen).await;
                }
                continue;
            }
            // Lands also if this future is dropped.
            let _landing = Landing { fills: &self.fills, hash, flight: &flight };
            // Somebody else's load may have landed between the miss and the boarding.
            if let Some(value) = self.get_in_task(key, false).await? {
                return Ok(value.into_bytes());
            }
            let loaded = load.await.map_err(FillError::Loader)?;
            let current = || !flight.superseded.load(Ordering::SeqCst);
            return match self.put_in_task_if(key, &loaded, options, Some(&current)).await {
                // A value that cannot be kept can still be used.
                Ok(_) | Err(Error::ValueTooLarge { .. } | Error::KeyTooLarge { .. }) => Ok(loaded),
                Err(e) => Err(e.into()),
            };
        }
    }

    /// As [`Engine::clear`].
    pub(crate) async fn clear_in_task(&self, namespace: &Namespace) -> Result<Lsn> {
        self.change_catalog_in_task(&CatalogChange::Namespace(namespace.name()), self.context.settings.ack).await
    }

    /// As [`Engine::set_resume_token`].
    pub(crate) async fn set_resume_token_in_task(&self, name: &str, value: &[u8], ack: Ack) -> Result<Lsn> {
        self.change_catalog_in_task(&CatalogChange::Token(name, value), ack).await
    }

    async fn change_catalog_in_task(&self, change: &CatalogChange<'_>, ack: Ack) -> Result<Lsn> {
        loop {
            match self.try_change_catalog(change, &|_| true)? {
                Changed::Done(lsn) => {
                    self.wait_in_task(ack, lsn).await?;
                    return Ok(lsn);
                }
                Changed::Unwanted => return Ok(Lsn::ZERO),
                Changed::NoRoom { cause, seen } => {
                    self.counters.waits.add(cause);
                    self.events.room.after(seen).await;
                }
            }
        }
    }
}
