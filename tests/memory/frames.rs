//! Which frames pass, and as what: how long they may be with and without tags, how short on the
//! wire, which groups end at the switch, where a checksum may be written, and in which order a flow
//! arrives. Over in-memory wires.

use etherparse::PacketBuilder;
use isonic::datapath::{Attachment, PacketPool, Route, Target, UplinkId, WorkerId, frame_max};
use isonic::device::features::{
    CSUM, FeatureSet, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6, HOST_UFO,
};
use isonic::device::groups::ForwardGroups;
use isonic::device::offloads::Offloads;
use isonic::metrics::{PortCounter, SocketCounter};
use isonic::packet::{Offload, PartialChecksum};
use isonic::test_support::guest_driver::HEADER;
use isonic::test_support::rig::Rig;
use isonic::test_support::rig_guest::{OUTSIDE, RigGuest, each_layout, frame, mac, route};
use isonic::virtqueue::QueueOptions;

const SPLIT: QueueOptions = QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE };
const UNTAGGED: usize = 1514;
/// The EtherType of MAC control.
const MAC_CONTROL: [u8; 2] = [0x88, 0x08];

fn set(bits: &[u8]) -> FeatureSet {
    bits.iter().copied().collect()
}

/// What a guest takes and leaves that does checksums and TCP segmentation.
fn all() -> [Offloads; 2] {
    [
        Offloads::accepted(set(&[GUEST_CSUM, GUEST_TSO4, GUEST_TSO6])),
        Offloads::sent(set(&[CSUM, HOST_TSO4, HOST_TSO6])),
    ]
}

fn switch(number: u8) -> Attachment {
    Attachment::Switch { mac: mac(number) }
}

/// Guest `number` with this MTU, whose ring worker `worker` has.
fn guest_of(
    rig: &mut Rig,
    number: u8,
    (mtu, worker): (u32, u16),
    options: QueueOptions,
) -> RigGuest {
    let there = Route::new(UplinkId(0), switch(number), frame_max(mtu), vec![WorkerId(worker)]);
    let mut guest = RigGuest::start(rig, Route { ready: vec![0], ..there }, options);
    guest.to_guest.post(64, 2048);
    guest
}

/// A guest that takes and leaves work.
fn able(rig: &mut Rig, number: u8, options: QueueOptions, offloads: [Offloads; 2]) -> RigGuest {
    let there = Route { coalesce: offloads[0], ..route(switch(number), vec![WorkerId(0)]) };
    let mut guest = RigGuest::with_offloads(rig, there, options, offloads);
    guest.to_guest.post(32, 2048);
    guest
}

/// A frame of `len` bytes with these tags.
fn tagged(to: [u8; 6], from: [u8; 6], tags: &[u16], len: usize) -> Vec<u8> {
    let inserted: Vec<u8> =
        tags.iter().flat_map(|tpid| [&tpid.to_be_bytes()[..], &[0, 7]].concat()).collect();
    let plain = frame(to, from, len - inserted.len());
    [&plain[..12], &inserted, &plain[12..]].concat()
}

/// A segment of a TCP flow over IPv4, complete.
fn tcp(to: [u8; 6], sequence: u32, payload: &[u8], push: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(OUTSIDE, to)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40000, 5001, sequence, 1000)
        .ack(77);
    let builder = if push { builder.psh() } else { builder };
    builder.write(&mut frame, payload).unwrap();
    // GRO wants DF or identifications that count up.
    change_ipv4(&mut frame, |header| header[6] |= 0x40);
    frame
}

/// Change the IPv4 header of an untagged frame.
fn change_ipv4(frame: &mut [u8], change: impl FnOnce(&mut [u8])) {
    change(&mut frame[14..34]);
    frame[24..26].fill(0);
    let sum = isonic::packet::checksum::sum(&frame[14..34]);
    let sum = !isonic::packet::checksum::fold(sum);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
}

