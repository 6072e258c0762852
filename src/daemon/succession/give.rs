//! The predecessor's side: start a successor, leave it everything, or go on.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::Notify;

use crate::datapath::{RingAtRest, SocketDescriptor, WorkerAtRest};
use crate::report::chain;
use crate::vhost_user::{SessionAtRest, started};

use super::super::fabric::RestError;
use super::super::ports::{Port, Registry};
use super::super::uplinks::{LeftUplink, Nic};
use super::channel::Channel;
use super::document::{
    Descriptors, Foundation, ListenerPart, Place, SaidPart, SessionPart, Traffic, UplinkPart,
    VERSION,
};
use super::{Answer, PREDECESSOR_VARIABLE, Running, manager, notify, now};

/// How long a successor may take to start, while packets move.
const READY_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long it may take to go on, while they do not.
const TAKEN_WAIT_MAX: Duration = Duration::from_secs(2);

/// Why there is no successor; all goes on as before.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// One is being started already, or has everything.
    #[error("another upgrade is under way")]
    UnderWay,
    /// An uplink that cannot go over.
    #[error("no other process can go on with uplink {uplink}: {obstacle}; restart isonic instead")]
    Uplink {
        /// By its name in the configuration.
        uplink: String,
        /// Why.
        obstacle: &'static str,
    },
    /// The program could not be started.
    #[error("cannot start {}", binary.display())]
    Start {
        /// Which.
        binary: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended, or said nothing for too long.
    #[error("the new process has ended, or was ended, before it was {step}; the log says why")]
    Silent {
        /// What it should have been.
        step: &'static str,
        /// What was read of it.
        #[source]
        source: io::Error,
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
    /// What it needs cannot be given.
    #[error("cannot give everything to the new process")]
    Give(#[source] io::Error),
}

/// This process, as what has successors.
#[derive(Debug)]
pub struct Succession {
    /// Where it was started from; a new version is there by the same name.
    binary: io::Result<PathBuf>,
    /// The API's listening socket.
    api: Option<OwnedFd>,
    under_way: AtomicBool,
    over: AtomicBool,
    ended: Arc<Notify>,
}

/// A process that was started to go on with everything.
#[derive(Debug)]
pub struct Succeeded {
    /// Its number.
    pub pid: u32,
    /// What came of it.
    pub running: Option<Running>,
}

impl Succession {
    /// Of a process that answers the API on this socket.
    pub fn new(api: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        Ok(Self {
            binary: std::env::current_exe(),
            api: api.map(|api| api.try_clone_to_owned()).transpose()?,
            under_way: AtomicBool::new(false),
            over: AtomicBool::new(false),
            ended: Arc::default(),
        })
    }

    /// Told when another process has everything.
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// Whether another process has everything.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Have another process go on: `binary`, or what is where this one was started from.
    ///
    /// # Errors
    /// [`UpgradeError`]; all goes on as before then.
    pub fn upgrade(
        &self,
        registry: &Arc<Registry>,
        binary: Option<&Path>,
    ) -> Result<Succeeded, UpgradeError> {
        if self.under_way.swap(true, Ordering::AcqRel) {
            return Err(UpgradeError::UnderWay);
        }
        // What stands still is no fault of a NIC's.
        registry.leave_nics();
        let outcome = self.try_upgrade(registry, binary);
        match &outcome {
            Ok(succeeded) => {
                notify(&[NotifyState::MainPid(succeeded.pid)]);
                self.over.store(true, Ordering::Release);
                self.ended.notify_one();
            }
            Err(error) => {
                tracing::error!(error = chain(error), "no upgrade: this process goes on");
                if let Err(error) = registry.watch_nics() {
                    tracing::error!(%error, "what becomes of the NICs is followed no more");
                }
                self.under_way.store(false, Ordering::Release);
            }
        }
        outcome
    }

    /// Leave everything with the service manager, for the process that it starts next. Answers
    /// whether that is done: this process must do nothing more then.
    pub fn leave_with_manager(&self, registry: &Arc<Registry>) -> bool {
        if !manager::keeps() || self.under_way.swap(true, Ordering::AcqRel) {
            return self.is_over();
        }
        registry.leave_nics();
        let left = self.try_leave(registry);
        match left {
            Ok(()) => self.over.store(true, Ordering::Release),
            Err(error) => {
                let error = chain(&error);
                tracing::error!(error, "nothing is left with the service manager");
            }
        }
        self.is_over()
    }

    fn try_leave(&self, registry: &Arc<Registry>) -> Result<(), UpgradeError> {
        look_for_obstacles(registry)?;
        let (channel, theirs) = Channel::pair().map_err(UpgradeError::Give)?;
        let ports = registry.ports();
        let sockets = registry.fabric.socket_descriptors()?;
        let (foundation, descriptors) =
            self.foundation(registry, &ports, sockets).map_err(UpgradeError::Give)?;
        channel.send(&foundation, &descriptors).map_err(UpgradeError::Give)?;
        let mut standstill = Standstill { registry, ports, armed: true };
        let (traffic, descriptors) = standstill.traffic()?;
        channel.send(&traffic, &descriptors).map_err(UpgradeError::Give)?;
        manager::keep(&theirs).map_err(UpgradeError::Give)?;
        standstill.armed = false;
        Ok(())
    }

    fn try_upgrade(
        &self,
        registry: &Arc<Registry>,
        binary: Option<&Path>,
    ) -> Result<Succeeded, UpgradeError> {
        look_for_obstacles(registry)?;
        // Held to the end: no port comes or goes meanwhile.
        let ports = registry.ports();
        let mut successor = Successor::start(&self.binary(binary)?)?;
        let sockets = registry.fabric.socket_descriptors()?;
        let (foundation, descriptors) =
            self.foundation(registry, &ports, sockets).map_err(UpgradeError::Give)?;
        successor.send(&foundation, &descriptors)?;
        successor.expect("ready", READY_WAIT_MAX)?;
        let mut standstill = Standstill { registry, ports, armed: true };
        if let Err(error) = leave(&mut standstill, &mut successor) {
            // Before we go on.
            successor.end();
            return Err(error);
        }
        // From here on it is the successor's.
        standstill.armed = false;
        Ok(successor.succeeded())
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
        let mut listeners = Vec::new();
        for (name, port) in ports {
            if let Some(listener) = port.socket.listener() {
                let (port, path) = (name.clone(), port.config.socket.clone());
                listeners.push(ListenerPart { port, path, listener: put(listener)? });
            }
        }
        Ok((Foundation { version: VERSION, uplinks, api, listeners }, descriptors))
    }
}

/// Stop, and leave it all to the successor.
fn leave(standstill: &mut Standstill<'_>, successor: &mut Successor) -> Result<(), UpgradeError> {
    let (traffic, descriptors) = standstill.traffic()?;
    successor.send(&traffic, &descriptors)?;
    successor.expect("taken", TAKEN_WAIT_MAX)
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
}

impl Standstill<'_> {
    /// Stop, and say where everything stands.
    fn traffic(&mut self) -> Result<(Traffic, Descriptors), UpgradeError> {
        let (mut sessions, mut reconnecting) = (Vec::new(), Vec::new());
        for (name, port) in self.ports.iter_mut() {
            match port.socket.rest() {
                Some(session) => sessions.push((port.id, name.clone(), session)),
                None if port.link.session().is_some() => reconnecting.push(name.clone()),
                None => {}
            }
        }
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
        let (version, sessions) = (VERSION, parts);
        Ok((Traffic { version, stopped_at, sockets, reconnecting, sessions }, descriptors))
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
    SessionPart { port, stream, said, ran: record.ran }
}

/// A process that is to go on; ended when dropped, unless it has everything.
struct Successor {
    process: Child,
    channel: Channel,
    taken: bool,
}

impl Successor {
    /// Start it as this process was started, with its end of the channel for its standard input.
    fn start(binary: &Path) -> Result<Self, UpgradeError> {
        let (channel, theirs) = Channel::pair().map_err(UpgradeError::Give)?;
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let process = Command::new(binary)
            .args(arguments)
            .env(PREDECESSOR_VARIABLE, "stdin")
            .stdin(Stdio::from(theirs))
            .spawn()
            .map_err(|source| UpgradeError::Start { binary: binary.to_owned(), source })?;
        tracing::info!(binary = %binary.display(), pid = process.id(), "a new process is started");
        Ok(Self { process, channel, taken: false })
    }

    /// It is told what it did not wait for only if it has ended, which it says or shows.
    fn send(
        &self,
        message: &impl serde::Serialize,
        descriptors: &Descriptors,
    ) -> Result<(), UpgradeError> {
        match self.channel.send(message, descriptors) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            outcome => outcome.map_err(UpgradeError::Give),
        }
    }

    fn expect(&mut self, step: &'static str, within: Duration) -> Result<(), UpgradeError> {
        let answer = self.channel.receive::<Answer>(Some(within));
        match answer.map_err(|source| UpgradeError::Silent { step, source })?.0 {
            Answer::Ready if step == "ready" => Ok(()),
            Answer::Taken if step == "taken" => {
                self.taken = true;
                Ok(())
            }
            Answer::Refused { reason } => Err(UpgradeError::Refused(reason)),
            _ => Err(UpgradeError::Foreign),
        }
    }

    /// Have it end. It must have taken nothing: that it has, and ended without a word in time,
    /// leaves nobody to know where everything is, and we end too, to be started again.
    fn end(&mut self) {
        // It has ended already if that fails.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let said = self.channel.receive::<Answer>(Some(Duration::from_millis(1)));
        if let Ok((Answer::Taken, _)) = said {
            tracing::error!("the new process went on too late and was ended: this one ends too");
            std::process::exit(1);
        }
    }

    /// What came of it, if it says so.
    fn succeeded(self) -> Succeeded {
        let running = match self.channel.receive(Some(TAKEN_WAIT_MAX)) {
            Ok((Answer::Running(running), _)) => Some(running),
            _ => None,
        };
        Succeeded { pid: self.process.id(), running }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.taken {
            self.end();
        }
    }
}
