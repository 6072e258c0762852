//! One worker: a pinned thread, its means to move packets, and its commands.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};

use crate::guest_memory::GuestMemory;
use crate::metrics::{Published, SocketCounter};
use crate::virtqueue::{EventFd, EventKind, Queue, QueueSetup, Ring};
use crate::xdp::{PausedSocket, Socket, Umem};

use super::from_uplink::Arrivals;
use super::handover::{Inbox, PacketPool};
use super::idle::Idle;
use super::ids::{PortId, RingId, UplinkId, WorkerId, is_from_guest};
use super::mailbox::{PausedRing, PausedWorker, SocketDescriptor, WorkerCommand};
use super::plane::{Plane, PlaneSetup};
use super::sleep::Sleeper;
use super::sockets::WorkerSocket;
use super::turns::Turns;
use super::{from_guest, from_inbox, from_uplink};

/// Turns between two publications of the counters while busy.
const TURNS_PER_PUBLICATION: u64 = 1024;

/// The arguments of a new worker.
#[derive(Debug)]
pub struct Setup {
    /// Its number.
    pub id: WorkerId,
    /// Its sockets and their uplinks.
    pub sockets: Vec<(UplinkId, Socket)>,
    /// The frame memory of every uplink, by number; None for one that is away.
    pub umems: Vec<Option<Arc<Umem>>>,
    /// Every worker's inbox, its own too, by number.
    pub inboxes: Vec<Arc<Inbox>>,
    /// Where the control plane's buffers go back to.
    pub pool: PacketPool,
    /// Its commands.
    pub mailbox: Receiver<WorkerCommand>,
    /// Where it reports ports whose front-end took the memory away; their session must end.
    pub lost: Sender<PortId>,
}

/// A worker. Everything in it is its thread's alone.
#[derive(Debug)]
pub struct Worker {
    plane: Plane,
    /// Scratch of a receive burst.
    arrivals: Arrivals,
    mailbox: Receiver<WorkerCommand>,
    sleeper: Sleeper,
    idle: Idle,
    turns: u64,
    sleeps: u64,
    /// When the last turn ended, and the time in turns that did something.
    turned: Instant,
    busy: Duration,
    published: Arc<Turns>,
    /// Takes only commands and handovers of other workers.
    paused: bool,
    stopping: bool,
}

impl Worker {
    /// A worker that has nothing to do yet.
    ///
    /// # Errors
    /// No descriptor left, or a socket that cannot be waited for.
    pub fn new(setup: Setup) -> std::io::Result<Self> {
        let Setup { id, sockets, umems, inboxes, pool, mailbox, lost } = setup;
        let plane = Plane::new(PlaneSetup { id, sockets, umems, inboxes, pool, lost })?;
        Ok(Self {
            sleeper: Sleeper::new(plane.inbox())?,
            plane,
            arrivals: Arrivals::new(),
            mailbox,
            idle: Idle::default(),
            turns: 0,
            sleeps: 0,
            turned: Instant::now(),
            busy: Duration::ZERO,
            published: Arc::default(),
            paused: false,
            stopping: false,
        })
    }

    /// Start paused: take nothing before [`WorkerCommand::Resume`].
    #[must_use]
    pub fn paused(self) -> Self {
        Self { paused: true, ..self }
    }

    /// Have places for the sockets of uplinks that are away, by their queues.
    #[must_use]
    pub fn expecting(mut self, sockets: impl IntoIterator<Item = (UplinkId, u32)>) -> Self {
        sockets.into_iter().for_each(|(uplink, queue)| self.plane.sockets.expect(uplink, queue));
        self
    }

    /// Where the socket counters are published, with the uplink.
    pub fn socket_counters(
        &self,
    ) -> impl Iterator<Item = (UplinkId, Arc<Published<SocketCounter>>)> {
        let places = self.plane.sockets.places.iter();
        places.map(|place| (place.uplink, Arc::clone(place.counters.published())))
    }

