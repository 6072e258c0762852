//! The packed ring (virtio 1.2, 2.8), device side.
//!
//! One ring of descriptors, which the driver makes available and we mark used in place, and two
//! event suppression areas. All are little-endian, in the guest's memory:
//!
//! ```text
//! descriptors   size × { address u64, len u32, id u16, flags u16 }          both write
//! driver area   { offset and wrap u16, flags u16 }                          driver writes
//! device area   { offset and wrap u16, flags u16 }                          we write
//! ```
//!
//! Two flags of a descriptor tell whether it is available or used, compared with a wrap counter
//! that flips each time around (2.8.1). Only we know our position: it is kept in a [`Journal`],
//! through which all completions go.

use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering, fence};

use crate::guest_memory::{GuestMemory, GuestSlice};

use super::chain::{
    Buffer, Chain, DESCRIPTOR_BYTES, Direction, Gather, Segments, event_is_due, fields, flag,
    indirect_table, only_piece, read_entry,
};
use super::fault::Fault;
use super::journal::{COMPLETIONS_MAX, Journal, JournalState, NotedCompletion, TAKEN_MAX};
use super::layout::{Glance, Layout};
use super::ring_log::{RingLog, runs};
use super::setup::QueueSetup;

/// VIRTQ_DESC_F_AVAIL and VIRTQ_DESC_F_USED (2.8.1).
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

/// The flags of an event suppression area (2.8.14).
const EVENTS_ENABLE: u16 = 0;
const EVENTS_DISABLE: u16 = 1;
const EVENTS_DESCRIPTOR: u16 = 2;

/// The wrap counter beside a 15-bit ring position, here and in SET_VRING_BASE.
const WRAP: u16 = 1 << 15;

/// Offsets of the flags in a descriptor and in an event area, bytes.
const DESCRIPTOR_FLAGS: usize = 14;
const EVENT_FLAGS: usize = 2;
/// Offset of the ring's mark in our event area, in place of an event's offset. Drivers read it only
/// when the flags say EVENTS_DESCRIPTOR (2.8.10), which ours never do.
const MARK: usize = 0;

/// Completions after which they are shown to the driver before more chains are taken.
const SHOWN_AT: usize = COMPLETIONS_MAX - TAKEN_MAX;

/// A place in the ring, and how often we went around, modulo 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cursor {
    index: u16,
    wrap: bool,
}

impl Cursor {
    /// From its form in SET_VRING_BASE.
    fn from_base(base: u16) -> Self {
        Self { index: base & !WRAP, wrap: base & WRAP != 0 }
    }

    fn to_base(self) -> u16 {
        self.index | if self.wrap { WRAP } else { 0 }
    }

    /// Move `by` descriptors forward, at most one round.
    #[inline]
    fn advance(&mut self, by: u16, size: u16) {
        let left = size - self.index;
        if by < left {
            self.index += by;
        } else {
            self.index = by - left;
            self.wrap = !self.wrap;
        }
    }

    /// Descriptors from here to `later`, modulo two rounds: cursors tell no more apart. A guest's
    /// word may be outside this ring; the result is then still a number.
    fn distance(self, later: Self, size: u16) -> u16 {
        let size = u32::from(size);
        let place = |at: Self| u32::from(at.index) + if at.wrap { 0 } else { size };
        let distance = (place(later) + 4 * size - place(self) % (2 * size)) % (2 * size);
        u16::try_from(distance).unwrap_or(u16::MAX)
    }

    /// Move `by` descriptors back, at most one round.
    #[inline]
    fn retreat(&mut self, by: u16, size: u16) {
        if by <= self.index {
            self.index -= by;
        } else {
            self.index = size - (by - self.index);
            self.wrap = !self.wrap;
        }
    }
}

/// A descriptor as read, once, into our own memory.
#[derive(Clone, Copy, Debug)]
struct Descriptor {
    buffer: Buffer,
    id: u16,
}

impl Descriptor {
    #[inline]
    fn parse(words: [u64; 2]) -> Self {
        let (address, len, id, flags) = fields(words);
        Self { buffer: Buffer { address, len, flags }, id }
    }
}

