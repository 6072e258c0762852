//! Packets longer than a frame of the UMEM, over in-memory wires, where every frame is counted.
//! Over a real veth pair: `tests/machine/jumbo.rs`.

use isonic::datapath::{Attachment, Route, Target, UplinkId, WorkerId, frame_max};
use isonic::metrics::{PortCounter, SocketCounter};
use isonic::test_support::guest_driver::HEADER;
use isonic::test_support::rig::Rig;
use isonic::test_support::rig_guest::{self, OUTSIDE, RigGuest, mac};
use isonic::virtqueue::QueueOptions;
use isonic::xdp::{FRAGMENTS_MAX, FRAME_PACKET_MAX};

const LAYOUTS: [QueueOptions; 2] = [
    QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE },
    QueueOptions { event_idx: true, indirect: true, packed: true, ..QueueOptions::NONE },
];
const BROADCAST: [u8; 6] = [0xff; 6];
/// The longest frame of an MTU of 9000, which has no tag here.
const LONGEST: usize = frame_max(9000) as usize - 8;
/// Around what one frame receives, what one frame sends, and two; and the longest.
const LENGTHS: [usize; 7] = [3840, 3841, 4096, 4097, 8192, 8193, LONGEST];

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    rig_guest::frame(to, OUTSIDE, len)
}

/// A guest with an MTU of 9000.
fn guest(rig: &mut Rig, number: u8, worker: u16, options: QueueOptions) -> RigGuest {
    let attachment = Attachment::Switch { mac: mac(number) };
    let route = Route::new(UplinkId(0), attachment, frame_max(9000), vec![WorkerId(worker)]);
    RigGuest::start(rig, Route { ready: vec![0], ..route }, options)
}

/// A rig of one worker with one guest, for both layouts in turn.
fn each_layout(test: impl Fn(&mut Rig, &mut RigGuest)) {
    for options in LAYOUTS {
        let mut rig = Rig::new(1);
        let mut guest = guest(&mut rig, 1, 0, options);
        test(&mut rig, &mut guest);
        rig.wires[0].departed();
        rig.assert_frames_balance();
    }
}

#[test]
fn a_jumbo_frame_from_a_guest_leaves_on_the_wire_unchanged() {
    each_layout(|rig, guest| {
        for len in LENGTHS {
            let sent = frame(OUTSIDE, len);
            // The driver's buffers are 4096 bytes long.
            let cuts: [&[usize]; 3] =
                [&[4096; 2], &[HEADER, 4000, 4000], &[HEADER + 20, 1, 4095, 4096, 3]];
            for cut in cuts {
                guest.from_guest.send(&sent, cut);
                rig.settle();
                let departed = rig.wires[0].departed();
                assert!(departed == std::slice::from_ref(&sent), "{len} bytes cut at {cut:?}");
                guest.from_guest.completed();
            }
        }
        let sent = rig.port_count(guest.port, PortCounter::FromGuestPackets);
        assert_eq!(sent, LENGTHS.len() as u64 * 3);
        assert_eq!(rig.socket_count(0, SocketCounter::TxPackets), sent);
    });
}

#[test]
fn a_jumbo_frame_from_the_wire_is_merged_over_the_guest_s_buffers() {
    each_layout(|rig, guest| {
        for len in LENGTHS {
            guest.to_guest.post(8, 1536);
            let sent = frame(guest.mac, len);
            assert!(rig.wires[0].arrive(&sent));
            rig.settle();
            assert!(guest.received() == [sent], "{len} bytes");
        }
        let bytes = LENGTHS.iter().sum::<usize>() as u64;
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestBytes), bytes);
        assert_eq!(rig.socket_count(0, SocketCounter::RxPackets), LENGTHS.len() as u64);
        assert_eq!(rig.socket_count(0, SocketCounter::RxBytes), bytes);
    });
}

#[test]
fn short_and_jumbo_frames_keep_their_order() {
    each_layout(|rig, guest| {
        let lens = [60, 9000, 1514, 3841, 60, 9000];
        let frames: Vec<_> = lens.iter().map(|&len| frame(guest.mac, len)).collect();
        guest.to_guest.post(32, 1536);
        for frame in &frames {
            assert!(rig.wires[0].arrive(frame));
        }
        rig.settle();
        assert!(guest.received() == frames);
    });
}

#[test]
fn more_jumbo_frames_than_a_burst_are_all_delivered() {
    each_layout(|rig, guest| {
        let sent = frame(guest.mac, 4000);
        guest.to_guest.post(256, 4096);
        for _ in 0..60 {
            assert!(rig.wires[0].arrive(&sent));
        }
        rig.settle();
        assert_eq!(guest.received().len(), 60);
        // All frames have come back, or the next would find none.
        for _ in 0..60 {
            assert!(rig.wires[0].arrive(&sent));
        }
        rig.settle();
        assert_eq!(guest.received().len(), 60);
    });
}

