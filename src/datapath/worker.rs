//! One worker: a pinned thread, its rings and its sockets.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender};
use rustix::event::epoll;

use crate::guest_memory::GuestMemory;
use crate::metrics::{Published, SocketCounter};
use crate::virtqueue::{EventFd, EventKind, Queue, QueueSetup, Ring};
use crate::xdp::{Socket, SocketAtRest, Umem};

use super::forwarding::Forwarding;
use super::frame::FrameView;
use super::from_uplink::Arrivals;
use super::handover::{Buffers, Handover, Inbox, PacketPool, Target};
use super::idle::Idle;
use super::ids::{PortId, UplinkId, WorkerId, is_from_guest};
use super::limits::BURST;
use super::mailbox::{Command, RingAtRest, SocketDescriptor, WorkerAtRest};
use super::ports::Ports;
use super::rotation::{Place, Rotation};
use super::sockets::{Sockets, WorkerSocket};
use super::turns::Turns;
use super::{from_guest, from_uplink};

/// Turns between two publications of the counters while busy.
const TURNS_PER_PUBLICATION: u64 = 1024;

/// Longest sleep, in milliseconds, while something must be looked at without being told: a ring
/// without a kick descriptor, or a transmit ring the kernel did not empty.
const POLL_MS: i64 = 1;

/// What a worker starts with.
#[derive(Debug)]
pub struct Setup {
    /// Its number.
    pub id: WorkerId,
    /// Its sockets and their uplinks.
    pub sockets: Vec<(UplinkId, Socket)>,
    /// The frame memory of every uplink, by number; None of one that is away.
    pub umems: Vec<Option<Arc<Umem>>>,
    /// Every worker's inbox, its own too, by number.
    pub inboxes: Vec<Arc<Inbox>>,
    /// Where the control plane's buffers go back to.
    pub pool: PacketPool,
    /// Its commands.
    pub mailbox: Receiver<Command>,
    /// Where it tells of ports whose front-end took the memory away; their session must end.
    pub lost: Sender<PortId>,
}

/// A worker. Everything in it is its thread's alone.
#[derive(Debug)]
pub struct Worker {
    pub(super) id: WorkerId,
    pub(super) sockets: Sockets,
    /// Of each uplink; None while it is gone.
    umems: Vec<Option<Arc<Umem>>>,
    pub(super) inboxes: Vec<Arc<Inbox>>,
    pool: PacketPool,
    /// Its own buffers for handing packets over.
    pub(super) buffers: Buffers,
    pub(super) ports: Ports,
    pub(super) table: Arc<Forwarding>,
    /// Scratch of a receive burst.
    pub(super) arrivals: Arrivals,
    mailbox: Receiver<Command>,
    /// The rings to take packets from.
    rotation: Rotation,
    epoll: OwnedFd,
    idle: Idle,
    turns: u64,
    sleeps: u64,
    /// When the last turn ended, and the time in turns that did something.
    turned: Instant,
    busy: Duration,
    published: Arc<Turns>,
    /// Only commands and what other workers hand over.
    resting: bool,
    /// Frames and packets of other workers that were dealt with.
    accepted: u64,
    stopping: bool,
}

