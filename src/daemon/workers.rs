//! The workers, and the forwarding table of which each has a copy.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, unbounded};

use crate::datapath::{
    Acknowledgement, Attachment, Forwarding, ForwardingBuilder, Handover, Inbox, Packet,
    PacketPool, PausedWorker, PortId, PortSight, RingReport, Route, Setup, SocketDescriptor,
    SocketReport, Target, Turns, UplinkId, Watchdog, Watched, Worker, WorkerGone, WorkerHandle,
    WorkerId,
};
use crate::device::groups::ForwardGroups;
use crate::guest_memory::GuestMemory;
use crate::metrics::{PortCounter, Published, SocketCounter};
use crate::packet::Offload;
use crate::platform::interrupt::InterruptibleThread;
use crate::platform::log_queue;
use crate::virtqueue::{EventFd, EventKind, Queue, QueueSetup, Ring};
use crate::xdp::{FRAMES_PER_SOCKET, PausedSocket, Socket, Umem};

use super::host_port::{HostNic, HostPort};

/// How long workers may take to pause. Each turn is microseconds.
const PAUSE_WAIT_MAX: Duration = Duration::from_millis(500);

/// Why the workers did not pause.
#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    /// They hand packets to each other without end.
    #[error("the workers did not come to rest within {PAUSE_WAIT_MAX:?}")]
    NeverIdle,
    /// One has ended.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    /// A descriptor of their sockets or rings' events cannot be duplicated.
    #[error("no descriptor left for sockets and rings' events; raise the limit of open files")]
    Descriptors(#[from] io::Error),
}

/// A worker as the control plane has it.
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

/// The counter of a socket, with its uplink.
type CountedSocket = (UplinkId, Arc<Published<SocketCounter>>);

/// The workers and their table.
#[derive(Debug)]
pub struct Workers {
    entries: Vec<WorkerEntry>,
    pool: PacketPool,
    routes: Mutex<BTreeMap<PortId, Route>>,
    /// The counters of all sockets that a worker ever had.
    sockets: Mutex<Vec<CountedSocket>>,
    /// Ports whose front-end took the memory away, as the workers find them.
    lost: Receiver<PortId>,
    /// The host's ports, on uplinks that the host shares with its VMs.
    hosts: Vec<HostPort>,
    /// The reserved groups that each uplink forwards.
    forward_groups: Vec<(UplinkId, ForwardGroups)>,
    watchdog: Mutex<Option<Watchdog>>,
    /// The workers move nothing: commands need not wait for their acknowledgement.
    paused: AtomicBool,
}

/// The sockets of one worker, each with its uplink.
pub type WorkerSockets = Vec<(UplinkId, Socket)>;

/// The place of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingPlace {
    /// The worker that has it.
    pub worker: WorkerId,
    /// Its port.
    pub port: PortId,
    /// Its number there.
    pub index: u16,
}

/// A frame of the control plane, with its pending offload.
#[derive(Clone, Copy, Debug)]
pub struct ControlFrame<'f> {
    /// The frame.
    pub bytes: &'f [u8],
    /// The checksum or segmentation that is still to be done.
    pub offload: Offload,
}

/// The configuration and sockets with which the workers start.
#[derive(Debug)]
pub struct WorkersSetup {
    /// The CPU of each; chosen here if that is not configured.
    pub cpus: Option<Vec<usize>>,
    /// The sockets of each worker: as many lists as there are workers.
    pub sockets: Vec<WorkerSockets>,
    /// The uplinks, by number.
    pub uplinks: Vec<UplinkSetup>,
    /// Start paused: another process still uses the sockets.
    pub paused: bool,
}

/// The facts of an uplink that the workers need from the start.
#[derive(Clone, Debug)]
pub struct UplinkSetup {
    /// Its number.
    pub id: UplinkId,
    /// If it is away: its queues, each with the worker that gets the socket when it is back.
    pub expected: Vec<(u32, WorkerId)>,
    /// Its NIC, if the host shares it with its VMs.
    pub host: Option<HostNic>,
    /// The reserved groups that it forwards.
    pub forward_groups: ForwardGroups,
}

