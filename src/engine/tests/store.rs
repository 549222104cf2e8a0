//! A store on the simulated disk, and the machine that runs steps on it.

use std::sync::Arc;
use std::time::Duration;

use super::internals::open_inline;
use super::model::{History, Step};
use crate::clock::SimClock;
use crate::config::Options;
use crate::engine::{Engine, PutOptions, Stats};
use crate::error::Error;
use crate::io::sim::{PowerCut, SimDisk};

/// The options of most tests: a store so small that few entries fill it.
pub(crate) fn small() -> Options {
    Options::new("sim").memory(1 << 20).flash(1 << 20).segment_size(64 << 10)
}

/// A store, its disk and its clock.
pub(crate) struct Store {
    pub(super) disk: SimDisk,
    pub(super) clock: Arc<SimClock>,
    pub(super) options: Options,
    pub(super) engine: Option<Arc<Engine>>,
}

impl Store {
    /// A new store, open.
    pub(crate) fn new(options: Options) -> Self {
        let mut store = Self::closed(options, SimDisk::new(1), 2);
        store.open();
        store
    }

    /// A store that is not open yet. Its id follows from the seed of the clock.
    pub(super) fn closed(options: Options, disk: SimDisk, clock_seed: u64) -> Self {
        Self { disk, clock: Arc::new(SimClock::new(clock_seed)), options, engine: None }
    }

    pub(super) fn open(&mut self) {
        self.try_open().unwrap_or_else(|e| panic!("open: {e}"));
    }

    pub(super) fn try_open(&mut self) -> Result<(), Error> {
        self.engine = Some(open_inline(&self.options, &self.disk, self.clock.clone())?);
        Ok(())
    }

    pub(super) fn engine(&self) -> &Arc<Engine> {
        self.engine.as_ref().expect("the store is open")
    }

    /// The process is killed, and another one opens the store.
    pub(super) fn kill(&mut self) {
        self.go_on_with(self.disk.after_kill());
    }

    /// Power fails, and the store is opened again.
    pub(super) fn power_cut(&mut self, seed: u64, damage: PowerCut) {
        self.go_on_with(self.disk.after_power_cut(seed, damage));
    }

    fn go_on_with(&mut self, image: SimDisk) {
        self.engine = None;
        self.disk = image;
        self.open();
    }

    /// The store is closed in order and opened again.
    pub(super) fn close(&mut self) {
        close(self.engine()).expect("the store is closed");
        self.engine = None;
        self.open();
    }

    pub(super) fn put(&self, key: &[u8], value: &[u8]) {
        self.engine().put(key.into(), value, &PutOptions::new()).expect("put");
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.engine().get(key.into(), true).expect("get").map(|v| v.to_vec())
    }
}

/// Closes a store in order.
pub(super) fn close(engine: &Engine) -> Result<(), Error> {
    engine.begin_close();
    engine.finish()
}

/// A store that lives through steps, and the history of its mutations.
pub(crate) struct Machine {
    pub(super) store: Store,
    pub(super) history: History,
    /// Statistics of the processes that have ended.
    pub(super) ended: Vec<Stats>,
}

impl Machine {
    pub(crate) fn new(store: Store, history: History) -> Self {
        Self { store, history, ended: Vec::new() }
    }

    /// Runs a step. An error if the machine stopped, or if the operation failed.
    pub(crate) fn run(&mut self, step: &Step) -> Result<(), Error> {
        match *step {
            Step::Pass(ms) => self.store.clock.advance(Duration::from_millis(ms)),
            Step::Reopen { close, flash, segment_size } => {
                self.end(close)?;
                self.store.options = self.store.options.clone().flash(flash).segment_size(segment_size);
                self.store.try_open()?;
            }
            Step::Kill => self.restart(step, Some(self.store.disk.after_kill())),
            Step::Close => {
                close(self.store.engine())?;
                self.restart(step, None);
            }
            Step::StopDuringWork(operation) => {
                self.store.disk.stop_at(self.store.disk.operations() + operation);
                let _stopped_or_not = self.store.engine().step_all();
                self.restart(step, Some(self.store.disk.after_kill()));
            }
            Step::PowerCut(seed, damage) => {
                self.history.durable_until(self.store.engine().stats().durable);
                self.history.power_failed();
                self.restart(step, Some(self.store.disk.after_power_cut(seed, damage)));
            }
            _ => self.history.apply(self.store.engine(), step, &self.store.disk)?,
        }
        Ok(())
    }

    /// Ends the process, in order if `is_close`.
    pub(super) fn end(&mut self, is_close: bool) -> Result<(), Error> {
        let engine = self.store.engine.take().expect("the store is open");
        if is_close {
            close(&engine)?;
        }
        self.history.life_ended(&engine);
        self.ended.push(engine.stats());
        if self.store.disk.has_stopped() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Ends the process, opens the store again, on `image` if there is one, and checks that it
    /// shows all that it must.
    fn restart(&mut self, step: &Step, image: Option<SimDisk>) {
        self.history.life_ended(self.store.engine());
        self.store.engine = None;
        if let Some(image) = image {
            self.store.disk = image;
        }
        self.store.open();
        let engine = self.store.engine();
        let report = engine.recovery();
        assert!(report.damaged.is_empty(), "after {step:?}, which damages nothing: {report:?}");
        let settled = self.history.settle(engine, &format!("after {step:?}"));
        self.history.rule_out(&settled.missing);
    }
}
