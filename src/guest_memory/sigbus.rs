//! Protection from a front-end that cuts its memory file short under us.
//!
//! An access to a mapped page that its file no longer has raises SIGBUS. The signal would end the
//! process and with it every other VM's traffic.
//!
//! The handler here puts anonymous zero pages over the mapping and marks the region. The access
//! then completes (on zeroes). The worker finds the mark at the end of its burst and ends that
//! session. SIGBUS anywhere else stays fatal.
//!
//! The handler may run in any thread at any instruction, so it uses only a fixed table of atomics
//! and one system call.
//!
//! A slot of the table may change while the handler reads it: one session's region is unmapped, and
//! another's takes its place. So each slot has a generation, and the handler uses base and length
//! only if both are of one generation. The slot of the mapping that it looks for cannot change: the
//! access that faulted keeps that mapping.

use std::ptr;
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};

use super::map_error::MapError;

/// Regions of all sessions of the process that can be watched at once.
const WATCHES_MAX: usize = 16384;

/// One watched mapping; free while `len` is 0 and `claimed` is not set.
struct WatchSlot {
    claimed: AtomicBool,
    /// Odd while the slot changes; never the same twice.
    generation: AtomicUsize,
    base: AtomicUsize,
    len: AtomicUsize,
    faulted: AtomicBool,
}

static SLOTS: [WatchSlot; WATCHES_MAX] = [const {
    WatchSlot {
        claimed: AtomicBool::new(false),
        generation: AtomicUsize::new(0),
        base: AtomicUsize::new(0),
        len: AtomicUsize::new(0),
        faulted: AtomicBool::new(false),
    }
}; WATCHES_MAX];

impl WatchSlot {
    /// Watch `len` bytes at `base` from now on. Only the claimer of the slot may change it.
    fn set(&self, base: usize, len: usize) {
        self.generation.fetch_add(1, Ordering::Relaxed);
        // A reader of the later stores also sees the odd generation.
        fence(Ordering::Release);
        self.base.store(base, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Base and length of one generation; None if the slot changes meanwhile.
    fn range(&self) -> Option<(usize, usize)> {
        let before = self.generation.load(Ordering::Acquire);
        let len = self.len.load(Ordering::Relaxed);
        let base = self.base.load(Ordering::Relaxed);
        // Both loads come before the second look at the generation.
        fence(Ordering::Acquire);
        let after = self.generation.load(Ordering::Relaxed);
        (before == after && before.is_multiple_of(2)).then_some((base, len))
    }
}

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
        let free = |slot: &WatchSlot| {
            slot.claimed.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let slot = SLOTS.iter().position(free).ok_or(MapError::TooMany(WATCHES_MAX))?;
        SLOTS[slot].faulted.store(false, Ordering::Relaxed);
        SLOTS[slot].set(base.addr(), len);
        SLOTS_USED.fetch_max(slot + 1, Ordering::Release);
        Ok(Self { slot })
    }

    pub(super) fn faulted(&self) -> bool {
        SLOTS[self.slot].faulted.load(Ordering::Relaxed)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        SLOTS[self.slot].set(0, 0);
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
        let Some((base, len)) = slot.range() else { continue };
        if address.wrapping_sub(base) < len {
            slot.faulted.store(true, Ordering::Relaxed);
            if replace_with_zeroes(base, len) {
                return;
            }
        }
    }
    // Not a guest's memory: a bug of ours, or broken hardware. The process dies of it as if there
    // were no handler.
    // SAFETY: both calls are async-signal-safe; returning re-executes the faulting access.
    unsafe {
        libc::signal(libc::SIGBUS, libc::SIG_DFL);
    }
}

/// Put anonymous zeroes over the whole mapping. The front-end broke its promise for all of it, and
/// one replacement limits the signals to one per region.
fn replace_with_zeroes(base: usize, len: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range is exactly one watched mapping, which stays mapped while it is watched.
    // Pointers into it stay valid since the same addresses are mapped again.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_and_length_that_are_read_together_belong_together() {
        const READS: usize = 1_000_000;
        let slot = WatchSlot {
            claimed: AtomicBool::new(true),
            generation: AtomicUsize::new(0),
            base: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            faulted: AtomicBool::new(false),
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for turn in 0.. {
                    slot.set(turn, turn << 8);
                    if done.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            let mut torn = 0;
            for _ in 0..READS {
                if let Some((base, len)) = slot.range() {
                    torn += usize::from(len != base << 8);
                }
            }
            done.store(true, Ordering::Relaxed);
            assert_eq!(torn, 0, "of {READS} reads");
        });
    }

    #[test]
    fn a_slot_that_is_being_changed_is_not_believed() {
        let slot = &SLOTS[WATCHES_MAX - 1];
        slot.set(4096, 8192);
        assert_eq!(slot.range(), Some((4096, 8192)));
        slot.generation.fetch_add(1, Ordering::Relaxed);
        assert_eq!(slot.range(), None, "half of it may be another region's");
        slot.generation.fetch_add(1, Ordering::Relaxed);
        slot.set(0, 0);
    }
}
