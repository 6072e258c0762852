//! As many queue pairs as a ring index of one byte can name: a session that starts them all,
//! packets on the first and the last, and pairs that are of no use without being a burden to the
//! others.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::raise_open_files;
use etherparse::PacketBuilder;
use isonic::datapath::{Attachment, PortId, Route, UplinkId, WorkerId, frame_max};
use isonic::metrics::PortCounter;
use isonic::profile::{Catalog, Profile};
use isonic::test_support::frontend::{
    Frontend, GuestFile, RecordingHost, addresses, code, event, pair,
};
use isonic::test_support::guest_driver::{Driver, FRONTEND_BASE, GuestRam, HEADER};
use isonic::test_support::live_port::LivePort;
use isonic::test_support::rig::Rig;
use isonic::test_support::rig_guest::{OUTSIDE, each_layout, frame, mac};
use isonic::virtqueue::QueueOptions;

const PAIRS: u16 = 128;
const RINGS: u32 = 256;
/// Entries of each ring.
const RING_SIZE: u16 = 16;

fn v3() -> Profile {
    Catalog::embedded().get("org.isonic.net.v3").unwrap().as_ref().clone()
}

// ---- a session ----------------------------------------------------------------------------------

#[test]
fn all_rings_start_and_one_beyond_is_refused() {
    raise_open_files();
    let host = Arc::new(RecordingHost::default());
    let frontend = Frontend::connect(v3(), Arc::clone(&host) as _);
    let memory = GuestFile::new(0, FRONTEND_BASE, u64::from(RINGS) * 0x10000);
    frontend.start(&memory, RINGS);
    assert_eq!(frontend.number(code::GET_QUEUE_NUM), Some(u64::from(PAIRS)));
    assert_eq!(host.indices(), (0..256).collect::<Vec<u16>>());
    assert!(host.rings().values().all(|ring| ring.enabled));
    assert_eq!(host.binding.lock().unwrap().queue_pairs, PAIRS);

    frontend.refused(code::SET_VRING_NUM, &pair(RINGS, 16), &[]);
    frontend.refused(code::SET_VRING_BASE, &pair(RINGS, 0), &[]);
    frontend.refused(code::SET_VRING_ENABLE, &pair(RINGS, 1), &[]);
    // 255 in the byte that names the ring, and more above it (CVE-2020-10723).
    frontend.refused(code::SET_VRING_KICK, &0x200ff_u64.to_ne_bytes(), &[&event()]);
    assert!(frontend.stop_ring(255).is_some());
    assert_eq!(host.indices(), (0..255).collect::<Vec<u16>>());
    assert_eq!(host.binding.lock().unwrap().queue_pairs, PAIRS - 1);
    frontend.start_ring(&memory, 255);
    assert_eq!(host.rings().len(), 256);
    frontend.disconnect();
    assert_eq!(host.rings().len(), 0);
}

/// A front-end with all rings running, on a worker of its own.
struct Running {
    frontend: Frontend,
    port: Arc<LivePort>,
    drivers: Vec<Driver>,
    kicks: Vec<File>,
    _ram: GuestRam,
}

impl Running {
    fn start() -> Self {
        let port = Arc::new(LivePort::start(1500));
        let frontend = Frontend::connect(v3(), Arc::clone(&port) as _);
        let bytes = 32 << 20;
        let mut ram = GuestRam::new(bytes);
        // All that is offered is acknowledged.
        let options =
            QueueOptions { event_idx: true, indirect: true, packed: true, ..QueueOptions::NONE };
        let drivers: Vec<Driver> =
            (0..RINGS).map(|_| Driver::new(&mut ram, RING_SIZE, options)).collect();
        let kicks: Vec<File> = drivers.iter().map(|_| event()).collect();
        frontend.negotiate();
        let table = [1, 0, bytes, FRONTEND_BASE, 0].map(u64::to_ne_bytes).concat();
        frontend.ok(code::SET_MEM_TABLE, &table, &[&ram.file]);
        for (ring, driver) in (0u32..).zip(&drivers) {
            let setup = driver.setup();
            let parts = setup.addresses;
            let parts = [parts.descriptors.0, parts.available.0, parts.used.0];
            let number = u64::from(ring).to_ne_bytes();
            let base = u32::from(setup.base) << 16 | u32::from(setup.base);
            frontend.ok(code::SET_VRING_NUM, &pair(ring, u32::from(RING_SIZE)), &[]);
            frontend.ok(code::SET_VRING_BASE, &pair(ring, base), &[]);
            frontend.ok(code::SET_VRING_ADDR, &addresses(ring, 0, parts), &[]);
            frontend.ok(code::SET_VRING_KICK, &number, &[&kicks[ring as usize]]);
            frontend.ok(code::SET_VRING_CALL, &number, &[&event()]);
            frontend.ok(code::SET_VRING_ENABLE, &pair(ring, 1), &[]);
        }
        Self { frontend, port, drivers, kicks, _ram: ram }
    }