fn lens(frames: &[Vec<u8>]) -> Vec<usize> {
    frames.iter().map(Vec::len).collect()
}

// ---- the longest --------------------------------------------------------------------------------

/// Tags, and the longest frame with them: two count, whatever comes behind them.
const TAGS: [(&[u16], usize); 5] = [
    (&[], UNTAGGED),
    (&[0x8100], UNTAGGED + 4),
    (&[0x88a8, 0x8100], UNTAGGED + 8),
    (&[0x8100, 0x8100, 0x8100], UNTAGGED + 8),
    (&[0x0800, 0x8100], UNTAGGED),
];

#[test]
fn a_frame_is_no_longer_than_its_mtu_and_the_tags_it_has_wherever_it_goes() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let mut sender = guest_of(&mut rig, 1, (1500, 0), options);
        let mut near = guest_of(&mut rig, 2, (1500, 0), options);
        let mut far = guest_of(&mut rig, 3, (1500, 1), options);
        let mut dropped = 0;
        for (tags, longest) in TAGS {
            let cuts: [&[usize]; 3] = [&[], &[HEADER], &[HEADER + 15, 3]];
            for cut in cuts {
                for to in [OUTSIDE, near.mac, far.mac] {
                    let fits = tagged(to, sender.mac, tags, longest);
                    sender.from_guest.send(&fits, cut);
                    sender.from_guest.send(&tagged(to, sender.mac, tags, longest + 1), cut);
                    rig.settle();
                    sender.from_guest.completed();
                    let got = [rig.wires[0].departed(), near.received(), far.received()].concat();
                    assert_eq!(lens(&got), [longest], "{tags:x?} to {to:x?} cut at {cut:?}");
                    assert_eq!(got, [fits]);
                    dropped += 1;
                }
            }
        }
        assert_eq!(rig.port_count(sender.port, PortCounter::FromGuestDroppedOversize), dropped);
        rig.assert_frames_balance();
    });
}

#[test]
fn a_frame_from_the_wire_is_no_longer_than_its_mtu_and_the_tags_it_has() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let mut near = guest_of(&mut rig, 1, (1500, 0), options);
        let mut far = guest_of(&mut rig, 2, (1500, 1), options);
        for (tags, longest) in TAGS {
            for guest in [&mut near, &mut far] {
                let fits = tagged(guest.mac, OUTSIDE, tags, longest);
                let too_long = tagged(guest.mac, OUTSIDE, tags, longest + 1);
                for frame in [&fits, &too_long, &fits] {
                    assert!(rig.wires[0].arrive(frame));
                }
                rig.settle();
                assert_eq!(guest.received(), [fits.clone(), fits], "{tags:x?}");
            }
        }
        for guest in [&near, &far] {
            assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedOversize), 5);
        }
        // Multicast and the host's frames come by the control plane.
        for (tags, longest) in TAGS {
            for len in [longest, longest + 1] {
                let group = tagged([0xff; 6], OUTSIDE, tags, len);
                rig.hand_over(0, &group, Target::Arrival { uplink: UplinkId(0) });
                rig.settle();
                let expected = if len == longest { vec![group] } else { Vec::new() };
                assert_eq!(near.received(), expected, "{tags:x?} {len}");
                assert_eq!(far.received(), expected, "{tags:x?} {len}");
            }
        }
        rig.assert_frames_balance();
    });
}

#[test]
fn a_neighbour_with_a_smaller_mtu_gets_what_its_own_allows() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut sender = guest_of(&mut rig, 1, (1500, 0), options);
        let mut small = guest_of(&mut rig, 2, (1400, 0), options);
        for (tags, longest) in TAGS {
            let longest = longest - 100;
            for cut in [&[][..], &[HEADER]] {
                sender.from_guest.send(&tagged(small.mac, sender.mac, tags, longest), cut);
                sender.from_guest.send(&tagged(small.mac, sender.mac, tags, longest + 1), cut);
                rig.settle();
                sender.from_guest.completed();
                assert_eq!(lens(&small.received()), [longest], "{tags:x?}");
            }
        }
        assert_eq!(rig.port_count(small.port, PortCounter::ToGuestDroppedOversize), 10);
    });
}