impl Worker {
    /// A worker that has nothing to do yet.
    ///
    /// # Errors
    /// No descriptor left, or a socket that cannot be waited for.
    pub fn new(setup: Setup) -> std::io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let inbox = &setup.inboxes[setup.id.index()];
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, inbox.wake_fd(), Awaited::Inbox.data(), edge)?;
        Ok(Self {
            id: setup.id,
            sockets: Sockets::new(setup.sockets),
            umems: setup.umems,
            inboxes: setup.inboxes,
            pool: setup.pool,
            buffers: Buffers::new(setup.id),
            ports: Ports::new(setup.lost)?,
            table: Arc::default(),
            arrivals: Arrivals::new(),
            mailbox: setup.mailbox,
            rotation: Rotation::default(),
            epoll,
            idle: Idle::default(),
            turns: 0,
            sleeps: 0,
            turned: Instant::now(),
            busy: Duration::ZERO,
            published: Arc::default(),
            resting: false,
            accepted: 0,
            stopping: false,
        })
    }

    /// The same, but it takes nothing before it is told to [go on](Command::Resume).
    #[must_use]
    pub fn at_rest(self) -> Self {
        Self { resting: true, ..self }
    }

    /// The same, with places for the sockets of uplinks that are away, by their queues.
    #[must_use]
    pub fn expecting(mut self, sockets: impl IntoIterator<Item = (UplinkId, u32)>) -> Self {
        sockets.into_iter().for_each(|(uplink, queue)| self.sockets.expect(uplink, queue));
        self
    }

    /// Where the socket counters are published, with the uplink.
    pub fn socket_counters(
        &self,
    ) -> impl Iterator<Item = (UplinkId, Arc<Published<SocketCounter>>)> {
        let places = self.sockets.places.iter();
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
        let before = self.accepted;
        work += self.take_from_inbox();
        if !self.resting {
            for place in 0..self.sockets.places.len() {
                work += from_uplink::burst(self, place);
            }
            work += self.take_from_guests(work == 0);
        }
        self.ports.publish_and_notify();
        // Once a resting worker has reported, its sockets may be another process's.
        if !self.resting || self.accepted > before {
            for socket in self.sockets.places.iter_mut().filter_map(|place| place.socket.as_mut()) {
                socket.flush();
            }
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

    /// Bursts from the busy rings, and from quiet ones: a share of them, or all if there was
    /// nothing else to do.
    #[inline]
    fn take_from_guests(&mut self, mut nothing_else: bool) -> usize {
        let (mut work, mut at) = (0, 0);
        self.rotation.begin_turn();
        while let Some((port, index)) = self.rotation.busy_at(at) {
            let taken = from_guest::burst(self, port, index);
            work += taken;
            if self.rotation.stays_busy(at, taken) {
                at += 1;
            } else {
                self.want_kicks((port, index), true);
            }
        }
        nothing_else &= work == 0;
        for _ in 0..self.rotation.share(nothing_else) {
            let Some((port, index)) = self.rotation.next_quiet() else { break };
            let taken = from_guest::burst(self, port, index);
            if taken > 0 {
                work += taken;
                self.rotation.wake();
                self.want_kicks((port, index), false);
            }
        }
        work
    }

    fn want_kicks(&mut self, (port, index): Place, wanted: bool) {
        if let Some(ring) = self.ports.ring(port, index) {
            ring.queue.ring_mut().want_kicks(wanted);
        }
    }

    /// Frames that come home and packets that other workers hand over.
    fn take_from_inbox(&mut self) -> usize {
        let own = self.id.index();
        while let Some((place, port, frame)) = self.inboxes[own].next_home() {
            self.sockets.places[place].take_back(port, frame);
            self.accepted += 1;
        }
        self.sockets.release_home();
        while let Some(packet) = self.inboxes[own].next_buffer() {
            self.buffers.put(packet);
        }
        let mut work = 0;
        while work < usize::from(BURST)
            && let Some(handover) = self.inboxes[own].next()
        {
            work += self.accept(handover);
            self.accepted += 1;
        }
        work
    }

    /// Answers how many copies were made, at least one.
    fn accept(&mut self, handover: Handover) -> usize {
        match handover {
            Handover::Frame { home, place, uplink, received, port, pair } => {
                let umem = self.umems[uplink.index()].as_ref();
                let umem = umem.expect("it stays until all lent frames are home");
                let frame = FrameView::whole(umem.packet(&received));
                self.ports.deliver(port, pair, &frame);
                self.inboxes[home.index()].send_home(place, port, received.frame);
                1
            }
            Handover::Packet { packet, target } => {
                let frame = FrameView::whole(packet.bytes()).with_offload(packet.offload);
                let copies = match target {
                    Target::Pair { port, pair } => self.ports.deliver(port, pair, &frame),
                    Target::Arrival { uplink } => from_uplink::arrival(self, uplink, &frame),
                    Target::FloodFrom { port } => from_guest::announce(self, port, packet.bytes()),
                    Target::Flood(flood) => {
                        flood.deliver(self.id, &mut self.ports, &self.table, &frame)
                    }
                };
                packet.go_home(&self.pool, |worker| &self.inboxes[worker.index()]);
                copies.max(1)
            }
        }
    }

    /// Publish all counters, the kernel's among them.
    fn publish_all(&mut self) {
        self.sockets.places.iter_mut().for_each(WorkerSocket::read_kernel_statistics);
        self.publish_counters();
    }

    fn publish_counters(&mut self) {
        self.ports.publish_counters();
        self.sockets.places.iter_mut().for_each(WorkerSocket::publish);
        self.published.sleeps.store(self.sleeps, Ordering::Relaxed);
        let busy = u64::try_from(self.busy.as_nanos()).unwrap_or(u64::MAX);
        self.published.busy_nanoseconds.store(busy, Ordering::Relaxed);
    }
}

// ---- sleeping -----------------------------------------------------------------------------------

/// What a sleeping worker waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Awaited {
    /// Whatever another thread has for us.
    Inbox,
    /// A socket, by its place.
    Socket(u32),
    /// A ring.
    Kick(Place),
}

