//! Keys and values that say which they are, in every byte.
//!
//! A value is `key: u32, len: u32, mutation: u64`, little-endian, and then bytes that follow from the key and the mutation.

use super::oracle::Mutation;
use super::random::{mix, words};

/// Shortest value: the header.
pub(crate) const VALUE_LEN_MIN: usize = 16;
/// Shortest key: its number.
pub(crate) const KEY_LEN_MIN: usize = 8;

/// Makes `buffer` the key of number `key`. Different numbers give different keys of any length.
pub(crate) fn write_key(buffer: &mut Vec<u8>, key: u32, len: usize) {
    buffer.clear();
    buffer.extend_from_slice(&mix(u64::from(key) + 1).to_le_bytes());
    fill(buffer, len.max(KEY_LEN_MIN), words(u64::from(key), 0));
}

/// Makes `buffer` the value that `mutation` stores under `key`.
pub(crate) fn write_value(buffer: &mut Vec<u8>, key: u32, mutation: Mutation, len: usize) {
    let len = len.max(VALUE_LEN_MIN);
    buffer.clear();
    buffer.extend_from_slice(&key.to_le_bytes());
    buffer.extend_from_slice(&(len as u32).to_le_bytes());
    buffer.extend_from_slice(&mutation.code().to_le_bytes());
    fill(buffer, len, body(key, mutation));
}

/// The mutation that stored `value` under `key`, unless a byte of it is not what that mutation wrote.
pub(crate) fn verify_value(value: &[u8], key: u32) -> Option<Mutation> {
    let (stored_key, rest) = value.split_first_chunk()?;
    let (stored_len, rest) = rest.split_first_chunk()?;
    let (stored_mutation, rest) = rest.split_first_chunk()?;
    let mutation = Mutation::from_code(u64::from_le_bytes(*stored_mutation));
    let header_holds =
        u32::from_le_bytes(*stored_key) == key && u32::from_le_bytes(*stored_len) as usize == value.len() && mutation.is_put();
    let body_holds = || rest.chunks(8).zip(body(key, mutation)).all(|(chunk, word)| *chunk == word.to_le_bytes()[..chunk.len()]);
    (header_holds && body_holds()).then_some(mutation)
}

fn body(key: u32, mutation: Mutation) -> impl Iterator<Item = u64> {
    words(u64::from(key), mutation.code())
}

fn fill(buffer: &mut Vec<u8>, len: usize, mut words: impl Iterator<Item = u64>) {
    while buffer.len() < len {
        let word = words.next().unwrap_or(0).to_le_bytes();
        let wanted = (len - buffer.len()).min(word.len());
        buffer.extend_from_slice(&word[..wanted]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_its_mutation() {
        for len in [0, 16, 17, 23, 24, 300, 65_536] {
            let mut value = Vec::new();
            write_value(&mut value, 7, Mutation::put(41), len);
            assert_eq!(value.len(), len.max(VALUE_LEN_MIN));
            assert_eq!(verify_value(&value, 7), Some(Mutation::put(41)));
        }
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_seen() {
        let mut value = Vec::new();
        write_value(&mut value, 7, Mutation::put(41), 45);
        for at in 0..value.len() {
            assert_eq!(verify_value(&value[..at], 7), None, "cut at {at}");
            value[at] ^= 1;
            assert_eq!(verify_value(&value, 7), None, "changed at {at}");
            value[at] ^= 1;
        }
    }

    #[test]
    fn the_value_of_another_key_is_wrong() {
        let mut value = Vec::new();
        write_value(&mut value, 7, Mutation::put(41), 100);
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