/// A virtio-net header: a kind of segmentation into this size, a checksum there.
fn work(kind: u8, size: u16, [start, offset]: [u8; 2]) -> [u8; HEADER] {
    let [s0, s1] = size.to_le_bytes();
    [1, kind, 54, 0, s0, s1, start, 0, offset, 0, 0, 0]
}

#[test]
fn segments_are_no_longer_than_a_frame_may_be() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut one = able(&mut rig, 1, options, all());
        let whole = tcp(OUTSIDE, 1, &[7; 4000], false);
        let tag = [&whole[..12], &[0x81, 0, 0, 7], &whole[12..]].concat();
        for (frame, size, start) in [(&whole, 1460, 34), (&tag, 1460, 38)] {
            for size in [size, size + 1] {
                one.from_guest.send_with_header(&work(1, size, [start, 16]), frame, &[64]);
                rig.settle();
                let departed = rig.wires[0].departed();
                let longest = departed.iter().map(Vec::len).max();
                let expected = (size == 1460).then_some(usize::from(start) + 20 + 1460);
                assert_eq!(longest, expected, "segments of {size} behind {start}");
            }
        }
        assert_eq!(rig.port_count(one.port, PortCounter::FromGuestDroppedOversize), 2);
        // What is not cut, because it is one segment already, is as long as it is.
        let small = tcp(OUTSIDE, 1, &[7; 100], false);
        one.from_guest.send_with_header(&work(1, 9000, [34, 16]), &small, &[]);
        rig.settle();
        assert_eq!(lens(&rig.wires[0].departed()), [54 + 100]);
    });
}

#[test]
fn fragments_are_no_longer_than_a_frame_may_be() {
    let mut rig = Rig::new(1);
    let sent = Offloads::sent(set(&[CSUM, HOST_UFO]));
    let mut guest = able(&mut rig, 1, SPLIT, [Offloads::NONE, sent]);
    // Of IPv6: 54 bytes, a fragment header of 8, and so much of the datagram.
    for (size, payload, expected) in [
        (1448, 1460, vec![1510, 62 + 20]),
        // 1526 bytes, though the datagram has 1514; and one that is not cut.
        (1464, 1462, vec![]),
        (1456, 1448, vec![54 + 8 + 1448]),
        (1456, 1449, vec![]),
        (1464, 1452, vec![1514]),
    ] {
        let mut datagram = Vec::new();
        PacketBuilder::ethernet2(guest.mac, OUTSIDE)
            .ipv6([0xfd; 16], [0xfe; 16], 64)
            .udp(1000, 2000)
            .write(&mut datagram, &vec![3; payload])
            .unwrap();
        guest.from_guest.send_with_header(&work(3, size, [54, 6]), &datagram, &[]);
        rig.settle();
        assert_eq!(lens(&rig.wires[0].departed()), expected, "{payload} bytes by {size}");
    }
    assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestDroppedOversize), 2);
}

// ---- the shortest -------------------------------------------------------------------------------

