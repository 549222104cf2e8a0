//! Facts about the host: its memory, its processes, and the descriptors that this process may open.

use std::fs;
use std::sync::Mutex;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::concurrent::lock;

/// Bytes of DRAM of this machine.
pub(crate) fn physical_memory() -> u64 {
    let info = rustix::system::sysinfo();
    info.totalram.saturating_mul(u64::from(info.mem_unit))
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
