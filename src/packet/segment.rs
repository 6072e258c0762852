//! One frame as many: TCP and UDP segmentation, and IP fragmentation of a UDP datagram, as a NIC
//! or Linux does it (`tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment`).

use std::ops::Range;

use super::checksum::{self, finished, set_packet_len};
use super::headers::{
    DESTINATION, EXTENSIONS_MAX, FRAGMENT, HOP_BY_HOP, Headers, IPV4_LEN, IPV6_LEN, MORE_FRAGMENTS,
    Network, ROUTING, Transport, UDP_CHECKSUM_AT, UDP_LEN, low_u16, put_u16, put_u32, u16_at,
};
use super::offload::{HEADERS_MAX, PartialChecksum, SegmentKind, Segmentation};

/// Most frames that one is cut into. Linux sends no TCP segments smaller than 48 bytes with their
/// options (TCP_MIN_SND_MSS), so 36 with time stamps: 1821 of them are the longest packet. A guest
/// that asks for more only wants to cause work.
pub const SEGMENTS_MAX: u32 = 2048;

/// Bytes of an IPv6 fragment header (RFC 8200, 4.5).
const FRAGMENT_LEN: usize = 8;
/// Most bytes of IPv4 options, and so most options.
const IPV4_OPTIONS_MAX: usize = 40;

/// TCP's flags in its 14th byte.
const TCP_FLAGS_AT: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// The kind of segmentation that a guest asks for, in virtio's terms (virtio 1.2, 5.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantedKind {
    /// GSO_TCPV4.
    Tcp4,
    /// GSO_TCPV6.
    Tcp6,
    /// GSO_UDP: fragments, over either network.
    UdpFragments,
    /// GSO_UDP_L4: datagrams, over either network.
    Udp,
}

/// A guest's request in the header of a packet, not checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// How to cut.
    pub kind: WantedKind,
    /// GSO_ECN.
    pub ecn: bool,
    /// Payload in each.
    pub size: u16,
}

impl Segmentation {
    /// Check a guest's request against the headers it wrote. `start` is the frame, or its first
    /// [`HEADERS_MAX`] bytes; `frame_len` its length.
    ///
    /// None means that the frame must be dropped. It does not fit such a segmentation, or its
    /// checksum is not the transport's own. Or the sizes make no sense, or there would be more than
    /// [`SEGMENTS_MAX`] frames.
    #[must_use]
    pub fn check(
        start: &[u8],
        frame_len: u32,
        wanted: Wanted,
        checksum: PartialChecksum,
    ) -> Option<Self> {
        let headers = Headers::parse(start)?;
        let kind = fit(wanted.kind, &headers)?;
        let packet_len = frame_len.checked_sub(headers.network_at.into())?;
        let too_long = packet_len > u32::from(u16::MAX) || frame_len < headers.payload_at.into();
        if checksum != headers.checksum() || too_long {
            return None;
        }
        let congestion = headers.transport == Transport::Tcp
            && start[usize::from(headers.transport_at) + TCP_FLAGS_AT] & CWR != 0;
        if wanted.ecn && headers.transport == Transport::Udp {
            return None;
        }
        let cut = Cut::new(start, &headers, kind);
        let size = if kind == SegmentKind::UdpFragments { wanted.size & !7 } else { wanted.size };
        let cut_len = frame_len - u32::from(cut.at);
        // The first fragment has all headers (RFC 7112), and some payload if there is any.
        if size == 0
            || size < headers.payload_at - cut.at
            || cut_len.div_ceil(size.into()) > SEGMENTS_MAX
        {
            return None;
        }
        Some(Self {
            kind,
            ecn: wanted.ecn || congestion,
            size,
            header_len: headers.payload_at,
            cut_at: cut.at,
            repeated_len: cut.repeated_len,
        })
    }

    /// Bytes of the longest frame that results from a frame of `frame_len` bytes. A cut frame may
    /// be longer than `frame_len`: IPv6's fragments have a header that the datagram lacks.
    #[inline]
    #[must_use]
    pub fn longest(&self, frame_len: u32) -> u32 {
        let [cut_at, repeated_len, size] =
            [self.cut_at, self.repeated_len, self.size].map(u32::from);
        if frame_len <= cut_at + size { frame_len } else { repeated_len + size }
    }
}

