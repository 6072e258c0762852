//! The workers, and the forwarding table they all have a copy of.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};

use crate::config::Config;
use crate::datapath::{
    Acknowledgement, Forwarding, ForwardingBuilder, Inbox, Packet, PacketPool, PortId, PortSight,
    RingReport, Route, Setup, SocketDescriptor, SocketReport, Turns, UplinkId, Watchdog, Watched,
    Worker, WorkerAtRest, WorkerGone, WorkerHandle, WorkerId,
};
use crate::device::groups::ForwardGroups;
use crate::guest_memory::GuestMemory;
use crate::metrics::{PortCounter, Published, SocketCounter};
use crate::virtqueue::{EventFd, EventKind, Queue, QueueSetup, Ring};
use crate::xdp::{FRAMES_PER_SOCKET, Socket, SocketAtRest, Umem};

use crate::platform::interrupt::InterruptibleThread;
use crate::platform::log_queue;

use super::host_port::{HostNic, HostPort};
use super::nic::{Dealt, Nics};

/// How long workers may take to come to rest. Each turn is microseconds.
const REST_WAIT_MAX: Duration = Duration::from_millis(500);

/// Why the workers do not stand still.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// They hand packets to each other for ever.
    #[error("the workers did not come to rest within {REST_WAIT_MAX:?}")]
    Restless,
    /// One has ended.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    /// Their rings' events cannot be given to anybody.
    #[error("no descriptor left for sockets and rings' events; raise the limit of open files")]
    Descriptors(#[from] io::Error),
}

/// A worker as the control plane knows it.
#[derive(Debug)]
pub struct WorkerEntry {
    handle: WorkerHandle,
    /// Where it is pinned.
    pub cpu: Option<usize>,
    /// Its turns.
    pub turns: Arc<Turns>,
    thread: Arc<InterruptibleThread>,
}

impl WorkerEntry {
    fn watched(&self) -> Watched {
        Watched { turns: Arc::clone(&self.turns), thread: Arc::clone(&self.thread) }
    }
}

/// Where a socket of an uplink is counted.
type CountedSocket = (UplinkId, Arc<Published<SocketCounter>>);

/// The workers and their table.
#[derive(Debug)]
pub struct Fabric {
    workers: Vec<WorkerEntry>,
    pool: PacketPool,
    routes: Mutex<BTreeMap<PortId, Route>>,
    /// Of all that a worker ever had.
    sockets: Mutex<Vec<CountedSocket>>,
    /// Ports whose front-end took the memory away, as the workers find out.
    lost: Receiver<PortId>,
    /// The host, where it shares an uplink with its VMs.
    hosts: Vec<HostPort>,
    /// The reserved groups that each uplink forwards.
    forward_groups: Vec<(UplinkId, ForwardGroups)>,
    watchdog: Mutex<Option<Watchdog>>,
    /// The workers move nothing: they need not hear at once of what they are to do.
    at_rest: AtomicBool,
}

