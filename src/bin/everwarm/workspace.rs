//! The working directory of a drill or a benchmark.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, ensure};

/// Exit code after SIGINT, as shells report it: 128 + 2.
const INTERRUPTED: i32 = 130;

/// Mode of a directory that is made here: no other user may look into it or write to it.
const MODE: u32 = 0o700;

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
    /// Uses `dir` and keeps it, or creates a temporary directory with a random name. `verb` names
    /// the program's verb in the directory name and in errors.
    pub(crate) fn create(verb: &str, dir: Option<&Path>) -> anyhow::Result<Self> {
        let path = match dir {
            Some(dir) => {
                prepare(verb, dir).with_context(|| format!("cannot use {}", dir.display()))?;
                dir.to_owned()
            }
            None => {
                let prefix = format!("everwarm-{verb}-");
                let made = tempfile::Builder::new().prefix(&prefix).permissions(Permissions::from_mode(MODE)).tempdir();
                made.with_context(|| format!("cannot create a directory in {}", std::env::temp_dir().display()))?.keep()
            }
        };
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
            if !*keep && (0..10).all(|_| fs::remove_dir_all(&path).is_err()) {
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

/// Creates `dir`, or checks that it is an empty directory of this user that no other user can fill.
fn prepare(verb: &str, dir: &Path) -> anyhow::Result<()> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
    }
    match DirBuilder::new().mode(MODE).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => return Ok(made?),
    }
    let found = fs::metadata(dir)?;
    ensure!(found.is_dir(), "it is not a directory");
    ensure!(found.uid() == rustix::process::geteuid().as_raw(), "it belongs to another user");
    ensure!(found.mode() & 0o002 == 0, "every user may write to it");
    // The oracle starts with no known keys, so entries of an older store would look wrong to it.
    ensure!(fs::read_dir(dir)?.next().is_none(), "it is not empty; a {verb} needs a new or empty directory");
    Ok(())
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !*lock(&self.keep)
            && let Err(error) = fs::remove_dir_all(&self.path)
        {
            eprintln!("everwarm: cannot remove {}: {error}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(dir: &Path) -> String {
        Workspace::create("test", Some(dir)).map(|_| ()).expect_err("a refused directory").chain().map(ToString::to_string).collect()
    }

    #[test]
    fn temporary_directories_have_random_names_and_belong_to_their_user() {
        let names: Vec<Workspace> = (0..2).map(|_| Workspace::create("test", None).unwrap()).collect();
        assert_ne!(names[0].path(), names[1].path());
        for workspace in &names {
            let path = workspace.path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let random = name.strip_prefix("everwarm-test-").unwrap();
            assert!(random.len() >= 6 && !random.contains(&std::process::id().to_string()), "{name}");
            assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, MODE);
        }
        let paths: Vec<PathBuf> = names.iter().map(|workspace| workspace.path().to_owned()).collect();
        drop(names);
        assert!(paths.iter().all(|path| !path.exists()));
    }

    #[test]
    fn a_named_directory_is_new_or_an_empty_one_of_this_user_alone() {
        let root = tempfile::tempdir().unwrap();
        let new = root.path().join("parent/new");
        drop(Workspace::create("test", Some(&new)).unwrap());
        assert_eq!(fs::metadata(&new).unwrap().mode() & 0o777, MODE, "a named directory is kept");
        Workspace::create("test", Some(&new)).unwrap();
        fs::set_permissions(&new, Permissions::from_mode(0o777)).unwrap();
        assert!(refusal(&new).contains("every user may write"));
        fs::set_permissions(&new, Permissions::from_mode(MODE)).unwrap();
        fs::write(new.join("file"), "").unwrap();
        assert!(refusal(&new).contains("not empty"));
        assert!(refusal(&new.join("file")).contains("not a directory"));
        let dangling = root.path().join("link");
        std::os::unix::fs::symlink(root.path().join("elsewhere"), &dangling).unwrap();
        refusal(&dangling);
        assert!(!root.path().join("elsewhere").exists());
        // Only root can give a directory away, and only root sees itself refused here.
        let foreign = root.path().join("foreign");
        fs::create_dir(&foreign).unwrap();
        if std::os::unix::fs::chown(&foreign, Some(65_534), None).is_ok() {
            assert!(refusal(&foreign).contains("another user"));
        }
    }
}
