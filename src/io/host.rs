//! Facts about the host: its memory, its processes, and the descriptors that this process may open.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::concurrent::lock;

/// Bytes of DRAM that this process may use at most. The least of these counts: the memory of the
/// machine, the limit of the address space, and the limits of its control groups.
pub(crate) fn memory_max() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = info.totalram.saturating_mul(u64::from(info.mem_unit));
    let address_space = getrlimit(Resource::As).current.unwrap_or(u64::MAX);
    machine.min(address_space).min(group_memory_max(Path::new("/")))
}

/// The least memory limit of the control groups of this process and of their ancestors, as far as
/// it can see them. `root` is the root of the file system that holds `proc` and the mounts.
///
/// `u64::MAX` without a limit. A file that cannot be read or parsed states none: limits are a
/// caution, and a process without procfs must be able to open a store.
fn group_memory_max(root: &Path) -> u64 {
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap_or_default();
    let (groups, mounts) = (read("proc/self/cgroup"), read("proc/self/mountinfo"));
    let of_hierarchy = |file: &str, mount: Option<Mount<'_>>, group: Option<&str>| match mount.zip(group) {
        Some((mount, group)) => mount.least(root, group, file),
        None => u64::MAX,
    };
    let unified = of_hierarchy("memory.max", mounts.lines().find_map(Mount::of_unified), groups.lines().find_map(group_unified));
    let memory = of_hierarchy("memory.limit_in_bytes", mounts.lines().find_map(Mount::of_memory), groups.lines().find_map(group_of_memory));
    unified.min(memory)
}

/// The group of the process in the unified hierarchy (version 2), from a line of `cgroup`.
fn group_unified(line: &str) -> Option<&str> {
    line.strip_prefix("0::")
}

/// The group of the process in the hierarchy of the memory controller (version 1), from a line of
/// `cgroup`.
fn group_of_memory(line: &str) -> Option<&str> {
    let (controllers, group) = line.split_once(':')?.1.split_once(':')?;
    controllers.split(',').any(|controller| controller == "memory").then_some(group)
}

/// Where a hierarchy of control groups is mounted.
struct Mount<'a> {
    /// The group that the mount shows at its top.
    top: &'a str,
    /// Directory of that group.
    dir: &'a str,
}

impl<'a> Mount<'a> {
    fn of_unified(line: &'a str) -> Option<Self> {
        Self::of(line, |kind, _| kind == "cgroup2")
    }

    fn of_memory(line: &'a str) -> Option<Self> {
        Self::of(line, |kind, options| kind == "cgroup" && options.split(',').any(|option| option == "memory"))
    }

    /// The mount in a line of `mountinfo`, if its type and its super options are those wanted.
    fn of(line: &'a str, is_wanted: impl Fn(&str, &str) -> bool) -> Option<Self> {
        // The number of fields before the dash varies.
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let (kind, options) = (system.next()?, system.nth(1)?);
        let mut fields = mount.split(' ').skip(3);
        let found = Self { top: fields.next()?, dir: fields.next()? };
        is_wanted(kind, options).then_some(found)
    }

    /// The least limit of `group` and its ancestors up to the top of the mount.
    ///
    /// In a container the group may have a name that the mount does not show. The top of the mount
    /// is then the group of the container.
    fn least(&self, root: &Path, group: &str, file: &str) -> u64 {
        let top = root.join(self.dir.trim_start_matches('/'));
        let below = Path::new(group).strip_prefix(self.top).unwrap_or(Path::new(""));
        let is_inside = below.components().all(|part| matches!(part, std::path::Component::Normal(_)));
        let below = if is_inside { below } else { Path::new("") };
        let limit = |dir: PathBuf| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
        below.ancestors().filter_map(|group| limit(top.join(group))).min().unwrap_or(u64::MAX)
    }
}

/// File descriptors reserved for one open store. Other stores of this process cannot reserve them.
#[derive(Debug)]
pub(crate) struct Descriptors(u64);

/// Sum of all live [`Descriptors`].
static RESERVED: Mutex<u64> = Mutex::new(0);

