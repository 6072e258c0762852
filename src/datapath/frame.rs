//! A frame on its way, wherever its bytes are.

use crate::device::net_header;
use crate::guest_memory::GuestSlice;
use crate::virtqueue::Segments;

use super::ETHERNET_BYTES;

/// An Ethernet frame: bytes that are ours, then bytes that are still a guest's.
///
/// From an uplink all bytes are ours. From a guest the Ethernet header is, since it was read once
/// to decide where the frame goes, and what is delivered must be what was decided on; the rest is
/// copied straight from the guest's memory to its destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameView<'f> {
    start: &'f [u8],
    rest: &'f [GuestSlice<'f>],
    len: u32,
}

impl<'f> FrameView<'f> {
    /// A frame that is ours whole.
    #[inline]
    pub fn whole(bytes: &'f [u8]) -> Self {
        // Frames in our memory fit in a UMEM frame or packet buffer.
        #[allow(clippy::cast_possible_truncation)]
        Self { start: bytes, rest: &[], len: bytes.len() as u32 }
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.start[..6]);
        mac
    }

    /// Copy all of it to `to`, which is exactly as long.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) {
        let (start, mut rest) = to.split_at_mut(self.start.len());
        start.copy_from_slice(self.start);
        for piece in self.rest {
            let (here, after) = rest.split_at_mut(piece.len());
            piece.read(here);
            rest = after;
        }
    }

    /// Copy all of it to a guest's buffers.
    #[inline]
    pub fn copy_to_guest(&self, to: &mut GuestWriter<'_, '_>) {
        to.write(self.start);
        for piece in self.rest {
            to.copy(*piece);
        }
    }
}

/// Why a packet from a guest is no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PacketError {
    /// Not even a virtio-net header and an Ethernet header.
    Runt,
    /// An offload that was not negotiated.
    Header,
}

/// The first bytes of a packet from a guest: the two headers, read once.
#[derive(Debug)]
pub(super) struct Start {
    bytes: [u8; START_BYTES],
    /// The piece that the frame goes on in; its read part is cut off.
    rest_from: usize,
    len: u32,
}

const START_BYTES: usize = net_header::LEN + ETHERNET_BYTES as usize;

impl Start {
    /// Read the headers off the front of `segments` and check the virtio-net header.
    #[inline]
    pub fn read(segments: &mut Segments<'_>) -> Result<Self, PacketError> {
        let total: u64 = segments.iter().map(|piece| piece.len() as u64).sum();
        if total < START_BYTES as u64 {
            return Err(PacketError::Runt);
        }
        let mut bytes = [0; START_BYTES];
        let rest_from = read_front(segments, &mut bytes);
        let header = bytes[..net_header::LEN].try_into().expect("the length says so");
        net_header::check_plain(header).map_err(|_| PacketError::Header)?;
        let len = u32::try_from(total - net_header::LEN as u64).unwrap_or(u32::MAX);
        Ok(Self { bytes, rest_from, len })
    }

    /// The frame, which goes on in `segments`.
    #[inline]
    pub fn frame<'f>(&'f self, segments: &'f Segments<'f>) -> FrameView<'f> {
        FrameView {
            start: &self.bytes[net_header::LEN..],
            rest: &segments[self.rest_from..],
            len: self.len,
        }
    }
}

/// Read the first bytes of a chain that has at least that many, and cut them off the piece in
/// which they end. Returns that piece's index.
#[inline]
fn read_front(segments: &mut Segments<'_>, bytes: &mut [u8]) -> usize {
    let mut read = 0;
    let mut index = 0;
    loop {
        let piece = segments[index];
        let take = piece.len().min(bytes.len() - read);
        piece.read(&mut bytes[read..read + take]);
        read += take;
        if read == bytes.len() {
            segments[index] = piece.part(take, piece.len() - take);
            return index;
        }
        index += 1;
    }
}

/// Writes to a guest's buffers in order, across their pieces.
#[derive(Debug)]
pub(super) struct GuestWriter<'s, 'm> {
    segments: &'s [GuestSlice<'m>],
    /// How much of the first piece is written.
    offset: usize,
}

impl<'s, 'm> GuestWriter<'s, 'm> {
    /// From the start of `segments`. Their total length must cover all that is written.
    #[inline]
    pub fn new(segments: &'s [GuestSlice<'m>]) -> Self {
        Self { segments, offset: 0 }
    }

    /// The next part of at most `len` bytes that is in one piece.
    #[inline]
    fn next(&mut self, len: usize) -> GuestSlice<'m> {
        while self.offset == self.segments[0].len() {
            self.segments = &self.segments[1..];
            self.offset = 0;
        }
        let piece = self.segments[0];
        let part = piece.part(self.offset, len.min(piece.len() - self.offset));
        self.offset += part.len();
        part
    }

    /// Write our bytes.
    #[inline]
    pub fn write(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let part = self.next(bytes.len());
            let (now, later) = bytes.split_at(part.len());
            part.write(now);
            bytes = later;
        }
    }

    /// Copy from a guest's memory.
    #[inline]
    pub fn copy(&mut self, mut from: GuestSlice<'_>) {
        while !from.is_empty() {
            let part = self.next(from.len());
            part.copy_from(from, part.len());
            from = from.part(part.len(), from.len() - part.len());
        }
    }
}
