//! Real file systems that are shut down, copied and damaged under a store: errors, and never a
//! signal.

mod mounted;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};

use everwarm::{Ack, Cache, Error, Options, PutOptions, Start};
use mounted::Mounted;

/// Set for a child process, which runs one scenario.
const SCENARIO: &str = "EVERWARM_FILE_SYSTEM_SCENARIO";

fn options(dir: &Path) -> Options {
    Options::new(dir).memory(2 << 20).flash(16 << 20).segment_size(256 << 10)
}

fn value(key: u64, tag: u8) -> Vec<u8> {
    [&key.to_le_bytes()[..], &[tag; 2992]].concat()
}

fn put(cache: &Cache, keys: std::ops::Range<u64>, tag: u8, ack: Ack) -> everwarm::Result<()> {
    let options = PutOptions::new().ack(ack);
    keys.into_iter().try_for_each(|key| cache.put_with(key.to_le_bytes(), value(key, tag), &options).map(drop))
}

fn check(cache: &Cache, keys: std::ops::Range<u64>, tag: u8) {
    keys.for_each(|key| assert_eq!(cache.get(key.to_le_bytes()).unwrap().as_deref(), Some(&value(key, tag)[..]), "key {key}"));
}

/// Runs a scenario of [`scenario_in_a_child`] in a child process, as another user if one is given.
fn run_in_child(name: &str, dir: &Path, user: Option<&str>) -> Output {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", "scenario_in_a_child", "--nocapture"];
    let mut command = match user {
        None => Command::new(program),
        Some(user) => {
            let mut command = Command::new("setpriv");
            command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--clear-groups"]).arg(program);
            command
        }
    };
    command.args(arguments).env(SCENARIO, name).env("EVERWARM_FILE_SYSTEM_DIR", dir).output().unwrap()
}

fn succeeds(output: &Output) {
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "signal {:?}, {}\n{said}", output.status.signal(), output.status);
}

/// Entry of child processes. Passes at once in any other process.
#[test]
fn scenario_in_a_child() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let dir = std::env::var_os("EVERWARM_FILE_SYSTEM_DIR").expect("the parent sets it");
    let (mount, store) = (Path::new(&dir), Path::new(&dir).join("store"));
    match scenario.as_str() {
        "killed" => {
            let cache = Cache::open(options(&store)).unwrap();
            put(&cache, 0..100, 1, Ack::Host).unwrap();
            cache.delete(7u64.to_le_bytes()).unwrap();
            assert!(cache.get(7u64.to_le_bytes()).unwrap().is_none());
            Command::new("kill").args(["-9", &std::process::id().to_string()]).status().unwrap();
            unreachable!("the process is dead");
        }
        "shut down" => {
            let cache = Cache::open(options(&store)).unwrap();
            put(&cache, 0..300, 1, Ack::Host).unwrap();
            (0..50u64).for_each(|key| drop(cache.get(key.to_le_bytes()).unwrap()));
            shut_down(mount);
            let refused = put(&cache, 1_000..3_000, 2, Ack::Process).and_then(|()| cache.persist(Ack::Host)).unwrap_err();
            assert!(matches!(refused, Error::Failed { .. }), "{refused}");
            // What DRAM holds is still there, and what it does not hold is no lie.
            let found = (0..300u64)
                .filter(|key| cache.get(key.to_le_bytes()).is_ok_and(|found| found.is_some_and(|v| v[..] == value(*key, 1)[..])));
            assert!(found.count() > 0);
            assert!(matches!(cache.close(), Err(Error::Failed { .. })));
        }
        "ring cut" => {
            let cache = Cache::open(options(&store)).unwrap();
            put(&cache, 0..100, 1, Ack::Host).unwrap();
            for file in std::fs::read_dir(&store).unwrap().map(Result::unwrap) {
                if file.file_name().to_string_lossy().starts_with("ring.") {
                    std::fs::File::options().write(true).open(file.path()).unwrap().set_len(0).unwrap();
                }
            }
            let refused = put(&cache, 100..2_000, 2, Ack::Process).unwrap_err();
            assert!(matches!(refused, Error::Failed { .. }), "{refused}");
            let _failed = cache.close();
        }
        "fill" => {
            let cache = Cache::open(options(&store)).unwrap();
            put(&cache, 0..4_000, 3, Ack::Process).unwrap();
            check(&cache, 3_900..4_000, 3);
            cache.close().unwrap();
        }
        "refused" => {
            let refused = Cache::open(options(&store)).map(drop).expect_err("a file is not readable");
            let mut text = refused.to_string();
            let mut source = std::error::Error::source(&refused);
            while let Some(error) = source {
                text = format!("{text}: {error}");
                source = error.source();
            }
            assert!(text.contains("ermission denied"), "{text}");
        }
        "served" => {
            let cache = Cache::open(options(&store)).unwrap();
            assert!(cache.recovery().damaged.is_empty(), "{:?}", cache.recovery());
            check(&cache, 0..900, 1);
            cache.close().unwrap();
        }
        other => panic!("no scenario {other}"),
    }
}

