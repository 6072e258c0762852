//! The predecessor's side: start a successor, leave it everything, or go on.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};
use sd_notify::NotifyState;
use tokio::sync::Notify;

use crate::config::names_a_file;
use crate::control::api::{PortChange, Upgrade};
use crate::datapath::{PortId, RingAtRest, SocketDescriptor, WorkerAtRest};
use crate::platform::log_queue;
use crate::platform::unix_socket::{FileIdentity, SocketFile};
use crate::report::chain;
use crate::vhost_user::{SessionAtRest, started};

use super::channel::Channel;
use super::token::Token;
use super::upgrade_document::{
    Descriptors, Foundation, ListenerPart, Place, SaidPart, SessionPart, Traffic, UplinkPart,
    VERSION,
};
use super::{Answer, PREDECESSOR_VARIABLE, Running, notify, now, port_changes, service_manager};
use crate::daemon::nic::{LeftUplink, Nic};
use crate::daemon::ownership::Busy;
use crate::daemon::ports::{Port, Registry};
use crate::daemon::problems::Problem;
use crate::daemon::workers::RestError;

/// How long a successor may take to start, while packets move and requests are answered.
const READY_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long a hand-over may take, from asking sessions to stand still until the successor has
/// everything.
const HAND_OVER_WAIT_MAX: Duration = Duration::from_secs(3);
/// How much of that all sessions together have to come to stand still.
const PAUSE_WAIT_MAX: Duration = Duration::from_millis(500);
/// How long the successor may take to say what came of it.
const RUNNING_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a process that has closed its end of the channel may take to end.
const END_WAIT_MAX: Duration = Duration::from_millis(200);
/// How often that is looked for.
const END_RETRY: Duration = Duration::from_millis(2);

/// Why there is no successor; all goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// One is being started already.
    #[error("another upgrade is under way")]
    UnderWay,
    /// Another process has everything, or this one stops.
    #[error(transparent)]
    Busy(Busy),
    /// It was asked to stop while the new process started.
    #[error("isonic was told to stop while the new process got ready; that process was ended")]
    Stopped,
    /// Running guests would lose what they have.
    #[error(
        "the new process would change what running VMs have: {}. Nothing was changed. Put the old \
         values back into the configuration, shut these VMs down first, or insist: \
         isonic upgrade --force",
        list(.0)
    )]
    Takes(Vec<PortChange>),
    /// An uplink went down, came back or was opened again while the successor got ready.
    #[error("uplink {0} has changed while the new process got ready; give the command again")]
    UplinkChanged(String),
    /// An uplink that cannot go over.
    #[error("no other process can go on with uplink {uplink}: {obstacle}; restart isonic instead")]
    Uplink {
        /// By its name in the configuration.
        uplink: String,
        /// Why.
        obstacle: &'static str,
    },
    /// No program has such a path.
    #[error("\"{}\" is not the absolute path of a program", .0.display())]
    Binary(PathBuf),
    /// The program could not be started.
    #[error("cannot start {}", binary.display())]
    Start {
        /// Which.
        binary: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It said nothing for too long, and was ended.
    #[error("the new process was not {step} in time, and was ended; the log says why")]
    Silent {
        /// What it should have been.
        step: &'static str,
        /// What was read of it, if not nothing.
        #[source]
        source: Option<io::Error>,
    },
    /// It ended without a word.
    #[error("the new process ended before it was {step} ({status}); the log says why")]
    Ended {
        /// What it should have been.
        step: &'static str,
        /// How it ended.
        status: ExitStatus,
    },
    /// It said why not.
    #[error("the new process cannot go on: {0}")]
    Refused(String),
    /// It does not say what it should.
    #[error("the new process does not speak this version's language")]
    Foreign,
    /// We do not come to a stop.
    #[error(transparent)]
    Rest(#[from] RestError),
    /// It came to nothing, and not without consequences.
    #[error(
        "{}. The front-ends of these ports did not stand still in time, were cut off and connect \
         anew: {}",
        chain(reason), ports.join(", ")
    )]
    Cut {
        /// Their ports.
        ports: Vec<String>,
        /// Why there is no successor.
        reason: Box<UpgradeError>,
    },
    /// What it needs cannot be given.
    #[error("cannot give everything to the new process")]
    Give(#[source] io::Error),
}

