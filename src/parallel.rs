//! Worker threads that share one piece of work, and have ended when it is done.

use std::io;
use std::num::NonZeroUsize;
use std::thread::{self, Scope, ScopedJoinHandle};

const THREADS_MAX: usize = 8;

/// Number of worker threads for CPU-bound work.
pub(crate) fn thread_count() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX)
}

/// The worker threads of one [`scope`].
pub(crate) struct Workers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Workers<'scope, '_> {
    /// Starts one more thread. Fails if the system cannot start it.
    pub(crate) fn spawn(&mut self, work: impl FnOnce() + Send + 'scope) -> io::Result<()> {
        self.threads.push(thread::Builder::new().spawn_scoped(self.scope, work)?);
        Ok(())
    }
}

/// Runs `lead`, which may spawn workers, and joins them. A joined thread has freed its stack and
/// its thread locals. [`thread::scope`] alone waits only for the work.
pub(crate) fn scope<'env, T>(lead: impl for<'scope> FnOnce(&mut Workers<'scope, 'env>) -> T) -> T {
    thread::scope(|scope| {
        let mut workers = Workers { scope, threads: Vec::new() };
        let result = lead(&mut workers);
        for thread in workers.threads {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        }
        result
    })
}