/// One packed ring, seen from the device.
#[derive(Debug)]
pub struct PackedRing {
    descriptors: *mut u8,
    driver_area: *const u8,
    device_area: *mut u8,
    size: u16,
    event_idx: bool,
    indirect: bool,
    available: Cursor,
    used: Cursor,
    /// The position that the driver has seen: behind `used` by the completions noted in the
    /// journal.
    published: Cursor,
    /// Completions noted.
    noted: usize,
    /// The driver was shown completions that `publish` has not reported: there were many.
    shown: bool,
    journal: Journal,
    /// The ring's mark, as in the journal.
    mark: u16,
    /// Descriptors completed since the last notification decision. None before the first, which
    /// always notifies: it is unknown whether the driver was told of earlier ones.
    undecided: Option<u16>,
    /// The position at which the front-end had the ring begin, until its driver was seen to be
    /// there.
    began: Option<Cursor>,
    /// Descriptors given back in place of the backend before us.
    given_back: u16,
    log: Option<RingLog>,
    /// Keeps the three pointers valid.
    _memory: Arc<GuestMemory>,
}

// SAFETY: as for SplitRing: the pointers stay valid in any thread while the ring holds the memory.
// On the device side, only the ring uses them.
unsafe impl Send for PackedRing {}

// ---- accessors: each touches one field of guest memory, once ------------------------------------

impl PackedRing {
    /// # Safety
    /// `parts` (descriptors, driver area, device area) must lie in `memory`. They must be aligned
    /// and as long as virtio 1.2, 2.8.10 demands for `setup.size`. The index in `setup.base` must
    /// be below it.
    pub(super) unsafe fn new(
        memory: Arc<GuestMemory>,
        parts: [*mut u8; 3],
        setup: &QueueSetup,
        log: Option<RingLog>,
        journal: Journal,
    ) -> Self {
        let [descriptors, driver_area, device_area] = parts;
        let start = Cursor::from_base(setup.base);
        let mut ring = Self {
            descriptors,
            driver_area,
            device_area,
            size: setup.size,
            event_idx: setup.options.event_idx,
            indirect: setup.options.indirect,
            available: start,
            used: start,
            published: start,
            noted: 0,
            shown: false,
            journal,
            mark: 0,
            undecided: None,
            began: None,
            given_back: 0,
            log,
            _memory: memory,
        };
        ring.begin(setup);
        ring.want_kicks(true);
        ring
    }

    /// Its journal, for the same ring in other memory.
    pub(super) fn journal(&self) -> Journal {
        self.journal.again()
    }

    /// The 16-bit field `offset` bytes into a part.
    #[inline]
    fn atomic(&self, part: *const u8, offset: usize) -> &AtomicU16 {
        // SAFETY: callers pass one of the three parts and an even offset inside it. Its alignment
        // and extent were checked when the ring was made. AtomicU16 may be shared with the driver,
        // which accesses the same field.
        unsafe { AtomicU16::from_ptr(part.add(offset).cast_mut().cast()) }
    }

    /// The flags of descriptor `index`, a cursor's index and so below `size`.
    #[inline]
    fn flags(&self, index: u16) -> &AtomicU16 {
        self.atomic(self.descriptors, DESCRIPTOR_BYTES * usize::from(index) + DESCRIPTOR_FLAGS)
    }

    /// Descriptor `index`, a cursor's index and so below `size`.
    #[inline]
    fn descriptor(&self, index: u16) -> Descriptor {
        let offset = DESCRIPTOR_BYTES * usize::from(index);
        // SAFETY: inside the ring, which is 16-byte aligned and size × 16 bytes long.
        Descriptor::parse(unsafe { ptr::read_volatile(self.descriptors.add(offset).cast()) })
    }

    /// Whether the driver has made the descriptor at a cursor available, in the cursor's round.
    #[inline]
    fn is_available(&self, at: Cursor) -> bool {
        // Acquire pairs with the driver's write barrier before it makes the first descriptor of a
        // chain available, after all others (2.8.21.1).
        let flags = u16::from_le(self.flags(at.index).load(Ordering::Acquire));
        let (available, used) = (flags & AVAILABLE != 0, flags & USED != 0);
        available == at.wrap && used != at.wrap
    }

    /// Write length and id of used descriptor `index`; its flags are written separately.
    #[inline]
    fn write_used(&mut self, index: u16, id: u16, written: u32) {
        let offset = DESCRIPTOR_BYTES * usize::from(index);
        // SAFETY: inside the ring, as in `descriptor`; the length is at 8, the id at 12, each
        // aligned to its size.
        unsafe {
            ptr::write_volatile(self.descriptors.add(offset + 8).cast(), written.to_le());
            ptr::write_volatile(self.descriptors.add(offset + 12).cast(), id.to_le());
        }
    }
}

