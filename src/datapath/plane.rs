//! A worker's means to move packets: its rings, its sockets, the forwarding table, and the inboxes
//! of other workers. The bursts work on this alone, so that they need neither the loop nor its
//! sleep.

use std::sync::Arc;

use crossbeam::channel::Sender;

use crate::metrics::SocketCounter;
use crate::xdp::{Socket, Umem};

use super::dispatch::Dispatch;
use super::forwarding::Forwarding;
use super::handover::{Buffers, Inbox, PacketPool};
use super::ids::{PortId, RingId, UplinkId, WorkerId};
use super::rotation::Rotation;
use super::sockets::{Sockets, WorkerSocket};
use super::worker_ports::WorkerPorts;

/// The sources and destinations of a worker's packets. Everything in it is its thread's alone.
#[derive(Debug)]
pub(super) struct Plane {
    pub id: WorkerId,
    pub sockets: Sockets,
    /// The frame memory of each uplink; None while it is gone.
    pub umems: Vec<Option<Arc<Umem>>>,
    /// Every worker's, its own too, by number.
    pub inboxes: Vec<Arc<Inbox>>,
    /// Where the control plane's buffers go back to.
    pub pool: PacketPool,
    /// Its own buffers for handing packets over.
    pub buffers: Buffers,
    pub ports: WorkerPorts,
    pub table: Arc<Forwarding>,
    /// The rings to take packets from.
    pub rotation: Rotation,
    /// Frames and packets of other workers that were accepted.
    pub accepted: u64,
}

/// The arguments of a new plane.
#[derive(Debug)]
pub(super) struct PlaneSetup {
    pub id: WorkerId,
    pub sockets: Vec<(UplinkId, Socket)>,
    pub umems: Vec<Option<Arc<Umem>>>,
    pub inboxes: Vec<Arc<Inbox>>,
    pub pool: PacketPool,
    /// Where it reports ports whose memory is gone.
    pub lost: Sender<PortId>,
}

impl Plane {
    /// A plane without ports, and with an empty table.
    ///
    /// # Errors
    /// No thread to be had for signals.
    pub fn new(setup: PlaneSetup) -> std::io::Result<Self> {
        let PlaneSetup { id, sockets, umems, inboxes, pool, lost } = setup;
        Ok(Self {
            id,
            sockets: Sockets::new(sockets),
            umems,
            inboxes,
            pool,
            buffers: Buffers::new(id),
            ports: WorkerPorts::new(lost)?,
            table: Arc::default(),
            rotation: Rotation::default(),
            accepted: 0,
        })
    }