    /// Where its turns are published.
    #[must_use]
    pub fn turns(&self) -> Arc<Turns> {
        Arc::clone(&self.published)
    }

    /// Work until told to stop.
    pub fn run(mut self) {
        while !self.stopping {
            let work = self.turn();
            if self.idle.after_turn(work) {
                self.sleep();
            }
        }
        self.publish_counters();
    }

    /// One turn: everything there is to do, in the order a packet meets it. Returns how much was
    /// done: packets moved and commands applied.
    pub fn turn(&mut self) -> usize {
        let mut work = self.apply_commands();
        let before = self.plane.accepted;
        work += from_inbox::burst(&mut self.plane);
        if !self.paused {
            for place in 0..self.plane.sockets.places.len() {
                work += from_uplink::burst(&mut self.plane, &mut self.arrivals, place);
            }
            work += from_guest::bursts(&mut self.plane, work == 0);
        }
        self.plane.ports.publish_and_notify();
        // Once a paused worker has reported, its sockets may be another process's.
        if !self.paused || self.plane.accepted > before {
            self.plane.flush_sockets();
        }
        self.count_turn(work > 0);
        if self.turns.is_multiple_of(TURNS_PER_PUBLICATION) {
            self.publish_counters();
        }
        work
    }

    fn count_turn(&mut self, busy: bool) {
        let now = Instant::now();
        if busy {
            self.busy += now - self.turned;
        }
        self.turned = now;
        self.turns += 1;
        self.published.turns.store(self.turns, Ordering::Relaxed);
    }

    fn publish_counters(&mut self) {
        self.plane.publish_counters();
        self.published.sleeps.store(self.sleeps, Ordering::Relaxed);
        let busy = u64::try_from(self.busy.as_nanos()).unwrap_or(u64::MAX);
        self.published.busy_nanoseconds.store(busy, Ordering::Relaxed);
    }

    /// Publish all counters, the kernel's among them.
    fn publish_all(&mut self) {
        self.plane.read_kernel_statistics();
        self.publish_counters();
    }

    /// Sleep until an event. Before that, the worker asks for events and looks at everything once
    /// more. This look sees a packet that came in between; a later packet wakes the worker.
    fn sleep(&mut self) {
        let inbox = Arc::clone(self.plane.inbox());
        inbox.set_sleeping(true);
        self.want_busy_kicks(true);
        if self.turn() == 0 && !self.stopping {
            self.sleeps += 1;
            self.publish_counters();
            self.published.waiting.store(true, Ordering::Relaxed);
            self.sleeper.wait(&mut self.plane, self.paused);
            self.published.waiting.store(false, Ordering::Relaxed);
            self.turned = Instant::now();
        }
        self.want_busy_kicks(false);
        inbox.set_sleeping(false);
    }

    /// A paused worker's rings ask for kicks all the time.
    fn want_busy_kicks(&mut self, wanted: bool) {
        if !self.paused {
            self.plane.want_busy_kicks(wanted);
        }
    }
}

// ---- commands -----------------------------------------------------------------------------------

impl Worker {
    /// Apply all waiting commands. They count as work: a ring given in the last look before sleep
    /// does not ask for kicks yet, so there must be another look.
    fn apply_commands(&mut self) -> usize {
        let mut applied = 0;
        while let Ok(command) = self.mailbox.try_recv() {
            self.apply(command);
            applied += 1;
        }
        applied
    }

