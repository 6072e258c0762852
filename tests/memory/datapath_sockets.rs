//! Sockets that leave their workers and come back, or are replaced: what guests send meanwhile is
//! counted, what was lent comes home first, no count goes backwards.

use std::sync::Arc;

use isonic::datapath::{Attachment, UplinkId, WorkerId};
use isonic::metrics::{PortCounter, SocketCounter};
use isonic::test_support::rig::{FRAMES, Rig};
use isonic::test_support::rig_guest::{LAYOUTS, OUTSIDE, RigGuest, frame, mac, route};
use isonic::test_support::ring_pair::ring_pair;

const UPLINK: UplinkId = UplinkId(0);

fn guest(rig: &mut Rig) -> RigGuest {
    RigGuest::switched(rig, 1, LAYOUTS[0])
}

#[test]
fn while_its_socket_is_away_a_guests_packets_are_counted_and_those_of_the_wire_wait() {
    let mut rig = Rig::new(1);
    let mut guest = guest(&mut rig);
    guest.to_guest.post(8, 1536);
    let (out, into) = (frame(OUTSIDE, guest.mac, 60), frame(guest.mac, OUTSIDE, 60));
    let mut taken = rig.take_sockets(0, UPLINK);
    let socket = taken.pop().unwrap();
    assert!(taken.is_empty());
    assert_eq!(socket.census().total(), u64::from(FRAMES));
    assert!(rig.take_sockets(0, UPLINK).is_empty(), "it is gone");
    assert_eq!(rig.socket_count(0, SocketCounter::FramesTotal), 0);
    assert!(rig.examine(0).is_empty());

    guest.from_guest.send(&out, &[]);
    guest.from_guest.send(&frame([0xff; 6], guest.mac, 60), &[]);
    assert!(rig.wires[0].arrive(&into));
    rig.settle();
    assert_eq!(guest.from_guest.completed().len(), 2, "the guest has its buffers back");
    assert!(rig.wires[0].departed().is_empty());
    assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestDroppedUplinkDown), 1);
    assert_eq!(rig.socket_count(0, SocketCounter::TxDroppedDown), 2, "the flooded one as well");

    rig.give_socket(0, UPLINK, socket);
    guest.from_guest.send(&out, &[]);
    rig.settle();
    assert_eq!(guest.received(), [into]);
    assert_eq!(rig.wires[0].departed(), [out]);
    rig.assert_frames_balance();
}

#[test]
fn a_new_socket_takes_the_place_and_the_counts_go_on() {
    let mut rig = Rig::new(1);
    let mut guest = guest(&mut rig);
    guest.to_guest.post(8, 1536);
    let (out, into) = (frame(OUTSIDE, guest.mac, 60), frame(guest.mac, OUTSIDE, 60));
    guest.from_guest.send(&out, &[]);
    assert!(rig.wires[0].arrive(&into));
    rig.settle();
    assert_eq!(guest.received().len(), 1);

    drop(rig.take_sockets(0, UPLINK));
    rig.set_memory(UPLINK, None);
    let (socket, wire) = ring_pair(0, FRAMES);
    rig.set_memory(UPLINK, Some(wire.umem()));
    rig.give_socket(0, UPLINK, socket);
    let old = std::mem::replace(&mut rig.wires[0], wire);
    // Nobody holds on to the old memory but its wire.
    assert_eq!(Arc::strong_count(old.umem()), 1);

    guest.from_guest.send(&out, &[]);
    assert!(rig.wires[0].arrive(&into));
    rig.settle();
    assert_eq!(rig.wires[0].departed(), [out]);
    assert_eq!(guest.received(), [into]);
    for counter in [SocketCounter::TxPackets, SocketCounter::RxPackets] {
        assert_eq!(rig.socket_count(0, counter), 2);
    }
    rig.assert_frames_balance();
}

#[test]
fn a_socket_on_another_queue_gets_a_place_of_its_own() {
    let mut rig = Rig::new(1);
    let mut guest = guest(&mut rig);
    guest.to_guest.post(8, 1536);
    let (socket, mut wire) = ring_pair(5, FRAMES);
    let into = frame(guest.mac, OUTSIDE, 60);
    rig.give_socket(0, UPLINK, socket);
    assert!(wire.arrive(&into));
    assert!(rig.wires[0].arrive(&into));
    rig.settle();
    assert_eq!(guest.received().len(), 2);
    let queues: Vec<u32> = rig.examine(0).iter().map(|report| report.queue).collect();
    assert_eq!(queues, [0, 5]);
}

#[test]
fn a_socket_leaves_when_the_frames_that_another_worker_has_are_home() {
    let mut rig = Rig::new(2);
    let attachment = Attachment::Switch { mac: mac(1) };
    let route = route(attachment, vec![WorkerId(1)]);
    let mut guest = RigGuest::start(&mut rig, route, LAYOUTS[0]);
    guest.to_guest.post(8, 1536);
    let into = frame(guest.mac, OUTSIDE, 60);
    assert!(rig.wires[0].arrive(&into));
    assert_eq!(rig.workers[0].turn(), 1, "handed over");

    let handle = rig.handle(0);
    let taken = std::thread::spawn(move || handle.take_sockets(UPLINK).unwrap());
    // Until the command has come and been applied; it is not answered.
    while rig.workers[0].turn() == 0 {
        std::thread::yield_now();
    }
    for _ in 0..100 {
        rig.workers[0].turn();
    }
    assert!(!taken.is_finished(), "a frame is away");
    rig.workers[1].turn();
    rig.workers[0].turn();
    let sockets = taken.join().unwrap();
    assert_eq!(sockets[0].census().away, 0);
    assert_eq!(sockets[0].census().total(), u64::from(FRAMES));
    assert_eq!(guest.received(), [into], "and it was delivered");
}

#[test]
fn a_kernel_that_completes_no_more_is_seen_and_loses_no_frame() {
    let mut rig = Rig::new(1);
    let mut guest = guest(&mut rig);
    guest.from_guest.send(&frame(OUTSIDE, guest.mac, 60), &[]);
    rig.settle();
    let standing = |rig: &mut Rig| {
        let progress = rig.examine(0)[0].progress;
        (progress.transmitting, progress.completed)
    };
    assert_eq!(standing(&mut rig), (1, 0));
    assert_eq!(standing(&mut rig), (1, 0));
    let _ = rig.wires[0].departed();
    assert_eq!(standing(&mut rig), (0, 1));
    rig.assert_frames_balance();
}