impl Awaited {
    /// As the data of an epoll event: the kind in the upper half, which of it in the lower.
    fn data(self) -> epoll::EventData {
        epoll::EventData::new_u64(match self {
            Self::Inbox => 0,
            Self::Socket(socket) => 1 << 32 | u64::from(socket),
            Self::Kick((port, index)) => 2 << 32 | u64::from(port.0) << 16 | u64::from(index),
        })
    }

    // Each part is as wide as its type.
    #[allow(clippy::cast_possible_truncation)]
    fn from_data(data: u64) -> Self {
        match data >> 32 {
            0 => Self::Inbox,
            1 => Self::Socket(data as u32),
            _ => Self::Kick((PortId((data >> 16) as u16), data as u16)),
        }
    }
}

impl Worker {
    /// Sleep until something happens, having looked at everything once more after asking to be
    /// told: a packet that came in between is seen by that look, a later one wakes us.
    fn sleep(&mut self) {
        let inbox = Arc::clone(&self.inboxes[self.id.index()]);
        inbox.set_sleeping(true);
        self.want_all_kicks(true);
        if self.turn() == 0 && !self.stopping {
            self.sleeps += 1;
            self.publish_counters();
            self.published.waiting.store(true, Ordering::Relaxed);
            self.wait_for_sockets(true);
            self.wait();
            self.wait_for_sockets(false);
            self.published.waiting.store(false, Ordering::Relaxed);
            self.turned = Instant::now();
        }
        self.want_all_kicks(false);
        inbox.set_sleeping(false);
    }

    /// Of the busy rings: quiet ones ask for kicks all the time.
    fn want_all_kicks(&mut self, wanted: bool) {
        if self.resting {
            return;
        }
        for (port, index) in self.rotation.busy() {
            if let Some(ring) = self.ports.ring(port, index) {
                ring.queue.ring_mut().want_kicks(wanted);
            }
        }
    }

    fn wait(&mut self) {
        let milliseconds = rustix::event::Timespec { tv_sec: 0, tv_nsec: POLL_MS * 1_000_000 };
        let timeout = self.must_poll().then_some(&milliseconds);
        let mut events = [const { std::mem::MaybeUninit::uninit() }; 16];
        // An interrupted wait is a wake-up like any other.
        let Ok((events, _)) = epoll::wait(&self.epoll, &mut events, timeout) else { return };
        for event in events {
            let broken = epoll::EventFlags::ERR | epoll::EventFlags::HUP;
            let flags = event.flags;
            match Awaited::from_data(event.data.u64()) {
                // Looked at first, among so many that may be quiet.
                Awaited::Kick(place) => self.rotation.kicked(place),
                Awaited::Socket(socket) if flags.intersects(broken) => {
                    self.stop_waiting_for(socket);
                }
                Awaited::Socket(_) | Awaited::Inbox => {}
            }
        }
    }

    /// Wake up when a socket receives, or no more. Only while asleep: the kernel calls whoever
    /// waits for a socket for each packet that it has transmitted, wanted or not (sock_wfree,
    /// sock_def_write_space), some 150 cycles each.
    fn wait_for_sockets(&mut self, wanted: bool) {
        if self.resting {
            return;
        }
        for (index, place) in (0..).zip(&self.sockets.places) {
            let socket = place.socket.as_ref().filter(|_| !place.failed);
            let Some(fd) = socket.and_then(Socket::fd) else { continue };
            let done = if wanted {
                let data = Awaited::Socket(index).data();
                epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)
            } else {
                epoll::delete(&self.epoll, fd)
            };
            if let Err(error) = done {
                tracing::error!(queue = place.queue, %error, "cannot wait for the socket");
            }
        }
    }

    /// A socket whose NIC is gone reports an error for ever: wait for it no more. The control plane
    /// asks for such.
    #[cold]
    fn stop_waiting_for(&mut self, place: u32) {
        let place = &mut self.sockets.places[place as usize];
        place.failed = true;
        if let Some(fd) = place.socket.as_ref().and_then(Socket::fd) {
            // It was added just now; a failure would be reported by the next attempt to add it.
            let _ = epoll::delete(&self.epoll, fd);
        }
    }

    /// Whether something must be looked at again although nobody will tell. Packets that the
    /// kernel did not take are offered to it again.
    fn must_poll(&mut self) -> bool {
        if self.resting {
            return false;
        }
        let mut backlog = self.ports.signals_wait();
        for socket in self.sockets.places.iter_mut().filter_map(|place| place.socket.as_mut()) {
            if socket.has_backlog() {
                socket.retry();
                backlog |= socket.has_backlog();
            }
        }
        let polled = |(port, index)| {
            let ring = self.ports.ring(port, index);
            ring.is_some_and(|ring| ring.kick.is_none() && ring.broken.is_none())
        };
        backlog || self.rotation.all().any(polled)
    }
}

