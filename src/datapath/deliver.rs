//! Delivering frames into a guest's receive ring: runs of the usual kind, and any one.

use arrayvec::ArrayVec;

use crate::device::net_header;
use crate::guest_memory::{GuestMemory, GuestSlice};
use crate::packet::Offload;
use crate::virtqueue::{
    Chain, DeviceRing, Direction, Fault, Layout, Ring, RingKind, Run, Segments, TAKEN_MAX,
};

use super::frame::{CompleteFrame, FrameView, GuestWriter};

/// Most receive chains merged for one frame: as many as may be taken at once. The smallest buffers
/// Linux posts hold about 1.5 KiB.
const CHAINS_MAX: usize = TAKEN_MAX;

/// Descriptors of one ring that a turn walks for unusual frames. Such a frame does not fit into one
/// buffer in one piece, or finds no buffer. A full ring of QEMU's longest takes half of this. The
/// walk may exceed it by one frame, of at most 1024 descriptors.
pub(super) const WALK_MAX: usize = 2048;

/// Why a frame was not delivered. The ring is then as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Undelivered {
    /// Not enough buffers posted.
    NoBuffers,
    /// A chain too small, and no merging.
    BufferSize,
    /// The guest broke the ring's rules.
    Fault(Fault),
}

impl From<Fault> for Undelivered {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// The outcome of a run: how many frames, and bytes, from its start were delivered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    pub frames: usize,
    pub bytes: u64,
}

/// Copy `frames` into receive buffers of `ring` and complete them, as [`deliver`] does.
///
/// It stops at the first frame longer than `frame_max` allows, or without a long enough buffer in
/// one piece: that frame is for [`deliver`].
#[inline]
pub(super) fn deliver_run(
    ring: &mut Ring,
    frames: &[impl CompleteFrame],
    frame_max: u32,
) -> Delivered {
    let header_len = ring.kind.header_len;
    match ring.queue.parts() {
        (memory, DeviceRing::Split(ring)) => run_to(memory, ring, header_len, frames, frame_max),
        (memory, DeviceRing::Packed(ring)) => run_to(memory, ring, header_len, frames, frame_max),
    }
}

