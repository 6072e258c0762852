//! The whole datapath over in-memory wires: packets between guests and uplinks, contents checked,
//! every drop counted by its reason, no frame lost.

use std::fs::File;

use isonic::datapath::{Attachment, Route, Target, UplinkId, WorkerId, to_guest_ring};
use isonic::metrics::{PortCounter, SocketCounter};
use isonic::test_support::frontend::{event, signalled};
use isonic::test_support::guest_driver::{Driver, GuestRam, HEADER, WRITE};
use isonic::test_support::rig::Rig;
use isonic::test_support::rig_guest::{OUTSIDE, RigGuest, each_layout, frame, mac, route};
use isonic::virtqueue::{EventFd, EventKind, Fault, QueueOptions};

const BROADCAST: [u8; 6] = [0xff; 6];

#[test]
fn a_packet_from_a_guest_leaves_on_the_wire_unchanged() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        for len in [60, 61, 64, 512, 1513, 1514] {
            let sent = frame(OUTSIDE, guest.mac, len);
            let cuts: [&[usize]; 3] = [&[], &[HEADER], &[3, 7, 11]];
            for pieces in cuts {
                guest.from_guest.send(&sent, pieces);
                rig.settle();
                assert_eq!(
                    rig.wires[0].departed(),
                    std::slice::from_ref(&sent),
                    "{len} bytes cut at {pieces:?}"
                );
                guest.from_guest.completed();
            }
        }
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestPackets), 18);
        rig.assert_frames_balance();
    });
}

#[test]
fn a_packet_from_the_wire_reaches_the_guest_that_has_its_mac() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let (mut one, mut two) =
            (RigGuest::switched(&mut rig, 1, options), RigGuest::switched(&mut rig, 2, options));
        for guest in [&mut one, &mut two] {
            guest.to_guest.post(8, 1536);
        }
        let sent = frame(two.mac, OUTSIDE, 1514);
        assert!(rig.wires[0].arrive(&sent));
        assert!(rig.wires[0].arrive(&frame(mac(9), OUTSIDE, 60)));
        rig.settle();
        assert_eq!(two.received(), [sent]);
        assert!(one.received().is_empty());
        assert_eq!(rig.socket_count(0, SocketCounter::RxDroppedNoPort), 1);
        rig.assert_frames_balance();
    });
}

#[test]
fn the_header_of_a_received_packet_says_one_buffer_and_nothing_else() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        guest.to_guest.post(1, 1536);
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        rig.settle();
        let (header, _) = guest.to_guest.received().remove(0);
        assert_eq!(header, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    });
}

#[test]
fn a_frame_larger_than_a_buffer_is_merged_over_several() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        guest.to_guest.post(16, 256);
        let sent = frame(guest.mac, OUTSIDE, 1514);
        rig.wires[0].arrive(&sent);
        rig.settle();
        let packets = guest.to_guest.received();
        assert_eq!(packets[0].1, sent);
        assert_eq!(packets[0].0[10..], [6, 0], "1526 bytes in buffers of 256");
    });
}

#[test]
fn without_merging_a_small_buffer_drops_the_frame_and_stays_posted() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        let mut ring = rig.take(0, guest.port, 0).unwrap();
        ring.kind.mergeable = false;
        rig.give(0, guest.port, 0, ring);
        guest.to_guest.post(1, 256);
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 1514));
        rig.settle();
        assert!(guest.received().is_empty());
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedBufferSize), 1);
        let small = frame(guest.mac, OUTSIDE, 100);
        rig.wires[0].arrive(&small);
        rig.settle();
        assert_eq!(guest.received(), [small]);
    });
}

#[test]
fn buffers_cut_into_tiny_descriptors_are_filled_across_them() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        guest.to_guest.post_chain(&[1, 1, 5, 10, 20, 100]);
        let sent = frame(guest.mac, OUTSIDE, 120);
        rig.wires[0].arrive(&sent);
        rig.settle();
        assert_eq!(guest.received(), [sent]);
    });
}

#[test]
fn guests_of_one_uplink_reach_each_other_without_the_wire() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let (mut one, mut two) =
            (RigGuest::switched(&mut rig, 1, options), RigGuest::switched(&mut rig, 2, options));
        two.to_guest.post(4, 1536);
        let sent = frame(two.mac, one.mac, 900);
        one.from_guest.send(&sent, &[HEADER, 100]);
        rig.settle();
        assert_eq!(two.received(), [sent]);
        assert!(rig.wires[0].departed().is_empty());
    });
}

