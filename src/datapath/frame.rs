//! A frame on its way, wherever its bytes are.

use crate::device::groups::is_flow_control;
use crate::device::net_header::{self, NetHeader};
use crate::device::offloads::Offloads;
use crate::guest_memory::GuestSlice;
use crate::packet::{FLOW_BYTES_MAX, HEADERS_MAX, Offload, flow_hash, tag_bytes};

use super::limits::{ETHERNET_BYTES, is_within};

/// An Ethernet frame: its start, which is in our memory, then the rest, and the work left to do on
/// it.
///
/// The headers of a guest's frame, which decide its way, are read once into the start. So the
/// delivered headers are those that were decided on. The rest is copied straight from the guest's
/// memory to its destination.
#[derive(Clone, Copy, Debug)]
pub(super) struct FrameView<'f> {
    start: &'f [u8],
    rest: FrameRest<'f>,
    len: u32,
    offload: Offload,
}

/// The rest of a frame.
#[derive(Clone, Copy, Debug)]
enum FrameRest<'f> {
    Guest(&'f [GuestSlice<'f>]),
    Ours(&'f [&'f [u8]]),
}

impl<'f> FrameView<'f> {
    /// A complete frame that is ours whole.
    #[inline]
    pub fn whole(bytes: &'f [u8]) -> Self {
        Self::of_pieces(bytes, &[])
    }

    /// A complete frame that is ours in pieces.
    #[inline]
    pub fn of_pieces(start: &'f [u8], rest: &'f [&'f [u8]]) -> Self {
        let len = start.len() + rest.iter().map(|piece| piece.len()).sum::<usize>();
        // Frames in our memory come from UMEM frames or packet buffers: 64 KiB and some.
        #[allow(clippy::cast_possible_truncation)]
        Self { start, rest: FrameRest::Ours(rest), len: len as u32, offload: Offload::PLAIN }
    }

    /// This frame with other work left to do.
    #[inline]
    pub fn with_offload(self, offload: Offload) -> Self {
        Self { offload, ..self }
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The work left to do on it.
    #[inline]
    pub fn offload(&self) -> &Offload {
        &self.offload
    }

    /// Whether a receiver that accepts these offloads gets it as it is.
    ///
    /// A checksum outside a transport header is left to no receiver: to complete it is to write
    /// into bytes that were already decided on.
    #[inline]
    pub fn can_be_left_to(&self, accepted: Offloads) -> bool {
        let Offload { checksum, segmentation } = &self.offload;
        let known = checksum.is_none_or(|checksum| {
            // With segmentation, the check of the guest's header has established this.
            segmentation.is_some() || checksum.is_of_transport(self.start)
        });
        accepted.allow(&self.offload) && known
    }

    /// Whether it is a frame of an interface with this [`frame_max`](super::limits::frame_max), or
    /// will be cut into such.
    #[inline]
    pub fn is_within(&self, frame_max: u32) -> bool {
        let longest = match &self.offload.segmentation {
            None => self.len,
            Some(segmentation) => segmentation.longest(self.len),
        };
        is_within(frame_max, longest, self.start)
    }

    /// The destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.start[..6]);
        mac
    }

    /// The source address.
    #[inline]
    pub fn source(&self) -> [u8; 6] {
        let mut mac = [0; 6];
        mac.copy_from_slice(&self.start[6..12]);
        mac
    }

    /// Its first bytes, all that [`flow_hash`](crate::packet::flow_hash) looks at.
    #[inline]
    pub fn start(&self) -> &'f [u8] {
        self.start
    }

