use std::sync::atomic::Ordering;

use super::*;
use crate::io::aligned::AlignedBuf;

const NAME: &str = "a";
const BLOCKS: u64 = 4;
const LEN: u64 = BLOCKS * BLOCK as u64;
const SECTORS: usize = BLOCK / SECTOR;
const DAMAGES: [PowerCut; 3] = [PowerCut::KeepAll, PowerCut::LoseAll, PowerCut::Random];

/// A disk with one synced file of zeros.
fn prepared(seed: u64) -> (SimDisk, Arc<dyn File>) {
    let disk = SimDisk::new(seed);
    let file = disk.create(NAME, LEN).unwrap();
    file.sync().unwrap();
    disk.sync_dir().unwrap();
    (disk, file)
}

fn write(file: &dyn File, block: u64, fill: u8) -> io::Result<()> {
    let mut buf = AlignedBuf::zeroed(BLOCK);
    buf.fill(fill);
    file.write_at(block * BLOCK as u64, &buf)
}

/// The first byte of each sector of the first block. Asserts that no sector is torn.
fn sectors(disk: &SimDisk) -> Vec<u8> {
    let mut buf = AlignedBuf::zeroed(BLOCK);
    disk.open(NAME).unwrap().read_at(0, &mut buf).unwrap();
    let whole = |sector: &[u8; SECTOR]| sector.iter().all(|byte| *byte == sector[0]);
    assert!(buf.as_chunks().0.iter().all(whole), "a sector does not tear");
    buf.as_chunks::<SECTOR>().0.iter().map(|sector| sector[0]).collect()
}

fn names(disk: &SimDisk) -> Vec<String> {
    disk.files().into_iter().map(|(name, _)| name).collect()
}

fn power_cuts(disk: &SimDisk) -> impl Iterator<Item = SimDisk> {
    (0..300).map(|seed| disk.after_power_cut(seed, PowerCut::Random))
}

#[test]
fn a_synced_write_survives_everything() {
    let (disk, file) = prepared(0);
    write(&*file, 0, 7).unwrap();
    file.sync().unwrap();
    for image in DAMAGES.map(|damage| disk.after_power_cut(1, damage)) {
        assert_eq!(sectors(&image), [7; SECTORS]);
    }
    assert_eq!(sectors(&disk.after_kill()), [7; SECTORS]);
}

#[test]
fn an_unsynced_write_may_be_lost_by_a_power_cut_but_not_by_a_kill() {
    let (disk, file) = prepared(0);
    write(&*file, 0, 7).unwrap();
    let killed = disk.after_kill();
    assert_eq!(sectors(&killed), [7; SECTORS]);
    for run in [&disk, &killed] {
        assert_eq!(sectors(&run.after_power_cut(0, PowerCut::KeepAll)), [7; SECTORS]);
        assert_eq!(sectors(&run.after_power_cut(0, PowerCut::LoseAll)), [0; SECTORS]);
    }
    assert_eq!(sectors(&disk), [7; SECTORS], "an image leaves the run alone");
    assert_eq!(killed.boot_id(), disk.boot_id());
    assert_ne!(disk.after_power_cut(0, PowerCut::KeepAll).boot_id(), disk.boot_id());
}

#[test]
fn unsynced_writes_are_kept_lost_reordered_and_torn() {
    let (disk, file) = prepared(0);
    write(&*file, 0, 1).unwrap();
    write(&*file, 0, 2).unwrap();
    let seen: BTreeSet<_> = power_cuts(&disk).map(|image| sectors(&image)).collect();
    for version in [0, 1, 2] {
        let mixed = |s: &Vec<u8>| s.contains(&version) && s.iter().any(|v| *v != version);
        assert!(seen.iter().any(mixed), "version {version} next to another");
    }
    assert!(seen.contains(&vec![0; SECTORS]) && seen.contains(&vec![2; SECTORS]));

    write(&*file, 1, 3).unwrap();
    let block_1_alone = |image: SimDisk| {
        let mut buf = AlignedBuf::zeroed(SECTOR);
        image.open(NAME).unwrap().read_at(BLOCK as u64, &mut buf).unwrap();
        sectors(&image) == [0; SECTORS] && buf[0] == 3
    };
    assert!(power_cuts(&disk).any(block_1_alone), "the later write alone");
}

#[test]
fn a_power_cut_is_repeated_by_its_seed() {
    let (disk, file) = prepared(0);
    for block in 0..BLOCKS {
        write(&*file, block, 9).unwrap();
    }
    let hashes = || power_cuts(&disk).map(|image| image.image_hash());
    assert!(hashes().eq(hashes()));
    assert!(hashes().collect::<BTreeSet<_>>().len() > 50, "seeds explore");
}

