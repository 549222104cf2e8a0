//! Checks that every backend of [`Disk`] passes. The engine is tested on one backend and used on
//! another, and relies on the checked behaviour only.

use std::sync::atomic::Ordering::Relaxed;

use super::aligned::AlignedBuf;
use super::directory::Directory;
use super::overlay::Overlay;
use super::posix::PosixDisk;
use super::sim::{ReadOnly, SimDisk};
use super::*;
use crate::config::Backend;

const LEN: u64 = 8 * BLOCK as u64;

fn filled(byte: u8) -> AlignedBuf {
    let mut block = AlignedBuf::zeroed(BLOCK);
    block.fill(byte);
    block
}

fn bytes(file: &dyn File, offset: u64, len: usize) -> io::Result<AlignedBuf> {
    let mut buf = AlignedBuf::zeroed(len);
    file.read_at(offset, &mut buf).map(|()| buf)
}

fn is(file: &dyn File, offset: u64, len: usize, byte: u8) -> bool {
    bytes(file, offset, len).unwrap().iter().all(|b| *b == byte)
}

fn files(disk: &dyn Disk) {
    assert_eq!(disk.list().unwrap(), []);
    for missing in [disk.open("a").unwrap_err(), disk.remove("a").unwrap_err()] {
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
    let file = create(disk, "a", LEN).unwrap();
    assert_eq!(create(disk, "a", LEN).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    assert_eq!((file.len(), disk.list().unwrap()), (LEN, vec![("a".to_owned(), LEN)]));
    assert!(is(&*file, 0, LEN as usize, 0), "bytes that were never written are zero");
    file.write_at(2 * BLOCK as u64, &filled(7)).unwrap();
    file.sync().unwrap();
    disk.sync_dir().unwrap();
    let other = disk.open("a").unwrap();
    assert!(is(&*other, 2 * BLOCK as u64 + SECTOR as u64, 3 * SECTOR, 7), "part of a block, through another handle");
    assert!(is(&*other, 3 * BLOCK as u64 - SECTOR as u64, SECTOR, 7) && is(&*other, 3 * BLOCK as u64, SECTOR, 0));
    assert!(bytes(&*file, LEN - SECTOR as u64, 2 * SECTOR).is_err(), "whole or not at all");
    assert_eq!(resize(disk, "a", 2 * LEN).unwrap().len(), 2 * LEN);
    let longer = disk.open("a").unwrap();
    assert!(is(&*longer, 2 * BLOCK as u64, BLOCK, 7) && is(&*longer, LEN, LEN as usize, 0), "it keeps its content");
    assert_eq!(resize(disk, "a", 3 * BLOCK as u64).unwrap().len(), 3 * BLOCK as u64);
    assert!(is(&*disk.open("a").unwrap(), 2 * BLOCK as u64, BLOCK, 7));
    // A handle outlives the name.
    create(disk, "b", LEN).unwrap();
    disk.remove("a").unwrap();
    assert_eq!(disk.list().unwrap(), [("b".to_owned(), LEN)]);
    assert!(is(&*other, 2 * BLOCK as u64, BLOCK, 7));
    assert!(is(&*create(disk, "a", LEN).unwrap(), 0, LEN as usize, 0), "a new file of that name is another one");
    // `rename` gives a name to another file.
    let new = resize(disk, "b", LEN).unwrap();
    new.write_at(0, &filled(9)).unwrap();
    assert_eq!(disk.rename("absent", "a").unwrap_err().kind(), io::ErrorKind::NotFound);
    disk.rename("b", "a").unwrap();
    assert_eq!(disk.list().unwrap(), [("a".to_owned(), LEN)]);
    new.write_at(BLOCK as u64, &filled(8)).unwrap();
    let renamed = disk.open("a").unwrap();
    assert!(is(&*renamed, 0, BLOCK, 9) && is(&*renamed, BLOCK as u64, BLOCK, 8), "handles stay valid");
    disk.remove("a").unwrap();
    disk.sync_dir().unwrap();
}

fn mappings(disk: &dyn Disk) {
    let words = |mapping: &dyn Mapping| mapping.words().iter().map(|word| word.load(Relaxed)).collect::<Vec<u64>>();
    let (view, lost) = disk.view("ring", LEN).unwrap();
    assert!(lost && words(&*view).iter().all(|word| *word == 0), "there is no file");
    let (ring, fresh) = disk.map("ring", LEN).unwrap();
    assert!(fresh && ring.words().len() as u64 * 8 == LEN && words(&*ring).iter().all(|word| *word == 0));
    ring.words()[5].store(9, Relaxed);
    let (again, fresh) = disk.map("ring", LEN).unwrap();
    assert!(!fresh && again.words()[5].load(Relaxed) == 9, "stores are there at once");
    let (view, lost) = disk.view("ring", LEN).unwrap();
    assert!(!lost && view.words()[5].load(Relaxed) == 9);
    drop((ring, again));
    let (_, lost) = disk.view("ring", 2 * LEN).unwrap();
    assert!(lost, "it has another length");
    let (ring, fresh) = disk.map("ring", 2 * LEN).unwrap();
    assert!(fresh && words(&*ring).iter().all(|word| *word == 0), "a file of another length is made anew");
    assert_eq!(disk.list().unwrap(), [("ring".to_owned(), 2 * LEN)]);
    drop(ring);
    disk.remove("ring").unwrap();
}

/// A stream of reads whose numbers count up from 0, and its reads that have ended.
struct Each<R> {
    reads: R,
    ended: Vec<StreamRead>,
}

impl<R: Iterator<Item = StreamRead>> ReadStream for Each<R> {
    fn next(&mut self) -> Option<StreamRead> {
        self.reads.next()
    }

    fn ended(&mut self, read: StreamRead) {
        self.ended.push(read);
    }
}

/// Performs `reads` as one stream. Returns them in the order of their numbers, each once.
pub(super) fn read_all(disk: &dyn Disk, reads: impl IntoIterator<Item = StreamRead>) -> Vec<StreamRead> {
    let mut stream = Each { reads: reads.into_iter().fuse(), ended: Vec::new() };
    disk.read_stream(&mut stream);
    stream.ended.sort_by_key(|read| read.number);
    assert!(stream.ended.iter().enumerate().all(|(n, read)| read.number == n), "each ends once");
    stream.ended
}

fn reads(disk: &dyn Disk) {
    let file = create(disk, "a", LEN).unwrap();
    (0..8).for_each(|n| file.write_at(n * BLOCK as u64, &filled(n as u8 + 1)).unwrap());
    let read = |n: u64| StreamRead {
        number: n as usize,
        file: Arc::clone(&file),
        offset: n * BLOCK as u64,
        buf: AlignedBuf::zeroed(BLOCK),
        done: false,
    };
    let is_right =
        |n: u64, read: &StreamRead| read.done == (n < 8) && (!read.done || read.buf.iter().all(|byte| u64::from(*byte) == n + 1));
    let ended = read_all(disk, (0..10).map(read));
    assert!((0..).zip(&ended).all(|(n, read)| is_right(n, read)), "{ended:?}");
    assert!((0..10).all(|n| is_right(n, &pollster::block_on(disk.start_read(read(n))))));
    disk.remove("a").unwrap();
}

fn owners(disk: &dyn Disk) {
    let lock = disk.lock().unwrap();
    assert!(matches!(disk.lock(), Err(LockError::Held { holder }) if holder.contains(&std::process::id().to_string())));
    lock.check().unwrap();
    drop(lock);
    drop(disk.lock().unwrap());
    assert_eq!(disk.boot_id(), disk.boot_id());
}

fn conforms(disk: &dyn Disk) {
    files(disk);
    mappings(disk);
    reads(disk);
    owners(disk);
}

#[test]
fn the_simulated_disk_conforms() {
    conforms(&SimDisk::new(1));
}

#[test]
fn real_disks_conform() {
    for backend in [Backend::Auto, Backend::Portable] {
        let dir = tempfile::tempdir().unwrap();
        conforms(&PosixDisk::new(Directory::open(dir.path(), true).unwrap(), backend, 4, 2).unwrap());
    }
}

#[test]
fn an_overlay_conforms_but_takes_no_lock() {
    let unlocked = |disk: &dyn Disk| {
        files(disk);
        mappings(disk);
        reads(disk);
        assert!(disk.lock().is_ok() && disk.lock().is_ok());
    };
    unlocked(&Overlay::new(Arc::new(ReadOnly::new(SimDisk::new(1)))));
    for backend in [Backend::Auto, Backend::Portable] {
        let dir = tempfile::tempdir().unwrap();
        let below = PosixDisk::new(Directory::open(dir.path(), false).unwrap(), backend, 4, 2).unwrap();
        unlocked(&Overlay::new(Arc::new(below)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written below");
    }
}

#[test]
fn an_overlay_shows_the_disk_below_with_its_own_changes() {
    let sim = SimDisk::new(1);
    let made = |name: &str, byte: u8| {
        let file = create(&sim, name, LEN).unwrap();
        (0..8).for_each(|n| file.write_at(n * BLOCK as u64, &filled(byte)).unwrap());
    };
    [("kept", 1), ("removed", 2), ("moved", 3), ("ring", 4)].into_iter().for_each(|(name, byte)| made(name, byte));
    let disk = Overlay::new(Arc::new(ReadOnly::new(sim.clone())));
    let kept = disk.open("kept").unwrap();
    kept.write_at(BLOCK as u64, &filled(9)).unwrap();
    let is_right = |file: &dyn File| {
        is(file, 0, BLOCK, 1)
            && is(file, BLOCK as u64, BLOCK, 9)
            && is(file, 2 * BLOCK as u64, 6 * BLOCK, 1)
            && bytes(file, BLOCK as u64 - SECTOR as u64, 2 * SECTOR).unwrap()[..] == [[1; SECTOR], [9; SECTOR]].concat()
    };
    assert!(is_right(&*kept) && is_right(&*disk.open("kept").unwrap()));
    // Bytes that the file below holds already take no memory, also if they replace others.
    assert_eq!(disk.bytes_in_memory(), BLOCK as u64);
    disk.open("moved").unwrap().write_at(0, &filled(3)).unwrap();
    assert_eq!(disk.bytes_in_memory(), BLOCK as u64);
    disk.remove("removed").unwrap();
    disk.rename("moved", "other").unwrap();
    assert_eq!(disk.open("removed").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert!(is(&*disk.open("other").unwrap(), 0, LEN as usize, 3));
    assert_eq!(disk.list().unwrap(), [("kept", LEN), ("other", LEN), ("ring", LEN)].map(|(name, len)| (name.to_owned(), len)));
    // A shorter file that becomes longer again has lost its end.
    disk.resize_raw("other", BLOCK as u64).unwrap();
    let longer = disk.resize_raw("other", 3 * BLOCK as u64).unwrap();
    assert!(is(&*longer, 0, BLOCK, 3) && is(&*longer, BLOCK as u64, 2 * BLOCK, 0));
    // The ring below may change after it was first looked at, and so may a file after it was
    // copied.
    let word = |mapping: &dyn Mapping| mapping.words()[7].load(Relaxed);
    let before = disk.view("ring", LEN).unwrap().0;
    disk.pin("kept", 0, 3 * BLOCK as u64).unwrap();
    sim.map("ring", LEN).unwrap().0.words()[7].store(1, Relaxed);
    sim.open("kept").unwrap().write_at(0, &filled(8)).unwrap();
    assert_eq!((word(&*before), word(&*disk.view("ring", LEN).unwrap().0)), (0x0404_0404_0404_0404, 0x0404_0404_0404_0404));
    assert!(is_right(&*kept));
    disk.map("ring", LEN).unwrap().0.words()[7].store(2, Relaxed);
    assert_eq!((word(&*disk.view("ring", LEN).unwrap().0), word(&*sim.view("ring", LEN).unwrap().0)), (2, 1));
}
