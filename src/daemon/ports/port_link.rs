//! A port's link from its session to the workers: it hands rings over and takes them back.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::control::api::FindingView;
use crate::datapath::{PortId, Target, WorkerGone, WorkerId, is_from_guest, pair_of};
use crate::device::offloads::Offloads;
use crate::guest_memory::GuestMemory;
use crate::packet::Offload;
use crate::vhost_user::{
    Connection, DeferredClose, MemoryPolicy, PortBackend, PortBackendError, SessionBinding,
};
use crate::virtqueue::{EventFd, EventKind, Journals, QueueSetup, Ring};

use super::rarp;
use crate::daemon::workers::{ControlFrame, RingPlace, Workers};

/// The state that a port's session and the API share.
#[derive(Debug, Default)]
struct SessionState {
    /// The connection, to end it.
    stream: Option<Arc<DeferredClose<UnixStream>>>,
    /// Number of the session that is served, or of the last one. Calls of an earlier session that
    /// was left behind are refused: its ring numbers may be another session's by now.
    session: u64,
    binding: SessionBinding,
    /// Receive rings that are with a worker and enabled, by queue pair.
    ready: Vec<u16>,
    /// The findings of the last look.
    findings: Vec<FindingView>,
}

/// A port's link from its session to the workers.
#[derive(Debug)]
pub struct PortLink {
    port: PortId,
    workers: Arc<Workers>,
    /// Merge TCP segments from the wire, if the guest takes large packets.
    coalesce: bool,
    /// The journals of its packed rings.
    journals: Option<Arc<Journals>>,
    memory: MemoryPolicy,
    state: Mutex<SessionState>,
    /// All announcements that were lost.
    lost: AtomicU64,
}

/// The parts of a port's link.
#[derive(Debug)]
pub struct PortLinkSetup {
    /// The port.
    pub port: PortId,
    /// The workers.
    pub workers: Arc<Workers>,
    /// Merge TCP segments from the wire, if the guest takes large packets.
    pub coalesce: bool,
    /// The journals of its packed rings.
    pub journals: Option<Arc<Journals>>,
    /// The memory that its front-ends may share.
    pub memory: MemoryPolicy,
}

/// One session's access to its port's link.
#[derive(Debug)]
pub struct SessionLink {
    link: Arc<PortLink>,
    session: u64,
}

impl PortLink {
    /// The link of a port without a session.
    pub fn new(setup: PortLinkSetup) -> Self {
        let PortLinkSetup { port, workers, coalesce, journals, memory } = setup;
        let (state, lost) = (Mutex::default(), AtomicU64::new(0));
        Self { port, workers, coalesce, journals, memory, state, lost }
    }

    /// The journals of its packed rings, if it has any.
    pub fn journals(&self) -> Option<&Journals> {
        self.journals.as_deref()
    }

    fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begin a session on this connection.
    pub fn connected(self: &Arc<Self>, connection: &Connection) -> Arc<SessionLink> {
        let mut state = self.state();
        state.session += 1;
        state.stream = Some(connection.stream());
        state.findings.clear();
        Arc::new(SessionLink { link: Arc::clone(self), session: state.session })
    }

    /// Refuse all further calls of the session, which is left behind, and take its rings back.
    pub fn cut_off(&self) {
        let mut state = self.state();
        state.session += 1;
        (state.stream, state.binding) = (None, SessionBinding::default());
        state.findings.clear();
        drop(state);
        for (worker, ring) in self.workers.inspect(self.port).unwrap_or_default() {
            let taken = self.set_ready(ring.index, None);
            // If the session has dropped its memory, this thread unmaps it: a worker unmaps
            // nothing.
            if taken.and_then(|()| self.workers.take(self.ring_at(worker, ring.index))).is_err() {
                tracing::error!("a worker is gone");
            }
        }
    }

