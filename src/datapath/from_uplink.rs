//! A burst from an uplink: its socket → port lookup → TCP segments coalesced → copied once into the
//! guest's buffers.

use std::ops::Range;

use arrayvec::ArrayVec;

use crate::metrics::{Counters, PortCounter, SocketCounter};
use crate::packet::{Pushed, TOKENS_MAX, TcpSegment, Train, flow_hash};
use crate::virtqueue::RUN;
use crate::xdp::{FRAGMENTS_MAX, Received, Umem};

use super::decision::{Choice, Decision, FrameOrigin, choose, choose_for_all, decide};
use super::dispatch::Dispatch;
use super::forwarding::Receiver;
use super::frame::FrameView;
use super::handover::Handover;
use super::ids::{PortId, QueuePair, WorkerId};
use super::limits::{BURST, ETHERNET_BYTES};
use super::plane::Plane;
use super::shares::Lent;
use super::sockets::WorkerSocket;

/// Flows whose segments are gathered at once. Another flow ends the train that began first.
const TRAINS_MAX: usize = 8;

/// The working data of a receive burst, kept between bursts to reuse its memory.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// The pieces of all packets, in order; None once handed over.
    pieces: Vec<Option<Received>>,
    trains: ArrayVec<(PortId, Train), TRAINS_MAX>,
}

impl Arrivals {
    pub fn new() -> Self {
        let most = usize::from(BURST) * FRAGMENTS_MAX;
        Self { pieces: Vec::with_capacity(most), trains: ArrayVec::new() }
    }
}

/// Take what the socket has received, at most [`BURST`] packets, and deliver it. Returns how many
/// were taken.
pub(super) fn burst(plane: &mut Plane, arrivals: &mut Arrivals, place: usize) -> usize {
    let Arrivals { pieces, trains } = arrivals;
    let (dispatch, sockets) = plane.ways(None);
    let WorkerSocket { uplink, queue, socket, counters, lent, .. } = &mut sockets.places[place];
    let Some(socket) = socket else { return 0 };
    let count = socket.receive(u32::from(BURST), |piece| pieces.push(Some(piece)));
    if count == 0 {
        return 0;
    }
    let bytes = pieces.iter().flatten().map(|piece| u64::from(piece.len)).sum();
    counters.add(SocketCounter::RxPackets, u64::from(count));
    counters.add(SocketCounter::RxBytes, bytes);
    let uplink = *uplink;
    let mut inlet = Inlet {
        place,
        origin: FrameOrigin::Queue(uplink, dispatch.table.owner(uplink, *queue)),
        umem: socket.umem(),
        counters,
        lent,
        dispatch,
        trains,
    };
    let mut next = 0;
    // A packet that stops a run usually stops those after it, so they are not tried as a run again.
    let mut singles_until = 0;
    while next < pieces.len() {
        if next >= singles_until {
            let (delivered, alike) = inlet.receive_run(&pieces[next..]);
            singles_until = next + alike;
            next += delivered;
            if delivered > 0 {
                continue;
            }
        }
        let more = |piece: &Option<Received>| piece.as_ref().is_some_and(|piece| piece.more);
        let others = pieces[next..].iter().take_while(|piece| more(piece)).count();
        let end = pieces.len().min(next + others + 1);
        inlet.receive(pieces, next..end);
        next = end;
    }
    inlet.end_all(pieces);
    for piece in pieces.drain(..).flatten() {
        socket.recycle(piece.frame);
    }
    count as usize
}

/// Whether a packet is no frame: shorter than an Ethernet header.
#[inline]
fn is_runt(start: &[u8]) -> bool {
    start.len() < ETHERNET_BYTES as usize
}

/// Where the packets of one burst of one socket can go.
struct Inlet<'w> {
    place: usize,
    origin: FrameOrigin<'w>,
    umem: &'w Umem,
    counters: &'w mut Counters<SocketCounter>,
    /// Frames of this socket that other workers have.
    lent: &'w mut Lent,
    dispatch: Dispatch<'w>,
    /// TCP segments to be delivered as one, by port.
    trains: &'w mut ArrayVec<(PortId, Train), TRAINS_MAX>,
}