impl Fabric {
    /// Start the configured number of workers with their sockets, which other processes may still
    /// have if they are to begin `at_rest`.
    ///
    /// # Errors
    /// No thread or descriptor to be had; those started are stopped.
    pub fn start(
        config: &Config,
        nics: &Nics,
        sockets: Vec<Dealt>,
        at_rest: bool,
    ) -> io::Result<Arc<Self>> {
        let mut umems: BTreeMap<UplinkId, Arc<Umem>> = BTreeMap::new();
        for (uplink, socket) in sockets.iter().flatten() {
            umems.insert(*uplink, Arc::clone(socket.umem()));
        }
        let umems: Vec<_> = nics.iter().map(|nic| umems.remove(&nic.id)).collect();
        // Those of an uplink that is away too, which come when it does.
        let frames = |worker: WorkerId| {
            FRAMES_PER_SOCKET * (sockets[worker.index()].len() + nics.expected(worker).len())
        };
        let ids = (0u16..).map(WorkerId).take(sockets.len());
        let places = Inbox::places_for(sockets.len());
        let inboxes = ids.map(|worker| Inbox::with_places(places, frames(worker)).map(Arc::new));
        let mut inboxes = inboxes.collect::<io::Result<Vec<_>>>()?;
        let mut hosts = Vec::new();
        for nic in nics.iter().filter(|nic| nic.config.host) {
            let host = HostPort::new(nic, inboxes.len())?;
            inboxes.push(Arc::clone(&host.inbox));
            hosts.push(host);
        }
        let pool = PacketPool::new();
        let (lost, told) = unbounded();
        let cpus = config.worker_cpus.clone().unwrap_or_else(|| choose_cpus(config.workers));
        let (mut workers, mut counters) = (Vec::new(), Vec::new());
        for (id, sockets) in (0u16..).map(WorkerId).zip(sockets) {
            let (handle, mailbox) = WorkerHandle::new(Arc::clone(&inboxes[id.index()]));
            let (umems, inboxes, pool) = (umems.clone(), inboxes.clone(), pool.clone());
            let lost = lost.clone();
            let worker = Worker::new(Setup { id, sockets, umems, inboxes, pool, mailbox, lost })?;
            let worker = worker.expecting(nics.expected(id));
            let worker = if at_rest { worker.at_rest() } else { worker };
            counters.extend(worker.socket_counters());
            let turns = worker.turns();
            let cpu = cpus.get(id.index()).copied();
            let thread = Arc::new(spawn(worker, id, cpu)?);
            workers.push(WorkerEntry { handle, cpu, turns, thread });
        }
        for host in &mut hosts {
            let add = |worker: &WorkerEntry| worker.handle.add_port(host.id, "host".into());
            host.counters =
                workers.iter().map(add).collect::<Result<_, _>>().map_err(io::Error::other)?;
        }
        let watched = workers.iter().map(WorkerEntry::watched).collect();
        let watchdog = Mutex::new(Some(Watchdog::start(watched)?));
        let (routes, sockets) = (Mutex::default(), Mutex::new(counters));
        let at_rest = AtomicBool::new(at_rest);
        let groups = nics.iter().map(|nic| (nic.id, nic.config.forward_groups));
        Ok(Arc::new(Self {
            workers,
            pool,
            routes,
            sockets,
            lost: told,
            hosts,
            forward_groups: groups.collect(),
            watchdog,
            at_rest,
        }))
    }

    /// Stop all workers and wait for them.
    pub fn stop(&self) {
        drop(self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take());
        for worker in &self.workers {
            worker.handle.stop();
        }
        for worker in &self.workers {
            // A worker that panics takes the process with it.
            let _ = worker.thread.join();
        }
    }

    /// The workers.
    pub fn workers(&self) -> &[WorkerEntry] {
        &self.workers
    }

    /// The next port whose front-end took the memory away; waits for it. None when all workers
    /// have ended.
    pub fn next_lost(&self) -> Option<PortId> {
        self.lost.recv().ok()
    }

    /// The host's port on an uplink that it shares with its VMs.
    pub fn host(&self, uplink: UplinkId) -> Option<&HostPort> {
        self.hosts.iter().find(|host| host.uplink == uplink)
    }