#[test]
fn a_jumbo_frame_between_guests_stays_off_the_wire() {
    each_layout(|rig, one| {
        let mut two = self::guest(rig, 2, 0, LAYOUTS[0]);
        two.to_guest.post(8, 1536);
        let sent = frame(two.mac, LONGEST);
        one.from_guest.send(&sent, &[4096; 2]);
        rig.settle();
        assert!(two.received() == [sent]);
        assert!(rig.wires[0].departed().is_empty());
    });
}

#[test]
fn a_jumbo_broadcast_reaches_the_wire_and_the_other_guests() {
    each_layout(|rig, one| {
        let mut two = self::guest(rig, 2, 0, LAYOUTS[0]);
        let sent = frame(BROADCAST, LONGEST);
        two.to_guest.post(16, 1536);
        one.from_guest.send(&sent, &[4096; 2]);
        rig.settle();
        assert!(two.received() == std::slice::from_ref(&sent));
        assert!(rig.wires[0].departed() == std::slice::from_ref(&sent));
        // The other way the control plane brings it.
        one.to_guest.post(8, 1536);
        rig.hand_over(0, &sent, Target::Arrival { uplink: UplinkId(0) });
        rig.settle();
        assert!(one.received() == std::slice::from_ref(&sent));
        assert!(two.received() == [sent]);
    });
}

#[test]
fn a_jumbo_frame_for_another_worker_s_guest_is_handed_over_and_its_frames_come_back() {
    for options in LAYOUTS {
        let mut rig = Rig::new(2);
        let mut guest = guest(&mut rig, 1, 1, options);
        guest.to_guest.post(64, 4096);
        let sent = frame(guest.mac, LONGEST);
        for _ in 0..16 {
            assert!(rig.wires[0].arrive(&sent));
        }
        rig.settle();
        assert!(guest.received() == vec![sent; 16]);
        rig.assert_frames_balance();
    }
}

#[test]
fn a_frame_longer_than_the_port_s_mtu_is_dropped_and_counted_never_cut() {
    each_layout(|rig, guest| {
        guest.to_guest.post(16, 4096);
        assert!(rig.wires[0].arrive(&frame(guest.mac, LONGEST + 1)));
        guest.from_guest.send(&frame(OUTSIDE, LONGEST + 1), &[4096; 2]);
        rig.settle();
        assert!(guest.received().is_empty());
        assert!(rig.wires[0].departed().is_empty());
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedOversize), 1);
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestDroppedOversize), 1);
        // The longest that a socket receives: longer than any buffer for handing over.
        let longest = FRAME_PACKET_MAX as usize * FRAGMENTS_MAX;
        assert!(rig.wires[0].arrive(&frame(guest.mac, longest)));
        rig.settle();
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedOversize), 2);
    });
}

#[test]
fn a_jumbo_frame_that_finds_too_few_receive_buffers_leaves_them_posted() {
    each_layout(|rig, guest| {
        guest.to_guest.post(5, 1536);
        assert!(rig.wires[0].arrive(&frame(guest.mac, LONGEST)));
        rig.settle();
        assert!(guest.received().is_empty());
        assert_eq!(rig.port_count(guest.port, PortCounter::ToGuestDroppedNoBuffers), 1);
        let fits = frame(guest.mac, 7000);
        assert!(rig.wires[0].arrive(&fits));
        rig.settle();
        assert!(guest.received() == [fits]);
    });
}

#[test]
fn a_jumbo_frame_for_which_too_few_frames_are_free_is_dropped_whole_and_counted() {
    each_layout(|rig, guest| {
        // 128 frames to transmit with, three for each.
        let sent = frame(OUTSIDE, 9000);
        for _ in 0..43 {
            guest.from_guest.send(&sent, &[4096; 2]);
        }
        rig.settle();
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestPackets), 42);
        assert_eq!(rig.port_count(guest.port, PortCounter::FromGuestDroppedUplinkFull), 1);
        assert_eq!(rig.socket_count(0, SocketCounter::TxDroppedFull), 1);
        assert_eq!(rig.socket_count(0, SocketCounter::FramesFree), 2);
        assert!(rig.wires[0].departed() == vec![sent.clone(); 42]);
        guest.from_guest.completed();
        guest.from_guest.send(&sent, &[4096; 2]);
        rig.settle();
        assert!(rig.wires[0].departed() == [sent]);
    });
}

#[test]
fn a_packet_of_too_many_frames_is_dropped_and_counted_and_the_next_is_delivered() {
    each_layout(|rig, guest| {
        guest.to_guest.post(8, 1536);
        let start = frame(guest.mac, 60);
        for piece in 0..=FRAGMENTS_MAX {
            assert!(rig.wires[0].arrive_piece(&start, piece < FRAGMENTS_MAX));
        }
        let next = frame(guest.mac, 9000);
        assert!(rig.wires[0].arrive(&next));
        rig.settle();
        assert!(guest.received() == [next]);
        assert_eq!(rig.socket_count(0, SocketCounter::RxDroppedFragments), 1);
        assert_eq!(rig.socket_count(0, SocketCounter::RxPackets), 1);
    });
}
