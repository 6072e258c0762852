//! A burst from an uplink: its socket → port lookup → TCP segments coalesced → copied once into the
//! guest's buffers.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::device::offloads::Offloads;
use crate::metrics::{PortCounter, SocketCounter};
use crate::packet::{Pushed, TOKENS_MAX, TcpSegment, Train};
use crate::xdp::{FRAGMENTS_MAX, Received, Umem};

use super::forwarding::Forwarding;
use super::frame::FrameView;
use super::from_guest::{hand_over, to_port};
use super::handover::{Handover, Inbox, PacketPool, Target};
use super::ports::Ports;
use super::worker::{Worker, WorkerSocket};
use super::{BURST, ETHERNET_BYTES, PortId, UplinkId, WorkerId};

/// Flows whose segments are gathered at once; one more ends the one that began first.
const TRAINS_MAX: usize = 8;

/// What a receive burst works on, kept between bursts for its memory.
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
pub(super) fn burst(worker: &mut Worker, place: usize) -> usize {
    let Worker { arrivals, sockets, .. } = worker;
    let Arrivals { pieces, trains } = arrivals;
    let from = &mut sockets[place];
    let count = from.socket.receive(u32::from(BURST), |piece| pieces.push(Some(piece)));
    if count == 0 {
        return 0;
    }
    let bytes = pieces.iter().flatten().map(|piece| u64::from(piece.len)).sum();
    from.counters.add(SocketCounter::RxPackets, u64::from(count));
    from.counters.add(SocketCounter::RxBytes, bytes);
    let uplink = from.uplink;
    let mut inlet = Inlet {
        here: worker.id,
        place,
        uplink,
        table: &worker.table,
        whole_queue: worker.table.by_queue(uplink, from.socket.queue()),
        umem: &worker.umems[uplink.index()],
        ports: &mut worker.ports,
        from,
        inboxes: &worker.inboxes,
        pool: &worker.pool,
        trains,
    };
    let mut next = 0;
    while next < pieces.len() {
        let more = |piece: &Option<Received>| piece.as_ref().is_some_and(|piece| piece.more);
        let others = pieces[next..].iter().take_while(|piece| more(piece)).count();
        let end = pieces.len().min(next + others + 1);
        inlet.receive(pieces, next..end);
        next = end;
    }
    inlet.end_all(pieces);
    for piece in pieces.drain(..).flatten() {
        inlet.from.socket.recycle(piece.frame);
    }
    count as usize
}

/// Where the packets of one burst of one socket can go.
struct Inlet<'w> {
    here: WorkerId,
    place: usize,
    uplink: UplinkId,
    table: &'w Forwarding,
    /// The port that has all packets of this queue.
    whole_queue: Option<PortId>,
    umem: &'w Umem,
    ports: &'w mut Ports,
    from: &'w mut WorkerSocket,
    inboxes: &'w [Arc<Inbox>],
    pool: &'w PacketPool,
    /// TCP segments to be delivered as one, by port.
    trains: &'w mut ArrayVec<(PortId, Train), TRAINS_MAX>,
}

