//! Self-describing keys and values: every byte can be verified.
//!
//! A value is `key: u32, len: u32, version: u64`, little-endian, followed by pseudo-random bytes
//! that are a function of the key and the version.

use super::random::{mix, words};

/// Bytes of the shortest value: its header.
pub(crate) const VALUE_LEN_MIN: usize = 16;
/// Bytes of the shortest key: its mixed number.
pub(crate) const KEY_LEN_MIN: usize = 8;

/// Writes the key with number `key` into `buffer`: `len` bytes, but at least [`KEY_LEN_MIN`].
/// Different numbers give different keys at every length.
pub(crate) fn write_key(buffer: &mut Vec<u8>, key: u32, len: usize) {
    buffer.clear();
    buffer.extend_from_slice(&mix(u64::from(key) + 1).to_le_bytes());
    fill(buffer, len.max(KEY_LEN_MIN), words(u64::from(key), 0));
}

/// Writes the value of this version of `key` into `buffer`: `len` bytes, but at least
/// [`VALUE_LEN_MIN`].
pub(crate) fn write_value(buffer: &mut Vec<u8>, key: u32, version: u64, len: usize) {
    let len = len.max(VALUE_LEN_MIN);
    buffer.clear();
    buffer.extend_from_slice(&key.to_le_bytes());
    buffer.extend_from_slice(&(len as u32).to_le_bytes());
    buffer.extend_from_slice(&version.to_le_bytes());
    fill(buffer, len, words(u64::from(key), version));
}

/// The version that `value` states, if every byte of `value` is right for `key` and that version.
pub(crate) fn verify_value(value: &[u8], key: u32) -> Option<u64> {
    let version = stated_version(value, key)?;
    let body_holds = value[VALUE_LEN_MIN..]
        .chunks(8)
        .zip(words(u64::from(key), version))
        .all(|(chunk, word)| *chunk == word.to_le_bytes()[..chunk.len()]);
    body_holds.then_some(version)
}

/// The version that the header of `value` states, if the header names `key` and the length of
/// `value`. Does not check the bytes behind the header.
pub(crate) fn stated_version(value: &[u8], key: u32) -> Option<u64> {
    let (stored_key, rest) = value.split_first_chunk()?;
    let (stored_len, rest) = rest.split_first_chunk()?;
    let (version, _) = rest.split_first_chunk()?;
    let holds = u32::from_le_bytes(*stored_key) == key && u32::from_le_bytes(*stored_len) as usize == value.len();
    holds.then_some(u64::from_le_bytes(*version))
}

/// Extends `buffer` to `len` bytes from `words`, little-endian; the last word may be cut.
fn fill(buffer: &mut Vec<u8>, len: usize, mut words: impl Iterator<Item = u64>) {
    let from = buffer.len();
    buffer.resize(len.max(from), 0);
    let (whole, rest) = buffer[from..].as_chunks_mut::<8>();
    for (chunk, word) in whole.iter_mut().zip(&mut words) {
        *chunk = word.to_le_bytes();
    }
    let last = words.next().unwrap_or(0).to_le_bytes();
    rest.copy_from_slice(&last[..rest.len()]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_states_its_version() {
        for len in [0, 16, 17, 23, 24, 300, 65_536] {
            let mut value = Vec::new();
            write_value(&mut value, 7, 41, len);
            assert_eq!(value.len(), len.max(VALUE_LEN_MIN));
            assert_eq!(verify_value(&value, 7), Some(41));
        }
    }

    #[test]
    fn every_changed_byte_and_every_truncation_is_detected() {
        let mut value = Vec::new();
        write_value(&mut value, 7, 41, 45);
        for at in 0..value.len() {
            assert_eq!(verify_value(&value[..at], 7), None, "truncated at {at}");
            value[at] ^= 1;
            assert_eq!(verify_value(&value, 7), None, "changed at {at}");
            value[at] ^= 1;
        }
    }

    #[test]
    fn the_value_of_another_key_is_refused() {
        let mut value = Vec::new();
        write_value(&mut value, 7, 41, 100);
        assert_eq!(verify_value(&value, 8), None);
    }

    #[test]
    fn keys_differ_and_have_the_length_asked_for() {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        write_key(&mut a, 1, 40);
        write_key(&mut b, 2, 40);
        assert_eq!((a.len(), b.len()), (40, 40));
        assert_ne!(a[..KEY_LEN_MIN], b[..KEY_LEN_MIN]);
        write_key(&mut a, 1, 0);
        assert_eq!(a.len(), KEY_LEN_MIN);
    }
}
