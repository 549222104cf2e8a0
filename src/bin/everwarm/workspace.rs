//! The working directory of a drill or a benchmark.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};

/// Exit code after SIGINT, as shells report it: 128 + 2.
const INTERRUPTED: i32 = 130;

/// A directory that is removed when this is dropped, unless it is to be kept.
pub(crate) struct Workspace {
    path: PathBuf,
    /// Whether to keep the directory. The interrupt handler locks this and exits with the lock
    /// held.
    keep: Arc<Mutex<bool>>,
}

fn lock(keep: &Mutex<bool>) -> MutexGuard<'_, bool> {
    keep.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workspace {
    /// Uses `dir` and keeps it, or creates a temporary directory. `verb` names the program's verb
    /// in the directory name and in errors.
    pub(crate) fn create(verb: &str, dir: Option<&Path>) -> anyhow::Result<Self> {
        let path = match dir {
            Some(dir) => dir.to_owned(),
            None => std::env::temp_dir().join(format!("everwarm-{verb}-{}", std::process::id())),
        };
        let context = || format!("cannot create {}", path.display());
        std::fs::create_dir_all(&path).with_context(context)?;
        // The oracle starts with no known keys, so entries of an older store would look wrong to
        // it.
        let is_empty = std::fs::read_dir(&path).with_context(context)?.next().is_none();
        ensure!(is_empty, "{} is not empty; a {verb} needs a new or empty directory", path.display());
        Ok(Self { path, keep: Arc::new(Mutex::new(dir.is_some())) })
    }

    /// Installs a handler for SIGINT, SIGTERM and SIGHUP that removes the directory, unless it is
    /// to be kept, and exits with 130.
    pub(crate) fn remove_when_interrupted(&self) -> anyhow::Result<()> {
        let (path, keep) = (self.path.clone(), Arc::clone(&self.keep));
        let end = move || {
            // Held until the exit, so that `drop` in another thread neither removes the directory
            // nor reports that it is missing.
            let keep = lock(&keep);
            // A drilled process lives until the exit and may create a file meanwhile: retry.
            if !*keep && (0..10).all(|_| std::fs::remove_dir_all(&path).is_err()) {
                eprintln!("everwarm: cannot remove {}", path.display());
            }
            std::process::exit(INTERRUPTED);
        };
        ctrlc::set_handler(end).context("cannot watch for an interrupt")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn keep(&self) {
        *lock(&self.keep) = true;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !*lock(&self.keep)
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("everwarm: cannot remove {}: {error}", self.path.display());
        }
    }
}
