//! Stores of format version 1 that a kill ended, opened on the host that wrote them and on another.

use std::path::Path;
use std::sync::Arc;

use super::super::super::{Cache, manifest};
use crate::config::Backend;
use crate::io::Disk;
use crate::io::directory::Directory;
use crate::io::posix::PosixDisk;

#[path = "../../../tests/golden/answers.rs"]
mod answers;

/// Makes the manifest state the boot id of this host, so that the stop counts as a process crash,
/// or another one, so that it counts as a host crash.
fn set_boot_id(dir: &Path, is_this_host: bool) {
    let disk: Arc<dyn Disk> = Arc::new(PosixDisk::new(Directory::open(dir, true).unwrap(), Backend::Portable, 1, 1).unwrap());
    let (mut manifest, _) = manifest::load(disk.as_ref()).unwrap();
    manifest.boot_id = disk.boot_id() ^ u64::from(!is_this_host);
    manifest::ManifestStore::begin(disk, manifest).unwrap();
}

#[test]
fn killed_stores_of_format_1_give_their_answers() {
    for name in answers::NAMES.into_iter().filter(|name| answers::is_killed(name)) {
        for stop in ["process", "host"] {
            let dir = tempfile::tempdir().unwrap();
            answers::unpack(name, dir.path());
            set_boot_id(dir.path(), stop == "process");
            let expected = answers::expected(name, stop);
            let keys = answers::keys_of(&expected);
            assert!(keys.len() > 700, "{name}: the answers name {} keys", keys.len());
            let cache = Cache::open(answers::options(dir.path())).unwrap();
            assert_eq!(answers::answers(&cache, &keys), expected, "{name} after the end of the {stop}");
        }
    }
}
