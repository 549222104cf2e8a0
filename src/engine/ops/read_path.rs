//! The memory that reads use: the memory tier, and the buffers of reads of flash.

use crate::io::aligned::{AlignedBuf, BufferPool, Meter};
use crate::tier::memory::MemoryTier;

/// One byte in this many of the memory budget may be buffers of reads in flight.
const IN_FLIGHT_SHARE: u64 = 64;
/// Buffers of reads in flight may take this much in any case.
const IN_FLIGHT_BYTES_MIN: u64 = 1 << 20;

/// See the module.
#[derive(Debug)]
pub(in crate::engine) struct ReadPath {
    memory: MemoryTier,
    /// Buffers of reads in flight.
    in_flight: Meter,
    /// Buffers that are kept for the next read.
    pool: BufferPool,
    /// Values in the memory tier and in the hands of users.
    values: Meter,
}

impl ReadPath {
    pub(in crate::engine) fn new(memory: MemoryTier, pool: BufferPool) -> Self {
        Self { memory, in_flight: Meter::default(), pool, values: Meter::default() }
    }

    pub(in crate::engine) fn memory(&self) -> &MemoryTier {
        &self.memory
    }

    /// Counts the bytes of values.
    pub(in crate::engine) fn values(&self) -> &Meter {
        &self.values
    }

    /// A buffer for a read of `len` bytes.
    pub(in crate::engine) fn buffer(&self, len: usize) -> AlignedBuf {
        self.pool.take(len, &self.in_flight)
    }

    /// Whether the buffers of reads in flight take all that they may of a budget of `memory` bytes.
    /// A caller then reads one record at a time.
    pub(in crate::engine) fn is_full(&self, memory: u64) -> bool {
        self.in_flight.bytes() >= (memory / IN_FLIGHT_SHARE).max(IN_FLIGHT_BYTES_MIN)
    }

    /// Bytes of DRAM that buffers take.
    pub(in crate::engine) fn buffer_bytes(&self) -> u64 {
        self.in_flight.bytes() + self.pool.bytes_max()
    }

    /// Bytes of values that users hold and the memory tier does not.
    pub(in crate::engine) fn kept_value_bytes(&self) -> u64 {
        self.values.bytes().saturating_sub(self.memory.value_bytes())
    }
}
