//! A guest on a [`Rig`]: a port with one queue pair and the driver that uses it.

use std::fs::File;

use crate::datapath::{Attachment, PortId, Route, UplinkId, WorkerId, frame_max};
use crate::device::offloads::Offloads;
use crate::virtqueue::QueueOptions;

use super::frontend::signalled;
use super::guest_driver::{Driver, GuestRam};
use super::rig::Rig;

/// Every ring layout, with and without event index: tests give them to their guests in turn.
pub const LAYOUTS: [QueueOptions; 4] = [
    QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE },
    QueueOptions { indirect: true, ..QueueOptions::NONE },
    QueueOptions { event_idx: true, indirect: true, packed: true, ..QueueOptions::NONE },
    QueueOptions { indirect: true, packed: true, ..QueueOptions::NONE },
];

/// Run a test with guests of each layout.
pub fn each_layout(test: impl Fn(QueueOptions)) {
    LAYOUTS.into_iter().for_each(test);
}

/// Entries of a guest's rings.
const RING: u16 = 256;

/// A port with one queue pair and the driver in its guest.
#[derive(Debug)]
pub struct RigGuest {
    _ram: GuestRam,
    /// The port.
    pub port: PortId,
    /// Its address.
    pub mac: [u8; 6],
    /// The driver's side of its receive ring.
    pub to_guest: Driver,
    /// The driver's side of its transmit ring.
    pub from_guest: Driver,
    /// The event that the device signals for received packets.
    pub call: File,
}

/// The address of guest `number`.
#[must_use]
pub fn mac(number: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number]
}

/// The route of a port whose first queue pair is ready.
#[must_use]
pub fn route(attachment: Attachment, workers: Vec<WorkerId>) -> Route {
    Route { ready: vec![0], ..Route::new(UplinkId(0), attachment, frame_max(1500), workers) }
}

impl RigGuest {
    /// A guest with this route that leaves no work to us and takes none.
    pub fn start(rig: &mut Rig, route: Route, options: QueueOptions) -> Self {
        Self::with_offloads(rig, route, options, [Offloads::NONE; 2])
    }

    /// A guest that takes the first of these offloads and may use the second.
    pub fn with_offloads(
        rig: &mut Rig,
        route: Route,
        options: QueueOptions,
        [accepted, sent]: [Offloads; 2],
    ) -> Self {
        let worker = route.workers[0].index();
        let mac = match &route.attachment {
            Attachment::Switch { mac } => *mac,
            Attachment::Wire { .. } => mac(0),
        };
        let port = rig.add_port(route);
        let mut ram = GuestRam::new(16 << 20);
        let to_guest = Driver::new(&mut ram, RING, options);
        let from_guest = Driver::new(&mut ram, RING, options);
        let (mut ring, call) = to_guest.ring();
        ring.kind.offloads = accepted;
        rig.give(worker, port, 0, ring);
        let (mut ring, _) = from_guest.ring();
        ring.kind.offloads = sent;
        rig.give(worker, port, 1, ring);
        assert!(signalled(&call), "a driver is reminded to look when its ring is given");
        Self { _ram: ram, port, mac, to_guest, from_guest, call }
    }

    /// Guest `number` on the switch of worker 0.
    pub fn switched(rig: &mut Rig, number: u8, options: QueueOptions) -> Self {
        let attachment = Attachment::Switch { mac: mac(number) };
        Self::start(rig, route(attachment, vec![WorkerId(0)]), options)
    }

    /// The frames it has received.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        self.to_guest.received().into_iter().map(|(_, frame)| frame).collect()
    }
}

/// A frame of `len` bytes that no protocol knows, with bytes that differ from their neighbours'.
#[must_use]
pub fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|at| u8::try_from(at % 251).unwrap()));
    frame
}

/// A datagram of UDP to `to`, from outside: by its flow it arrives on one of a NIC's queues.
#[must_use]
pub fn datagram(to: [u8; 6], flow: u16) -> Vec<u8> {
    let mut bytes = frame(to, OUTSIDE, 200);
    let headers = [
        &[0x08, 0x00, 0x45, 0, 0, 186, 0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 1, 10, 77, 0, 101][..],
        &flow.to_be_bytes(),
        &[0, 9, 0, 166, 0, 0],
    ]
    .concat();
    bytes[12..12 + headers.len()].copy_from_slice(&headers);
    bytes
}

/// An address that no guest has.
pub const OUTSIDE: [u8; 6] = [0x02, 0xff, 0, 0, 0, 9];