#[test]
fn a_short_frame_is_padded_with_zeroes_on_the_wire_and_nowhere_else() {
    each_layout(|options| {
        for attachment in [switch(1), Attachment::Wire { queues: vec![0] }] {
            let mut rig = Rig::new(1);
            let there = route(attachment, vec![WorkerId(0)]);
            let mut guest = RigGuest::start(&mut rig, there, options);
            // The frames' memory has been used: by other guests, perhaps.
            for _ in 0..64 {
                guest.from_guest.send(&[&OUTSIDE[..], &[0xff; 200]].concat(), &[]);
            }
            rig.settle();
            rig.wires[0].departed();
            guest.from_guest.completed();
            for len in [14, 15, 59, 60, 61] {
                for cut in [&[][..], &[HEADER + 14]] {
                    let sent = frame(OUTSIDE, guest.mac, len);
                    guest.from_guest.send(&sent, cut);
                    rig.settle();
                    guest.from_guest.completed();
                    let mut padded = sent;
                    padded.resize(len.max(60), 0);
                    assert_eq!(rig.wires[0].departed(), [padded], "{len} bytes");
                }
            }
            rig.assert_frames_balance();
        }
        let mut rig = Rig::new(1);
        let mut one = able(&mut rig, 1, options, all());
        let mut two = able(&mut rig, 2, options, all());
        let short = frame(two.mac, one.mac, 20);
        one.from_guest.send(&short, &[]);
        rig.settle();
        assert_eq!(two.received(), [short]);
        // The last segment is a frame like any other.
        let whole = tcp(OUTSIDE, 1, &[7; 1001], false);
        one.from_guest.send_with_header(&work(1, 1000, [34, 16]), &whole, &[]);
        rig.settle();
        let departed = rig.wires[0].departed();
        assert_eq!(lens(&departed), [1054, 60]);
        assert_eq!(departed[1][54..], [7, 0, 0, 0, 0, 0]);
    });
}

#[test]
fn what_arrives_and_is_no_frame_is_dropped_and_counted() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let attachment = Attachment::Wire { queues: vec![0] };
        let mut guest = RigGuest::start(&mut rig, route(attachment, vec![WorkerId(0)]), options);
        guest.to_guest.post(8, 2048);
        let shortest = frame(guest.mac, OUTSIDE, 14);
        for len in [14, 13, 1, 0, 14] {
            assert!(rig.wires[0].arrive_piece(&shortest[..len], false));
        }
        for len in [13, 5, 0] {
            rig.hand_over(0, &shortest[..len], Target::Arrival { uplink: UplinkId(0) });
        }
        rig.settle();
        assert_eq!(guest.received(), [shortest.clone(), shortest]);
        assert_eq!(rig.socket_count(0, SocketCounter::RxDroppedRunt), 6);
        rig.assert_frames_balance();
    });
}

// ---- reserved groups ----------------------------------------------------------------------------

fn group(last: u8) -> [u8; 6] {
    [0x01, 0x80, 0xc2, 0, 0, last]
}

#[test]
fn a_reserved_group_ends_at_the_switch_both_ways() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let mut one = guest_of(&mut rig, 1, (1500, 0), options);
        let mut two = guest_of(&mut rig, 2, (1500, 0), options);
        let mut far = guest_of(&mut rig, 3, (1500, 1), options);
        for last in 0..16 {
            // With a tag too: what counts is the address.
            one.from_guest.send(&frame(group(last), one.mac, 60), &[]);
            one.from_guest.send(&tagged(group(last), one.mac, &[0x8100], 64), &[20]);
            let arriving = frame(group(last), OUTSIDE, 60);
            rig.hand_over(0, &arriving, Target::Arrival { uplink: UplinkId(0) });
        }
        rig.settle();
        assert!(rig.wires[0].departed().is_empty());
        assert!([&mut one, &mut two, &mut far].into_iter().all(|it| it.received().is_empty()));
        assert_eq!(rig.port_count(one.port, PortCounter::FromGuestDroppedReserved), 32);
        assert_eq!(rig.port_count(one.port, PortCounter::FromGuestPackets), 0);
        assert_eq!(rig.socket_count(0, SocketCounter::RxDroppedReserved), 16);
        assert_eq!(one.from_guest.completed().len(), 32);
        // Its neighbours are groups like any other.
        for to in [group(16), group(0x21), [0x01, 0x80, 0xc2, 0, 1, 0]] {
            let sent = frame(to, one.mac, 60);
            one.from_guest.send(&sent, &[]);
            rig.settle();
            assert_eq!(rig.wires[0].departed(), std::slice::from_ref(&sent));
            assert_eq!(two.received(), [sent]);
        }
    });
}