    /// Apply one command and acknowledge it. Nothing happens if the caller no longer waits.
    #[cold]
    fn apply(&mut self, command: WorkerCommand) {
        match command {
            WorkerCommand::SetForwarding { table, done } => {
                let _ = done.send(self.plane.set_table(table));
            }
            WorkerCommand::AddPort { port, name, done } => {
                let _ = done.send(self.plane.ports.add(port, name));
            }
            WorkerCommand::RemovePort { port, done } => {
                let rings = self.take_rings(port).collect();
                self.plane.ports.remove(port);
                let _ = done.send(rings);
            }
            WorkerCommand::Give { port, index, ring, done } => {
                self.give(RingId { port, index }, ring);
                let _ = done.send(());
            }
            WorkerCommand::Take { port, index, done } => {
                let _ = done.send(self.take(RingId { port, index }));
            }
            WorkerCommand::Exchange { ring, kind, event, done } => {
                let _ = done.send(self.exchange(ring, kind, event));
            }
            WorkerCommand::Relocate { ring, setup, memory, done } => {
                let _ = done.send(self.relocate(ring, setup, &memory));
            }
            WorkerCommand::Inspect { port, done } => {
                self.publish_all();
                let _ = done.send(self.plane.ports.report(port));
            }
            WorkerCommand::InspectAll { done } => {
                self.publish_all();
                let _ = done.send(self.plane.ports.report_all());
            }
            WorkerCommand::Survey { ports, done } => {
                let survey = |(port, kicks)| self.plane.ports.survey(port, kicks);
                let _ = done.send(ports.into_iter().map(survey).collect());
            }
            WorkerCommand::TakeSockets { uplink, done } => self.plane.sockets.take(uplink, done),
            WorkerCommand::GiveSockets { uplink, sockets, done } => {
                let given = self.plane.sockets.give(uplink, sockets);
                self.plane.divide_sockets();
                let _ = done.send(given);
            }
            WorkerCommand::SetMemory { uplink, umem, done } => {
                let _ = done.send(std::mem::replace(&mut self.plane.umems[uplink.index()], umem));
            }
            WorkerCommand::Examine { done } => {
                let _ = done.send(self.plane.sockets.report());
            }
            WorkerCommand::Sockets { done } => {
                let _ = done.send(self.duplicate_sockets());
            }
            WorkerCommand::Pause { done } => {
                self.pause();
                let _ = done.send(self.plane.accepted);
            }
            WorkerCommand::Report { done } => {
                let _ = done.send(self.report());
            }
            WorkerCommand::Adopt { sockets, done } => {
                let _ = done.send(self.adopt(&sockets));
            }
            WorkerCommand::Resume { done } => {
                self.resume();
                let _ = done.send(());
            }
            WorkerCommand::Stop => self.stopping = true,
        }
    }

    fn take_rings(&mut self, port: PortId) -> impl Iterator<Item = Box<Ring>> {
        let left = self.plane.ports.report(port);
        left.into_iter().filter_map(move |ring| self.take(RingId { port, index: ring.index }))
    }

    fn give(&mut self, id: RingId, mut ring: Box<Ring>) {
        // Awake, we poll; before sleeping we ask for kicks on transmit rings. New receive buffers
        // of a guest need no kick.
        ring.queue.ring_mut().want_kicks(self.paused && is_from_guest(id.index));
        if is_from_guest(id.index) {
            self.plane.rotation.add(id);
        }
        self.plane.ports.put(id, ring);
        self.wait_for_kicks(id, true);
        self.plane.ports.remind(id);
    }

    /// Use another event descriptor. A ring that asks for kicks asks for them on the new one. The
    /// driver is reminded of signals that the old one may have lost.
    fn exchange(&mut self, id: RingId, kind: EventKind, event: Option<EventFd>) -> Option<EventFd> {
        self.wait_for_kicks(id, false);
        // Without such a ring the new descriptor goes back to the caller.
        let before = match self.plane.ports.ring(id) {
            Some(ring) => ring.set_event(kind, event),
            None => event,
        };
        self.wait_for_kicks(id, true);
        if kind == EventKind::Call {
            self.plane.ports.remind(id);
        }
        before
    }

