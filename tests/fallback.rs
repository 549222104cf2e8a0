//! What a process may not have: `io_uring`, locked memory, file descriptors. The same answers come without.
#![allow(unsafe_code, reason = "a system call filter and limits are set between fork and exec")]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use everwarm::{Backend, Cache, Error, Options, PutOptions, Wait};

/// Says to a process of this test that `io_uring` is forbidden, and where it works.
const FORBIDDEN: &str = "EVERWARM_FORBIDDEN";
/// The same for locked memory and descriptors.
const SCARCE: &str = "EVERWARM_SCARCE";
const KEYS: u32 = 600;

fn options(dir: &std::path::Path) -> Options {
    Options::new(dir).memory(1 << 20).flash(8 << 20).segment_size(64 << 10)
}

fn value(key: u32) -> Vec<u8> {
    key.to_le_bytes().repeat(500)
}

/// Lets every later call of `io_uring_setup` of this process fail with `errno`.
fn forbid_io_uring(errno: i32) -> std::io::Result<()> {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The number of the call is the first word.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: takes no pointer.
    let alone = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: `program` and the filter it points to live until the call has returned, and the kernel keeps a copy.
    let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if alone == 0 && filtered == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Not a test of its own: what the processes do that may not use `io_uring`.
#[test]
fn without_io_uring() {
    let Some(dir) = std::env::var_os(FORBIDDEN) else { return };
    let dir = std::path::Path::new(&dir);
    let refused = Cache::open(options(dir).backend(Backend::IoUring));
    assert!(matches!(refused, Err(Error::InvalidOption { name: "backend", .. })), "{refused:?}");
    let cache = Cache::open(options(dir)).expect("threads do what rings would");
    assert!(!cache.stats().io_uring);
    for key in 0..KEYS {
        cache.put(key.to_le_bytes(), value(key)).expect("room");
    }
    cache.close().expect("in order");
    let cache = Cache::open(options(dir)).expect("it was closed");
    let keys: Vec<_> = (0..KEYS).map(u32::to_le_bytes).collect();
    let many = cache.get_many(&keys).expect("open");
    let tasks = cache.for_tasks();
    for (key, found) in (0..KEYS).zip(many) {
        assert_eq!(found.as_deref(), Some(&value(key)[..]), "key {key}");
        let in_task = pollster::block_on(tasks.get(key.to_le_bytes())).expect("open");
        assert_eq!(in_task.as_deref(), Some(&value(key)[..]), "key {key}");
    }
    assert!(cache.stats().hits_flash > 0);
}

#[test]
fn where_io_uring_is_absent_or_forbidden_threads_read() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::EOPNOTSUPP, libc::EBUSY, libc::ENOMEM] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(std::env::current_exe().expect("a program"));
        command.args(["without_io_uring", "--exact"]).env(FORBIDDEN, dir.path());
        // SAFETY: the closure makes two system calls and allocates nothing.
        unsafe { command.pre_exec(move || forbid_io_uring(errno)) };
        let output = command.output().expect("it runs");
        assert!(output.status.success(), "errno {errno}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Lets this process have `soft` of something, as long as it does not ask for more.
fn limit(what: libc::__rlimit_resource_t, soft: impl FnOnce(libc::rlim_t) -> libc::rlim_t) -> std::io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: it is written to, and lives longer than the call.
    let known = unsafe { libc::getrlimit(what, &raw mut limit) };
    limit.rlim_cur = soft(limit.rlim_max);
    // SAFETY: it is read, and lives longer than the call.
    let set = unsafe { libc::setrlimit(what, &raw const limit) };
    if known == 0 && set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Not a test of its own: what the process does that may lock no memory, and has no descriptors left after a while.
#[test]
fn with_little() {
    let Some(dir) = std::env::var_os(SCARCE) else { return };
    let dir = std::path::Path::new(&dir);
    let cache = Cache::open(options(dir)).expect("nothing is locked");
    let get_all = |cache: &Cache, keys: &[u32]| {
        let found = cache.get_many(&keys.iter().map(|key| key.to_le_bytes()).collect::<Vec<_>>()).expect("open");
        keys.iter().zip(found).filter(|(key, found)| found.as_deref() == Some(&value(**key)[..])).count()
    };
    let patient = PutOptions::new().wait(Wait::UpTo(Duration::from_millis(300)));
    let mut acknowledged = Vec::new();
    let put = |cache: &Cache, keys: std::ops::Range<u32>, acknowledged: &mut Vec<u32>| {
        for key in keys {
            match cache.put_with(key.to_le_bytes(), value(key), &patient) {
                Ok(_) => acknowledged.push(key),
                Err(Error::TimedOut) => return,
                Err(error) => panic!("{key}: {error}"),
            }
        }
    };
    put(&cache, 0..KEYS / 2, &mut acknowledged);
    // One of them is the directory that is read.
    let open = std::fs::read_dir("/proc/self/fd").expect("procfs").count() as libc::rlim_t - 1;
    limit(libc::RLIMIT_NOFILE, |_| open).expect("less than it was");
    put(&cache, KEYS / 2..KEYS, &mut acknowledged);
    assert_eq!(get_all(&cache, &acknowledged), acknowledged.len(), "what is acknowledged is served");
    limit(libc::RLIMIT_NOFILE, |most| most).expect("as much as there is");
    put(&cache, KEYS..2 * KEYS, &mut acknowledged);
    assert!(acknowledged.len() as u32 >= KEYS + KEYS / 2, "service returns: {}", acknowledged.len());
    cache.close().expect("in order");
    let cache = Cache::open(options(dir)).expect("it was closed");
    assert_eq!(get_all(&cache, &acknowledged), acknowledged.len(), "{:?}", cache.recovery());
}

#[test]
fn where_locked_memory_and_descriptors_run_out_nothing_is_lost() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(["with_little", "--exact"]).env(SCARCE, dir.path());
    // SAFETY: the closure makes two system calls and allocates nothing.
    unsafe { command.pre_exec(|| limit(libc::RLIMIT_MEMLOCK, |_| 0)) };
    let output = command.output().expect("it runs");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}
