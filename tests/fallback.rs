//! The cache gives the same answers where `io_uring`, locked memory or file descriptors are denied.
#![allow(unsafe_code, reason = "a system call filter and limits are set between fork and exec")]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use everwarm::{Backend, Cache, Error, Options, PutOptions, Wait};

/// Set for the child process in which `io_uring` is forbidden; the value is the store's directory.
const FORBIDDEN: &str = "EVERWARM_FORBIDDEN";
/// Set for the child process in which locked memory and descriptors are scarce; the value is the
/// store's directory.
const SCARCE: &str = "EVERWARM_SCARCE";
const KEYS: u32 = 600;

fn options(dir: &std::path::Path) -> Options {
    Options::new(dir).memory(1 << 20).flash(8 << 20).segment_size(64 << 10)
}

fn value(key: u32) -> Vec<u8> {
    key.to_le_bytes().repeat(500)
}

/// Installs a seccomp filter: every later call of `io_uring_setup` by this process fails with
/// `errno`.
fn forbid_io_uring(errno: i32) -> std::io::Result<()> {
    let filter = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = [
        // The first word of the filter's input is the number of the system call.
        filter(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        filter(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, libc::SYS_io_uring_setup as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ERRNO | errno as u32),
        filter(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: The call takes no pointer.
    let alone = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: `program` and the filter that it points to live until the call returns; the kernel
    // copies both.
    let filtered = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if alone == 0 && filtered == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Entry of the child process that may not use `io_uring`; passes at once in any other process.
#[test]
fn child_process_without_io_uring() {
    let Some(dir) = std::env::var_os(FORBIDDEN) else { return };
    let dir = std::path::Path::new(&dir);
    let refused = Cache::open(options(dir).backend(Backend::IoUring));
    assert!(matches!(refused, Err(Error::InvalidOption { name: "backend", .. })), "{refused:?}");
    let cache = Cache::open(options(dir)).expect("threads replace io_uring");
    assert!(!cache.stats().io_uring);
    for key in 0..KEYS {
        cache.put(key.to_le_bytes(), value(key)).expect("room");
    }
    cache.close().expect("a clean close");
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
fn threads_read_where_io_uring_is_absent_or_forbidden() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::EOPNOTSUPP, libc::EBUSY, libc::ENOMEM] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut command = Command::new(std::env::current_exe().expect("a program"));
        command.args(["child_process_without_io_uring", "--exact"]).env(FORBIDDEN, dir.path());
        // SAFETY: The closure makes two system calls and allocates no memory.
        unsafe { command.pre_exec(move || forbid_io_uring(errno)) };
        let output = command.output().expect("the child process runs");
        assert!(output.status.success(), "errno {errno}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

/// Sets the soft limit of a resource of this process to `soft` of the hard limit.
fn limit(resource: libc::__rlimit_resource_t, soft: impl FnOnce(libc::rlim_t) -> libc::rlim_t) -> std::io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes and outlives the call.
    let known = unsafe { libc::getrlimit(resource, &raw mut limit) };
    limit.rlim_cur = soft(limit.rlim_max);
    // SAFETY: `limit` is valid for reads and outlives the call.
    let set = unsafe { libc::setrlimit(resource, &raw const limit) };
    if known == 0 && set == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Entry of the child process that may lock no memory and later runs out of descriptors; passes at
/// once in any other process.
#[test]
fn child_process_with_scarce_resources() {
    let Some(dir) = std::env::var_os(SCARCE) else { return };
    let dir = std::path::Path::new(&dir);
    let cache = Cache::open(options(dir)).expect("an open needs no locked memory");
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
                Err(Error::TimedOut | Error::NoDescriptors) => return,
                Err(error) => panic!("{key}: {error}"),
            }
        }
    };
    put(&cache, 0..KEYS / 2, &mut acknowledged);
    // Without the descriptor of the directory that is being read.
    let open = std::fs::read_dir("/proc/self/fd").expect("procfs").count() as libc::rlim_t - 1;
    limit(libc::RLIMIT_NOFILE, |_| open).expect("a lower limit");
    put(&cache, KEYS / 2..KEYS, &mut acknowledged);
    assert_eq!(get_all(&cache, &acknowledged), acknowledged.len(), "acknowledged entries are served");
    limit(libc::RLIMIT_NOFILE, |hard| hard).expect("the hard limit");
    put(&cache, KEYS..2 * KEYS, &mut acknowledged);
    assert!(acknowledged.len() as u32 >= KEYS + KEYS / 2, "service returns: {}", acknowledged.len());
    cache.close().expect("a clean close");
    let cache = Cache::open(options(dir)).expect("it was closed");
    assert_eq!(get_all(&cache, &acknowledged), acknowledged.len(), "{:?}", cache.recovery());
}

#[test]
fn no_entry_is_lost_when_locked_memory_and_descriptors_run_out() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut command = Command::new(std::env::current_exe().expect("a program"));
    command.args(["child_process_with_scarce_resources", "--exact"]).env(SCARCE, dir.path());
    // SAFETY: The closure makes two system calls and allocates no memory.
    unsafe { command.pre_exec(|| limit(libc::RLIMIT_MEMLOCK, |_| 0)) };
    let output = command.output().expect("the child process runs");
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}