/// Before a VM has arrived, and after it has left, its port is there on both hosts.
#[test]
fn what_a_guest_sends_to_one_that_is_not_here_goes_to_the_wire() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let (mut here, mut moving) =
            (RigGuest::switched(&mut rig, 1, options), RigGuest::switched(&mut rig, 2, options));
        let attachment = Attachment::Switch { mac: moving.mac };
        let present = route(attachment, vec![WorkerId(0)]);
        let away = Route { ready: Vec::new(), ..present.clone() };
        moving.to_guest.post(8, 1536);
        for (route, arrives) in [(&away, false), (&present, true), (&away, false)] {
            rig.set_route(moving.port, route.clone());
            // Alone, and in a run of packets that go the same way.
            for count in [1, 3] {
                let sent = frame(moving.mac, here.mac, 300);
                for _ in 0..count {
                    here.from_guest.send(&sent, &[]);
                }
                rig.settle();
                let _ = here.from_guest.completed();
                let (received, departed) = (moving.received().len(), rig.wires[0].departed().len());
                let expected = if arrives { (count, 0) } else { (0, count) };
                assert_eq!((received, departed), expected);
            }
        }
        assert_eq!(rig.port_count(moving.port, PortCounter::ToGuestDroppedNotReady), 0);
    });
}

#[test]
fn broadcast_from_a_guest_reaches_the_wire_and_the_others_but_not_itself() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guests: Vec<_> =
            (1..=3).map(|number| RigGuest::switched(&mut rig, number, options)).collect();
        for guest in &mut guests {
            guest.to_guest.post(4, 1536);
        }
        let sent = frame(BROADCAST, guests[0].mac, 60);
        guests[0].from_guest.send(&sent, &[]);
        rig.settle();
        assert_eq!(rig.wires[0].departed(), std::slice::from_ref(&sent));
        assert!(guests[0].received().is_empty());
        assert_eq!(guests[1].received(), std::slice::from_ref(&sent));
        assert_eq!(guests[2].received(), [sent]);
    });
}

#[test]
fn multicast_brought_by_the_control_plane_reaches_every_switched_guest() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guests: Vec<_> =
            (1..=2).map(|number| RigGuest::switched(&mut rig, number, options)).collect();
        for guest in &mut guests {
            guest.to_guest.post(4, 1536);
        }
        let sent = frame(BROADCAST, OUTSIDE, 60);
        rig.hand_over(0, &sent, Target::Arrival { uplink: UplinkId(0) });
        rig.settle();
        assert!(guests.iter_mut().all(|guest| guest.received() == std::slice::from_ref(&sent)));
        assert!(rig.wires[0].departed().is_empty(), "it came from there");
    });
}

#[test]
fn an_announcement_goes_to_the_wire_and_to_the_other_guests() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let (one, mut two) =
            (RigGuest::switched(&mut rig, 1, options), RigGuest::switched(&mut rig, 2, options));
        two.to_guest.post(4, 1536);
        let sent = frame(BROADCAST, one.mac, 60);
        rig.hand_over(0, &sent, Target::FloodFrom { port: one.port });
        rig.settle();
        assert_eq!(rig.wires[0].departed(), std::slice::from_ref(&sent));
        assert_eq!(two.received(), [sent]);
    });
}

#[test]
fn a_wire_port_gets_and_sends_everything_unparsed() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let attachment = Attachment::Wire { queues: vec![0] };
        let mut guest = RigGuest::start(&mut rig, route(attachment, vec![WorkerId(0)]), options);
        guest.to_guest.post(4, 1536);
        let (strange, broadcast) = (frame(mac(77), OUTSIDE, 60), frame(BROADCAST, OUTSIDE, 60));
        rig.wires[0].arrive(&strange);
        rig.wires[0].arrive(&broadcast);
        guest.from_guest.send(&broadcast, &[]);
        rig.settle();
        assert_eq!(guest.received(), [strange, broadcast.clone()]);
        assert_eq!(rig.wires[0].departed(), [broadcast]);
    });
}

// ---- drops, each counted by its reason ----------------------------------------------------------