#[test]
fn a_group_that_is_forwarded_by_name_passes_and_no_other() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut one = guest_of(&mut rig, 1, (1500, 0), options);
        let mut two = guest_of(&mut rig, 2, (1500, 0), options);
        let named = |name: &str| name.parse::<ForwardGroups>().unwrap();
        rig.forward_groups(named("lldp") | named("lacp"));
        for last in 0..16 {
            let (sent, arriving) =
                (frame(group(last), one.mac, 60), frame(group(last), OUTSIDE, 60));
            one.from_guest.send(&sent, &[]);
            rig.hand_over(0, &arriving, Target::Arrival { uplink: UplinkId(0) });
            rig.settle();
            let passed = [2, 14].contains(&last);
            let when = |frames: &[&Vec<u8>]| {
                frames.iter().filter(|_| passed).map(|&frame| frame.clone()).collect::<Vec<_>>()
            };
            assert_eq!(rig.wires[0].departed(), when(&[&sent]), "{last}");
            let mut got = two.received();
            got.sort();
            let mut expected = when(&[&sent, &arriving]);
            expected.sort();
            assert_eq!(got, expected, "{last}");
            assert_eq!(one.received(), when(&[&arriving]), "{last}");
        }
    });
}

#[test]
fn flow_control_leaves_no_guest_whatever_its_port_and_address() {
    each_layout(|options| {
        for attachment in [switch(1), Attachment::Wire { queues: vec![0] }] {
            let wire = matches!(attachment, Attachment::Wire { .. });
            let mut rig = Rig::new(1);
            let there = route(attachment, vec![WorkerId(0)]);
            let mut guest = RigGuest::start(&mut rig, there, options);
            let everything = ["stp", "lacp", "eapol", "lldp"].map(|name| name.parse().unwrap());
            rig.forward_groups(everything.into_iter().fold(ForwardGroups::NONE, |a, b| a | b));
            let mut control = 0;
            for to in [group(1), OUTSIDE, [0xff; 6], group(0)] {
                let mut pause = frame(to, guest.mac, 60);
                pause[12..14].copy_from_slice(&MAC_CONTROL);
                for cut in [&[][..], &[HEADER + 13]] {
                    guest.from_guest.send(&pause, cut);
                    control += 1;
                }
            }
            // To the group of PAUSE, but not MAC control.
            guest.from_guest.send(&frame(group(1), guest.mac, 60), &[]);
            let plain = frame(OUTSIDE, guest.mac, 60);
            guest.from_guest.send(&plain, &[]);
            rig.settle();
            assert_eq!(rig.wires[0].departed(), [plain]);
            let reserved = PortCounter::FromGuestDroppedReserved;
            assert_eq!(rig.port_count(guest.port, reserved), control + 1);
            // A wire port's other frames are its own affair.
            if wire {
                guest.from_guest.completed();
                let bpdu = frame(group(0), guest.mac, 60);
                rig.forward_groups(ForwardGroups::NONE);
                guest.from_guest.send(&bpdu, &[]);
                rig.settle();
                assert_eq!(rig.wires[0].departed(), [bpdu]);
            }
        }
    });
}

// ---- checksums ----------------------------------------------------------------------------------

#[test]
fn a_checksum_is_written_behind_all_that_forwarding_has_looked_at() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut one = able(&mut rig, 1, options, all());
        let mut taker = able(&mut rig, 2, options, all());
        let mut other = able(&mut rig, 3, options, [Offloads::NONE; 2]);
        let mut refused = 0;
        for to in [OUTSIDE, taker.mac, other.mac] {
            let plain = frame(to, one.mac, 60);
            let tag = tagged(to, one.mac, &[0x8100, 0x88a8], 64);
            for (frame, place) in [
                (&plain, [0, 0]),
                (&plain, [0, 16]),
                (&plain, [12, 0]),
                (&plain, [13, 40]),
                (&tag, [14, 0]),
                (&tag, [21, 10]),
            ] {
                one.from_guest.send_with_header(&work(0, 0, place), frame, &[]);
                refused += 1;
            }
        }
        rig.settle();
        assert!(rig.wires[0].departed().is_empty());
        assert!(taker.received().is_empty() && other.received().is_empty());
        assert_eq!(rig.port_count(one.port, PortCounter::FromGuestDroppedHeader), refused);
    });
}

