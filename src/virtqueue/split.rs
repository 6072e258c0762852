//! The split ring (virtio 1.2, 2.7), device side.
//!
//! Layout of the three parts, all little-endian, in the guest's memory:
//!
//! ```text
//! descriptors  size × { address u64, len u32, flags u16, next u16 }          driver writes
//! available    flags u16, idx u16, ring size × u16, used_event u16           driver writes
//! used         flags u16, idx u16, ring size × { id u32, len u32 }, avail_event u16   we write
//! ```

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use arrayvec::ArrayVec;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};

use crate::guest_memory::{GuestAddress, GuestMemory, GuestSlice};

use super::Fault;
use super::setup::QueueSetup;

/// Pieces of one packet that we keep: the longest chain QEMU itself allows, one chain's worth.
const SEGMENTS_MAX: usize = 1024;

/// The pieces of guest memory that one or more chains name, in order.
pub type Segments<'m> = ArrayVec<GuestSlice<'m>, SEGMENTS_MAX>;

// These constants are small; bindgen gave them a wider type than the ring's fields have.
#[allow(clippy::cast_possible_truncation)]
mod flag {
    use super::*;
    pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
    pub const NO_INTERRUPT: u16 = VRING_AVAIL_F_NO_INTERRUPT as u16;
    pub const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;
}

/// Who may write the buffers of a queue: a net queue has only one kind (virtio 1.2, 5.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Device-readable: packets from the guest.
    FromGuest,
    /// Device-writable: packets to the guest.
    ToGuest,
}

/// A descriptor as read, once, into our own memory.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    const SIZE: usize = 16;

    fn parse(low: u64, high: u64) -> Self {
        // Each field is the named 32 or 16 bits of the second word.
        #[allow(clippy::cast_possible_truncation)]
        Self {
            address: u64::from_le(low),
            len: u64::from_le(high) as u32,
            flags: (u64::from_le(high) >> 32) as u16,
            next: (u64::from_le(high) >> 48) as u16,
        }
    }
}

/// A ring and the memory its descriptors speak of, borrowed apart by [`Queue::parts`].
#[derive(Debug)]
pub struct Queue {
    memory: Arc<GuestMemory>,
    ring: SplitRing,
}

impl Queue {
    pub(super) fn new(memory: Arc<GuestMemory>, ring: SplitRing) -> Self {
        Self { memory, ring }
    }

    /// The memory, for the lifetime of what is taken from the ring, and the ring.
    #[inline]
    pub fn parts(&mut self) -> (&GuestMemory, &mut SplitRing) {
        (&self.memory, &mut self.ring)
    }

    /// The ring, to look at.
    #[must_use]
    pub fn ring(&self) -> &SplitRing {
        &self.ring
    }

    /// Whether the memory's file was cut short under the ring.
    #[must_use]
    pub fn memory_gone(&self) -> bool {
        self.memory.faulted()
    }
}

/// One split ring, seen from the device.
#[derive(Debug)]
pub struct SplitRing {
    descriptors: *const u8,
    available: *const u8,
    used: *mut u8,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// Whether the driver is asked to kick; parked while we poll.
    kicks_wanted: bool,
    /// The next entry of the available ring to take; free-running.
    next_available: u16,
    /// The available index as last read, never more than `size` ahead of `next_available`.
    seen_available: u16,
    /// The next entry of the used ring to write; free-running.
    next_used: u16,
    /// The used index that the driver has seen.
    published: u16,
    /// The used index at the last notification decision; None before the first, which always
    /// notifies: whether the driver was told of earlier entries is not known then.
    decided: Option<u16>,
    /// Keeps the three pointers valid.
    _memory: Arc<GuestMemory>,
}

// SAFETY: the pointers stay valid in any thread while the ring holds the memory, and the ring is
// the only one on the device side to use them: it is neither Clone nor Sync.
unsafe impl Send for SplitRing {}

// ---- accessors: each touches one field of guest memory, once ------------------------------------

