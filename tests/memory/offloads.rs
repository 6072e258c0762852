//! Offloads through the whole datapath, over in-memory wires: what a guest leaves to its device is
//! done before the wire, carried over to guests that take it, and done for those that do not; what
//! arrives in many segments reaches a guest that takes large packets in one.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use isonic::datapath::{Attachment, Route, UplinkId, WorkerId, frame_max};
use isonic::device::features::{
    CSUM, FeatureSet, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, HOST_USO,
};
use isonic::device::offloads::Offloads;
use isonic::metrics::{PortCounter, SocketCounter};
use isonic::test_support::guest_driver::{Driver, GuestRam, HEADER};
use isonic::test_support::rig::Rig;
use isonic::test_support::rig_guest::{OUTSIDE, RigGuest, each_layout, frame, mac, route};
use isonic::virtqueue::QueueOptions;

const NONE: [Offloads; 2] = [Offloads::NONE; 2];

/// A guest that leaves checksums and TCP segmentation to others, and takes them.
fn all() -> [Offloads; 2] {
    let set = |bits: &[u8]| bits.iter().copied().collect::<FeatureSet>();
    [
        Offloads::accepted(set(&[GUEST_CSUM, GUEST_TSO4, GUEST_TSO6])),
        Offloads::sent(set(&[CSUM, HOST_TSO4, HOST_TSO6])),
    ]
}

fn switched(rig: &mut Rig, number: u8, options: QueueOptions, offloads: [Offloads; 2]) -> RigGuest {
    let route = route(Attachment::Switch { mac: mac(number) }, vec![WorkerId(0)]);
    let route = Route { coalesce: offloads[0], ..route };
    RigGuest::with_offloads(rig, route, options, offloads)
}

/// Payload that tells every byte from those around it.
fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at * 7 + at / 256) % 256).unwrap()).collect()
}

/// A TCP frame, complete.
fn tcp(to: [u8; 6], from: [u8; 6], sequence: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(from, to)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40000, 5001, sequence, 1000)
        .ack(77)
        .write(&mut frame, payload)
        .unwrap();
    // GRO wants DF or identifications that count up.
    frame[20] |= 0x40;
    fix_ipv4_checksum(&mut frame);
    frame
}

fn fix_ipv4_checksum(frame: &mut [u8]) {
    let sliced = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap().0;
    let sum = sliced.calc_header_checksum();
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

const TCP_HEADERS: usize = 14 + 20 + 20;

/// The same with its checksum left to the device: the pseudo header's sum in its place.
fn leave_checksum(frame: &mut [u8]) {
    leave_checksum_at(frame, 50);
}

/// The same with the checksum there; the protocol is the IPv4 header's.
fn leave_checksum_at(frame: &mut [u8], at: usize) {
    let length = u16::try_from(frame.len() - 34).unwrap();
    let mut sum = u32::from(length) + u32::from(frame[23]);
    sum +=
        frame[26..34].chunks(2).map(|c| u32::from(u16::from_be_bytes([c[0], c[1]]))).sum::<u32>();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    frame[at..at + 2].copy_from_slice(&u16::try_from(sum).unwrap().to_be_bytes());
}

/// The virtio-net header of a TCP/IPv4 frame whose checksum is left; and segmentation, if a size
/// is given.
fn header(size: Option<u16>) -> [u8; HEADER] {
    let [s0, s1] = size.unwrap_or(0).to_le_bytes();
    let kind = u8::from(size.is_some());
    [1, kind, 54, 0, s0, s1, 34, 0, 16, 0, 0, 0]
}

/// Pieces that a driver's 4 KiB buffers take, and none of them at a convenient place.
fn pieces(len: usize) -> Vec<usize> {
    let mut pieces = vec![13, 50];
    pieces.extend(std::iter::repeat_n(4001, len / 4001));
    pieces
}

/// Assert that all checksums are right, by a library that knows nothing of ours; the TCP payload.
fn checked(frame: &[u8]) -> (u32, Vec<u8>) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else { panic!("no TCP") };
    match sliced.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            let sum = tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap();
            assert_eq!(tcp.checksum(), sum);
        }
        other => panic!("{other:?}"),
    }
    (tcp.sequence_number(), tcp.payload().to_vec())
}