/// The kind that fits the headers. Virtio's names for UDP do not name the network.
fn fit(wanted: WantedKind, headers: &Headers) -> Option<SegmentKind> {
    use {
        Network::{Ipv4, Ipv6},
        Transport::{Tcp, Udp},
    };
    match (wanted, headers.network, headers.transport) {
        (WantedKind::Tcp4, Ipv4, Tcp) => Some(SegmentKind::Tcp4),
        (WantedKind::Tcp6, Ipv6, Tcp) => Some(SegmentKind::Tcp6),
        (WantedKind::UdpFragments, _, Udp) => Some(SegmentKind::UdpFragments),
        (WantedKind::Udp, Ipv4, Udp) => Some(SegmentKind::Udp4),
        (WantedKind::Udp, Ipv6, Udp) => Some(SegmentKind::Udp6),
        _ => None,
    }
}

/// The place at which a frame is cut.
struct Cut {
    /// Start of the part that is cut.
    at: u16,
    /// Bytes in front of each piece.
    repeated_len: u16,
    /// The field that names the protocol of the cut part, in a fragmented IPv6 packet.
    next_header_at: usize,
}

impl Cut {
    fn new(start: &[u8], headers: &Headers, kind: SegmentKind) -> Self {
        if kind != SegmentKind::UdpFragments {
            let at = headers.payload_at;
            return Self { at, repeated_len: at, next_header_at: 0 };
        }
        match headers.network {
            Network::Ipv4 => {
                let at = headers.transport_at;
                Self { at, repeated_len: at, next_header_at: 0 }
            }
            Network::Ipv6 => {
                let (next_header_at, at) = fragmentable(start, headers);
                let at = low_u16(at);
                Self { at, repeated_len: at + low_u16(FRAGMENT_LEN), next_header_at }
            }
        }
    }
}

/// The start of the fragmentable part of an IPv6 packet, and the field that names its protocol. All
/// headers up to the routing header, or else the hop-by-hop header, go into every fragment (RFC
/// 8200, 4.5).
fn fragmentable(start: &[u8], headers: &Headers) -> (usize, usize) {
    let network_at = usize::from(headers.network_at);
    let (mut field_at, mut at) = (network_at + 6, network_at + IPV6_LEN);
    let mut found = (field_at, at);
    for _ in 0..EXTENSIONS_MAX {
        let extension = start[field_at];
        if !matches!(extension, HOP_BY_HOP | ROUTING | DESTINATION) {
            break;
        }
        field_at = at;
        at += 8 * (1 + usize::from(start[at + 1]));
        if extension != DESTINATION {
            found = (field_at, at);
        }
    }
    found
}

/// Cut `frame`, whole and with its checksum still partial, into frames with all checksums complete,
/// in order. Each is handed over as its headers, ours, and its payload, a part of `frame`. A frame
/// that fits in one gives one. `identification` is for the fragments of an IPv6 packet: a number
/// that was not used recently for another one.
///
/// Returns how many there were: none if `frame` is not the one that [`Segmentation::check`] saw.
pub fn segment(
    frame: &[u8],
    what: &Segmentation,
    checksum: PartialChecksum,
    identification: u32,
    each: impl FnMut(&[u8], &[u8]),
) -> u32 {
    let Some(headers) = Headers::parse(frame) else { return 0 };
    let whole = Whole { frame, headers, size: usize::from(what.size) };
    let longest = usize::from(headers.network_at) + usize::from(u16::MAX);
    let other = headers.payload_at != what.header_len || headers.checksum() != checksum;
    if other || what.size == 0 || frame.len() > longest {
        return 0;
    }
    match (what.kind, headers.transport) {
        (SegmentKind::UdpFragments, Transport::Udp) => whole.fragments(what, identification, each),
        (SegmentKind::Tcp4 | SegmentKind::Tcp6, Transport::Tcp)
        | (SegmentKind::Udp4 | SegmentKind::Udp6, Transport::Udp) => whole.segments(each),
        _ => 0,
    }
}

/// A frame that stands for several.
struct Whole<'f> {
    frame: &'f [u8],
    headers: Headers,
    size: usize,
}

