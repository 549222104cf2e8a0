//! The process that is killed. It opens the cache, serves the requests that its predecessor did not
//! begin, verifies every key, and closes the cache.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use everwarm::{Activity, Cache, Options};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde::{Deserialize, Serialize};

use super::board::{Board, Shape};
use super::plan::Plan;
use super::worker::{Pace, Worker};
use crate::level::AckLevel;

/// The configuration that the parent writes for the child; the same in all of the child's lives.
#[derive(Serialize, Deserialize)]
pub(crate) struct Config {
    pub(crate) store: PathBuf,
    pub(crate) board: PathBuf,
    pub(crate) plan: PathBuf,
    pub(crate) shape: Shape,
    pub(crate) memory: u64,
    pub(crate) flash: u64,
    pub(crate) ack: AckLevel,
    /// Requests a second; 0 for no limit.
    pub(crate) rate: u64,
}

pub(crate) fn run(config: &Path) -> anyhow::Result<ExitCode> {
    // The child dies with the parent, so that an interrupted drill leaves no process behind.
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let text = std::fs::read_to_string(config).with_context(|| format!("cannot read {}", config.display()))?;
    let config: Config = serde_json::from_str(&text)?;
    let plan = Plan::open(&config.plan)?;
    let board = Arc::new(Board::open(&config.board, config.shape)?);
    let cache = open(&config, &board)?;
    board.set_ready(cache.stats().segments_total);
    work(&cache, &plan, &board, config.rate);
    cache.close()?;
    Ok(ExitCode::SUCCESS)
}

fn open(config: &Config, board: &Arc<Board>) -> anyhow::Result<Cache> {
    let board = Arc::clone(board);
    let options = Options::new(&config.store)
        .memory(config.memory)
        .flash(config.flash)
        .ack(config.ack.into())
        .activity(move |activity: Activity, begins: bool| board.observe(activity, begins));
    Ok(Cache::open(options)?)
}

fn work(cache: &Cache, plan: &Plan, board: &Board, rate: u64) {
    let pace = Pace { started: Instant::now(), first: board.progress(), rate };
    std::thread::scope(|scope| {
        for index in 0..board.shape().workers {
            scope.spawn(move || {
                if let Err(error) = Worker::new(index, cache, plan, board, pace).and_then(|mut worker| worker.run()) {
                    // Exit at once: later failures of the other workers are consequences of this
                    // one.
                    eprintln!("everwarm: worker {index}: {error:#}");
                    std::process::exit(2);
                }
            });
        }
    });
}
