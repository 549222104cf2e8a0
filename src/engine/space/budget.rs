//! Divides the memory budget while the store is open.

use crate::engine::Engine;
use crate::io::ring::Ring;

impl Engine {
    /// Bytes of DRAM accounted for.
    pub(in crate::engine) fn memory_bytes(&self) -> u64 {
        self.bytes_besides_tier() + self.reads.memory().allocated() + self.context.disk.bytes_in_memory()
    }

    /// Bytes of DRAM of every part but the memory tier.
    fn bytes_besides_tier(&self) -> u64 {
        let settings = &self.context.settings;
        self.index.allocated()
            + Ring::allocated(settings.segment_ring)
            + Ring::allocated(settings.wal_ring)
            + self.reads.buffer_bytes()
            + self.log.lock().allocated()
    }

    /// Gives the memory tier the rest of the budget, after all other parts.
    pub(super) fn balance_memory(&self) {
        self.reads.memory().set_budget(self.context.settings.memory.saturating_sub(self.bytes_besides_tier()));
    }

    /// Whether the index takes more than its share of the budget. Then entries are evicted even if
    /// flash has room for them.
    pub(super) fn index_is_over_budget(&self) -> bool {
        self.index.allocated() > self.context.settings.index_bytes_max
    }
}