impl Whole<'_> {
    /// TCP segments or UDP datagrams: all the headers in front of each piece of the payload, with
    /// their differences written for each.
    fn segments(&self, mut each: impl FnMut(&[u8], &[u8])) -> u32 {
        let Self { frame, headers, size } = self;
        let [network_at, transport_at, payload_at] =
            [headers.network_at, headers.transport_at, headers.payload_at].map(usize::from);
        let mut copy = [0; HEADERS_MAX];
        let (header, payload) = (&mut copy[..payload_at], &frame[payload_at..]);
        header.copy_from_slice(&frame[..payload_at]);
        let mut template = Template::new(header, headers, frame.len());
        let segments = payload.len().div_ceil(*size).max(1);
        for index in 0..segments {
            let at = index * size;
            let piece = &payload[at..payload.len().min(at + size)];
            match headers.transport {
                Transport::Tcp => template.set_tcp(at, index == 0, index + 1 == segments),
                Transport::Udp => template.set_udp_len(UDP_LEN + piece.len()),
            }
            template.set_identification(index);
            let end = payload_at + piece.len();
            set_packet_len(template.header, headers, transport_at, end - network_at);
            template.set_checksum(piece);
            each(template.header, piece);
        }
        u32::try_from(segments).unwrap_or(u32::MAX)
    }
}

/// The headers of a frame, which become those of each of its segments in turn.
struct Template<'h> {
    header: &'h mut [u8],
    headers: Headers,
    /// TCP's first sequence number and its flags.
    sequence: u32,
    flags: u8,
    /// IPv4's first identification.
    identification: u16,
    /// Sum of the pseudo header without its length. Like Linux, it uses the guest's sum. With a
    /// routing header, that sum does not use the address in the IPv6 header (RFC 8200, 8.1).
    pseudo: u32,
}

impl<'h> Template<'h> {
    fn new(header: &'h mut [u8], headers: &Headers, frame_len: usize) -> Self {
        let [network_at, transport_at] =
            [headers.network_at, headers.transport_at].map(usize::from);
        let field = |at| u16_at(header, at).unwrap_or(0);
        let partial = headers.checksum();
        let sum = field(transport_at + usize::from(partial.offset));
        let (mut sequence, mut flags, mut identification) = (0, 0, 0);
        if headers.transport == Transport::Tcp {
            let [high, low] = [4, 6].map(|offset| u32::from(field(transport_at + offset)));
            sequence = high << 16 | low;
            flags = header[transport_at + TCP_FLAGS_AT];
        }
        if headers.network == Network::Ipv4 {
            identification = field(network_at + 4);
        }
        let pseudo = u32::from(sum) + u32::from(!low_u16(frame_len - transport_at));
        Self { header, headers: *headers, sequence, flags, identification, pseudo }
    }

    /// CWR goes into the first segment, since it answers one event; FIN and PSH go into the last.
    fn set_tcp(&mut self, offset: usize, first: bool, last: bool) {
        let at = usize::from(self.headers.transport_at);
        let offset = u32::from(low_u16(offset));
        put_u32(self.header, at + 4, self.sequence.wrapping_add(offset));
        let not_first = if first { 0 } else { CWR };
        let not_last = if last { 0 } else { FIN | PSH };
        self.header[at + TCP_FLAGS_AT] = self.flags & !(not_first | not_last);
    }

    fn set_udp_len(&mut self, len: usize) {
        put_u16(self.header, usize::from(self.headers.transport_at) + 4, low_u16(len));
    }

    /// Each segment has its own identification, even under DF, where it would not matter (RFC
    /// 6864).
    fn set_identification(&mut self, index: usize) {
        if self.headers.network == Network::Ipv4 {
            let identification = self.identification.wrapping_add(low_u16(index));
            put_u16(self.header, usize::from(self.headers.network_at) + 4, identification);
        }
    }

    fn set_checksum(&mut self, payload: &[u8]) {
        let partial = self.headers.checksum();
        let start = usize::from(partial.start);
        let at = start + usize::from(partial.offset);
        put_u16(self.header, at, 0);
        let len = self.header.len() - start + payload.len();
        let bytes = checksum::sum(&self.header[start..]) + checksum::sum(payload);
        let sum = self.pseudo + u32::from(low_u16(len)) + bytes;
        put_u16(self.header, at, finished(sum, partial.offset));
    }
}