    /// Read all of it from the start.
    #[inline]
    pub fn reader(&self) -> FrameReader<'f> {
        FrameReader { now: FramePiece::Ours(self.start), rest: self.rest }
    }

    /// Copy all of it to the front of `to`, which has room; returns that part.
    pub fn copy_to<'t>(&self, to: &'t mut [u8]) -> &'t mut [u8] {
        let to = &mut to[..self.len as usize];
        self.reader().fill(to);
        to
    }

    /// Copy all of it to one piece of a guest's memory, which is exactly as long.
    #[inline]
    pub fn copy_to_slice(&self, to: GuestSlice<'_>) {
        to.write(self.start);
        let mut at = self.start.len();
        match self.rest {
            FrameRest::Guest(pieces) => {
                for piece in pieces {
                    to.part(at, piece.len()).copy_from(*piece, piece.len());
                    at += piece.len();
                }
            }
            FrameRest::Ours(pieces) => {
                for piece in pieces {
                    to.part(at, piece.len()).write(piece);
                    at += piece.len();
                }
            }
        }
    }

    /// Copy all of it to a guest's buffers.
    #[inline]
    pub fn copy_to_guest(&self, to: &mut GuestWriter<'_, '_>) {
        to.write(self.start);
        match self.rest {
            FrameRest::Guest(pieces) => pieces.iter().for_each(|piece| to.copy(*piece)),
            FrameRest::Ours(pieces) => pieces.iter().for_each(|piece| to.write(piece)),
        }
    }
}

/// Reads a frame in order, across its pieces.
#[derive(Debug)]
pub(super) struct FrameReader<'f> {
    now: FramePiece<'f>,
    rest: FrameRest<'f>,
}

/// The unread part of the current piece.
#[derive(Clone, Copy, Debug)]
enum FramePiece<'f> {
    Guest(GuestSlice<'f>),
    Ours(&'f [u8]),
}

impl FrameReader<'_> {
    /// Fill `room` with the next bytes: callers ask for no more than the frame has.
    #[inline]
    pub fn fill(&mut self, mut room: &mut [u8]) {
        loop {
            let done = self.fill_from_piece(room);
            room = &mut room[done..];
            if room.is_empty() {
                return;
            }
            self.next_piece();
        }
    }

    #[inline]
    fn fill_from_piece(&mut self, room: &mut [u8]) -> usize {
        match &mut self.now {
            FramePiece::Ours(bytes) => {
                let (now, later) = bytes.split_at(bytes.len().min(room.len()));
                room[..now.len()].copy_from_slice(now);
                *bytes = later;
                now.len()
            }
            FramePiece::Guest(piece) => {
                let take = piece.len().min(room.len());
                piece.read(&mut room[..take]);
                *piece = piece.part(take, piece.len() - take);
                take
            }
        }
    }

    #[inline]
    fn next_piece(&mut self) {
        match &mut self.rest {
            FrameRest::Guest(pieces) => {
                self.now = FramePiece::Guest(pieces[0]);
                *pieces = &pieces[1..];
            }
            FrameRest::Ours(pieces) => {
                self.now = FramePiece::Ours(pieces[0]);
                *pieces = &pieces[1..];
            }
        }
    }
}

// ---- a packet from a guest ----------------------------------------------------------------------

/// A packet from a guest that is no frame: shorter than its virtio-net and Ethernet headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runt;

/// The first bytes of a packet from a guest, read once: the virtio-net and the Ethernet header.
#[derive(Debug)]
pub(super) struct Start {
    /// The virtio-net header.
    pub header: NetHeader,
    ethernet: [u8; ETHERNET_BYTES as usize],
    rest_from: usize,
    len: u32,
}

