//! Measures the cost of a phase: elapsed time, processor time and device traffic; also the memory
//! and the descriptors of the process.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of a sector in the kernel's statistics; independent of the device's sector size.
const SECTOR: u64 = 512;

/// Reads the counters of the process and of the store's device.
pub(crate) struct Meter {
    /// The kernel's statistics file of the device that holds the store; none if there is no such
    /// device, as with tmpfs.
    device: Option<PathBuf>,
}

/// Counters at one moment.
pub(crate) struct Reading {
    at: Instant,
    /// Processor time of the whole process, in user and kernel mode.
    cpu: Duration,
    /// Bytes read from and written to the device, by all processes.
    device: Option<(u64, u64)>,
}

/// The difference of two readings: durations, and bytes of the device.
pub(crate) struct Cost {
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
    pub(crate) device_read: Option<u64>,
    pub(crate) device_written: Option<u64>,
}

impl Meter {
    pub(crate) fn new(dir: &Path) -> anyhow::Result<Self> {
        let device = rustix::fs::stat(dir)?.st_dev;
        let stat = PathBuf::from(format!("/sys/dev/block/{}:{}/stat", rustix::fs::major(device), rustix::fs::minor(device)));
        Ok(Self { device: stat.exists().then_some(stat) })
    }

    pub(crate) fn read(&self) -> Reading {
        Reading { at: Instant::now(), cpu: cpu(), device: self.device() }
    }

    /// Bytes read and written, from the third and the seventh number of the device's statistics.
    fn device(&self) -> Option<(u64, u64)> {
        let text = std::fs::read_to_string(self.device.as_ref()?).ok()?;
        let sectors: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
        Some((sectors.get(2)? * SECTOR, sectors.get(6)? * SECTOR))
    }
}

impl Reading {
    pub(crate) fn cost(&self, end: &Self) -> Cost {
        let device = self.device.zip(end.device);
        Cost {
            took: end.at - self.at,
            cpu: end.cpu.saturating_sub(self.cpu),
            device_read: device.map(|((from, _), (to, _))| to.saturating_sub(from)),
            device_written: device.map(|((_, from), (_, to))| to.saturating_sub(from)),
        }
    }
}

fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident anonymous memory of this process in bytes: DRAM that no file backs.
pub(crate) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Number of file descriptors that this process has open.
pub(crate) fn descriptors() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count())
}