    /// How a NIC is from now on, if the host shares it.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn set_host_nic(&self, uplink: UplinkId, nic: HostNic) -> Result<(), WorkerGone> {
        if self.host(uplink).is_some_and(|host| host.set_nic(nic)) {
            self.change_routes(|_| ())
        } else {
            Ok(())
        }
    }

    pub(super) fn pool(&self) -> &PacketPool {
        &self.pool
    }

    /// Give a buffer back that a worker, or the control plane, has handed over.
    pub(super) fn give_back(&self, packet: Packet) {
        packet.go_home(&self.pool, |worker| self.inbox(worker));
    }

    pub(super) fn inbox(&self, worker: WorkerId) -> &Arc<Inbox> {
        self.workers[worker.index()].handle.inbox()
    }

    // ---- sockets --------------------------------------------------------------------------------

    /// What the workers count of an uplink's sockets, those among them that are gone.
    pub fn socket_counters(&self, uplink: UplinkId) -> Vec<Arc<Published<SocketCounter>>> {
        let sockets = self.sockets();
        let of_uplink = sockets.iter().filter(|(id, _)| *id == uplink);
        of_uplink.map(|(_, counters)| Arc::clone(counters)).collect()
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<CountedSocket>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take all sockets of an uplink from the workers, when all of their frames are home.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn take_sockets(&self, uplink: UplinkId) -> Result<Vec<(WorkerId, Socket)>, WorkerGone> {
        let mut taken = Vec::new();
        for (id, worker) in (0u16..).map(WorkerId).zip(&self.workers) {
            let sockets = worker.handle.take_sockets(uplink)?;
            taken.extend(sockets.into_iter().map(|socket| (id, socket)));
        }
        Ok(taken)
    }

    /// Give each worker its sockets of an uplink, whose memory is known by then.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give_sockets(
        &self,
        uplink: UplinkId,
        dealt: Vec<(WorkerId, Socket)>,
    ) -> Result<(), WorkerGone> {
        for (worker, socket) in dealt {
            let worker = &self.workers[worker.index()].handle;
            for counters in worker.give_sockets(uplink, vec![socket])? {
                let mut sockets = self.sockets();
                if !sockets.iter().any(|(_, known)| Arc::ptr_eq(known, &counters)) {
                    sockets.push((uplink, counters));
                }
            }
        }
        Ok(())
    }

    /// Have all workers use this memory of an uplink, which has no sockets with them now.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn set_memory(&self, uplink: UplinkId, umem: Option<&Arc<Umem>>) -> Result<(), WorkerGone> {
        let set = |worker: &WorkerEntry| worker.handle.set_memory(uplink, umem.map(Arc::clone));
        self.workers.iter().try_for_each(set)
    }

    /// How far all sockets are.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn examine(&self) -> Result<Vec<SocketReport>, WorkerGone> {
        let mut reports = Vec::new();
        for worker in &self.workers {
            reports.extend(worker.handle.examine()?);
        }
        Ok(reports)
    }

    // ---- standing still for another process -----------------------------------------------------

    /// Descriptors of all sockets, by uplink and queue.
    ///
    /// # Errors
    /// [`RestError`].
    pub fn socket_descriptors(&self) -> Result<Vec<SocketDescriptor>, RestError> {
        let mut sockets = Vec::new();
        for worker in &self.workers {
            sockets.extend(worker.handle.sockets()??);
        }
        sockets.sort_by_key(|&(uplink, queue, _)| (uplink.index(), queue));
        Ok(sockets)
    }

    /// Have all workers take nothing more, and wait until all that they have taken is where it
    /// goes. What they have then, another process can go on with.
    ///
    /// # Errors
    /// [`RestError`]; workers that rest must be [resumed](Self::resume) all the same.
    pub fn rest(&self) -> Result<Vec<WorkerAtRest>, RestError> {
        let deadline = Instant::now() + REST_WAIT_MAX;
        loop {
            // Nothing waits, and nothing was being done when we saw that: no later count differs.
            let before = self.handled()?;
            let nothing_waits = self.workers.iter().all(|worker| worker.handle.inbox().is_empty());
            if self.handled()? == before && nothing_waits {
                break;
            }
            if Instant::now() > deadline {
                return Err(RestError::Restless);
            }
        }
        self.at_rest.store(true, Ordering::Release);
        Ok(self.tell_all(WorkerHandle::report)?.into_iter().collect::<io::Result<_>>()?)
    }

    /// Tell all workers at once, and wait for all.
    fn tell_all<T>(
        &self,
        tell: impl Fn(&WorkerHandle) -> Result<Acknowledgement<T>, WorkerGone>,
    ) -> Result<Vec<T>, WorkerGone> {
        let told = self.workers.iter().map(|worker| tell(&worker.handle));
        let told = told.collect::<Result<Vec<_>, _>>()?;
        told.into_iter().map(Acknowledgement::wait).collect()
    }

    /// How much the workers, which rest from now on, ever did of what others handed over.
    fn handled(&self) -> Result<Vec<u64>, WorkerGone> {
        self.tell_all(WorkerHandle::rest)
    }

    /// Have sockets where another process left them; false if that cannot be.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn adopt(&self, sockets: Vec<(UplinkId, SocketAtRest)>) -> Result<bool, WorkerGone> {
        let sockets = Arc::new(sockets);
        let adopted = self.tell_all(|worker| worker.adopt(&sockets))?;
        Ok(adopted.into_iter().all(|adopted| adopted))
    }

    /// Have all workers go on.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn resume(&self) -> Result<(), WorkerGone> {
        let routes = self.routes();
        self.at_rest.store(false, Ordering::Release);
        let table = self.table(&routes);
        // Each has its table before it goes on.
        let given = self.workers.iter().map(|it| it.handle.send_forwarding(Arc::clone(&table)));
        let given = given.collect::<Result<Vec<_>, _>>()?;
        self.tell_all(WorkerHandle::resume)?;
        given.into_iter().try_for_each(|given| given.wait().map(drop))
    }

    // ---- ports ----------------------------------------------------------------------------------

    /// Make a port known to all workers. Returns where each counts for it.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn add_port(
        &self,
        port: PortId,
        name: &str,
    ) -> Result<Vec<Arc<Published<PortCounter>>>, WorkerGone> {
        let name: Arc<str> = name.into();
        self.workers.iter().map(|worker| worker.handle.add_port(port, Arc::clone(&name))).collect()
    }

    /// Forget a port.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn remove_port(&self, port: PortId) -> Result<(), WorkerGone> {
        self.workers.iter().try_for_each(|worker| worker.handle.remove_port(port))
    }

    /// Change the routes and give every worker the new table. Returns when all have it.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn change_routes(
        &self,
        change: impl FnOnce(&mut BTreeMap<PortId, Route>),
    ) -> Result<(), WorkerGone> {
        // Held until all have the table, so that tables reach each worker in order.
        let mut routes = self.routes();
        change(&mut routes);
        if self.at_rest.load(Ordering::Acquire) {
            // They get it when they go on.
            return Ok(());
        }
        let table = self.table(&routes);
        self.tell_all(|worker| worker.send_forwarding(Arc::clone(&table)))?;
        Ok(())
    }

    fn table(&self, routes: &BTreeMap<PortId, Route>) -> Arc<Forwarding> {
        let mut builder = ForwardingBuilder::default();
        for (&port, route) in routes {
            builder.add(port, route.clone());
        }
        self.hosts.iter().for_each(|host| host.enter(&mut builder));
        for &(uplink, groups) in &self.forward_groups {
            builder.forward_groups(uplink, groups);
        }
        Arc::new(builder.build())
    }

    /// The routes now in force.
    pub fn routes(&self) -> MutexGuard<'_, BTreeMap<PortId, Route>> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether an uplink has ports that multicast from its wire goes to.
    pub fn floods(&self, uplink: UplinkId) -> bool {
        self.routes().values().any(|route| {
            route.uplink == uplink
                && matches!(route.attachment, crate::datapath::Attachment::Switch { .. })
        })
    }

    // ---- rings ----------------------------------------------------------------------------------

    /// Hand a ring to a worker.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give(
        &self,
        worker: WorkerId,
        port: PortId,
        index: u16,
        ring: Ring,
    ) -> Result<(), WorkerGone> {
        let worker = &self.workers[worker.index()].handle;
        if self.at_rest.load(Ordering::Acquire) {
            worker.give_at_rest(port, index, ring)
        } else {
            worker.give(port, index, ring)
        }
    }

    /// Take a ring back.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn take(
        &self,
        worker: WorkerId,
        port: PortId,
        index: u16,
    ) -> Result<Option<Ring>, WorkerGone> {
        self.workers[worker.index()].handle.take(port, index)
    }

    /// Use another event descriptor for a ring.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn exchange(
        &self,
        (worker, port, index): (WorkerId, PortId, u16),
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), WorkerGone> {
        self.workers[worker.index()].handle.exchange((port, index), kind, event)
    }

    /// Go on with a ring in other memory; the queue as it was, or None if that cannot be.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn relocate(
        &self,
        (worker, port, index): (WorkerId, PortId, u16),
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<Option<Queue>, WorkerGone> {
        self.workers[worker.index()].handle.relocate((port, index), setup, memory)
    }

    /// Look at ports, and at the kick descriptors of those that are told with true. What all
    /// workers have of each.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn survey(&self, ports: &[(PortId, bool)]) -> Result<Vec<Vec<PortSight>>, WorkerGone> {
        let mut sights: Vec<Vec<PortSight>> = Vec::new();
        sights.resize_with(ports.len(), Vec::new);
        for worker in &self.workers {
            for (of_port, sight) in sights.iter_mut().zip(worker.handle.survey(ports.to_vec())?) {
                of_port.push(sight);
            }
        }
        Ok(sights)
    }

    /// All rings of a port with their workers; all counters are then up to date.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn inspect(&self, port: PortId) -> Result<Rings, WorkerGone> {
        let mut rings = Vec::new();
        for (id, worker) in (0u16..).map(WorkerId).zip(&self.workers) {
            rings.extend(worker.handle.inspect(port)?.into_iter().map(|ring| (id, ring)));
        }
        rings.sort_by_key(|(_, ring)| ring.index);
        Ok(rings)
    }

    /// The same of all ports that have any, by one question to each worker.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn inspect_all(&self) -> Result<BTreeMap<PortId, Rings>, WorkerGone> {
        let mut ports = BTreeMap::<PortId, Rings>::new();
        for (id, worker) in (0u16..).map(WorkerId).zip(&self.workers) {
            for (port, ring) in worker.handle.inspect_all()? {
                ports.entry(port).or_default().push((id, ring));
            }
        }
        for rings in ports.values_mut() {
            rings.sort_by_key(|(_, ring)| ring.index);
        }
        Ok(ports)
    }
}

