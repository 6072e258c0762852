//! Surviving a front-end that cuts its memory file short under us.
//!
//! Touching a mapped page that its file no longer has raises SIGBUS, which would end the process
//! and with it every other VM's traffic. The handler here puts an anonymous zero page over the
//! missing one and marks the region; the access then completes (on zeroes), and the worker finds
//! the mark at the end of its burst and ends that session. SIGBUS anywhere else stays fatal.
//!
//! The handler may run in any thread at any instruction, so all it uses is a fixed table of
//! atomics and one system call.

use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::MapError;

/// Regions of all sessions of the process that can be watched at once.
const WATCHES_MAX: usize = 16384;

/// One watched mapping; free while `len` is 0 and `claimed` is not set.
struct Slot {
    claimed: AtomicBool,
    base: AtomicUsize,
    len: AtomicUsize,
    faulted: AtomicBool,
}

static SLOTS: [Slot; WATCHES_MAX] = [const {
    Slot {
        claimed: AtomicBool::new(false),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; WATCHES_MAX];

/// No slot at or above this one was ever claimed, so the handler need not look there.
static SLOTS_USED: AtomicUsize = AtomicUsize::new(0);

/// Keeps one mapping in the handler's table; dropped before the mapping is unmapped, which
/// `Region` ensures by the order of its fields.
#[derive(Debug)]
pub(super) struct Watch {
    slot: usize,
}

impl Watch {
    pub(super) fn new(base: *mut u8, len: usize) -> Result<Self, MapError> {
        let free = |slot: &Slot| {
            slot.claimed.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = SLOTS.iter().position(free).ok_or(MapError::TooMany(WATCHES_MAX))?;
        SLOTS[slot].faulted.store(false, Ordering::Relaxed);
        SLOTS[slot].base.store(base.addr(), Ordering::Relaxed);
        SLOTS[slot].len.store(len, Ordering::Release);
        SLOTS_USED.fetch_max(slot + 1, Ordering::Release);
        Ok(Self { slot })
    }

    pub(super) fn faulted(&self) -> bool {
        SLOTS[self.slot].faulted.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        SLOTS[self.slot].len.store(0, Ordering::Release);
        SLOTS[self.slot].claimed.store(false, Ordering::Release);
    }
}

/// Take over SIGBUS for the process. Called once by the daemon before its first session.
pub fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: `action` is fully initialised, and the handler uses nothing but atomics and
        // system calls, as signal-safety(7) demands.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_sigbus as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
            libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut())
        };
        assert_eq!(result, 0, "sigaction(SIGBUS) has no way to fail with these arguments");
    });
}

extern "C" fn on_sigbus(_: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo; si_addr is set for SIGBUS.
    let address = unsafe { (*info).si_addr() }.addr();
    let used = SLOTS_USED.load(Ordering::Acquire);
    for slot in &SLOTS[..used] {
        let len = slot.len.load(Ordering::Acquire);
        let base = slot.base.load(Ordering::Relaxed);
        if address.wrapping_sub(base) < len {
            slot.faulted.store(true, Ordering::Relaxed);
            if replace_with_zeroes(base, len) {
                return;
            }
        }
    }
    // Not a guest's memory: a bug of ours, or broken hardware. Die of it as if never caught.
    // SAFETY: both calls are async-signal-safe; returning re-executes the faulting access.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

/// Put anonymous zeroes over the whole mapping: the front-end broke its promise for all of it,
/// and one replacement bounds the number of signals to one per region.
fn replace_with_zeroes(base: usize, len: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range is exactly one watched mapping, which stays mapped while it is watched;
    // pointers into it stay valid since the same addresses are mapped again.
    let mapped = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(base),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            flags,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}
