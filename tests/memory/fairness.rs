//! One guest, its neighbours' time and room: whatever a guest does, the work of a turn is bounded,
//! and what is shared has a part for each port that no other can take. Work is counted, not timed.

use crate::raise_open_files;
use etherparse::PacketBuilder;
use isonic::datapath::{Attachment, PortId, Route, Target, UplinkId, WorkerId};
use isonic::device::features::{CSUM, HOST_TSO4};
use isonic::device::offloads::Offloads;
use isonic::metrics::PortCounter;
use isonic::test_support::guest_driver::{
    Driver, GuestRam, HEADER, INDIRECT, NEXT, WRITE, descriptor_bytes,
};
use isonic::test_support::rig::Rig;
use isonic::test_support::rig_guest::{OUTSIDE, RigGuest, each_layout, frame, mac, route};
use isonic::virtqueue::{Fault, QueueOptions};

const SPLIT: QueueOptions = QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE };

/// Descriptors of the longest chain there may be.
const CHAIN_MAX: usize = 1024;

/// A guest of worker 0 with rings of any size.
struct Custom {
    ram: GuestRam,
    port: PortId,
    to_guest: Driver,
    from_guest: Driver,
}

fn custom(rig: &mut Rig, number: u8, size: u16) -> Custom {
    let port = rig.add_port(route(Attachment::Switch { mac: mac(number) }, vec![WorkerId(0)]));
    let mut ram = GuestRam::new(1 << 30);
    let to_guest = Driver::new(&mut ram, size, SPLIT);
    let from_guest = Driver::new(&mut ram, size, SPLIT);
    rig.give(0, port, 0, to_guest.ring().0);
    rig.give(0, port, 1, from_guest.ring().0);
    Custom { ram, port, to_guest, from_guest }
}

/// Make descriptor 0 the head of the longest chain that a split ring can have: all of its
/// descriptors, the last of which is indirect with a table as long as the ring, all of no bytes.
fn longest_empty_chain(ram: &mut GuestRam, driver: &Driver, flags: u16) {
    let size = driver.size;
    let table = ram.allocate(16 * usize::from(size));
    for index in 0..size {
        let last = index + 1 == size;
        let (next, more) = if last { (0, 0) } else { (index + 1, NEXT) };
        let entry = descriptor_bytes(0, 0, flags | more, next);
        ram.write(table + 16 * u64::from(index), &entry);
        if last {
            driver.raw_descriptor(index, table, 16 * u32::from(size), INDIRECT, 0);
        } else {
            driver.raw_descriptor(index, 0, 0, flags | NEXT, index + 1);
        }
    }
}

// ---- descriptors and bytes ----------------------------------------------------------------------

#[test]
fn empty_transmit_descriptors_count_and_end_a_guests_turn() {
    let mut rig = Rig::new(1);
    let mut hostile = custom(&mut rig, 1, 256);
    let mut honest = RigGuest::switched(&mut rig, 2, SPLIT);
    longest_empty_chain(&mut hostile.ram, &hostile.from_guest, 0);
    for _ in 0..64 {
        hostile.from_guest.raw_offer(0);
    }
    let sent = frame(OUTSIDE, honest.mac, 60);
    honest.from_guest.send(&sent, &[]);
    rig.workers[0].turn();
    // Chains of 511: with the third there are more than 1024.
    assert_eq!(hostile.from_guest.used_index(), 3);
    assert_eq!(rig.wires[0].departed(), [sent]);
    rig.settle();
    assert_eq!(hostile.from_guest.used_index(), 64, "the others had their turns later");
    assert_eq!(rig.port_count(hostile.port, PortCounter::FromGuestDroppedRunt), 64);
}

#[test]
fn a_chain_of_too_many_empty_descriptors_breaks_its_ring() {
    let too_many = |fault| matches!(fault, Some(Fault::TooManySegments { limit: CHAIN_MAX, .. }));
    let mut rig = Rig::new(1);
    let mut hostile = custom(&mut rig, 1, 1024);
    longest_empty_chain(&mut hostile.ram, &hostile.from_guest, 0);
    longest_empty_chain(&mut hostile.ram, &hostile.to_guest, WRITE);
    hostile.from_guest.raw_offer(0);
    for _ in 0..64 {
        hostile.to_guest.raw_offer(0);
    }
    assert!(rig.wires[0].arrive(&frame(mac(1), OUTSIDE, 60)));
    rig.settle();
    let reports = rig.inspect(0, hostile.port);
    assert!(reports.iter().all(|ring| too_many(ring.broken)), "{reports:?}");
}

