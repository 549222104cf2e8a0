//! What a sealed segment holds: from its footer, and where that is damaged from the records themselves.

use std::io;

use super::footer::{self, Entry};
use super::format::{self, DATA_START, Kind};
use super::table::Row;
use crate::codec::{round_down, round_up};
use crate::id::{KeyHash, StoreId};
use crate::io::aligned::AlignedBuf;
use crate::io::{BLOCK, File, SECTOR};

/// All entries of a sealed segment in the order of their positions, and how many stretches of it are lost: neither a footer block nor the records it described verify.
pub(crate) fn entries(store: StoreId, row: &Row, hash_seed: u64, file: &dyn File) -> io::Result<(Vec<Entry>, u64)> {
    let block = BLOCK as u64;
    let trailer_at = row.size - block;
    let mut trailer = AlignedBuf::zeroed(BLOCK);
    file.read_at(trailer_at, &mut trailer)?;
    let stated = format::decode_trailer(store, &trailer).filter(|(life, _)| *life == row.life).map(|(_, t)| t);
    let footer_at = match stated {
        Some(trailer) => trailer_at.saturating_sub(u64::from(trailer.footer_blocks) * block),
        None => first_footer_block(store, row, file)?,
    };
    let data_end = stated.map_or(footer_at as u32, |t| t.data_end);
    let mut bytes = AlignedBuf::zeroed((trailer_at - footer_at).max(block) as usize);
    if footer_at < trailer_at {
        file.read_at(footer_at, &mut bytes)?;
    }
    let (mut entries, mut lost, mut known_to, mut gap) = (Vec::new(), 0, DATA_START, false);
    for (i, chunk) in bytes[..(trailer_at - footer_at) as usize].chunks_exact(BLOCK).enumerate() {
        let at = row.life.base.plus(footer_at + (i * BLOCK) as u64);
        let Some(block_entries) = footer::decode_block(store, at, chunk) else {
            gap = true;
            continue;
        };
        if let (true, Some(first)) = (gap, block_entries.first()) {
            lost += scan(store, row, hash_seed, file, known_to..first.offset, &mut entries)?;
            gap = false;
        }
        known_to = block_entries.last().map_or(known_to, |e| e.offset + e.len);
        entries.extend(block_entries);
    }
    if gap || (stated.is_none() && footer_at == trailer_at) {
        lost += scan(store, row, hash_seed, file, known_to..data_end, &mut entries)?;
    }
    Ok((entries, lost))
}

/// Where the footer begins, found without a trailer: before the last block, as far as blocks verify.
fn first_footer_block(store: StoreId, row: &Row, file: &dyn File) -> io::Result<u64> {
    let mut at = row.size - BLOCK as u64;
    let mut block = AlignedBuf::zeroed(BLOCK);
    while at > u64::from(DATA_START) + BLOCK as u64 {
        file.read_at(at - BLOCK as u64, &mut block)?;
        if footer::decode_block(store, row.life.base.plus(at - BLOCK as u64), &block).is_none() {
            break;
        }
        at -= BLOCK as u64;
    }
    Ok(at)
}

/// Adds the records in `range`, one after the other. 1 if a record does not verify, which ends the scan.
fn scan(
    store: StoreId,
    row: &Row,
    hash_seed: u64,
    file: &dyn File,
    range: std::ops::Range<u32>,
    entries: &mut Vec<Entry>,
) -> io::Result<u64> {
    if range.is_empty() {
        return Ok(0);
    }
    let start = round_down(range.start.into(), SECTOR as u64);
    let end = round_up(range.end.into(), SECTOR as u64).min(row.size);
    let mut bytes = AlignedBuf::zeroed((end - start) as usize);
    file.read_at(start, &mut bytes)?;
    let mut offset = range.start;
    while offset < range.end {
        let here = &bytes[(u64::from(offset) - start) as usize..];
        let at = row.life.base.plus(offset.into());
        let Some(record) = format::decode_record(store, at, row.life.base_lsn, here) else { return Ok(1) };
        let (hash, tombstone) = match &record.kind {
            Kind::Put { key, .. } => (KeyHash::of(hash_seed, &here[key.clone()]), false),
            Kind::Tombstone(hash) => (*hash, true),
        };
        entries.push(Entry { hash, offset, len: record.len as u32, lsn: record.lsn, tombstone });
        offset += record.len as u32;
    }
    Ok(0)
}
