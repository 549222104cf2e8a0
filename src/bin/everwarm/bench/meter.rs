//! What a phase cost: time, processor, device, memory.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of a sector in the kernel's accounting, whatever the device's are.
const SECTOR: u64 = 512;

/// Reads the counters.
pub(crate) struct Meter {
    /// The statistics of the device that the store lies on, if it lies on one.
    device: Option<PathBuf>,
}

/// Counters at one moment.
pub(crate) struct Reading {
    at: Instant,
    /// Of the whole process, in user and kernel mode.
    cpu: Duration,
    /// Read and written by everybody who uses the device.
    device: Option<(u64, u64)>,
}

/// What went by between two readings.
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

    /// Bytes read and written, the third and the seventh number of the device's statistics.
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

/// Bytes of this process that are in DRAM and belong to no file.
pub(crate) fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib << 10)
}

/// Descriptors that this process has open.
pub(crate) fn descriptors() -> Option<usize> {
    Some(std::fs::read_dir("/proc/self/fd").ok()?.count())
}
