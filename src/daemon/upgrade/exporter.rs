//! The predecessor's side: start a successor and hand everything over, or continue.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use sd_notify::NotifyState;
use tokio::sync::Notify;

use crate::config::names_a_file;
use crate::control::api::{PortChange, Upgrade};
use crate::daemon::directory_lock::DirectoryLock;
use crate::daemon::nic::{ExportedUplink, Nic, Nics};
use crate::daemon::ownership::{DaemonBusy, Ownership};
use crate::daemon::ports::{PortMap, Registry, StateFile};
use crate::daemon::problems::{HostProblem, HostProblems};
use crate::daemon::watches::Watches;
use crate::daemon::workers::Workers;
use crate::datapath::SocketDescriptor;
use crate::platform::unix_socket::{FileIdentity, SocketFile};
use crate::report::chain;

use super::ownership_token::Token;
use super::paused::Paused;
use super::successor_process::{CompletedUpgrade, Successor};
use super::upgrade_channel::Channel;
use super::upgrade_document::{
    DescriptorIndex, Descriptors, Foundation, ListenerPart, UplinkPart, VERSION,
};
use super::upgrade_error::UpgradeError;
use super::{port_changes, service_manager};

/// How long a successor may take to start, while packets move and requests are answered.
const READY_WAIT_MAX: Duration = Duration::from_secs(20);
/// How long a hand-over may take, from asking sessions to pause until the successor has everything.
const HAND_OVER_WAIT_MAX: Duration = Duration::from_secs(3);

/// How this process was started, and the socket on which it answers.
#[derive(Debug)]
pub struct OwnProgram {
    /// The path from which it was started; a new version is there by the same name.
    binary: io::Result<PathBuf>,
    /// The API's listening socket.
    api: Option<OwnedFd>,
}

impl OwnProgram {
    /// The program of a process that answers the API on this socket.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn new(api: Option<BorrowedFd<'_>>) -> io::Result<Self> {
        let api = api.map(|api| api.try_clone_to_owned()).transpose()?;
        Ok(Self { binary: std::env::current_exe(), api })
    }
}

/// The objects that are handed over to a successor.
#[derive(Debug)]
pub struct ExportSource {
    /// The ports.
    pub registry: Arc<Registry>,
    /// The NICs.
    pub nics: Arc<Nics>,
    /// The workers.
    pub workers: Arc<Workers>,
    /// Whether this process owns all of this.
    pub ownership: Arc<Ownership>,
    /// Where failures are reported.
    pub problems: Arc<HostProblems>,
    /// The threads of NICs and ports.
    pub watches: Arc<Watches>,
    /// The state, whose lock is handed over.
    pub state: Option<Arc<StateFile>>,
    /// The lock of the runtime directory, which is handed over too.
    pub runtime_lock: Option<Arc<DirectoryLock>>,
}

/// Starts successors of this process.
#[derive(Debug)]
pub struct Upgrader {
    program: OwnProgram,
    daemon: ExportSource,
    /// The file of the API's name, once this process is the owner.
    api_file: OnceLock<FileIdentity>,
    /// The number of the process that has everything; 0 while there is none.
    successor: AtomicU32,
    ended: Arc<Notify>,
}

impl Upgrader {
    /// The upgrader of this process, with the objects that it hands over.
    pub fn new(program: OwnProgram, daemon: ExportSource) -> Self {
        let (api_file, successor) = (OnceLock::new(), AtomicU32::new(0));
        Self { program, daemon, api_file, successor, ended: Arc::default() }
    }

    /// Note the file of the API's socket, once its name is this process's.
    pub fn name_api(&self, file: &SocketFile) {
        // The API is served only once, so this is set once.
        let _ = self.api_file.set(file.identity());
    }

    /// Notified when another process has everything.
    pub fn ended(&self) -> Arc<Notify> {
        Arc::clone(&self.ended)
    }

