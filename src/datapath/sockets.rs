//! The sockets of one worker, each in a place of its own.
//!
//! The control plane takes an uplink's sockets while its NIC is down or gone. It returns them, or
//! new ones, when the NIC is back.
//!
//! The places and their counters stay, because the place names the home of a frame that another
//! worker was lent. So a socket leaves when all of its frames are home; until then it neither
//! receives nor sends.

use std::sync::Arc;

use crossbeam::channel::Sender;

use crate::metrics::{Counters, Published, SocketCounter};
use crate::xdp::{FRAME_BYTES, Frame, KernelStatistics, Socket, SocketProgress};

use super::forwarding::Forwarding;
use super::frame::{CompleteFrame, FrameView, GuestPacket};
use super::ids::{PortId, UplinkId, WorkerId};
use super::limits::BURST;
use super::shares::{InFlight, Lent};

/// Other workers may hold a socket's frames up to this part: half of those that it receives into.
const LENT_PART: u64 = 4;

/// A socket in the hands of a worker, or the place where it was.
#[derive(Debug)]
pub(super) struct WorkerSocket {
    pub uplink: UplinkId,
    pub queue: u32,
    /// None while the control plane has it, and while it leaves.
    pub socket: Option<Socket>,
    pub counters: Counters<SocketCounter>,
    /// It waits for the frames that are lent out.
    leaving: Option<Socket>,
    /// The own counts of earlier sockets in this place.
    past: OwnCounts,
    /// It reports an error for ever: the worker no longer waits for it.
    pub failed: bool,
    /// Whose frames are in flight.
    in_flight: InFlight,
    /// Whose received frames other workers have.
    pub lent: Lent,
}

/// The counts that a socket keeps itself.
#[derive(Clone, Copy, Debug, Default)]
struct OwnCounts {
    kernel: KernelStatistics,
    dropped_fragments: u64,
}

impl OwnCounts {
    fn and_of(self, socket: &Socket) -> Self {
        Self {
            kernel: self.kernel + socket.kernel_statistics().unwrap_or_default(),
            dropped_fragments: self.dropped_fragments + socket.dropped_fragments(),
        }
    }
}

/// A worker's report of one of its sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketReport {
    /// Its uplink.
    pub uplink: UplinkId,
    /// Its queue.
    pub queue: u32,
    /// Whether it reports an error for ever, as when its NIC is gone.
    pub failed: bool,
    /// How far it is.
    pub progress: SocketProgress,
}

impl WorkerSocket {
    fn new(uplink: UplinkId, socket: Socket) -> Self {
        let mut place = Self::empty(uplink, socket.queue());
        place.put(socket);
        place
    }

    /// Serve a socket from now on.
    fn put(&mut self, socket: Socket) {
        self.lent = Lent::new(to_u32(socket.frames() / LENT_PART));
        self.socket = Some(socket);
        self.begin_counting();
    }

    /// Start to count; frames in flight now belong to no port.
    pub fn begin_counting(&mut self) {
        let Some(socket) = &self.socket else { return };
        let sent = to_u32(socket.census().transmitting);
        self.in_flight = InFlight::new(to_u32(socket.transmit_frames()), sent, socket.completed());
    }

    /// The place of a socket that is to come.
    fn empty(uplink: UplinkId, queue: u32) -> Self {
        Self {
            uplink,
            queue,
            socket: None,
            counters: Counters::new(),
            leaving: None,
            past: OwnCounts::default(),
            failed: false,
            in_flight: InFlight::new(0, 0, 0),
            lent: Lent::new(0),
        }
    }

    /// How many frames a port may send now.
    #[inline]
    fn allowance(&mut self, port: PortId) -> u32 {
        let Self { socket: Some(socket), in_flight, .. } = self else { return 0 };
        in_flight.settle(socket.completed());
        let allowed = in_flight.allowance(port, to_u32(socket.census().free));
        if allowed >= u32::from(BURST) {
            return allowed;
        }
        socket.reclaim();
        in_flight.settle(socket.completed());
        in_flight.allowance(port, to_u32(socket.census().free))
    }

    /// Take a frame back that was lent out for this port.
    pub fn take_back(&mut self, port: PortId, frame: Frame) {
        self.lent.come_home(port);
        let home = self.socket.as_mut().or(self.leaving.as_mut());
        home.expect("no socket leaves before its frames are home").recycle(frame);
    }

    /// Read the kernel's counters. This costs a system call, so it is done only on request.
    pub fn read_kernel_statistics(&mut self) {
        let Some(socket) = &self.socket else { return };
        let OwnCounts { kernel, .. } = self.past.and_of(socket);
        self.count_kernel(kernel);
    }