impl Workers {
    /// Start workers with their sockets.
    ///
    /// # Errors
    /// No thread or descriptor to be had; those started are stopped.
    pub fn start(setup: WorkersSetup) -> io::Result<Arc<Self>> {
        let WorkersSetup { cpus, sockets, uplinks, paused } = setup;
        let cpus = cpus.unwrap_or_else(|| choose_cpus(sockets.len()));
        let umems = umems(&sockets, &uplinks);
        let mut inboxes = inboxes(&sockets, &uplinks)?;
        let mut hosts = Vec::new();
        for uplink in &uplinks {
            if let Some(nic) = uplink.host {
                let host = HostPort::new(uplink.id, nic, inboxes.len())?;
                inboxes.push(Arc::clone(&host.inbox));
                hosts.push(host);
            }
        }
        let pool = PacketPool::new();
        let (lost, told) = unbounded();
        let (mut entries, mut counters) = (Vec::new(), Vec::new());
        for (id, sockets) in (0u16..).map(WorkerId).zip(sockets) {
            let (handle, mailbox) = WorkerHandle::new(Arc::clone(&inboxes[id.index()]));
            let (umems, inboxes, pool) = (umems.clone(), inboxes.clone(), pool.clone());
            let lost = lost.clone();
            let worker = Worker::new(Setup { id, sockets, umems, inboxes, pool, mailbox, lost })?;
            let worker = worker.expecting(expected(&uplinks, id));
            let worker = if paused { worker.paused() } else { worker };
            counters.extend(worker.socket_counters());
            let turns = worker.turns();
            let cpu = cpus.get(id.index()).copied();
            let thread = Arc::new(spawn(worker, id, cpu)?);
            entries.push(WorkerEntry { handle, cpu, turns, thread });
        }
        for host in &mut hosts {
            let add = |worker: &WorkerEntry| worker.handle.add_port(host.id, "host".into());
            host.counters =
                entries.iter().map(add).collect::<Result<_, _>>().map_err(io::Error::other)?;
        }
        let watched = entries.iter().map(WorkerEntry::watched).collect();
        Ok(Arc::new(Self {
            entries,
            pool,
            routes: Mutex::default(),
            sockets: Mutex::new(counters),
            lost: told,
            hosts,
            forward_groups: uplinks.iter().map(|it| (it.id, it.forward_groups)).collect(),
            watchdog: Mutex::new(Some(Watchdog::start(watched)?)),
            paused: AtomicBool::new(paused),
        }))
    }

    /// Stop all workers and wait for them.
    pub fn stop(&self) {
        drop(self.watchdog.lock().unwrap_or_else(PoisonError::into_inner).take());
        for worker in &self.entries {
            worker.handle.stop();
        }
        for worker in &self.entries {
            // A worker's panic aborts the process, so this join cannot fail.
            let _ = worker.thread.join();
        }
    }

    /// All workers.
    pub fn entries(&self) -> &[WorkerEntry] {
        &self.entries
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

    /// Set the address and MTU of a NIC, if the host shares it.
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

    /// Give a buffer back that a worker, or the control plane, has handed over.
    pub fn give_back(&self, packet: Packet) {
        packet.go_home(&self.pool, |worker| self.inbox(worker));
    }

    fn inbox(&self, worker: WorkerId) -> &Arc<Inbox> {
        self.entries[worker.index()].handle.inbox()
    }

    /// Copy a frame of the control plane into a worker's inbox; false if it is full.
    pub fn hand_over(
        &self,
        worker: WorkerId,
        ControlFrame { bytes, offload }: ControlFrame<'_>,
        target: Target,
    ) -> bool {
        let Some(mut packet) = self.pool.take() else { return false };
        packet.room(bytes.len()).copy_from_slice(bytes);
        packet.offload = offload;
        match self.inbox(worker).hand_over(Handover::Packet { packet, target }) {
            Ok(()) => true,
            Err(Handover::Packet { packet, .. }) => {
                self.pool.put(packet);
                false
            }
            Err(Handover::Frame { .. }) => unreachable!("a packet went in"),
        }
    }

    // ---- sockets --------------------------------------------------------------------------------

    /// The counters of an uplink's sockets, including sockets that are gone.
    pub fn socket_counters(&self, uplink: UplinkId) -> Vec<Arc<Published<SocketCounter>>> {
        let sockets = self.sockets();
        let of_uplink = sockets.iter().filter(|(id, _)| *id == uplink);
        of_uplink.map(|(_, counters)| Arc::clone(counters)).collect()
    }

    fn sockets(&self) -> MutexGuard<'_, Vec<CountedSocket>> {
        self.sockets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Take all sockets of an uplink from the workers, after all of their frames have come home.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn take_sockets(&self, uplink: UplinkId) -> Result<Vec<(WorkerId, Socket)>, WorkerGone> {
        let mut taken = Vec::new();
        for (id, worker) in (0u16..).map(WorkerId).zip(&self.entries) {
            let sockets = worker.handle.take_sockets(uplink)?;
            taken.extend(sockets.into_iter().map(|socket| (id, socket)));
        }
        Ok(taken)
    }

    /// Give each worker its sockets of an uplink; the workers must have its memory already.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give_sockets(
        &self,
        uplink: UplinkId,
        dealt: Vec<(WorkerId, Socket)>,
    ) -> Result<(), WorkerGone> {
        for (worker, socket) in dealt {
            let worker = &self.entries[worker.index()].handle;
            for counters in worker.give_sockets(uplink, vec![socket])? {
                let mut sockets = self.sockets();
                if !sockets.iter().any(|(_, known)| Arc::ptr_eq(known, &counters)) {
                    sockets.push((uplink, counters));
                }
            }
        }
        Ok(())
    }

