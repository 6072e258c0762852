//! The sockets of one worker, each in a place of its own.
//!
//! The control plane takes an uplink's sockets while its NIC is down or gone, and gives them back,
//! or new ones, when it is there again. The places stay, and what was counted in them: a frame that
//! another worker was lent is named by the place that it comes home to. So a socket leaves when all
//! of its frames are home, and until then neither receives nor sends.

use std::sync::Arc;

use crossbeam::channel::Sender;

use crate::metrics::{Counters, Published, SocketCounter};
use crate::xdp::{Frame, KernelStatistics, Socket, SocketProgress};

use super::UplinkId;

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
    /// What the sockets before it in this place have counted themselves.
    past: OwnCounts,
    /// It reports an error for ever: it is waited for no more.
    pub failed: bool,
}

/// What a socket counts itself.
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

/// What a worker reports of one of its sockets.
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
        let queue = socket.queue();
        Self { socket: Some(socket), ..Self::empty(uplink, queue) }
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
        }
    }

    /// Take a frame back that was lent out.
    pub fn recycle(&mut self, frame: Frame) {
        let home = self.socket.as_mut().or(self.leaving.as_mut());
        home.expect("no socket leaves before its frames are home").recycle(frame);
    }

    /// What the kernel counts costs a call, so it is read only when asked for.
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

    /// Let readers see what is counted, and where the frames are.
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

    /// The socket that leaves, all of its frames shown to the kernel; what it counted stays.
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

    /// Answer `done` with the uplink's sockets, when all of their frames are home.
    pub fn take(&mut self, uplink: UplinkId, done: Sender<Vec<Socket>>) {
        self.of(uplink).for_each(WorkerSocket::leave);
        self.leaving.push((uplink, done));
        self.release();
    }

    /// Serve these sockets, each in the place of its queue, or in a new one. Answers where each is
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
                Some(place) => place.socket = Some(socket),
                None => self.places.push(WorkerSocket::new(uplink, socket)),
            }
            Arc::clone(self.places[at].counters.published())
        };
        sockets.into_iter().map(give).collect()
    }

    /// Let those go that have waited for their frames and have them.
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
            // Whoever does not wait any more gives up the sockets: they are closed.
            let _ = done.send(departed.collect());
            false
        });
    }

    /// Count for an uplink, at the first place that it has here.
    pub fn count(&mut self, uplink: UplinkId, counter: SocketCounter) {
        if let Some(place) = self.of(uplink).next() {
            place.counters.add(counter, 1);
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