#[test]
fn malformed_packets_are_dropped_and_the_ring_goes_on() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        let good = frame(OUTSIDE, guest.mac, 60);
        guest.from_guest.send(&good[..13], &[]);
        guest.from_guest.send_with_header(&[], &[0; 5], &[]);
        guest.from_guest.send(&frame(OUTSIDE, guest.mac, 1515), &[]);
        guest.from_guest.send_with_header(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &good, &[]);
        guest.from_guest.send_with_header(&[0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &good, &[]);
        guest.from_guest.send(&frame(guest.mac, guest.mac, 60), &[]);
        guest.from_guest.send(&good, &[]);
        rig.settle();
        assert_eq!(guest.from_guest.completed().len(), 7, "every chain is given back");
        assert_eq!(rig.wires[0].departed(), [good]);
        let mut count = |counter| rig.port_count(guest.port, counter);
        assert_eq!(count(PortCounter::FromGuestDroppedRunt), 2);
        assert_eq!(count(PortCounter::FromGuestDroppedOversize), 1);
        assert_eq!(count(PortCounter::FromGuestDroppedHeader), 2);
        assert_eq!(count(PortCounter::FromGuestDroppedNoRoute), 1);
        assert_eq!(count(PortCounter::FromGuestPackets), 1);
        assert_eq!(count(PortCounter::RingFaults), 0);
    });
}

#[test]
fn a_guest_without_buffers_loses_its_own_frames_only() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let (mut one, mut two) =
            (RigGuest::switched(&mut rig, 1, options), RigGuest::switched(&mut rig, 2, options));
        two.to_guest.post(4, 1536);
        one.to_guest.post(1, 100);
        let (for_one, for_two) = (frame(one.mac, OUTSIDE, 500), frame(two.mac, OUTSIDE, 500));
        rig.wires[0].arrive(&for_one);
        rig.wires[0].arrive(&for_two);
        rig.settle();
        assert_eq!(two.received(), [for_two]);
        assert_eq!(rig.port_count(one.port, PortCounter::ToGuestDroppedNoBuffers), 1);
        one.to_guest.post(5, 100);
        rig.wires[0].arrive(&for_one);
        rig.settle();
        assert_eq!(one.received(), [for_one], "the buffer that did not suffice was kept");
        rig.assert_frames_balance();
    });
}

#[test]
fn a_disabled_ring_is_drained_and_gets_nothing() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        guest.to_guest.post(4, 1536);
        for index in 0..2 {
            let mut ring = rig.take(0, guest.port, index).unwrap();
            ring.enabled = false;
            rig.give(0, guest.port, index, ring);
        }
        guest.from_guest.send(&frame(OUTSIDE, guest.mac, 60), &[]);
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        rig.settle();
        assert_eq!(guest.from_guest.completed().len(), 1);
        assert!(rig.wires[0].departed().is_empty());
        assert!(guest.received().is_empty());
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestDroppedDisabled), 1);
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedNotReady), 1);
    });
}

#[test]
fn a_wire_that_takes_nothing_costs_drops_not_frames() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        let sent = frame(OUTSIDE, guest.mac, 60);
        for _ in 0..200 {
            guest.from_guest.send(&sent, &[]);
        }
        rig.settle();
        assert_eq!(guest.from_guest.completed().len(), 200);
        assert_eq!(rig.wires[0].departed().len(), 128, "all frames that there are to send with");
        let mut count = |counter| rig.port_count(guest.port, counter);
        let (forwarded, dropped) =
            (count(PortCounter::FromGuestPackets), count(PortCounter::FromGuestDroppedUplinkFull));
        assert_eq!((forwarded, dropped), (128, 72), "sent = forwarded + dropped");
        guest.from_guest.send(&sent, &[]);
        rig.settle();
        assert_eq!(rig.wires[0].departed(), [sent], "the frames came back");
        rig.assert_frames_balance();
    });
}

#[test]
fn a_broken_ring_is_served_no_more_and_nobody_else_notices() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let (mut bad, mut good) =
            (RigGuest::switched(&mut rig, 1, options), RigGuest::switched(&mut rig, 2, options));
        good.to_guest.post(8, 1536);
        bad.to_guest.post(8, 1536);
        let before = frame(OUTSIDE, bad.mac, 60);
        bad.from_guest.send(&before, &[]);
        bad.from_guest.offer_anything(u64::MAX / 2, 64, 0);
        bad.from_guest.send(&before, &[]);
        let sent = frame(OUTSIDE, good.mac, 60);
        good.from_guest.send(&sent, &[]);
        rig.settle();
        let mut departed = rig.wires[0].departed();
        departed.sort_unstable();
        // In the order of the source addresses.
        let expected = [before, sent];
        assert_eq!(departed, expected, "what came before the fault counts, what came after not");
        assert_eq!(bad.from_guest.completed().len(), 1);
        assert_eq!(rig.port_count(bad.port, PortCounter::RingFaults), 1);
        let report = rig.inspect(0, bad.port);
        assert!(matches!(report[1].broken, Some(Fault::Unmapped { .. })));
        let arriving = frame(bad.mac, OUTSIDE, 60);
        rig.wires[0].arrive(&arriving);
        rig.settle();
        assert_eq!(bad.received(), [arriving], "its other ring lives on");
    });
}

