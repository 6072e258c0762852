//! Where the packets of a guest's burst go: header check → destination → copied once.

use arrayvec::ArrayVec;

use crate::device::groups::is_flow_control;
use crate::device::mac;
use crate::guest_memory::GuestSlice;
use crate::metrics::PortCounter;
use crate::packet::{FRAME_MAX, flow_hash};
use crate::virtqueue::{Chain, RUN, RingKind};

use super::decision::{Choice, Decision, Flood, FrameOrigin, choose_for_all, choose_pair, decide};
use super::dispatch::Dispatch;
use super::forwarding::{Attachment, Receiver, Route};
use super::frame::{CompleteFrame, FrameView, GuestPacket, Start};
use super::ids::PortId;
use super::limits::BURST;
use super::plane::Plane;
use super::sockets::{Sending, WorkerSocket};

/// Copies of flooded frames and segments of large ones after which a ring's burst ends; the rest
/// waits for its next turn. One guest must not hold up the others' turns, nor send more at once
/// than the uplink has frames for.
const COPIES_MAX: usize = 2 * BURST as usize;

/// Bytes of packets after which a ring's burst ends: a copy of so many takes some 25 microseconds.
/// It is four of the longest packets, or a whole burst of the usual ones.
const BYTES_MAX: u64 = 256 << 10;

/// Packets taken from a guest.
pub(super) enum TakenPackets<'p, 'm> {
    /// Each in one piece.
    Run(&'p [(Chain, GuestSlice<'m>)]),
    /// One in any number of pieces.
    Single(&'p mut [GuestSlice<'m>]),
}

impl TakenPackets<'_, '_> {
    pub fn count(&self) -> usize {
        match self {
            Self::Run(run) => run.len(),
            Self::Single(_) => 1,
        }
    }
}

/// Packets that go the same way.
type Alike<'m> = ArrayVec<GuestPacket<'m>, RUN>;

