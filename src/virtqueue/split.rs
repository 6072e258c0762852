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

use crate::guest_memory::{GuestMemory, GuestSlice, prefetch};

use super::chain::{
    Buffer, Chain, DESCRIPTOR_BYTES, Direction, Gather, Segments, event_is_due, fields, flag,
    indirect_table, only_piece, read_entry,
};
use super::fault::Fault;
use super::layout::{Glance, Layout, Run};
use super::ring_log::{RingLog, runs};
use super::setup::QueueSetup;

// These constants are small; bindgen gave them a wider type than the ring's fields have.
#[allow(clippy::cast_possible_truncation)]
mod ring_flag {
    use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

    pub const NO_INTERRUPT: u16 = VRING_AVAIL_F_NO_INTERRUPT as u16;
    pub const NO_NOTIFY: u16 = VRING_USED_F_NO_NOTIFY as u16;
}

/// A descriptor as read, once, into our own memory.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    buffer: Buffer,
    next: u16,
}

impl Descriptor {
    #[inline]
    fn parse(words: [u64; 2]) -> Self {
        let (address, len, flags, next) = fields(words);
        Self { buffer: Buffer { address, len, flags }, next }
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
    notify_on_empty: bool,
    /// The next entry of the available ring to take; free-running.
    next_available: u16,
    /// The available index as last read, never more than `size` ahead of `next_available`.
    seen_available: u16,
    /// The next entry of the used ring to write; free-running.
    next_used: u16,
    /// The used index that the driver has seen.
    published: u16,
    /// The used index at the last notification decision. None before the first, which always
    /// notifies: it is unknown whether the driver was told of earlier entries.
    decided: Option<u16>,
    log: Option<RingLog>,
    /// Keeps the three pointers valid.
    _memory: Arc<GuestMemory>,
}

// SAFETY: the pointers stay valid in any thread while the ring holds the memory. On the device
// side, only the ring uses them: it is neither Clone nor Sync.
unsafe impl Send for SplitRing {}

// ---- accessors: each touches one field of guest memory, once ------------------------------------

impl SplitRing {
    /// # Safety
    /// `parts` (descriptors, available, used) must lie in `memory`. They must be aligned and as
    /// long as virtio 1.2, 2.7 demands for `setup.size`, which must be a power of two.
    pub(super) unsafe fn new(
        memory: Arc<GuestMemory>,
        parts: [*mut u8; 3],
        setup: &QueueSetup,
        log: Option<RingLog>,
    ) -> Self {
        let [descriptors, available, used] = parts;
        let mut ring = Self {
            descriptors,
            available,
            used,
            size: setup.size,
            event_idx: setup.options.event_idx,
            indirect: setup.options.indirect,
            notify_on_empty: setup.options.notify_on_empty,
            next_available: 0,
            seen_available: 0,
            next_used: 0,
            published: 0,
            decided: None,
            log,
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
        // SAFETY: callers pass available or used and one of the offsets 0, 2 or `event_offset`, all
        // even and inside the part. Its alignment and extent were checked when the ring was made.
        // AtomicU16 may be shared with the driver, which writes the same field.
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
        let offset = DESCRIPTOR_BYTES * usize::from(index & (self.size - 1));
        // SAFETY: masked into the table, which is 16-byte aligned and size × 16 bytes long.
        Descriptor::parse(unsafe { ptr::read_volatile(self.descriptors.add(offset).cast()) })
    }

    /// Prefetch the descriptors of the next `count` heads.
    #[inline]
    fn prefetch_descriptors(&self, count: usize) {
        let mut position = self.next_available;
        for _ in 0..count {
            let head = self.available_entry(position) & (self.size - 1);
            prefetch(self.descriptors.wrapping_add(DESCRIPTOR_BYTES * usize::from(head)));
            position = position.wrapping_add(1);
        }
    }

    /// Write one used entry; the driver does not look at it before `publish`.
    #[inline]
    fn write_used(&mut self, position: u16, head: u16, written: u32) {
        let offset = 4 + 8 * usize::from(position & (self.size - 1));
        let entry = [u32::from(head).to_le(), written.to_le()];
        // SAFETY: masked into the ring of 8-byte entries 4 bytes into the part, 4-byte aligned.
        unsafe { ptr::write_volatile(self.used.add(offset).cast(), entry) }
    }

    /// Write one of the two fields of the used ring that say when we want kicks.
    #[inline]
    fn write_wish(&self, offset: usize, value: u16) {
        self.atomic(self.used, offset).store(value.to_le(), Ordering::Relaxed);
        if let Some(log) = &self.log {
            log.device_part(offset, 2);
        }
    }

    /// Mark the used index and the entries that it newly covers.
    #[cold]
    fn log_published(&self, log: &RingLog) {
        log.device_part(2, 2);
        let count = self.next_used.wrapping_sub(self.published);
        for (first, count) in runs(self.published & (self.size - 1), count, self.size) {
            log.device_part(4 + 8 * first, 8 * count);
        }
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

// ---- notifying the driver -----------------------------------------------------------------------

impl SplitRing {
    /// By NO_INTERRUPT, or by used_event where negotiated (2.7.7).
    #[inline]
    fn is_wished_for(&mut self) -> bool {
        if !self.event_idx {
            let flags = u16::from_le(self.atomic(self.available, 0).load(Ordering::Relaxed));
            return flags & ring_flag::NO_INTERRUPT == 0;
        }
        let wish = self.atomic(self.available, self.used_event_offset()).load(Ordering::Relaxed);
        let Some(decided) = self.decided.replace(self.published) else { return true };
        event_is_due(u16::from_le(wish), self.published, decided)
    }
}

// ---- taking chains ------------------------------------------------------------------------------

impl SplitRing {
    /// How many chains the driver has made available: one acquire load.
    #[inline]
    fn available(&mut self) -> Result<u16, Fault> {
        let index = self.available_index();
        let ahead = index.wrapping_sub(self.next_available);
        if ahead > self.size {
            return Err(Fault::AvailableIndex { index, ahead, size: self.size });
        }
        self.seen_available = index;
        Ok(ahead)
    }

    /// Follow a chain from its `first` descriptor, at most `size` long.
    fn walk(&self, head: u16, first: Descriptor, gather: &mut Gather<'_, '_>) -> Result<(), Fault> {
        let (mut index, mut descriptor) = (head, first);
        for _ in 0..self.size {
            if descriptor.buffer.flags & flag::INDIRECT != 0 {
                return self.walk_indirect(index, descriptor.buffer, gather);
            }
            gather.push(index, descriptor.buffer)?;
            if descriptor.buffer.flags & flag::NEXT == 0 {
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

    /// Follow the chain in the table that an indirect descriptor names (2.7.5.3), not nested.
    fn walk_indirect(
        &self,
        outer: u16,
        buffer: Buffer,
        gather: &mut Gather<'_, '_>,
    ) -> Result<(), Fault> {
        let entries_max = if self.indirect { self.size } else { 0 };
        let (table, entries) = indirect_table(gather.memory, outer, buffer, entries_max)?;
        let mut index = 0;
        for _ in 0..entries {
            let Descriptor { buffer, next } = Descriptor::parse(read_entry(table, index));
            let Buffer { flags, len, .. } = buffer;
            if flags & flag::INDIRECT != 0 {
                return Err(Fault::Indirect { index, flags, len });
            }
            gather.push(index, buffer)?;
            if flags & flag::NEXT == 0 {
                return Ok(());
            }
            index = next;
            if index >= entries {
                return Err(Fault::DescriptorIndex { index, size: entries });
            }
        }
        Err(Fault::Loop { head: outer, size: entries })
    }
}

impl Layout for SplitRing {
    fn size(&self) -> u16 {
        self.size
    }

    fn position(&self) -> u32 {
        u32::from(self.next_available)
    }

    fn glance(&self) -> Glance {
        let available = self.available_index();
        let first = self.descriptor(0);
        let untouched = available == 0 && first.buffer.is_zero() && first.next == 0;
        Glance { untouched, quiet: available == self.next_available }
    }

    fn retire(&mut self) -> u32 {
        self.position()
    }

    #[inline]
    fn has_available(&mut self) -> Result<bool, Fault> {
        Ok(self.seen_available != self.next_available || self.available()? > 0)
    }

    #[inline]
    fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
        segments: &mut Segments<'m>,
    ) -> Result<Chain, Fault> {
        let head = self.available_entry(self.next_available);
        if head >= self.size {
            return Err(Fault::DescriptorIndex { index: head, size: self.size });
        }
        let first = self.descriptor(head);
        self.walk(head, first, &mut Gather { memory, direction, segments })?;
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Chain { id: head, descriptors: 1 })
    }

    #[inline]
    fn take_one<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
    ) -> Option<(Chain, GuestSlice<'m>)> {
        let head = self.available_entry(self.next_available);
        if head >= self.size {
            return None;
        }
        let piece = only_piece(memory, self.descriptor(head).buffer, direction)?;
        self.next_available = self.next_available.wrapping_add(1);
        Some((Chain { id: head, descriptors: 1 }, piece))
    }

    /// The position stays in a register: to write and read a field for each chain costs more than
    /// all else.
    #[inline]
    fn take_run<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
        most: usize,
        run: &mut Run<'m>,
    ) {
        let Ok(true) = self.has_available() else { return };
        let there = usize::from(self.seen_available.wrapping_sub(self.next_available));
        let count = there.min(most).min(run.remaining_capacity());
        self.prefetch_descriptors(count);
        let mut position = self.next_available;
        for _ in 0..count {
            let head = self.available_entry(position);
            if head >= self.size {
                break;
            }
            let Some(piece) = only_piece(memory, self.descriptor(head).buffer, direction) else {
                break;
            };
            run.push((Chain { id: head, descriptors: 1 }, piece));
            position = position.wrapping_add(1);
        }
        self.next_available = position;
    }

    #[inline]
    fn untake(&mut self, _chain: Chain) {
        self.next_available = self.next_available.wrapping_sub(1);
    }

    #[inline]
    fn complete(&mut self, chain: Chain, written: u32) {
        self.write_used(self.next_used, chain.id, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    #[inline]
    fn has_unpublished(&self) -> bool {
        self.published != self.next_used
    }

    /// One store of the used index.
    #[inline]
    fn publish(&mut self) -> bool {
        if !self.has_unpublished() {
            return false;
        }
        // Release pairs with the driver's read barrier after it has read idx (2.7.14).
        self.atomic(self.used, 2).store(self.next_used.to_le(), Ordering::Release);
        if let Some(log) = &self.log {
            self.log_published(log);
        }
        self.published = self.next_used;
        true
    }

    /// As the driver wishes; and "if the device runs out of available descriptors … even though
    /// notifications are suppressed", where NOTIFY_ON_EMPTY was negotiated (6.3).
    #[inline]
    fn needs_notification(&mut self) -> bool {
        self.is_wished_for()
            || self.notify_on_empty && self.available_index() == self.next_available
    }

    /// By NO_NOTIFY, or by avail_event where negotiated (2.7.10). The fence pairs with the one
    /// the driver has between storing idx and reading our wish.
    #[inline]
    fn want_kicks(&mut self, wanted: bool) {
        if self.event_idx {
            // Parked half the index space away, it is not reached while we poll. If the ring gets
            // there even so, the driver kicks once, in vain.
            let parked = if wanted { 0 } else { 0x8000 };
            let event = self.next_available.wrapping_add(parked);
            let offset = self.avail_event_offset();
            self.write_wish(offset, event);
        } else {
            let flags = if wanted { 0 } else { ring_flag::NO_NOTIFY };
            self.write_wish(0, flags);
        }
        fence(Ordering::SeqCst);
    }
}