#[test]
fn a_created_name_needs_a_directory_sync() {
    let disk = SimDisk::new(0);
    let file = disk.create(NAME, LEN).unwrap();
    write(&*file, 0, 7).unwrap();
    file.sync().unwrap();
    assert!(names(&disk.after_power_cut(0, PowerCut::LoseAll)).is_empty());
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::KeepAll)), [7; SECTORS]);
    let found: BTreeSet<_> = power_cuts(&disk).map(|image| names(&image).len()).collect();
    assert_eq!(found, BTreeSet::from([0, 1]));
    disk.sync_dir().unwrap();
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [7; SECTORS]);
}

#[test]
fn a_removed_name_may_come_back_until_a_directory_sync() {
    let (disk, _file) = prepared(0);
    disk.remove(NAME).unwrap();
    assert_eq!(disk.remove(NAME).unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(names(&disk.after_power_cut(0, PowerCut::LoseAll)), [NAME]);
    disk.sync_dir().unwrap();
    assert!(names(&disk.after_power_cut(0, PowerCut::LoseAll)).is_empty());
}

#[test]
fn a_file_has_its_old_name_or_its_new_one_until_a_directory_sync() {
    let (disk, _file) = prepared(0);
    write(&*disk.create("new", LEN).unwrap(), 0, 7).unwrap();
    disk.open("new").unwrap().sync().unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(disk.rename("absent", NAME).unwrap_err().kind(), io::ErrorKind::NotFound);
    disk.rename("new", NAME).unwrap();
    assert_eq!((names(&disk), sectors(&disk)), (vec![NAME.to_owned()], vec![7; SECTORS]));
    let found: BTreeSet<_> = power_cuts(&disk).map(|image| (names(&image).len(), sectors(&image))).collect();
    assert_eq!(found, BTreeSet::from([(1, vec![7; SECTORS]), (2, vec![0; SECTORS])]));
    disk.sync_dir().unwrap();
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [7; SECTORS]);
}

#[test]
fn files_used_again_after_a_failed_sync_are_reported() {
    let (disk, file) = prepared(0);
    disk.fail(FaultOp::Write, 1, io::ErrorKind::StorageFull, false);
    write(&*file, 0, 7).unwrap_err();
    file.sync().unwrap();
    assert!(disk.reused().is_empty(), "a shortage may be retried");
    disk.fail(FaultOp::Sync, 1, io::ErrorKind::Other, false);
    file.sync().unwrap_err();
    let next = disk.after_kill();
    assert!(next.reused().is_empty());
    next.open(NAME).unwrap().sync().unwrap();
    assert_eq!((next.reused(), disk.reused()), (vec![NAME.to_owned()], vec![]));
}

#[test]
fn a_length_needs_a_sync() {
    let (disk, file) = prepared(0);
    write(&*file, 0, 7).unwrap();
    file.sync().unwrap();
    let lengths = |disk: &SimDisk| -> BTreeSet<u64> { power_cuts(disk).flat_map(|image| image.files()).map(|(_, len)| len).collect() };
    let shorter = disk.create(NAME, LEN / 2).unwrap();
    assert_eq!(lengths(&disk), BTreeSet::from([LEN / 2, LEN]));
    shorter.sync().unwrap();
    assert_eq!(lengths(&disk), BTreeSet::from([LEN / 2]));

    let new = disk.create("b", LEN).unwrap();
    assert!(lengths(&disk).contains(&0), "a name without its length");
    write(&*new, 0, 7).unwrap();
    disk.sync_dir().unwrap();
    assert_eq!(lengths(&disk), BTreeSet::from([LEN / 2, LEN]));
}

#[test]
fn a_stopped_machine_changes_nothing_more() {
    let (disk, file) = prepared(0);
    let (ring, _) = disk.map("ring", LEN).unwrap();
    ring.words()[0].store(1, Ordering::Relaxed);
    let last = disk.operations();
    write(&*file, 0, 1).unwrap();
    assert_eq!(disk.operations(), last + 1);
    disk.stop_at(last + 2);
    disk.open(NAME).unwrap();
    assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::Other);
    let hash = disk.image_hash();

    ring.words()[0].store(2, Ordering::Relaxed);
    assert!(write(&*file, 0, 2).is_err());
    assert!(file.read_at(0, &mut AlignedBuf::zeroed(BLOCK)).is_err());
    assert!(disk.create("b", LEN).is_err());
    assert!(disk.map("ring", LEN).is_err());
    assert!(disk.remove(NAME).is_err());
    assert!(disk.sync_dir().is_err());
    assert!(disk.open(NAME).is_err());
    assert!(disk.list().is_err());
    assert!(matches!(disk.lock(), Err(LockError::Io(_))));
    assert_eq!(disk.image_hash(), hash);

    let image = disk.after_kill();
    assert_eq!(image.image_hash(), hash);
    assert_eq!(image.operations(), 0, "the next process is counted anew, and runs");
    assert_eq!(image.list().unwrap().len(), 2);
    assert_eq!(image.map("ring", LEN).unwrap().0.words()[0].load(Ordering::Relaxed), 1);
}

