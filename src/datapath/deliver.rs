//! Delivering one frame into a guest's receive ring.

use arrayvec::ArrayVec;

use crate::device::net_header;
use crate::guest_memory::GuestMemory;
use crate::virtqueue::{Chain, DeviceRing, Direction, Fault, Layout, Ring, RingKind, Segments};

use super::frame::{FrameView, GuestWriter};

/// Most receive chains merged for one frame. The smallest buffers Linux posts hold about 1.5 KiB.
const CHAINS_MAX: usize = 64;

/// Why a frame was not delivered. The ring is then as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Not enough buffers posted.
    NoBuffers,
    /// A chain too small, and no merging.
    BufferSize,
    /// The guest broke the ring's rules.
    Fault(Fault),
}

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Copy `frame` into receive buffers of `ring` and complete them; the guest sees it when the ring
/// is published (virtio 1.2, 5.1.6.4).
#[inline]
pub(super) fn deliver(ring: &mut Ring, frame: &FrameView<'_>) -> Result<(), Refusal> {
    let kind = ring.kind;
    match ring.queue.parts() {
        (memory, DeviceRing::Split(ring)) => deliver_to(memory, ring, kind, frame),
        (memory, DeviceRing::Packed(ring)) => deliver_to(memory, ring, kind, frame),
    }
}

#[inline]
fn deliver_to(
    memory: &GuestMemory,
    ring: &mut impl Layout,
    kind: RingKind,
    frame: &FrameView<'_>,
) -> Result<(), Refusal> {
    let needed = kind.header_len as u64 + u64::from(frame.len());
    let mut segments = Segments::new();
    let mut chains: ArrayVec<(Chain, u64), CHAINS_MAX> = ArrayVec::new();
    let (mut room, mut counted) = (0, 0);
    while room < needed {
        let refusal = if chains.is_full() || (!kind.mergeable && !chains.is_empty()) {
            Some(Refusal::BufferSize)
        } else if !ring.has_available()? {
            Some(Refusal::NoBuffers)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            // In the reverse order of taking.
            while let Some((chain, _)) = chains.pop() {
                ring.untake(chain);
            }
            return Err(refusal);
        }
        let chain = ring.take(memory, Direction::ToGuest, &mut segments)?;
        let bytes = segments[counted..].iter().map(|piece| piece.len() as u64).sum();
        counted = segments.len();
        chains.push((chain, bytes));
        room += bytes;
    }
    // CHAINS_MAX fits.
    #[allow(clippy::cast_possible_truncation)]
    let buffers = chains.len() as u16;
    let mut writer = GuestWriter::new(&segments);
    writer.write(&net_header::emit(frame.offload(), buffers)[..kind.header_len]);
    frame.copy_to_guest(&mut writer);
    memory.written(&segments, needed);
    let mut left = needed;
    // Drained: to move the vector would copy all of its room, a kilobyte per packet.
    for (chain, room) in chains.drain(..) {
        let written = left.min(room);
        left -= written;
        // At most `needed`, a frame's length.
        #[allow(clippy::cast_possible_truncation)]
        ring.complete(chain, written as u32);
    }
    Ok(())
}