// ---- commands -----------------------------------------------------------------------------------

impl Worker {
    /// Apply what has come. It counts as work: a ring given in the last look before sleep does not
    /// ask for kicks yet, so there must be another look.
    fn apply_commands(&mut self) -> usize {
        let mut applied = 0;
        while let Ok(command) = self.mailbox.try_recv() {
            self.apply(command);
            applied += 1;
        }
        applied
    }

    /// Apply one command and acknowledge it. A caller that no longer waits is of no concern.
    #[cold]
    fn apply(&mut self, command: Command) {
        match command {
            Command::SetForwarding { table, done } => {
                self.sockets.divide(&table, self.id);
                self.buffers.divide(table.senders_of(self.id));
                let _ = done.send(std::mem::replace(&mut self.table, table));
            }
            Command::AddPort { port, name, done } => {
                let _ = done.send(self.ports.add(port, name));
            }
            Command::RemovePort { port, done } => {
                let rings = self.ports.report(port);
                let rings = rings.iter().filter_map(|ring| self.take(port, ring.index)).collect();
                self.ports.remove(port);
                let _ = done.send(rings);
            }
            Command::Give { port, index, ring, done } => {
                self.give(port, index, ring);
                let _ = done.send(());
            }
            Command::Take { port, index, done } => {
                let _ = done.send(self.take(port, index));
            }
            Command::Exchange { ring, kind, event, done } => {
                let _ = done.send(self.exchange(ring, kind, event));
            }
            Command::Relocate { ring, setup, memory, done } => {
                let _ = done.send(self.relocate(ring, setup, &memory));
            }
            Command::Inspect { port, done } => {
                self.publish_all();
                let _ = done.send(self.ports.report(port));
            }
            Command::InspectAll { done } => {
                self.publish_all();
                let _ = done.send(self.ports.report_all());
            }
            Command::Survey { ports, done } => {
                let survey = |(port, kicks)| self.ports.survey(port, kicks);
                let _ = done.send(ports.into_iter().map(survey).collect());
            }
            Command::TakeSockets { uplink, done } => self.sockets.take(uplink, done),
            Command::GiveSockets { uplink, sockets, done } => {
                let given = self.sockets.give(uplink, sockets);
                self.sockets.divide(&self.table, self.id);
                let _ = done.send(given);
            }
            Command::SetMemory { uplink, umem, done } => {
                let _ = done.send(std::mem::replace(&mut self.umems[uplink.index()], umem));
            }
            Command::Examine { done } => {
                let _ = done.send(self.sockets.report());
            }
            Command::Sockets { done } => {
                let _ = done.send(self.duplicate_sockets());
            }
            Command::Rest { done } => {
                self.rest();
                let _ = done.send(self.accepted);
            }
            Command::Report { done } => {
                let _ = done.send(self.report());
            }
            Command::Adopt { sockets, done } => {
                let _ = done.send(self.adopt(&sockets));
            }
            Command::Resume { done } => {
                self.resume();
                let _ = done.send(());
            }
            Command::Stop => self.stopping = true,
        }
    }

    fn give(&mut self, port: PortId, index: u16, mut ring: Box<Ring>) {
        // Awake, we poll; before sleeping we ask for kicks on the rings we take packets from. A
        // guest's new receive buffers are of no news to us.
        ring.queue.ring_mut().want_kicks(self.resting && is_from_guest(index));
        if is_from_guest(index) {
            self.rotation.add((port, index));
        }
        self.ports.put(port, index, ring);
        self.wait_for_kicks((port, index), true);
        self.ports.remind(port, index);
    }