    fn relocate(
        &mut self,
        id: RingId,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Option<Queue> {
        // Kicks are wanted as before: nobody else tells a quiet ring's driver to kick once the
        // worker sleeps.
        let wanted = is_from_guest(id.index) && (self.paused || self.plane.rotation.is_quiet(id));
        let ring = self.plane.ports.ring(id)?;
        let before = ring.relocate(setup, memory).ok()?;
        ring.queue.ring_mut().want_kicks(wanted);
        self.plane.ports.remind(id);
        Some(before)
    }

    /// Start or stop waking up when the driver kicks. We take packets from transmit rings only.
    fn wait_for_kicks(&mut self, id: RingId, wanted: bool) {
        let ring = self.plane.ports.ring(id).filter(|_| is_from_guest(id.index));
        let Some(kick) = ring.and_then(|ring| ring.kick.as_ref()) else { return };
        self.sleeper.await_kicks(id, kick, wanted);
    }

    fn take(&mut self, id: RingId) -> Option<Box<Ring>> {
        self.wait_for_kicks(id, false);
        self.plane.rotation.remove(id);
        let mut ring = self.plane.ports.lift(id)?;
        // Unrequested kicks would be lost to the next owner; requested ones stay in the eventfd.
        ring.queue.ring_mut().want_kicks(true);
        Some(ring)
    }
}

// ---- paused, for another process to take over ---------------------------------------------------

impl Worker {
    fn duplicate_sockets(&self) -> std::io::Result<Vec<SocketDescriptor>> {
        let bound =
            self.plane.sockets.places.iter().filter_map(|of| Some((of, of.socket.as_ref()?.fd()?)));
        let duplicate = |(of, fd): (&WorkerSocket, BorrowedFd<'_>)| {
            Ok((of.uplink, of.queue, fd.try_clone_to_owned()?))
        };
        bound.map(duplicate).collect()
    }

    fn pause(&mut self) {
        if !self.paused {
            // Kicks stay in their eventfds, for the process that takes over.
            self.plane.want_busy_kicks(true);
            self.paused = true;
        }
    }

    fn report(&mut self) -> std::io::Result<PausedWorker> {
        self.plane.ports.publish_and_notify();
        let rest = |of: &mut WorkerSocket| Some((of.uplink, of.socket.as_mut()?.rest()));
        let sockets = self.plane.sockets.places.iter_mut().filter_map(rest).collect();
        let duplicate =
            |event: &Option<EventFd>| event.as_ref().map(EventFd::duplicate).transpose();
        let ring = |(RingId { port, index }, ring): (RingId, &Ring)| {
            Ok(PausedRing {
                port,
                index,
                position: ring.queue.ring().position(),
                broken: ring.broken.is_some(),
                kick: duplicate(&ring.kick)?,
                call: duplicate(&ring.call)?,
                err: duplicate(&ring.err)?,
            })
        };
        let rings = self.plane.ports.rings().map(ring).collect::<std::io::Result<_>>()?;
        Ok(PausedWorker { sockets, rings })
    }

    fn adopt(&mut self, paused: &[(UplinkId, PausedSocket)]) -> bool {
        for place in &mut self.plane.sockets.places {
            let at = (place.uplink, place.queue);
            let own = |(of, left): &&(UplinkId, PausedSocket)| (*of, left.queue) == at;
            if let Some((_, left)) = paused.iter().find(own)
                && let Some(socket) = &mut place.socket
                && !socket.resume(left)
            {
                return false;
            }
            place.begin_counting();
        }
        self.plane.divide_sockets();
        true
    }

    fn resume(&mut self) {
        self.paused = false;
        // Another process may have tried to take over, with its own journals and its own requests
        // for kicks.
        self.plane.ports.rings_mut().for_each(|ring| ring.queue.ring_mut().reclaim());
        for id in self.plane.rotation.quiet() {
            if let Some(ring) = self.plane.ports.ring(id) {
                ring.queue.ring_mut().want_kicks(true);
            }
        }
        self.plane.want_busy_kicks(false);
    }
}
