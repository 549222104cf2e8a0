//! A store belongs to the process that opened it: forks, closes while other handles live, limits
//! and sandboxes of a process.
#![allow(unsafe_code, reason = "forks, limits and sandboxes are calls of the operating system")]

use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use everwarm::{Ack, Cache, Error, Options, PutOptions, Wait};

/// Set for a child process, which runs one scenario.
const SCENARIO: &str = "EVERWARM_PROCESS_SCENARIO";

fn options(dir: &Path) -> Options {
    Options::new(dir).memory(2 << 20).flash(16 << 20).segment_size(256 << 10).lock_timeout(Duration::ZERO)
}

fn value(key: u64, tag: u8) -> Vec<u8> {
    [&key.to_le_bytes()[..], &[tag; 992]].concat()
}

fn put(cache: &Cache, keys: std::ops::Range<u64>, tag: u8) {
    for key in keys {
        cache.put(key.to_le_bytes(), value(key, tag)).expect("room");
    }
}

fn check(cache: &Cache, keys: std::ops::Range<u64>, tag: u8) {
    keys.for_each(|key| assert_eq!(cache.get(key.to_le_bytes()).expect("open").as_deref(), Some(&value(key, tag)[..]), "key {key}"));
}

/// Runs a scenario of [`scenario_in_a_child`] in a child process, under the limits that the shell
/// command `limit` sets.
fn run_in_child(name: &str, limit: &str, dir: &Path) -> Output {
    let program = std::env::current_exe().unwrap();
    let command = format!("{limit} exec {} --exact scenario_in_a_child --nocapture --test-threads=1", program.display());
    Command::new("sh").args(["-c", &command]).env(SCENARIO, name).env("EVERWARM_PROCESS_DIR", dir).output().unwrap()
}

fn succeeds(name: &str, limit: &str) {
    let dir = tempfile::tempdir().unwrap();
    let output = run_in_child(name, limit, dir.path());
    let said = [&output.stdout[..], &output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{name}: signal {:?}, {}\n{said}", output.status.signal(), output.status);
}

/// Entry of child processes. Passes at once in any other process.
#[test]
fn scenario_in_a_child() {
    let Ok(scenario) = std::env::var(SCENARIO) else { return };
    let dir = std::env::var_os("EVERWARM_PROCESS_DIR").expect("the parent sets it");
    let dir = Path::new(&dir);
    match scenario.as_str() {
        "fork" => fork_with_a_cache(dir),
        "fork, parent ends" => parent_ends_before_the_child(dir),
        "close" => close_with_clones(dir),
        "file size" => file_size_limit(dir),
        "file size later" => file_size_limit_after_the_opening(dir),
        "sandbox, blocking" => sandbox_after_the_opening(dir, false),
        "sandbox, tasks" => sandbox_after_the_opening(dir, true),
        other => panic!("no scenario {other}"),
    }
}

/// Forks, runs `work` in the child, and returns its exit code.
fn in_fork(work: impl FnOnce()) -> i32 {
    // SAFETY: this process has one thread that runs tests, and the child only calls the cache,
    // whose locks no other thread of the parent holds for long.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the child without destructors.
        unsafe { libc::_exit(i32::from(done.is_err())) };
    }
    let mut status = 0;
    // SAFETY: waits for the child that was made above.
    unsafe { libc::waitpid(child, &raw mut status, 0) };
    if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -libc::WTERMSIG(status) }
}

