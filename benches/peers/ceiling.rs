//! Bounds that no backend can beat here: bare AF_XDP sockets on the same wire, and memcpy of the
//! same bytes.

use std::hint::black_box;
use std::time::Instant;

use isonic::xdp::{ModeWish, QueueUse, Received, Socket, Uplink};

use crate::backend::Reading;
use crate::case::Scenario;
use crate::clock;
use crate::common::{Bed, NIC};
use crate::frontend;
use crate::pinning;
use crate::sample::{Sample, rate};
use crate::settings::Settings;
use crate::testpmd::Testpmd;
use crate::wire::{self, FarEnd, Wire};

/// Packets between two calls of the kernel, as many as a worker takes from a ring.
const BURST: u32 = 64;
/// Packets that go around.
const WINDOW: u32 = 256;
/// Frames of a socket: each is filled once.
const FRAMES: u64 = 4096;

/// Runs the ceiling of a scenario; its name and result.
pub fn run(scenario: Scenario, len: usize) -> (&'static str, Sample) {
    match scenario {
        Scenario::GuestToGuest => ("memcpy", copy(len)),
        Scenario::GuestToWire => ("af_xdp", transmit(len)),
        Scenario::WireToGuest => ("af_xdp", receive(len)),
        Scenario::RoundTrip => ("af_xdp", go_around(len)),
    }
}

/// Copies frames from one place to another, in memory as large as two rings' buffers.
fn copy(len: usize) -> Sample {
    const SLOT: usize = 2048;
    const SLOTS: usize = 1024;
    pinning::pin();
    let (from, mut to) = (vec![0x5a; SLOT * SLOTS], vec![0; SLOT * SLOTS]);
    let (start, mut copied) = (Instant::now(), 0);
    while start.elapsed() < Settings::get().time() {
        for (from, to) in from.chunks(SLOT).zip(to.chunks_mut(SLOT)) {
            to[..len].copy_from_slice(&from[..len]);
            black_box(to);
            copied += 1;
        }
    }
    pinning::unpin();
    Sample { packets: rate(copied, start.elapsed()), cost: None }
}

fn frame(len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len];
    frame[..14].copy_from_slice(&[2, 0xff, 0, 0, 0, 9, 2, 0xff, 0, 0, 0, 8, 0x88, 0xb5]);
    frame
}

/// Opens the NIC's one queue, all frames ours, and calls `work` again and again on the backend's
/// CPU for the time. `work` returns the packets it moved.
fn with_socket(bed: &Bed, mut work: impl FnMut(&mut Socket) -> u64 + Send) -> Sample {
    let settings = Settings::get();
    bed.host.enter(|| {
        pinning::pin();
        let (uplink, mut sockets) =
            Uplink::open(NIC, None, ModeWish::Auto, None).expect("the uplink");
        uplink
            .redirect
            .as_ref()
            .expect("ours")
            .set_queue(0, QueueUse::Wire)
            .expect("the queue is ours");
        let socket = &mut sockets[0];
        let (start, mut moved) = (Instant::now(), 0);
        while start.elapsed() < settings.warm_up() {
            work(socket);
        }
        let (mut busy, before, start) = (0.0, Reading::of_bench(0.0, 0), Instant::now());
        while start.elapsed() < settings.time() {
            let (began, packets) = (clock::cycles(), work(socket));
            moved += packets;
            if packets > 0 {
                busy += clock::cycles() - began;
            }
        }
        let packets = rate(moved, start.elapsed());
        let cost = Reading::of_bench(busy, moved).since(&before);
        Sample { packets, cost: Some(cost) }
    })
}

/// Sends all it can.
fn transmit(len: usize) -> Sample {
    let bed = Bed::new(1, 1);
    let wire = Wire::attach(&bed, FarEnd::Sink);
    let (frame, mut filled, mut arrived) = (frame(len), 0, 0);
    with_socket(&bed, |socket| {
        for _ in 0..BURST {
            let fill = |room: &mut [u8]| {
                if filled < FRAMES {
                    room.copy_from_slice(&frame);
                }
                filled += 1;
            };
            if !socket.send(length(&frame), fill) {
                break;
            }
        }
        socket.flush();
        let frames = wire.frames();
        frames - std::mem::replace(&mut arrived, frames)
    })
}

/// Sends back all frames that come, which the far end reflects.
fn go_around(len: usize) -> Sample {
    let bed = Bed::new(1, 1);
    let _wire = Wire::attach(&bed, FarEnd::Reflect);
    let frame = frame(len);
    let mut received: Vec<Received> = Vec::new();
    let mut first = WINDOW;
    with_socket(&bed, |socket| {
        let came = socket.receive(BURST, |frame| received.push(frame));
        for _ in 0..came + std::mem::take(&mut first) {
            socket.send(length(&frame), |room| room.copy_from_slice(&frame));
        }
        for received in received.drain(..) {
            socket.recycle(received.frame);
        }
        socket.flush();
        u64::from(came)
    })
}

/// Receives and forgets what testpmd sends from the far end.
fn receive(len: usize) -> Sample {
    let bed = Bed::new(1, 1);
    let device = format!(
        "net_af_xdp0,iface={},xdp_prog={}",
        bed.uplinks[0].peer,
        wire::compile(&bed).display()
    );
    let options = "--forward-mode=txonly";
    let name = ("front-end", &*bed.wire);
    let mut testpmd = Testpmd::start(&bed, name, frontend::CPU, &[device], options);
    testpmd.command(&format!("set txpkts {len}"));
    testpmd.command("start");
    let mut received: Vec<Received> = Vec::new();
    let sample = with_socket(&bed, |socket| {
        let came = socket.receive(BURST, |frame| received.push(frame));
        for received in received.drain(..) {
            socket.recycle(received.frame);
        }
        socket.flush();
        u64::from(came)
    });
    testpmd.quit();
    sample
}

fn length(frame: &[u8]) -> u32 {
    u32::try_from(frame.len()).expect("a frame")
}
