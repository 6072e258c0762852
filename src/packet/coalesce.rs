//! Many TCP segments as one frame: receive coalescing in software, by the rules of Linux's GRO
//! (`tcp_gro_receive`, `inet_gro_receive`, `ipv6_gro_receive`). So a guest gets the frame that its
//! own kernel would have made. Segmentation can restore the segments.
//!
//! A [`Train`] borrows no frame: it knows each by a token of its caller, and copies the headers of
//! the first.

use arrayvec::ArrayVec;

use super::checksum::{self, set_packet_len};
use super::headers::{
    DESTINATION, DONT_FRAGMENT, FRAGMENT, FRAGMENT_OFFSET, HOP_BY_HOP, Headers, IPV4_LEN, IPV6_LEN,
    MORE_FRAGMENTS, Network, ROUTING, TCP, TCP_LEN, Transport, low_u16, put_u16, u16_at,
};
use super::offload::{HEADERS_MAX, Offload, SegmentKind, Segmentation};

/// Most segments of a train: a burst.
pub const TOKENS_MAX: usize = 64;

/// TCP's flags, with the reserved bits in front of them.
const FLAGS: u16 = 0x0fff;
const ACK: u16 = 0x010;
const PSH: u16 = 0x008;

/// A received TCP segment that may be merged with its neighbours. All its checksums are right, and
/// no flag except ACK and PSH is set. It has payload, and neither IPv4 options nor IPv6 extension
/// headers.
#[derive(Clone, Copy, Debug)]
pub struct TcpSegment {
    headers: Headers,
    /// Without the padding of Ethernet's shortest frames.
    payload_len: u16,
    sequence: u32,
    push: bool,
}

impl TcpSegment {
    /// Parse a received frame, which is whole. The checksum costs most, so it is verified only for
    /// a kind that the receiver `takes`.
    #[inline]
    #[must_use]
    pub fn parse(frame: &[u8], takes: impl FnOnce(SegmentKind) -> bool) -> Option<Self> {
        let headers = Headers::parse(frame)?;
        let transport_at = usize::from(headers.transport_at);
        let flags = u16_at(frame, transport_at + 12)? & FLAGS;
        let plain = match headers.network {
            Network::Ipv4 => IPV4_LEN,
            Network::Ipv6 => IPV6_LEN,
        };
        if headers.transport != Transport::Tcp
            || transport_at - usize::from(headers.network_at) != plain
            || flags & !PSH != ACK
            || !takes(kind_of(headers.network))
        {
            return None;
        }
        let payload_len = headers.packet_end(frame)? - usize::from(headers.payload_at);
        if payload_len == 0 || !checksum::verify(frame, &headers) {
            return None;
        }
        let payload_len = u16::try_from(payload_len).ok()?;
        let sequence = u32_at(frame, transport_at + 4)?;
        Some(Self { headers, payload_len, sequence, push: flags & PSH != 0 })
    }
}

/// The kind of segmentation that cuts a frame of merged TCP segments.
fn kind_of(network: Network) -> SegmentKind {
    match network {
        Network::Ipv4 => SegmentKind::Tcp4,
        Network::Ipv6 => SegmentKind::Tcp6,
    }
}

/// Payload of a train: bytes of the frame that `token` stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The caller's name for the frame.
    pub token: u16,
    /// Offset of the payload in the frame.
    pub start: u16,
    /// Its bytes.
    pub len: u16,
}

/// The outcome of pushing a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It is part of the train.
    Taken,
    /// It is the last part of the train: deliver now.
    TakenAndFull,
    /// It is not part of the train: deliver the train, then this segment, which may start another.
    Refused,
}

/// How IPv4's identification changes from segment to segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identification {
    /// By one.
    Counts,
    /// Not at all, which is allowed under DF (RFC 6864).
    Fixed,
}

/// Segments of one flow in sequence.
#[derive(Clone, Debug)]
pub struct Train {
    /// The headers of the first segment, whose flags collect the others' PSH.
    header: [u8; HEADERS_MAX],
    headers: Headers,
    pieces: ArrayVec<Piece, TOKENS_MAX>,
    /// Payload of all pieces.
    payload_len: u16,
    next_sequence: u32,
    identification: Identification,
    full: bool,
}

