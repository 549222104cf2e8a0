//! Turns two signals of the kernel into errors: `SIGBUS` for a mapping, and `SIGXFSZ` for a write.
//!
//! A load or a store in a mapped file raises `SIGBUS` if the file system cannot give the page: it
//! was shut down, the disk is full, or the file became shorter. The handler here looks the address
//! up among the mappings of this module. Is it one of them, the handler puts a page of zeros in its
//! place and marks the mapping as damaged. The interrupted instruction then succeeds, and the owner
//! of the mapping checks the mark before it relies on the bytes. Any other address goes to the
//! handler that was installed before. systemd's journal does the same.
#![allow(unsafe_code, reason = "signal handlers and signal masks have no safe interface")]

use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Once, OnceLock};

use super::registry::Registry;

/// A range of addresses that the handler looks up.
#[derive(Debug, Default)]
struct Range {
    /// First address, 0 while the entry is unused.
    start: AtomicUsize,
    end: AtomicUsize,
    is_damaged: AtomicBool,
    is_taken: AtomicBool,
}

static RANGES: Registry<Range> = Registry::new();
/// The length of a page. The handler must not ask for it.
static PAGE: AtomicUsize = AtomicUsize::new(0);
/// The handler that was installed before.
static PREVIOUS: OnceLock<libc::sigaction> = OnceLock::new();

/// Keeps faults in a range of mapped memory from killing the process, while it lives.
#[derive(Debug)]
pub(super) struct FaultGuard(&'static Range);

impl FaultGuard {
    /// Guards `len` bytes from `start`, a mapping of whole pages.
    pub(super) fn new(start: usize, len: usize) -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        let take = |range: &&Range| !range.is_taken.swap(true, Ordering::AcqRel);
        let range = RANGES.iter().find(take).unwrap_or_else(|| RANGES.add(Range { is_taken: AtomicBool::new(true), ..Range::default() }));
        range.is_damaged.store(false, Ordering::Relaxed);
        range.end.store(start + len, Ordering::Relaxed);
        range.start.store(start, Ordering::Release);
        Self(range)
    }

    /// Whether no load or store in the range has faulted.
    pub(super) fn is_whole(&self) -> bool {
        // Pairs with the release in the handler: a load that saw the zeros also sees the mark.
        !self.0.is_damaged.load(Ordering::Acquire)
    }

    /// Puts zeros of this process alone in the place of the file's pages. Other threads may load
    /// from the range meanwhile.
    pub(super) fn release(&self) {
        self.0.is_damaged.store(true, Ordering::Release);
        let (start, end) = (self.0.start.load(Ordering::Relaxed), self.0.end.load(Ordering::Relaxed));
        let _kept_if_memory_is_short = replace_pages(start, end - start);
    }
}

impl Drop for FaultGuard {
    fn drop(&mut self) {
        self.0.start.store(0, Ordering::Release);
        self.0.is_taken.store(false, Ordering::Release);
    }
}

fn install() {
    PAGE.store(rustix::param::page_size(), Ordering::Relaxed);
    let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call only writes the present action into `previous`.
    let known = unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) } == 0;
    if !known {
        return;
    }
    // SAFETY: the call above filled it.
    let _first = PREVIOUS.set(unsafe { previous.assume_init() });
    // SAFETY: an action of zeros is a valid value, and the fields that matter are set below.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
    action.sa_sigaction = handler as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the handler does only what a handler may do: it reads atomics, calls `mmap`, or calls
    // the handler that was there before.
    unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
}

extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `info` to a handler with `SA_SIGINFO`.
    let info_of_fault = unsafe { &*info };
    // SAFETY: the information of a SIGBUS has an address.
    let address = unsafe { info_of_fault.si_addr() } as usize;
    let holds = |range: &Range| (range.start.load(Ordering::Acquire)..range.end.load(Ordering::Relaxed)).contains(&address);
    if let Some(range) = RANGES.iter().find(|range| range.start.load(Ordering::Relaxed) != 0 && holds(range)) {
        range.is_damaged.store(true, Ordering::Release);
        let page = PAGE.load(Ordering::Relaxed);
        if replace_pages(address / page * page, page) {
            return;
        }
    }
    pass_on(signal, info, context);
}

/// Puts pages of zeros in the place of guarded ones. Keeps `errno`, on which interrupted code may
/// rely.
fn replace_pages(start: usize, len: usize) -> bool {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_FIXED | libc::MAP_ANONYMOUS | libc::MAP_PRIVATE);
    // SAFETY: the location of this thread's `errno` is always valid.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above.
    let before = unsafe { *errno };
    // SAFETY: the pages lie in a mapping that a `FaultGuard` guards. Its memory is atomic words, so
    // a change of its contents is as a store by another thread.
    let mapped = unsafe { libc::mmap(start as *mut libc::c_void, len, protection, flags, -1, 0) };
    // SAFETY: as above.
    unsafe { *errno = before };
    mapped != libc::MAP_FAILED
}

/// Calls the handler that was installed before. Without one the signal acts as if this module had
/// no handler.
fn pass_on(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let handler = PREVIOUS.get().map_or(libc::SIG_DFL, |previous| previous.sa_sigaction);
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // The instruction faults again when this handler returns, and the kernel ends the process.
        // SAFETY: the call restores the default action.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    } else if PREVIOUS.get().is_some_and(|previous| previous.sa_flags & libc::SA_SIGINFO != 0) {
        // SAFETY: the action stated that its handler takes three arguments.
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = unsafe { std::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: the action stated that its handler takes one argument.
        let handler: extern "C" fn(libc::c_int) = unsafe { std::mem::transmute(handler) };
        handler(signal);
    }
}

/// Runs a write. If it goes beyond the limit of file sizes (`RLIMIT_FSIZE`), it fails with `EFBIG`,
/// and the kernel's `SIGXFSZ` does not reach the process.
pub(super) fn without_size_signal<T>(write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let mut only = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the call initialises the set.
    unsafe { libc::sigemptyset(only.as_mut_ptr()) };
    // SAFETY: the set was initialised above.
    unsafe { libc::sigaddset(only.as_mut_ptr(), libc::SIGXFSZ) };
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: both sets are valid; the call fills `before`.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, only.as_ptr(), before.as_mut_ptr()) };
    let done = write();
    if done.as_ref().err().and_then(io::Error::raw_os_error) == Some(libc::EFBIG) {
        let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the set and the time are valid. The signal is pending for this thread, since the
        // write raised it, and this call takes it.
        unsafe { libc::sigtimedwait(only.as_ptr(), ptr::null_mut(), &raw const at_once) };
    }
    // SAFETY: `before` is the mask that the first call filled in.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    done
}