    fn kick(&self, ring: usize) {
        rustix::io::write(&self.kicks[ring], &1_u64.to_ne_bytes()).unwrap();
    }
}

/// A UDP frame of flow `number`, to or from the guest with this address.
fn flow(guest: [u8; 6], number: u16, out: bool) -> Vec<u8> {
    let mut frame = Vec::new();
    let ([from, to], [a, b], [source, destination]) = if out {
        ([guest, OUTSIDE], [[10, 0, 0, 1], [10, 0, 0, 2]], [40_000 + number, 80])
    } else {
        ([OUTSIDE, guest], [[10, 0, 0, 2], [10, 0, 0, 1]], [80, 40_000 + number])
    };
    let builder = PacketBuilder::ethernet2(from, to).ipv4(a, b, 64).udp(source, destination);
    // Long enough that nothing pads it on its way out.
    let mut payload = [0; 32];
    payload[..2].copy_from_slice(&number.to_be_bytes());
    builder.write(&mut frame, &payload).unwrap();
    frame
}

fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::yield_now();
    }
}

#[test]
fn packets_pass_on_the_first_pair_and_on_the_last() {
    raise_open_files();
    let mut running = Running::start();
    let guest = mac(1);
    // Twice around: the last pair after the first, and the first again.
    for (round, queue_pair) in (0u16..).zip([0, PAIRS - 1, 0, PAIRS - 1]) {
        let [to_guest, from_guest] = [0, 1].map(|ring| usize::from(queue_pair * 2) + ring);
        let sent = flow(guest, queue_pair, true);
        running.drivers[from_guest].send(&sent, &[HEADER]);
        running.kick(from_guest);
        let mut departed = Vec::new();
        until("the packet is on the wire", || {
            departed.extend(running.port.departed());
            !departed.is_empty()
        });
        assert_eq!(departed, [sent], "round {round}");
        until("it is completed", || running.drivers[from_guest].completed().len() == 1);

        let answer = flow(guest, queue_pair, false);
        running.drivers[to_guest].post(1, 2048);
        running.port.arrive(&answer);
        let mut received = Vec::new();
        until("the answer is with the pair that asked", || {
            received.extend(running.drivers[to_guest].received());
            !received.is_empty()
        });
        assert_eq!(received[0].1, answer, "round {round}");
    }
    running.frontend.disconnect();
}

// ---- pairs of no use ----------------------------------------------------------------------------

/// A guest of 128 queue pairs on a worker that is stepped by hand.
struct Wide {
    rig: Rig,
    port: PortId,
    route: Route,
    /// Of each pair: to the guest, from the guest.
    drivers: Vec<[Driver; 2]>,
    _ram: GuestRam,
}

impl Wide {
    /// All pairs are ready; those in `bare` have posted no receive buffers.
    fn start(options: QueueOptions, bare: &[u16]) -> Self {
        let mut rig = Rig::new(1);
        let attachment = Attachment::Switch { mac: mac(1) };
        let route = Route::new(UplinkId(0), attachment, frame_max(1500), vec![WorkerId(0)]);
        let route = Route { ready: (0..PAIRS).collect(), ..route };
        let port = rig.add_port(route.clone());
        let mut ram = GuestRam::new(32 << 20);
        let mut drivers = Vec::new();
        for queue_pair in 0..PAIRS {
            let [mut to_guest, from_guest] =
                [(); 2].map(|()| Driver::new(&mut ram, RING_SIZE, options));
            if !bare.contains(&queue_pair) {
                to_guest.post(RING_SIZE, 2048);
            }
            rig.give(0, port, 2 * queue_pair, to_guest.ring().0);
            rig.give(0, port, 2 * queue_pair + 1, from_guest.ring().0);
            drivers.push([to_guest, from_guest]);
        }
        Self { rig, port, route, drivers, _ram: ram }
    }

