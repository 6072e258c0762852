//! A burst from a guest: its transmit ring → header check → destination → copied once.

use std::sync::Arc;

use arrayvec::ArrayVec;

use crate::guest_memory::{GuestMemory, GuestSlice};
use crate::metrics::{PortCounter, SocketCounter};
use crate::packet::{FRAME_MAX, flow_hash};
use crate::virtqueue::{
    BATCH_SEGMENTS, Chain, DeviceRing, Direction, Fault, Layout, Ring, RingKind, Segments,
};

use super::forwarding::{Attachment, Forwarding, Route};
use super::frame::{FrameView, Start};
use super::handover::{Handover, Inbox, PacketPool, Target};
use super::ports::{Near, Ports};
use super::worker::{Worker, WorkerSocket};
use super::{BURST, PortId, WorkerId, pair_of};

/// Copies of flooded frames and segments of large ones after which a ring's burst ends, whatever is
/// left for its next turn: one guest must not hold up the others' turns, nor send more at once than
/// the uplink has frames for.
const COPIES_MAX: usize = 2 * BURST as usize;

/// Take what the guest has made available, at most [`BURST`] packets, and forward it. Returns how
/// many were taken.
pub(super) fn burst(worker: &mut Worker, port: PortId, index: u16) -> usize {
    let Some(ring) = worker.ports.ring(port, index) else { return 0 };
    if ring.broken.is_some() {
        return 0;
    }
    let (taken, fault) = match ring.queue.parts().1.has_available() {
        Ok(false) => return 0,
        Err(error) => (0, Some(error)),
        Ok(true) => {
            let Some(mut ring) = worker.ports.lift(port, index) else { return 0 };
            let served = serve(worker, port, index, &mut ring);
            worker.ports.lower(port, index, ring);
            served
        }
    };
    if let Some(fault) = fault {
        worker.ports.break_ring(port, index, fault);
    }
    usize::from(taken)
}

/// Take a burst of packets, forward or discard them, and show the guest that they are done.
fn serve(worker: &mut Worker, port: PortId, index: u16, ring: &mut Ring) -> (u16, Option<Fault>) {
    let from = (port, pair_of(index), ring.kind);
    let outlet = if ring.enabled { Outlet::new(worker, from) } else { None };
    let mut taken = 0;
    let result = match outlet {
        Some(mut outlet) => {
            let result = each_packet(ring, &mut taken, |packet| {
                outlet.forward(packet);
                outlet.copies >= COPIES_MAX
            });
            outlet.finish();
            result
        }
        None => {
            let result = each_packet(ring, &mut taken, |_| false);
            let discarded = PortCounter::FromGuestDroppedDisabled;
            worker.ports.count(port, discarded, u64::from(taken));
            result
        }
    };
    let mut notified = Ok(false);
    if ring.queue.ring_mut().publish() {
        notified = ring.notify();
        worker.ports.count_notification(port, notified == Ok(true));
    }
    let gone = ring.queue.memory_gone().then_some(Fault::MemoryGone);
    (taken, result.err().or(gone).or(notified.err()))
}

