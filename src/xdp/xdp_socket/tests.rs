//! A socket over rings in memory, with a wire at their other side.

use super::paused_socket::PausedSocket;
use super::*;
use crate::test_support::ring_pair::{Wire, ring_pair};
use crate::xdp::umem_frame::FRAME_PACKET_MAX;
use crate::xdp::xsk_ring::{Completion, Fill, Rx, Tx};

const FRAMES: u32 = 64;
const EACH_WAY: usize = FRAMES as usize / 2;

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_add(u8::try_from(at % 251).unwrap())).collect()
}

/// Take up to `limit` packets, their pieces joined, and give the frames back.
fn receive(socket: &mut Socket, limit: u32) -> Vec<Vec<u8>> {
    let mut taken = Vec::new();
    let count = socket.receive(limit, |received| taken.push(received));
    let (mut packets, mut packet) = (Vec::new(), Vec::new());
    for received in taken {
        packet.extend_from_slice(socket.umem().packet(&received));
        if !received.more {
            packets.push(std::mem::take(&mut packet));
        }
        socket.recycle(received.frame);
    }
    assert!(packet.is_empty(), "a packet without its end was given");
    assert_eq!(packets.len(), count as usize);
    socket.flush();
    packets
}

fn send(socket: &mut Socket, packet: &[u8]) -> bool {
    let mut rest = packet;
    let sent = socket.send(u32::try_from(packet.len()).unwrap(), |room| {
        let (here, after) = rest.split_at(room.len());
        room.copy_from_slice(here);
        rest = after;
    });
    assert_eq!(rest.is_empty(), sent, "all of it, or nothing");
    sent
}

/// All frames are at home: half to transmit with, half with the kernel to receive into.
fn assert_home(socket: &mut Socket, wire: &mut Wire) {
    assert!(wire.departed().is_empty());
    socket.reclaim();
    let half = u64::from(FRAMES / 2);
    let home = FrameCensus { free: half, receiving: half, transmitting: 0, away: 0 };
    assert_eq!(socket.census(), home);
    let longest = bytes(FRAME_PACKET_MAX as usize * EACH_WAY, 0);
    assert!(wire.arrive(&longest), "a receive frame was lost");
}

/// A second view of the same rings, as another process has them.
fn successor(socket: &Socket) -> Socket {
    let SocketParts { rx, tx, fill, completion } = &socket.parts;
    // SAFETY: the first view is not used any more where this one is.
    let parts = unsafe {
        SocketParts {
            rx: Rx::new(rx.parts()),
            tx: Tx::new(tx.parts()),
            fill: Fill::new(fill.parts()),
            completion: Completion::new(completion.parts()),
        }
    };
    let umem = Arc::clone(&socket.umem);
    let mut other = Socket::without_frames(socket.queue, umem, parts, socket.packet_max);
    other.frames = socket.frames;
    other
}

#[test]
fn another_process_resumes_where_a_socket_was_paused() {
    let (mut first, mut wire) = ring_pair(0, FRAMES);
    for seed in 0..100 {
        assert!(wire.arrive(&bytes(60, seed)));
        receive(&mut first, 1);
        assert!(send(&mut first, &bytes(5000, seed)));
        first.flush();
        wire.departed();
    }
    // Received and not taken yet; sent, and neither transmitted nor given back.
    assert!(wire.arrive(&bytes(9000, 7)));
    assert!(send(&mut first, &bytes(70, 8)));
    // It is there before the first one rests, and touches nothing.
    let mut second = successor(&first);
    let at_rest = first.rest();
    assert!(second.resume(&at_rest));
    assert_eq!(second.census().total(), u64::from(FRAMES));
    assert_eq!(receive(&mut second, 8), [bytes(9000, 7)]);
    assert_eq!(wire.departed(), [bytes(70, 8)]);
    assert!(send(&mut second, &bytes(80, 9)));
    second.flush();
    assert_eq!(wire.departed(), [bytes(80, 9)]);
    assert_home(&mut second, &mut wire);
}

#[test]
fn frames_that_cannot_be_where_they_are_said_to_be_are_not_gone_on_with() {
    let (mut socket, _wire) = ring_pair(0, FRAMES);
    let at_rest = socket.rest();
    let wrong = |change: fn(&mut PausedSocket)| {
        let mut changed = at_rest.clone();
        change(&mut changed);
        changed
    };
    for wrong in [
        wrong(|left| left.free[1] = left.free[0]),
        wrong(|left| left.free[1] += 1),
        wrong(|left| left.free[1] = u64::from(FRAMES * FRAME_BYTES)),
        wrong(|left| left.free.truncate(1)),
        wrong(|left| left.transmitting += 1),
    ] {
        assert!(!socket.resume(&wrong), "{wrong:?}");
    }
    assert!(socket.resume(&at_rest));
}

#[test]
fn a_packet_of_several_frames_is_received_whole_and_counts_once() {
    let (mut socket, mut wire) = ring_pair(0, FRAMES);
    let sent = [bytes(9022, 1), bytes(60, 2), bytes(3840, 3), bytes(3841, 4)];
    for packet in &sent {
        assert!(wire.arrive(packet));
    }
    assert_eq!(receive(&mut socket, 1), sent[..1]);
    assert_eq!(receive(&mut socket, 2), sent[1..3]);
    assert_eq!(receive(&mut socket, 8), sent[3..]);
    assert_home(&mut socket, &mut wire);
}