/// Where the packets of one burst of one ring can go.
pub(super) struct Outlet<'w> {
    port: PortId,
    pair: u16,
    kind: RingKind,
    route: &'w Route,
    /// Whether a queue pair is chosen by flow anywhere: the headers are read for it then.
    by_flow: bool,
    /// Whether the guest has queue pairs to choose from itself.
    learns: bool,
    dispatch: Dispatch<'w>,
    /// The uplink's socket for this queue pair; the control plane places rings with workers that
    /// have one.
    sending: Option<Sending<'w>>,
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
    pub fn new(plane: &'w mut Plane, port: PortId, pair: u16, kind: RingKind) -> Option<Self> {
        let (dispatch, sockets) = plane.ways(Some(port));
        let route = dispatch.table.route(port)?;
        let places = &mut sockets.places;
        let place = socket_for(places, route, pair);
        Some(Self {
            port,
            pair,
            kind,
            route,
            by_flow: dispatch.table.by_flow(),
            learns: route.ready.len() > 1,
            dispatch,
            sending: place.map(|place| Sending::new(&mut places[place], port)),
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
        self.dispatch.ports.count(self.port, PortCounter::FromGuestPackets, self.forwarded);
        self.dispatch.ports.count(self.port, PortCounter::FromGuestBytes, self.bytes);
        if let (Some(source), Attachment::Switch { mac }) = (self.source, &self.route.attachment) {
            self.dispatch.ports.note_source(self.port, source, *mac);
        }
    }

    /// Forward packets, until enough frames were made of them. Returns how many.
    #[inline]
    pub fn forward(&mut self, taken: TakenPackets<'_, '_>) -> usize {
        if self.has_done_enough() {
            return 0;
        }
        match taken {
            TakenPackets::Run(run) => self.forward_run(run),
            TakenPackets::Single(pieces) => {
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

    /// Forward packets in one piece each, as many at once as have one destination.
    #[inline]
    fn forward_run(&mut self, run: &[(Chain, GuestSlice<'_>)]) -> usize {
        let mut alike = ArrayVec::new();
        let mut done = 0;
        while done < run.len() && !self.has_done_enough() {
            alike.clear();
            self.read_alike(&run[done..], &mut alike);
            let end = done + alike.len().max(1);
            done += self.forward_alike(&alike);
            // A packet that stops a run usually stops those after it, so they are not read as a run
            // again.
            while done < end && !self.has_done_enough() {
                self.forward_single(&mut [run[done].1]);
                done += 1;
            }
        }
        done
    }

    /// Read packets up to the first that has work left to do, or another destination.
    #[inline]
    fn read_alike<'m>(&self, run: &[(Chain, GuestSlice<'m>)], alike: &mut Alike<'m>) {
        let Self { kind, route, run_max, .. } = *self;
        let to_wire = matches!(route.attachment, Attachment::Wire { .. });
        let mut destination = None;
        for (_, piece) in &run[..run.len().min(run_max)] {
            let Some(packet) = GuestPacket::read(*piece, kind.header_len) else { return };
            let to = mac::number(packet.destination());
            let same = to_wire || *destination.get_or_insert(to) == to;
            if !packet.is_within(route.frame_max) || !same {
                return;
            }
            alike.push(packet);
        }
    }

    /// Forward packets of one destination. Returns how many, from the first;
    /// [`forward_single`](Self::forward_single) handles the next one.
    #[inline]
    fn forward_alike(&mut self, packets: &[GuestPacket<'_>]) -> usize {
        let Some(first) = packets.first() else { return 0 };
        self.source.get_or_insert_with(|| first.source());
        match self.decide(first.destination()) {
            Decision::Wire => {
                self.learn_run(packets);
                self.transmit_run(packets)
            }
            Decision::Port(receiver) => self.deliver_run(receiver, packets),
            Decision::Flood | Decision::Own | Decision::Reserved | Decision::NoPort => 0,
        }
    }

    /// Where a frame of this guest goes.
    #[inline]
    fn decide(&self, destination: [u8; 6]) -> Decision<'w> {
        decide(self.dispatch.table, FrameOrigin::Guest(self.port, self.route), destination)
    }

    /// Deliver packets to a port, up to the first that is not of the usual kind.
    #[inline]
    fn deliver_run(&mut self, receiver: Receiver<'_>, packets: &[GuestPacket<'_>]) -> usize {
        let route = receiver.route;
        let delivered = match choose_for_all(route, self.dispatch.here) {
            Some(pair) => {
                self.learn_run(packets);
                self.dispatch.ports.deliver_run(receiver.pair(pair), packets, route.frame_max)
            }
            None => self.deliver_by_flow(receiver, packets),
        };
        self.account_run(&packets[..delivered]);
        delivered
    }

    /// Remember where this guest sends the packets' flows, if it has a choice.
    #[inline]
    fn learn_run(&self, packets: &[GuestPacket<'_>]) {
        if self.learns {
            let hashes = packets.iter().map(GuestPacket::flow_hash);
            hashes.for_each(|hash| self.route.flows.learn(hash, self.pair));
        }
    }

    /// Deliver packets to the queue pairs of their flows, as many at once as have the same.
    fn deliver_by_flow(&mut self, receiver: Receiver<'_>, packets: &[GuestPacket<'_>]) -> usize {
        let route = receiver.route;
        let choices = packets.iter().map(|packet| {
            let hash = packet.flow_hash();
            if self.learns {
                self.route.flows.learn(hash, self.pair);
            }
            choose_pair(route, self.dispatch.here, || hash)
        });
        let choices: ArrayVec<Choice, RUN> = choices.collect();
        let (mut done, mut rest) = (0, &choices[..]);
        while let Some(&Choice::Here(pair)) = rest.first() {
            let same = rest.iter().take_while(|other| **other == Choice::Here(pair)).count();
            let frames = &packets[done..done + same];
            let delivered =
                self.dispatch.ports.deliver_run(receiver.pair(pair), frames, route.frame_max);
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
    fn transmit_run(&mut self, packets: &[GuestPacket<'_>]) -> usize {
        let Some(sending) = &mut self.sending else { return 0 };
        let sent = sending.send_run(packets);
        self.account_run(&packets[..sent]);
        sent
    }

    #[inline]
    fn account_run(&mut self, packets: &[GuestPacket<'_>]) {
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
        let decision = self.decide(frame.destination());
        let is_flow_control = frame.start().first_chunk().is_some_and(is_flow_control);
        if is_flow_control || matches!(decision, Decision::Reserved) {
            return self.drop(PortCounter::FromGuestDroppedReserved);
        }
        self.looked_at += u64::from(frame.len());
        if self.learns {
            self.route.flows.learn(flow_hash(frame.start()), self.pair);
        }
        match decision {
            Decision::Wire => {
                let sent = self.send_to_uplink(frame);
                self.account(sent, frame);
            }
            Decision::Port(receiver) => {
                self.send_to_port(receiver, frame);
                self.account(true, frame);
            }
            Decision::Flood => {
                self.flood(frame);
                self.account(true, frame);
            }
            Decision::Own | Decision::Reserved | Decision::NoPort => {
                self.drop(PortCounter::FromGuestDroppedNoRoute);
            }
        }
    }

    /// Send a frame in the name of the port: to the wire, and to all others. Returns how many
    /// copies were made.
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
        let (here, uplink) = (self.dispatch.here, self.route.uplink);
        let flood = Flood { uplink, from: Some(self.port), by: here };
        let copies = self.dispatch.flood(flood, frame);
        if let Some(host) = self.dispatch.table.host(uplink) {
            self.send_to_port(host, frame);
        }
        // Copies made by other workers count too: they take those workers' time.
        self.copies += copies.max(self.dispatch.table.switched(uplink).len());
    }

    /// Complete and transmit; false if a resulting frame was lost.
    #[inline]
    fn send_to_uplink(&mut self, frame: &FrameView<'_>) -> bool {
        let Some(sending) = &mut self.sending else { return false };
        if frame.offload().is_plain() {
            return sending.send(frame);
        }
        let (mut sent, mut frames) = (true, 0);
        self.dispatch.ports.completer.complete(frame, |frame| {
            sent &= sending.send(frame);
            frames += 1;
        });
        self.copies += frames;
        let beyond = (frames as u64).saturating_sub(1);
        self.dispatch.ports.count(self.port, PortCounter::FromGuestSegments, beyond);
        sent && frames > 0
    }

    #[inline]
    fn send_to_port(&mut self, receiver: Receiver<'_>, frame: &FrameView<'_>) {
        self.copies += self.dispatch.forward_to(receiver, frame).saturating_sub(1);
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
        self.dispatch.ports.count(self.port, reason, 1);
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
            // This worker has every n-th pair, n being the number of workers; each next one takes
            // the next socket.
            let turn = usize::from(pair).checked_div(route.workers.len())?;
            let nth = turn.checked_rem(count)?;
            (0..places.len()).filter(|&place| of_uplink(&places[place])).nth(nth)
        }
    }
}
