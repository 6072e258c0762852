//! The successor's side: make everything beside the predecessor, then continue where it paused.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};

use crate::datapath::{UplinkId, WorkerGone};
use crate::platform::unix_socket::FileIdentity;
use crate::report::{chain, one_line};
use crate::vhost_user::ContinuedSession;
use crate::xdp::{InheritedUplink, PausedSocket, ProgramError};

use super::ownership_token::Token;
use super::successor_answer::{PREDECESSOR_VARIABLE, Running, SuccessorAnswer};
use super::upgrade_channel::Channel;
use super::upgrade_document::{Descriptors, Foundation, SessionPart, Traffic, VERSION, now};
use super::{port_changes, service_manager, socket_names};
use crate::daemon::nic::Nics;
use crate::daemon::ports::{InheritedPorts, InheritedSocket, PortRecord, Registry};
use crate::daemon::workers::Workers;

/// How long a session's replay may take: each message takes microseconds.
const FOLLOW_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long the predecessor may take to read a full channel.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long reading the kept data may take.
const KEPT_WAIT_MAX: Duration = Duration::from_secs(1);

/// Why this process cannot take over; the predecessor resumes then.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// The channel to it.
    #[error("the way to the process before this one is broken")]
    Channel(#[from] io::Error),
    /// Its documents are of another version.
    #[error("it speaks version {found} of the succession, and this isonic {VERSION}")]
    Version {
        /// The predecessor's version.
        found: u32,
    },
    /// It continues itself, since we took too long.
    #[error("this process was not ready to take over in time")]
    Late,
    /// Its frames are not where it says.
    #[error("its sockets' frames are not where it says")]
    Frames,
    /// A worker has ended.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    /// The XDP program.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// The part of the predecessor's state that stays as it is. Each part is taken by its user.
#[derive(Debug, Default)]
pub struct PredecessorState {
    /// By interface.
    pub uplinks: BTreeMap<String, InheritedUplink>,
    /// The lock of the state directory, if it had one.
    pub state_lock: Option<OwnedFd>,
    /// The lock of the runtime directory, if it had one.
    pub runtime_lock: Option<OwnedFd>,
    /// Its ports, and the API's socket.
    pub ports: InheritedPorts,
}

impl PredecessorState {
    fn of(foundation: Foundation, mut descriptors: Descriptors) -> Self {
        let mut uplinks = BTreeMap::new();
        for part in foundation.uplinks {
            let interface = part.interface.clone();
            if let Some(uplink) = part.join(&mut descriptors) {
                uplinks.insert(interface, uplink);
            }
        }
        let api = foundation.api.and_then(|place| descriptors.take(place));
        let api = api.and_then(|api| api_socket(api.into(), foundation.api_file));
        let state_lock = foundation.state_lock.and_then(|place| descriptors.take(place));
        let runtime_lock = foundation.runtime_lock.and_then(|place| descriptors.take(place));
        let mut sockets = BTreeMap::new();
        for part in foundation.listeners {
            if let Some(listener) = descriptors.take(part.listener) {
                let (port, listener) = (Some(part.port), Some(listener.into()));
                sockets.insert(part.path, InheritedSocket { port, listener, file: part.file });
            }
        }
        let told = foundation.ports.as_ref().map(Vec::len);
        let records: Option<Vec<PortRecord>> =
            foundation.ports.map(|parts| parts.into_iter().filter_map(port).collect());
        let tells_all = told.is_some() && told == records.as_ref().map(Vec::len);
        let ports = InheritedPorts { sockets, api, records, tells_all };
        Self { uplinks, state_lock, runtime_lock, ports }
    }

    /// The API's socket, if it is at this path.
    pub fn take_api(&mut self, path: &Path) -> Option<UnixListener> {
        let (_, socket) = self.ports.api.as_mut().filter(|(at, _)| at == path)?;
        socket.listener.take()
    }
}

/// The API's socket, by its name.
fn api_socket(
    listener: UnixListener,
    file: Option<FileIdentity>,
) -> Option<(PathBuf, InheritedSocket)> {
    let path = listener.local_addr().ok()?.as_pathname()?.to_owned();
    Some((path, InheritedSocket { port: None, listener: Some(listener), file }))
}

/// A port's record. Another version may have fields that we do not know; then the state file is
/// used instead.
fn port(part: serde_json::Value) -> Option<PortRecord> {
    serde_json::from_value(part)
        .inspect_err(
            |error| tracing::warn!(%error, "a port is told of in words of another version"),
        )
        .ok()
}

/// The objects that take over.
#[derive(Clone, Copy, Debug)]
pub struct ImportTarget<'d> {
    /// The ports.
    pub registry: &'d Registry,
    /// The NICs.
    pub nics: &'d Nics,
    /// The workers.
    pub workers: &'d Workers,
    /// The path of the API's socket.
    pub api_socket: Option<&'d Path>,
}