#[test]
fn the_write_at_the_stop_may_have_happened_in_part() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let (disk, file) = prepared(seed);
        disk.stop_at(disk.operations() + 1);
        write(&*file, 0, 7).unwrap_err();
        seen.insert(sectors(&disk.after_kill()));
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::KeepAll)), [7; SECTORS]);
        assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0; SECTORS]);
    }
    assert!(seen.contains(&vec![0; SECTORS]) && seen.contains(&vec![7; SECTORS]));
    assert!(seen.iter().any(|s| s.contains(&0) && s.contains(&7)), "torn");
}

#[test]
fn the_creation_at_the_stop_may_have_happened_in_part() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        disk.stop_at(1);
        disk.create(NAME, LEN).unwrap_err();
        seen.insert(disk.after_kill().files());
    }
    let file = |len| vec![(NAME.to_owned(), len)];
    assert_eq!(seen, BTreeSet::from([vec![], file(0), file(LEN)]));
}

#[test]
fn a_failed_sync_is_not_repaired_by_a_second_one() {
    let (disk, file) = prepared(0);
    disk.fail(FaultOp::SyncDroppingPages, 1, io::ErrorKind::Other, false);
    write(&*file, 0, 7).unwrap();
    file.sync().unwrap_err();
    file.sync().unwrap();
    assert_eq!(sectors(&disk), [7; SECTORS], "the page cache still shows it");
    assert_eq!(sectors(&disk.after_kill()), [7; SECTORS]);
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::KeepAll)), [0; SECTORS]);
    write(&*file, 0, 8).unwrap();
    file.sync().unwrap();
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [8; SECTORS]);
}

#[test]
fn a_sync_that_fails_with_pages_kept_makes_nothing_durable() {
    let (disk, file) = prepared(0);
    disk.fail(FaultOp::Sync, 1, io::ErrorKind::Other, false);
    write(&*file, 0, 7).unwrap();
    file.sync().unwrap_err();
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0; SECTORS]);
    file.sync().unwrap();
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [7; SECTORS]);
}

#[test]
fn a_planned_fault_hits_the_nth_operation_of_its_kind() {
    use io::ErrorKind::{Interrupted, PermissionDenied, StorageFull};
    let (disk, file) = prepared(0);
    disk.fail(FaultOp::Write, 2, StorageFull, false);
    disk.fail(FaultOp::Read, 1, Interrupted, true);
    let writes = [0; 3].map(|_| write(&*file, 0, 1).map_err(|e| e.kind()));
    assert_eq!(writes, [Ok(()), Err(StorageFull), Ok(())]);
    for _ in 0..2 {
        let read = file.read_at(0, &mut AlignedBuf::zeroed(BLOCK));
        assert_eq!(read.unwrap_err().kind(), Interrupted);
    }
    assert_eq!(disk.faults_injected(), 3);

    for op in [FaultOp::Open, FaultOp::Create, FaultOp::Remove, FaultOp::SyncDir] {
        disk.fail(op, 1, PermissionDenied, false);
    }
    assert_eq!(disk.open(NAME).unwrap_err().kind(), PermissionDenied);
    assert_eq!(disk.create("b", LEN).unwrap_err().kind(), PermissionDenied);
    assert_eq!(disk.remove(NAME).unwrap_err().kind(), PermissionDenied);
    assert_eq!(disk.sync_dir().unwrap_err().kind(), PermissionDenied);
    assert_eq!(disk.list().unwrap(), [(NAME.to_owned(), LEN), ("b".to_owned(), 0)]);
}

#[test]
fn a_full_disk_refuses_creation_only() {
    let (disk, file) = prepared(0);
    disk.capacity(LEN);
    assert_eq!(disk.create("b", LEN).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.map("c", LEN).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.open("b").unwrap().len(), 0, "the name is left, as posix leaves it");
    write(&*file, BLOCKS - 1, 1).unwrap();
    file.sync().unwrap();
    disk.create(NAME, LEN).unwrap();
    disk.remove(NAME).unwrap();
    disk.create("b", LEN).unwrap();
}