impl SplitRing {
    /// # Safety
    /// `parts` (descriptors, available, used) must lie in `memory`, aligned and as long as
    /// virtio 1.2, 2.7 demands for `setup.size`, which must be a power of two.
    pub(super) unsafe fn new(
        memory: Arc<GuestMemory>,
        parts: [*mut u8; 3],
        setup: &QueueSetup,
    ) -> Self {
        let [descriptors, available, used] = parts;
        let mut ring = Self {
            descriptors,
            available,
            used,
            size: setup.size,
            event_idx: setup.options.event_idx,
            indirect: setup.options.indirect,
            kicks_wanted: true,
            next_available: 0,
            seen_available: 0,
            next_used: 0,
            published: 0,
            decided: None,
            _memory: memory,
        };
        let position = u16::from_le(ring.atomic(ring.used, 2).load(Ordering::Relaxed));
        (ring.next_available, ring.seen_available) = (position, position);
        (ring.next_used, ring.published) = (position, position);
        ring.want_kicks(true);
        ring
    }

    /// The 16-bit field `offset` bytes into the available or used ring.
    #[inline]
    fn atomic(&self, part: *const u8, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass available or used and one of the offsets 0, 2 or `event_offset`,
        // all even and inside the part, which was checked for alignment and extent when the ring
        // was made. AtomicU16 may be shared with the driver, which writes the same field.
        unsafe { AtomicU16::from_ptr(part.add(offset).cast_mut().cast()) }
    }

    /// The available index, which the driver stores after the entries it covers.
    #[inline]
    fn available_index(&self) -> u16 {
        // Acquire pairs with the driver's write barrier before it updates idx (2.7.13.3).
        u16::from_le(self.atomic(self.available, 2).load(Ordering::Acquire))
    }

    /// Entry `position` of the available ring: the head of a chain.
    #[inline]
    fn available_entry(&self, position: u16) -> u16 {
        let offset = 4 + 2 * usize::from(position & (self.size - 1));
        // SAFETY: the entry is masked into the ring, which starts 4 bytes into the part.
        u16::from_le(unsafe { ptr::read_volatile(self.available.add(offset).cast()) })
    }

    /// Descriptor `index` of the ring's own table; the caller has checked index < size.
    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        debug_assert!(index < self.size);
        let offset = Descriptor::SIZE * usize::from(index & (self.size - 1));
        // SAFETY: masked into the table, which is 16-byte aligned and size × 16 bytes long.
        let [low, high] = unsafe { ptr::read_volatile(self.descriptors.add(offset).cast()) };
        Descriptor::parse(low, high)
    }

    /// Write one used entry; the driver does not look at it before `publish`.
    #[inline]
    fn write_used(&mut self, position: u16, head: u16, written: u32) {
        let offset = 4 + 8 * usize::from(position & (self.size - 1));
        let entry = [u32::from(head).to_le(), written.to_le()];
        // SAFETY: masked into the ring of 8-byte entries 4 bytes into the part, 4-byte aligned.
        unsafe { ptr::write_volatile(self.used.add(offset).cast(), entry) }
    }

    /// Where used_event (in available) is; avail_event (in used) is at `avail_event_offset`.
    #[inline]
    fn used_event_offset(&self) -> usize {
        4 + 2 * usize::from(self.size)
    }

    #[inline]
    fn avail_event_offset(&self) -> usize {
        4 + 8 * usize::from(self.size)
    }
}

// ---- taking chains ------------------------------------------------------------------------------

impl SplitRing {
    /// Entries.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// What GET_VRING_BASE answers: the next entry to take.
    #[must_use]
    pub fn position(&self) -> u16 {
        self.next_available
    }

    /// How many chains the driver has made available. One acquire load: ask once per burst.
    ///
    /// # Errors
    /// [`Fault::AvailableIndex`].
    #[inline]
    pub fn available(&mut self) -> Result<u16, Fault> {
        let index = self.available_index();
        let ahead = index.wrapping_sub(self.next_available);
        if ahead > self.size {
            return Err(Fault::AvailableIndex { index, ahead, size: self.size });
        }
        self.seen_available = index;
        Ok(ahead)
    }

    /// Whether there is a chain to take; looks at the driver's index only when those seen before
    /// are used up.
    ///
    /// # Errors
    /// As [`available`](Self::available).
    #[inline]
    pub fn has_available(&mut self) -> Result<bool, Fault> {
        Ok(self.seen_available != self.next_available || self.available()? > 0)
    }