impl<'w> Inlet<'w> {
    /// Deliver the first packets at once, if they are of one frame each and for one port that
    /// accepts them as they are. Returns how many were delivered, and how many are for that port.
    #[inline]
    fn receive_run(&mut self, pieces: &[Option<Received>]) -> (usize, usize) {
        let Some(Some(first)) = pieces.first() else { return (0, 0) };
        let first = self.umem.packet(first);
        if is_runt(first) {
            return (0, 0);
        }
        let Decision::Port(receiver) = self.decide(first) else { return (0, 0) };
        let route = receiver.route;
        let pair = choose_for_all(route, self.dispatch.here);
        let pair = pair.filter(|_| !route.coalesce.allow_merging());
        let Some(pair) = pair else { return (0, 0) };
        let whole_queue = matches!(self.origin, FrameOrigin::Queue(_, Some(_)));
        let mut frames = ArrayVec::<&[u8], RUN>::new();
        for piece in pieces.iter().map_while(Option::as_ref).take_while(|piece| !piece.more) {
            let frame = self.umem.packet(piece);
            let same = whole_queue || frame.get(..6) == first.get(..6);
            if !same || frames.is_full() || is_runt(frame) {
                break;
            }
            frames.push(frame);
        }
        let delivered =
            self.dispatch.ports.deliver_run(receiver.pair(pair), &frames, route.frame_max);
        (delivered, frames.len())
    }

    /// The decision for a frame that begins with these bytes.
    #[inline]
    fn decide(&self, start: &[u8]) -> Decision<'w> {
        decide(self.dispatch.table, self.origin, FrameView::whole(start).destination())
    }

    /// Find the packet's port; deliver it, or gather it for later in this burst. Segments already
    /// gathered of its flow go first, so that a flow stays in order.
    #[inline]
    fn receive(&mut self, pieces: &mut [Option<Received>], packet: Range<usize>) {
        let first = packet.start;
        let Some(received) = &pieces[first] else { return };
        let start = self.umem.packet(received);
        if is_runt(start) {
            return self.counters.add(SocketCounter::RxDroppedRunt, 1);
        }
        let Decision::Port(receiver) = self.decide(start) else {
            return self.counters.add(SocketCounter::RxDroppedNoPort, 1);
        };
        let Receiver { port, route } = receiver;
        if route.coalesce.allow_merging() {
            let whole = Some(start).filter(|_| packet.len() == 1);
            let takes = |kind| route.coalesce.allow_kind(kind);
            if let Some(segment) = whole.and_then(|frame| TcpSegment::parse(frame, takes)) {
                return self.gather(pieces, port, first, &segment);
            }
            self.end_overtaken(pieces, port, first);
        }
        self.deliver(pieces, packet, receiver);
    }

    /// Deliver a packet, or hand it over: as it is if it is in one piece, else as a copy.
    #[inline]
    fn deliver(
        &mut self,
        pieces: &mut [Option<Received>],
        packet: Range<usize>,
        receiver: Receiver<'_>,
    ) {
        let (umem, first) = (self.umem, packet.start);
        let (worker, to) = {
            let packet: ArrayVec<&[u8], FRAGMENTS_MAX> =
                pieces[packet].iter().flatten().map(|piece| umem.packet(piece)).collect();
            let frame = FrameView::of_pieces(packet[0], &packet[1..]);
            let hash = || flow_hash(frame.start());
            match choose(receiver.route, self.dispatch.here, &frame, hash) {
                Choice::There(worker, pair) if packet.len() == 1 => (worker, receiver.pair(pair)),
                choice => {
                    self.dispatch.carry_out(choice, receiver, &frame);
                    return;
                }
            }
        };
        self.lend(&mut pieces[first], worker, to);
    }

    /// Hand a frame over to another worker as it is, for a queue pair of a port.
    fn lend(&mut self, piece: &mut Option<Received>, worker: WorkerId, to: QueuePair) {
        if !self.lent.allow(to.port) {
            return self.dispatch.ports.count(to.port, PortCounter::ToGuestDroppedHandover, 1);
        }
        let Some(received) = piece.take() else { return };
        let handover =
            Handover::Frame { home: self.dispatch.here, place: self.place, received, to };
        match self.dispatch.inboxes[worker.index()].hand_over(handover) {
            Ok(()) => self.lent.lend(to.port),
            Err(Handover::Frame { received, .. }) => {
                *piece = Some(received);
                self.dispatch.ports.count(to.port, PortCounter::ToGuestDroppedHandover, 1);
            }
            Err(Handover::Packet { .. }) => unreachable!("a frame went in"),
        }
    }
}