    fn count_kernel(&mut self, kernel: KernelStatistics) {
        self.counters.set(SocketCounter::KernelRxDropped, kernel.rx_dropped);
        self.counters.set(SocketCounter::KernelRxRingFull, kernel.rx_ring_full);
        self.counters.set(SocketCounter::KernelFillRingEmpty, kernel.fill_ring_empty);
        self.counters.set(SocketCounter::KernelInvalid, kernel.invalid);
    }

    /// Let readers see the counters, and where the frames are.
    pub fn publish(&mut self) {
        let present = self.socket.as_ref().or(self.leaving.as_ref());
        let census = present.map(Socket::census).unwrap_or_default();
        let dropped = present.map_or(0, Socket::dropped_fragments) + self.past.dropped_fragments;
        let counters = &mut self.counters;
        counters.set(SocketCounter::RxDroppedFragments, dropped);
        counters.set(SocketCounter::FramesTotal, census.total());
        counters.set(SocketCounter::FramesFree, census.free);
        counters.set(SocketCounter::FramesReceiving, census.receiving);
        counters.set(SocketCounter::FramesTransmitting, census.transmitting);
        counters.set(SocketCounter::FramesAway, census.away);
        counters.publish();
    }

    fn report(&mut self) -> Option<SocketReport> {
        let progress = self.socket.as_mut()?.examine();
        let Self { uplink, queue, failed, .. } = *self;
        Some(SocketReport { uplink, queue, failed, progress })
    }

    fn leave(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.leaving = Some(socket);
        }
    }

    fn is_home(&self) -> bool {
        self.leaving.as_ref().is_none_or(|socket| socket.census().away == 0)
    }

    /// The socket that leaves, all of its frames shown to the kernel; its counts stay.
    fn departed(&mut self) -> Option<Socket> {
        let mut socket = self.leaving.take()?;
        socket.flush();
        self.past = self.past.and_of(&socket);
        self.count_kernel(self.past.kernel);
        self.failed = false;
        self.publish();
        Some(socket)
    }
}

/// Frames of one socket: a small number.
#[inline]
fn to_u32(frames: u64) -> u32 {
    u32::try_from(frames).unwrap_or(u32::MAX)
}

/// A port's way to the wire for one burst: a socket, and how many of its frames the port may take.
#[derive(Debug)]
pub(super) struct Sending<'w> {
    place: &'w mut WorkerSocket,
    port: PortId,
    left: u32,
    taken: u32,
}

impl<'w> Sending<'w> {
    #[inline]
    pub fn new(place: &'w mut WorkerSocket, port: PortId) -> Self {
        let left = place.allowance(port);
        Self { place, port, left, taken: 0 }
    }

    /// Whether the uplink is down or gone.
    pub fn is_down(&self) -> bool {
        self.place.socket.is_none()
    }

    /// Copy packets of a frame each, up to the first that is longer or for which there is no frame.
    /// Returns how many.
    #[inline]
    pub fn send_run(&mut self, packets: &[GuestPacket<'_>]) -> usize {
        let WorkerSocket { socket: Some(socket), counters, .. } = &mut *self.place else {
            return 0;
        };
        // A longer one takes several frames of the uplink, each filled with what follows.
        let send = |packet: &&GuestPacket<'_>| {
            packet.frame_len() <= FRAME_BYTES
                && socket.send(packet.frame_len(), |room| packet.copy_to(room))
        };
        let sent = packets.iter().take(self.left as usize).take_while(send).count();
        let bytes = packets[..sent].iter().map(|packet| u64::from(packet.frame_len())).sum();
        counters.add(SocketCounter::TxPackets, sent as u64);
        counters.add(SocketCounter::TxBytes, bytes);
        // A run's.
        #[allow(clippy::cast_possible_truncation)]
        self.count(sent as u32);
        sent
    }

    /// Copy a complete frame into as many of the socket's as it takes. When there are too few, the
    /// kernel is called once in a turn for those that it has sent.
    #[inline]
    pub fn send(&mut self, frame: &FrameView<'_>) -> bool {
        let sent = self.try_send(frame) || self.press() && self.try_send(frame);
        let WorkerSocket { socket, counters, .. } = &mut *self.place;
        if sent {
            counters.add(SocketCounter::TxPackets, 1);
            counters.add(SocketCounter::TxBytes, u64::from(frame.len()));
        } else if socket.is_some() {
            counters.add(SocketCounter::TxDroppedFull, 1);
        } else {
            counters.add(SocketCounter::TxDroppedDown, 1);
        }
        sent
    }