#[test]
fn a_checksum_left_to_us_is_done_before_the_wire_and_carried_to_a_guest_that_takes_it() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut one = switched(&mut rig, 1, options, all());
        let mut taker = switched(&mut rig, 2, options, all());
        let mut other = switched(&mut rig, 3, options, NONE);
        for guest in [&mut taker, &mut other] {
            guest.to_guest.post(8, 2048);
        }
        for len in [0, 1, 2, 777, 1460] {
            for to in [OUTSIDE, taker.mac, other.mac] {
                let complete = tcp(to, one.mac, 1, &payload(len));
                let mut sent = complete.clone();
                leave_checksum(&mut sent);
                one.from_guest.send_with_header(&header(None), &sent, &[5, 30, 40]);
                rig.settle();
                one.from_guest.completed();
                if to == OUTSIDE {
                    // As long as Ethernet's shortest frame.
                    let mut padded = complete;
                    padded.resize(padded.len().max(60), 0);
                    assert_eq!(rig.wires[0].departed(), [padded]);
                } else if to == taker.mac {
                    let [(header, frame)] = &taker.to_guest.received()[..] else { panic!() };
                    assert_eq!(
                        (&header[..10], frame),
                        (&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0][..], &sent)
                    );
                    taker.to_guest.post(1, 2048);
                } else {
                    let [(header, frame)] = &other.to_guest.received()[..] else { panic!() };
                    assert_eq!((&header[..10], frame), (&[0; 10][..], &complete));
                    other.to_guest.post(1, 2048);
                }
            }
        }
        rig.assert_frames_balance();
    });
}

#[test]
fn a_large_frame_leaves_on_the_wire_in_segments() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = switched(&mut rig, 1, options, all());
        let data = payload(60_001);
        let mut sent = tcp(OUTSIDE, guest.mac, 5000, &data);
        leave_checksum(&mut sent);
        guest.from_guest.send_with_header(&header(Some(1448)), &sent, &pieces(sent.len()));
        rig.settle();
        let mut departed = Vec::new();
        for frame in rig.wires[0].departed() {
            assert!(frame.len() <= 1514);
            let (sequence, payload) = checked(&frame);
            assert_eq!(sequence as usize, 5000 + departed.len());
            departed.extend(payload);
        }
        assert!(departed == data, "the stream is what was sent");
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestPackets), 1);
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestSegments), 41);
        assert_eq!(rig.socket_count(0, SocketCounter::TxPackets), 42);
        rig.assert_frames_balance();
    });
}

#[test]
fn a_large_datagram_leaves_on_the_wire_in_many() {
    // USO: no front-end of today lets a guest see the bit; the datapath knows it all the same.
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let sent: FeatureSet = [CSUM, HOST_USO].into_iter().collect();
        let mut one = switched(&mut rig, 1, options, [Offloads::NONE, Offloads::sent(sent)]);
        let data = payload(3300);
        let udp = |data: &[u8]| {
            let mut frame = Vec::new();
            let builder = PacketBuilder::ethernet2(one.mac, OUTSIDE);
            let builder = builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(40000, 5001);
            builder.write(&mut frame, data).unwrap();
            frame
        };
        let mut frame = udp(&data);
        leave_checksum_at(&mut frame, 40);
        // NEEDS_CSUM, UDP_L4, and where the checksum goes (virtio 1.2, 5.1.6).
        let header = [1, 5, 42, 0, 0xe8, 3, 34, 0, 6, 0, 0, 0];
        one.from_guest.send_with_header(&header, &frame, &pieces(frame.len()));
        rig.settle();
        assert_eq!(one.from_guest.completed().len(), 1);
        let departed = rig.wires[0].departed();
        assert_eq!(departed.len(), 4);
        for (frame, data) in departed.iter().zip(data.chunks(1000)) {
            let sliced = SlicedPacket::from_ethernet(frame).unwrap();
            let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("no UDP") };
            let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4") };
            let ip = ip.header().to_header();
            assert_eq!(ip.header_checksum, ip.calc_header_checksum());
            assert_eq!(udp.payload(), data);
            let sum = udp.to_header().calc_checksum_ipv4(&ip, data).unwrap();
            assert_eq!(udp.checksum(), sum);
        }
        rig.assert_frames_balance();
    });
}

