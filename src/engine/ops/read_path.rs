//! The memory that reads use: the memory tier, the buffers of device reads, and their meters.
//!
//! Reads that are in flight may take a 64th of the memory budget, and at least 1 MiB. Beyond that,
//! calls that read many keys read one record at a time. A pool keeps the buffers of small reads for
//! later reads.

use crate::io::aligned::{AlignedBuf, BufferPool, Meter};
use crate::tier::memory::MemoryTier;

/// Buffers of reads in flight may take one byte in this many of the memory budget.
const IN_FLIGHT_SHARE: u64 = 64;
/// Bytes that buffers of reads in flight may take under any budget.
const IN_FLIGHT_BYTES_MIN: u64 = 1 << 20;

/// The memory tier, and the buffers and meters of reads.
#[derive(Debug)]
pub(in crate::engine) struct ReadPath {
    memory: MemoryTier,
    /// Counts the bytes of buffers of reads in flight.
    in_flight: Meter,
    /// Buffers that are kept for later reads.
    pool: BufferPool,
    /// Counts the bytes of values in the memory tier and in handles of users.
    values: Meter,
}

impl ReadPath {
    pub(in crate::engine) fn new(memory: MemoryTier, pool: BufferPool) -> Self {
        Self { memory, in_flight: Meter::default(), pool, values: Meter::default() }
    }

    pub(in crate::engine) fn memory(&self) -> &MemoryTier {
        &self.memory
    }

    /// The meter for the bytes of values in the memory tier and in handles of users.
    pub(in crate::engine) fn values(&self) -> &Meter {
        &self.values
    }

    /// A buffer for a read of `len` bytes.
    pub(in crate::engine) fn buffer(&self, len: usize) -> AlignedBuf {
        self.pool.take(len, &self.in_flight)
    }

    /// Whether the buffers of reads in flight take their whole share of a budget of `memory` bytes.
    /// The caller then reads one record at a time.
    pub(in crate::engine) fn is_full(&self, memory: u64) -> bool {
        self.in_flight.bytes() >= (memory / IN_FLIGHT_SHARE).max(IN_FLIGHT_BYTES_MIN)
    }

    /// Bytes of DRAM in buffers: those of reads in flight, and the most that the pool keeps.
    pub(in crate::engine) fn buffer_bytes(&self) -> u64 {
        self.in_flight.bytes() + self.pool.bytes_max()
    }

    /// Bytes of values that users hold and the memory tier does not.
    pub(in crate::engine) fn kept_value_bytes(&self) -> u64 {
        self.values.bytes().saturating_sub(self.memory.value_bytes())
    }
}