// ---- beginning, and showing the driver what is done ---------------------------------------------

impl PackedRing {
    /// Continue where this ring was left, or begin a new one at the front-end's base.
    fn begin(&mut self, setup: &QueueSetup) {
        let mark = u16::from_le(self.atomic(self.device_area, MARK).load(Ordering::Relaxed));
        if let Some(left) = self.journal.left(setup, mark) {
            self.mark = mark;
            return self.resume(left);
        }
        self.began = Some(self.available);
        self.mark = self.journal.new_mark();
        self.put_mark();
        // Ordered after the mark by the first store of it.
        self.journal.open(setup, self.mark);
    }

    /// Put the mark into the ring's memory, which tells that the journal belongs to it.
    fn put_mark(&self) {
        self.atomic(self.device_area, MARK).store(self.mark.to_le(), Ordering::Relaxed);
        if let Some(log) = &self.log {
            log.device_part(MARK, 2);
        }
    }

    /// Finish an announced publication, unless only its last store is missing.
    fn resume(&mut self, left: JournalState) {
        self.published = Cursor::from_base(left.position);
        self.used = self.published;
        self.noted = usize::from(left.count);
        for place in 0..self.noted {
            let NotedCompletion { descriptors, .. } = self.journal.completion(place);
            self.used.advance(descriptors, self.size);
        }
        if self.noted > 0 {
            if self.is_available(self.published) {
                self.mark_used();
            }
            self.settle();
        }
        self.available = self.used;
    }

    /// Show the driver all noted completions. Returns whether there were any.
    #[inline]
    fn show(&mut self) -> bool {
        if self.noted == 0 {
            return false;
        }
        // At most COMPLETIONS_MAX, which `note` ensures.
        #[allow(clippy::cast_possible_truncation)]
        let count = self.noted as u16;
        self.journal.store(JournalState {
            position: self.published.to_base(),
            count,
            mark: self.mark,
        });
        self.mark_used();
        self.settle();
        true
    }

    /// Write the noted completions to the ring, the flags of the first descriptor last: the driver
    /// looks at no later one before it (2.8.6).
    #[inline]
    fn mark_used(&mut self) {
        let (first, mut cursor) = (self.published, self.published);
        let mut first_flags = 0;
        for place in 0..self.noted {
            let NotedCompletion { id, descriptors, written } = self.journal.completion(place);
            self.write_used(cursor.index, id, written);
            let used = if cursor.wrap { AVAILABLE | USED } else { 0 };
            let flags = used | if written > 0 { flag::WRITE } else { 0 };
            if place == 0 {
                first_flags = flags;
            } else {
                // Ordered before the first one's flags by the release below.
                self.flags(cursor.index).store(flags.to_le(), Ordering::Relaxed);
            }
            // The contents of a file may change; the cursor stays in the ring even then.
            cursor.advance(descriptors.min(self.size), self.size);
        }
        // Release pairs with the driver's read barrier after it has read the flags (2.8.22).
        self.flags(first.index).store(first_flags.to_le(), Ordering::Release);
    }

    /// Record that the driver has seen all noted completions.
    #[inline]
    fn settle(&mut self) {
        if let Some(log) = &self.log {
            self.log_published(log, self.published.index);
        }
        self.journal.store(JournalState {
            position: self.used.to_base(),
            count: 0,
            mark: self.mark,
        });
        (self.published, self.noted) = (self.used, 0);
    }

    /// Mark in the log the descriptors that were marked used, from `first` to our position. Only a
    /// chain's first is written; the others lie between.
    #[cold]
    fn log_published(&self, log: &RingLog, first: u16) {
        let ahead = self.used.index.wrapping_sub(first);
        let count = if self.used.index > first { ahead } else { ahead.wrapping_add(self.size) };
        for (first, count) in runs(first, count, self.size) {
            log.descriptors(DESCRIPTOR_BYTES * first, DESCRIPTOR_BYTES * count);
        }
    }
}

// ---- what another backend did not give back -----------------------------------------------------