#[inline]
fn run_to<F: CompleteFrame>(
    memory: &GuestMemory,
    ring: &mut impl Layout,
    header_len: usize,
    frames: &[F],
    frame_max: u32,
) -> Delivered {
    let mut run = Run::new();
    ring.take_run(memory, Direction::ToGuest, frames.len(), &mut run);
    let fits = |(frame, (_, piece)): &(&F, &(Chain, GuestSlice<'_>))| {
        let needed = header_len + frame.frame_len() as usize;
        // Another core had the buffer last: fetch its lines while earlier frames are written.
        piece.prefetch_for_write(needed);
        frame.is_within(frame_max) && piece.len() >= needed
    };
    let fitting = frames.iter().zip(&run).take_while(fits).count();
    while run.len() > fitting {
        run.pop().into_iter().for_each(|(chain, _)| ring.untake(chain));
    }
    let header = net_header::emit(&Offload::PLAIN, 1);
    let mut delivered = Delivered { frames: fitting, bytes: 0 };
    for (frame, (chain, piece)) in frames.iter().zip(run) {
        let len = frame.frame_len();
        if header_len == net_header::LEN {
            // The compiler knows this length.
            piece.write(&header);
        } else {
            piece.write(&header[..header_len]);
        }
        frame.copy_to_slice(piece.part(header_len, len as usize));
        let written = header_len as u64 + u64::from(len);
        memory.written(&[piece], written);
        // A frame's length.
        #[allow(clippy::cast_possible_truncation)]
        ring.complete(chain, written as u32);
        delivered.bytes += u64::from(len);
    }
    delivered
}

/// Copy `frame` into receive buffers of `ring` and complete them; the guest sees it when the ring
/// is published (virtio 1.2, 5.1.6.4).
///
/// `walk` is how many descriptors this turn may still walk for an unusual frame; none left counts
/// as no buffers.
#[inline]
pub(super) fn deliver(
    ring: &mut Ring,
    frame: &FrameView<'_>,
    walk: &mut usize,
) -> Result<(), Undelivered> {
    let kind = ring.kind;
    match ring.queue.parts() {
        (memory, DeviceRing::Split(ring)) => deliver_to(memory, ring, kind, walk, frame),
        (memory, DeviceRing::Packed(ring)) => deliver_to(memory, ring, kind, walk, frame),
    }
}

#[inline]
fn deliver_to(
    memory: &GuestMemory,
    ring: &mut impl Layout,
    kind: RingKind,
    walk: &mut usize,
    frame: &FrameView<'_>,
) -> Result<(), Undelivered> {
    let needed = kind.header_len as u64 + u64::from(frame.len());
    if !ring.has_available()? {
        return Err(Undelivered::NoBuffers);
    }
    // The usual case: a buffer in one piece that is long enough.
    if let Some((chain, piece)) = ring.take_one(memory, Direction::ToGuest) {
        if piece.len() as u64 >= needed {
            let header = net_header::emit(frame.offload(), 1);
            if kind.header_len == net_header::LEN {
                // The compiler knows this length.
                piece.write(&header);
            } else {
                piece.write(&header[..kind.header_len]);
            }
            frame.copy_to_slice(piece.part(kind.header_len, frame.len() as usize));
            memory.written(&[piece], needed);
            // A frame's length.
            #[allow(clippy::cast_possible_truncation)]
            ring.complete(chain, needed as u32);
            return Ok(());
        }
        ring.untake(chain);
    }
    deliver_over_several(memory, ring, kind, walk, frame)
}

/// Fill as many pieces and chains as the frame needs.
#[inline(never)]
fn deliver_over_several(
    memory: &GuestMemory,
    ring: &mut impl Layout,
    kind: RingKind,
    walk: &mut usize,
    frame: &FrameView<'_>,
) -> Result<(), Undelivered> {
    let needed = kind.header_len as u64 + u64::from(frame.len());
    if *walk == 0 {
        return Err(Undelivered::NoBuffers);
    }
    let mut room = ReceiveBuffers { segments: Segments::new(), chains: ArrayVec::new() };
    let gathered = gather(memory, ring, kind, needed, &mut room);
    let ReceiveBuffers { segments, chains } = &mut room;
    *walk = walk.saturating_sub(segments.len());
    if let Err(refusal) = gathered {
        // In the reverse order of taking.
        while let Some((chain, _)) = chains.pop() {
            ring.untake(chain);
        }
        return Err(refusal);
    }
    // CHAINS_MAX fits.
    #[allow(clippy::cast_possible_truncation)]
    let buffers = chains.len() as u16;
    let mut writer = GuestWriter::new(segments);
    writer.write(&net_header::emit(frame.offload(), buffers)[..kind.header_len]);
    frame.copy_to_guest(&mut writer);
    memory.written(segments, needed);
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

/// Receive buffers for one frame.
struct ReceiveBuffers<'m> {
    /// Their pieces.
    segments: Segments<'m>,
    /// Their chains, and how many bytes each has.
    chains: ArrayVec<(Chain, u64), CHAINS_MAX>,
}

/// Take chains until there is room for `needed` bytes.
fn gather<'m>(
    memory: &'m GuestMemory,
    ring: &mut impl Layout,
    kind: RingKind,
    needed: u64,
    room: &mut ReceiveBuffers<'m>,
) -> Result<(), Undelivered> {
    let ReceiveBuffers { segments, chains } = room;
    let (mut gathered, mut counted) = (0, 0);
    while gathered < needed {
        if chains.is_full() || (!kind.mergeable && !chains.is_empty()) {
            return Err(Undelivered::BufferSize);
        }
        if !ring.has_available()? {
            return Err(Undelivered::NoBuffers);
        }
        let chain = ring.take(memory, Direction::ToGuest, segments)?;
        let bytes = segments[counted..].iter().map(|piece| piece.len() as u64).sum();
        counted = segments.len();
        chains.push((chain, bytes));
        gathered += bytes;
    }
    Ok(())
}
