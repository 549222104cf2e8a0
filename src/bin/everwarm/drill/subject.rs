//! A drilled cache as the parent sees it: its directory, its board, and its current process.

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

/// Interval at which the parent polls the board in [`Subject::watch`].
const GLANCE: Duration = Duration::from_millis(2);
/// A child that makes no progress for this long is taken to hang.
const STALL: Duration = Duration::from_secs(60);
const SIGKILL: i32 = 9;

/// A child process that is killed when this is dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Kills the process. Returns false if it had already ended with success.
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
    /// Stops all threads of the process with SIGSTOP. Returns false if the process ended instead.
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
        // Both fail if the process has already been waited for, which is harmless.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn check(status: ExitStatus) -> anyhow::Result<()> {
    ensure!(status.success(), "the drilled process failed ({status}); see its message above");
    Ok(())
}

/// Why the parent stopped watching.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watched {
    /// The condition holds.
    Reached,
    /// The time is up.
    TimedOut,
    /// The child has served all requests, verified all keys, and closed the cache.
    Finished,
}

/// A drilled cache: the twin or the victim.
pub(crate) struct Subject<'a> {
    config: PathBuf,
    pub(crate) board: Board,
    lives: usize,
    bar: &'a ProgressBar,
    /// Position of the progress bar when this subject was created.
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

    /// Starts the next process of this subject.
    pub(crate) fn spawn(&mut self) -> anyhow::Result<Process> {
        let mut command = Command::new(std::env::current_exe()?);
        // In its own process group, so that Ctrl-C at the terminal does not reach the child.
        command.arg("drill-child").arg(&self.config).stdin(Stdio::null()).stdout(Stdio::null()).process_group(0);
        self.board.begin_life(self.lives);
        self.lives += 1;
        Ok(Process(command.spawn().context("cannot start the process to drill")?))
    }

    /// Waits until the board meets the condition `until`, or the process finishes.
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
                bail!("the drilled process has made no progress for {} s, at request {}", STALL.as_secs(), self.board.progress());
            }
            self.bar.set_position(self.bar_start + self.board.progress() as u64);
            std::thread::sleep(GLANCE);
        }
    }

    /// Polls without pause until the board meets the condition `until`, which may hold for only a
    /// microsecond. Leaves the process stopped while the condition holds.
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

    /// Lets a process serve the remaining requests and verify all keys.
    pub(crate) fn finish(&self, mut process: Process) -> anyhow::Result<()> {
        self.watch(&mut process, |_| false).map(drop)
    }

    fn steps(&self) -> usize {
        self.board.progress() + self.board.verified()
    }
}
