//! Handovers to a worker: frames and packets from other workers for its rings, and announcements of
//! ports. The control plane hands over the wire's multicast and the host's packets.

use crate::metrics::SocketCounter;
use crate::virtqueue::RingKind;

use super::decision::{Decision, Flood, FrameOrigin, decide};
use super::frame::FrameView;
use super::handover::{Handover, Target};
use super::ids::{PortId, UplinkId};
use super::limits::{BURST, ETHERNET_BYTES};
use super::outlet::Outlet;
use super::plane::Plane;

/// Take returned frames and handovers, at most [`BURST`] packets. Returns how many copies were made
/// of them.
pub(super) fn burst(plane: &mut Plane) -> usize {
    let own = plane.id.index();
    while let Some((place, port, frame)) = plane.inboxes[own].next_home() {
        plane.sockets.places[place].take_back(port, frame);
        plane.accepted += 1;
    }
    plane.sockets.release_home();
    while let Some(packet) = plane.inboxes[own].next_buffer() {
        plane.buffers.put(packet);
    }
    let mut work = 0;
    while work < usize::from(BURST)
        && let Some(handover) = plane.inboxes[own].next()
    {
        work += accept(plane, handover);
        plane.accepted += 1;
    }
    work
}

/// Returns how many copies were made, at least one.
fn accept(plane: &mut Plane, handover: Handover) -> usize {
    match handover {
        Handover::Frame { home, place, received, to } => {
            let umem = plane.umems[to.uplink.index()].as_ref();
            let umem = umem.expect("it stays until all lent frames are home");
            let frame = FrameView::whole(umem.packet(&received));
            plane.ports.deliver(to, &frame);
            plane.inboxes[home.index()].send_home(place, to.port, received.frame);
            1
        }
        Handover::Packet { packet, target } => {
            let frame = FrameView::whole(packet.bytes()).with_offload(packet.offload);
            let copies = match target {
                Target::Pair(to) => plane.ports.deliver(to, &frame),
                Target::Arrival { uplink } => arrive(plane, uplink, &frame),
                Target::FloodFrom { port } => announce(plane, port, packet.bytes()),
                Target::Flood(flood) => plane.ways(None).0.flood_here(flood, &frame),
            };
            packet.go_home(&plane.pool, |worker| &plane.inboxes[worker.index()]);
            copies.max(1)
        }
    }
}

/// Deliver a frame that the control plane brought, of the wire's multicast or from the host. It
/// goes to the switched port with its MAC, or to all of them.
///
/// A frame for the next bridge ends here: the host has its own copy. Returns how many copies were
/// made.
fn arrive(plane: &mut Plane, uplink: UplinkId, frame: &FrameView<'_>) -> usize {
    let (mut dispatch, sockets) = plane.ways(None);
    let mut drop = |reason| {
        sockets.count(Some(uplink), reason, 1);
        1
    };
    if frame.start().len() < ETHERNET_BYTES as usize {
        return drop(SocketCounter::RxDroppedRunt);
    }
    match decide(dispatch.table, FrameOrigin::ControlPlane(uplink), frame.destination()) {
        Decision::Port(receiver) => dispatch.forward_to(receiver, frame),
        Decision::Flood => dispatch.flood(Flood { uplink, from: None, by: dispatch.here }, frame),
        Decision::Reserved => drop(SocketCounter::RxDroppedReserved),
        Decision::NoPort | Decision::Wire | Decision::Own => drop(SocketCounter::RxDroppedNoPort),
    }
}

/// A control-plane frame in the name of a port (its announcement after a migration): to the wire
/// and to all others. Returns how many copies were made.
fn announce(plane: &mut Plane, port: PortId, bytes: &[u8]) -> usize {
    match Outlet::new(plane, port, 0, RingKind::default()) {
        Some(outlet) => outlet.announce(&FrameView::whole(bytes)),
        None => {
            // Its uplink is not known any more.
            plane.sockets.count(None, SocketCounter::DroppedPortRemoved, 1);
            1
        }
    }
}