impl Inlet<'_> {
    /// Find the packet's port; deliver it, or gather it for later in this burst. What is gathered
    /// of its flow goes first, so that a flow stays in order.
    #[inline]
    fn receive(&mut self, pieces: &mut [Option<Received>], packet: std::ops::Range<usize>) {
        let first = packet.start;
        let Some(received) = &pieces[first] else { return };
        let start = self.umem.packet(received);
        let Some(port) = self.whole_queue.or_else(|| self.by_mac(start)) else {
            return self.from.counters.add(SocketCounter::RxDroppedNoPort, 1);
        };
        if packet.len() == 1 && self.coalesces(port) {
            let segment = TcpSegment::parse(start);
            if let Some(segment) = segment.filter(|segment| self.takes(port, segment)) {
                return self.gather(pieces, (port, first), &segment);
            }
            if let Some(at) = self.train_of(port, start) {
                self.end_at(pieces, at);
            }
        }
        self.deliver(pieces, packet, port);
    }

    #[inline]
    fn by_mac(&self, start: &[u8]) -> Option<PortId> {
        if start.len() < ETHERNET_BYTES as usize {
            return None;
        }
        self.table.by_mac(self.uplink, FrameView::whole(start).destination())
    }

    /// Deliver a packet, or hand it over: as it is if it is in one piece, else as a copy.
    #[inline]
    fn deliver(
        &mut self,
        pieces: &mut [Option<Received>],
        packet: std::ops::Range<usize>,
        port: PortId,
    ) {
        let Self { here, place, uplink, table, umem, inboxes, pool, .. } = *self;
        let slot = packet.start;
        let mut chosen = None;
        {
            let packet: ArrayVec<&[u8], FRAGMENTS_MAX> =
                pieces[packet].iter().flatten().map(|piece| umem.packet(piece)).collect();
            let frame = FrameView::of_pieces(packet[0], &packet[1..]);
            to_port(self.ports, table, port, (here, &frame), |ports, owner, pair| {
                if owner == here {
                    ports.deliver(port, pair, &frame);
                } else if packet.len() > 1 {
                    let target = Target::Pair { port, pair };
                    return hand_over(pool, &inboxes[owner.index()], target, &frame);
                } else {
                    chosen = Some((owner, pair));
                }
                true
            });
        }
        let Some((owner, pair)) = chosen else { return };
        let Some(received) = pieces[slot].take() else { return };
        let handover = Handover::Frame { home: here, socket: place, uplink, received, port, pair };
        if let Err(handover) = inboxes[owner.index()].hand_over(handover) {
            let Handover::Frame { received, .. } = handover else {
                unreachable!("a frame went in")
            };
            pieces[slot] = Some(received);
            self.ports.count(port, PortCounter::ToGuestDroppedHandover, 1);
        }
    }
}

// ---- coalescing ---------------------------------------------------------------------------------

impl Inlet<'_> {
    #[inline]
    fn coalesces(&self, port: PortId) -> bool {
        self.table.route(port).is_some_and(|route| route.coalesce != Offloads::NONE)
    }

    fn takes(&self, port: PortId, segment: &TcpSegment) -> bool {
        let route = self.table.route(port);
        route.is_some_and(|route| route.coalesce.allow_kind(segment.kind()))
    }

    /// Append a segment to what is gathered of its flow.
    fn gather(
        &mut self,
        pieces: &mut [Option<Received>],
        (port, place): (PortId, usize),
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

    /// What is gathered of a frame's flow.
    #[inline]
    fn train_of(&self, port: PortId, frame: &[u8]) -> Option<usize> {
        self.trains.iter().position(|(other, train)| *other == port && train.same_flow(frame))
    }

    fn end_all(&mut self, pieces: &mut [Option<Received>]) {
        while !self.trains.is_empty() {
            self.end_at(pieces, 0);
        }
    }

    /// Deliver what is gathered of one flow, as one packet.
    fn end_at(&mut self, pieces: &mut [Option<Received>], at: usize) {
        let (port, mut train) = self.trains.remove(at);
        if train.is_single() {
            let place = usize::from(train.pieces()[0].token);
            return self.deliver(pieces, place..place + 1, port);
        }
        let Self { here, table, umem, inboxes, pool, .. } = *self;
        let payload = train.pieces().iter().filter_map(|piece| {
            let packet = umem.packet(pieces[usize::from(piece.token)].as_ref()?);
            packet.get(usize::from(piece.start)..)?.get(..usize::from(piece.len))
        });
        let payload: ArrayVec<&[u8], TOKENS_MAX> = payload.collect();
        self.ports.count(port, PortCounter::ToGuestCoalesced, payload.len() as u64 - 1);
        let (headers, offload) = train.headers();
        let frame = FrameView::of_pieces(headers, &payload).with_offload(offload);
        to_port(self.ports, table, port, (here, &frame), |ports, owner, pair| {
            if owner == here {
                ports.deliver(port, pair, &frame);
                return true;
            }
            hand_over(pool, &inboxes[owner.index()], Target::Pair { port, pair }, &frame)
        });
    }
}

/// A multicast frame from the wire, brought by the control plane: to all switched ports.
pub(super) fn flood(worker: &mut Worker, uplink: UplinkId, bytes: &[u8]) {
    let table = Arc::clone(&worker.table);
    let frame = FrameView::whole(bytes);
    let (here, inboxes, pool) = (worker.id, &worker.inboxes, &worker.pool);
    for &port in table.switched(uplink) {
        to_port(&mut worker.ports, &table, port, (here, &frame), |ports, owner, pair| {
            if owner == here {
                ports.deliver(port, pair, &frame);
                return true;
            }
            hand_over(pool, &inboxes[owner.index()], Target::Pair { port, pair }, &frame)
        });
    }
}