#[test]
fn empty_descriptors_between_others_carry_a_packet_all_the_same() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        let sent = frame(OUTSIDE, guest.mac, 200);
        guest.from_guest.send(&sent, &[0, HEADER, 0, 14, 0, 100, 0]);
        guest.to_guest.post_chain(&[0, 5, 0, 0, 300, 0]);
        let received = frame(guest.mac, OUTSIDE, 200);
        assert!(rig.wires[0].arrive(&received));
        rig.settle();
        assert_eq!(rig.wires[0].departed(), [sent]);
        assert_eq!(guest.received(), [received]);
    });
}

#[test]
fn receive_buffers_that_never_suffice_are_walked_so_often_in_a_turn_and_no_more() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        guest.to_guest.post_chain(&[1; 250]);
        // Each of these walks 250 descriptors in vain; nine are more than 2048.
        for _ in 0..9 {
            assert!(rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 1000)));
        }
        let small = frame(guest.mac, OUTSIDE, 60);
        assert!(rig.wires[0].arrive(&small));
        rig.workers[0].turn();
        assert!(guest.received().is_empty());
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedNoBuffers), 10);
        assert!(rig.wires[0].arrive(&small));
        rig.workers[0].turn();
        assert_eq!(guest.received(), [small], "another turn, another walk");
    });
}

#[test]
fn long_packets_end_a_guests_turn_by_their_bytes() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let longest = 60_000;
        let there = |number| {
            let route = route(Attachment::Switch { mac: mac(number) }, vec![WorkerId(0)]);
            Route { frame_max: longest + 8, ..route }
        };
        let mut one = RigGuest::start(&mut rig, there(1), options);
        let mut two = RigGuest::start(&mut rig, there(2), options);
        let pieces = [4096; 15];
        for _ in 0..12 {
            one.from_guest.send(&frame(two.mac, one.mac, longest as usize), &pieces);
        }
        two.to_guest.post(200, 4096);
        rig.workers[0].turn();
        assert_eq!(one.from_guest.completed().len(), 5, "with the fifth it is more than 256 KiB");
        rig.settle();
        assert_eq!(one.from_guest.completed().len(), 7);
    });
}

// ---- the uplink ---------------------------------------------------------------------------------

/// A guest that may leave checksums and segmentation to us.
fn segmenting(rig: &mut Rig, number: u8) -> RigGuest {
    let route = route(Attachment::Switch { mac: mac(number) }, vec![WorkerId(0)]);
    let sent = Offloads::sent([CSUM, HOST_TSO4].into_iter().collect());
    RigGuest::with_offloads(rig, route, SPLIT, [Offloads::NONE, sent])
}

/// Bytes of the payload that [`tso_header`] has cut into 2048 segments.
const LARGE: usize = 2048 * 31;

/// The virtio-net header of a segment of TCP over IPv4 that is to be cut into many.
fn tso_header() -> [u8; HEADER] {
    [1, 1, 54, 0, 31, 0, 34, 0, 16, 0, 0, 0]
}

fn tcp(to: [u8; 6], from: [u8; 6], payload: usize) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2(from, to)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(40000, 5001, 1, 1000)
        .ack(77);
    builder.write(&mut frame, &vec![7; payload]).unwrap();
    frame
}

fn send_large(guest: &mut RigGuest, to: [u8; 6]) {
    let large = tcp(to, guest.mac, LARGE);
    guest.from_guest.send_with_header(&tso_header(), &large, &[4096; 17]);
}

#[test]
fn guests_that_fill_the_uplink_leave_every_other_its_share() {
    for greedy in [1, 8] {
        let mut rig = Rig::new(1);
        let mut greedy: Vec<_> = (10..10 + greedy).map(|it| segmenting(&mut rig, it)).collect();
        let mut modest = RigGuest::switched(&mut rig, 1, SPLIT);
        let small = frame(OUTSIDE, modest.mac, 60);
        let (mut sent, mut of_modest) = (0, 0);
        for turn in 0..30 {
            for guest in &mut greedy {
                send_large(guest, OUTSIDE);
            }
            // It begins when the others have all that they can have.
            if turn >= 5 {
                modest.from_guest.send(&small, &[]);
                sent += 1;
            }
            rig.workers[0].turn();
            greedy.iter_mut().for_each(|guest| drop(guest.from_guest.completed()));
            modest.from_guest.completed();
            of_modest += rig.wires[0].departed().iter().filter(|it| **it == small).count();
        }
        assert_eq!(of_modest, sent, "beside {} that fill the uplink", greedy.len());
    }
}