impl Descriptors {
    /// Makes sure that `count` more descriptors can be opened, even after all other stores opened
    /// theirs. Raises the process's soft limit towards the hard one if necessary. Fails with the
    /// limit that is too low.
    pub(crate) fn reserve(count: u64) -> Result<Self, u64> {
        let mut reserved = lock(&RESERVED);
        // Descriptors that other stores reserved and already opened are counted twice.
        let needed = count + *reserved + fs::read_dir("/proc/self/fd").map_or(0, |open| open.count() as u64);
        let limits = getrlimit(Resource::Nofile);
        let most = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
        if most(limits.current) < needed {
            if most(limits.maximum) < needed {
                return Err(most(limits.maximum));
            }
            setrlimit(Resource::Nofile, Rlimit { current: Some(needed), ..limits }).map_err(|_| most(limits.current))?;
        }
        *reserved += count;
        Ok(Self(count))
    }
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        *lock(&RESERVED) -= self.0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limit under a made root, with these files.
    fn limit_with(files: &[(&str, &str)]) -> u64 {
        let root = tempfile::tempdir().unwrap();
        for (name, contents) in files {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        group_memory_max(root.path())
    }

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
    const V1: &str = "22 1 8:1 / / rw - ext4 /dev/vda rw\n36 31 0:33 /docker/7f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";

    #[test]
    fn the_least_limit_of_a_group_and_its_ancestors_counts() {
        let proc = [("proc/self/cgroup", "0::/a/b/c\n"), ("proc/self/mountinfo", V2)];
        let with = |limits: &[(&str, &str)]| limit_with(&[&proc, limits].concat());
        let [a, b, c] = ["sys/fs/cgroup/a/memory.max", "sys/fs/cgroup/a/b/memory.max", "sys/fs/cgroup/a/b/c/memory.max"];
        assert_eq!(with(&[(a, "max\n"), (b, "max\n"), (c, "1073741824\n")]), 1 << 30);
        assert_eq!(with(&[(a, "max\n"), (b, "536870912\n"), (c, "1073741824\n")]), 512 << 20);
        assert_eq!(with(&[(a, "4096\n"), (c, "max\n")]), 4096);
        assert_eq!(with(&[(a, "max\n")]), u64::MAX);
        assert_eq!(with(&[("sys/fs/cgroup/other/memory.max", "4096\n")]), u64::MAX);
    }

    #[test]
    fn a_container_sees_the_limit_of_its_own_group() {
        // With a namespace of its own, its group is the root.
        let v2 = [("proc/self/cgroup", "0::/\n"), ("proc/self/mountinfo", V2), ("sys/fs/cgroup/memory.max", "268435456\n")];
        assert_eq!(limit_with(&v2), 256 << 20);
        // The process was moved to a group outside the namespace.
        assert_eq!(limit_with(&[("proc/self/cgroup", "0::/../other\n"), v2[1], v2[2]]), 256 << 20);
        // Without one, the mount shows a part of the hierarchy.
        let v1 = |group| {
            limit_with(&[
                ("proc/self/cgroup", group),
                ("proc/self/mountinfo", V1),
                ("sys/fs/cgroup/memory/memory.limit_in_bytes", "134217728\n"),
                ("sys/fs/cgroup/memory/sub/memory.limit_in_bytes", "9223372036854771712\n"),
            ])
        };
        for group in ["9:cpu:/x\n5:memory:/docker/7f\n", "5:hugetlb,memory:/docker/7f/sub\n", "5:memory:/elsewhere\n"] {
            assert_eq!(v1(group), 128 << 20, "{group}");
        }
    }

    #[test]
    fn files_that_say_nothing_limit_nothing() {
        assert_eq!(limit_with(&[]), u64::MAX);
        let odd = "x\n\n0\n1 2 3 - cgroup2\n - \n1 2 3 / /m rw - cgroup2 a b\n";
        assert_eq!(limit_with(&[("proc/self/cgroup", "0\n:\n::\n0::\n"), ("proc/self/mountinfo", odd), ("m/memory.max", "-7")]), u64::MAX);
        assert!(memory_max() > 1 << 20, "this test has memory");
    }

    #[test]
    fn descriptors_of_all_stores_are_counted_together() {
        let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 40);
        let Err(limit) = Descriptors::reserve(hard) else { panic!("more than there can be") };
        assert_eq!(limit, hard);
        let half = Descriptors::reserve(hard / 2).unwrap();
        assert!(Descriptors::reserve(hard / 2).is_err());
        drop(half);
        Descriptors::reserve(hard / 2).unwrap();
    }
}
