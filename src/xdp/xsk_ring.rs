//! The four rings between us and the kernel (Documentation/networking/af_xdp.rst), inline.
//!
//! Each ring has one producer and one consumer, whose 32-bit indices run freely and are masked into
//! the ring. Our side keeps its own index and a cached copy of the other side's, so that shared
//! cache lines are touched once per burst. `acquire` reads the other side's index, `put`/`take`
//! work on our side alone, and `release` shows the result to the kernel.

use std::any::Any;
use std::fmt;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::umem_frame::{Frame, Received};

/// XDP_RING_NEED_WAKEUP of linux/if_xdp.h: the kernel sleeps until it is called.
const NEED_WAKEUP: u32 = 1;

/// XDP_PKT_CONTD of linux/if_xdp.h: the packet continues in the next descriptor.
const CONTINUED: u32 = 1;

/// Where a ring is in memory.
pub struct RingParts {
    /// The producer's index.
    pub producer: *mut u32,
    /// The consumer's index.
    pub consumer: *mut u32,
    /// Flags, written by the kernel.
    pub flags: *mut u32,
    /// The entries.
    pub entries: *mut u8,
    /// Number of entries, a power of two.
    pub size: u32,
    /// Keeps all of it mapped.
    pub keep: Arc<dyn Any + Send + Sync>,
}

#[cfg(test)]
impl RingParts {
    fn again(&self) -> Self {
        let Self { producer, consumer, flags, entries, size, .. } = *self;
        Self { producer, consumer, flags, entries, size, keep: Arc::clone(&self.keep) }
    }
}

impl fmt::Debug for RingParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingParts").field("size", &self.size).finish_non_exhaustive()
    }
}

/// The common part: one side's view of a ring of `T`.
#[derive(Debug)]
struct View<T> {
    parts: RingParts,
    /// Our own index.
    own: u32,
    /// The other side's, as last read.
    other: u32,
    entry: std::marker::PhantomData<T>,
}

// SAFETY: the pointers are valid in any thread while `keep` lives. The ring protocol gives each
// side its own index; a View is our only handle for our side.
unsafe impl<T> Send for View<T> {}

impl<T: Copy> View<T> {
    /// # Safety
    /// `parts` must describe a mapped ring of `T` whose memory lives as long as `keep`, of which
    /// this is our side's only view.
    unsafe fn new(parts: RingParts) -> Self {
        assert!(parts.size.is_power_of_two());
        Self { parts, own: 0, other: 0, entry: std::marker::PhantomData }
    }

    /// Continue at `which`, our side's index in the ring: another process was our side before.
    fn resume(&mut self, which: *mut u32) {
        self.own = self.index(which).load(Ordering::Acquire);
    }

    #[inline]
    fn index(&self, which: *mut u32) -> &AtomicU32 {
        // SAFETY: an aligned u32 in the mapped ring, which the other side accesses atomically.
        unsafe { AtomicU32::from_ptr(which) }
    }

    #[inline]
    fn slot(&self, index: u32) -> *mut T {
        let index = (index & (self.parts.size - 1)) as usize;
        self.parts.entries.cast::<T>().wrapping_add(index)
    }

    #[inline]
    fn write(&mut self, entry: T) {
        // SAFETY: masked into the ring; the slot is ours between acquire and release.
        unsafe { ptr::write_volatile(self.slot(self.own), entry) };
        self.own = self.own.wrapping_add(1);
    }

    #[inline]
    fn read(&mut self) -> T {
        // SAFETY: as in `write`.
        let entry = unsafe { ptr::read_volatile(self.slot(self.own)) };
        self.own = self.own.wrapping_add(1);
        entry
    }

    /// The entry so many places after the next one; both must be filled.
    #[inline]
    fn peek(&self, ahead: u32) -> T {
        // SAFETY: as in `write`.
        unsafe { ptr::read_volatile(self.slot(self.own.wrapping_add(ahead))) }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        self.index(self.parts.flags).load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }

    // As producer: `other` is the consumer's index.

    #[inline]
    fn room(&mut self) -> u32 {
        self.other = self.index(self.parts.consumer).load(Ordering::Acquire);
        self.parts.size - self.own.wrapping_sub(self.other)
    }

    #[inline]
    fn release_produced(&self) {
        self.index(self.parts.producer).store(self.own, Ordering::Release);
    }

    // As consumer: `other` is the producer's index.

    #[inline]
    fn filled(&mut self) -> u32 {
        self.other = self.index(self.parts.producer).load(Ordering::Acquire);
        self.other.wrapping_sub(self.own)
    }

    #[inline]
    fn release_consumed(&self) {
        self.index(self.parts.consumer).store(self.own, Ordering::Release);
    }
}

/// An entry of the rx and tx rings: struct xdp_desc of linux/if_xdp.h.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct XdpDescriptor {
    address: u64,
    len: u32,
    options: u32,
}

/// Frames we give the kernel to receive into.
#[derive(Debug)]
pub struct Fill(View<u64>);