    #[inline]
    fn try_send(&mut self, frame: &FrameView<'_>) -> bool {
        let Some(socket) = &mut self.place.socket else { return false };
        let frames = frame.len().div_ceil(FRAME_BYTES);
        let mut reader = frame.reader();
        let sent = frames <= self.left && socket.send(frame.len(), |room| reader.fill(room));
        if sent {
            self.count(frames);
        }
        sent
    }

    /// Have the kernel called for frames; whether there may be some now.
    #[cold]
    fn press(&mut self) -> bool {
        if !self.place.socket.as_mut().is_some_and(Socket::press) {
            return false;
        }
        self.settle();
        self.left = self.place.allowance(self.port);
        true
    }

    #[inline]
    fn count(&mut self, frames: u32) {
        self.taken += frames;
        self.left -= frames;
    }

    /// Charge the port for the frames that it took, at the end of the burst.
    #[inline]
    pub fn settle(&mut self) {
        self.place.in_flight.sent(self.port, std::mem::take(&mut self.taken));
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Sockets {
    pub places: Vec<WorkerSocket>,
    /// Who waits for the sockets of an uplink.
    leaving: Vec<(UplinkId, Sender<Vec<Socket>>)>,
}

impl Sockets {
    pub fn new(sockets: Vec<(UplinkId, Socket)>) -> Self {
        let place = |(uplink, socket)| WorkerSocket::new(uplink, socket);
        Self { places: sockets.into_iter().map(place).collect(), leaving: Vec::new() }
    }

    /// Have a place for the socket of an uplink's queue, which is to come.
    pub fn expect(&mut self, uplink: UplinkId, queue: u32) {
        self.places.push(WorkerSocket::empty(uplink, queue));
    }

    /// Send the uplink's sockets to `done`, when all of their frames are home.
    pub fn take(&mut self, uplink: UplinkId, done: Sender<Vec<Socket>>) {
        self.of(uplink).for_each(WorkerSocket::leave);
        self.leaving.push((uplink, done));
        self.release();
    }

    /// Serve these sockets, each in the place of its queue, or in a new one. Returns where each is
    /// counted.
    pub fn give(
        &mut self,
        uplink: UplinkId,
        sockets: Vec<Socket>,
    ) -> Vec<Arc<Published<SocketCounter>>> {
        let give = |socket: Socket| {
            let queue = socket.queue();
            let known = |place: &WorkerSocket| (place.uplink, place.queue) == (uplink, queue);
            let at = self.places.iter().position(known).unwrap_or(self.places.len());
            match self.places.get_mut(at) {
                Some(place) => place.put(socket),
                None => self.places.push(WorkerSocket::new(uplink, socket)),
            }
            Arc::clone(self.places[at].counters.published())
        };
        sockets.into_iter().map(give).collect()
    }

    /// Divide the frames to send with, and those to lend, among the ports of this table.
    pub fn divide(&mut self, table: &Forwarding, worker: WorkerId) {
        for place in &mut self.places {
            place.in_flight.divide(table.senders(place.uplink, worker));
            place.lent.divide(table.senders_elsewhere(place.uplink, worker));
        }
    }

    /// Release the sockets that have waited for their frames and now have them.
    #[inline]
    pub fn release_home(&mut self) {
        if !self.leaving.is_empty() {
            self.release();
        }
    }

    #[cold]
    fn release(&mut self) {
        let Self { places, leaving } = self;
        leaving.retain(|(uplink, done)| {
            let of_uplink = |place: &&mut WorkerSocket| place.uplink == *uplink;
            if !places.iter_mut().filter(of_uplink).all(|place| place.is_home()) {
                return true;
            }
            let departed = places.iter_mut().filter(of_uplink).filter_map(WorkerSocket::departed);
            // If the requester no longer waits, the sockets are closed.
            let _ = done.send(departed.collect());
            false
        });
    }

    /// Count for an uplink at the first place that it has here. Without such a place, or without a
    /// known uplink, count at the first place of all.
    pub fn count(&mut self, uplink: Option<UplinkId>, counter: SocketCounter, amount: u64) {
        let of_uplink = |place: &WorkerSocket| Some(place.uplink) == uplink;
        let at = self.places.iter().position(of_uplink).unwrap_or(0);
        if let Some(place) = self.places.get_mut(at) {
            place.counters.add(counter, amount);
        }
    }

    /// How far each is.
    pub fn report(&mut self) -> Vec<SocketReport> {
        self.places.iter_mut().filter_map(WorkerSocket::report).collect()
    }

    fn of(&mut self, uplink: UplinkId) -> impl Iterator<Item = &mut WorkerSocket> {
        self.places.iter_mut().filter(move |place| place.uplink == uplink)
    }
}