impl UpgradeError {
    /// The same, where the sessions of these ports were cut off meanwhile.
    fn with_cut(self, ports: Vec<String>) -> Self {
        if ports.is_empty() { self } else { Self::Cut { ports, reason: Box::new(self) } }
    }
}

fn list(changes: &[PortChange]) -> String {
    changes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// This process, as what has successors.
#[derive(Debug)]
pub struct Succession {
    /// Where it was started from; a new version is there by the same name.
    binary: io::Result<PathBuf>,
    /// The API's listening socket.
    api: Option<OwnedFd>,
    /// The file of its name, once this process is the owner.
    api_file: Mutex<Option<FileIdentity>>,
    /// The number of the process that has everything; 0 while there is none.
    successor: AtomicU32,
    ended: Arc<Notify>,
}

/// A process that was started and has everything.
#[derive(Debug)]
pub struct Succeeded {
    /// Its number.
    pub pid: u32,
    /// What came of it.
    pub running: Option<Running>,
    /// What it has changed.
    pub changes: Vec<PortChange>,
}

impl Succession {
    /// Of a process that answers the API on this socket.
    pub fn new(api: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        Ok(Self {
            binary: std::env::current_exe(),
            api: api.map(|api| api.try_clone_to_owned()).transpose()?,
            api_file: Mutex::default(),
            successor: AtomicU32::new(0),
            ended: Arc::default(),
        })
    }

    /// The API's socket has a name that is this process's.
    pub fn name_api(&self, file: &SocketFile) {
        *self.api_file() = Some(file.identity());
    }

    fn api_file(&self) -> MutexGuard<'_, Option<FileIdentity>> {
        self.api_file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Told when another process has everything.
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// Have another process take over: `binary`, or what is where this one was started from.
    ///
    /// # Errors
    /// [`UpgradeError`]; this process continues as before then.
    pub fn upgrade(
        &self,
        registry: &Arc<Registry>,
        asked: &Upgrade,
    ) -> Result<Succeeded, UpgradeError> {
        check_binary(asked.binary.as_deref())?;
        {
            // No port comes or goes from here on: what the successor reads stays true.
            let ports = registry.ports();
            let settled = registry.check_settled(&ports);
            settled.and_then(|()| registry.ownership.prepare()).map_err(|busy| match busy {
                Busy::Upgrading => UpgradeError::UnderWay,
                busy => UpgradeError::Busy(busy),
            })?;
        }
        let undecided = registry.ownership.undecided();
        let outcome = self.try_upgrade(registry, asked).map(Successor::succeeded);
        match &outcome {
            Ok(succeeded) => {
                notify(&[NotifyState::MainPid(succeeded.pid)]);
                self.ended.notify_one();
            }
            Err(error) => {
                tracing::error!(error = chain(error), "no upgrade: this process goes on");
                let watched = registry.watch_nics().map_err(|error| error.to_string());
                registry.problems.set(Problem::Threads, watched.err());
                drop(undecided);
                // The successor may have put a damaged copy of the state aside.
                registry.record_again();
            }
        }
        outcome
    }

    /// Have the successor stop, as this process was told to.
    pub fn stop_successor(&self) {
        let id = i32::try_from(self.successor.load(Ordering::Acquire)).ok();
        let Some(id) = id.and_then(Pid::from_raw) else { return };
        tracing::info!(pid = id.as_raw_nonzero(), "the new process is told to stop as well");
        // It is our child, and nobody has waited for it: the number is still its own.
        if let Err(error) = kill_process(id, Signal::TERM) {
            tracing::error!(%error, "the new process cannot be told to stop");
        }
    }

    /// Leave everything with the service manager, for the process that it starts next. Answers
    /// whether that is done: this process must do nothing more then.
    pub fn leave_with_manager(&self, registry: &Arc<Registry>) -> bool {
        if !service_manager::keeps() {
            return false;
        }
        registry.leave_nics();
        let left = self.try_leave(registry);
        if let Err(error) = &left {
            let error = chain(error);
            tracing::error!(error, "nothing is left with the service manager");
        }
        left.is_ok()
    }

    fn try_leave(&self, registry: &Arc<Registry>) -> Result<(), UpgradeError> {
        look_for_obstacles(registry)?;
        let deadline = Instant::now() + HAND_OVER_WAIT_MAX;
        let (channel, theirs) = Channel::pair().map_err(UpgradeError::Give)?;
        let ports = registry.ports();
        let sockets = registry.fabric.socket_descriptors()?;
        let (foundation, descriptors) =
            self.foundation(registry, &ports, sockets).map_err(UpgradeError::Give)?;
        channel.send(&foundation, &descriptors, deadline).map_err(UpgradeError::Give)?;
        let mut standstill = Standstill::of(registry, ports);
        let (traffic, descriptors) = standstill.traffic()?;
        channel.send(&traffic, &descriptors, deadline).map_err(UpgradeError::Give)?;
        service_manager::keep(&theirs).map_err(UpgradeError::Give)?;
        standstill.armed = false;
        Ok(())
    }

    fn try_upgrade(
        &self,
        registry: &Arc<Registry>,
        asked: &Upgrade,
    ) -> Result<Successor, UpgradeError> {
        look_for_obstacles(registry)?;
        let looked_at = uplink_changes(registry);
        let mut successor = Successor::start(&self.binary(asked.binary.as_deref())?)?;
        registry.ownership.on_stop(successor.channel.breaker().map_err(UpgradeError::Give)?);
        let stopped = |error| match error {
            UpgradeError::Silent { .. } | UpgradeError::Ended { .. }
                if registry.ownership.stop_asked() =>
            {
                UpgradeError::Stopped
            }
            error => error,
        };
        successor.changes = self.prepare(registry, &mut successor).map_err(stopped)?;
        // A link that goes down now is the successor's to notice.
        registry.leave_nics();
        look_for_obstacles(registry)?;
        if let Some(uplink) = changed_since(looked_at, registry) {
            return Err(UpgradeError::UplinkChanged(uplink));
        }
        let ports = registry.ports();
        if !asked.force {
            port_changes::refuse_losses(&successor.changes, &ports).map_err(UpgradeError::Takes)?;
        }
        registry.ownership.hand_over().map_err(|_stopping| UpgradeError::Stopped)?;
        let mut standstill = Standstill::of(registry, ports);
        if let Err(error) = leave(&mut standstill, &mut successor) {
            // Before we go on.
            successor.end();
            return Err(error.with_cut(std::mem::take(&mut standstill.cut)));
        }
        // From here on everything is the successor's, and nobody gets the lock before that is said.
        standstill.armed = false;
        self.successor.store(successor.process.id(), Ordering::Release);
        registry.ownership.lose();
        Ok(successor)
    }

    /// Give the successor what it begins with, and wait until it is ready: what it would change.
    fn prepare(
        &self,
        registry: &Registry,
        successor: &mut Successor,
    ) -> Result<Vec<PortChange>, UpgradeError> {
        let deadline = Instant::now() + READY_WAIT_MAX;
        let (foundation, descriptors) = {
            let ports = registry.ports();
            let sockets = registry.fabric.socket_descriptors()?;
            self.foundation(registry, &ports, sockets).map_err(UpgradeError::Give)?
        };
        successor.send(&foundation, &descriptors, deadline)?;
        successor.ready(deadline)
    }

    fn binary(&self, asked: Option<&Path>) -> Result<PathBuf, UpgradeError> {
        match (asked, &self.binary) {
            (Some(asked), _) => Ok(asked.to_owned()),
            (None, Ok(own)) => Ok(own.clone()),
            (None, Err(error)) => Err(UpgradeError::Start {
                binary: PathBuf::from("/proc/self/exe"),
                source: io::Error::new(error.kind(), error.to_string()),
            }),
        }
    }

    fn foundation(
        &self,
        registry: &Registry,
        ports: &BTreeMap<String, Port>,
        sockets: Vec<SocketDescriptor>,
    ) -> io::Result<(Foundation, Descriptors)> {
        let mut descriptors = Descriptors::default();
        let mut places = Vec::new();
        for (uplink, queue, socket) in sockets {
            places.push((uplink, queue, descriptors.put(socket)));
        }
        let mut uplinks = Vec::new();
        for nic in registry.nics.iter() {
            let own = places.iter().filter(|(uplink, ..)| *uplink == nic.id);
            let own = own.map(|&(_, queue, place)| (queue, place)).collect();
            uplinks.push(uplink_part(nic, own, &mut descriptors)?);
        }
        let mut put =
            |own: BorrowedFd<'_>| own.try_clone_to_owned().map(|own| descriptors.put(own));
        let api = self.api.as_ref().map(|api| put(api.as_fd())).transpose()?;
        let state_lock = registry.state_lock().map(|lock| put(lock.as_fd())).transpose()?;
        let runtime_lock = registry.runtime_lock().map(|lock| put(lock.as_fd())).transpose()?;
        let mut listeners = Vec::new();
        for (name, port) in ports {
            if let Some(listener) = port.socket.listener() {
                let file = port.file.as_ref().map(SocketFile::identity);
                let (port, path) = (name.clone(), port.config.socket.clone());
                listeners.push(ListenerPart { port, path, listener: put(listener)?, file });
            }
        }
        let parts = registry.parts(ports).into_iter().map(serde_json::to_value);
        let ports = Some(parts.collect::<Result<_, _>>()?);
        let (version, api_file) = (VERSION, *self.api_file());
        let foundation = Foundation {
            version,
            uplinks,
            api,
            api_file,
            state_lock,
            runtime_lock,
            listeners,
            ports,
        };
        Ok((foundation, descriptors))
    }
}

/// Whether there can be such a program: this process's working directory is nobody's business.
fn check_binary(asked: Option<&Path>) -> Result<(), UpgradeError> {
    match asked.filter(|path| !path.is_absolute() || !names_a_file(path)) {
        Some(path) => Err(UpgradeError::Binary(path.to_owned())),
        None => Ok(()),
    }
}

/// Since when each uplink is as it is.
fn uplink_changes(registry: &Registry) -> Vec<SystemTime> {
    registry.nics.iter().map(|nic| nic.status().since).collect()
}

/// An uplink that is not as it was.
fn changed_since(before: Vec<SystemTime>, registry: &Registry) -> Option<String> {
    let mut uplinks = registry.nics.iter().zip(before);
    let changed = uplinks.find(|(nic, since)| nic.status().since != *since);
    changed.map(|(nic, _)| nic.config.interface.clone())
}

/// Stop, and leave it all to the successor. An error says that it has taken nothing, and cannot
/// any more.
fn leave(standstill: &mut Standstill<'_>, successor: &mut Successor) -> Result<(), UpgradeError> {
    let deadline = Instant::now() + HAND_OVER_WAIT_MAX;
    let token = Token::new().map_err(UpgradeError::Give)?;
    let (mut traffic, mut descriptors) = standstill.traffic()?;
    let shared = token.share().map_err(UpgradeError::Give)?;
    traffic.token = Some(descriptors.put(shared));
    successor.send(&traffic, &descriptors, deadline)?;
    match successor.taken(deadline) {
        // Older versions say so and take no token.
        Ok(()) => Ok(()),
        Err(error) if token.take() => Err(error),
        // It has everything, and did not get to say so.
        Err(_) => {
            successor.taken = true;
            Ok(())
        }
    }
}

fn look_for_obstacles(registry: &Registry) -> Result<(), UpgradeError> {
    let found = |nic: &Nic| Some((nic.config.interface.clone(), nic.obstacle()?));
    match registry.nics.iter().find_map(found) {
        Some((uplink, obstacle)) => Err(UpgradeError::Uplink { uplink, obstacle }),
        None => Ok(()),
    }
}

fn uplink_part(
    nic: &Nic,
    sockets: Vec<(u32, Place)>,
    descriptors: &mut Descriptors,
) -> io::Result<UplinkPart> {
    let LeftUplink { status, descriptors: own } = nic.leave()?;
    let [link, tap, umem] = own.map(|own| descriptors.put(own));
    Ok(UplinkPart {
        interface: nic.config.interface.clone(),
        index: status.interface.index,
        attach_mode: status.attach_mode,
        socket_mode: status.socket_mode,
        reason: status.reason,
        packet_max: status.packet_max,
        link,
        tap,
        umem,
        sockets,
    })
}

/// Everything stands still, and goes on when this is dropped, unless it is another process's by
/// then.
struct Standstill<'r> {
    registry: &'r Arc<Registry>,
    ports: MutexGuard<'r, BTreeMap<String, Port>>,
    armed: bool,
    /// Ports whose session was cut off for it.
    cut: Vec<String>,
}