#[test]
fn a_large_frame_reaches_a_guest_that_takes_it_whole_and_another_in_segments() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut one = switched(&mut rig, 1, options, all());
        let mut taker = switched(&mut rig, 2, options, all());
        let mut other = switched(&mut rig, 3, options, NONE);
        let data = payload(30_000);
        for guest in [&mut taker, &mut other] {
            guest.to_guest.post(64, 1600);
        }
        for to in [taker.mac, other.mac] {
            let mut sent = tcp(to, one.mac, 9, &data);
            leave_checksum(&mut sent);
            one.from_guest.send_with_header(&header(Some(1000)), &sent, &pieces(sent.len()));
            rig.settle();
            one.from_guest.completed();
            if to == taker.mac {
                let [(got, frame)] = &taker.to_guest.received()[..] else { panic!() };
                assert_eq!(got[..10], header(Some(1000))[..10]);
                assert!(*frame == sent, "carried over unchanged");
            }
        }
        let segments = other.received();
        assert_eq!(segments.len(), 30);
        let stream: Vec<u8> = segments.iter().flat_map(|frame| checked(frame).1).collect();
        assert!(stream == data);
        assert!(rig.wires[0].departed().is_empty());
    });
}

#[test]
fn work_that_was_not_negotiated_or_does_not_fit_is_dropped_and_counted() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut plain = switched(&mut rig, 1, options, NONE);
        let mut full = switched(&mut rig, 2, options, all());
        let mut sent = tcp(OUTSIDE, plain.mac, 1, &payload(3000));
        leave_checksum(&mut sent);
        plain.from_guest.send_with_header(&header(Some(1000)), &sent, &[]);
        let not_there = [1, 0, 0, 0, 0, 0, 0xff, 0xff, 2, 0, 0, 0];
        let no_such_type = [1, 9, 0, 0, 100, 0, 34, 0, 16, 0, 0, 0];
        let without_size = header(Some(0));
        let without_checksum = [0, 1, 54, 0, 100, 0, 0, 0, 0, 0, 0, 0];
        let of_another_field = [1, 1, 54, 0, 100, 0, 34, 0, 10, 0, 0, 0];
        let headers = [not_there, no_such_type, without_size, without_checksum, of_another_field];
        for header in headers {
            full.from_guest.send_with_header(&header, &sent, &[]);
        }
        // Not TCP at all.
        full.from_guest.send_with_header(&header(Some(1000)), &frame(OUTSIDE, full.mac, 99), &[]);
        rig.settle();
        assert!(rig.wires[0].departed().is_empty());
        assert_eq!(rig.port_count(plain.port, PortCounter::FromGuestDroppedHeader), 1);
        assert_eq!(rig.port_count(full.port, PortCounter::FromGuestDroppedHeader), 6);
        // Segments longer than the MTU.
        full.from_guest.send_with_header(&header(Some(1600)), &sent, &[]);
        rig.settle();
        assert_eq!(rig.port_count(full.port, PortCounter::FromGuestDroppedOversize), 1);
        assert_eq!(full.from_guest.completed().len(), 7, "the ring goes on");
    });
}

#[test]
fn segments_for_which_the_uplink_has_no_frames_are_counted_and_none_is_lost_for_good() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = switched(&mut rig, 1, options, all());
        let mut sent = tcp(OUTSIDE, guest.mac, 1, &payload(30_000));
        leave_checksum(&mut sent);
        // The wire takes nothing meanwhile: 128 frames, and 30 for each.
        for _ in 0..6 {
            guest.from_guest.send_with_header(&header(Some(1000)), &sent, &pieces(sent.len()));
        }
        rig.settle();
        assert_eq!(rig.wires[0].departed().len(), 128);
        assert_eq!(rig.socket_count(0, SocketCounter::TxDroppedFull), 6 * 30 - 128);
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestPackets), 4);
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestDroppedUplinkFull), 2);
        rig.settle();
        rig.assert_frames_balance();
    });
}

#[test]
fn a_large_frame_for_another_workers_ring_is_handed_over_with_what_is_left_to_do() {
    each_layout(|options| {
        for accepts in [all(), NONE] {
            let mut rig = Rig::new(2);
            let mut one = switched(&mut rig, 1, options, all());
            let there = route(Attachment::Switch { mac: mac(2) }, vec![WorkerId(1)]);
            let mut two = RigGuest::with_offloads(&mut rig, there, options, accepts);
            two.to_guest.post(64, 1600);
            let data = payload(40_000);
            let mut sent = tcp(two.mac, one.mac, 1, &data);
            leave_checksum(&mut sent);
            one.from_guest.send_with_header(&header(Some(1448)), &sent, &pieces(sent.len()));
            rig.settle();
            let received = two.received();
            if accepts == NONE {
                assert_eq!(received.len(), 28);
                let stream: Vec<u8> = received.iter().flat_map(|frame| checked(frame).1).collect();
                assert!(stream == data);
            } else {
                assert!(received == [sent]);
            }
        }
    });
}

