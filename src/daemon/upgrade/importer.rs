//! The successor's side: make everything beside the predecessor, then go on where it rests.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};

use crate::config::PortConfig;
use crate::datapath::{UplinkId, WorkerGone};
use crate::platform::unix_socket::FileIdentity;
use crate::report::{chain, one_line};
use crate::vhost_user::InheritedSession;
use crate::xdp::{InheritedUplink, ProgramError, SocketAtRest};

use super::channel::Channel;
use super::token::Token;
use super::upgrade_document::{Descriptors, Foundation, PortPart, SessionPart, Traffic, VERSION};
use super::{
    Answer, PREDECESSOR_VARIABLE, Running, now, port_changes, service_manager, socket_names,
};
use crate::daemon::ports::Registry;

/// How long a session may take to be followed: each message is microseconds.
const FOLLOW_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long the predecessor may take to read a full channel.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(1);

/// How long what was kept may take to be read.
const KEPT_WAIT_MAX: Duration = Duration::from_secs(1);

/// Why we cannot go on where the predecessor rests; it goes on then.
#[derive(Debug, thiserror::Error)]
pub enum TakeError {
    /// The way to it.
    #[error("the way to the process before this one is broken")]
    Channel(#[from] io::Error),
    /// Another version's documents.
    #[error("it speaks version {found} of the succession, and this isonic {VERSION}")]
    Version {
        /// As it says.
        found: u32,
    },
    /// It continues itself, since we took too long.
    #[error("this process was not ready to take over in time")]
    Late,
    /// Its frames are not as it says.
    #[error("its sockets' frames are not where it says")]
    Frames,
    /// A worker has ended.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    /// The XDP program.
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// What the predecessor leaves that stays as it is.
#[derive(Debug, Default)]
pub struct Estate {
    uplinks: BTreeMap<String, InheritedUplink>,
    api: Option<(PathBuf, LeftSocket)>,
    state_lock: Option<OwnedFd>,
    runtime_lock: Option<OwnedFd>,
    /// By their names: that is what front-ends know of a port.
    listeners: BTreeMap<PathBuf, LeftSocket>,
    /// As they are with it; None if it does not say.
    ports: Option<Vec<PortPart>>,
    /// It says so of all, in words that are understood.
    tells_all_ports: bool,
}

/// A listening socket of the predecessor's.
#[derive(Debug)]
pub(super) struct LeftSocket {
    /// Whose it was; None if it was the API's.
    port: Option<String>,
    /// None if it was taken.
    pub listener: Option<UnixListener>,
    /// The file of its name; None if that is not told.
    pub file: Option<FileIdentity>,
}

impl Estate {
    fn of(foundation: Foundation, mut descriptors: Descriptors) -> Self {
        let mut estate = Self::default();
        for part in foundation.uplinks {
            let interface = part.interface.clone();
            if let Some(uplink) = part.join(&mut descriptors) {
                estate.uplinks.insert(interface, uplink);
            }
        }
        let api = foundation.api.and_then(|place| descriptors.take(place));
        estate.api = api.and_then(|api| api_socket(api.into(), foundation.api_file));
        estate.state_lock = foundation.state_lock.and_then(|place| descriptors.take(place));
        estate.runtime_lock = foundation.runtime_lock.and_then(|place| descriptors.take(place));
        for part in foundation.listeners {
            if let Some(listener) = descriptors.take(part.listener) {
                let (port, listener) = (Some(part.port), Some(listener.into()));
                let left = LeftSocket { port, listener, file: part.file };
                estate.listeners.insert(part.path, left);
            }
        }
        let told = foundation.ports.as_ref().map(Vec::len);
        estate.ports = foundation.ports.map(|parts| parts.into_iter().filter_map(port).collect());
        estate.tells_all_ports = told.is_some() && told == estate.ports.as_ref().map(Vec::len);
        estate
    }

    /// A port as it was, if that is told.
    pub fn port(&self, name: &str) -> Option<&PortPart> {
        self.ports.iter().flatten().find(|part| part.config.name == name)
    }

    /// All ports as they were, if that is told.
    pub fn ports(&self) -> Option<&Vec<PortPart>> {
        self.ports.as_ref()
    }

    /// Whether it has no ports but those that it tells of.
    pub fn tells_all_ports(&self) -> bool {
        self.tells_all_ports
    }

    /// The ports that it was given at run time.
    pub fn added(&self) -> impl Iterator<Item = &PortConfig> {
        let added = self.ports.iter().flatten().filter(|part| !part.permanent);
        added.map(|part| &part.config)
    }

    /// The uplink of this name.
    pub fn take_uplink(&mut self, interface: &str) -> Option<InheritedUplink> {
        self.uplinks.remove(interface)
    }

    /// The API's socket, if it is at this path.
    pub fn take_api(&mut self, path: &Path) -> Option<UnixListener> {
        let (_, left) = self.api.as_mut().filter(|(at, _)| at == path)?;
        left.listener.take()
    }

    /// The lock of the state directory, if it had one.
    pub fn take_state_lock(&mut self) -> Option<OwnedFd> {
        self.state_lock.take()
    }

    /// The lock of the runtime directory, if it had one.
    pub fn take_runtime_lock(&mut self) -> Option<OwnedFd> {
        self.runtime_lock.take()
    }

    /// Whether a port's socket is among them.
    pub fn has_listener(&self, port: &str) -> bool {
        self.listeners.values().any(|left| left.port.as_deref() == Some(port))
    }

    /// The socket at this path, of whatever port.
    pub fn take_listener(&mut self, path: &Path) -> Option<UnixListener> {
        self.listeners.get_mut(path)?.listener.take()
    }

    /// All sockets, taken or not, by their names.
    pub(super) fn take_sockets(&mut self) -> BTreeMap<PathBuf, LeftSocket> {
        let mut sockets = std::mem::take(&mut self.listeners);
        sockets.extend(self.api.take());
        sockets
    }
}

/// The API's socket, by its name.
fn api_socket(listener: UnixListener, file: Option<FileIdentity>) -> Option<(PathBuf, LeftSocket)> {
    let path = listener.local_addr().ok()?.as_pathname()?.to_owned();
    Some((path, LeftSocket { port: None, listener: Some(listener), file }))
}

/// A port that another version may say more of than we know: then the state file has it.
fn port(part: serde_json::Value) -> Option<PortPart> {
    serde_json::from_value(part)
        .inspect_err(
            |error| tracing::warn!(%error, "a port is told of in words of another version"),
        )
        .ok()
}

/// The process before this one.
#[derive(Debug)]
pub struct Predecessor {
    channel: Channel,
    /// It waits for what we say. Else it is gone, and what it left was kept for us.
    waits: bool,
}

/// Tell the process before this one, if it waits, why there will be no daemon: the command line or
/// the configuration is wrong, before anything of its was looked at.
pub fn refuse_predecessor(reason: &str) {
    if std::env::var_os(PREDECESSOR_VARIABLE).is_some()
        && let Ok(end) = std::io::stdin().as_fd().try_clone_to_owned()
        // Once it is taken, standard input is something else.
        && is_socket(&end)
    {
        Predecessor { channel: Channel::of(end), waits: true }.refuse(reason);
    }
}

fn is_socket(end: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_type(end).is_ok()
}

impl Predecessor {
    /// The one that has started this process for it to go on, or that has left everything with the
    /// service manager; None if this process begins anew.
    ///
    /// # Errors
    /// [`TakeError`], where it waits.
    pub fn find() -> Result<Option<(Self, Estate)>, TakeError> {
        if std::env::var_os(PREDECESSOR_VARIABLE).is_some() {
            return Self::waiting().map(Some);
        }
        let Some(end) = service_manager::kept() else { return Ok(None) };
        let predecessor = Self { channel: Channel::of(end), waits: false };
        match predecessor.foundation() {
            Ok(estate) => Ok(Some((predecessor, estate))),
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

    fn waiting() -> Result<(Self, Estate), TakeError> {
        let end = std::io::stdin().as_fd().try_clone_to_owned()?;
        let predecessor = Self { channel: Channel::of(end), waits: true };
        // Else the channel would stay open for as long as we live.
        rustix::stdio::dup2_stdin(File::open("/dev/null")?).map_err(io::Error::from)?;
        let estate = predecessor.foundation();
        let estate = estate.inspect_err(|error| predecessor.refuse(&error.to_string()))?;
        Ok((predecessor, estate))
    }

    /// Whether it continues if we do not take over.
    pub fn waits(&self) -> bool {
        self.waits
    }

    fn foundation(&self) -> Result<Estate, TakeError> {
        let (foundation, descriptors) = self.channel.receive::<Foundation>(self.deadline())?;
        if foundation.version != VERSION {
            return Err(TakeError::Version { found: foundation.version });
        }
        Ok(Estate::of(foundation, descriptors))
    }

    /// What was kept is there.
    fn deadline(&self) -> Option<Instant> {
        if self.waits { None } else { Some(Instant::now() + KEPT_WAIT_MAX) }
    }

    /// Say why we do not go on.
    pub fn refuse(&self, reason: &str) {
        // Then it sees that we end.
        let _ = self.answer(&Answer::Refused { reason: one_line(reason) });
    }

    fn answer(&self, answer: &Answer) -> io::Result<()> {
        if !self.waits {
            return Ok(());
        }
        self.channel.send(answer, &Descriptors::default(), Instant::now() + ANSWER_WAIT_MAX)
    }

    /// Take over where it rests: ports are made, and they and the workers are at rest.
    ///
    /// # Errors
    /// [`TakeError`]; nothing has moved, and nothing may: the process has to end. Nothing that
    /// fails after the token is taken is an error: there is nobody else who could continue.
    pub fn take_over(&self, registry: &Registry) -> Result<(), TakeError> {
        self.get_ready(registry)?;
        let (mut traffic, mut descriptors) = self.channel.receive::<Traffic>(self.deadline())?;
        if traffic.version != VERSION {
            return Err(TakeError::Version { found: traffic.version });
        }
        let token = traffic.token.and_then(|place| descriptors.take(place)).map(Token::of);
        let sessions = join(std::mem::take(&mut traffic.sessions), descriptors);
        // Forgotten rather than dropped where this fails: what is at rest must not go on.
        let (commit, ours) = bounded(0);
        let commit = std::mem::ManuallyDrop::new(commit);
        let (followed, lost) = follow(registry, sessions, &ours);
        let sockets = by_number(registry, std::mem::take(&mut traffic.sockets));
        if !registry.fabric.adopt(sockets)? {
            return Err(TakeError::Frames);
        }
        for nic in registry.nics.iter() {
            nic.replace_program()?;
        }
        self.take(token.as_ref())?;
        if let Err(error) = registry.fabric.resume() {
            tracing::error!(%error, "a worker does not go on");
        }
        let resumed_at = now();
        // They are late only, and their front-ends connect anew. Before the token was ours the
        // connections were the other's.
        end_sessions(registry, &lost);
        // Before anybody is let in where there is no name.
        let nameless = socket_names::own(registry);
        drop(std::mem::ManuallyDrop::into_inner(commit));
        registry.place_journals();
        *registry.estate.lock().unwrap_or_else(PoisonError::into_inner) = None;
        nameless.iter().for_each(|(port, error)| registry.turn_away(port, error));
        traffic.reconnecting.extend(lost);
        self.tell(&traffic, followed, resumed_at);
        Ok(())
    }

    /// Say that all is made that can be, and what is otherwise than it was.
    fn get_ready(&self, registry: &Registry) -> Result<(), TakeError> {
        let told = registry.told();
        let Some(told) = told else { return Ok(self.answer(&Answer::Ready)?) };
        let changes = port_changes::compare(&told, registry);
        for change in &changes {
            tracing::warn!(%change, "not as it was with the process before this one");
        }
        Ok(self.answer(&Answer::Prepared { changes })?)
    }

    /// Be the owner of everything from here on.
    fn take(&self, token: Option<&Token>) -> Result<(), TakeError> {
        let Some(token) = token else { return Ok(self.answer(&Answer::Taken)?) };
        if !token.take() {
            return Err(TakeError::Late);
        }
        if let Err(error) = self.answer(&Answer::Taken) {
            // It finds the token taken.
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
        // It has ended already if it does not hear it.
        let _ = self.answer(&Answer::Running(running));
    }
}

/// The sessions, by port. One that is not understood is left out, and its front-end connects anew.
fn join(
    sessions: Vec<serde_json::Value>,
    mut descriptors: Descriptors,
) -> BTreeMap<String, InheritedSession> {
    let mut joined = BTreeMap::new();
    for session in sessions {
        let part = serde_json::from_value::<SessionPart>(session).ok();
        match part.and_then(|part| part.join(&mut descriptors)) {
            Some((port, stream, record)) => {
                joined.insert(port, InheritedSession { stream: UnixStream::from(stream), record });
            }
            None => tracing::error!("a session is not understood: its front-end connects anew"),
        }
    }
    joined
}

/// Have every port follow its session: how many do, and the ports whose front-ends are to connect
/// anew.
fn follow(
    registry: &Registry,
    mut sessions: BTreeMap<String, InheritedSession>,
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
    // Of ports that are not served here.
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

fn by_number(
    registry: &Registry,
    sockets: Vec<(String, SocketAtRest)>,
) -> Vec<(UplinkId, SocketAtRest)> {
    let number = |(interface, socket): (String, SocketAtRest)| {
        Some((registry.nics.by_name(&interface)?.id, socket))
    };
    sockets.into_iter().filter_map(number).collect()
}