// ---- coalescing ---------------------------------------------------------------------------------

impl Inlet<'_> {
    /// Append a segment to the train of its flow.
    fn gather(
        &mut self,
        pieces: &mut [Option<Received>],
        port: PortId,
        place: usize,
        segment: &TcpSegment,
    ) {
        let Some(received) = &pieces[place] else { return };
        let frame = self.umem.packet(received);
        let token = u16::try_from(place).expect("a burst has fewer pieces");
        if let Some(at) = self.train_of(port, frame) {
            match self.trains[at].1.push(token, frame, segment) {
                Pushed::Taken => return,
                Pushed::TakenAndFull => return self.end_at(pieces, at),
                Pushed::Refused => self.end_at(pieces, at),
            }
        }
        if self.trains.is_full() {
            self.end_at(pieces, 0);
        }
        let Some(received) = &pieces[place] else { return };
        let train = Train::start(token, self.umem.packet(received), segment);
        self.trains.push((port, train));
    }

    /// The train of a segment's flow, by its place in `trains`.
    #[inline]
    fn train_of(&self, port: PortId, frame: &[u8]) -> Option<usize> {
        self.trains.iter().position(|(other, train)| *other == port && train.same_flow(frame))
    }

    /// Deliver the trains that the frame at `place`, which is in none, would overtake.
    #[inline]
    fn end_overtaken(&mut self, pieces: &mut [Option<Received>], port: PortId, place: usize) {
        while let Some(received) = &pieces[place] {
            let frame = self.umem.packet(received);
            let overtaken =
                |(other, train): &(PortId, Train)| *other == port && train.may_be_of_flow(frame);
            let Some(at) = self.trains.iter().position(overtaken) else { return };
            self.end_at(pieces, at);
        }
    }

    fn end_all(&mut self, pieces: &mut [Option<Received>]) {
        while !self.trains.is_empty() {
            self.end_at(pieces, 0);
        }
    }

    /// Deliver the train of one flow, as one packet.
    fn end_at(&mut self, pieces: &mut [Option<Received>], at: usize) {
        let (port, mut train) = self.trains.remove(at);
        let Some(receiver) = self.dispatch.table.receiver(port) else {
            let count = train.pieces().len() as u64;
            return self.counters.add(SocketCounter::RxDroppedNoPort, count);
        };
        if train.is_single() {
            let place = usize::from(train.pieces()[0].token);
            return self.deliver(pieces, place..place + 1, receiver);
        }
        let umem = self.umem;
        let payload = train.pieces().iter().filter_map(|piece| {
            let packet = umem.packet(pieces[usize::from(piece.token)].as_ref()?);
            packet.get(usize::from(piece.start)..)?.get(..usize::from(piece.len))
        });
        let payload: ArrayVec<&[u8], TOKENS_MAX> = payload.collect();
        let beyond = payload.len() as u64 - 1;
        self.dispatch.ports.count(port, PortCounter::ToGuestCoalesced, beyond);
        let (headers, offload) = train.headers();
        let frame = FrameView::of_pieces(headers, &payload).with_offload(offload);
        self.dispatch.forward_to(receiver, &frame);
    }
}