    /// Have another process take over: `binary`, or the program at the path from which this one was
    /// started.
    ///
    /// # Errors
    /// [`UpgradeError`]; this process continues as before then.
    pub fn upgrade(&self, asked: &Upgrade) -> Result<CompletedUpgrade, UpgradeError> {
        check_binary(asked.binary.as_deref())?;
        let ExportSource { registry, ownership, problems, watches, .. } = &self.daemon;
        {
            // No port is added or removed from here on: the state that the successor reads stays
            // true.
            let ports = registry.ports();
            let settled = registry.check_settled(&ports);
            settled.and_then(|()| ownership.prepare()).map_err(|busy| match busy {
                DaemonBusy::Upgrading => UpgradeError::UnderWay,
                busy => UpgradeError::Busy(busy),
            })?;
        }
        let undecided = ownership.undecided();
        let outcome = self.try_upgrade(asked).map(Successor::completed);
        match &outcome {
            Ok(completed) => {
                service_manager::notify(&[NotifyState::MainPid(completed.pid)]);
                self.ended.notify_one();
            }
            Err(error) => {
                tracing::error!(error = chain(error), "no upgrade: this process goes on");
                let watched = watches.watch_nics().map_err(|error| error.to_string());
                problems.set(HostProblem::Threads, watched.err());
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
        // It is our child, and nobody has waited for it: its number cannot be another's yet.
        if let Err(error) = kill_process(id, Signal::TERM) {
            tracing::error!(%error, "the new process cannot be told to stop");
        }
    }

    /// Hand everything to the service manager, for the process that it starts next. Answers whether
    /// that is done: this process must do nothing more then.
    pub fn leave_with_manager(&self) -> bool {
        if !service_manager::keeps() {
            return false;
        }
        self.daemon.watches.leave_nics();
        let left = self.try_leave();
        if let Err(error) = &left {
            let error = chain(error);
            tracing::error!(error, "nothing is left with the service manager");
        }
        left.is_ok()
    }

    fn try_leave(&self) -> Result<(), UpgradeError> {
        let ExportSource { registry, nics, workers, .. } = &self.daemon;
        look_for_obstacles(nics)?;
        let deadline = Instant::now() + HAND_OVER_WAIT_MAX;
        let (channel, theirs) = Channel::pair().map_err(UpgradeError::Give)?;
        // Locked until the manager has everything: no request is served any more.
        let ports = registry.ports();
        let sockets = workers.socket_descriptors()?;
        let (foundation, descriptors) =
            self.foundation(&ports, sockets).map_err(UpgradeError::Give)?;
        channel.send(&foundation, &descriptors, deadline).map_err(UpgradeError::Give)?;
        let mut paused = Paused::new(nics, workers, ports);
        let (traffic, descriptors) = paused.traffic()?;
        channel.send(&traffic, &descriptors, deadline).map_err(UpgradeError::Give)?;
        service_manager::keep(&theirs).map_err(UpgradeError::Give)?;
        paused.is_left();
        Ok(())
    }

    fn try_upgrade(&self, asked: &Upgrade) -> Result<Successor, UpgradeError> {
        let ExportSource { registry, nics, workers, ownership, watches, .. } = &self.daemon;
        look_for_obstacles(nics)?;
        let looked_at = uplink_changes(nics);
        let mut successor = Successor::start(&self.binary(asked.binary.as_deref())?)?;
        ownership.on_stop(successor.breaker().map_err(UpgradeError::Give)?);
        let stopped = |error| match error {
            UpgradeError::Silent { .. } | UpgradeError::Ended { .. } if ownership.stop_asked() => {
                UpgradeError::Stopped
            }
            error => error,
        };
        successor.changes = self.prepare(&mut successor).map_err(stopped)?;
        // From here on the successor notices a link that goes down.
        watches.leave_nics();
        look_for_obstacles(nics)?;
        if let Some(uplink) = changed_since(looked_at, nics) {
            return Err(UpgradeError::UplinkChanged(uplink));
        }
        let ports = registry.ports();
        if !asked.force {
            port_changes::refuse_losses(&successor.changes, &ports).map_err(UpgradeError::Takes)?;
        }
        ownership.hand_over().map_err(|_stopping| UpgradeError::Stopped)?;
        let mut paused = Paused::new(nics, workers, ports);
        if let Err(error) = hand_over(&mut paused, &mut successor) {
            // The successor must have ended before this process continues.
            successor.end();
            return Err(error.with_cut(std::mem::take(&mut paused.cut)));
        }
        // From here on everything is the successor's. The ports stay locked until `lose`, so that
        // no request is served in between.
        paused.is_left();
        self.successor.store(successor.id(), Ordering::Release);
        ownership.lose();
        Ok(successor)
    }

    /// Give the successor the foundation, and wait until it is ready. Returns what it would change.
    fn prepare(&self, successor: &mut Successor) -> Result<Vec<PortChange>, UpgradeError> {
        let deadline = Instant::now() + READY_WAIT_MAX;
        let (foundation, descriptors) = {
            let ports = self.daemon.registry.ports();
            let sockets = self.daemon.workers.socket_descriptors()?;
            self.foundation(&ports, sockets).map_err(UpgradeError::Give)?
        };
        successor.send(&foundation, &descriptors, deadline)?;
        successor.ready(deadline)
    }

    fn binary(&self, asked: Option<&Path>) -> Result<PathBuf, UpgradeError> {
        match (asked, &self.program.binary) {
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
        ports: &PortMap,
        sockets: Vec<SocketDescriptor>,
    ) -> io::Result<(Foundation, Descriptors)> {
        let daemon = &self.daemon;
        let mut descriptors = Descriptors::default();
        let mut places = Vec::new();
        for (uplink, queue, socket) in sockets {
            places.push((uplink, queue, descriptors.put(socket)));
        }
        let mut uplinks = Vec::new();
        for nic in daemon.nics.iter() {
            let own = places.iter().filter(|(uplink, ..)| *uplink == nic.id);
            let own = own.map(|&(_, queue, place)| (queue, place)).collect();
            uplinks.push(uplink_part(nic, own, &mut descriptors)?);
        }
        let mut put =
            |own: BorrowedFd<'_>| own.try_clone_to_owned().map(|own| descriptors.put(own));
        let api = self.program.api.as_ref().map(|api| put(api.as_fd())).transpose()?;
        let state_lock = daemon.state.as_ref().and_then(|state| state.lock());
        let state_lock = state_lock.map(|lock| put(lock.as_fd())).transpose()?;
        let runtime_lock = daemon.runtime_lock.as_ref().and_then(|lock| lock.share());
        let runtime_lock = runtime_lock.map(|lock| put(lock.as_fd())).transpose()?;
        let mut listeners = Vec::new();
        for (name, port) in ports {
            if let Some(listener) = port.socket.listener() {
                let file = port.file.as_ref().map(SocketFile::identity);
                let (port, path) = (name.clone(), port.config.socket.clone());
                listeners.push(ListenerPart { port, path, listener: put(listener)?, file });
            }
        }
        let parts = daemon.registry.records(ports).into_iter().map(serde_json::to_value);
        let ports = Some(parts.collect::<Result<_, _>>()?);
        let (version, api_file) = (VERSION, self.api_file.get().copied());
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

/// Check that such a program can exist. A relative path is refused: it would depend on this
/// process's working directory.
fn check_binary(asked: Option<&Path>) -> Result<(), UpgradeError> {
    match asked.filter(|path| !path.is_absolute() || !names_a_file(path)) {
        Some(path) => Err(UpgradeError::Binary(path.to_owned())),
        None => Ok(()),
    }
}

/// The time of each uplink's last change of state.
fn uplink_changes(nics: &Nics) -> Vec<SystemTime> {
    nics.iter().map(|nic| nic.status().since).collect()
}

/// The first uplink whose state has changed since.
fn changed_since(before: Vec<SystemTime>, nics: &Nics) -> Option<String> {
    let mut uplinks = nics.iter().zip(before);
    let changed = uplinks.find(|(nic, since)| nic.status().since != *since);
    changed.map(|(nic, _)| nic.config.interface.clone())
}

/// Pause, and hand everything over to the successor. An error means that it has taken nothing, and
/// cannot any more.
fn hand_over(paused: &mut Paused<'_>, successor: &mut Successor) -> Result<(), UpgradeError> {
    let deadline = Instant::now() + HAND_OVER_WAIT_MAX;
    let token = Token::new().map_err(UpgradeError::Give)?;
    let (mut traffic, mut descriptors) = paused.traffic()?;
    let shared = token.share().map_err(UpgradeError::Give)?;
    traffic.token = Some(descriptors.put(shared));
    successor.send(&traffic, &descriptors, deadline)?;
    match successor.taken(deadline) {
        // Older versions answer `taken` without taking the token.
        Ok(()) => Ok(()),
        Err(error) if token.take() => Err(error),
        // It has taken everything, and could not answer any more.
        Err(_) => {
            successor.taken = true;
            Ok(())
        }
    }
}

fn look_for_obstacles(nics: &Nics) -> Result<(), UpgradeError> {
    let found = |nic: &Nic| Some((nic.config.interface.clone(), nic.obstacle()?));
    match nics.iter().find_map(found) {
        Some((uplink, obstacle)) => Err(UpgradeError::Uplink { uplink, obstacle }),
        None => Ok(()),
    }
}

fn uplink_part(
    nic: &Nic,
    sockets: Vec<(u32, DescriptorIndex)>,
    descriptors: &mut Descriptors,
) -> io::Result<UplinkPart> {
    let ExportedUplink { status, descriptors: own } = nic.export()?;
    let [link, tap, umem] = own.map(|own| descriptors.put(own));
    Ok(UplinkPart {
        interface: nic.config.interface.clone(),
        index: status.interface.index,
        attachment: status.attachment,
        link,
        tap,
        umem,
        sockets,
    })
}
