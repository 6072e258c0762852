//! Brings frames to ports: to one of this worker's rings, or into another worker's inbox.

use crate::metrics::PortCounter;
use crate::packet::flow_hash;

use super::forwarding::Forwarding;
use super::frame::FrameView;
use super::handover::{Buffers, Handover, Inbox, Target};
use super::ids::{PortId, WorkerId};
use super::ports::Ports;

/// Choose the queue pair of `port` for a frame: the one that its flow was last sent on, else by
/// the worker `here` and the flow. Let `deliver` bring it to the pair's worker; false from it means
/// that the worker's inbox is full. What is too long for the port goes nowhere.
#[inline]
pub(super) fn to_port(
    ports: &mut Ports,
    table: &Forwarding,
    port: PortId,
    (here, frame): (WorkerId, &FrameView<'_>),
    deliver: impl FnOnce(&mut Ports, WorkerId, u16) -> bool,
) {
    let Some(route) = table.route(port) else { return };
    if !frame.is_within(route.frame_max) {
        return ports.count(port, PortCounter::ToGuestDroppedOversize, 1);
    }
    let Some(pair) = route.pair(here, || flow_hash(frame.start())) else {
        return ports.count(port, PortCounter::ToGuestDroppedNotReady, 1);
    };
    if !deliver(ports, route.worker(pair), pair) {
        ports.count(port, PortCounter::ToGuestDroppedHandover, 1);
    }
}

/// Copy a frame to another worker's inbox, in a buffer for this port; false if there is none, or no
/// room.
pub(super) fn hand_over(
    buffers: &mut Buffers,
    inbox: &Inbox,
    (port, target): (PortId, Target),
    frame: &FrameView<'_>,
) -> bool {
    let Some(mut packet) = buffers.take(port) else { return false };
    frame.copy_to(packet.room(frame.len() as usize));
    packet.offload = *frame.offload();
    match inbox.hand_over(Handover::Packet { packet, target }) {
        Ok(()) => true,
        Err(Handover::Packet { packet, .. }) => {
            buffers.put(packet);
            false
        }
        Err(Handover::Frame { .. }) => unreachable!("a packet went in"),
    }
}