/// Take up to [`BURST`] packets, let `forward` see each, and complete them. It answers whether
/// that is enough for this turn.
#[inline]
fn each_packet(
    ring: &mut Ring,
    taken: &mut u16,
    forward: impl FnMut(&mut [GuestSlice<'_>]) -> bool,
) -> Result<(), Fault> {
    match ring.queue.parts() {
        (memory, DeviceRing::Split(ring)) => each_packet_of(memory, ring, taken, forward),
        (memory, DeviceRing::Packed(ring)) => each_packet_of(memory, ring, taken, forward),
    }
}

#[inline]
fn each_packet_of(
    memory: &GuestMemory,
    ring: &mut impl Layout,
    taken: &mut u16,
    mut forward: impl FnMut(&mut [GuestSlice<'_>]) -> bool,
) -> Result<(), Fault> {
    let mut segments = Segments::new();
    let mut batch = Batch::new();
    let mut enough = false;
    while *taken < BURST && !enough {
        segments.clear();
        let fault = take_batch(memory, ring, &mut segments, &mut batch).err();
        if batch.is_empty() {
            return fault.map_or(Ok(()), Err);
        }
        let (mut begin, mut done) = (0, 0);
        while done < batch.len() && !enough {
            let end = batch[done].1;
            enough = forward(&mut segments[begin..end]);
            begin = end;
            done += 1;
            *taken += 1;
        }
        for (chain, _) in batch.drain(..done) {
            ring.complete(chain, 0);
        }
        while let Some((chain, _)) = batch.pop() {
            ring.untake(chain);
        }
        if let Some(fault) = fault.filter(|_| !enough) {
            return Err(fault);
        }
    }
    Ok(())
}

/// Chains that are taken before the first of them is looked at, each with the end of its pieces:
/// another core has just written their first bytes, which are on their way meanwhile.
type Batch = ArrayVec<(Chain, usize), 16>;

#[inline]
fn take_batch<'m>(
    memory: &'m GuestMemory,
    ring: &mut impl Layout,
    segments: &mut Segments<'m>,
    batch: &mut Batch,
) -> Result<(), Fault> {
    // A long chain ends the batch, so that there is room for the longest.
    while !batch.is_full() && segments.len() <= BATCH_SEGMENTS && ring.has_available()? {
        let begin = segments.len();
        let chain = match ring.take_one(memory, Direction::FromGuest) {
            Some((chain, piece)) => {
                segments.push(piece);
                chain
            }
            None => ring.take(memory, Direction::FromGuest, segments)?,
        };
        if let Some(first) = segments.get(begin) {
            first.prefetch();
        }
        batch.push((chain, segments.len()));
    }
    Ok(())
}

/// A control-plane frame in the name of a port (its announcement after a migration): to the wire
/// and to all others.
pub(super) fn announce(worker: &mut Worker, port: PortId, bytes: &[u8]) {
    let Some(mut outlet) = Outlet::new(worker, (port, 0, RingKind::default())) else { return };
    let frame = FrameView::whole(bytes);
    match outlet.route.attachment {
        Attachment::Wire { .. } => {
            outlet.send_to_uplink(&frame);
        }
        Attachment::Switch { .. } => outlet.flood(&frame),
    }
}

/// Where the packets of one burst of one ring can go.
struct Outlet<'w> {
    port: PortId,
    pair: u16,
    kind: RingKind,
    table: &'w Forwarding,
    route: &'w Route,
    /// Whether a queue pair is chosen by flow anywhere: the headers are read for it then.
    by_flow: bool,
    worker: WorkerId,
    ports: &'w mut Ports,
    /// The uplink's socket for this queue pair; the control plane places rings where there is one.
    socket: Option<&'w mut WorkerSocket>,
    inboxes: &'w [Arc<Inbox>],
    pool: &'w PacketPool,
    /// The destination of the packet before, if its ring is to be had for the next one too.
    near: Option<([u8; 6], Near)>,
    forwarded: u64,
    bytes: u64,
    /// Frames made of others: copies of those flooded, segments of those cut.
    copies: usize,
}

impl<'w> Outlet<'w> {
    /// None for a port that has no route (any more).
    fn new(worker: &'w mut Worker, (port, pair, kind): (PortId, u16, RingKind)) -> Option<Self> {
        let table = &*worker.table;
        let route = table.route(port)?;
        let place = socket_for(&worker.sockets, route, pair);
        Some(Self {
            port,
            pair,
            kind,
            table,
            route,
            by_flow: table.by_flow(),
            worker: worker.id,
            ports: &mut worker.ports,
            socket: place.map(|place| &mut worker.sockets[place]),
            inboxes: &worker.inboxes,
            pool: &worker.pool,
            near: None,
            forwarded: 0,
            bytes: 0,
            copies: 0,
        })
    }

    fn finish(mut self) {
        self.put_near_back();
        self.ports.count(self.port, PortCounter::FromGuestPackets, self.forwarded);
        self.ports.count(self.port, PortCounter::FromGuestBytes, self.bytes);
    }

    #[inline]
    fn forward(&mut self, pieces: &mut [GuestSlice<'_>]) {
        let Ok(start) = Start::read(pieces, self.kind.header_len) else {
            return self.drop(PortCounter::FromGuestDroppedRunt);
        };
        if start.header.is_plain() && !self.by_flow {
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
        if frame.longest() > self.route.frame_max || frame.len() as usize > FRAME_MAX {
            return self.drop(PortCounter::FromGuestDroppedOversize);
        }
        if self.by_flow {
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

    /// By destination: a port of this switch, all of them, or the wire.
    #[inline]
    fn switch(&mut self, frame: &FrameView<'_>) {
        let destination = frame.destination();
        if let Some((mac, near)) = &mut self.near
            && *mac == destination
        {
            if !near.put(frame) {
                let port = near.port;
                self.put_near_back();
                self.send_to_port(port, frame);
            }
            return self.account(true, frame);
        }
        self.put_near_back();
        if destination[0] & 1 != 0 {
            self.flood(frame);
            return self.account(true, frame);
        }
        match self.table.by_mac(self.route.uplink, destination) {
            Some(port) if port == self.port => self.drop(PortCounter::FromGuestDroppedNoRoute),
            Some(port) => {
                if !self.send_near(port, frame) {
                    self.put_near_back();
                    self.send_to_port(port, frame);
                }
                self.account(true, frame);
            }
            None => {
                let sent = self.send_to_uplink(frame);
                self.account(sent, frame);
            }
        }
    }

    /// Have the port's ring near for what comes next, and deliver there.
    fn send_near(&mut self, port: PortId, frame: &FrameView<'_>) -> bool {
        let Some(mut near) = self.ports.near(self.table, self.worker, port) else { return false };
        let put = near.put(frame);
        self.near = Some((frame.destination(), near));
        put
    }

    fn put_near_back(&mut self) {
        if let Some((_, near)) = self.near.take() {
            self.ports.put_back(near);
        }
    }

    /// To the wire and to every other port of the switch.
    fn flood(&mut self, frame: &FrameView<'_>) {
        self.send_to_uplink(frame);
        let ports = self.table.switched(self.route.uplink);
        for &port in ports {
            if port != self.port {
                self.send_to_port(port, frame);
            }
        }
        self.copies += ports.len();
    }

    /// Complete and transmit; false if any of the frames that it makes was lost.
    #[inline]
    fn send_to_uplink(&mut self, frame: &FrameView<'_>) -> bool {
        let Some(socket) = self.socket.as_deref_mut() else { return false };
        if frame.offload().is_plain() {
            return transmit(socket, frame);
        }
        let (mut sent, mut frames) = (true, 0);
        self.ports.completer.complete(frame, |frame| {
            sent &= transmit(socket, frame);
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
            hand_over(self.pool, &self.inboxes[worker.index()], Target::Pair { port, pair }, frame)
        });
    }

    #[inline]
    fn account(&mut self, forwarded: bool, frame: &FrameView<'_>) {
        if forwarded {
            self.forwarded += 1;
            self.bytes += u64::from(frame.len());
        } else if self.socket.is_some() {
            self.drop(PortCounter::FromGuestDroppedUplinkFull);
        } else {
            self.drop(PortCounter::FromGuestDroppedNoRoute);
        }
    }

    #[cold]
    fn drop(&mut self, reason: PortCounter) {
        self.ports.count(self.port, reason, 1);
    }
}

/// Copy into frames of the uplink; when all are in flight, wake the kernel once and try again.
#[inline]
fn transmit(to: &mut WorkerSocket, frame: &FrameView<'_>) -> bool {
    let WorkerSocket { socket, counters, .. } = to;
    let mut reader = frame.reader();
    let mut sent = socket.send(frame.len(), |room| reader.fill(room));
    if !sent {
        socket.flush();
        sent = socket.send(frame.len(), |room| reader.fill(room));
    }
    if sent {
        counters.add(SocketCounter::TxPackets, 1);
        counters.add(SocketCounter::TxBytes, u64::from(frame.len()));
    } else {
        counters.add(SocketCounter::TxDroppedFull, 1);
    }
    sent
}

/// This worker's socket that a queue pair of the port transmits on.
fn socket_for(sockets: &[WorkerSocket], route: &Route, pair: u16) -> Option<usize> {
    let of_uplink = |socket: &WorkerSocket| socket.uplink == route.uplink;
    match &route.attachment {
        Attachment::Wire { queues } => {
            let queue = queues[usize::from(pair) % queues.len()];
            sockets.iter().position(|socket| of_uplink(socket) && socket.socket.queue() == queue)
        }
        Attachment::Switch { .. } => {
            let count = sockets.iter().filter(|socket| of_uplink(socket)).count();
            // This worker has every so many pairs; the next one of them takes the next socket.
            let turn = usize::from(pair).checked_div(route.workers.len())?;
            let nth = turn.checked_rem(count)?;
            let mut places = (0..sockets.len()).filter(|&place| of_uplink(&sockets[place]));
            places.nth(nth)
        }
    }
}

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
    if frame.longest() > route.frame_max {
        return ports.count(port, PortCounter::ToGuestDroppedOversize, 1);
    }
    let Some(pair) = route.pair(here, || flow_hash(frame.start())) else {
        return ports.count(port, PortCounter::ToGuestDroppedNotReady, 1);
    };
    if !deliver(ports, route.worker(pair), pair) {
        ports.count(port, PortCounter::ToGuestDroppedHandover, 1);
    }
}

/// Copy a frame to another worker's inbox; false if there is no buffer or no room.
pub(super) fn hand_over(
    pool: &PacketPool,
    inbox: &Inbox,
    target: Target,
    frame: &FrameView<'_>,
) -> bool {
    let Some(mut packet) = pool.take() else { return false };
    frame.copy_to(packet.room(frame.len() as usize));
    packet.offload = *frame.offload();
    match inbox.hand_over(Handover::Packet { packet, target }) {
        Ok(()) => true,
        Err(Handover::Packet { packet, .. }) => {
            pool.put(packet);
            false
        }
        Err(Handover::Frame { .. }) => unreachable!("a packet went in"),
    }
}
