//! Where the packets of a guest's burst go: header check → destination → copied once.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::device::groups::is_flow_control;
use crate::device::mac;
use crate::guest_memory::GuestSlice;
use crate::metrics::PortCounter;
use crate::packet::{FRAME_MAX, flow_hash};
use crate::virtqueue::{Chain, RUN, RingKind};

use super::dispatch::{hand_over, to_port};
use super::flood::Flood;
use super::forwarding::{Attachment, Forwarding, Route};
use super::frame::{CompleteFrame, FrameView, Packet, Start};
use super::handover::{Buffers, Inbox, Target};
use super::ids::{PortId, WorkerId};
use super::limits::BURST;
use super::plane::Plane;
use super::ports::Ports;
use super::sockets::{Sending, WorkerSocket};

/// Copies of flooded frames and segments of large ones after which a ring's burst ends, whatever is
/// left for its next turn: one guest must not hold up the others' turns, nor send more at once than
/// the uplink has frames for.
pub(super) const COPIES_MAX: usize = 2 * BURST as usize;

/// Bytes of packets after which a ring's burst ends: a copy of so many takes some 25 microseconds.
/// Four of the longest packets, or a whole burst of the usual ones.
pub(super) const BYTES_MAX: u64 = 256 << 10;

/// Packets taken from a guest.
pub(super) enum Taken<'p, 'm> {
    /// Each in one piece.
    Run(&'p [(Chain, GuestSlice<'m>)]),
    /// One in any number of pieces.
    Single(&'p mut [GuestSlice<'m>]),
}

impl Taken<'_, '_> {
    pub fn count(&self) -> usize {
        match self {
            Self::Run(run) => run.len(),
            Self::Single(_) => 1,
        }
    }
}

/// Packets that go the same way.
type Alike<'m> = ArrayVec<Packet<'m>, RUN>;

/// Where the packets of one burst of one ring can go.
pub(super) struct Outlet<'w> {
    port: PortId,
    pair: u16,
    kind: RingKind,
    table: &'w Forwarding,
    route: &'w Route,
    /// Whether a queue pair is chosen by flow anywhere: the headers are read for it then.
    by_flow: bool,
    /// Whether the guest has queue pairs to choose from itself.
    learns: bool,
    worker: WorkerId,
    ports: &'w mut Ports,
    /// The uplink's socket for this queue pair; the control plane places rings where there is one.
    sending: Option<Sending<'w>>,
    inboxes: &'w [Arc<Inbox>],
    buffers: &'w mut Buffers,
    forwarded: u64,
    bytes: u64,
    /// Frames made of others: copies of those flooded, segments of those cut.
    copies: usize,
    /// Bytes of the packets looked at.
    looked_at: u64,
    /// Most packets of a run, so that it is not longer than [`BYTES_MAX`].
    run_max: usize,
    /// Where the burst's first frame comes from.
    source: Option<[u8; 6]>,
}

impl<'w> Outlet<'w> {
    /// None for a port that has no route (any more).
    pub fn new(plane: &'w mut Plane, (port, pair, kind): (PortId, u16, RingKind)) -> Option<Self> {
        let table = &*plane.table;
        let route = table.route(port)?;
        let places = &mut plane.sockets.places;
        let place = socket_for(places, route, pair);
        Some(Self {
            port,
            pair,
            kind,
            table,
            route,
            by_flow: table.by_flow(),
            learns: route.ready.len() > 1,
            worker: plane.id,
            ports: &mut plane.ports,
            sending: place.map(|place| Sending::new(&mut places[place], port)),
            inboxes: &plane.inboxes,
            buffers: &mut plane.buffers,
            forwarded: 0,
            bytes: 0,
            copies: 0,
            looked_at: 0,
            run_max: run_max(route.frame_max),
            source: None,
        })
    }

    pub fn finish(mut self) {
        if let Some(sending) = &mut self.sending {
            sending.settle();
        }
        self.ports.count(self.port, PortCounter::FromGuestPackets, self.forwarded);
        self.ports.count(self.port, PortCounter::FromGuestBytes, self.bytes);
        if let (Some(source), Attachment::Switch { mac }) = (self.source, &self.route.attachment) {
            self.ports.note_source(self.port, source, *mac);
        }
    }

