//! Workers over in-memory wires, stepped by hand: the whole datapath without root, a NIC or a
//! second thread.

use std::sync::Arc;

use crossbeam::channel::Receiver;

use crate::datapath::{
    Forwarding, ForwardingBuilder, Handover, Inbox, PacketPool, PortId, RingReport, Route, Setup,
    SocketReport, Target, UplinkId, Worker, WorkerHandle, WorkerId,
};
use crate::device::groups::ForwardGroups;
use crate::guest_memory::GuestMemory;
use crate::metrics::{PortCounter, Published, SocketCounter};
use crate::virtqueue::{EventFd, EventKind, QueueSetup, Ring};
use crate::xdp::{Socket, Umem};

use super::ring_pair::{Wire, ring_pair};

/// Frames of each wire's queue.
pub const FRAMES: u32 = 256;

/// Workers, and one uplink queue per worker, each with a wire at its end.
#[derive(Debug)]
pub struct Rig {
    /// The workers.
    pub workers: Vec<Worker>,
    /// Their wires: queue `n` of uplink 0 belongs to worker `n`.
    pub wires: Vec<Wire>,
    /// The ports whose memory the workers have lost.
    pub lost: Receiver<PortId>,
    handles: Vec<WorkerHandle>,
    sockets: Vec<Arc<Published<SocketCounter>>>,
    ports: Vec<Vec<Arc<Published<PortCounter>>>>,
    routes: Vec<Route>,
    groups: ForwardGroups,
    pool: PacketPool,
}

impl Rig {
    /// `count` workers.
    #[must_use]
    pub fn new(count: u16) -> Self {
        let (sockets, wires): (Vec<_>, Vec<_>) =
            (0..u32::from(count)).map(|queue| ring_pair(queue, FRAMES)).unzip();
        // Each in-memory queue has its own UMEM, so each plays an uplink of its own number.
        let umems: Vec<_> = wires.iter().map(|wire| Some(Arc::clone(wire.umem()))).collect();
        let inboxes: Vec<_> =
            (0..count).map(|_| Arc::new(Inbox::new(FRAMES as usize).unwrap())).collect();
        let pool = PacketPool::new();
        let (lost, told) = crossbeam::channel::unbounded();
        let (mut workers, mut handles) = (Vec::new(), Vec::new());
        for (id, socket) in (0..count).zip(sockets) {
            let (handle, mailbox) = WorkerHandle::new(Arc::clone(&inboxes[usize::from(id)]));
            let setup = Setup {
                id: WorkerId(id),
                sockets: vec![(UplinkId(id), socket)],
                umems: umems.clone(),
                inboxes: inboxes.clone(),
                pool: pool.clone(),
                mailbox,
                lost: lost.clone(),
            };
            workers.push(Worker::new(setup).unwrap());
            handles.push(handle);
        }
        let sockets = workers.iter().flat_map(Worker::socket_counters).map(|(_, c)| c).collect();
        let (ports, routes, groups) = (Vec::new(), Vec::new(), ForwardGroups::NONE);
        Self { workers, wires, lost: told, handles, sockets, ports, routes, groups, pool }
    }

    /// Add a port to all workers and to the table; its rings come with [`give`](Self::give).
    pub fn add_port(&mut self, route: Route) -> PortId {
        let port = PortId(self.routes.len() as u16);
        self.routes.push(route);
        let name: Arc<str> = format!("port{}", port.0).into();
        let counters = (0..self.handles.len()).map(|worker| {
            let name = Arc::clone(&name);
            self.call(worker, move |handle| handle.add_port(port, name).unwrap())
        });
        let counters = counters.collect();
        self.ports.push(counters);
        self.set_table();
        port
    }

    /// Change a port's route.
    pub fn set_route(&mut self, port: PortId, route: Route) {
        self.routes[port.index()] = route;
        self.set_table();
    }

    /// Forward these reserved groups on uplink 0.
    pub fn forward_groups(&mut self, groups: ForwardGroups) {
        self.groups = groups;
        self.set_table();
    }

    fn set_table(&mut self) {
        let mut builder = ForwardingBuilder::default();
        builder.forward_groups(UplinkId(0), self.groups);
        for (port, route) in self.routes.iter().enumerate() {
            builder.add(PortId(port as u16), route.clone());
        }
        let table: Arc<Forwarding> = Arc::new(builder.build());
        for worker in 0..self.handles.len() {
            let table = Arc::clone(&table);
            self.call(worker, move |handle| handle.set_forwarding(table).unwrap());
        }
    }

