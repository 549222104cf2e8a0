//! Crashes: the images that a kill and a power cut leave.

use std::mem;

use super::random::{Random, draw};
use super::{DiskOp, Machine, SimDisk};

/// How a power cut treats unsynced changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PowerCut {
    KeepAll,
    LoseAll,
    /// By seed: some files whole, some not at all, some page by page, some pages sector by sector.
    Random,
}

impl SimDisk {
    /// The disk as the next process finds it if this one is killed now, or was killed at the stop.
    pub(crate) fn after_kill(&self) -> Self {
        let mut image = self.machine().clone();
        image.freeze();
        if let Some(op) = image.in_flight.take() {
            image.interrupt(op);
        }
        Self::from_machine(image.restarted())
    }

    /// The disk as the next boot finds it if power fails now, or failed at the stop.
    pub(crate) fn after_power_cut(&self, seed: u64, damage: PowerCut) -> Self {
        let image = self.after_cache_loss(seed, damage);
        image.machine().boot_id += 1;
        image
    }

    /// The disk after a power cut, or by seed after a loss of the page cache alone. The engine must
    /// not tell the difference.
    #[cfg(test)]
    pub(crate) fn after_loss(&self, seed: u64, damage: PowerCut) -> Self {
        if seed.is_multiple_of(2) { self.after_power_cut(seed, damage) } else { self.after_cache_loss(seed, damage) }
    }

    /// The disk as the next process finds it if the file system is shut down and mounted again, now
    /// or at the stop. The operating system goes on, so the boot id stays.
    pub(crate) fn after_cache_loss(&self, seed: u64, damage: PowerCut) -> Self {
        let mut image = self.machine().clone();
        image.freeze();
        match image.in_flight.take() {
            // The draw below covers every subset of the changes that the sync would make durable.
            None | Some(DiskOp::Sync { .. } | DiskOp::SyncDir) => {}
            Some(op) => drop(image.apply(&op)),
        }
        image.lose_power(seed, damage);
        Self::from_machine(image.restarted())
    }
}

impl Machine {
    /// Applies an operation as far as the operating system performed it when its process was
    /// killed.
    fn interrupt(&mut self, op: DiskOp) {
        match op {
            DiskOp::Write { file, offset, bytes } => self.write_part(file, offset, &bytes),
            DiskOp::Create { ref name, .. } if self.random.coin() => drop(self.find_or_create(name)),
            op if self.random.coin() => drop(self.apply(&op)),
            _ => {}
        }
    }

    /// Keeps a subset of the unsynced changes.
    fn lose_power(&mut self, seed: u64, damage: PowerCut) {
        const DIRECTORY: u64 = u64::MAX;
        let cut = Cut { seed, damage };
        for (index, change) in mem::take(&mut self.unsynced_names).into_iter().enumerate() {
            if cut.keeps(DIRECTORY, index as u64, 0) {
                change.apply(&mut self.durable_names);
            }
        }
        self.names.clone_from(&self.durable_names);
        for (number, file) in self.files.iter_mut().enumerate() {
            file.lose_power(|page, change| cut.keeps(number as u64, page, change));
            file.is_marked = false;
        }
    }

    /// The same directory under a new process, without the plans for the old one.
    fn restarted(self) -> Self {
        Self {
            random: Random(draw(&[self.random.0, self.operations])),
            locked: false,
            operations: 0,
            stop_at: u64::MAX,
            stop_after_fault: None,
            stopped: false,
            in_flight: None,
            faults: Vec::new(),
            faults_injected: 0,
            stuck: None,
            ..self
        }
    }
}

/// One power cut. It decides for each unsynced change whether it survives.
struct Cut {
    seed: u64,
    damage: PowerCut,
}

impl Cut {
    /// Draws for the file first, then for the page, then for the change. So all changes of a file
    /// or of a page often share one fate, which a fair coin for each of many sectors would never
    /// show.
    fn keeps(&self, file: u64, page: u64, change: u64) -> bool {
        match self.damage {
            PowerCut::KeepAll => true,
            PowerCut::LoseAll => false,
            PowerCut::Random => {
                let fates: [&[u64]; 2] = [&[self.seed, file], &[self.seed, file, page]];
                for fate in fates {
                    match draw(fate) % 4 {
                        0 => return false,
                        1 => return true,
                        _ => {}
                    }
                }
                draw(&[self.seed, file, page, change]).is_multiple_of(2)
            }
        }
    }
}