#[test]
fn a_checksum_elsewhere_than_a_transport_has_it_is_completed_and_left_to_nobody() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut one = able(&mut rig, 1, options, all());
        let mut taker = able(&mut rig, 2, options, all());
        let datagram = tcp(taker.mac, 1, &[9; 64], false);
        let mut fragment = datagram.clone();
        change_ipv4(&mut fragment, |header| header[6] = 0x20);
        for (frame, place) in [
            (&frame(taker.mac, one.mac, 90), [34, 16]),
            // The destination address; another place in TCP; a fragment's.
            (&datagram, [14, 16]),
            (&datagram, [34, 4]),
            (&datagram, [35, 15]),
            (&fragment, [34, 16]),
        ] {
            one.from_guest.send_with_header(&work(0, 0, place), frame, &[20]);
            rig.settle();
            let partial = PartialChecksum { start: place[0].into(), offset: place[1].into() };
            let mut complete = frame.clone();
            assert!(isonic::packet::checksum::complete(&mut complete, partial));
            let [(header, got)] = &taker.to_guest.received()[..] else { panic!("{place:?}") };
            assert_eq!((header[..10].to_vec(), got), (vec![0; 10], &complete), "{place:?}");
        }
        // The transport's own goes on as it is.
        one.from_guest.send_with_header(&work(0, 0, [34, 16]), &datagram, &[]);
        rig.settle();
        let [(header, got)] = &taker.to_guest.received()[..] else { panic!() };
        assert_eq!((header[0], got), (1, &datagram));
    });
}

#[test]
fn the_host_is_left_no_other_checksum_than_a_transport_s_either() {
    let mut packet = PacketPool::new().take().unwrap();
    let datagram = tcp(mac(1), 1, &[9; 64], false);
    for (start, left) in [(34, true), (14, false)] {
        let checksum = PartialChecksum { start, offset: 16 };
        packet.room(datagram.len()).copy_from_slice(&datagram);
        packet.offload = Offload { checksum: Some(checksum), segmentation: None };
        packet.settle_checksum();
        assert_eq!(packet.offload.checksum.is_some(), left);
        let mut expected = datagram.clone();
        assert!(left || isonic::packet::checksum::complete(&mut expected, checksum));
        assert_eq!(packet.bytes(), expected);
    }
}

// ---- the order of a flow ------------------------------------------------------------------------

/// The sequence numbers of what a guest with an MTU of 9000 received of these frames of one burst.
fn order(options: QueueOptions, frames: impl Fn([u8; 6]) -> Vec<Vec<u8>>) -> Vec<u8> {
    let mut rig = Rig::new(1);
    let there = Route::new(UplinkId(0), switch(1), frame_max(9000), vec![WorkerId(0)]);
    let there = Route { ready: vec![0], coalesce: all()[0], ..there };
    let mut guest = RigGuest::with_offloads(&mut rig, there, options, all());
    guest.to_guest.post(128, 4096);
    for frame in frames(guest.mac) {
        assert!(rig.wires[0].arrive(&frame));
    }
    rig.settle();
    rig.assert_frames_balance();
    guest.received().iter().map(|frame| *frame.last().unwrap()).collect()
}