    /// Have all workers use this memory of an uplink, none of whose sockets they have now.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn set_memory(&self, uplink: UplinkId, umem: Option<&Arc<Umem>>) -> Result<(), WorkerGone> {
        let set = |worker: &WorkerEntry| worker.handle.set_memory(uplink, umem.map(Arc::clone));
        self.entries.iter().try_for_each(set)
    }

    /// The progress of all sockets.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn examine(&self) -> Result<Vec<SocketReport>, WorkerGone> {
        let mut reports = Vec::new();
        for worker in &self.entries {
            reports.extend(worker.handle.examine()?);
        }
        Ok(reports)
    }

    // ---- paused for another process -------------------------------------------------------------

    /// Descriptors of all sockets, by uplink and queue.
    ///
    /// # Errors
    /// [`PauseError`].
    pub fn socket_descriptors(&self) -> Result<Vec<SocketDescriptor>, PauseError> {
        let mut sockets = Vec::new();
        for worker in &self.entries {
            sockets.extend(worker.handle.sockets()??);
        }
        sockets.sort_by_key(|&(uplink, queue, _)| (uplink.index(), queue));
        Ok(sockets)
    }

    /// Have all workers take no more packets, and wait until all that they have taken are at their
    /// destination. Another process can then continue from their state.
    ///
    /// # Errors
    /// [`PauseError`]; the workers must be [resumed](Self::resume) all the same.
    pub fn pause(&self) -> Result<Vec<PausedWorker>, PauseError> {
        let deadline = Instant::now() + PAUSE_WAIT_MAX;
        loop {
            // If nothing waits and the counts stay equal, no packet was in a worker's hands: no
            // later count differs.
            let before = self.handled()?;
            let nothing_waits = self.entries.iter().all(|worker| worker.handle.inbox().is_empty());
            if self.handled()? == before && nothing_waits {
                break;
            }
            if Instant::now() > deadline {
                return Err(PauseError::NeverIdle);
            }
        }
        self.paused.store(true, Ordering::Release);
        Ok(self.tell_all(WorkerHandle::report)?.into_iter().collect::<io::Result<_>>()?)
    }

    /// Tell all workers first, then wait for all.
    fn tell_all<T>(
        &self,
        tell: impl Fn(&WorkerHandle) -> Result<Acknowledgement<T>, WorkerGone>,
    ) -> Result<Vec<T>, WorkerGone> {
        let told = self.entries.iter().map(|worker| tell(&worker.handle));
        let told = told.collect::<Result<Vec<_>, _>>()?;
        told.into_iter().map(Acknowledgement::wait).collect()
    }

    /// Pause the workers. Returns how many handed-over packets each has ever taken.
    fn handled(&self) -> Result<Vec<u64>, WorkerGone> {
        self.tell_all(WorkerHandle::pause)
    }

    /// Have the sockets continue where another process paused them; false if that is impossible.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn adopt(&self, sockets: Vec<(UplinkId, PausedSocket)>) -> Result<bool, WorkerGone> {
        let sockets = Arc::new(sockets);
        let adopted = self.tell_all(|worker| worker.adopt(&sockets))?;
        Ok(adopted.into_iter().all(|adopted| adopted))
    }

    /// Have all workers continue.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn resume(&self) -> Result<(), WorkerGone> {
        let routes = self.routes();
        self.paused.store(false, Ordering::Release);
        let table = self.table(&routes);
        // Each worker has its table before it continues.
        let given = self.entries.iter().map(|it| it.handle.send_forwarding(Arc::clone(&table)));
        let given = given.collect::<Result<Vec<_>, _>>()?;
        self.tell_all(WorkerHandle::resume)?;
        given.into_iter().try_for_each(|given| given.wait().map(drop))
    }

    // ---- ports ----------------------------------------------------------------------------------

    /// Make a port known to all workers. Returns the counter of each worker for it.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn add_port(
        &self,
        port: PortId,
        name: &str,
    ) -> Result<Vec<Arc<Published<PortCounter>>>, WorkerGone> {
        let name: Arc<str> = name.into();
        self.entries.iter().map(|worker| worker.handle.add_port(port, Arc::clone(&name))).collect()
    }

    /// Forget a port.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn remove_port(&self, port: PortId) -> Result<(), WorkerGone> {
        self.entries.iter().try_for_each(|worker| worker.handle.remove_port(port))
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
        if self.paused.load(Ordering::Acquire) {
            // They get it when they continue.
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

    /// Whether an uplink has ports to which multicast from its wire goes.
    pub fn floods(&self, uplink: UplinkId) -> bool {
        self.routes().values().any(|route| {
            route.uplink == uplink && matches!(route.attachment, Attachment::Switch { .. })
        })
    }

    // ---- rings ----------------------------------------------------------------------------------

    /// Hand a ring to a worker.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give(&self, at: RingPlace, ring: Ring) -> Result<(), WorkerGone> {
        let RingPlace { worker, port, index } = at;
        let worker = &self.entries[worker.index()].handle;
        if self.paused.load(Ordering::Acquire) {
            worker.give_paused(port, index, ring)
        } else {
            worker.give(port, index, ring)
        }
    }

    /// Take a ring back.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn take(&self, at: RingPlace) -> Result<Option<Ring>, WorkerGone> {
        self.entries[at.worker.index()].handle.take(at.port, at.index)
    }

    /// Use another event descriptor for a ring.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn exchange(
        &self,
        at: RingPlace,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), WorkerGone> {
        self.entries[at.worker.index()].handle.exchange((at.port, at.index), kind, event)
    }

    /// Continue with a ring in other memory; the old queue, or None if that is impossible.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn relocate(
        &self,
        at: RingPlace,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<Option<Queue>, WorkerGone> {
        self.entries[at.worker.index()].handle.relocate((at.port, at.index), setup, memory)
    }

    /// Look at ports, and, where the flag is true, at their kick descriptors. Returns what each
    /// worker sees of each port.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn survey(&self, ports: &[(PortId, bool)]) -> Result<Vec<Vec<PortSight>>, WorkerGone> {
        let mut sights: Vec<Vec<PortSight>> = Vec::new();
        sights.resize_with(ports.len(), Vec::new);
        for worker in &self.entries {
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
    pub fn inspect(&self, port: PortId) -> Result<PortRings, WorkerGone> {
        let mut rings = Vec::new();
        for (id, worker) in (0u16..).map(WorkerId).zip(&self.entries) {
            rings.extend(worker.handle.inspect(port)?.into_iter().map(|ring| (id, ring)));
        }
        rings.sort_by_key(|(_, ring)| ring.index);
        Ok(rings)
    }

    /// [`inspect`](Self::inspect) for all ports that have rings, with one command to each worker.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn inspect_all(&self) -> Result<BTreeMap<PortId, PortRings>, WorkerGone> {
        let mut ports = BTreeMap::<PortId, PortRings>::new();
        for (id, worker) in (0u16..).map(WorkerId).zip(&self.entries) {
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
pub type PortRings = Vec<(WorkerId, RingReport)>;

/// A worker's panic is a bug of ours. Its guests would be cut off for good while the process seems
/// well. Once aborted, the process is started again and front-ends reconnect.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        tracing::error!("a worker has panicked: the process ends, to be started again");
        log_queue::flush();
        std::process::abort();
    }
}