/// A port's rings by number, each with its worker.
pub type Rings = Vec<(WorkerId, RingReport)>;

/// A worker that panics has met a bug of ours, and its guests would be cut off for good while the
/// process seems well. Ended, the process is started again and front-ends reconnect.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        tracing::error!("a worker has panicked: the process ends, to be started again");
        log_queue::flush();
        std::process::abort();
    }
}

/// The last CPUs we may run on, one per worker: the first ones have most of the host's interrupts.
/// None where there are too few: sharing a pinned CPU would be worse than not pinning.
fn choose_cpus(workers: usize) -> Vec<usize> {
    let cpus = core_affinity::get_core_ids().unwrap_or_default();
    if workers > cpus.len() {
        return Vec::new();
    }
    cpus.iter().rev().take(workers).map(|cpu| cpu.id).collect()
}

fn spawn(worker: Worker, id: WorkerId, cpu: Option<usize>) -> io::Result<InterruptibleThread> {
    InterruptibleThread::spawn(format!("worker {}", id.0), move || {
        if let Some(cpu) = cpu
            && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
        {
            tracing::warn!(worker = id.0, cpu, "cannot pin the worker; it runs where it is put");
        }
        let guard = AbortOnPanic;
        worker.run();
        std::mem::forget(guard);
    })
}