    /// Forward packets, until enough frames were made of them. Answers how many.
    #[inline]
    pub fn forward(&mut self, taken: Taken<'_, '_>) -> usize {
        if self.has_done_enough() {
            return 0;
        }
        match taken {
            Taken::Run(run) => self.forward_run(run),
            Taken::Single(pieces) => {
                self.forward_single(pieces);
                1
            }
        }
    }

    /// Whether this was enough work for one burst.
    #[inline]
    fn has_done_enough(&self) -> bool {
        self.copies >= COPIES_MAX || self.looked_at >= BYTES_MAX
    }

    /// Packets in one piece each: as many at once as have the same way to go.
    #[inline]
    fn forward_run(&mut self, run: &[(Chain, GuestSlice<'_>)]) -> usize {
        let mut alike = ArrayVec::new();
        let mut done = 0;
        while done < run.len() && !self.has_done_enough() {
            alike.clear();
            self.read_alike(&run[done..], &mut alike);
            let end = done + alike.len().max(1);
            done += self.forward_alike(&alike);
            // What stopped one stops those after it, as a rule: they are not read for it again.
            while done < end && !self.has_done_enough() {
                self.forward_single(&mut [run[done].1]);
                done += 1;
            }
        }
        done
    }

    /// Read packets up to the first that has something left to do, or another destination.
    #[inline]
    fn read_alike<'m>(&self, run: &[(Chain, GuestSlice<'m>)], alike: &mut Alike<'m>) {
        let to_wire = matches!(self.route.attachment, Attachment::Wire { .. });
        let mut destination = None;
        for (_, piece) in run {
            let Some(packet) = Packet::read(*piece, self.kind.header_len) else { return };
            let to = mac::number(packet.destination());
            let same = to_wire || *destination.get_or_insert(to) == to;
            if !packet.is_within(self.route.frame_max) || !same || alike.len() == self.run_max {
                return;
            }
            alike.push(packet);
        }
    }

    /// Forward packets that go the same way. Answers how many, from the first; the next one is
    /// [`forward_single`](Self::forward_single)'s.
    #[inline]
    fn forward_alike(&mut self, packets: &[Packet<'_>]) -> usize {
        let Some(first) = packets.first() else { return 0 };
        self.source.get_or_insert_with(|| first.source());
        let destination = first.destination();
        let port = match self.route.attachment {
            Attachment::Wire { .. } => None,
            Attachment::Switch { .. } if destination[0] & 1 != 0 => return 0,
            Attachment::Switch { .. } => self.table.guest(self.route.uplink, destination),
        };
        let Some(port) = port else {
            self.learn_run(packets);
            return self.transmit_run(packets);
        };
        let Some(route) = self.table.route(port).filter(|_| port != self.port) else { return 0 };
        let delivered = match route.only_pair(self.worker) {
            Some(pair) => {
                self.learn_run(packets);
                self.ports.deliver_run((port, pair), packets, route.frame_max)
            }
            None => self.deliver_by_flow(port, route, packets),
        };
        self.account_run(&packets[..delivered]);
        delivered
    }

    /// Remember where this guest sends the packets' flows, if it has a choice.
    #[inline]
    fn learn_run(&self, packets: &[Packet<'_>]) {
        if self.learns {
            let hashes = packets.iter().map(Packet::flow_hash);
            hashes.for_each(|hash| self.route.flows.learn(hash, self.pair));
        }
    }

    /// Deliver packets to the queue pairs of their flows, as many at once as have the same.
    fn deliver_by_flow(&mut self, port: PortId, route: &Route, packets: &[Packet<'_>]) -> usize {
        let pairs = packets.iter().map(|packet| {
            let hash = packet.flow_hash();
            if self.learns {
                self.route.flows.learn(hash, self.pair);
            }
            route.pair(self.worker, || hash)
        });
        let pairs: ArrayVec<Option<u16>, RUN> = pairs.collect();
        let (mut done, mut rest) = (0, &pairs[..]);
        while let Some(&Some(pair)) = rest.first() {
            if route.worker(pair) != self.worker {
                break;
            }
            let same = rest.iter().take_while(|other| **other == Some(pair)).count();
            let frames = &packets[done..done + same];
            let delivered = self.ports.deliver_run((port, pair), frames, route.frame_max);
            done += delivered;
            if delivered < same {
                break;
            }
            rest = &rest[same..];
        }
        done
    }

    /// Copy packets into frames of the uplink, as many as there are free.
    #[inline]
    fn transmit_run(&mut self, packets: &[Packet<'_>]) -> usize {
        let Some(sending) = &mut self.sending else { return 0 };
        let sent = sending.send_run(packets);
        self.account_run(&packets[..sent]);
        sent
    }

    #[inline]
    fn account_run(&mut self, packets: &[Packet<'_>]) {
        let bytes = packets.iter().map(|packet| u64::from(packet.frame_len())).sum::<u64>();
        self.forwarded += packets.len() as u64;
        self.bytes += bytes;
        self.looked_at += bytes;
    }

    /// One packet of any kind.
    #[inline(never)]
    fn forward_single(&mut self, pieces: &mut [GuestSlice<'_>]) {
        let Ok(start) = Start::read(pieces, self.kind.header_len) else {
            return self.drop(PortCounter::FromGuestDroppedRunt);
        };
        if start.header.is_plain() && !self.by_flow && !start.is_tagged() {
            return self.forward_frame(&start.frame(pieces));
        }
        let headers = start.read_headers(pieces);
        match start.header.offload(headers.bytes(), start.len(), self.kind.offloads) {
            Ok(offload) => self.forward_frame(&headers.frame(pieces, offload)),
            Err(_) => self.drop(PortCounter::FromGuestDroppedHeader),
        }
    }

    #[inline]
    fn forward_frame(&mut self, frame: &FrameView<'_>) {
        self.source.get_or_insert_with(|| frame.source());
        if !frame.is_within(self.route.frame_max) || frame.len() as usize > FRAME_MAX {
            return self.drop(PortCounter::FromGuestDroppedOversize);
        }
        if self.is_reserved(frame) {
            return self.drop(PortCounter::FromGuestDroppedReserved);
        }
        self.looked_at += u64::from(frame.len());
        if self.learns {
            self.route.flows.learn(flow_hash(frame.start()), self.pair);
        }
        match self.route.attachment {
            Attachment::Wire { .. } => {
                let sent = self.send_to_uplink(frame);
                self.account(sent, frame);
            }
            Attachment::Switch { .. } => self.switch(frame),
        }
    }

    /// Whether it ends at the next bridge, which is this one: flow control always, a switch port's
    /// frames to a reserved group unless the uplink forwards that.
    #[inline]
    fn is_reserved(&self, frame: &FrameView<'_>) -> bool {
        let forwarded = match self.route.attachment {
            Attachment::Wire { .. } => true,
            Attachment::Switch { .. } => {
                self.table.forward_groups(self.route.uplink).allow(frame.destination())
            }
        };
        !forwarded || frame.start().first_chunk().is_some_and(is_flow_control)
    }

    /// By destination: a guest on this switch, all of them, or the wire.
    #[inline]
    fn switch(&mut self, frame: &FrameView<'_>) {
        let destination = frame.destination();
        if destination[0] & 1 != 0 {
            self.flood(frame);
            return self.account(true, frame);
        }
        match self.table.guest(self.route.uplink, destination) {
            Some(port) if port == self.port => self.drop(PortCounter::FromGuestDroppedNoRoute),
            Some(port) => {
                self.send_to_port(port, frame);
                self.account(true, frame);
            }
            None => {
                let sent = self.send_to_uplink(frame);
                self.account(sent, frame);
            }
        }
    }

    /// A frame in the name of the port: to the wire, and to all others. Answers how many copies were
    /// made.
    pub fn announce(mut self, frame: &FrameView<'_>) -> usize {
        match self.route.attachment {
            Attachment::Wire { .. } => {
                self.send_to_uplink(frame);
            }
            Attachment::Switch { .. } => self.flood(frame),
        }
        let copies = self.copies;
        self.finish();
        copies
    }

    /// To the wire, to every other port of the switch, and to the host.
    fn flood(&mut self, frame: &FrameView<'_>) {
        self.send_to_uplink(frame);
        let (here, uplink) = (self.worker, self.route.uplink);
        let flood = Flood { uplink, from: Some(self.port), by: here };
        let room = (&mut *self.ports, &mut *self.buffers);
        flood.hand_over(here, room, (self.table, self.inboxes), frame);
        let copies = flood.deliver(here, self.ports, self.table, frame);
        if let Some(host) = self.table.host(self.route.uplink) {
            self.send_to_port(host, frame);
        }
        // Those of other workers too: it is their time.
        self.copies += copies.max(self.table.switched(uplink).len());
    }

    /// Complete and transmit; false if any of the frames that it makes was lost.
    #[inline]
    fn send_to_uplink(&mut self, frame: &FrameView<'_>) -> bool {
        let Some(sending) = &mut self.sending else { return false };
        if frame.offload().is_plain() {
            return sending.send(frame);
        }
        let (mut sent, mut frames) = (true, 0);
        self.ports.completer.complete(frame, |frame| {
            sent &= sending.send(frame);
            frames += 1;
        });
        self.copies += frames;
        let beyond = (frames as u64).saturating_sub(1);
        self.ports.count(self.port, PortCounter::FromGuestSegments, beyond);
        sent && frames > 0
    }

    #[inline]
    fn send_to_port(&mut self, port: PortId, frame: &FrameView<'_>) {
        let copies = &mut self.copies;
        to_port(self.ports, self.table, port, (self.worker, frame), |ports, worker, pair| {
            if worker == self.worker {
                *copies += ports.deliver(port, pair, frame).saturating_sub(1);
                return true;
            }
            let from = (self.port, Target::Pair { port, pair });
            hand_over(self.buffers, &self.inboxes[worker.index()], from, frame)
        });
    }

    #[inline]
    fn account(&mut self, forwarded: bool, frame: &FrameView<'_>) {
        if forwarded {
            self.forwarded += 1;
            self.bytes += u64::from(frame.len());
            return;
        }
        self.drop(match &self.sending {
            None => PortCounter::FromGuestDroppedNoRoute,
            Some(sending) if sending.is_down() => PortCounter::FromGuestDroppedUplinkDown,
            Some(_) => PortCounter::FromGuestDroppedUplinkFull,
        });
    }

    #[cold]
    fn drop(&mut self, reason: PortCounter) {
        self.ports.count(self.port, reason, 1);
    }
}

/// Most packets of at most `frame_max` bytes that are forwarded at once.
fn run_max(frame_max: u32) -> usize {
    let most = BYTES_MAX / u64::from(frame_max.max(1));
    usize::try_from(most).unwrap_or(RUN).clamp(1, RUN)
}

/// This worker's place of the socket that a queue pair of the port transmits on.
fn socket_for(places: &[WorkerSocket], route: &Route, pair: u16) -> Option<usize> {
    let of_uplink = |place: &WorkerSocket| place.uplink == route.uplink;
    match &route.attachment {
        Attachment::Wire { queues } => {
            let queue = queues[usize::from(pair) % queues.len()];
            places.iter().position(|place| of_uplink(place) && place.queue == queue)
        }
        Attachment::Switch { .. } => {
            let count = places.iter().filter(|place| of_uplink(place)).count();
            // This worker has every so many pairs; the next one of them takes the next socket.
            let turn = usize::from(pair).checked_div(route.workers.len())?;
            let nth = turn.checked_rem(count)?;
            (0..places.len()).filter(|&place| of_uplink(&places[place])).nth(nth)
        }
    }
}