#[test]
fn cutting_for_another_guest_ends_a_turn_as_sending_on_the_wire_does() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut one = switched(&mut rig, 1, options, all());
        let mut other = switched(&mut rig, 2, options, NONE);
        other.to_guest.post(200, 1600);
        let mut sent = tcp(other.mac, one.mac, 1, &payload(30_000));
        leave_checksum(&mut sent);
        for _ in 0..8 {
            one.from_guest.send_with_header(&header(Some(1000)), &sent, &pieces(sent.len()));
        }
        rig.workers[0].turn();
        let taken = one.from_guest.completed().len();
        assert!(
            (1..8).contains(&taken),
            "240 frames in one turn hold up the others: {taken} taken"
        );
        rig.settle();
        assert_eq!(taken + one.from_guest.completed().len(), 8, "the others have their turn");
    });
}

// ---- coalescing ---------------------------------------------------------------------------------

/// The segments of a stream, as they come from the wire.
fn segments(to: [u8; 6], data: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut sequence = 100;
    let each = data.chunks(size).map(|chunk| {
        let frame = tcp(to, OUTSIDE, sequence, chunk);
        sequence += u32::try_from(chunk.len()).unwrap();
        frame
    });
    each.collect()
}

#[test]
fn segments_from_the_wire_reach_a_guest_that_takes_large_packets_as_one() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut taker = switched(&mut rig, 1, options, all());
        let mut other = switched(&mut rig, 2, options, NONE);
        let data = payload(14_480);
        for guest in [&mut taker, &mut other] {
            guest.to_guest.post(32, 1600);
        }
        for (one, two) in
            segments(taker.mac, &data, 1448).into_iter().zip(segments(other.mac, &data, 1448))
        {
            assert!(rig.wires[0].arrive(&one) && rig.wires[0].arrive(&two));
        }
        rig.settle();
        let [(got, frame)] = &taker.to_guest.received()[..] else { panic!("not one packet") };
        assert_eq!(got[..10], header(Some(1448))[..10]);
        assert!(frame[TCP_HEADERS..] == data);
        // With the checksum that is left done, it is a valid frame.
        let mut whole = frame.clone();
        let length = whole.len();
        assert!(isonic::packet::checksum::complete(
            &mut whole[..length],
            isonic::packet::PartialChecksum { start: 34, offset: 16 }
        ));
        assert_eq!(checked(&whole).0, 100);
        assert_eq!(other.received().len(), 10, "it did not accept large packets");
        assert_eq!(rig.port_count(taker.port, PortCounter::ToGuestCoalesced), 9);
        assert_eq!(rig.port_count(taker.port, PortCounter::ToGuestPackets), 1);
        rig.assert_frames_balance();
    });
}

#[test]
fn coalescing_keeps_a_flow_in_order_and_leaves_what_it_cannot_merge() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = switched(&mut rig, 1, options, all());
        guest.to_guest.post(64, 1600);
        let mut arriving = segments(guest.mac, &payload(6000), 1000);
        // A segment with a wrong checksum in the middle, and a frame of no flow.
        arriving[2][60] ^= 1;
        arriving.insert(4, frame(guest.mac, OUTSIDE, 200));
        for frame in &arriving {
            assert!(rig.wires[0].arrive(frame));
        }
        rig.settle();
        let received = guest.received();
        // Two, the broken one as it came, the stranger in its place or before, and three.
        let tcp: Vec<_> = received.iter().filter(|frame| frame[12..14] == [8, 0]).collect();
        let lens: Vec<_> = tcp.iter().map(|frame| frame.len() - TCP_HEADERS).collect();
        assert_eq!(lens, [2000, 1000, 3000]);
        assert_eq!(*tcp[1], arriving[2]);
        assert!(received.contains(&arriving[4]));
        rig.assert_frames_balance();
    });
}

