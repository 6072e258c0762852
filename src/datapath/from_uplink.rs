//! A burst from an uplink: its socket → port lookup → copied once into the guest's buffers.

use std::sync::Arc;

use crate::metrics::{PortCounter, SocketCounter};
use crate::xdp::Received;

use super::forwarding::Forwarding;
use super::frame::FrameView;
use super::from_guest::{hand_over, to_port};
use super::handover::{Handover, Target};
use super::worker::{Worker, WorkerSocket};
use super::{BURST, ETHERNET_BYTES, PortId, UplinkId};

/// Take what the socket has received, at most [`BURST`] packets, and deliver it. Returns how many
/// were taken.
pub(super) fn burst(worker: &mut Worker, place: usize) -> usize {
    let mut received = std::mem::take(&mut worker.received);
    let WorkerSocket { uplink, socket, .. } = &mut worker.sockets[place];
    let (uplink, queue) = (*uplink, socket.queue());
    let count = socket.receive(u32::from(BURST), |packet| received.push(packet));
    if count > 0 {
        let table = Arc::clone(&worker.table);
        let whole_queue = table.by_queue(uplink, queue);
        let mut bytes = 0;
        for packet in received.drain(..) {
            bytes += u64::from(packet.len);
            deliver(worker, &table, place, whole_queue, packet);
        }
        let counters = &mut worker.sockets[place].counters;
        counters.add(SocketCounter::RxPackets, u64::from(count));
        counters.add(SocketCounter::RxBytes, bytes);
    }
    worker.received = received;
    count as usize
}

/// Deliver one received packet. Its frame goes back to the socket, now or when the worker that it
/// is handed over to is done with it.
#[inline]
fn deliver(
    worker: &mut Worker,
    table: &Forwarding,
    place: usize,
    whole_queue: Option<PortId>,
    received: Received,
) {
    let WorkerSocket { uplink, socket, counters } = &mut worker.sockets[place];
    let umem = &worker.umems[uplink.index()];
    let frame = FrameView::whole(umem.packet(&received));
    let by_mac = || {
        let whole = frame.len() >= ETHERNET_BYTES;
        if whole { table.by_mac(*uplink, frame.destination()) } else { None }
    };
    let Some(port) = whole_queue.or_else(by_mac) else {
        counters.add(SocketCounter::RxDroppedNoPort, 1);
        return socket.recycle(received.frame);
    };
    let (here, inboxes, uplink) = (worker.id, &worker.inboxes, *uplink);
    let mut still_ours = Some(received);
    let chosen = (here, socket.queue() as usize);
    to_port(&mut worker.ports, table, port, chosen, |ports, owner, pair| {
        if owner == here {
            if let Some(received) = &still_ours {
                ports.deliver(table, port, pair, &FrameView::whole(umem.packet(received)));
            }
            return true;
        }
        let Some(received) = still_ours.take() else { return true };
        let handover = Handover::Frame { home: here, socket: place, uplink, received, port, pair };
        match inboxes[owner.index()].hand_over(handover) {
            Ok(()) => true,
            Err(Handover::Frame { received, .. }) => {
                still_ours = Some(received);
                false
            }
            Err(Handover::Packet { .. }) => unreachable!("a frame went in"),
        }
    });
    if let Some(received) = still_ours {
        worker.sockets[place].socket.recycle(received.frame);
    }
}

/// A multicast frame from the wire, brought by the control plane: to all switched ports.
pub(super) fn flood(worker: &mut Worker, uplink: UplinkId, bytes: &[u8]) {
    let table = Arc::clone(&worker.table);
    let frame = FrameView::whole(bytes);
    let (here, inboxes, pool) = (worker.id, &worker.inboxes, &worker.pool);
    for &port in table.switched(uplink) {
        if frame.len() > table.route(port).map_or(0, |route| route.frame_max) {
            worker.ports.count(port, PortCounter::ToGuestDroppedOversize, 1);
            continue;
        }
        to_port(&mut worker.ports, &table, port, (here, 0), |ports, owner, pair| {
            if owner == here {
                ports.deliver(&table, port, pair, &frame);
                return true;
            }
            hand_over(pool, &inboxes[owner.index()], Target::Pair { port, pair }, &frame)
        });
    }
}