/// The frame memory of each uplink that is there.
fn umems(sockets: &[WorkerSockets], uplinks: &[UplinkSetup]) -> Vec<Option<Arc<Umem>>> {
    let of = |uplink: &UplinkSetup| {
        let mut sockets = sockets.iter().flatten();
        let socket = sockets.find(|(id, _)| *id == uplink.id);
        socket.map(|(_, socket)| Arc::clone(socket.umem()))
    };
    uplinks.iter().map(of).collect()
}

/// The queues whose sockets a worker gets when their uplink is back.
fn expected(uplinks: &[UplinkSetup], worker: WorkerId) -> Vec<(UplinkId, u32)> {
    let of = |uplink: &UplinkSetup| {
        let id = uplink.id;
        let queues = uplink.expected.iter().filter(|&&(_, other)| other == worker);
        queues.map(|&(queue, _)| (id, queue)).collect::<Vec<_>>()
    };
    uplinks.iter().flat_map(of).collect()
}

/// One inbox for each worker, with room for the frames of its sockets, present and expected.
fn inboxes(sockets: &[WorkerSockets], uplinks: &[UplinkSetup]) -> io::Result<Vec<Arc<Inbox>>> {
    let places = Inbox::places_for(sockets.len());
    let inbox = |(id, own): (WorkerId, &WorkerSockets)| {
        let frames = FRAMES_PER_SOCKET * (own.len() + expected(uplinks, id).len());
        Inbox::with_places(places, frames).map(Arc::new)
    };
    (0u16..).map(WorkerId).zip(sockets).map(inbox).collect()
}

/// The last CPUs on which we may run, one per worker: the first ones have most of the host's
/// interrupts. None where there are too few: sharing a pinned CPU would be worse than not pinning.
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
