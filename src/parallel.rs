//! Threads that share a piece of work and are gone when it is done.

use std::io;
use std::num::NonZeroUsize;
use std::thread::{self, Scope, ScopedJoinHandle};

const THREADS_MAX: usize = 8;

/// So many threads share work that leaves nothing for others to do.
pub(crate) fn thread_count() -> usize {
    thread::available_parallelism().map_or(1, NonZeroUsize::get).min(THREADS_MAX)
}

/// See [`scope`].
pub(crate) struct Workers<'scope, 'env> {
    scope: &'scope Scope<'scope, 'env>,
    threads: Vec<ScopedJoinHandle<'scope, ()>>,
}

impl<'scope> Workers<'scope, '_> {
    /// One thread more, if there is one to be had.
    pub(crate) fn spawn(&mut self, work: impl FnOnce() + Send + 'scope) -> io::Result<()> {
        self.threads.push(thread::Builder::new().spawn_scoped(self.scope, work)?);
        Ok(())
    }
}

/// Runs `lead`, which may spawn others, and waits until they have ended with all that is theirs: their stacks, and what their thread locals hold. A scope alone waits for
/// their work only.
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