#[test]
fn a_mapping_is_whole_pages_of_the_file() {
    let disk = SimDisk::new(0);
    let (ring, fresh) = disk.map(NAME, LEN).unwrap();
    assert!(fresh);
    assert!(ring.words().as_ptr().addr().is_multiple_of(BLOCK));
    assert_eq!(ring.words().len() as u64 * 8, LEN);
    ring.words()[1].store(0x0102, Ordering::Relaxed);
    let mut buf = AlignedBuf::zeroed(SECTOR);
    disk.open(NAME).unwrap().read_at(0, &mut buf).unwrap();
    assert_eq!(buf[8..10], [2, 1]);

    let before = disk.operations();
    let (again, fresh) = disk.map(NAME, LEN).unwrap();
    assert!(!fresh && disk.operations() == before);
    assert_eq!(again.words()[1].load(Ordering::Relaxed), 0x0102);
    let (other_length, fresh) = disk.map(NAME, LEN / 2).unwrap();
    assert!(fresh && disk.operations() == before + 1);
    assert_eq!(other_length.words()[1].load(Ordering::Relaxed), 0);
}

#[test]
fn mappings_survive_a_kill_whole() {
    let disk = SimDisk::new(0);
    let (ring, _) = disk.map(NAME, LEN).unwrap();
    for word in ring.words() {
        word.store(5, Ordering::Relaxed);
    }
    let (after, fresh) = disk.after_kill().map(NAME, LEN).unwrap();
    assert!(!fresh);
    assert!(after.words().iter().all(|word| word.load(Ordering::Relaxed) == 5));
    after.words()[0].store(6, Ordering::Relaxed);
    assert_eq!(ring.words()[0].load(Ordering::Relaxed), 5, "an image has its own memory");
}

#[test]
fn a_power_cut_leaves_a_mapping_partly_written_back() {
    let disk = SimDisk::new(0);
    let (ring, _) = disk.map(NAME, LEN).unwrap();
    disk.sync_dir().unwrap();
    for word in ring.words() {
        word.store(u64::from_le_bytes([5; 8]), Ordering::Relaxed);
    }
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::KeepAll)), [5; SECTORS]);
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0; SECTORS]);
    let torn = |image: SimDisk| sectors(&image).contains(&0) && sectors(&image).contains(&5);
    assert!(power_cuts(&disk).any(torn));
}

#[test]
fn the_lock_has_one_holder() {
    let disk = SimDisk::new(0);
    let held = disk.lock().unwrap();
    let pid = std::process::id();
    assert!(matches!(disk.clone().lock(), Err(LockError::Held { holder }) if holder == format!("process {pid}")));
    disk.after_kill().lock().expect("a dead process holds nothing");
    drop(held);
    disk.lock().unwrap();
}

#[test]
fn damage_reaches_the_cache_and_the_medium() {
    let (disk, file) = prepared(0);
    write(&*file, 0, 7).unwrap();
    let hash = disk.image_hash();
    for offset in 0..BLOCK as u64 {
        disk.corrupt(NAME, offset, 0x10);
    }
    assert_ne!(disk.image_hash(), hash);
    assert_eq!(sectors(&disk), [0x17; SECTORS]);
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0x10; SECTORS]);
    file.sync().unwrap();
    assert_eq!(sectors(&disk.after_power_cut(0, PowerCut::LoseAll)), [0x17; SECTORS]);

    let (ring, _) = disk.map("ring", LEN).unwrap();
    disk.corrupt("ring", 9, 0x10);
    assert_eq!(ring.words()[1].load(Ordering::Relaxed), 0x1000);

    disk.truncate(NAME, 100);
    assert_eq!(disk.files()[0], (NAME.to_owned(), 100));
    assert_eq!(disk.after_power_cut(0, PowerCut::LoseAll).files()[0].1, 100);
    let read = disk.open(NAME).unwrap().read_at(0, &mut AlignedBuf::zeroed(SECTOR));
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_file_has_an_end() {
    let (disk, file) = prepared(0);
    let read = file.read_at(LEN, &mut AlignedBuf::zeroed(SECTOR));
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert_eq!(write(&*file, BLOCKS, 1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert_eq!(disk.open("b").unwrap_err().kind(), io::ErrorKind::NotFound);
}

#[test]
#[should_panic(expected = "a write is whole blocks")]
fn a_write_of_half_a_block_is_our_bug() {
    let (_disk, file) = prepared(0);
    let _panics = file.write_at(0, &AlignedBuf::zeroed(BLOCK / 2));
}

#[test]
#[should_panic(expected = "a read's buffer starts at a sector")]
fn a_read_into_an_unaligned_buffer_is_our_bug() {
    let (_disk, file) = prepared(0);
    let _panics = file.read_at(0, &mut AlignedBuf::zeroed(BLOCK)[8..8 + SECTOR]);
}