/// Shuts the file system down without writing anything back, as a detached volume does.
fn shut_down(mount: &Path) {
    const XFS_IOC_GOINGDOWN: u64 = 0x8004_587d;
    let without_log_flush: u32 = 2;
    let dir = std::fs::File::open(mount).unwrap();
    #[allow(unsafe_code, reason = "there is no other way to shut a file system down")]
    // SAFETY: the call reads one number.
    let done = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&dir), XFS_IOC_GOINGDOWN, &raw const without_log_flush) };
    assert_eq!(done, 0, "{}", std::io::Error::last_os_error());
}

#[test]
fn a_page_cache_lost_without_a_reboot_is_a_host_crash() {
    for kind in ["ext4", "xfs"] {
        let Some(mounted) = Mounted::new(kind, 320) else { return };
        let store = mounted.at().join("store");
        let killed = run_in_child("killed", &mounted.at(), None);
        assert_eq!(killed.status.signal(), Some(9), "{}", String::from_utf8_lossy(&killed.stderr));
        shut_down(&mounted.at());
        mounted.mount_again();
        let cache = Cache::open(options(&store)).unwrap();
        let report = cache.recovery();
        assert_eq!((report.kind, report.damaged.len()), (Start::Host, 0), "{kind}: {report:?}");
        assert!(report.maybe_lost_after.is_some());
        // The delete was acknowledged at `Process`, so it may be lost: the report says so.
        (0..100).filter(|key| *key != 7).for_each(|key| check(&cache, key..key + 1, 1));
        cache.close().unwrap();
        // Without the loss it is a process crash.
        run_in_child("killed", &mounted.at(), None);
        let cache = Cache::open(options(&store)).unwrap();
        assert_eq!(cache.recovery().kind, Start::Process);
        assert!(cache.get(7u64.to_le_bytes()).unwrap().is_none());
        cache.close().unwrap();
    }
}

#[test]
fn a_file_system_that_shuts_down_is_a_failure_and_no_signal() {
    for kind in ["ext4", "xfs"] {
        let Some(mounted) = Mounted::new(kind, 320) else { return };
        succeeds(&run_in_child("shut down", &mounted.at(), None));
    }
}

#[test]
fn a_ring_that_is_cut_under_its_owner_is_a_failure_and_no_signal() {
    let root = tempfile::tempdir().unwrap();
    succeeds(&run_in_child("ring cut", root.path(), None));
}

/// Copies share blocks with the original, or lack blocks of zeros. A full disk has no room to give
/// them others.
#[test]
fn copies_of_a_store_work_on_a_full_disk() {
    for how in ["--reflink=always", "--sparse=always", "--reflink=never"] {
        let Some(mounted) = Mounted::new("xfs", 400) else { return };
        let store = mounted.at().join("store");
        let cache = Cache::open(options(&store)).unwrap();
        put(&cache, 0..300, 1, Ack::Process).unwrap();
        cache.close().unwrap();
        let copied = Command::new("cp").args(["-a", how]).args([&store, &mounted.at().join("copy")]).status().unwrap();
        assert!(copied.success(), "{how}");
        // Enough for the segments that are not there yet, but not for others.
        let ballast = std::fs::File::create(mounted.at().join("ballast")).unwrap();
        let free = rustix::fs::statvfs(mounted.at()).unwrap();
        let len = (free.f_bavail * free.f_frsize).saturating_sub(10 << 20);
        rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, len).unwrap();
        succeeds(&run_in_child("fill", &mounted.at(), None));
        ballast.set_len(0).unwrap();
        let copy = Cache::open(options(&mounted.at().join("copy"))).unwrap();
        check(&copy, 0..300, 1);
    }
}

/// A file that this user may not read refuses the opening, and nothing is lost by that.
#[test]
fn a_missing_permission_loses_nothing() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can become another user");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let store = root.path().join("store");
    let cache = Cache::open(options(&store)).unwrap();
    put(&cache, 0..900, 1, Ack::Host).unwrap();
    cache.close().unwrap();
    let nobody = "65534";
    assert!(Command::new("chown").args(["-R", nobody]).arg(&store).status().unwrap().success());
    succeeds(&run_in_child("served", root.path(), Some(nobody)));
    let names: Vec<_> = std::fs::read_dir(&store).unwrap().map(|file| file.unwrap().path()).collect();
    for path in names.iter().filter(|path| !path.ends_with("LOCK")) {
        let before = std::fs::metadata(path).unwrap().permissions();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o000)).unwrap();
        let name = path.file_name().unwrap().to_string_lossy();
        if name.starts_with("manifest") {
            let output = run_in_child("refused", root.path(), Some(nobody));
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
        } else {
            let _served_or_refused = run_in_child("refused", root.path(), Some(nobody));
        }
        std::fs::set_permissions(path, before).unwrap();
        let output = run_in_child("served", root.path(), Some(nobody));
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
    // What root writes, the owner of the directory can read.
    let cache = Cache::open(options(&store)).unwrap();
    put(&cache, 900..1_000, 1, Ack::Host).unwrap();
    cache.close().unwrap();
    succeeds(&run_in_child("served", root.path(), Some(nobody)));
}