impl Start {
    /// Read the two headers off the front of `pieces`; the first is `header_len` bytes long.
    #[inline]
    pub fn read(pieces: &mut [GuestSlice<'_>], header_len: usize) -> Result<Self, Runt> {
        const BYTES: usize = net_header::LEN + ETHERNET_BYTES as usize;
        let total: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        let wanted = header_len + ETHERNET_BYTES as usize;
        if total < wanted as u64 {
            return Err(Runt);
        }
        let mut bytes = [0; BYTES];
        let rest_from = match pieces {
            // The usual case, with a length that the compiler knows.
            [first, ..] if header_len == net_header::LEN && first.len() >= BYTES => {
                first.read(&mut bytes);
                *first = first.part(BYTES, first.len() - BYTES);
                0
            }
            _ => read_front(pieces, 0, &mut bytes[..wanted]),
        };
        let (header, ethernet) = bytes[..wanted].split_at(header_len);
        let header = NetHeader::parse(header.first_chunk().expect("ten or twelve bytes"));
        let len = u32::try_from(total - header_len as u64).unwrap_or(u32::MAX);
        let ethernet = ethernet.try_into().expect("the length says so");
        Ok(Self { header, ethernet, rest_from, len })
    }

    /// Bytes of the frame.
    #[inline]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether it has a VLAN tag, so that this start is not enough to tell how long it may be.
    #[inline]
    pub fn is_tagged(&self) -> bool {
        tag_bytes(&self.ethernet) > 0
    }

    /// The frame, continued in `pieces`: for a complete and untagged one whose destination alone
    /// decides.
    #[inline]
    pub fn frame<'f>(&'f self, pieces: &'f [GuestSlice<'f>]) -> FrameView<'f> {
        FrameView {
            start: &self.ethernet,
            rest: FrameRest::Guest(&pieces[self.rest_from..]),
            len: self.len,
            offload: Offload::PLAIN,
        }
    }

    /// Read on to the end of all headers there may be.
    pub fn read_headers(&self, pieces: &mut [GuestSlice<'_>]) -> FrameHeaders {
        let mut bytes = [0; HEADERS_MAX];
        let read = HEADERS_MAX.min(self.len as usize);
        let (ethernet, more) = bytes[..read].split_at_mut(self.ethernet.len());
        ethernet.copy_from_slice(&self.ethernet);
        let rest_from = read_front(pieces, self.rest_from, more);
        FrameHeaders { bytes, read, rest_from, len: self.len }
    }
}

/// The first [`HEADERS_MAX`] bytes of a frame from a guest, read once.
#[derive(Debug)]
pub(super) struct FrameHeaders {
    bytes: [u8; HEADERS_MAX],
    read: usize,
    rest_from: usize,
    len: u32,
}

impl FrameHeaders {
    /// The bytes that were read.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.read]
    }

    /// The frame, continued in `pieces`, with this work left to do.
    #[inline]
    pub fn frame<'f>(&'f self, pieces: &'f [GuestSlice<'f>], offload: Offload) -> FrameView<'f> {
        FrameView {
            start: self.bytes(),
            rest: FrameRest::Guest(&pieces[self.rest_from..]),
            len: self.len,
            offload,
        }
    }
}

