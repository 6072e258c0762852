//! Frames as bytes, against an independent implementation: `etherparse` builds them, takes apart
//! what becomes of them, and says what their checksums should be.

use etherparse::checksum::Sum16BitWords;
use etherparse::defrag::IpDefragBuf;
use etherparse::{
    IpHeaders, IpNumber, Ipv4Extensions, Ipv4Header, Ipv6Extensions, Ipv6Header, Ipv6RawExtHeader,
    Ipv6RoutingExtensions, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TransportSlice,
    VlanId,
};
use isonic::packet::{
    Headers, Network, Offload, PartialChecksum, Piece, Pushed, SEGMENTS_MAX, SegmentKind,
    Segmentation, TcpSegment, Train, Transport, Wanted, WantedKind, checksum, flow_hash, segment,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// A frame to be built.
#[derive(Clone, Debug)]
struct Shape {
    tags: usize,
    network: Net,
    ends: [End; 2],
    transport: Trans,
    payload: Vec<u8>,
}

/// One side of a flow.
#[derive(Clone, Copy, Debug)]
struct End {
    address: [u8; 16],
    port: u16,
}

#[derive(Clone, Debug)]
enum Net {
    V4 {
        /// Any bytes, of a length that options may have.
        options: Vec<u8>,
        dont_fragment: bool,
        identification: u16,
    },
    /// The payloads of extension headers.
    V6 {
        hop_by_hop: Option<Vec<u8>>,
        destination: Option<Vec<u8>>,
        routing: Option<(Vec<u8>, Option<Vec<u8>>)>,
    },
}

#[derive(Clone, Debug)]
enum Trans {
    Tcp { sequence: u32, flags: u8, options: Vec<u8> },
    Udp,
}

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

impl Shape {
    /// The frame, all its checksums complete.
    fn frame(&self) -> Vec<u8> {
        let [from, to] = self.ends;
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let id = |id| VlanId::try_new(id).unwrap();
        let ip = self.ip();
        let builder = match self.tags {
            0 => builder.ip(ip),
            1 => builder.single_vlan(id(7)).ip(ip),
            _ => builder.double_vlan(id(8), id(9)).ip(ip),
        };
        let mut frame = Vec::new();
        match &self.transport {
            Trans::Udp => builder.udp(from.port, to.port).write(&mut frame, &self.payload),
            Trans::Tcp { sequence, flags, options } => {
                let mut header = TcpHeader::new(from.port, to.port, *sequence, 0x1234);
                header.set_options_raw(options).unwrap();
                header.acknowledgment_number = 0x5678_9abc;
                header.fin = flags & FIN != 0;
                header.psh = flags & PSH != 0;
                header.ack = flags & ACK != 0;
                header.cwr = flags & CWR != 0;
                builder.tcp_header(header).write(&mut frame, &self.payload)
            }
        }
        .unwrap();
        frame
    }

    fn ip(&self) -> IpHeaders {
        let [from, to] = self.ends.map(|end| end.address);
        match &self.network {
            Net::V4 { options, dont_fragment, identification } => {
                let short = |address: [u8; 16]| address[12..].try_into().unwrap();
                let number = IpNumber::TCP;
                let mut header = Ipv4Header::new(0, 64, number, short(from), short(to)).unwrap();
                header.options = options.as_slice().try_into().unwrap();
                header.dont_fragment = *dont_fragment;
                header.identification = *identification;
                IpHeaders::Ipv4(header, Ipv4Extensions::default())
            }
            Net::V6 { hop_by_hop, destination, routing } => {
                let raw = |bytes: &Vec<u8>| Ipv6RawExtHeader::new_raw(IpNumber(0), bytes).unwrap();
                let header = Ipv6Header {
                    source: from,
                    destination: to,
                    hop_limit: 64,
                    ..Ipv6Header::default()
                };
                let routing = routing.as_ref().map(|(routing, last)| Ipv6RoutingExtensions {
                    routing: raw(routing),
                    final_destination_options: last.as_ref().map(raw),
                });
                let extensions = Ipv6Extensions {
                    hop_by_hop_options: hop_by_hop.as_ref().map(raw),
                    destination_options: destination.as_ref().map(raw),
                    routing,
                    ..Ipv6Extensions::default()
                };
                IpHeaders::Ipv6(header, extensions)
            }
        }
    }

    /// The frame as a guest leaves it to its device: with the pseudo header's sum alone.
    fn partial(&self) -> (Vec<u8>, PartialChecksum) {
        let mut frame = self.frame();
        let partial = Headers::parse(&frame).unwrap().checksum();
        make_partial(&mut frame);
        (frame, partial)
    }

    fn wanted(&self) -> WantedKind {
        match (&self.network, &self.transport) {
            (Net::V4 { .. }, Trans::Tcp { .. }) => WantedKind::Tcp4,
            (Net::V6 { .. }, Trans::Tcp { .. }) => WantedKind::Tcp6,
            (_, Trans::Udp) => WantedKind::Udp,
        }
    }
}

/// Put the pseudo header's sum into the transport's checksum field.
fn make_partial(frame: &mut [u8]) {
    let headers = Headers::parse(frame).unwrap();
    let partial = headers.checksum();
    let start = usize::from(partial.start);
    let at = start + usize::from(partial.offset);
    let sum = pseudo_sum(frame, (frame.len() - start).try_into().unwrap());
    frame[at..at + 2].copy_from_slice(&sum);
}

/// The sum of the pseudo header of a frame with `len` bytes from its transport header on.
fn pseudo_sum(frame: &[u8], len: u32) -> [u8; 2] {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let protocol = match sliced.transport {
        Some(TransportSlice::Tcp(_)) => 6,
        _ => 17,
    };
    let sum = match sliced.net.unwrap() {
        NetSlice::Ipv4(slice) => Sum16BitWords::new()
            .add_slice(&slice.header().source())
            .add_slice(&slice.header().destination()),
        NetSlice::Ipv6(slice) => Sum16BitWords::new()
            .add_slice(&slice.header().source())
            .add_slice(&slice.header().destination()),
        NetSlice::Arp(_) => unreachable!(),
    };
    let sum = sum.add_slice(&[0, protocol]).add_slice(&len.to_be_bytes());
    (!sum.ones_complement()).to_ne_bytes()
}

fn wanted(kind: WantedKind, size: u16) -> Wanted {
    Wanted { kind, ecn: false, size }
}

fn check(frame: &[u8], wanted: Wanted, checksum: PartialChecksum) -> Option<Segmentation> {
    let start = &frame[..frame.len().min(isonic::packet::HEADERS_MAX)];
    Segmentation::check(start, u32::try_from(frame.len()).unwrap(), wanted, checksum)
}

/// All segments of a frame, each whole.
fn segments(frame: &[u8], what: &Segmentation, checksum: PartialChecksum) -> Vec<Vec<u8>> {
    let mut segments = Vec::new();
    let count = segment(frame, what, checksum, 0x0102_0304, |headers, payload| {
        segments.push([headers, payload].concat());
    });
    assert_eq!(count as usize, segments.len());
    let longest = segments.iter().map(Vec::len).max().unwrap();
    assert_eq!(longest, what.longest(frame.len().try_into().unwrap()) as usize);
    segments
}

/// Take a frame apart and check every length and checksum in it, all by `etherparse`; its payload.
fn payload_of(frame: &[u8]) -> Vec<u8> {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let link = 14 + 4 * sliced.vlan_ids().len();
    let (ip_len, source, destination) = match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(slice) => {
            let header = slice.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            (usize::from(header.total_len), header.source.to_vec(), header.destination.to_vec())
        }
        NetSlice::Ipv6(slice) => {
            let header = slice.header().to_header();
            let len = Ipv6Header::LEN + usize::from(header.payload_length);
            (len, header.source.to_vec(), header.destination.to_vec())
        }
        NetSlice::Arp(_) => unreachable!(),
    };
    assert_eq!(link + ip_len, frame.len(), "the IP packet is the frame");
    let (right, found, payload) = match sliced.transport.unwrap() {
        TransportSlice::Tcp(slice) => {
            let right = match <[u8; 4]>::try_from(source.as_slice()) {
                Ok(source) => slice.calc_checksum_ipv4(source, destination.try_into().unwrap()),
                Err(_) => {
                    let ends = [source, destination].map(|end| end.try_into().unwrap());
                    slice.calc_checksum_ipv6(ends[0], ends[1])
                }
            };
            (right.unwrap(), slice.checksum(), slice.payload())
        }
        TransportSlice::Udp(slice) => {
            let header = slice.to_header();
            assert_eq!(usize::from(header.length), 8 + slice.payload().len());
            let right = match <[u8; 4]>::try_from(source.as_slice()) {
                Ok(source) => header.calc_checksum_ipv4_raw(
                    source,
                    destination.try_into().unwrap(),
                    slice.payload(),
                ),
                Err(_) => {
                    let ends = [source, destination].map(|end| end.try_into().unwrap());
                    header.calc_checksum_ipv6_raw(ends[0], ends[1], slice.payload())
                }
            };
            (right.unwrap(), slice.checksum(), slice.payload())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(found, right, "the transport's checksum");
    payload.to_vec()
}

/// Both forms of zero are one.
fn non_zero(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

fn end() -> impl Strategy<Value = End> {
    (any::<[u8; 16]>(), any::<u16>()).prop_map(|(address, port)| End { address, port })
}

fn words(most: usize) -> impl Strategy<Value = Vec<u8>> {
    vec(any::<[u8; 4]>(), 0..=most).prop_map(|words| words.concat())
}

fn v4() -> impl Strategy<Value = Net> {
    (words(10), any::<bool>(), any::<u16>()).prop_map(|(options, dont_fragment, identification)| {
        Net::V4 { options, dont_fragment, identification }
    })
}

/// An extension header's payload. A routing header's second byte is its segments left: none.
fn extension() -> impl Strategy<Value = Vec<u8>> {
    vec(any::<[u8; 8]>(), 0..=2).prop_map(|rest| [&[4, 0, 0, 0, 0, 0], &rest.concat()[..]].concat())
}

fn v6() -> impl Strategy<Value = Net> {
    let optional = || proptest::option::of(extension());
    let routing = proptest::option::of((extension(), optional()));
    (optional(), optional(), routing).prop_map(|(hop_by_hop, destination, routing)| Net::V6 {
        hop_by_hop,
        destination,
        routing,
    })
}

fn tcp() -> impl Strategy<Value = Trans> {
    (any::<u32>(), any::<[bool; 3]>(), words(10)).prop_map(|(sequence, flags, options)| {
        let flag = |set: bool, flag| if set { flag } else { 0 };
        let flags = ACK | flag(flags[0], FIN) | flag(flags[1], PSH) | flag(flags[2], CWR);
        Trans::Tcp { sequence, flags, options }
    })
}

fn shape(transport: impl Strategy<Value = Trans>, payload: usize) -> impl Strategy<Value = Shape> {
    let network = prop_oneof![v4(), v6()];
    (0..=2_usize, network, [end(), end()], transport, vec(any::<u8>(), 0..payload)).prop_map(
        |(tags, network, ends, transport, payload)| Shape {
            tags,
            network,
            ends,
            transport,
            payload,
        },
    )
}

/// A segment of any kind.
fn mergeable(frame: &[u8]) -> Option<TcpSegment> {
    TcpSegment::parse(frame, |_| true)
}

fn any_shape() -> impl Strategy<Value = Shape> {
    shape(prop_oneof![tcp(), Just(Trans::Udp)], 4000)
}

/// A flow that may be coalesced: no options or extension headers of IP, no flags but ACK and PSH.
fn plain_tcp() -> impl Strategy<Value = Shape> {
    shape(tcp(), 4000).prop_map(|mut shape| {
        match &mut shape.network {
            Net::V4 { options, .. } => options.clear(),
            Net::V6 { hop_by_hop, destination, routing } => {
                (*hop_by_hop, *destination, *routing) = (None, None, None);
            }
        }
        let Trans::Tcp { flags, .. } = &mut shape.transport else { unreachable!() };
        *flags &= ACK | PSH;
        shape.payload.push(1);
        shape
    })
}

proptest! {
    #[test]
    fn headers_are_where_etherparse_finds_them(shape in any_shape()) {
        let frame = shape.frame();
        let headers = Headers::parse(&frame).unwrap();
        let sliced = SlicedPacket::from_ethernet(&frame).unwrap();
        let tcp = matches!(sliced.transport, Some(TransportSlice::Tcp(_)));
        prop_assert_eq!(headers.transport == Transport::Tcp, tcp);
        let v4 = matches!(sliced.net, Some(NetSlice::Ipv4(_)));
        prop_assert_eq!(headers.network == Network::Ipv4, v4);
        prop_assert_eq!(usize::from(headers.network_at), 14 + 4 * shape.tags);
        let payload_at = usize::from(headers.payload_at);
        prop_assert_eq!(payload_at, frame.len() - shape.payload.len());
        let transport_len = match &shape.transport {
            Trans::Udp => 8,
            Trans::Tcp { options, .. } => 20 + options.len(),
        };
        prop_assert_eq!(usize::from(headers.transport_at), payload_at - transport_len);
        prop_assert_eq!(Headers::parse(&frame[..payload_at]), Some(headers));
        for cut in 0..payload_at {
            prop_assert_eq!(Headers::parse(&frame[..cut]), None, "not whole");
        }
    }

    #[test]
    fn sums_are_etherparses(bytes in vec(any::<u8>(), 0..300)) {
        let right = !Sum16BitWords::new().add_slice(&bytes).ones_complement().to_be();
        prop_assert_eq!(non_zero(checksum::fold(checksum::sum(&bytes))), non_zero(right));
    }

    #[test]
    fn a_partial_checksum_is_completed_wherever_it_is(
        bytes in vec(any::<u8>(), 4..300), start in any::<Index>(), offset in any::<Index>(),
    ) {
        let start = start.index(bytes.len() - 1);
        let offset = offset.index(bytes.len() - start - 1);
        let right = Sum16BitWords::new().add_slice(&bytes[start..]);
        let right = match offset {
            6 => right.to_ones_complement_with_no_zero(),
            _ => right.ones_complement(),
        };
        let right = right.to_ne_bytes();
        let mut expected = bytes.clone();
        expected[start + offset..start + offset + 2].copy_from_slice(&right);
        let mut frame = bytes;
        let [start, offset] = [start, offset].map(|at| u16::try_from(at).unwrap());
        let done = checksum::complete(&mut frame, PartialChecksum { start, offset });
        prop_assert!(done);
        prop_assert_eq!(frame, expected);
    }

    #[test]
    fn completed_checksums_are_verified(shape in any_shape(), damage in any::<Index>()) {
        let (mut frame, partial) = shape.partial();
        let headers = Headers::parse(&frame).unwrap();
        prop_assert!(checksum::complete(&mut frame, partial));
        prop_assert!(checksum::verify(&frame, &headers));
        prop_assert_eq!(payload_of(&frame), shape.payload);
        // What is padding is not summed; what is not, is.
        let len = frame.len();
        frame.extend([0xff; 7]);
        prop_assert!(checksum::verify(&frame, &headers));
        let transport_at = usize::from(headers.transport_at);
        let at = transport_at + damage.index(len - transport_at);
        // No change of one bit leaves the sum, but one could make UDP's checksum zero: none.
        let field = transport_at + usize::from(partial.offset);
        frame[if (field..field + 2).contains(&at) { transport_at } else { at }] ^= 0x10;
        prop_assert!(!checksum::verify(&frame, &headers));
    }

    #[test]
    fn segments_are_the_frame_in_parts(shape in any_shape(), size in 2..1500_u16) {
        let (frame, partial) = shape.partial();
        let what = check(&frame, wanted(shape.wanted(), size), partial).unwrap();
        let segments = segments(&frame, &what, partial);
        let count = shape.payload.len().div_ceil(usize::from(size)).max(1);
        prop_assert_eq!(segments.len(), count);
        let payloads: Vec<_> = segments.iter().map(|segment| payload_of(segment)).collect();
        for payload in &payloads[..count - 1] {
            prop_assert_eq!(payload.len(), usize::from(size));
        }
        prop_assert_eq!(payloads.concat(), &shape.payload[..]);
        for (index, segment) in segments.iter().enumerate() {
            let last = index + 1 == count;
            same_but_for_what_may_differ(&shape, segment, index, usize::from(size), last);
        }
    }

    #[test]
    fn fragments_are_the_datagram_in_parts(
        shape in shape(Just(Trans::Udp), 4000), size in 80..1500_u16,
    ) {
        let (frame, partial) = shape.partial();
        let what = check(&frame, wanted(WantedKind::UdpFragments, size), partial).unwrap();
        prop_assert_eq!(what.kind, SegmentKind::UdpFragments);
        prop_assert_eq!(what.size % 8, 0);
        let fragments = segments(&frame, &what, partial);
        if let [one] = &fragments[..] {
            prop_assert_eq!(one, &shape.frame());
        } else {
            prop_assert_eq!(reassembled(&shape, &fragments), shape.frame());
        }
    }

    #[test]
    fn a_train_of_segments_is_the_frame_they_came_from(shape in plain_tcp(), size in 64..1500_u16) {
        let (frame, partial) = shape.partial();
        let what = check(&frame, wanted(shape.wanted(), size), partial).unwrap();
        let mut segments = segments(&frame, &what, partial);
        // Ethernet's shortest frames are padded.
        let last = segments.last_mut().unwrap();
        last.resize(last.len().max(60), 0);
        let (merged, offload) = coalesced(&segments);
        if segments.len() == 1 {
            prop_assert_eq!(offload, Offload::PLAIN);
            prop_assert_eq!(merged, shape.frame());
        } else {
            prop_assert_eq!(merged, frame);
            prop_assert_eq!(offload.checksum, Some(partial));
            prop_assert_eq!(offload.segmentation, Some(what));
        }
    }

    #[test]
    fn both_directions_are_one_flow(shape in any_shape(), fill in any::<u8>()) {
        let mut back = shape.clone();
        back.ends.reverse();
        let hash = flow_hash(&shape.frame());
        prop_assert_eq!(hash, flow_hash(&back.frame()));
        back.payload.fill(fill);
        back.tags = 2 - shape.tags;
        prop_assert_eq!(hash, flow_hash(&back.frame()), "neither payload nor tags matter");
    }

    #[test]
    fn no_bytes_are_too_strange(
        shape in any_shape(),
        damage in vec((any::<Index>(), any::<u8>()), 0..8),
        cut in any::<Index>(),
        kind in 0..4_usize,
        (size, ecn, start, offset) in any::<(u16, bool, u16, u16)>(),
        own in any::<bool>(),
    ) {
        let (mut frame, _) = shape.partial();
        for (at, value) in damage {
            // Headers are where it hurts.
            let at = at.index(frame.len().min(150));
            frame[at] = value;
        }
        if !own {
            frame.truncate(cut.index(frame.len() + 1));
        }
        strange(&frame);
        use WantedKind::{Tcp4, Tcp6, Udp, UdpFragments};
        let wanted_kind = [Tcp4, Tcp6, Udp, UdpFragments][kind];
        let checksum = match Headers::parse(&frame) {
            Some(headers) if own => headers.checksum(),
            _ => PartialChecksum { start, offset },
        };
        let _ = checksum::complete(&mut frame.clone(), checksum);
        if let Some(what) = check(&frame, Wanted { kind: wanted_kind, ecn, size }, checksum) {
            let segments = segments(&frame, &what, checksum);
            prop_assert!(!segments.is_empty() && segments.len() <= SEGMENTS_MAX as usize);
            for segment in &segments {
                strange(segment);
            }
        }
        // Not what was checked: nothing, or something, but no panic.
        let kind = [SegmentKind::Tcp4, SegmentKind::Udp6, SegmentKind::UdpFragments][kind % 3];
        let (header_len, cut_at, repeated_len) = (start, offset, offset);
        let what = Segmentation { kind, ecn, size, header_len, cut_at, repeated_len };
        segment(&frame, &what, checksum, 0, |_, _| {});
    }

    #[test]
    fn random_bytes_are_no_flow_of_ours(bytes in vec(any::<u8>(), 0..400)) {
        strange(&bytes);
    }
}

/// All that looks at frames from anywhere.
fn strange(frame: &[u8]) {
    let _ = flow_hash(frame);
    if let Some(headers) = Headers::parse(frame) {
        let _ = checksum::verify(frame, &headers);
    }
    let _ = train().same_flow(frame);
    let _ = train().may_be_of_flow(frame);
    if let Some(segment) = mergeable(frame) {
        let mut train = Train::start(0, frame, &segment);
        let _ = train.push(1, frame, &segment);
        let _ = train.headers();
    }
}

/// What a segment's headers say, other than lengths and checksums.
fn same_but_for_what_may_differ(
    shape: &Shape,
    segment: &[u8],
    index: usize,
    size: usize,
    last: bool,
) {
    let mut expected = shape.clone();
    expected.payload = payload_of(segment);
    if let Net::V4 { identification, .. } = &mut expected.network {
        *identification = identification.wrapping_add(u16::try_from(index).unwrap());
    }
    if let Trans::Tcp { sequence, flags, .. } = &mut expected.transport {
        *sequence = sequence.wrapping_add(u32::try_from(index * size).unwrap());
        *flags &= if last { !0 } else { !(FIN | PSH) };
        *flags &= if index == 0 { !0 } else { !CWR };
    }
    // `etherparse` built it with these headers.
    assert_eq!(segment, expected.frame());
}

/// The frame that IP fragments are of, put together by `etherparse`, which refuses gaps and
/// overlaps.
fn reassembled(shape: &Shape, fragments: &[Vec<u8>]) -> Vec<u8> {
    let mut buffer = IpDefragBuf::new(IpNumber::UDP, Vec::new(), Vec::new());
    let network_at = 14 + 4 * shape.tags;
    for (index, fragment) in fragments.iter().enumerate() {
        let last = index + 1 == fragments.len();
        let packet = &fragment[network_at..];
        if let Net::V4 { identification, options, .. } = &shape.network {
            let (header, rest) = Ipv4Header::from_slice(packet).unwrap();
            assert_eq!(usize::from(header.total_len), packet.len());
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(header.identification, *identification);
            assert_eq!((header.more_fragments, header.dont_fragment), (!last, false));
            assert_eq!(header.options.len(), options.len());
            if index == 0 {
                assert_eq!(header.options.as_slice(), options);
            }
            buffer.add(header.fragment_offset, header.more_fragments, rest).unwrap();
        } else {
            let (header, rest) = Ipv6Header::from_slice(packet).unwrap();
            assert_eq!(usize::from(header.payload_length), rest.len());
            let (_, unfragmentable) = unfragmentable(shape);
            assert_eq!(header.next_header.0, if unfragmentable == 0 { 44 } else { packet[6] });
            let [_, 0, high, low, ref id @ ..] = rest[unfragmentable..unfragmentable + 8] else {
                panic!("{rest:?}")
            };
            assert_eq!(id, [1, 2, 3, 4]);
            let place = u16::from_be_bytes([high, low]);
            assert_eq!(place & 1 == 1, !last);
            let offset = (place >> 3).try_into().unwrap();
            buffer.add(offset, !last, &rest[unfragmentable + 8..]).unwrap();
        }
    }
    assert!(buffer.is_complete());
    let (data, _) = buffer.take_bufs();
    let frame = shape.frame();
    let first = fragments[0].clone();
    let at = frame.len() - data.len();
    if let Net::V4 { .. } = shape.network {
        return [&frame[..at], &data].concat();
    }
    // The headers in front of the fragment header, with its next header put back.
    let (field_at, _) = unfragmentable(shape);
    let mut front = first[..at].to_vec();
    assert_eq!(front[network_at + field_at], 44);
    front[network_at + field_at] = first[at];
    let len = u16::try_from(frame.len() - network_at - Ipv6Header::LEN).unwrap();
    front[network_at + 4..network_at + 6].copy_from_slice(&len.to_be_bytes());
    [front, data].concat()
}

/// Of an IPv6 packet's headers, by RFC 8200, 4.5: the offset of the next header field of the last
/// one that is in each fragment, and the bytes of extension headers that are.
fn unfragmentable(shape: &Shape) -> (usize, usize) {
    let Net::V6 { hop_by_hop, destination, routing } = &shape.network else { unreachable!() };
    let len = |header: &Option<Vec<u8>>| header.as_ref().map_or(0, |bytes| bytes.len() + 2);
    let routing = routing.as_ref().map(|(routing, _)| routing.clone());
    if routing.is_some() {
        let before = len(hop_by_hop) + len(destination);
        return (Ipv6Header::LEN + before, before + len(&routing));
    }
    let field_at = if hop_by_hop.is_some() { Ipv6Header::LEN } else { 6 };
    (field_at, len(hop_by_hop))
}

/// A burst of frames merged, all of which must go into one train.
fn coalesced(frames: &[Vec<u8>]) -> (Vec<u8>, Offload) {
    let first = mergeable(&frames[0]).unwrap();
    let mut train = Train::start(0, &frames[0], &first);
    for (token, frame) in (0..).zip(frames).skip(1) {
        let last = usize::from(token) + 1 == frames.len();
        assert!(!train.is_full() && train.same_flow(frame));
        let pushed = train.push(token, frame, &mergeable(frame).unwrap());
        assert!(pushed == Pushed::Taken || last && pushed == Pushed::TakenAndFull, "{pushed:?}");
    }
    assert_eq!(train.is_single(), frames.len() == 1);
    let payload: Vec<u8> =
        train.pieces().iter().flat_map(|piece| bytes_of(frames, *piece)).collect();
    let len = train.frame_len();
    let (headers, offload) = train.headers();
    let merged = [headers, &payload].concat();
    assert_eq!(merged.len(), len as usize);
    assert_eq!(train.headers().0, &merged[..merged.len() - payload.len()], "asked again");
    (merged, offload)
}

fn bytes_of(frames: &[Vec<u8>], piece: Piece) -> Vec<u8> {
    let Piece { token, start, len } = piece;
    let [token, start, len] = [token, start, len].map(usize::from);
    frames[token][start..start + len].to_vec()
}

/// A segment with 100 bytes of payload, the `number`th of its flow.
fn nth(number: u32) -> Shape {
    let end = |number| End { address: [number; 16], port: u16::from(number) };
    Shape {
        tags: 1,
        network: Net::V4 {
            options: Vec::new(),
            dont_fragment: false,
            identification: u16::try_from(number).unwrap(),
        },
        ends: [end(1), end(2)],
        transport: Trans::Tcp { sequence: 100 * number, flags: ACK, options: vec![1; 12] },
        payload: vec![number.to_be_bytes()[3]; 100],
    }
}

fn train() -> Train {
    let frame = nth(0).frame();
    Train::start(0, &frame, &mergeable(&frame).unwrap())
}

fn push(train: &mut Train, frame: &[u8]) -> Pushed {
    train.push(9, frame, &mergeable(frame).unwrap())
}

/// The second segment, and what becomes of it at the end of a train of one after a change.
fn second(change: impl FnOnce(&mut Shape)) -> Pushed {
    let mut shape = nth(1);
    change(&mut shape);
    push(&mut train(), &shape.frame())
}

/// The same, with one byte of the frame changed and its checksums put right.
fn second_with(at: usize, value: u8) -> Pushed {
    let mut frame = nth(1).frame();
    frame[at] = value;
    repair(&mut frame);
    push(&mut train(), &frame)
}

/// Put all checksums right.
fn repair(frame: &mut [u8]) {
    let headers = Headers::parse(frame).unwrap();
    let at = usize::from(headers.network_at);
    let (ip, _) = Ipv4Header::from_slice(&frame[at..]).unwrap();
    frame[at + 10..at + 12].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
    make_partial(frame);
    assert!(checksum::complete(frame, headers.checksum()));
}

fn tcp_of(shape: &mut Shape) -> (&mut u32, &mut u8, &mut Vec<u8>) {
    match &mut shape.transport {
        Trans::Tcp { sequence, flags, options } => (sequence, flags, options),
        Trans::Udp => unreachable!(),
    }
}

#[test]
fn a_train_takes_only_what_goes_on_where_it_ends() {
    assert_eq!(second(|_| ()), Pushed::Taken);
    assert_eq!(second(|shape| *tcp_of(shape).0 += 1), Pushed::Refused, "a gap");
    assert_eq!(second(|shape| *tcp_of(shape).0 -= 100), Pushed::Refused, "sent again");
    assert_eq!(second(|shape| *tcp_of(shape).2 = vec![1; 8]), Pushed::Refused, "other options");
    assert_eq!(second(|shape| tcp_of(shape).2[11] = 0), Pushed::Refused, "other time stamps");
    assert_eq!(second(|shape| shape.payload.push(0)), Pushed::Refused, "longer than the first");
    assert_eq!(second(|shape| shape.tags = 0), Pushed::Refused, "another VLAN");
    assert_eq!(second(|shape| shape.tags = 2), Pushed::Refused, "another VLAN");
    assert_eq!(second(|shape| shape.ends[0].port = 7), Pushed::Refused, "another flow");
    assert_eq!(second(|shape| shape.ends[1].address[15] = 7), Pushed::Refused, "another flow");
    assert_eq!(second(|shape| shape.ends.reverse()), Pushed::Refused, "the other direction");
    let v6 = Net::V6 { hop_by_hop: None, destination: None, routing: None };
    assert_eq!(second(|shape| shape.network = v6), Pushed::Refused, "another network");
    // Ethernet with one tag is 18 bytes, IPv4 20.
    assert_eq!(second_with(0, 4), Pushed::Refused, "another MAC address");
    assert_eq!(second_with(15, 9), Pushed::Refused, "another VLAN");
    assert_eq!(second_with(18 + 1, 3), Pushed::Refused, "marked: congestion experienced");
    assert_eq!(second_with(18 + 6, 0x40), Pushed::Refused, "DF");
    assert_eq!(second_with(18 + 8, 63), Pushed::Refused, "another time to live");
    assert_eq!(second_with(38 + 8, 0), Pushed::Refused, "another acknowledgement");
    assert_eq!(second_with(38 + 14, 0), Pushed::Refused, "another window");
}

#[test]
fn a_train_over_ipv6_has_one_traffic_class_and_hop_limit() {
    let frame = |number, at: usize, value: u8| {
        let network = Net::V6 { hop_by_hop: None, destination: None, routing: None };
        let mut frame = Shape { network, ..nth(number) }.frame();
        frame[18 + at] ^= value;
        frame
    };
    let first = frame(0, 0, 0);
    let second = |at, value| {
        let mut train = Train::start(0, &first, &mergeable(&first).unwrap());
        push(&mut train, &frame(1, at, value))
    };
    assert_eq!(second(0, 0), Pushed::Taken);
    assert_eq!(second(1, 0x30), Pushed::Refused, "marked: congestion experienced");
    assert_eq!(second(3, 1), Pushed::Refused, "another flow label");
    assert_eq!(second(7, 1), Pushed::Refused, "another hop limit");
}

#[test]
fn a_train_ends_with_a_push_and_with_a_shorter_segment() {
    assert_eq!(second(|shape| *tcp_of(shape).1 |= PSH), Pushed::TakenAndFull);
    assert_eq!(second(|shape| shape.payload.truncate(99)), Pushed::TakenAndFull);
    let mut train = train();
    let mut pushed = nth(1);
    *tcp_of(&mut pushed).1 |= PSH;
    assert_eq!(push(&mut train, &pushed.frame()), Pushed::TakenAndFull);
    assert_eq!(push(&mut train, &nth(2).frame()), Pushed::Refused);
    assert_eq!(train.headers().0[18 + 20 + 13], ACK | PSH, "PSH of any is the frame's");
    let frame = pushed.frame();
    assert!(Train::start(0, &frame, &mergeable(&frame).unwrap()).is_full());
}

#[test]
fn a_train_is_no_longer_than_its_pieces_and_an_ip_packet() {
    let mut train = train();
    for number in 1..63 {
        assert_eq!(push(&mut train, &nth(number).frame()), Pushed::Taken);
    }
    assert_eq!(push(&mut train, &nth(63).frame()), Pushed::TakenAndFull);
    assert_eq!(push(&mut train, &nth(64).frame()), Pushed::Refused);

    let long = |number: u32| {
        let mut shape = nth(number);
        *tcp_of(&mut shape).0 = 8948 * number;
        shape.payload.resize(8948, 0);
        shape.frame()
    };
    let first = long(0);
    let mut train = Train::start(0, &first, &mergeable(&first).unwrap());
    for number in 1..7 {
        assert_eq!(push(&mut train, &long(number)), Pushed::Taken);
    }
    assert_eq!(push(&mut train, &long(7)), Pushed::Refused, "longer than 65535 bytes");
    assert!(train.frame_len() < 65535);
}

#[test]
fn identifications_count_or_stand_still_under_df() {
    let segment = |number: u32, id: u16, df: bool| {
        let mut shape = nth(number);
        let options = Vec::new();
        shape.network = Net::V4 { options, dont_fragment: df, identification: id };
        shape.frame()
    };
    let taken = |ids: [u16; 3], df: bool| {
        let first = segment(0, ids[0], df);
        let mut train = Train::start(0, &first, &mergeable(&first).unwrap());
        [1, 2].map(|number| push(&mut train, &segment(number, ids[number as usize], df)))
    };
    use Pushed::{Refused, Taken};
    assert_eq!(taken([65535, 0, 1], false), [Taken, Taken]);
    assert_eq!(taken([5, 6, 7], true), [Taken, Taken]);
    assert_eq!(taken([5, 5, 5], true), [Taken, Taken]);
    assert_eq!(taken([5, 5, 6], true)[1], Refused);
    assert_eq!(taken([5, 6, 6], true)[1], Refused);
    assert_eq!(taken([5, 6, 5], true)[1], Refused);
    assert_eq!(taken([5, 5, 5], false)[0], Refused);
    assert_eq!(taken([5, 7, 8], false)[0], Refused);
}

#[test]
fn what_cannot_be_merged_is_no_segment_of_a_train() {
    let parses = |change: fn(&mut Shape)| {
        let mut shape = nth(1);
        change(&mut shape);
        mergeable(&shape.frame()).is_some()
    };
    assert!(parses(|_| ()));
    assert!(!parses(|shape| shape.payload.clear()), "no payload");
    assert!(!parses(|shape| *tcp_of(shape).1 |= FIN), "FIN");
    assert!(!parses(|shape| *tcp_of(shape).1 |= CWR), "CWR");
    assert!(!parses(|shape| *tcp_of(shape).1 = PSH), "no ACK");
    assert!(!parses(|shape| shape.transport = Trans::Udp), "UDP");
    let options = |shape: &mut Shape| {
        let (options, dont_fragment, identification) = (vec![1; 4], false, 1);
        shape.network = Net::V4 { options, dont_fragment, identification };
    };
    assert!(!parses(options), "IPv4 options");
    let extension = |shape: &mut Shape| {
        let hop_by_hop = Some(vec![1, 4, 0, 0, 0, 0]);
        shape.network = Net::V6 { hop_by_hop, destination: None, routing: None };
    };
    assert!(!parses(extension), "an IPv6 extension header");
    let with = |at: usize, value: u8| {
        let mut frame = nth(1).frame();
        frame[at] = value;
        if at != 18 + 10 && at < 18 + 20 + 32 {
            repair_if_parsed(&mut frame);
        }
        mergeable(&frame).is_some()
    };
    for flag in [0x02, 0x04, 0x20, 0x40] {
        assert!(!with(38 + 13, ACK | flag), "SYN, RST, URG, ECE: {flag:#x}");
    }
    assert!(!with(38 + 12, 0x81), "a reserved bit");
    assert!(!with(18 + 6, 0x20), "a fragment");
    assert!(!with(18 + 10, 0), "a bad checksum of IP");
    assert!(!with(38 + 40, 0xee), "a bad checksum of TCP");
    let frame = nth(1).frame();
    assert!(mergeable(&frame[..frame.len() - 1]).is_none(), "not whole");
}

fn repair_if_parsed(frame: &mut [u8]) {
    if Headers::parse(frame).is_some() {
        repair(frame);
    }
}

#[test]
fn any_frame_of_the_flow_is_known_to_be_one() {
    let train = train();
    let mut same = nth(1);
    *tcp_of(&mut same).1 |= FIN;
    same.payload.clear();
    let frame = same.frame();
    assert!(mergeable(&frame).is_none());
    assert!(train.same_flow(&frame), "it must not overtake the train");
    same.ends[1].port = 9;
    assert!(!train.same_flow(&same.frame()));
    let udp = Shape { transport: Trans::Udp, ..nth(1) };
    assert!(!train.same_flow(&udp.frame()), "the same ports, of UDP");
    assert!(!train.same_flow(&[]));
}

#[test]
fn a_frame_whose_ports_are_elsewhere_may_be_of_every_flow_of_its_addresses() {
    let train = train();
    let may_be = |change: &dyn Fn(&mut Shape)| {
        let mut shape = nth(1);
        shape.ends[1].port = 9;
        change(&mut shape);
        train.may_be_of_flow(&shape.frame())
    };
    assert!(!may_be(&|_| ()), "other ports");
    assert!(may_be(&|shape| shape.ends[1].port = nth(1).ends[1].port));
    let options = |shape: &mut Shape| {
        let (options, dont_fragment, identification) = (vec![1; 4], true, 1);
        shape.network = Net::V4 { options, dont_fragment, identification };
    };
    assert!(may_be(&options));
    assert!(!may_be(&|shape| {
        options(shape);
        shape.ends[0].address[15] ^= 1;
    }));
    assert!(!may_be(&|shape| {
        options(shape);
        shape.tags += 1;
    }));
    let udp = |shape: &mut Shape| shape.transport = Trans::Udp;
    assert!(!may_be(&udp), "the same ports, of UDP");
    let mut fragment = nth(1).frame();
    fragment[18 + 6..18 + 8].copy_from_slice(&[0, 3]);
    assert!(train.may_be_of_flow(&fragment));
    assert!(train.may_be_of_flow(&fragment[..18 + 20]), "a last one may have no payload at all");
    for len in 0..18 + 20 {
        assert!(!train.may_be_of_flow(&fragment[..len]));
    }
}

#[test]
fn the_kind_of_a_segment_is_asked_for_before_its_checksum_is_summed() {
    let mut frame = nth(1).frame();
    *frame.last_mut().unwrap() ^= 1;
    let mut asked = None;
    let segment = TcpSegment::parse(&frame, |kind| {
        asked = Some(kind);
        true
    });
    assert!(segment.is_none() && asked == Some(SegmentKind::Tcp4), "its checksum is wrong");
    assert!(TcpSegment::parse(&nth(1).frame(), |_| false).is_none());
}

#[test]
fn what_a_guest_asks_for_must_fit_its_headers() {
    let (tcp, partial) = nth(1).partial();
    let asked = |frame: &[u8], wanted, checksum| check(frame, wanted, checksum).is_some();
    let fits = |kind, size| asked(&tcp, wanted(kind, size), partial);
    assert!(fits(WantedKind::Tcp4, 50));
    assert!(!fits(WantedKind::Tcp6, 50));
    assert!(!fits(WantedKind::Udp, 50));
    assert!(!fits(WantedKind::UdpFragments, 48));
    assert!(!fits(WantedKind::Tcp4, 0));
    for other in [
        PartialChecksum { offset: partial.offset + 1, ..partial },
        PartialChecksum { start: partial.start - 1, ..partial },
        PartialChecksum { start: 0, offset: partial.start + partial.offset },
    ] {
        assert!(!asked(&tcp, wanted(WantedKind::Tcp4, 50), other), "{other:?}");
    }
    let wrong_len = |len| Segmentation::check(&tcp, len, wanted(WantedKind::Tcp4, 50), partial);
    assert_eq!(wrong_len(69), None, "shorter than its headers");
    assert_eq!(wrong_len(18 + 65536), None, "longer than an IP packet");
    assert!(wrong_len(18 + 65535).is_some());
    let smallest = Segmentation::check(&tcp, 18 + 65535, wanted(WantedKind::Tcp4, 31), partial);
    assert_eq!(smallest, None, "more than {SEGMENTS_MAX} segments");
    assert!(Segmentation::check(&tcp, 18 + 65535, wanted(WantedKind::Tcp4, 36), partial).is_some());

    let (udp, partial) = Shape { transport: Trans::Udp, ..nth(1) }.partial();
    let fits = |kind, size| asked(&udp, wanted(kind, size), partial);
    assert!(fits(WantedKind::Udp, 50) && fits(WantedKind::UdpFragments, 48));
    assert!(!fits(WantedKind::Tcp4, 50));
    assert!(!fits(WantedKind::UdpFragments, 7), "no fragment is shorter than 8 bytes");
    let ecn = Wanted { kind: WantedKind::Udp, ecn: true, size: 50 };
    assert!(!asked(&udp, ecn, partial), "only TCP has CWR");
}

#[test]
fn congestion_is_told_even_if_the_guest_did_not_say_so() {
    let mut shape = nth(1);
    *tcp_of(&mut shape).1 |= CWR;
    let (frame, partial) = shape.partial();
    assert!(check(&frame, wanted(WantedKind::Tcp4, 50), partial).unwrap().ecn);
}

#[test]
fn the_longest_frames_are_cut_and_merged() {
    for (network, kind) in [
        (nth(0).network, WantedKind::Tcp4),
        (Net::V6 { hop_by_hop: None, destination: None, routing: None }, WantedKind::Tcp6),
    ] {
        let headers = if kind == WantedKind::Tcp4 { 20 } else { 40 } + 32;
        let mut shape = Shape { network, ..nth(0) };
        shape.payload = (0..65535 - headers).map(|number: u32| number.to_le_bytes()[0]).collect();
        let (frame, partial) = shape.partial();
        let what = check(&frame, wanted(kind, 1448), partial).unwrap();
        let segments = segments(&frame, &what, partial);
        assert_eq!(segments.len(), shape.payload.len().div_ceil(1448));
        assert_eq!(
            segments.iter().flat_map(|one| payload_of(one)).collect::<Vec<_>>(),
            shape.payload
        );
        assert_eq!(coalesced(&segments), (frame, offload_of(what, partial)));
    }
}

fn offload_of(segmentation: Segmentation, checksum: PartialChecksum) -> Offload {
    Offload { checksum: Some(checksum), segmentation: Some(segmentation) }
}

#[test]
fn only_options_to_be_copied_are_in_later_fragments() {
    // Record route, which is not copied; a no-operation; a security option, which is.
    let options = vec![7, 7, 4, 0, 0, 0, 0, 1, 130, 4, 0xab, 0xcd];
    let network = Net::V4 { options: options.clone(), dont_fragment: true, identification: 3 };
    let (frame, partial) = Shape { network, transport: Trans::Udp, ..nth(1) }.partial();
    let what = check(&frame, wanted(WantedKind::UdpFragments, 64), partial).unwrap();
    let fragments = segments(&frame, &what, partial);
    assert_eq!(fragments.len(), 2);
    assert_eq!(fragments[0][38..50], options);
    assert_eq!(fragments[1][38..50], [1, 1, 1, 1, 1, 1, 1, 1, 130, 4, 0xab, 0xcd]);
}

#[test]
fn a_routing_header_leaves_the_pseudo_header_to_the_guest() {
    // The sum is of the final destination's address, which is not the IPv6 header's (RFC 8200,
    // 8.1), so that only the guest can tell.
    let routing = Some((vec![4, 1, 0, 0, 0, 0], None));
    let network = Net::V6 { hop_by_hop: None, destination: None, routing };
    let (mut frame, partial) = Shape { network, transport: Trans::Udp, ..nth(1) }.partial();
    let field = usize::from(partial.start + partial.offset);
    frame[field] = frame[field].wrapping_add(1);
    let mut whole = frame.clone();
    assert!(checksum::complete(&mut whole, partial));
    let what = check(&frame, wanted(WantedKind::Udp, 1000), partial).unwrap();
    assert_eq!(segments(&frame, &what, partial), [whole]);
}

#[test]
fn the_first_fragment_has_all_headers() {
    let destination = Some([&[1, 36, 0, 0, 0, 0][..], &[0; 32]].concat());
    let network = Net::V6 { hop_by_hop: None, destination, routing: None };
    let (frame, partial) = Shape { network, transport: Trans::Udp, ..nth(1) }.partial();
    let fits = |size| check(&frame, wanted(WantedKind::UdpFragments, size), partial);
    assert_eq!(fits(40), None, "a destination header of 40 bytes and UDP's of 8");
    let what = fits(48).unwrap();
    let len = u32::try_from(frame.len()).unwrap();
    assert_eq!(what.longest(len), 18 + 40 + 8 + 48);
    let fragments = segments(&frame, &what, partial);
    assert_eq!(fragments[0].len(), 18 + 40 + 8 + 48);
}

#[test]
fn partial_checksums_outside_of_the_frame_are_refused() {
    let mut frame = [7; 20];
    let mut complete =
        |start, offset| checksum::complete(&mut frame, PartialChecksum { start, offset });
    assert!(!complete(20, 0) && !complete(0, 19) && !complete(19, 0));
    assert!(!complete(u16::MAX, u16::MAX));
    assert_eq!(frame, [7; 20]);
}

#[test]
fn a_checksum_that_is_zero_is_zero_for_tcp_and_its_other_form_for_udp() {
    for (offset, expected) in [(16, 0), (6, 0xffff)] {
        let mut frame = [0; 20];
        frame[..2].fill(0xff);
        assert!(checksum::complete(&mut frame, PartialChecksum { start: 0, offset }));
        let at = usize::from(offset);
        assert_eq!(u16::from_be_bytes([frame[at], frame[at + 1]]), expected);
    }
}

#[test]
fn a_udp_checksum_is_left_out_over_ipv4_alone() {
    let verified = |network| {
        let mut frame = Shape { network, transport: Trans::Udp, ..nth(1) }.frame();
        let headers = Headers::parse(&frame).unwrap();
        let at = usize::from(headers.transport_at) + 6;
        frame[at..at + 2].fill(0);
        checksum::verify(&frame, &headers)
    };
    assert!(verified(nth(1).network));
    assert!(!verified(Net::V6 { hop_by_hop: None, destination: None, routing: None }));
}

#[test]
fn fragments_and_other_protocols_have_no_headers_of_ours() {
    let with = |at: usize, value: u8| {
        let mut frame = nth(1).frame();
        frame[at] = value;
        Headers::parse(&frame).is_some()
    };
    assert!(with(0, 0));
    assert!(!with(18 + 6, 0x20), "more fragments");
    assert!(!with(18 + 7, 1), "a later fragment");
    assert!(with(18 + 6, 0x40), "DF");
    assert!(!with(18 + 9, 1), "ICMP");
    assert!(!with(18, 0x44), "a header shorter than a header");
    assert!(!with(18, 0x65), "another version");
    assert!(!with(38 + 12, 0x40), "a TCP header shorter than a TCP header");
    assert!(!with(17, 6), "ARP");
    let mut tagged = Shape { tags: 2, ..nth(1) }.frame();
    assert!(Headers::parse(&tagged).is_some());
    tagged.splice(12..12, [0x81, 0, 0, 1]);
    assert!(Headers::parse(&tagged).is_none(), "three tags");
}

#[test]
fn flows_spread_over_any_number_of_queues() {
    let hashes: Vec<u32> = (0..4096_u16)
        .map(|number| {
            let mut shape = nth(1);
            // One server, and clients that count their addresses and ports up.
            shape.ends[0].port = 80;
            shape.ends[1].port = 32768 + number % 64;
            shape.ends[1].address[15] = u8::try_from(number / 64).unwrap();
            flow_hash(&shape.frame())
        })
        .collect();
    for queues in [2, 3, 4, 8, 16] {
        let mut counts = vec![0; queues];
        hashes.iter().for_each(|hash| counts[*hash as usize % queues] += 1);
        let mean = 4096 / queues;
        let even = counts.iter().all(|count| (mean * 3 / 4..mean * 5 / 4).contains(count));
        assert!(even, "{queues} queues: {counts:?}");
    }
    let mut distinct = hashes;
    distinct.sort_unstable();
    distinct.dedup();
    assert!(distinct.len() > 4090, "{}", distinct.len());
}

#[test]
fn a_fragment_is_of_the_flow_of_its_addresses() {
    let first = {
        let mut frame = nth(1).frame();
        frame[18 + 6] = 0x20;
        frame
    };
    let mut later = first.clone();
    later[18 + 7] = 9;
    later[38..60].fill(0xee);
    assert_eq!(flow_hash(&first), flow_hash(&later));
    let mut icmp = first.clone();
    icmp[18 + 6] = 0;
    icmp[18 + 9] = 1;
    assert_eq!(flow_hash(&first), flow_hash(&icmp));
    assert_ne!(flow_hash(&first), flow_hash(&nth(1).frame()));
}

#[test]
fn ports_behind_long_extension_headers_are_not_looked_for() {
    let frame = |ports: u8, options: u8| {
        let ethernet = [[2; 6], [4; 6]].concat();
        let network = [&[0x60, 0, 0, 0, 0, 200, 0, 64][..], &[1; 16], &[9; 16]].concat();
        // Hop-by-hop, of 8 bytes and as many more; then UDP.
        let extension = [&[17, options][..], &vec![0; 6 + 8 * usize::from(options)]].concat();
        [&ethernet[..], &[0x86, 0xdd], &network, &extension, &[ports; 8]].concat()
    };
    assert_ne!(flow_hash(&frame(1, 2)), flow_hash(&frame(2, 2)));
    assert_eq!(flow_hash(&frame(1, 3)), flow_hash(&frame(2, 3)));
    assert!(frame(1, 2).len() <= isonic::packet::FLOW_BYTES_MAX, "all that is needed is read");
}

#[test]
fn what_is_not_ip_is_of_the_flow_of_its_mac_addresses() {
    let frame = |to: u8, from: u8| [[to; 6], [from; 6]].concat();
    let arp = |to, from, rest: u8| [&frame(to, from)[..], &[8, 6, rest, rest]].concat();
    assert_eq!(flow_hash(&arp(1, 2, 0)), flow_hash(&arp(2, 1, 9)));
    assert_ne!(flow_hash(&arp(1, 2, 0)), flow_hash(&arp(1, 3, 0)));
    assert_eq!(flow_hash(&[]), flow_hash(&[9; 11]), "and less than that of none");
}
