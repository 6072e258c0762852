//! The user-space time of a packet from a guest to the wire: all of a worker's turn, and its parts
//! by themselves. The AF_XDP rings are in memory, and everything is in this core's cache.

use std::hint::black_box;
use std::time::Duration;

use isonic::datapath::{Attachment, Route, UplinkId, WorkerId, frame_max};
use isonic::test_support::guest_driver::{Driver, GuestRam};
use isonic::test_support::rig::Rig;
use isonic::test_support::ring_pair::{Wire, ring_pair};
use isonic::virtqueue::{DeviceRing, Direction, Queue, Segments};
use isonic::xdp::Socket;

use crate::pinning;
use crate::report::Report;
use crate::rings::{BURST, OPTIONS, RING_SIZE, ram, time};
use crate::settings::Settings;

/// Bytes of a frame.
const LEN: usize = 64;
/// Bytes of a frame, for the AF_XDP rings.
const LEN_U32: u32 = 64;

/// One round.
pub fn run(report: &mut Report) {
    pinning::pin();
    let parts = [
        ("all of a turn", whole()),
        ("the virtqueue", virtqueue()),
        ("the copy", copy()),
        ("the AF_XDP ring", af_xdp_ring()),
    ];
    pinning::unpin();
    for (part, taken) in parts {
        let name = format!("parts, guest to wire, {LEN} bytes: {part}");
        report.value((&name, "ns"), "isonic", taken);
    }
}

/// Nanoseconds of a packet.
fn each<S>(state: &mut S, steps: [fn(&mut S); 3]) -> f64 {
    let bursts = if Settings::get().short { 100 } else { 100_000 };
    time(bursts / 10, state, steps);
    let taken: Duration = time(bursts, state, steps);
    #[allow(clippy::cast_precision_loss, reason = "nanoseconds of seconds")]
    let each = taken.as_nanos() as f64 / (bursts * u64::from(BURST)) as f64;
    each
}

fn frame() -> Vec<u8> {
    let mut frame = vec![0x5a; LEN];
    frame[..12].copy_from_slice(&[2, 0xff, 0, 0, 0, 9, 0x52, 0x54, 0, 0, 0, 1]);
    frame
}

/// A worker with a guest on a switch.
struct Turn {
    rig: Rig,
    driver: Driver,
    _ram: GuestRam,
}

fn whole() -> f64 {
    let mut rig = Rig::new(1);
    let attachment = Attachment::Switch { mac: [0x52, 0x54, 0, 0, 0, 1] };
    let route = Route::new(UplinkId(0), attachment, frame_max(1500), vec![WorkerId(0)]);
    let port = rig.add_port(Route { ready: vec![0], ..route });
    let mut ram = ram();
    let driver = Driver::new(&mut ram, RING_SIZE, OPTIONS);
    rig.give(0, port, 1, driver.ring().0);
    let send = |turn: &mut Turn| {
        for _ in 0..BURST {
            turn.driver.send(&frame(), &[]);
        }
    };
    let clear = |turn: &mut Turn| {
        assert_eq!(turn.rig.wires[0].departed().len(), usize::from(BURST));
        assert_eq!(turn.driver.completed().len(), usize::from(BURST));
    };
    let work = |turn: &mut Turn| {
        turn.rig.workers[0].turn();
    };
    each(&mut Turn { rig, driver, _ram: ram }, [send, work, clear])
}

struct Ring {
    driver: Driver,
    queue: Queue,
    _ram: GuestRam,
}

fn virtqueue() -> f64 {
    let mut ram = ram();
    let driver = Driver::new(&mut ram, RING_SIZE, OPTIONS);
    let queue = driver.activate();
    let send = |ring: &mut Ring| {
        for _ in 0..BURST {
            ring.driver.send(&frame(), &[]);
        }
    };
    let clear = |ring: &mut Ring| {
        assert_eq!(ring.driver.completed().len(), usize::from(BURST));
    };
    each(&mut Ring { driver, queue, _ram: ram }, [send, take_all, clear])
}

fn take_all(ring: &mut Ring) {
    let (memory, DeviceRing::Split(ring)) = ring.queue.parts() else {
        unreachable!("the driver's ring is split")
    };
    use isonic::virtqueue::Layout as _;
    while ring.has_available().expect("a whole ring") {
        let mut segments = Segments::new();
        let chain = ring.take(memory, Direction::FromGuest, &mut segments).expect("a chain");
        black_box(&segments);
        ring.complete(chain, 0);
    }
    ring.publish();
    black_box(ring.needs_notification());
}

fn copy() -> f64 {
    let slots = usize::from(BURST) * 4096;
    let mut memory = (vec![0x5a_u8; slots], vec![0_u8; slots]);
    let work = |(from, to): &mut (Vec<u8>, Vec<u8>)| {
        for (from, to) in from.chunks(4096).zip(to.chunks_mut(4096)) {
            to[..LEN].copy_from_slice(&black_box(from)[..LEN]);
            black_box(to);
        }
    };
    each(&mut memory, [|_| {}, work, |_| {}])
}

fn af_xdp_ring() -> f64 {
    let mut pair = ring_pair(0, 4 * u32::from(BURST));
    let work = |(socket, _): &mut (Socket, Wire)| {
        for _ in 0..BURST {
            assert!(socket.send(LEN_U32, |room| {
                black_box(room);
            }));
        }
        socket.flush();
    };
    let clear = |(_, wire): &mut (Socket, Wire)| {
        assert_eq!(wire.departed().len(), usize::from(BURST));
    };
    each(&mut pair, [|_| {}, work, clear])
}
