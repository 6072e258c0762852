//! A port's link from its session to the workers: rings go out, rings come back.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::control::api::FindingView;
use crate::datapath::{PortId, Target, WorkerGone, WorkerId, is_from_guest, pair_of};
use crate::device::offloads::Offloads;
use crate::guest_memory::GuestMemory;
use crate::packet::Offload;
use crate::vhost_user::{HostError, PortHost, SessionBinding};
use crate::virtqueue::{EventFd, EventKind, Journals, QueueSetup, Ring};

use super::fabric::Fabric;
use super::rarp;

/// What a port's session and the API share.
#[derive(Debug, Default)]
struct SessionState {
    /// The connection, to end it.
    stream: Option<UnixStream>,
    binding: SessionBinding,
    /// Receive rings that are with a worker and enabled, by queue pair.
    ready: Vec<u16>,
    /// Sessions so far: tells them apart.
    sessions: u64,
    /// What was found at the last look.
    findings: Vec<FindingView>,
}

/// A port's link from its session to the workers.
#[derive(Debug)]
pub struct PortLink {
    port: PortId,
    fabric: Arc<Fabric>,
    /// Merge TCP segments from the wire, if the guest takes large packets.
    coalesce: bool,
    /// Where its packed rings are kept.
    journals: Option<Arc<Journals>>,
    state: Mutex<SessionState>,
    /// Announcements that were lost, ever.
    lost: AtomicU64,
}

impl PortLink {
    /// Of a port without a session.
    pub fn new(
        port: PortId,
        fabric: Arc<Fabric>,
        coalesce: bool,
        journals: Option<Arc<Journals>>,
    ) -> Self {
        let (state, lost) = (Mutex::default(), AtomicU64::new(0));
        Self { port, fabric, coalesce, journals, state, lost }
    }

    fn state(&self) -> MutexGuard<'_, SessionState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session begins on this connection.
    pub fn connected(&self, stream: &UnixStream) {
        let mut state = self.state();
        // Without a duplicate the session cannot be ended from here, which is all that is lost.
        state.stream = stream.try_clone().ok();
        state.sessions += 1;
        state.findings.clear();
    }

    /// The session has ended.
    pub fn disconnected(&self) {
        let mut state = self.state();
        state.stream = None;
        state.findings.clear();
    }

    /// End the session, as if the front-end had closed the connection.
    pub fn end_session(&self) {
        if let Some(stream) = &self.state().stream {
            // It fails only if the connection is closed already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Whether a front-end is connected, and what is agreed on with it.
    pub fn session(&self) -> Option<SessionBinding> {
        let state = self.state();
        state.stream.is_some().then(|| state.binding.clone())
    }

    /// The number of the session, the last one if there is none now.
    pub fn session_number(&self) -> u64 {
        self.state().sessions
    }

    /// What was found at the last look.
    pub fn findings(&self) -> Vec<FindingView> {
        self.state().findings.clone()
    }

    /// This was found, of the session with this number if it is still there.
    pub fn set_findings(&self, session: u64, findings: Vec<FindingView>) {
        let mut state = self.state();
        if state.sessions == session {
            state.findings = findings;
        }
    }

    fn worker(&self, index: u16) -> Option<WorkerId> {
        self.fabric.routes().get(&self.port).map(|route| route.worker(pair_of(index)))
    }

    /// Let the workers know which queue pairs can receive, if that has changed; `accepted` is what
    /// the guest of one that can takes of large packets.
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
        self.fabric.change_routes(|routes| {
            if let Some(route) = routes.get_mut(&self.port) {
                route.ready.clone_from(&state.ready);
                if let Some(accepted) = accepted.filter(|_| self.coalesce) {
                    route.coalesce = accepted;
                }
            }
        })
    }
}

impl PortHost for PortLink {
    fn give(&self, index: u16, ring: Ring) -> Result<(), HostError> {
        let worker = self.worker(index).ok_or(HostError::Stopping)?;
        let ready = ring.enabled && ring.broken.is_none();
        let ready = ready.then_some(ring.kind.offloads);
        let given = self.fabric.give(worker, self.port, index, ring);
        given.and_then(|()| self.set_ready(index, ready)).map_err(|WorkerGone| HostError::Stopping)
    }

    fn take(&self, index: u16) -> Result<Option<Ring>, HostError> {
        let worker = self.worker(index).ok_or(HostError::Stopping)?;
        self.set_ready(index, None)
            .and_then(|()| self.fabric.take(worker, self.port, index))
            .map_err(|WorkerGone| HostError::Stopping)
    }

    fn exchange(
        &self,
        index: u16,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), HostError> {
        let worker = self.worker(index).ok_or(HostError::Stopping)?;
        let exchanged = self.fabric.exchange((worker, self.port, index), kind, event);
        exchanged.map_err(|WorkerGone| HostError::Stopping)
    }

    fn relocate(
        &self,
        index: u16,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<bool, HostError> {
        let worker = self.worker(index).ok_or(HostError::Stopping)?;
        let before = self.fabric.relocate((worker, self.port, index), setup, memory);
        before.map(|before| before.is_some()).map_err(|WorkerGone| HostError::Stopping)
    }

    fn announce(&self, mac: [u8; 6]) {
        let target = Target::FloodFrom { port: self.port };
        if let Some(worker) = self.worker(0)
            && !self.fabric.hand_over(worker, (&rarp::request(mac), Offload::PLAIN), target)
        {
            let lost = self.lost.fetch_add(1, Ordering::Relaxed) + 1;
            // A front-end may ask for any number of them.
            if lost.is_power_of_two() {
                let port = self.port.0;
                tracing::warn!(port, lost, "announcements were lost: the worker is behind");
            }
        }
    }

    fn bound(&self, binding: SessionBinding) {
        self.state().binding = binding;
    }

    fn journals(&self) -> Option<Arc<Journals>> {
        self.journals.clone()
    }
}