    /// Use another event descriptor: a ring that asks for kicks asks the new one for them, and the
    /// driver looks for what it was told of by the old one.
    fn exchange(
        &mut self,
        place: Place,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Option<EventFd> {
        self.wait_for_kicks(place, false);
        // Of a ring that is not there, the new one is not used.
        let before = match self.ports.ring(place.0, place.1) {
            Some(ring) => ring.set_event(kind, event),
            None => event,
        };
        self.wait_for_kicks(place, true);
        if kind == EventKind::Call {
            self.ports.remind(place.0, place.1);
        }
        before
    }

    fn relocate(
        &mut self,
        place: Place,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Option<Queue> {
        // As before: nobody else tells a quiet ring's driver to kick once the worker sleeps.
        let wanted = is_from_guest(place.1) && (self.resting || self.rotation.is_quiet(place));
        let ring = self.ports.ring(place.0, place.1)?;
        let before = ring.relocate(setup, memory).ok()?;
        ring.queue.ring_mut().want_kicks(wanted);
        self.ports.remind(place.0, place.1);
        Some(before)
    }

    /// Wake up when the driver kicks, or no more. We take packets from transmit rings only.
    fn wait_for_kicks(&mut self, (port, index): Place, wanted: bool) {
        let ring = self.ports.ring(port, index).filter(|_| is_from_guest(index));
        let Some(kick) = ring.and_then(|ring| ring.kick.as_ref()) else { return };
        let data = Awaited::Kick((port, index)).data();
        let edge = epoll::EventFlags::IN | epoll::EventFlags::ET;
        let done = if wanted {
            epoll::add(&self.epoll, kick, data, edge)
        } else {
            epoll::delete(&self.epoll, kick)
        };
        if let Err(error) = done {
            tracing::error!(?port, index, %error, "cannot wait for the ring's kicks");
        }
    }

    fn take(&mut self, port: PortId, index: u16) -> Option<Box<Ring>> {
        self.wait_for_kicks((port, index), false);
        self.rotation.remove((port, index));
        let mut ring = self.ports.lift(port, index)?;
        // Kicks sent to nobody would be lost to the next owner; asked for, they stay in the
        // eventfd.
        ring.queue.ring_mut().want_kicks(true);
        Some(ring)
    }
}

// ---- resting, for another process to go on ------------------------------------------------------

impl Worker {
    fn duplicate_sockets(&self) -> std::io::Result<Vec<SocketDescriptor>> {
        let bound =
            self.sockets.places.iter().filter_map(|of| Some((of, of.socket.as_ref()?.fd()?)));
        let duplicate = |(of, fd): (&WorkerSocket, BorrowedFd<'_>)| {
            Ok((of.uplink, of.queue, fd.try_clone_to_owned()?))
        };
        bound.map(duplicate).collect()
    }

    fn rest(&mut self) {
        if !self.resting {
            // Kicks stay in their eventfds, for whoever goes on.
            self.want_all_kicks(true);
            self.resting = true;
        }
    }

    fn report(&mut self) -> std::io::Result<WorkerAtRest> {
        self.ports.publish_and_notify();
        let rest = |of: &mut WorkerSocket| Some((of.uplink, of.socket.as_mut()?.rest()));
        let sockets = self.sockets.places.iter_mut().filter_map(rest).collect();
        let duplicate =
            |event: &Option<EventFd>| event.as_ref().map(EventFd::duplicate).transpose();
        let ring = |(port, index, ring): (PortId, u16, &Ring)| {
            Ok(RingAtRest {
                port,
                index,
                position: ring.queue.ring().position(),
                broken: ring.broken.is_some(),
                kick: duplicate(&ring.kick)?,
                call: duplicate(&ring.call)?,
                err: duplicate(&ring.err)?,
            })
        };
        let rings = self.ports.rings().map(ring).collect::<std::io::Result<_>>()?;
        Ok(WorkerAtRest { sockets, rings })
    }

    fn adopt(&mut self, at_rest: &[(UplinkId, SocketAtRest)]) -> bool {
        for place in &mut self.sockets.places {
            let at = (place.uplink, place.queue);
            let own = |(of, left): &&(UplinkId, SocketAtRest)| (*of, left.queue) == at;
            if let Some((_, left)) = at_rest.iter().find(own)
                && let Some(socket) = &mut place.socket
                && !socket.resume(left)
            {
                return false;
            }
            place.begin_counting();
        }
        self.sockets.divide(&self.table, self.id);
        true
    }

    fn resume(&mut self) {
        self.resting = false;
        // Another process may have tried to go on, with journals of its own, and asked for kicks
        // otherwise.
        self.ports.rings_mut().for_each(|ring| ring.queue.ring_mut().reclaim());
        for (port, index) in self.rotation.quiet() {
            if let Some(ring) = self.ports.ring(port, index) {
                ring.queue.ring_mut().want_kicks(true);
            }
        }
        self.want_all_kicks(false);
    }
}