impl PackedRing {
    /// Give back the descriptors that the driver waits for behind the place where the ring began.
    ///
    /// A backend that a guest migrates away from may have used descriptors without marking their
    /// pages in the dirty log. DPDK marks other pages than it writes (lib/vhost/virtio_net.c,
    /// `vhost_flush_enqueue_shadow_packed`): it adds the offset into the descriptors to the address
    /// of the device area. Its last used descriptors are then still available here, and the driver
    /// waits for them for ever.
    ///
    /// `wish` tells where. A driver that asks for an event at a descriptor (2.8.14) asks for the
    /// next one it looks at. No descriptor from there on was given back, or the driver would not
    /// wait. So the driver writes none of them until we have given them back.
    ///
    /// They are given back with nothing written, like a lost packet. Returns whether there were
    /// any.
    #[cold]
    fn give_back(&mut self, began: Cursor, wish: Cursor) -> bool {
        let behind = wish.distance(began, self.size);
        if wish.index >= self.size || behind == 0 || behind > self.size {
            // The driver is there, or asks for a descriptor that does not exist.
            self.began = None;
            return false;
        }
        if !self.is_available(wish) {
            // The descriptor was given back, and the driver is about to look.
            return false;
        }
        self.began = None;
        let mut cursor = wish;
        while cursor != began && self.is_available(cursor) {
            let Some((id, next)) = self.chain_end(cursor, began) else { break };
            self.write_used(cursor.index, id, 0);
            let used = if cursor.wrap { AVAILABLE | USED } else { 0 };
            // Release pairs with the driver's read barrier after it has read the flags (2.8.22).
            self.flags(cursor.index).store(used.to_le(), Ordering::Release);
            self.given_back += cursor.distance(next, self.size);
            cursor = next;
        }
        if let Some(log) = &self.log {
            for (first, count) in runs(wish.index, behind, self.size) {
                log.descriptors(DESCRIPTOR_BYTES * first, DESCRIPTOR_BYTES * count);
            }
        }
        true
    }

    /// The id of the chain that starts at a cursor, and where the next one starts. None if it does
    /// not end by `limit`.
    fn chain_end(&self, mut cursor: Cursor, limit: Cursor) -> Option<(u16, Cursor)> {
        while cursor != limit {
            let Descriptor { buffer, id } = self.descriptor(cursor.index);
            cursor.advance(1, self.size);
            if buffer.flags & flag::NEXT == 0 {
                return Some((id, cursor));
            }
        }
        None
    }
}

// ---- taking chains ------------------------------------------------------------------------------

impl PackedRing {
    /// Append all entries of an indirect table (2.8.7), in order.
    fn push_table(
        &self,
        outer: u16,
        buffer: Buffer,
        gather: &mut Gather<'_, '_>,
    ) -> Result<(), Fault> {
        let entries_max = if self.indirect { self.size } else { 0 };
        let (table, entries) = indirect_table(gather.memory, outer, buffer, entries_max)?;
        for index in 0..entries {
            let Descriptor { mut buffer, .. } = Descriptor::parse(read_entry(table, index));
            // DPDK's driver presets this flag in its transmit tables and does not clear it in all
            // entries (vring_desc_init_indirect_packed, virtqueue_enqueue_xmit_packed).
            if gather.direction == Direction::FromGuest {
                buffer.flags &= !flag::WRITE;
            }
            if buffer.flags & flag::INDIRECT != 0 {
                let Buffer { flags, len, .. } = buffer;
                return Err(Fault::Indirect { index, flags, len });
            }
            gather.push(index, buffer)?;
        }
        Ok(())
    }
}

impl Layout for PackedRing {
    fn size(&self) -> u16 {
        self.size
    }

    fn position(&self) -> u32 {
        u32::from(self.available.to_base()) | u32::from(self.used.to_base()) << 16
    }

    fn glance(&self) -> Glance {
        let untouched = self.descriptor(0).buffer.is_zero();
        Glance { untouched, quiet: !self.is_available(self.available) }
    }

    fn retire(&mut self) -> u32 {
        self.journal.close();
        self.position()
    }

    fn reclaim(&mut self) {
        let mark = self.atomic(self.device_area, MARK).load(Ordering::Relaxed);
        if u16::from_le(mark) != self.mark {
            self.put_mark();
        }
    }