    /// Give a ring to a worker.
    pub fn give(&mut self, worker: usize, port: PortId, index: u16, ring: Ring) {
        self.call(worker, move |handle| handle.give(port, index, ring).unwrap());
    }

    /// Take a ring back.
    pub fn take(&mut self, worker: usize, port: PortId, index: u16) -> Option<Ring> {
        self.call(worker, move |handle| handle.take(port, index).unwrap())
    }

    /// Give a worker another event descriptor for a ring that it has.
    pub fn exchange(
        &mut self,
        worker: usize,
        ring: (PortId, u16),
        kind: EventKind,
        event: Option<EventFd>,
    ) {
        self.call(worker, move |handle| handle.exchange(ring, kind, event).unwrap());
    }

    /// Have a worker continue with a ring in other memory; false if that cannot be.
    pub fn relocate(
        &mut self,
        worker: usize,
        ring: (PortId, u16),
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> bool {
        let memory = Arc::clone(memory);
        let relocate = move |handle: WorkerHandle| handle.relocate(ring, setup, &memory).unwrap();
        self.call(worker, relocate).is_some()
    }

    /// A worker's report of a port's rings.
    pub fn inspect(&mut self, worker: usize, port: PortId) -> Vec<RingReport> {
        self.call(worker, move |handle| handle.inspect(port).unwrap())
    }

    /// Take the sockets of an uplink from a worker.
    pub fn take_sockets(&mut self, worker: usize, uplink: UplinkId) -> Vec<Socket> {
        self.call(worker, move |handle| handle.take_sockets(uplink).unwrap())
    }

    /// Give a worker a socket of an uplink.
    pub fn give_socket(&mut self, worker: usize, uplink: UplinkId, socket: Socket) {
        self.call(worker, move |handle| handle.give_sockets(uplink, vec![socket]).unwrap());
    }

    /// Have all workers use this memory of an uplink.
    pub fn set_memory(&mut self, uplink: UplinkId, umem: Option<&Arc<Umem>>) {
        for worker in 0..self.handles.len() {
            let umem = umem.map(Arc::clone);
            self.call(worker, move |handle| handle.set_memory(uplink, umem).unwrap());
        }
    }

    /// How far a worker's sockets are.
    pub fn examine(&mut self, worker: usize) -> Vec<SocketReport> {
        self.call(worker, move |handle| handle.examine().unwrap())
    }

    /// The control plane's handle on a worker, whose calls wait for the worker to turn.
    #[must_use]
    pub fn handle(&self, worker: usize) -> WorkerHandle {
        self.handles[worker].clone()
    }

    /// Hand a packet to a worker, as the control plane does.
    pub fn hand_over(&self, worker: usize, bytes: &[u8], target: Target) {
        let mut packet = self.pool.take().unwrap();
        packet.room(bytes.len()).copy_from_slice(bytes);
        self.handles[worker].inbox().hand_over(Handover::Packet { packet, target }).unwrap();
    }

    /// One turn of every worker, until none has anything left to do.
    pub fn settle(&mut self) {
        while self.workers.iter_mut().map(Worker::turn).sum::<usize>() > 0 {}
    }

    /// A counter of a port, over all workers.
    pub fn port_count(&mut self, port: PortId, counter: PortCounter) -> u64 {
        for worker in 0..self.handles.len() {
            self.inspect(worker, port);
        }
        self.ports[port.index()].iter().map(|counters| counters.get(counter)).sum()
    }

    /// A counter of a worker's socket.
    pub fn socket_count(&mut self, worker: usize, counter: SocketCounter) -> u64 {
        self.inspect(worker, PortId(0));
        self.sockets[worker].get(counter)
    }

    /// All frames are where they can be found: none was lost or made.
    pub fn assert_frames_balance(&mut self) {
        for worker in 0..self.handles.len() {
            let total = self.socket_count(worker, SocketCounter::FramesTotal);
            assert_eq!(total, u64::from(FRAMES));
            assert_eq!(self.socket_count(worker, SocketCounter::FramesAway), 0);
        }
    }

    /// Run a call that waits for the worker's acknowledgement while the worker turns.
    fn call<T: Send>(&mut self, worker: usize, call: impl FnOnce(WorkerHandle) -> T + Send) -> T {
        let handle = self.handles[worker].clone();
        std::thread::scope(|scope| {
            let call = scope.spawn(move || call(handle));
            while !call.is_finished() {
                self.workers[worker].turn();
                std::thread::yield_now();
            }
            call.join().unwrap()
        })
    }
}
