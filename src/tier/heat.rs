//! The bytes of a heat file: which keys were in the memory tier, hottest first, so that a restarted store can refill it. `docs/FORMAT.md` explains them.
//!
#![doc = concat!("```text\n", include_str!("heat.layout.txt"), "```")]
//! Nothing but warmth depends on it: a hash that no longer has an entry is passed over.

use crate::codec::{self, Put, Reader, round_up};
use crate::id::{KeyHash, StoreId};
use crate::io::BLOCK;

/// The table above, as `inspect layout` prints it.
pub(crate) const LAYOUT: &str = include_str!("heat.layout.txt");
const MAGIC: u32 = u32::from_le_bytes(*b"EWHT");
pub(crate) const VERSION: u32 = 1;
const HEAD_LEN: usize = 40;

/// What a heat file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Heat {
    pub(crate) sequence: u64,
    pub(crate) hashes: Vec<KeyHash>,
    pub(crate) proved: usize,
}

impl Heat {
    /// The file's bytes, whole blocks.
    pub(crate) fn encode(&self, store: StoreId) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_LEN + self.hashes.len() * 8 + BLOCK);
        out.put_u32(MAGIC);
        out.put_u32(VERSION);
        out.put_u32(0);
        out.put_u32(self.hashes.len() as u32);
        out.put_u64(store.0);
        out.put_u64(self.sequence);
        out.put_u32(self.proved as u32);
        out.put_u32(0);
        self.hashes.iter().for_each(|hash| out.put_u64(hash.0));
        out.resize(round_up(out.len() as u64, BLOCK as u64) as usize, 0);
        let check = codec::checksum(store, MAGIC, self.sequence, &[&out[12..]]);
        out[8..12].copy_from_slice(&check.to_le_bytes());
        out
    }

    pub(crate) fn decode(store: StoreId, bytes: &[u8]) -> Option<Self> {
        let mut r = Reader::new(bytes);
        if r.u32()? != MAGIC || r.u32()? != VERSION {
            return None;
        }
        let check = r.u32()?;
        let count = r.u32()? as usize;
        let (owner, sequence) = (StoreId(r.u64()?), r.u64()?);
        if owner != store || check != codec::checksum(store, MAGIC, sequence, &[bytes.get(12..)?]) {
            return None;
        }
        let proved = (r.u32()? as usize).min(count);
        r.u32()?;
        let hashes = r.bytes(count.checked_mul(8)?)?.as_chunks::<8>().0.iter();
        Some(Self { sequence, proved, hashes: hashes.map(|b| KeyHash(u64::from_le_bytes(*b))).collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heat_round_trips_and_any_flipped_bit_is_noticed() {
        let heat = Heat { sequence: 3, hashes: (0..700).map(|n| KeyHash(n * 77)).collect(), proved: 30 };
        let bytes = heat.encode(StoreId(4));
        assert_eq!(Heat::decode(StoreId(4), &bytes), Some(heat));
        assert_eq!(Heat::decode(StoreId(5), &bytes), None);
        for bit in (0..bytes.len() * 8).step_by(13) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Heat::decode(StoreId(4), &bad), None, "bit {bit}");
        }
        assert_eq!(Heat::decode(StoreId(4), &bytes[..20]), None);
    }
}
