//! Delivering one frame into a guest's receive ring.

use arrayvec::ArrayVec;

use crate::device::net_header;
use crate::virtqueue::{Direction, Fault, Ring, Segments};

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
    let mergeable = ring.mergeable;
    let needed = net_header::LEN as u64 + u64::from(frame.len());
    let (memory, queue) = ring.queue.parts();
    let mut segments = Segments::new();
    let mut chains: ArrayVec<(u16, u64), CHAINS_MAX> = ArrayVec::new();
    let mut room = 0;
    let mut counted = 0;
    let refusal = loop {
        if room >= needed {
            break None;
        }
        if chains.is_full() || (!mergeable && !chains.is_empty()) {
            break Some(Refusal::BufferSize);
        }
        if !queue.has_available()? {
            break Some(Refusal::NoBuffers);
        }
        let head = queue.take(memory, Direction::ToGuest, &mut segments)?;
        let chain = segments[counted..].iter().map(|piece| piece.len() as u64).sum();
        counted = segments.len();
        chains.push((head, chain));
        room += chain;
    };
    // CHAINS_MAX fits.
    #[allow(clippy::cast_possible_truncation)]
    let buffers = chains.len() as u16;
    if let Some(refusal) = refusal {
        queue.untake(buffers);
        return Err(refusal);
    }
    let mut writer = GuestWriter::new(&segments);
    writer.write(&net_header::plain(buffers));
    frame.copy_to_guest(&mut writer);
    let mut left = needed;
    // By reference: to move the vector would copy all of its room, a kilobyte per packet.
    for &(head, room) in &chains {
        let written = left.min(room);
        left -= written;
        // At most `needed`, a frame's length.
        #[allow(clippy::cast_possible_truncation)]
        queue.complete(head, written as u32);
    }
    Ok(())
}