    /// End the session, as if the front-end had closed the connection.
    pub fn end_session(&self) {
        if let Some(stream) = &self.state().stream {
            // This fails only if the connection is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The state negotiated with the front-end; None if none is connected.
    pub fn session(&self) -> Option<SessionBinding> {
        let state = self.state();
        state.stream.is_some().then(|| state.binding.clone())
    }

    /// The number of the present session, or of the last one.
    pub fn session_number(&self) -> u64 {
        self.state().session
    }

    /// The findings of the last look.
    pub fn findings(&self) -> Vec<FindingView> {
        self.state().findings.clone()
    }

    /// Set the findings of the session with this number, if it is still the present one.
    pub fn set_findings(&self, session: u64, findings: Vec<FindingView>) {
        let mut state = self.state();
        if state.session == session {
            state.findings = findings;
        }
    }

    fn ring_at(&self, worker: WorkerId, index: u16) -> RingPlace {
        RingPlace { worker, port: self.port, index }
    }

    fn worker(&self, index: u16) -> Option<WorkerId> {
        self.workers.routes().get(&self.port).map(|route| route.worker(pair_of(index)))
    }

    /// Tell the workers which queue pairs can receive, if that has changed. `accepted` is Some if
    /// this pair can: the large packets that its guest accepts.
    fn set_ready(&self, index: u16, accepted: Option<Offloads>) -> Result<(), WorkerGone> {
        let ready = accepted.is_some();
        if is_from_guest(index) {
            return Ok(());
        }
        let pair = pair_of(index);
        let mut state = self.state();
        if state.ready.contains(&pair) == ready {
            return Ok(());
        }
        state.ready.retain(|&other| other != pair);
        if ready {
            state.ready.push(pair);
            state.ready.sort_unstable();
        }
        self.workers.change_routes(|routes| {
            if let Some(route) = routes.get_mut(&self.port) {
                route.ready.clone_from(&state.ready);
                if let Some(accepted) = accepted.filter(|_| self.coalesce) {
                    route.coalesce = accepted;
                }
            }
        })
    }
}

impl SessionLink {
    /// The session has ended.
    pub fn disconnected(&self) {
        let mut state = self.link.state();
        if state.session == self.session {
            state.stream = None;
            state.findings.clear();
        }
    }

    /// The port's link, if this session is still the one that is served.
    fn link(&self) -> Result<&PortLink, PortBackendError> {
        let current = self.link.state().session == self.session;
        current.then_some(&*self.link).ok_or(PortBackendError::CutOff)
    }

    /// The link, and the worker of a ring.
    fn served(&self, index: u16) -> Result<(&PortLink, WorkerId), PortBackendError> {
        let link = self.link()?;
        Ok((link, link.worker(index).ok_or(PortBackendError::Stopping)?))
    }
}

impl PortBackend for SessionLink {
    fn give(&self, index: u16, ring: Ring) -> Result<(), PortBackendError> {
        let (link, worker) = self.served(index)?;
        let ready = ring.enabled && ring.broken.is_none();
        let ready = ready.then_some(ring.kind.offloads);
        let given = link.workers.give(link.ring_at(worker, index), ring);
        given
            .and_then(|()| link.set_ready(index, ready))
            .map_err(|WorkerGone| PortBackendError::Stopping)
    }

    fn take(&self, index: u16) -> Result<Option<Ring>, PortBackendError> {
        let (link, worker) = self.served(index)?;
        link.set_ready(index, None)
            .and_then(|()| link.workers.take(link.ring_at(worker, index)))
            .map_err(|WorkerGone| PortBackendError::Stopping)
    }

    fn exchange(
        &self,
        index: u16,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), PortBackendError> {
        let (link, worker) = self.served(index)?;
        let exchanged = link.workers.exchange(link.ring_at(worker, index), kind, event);
        exchanged.map_err(|WorkerGone| PortBackendError::Stopping)
    }

    fn relocate(
        &self,
        index: u16,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<bool, PortBackendError> {
        let (link, worker) = self.served(index)?;
        let before = link.workers.relocate(link.ring_at(worker, index), setup, memory);
        before.map(|before| before.is_some()).map_err(|WorkerGone| PortBackendError::Stopping)
    }

    fn announce(&self, mac: [u8; 6]) {
        let Ok((link, worker)) = self.served(0) else { return };
        let target = Target::FloodFrom { port: link.port };
        let frame = ControlFrame { bytes: &rarp::request(mac), offload: Offload::PLAIN };
        if !link.workers.hand_over(worker, frame, target) {
            let lost = link.lost.fetch_add(1, Ordering::Relaxed) + 1;
            // A front-end may send any number of announcements.
            if lost.is_power_of_two() {
                let port = link.port.0;
                tracing::warn!(port, lost, "announcements were lost: the worker is behind");
            }
        }
    }

    fn bound(&self, binding: SessionBinding) {
        let mut state = self.link.state();
        if state.session == self.session {
            state.binding = binding;
        }
    }

    fn memory_policy(&self) -> MemoryPolicy {
        self.link.memory
    }

    fn journals(&self) -> Option<Arc<Journals>> {
        self.link.journals.clone()
    }
}