impl Whole<'_> {
    /// IP fragments of the datagram. Its checksum covers all of them, so it is completed first.
    fn fragments(
        &self,
        what: &Segmentation,
        identification: u32,
        mut each: impl FnMut(&[u8], &[u8]),
    ) -> u32 {
        let Self { frame, headers, size } = self;
        let [network_at, transport_at, payload_at] =
            [headers.network_at, headers.transport_at, headers.payload_at].map(usize::from);
        let cut = Cut::new(frame, headers, what.kind);
        let cut_at = usize::from(cut.at);
        let mut copy = [0; HEADERS_MAX];
        let header = &mut copy[..payload_at];
        header.copy_from_slice(&frame[..payload_at]);
        let sum = checksum::sum(&frame[transport_at..]);
        let at = transport_at + usize::from(UDP_CHECKSUM_AT);
        put_u16(header, at, finished(sum, UDP_CHECKSUM_AT));
        let total = frame.len() - cut_at;
        if total <= *size {
            set_packet_len(header, headers, transport_at, frame.len() - network_at);
            each(header, &frame[payload_at..]);
            return 1;
        }
        if !size.is_multiple_of(8) || *size < payload_at - cut_at {
            return 0;
        }
        let mut fragment = Fragment::new(header, headers, &cut, identification);
        let fragments = total.div_ceil(*size);
        for index in 0..fragments {
            let at = index * size;
            let end = total.min(at + size);
            // The headers that are cut off with the payload: our copy, which has the checksum.
            let inner = if index == 0 { &header[cut_at..] } else { &[] };
            let front = fragment.front(inner, at..end, end < total);
            each(front, &frame[cut_at + at + inner.len()..cut_at + end]);
        }
        u32::try_from(fragments).unwrap_or(u32::MAX)
    }
}

/// The headers of a fragment, which become those of the next.
struct Fragment {
    bytes: [u8; HEADERS_MAX + FRAGMENT_LEN],
    headers: Headers,
    /// Bytes that all fragments have.
    repeated: usize,
}

impl Fragment {
    fn new(header: &[u8], headers: &Headers, cut: &Cut, identification: u32) -> Self {
        let (at, repeated) = (usize::from(cut.at), usize::from(cut.repeated_len));
        let mut bytes = [0; HEADERS_MAX + FRAGMENT_LEN];
        bytes[..at].copy_from_slice(&header[..at]);
        if headers.network == Network::Ipv6 {
            bytes[at] = header[cut.next_header_at];
            bytes[cut.next_header_at] = FRAGMENT;
            put_u32(&mut bytes, at + 4, identification);
        }
        Self { bytes, headers: *headers, repeated }
    }

    /// The headers of the fragment with these bytes of the datagram, which begin with `inner`.
    fn front(&mut self, inner: &[u8], range: Range<usize>, more: bool) -> &[u8] {
        let Self { bytes, headers, repeated } = self;
        let (network_at, repeated) = (usize::from(headers.network_at), *repeated);
        let offset = low_u16(range.start);
        match headers.network {
            Network::Ipv4 => {
                // DF is cleared, as Linux does: the guest asks for fragments.
                let more = if more { MORE_FRAGMENTS } else { 0 };
                put_u16(bytes, network_at + 6, (offset / 8) | more);
                if offset > 0 {
                    drop_first_only_options(&mut bytes[network_at + IPV4_LEN..repeated]);
                }
            }
            Network::Ipv6 => put_u16(bytes, repeated - 6, offset | u16::from(more)),
        }
        let packet_len = repeated - network_at + range.len();
        set_packet_len(bytes, headers, repeated, packet_len);
        bytes[repeated..repeated + inner.len()].copy_from_slice(inner);
        &bytes[..repeated + inner.len()]
    }
}

/// Overwrite the IPv4 options that only the first fragment has with no-operations (RFC 791, 3.1,
/// the "copied" flag; as Linux's `ip_options_fragment`). Bytes that are no list of options stay.
fn drop_first_only_options(options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut rest = options;
    for _ in 0..IPV4_OPTIONS_MAX {
        let len = match *rest {
            [NO_OPERATION, ..] => 1,
            [] | [END, ..] | [_] => return,
            [_, len, ..] => usize::from(len),
        };
        if len == 0 || len > rest.len() {
            return;
        }
        let (option, behind) = rest.split_at_mut(len);
        if option[0] & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        rest = behind;
    }
}
