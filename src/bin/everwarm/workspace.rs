//! The directory that a drill or a benchmark works in.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};

/// What shells say of a program that SIGINT ended.
const INTERRUPTED: i32 = 130;

/// Removed when dropped, unless it is to be kept.
pub(crate) struct Workspace {
    path: PathBuf,
    /// Whoever ends the program takes this first, and gives it back only if it goes on.
    keep: Arc<Mutex<bool>>,
}

fn lock(keep: &Mutex<bool>) -> MutexGuard<'_, bool> {
    keep.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Workspace {
    /// `dir`, to be kept, or a new temporary directory. `verb` is who works there.
    pub(crate) fn create(verb: &str, dir: Option<&Path>) -> anyhow::Result<Self> {
        let path = match dir {
            Some(dir) => dir.to_owned(),
            None => std::env::temp_dir().join(format!("everwarm-{verb}-{}", std::process::id())),
        };
        let context = || format!("cannot create {}", path.display());
        std::fs::create_dir_all(&path).with_context(context)?;
        // The oracle starts from nothing, so a store that is there already would look wrong to it.
        let is_empty = std::fs::read_dir(&path).with_context(context)?.next().is_none();
        ensure!(is_empty, "{} is not empty; a {verb} needs a new or empty directory", path.display());
        Ok(Self { path, keep: Arc::new(Mutex::new(dir.is_some())) })
    }

    /// When the program is told to end from outside, it ends with the directory removed, unless it is to be kept.
    pub(crate) fn remove_when_interrupted(&self) -> anyhow::Result<()> {
        let (path, keep) = (self.path.clone(), Arc::clone(&self.keep));
        let end = move || {
            // Held until the program has ended, so that nobody else reports what is missing.
            let keep = lock(&keep);
            // The drilled process lives until then, and may make a file in between.
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
