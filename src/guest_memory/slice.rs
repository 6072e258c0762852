//! A checked range of guest memory and the copies in and out of it.

use std::marker::PhantomData;
use std::ptr;

/// Prefetch the cache line of an address, for a read that comes soon.
#[inline]
pub fn prefetch(address: *const u8) {
    // SAFETY: a hint about an address; any address is allowed.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch(address.cast(), _MM_HINT_T0);
    }
}

/// Bytes that processors of our architectures move at once.
const CACHE_LINE: usize = 64;

/// `len` bytes of guest memory, all inside one mapping of the [`GuestMemory`](super::GuestMemory)
/// that `'m` borrows. The bytes may change at any moment: read each field once.
#[derive(Clone, Copy, Debug)]
pub struct GuestSlice<'m> {
    ptr: *mut u8,
    len: usize,
    memory: PhantomData<&'m ()>,
}

impl<'m> GuestSlice<'m> {
    /// # Safety
    /// `ptr..ptr + len` must be mapped readable and writable for all of `'m`.
    pub(super) unsafe fn new(ptr: *mut u8, len: usize) -> Self {
        Self { ptr, len, memory: PhantomData }
    }

    /// No bytes at all: the buffer of a descriptor of length zero, whatever its address.
    #[must_use]
    pub fn empty() -> Self {
        Self { ptr: ptr::dangling_mut(), len: 0, memory: PhantomData }
    }

    /// Length in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The first byte's address in our process, for rings, which check and keep it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.ptr
    }

    /// The part from `offset` on, `len` bytes long.
    ///
    /// # Panics
    /// If the part is not inside the range: callers compute it from lengths they own.
    #[inline]
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> GuestSlice<'m> {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: offset + len <= self.len (asserted), so the part lies in the same mapping.
        unsafe { GuestSlice::new(self.ptr.add(offset), len) }
    }

    /// Prefetch the first `len` bytes, or fewer if the slice ends, for a read that comes soon. It
    /// prefetches two cache lines at most: for a longer copy the processor prefetches by itself.
    #[inline]
    pub fn prefetch(&self, len: usize) {
        prefetch(self.ptr);
        prefetch(self.last_of(len));
    }

    /// As [`prefetch`](Self::prefetch), for a write: the line is taken from another core at once,
    /// not first shared with it.
    #[inline]
    pub fn prefetch_for_write(&self, len: usize) {
        let last = self.last_of(len);
        // SAFETY: a hint about an address; any address is allowed. The instruction is written by
        // name, since the compiler knows it only for newer processors than its target. Older
        // processors ignore it.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::asm!(
                "prefetchw [{first}]",
                "prefetchw [{last}]",
                first = in(reg) self.ptr,
                last = in(reg) last,
                options(nostack, preserves_flags),
            );
        }
    }

    /// The last of the first `len` bytes, or of those that exist, in the first cache line or the
    /// second.
    #[inline]
    fn last_of(&self, len: usize) -> *mut u8 {
        self.ptr.wrapping_add(len.min(self.len).saturating_sub(1).min(CACHE_LINE))
    }

    /// Copy the first `destination.len()` bytes out.
    ///
    /// # Panics
    /// If the range is shorter than `destination`.
    #[inline]
    pub fn read(&self, destination: &mut [u8]) {
        assert!(destination.len() <= self.len);
        // SAFETY: the range is mapped for 'm and at least as long as the destination (asserted).
        // The destination is ours alone, so the two cannot overlap.
        unsafe { ptr::copy_nonoverlapping(self.ptr, destination.as_mut_ptr(), destination.len()) }
    }

    /// Copy `source` to the start of the range.
    ///
    /// # Panics
    /// If the range is shorter than `source`.
    #[inline]
    pub fn write(&self, source: &[u8]) {
        assert!(source.len() <= self.len);
        // SAFETY: as in `read`, with the roles of the two exchanged.
        unsafe { ptr::copy_nonoverlapping(source.as_ptr(), self.ptr, source.len()) }
    }

    /// Copy the first `len` bytes of `source` here. The ranges may overlap: one guest may name
    /// the same buffer twice, and two guests may share memory.
    ///
    /// # Panics
    /// If either range is shorter than `len`.
    #[inline]
    pub fn copy_from(&self, source: GuestSlice<'_>, len: usize) {
        assert!(len <= self.len && len <= source.len);
        // SAFETY: both ranges are mapped and at least `len` long (asserted); `copy` allows overlap.
        unsafe { ptr::copy(source.ptr, self.ptr, len) }
    }
}