#[test]
fn what_was_coalesced_is_handed_over_to_the_worker_that_has_the_ring() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let there = route(Attachment::Switch { mac: mac(1) }, vec![WorkerId(1)]);
        let there = Route { coalesce: all()[0], ..there };
        let mut guest = RigGuest::with_offloads(&mut rig, there, options, all());
        guest.to_guest.post(64, 1600);
        let data = payload(50_000);
        for frame in segments(guest.mac, &data, 1448) {
            assert!(rig.wires[0].arrive(&frame));
        }
        rig.settle();
        let received = guest.received();
        assert_eq!(received.len(), 1);
        assert!(received[0][TCP_HEADERS..] == data);
        rig.assert_frames_balance();
    });
}

// ---- legacy drivers -----------------------------------------------------------------------------

#[test]
fn a_legacy_driver_without_merged_buffers_has_a_header_of_ten_bytes() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        for index in [0, 1] {
            let mut ring = rig.take(0, guest.port, index).unwrap();
            ring.kind.header_len = 10;
            ring.kind.mergeable = false;
            rig.give(0, guest.port, index, ring);
        }
        guest.to_guest.post(2, 2048);
        let sent = frame(OUTSIDE, guest.mac, 300);
        guest.from_guest.send_with_header(&[0; 10], &sent, &[4]);
        let arriving = frame(guest.mac, OUTSIDE, 301);
        assert!(rig.wires[0].arrive(&arriving));
        rig.settle();
        assert_eq!(rig.wires[0].departed(), [sent]);
        let [used] = guest.to_guest.completed()[..] else { panic!() };
        assert_eq!(guest.to_guest.contents(used), [&[0; 10][..], &arriving].concat());
    });
}

// ---- flows --------------------------------------------------------------------------------------

#[test]
fn what_arrives_for_a_flow_goes_to_the_queue_pair_it_was_sent_on() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let workers = vec![WorkerId(0), WorkerId(1)];
        let attachment = Attachment::Switch { mac: mac(1) };
        let four = Route {
            ready: vec![0, 1, 2, 3],
            ..Route::new(UplinkId(0), attachment, frame_max(1500), workers)
        };
        let port = rig.add_port(four);
        let mut ram = GuestRam::new(32 << 20);
        let mut drivers: Vec<[Driver; 2]> = (0..4u16)
            .map(|pair| {
                let [mut to_guest, from_guest] =
                    [(); 2].map(|()| Driver::new(&mut ram, 64, options));
                to_guest.post(32, 2048);
                rig.give(usize::from(pair % 2), port, 2 * pair, to_guest.ring().0);
                rig.give(usize::from(pair % 2), port, 2 * pair + 1, from_guest.ring().0);
                [to_guest, from_guest]
            })
            .collect();
        // Flows of their own ports, each sent on another pair than its number alone would give.
        let flow = |number: u16, out: bool| {
            let (mut frame, ports) = (Vec::new(), [50_000 + number, 80]);
            let ([from, to], [source, destination], [a, b]) = if out {
                ([mac(1), OUTSIDE], ports, [[10, 0, 0, 1], [10, 0, 0, 2]])
            } else {
                ([OUTSIDE, mac(1)], [ports[1], ports[0]], [[10, 0, 0, 2], [10, 0, 0, 1]])
            };
            let builder = PacketBuilder::ethernet2(from, to).ipv4(a, b, 64);
            builder.udp(source, destination).write(&mut frame, &number.to_be_bytes()).unwrap();
            frame
        };
        for round in 0..4u16 {
            for number in 0..16u16 {
                let pair = usize::from((number + round) % 4);
                drivers[pair][1].send(&flow(number, true), &[HEADER]);
            }
            rig.settle();
            for number in 0..16 {
                assert!(rig.wires[0].arrive(&flow(number, false)));
            }
            rig.settle();
            for (pair, [to_guest, from_guest]) in (0u16..).zip(&mut drivers) {
                from_guest.completed();
                let received = to_guest.received();
                let expected = (0..16).filter(|number| (number + round) % 4 == pair);
                let expected: Vec<_> = expected.map(|number| flow(number, false)).collect();
                let got: Vec<_> = received.into_iter().map(|(_, frame)| frame).collect();
                assert_eq!(got.len(), expected.len(), "round {round}, pair {pair}");
                assert!(expected.iter().all(|frame| got.contains(frame)));
                to_guest.post(4, 2048);
            }
            for wire in &mut rig.wires {
                wire.departed();
            }
        }
    });
}