    /// This worker's inbox.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inboxes[self.id.index()]
    }

    /// The ways to the ports, and apart from them the sockets. `sender` is the port whose guest
    /// sends the frames, if a guest does.
    #[inline]
    pub fn ways(&mut self, sender: Option<PortId>) -> (Dispatch<'_>, &mut Sockets) {
        let Self { id, sockets, ports, table, inboxes, buffers, .. } = self;
        (Dispatch { here: *id, table, ports, inboxes, buffers, sender }, sockets)
    }

    /// Use another table; returns the one before.
    pub fn set_table(&mut self, table: Arc<Forwarding>) -> Arc<Forwarding> {
        self.buffers.divide(table.senders_of(self.id));
        let before = std::mem::replace(&mut self.table, table);
        self.divide_sockets();
        before
    }

    /// Have each port's share of every socket's frames, after the table or the sockets changed.
    pub fn divide_sockets(&mut self) {
        self.sockets.divide(&self.table, self.id);
    }

    /// Have a ring's driver kick when it makes something available, or not.
    pub fn want_kicks(&mut self, ring: RingId, wanted: bool) {
        if let Some(ring) = self.ports.ring(ring) {
            ring.queue.ring_mut().want_kicks(wanted);
        }
    }

    /// Have the drivers of the busy rings kick, or not. Quiet rings ask for kicks all the time.
    pub fn want_busy_kicks(&mut self, wanted: bool) {
        for ring in self.rotation.busy() {
            if let Some(ring) = self.ports.ring(ring) {
                ring.queue.ring_mut().want_kicks(wanted);
            }
        }
    }

    /// Show the kernel the new entries of all sockets.
    pub fn flush_sockets(&mut self) {
        for socket in self.sockets.places.iter_mut().filter_map(|place| place.socket.as_mut()) {
            socket.flush();
        }
    }

    /// Let readers see the counters.
    pub fn publish_counters(&mut self) {
        for (uplink, count) in self.ports.take_removed() {
            self.sockets.count(Some(uplink), SocketCounter::DroppedPortRemoved, count);
        }
        self.ports.publish_counters();
        self.sockets.places.iter_mut().for_each(WorkerSocket::publish);
    }

    /// Read the kernel's counters. This costs a system call per socket, so it is done only on
    /// request.
    pub fn read_kernel_statistics(&mut self) {
        self.sockets.places.iter_mut().for_each(WorkerSocket::read_kernel_statistics);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::metrics::{PortCounter, Published, SocketCounter};
    use crate::test_support::guest_driver::{Driver, GuestRam};
    use crate::test_support::rig_guest::{LAYOUTS, OUTSIDE, frame, mac, route};
    use crate::test_support::ring_pair::{Wire, ring_pair};

    use super::super::forwarding::{Attachment, ForwardingBuilder};
    use super::super::from_uplink::Arrivals;
    use super::super::handover::{Handover, Inbox, PacketPool, Target};
    use super::super::ids::{PortId, QueuePair, RingId, UplinkId, WorkerId};
    use super::super::{from_guest, from_inbox, from_uplink};
    use super::*;

    const UPLINK: UplinkId = UplinkId(0);
    const PORT: PortId = PortId(0);
    const FRAMES: u32 = 64;

    /// A plane with one wire, and a guest on one port of it that has no route yet.
    struct Bench {
        plane: Plane,
        wire: Wire,
        counters: Arc<Published<PortCounter>>,
        to_guest: Driver,
        from_guest: Driver,
        _ram: GuestRam,
    }

    impl Bench {
        fn new() -> Self {
            let (socket, wire) = ring_pair(0, FRAMES);
            let (lost, _) = crossbeam::channel::unbounded();
            let setup = PlaneSetup {
                id: WorkerId(0),
                sockets: vec![(UPLINK, socket)],
                umems: vec![Some(Arc::clone(wire.umem()))],
                inboxes: vec![Arc::new(Inbox::new(FRAMES as usize).unwrap())],
                pool: PacketPool::new(),
                lost,
            };
            let mut plane = Plane::new(setup).unwrap();
            let counters = plane.ports.add(PORT, "port".into());
            let mut ram = GuestRam::new(16 << 20);
            let to_guest = Driver::new(&mut ram, 256, LAYOUTS[0]);
            let from_guest = Driver::new(&mut ram, 256, LAYOUTS[0]);
            for (index, driver) in (0..).zip([&to_guest, &from_guest]) {
                plane.ports.put(RingId { port: PORT, index }, Box::new(driver.ring().0));
            }
            plane.rotation.add(RingId { port: PORT, index: 1 });
            Self { plane, wire, counters, to_guest, from_guest, _ram: ram }
        }

        fn set_route(&mut self) {
            let mut table = ForwardingBuilder::default();
            table.add(PORT, route(Attachment::Switch { mac: mac(0) }, vec![WorkerId(0)]));
            self.plane.set_table(Arc::new(table.build()));
        }

        /// Hand a packet over, as another thread does.
        fn hand_over(&self, bytes: &[u8], target: Target) {
            let mut packet = self.plane.pool.take().unwrap();
            packet.room(bytes.len()).copy_from_slice(bytes);
            self.plane.inbox().hand_over(Handover::Packet { packet, target }).unwrap();
        }

        fn port_count(&mut self, counter: PortCounter) -> u64 {
            self.plane.publish_counters();
            self.counters.get(counter)
        }

        fn socket_count(&mut self, counter: SocketCounter) -> u64 {
            self.plane.publish_counters();
            self.plane.sockets.places[0].counters.get(counter)
        }
    }

    #[test]
    fn bursts_move_packets_without_a_worker() {
        let mut bench = Bench::new();
        bench.set_route();
        let (out, back) = (frame(OUTSIDE, mac(0), 60), frame(mac(0), OUTSIDE, 60));
        bench.from_guest.send(&out, &[]);
        bench.to_guest.post(1, 1536);
        bench.wire.arrive(&back);
        assert_eq!(from_guest::bursts(&mut bench.plane, true), 1);
        assert_eq!(from_uplink::burst(&mut bench.plane, &mut Arrivals::new(), 0), 1);
        assert_eq!(from_inbox::burst(&mut bench.plane), 0);
        bench.plane.ports.publish_and_notify();
        bench.plane.flush_sockets();
        assert_eq!(bench.wire.departed(), [out]);
        assert_eq!(bench.to_guest.received().len(), 1);
    }

    #[test]
    fn what_the_guest_of_a_port_without_a_route_sends_is_counted_so() {
        let mut bench = Bench::new();
        let sent = frame(OUTSIDE, mac(0), 60);
        bench.from_guest.send(&sent, &[]);
        bench.from_guest.send(&sent, &[]);
        assert_eq!(from_guest::bursts(&mut bench.plane, true), 2);
        bench.plane.ports.publish_and_notify();
        assert_eq!(bench.from_guest.completed().len(), 2);
        assert_eq!(bench.port_count(PortCounter::FromGuestDroppedUnrouted), 2);
        assert_eq!(bench.port_count(PortCounter::FromGuestDroppedDisabled), 0);
        assert_eq!(bench.port_count(PortCounter::FromGuestPackets), 0);
    }

    #[test]
    fn what_is_handed_over_for_a_removed_port_is_counted_at_its_uplink() {
        let mut bench = Bench::new();
        let sent = frame(mac(0), OUTSIDE, 60);
        let to = QueuePair { uplink: UPLINK, port: PORT, pair: 0 };
        bench.plane.ports.remove(PORT);
        bench.hand_over(&sent, Target::Pair(to));
        bench.hand_over(&sent, Target::FloodFrom { port: PORT });
        bench.hand_over(&sent, Target::Arrival { uplink: UPLINK });
        assert_eq!(from_inbox::burst(&mut bench.plane), 3);
        assert_eq!(bench.socket_count(SocketCounter::DroppedPortRemoved), 2);
        assert_eq!(bench.socket_count(SocketCounter::RxDroppedNoPort), 1);
        assert_eq!(
            bench.socket_count(SocketCounter::DroppedPortRemoved),
            2,
            "each is counted once"
        );
    }

    #[test]
    fn a_received_frame_for_a_removed_port_is_counted_and_goes_home() {
        let mut bench = Bench::new();
        bench.wire.arrive(&frame(mac(0), OUTSIDE, 60));
        let Plane { sockets, inboxes, .. } = &mut bench.plane;
        let place = &mut sockets.places[0];
        let mut received = None;
        place.socket.as_mut().unwrap().receive(1, |piece| received = Some(piece));
        place.lent.lend(PORT);
        let to = QueuePair { uplink: UPLINK, port: PORT, pair: 0 };
        let received = received.unwrap();
        inboxes[0]
            .hand_over(Handover::Frame { home: WorkerId(0), place: 0, received, to })
            .unwrap();
        bench.plane.ports.remove(PORT);
        from_inbox::burst(&mut bench.plane);
        from_inbox::burst(&mut bench.plane);
        assert_eq!(bench.socket_count(SocketCounter::DroppedPortRemoved), 1);
        assert_eq!(bench.socket_count(SocketCounter::FramesAway), 0);
        assert_eq!(bench.socket_count(SocketCounter::FramesTotal), u64::from(FRAMES));
    }
}