impl<'r> Standstill<'r> {
    fn of(registry: &'r Arc<Registry>, ports: MutexGuard<'r, BTreeMap<String, Port>>) -> Self {
        Self { registry, ports, armed: true, cut: Vec::new() }
    }

    /// Stop, and say where everything stands.
    fn traffic(&mut self) -> Result<(Traffic, Descriptors), UpgradeError> {
        let asked_at = now();
        let (sessions, reconnecting) = self.pause();
        self.cut.clone_from(&reconnecting);
        self.registry.nics.stop_threads();
        let stopped_at = now();
        let workers = self.registry.fabric.rest()?;
        // What the workers had for the host, whose thread has stopped.
        self.registry.nics.iter().for_each(|nic| nic.finish_host(&self.registry.fabric));
        let (mut sockets, mut rings) = (Vec::new(), Vec::new());
        for WorkerAtRest { sockets: own, rings: of } in workers {
            for (uplink, socket) in own {
                let nic = self.registry.nics.iter().find(|nic| nic.id == uplink);
                let interface = nic.map(|nic| nic.config.interface.clone());
                sockets.push((interface.unwrap_or_default(), socket));
            }
            rings.extend(of);
        }
        rings.sort_by_key(|ring| ring.index);
        let mut descriptors = Descriptors::default();
        let mut parts = Vec::new();
        for (id, port, session) in sessions {
            let (own, others) = rings.into_iter().partition(|ring: &RingAtRest| ring.port == id);
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

    /// Have all sessions stand still, within one deadline for all of them: those that do, and the
    /// ports whose front-ends have to connect anew.
    fn pause(&mut self) -> (Vec<(PortId, String, SessionAtRest)>, Vec<String>) {
        let until = Instant::now() + PAUSE_WAIT_MAX;
        let ask = |(name, port): (&String, &mut Port)| {
            let connected = port.link.session().is_some();
            (port.id, name.clone(), connected, port.socket.ask_to_rest(until))
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

impl Drop for Standstill<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        for nic in self.registry.nics.iter() {
            // The successor may have put its own in the place.
            if let Err(error) = nic.replace_program() {
                tracing::error!(error = chain(&error), "another process's XDP program stays");
            }
        }
        if self.registry.fabric.resume().is_err() {
            tracing::error!("a worker is gone");
        }
        if let Err(error) = self.registry.nics.start_threads(&self.registry.fabric) {
            tracing::error!(%error, "multicast is brought no more");
        }
        for port in self.ports.values_mut() {
            port.socket.resume();
        }
    }
}

/// A session with its rings, which its workers had.
fn session_part(
    port: String,
    SessionAtRest { stream, record }: SessionAtRest,
    rings: Vec<RingAtRest>,
    descriptors: &mut Descriptors,
) -> SessionPart {
    let of_rings = rings.into_iter().flat_map(|ring| {
        let RingAtRest { index, position, broken, kick, call, err, .. } = ring;
        started((index, position, broken), [kick, call, err])
    });
    let said = record.said.into_iter().chain(of_rings);
    let said = said.map(|said| SaidPart::part(said, descriptors)).collect();
    let stream = descriptors.put(stream);
    SessionPart { port, stream, said, ran: record.ran, named: record.named }
}

/// Whether the other end of a channel is closed.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether a wait was as long as it may be. A socket's says EAGAIN.
fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// A process that is to go on; ended when dropped, unless it has everything.
struct Successor {
    process: Child,
    channel: Channel,
    taken: bool,
    ended: bool,
    /// What it would change, or has.
    changes: Vec<PortChange>,
}

impl Successor {
    /// Start it as this process was started, with its end of the channel for its standard input,
    /// and in a process group of its own: if it is a script, what that has started has the channel
    /// too, and in it the NICs' sockets and the locks.
    fn start(binary: &Path) -> Result<Self, UpgradeError> {
        let (channel, theirs) = Channel::pair().map_err(UpgradeError::Give)?;
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let process = Command::new(binary)
            .args(arguments)
            .env(PREDECESSOR_VARIABLE, "stdin")
            .stdin(Stdio::from(theirs))
            .process_group(0)
            .spawn()
            .map_err(|source| UpgradeError::Start { binary: binary.to_owned(), source })?;
        tracing::info!(binary = %binary.display(), pid = process.id(), "a new process is started");
        Ok(Self { process, channel, taken: false, ended: false, changes: Vec::new() })
    }

    /// A broken pipe, or one that is reset because something was not read, means that it has ended:
    /// what is waited for next reports why.
    fn send(
        &self,
        message: &impl serde::Serialize,
        descriptors: &Descriptors,
        deadline: Instant,
    ) -> Result<(), UpgradeError> {
        match self.channel.send(message, descriptors, deadline) {
            Err(error) if is_end(&error) => Ok(()),
            outcome => outcome.map_err(UpgradeError::Give),
        }
    }

    /// Wait until it has made all that it can: what it would change.
    fn ready(&mut self, deadline: Instant) -> Result<Vec<PortChange>, UpgradeError> {
        match self.answer("ready", deadline)? {
            Answer::Prepared { changes } => Ok(changes),
            Answer::Ready => {
                tracing::warn!("the new process is older and does not say what it would change");
                Ok(Vec::new())
            }
            _ => Err(UpgradeError::Foreign),
        }
    }

    /// Wait until it has everything.
    fn taken(&mut self, deadline: Instant) -> Result<(), UpgradeError> {
        match self.answer("taken", deadline)? {
            Answer::Taken => {
                self.taken = true;
                Ok(())
            }
            _ => Err(UpgradeError::Foreign),
        }
    }

    fn answer(&mut self, step: &'static str, deadline: Instant) -> Result<Answer, UpgradeError> {
        match self.channel.receive::<Answer>(Some(deadline)) {
            Ok((Answer::Refused { reason }, _)) => Err(UpgradeError::Refused(reason)),
            Ok((answer, _)) => Ok(answer),
            Err(source) => Err(match self.status().filter(|_| is_end(&source)) {
                Some(status) => UpgradeError::Ended { step, status },
                None => {
                    let source = Some(source).filter(|error| !is_time_out(error));
                    UpgradeError::Silent { step, source }
                }
            }),
        }
    }

    /// How it has ended. Its end of the channel closes a moment before that is known.
    fn status(&self) -> Option<ExitStatus> {
        // It stays a zombie until `end`: its group's number is its own for so long.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let deadline = Instant::now() + END_WAIT_MAX;
        loop {
            match waitid(WaitId::Pid(Pid::from_child(&self.process)), options) {
                Ok(Some(status)) => {
                    let code = status.exit_status().map(|code| code << 8);
                    return code.or(status.terminating_signal()).map(ExitStatus::from_raw);
                }
                Ok(None) if Instant::now() < deadline => std::thread::sleep(END_RETRY),
                _ => return None,
            }
        }
    }

    /// Have it end, and all that it has started. It must have taken nothing: that it has, and ended
    /// without a word in time, leaves nobody to know where everything is, and we end too, to be
    /// started again.
    fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // It has ended already if that fails.
        let _ = kill_process_group(Pid::from_child(&self.process), Signal::KILL);
        let _ = self.process.wait();
        let now = Instant::now() + Duration::from_millis(1);
        let said = self.channel.receive::<Answer>(Some(now));
        if let Ok((Answer::Taken, _)) = said {
            tracing::error!("the new process went on too late and was ended: this one ends too");
            log_queue::exit(1);
        }
    }

    /// What came of it, if it says so.
    fn succeeded(mut self) -> Succeeded {
        let deadline = Instant::now() + RUNNING_WAIT_MAX;
        let running = loop {
            match self.channel.receive(Some(deadline)) {
                Ok((Answer::Running(running), _)) => break Some(running),
                // It was too late for whoever waited for it, and not for the token.
                Ok((Answer::Taken, _)) => {}
                _ => break None,
            }
        };
        if running.is_none() && matches!(self.process.try_wait(), Ok(Some(_))) {
            tracing::error!(
                "the new process has ended after it took everything: this one ends too"
            );
            log_queue::exit(1);
        }
        let changes = std::mem::take(&mut self.changes);
        Succeeded { pid: self.process.id(), running, changes }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.taken {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_cut_off_for_an_upgrade_that_came_to_nothing_is_named() {
        let told = UpgradeError::Foreign.with_cut(Vec::new()).to_string();
        assert_eq!(told, UpgradeError::Foreign.to_string());
        let ports = vec!["vm1".to_owned(), "vm2".to_owned()];
        let told = chain(&UpgradeError::Foreign.with_cut(ports));
        assert!(told.ends_with("connect anew: vm1, vm2"), "{told}");
        assert_eq!(told.matches(&UpgradeError::Foreign.to_string()).count(), 1, "{told}");
    }
}
