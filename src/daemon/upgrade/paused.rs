//! Everything paused for another process, and its state then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::daemon::nic::Nics;
use crate::daemon::ports::{LockedPorts, Port};
use crate::daemon::workers::Workers;
use crate::datapath::{PausedRing, PausedWorker, PortId};
use crate::report::chain;
use crate::vhost_user::{PausedSession, WorkerRing};

use super::upgrade_document::{Descriptors, SaidPart, SessionPart, Traffic, VERSION, now};
use super::upgrade_error::UpgradeError;

/// How long all sessions together may take to pause.
const PAUSE_WAIT_MAX: Duration = Duration::from_millis(500);

/// Everything is paused, and resumes when this is dropped, unless another process owns it by then.
///
/// The ports are locked meanwhile: no port is added or removed between two processes. It takes up
/// to half a second for the sessions, as long for the workers, and then until the successor has
/// everything.
pub(super) struct Paused<'r> {
    nics: &'r Nics,
    workers: &'r Arc<Workers>,
    ports: LockedPorts<'r>,
    armed: bool,
    /// Ports whose session was cut off for it.
    pub cut: Vec<String>,
}

impl<'r> Paused<'r> {
    /// Begin with these, which are not paused yet.
    pub fn new(nics: &'r Nics, workers: &'r Arc<Workers>, ports: LockedPorts<'r>) -> Self {
        Self { nics, workers, ports, armed: true, cut: Vec::new() }
    }

    /// Everything is another process's: nothing is resumed.
    pub fn is_left(&mut self) {
        self.armed = false;
    }

    /// Pause everything, and record the state of sockets and sessions.
    ///
    /// # Errors
    /// [`UpgradeError`].
    pub fn traffic(&mut self) -> Result<(Traffic, Descriptors), UpgradeError> {
        let asked_at = now();
        let (sessions, reconnecting) = self.pause();
        self.cut.clone_from(&reconnecting);
        self.nics.stop_threads();
        let stopped_at = now();
        let workers = self.workers.pause()?;
        // Packets that the workers had for the host, whose thread has stopped.
        self.nics.iter().for_each(|nic| nic.finish_host(self.workers));
        let (mut sockets, mut rings) = (Vec::new(), Vec::new());
        for PausedWorker { sockets: own, rings: of } in workers {
            for (uplink, socket) in own {
                let nic = self.nics.iter().find(|nic| nic.id == uplink);
                let interface = nic.map(|nic| nic.config.interface.clone());
                sockets.push((interface.unwrap_or_default(), socket));
            }
            rings.extend(of);
        }
        rings.sort_by_key(|ring| ring.index);
        let mut descriptors = Descriptors::default();
        let mut parts = Vec::new();
        for (id, port, session) in sessions {
            let (own, others) = rings.into_iter().partition(|ring: &PausedRing| ring.port == id);
            rings = others;
            let part = session_part(port, session, own, &mut descriptors);
            parts.push(
                serde_json::to_value(part).map_err(|error| UpgradeError::Give(error.into()))?,
            );
        }
        let (version, sessions, token) = (VERSION, parts, None);
        let traffic =
            Traffic { version, asked_at, stopped_at, sockets, token, reconnecting, sessions };
        Ok((traffic, descriptors))
    }

    /// Have all sessions pause, within one deadline for all of them. Returns those that do, and the
    /// ports whose front-ends have to connect anew.
    fn pause(&mut self) -> (Vec<(PortId, String, PausedSession)>, Vec<String>) {
        let until = Instant::now() + PAUSE_WAIT_MAX;
        let ask = |(name, port): (&String, &mut Port)| {
            let connected = port.link.session().is_some();
            (port.id, name.clone(), connected, port.socket.ask_to_pause(until))
        };
        let asked: Vec<_> = self.ports.iter_mut().map(ask).collect();
        let (mut sessions, mut reconnecting) = (Vec::new(), Vec::new());
        for (id, name, connected, resting) in asked {
            match resting.wait() {
                Some(session) => sessions.push((id, name, session)),
                None if connected => reconnecting.push(name),
                None => {}
            }
        }
        (sessions, reconnecting)
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for nic in self.nics.iter() {
            // The successor may have put its own program there.
            if let Err(error) = nic.replace_program() {
                tracing::error!(error = chain(&error), "another process's XDP program stays");
            }
        }
        if self.workers.resume().is_err() {
            tracing::error!("a worker is gone");
        }
        if let Err(error) = self.nics.start_threads(self.workers) {
            tracing::error!(%error, "multicast is brought no more");
        }
        for port in self.ports.values_mut() {
            port.socket.resume();
        }
    }
}

/// A session with its rings, which were with the workers.
fn session_part(
    port: String,
    PausedSession { stream, record }: PausedSession,
    rings: Vec<PausedRing>,
    descriptors: &mut Descriptors,
) -> SessionPart {
    let of_rings = rings.into_iter().flat_map(|ring| {
        let PausedRing { index, position, broken, kick, call, err, .. } = ring;
        WorkerRing { index, position, broken, events: [kick, call, err] }.messages()
    });
    let said = record.messages.into_iter().chain(of_rings);
    let said = said.map(|said| SaidPart::part(said, descriptors)).collect();
    let stream = descriptors.put(stream);
    SessionPart { port, stream, said, ran: record.ran, named: record.named }
}