#[test]
fn a_receive_ring_that_breaks_gives_nothing_back_half_done() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        guest.to_guest.offer_anything(u64::MAX / 2, 1536, WRITE);
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        rig.settle();
        assert!(guest.to_guest.completed().is_empty());
        assert_eq!(rig.port_count(guest.port, PortCounter::RingFaults), 1);
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedNotReady), 2);
        rig.assert_frames_balance();
    });
}

// ---- rings come and go --------------------------------------------------------------------------

#[test]
fn a_ring_taken_away_is_not_touched_again_and_goes_on_when_given_back() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        let sent = frame(OUTSIDE, guest.mac, 60);
        let ring = rig.take(0, guest.port, 1).unwrap();
        guest.from_guest.send(&sent, &[]);
        rig.settle();
        assert!(guest.from_guest.completed().is_empty());
        assert!(rig.take(0, guest.port, 1).is_none(), "it is gone");
        rig.give(0, guest.port, 1, ring);
        rig.settle();
        assert_eq!(rig.wires[0].departed(), [sent], "what waited is sent without a kick");
    });
}

#[test]
fn one_interrupt_per_burst_and_none_when_not_wanted() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        guest.to_guest.post(64, 1536);
        for _ in 0..20 {
            rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        }
        rig.settle();
        let mut count = [0; 8];
        rustix::io::read(&guest.call, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        guest.to_guest.want_no_interrupt();
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        rig.settle();
        assert!(rustix::io::read(&guest.call, &mut count).is_err(), "no signal");
        assert_eq!(rig.port_count(guest.port, PortCounter::NotificationsSuppressed), 1);
    });
}

/// The interrupt for a burst went to a descriptor that the front-end has just let go of: nobody
/// else will tell the driver.
#[test]
fn a_new_call_descriptor_is_signalled_for_what_the_old_one_may_have_told_nobody() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guest = RigGuest::switched(&mut rig, 1, options);
        guest.to_guest.post(64, 1536);
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        rig.settle();
        let ring = (guest.port, to_guest_ring(0));
        let exchange = |rig: &mut Rig, call: &File| {
            let call = EventFd::new(call.try_clone().unwrap()).unwrap();
            rig.exchange(0, ring, EventKind::Call, Some(call));
        };
        let call = event();
        exchange(&mut rig, &call);
        assert!(signalled(&call));
        // And the old one is used no more, nor was the ring away meanwhile.
        assert!(signalled(&guest.call));
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        rig.settle();
        assert_eq!(guest.received().len(), 2);
        assert!(!signalled(&guest.call));
    });
}

#[test]
fn a_guest_that_floods_has_its_turn_ended_and_loses_nothing() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let mut guests: Vec<_> =
            (1..=8).map(|number| RigGuest::switched(&mut rig, number, options)).collect();
        let sent = frame(BROADCAST, guests[0].mac, 60);
        for _ in 0..64 {
            guests[0].from_guest.send(&sent, &[]);
        }
        rig.workers[0].turn();
        let first = guests[0].from_guest.completed().len();
        assert_eq!(first, 16, "two bursts' worth of copies to eight ports");
        rig.settle();
        assert_eq!(first + guests[0].from_guest.completed().len(), 64);
        assert_eq!(rig.wires[0].departed().len(), 64);
    });
}

// ---- several workers ----------------------------------------------------------------------------

#[test]
fn a_frame_for_another_workers_ring_is_handed_over_and_comes_home() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let attachment = Attachment::Switch { mac: mac(1) };
        let mut guest = RigGuest::start(&mut rig, route(attachment, vec![WorkerId(1)]), options);
        guest.to_guest.post(64, 1536);
        let sent = frame(guest.mac, OUTSIDE, 1000);
        for _ in 0..50 {
            rig.wires[0].arrive(&sent);
        }
        rig.settle();
        assert_eq!(guest.received(), vec![sent; 50]);
        rig.settle();
        rig.assert_frames_balance();
    });
}