fn fork_with_a_cache(dir: &Path) {
    let cache = Cache::open(options(dir)).unwrap();
    put(&cache, 0..1000, 1);
    let task = cache.for_tasks();
    let code = in_fork(|| {
        let forked = |result: everwarm::Result<()>| assert!(matches!(result, Err(Error::Forked)), "{result:?}");
        for _ in 0..3 {
            forked(cache.put("key", "of the child").map(drop));
            forked(cache.get(0u64.to_le_bytes()).map(drop));
            forked(cache.get_many(&["key"]).map(drop));
            forked(cache.delete("key").map(drop));
            forked(cache.clear().map(drop));
            forked(cache.namespace("other").map(drop));
            forked(cache.resume_token("token").map(drop));
            forked(cache.persist(Ack::Host));
            forked(cache.checkpoint().map(drop));
            forked(cache.entries().next().expect("an error").map(drop));
            forked(pollster::block_on(task.put("key", "of a task")).map(drop));
            forked(pollster::block_on(task.get("key")).map(drop));
            forked(cache.clone().close());
            assert_eq!(cache.stats().entries, 0);
        }
        drop(cache.clone());
    });
    assert_eq!(code, 0);
    put(&cache, 1000..2000, 1);
    check(&cache, 0..2000, 1);
    // A child that drops the last handles harms nothing either.
    let last = Some((cache.clone(), task));
    let mut last = std::cell::RefCell::new(last);
    let code = in_fork(|| drop(last.get_mut().take()));
    assert_eq!(code, 0);
    drop(last);
    cache.close().unwrap();
    check(&Cache::open(options(dir)).unwrap(), 0..2000, 1);
}

/// A child that lives on, as a daemon does it, does not keep the store of its parent locked.
fn parent_ends_before_the_child(dir: &Path) {
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    let code = in_fork(|| {
        let cache = Cache::open(options(dir)).unwrap();
        put(&cache, 0..100, 1);
        // SAFETY: as in `in_fork`.
        let grandchild = unsafe { libc::fork() };
        if grandchild == 0 {
            // SAFETY: closes the child's own copy of the descriptor, which it does not use.
            unsafe { libc::close(writer.as_raw_fd()) };
            // Lives until the test ends.
            let _closed = std::io::Read::read(&mut reader, &mut [0]);
            // SAFETY: ends the grandchild without destructors.
            unsafe { libc::_exit(0) };
        }
        std::mem::forget(cache);
    });
    assert_eq!(code, 0);
    check(&Cache::open(options(dir).lock_timeout(Duration::from_secs(60))).unwrap(), 0..100, 1);
    std::io::Write::write_all(&mut writer, &[0]).unwrap();
}

/// Descriptors and mappings of this process that name files in `dir`, and its threads, rings and
/// events.
fn resources(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
    let links = links.map(|link| link.to_string_lossy().into_owned());
    let descriptors = links.filter(|link| link.contains(dir) || link.contains("io_uring") || link.contains("eventfd"));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mappings = maps.lines().filter(|line| line.contains(dir) || line.contains("io_uring")).map(str::to_owned).collect::<Vec<_>>();
    let names =
        std::fs::read_dir("/proc/self/task").unwrap().filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    let threads = names.filter(|name| name.starts_with("everwarm-"));
    descriptors.chain(mappings).chain(threads).collect()
}

fn close_with_clones(dir: &Path) {
    let cache = Cache::open(options(dir)).unwrap();
    put(&cache, 0..5000, 1);
    let (clone, task, other) = (cache.clone(), cache.for_tasks(), cache.namespace("other").unwrap());
    let mut entries = clone.entries();
    entries.next().unwrap().unwrap();
    cache.get_many(&(0..500u64).map(u64::to_le_bytes).collect::<Vec<_>>()).unwrap();
    (0..500u64).for_each(|key| drop(pollster::block_on(task.get(key.to_le_bytes())).unwrap()));
    assert!(resources(dir).len() > 10, "{:?}", resources(dir));
    let unused = task.get(1u64.to_le_bytes());
    cache.close().unwrap();
    assert_eq!(resources(dir), [""; 0]);
    // Somebody else may have the store, while the handles live.
    let next = Cache::open(options(dir)).unwrap();
    let closed = |result: everwarm::Result<()>| assert!(matches!(result, Err(Error::Closed)), "{result:?}");
    closed(pollster::block_on(unused).map(drop));
    closed(entries.next().unwrap().map(drop));
    closed(clone.entries_of_all_namespaces().next().unwrap().map(drop));
    closed(clone.put("key", "value").map(drop));
    closed(other.get("key").map(drop));
    closed(clone.clear_all().map(drop));
    closed(clone.namespaces().map(drop));
    closed(clone.resume_tokens().map(drop));
    closed(clone.persist(Ack::Host));
    closed(pollster::block_on(task.persist(Ack::Host)));
    closed(clone.checkpoint().map(drop));
    closed(clone.namespace("other").map(drop));
    closed(pollster::block_on(task.get_many(&["key"])).map(drop));
    assert!(clone.stats().puts >= 5000);
    // Closing once more changes nothing, not even for the next owner.
    clone.close().unwrap();
    check(&next, 0..5000, 1);
    put(&next, 0..5000, 2);
    drop((other, task));
    next.close().unwrap();
    check(&Cache::open(options(dir)).unwrap(), 0..5000, 2);
}

