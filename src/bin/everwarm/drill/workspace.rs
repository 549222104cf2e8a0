//! The directory that a drill works in.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

/// Removed when dropped, unless it is to be kept.
pub(crate) struct Workspace {
    path: PathBuf,
    keep: bool,
}

impl Workspace {
    /// `dir`, to be kept, or a new temporary directory.
    pub(crate) fn create(dir: Option<&Path>) -> anyhow::Result<Self> {
        let path = match dir {
            Some(dir) => dir.to_owned(),
            None => std::env::temp_dir().join(format!("everwarm-drill-{}", std::process::id())),
        };
        let context = || format!("cannot create {}", path.display());
        std::fs::create_dir_all(&path).with_context(context)?;
        // The oracle starts from nothing, so a store that is there already would look wrong to it.
        let is_empty = std::fs::read_dir(&path).with_context(context)?.next().is_none();
        ensure!(is_empty, "{} is not empty; a drill needs a new or empty directory", path.display());
        Ok(Self { path, keep: dir.is_some() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn keep(&mut self) {
        self.keep = true;
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.keep
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            eprintln!("everwarm: cannot remove {}: {error}", self.path.display());
        }
    }
}