impl Fill {
    /// # Safety
    /// `parts` must describe a mapped fill ring whose producer side is ours alone.
    pub unsafe fn new(parts: RingParts) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { View::new(parts) })
    }

    /// Where it is, for a test to look at it as another process does.
    #[cfg(test)]
    pub(super) fn parts(&self) -> RingParts {
        self.0.parts.again()
    }

    /// Continue at our side's index in the ring.
    pub(super) fn resume(&mut self) {
        self.0.resume(self.0.parts.producer);
    }

    /// Put a frame. There is always room: a socket has no more receive frames than entries.
    #[inline]
    #[allow(clippy::needless_pass_by_value, reason = "the frame is given away")]
    pub fn put(&mut self, frame: Frame) {
        // The token ends here; the kernel rounds the offset down to the frame's start.
        self.0.write(frame.address());
    }

    /// Show the kernel the new entries.
    #[inline]
    pub fn release(&self) {
        self.0.release_produced();
    }

    /// Whether the kernel waits for a call before it receives again.
    #[inline]
    #[must_use]
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

/// Packets the kernel has received.
#[derive(Debug)]
pub struct Rx(View<XdpDescriptor>);

impl Rx {
    /// # Safety
    /// `parts` must describe a mapped rx ring whose consumer side is ours alone.
    pub unsafe fn new(parts: RingParts) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { View::new(parts) })
    }

    /// Where it is, for a test to look at it as another process does.
    #[cfg(test)]
    pub(super) fn parts(&self) -> RingParts {
        self.0.parts.again()
    }

    /// Continue at our side's index in the ring.
    pub(super) fn resume(&mut self) {
        self.0.resume(self.0.parts.consumer);
    }

    /// How many frames are there, each a packet or a piece of one.
    #[inline]
    pub fn acquire(&mut self) -> u32 {
        self.0.filled()
    }

    /// Whether a packet continues after the frame so many places after the next one. `acquire` must
    /// have counted that frame.
    #[inline]
    #[must_use]
    pub fn continues(&self, ahead: u32) -> bool {
        self.0.peek(ahead).options & CONTINUED != 0
    }

    /// Take one of the frames that `acquire` counted.
    #[inline]
    pub fn take(&mut self) -> Received {
        let XdpDescriptor { address, len, options } = self.0.read();
        Received { frame: Frame::at(address), len, more: options & CONTINUED != 0 }
    }

    /// Return the ring's places to the kernel.
    #[inline]
    pub fn release(&self) {
        self.0.release_consumed();
    }
}

/// Packets we give the kernel to transmit.
#[derive(Debug)]
pub struct Tx(View<XdpDescriptor>);

impl Tx {
    /// # Safety
    /// `parts` must describe a mapped tx ring whose producer side is ours alone.
    pub unsafe fn new(parts: RingParts) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { View::new(parts) })
    }

    /// Where it is, for a test to look at it as another process does.
    #[cfg(test)]
    pub(super) fn parts(&self) -> RingParts {
        self.0.parts.again()
    }

    /// Continue at our side's index in the ring.
    pub(super) fn resume(&mut self) {
        self.0.resume(self.0.parts.producer);
    }

    /// Put a frame with `len` bytes of a packet; `more` if the packet continues. There is always
    /// room: a socket has no more transmit frames than entries.
    #[inline]
    #[allow(clippy::needless_pass_by_value, reason = "the frame is given away")]
    pub fn put(&mut self, frame: Frame, len: u32, more: bool) {
        let options = if more { CONTINUED } else { 0 };
        self.0.write(XdpDescriptor { address: frame.address(), len, options });
    }

    /// Show the kernel the new entries: whole packets.
    #[inline]
    pub fn release(&self) {
        self.0.release_produced();
    }

    /// How many frames the kernel has not taken yet.
    #[inline]
    pub fn backlog(&mut self) -> u32 {
        self.0.parts.size - self.0.room()
    }

    /// Whether the kernel waits for a call before it transmits.
    #[inline]
    #[must_use]
    pub fn needs_wakeup(&self) -> bool {
        self.0.needs_wakeup()
    }
}

/// Frames that the kernel has transmitted and returns.
#[derive(Debug)]
pub struct Completion(View<u64>);

impl Completion {
    /// # Safety
    /// `parts` must describe a mapped completion ring whose consumer side is ours alone.
    pub unsafe fn new(parts: RingParts) -> Self {
        // SAFETY: the caller's promise.
        Self(unsafe { View::new(parts) })
    }

    /// Where it is, for a test to look at it as another process does.
    #[cfg(test)]
    pub(super) fn parts(&self) -> RingParts {
        self.0.parts.again()
    }

    /// Continue at our side's index in the ring.
    pub(super) fn resume(&mut self) {
        self.0.resume(self.0.parts.consumer);
    }

    /// How many frames are there.
    #[inline]
    pub fn acquire(&mut self) -> u32 {
        self.0.filled()
    }

    /// Take one of the frames that `acquire` counted.
    #[inline]
    pub fn take(&mut self) -> Frame {
        Frame::at(self.0.read())
    }

    /// Return the ring's places to the kernel.
    #[inline]
    pub fn release(&self) {
        self.0.release_consumed();
    }
}

/// The four rings of a socket.
#[derive(Debug)]
pub struct SocketParts {
    /// Received packets.
    pub rx: Rx,
    /// Packets to transmit.
    pub tx: Tx,
    /// Empty frames for the kernel.
    pub fill: Fill,
    /// Transmitted frames.
    pub completion: Completion,
}