#[test]
fn guests_that_fill_the_uplink_alike_get_alike() {
    let mut rig = Rig::new(1);
    let mut guests: Vec<_> = (1..=5).map(|it| RigGuest::switched(&mut rig, it, SPLIT)).collect();
    let mut frames = [0; 5];
    for _ in 0..200 {
        for guest in &mut guests {
            for _ in 0..40 {
                guest.from_guest.send(&frame(OUTSIDE, guest.mac, 60), &[]);
            }
        }
        rig.workers[0].turn();
        guests.iter_mut().for_each(|guest| drop(guest.from_guest.completed()));
        for departed in rig.wires[0].departed() {
            frames[usize::from(departed[11]) - 1] += 1;
        }
    }
    let [least, most] = [frames.iter().min().unwrap(), frames.iter().max().unwrap()];
    assert!(*least > 0 && most - least <= least / 10, "{frames:?}");
}

#[test]
fn one_guest_alone_has_all_of_the_uplink() {
    let mut rig = Rig::new(1);
    let mut guest = RigGuest::switched(&mut rig, 1, SPLIT);
    for _ in 0..200 {
        guest.from_guest.send(&frame(OUTSIDE, guest.mac, 60), &[]);
    }
    rig.settle();
    assert_eq!(rig.wires[0].departed().len(), 128);
}

// ---- floods, and what workers hand over ---------------------------------------------------------

const BROADCAST: [u8; 6] = [0xff; 6];

fn on(number: u8, worker: u16) -> Route {
    route(Attachment::Switch { mac: mac(number) }, vec![WorkerId(worker)])
}

fn fill(guest: &mut RigGuest) {
    let free = guest.to_guest.free_descriptors();
    guest.to_guest.post(u16::try_from(free).unwrap(), 1536);
}

#[test]
fn multicast_of_the_control_plane_counts_its_copies_in_a_turn() {
    raise_open_files();
    const GUESTS: u8 = 200;
    let mut rig = Rig::new(1);
    let mut guests: Vec<_> =
        (1..=GUESTS).map(|it| RigGuest::switched(&mut rig, it, SPLIT)).collect();
    let bytes = frame(BROADCAST, OUTSIDE, 60);
    let port = guests[0].port;
    for target in [Target::FloodFrom { port }, Target::Arrival { uplink: UplinkId(0) }] {
        guests.iter_mut().for_each(fill);
        for _ in 0..16 {
            rig.hand_over(0, &bytes, target);
        }
        rig.workers[0].turn();
        let copies: usize = guests.iter_mut().map(|guest| guest.received().len()).sum();
        assert!((1..=64 + usize::from(GUESTS)).contains(&copies), "{copies} copies in a turn");
        rig.settle();
        let later: usize = guests.iter_mut().map(|guest| guest.received().len()).sum();
        let all = if target == (Target::FloodFrom { port }) { 199 } else { 200 };
        assert_eq!(copies + later, 16 * all, "none was lost");
    }
}

#[test]
fn a_multicast_packet_that_is_cut_for_many_is_bounded_and_every_segment_accounted_for() {
    let mut rig = Rig::new(1);
    let mut one = segmenting(&mut rig, 1);
    let mut others: Vec<_> = (2..65).map(|it| RigGuest::switched(&mut rig, it, SPLIT)).collect();
    // Nothing to receive into, then 256 each.
    for posted in [false, true] {
        if posted {
            others.iter_mut().for_each(fill);
        }
        send_large(&mut one, [1, 0, 0x5e, 0, 0, 1]);
        rig.workers[0].turn();
        assert_eq!(one.from_guest.completed().len(), 1);
        let received: Vec<_> = others.iter_mut().map(|guest| guest.received().len()).collect();
        let copies: usize = received.iter().sum();
        assert!(copies <= 4096, "{copies}");
        if posted {
            assert!(received.iter().all(|&count| count >= 64), "alike: {received:?}");
        }
    }
    for other in &others {
        let mut count = |counter| rig.port_count(other.port, counter);
        let [got, lost, cut_off] = [
            PortCounter::ToGuestPackets,
            PortCounter::ToGuestDroppedNoBuffers,
            PortCounter::ToGuestDroppedHandover,
        ]
        .map(&mut count);
        assert_eq!(got + lost + cut_off, 2 * 2048, "{got} {lost} {cut_off}");
    }
}

#[test]
fn a_flood_reaches_the_guests_of_all_workers_once() {
    each_layout(|options| {
        let mut rig = Rig::new(3);
        let route = |number, worker| on(number, worker);
        let mut guests: Vec<_> = (0..9u8)
            .map(|it| RigGuest::start(&mut rig, route(it + 1, u16::from(it) % 3), options))
            .collect();
        guests.iter_mut().for_each(fill);
        let sent = frame(BROADCAST, guests[0].mac, 60);
        guests[0].from_guest.send(&sent, &[]);
        rig.settle();
        assert!(guests[0].received().is_empty());
        for guest in &mut guests[1..] {
            assert_eq!(guest.received(), std::slice::from_ref(&sent));
        }
    });
}