#[test]
fn a_packet_whose_rest_is_not_there_yet_waits_for_it() {
    let (mut socket, mut wire) = ring_pair(0, FRAMES);
    assert!(wire.arrive(&bytes(60, 1)));
    assert!(wire.arrive_piece(&bytes(3840, 2), true));
    assert_eq!(receive(&mut socket, 8), [bytes(60, 1)]);
    assert!(receive(&mut socket, 8).is_empty());
    assert!(wire.arrive_piece(&bytes(10, 3), false));
    assert_eq!(receive(&mut socket, 8), [[bytes(3840, 2), bytes(10, 3)].concat()]);
    assert_home(&mut socket, &mut wire);
}

#[test]
fn a_packet_of_too_many_frames_is_dropped_with_its_late_end_and_counted_once() {
    let (mut socket, mut wire) = ring_pair(0, FRAMES);
    assert!(wire.arrive(&bytes(60, 1)));
    for _ in 0..FRAGMENTS_MAX {
        assert!(wire.arrive_piece(&bytes(100, 2), true));
    }
    assert_eq!(receive(&mut socket, 8), [bytes(60, 1)]);
    assert!(wire.arrive_piece(&bytes(100, 2), true));
    assert!(receive(&mut socket, 8).is_empty());
    assert!(wire.arrive_piece(&bytes(100, 2), false));
    assert!(wire.arrive(&bytes(9000, 3)));
    assert_eq!(receive(&mut socket, 8), [bytes(9000, 3)]);
    assert_eq!(socket.dropped_fragments(), 1);
    assert_home(&mut socket, &mut wire);
}

#[test]
fn as_many_frames_as_are_allowed_are_received() {
    let (mut socket, mut wire) = ring_pair(0, FRAMES);
    let longest = bytes(FRAME_PACKET_MAX as usize * FRAGMENTS_MAX, 1);
    assert_eq!(longest.len(), socket.packet_max() as usize);
    assert!(wire.arrive(&longest));
    assert_eq!(receive(&mut socket, 1), [longest]);
    assert_eq!(socket.dropped_fragments(), 0);
    assert_home(&mut socket, &mut wire);
}

#[test]
fn a_packet_is_sent_in_as_many_frames_as_it_takes() {
    let (mut socket, mut wire) = ring_pair(0, FRAMES);
    for len in [1, 59, 60, 61, 4095, 4096, 4097, 8192, 9022, 65557] {
        let packet = bytes(len, 1);
        assert!(send(&mut socket, &packet));
        let frames = u64::try_from(len.div_ceil(FRAME_BYTES as usize)).unwrap();
        assert_eq!(socket.census().transmitting, frames);
        socket.flush();
        let mut padded = packet;
        padded.resize(len.max(60), 0);
        assert_eq!(wire.departed(), [padded]);
        socket.reclaim();
    }
    assert_home(&mut socket, &mut wire);
}

#[test]
fn a_packet_that_finds_too_few_frames_is_not_sent_in_part() {
    let (mut socket, mut wire) = ring_pair(0, FRAMES);
    for _ in 0..EACH_WAY - 2 {
        assert!(send(&mut socket, &bytes(60, 1)));
    }
    assert!(!send(&mut socket, &bytes(9000, 2)), "three frames of two");
    assert!(send(&mut socket, &bytes(5000, 3)));
    assert!(!send(&mut socket, &bytes(60, 4)));
    socket.flush();
    assert_eq!(wire.departed().last(), Some(&bytes(5000, 3)));
    assert!(send(&mut socket, &bytes(9000, 5)), "the frames are back");
    socket.flush();
    assert_eq!(wire.departed(), [bytes(9000, 5)]);
    assert_home(&mut socket, &mut wire);
}

#[test]
fn the_kernel_is_called_for_frames_once_between_two_flushes() {
    let (mut socket, _wire) = ring_pair(0, FRAMES);
    for _ in 0..2 {
        assert!(socket.press());
        assert!(!socket.press(), "it was called");
        socket.flush();
    }
}

#[test]
fn a_packet_that_the_kernel_would_refuse_is_not_sent() {
    let (mut socket, mut wire) = ring_pair(0, FRAMES);
    let too_long = bytes(socket.packet_max() as usize + 1, 1);
    assert!(!send(&mut socket, &too_long));
    socket.packet_max = packet_max(BindMode::ZeroCopy, 1);
    assert!(!send(&mut socket, &bytes(4097, 1)));
    assert_home(&mut socket, &mut wire);
}

#[test]
fn the_longest_packet_depends_on_the_mode_and_on_what_the_driver_takes() {
    assert_eq!(packet_max(BindMode::Copy, 1), 3840);
    assert_eq!(packet_max(BindMode::ZeroCopy, 1), 3840);
    assert_eq!(packet_max(BindMode::ZeroCopy, 5), 5 * 3456);
    // The largest MTU with an Ethernet header and two VLAN tags; and no more than 17 frames to
    // send, which is what every driver takes.
    let longest = packet_max(BindMode::Copy, FRAGMENTS_MAX);
    assert!(longest >= 65535 + 14 + 8);
    assert!(longest.div_ceil(FRAME_BYTES) <= 17);
    assert_eq!(packet_max(BindMode::Copy, 100), longest);
}