    /// The guest sends on this pair, and is answered; the pair that got the answer.
    fn exchange(&mut self, queue_pair: u16) -> Option<u16> {
        let sent = flow(mac(1), queue_pair, true);
        let [_, from_guest] = &mut self.drivers[usize::from(queue_pair)];
        from_guest.send(&sent, &[HEADER]);
        self.rig.settle();
        assert_eq!(from_guest.completed().len(), 1);
        assert_eq!(self.rig.wires[0].departed(), [sent]);
        let answer = flow(mac(1), queue_pair, false);
        assert!(self.rig.wires[0].arrive(&answer));
        self.rig.settle();
        let mut got = None;
        for (at, [to_guest, _]) in (0u16..).zip(&mut self.drivers) {
            for (_, frame) in to_guest.received() {
                assert_eq!(frame, answer);
                assert_eq!(got.replace(at), None, "delivered twice");
                to_guest.post(1, 2048);
            }
        }
        got
    }
}

#[test]
fn a_pair_without_buffers_loses_its_own_packets_and_no_others() {
    raise_open_files();
    each_layout(|options| {
        let bare = [5, 77, 127];
        let mut guest = Wide::start(options, &bare);
        for queue_pair in 0..PAIRS {
            let expected = (!bare.contains(&queue_pair)).then_some(queue_pair);
            assert_eq!(guest.exchange(queue_pair), expected, "pair {queue_pair}");
        }
        let dropped = PortCounter::ToGuestDroppedNoBuffers;
        assert_eq!(guest.rig.port_count(guest.port, dropped), bare.len() as u64);
        guest.rig.assert_frames_balance();
    });
}

#[test]
fn packets_of_pairs_that_were_disabled_go_to_those_that_are_left() {
    raise_open_files();
    each_layout(|options| {
        let mut guest = Wide::start(options, &[]);
        assert_eq!(guest.exchange(100), Some(100));
        // ethtool -L eth0 combined 3; QEMU disables all other pairs.
        let ready = vec![0, 1, 2];
        guest.rig.set_route(guest.port, Route { ready: ready.clone(), ..guest.route.clone() });
        for queue_pair in 3..PAIRS {
            let mut ring = guest.rig.take(0, guest.port, 2 * queue_pair).unwrap();
            ring.enabled = false;
            guest.rig.give(0, guest.port, 2 * queue_pair, ring);
        }
        for queue_pair in 0..PAIRS {
            let got = guest.exchange(queue_pair).expect("it arrives");
            assert!(ready.contains(&got), "pair {got} is disabled");
            if ready.contains(&queue_pair) {
                assert_eq!(got, queue_pair);
            }
        }
        let lost = PortCounter::ToGuestDroppedNotReady;
        assert_eq!(guest.rig.port_count(guest.port, lost), 0);
    });
}

#[test]
fn what_is_sent_on_disabled_pairs_is_discarded_and_all_else_leaves() {
    raise_open_files();
    each_layout(|options| {
        let mut guest = Wide::start(options, &[]);
        for queue_pair in 1..PAIRS - 1 {
            let index = 2 * queue_pair + 1;
            let mut ring = guest.rig.take(0, guest.port, index).unwrap();
            ring.enabled = false;
            guest.rig.give(0, guest.port, index, ring);
            let [_, from_guest] = &mut guest.drivers[usize::from(queue_pair)];
            for _ in 0..RING_SIZE {
                from_guest.send(&frame(OUTSIDE, mac(1), 60), &[]);
            }
        }
        for queue_pair in [0, PAIRS - 1] {
            assert_eq!(guest.exchange(queue_pair), Some(queue_pair));
        }
        guest.rig.settle();
        let discarded = guest.rig.port_count(guest.port, PortCounter::FromGuestDroppedDisabled);
        assert_eq!(discarded, u64::from(PAIRS - 2) * u64::from(RING_SIZE));
        guest.rig.assert_frames_balance();
    });
}