/// The process before this one.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    /// It waits for our answers. Else it has ended, and the service manager kept its state for us.
    waits: bool,
}

/// Tell the process before this one, if it waits, why there will be no daemon. The command line or
/// the configuration is wrong, and nothing of the predecessor's was looked at yet.
pub fn refuse_predecessor(reason: &str) {
    if std::env::var_os(PREDECESSOR_VARIABLE).is_some()
        && let Ok(end) = std::io::stdin().as_fd().try_clone_to_owned()
        // Once the channel is taken, standard input is something else.
        && is_socket(&end)
    {
        Predecessor { channel: Channel::of(end), waits: true }.refuse(reason);
    }
}

fn is_socket(end: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_type(end).is_ok()
}

impl Predecessor {
    /// The process that has started this one to take over, or has handed everything to the service
    /// manager; None if there is no such process.
    ///
    /// # Errors
    /// [`ImportError`], if it waits.
    pub fn find() -> Result<Option<(Self, PredecessorState)>, ImportError> {
        if std::env::var_os(PREDECESSOR_VARIABLE).is_some() {
            return Self::waiting().map(Some);
        }
        let Some(end) = service_manager::kept() else { return Ok(None) };
        let predecessor = Self { channel: Channel::of(end), waits: false };
        match predecessor.foundation() {
            Ok(before) => Ok(Some((predecessor, before))),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(
                    error,
                    "nothing can be made of what was kept: front-ends reconnect"
                );
                Ok(None)
            }
        }
    }

    fn waiting() -> Result<(Self, PredecessorState), ImportError> {
        let end = std::io::stdin().as_fd().try_clone_to_owned()?;
        let predecessor = Self { channel: Channel::of(end), waits: true };
        // Otherwise the channel would stay open for as long as we live.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
        let before = predecessor.foundation();
        let before = before.inspect_err(|error| predecessor.refuse(&error.to_string()))?;
        Ok((predecessor, before))
    }

    /// Whether it continues if we do not take over.
    pub fn waits(&self) -> bool {
        self.waits
    }

    fn foundation(&self) -> Result<PredecessorState, ImportError> {
        let (foundation, descriptors) = self.channel.receive::<Foundation>(self.deadline())?;
        if foundation.version != VERSION {
            return Err(ImportError::Version { found: foundation.version });
        }
        Ok(PredecessorState::of(foundation, descriptors))
    }

    /// The deadline for reading: data that was kept is there already.
    fn deadline(&self) -> Option<Instant> {
        if self.waits { None } else { Some(Instant::now() + KEPT_WAIT_MAX) }
    }

    /// Tell it why this process does not take over.
    pub fn refuse(&self, reason: &str) {
        // If this fails, it sees that we end.
        let _ = self.answer(&SuccessorAnswer::Refused { reason: one_line(reason) });
    }

    fn answer(&self, answer: &SuccessorAnswer) -> io::Result<()> {
        if !self.waits {
            return Ok(());
        }
        self.channel.send(answer, &Descriptors::default(), Instant::now() + ANSWER_WAIT_MAX)
    }

    /// Take over where it paused. Until the end the ports and the workers that were made are
    /// paused.
    ///
    /// # Errors
    /// [`ImportError`]; nothing has moved, and nothing may: the process has to end. A failure after
    /// the token is taken is no error: nobody else could continue.
    pub fn take_over(&self, daemon: ImportTarget<'_>) -> Result<(), ImportError> {
        let ImportTarget { registry, nics, workers, api_socket } = daemon;
        self.get_ready(registry)?;
        let (mut traffic, mut descriptors) = self.channel.receive::<Traffic>(self.deadline())?;
        if traffic.version != VERSION {
            return Err(ImportError::Version { found: traffic.version });
        }
        let token = traffic.token.and_then(|place| descriptors.take(place)).map(Token::of);
        let sessions = join(std::mem::take(&mut traffic.sessions), descriptors);
        // On failure `commit` is leaked rather than dropped: paused sessions must not resume.
        let (commit, ours) = bounded(0);
        let commit = std::mem::ManuallyDrop::new(commit);
        let (followed, lost) = follow(registry, sessions, &ours);
        let sockets = by_number(nics, std::mem::take(&mut traffic.sockets));
        if !workers.adopt(sockets)? {
            return Err(ImportError::Frames);
        }
        for nic in nics.iter() {
            nic.replace_program()?;
        }
        self.take(token.as_ref())?;
        if let Err(error) = workers.resume() {
            tracing::error!(%error, "a worker does not go on");
        }
        let resumed_at = now();
        // These sessions were not replayed in time; their front-ends connect anew. Before the token
        // was ours the connections were the predecessor's.
        end_sessions(registry, &lost);
        // The names come before the sessions resume, so that no port without a name takes a
        // connection.
        let nameless = socket_names::own(registry, api_socket);
        drop(std::mem::ManuallyDrop::into_inner(commit));
        registry.become_owner();
        nameless.iter().for_each(|(port, error)| registry.turn_away(port, error));
        traffic.reconnecting.extend(lost);
        self.tell(&traffic, followed, resumed_at);
        Ok(())
    }

    /// Answer that everything possible is made, and what has changed.
    fn get_ready(&self, registry: &Registry) -> Result<(), ImportError> {
        let told = registry.inherited_records();
        let Some(told) = told else { return Ok(self.answer(&SuccessorAnswer::Ready)?) };
        let changes = port_changes::compare(&told, registry);
        for change in &changes {
            tracing::warn!(%change, "not as it was with the process before this one");
        }
        Ok(self.answer(&SuccessorAnswer::Prepared { changes })?)
    }

    /// Become the owner of everything.
    fn take(&self, token: Option<&Token>) -> Result<(), ImportError> {
        let Some(token) = token else { return Ok(self.answer(&SuccessorAnswer::Taken)?) };
        if !token.take() {
            return Err(ImportError::Late);
        }
        if let Err(error) = self.answer(&SuccessorAnswer::Taken) {
            // The predecessor finds the token taken.
            tracing::warn!(%error, "the process before this one does not hear that we took over");
        }
        Ok(())
    }

    fn tell(&self, traffic: &Traffic, sessions: usize, resumed_at: u64) {
        let outage_nanoseconds = resumed_at.saturating_sub(traffic.stopped_at);
        let asked_at = Some(traffic.asked_at).filter(|&at| at != 0);
        let unanswered = asked_at.map(|at| now().saturating_sub(at)).unwrap_or_default();
        let reconnecting = traffic.reconnecting.clone();
        tracing::info!(
            us = outage_nanoseconds / 1000,
            unanswered_us = unanswered / 1000,
            sessions,
            ?reconnecting,
            "went on where the process before this one rests"
        );
        let running = Running {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            outage_nanoseconds,
            unanswered_nanoseconds: unanswered,
            sessions,
            reconnecting,
        };
        // If this fails, it has ended already.
        let _ = self.answer(&SuccessorAnswer::Running(running));
    }
}

