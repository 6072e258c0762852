//! A checked range of guest memory and the copies in and out of it.

use std::marker::PhantomData;
use std::ptr;

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

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the range has no bytes.
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
    #[must_use]
    pub fn part(&self, offset: usize, len: usize) -> GuestSlice<'m> {
        assert!(offset <= self.len && len <= self.len - offset);
        // SAFETY: offset + len <= self.len (asserted), so the part lies in the same mapping.
        unsafe { GuestSlice::new(self.ptr.add(offset), len) }
    }

    /// Have the first bytes brought near, for a read that comes soon.
    #[inline]
    pub fn prefetch(&self) {
        // SAFETY: a hint about an address, which may be any.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::x86_64::_mm_prefetch(self.ptr.cast(), std::arch::x86_64::_MM_HINT_T0);
        }
    }

    /// Copy the first `destination.len()` bytes out.
    ///
    /// # Panics
    /// If the range is shorter than `destination`.
    #[inline]
    pub fn read(&self, destination: &mut [u8]) {
        assert!(destination.len() <= self.len);
        // SAFETY: the range is mapped for 'm and at least as long as the destination (asserted);
        // the destination is ours alone, so the two cannot overlap.
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