impl Train {
    /// A train of one segment: `frame`, from which `segment` was parsed.
    #[inline]
    #[must_use]
    pub fn start(token: u16, frame: &[u8], segment: &TcpSegment) -> Self {
        let headers = segment.headers;
        let payload_at = usize::from(headers.payload_at);
        let mut header = [0; HEADERS_MAX];
        header[..payload_at].copy_from_slice(&frame[..payload_at]);
        let mut pieces = ArrayVec::new();
        pieces.push(Piece { token, start: headers.payload_at, len: segment.payload_len });
        Self {
            header,
            headers,
            pieces,
            payload_len: segment.payload_len,
            next_sequence: segment.sequence.wrapping_add(segment.payload_len.into()),
            identification: Identification::Counts,
            full: segment.push,
        }
    }

    /// Whether a frame with its ports at the train's place is of the train's flow.
    #[inline]
    #[must_use]
    pub fn same_flow(&self, frame: &[u8]) -> bool {
        let ports = usize::from(self.headers.transport_at);
        let protocol_at = usize::from(self.headers.network_at) + self.protocol_offset();
        self.same_addresses(frame)
            && frame.get(ports..ports + 4) == Some(&self.header[ports..ports + 4])
            && frame[protocol_at] == self.header[protocol_at]
    }

    /// Whether any frame may be of the train's flow, so that it must not overtake the train.
    /// Options, extension headers or fragmentation may keep its ports from the train's place; then
    /// the addresses decide.
    #[inline]
    #[must_use]
    pub fn may_be_of_flow(&self, frame: &[u8]) -> bool {
        self.same_addresses(frame) && (self.has_ports_elsewhere(frame) || self.same_flow(frame))
    }

    /// Whether a frame has the same Ethernet header, tags and IP addresses.
    fn same_addresses(&self, frame: &[u8]) -> bool {
        let [network_at, transport_at] =
            [self.headers.network_at, self.headers.transport_at].map(usize::from);
        let addresses_at = match self.headers.network {
            Network::Ipv4 => network_at + 12,
            Network::Ipv6 => network_at + 8,
        };
        let addresses = addresses_at..transport_at;
        frame.get(addresses.clone()) == Some(&self.header[addresses])
            && frame[..network_at] == self.header[..network_at]
    }

    /// Whether a frame has its ports at another place. Its IP header, if it has no options, ends at
    /// the same place as the train's.
    fn has_ports_elsewhere(&self, frame: &[u8]) -> bool {
        let ip = &frame[usize::from(self.headers.network_at)..];
        match self.headers.network {
            Network::Ipv4 => {
                let fragment = u16::from_be_bytes([ip[6], ip[7]]);
                ip[9] == TCP
                    && (ip[0] & 0xf != 5 || fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0)
            }
            Network::Ipv6 => matches!(ip[6], HOP_BY_HOP | ROUTING | DESTINATION | FRAGMENT),
        }
    }

    /// The offset of the field that names the protocol behind the IP header.
    fn protocol_offset(&self) -> usize {
        match self.headers.network {
            Network::Ipv4 => 9,
            Network::Ipv6 => 6,
        }
    }

    /// Append a segment if it continues at the end of the train.
    #[inline]
    pub fn push(&mut self, token: u16, frame: &[u8], segment: &TcpSegment) -> Pushed {
        let size = self.pieces[0].len;
        let packet_len = usize::from(self.headers.payload_at - self.headers.network_at)
            + usize::from(self.payload_len)
            + usize::from(segment.payload_len);
        // Later segments may be shorter than the first, not longer.
        if self.full
            || segment.sequence != self.next_sequence
            || segment.payload_len > size
            || packet_len > usize::from(u16::MAX)
            || segment.headers != self.headers
            || !self.same_flow(frame)
            || !self.same_headers(frame)
        {
            return Pushed::Refused;
        }
        let Some(identification) = self.next_identification(frame) else {
            return Pushed::Refused;
        };
        self.identification = identification;
        self.payload_len += segment.payload_len;
        self.next_sequence = self.next_sequence.wrapping_add(segment.payload_len.into());
        let start = segment.headers.payload_at;
        self.pieces.push(Piece { token, start, len: segment.payload_len });
        if segment.push {
            let flags_at = usize::from(self.headers.transport_at) + 12;
            let flags = u16_at(&self.header, flags_at).unwrap_or(0);
            put_u16(&mut self.header, flags_at, flags | PSH);
        }
        self.full = segment.push || segment.payload_len < size || self.pieces.is_full();
        if self.full { Pushed::TakenAndFull } else { Pushed::Taken }
    }