    /// Take the next chain: append its pieces to `segments` and return its head. The caller has
    /// seen with [`available`](Self::available) that there is one.
    ///
    /// # Errors
    /// [`Fault`], for a chain that breaks the ring's rules.
    #[inline]
    pub fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
        segments: &mut Segments<'m>,
    ) -> Result<u16, Fault> {
        let head = self.available_entry(self.next_available);
        if head >= self.size {
            return Err(Fault::DescriptorIndex { index: head, size: self.size });
        }
        let first = self.descriptor(head);
        if first.flags & (flag::NEXT | flag::INDIRECT) == 0 {
            push(memory, head, first, direction, segments)?;
        } else {
            self.walk(memory, head, first, direction, segments)?;
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(head)
    }

    /// Give back the last `chains` taken, as if they had not been.
    #[inline]
    pub fn untake(&mut self, chains: u16) {
        self.next_available = self.next_available.wrapping_sub(chains);
    }

    /// Follow a chain from its `first` descriptor, at most `size` long.
    // The ring itself is the sixth.
    #[allow(clippy::too_many_arguments)]
    fn walk<'m>(
        &self,
        memory: &'m GuestMemory,
        head: u16,
        first: Descriptor,
        direction: Direction,
        segments: &mut Segments<'m>,
    ) -> Result<(), Fault> {
        let (mut index, mut descriptor) = (head, first);
        for _ in 0..self.size {
            if descriptor.flags & flag::INDIRECT != 0 {
                return self.walk_indirect(memory, index, descriptor, direction, segments);
            }
            push(memory, index, descriptor, direction, segments)?;
            if descriptor.flags & flag::NEXT == 0 {
                return Ok(());
            }
            index = descriptor.next;
            if index >= self.size {
                return Err(Fault::DescriptorIndex { index, size: self.size });
            }
            descriptor = self.descriptor(index);
        }
        Err(Fault::Loop { head, size: self.size })
    }

    /// Follow the table that an indirect descriptor names (2.7.5.3): the last of its chain, not
    /// nested, and no longer than the ring, as all drivers and QEMU have it.
    // The ring itself is the sixth.
    #[allow(clippy::too_many_arguments)]
    fn walk_indirect<'m>(
        &self,
        memory: &'m GuestMemory,
        outer: u16,
        descriptor: Descriptor,
        direction: Direction,
        segments: &mut Segments<'m>,
    ) -> Result<(), Fault> {
        let Descriptor { address, len, flags, .. } = descriptor;
        let entries = len / 16;
        let refused = Fault::Indirect { index: outer, flags, len };
        let well_formed = self.indirect
            && flags & flag::NEXT == 0
            && len % 16 == 0
            && (1..=u32::from(self.size)).contains(&entries);
        if !well_formed {
            return Err(refused);
        }
        let table = memory.translate(GuestAddress(address), len);
        // A table that goes on in another region would need a gathered read; no driver asks for it.
        let table = table
            .filter(|table| table.len() as u64 == u64::from(len))
            .ok_or(Fault::Unmapped { index: outer, address, len })?;
        // entries <= size, a u16.
        #[allow(clippy::cast_possible_truncation)]
        let entries = entries as u16;
        let mut index = 0;
        for _ in 0..entries {
            let entry = read_indirect(table, index);
            if entry.flags & flag::INDIRECT != 0 {
                return Err(Fault::Indirect { index, flags: entry.flags, len: entry.len });
            }
            push(memory, index, entry, direction, segments)?;
            if entry.flags & flag::NEXT == 0 {
                return Ok(());
            }
            index = entry.next;
            if index >= entries {
                return Err(Fault::DescriptorIndex { index, size: entries });
            }
        }
        Err(Fault::Loop { head: outer, size: entries })
    }
}

/// Entry `index` of an indirect table, which need not be aligned.
fn read_indirect(table: GuestSlice<'_>, index: u16) -> Descriptor {
    let mut bytes = [0; Descriptor::SIZE];
    table.part(Descriptor::SIZE * usize::from(index), Descriptor::SIZE).read(&mut bytes);
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 of 16 bytes"));
    Descriptor::parse(word(0), word(8))
}