#[test]
fn a_flow_stays_in_order_when_short_and_jumbo_segments_mix() {
    each_layout(|options| {
        let ends = order(options, |to| {
            let mut at = 0;
            let cuts = [(300, true), (8948, false), (8948, false), (1804, true), (1000, false)];
            let cut = cuts.into_iter().zip(1..).map(|((len, push), last)| {
                let frame = tcp(to, at, &vec![last; len], push);
                at += u32::try_from(len).unwrap();
                frame
            });
            cut.collect()
        });
        assert!(ends.is_sorted() && ends.last() == Some(&5), "{ends:?}");
    });
}

#[test]
fn a_flow_stays_in_order_when_some_frames_have_their_ports_elsewhere_or_none() {
    each_layout(|layout| {
        let ends = order(layout, |to| {
            let segment = |number: u8| tcp(to, u32::from(number) * 1000, &[number; 1000], false);
            // With IPv4 options, and the second of two fragments.
            let mut fragment = segment(4);
            change_ipv4(&mut fragment, |header| header[6..8].copy_from_slice(&[0, 1]));
            fragment[34..54].fill(0xee);
            vec![segment(1), with_options(&segment(2)), segment(3), fragment, segment(5)]
        });
        assert_eq!(ends, [1, 2, 3, 4, 5]);
        let ends = order(layout, |to| {
            let segment = |number: u8| {
                let mut frame = Vec::new();
                PacketBuilder::ethernet2(OUTSIDE, to)
                    .ipv6([0xfd; 16], [0xfe; 16], 64)
                    .tcp(40000, 5001, u32::from(number) * 1000, 1000)
                    .ack(77)
                    .write(&mut frame, &[number; 1000])
                    .unwrap();
                frame
            };
            // A destination header of eight bytes of padding.
            let mut extended = segment(2);
            extended.splice(54..54, [6, 0, 1, 4, 0, 0, 0, 0]);
            extended[20] = 60;
            extended[18..20].copy_from_slice(&1028_u16.to_be_bytes());
            vec![segment(1), extended, segment(3)]
        });
        assert_eq!(ends, [1, 2, 3]);
    });
}

/// The same segment with four bytes of IPv4 options that do nothing.
fn with_options(segment: &[u8]) -> Vec<u8> {
    let mut frame = segment.to_vec();
    frame.splice(34..34, [1; 4]);
    frame[14] = 0x46;
    let length = u16::try_from(frame.len() - 14).unwrap();
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[24..26].fill(0);
    let sum = !isonic::packet::checksum::fold(isonic::packet::checksum::sum(&frame[14..38]));
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

// ---- coalescing ---------------------------------------------------------------------------------

#[test]
fn only_the_payload_of_a_padded_segment_is_merged_and_tags_keep_flows_apart() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = able(&mut rig, 1, options, all());
        let first = tcp(guest.mac, 0, &[1; 4], false);
        let mut second = tcp(guest.mac, 4, &[2; 3], false);
        for mut frame in [first.clone(), second.clone()] {
            frame.resize(60, 0xee);
            assert!(rig.wires[0].arrive(&frame));
        }
        rig.settle();
        let [merged] = &guest.received()[..] else { panic!("not one packet") };
        assert_eq!(merged[54..], [1, 1, 1, 1, 2, 2, 2]);
        // A priority tag is a tag.
        second.splice(12..12, [0x81, 0, 0, 0]);
        for frame in [first, second] {
            assert!(rig.wires[0].arrive(&frame));
        }
        rig.settle();
        assert_eq!(guest.received().len(), 2);
    });
}

#[test]
fn a_guest_that_takes_checksums_alone_gets_every_segment_as_it_came() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let accepted = Offloads::accepted(set(&[GUEST_CSUM]));
        assert!(!accepted.allow_merging(), "so nothing is looked at for merging");
        let mut guest = able(&mut rig, 1, options, [accepted, Offloads::NONE]);
        let sent = [0, 1000, 2000].map(|at| tcp(guest.mac, at, &[5; 1000], false));
        for frame in &sent {
            assert!(rig.wires[0].arrive(frame));
        }
        rig.settle();
        assert_eq!(guest.received(), sent);
    });
}