/// Under the limit of file sizes that the shell set, an opening is refused or works.
fn file_size_limit(dir: &Path) {
    match Cache::open(options(dir)) {
        Err(Error::InvalidOption { reason, .. }) => assert!(reason.contains("RLIMIT_FSIZE"), "{reason}"),
        other => panic!("{other:?}"),
    }
}

fn file_size_limit_after_the_opening(dir: &Path) {
    let cache = Cache::open(options(dir)).unwrap();
    put(&cache, 0..100, 1);
    cache.persist(Ack::Host).unwrap();
    let limit = libc::rlimit { rlim_cur: 64 << 10, rlim_max: 64 << 10 };
    // SAFETY: sets a limit of this process.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) }, 0);
    let patient = PutOptions::new().ack(Ack::Host).wait(Wait::UpTo(Duration::from_millis(500)));
    let refused = (100..10_000u64).find_map(|key| cache.put_with(key.to_le_bytes(), value(key, 1), &patient).err());
    assert!(refused.is_some(), "files cannot grow");
    check(&cache, 0..100, 1);
}

/// Forbids `io_uring_enter` to all threads of this process, as a sandbox does.
fn forbid_ring_entry() {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_enter as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the call takes numbers.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
    let all_threads = libc::SECCOMP_FILTER_FLAG_TSYNC;
    // SAFETY: the program is valid for the time of the call.
    let done = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, all_threads, &raw const program) };
    assert_eq!(done, 0);
}

fn sandbox_after_the_opening(dir: &Path, in_tasks: bool) {
    let cache = Cache::open(options(dir)).unwrap();
    put(&cache, 0..8000, 1);
    cache.persist(Ack::Host).unwrap();
    let task = cache.for_tasks();
    let keys: Vec<_> = (0..8000u64).map(u64::to_le_bytes).collect();
    // Some rings are in use already, with reads in flight.
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..4 {
                    let found = if in_tasks { pollster::block_on(task.get_many(&keys)) } else { cache.get_many(&keys) };
                    assert!(found.unwrap().iter().zip(0..).all(|(found, key)| found.as_deref() == Some(&value(key, 1)[..])));
                }
            });
        }
        forbid_ring_entry();
    });
    let found = if in_tasks { pollster::block_on(task.get_many(&keys)) } else { cache.get_many(&keys) };
    assert!(found.unwrap().iter().zip(0..).all(|(found, key)| found.as_deref() == Some(&value(key, 1)[..])));
    drop(task);
    cache.close().unwrap();
}

#[test]
fn a_child_of_fork_is_refused_and_harms_nothing() {
    succeeds("fork", "");
}

#[test]
fn a_child_that_outlives_its_parent_holds_no_lock() {
    succeeds("fork, parent ends", "");
}

#[test]
fn a_close_releases_everything_while_other_handles_live() {
    succeeds("close", "");
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_no_signal() {
    for limit in [1, 100, 400] {
        succeeds("file size", &format!("ulimit -f {limit};"));
    }
    succeeds("file size later", "");
}

#[test]
fn a_sandbox_that_forbids_rings_later_costs_only_speed() {
    succeeds("sandbox, blocking", "");
    succeeds("sandbox, tasks", "");
}
