//! Small file systems that tests mount.
//!
//! Mounting takes a privilege. Without it a test prints that it is skipped and passes; if
//! `EVERWARM_MOUNTS` is set it fails instead.

use std::path::PathBuf;
use std::process::Command;

const AT: &str = "mounted";

/// A mounted file system; unmounted when this is dropped.
pub(crate) struct Mounted {
    root: tempfile::TempDir,
}

fn run(program: &str, arguments: &[&dyn AsRef<std::ffi::OsStr>]) -> bool {
    let output = Command::new(program).args(arguments.iter().map(|argument| argument.as_ref())).output();
    output.is_ok_and(|output| output.status.success())
}

impl Mounted {
    /// A file system of this kind with `mib` MiB: `tmpfs`, `ext4` or `xfs`.
    pub(crate) fn new(kind: &str, mib: u64) -> Option<Self> {
        let root = tempfile::tempdir().unwrap();
        let mounted = Self { root };
        let (image, at) = (mounted.image(), mounted.at());
        std::fs::create_dir(&at).unwrap();
        let is_mounted = match kind {
            "tmpfs" => run("mount", &[&"-t", &"tmpfs", &"-o", &format!("size={mib}m"), &"none", &at]),
            kind => {
                std::fs::File::create(&image).unwrap().set_len(mib << 20).unwrap();
                let made = match kind {
                    "ext4" => run("mkfs.ext4", &[&"-q", &"-J", &"size=1", &image]),
                    _ => run("mkfs.xfs", &[&"-q", &image]),
                };
                made && mounted.mount()
            }
        };
        if !is_mounted {
            assert!(std::env::var_os("EVERWARM_MOUNTS").is_none(), "{kind} cannot be mounted");
            println!("skipped: {kind} cannot be mounted here");
            std::mem::forget(mounted);
            return None;
        }
        Some(mounted)
    }

    fn image(&self) -> PathBuf {
        self.root.path().join("image")
    }

    /// Where it is mounted.
    pub(crate) fn at(&self) -> PathBuf {
        self.root.path().join(AT)
    }

    fn mount(&self) -> bool {
        run("mount", &[&"-o", &"loop", &self.image(), &self.at()])
    }

    /// Unmounts it and mounts it again.
    #[allow(dead_code, reason = "not every test does it")]
    pub(crate) fn mount_again(&self) {
        assert!(run("umount", &[&self.at()]) && self.mount());
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        assert!(run("umount", &[&self.at()]) || std::thread::panicking());
    }
}