    /// Whether the fields that a merged frame has only once are the same. For IP these are all
    /// except lengths, identification and checksum; for TCP the acknowledgement, the window, and
    /// the options with time stamps. Flags need no check: only PSH can differ.
    fn same_headers(&self, frame: &[u8]) -> bool {
        let [network_at, transport_at, payload_at] =
            [self.headers.network_at, self.headers.transport_at, self.headers.payload_at]
                .map(usize::from);
        let same = |from: usize, to: usize| frame[from..to] == self.header[from..to];
        let network = match self.headers.network {
            // Version and type of service; flags; time to live.
            Network::Ipv4 => {
                same(network_at, network_at + 2) && same(network_at + 6, network_at + 9)
            }
            // Version, traffic class and flow label; hop limit.
            Network::Ipv6 => {
                same(network_at, network_at + 4) && same(network_at + 7, network_at + 8)
            }
        };
        network
            && same(transport_at + 8, transport_at + 12)
            && same(transport_at + 14, transport_at + 16)
            && same(transport_at + TCP_LEN, payload_at)
    }

    /// How the identification changes with this frame; None if it changes in another way.
    fn next_identification(&self, frame: &[u8]) -> Option<Identification> {
        if self.headers.network == Network::Ipv6 {
            return Some(self.identification);
        }
        let at = usize::from(self.headers.network_at);
        let dont_fragment = u16_at(frame, at + 6)? & DONT_FRAGMENT != 0;
        let step = u16_at(frame, at + 4)?.wrapping_sub(u16_at(&self.header, at + 4)?);
        let pieces = low_u16(self.pieces.len());
        match (self.identification, step) {
            (Identification::Fixed, 0) => Some(Identification::Fixed),
            (Identification::Counts, 0) if pieces == 1 && dont_fragment => {
                Some(Identification::Fixed)
            }
            (Identification::Counts, step) if step == pieces => Some(Identification::Counts),
            _ => None,
        }
    }

    /// The payload, in order.
    #[inline]
    #[must_use]
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Whether it is one segment: deliver its frame as it came.
    #[inline]
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.pieces.len() == 1
    }

    /// Whether nothing can be added: deliver now.
    #[inline]
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes of the merged frame.
    #[inline]
    #[must_use]
    pub fn frame_len(&self) -> u32 {
        u32::from(self.headers.payload_at) + u32::from(self.payload_len)
    }

    /// The headers of the merged frame, and the work left to do on it. For a single segment, its
    /// own headers and no work.
    pub fn headers(&mut self) -> (&[u8], Offload) {
        let payload_at = usize::from(self.headers.payload_at);
        let header = &mut self.header[..payload_at];
        if self.pieces.len() == 1 {
            return (header, Offload::PLAIN);
        }
        let [network_at, transport_at] =
            [self.headers.network_at, self.headers.transport_at].map(usize::from);
        let end = payload_at + usize::from(self.payload_len);
        set_packet_len(header, &self.headers, transport_at, end - network_at);
        let partial = self.headers.checksum();
        let pseudo = checksum::pseudo_header(header, &self.headers, end - transport_at);
        let at = transport_at + usize::from(partial.offset);
        put_u16(header, at, checksum::fold(pseudo));
        let segmentation = Segmentation {
            kind: kind_of(self.headers.network),
            ecn: false,
            size: self.pieces[0].len,
            header_len: self.headers.payload_at,
            cut_at: self.headers.payload_at,
            repeated_len: self.headers.payload_at,
        };
        let offload = Offload { checksum: Some(partial), segmentation: Some(segmentation) };
        (header, offload)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().copied().map(u32::from_be_bytes)
}