    #[inline]
    fn has_available(&mut self) -> Result<bool, Fault> {
        if self.noted >= SHOWN_AT && self.available == self.used {
            self.shown |= self.show();
        }
        Ok(self.is_available(self.available))
    }

    #[inline]
    fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
        segments: &mut Segments<'m>,
    ) -> Result<Chain, Fault> {
        let head = self.available.index;
        let mut cursor = self.available;
        let mut gather = Gather { memory, direction, segments };
        for descriptors in 1..=self.size {
            let Descriptor { buffer, id } = self.descriptor(cursor.index);
            if buffer.flags & flag::INDIRECT != 0 {
                self.push_table(cursor.index, buffer, &mut gather)?;
            } else {
                gather.push(cursor.index, buffer)?;
            }
            cursor.advance(1, self.size);
            if buffer.flags & flag::NEXT == 0 {
                self.available = cursor;
                // "the device … using the buffer ID of the last descriptor" (2.8.6).
                return Ok(Chain { id, descriptors });
            }
        }
        Err(Fault::Loop { head, size: self.size })
    }

    #[inline]
    fn take_one<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
    ) -> Option<(Chain, GuestSlice<'m>)> {
        let Descriptor { buffer, id } = self.descriptor(self.available.index);
        let piece = only_piece(memory, buffer, direction)?;
        self.available.advance(1, self.size);
        Some((Chain { id, descriptors: 1 }, piece))
    }

    #[inline]
    fn untake(&mut self, chain: Chain) {
        self.available.retreat(chain.descriptors, self.size);
    }

    #[inline]
    fn complete(&mut self, chain: Chain, written: u32) {
        let Chain { id, descriptors } = chain;
        self.journal.note(self.noted, NotedCompletion { id, descriptors, written });
        self.noted += 1;
        self.used.advance(descriptors, self.size);
        if let Some(undecided) = &mut self.undecided {
            *undecided = undecided.wrapping_add(descriptors);
        }
    }

    #[inline]
    fn has_unpublished(&self) -> bool {
        self.noted > 0 || self.shown
    }

    #[inline]
    fn take_given_back(&mut self) -> u16 {
        std::mem::take(&mut self.given_back)
    }

    /// One store of the first descriptor's flags.
    #[inline]
    fn publish(&mut self) -> bool {
        let shown = std::mem::take(&mut self.shown);
        self.show() || shown
    }

    /// By the driver's event suppression area (2.8.10, 2.8.14).
    #[inline]
    fn needs_notification(&mut self) -> bool {
        let moved = self.undecided.replace(0);
        let flags =
            u16::from_le(self.atomic(self.driver_area, EVENT_FLAGS).load(Ordering::Relaxed));
        match (flags, moved) {
            (EVENTS_DISABLE, _) => false,
            (EVENTS_DESCRIPTOR, Some(moved)) if self.event_idx => {
                let wish = u16::from_le(self.atomic(self.driver_area, 0).load(Ordering::Relaxed));
                let wish = Cursor::from_base(wish);
                if let Some(began) = self.began
                    && self.give_back(began, wish)
                {
                    return true;
                }
                // A position of the round before ours lies one ring size further back.
                let back = if wish.wrap == self.used.wrap { 0 } else { self.size };
                let event = wish.index.wrapping_sub(back);
                event_is_due(event, self.used.index, self.used.index.wrapping_sub(moved))
            }
            _ => true,
        }
    }

    /// By our event suppression area: all or nothing, since we poll or sleep.
    #[inline]
    fn want_kicks(&mut self, wanted: bool) {
        let flags = if wanted { EVENTS_ENABLE } else { EVENTS_DISABLE };
        self.atomic(self.device_area, EVENT_FLAGS).store(flags.to_le(), Ordering::Relaxed);
        if let Some(log) = &self.log {
            log.device_part(EVENT_FLAGS, 2);
        }
        // Pairs with the driver's barrier between making descriptors available and reading this.
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_goes_around_and_back() {
        for size in [1u16, 2, 3, 7, 256] {
            for by in 1..=size {
                let start = Cursor { index: size - 1, wrap: true };
                let mut cursor = start;
                cursor.advance(by, size);
                assert!(cursor.index < size);
                assert!(!cursor.wrap, "{by} from the last of {size} comes around");
                cursor.retreat(by, size);
                assert_eq!(cursor, start);
            }
        }
    }
}