#[test]
fn a_slow_worker_costs_the_others_no_buffers() {
    let mut rig = Rig::new(4);
    let mut guests: Vec<_> =
        (0..4u8).map(|it| RigGuest::start(&mut rig, on(it + 1, it.into()), SPLIT)).collect();
    // Beside the one whose packets pile up, on the same worker.
    let mut beside = RigGuest::start(&mut rig, on(5, 0), SPLIT);
    let (mut sent, mut got) = (0, 0);
    for _ in 0..40 {
        fill(&mut guests[3]);
        for _ in 0..64 {
            guests[0].from_guest.send(&frame(mac(2), mac(1), 60), &[]);
        }
        for guest in [&mut guests[2], &mut beside] {
            for _ in 0..8 {
                guest.from_guest.send(&frame(mac(4), guest.mac, 60), &[]);
                sent += 1;
            }
        }
        for worker in [0, 2, 3] {
            rig.workers[worker].turn();
        }
        [0, 2].into_iter().for_each(|it| drop(guests[it].from_guest.completed()));
        beside.from_guest.completed();
        got += guests[3].received().len();
    }
    rig.settle();
    got += guests[3].received().len();
    assert_eq!(got, sent, "to a guest whose worker is not slow");
}

#[test]
fn what_arrives_for_a_slow_worker_leaves_frames_to_receive_for_all_others() {
    let mut rig = Rig::new(3);
    let mut guests: Vec<_> =
        (0..3u8).map(|it| RigGuest::start(&mut rig, on(it + 1, it.into()), SPLIT)).collect();
    guests.iter_mut().for_each(fill);
    // Worker 1 takes no turn: what is for its guest stays in its inbox.
    for _ in 0..200 {
        rig.wires[0].arrive(&frame(mac(2), OUTSIDE, 60));
        rig.workers[0].turn();
    }
    for _ in 0..8 {
        for number in [1, 3] {
            assert!(
                rig.wires[0].arrive(&frame(mac(number), OUTSIDE, 60)),
                "no frame to receive in"
            );
        }
        for worker in [0, 2] {
            rig.workers[worker].turn();
        }
    }
    assert_eq!(guests[0].received().len(), 8, "of the worker that receives");
    assert_eq!(guests[2].received().len(), 8, "of another worker, by its share");
    let dropped = rig.port_count(guests[1].port, PortCounter::ToGuestDroppedHandover);
    rig.settle();
    let delivered = guests[1].received().len() as u64;
    assert_eq!(delivered + dropped, 200);
    assert!(delivered > 0 && dropped > 0, "{delivered} delivered, {dropped} dropped");
    rig.assert_frames_balance();
}

#[test]
fn a_guest_that_broadcasts_takes_one_buffer_for_all_guests_of_a_worker() {
    let mut rig = Rig::new(4);
    let mut noisy = RigGuest::start(&mut rig, on(1, 0), SPLIT);
    let mut three = RigGuest::start(&mut rig, on(2, 2), SPLIT);
    let mut four = RigGuest::start(&mut rig, on(3, 3), SPLIT);
    let many: Vec<_> = (10..74).map(|it| RigGuest::start(&mut rig, on(it, 1), SPLIT)).collect();
    let (mut sent, mut got) = (0, 0);
    for round in 0..40 {
        fill(&mut four);
        for _ in 0..noisy.from_guest.free_descriptors().min(64) {
            noisy.from_guest.send(&frame(BROADCAST, mac(1), 60), &[]);
        }
        for _ in 0..8 {
            three.from_guest.send(&frame(mac(3), mac(2), 60), &[]);
            sent += 1;
        }
        let mut order = [0, 1, 2, 3];
        order.rotate_left(round % 4);
        for worker in order {
            rig.workers[worker].turn();
        }
        noisy.from_guest.completed();
        three.from_guest.completed();
        rig.wires.iter_mut().for_each(|wire| drop(wire.departed()));
        got += four.received().iter().filter(|frame| frame[..6] == mac(3)).count();
    }
    fill(&mut four);
    rig.settle();
    got += four.received().iter().filter(|frame| frame[..6] == mac(3)).count();
    assert_eq!(got, sent);
    for port in many.iter().map(|guest| guest.port) {
        assert_eq!(rig.port_count(port, PortCounter::ToGuestDroppedHandover), 0);
    }
}