#[test]
fn a_frame_goes_to_a_ring_of_the_worker_that_received_it_if_there_is_one() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let attachment = Attachment::Switch { mac: mac(1) };
        let both = Route { ready: vec![0, 1], ..route(attachment, vec![WorkerId(1), WorkerId(0)]) };
        let guest = RigGuest::start(&mut rig, both, options);
        let mut ram = GuestRam::new(4 << 20);
        let mut near = Driver::new(&mut ram, 64, options);
        rig.give(0, guest.port, 2, near.ring().0);
        near.post(8, 1536);
        let sent = frame(guest.mac, OUTSIDE, 100);
        rig.wires[0].arrive(&sent);
        rig.workers[0].turn();
        assert_eq!(near.received().len(), 1, "no other worker had a turn");
    });
}

#[test]
fn guests_on_different_workers_reach_each_other() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let on =
            |number, worker| route(Attachment::Switch { mac: mac(number) }, vec![WorkerId(worker)]);
        let mut one = RigGuest::start(&mut rig, on(1, 0), options);
        let mut two = RigGuest::start(&mut rig, on(2, 1), options);
        two.to_guest.post(64, 1536);
        let sent = frame(two.mac, one.mac, 700);
        one.from_guest.send(&sent, &[HEADER]);
        rig.settle();
        assert_eq!(two.received(), [sent]);
    });
}

#[test]
fn a_full_inbox_drops_and_counts_and_loses_no_frame() {
    each_layout(|options| {
        let mut rig = Rig::new(2);
        let attachment = Attachment::Switch { mac: mac(1) };
        let mut guest = RigGuest::start(&mut rig, route(attachment, vec![WorkerId(1)]), options);
        guest.to_guest.post(200, 1536);
        let filler = frame(mac(1), OUTSIDE, 60);
        for _ in 0..1024 {
            rig.hand_over(1, &filler, Target::Arrival { uplink: UplinkId(9) });
        }
        rig.wires[0].arrive(&frame(guest.mac, OUTSIDE, 60));
        rig.workers[0].turn();
        rig.settle();
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedHandover), 1);
        rig.assert_frames_balance();
    });
}

/// Whether the driver of a transmit ring with nothing outstanding would kick for its next packet.
fn asks_for_kicks(driver: &Driver, options: QueueOptions) -> bool {
    match options {
        QueueOptions { packed: true, .. } => driver.device_area_flags() == 0,
        QueueOptions { event_idx: true, .. } => driver.available_event() == driver.available,
        _ => driver.used_flags() & 1 == 0,
    }
}

#[test]
fn a_quiet_ring_asks_for_kicks_in_other_memory_too() {
    // More than the turns after which a ring without packets is quiet.
    const MANY_TURNS: usize = 100;
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let attachment = Attachment::Switch { mac: mac(1) };
        let port = rig.add_port(route(attachment, vec![WorkerId(0)]));
        let mut ram = GuestRam::new(1 << 20);
        let mut driver = Driver::new(&mut ram, 64, options);
        rig.give(0, port, 1, driver.ring().0);
        for _ in 0..3 {
            driver.send(&frame(OUTSIDE, mac(1), 60), &[]);
            rig.settle();
            assert_eq!(driver.completed().len(), 1);
            for _ in 0..MANY_TURNS {
                rig.workers[0].turn();
            }
            assert!(asks_for_kicks(&driver, options), "before, {options:?}");
            assert!(rig.relocate(0, (port, 1), driver.setup(), &ram.memory));
            assert!(asks_for_kicks(&driver, options), "in the other, {options:?}");
        }
    });
}

#[test]
fn a_quiet_guest_is_heard_while_another_keeps_the_worker_busy() {
    each_layout(|options| {
        let mut rig = Rig::new(1);
        let (mut loud, mut quiet) =
            (RigGuest::switched(&mut rig, 1, options), RigGuest::switched(&mut rig, 2, options));
        rig.settle();
        for _ in 0..100 {
            rig.workers[0].turn();
        }
        let sent = frame(OUTSIDE, quiet.mac, 60);
        quiet.from_guest.send(&sent, &[HEADER]);
        // A round of quiet rings, during which the other always has something.
        for _ in 0..16 {
            loud.from_guest.send(&frame(OUTSIDE, loud.mac, 60), &[HEADER]);
            rig.workers[0].turn();
            loud.from_guest.completed();
        }
        assert!(rig.wires[0].departed().contains(&sent));
    });
}