/// Append what `descriptor` names: one piece, or one per region it touches.
#[inline]
fn push<'m>(
    memory: &'m GuestMemory,
    index: u16,
    descriptor: Descriptor,
    direction: Direction,
    segments: &mut Segments<'m>,
) -> Result<(), Fault> {
    let Descriptor { address, len, flags, .. } = descriptor;
    if (flags & flag::WRITE != 0) != (direction == Direction::ToGuest) {
        return Err(Fault::WrongDirection { index, flags });
    }
    let mut done = 0;
    // Each turn ends in another region, so there are at most REGIONS_MAX.
    while done < len {
        let unmapped = Fault::Unmapped { index, address, len };
        let start = address.checked_add(u64::from(done)).ok_or(unmapped)?;
        let piece = memory.translate(GuestAddress(start), len - done).ok_or(unmapped)?;
        let full = Fault::TooManySegments { head: index, limit: SEGMENTS_MAX };
        segments.try_push(piece).map_err(|_| full)?;
        // A piece is no longer than what was asked for, a u32.
        #[allow(clippy::cast_possible_truncation)]
        let piece_len = piece.len() as u32;
        done += piece_len;
    }
    Ok(())
}

// ---- completing, publishing, notifying ----------------------------------------------------------

impl SplitRing {
    /// Say that the chain at `head` is done and `written` bytes of it were written. The driver
    /// sees it with the next [`publish`](Self::publish).
    #[inline]
    pub fn complete(&mut self, head: u16, written: u32) {
        self.write_used(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Whether chains were completed that the driver has not been shown.
    #[inline]
    #[must_use]
    pub fn has_unpublished(&self) -> bool {
        self.published != self.next_used
    }

    /// Show the driver all that was completed: one store. Returns whether there was anything.
    #[inline]
    pub fn publish(&mut self) -> bool {
        if !self.has_unpublished() {
            return false;
        }
        // Release pairs with the driver's read barrier after it has read idx (2.7.14).
        self.atomic(self.used, 2).store(self.next_used.to_le(), Ordering::Release);
        self.published = self.next_used;
        true
    }

    /// Whether the driver wants an interrupt for what was published since the last decision
    /// (2.7.7). Ask once per burst, after `publish`.
    #[inline]
    pub fn needs_notification(&mut self) -> bool {
        // Our store of idx must be visible before we read what the driver wants; pairs with the
        // driver's barrier between setting its wish and re-checking idx (2.7.7.2).
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = u16::from_le(self.atomic(self.available, 0).load(Ordering::Relaxed));
            return flags & flag::NO_INTERRUPT == 0;
        }
        let wish = self.atomic(self.available, self.used_event_offset()).load(Ordering::Relaxed);
        let Some(decided) = self.decided.replace(self.published) else { return true };
        event_is_due(u16::from_le(wish), self.published, decided)
    }

    /// Ask the driver to kick us for new entries, or not to (2.7.10). After asking, look at
    /// [`available`](Self::available) again before sleeping: the fence here pairs with the one
    /// the driver has between storing idx and reading our wish.
    #[inline]
    pub fn want_kicks(&mut self, wanted: bool) {
        self.kicks_wanted = wanted;
        if self.event_idx {
            // Parked half the index space away, it is not reached while we poll; when the ring
            // gets there all the same the driver kicks once, in vain.
            let parked = if wanted { 0 } else { 0x8000 };
            let event = self.next_available.wrapping_add(parked);
            let offset = self.avail_event_offset();
            self.atomic(self.used, offset).store(event.to_le(), Ordering::Relaxed);
        } else {
            let flags = if wanted { 0 } else { flag::NO_NOTIFY };
            self.atomic(self.used, 0).store(flags.to_le(), Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// What [`want_kicks`](Self::want_kicks) last asked for.
    #[must_use]
    pub fn kicks_wanted(&self) -> bool {
        self.kicks_wanted
    }
}

/// vring_need_event of virtio 1.2, 2.7.7.1: whether the move from `old` to `new` passed `event`.
fn event_is_due(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
