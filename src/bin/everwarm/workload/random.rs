//! Pseudo-random numbers that are the same in every process, so that a reader can recompute the
//! bytes of a value.

/// SplitMix64's finalizer (Steele, Lea, Flood, 2014). It is a bijection: different numbers stay
/// different.
pub(crate) const fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// An endless stream of pseudo-random words, seeded with two numbers.
pub(crate) fn words(a: u64, b: u64) -> impl Iterator<Item = u64> {
    const GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;
    let mut state = mix(a.wrapping_add(GAMMA)) ^ b;
    std::iter::repeat_with(move || {
        state = state.wrapping_add(GAMMA);
        mix(state)
    })
}
