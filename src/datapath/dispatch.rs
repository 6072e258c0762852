//! Carries out decisions: delivers a frame to a ring of this worker, hands it over to another
//! worker, or counts why it is dropped.

use std::sync::Arc;

use crate::metrics::PortCounter;
use crate::packet::flow_hash;

use super::decision::{Choice, Flood, choose};
use super::flood_budget::FloodBudget;
use super::forwarding::{Forwarding, Receiver};
use super::frame::FrameView;
use super::handover::{Buffers, Handover, Inbox, Target};
use super::ids::{PortId, WorkerId};
use super::worker_ports::WorkerPorts;

/// In place of a port's number, for frames from the wire: they use up nobody's buffers.
const NOBODY: PortId = PortId(4095);

/// A worker's ways to the ports: its own rings, and the other workers' inboxes.
#[derive(Debug)]
pub(super) struct Dispatch<'w> {
    pub here: WorkerId,
    pub table: &'w Forwarding,
    pub ports: &'w mut WorkerPorts,
    pub inboxes: &'w [Arc<Inbox>],
    pub buffers: &'w mut Buffers,
    /// The port whose guest sends the frames, and so uses up buffers; otherwise each receiver uses
    /// up its own.
    pub sender: Option<PortId>,
}

impl Dispatch<'_> {
    /// Forward a frame to a port. Returns how many frames it became here, at least one.
    #[inline]
    pub fn forward_to(&mut self, receiver: Receiver<'_>, frame: &FrameView<'_>) -> usize {
        let choice = choose(receiver.route, self.here, frame, || flow_hash(frame.start()));
        self.carry_out(choice, receiver, frame)
    }

    /// Carry out a choice for a frame.
    #[inline]
    pub fn carry_out(
        &mut self,
        choice: Choice,
        receiver: Receiver<'_>,
        frame: &FrameView<'_>,
    ) -> usize {
        let port = receiver.port;
        match choice {
            Choice::Here(pair) => return self.ports.deliver(receiver.pair(pair), frame),
            Choice::There(worker, pair) => {
                let buffers_of = self.sender.unwrap_or(port);
                let target = Target::Pair(receiver.pair(pair));
                if !self.hand_over(worker, buffers_of, target, frame) {
                    self.ports.count(port, PortCounter::ToGuestDroppedHandover, 1);
                }
            }
            Choice::Drop(reason) => self.ports.count(port, reason, 1),
        }
        1
    }

    /// Forward a frame to all ports of a flood. Those that this worker serves get it at once; each
    /// other worker that serves some gets it once, by handover. Returns how many copies were made
    /// here.
    pub fn flood(&mut self, flood: Flood, frame: &FrameView<'_>) -> usize {
        for &worker in self.table.receivers(flood.uplink) {
            if worker != self.here {
                self.flood_there(worker, flood, frame);
            }
        }
        self.flood_here(flood, frame)
    }

    /// Deliver to the ports of a flood that this worker serves. If some receivers do not accept the
    /// frame as it is, it is completed once for all of them. Returns how many copies were made.
    pub fn flood_here(&mut self, flood: Flood, frame: &FrameView<'_>) -> usize {
        let mut budget = FloodBudget::new();
        let hash = flow_hash(frame.start());
        for receiver in flood.receivers(self.table) {
            match flood.choose(receiver.route, frame, hash) {
                Ok((worker, pair)) if worker == self.here => {
                    self.ports.deliver_flooded(receiver.pair(pair), frame, &mut budget);
                }
                Ok(_) => (),
                Err(reason) if self.here == flood.by => self.ports.count(receiver.port, reason, 1),
                Err(_counted_there) => (),
            }
        }
        self.ports.deliver_completed(frame, &mut budget);
        budget.copies()
    }

    /// Hand a frame over for the ports of a flood that another worker serves.
    fn flood_there(&mut self, worker: WorkerId, flood: Flood, frame: &FrameView<'_>) {
        let buffers_of = flood.from.unwrap_or(NOBODY);
        if self.hand_over(worker, buffers_of, Target::Flood(flood), frame) {
            return;
        }
        let hash = flow_hash(frame.start());
        for Receiver { port, route } in flood.receivers(self.table) {
            if flood.choose(route, frame, hash).is_ok_and(|(of, _)| of == worker) {
                self.ports.count(port, PortCounter::ToGuestDroppedHandover, 1);
            }
        }
    }

    /// Copy a frame to another worker's inbox, in a buffer for a port; false if there is none, or
    /// no room.
    fn hand_over(
        &mut self,
        worker: WorkerId,
        buffers_of: PortId,
        target: Target,
        frame: &FrameView<'_>,
    ) -> bool {
        let Some(mut packet) = self.buffers.take(buffers_of) else { return false };
        frame.copy_to(packet.room(frame.len() as usize));
        packet.offload = *frame.offload();
        match self.inboxes[worker.index()].hand_over(Handover::Packet { packet, target }) {
            Ok(()) => true,
            Err(Handover::Packet { packet, .. }) => {
                self.buffers.put(packet);
                false
            }
            Err(Handover::Frame { .. }) => unreachable!("a packet went in"),
        }
    }
}
