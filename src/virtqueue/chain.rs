//! The common parts of the two ring layouts: the pieces that descriptors name, and indirect tables.

use arrayvec::ArrayVec;

use crate::guest_memory::{GuestAddress, GuestMemory, GuestSlice};

use super::fault::Fault;

/// Pieces of the chains of one packet that we keep: the longest chain that QEMU itself allows. A
/// descriptor of no bytes counts as a piece, so this also bounds the walked descriptors.
const CHAIN_SEGMENTS_MAX: usize = 1024;

/// The pieces of guest memory that one or more chains name, in order.
pub type Segments<'m> = ArrayVec<GuestSlice<'m>, CHAIN_SEGMENTS_MAX>;

/// Bytes of a descriptor, in either layout and in indirect tables.
pub(super) const DESCRIPTOR_BYTES: usize = 16;

// These constants are small; bindgen gave them a wider type than the ring's fields have.
#[allow(clippy::cast_possible_truncation)]
pub(super) mod flag {
    use virtio_bindings::virtio_ring::{
        VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    };

    pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
}

/// Who may write the buffers of a queue: a net queue has only one kind (virtio 1.2, 5.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Device-readable: packets from the guest.
    FromGuest,
    /// Device-writable: packets to the guest.
    ToGuest,
}

/// A chain taken from a ring, to be completed or given back.
#[derive(Debug, PartialEq, Eq)]
pub struct Chain {
    /// The driver's name for it: its first descriptor (split) or its buffer id (packed).
    pub id: u16,
    /// Descriptors it has in the ring.
    pub(super) descriptors: u16,
}

/// A descriptor's data about one buffer, read once into our own memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Buffer {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
}

impl Buffer {
    /// Whether the entry has never been written.
    pub fn is_zero(self) -> bool {
        (self.address, self.len, self.flags) == (0, 0, 0)
    }
}

/// The fields of a descriptor's two words: address, length, and two of 16 bits, whose meaning
/// depends on the layout.
#[inline]
pub(super) fn fields([low, high]: [u64; 2]) -> (u64, u32, u16, u16) {
    let high = u64::from_le(high);
    // Each field is the named 32 or 16 bits of the second word.
    #[allow(clippy::cast_possible_truncation)]
    let (len, third, fourth) = (high as u32, (high >> 32) as u16, (high >> 48) as u16);
    (u64::from_le(low), len, third, fourth)
}

/// The piece that a descriptor names, if the descriptor is its whole chain and the buffer is in one
/// piece.
#[inline]
pub(super) fn only_piece(
    memory: &GuestMemory,
    Buffer { address, len, flags }: Buffer,
    direction: Direction,
) -> Option<GuestSlice<'_>> {
    let right = match direction {
        Direction::FromGuest => 0,
        Direction::ToGuest => flag::WRITE,
    };
    if flags & (flag::NEXT | flag::WRITE | flag::INDIRECT) != right {
        return None;
    }
    let piece = memory.translate(GuestAddress(address), len)?;
    (piece.len() as u64 == u64::from(len)).then_some(piece)
}

/// Looks up and collects a chain's pieces.
pub(super) struct Gather<'m, 's> {
    pub memory: &'m GuestMemory,
    pub direction: Direction,
    pub segments: &'s mut Segments<'m>,
}

impl Gather<'_, '_> {
    /// Append the buffer of descriptor `index`: one piece, or one per region it touches. A buffer
    /// of no bytes is an empty piece. DPDK's driver sends one for each empty segment of an mbuf
    /// (virtqueue_enqueue_xmit_packed), though QEMU's devices refuse it (virtqueue_map_desc).
    #[inline]
    pub fn push(&mut self, index: u16, buffer: Buffer) -> Result<(), Fault> {
        let Self { memory, direction, segments } = self;
        let Buffer { address, len, flags } = buffer;
        if (flags & flag::WRITE != 0) != (*direction == Direction::ToGuest) {
            return Err(Fault::WrongDirection { index, flags });
        }
        let full = Fault::TooManySegments { head: index, limit: CHAIN_SEGMENTS_MAX };
        if len == 0 {
            return segments.try_push(GuestSlice::empty()).map_err(|_| full);
        }
        let mut done = 0;
        // Each turn ends in another region, so there are at most REGIONS_MAX.
        while done < len {
            let unmapped = Fault::Unmapped { index, address, len };
            let start = address.checked_add(u64::from(done)).ok_or(unmapped)?;
            let piece = memory.translate(GuestAddress(start), len - done).ok_or(unmapped)?;
            segments.try_push(piece).map_err(|_| full)?;
            // A piece is no longer than requested, a u32.
            #[allow(clippy::cast_possible_truncation)]
            let piece_len = piece.len() as u32;
            done += piece_len;
        }
        Ok(())
    }
}

/// The table that an indirect descriptor names (2.7.5.3, 2.8.7), and its number of entries. The
/// descriptor must be the last of its chain, and the table no longer than the ring; all drivers and
/// QEMU comply. A table that continues in another region would need a gathered read; no driver
/// makes one.
pub(super) fn indirect_table(
    memory: &GuestMemory,
    index: u16,
    buffer: Buffer,
    entries_max: u16,
) -> Result<(GuestSlice<'_>, u16), Fault> {
    let Buffer { address, len, flags } = buffer;
    let entries = u16::try_from(len / 16).unwrap_or(u16::MAX);
    let well_formed = flags & flag::NEXT == 0 && len % 16 == 0 && entries > 0;
    if !well_formed || entries > entries_max {
        return Err(Fault::Indirect { index, flags, len });
    }
    let table = memory.translate(GuestAddress(address), len);
    let table = table
        .filter(|table| table.len() as u64 == u64::from(len))
        .ok_or(Fault::Unmapped { index, address, len })?;
    Ok((table, entries))
}

/// The two words of entry `index` of an indirect table, which need not be aligned.
pub(super) fn read_entry(table: GuestSlice<'_>, index: u16) -> [u64; 2] {
    let mut bytes = [0; DESCRIPTOR_BYTES];
    table.part(DESCRIPTOR_BYTES * usize::from(index), DESCRIPTOR_BYTES).read(&mut bytes);
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("8 of 16 bytes"));
    [word(0), word(8)]
}

/// vring_need_event of virtio 1.2, 2.7.7.1: whether the move from `old` to `new` passed `event`.
pub(super) fn event_is_due(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