/// Read the first bytes of a chain, which has at least that many from piece `index` on. They are
/// cut off the piece in which they end. Returns the index of that piece.
#[inline]
fn read_front(pieces: &mut [GuestSlice<'_>], mut index: usize, bytes: &mut [u8]) -> usize {
    let mut read = 0;
    while read < bytes.len() {
        let piece = pieces[index];
        let take = piece.len().min(bytes.len() - read);
        piece.read(&mut bytes[read..read + take]);
        read += take;
        if read == bytes.len() {
            pieces[index] = piece.part(take, piece.len() - take);
            return index;
        }
        index += 1;
    }
    index
}

// ---- frames of a run ----------------------------------------------------------------------------

/// A complete frame of a run: the only properties that the loops over runs need.
pub(super) trait CompleteFrame {
    /// Bytes.
    fn frame_len(&self) -> u32;

    /// Its first bytes, which are ours.
    fn start(&self) -> &[u8];

    /// Whether it is one of an interface with this [`frame_max`](super::limits::frame_max), as far
    /// as its first bytes tell.
    #[inline]
    fn is_within(&self, frame_max: u32) -> bool {
        is_within(frame_max, self.frame_len(), self.start())
    }

    /// Copy all of it to a piece of a guest's memory, which is exactly as long.
    fn copy_to_slice(&self, to: GuestSlice<'_>);
}

/// A complete frame from a guest, in one piece: its virtio-net and Ethernet header, read once, and
/// the rest of it.
#[derive(Debug)]
pub(super) struct GuestPacket<'m> {
    ethernet: [u8; ETHERNET_BYTES as usize],
    len: u32,
    rest: GuestSlice<'m>,
}

impl<'m> GuestPacket<'m> {
    /// Read the headers off the front of `piece`, of which the first is `header_len` bytes long.
    /// None for a packet that is no frame, has work left to do or is flow control: [`Start`]
    /// handles it.
    #[inline]
    pub fn read(piece: GuestSlice<'m>, header_len: usize) -> Option<Self> {
        const BYTES: usize = net_header::LEN + ETHERNET_BYTES as usize;
        // The compiler knows this length; a legacy driver's packets take the general path.
        if header_len != net_header::LEN || piece.len() < BYTES {
            return None;
        }
        let mut bytes = [0; BYTES];
        piece.read(&mut bytes);
        let (header, ethernet) = bytes.split_at(net_header::LEN);
        let ethernet = ethernet.try_into().expect("the length says so");
        let header = NetHeader::parse(header.first_chunk().expect("ten of twelve bytes"));
        if !header.is_plain() || is_flow_control(&ethernet) {
            return None;
        }
        let len = u32::try_from(piece.len() - net_header::LEN).ok()?;
        Some(Self { ethernet, len, rest: piece.part(BYTES, piece.len() - BYTES) })
    }

    /// The destination address.
    #[inline]
    pub fn destination(&self) -> [u8; 6] {
        let [a, b, c, d, e, f, ..] = self.ethernet;
        [a, b, c, d, e, f]
    }

    /// The source address.
    #[inline]
    pub fn source(&self) -> [u8; 6] {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = self.ethernet;
        [a, b, c, d, e, f]
    }

    /// [`flow_hash`] of it. The bytes that it covers are read again for this alone. A guest that
    /// changes them in the meantime chooses its queue pair, as it may anyway.
    #[inline]
    pub fn flow_hash(&self) -> u32 {
        let mut start = [0; FLOW_BYTES_MAX];
        let (ethernet, more) = start.split_at_mut(self.ethernet.len());
        ethernet.copy_from_slice(&self.ethernet);
        let read = more.len().min(self.rest.len());
        self.rest.read(&mut more[..read]);
        flow_hash(&start[..self.ethernet.len() + read])
    }

    /// Copy all of it to `to`, which is exactly as long.
    #[inline]
    pub fn copy_to(&self, to: &mut [u8]) {
        let (start, rest) = to.split_at_mut(self.ethernet.len());
        start.copy_from_slice(&self.ethernet);
        self.rest.read(rest);
    }
}

impl CompleteFrame for GuestPacket<'_> {
    #[inline]
    fn frame_len(&self) -> u32 {
        self.len
    }

    /// With one tag, if it has any: [`Start`] handles a frame whose second tag matters.
    #[inline]
    fn start(&self) -> &[u8] {
        &self.ethernet
    }

    #[inline]
    fn copy_to_slice(&self, to: GuestSlice<'_>) {
        to.write(&self.ethernet);
        to.part(self.ethernet.len(), self.rest.len()).copy_from(self.rest, self.rest.len());
    }
}

impl CompleteFrame for &[u8] {
    #[inline]
    fn frame_len(&self) -> u32 {
        // A frame of a UMEM.
        #[allow(clippy::cast_possible_truncation)]
        let len = self.len() as u32;
        len
    }

    #[inline]
    fn start(&self) -> &[u8] {
        self
    }

    #[inline]
    fn copy_to_slice(&self, to: GuestSlice<'_>) {
        to.write(self);
    }
}

// ---- to a guest ---------------------------------------------------------------------------------

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
