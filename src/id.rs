//! Newtypes for numbers that must not be confused.

use std::fmt;

/// Log sequence number: the version of an entry. It starts at 1, grows with every mutation and is
/// never reused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Lower than the LSN of any mutation.
    pub const ZERO: Self = Self(0);

    /// The next LSN.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// LSNs, positions, and numbers that become one stay below this, so that their sums with lengths do
/// not overflow. A decoder refuses higher ones.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

/// A byte offset in the stream of records. It is never reused, so it identifies one life of one
/// segment and an offset in the segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Position(pub(crate) u64);

impl Position {
    pub(crate) const fn plus(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The number of a segment file. It stays the same in every life of the segment; the base
/// [`Position`] tells the lives apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SegmentId(pub(crate) u32);

impl SegmentId {
    pub(crate) const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for SegmentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The start of a record: its segment file, and the byte offset in it, a multiple of [`UNIT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Location {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
}

/// Records start at multiples of this many bytes. So a location needs three bits less, and a record
/// is whole words.
pub(crate) const UNIT: usize = 8;

/// The LSN of the catalog change that began the current life of a namespace. It is never reused. A
/// drop of the namespace begins a new generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct NamespaceGeneration(pub(crate) u64);

impl NamespaceGeneration {
    /// The first generation of the default namespace, up to its first drop.
    pub(crate) const FIRST: Self = Self(0);
    /// Not the generation of a namespace: that of the handles of a namespace that was removed.
    pub(crate) const REMOVED: Self = Self(u64::MAX - 1);
    /// Not the generation of a namespace: catalog changes are hashed under it.
    pub(crate) const CATALOG: Self = Self(u64::MAX);
}

/// A key as the engine knows it: the user's bytes, in one generation of one namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key<'a> {
    pub(crate) namespace: NamespaceGeneration,
    pub(crate) bytes: &'a [u8],
}

impl<'a, K: AsRef<[u8]> + ?Sized> From<&'a K> for Key<'a> {
    /// A key of the default namespace, in its first generation.
    fn from(bytes: &'a K) -> Self {
        Self { namespace: NamespaceGeneration::FIRST, bytes: bytes.as_ref() }
    }
}

/// Hash of a key under the store's seed. Index, footers and WAL frames hold it instead of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct KeyHash(pub(crate) u64);

impl KeyHash {
    /// XXH3-64 (Collet, 2019) with the random seed of the store, so that keys cannot be chosen to
    /// collide. The namespace generation is mixed into the seed, so no lookup reaches the entries
    /// of a dropped generation.
    pub(crate) fn of(seed: u64, key: Key<'_>) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64_with_seed(key.bytes, seed ^ mix(key.namespace.0)))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): a bijection that maps 0 to 0.
pub(crate) const fn mix(mut n: u64) -> u64 {
    n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

/// Identity of one store, drawn at creation. It is part of the seed of every checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct StoreId(pub(crate) u64);

impl fmt::Display for StoreId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