/// The sessions, by port. One that cannot be read is left out, and its front-end connects anew.
fn join(
    sessions: Vec<serde_json::Value>,
    mut descriptors: Descriptors,
) -> BTreeMap<String, ContinuedSession> {
    let mut joined = BTreeMap::new();
    for session in sessions {
        let part = serde_json::from_value::<SessionPart>(session).ok();
        match part.and_then(|part| part.join(&mut descriptors)) {
            Some((port, stream, record)) => {
                joined.insert(port, ContinuedSession { stream: UnixStream::from(stream), record });
            }
            None => tracing::error!("a session is not understood: its front-end connects anew"),
        }
    }
    joined
}

/// Have every port replay its session. Returns how many did, and the ports whose front-ends have to
/// connect anew.
fn follow(
    registry: &Registry,
    mut sessions: BTreeMap<String, ContinuedSession>,
    ours: &Receiver<()>,
) -> (usize, Vec<String>) {
    let mut ports = registry.ports();
    let mut outcomes = Vec::new();
    for (name, port) in ports.iter_mut() {
        let session = sessions.remove(name);
        let expected = session.is_some();
        let outcome = port.socket.inherit(session, ours.clone());
        if expected {
            outcomes.push((name.clone(), outcome));
        }
    }
    drop(ports);
    // Sessions of ports that are not served here.
    let mut reconnecting: Vec<String> = sessions.into_keys().collect();
    let deadline = Instant::now() + FOLLOW_WAIT_MAX;
    let mut followed = 0;
    for (name, outcome) in outcomes {
        match outcome.recv_deadline(deadline) {
            Ok(()) => followed += 1,
            Err(_) => reconnecting.push(name),
        }
    }
    (followed, reconnecting)
}

fn end_sessions(registry: &Registry, lost: &[String]) {
    let ports = registry.ports();
    for port in lost.iter().filter_map(|name| ports.get(name)) {
        port.link.end_session();
    }
}

fn by_number(nics: &Nics, sockets: Vec<(String, PausedSocket)>) -> Vec<(UplinkId, PausedSocket)> {
    let number =
        |(interface, socket): (String, PausedSocket)| Some((nics.by_name(&interface)?.id, socket));
    sockets.into_iter().filter_map(number).collect()
}
