//! The workers, and the forwarding table they all have a copy of.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::channel::{Receiver, unbounded};

use crate::config::Config;
use crate::datapath::{
    Forwarding, ForwardingBuilder, Inbox, PacketPool, PortId, RingReport, Route, Setup, Turns,
    UplinkId, Watchdog, Watched, Worker, WorkerGone, WorkerHandle, WorkerId,
};
use crate::metrics::{PortCounter, Published, SocketCounter};
use crate::virtqueue::{EventFd, EventKind, Ring};
use crate::xdp::Umem;

use crate::platform::interrupt::InterruptibleThread;

use super::uplinks::{Dealt, Nics};

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

/// The workers and their table.
#[derive(Debug)]
pub struct Fabric {
    workers: Vec<WorkerEntry>,
    pool: PacketPool,
    routes: Mutex<BTreeMap<PortId, Route>>,
    sockets: Vec<(UplinkId, u32, Arc<Published<SocketCounter>>)>,
    /// Ports whose front-end took the memory away, as the workers find out.
    lost: Receiver<PortId>,
    watchdog: Mutex<Option<Watchdog>>,
}

impl Fabric {
    /// Start the configured number of workers with their sockets.
    ///
    /// # Errors
    /// No thread or descriptor to be had; those started are stopped.
    pub fn start(config: &Config, nics: &Nics, sockets: Vec<Dealt>) -> io::Result<Arc<Self>> {
        let umems: Vec<Arc<Umem>> = nics.iter().map(|nic| Arc::clone(&nic.umem)).collect();
        let frames = |sockets: &Dealt| {
            let total = sockets.iter().map(|(_, socket)| socket.census().total()).sum::<u64>();
            usize::try_from(total).unwrap_or(usize::MAX)
        };
        let inboxes = sockets.iter().map(|sockets| Inbox::new(frames(sockets)).map(Arc::new));
        let inboxes = inboxes.collect::<io::Result<Vec<_>>>()?;
        let pool = PacketPool::new();
        let (lost, told) = unbounded();
        let cpus = config.worker_cpus.clone().unwrap_or_else(|| choose_cpus(config.workers));
        let (mut workers, mut counters) = (Vec::new(), Vec::new());
        for (id, sockets) in (0u16..).map(WorkerId).zip(sockets) {
            let (handle, mailbox) = WorkerHandle::new(Arc::clone(&inboxes[id.index()]));
            let (umems, inboxes, pool) = (umems.clone(), inboxes.clone(), pool.clone());
            let lost = lost.clone();
            let worker = Worker::new(Setup { id, sockets, umems, inboxes, pool, mailbox, lost })?;
            counters.extend(worker.socket_counters());
            let turns = worker.turns();
            let cpu = cpus.get(id.index()).copied();
            let thread = Arc::new(spawn(worker, id, cpu)?);
            workers.push(WorkerEntry { handle, cpu, turns, thread });
        }
        let watched = workers.iter().map(WorkerEntry::watched).collect();
        let watchdog = Mutex::new(Some(Watchdog::start(watched)?));
        let (routes, sockets) = (Mutex::default(), counters);
        Ok(Arc::new(Self { workers, pool, routes, sockets, lost: told, watchdog }))
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

    pub(super) fn pool(&self) -> &PacketPool {
        &self.pool
    }

    pub(super) fn inbox(&self, worker: WorkerId) -> &Arc<Inbox> {
        self.workers[worker.index()].handle.inbox()
    }

    /// What the workers count of an uplink's sockets.
    pub fn socket_counters(
        &self,
        uplink: UplinkId,
    ) -> impl Iterator<Item = &Published<SocketCounter>> {
        self.sockets
            .iter()
            .filter(move |(id, ..)| *id == uplink)
            .map(|(_, _, counters)| &**counters)
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
        let mut builder = ForwardingBuilder::default();
        for (&port, route) in routes.iter() {
            builder.add(port, route.clone());
        }
        let table: Arc<Forwarding> = Arc::new(builder.build());
        let give = |worker: &WorkerEntry| worker.handle.set_forwarding(Arc::clone(&table));
        self.workers.iter().try_for_each(give)
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
        self.workers[worker.index()].handle.give(port, index, ring)
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

    /// All rings of a port with their workers; all counters are then up to date.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn inspect(&self, port: PortId) -> Result<Vec<(WorkerId, RingReport)>, WorkerGone> {
        let mut rings = Vec::new();
        for (id, worker) in (0u16..).map(WorkerId).zip(&self.workers) {
            rings.extend(worker.handle.inspect(port)?.into_iter().map(|ring| (id, ring)));
        }
        rings.sort_by_key(|(_, ring)| ring.index);
        Ok(rings)
    }
}

/// A worker that panics has met a bug of ours, and its guests would be cut off for good while the
/// process seems well. Ended, the process is started again and front-ends reconnect.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        tracing::error!("a worker has panicked: the process ends, to be started again");
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
