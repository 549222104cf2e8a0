//! A drilled cache as the parent sees it: its directory, its board, and the process that lives at the moment.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use indicatif::ProgressBar;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};

use super::Setup;
use super::board::Board;
use super::child::Config;

/// How often the parent looks, unless it waits for a short moment.
const GLANCE: Duration = Duration::from_millis(2);
/// A child that gets nothing done for so long hangs.
const STALL: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;

/// A child process that does not outlive the parent's interest in it.
pub(crate) struct Process(Child);

impl Process {
    /// Kills it. False if it had come to a good end before.
    pub(crate) fn kill(&mut self) -> anyhow::Result<bool> {
        self.0.kill()?;
        let status = self.0.wait()?;
        if status.signal() == Some(SIGKILL) {
            return Ok(true);
        }
        check(status)?;
        Ok(false)
    }
}

impl Process {
    /// Stops all its threads where they are. False if it ended instead.
    fn stop(&self) -> anyhow::Result<bool> {
        rustix::process::kill_process(self.id(), Signal::STOP)?;
        let stopped_or_gone = WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let status = rustix::process::waitid(WaitId::Pid(self.id()), stopped_or_gone)?;
        Ok(status.is_some_and(|status| status.stopped()))
    }

    fn go_on(&self) -> anyhow::Result<()> {
        Ok(rustix::process::kill_process(self.id(), Signal::CONT)?)
    }

    fn id(&self) -> Pid {
        Pid::from_child(&self.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail if it has been waited for, which is as good.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn check(status: ExitStatus) -> anyhow::Result<()> {
    ensure!(status.success(), "the drilled process failed ({status}); what it said is above");
    Ok(())
}

/// Why the parent stopped watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// What it waited for is there.
    Reached,
    /// The time was up.
    TimedOut,
    /// The child served everything, verified everything, and closed.
    Finished,
}

/// See the module.
pub(crate) struct Subject<'a> {
    config: PathBuf,
    pub(crate) board: Board,
    lives: usize,
    bar: &'a ProgressBar,
    /// What the bar showed when this subject's first life began.
    bar_start: u64,
}

impl<'a> Subject<'a> {
    pub(crate) fn create(root: &Path, name: &str, setup: &Setup, bar: &'a ProgressBar) -> anyhow::Result<Self> {
        let file = |suffix: &str| root.join(format!("{name}.{suffix}"));
        let config = Config {
            store: root.join(name),
            board: file("board"),
            plan: setup.plan.clone(),
            shape: setup.shape,
            memory: setup.memory,
            flash: setup.flash,
            ack: setup.ack,
            rate: setup.rate,
        };
        let board = Board::create(&config.board, config.shape)?;
        let path = file("json");
        std::fs::write(&path, serde_json::to_string_pretty(&config)?).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { config: path, board, lives: 0, bar, bar_start: bar.position() })
    }

    /// Starts the next life.
    pub(crate) fn spawn(&mut self) -> anyhow::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        // A group of its own: what interrupts the drill is not meant for it.
        command.arg("drill-child").arg(&self.config).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        self.board.begin_life(self.lives);
        self.lives += 1;
        Ok(Process(command.spawn().context("cannot start the process to drill")?))
    }

    /// Waits until the board shows something.
    pub(crate) fn watch(&self, process: &mut Process, until: impl Fn(&Board) -> bool) -> anyhow::Result<Watched> {
        let mut last = (self.steps(), Instant::now());
        loop {
            if let Some(status) = process.0.try_wait()? {
                check(status)?;
                return Ok(Watched::Finished);
            }
            if until(&self.board) {
                return Ok(Watched::Reached);
            }
            let steps = self.steps();
            if steps != last.0 {
                last = (steps, Instant::now());
            } else if last.1.elapsed() > STALL {
                bail!("the drilled process has done nothing for {} s, at request {}", STALL.as_secs(), self.board.progress());
            }
            self.bar.set_position(self.bar_start + self.board.progress() as u64);
            std::thread::sleep(GLANCE);
        }
    }

    /// Waits, without a break, until the board shows something that may last a microsecond, and leaves the process stopped in the middle of it.
    pub(crate) fn catch(&self, process: &mut Process, patience: Duration, until: impl Fn(&Board) -> bool) -> anyhow::Result<Watched> {
        let started = Instant::now();
        while started.elapsed() < patience {
            if until(&self.board) && process.stop()? {
                if until(&self.board) {
                    return Ok(Watched::Reached);
                }
                process.go_on()?;
            }
            if let Some(status) = process.0.try_wait()? {
                check(status)?;
                return Ok(Watched::Finished);
            }
            std::thread::yield_now();
        }
        Ok(Watched::TimedOut)
    }

    /// Lets a process serve and verify all that is left.
    pub(crate) fn finish(&self, mut process: Process) -> anyhow::Result<()> {
        self.watch(&mut process, |_| false).map(drop)
    }

    fn steps(&self) -> usize {
        self.board.progress() + self.board.verified()
    }
}
