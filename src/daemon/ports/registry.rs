//! The registry of ports: made whole or not at all, and unmade in reverse.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::config::{
    self, Attach, Config, PortConfig, PortProblem, SocketMode, host_address_problem,
    port_differences, port_problems,
};
use crate::control::api::ProfileChange;
use crate::datapath::{Attachment, PortId, RingReport, Route, WorkerGone, WorkerId, frame_max};
use crate::device::features::RING_PACKED;
use crate::guest_memory::MemoryFiles;
use crate::metrics::{PortCounter, Published};
use crate::platform::unix_socket::{
    self, AccessError, ClaimError, Inherited, NamedFile, SocketFile, claim, unnamed,
};
use crate::profile::{Blocker, Catalog, Profile, ResolveError};
use crate::report::chain;
use crate::vhost_user::{
    Connection, Ended, MemoryPolicy, PortSocket, SocketSource, serve_connection,
};
use crate::virtqueue::{Fault, JournalError, Journals, SetAside};
use crate::xdp::{self, ProgramError};

use super::port_link::PortLink;
use super::port_watch::PortWatch;
use super::profile_choice::{BindingError, bind};
use super::state_file::{Bound, Kept, StateError, StateFile};
use crate::daemon::directory_lock::DirectoryLock;
use crate::daemon::nic::NicLife;
use crate::daemon::nic::NicWatch;
use crate::daemon::nic::{Nic, NicState, NicStatus, Nics};
use crate::daemon::ownership::{Busy, Ownership};
use crate::daemon::problems::{Problem, Problems};
use crate::daemon::upgrade::{Estate, PortPart};
use crate::daemon::workers::Fabric;

/// Most ports of a host: what numbers, tables and flooding are made for.
pub const PORTS_MAX: usize = 1024;

/// Why a port was not added or removed; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// What is asked for cannot stand beside what there is.
    #[error("{}", list(.0))]
    Problems(Vec<PortProblem>),
    /// Another port has the name.
    #[error("there is already a port \"{0}\"; remove it first or choose another name")]
    Exists(String),
    /// The port is there, and is another than is asked for.
    #[error(
        "port \"{port}\" is there with another content: {}; remove it first, or ask for what is \
         there",
        list(differences)
    )]
    Differs {
        /// The port.
        port: String,
        /// Every difference.
        differences: Vec<String>,
    },
    /// No port has the name.
    #[error("there is no port \"{0}\"; see `isonic port list`")]
    NotFound(String),
    /// The configuration says that it is there.
    #[error("port \"{0}\" is in the configuration file; remove it there and restart the daemon")]
    Permanent(String),
    /// What is on record of the port is not to be had.
    #[error(transparent)]
    Binding(Box<BindingError>),
    /// Somebody else waits for its session to end.
    #[error("port \"{0}\" is being removed or changed; ask again when that is done")]
    Leaving(String),
    /// Its front-end would not notice that its interface is another now.
    #[error(
        "port \"{0}\" has a front-end connected; shut the VM down first: a guest keeps its \
         interface as long as it runs"
    )]
    Connected(String),
    /// The configuration file has the say.
    #[error(
        "port \"{port}\" is in the configuration file, which asks for {configured}; write \
         {asked} there, restart the daemon, and give this command again"
    )]
    Configured {
        /// The port.
        port: String,
        /// By the configuration file.
        configured: String,
        /// By the command.
        asked: String,
    },
    /// The uplink's device keeps back what is for any address but its own.
    #[error(
        "uplink {uplink} is a {kind} that passes unicast for its own MAC only, so that a switch \
         port would receive none; make it anew with `mode passthru`, or use attach = \"wire\" and \
         its MAC for the guest"
    )]
    OwnMacOnly {
        /// The uplink.
        uplink: String,
        /// The kind of its device.
        kind: String,
    },
    /// The profile cannot be kept on this uplink.
    #[error("profile {profile} cannot be kept on uplink {uplink}: {}", list(blockers))]
    Blocked {
        /// The profile.
        profile: String,
        /// The uplink.
        uplink: String,
        /// Every reason.
        blockers: Vec<Blocker>,
    },
    /// The profile's frames are longer than the uplink's sockets take.
    #[error(
        "profile {profile} has MTU {mtu}, and AF_XDP on uplink {uplink} carries at most {}: \
         {reason}; {way_out}, or choose another profile",
        packet_max - frame_max(0)
    )]
    FrameSize {
        /// The profile.
        profile: String,
        /// Its MTU, bytes.
        mtu: u16,
        /// The uplink.
        uplink: String,
        /// Its longest packet, bytes.
        packet_max: u32,
        /// Why the uplink is as it is.
        reason: String,
        /// What would make it longer.
        way_out: &'static str,
    },
    /// A queue that is not ours.
    #[error(
        "uplink {uplink} has no AF_XDP socket on queue {queue}; it has them on {}",
        list(present)
    )]
    NoSuchQueue {
        /// The uplink.
        uplink: String,
        /// Asked for.
        queue: u32,
        /// Those there are.
        present: Vec<u32>,
    },
    /// Too many.
    #[error("this daemon serves {PORTS_MAX} ports already, which is its limit")]
    TooMany,
    /// The socket's name.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The socket's group or permissions.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// The XDP program.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The state file.
    #[error(transparent)]
    State(#[from] StateError),
    /// The positions of its rings.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The socket's thread.
    #[error("cannot start the port's thread")]
    Thread(#[source] io::Error),
    /// The daemon is stopping.
    #[error(transparent)]
    Worker(#[from] WorkerGone),
    /// It is not this process's to change anything now.
    #[error(transparent)]
    Busy(#[from] Busy),
}

impl PortError {
    /// Each reason alone, where there can be several; else none.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match self {
            Self::Problems(problems) => strings(problems),
            Self::Binding(error) => match &**error {
                BindingError::Problems(problems) => strings(problems),
                _ => Vec::new(),
            },
            Self::Blocked { blockers, .. } => strings(blockers),
            Self::Differs { differences, .. } => differences.clone(),
            _ => Vec::new(),
        }
    }

    /// Whether the obstacle is the host's, which may come to be another without a command.
    fn may_pass(&self) -> bool {
        let of_socket = matches!(self, Self::Claim(_) | Self::Access(_) | Self::Journal(_));
        let of_host = matches!(self, Self::Thread(_) | Self::Program(_));
        let of_uplink = matches!(
            self,
            Self::Blocked { .. } | Self::FrameSize { .. } | Self::NoSuchQueue { .. }
        );
        of_socket || of_host || of_uplink
    }
}

/// What tells a port's journals from those of all others on this host.
fn journals_owner(config: &PortConfig) -> String {
    config.socket.display().to_string()
}

fn rings_max(profile: &Profile) -> u16 {
    profile.queue_pairs_max.saturating_mul(2)
}

fn strings<T: ToString>(items: &[T]) -> Vec<String> {
    items.iter().map(ToString::to_string).collect()
}

fn list<T: ToString>(items: &[T]) -> String {
    strings(items).join("; ")
}

/// Where a port comes from.
#[derive(Debug)]
pub enum Origin {
    /// The configuration file or the command line.
    Configuration,
    /// The API: kept in the state file.
    Api,
    /// The state file.
    State,
    /// The command line, with the socket inherited.
    Inherited(Inherited),
    /// The same, of a process whose sessions we go on with.
    Predecessor,
}

/// One port.
#[derive(Debug)]
pub struct Port {
    /// Its number.
    pub id: PortId,
    /// As configured.
    pub config: PortConfig,
    /// What its guest sees.
    pub profile: Arc<Profile>,
    /// What is on record of that.
    bound: Bound,
    /// Its session's side.
    pub link: Arc<PortLink>,
    /// What each worker counts of it.
    pub counters: Vec<Arc<Published<PortCounter>>>,
    permanent: bool,
    pub socket: PortSocket,
    /// Removes the socket's name when the port goes, or while it takes no connections.
    pub file: Option<SocketFile>,
    /// It has its one connection from the command line, and no way to another.
    inherited: bool,
    /// Somebody waits for its session to end.
    leaving: Option<Leaving>,
}

/// What becomes of a port whose session is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Leaving {
    /// It goes. It is not in the state file any more.
    Removed,
    /// It is made anew with another profile, and is so in the state file already.
    Changed(Box<(PortConfig, Bound)>),
}

impl Port {
    /// As it is in the state file, if it is there.
    fn recorded(&self) -> Option<(&PortConfig, &Bound)> {
        match &self.leaving {
            None => Some((&self.config, &self.bound)),
            Some(Leaving::Changed(to)) => Some((&to.0, &to.1)),
            Some(Leaving::Removed) => None,
        }
    }

    /// Give its socket the name that it was made for.
    pub fn name_socket(&mut self) -> Result<(), PortError> {
        if let Some(listener) = self.socket.listener() {
            let file = unix_socket::name(listener, &self.config.socket)?;
            set_access(&self.config, &file)?;
            self.file = Some(file);
        }
        Ok(())
    }

    /// End its session and take no connection; whoever waits for that waits without the ports.
    fn disconnect(&mut self) -> Option<Ending> {
        if self.inherited {
            return None;
        }
        self.file = None;
        Some(self.end())
    }

    /// Take its socket, which begins to stop.
    fn end(&mut self) -> Ending {
        let mut socket =
            std::mem::replace(&mut self.socket, PortSocket::stopped(&self.config.name));
        socket.begin_stop();
        Ending { name: self.config.name.clone(), link: Arc::clone(&self.link), socket }
    }
}

/// A port's socket that stops. To wait for it takes as long as its front-end likes, up to a bound,
/// so nobody waits while the ports are locked.
#[must_use]
struct Ending {
    name: String,
    link: Arc<PortLink>,
    socket: PortSocket,
}

impl Ending {
    /// Wait until no ring of the session is with a worker. A session that does not end is cut off.
    fn wait(mut self) {
        if self.socket.stop() == Ended::LeftBehind {
            self.link.cut_off();
            tracing::error!(port = self.name, "the port goes on without the session left behind");
        }
    }
}

/// A port that is kept and not served.
#[derive(Debug)]
pub struct RefusedPort {
    /// As configured.
    pub config: PortConfig,
    /// What is on record of its profile; None if it never had one.
    pub bound: Option<Bound>,
    /// Why it is not served.
    pub reason: String,
    permanent: bool,
    /// The obstacle is the host's, and may pass by itself.
    may_pass: bool,
}

/// The ports, by name, locked.
pub type Ports<'r> = MutexGuard<'r, BTreeMap<String, Port>>;

/// All ports of the daemon.
#[derive(Debug)]
pub struct Registry {
    /// The configured part of the daemon.
    pub config: Config,
    /// The profiles.
    pub catalog: Arc<Catalog>,
    /// The NICs.
    pub nics: Arc<Nics>,
    /// The workers.
    pub fabric: Arc<Fabric>,
    /// Whether all of this is this process's.
    pub ownership: Ownership,
    /// What is wrong with the host.
    pub problems: Problems,
    state: Option<StateFile>,
    runtime_lock: Option<DirectoryLock>,
    ports: Mutex<BTreeMap<String, Port>>,
    /// No name is here and in `ports`. Locked after it.
    refused: Mutex<BTreeMap<String, RefusedPort>>,
    finished: Arc<Notify>,
    /// The state was saved since the start.
    recorded: AtomicBool,
    /// The port number given last.
    last_id: AtomicU16,
    /// What another process leaves to us, until we go on where it rests.
    pub estate: Mutex<Option<Estate>>,
    /// Ring positions that are in force once we go on there.
    next_journals: Mutex<Vec<SetAside>>,
    /// What sees to the NICs, while it does, and else what it knows of them.
    nic_watch: Mutex<Result<NicWatch, Vec<NicLife>>>,
    /// What looks at the ports, while it does.
    port_watch: Mutex<Option<PortWatch>>,
}

impl Registry {
    /// An empty one.
    pub fn new(
        config: &Config,
        catalog: Arc<Catalog>,
        nics: Arc<Nics>,
        fabric: Arc<Fabric>,
        state: Option<StateFile>,
    ) -> Self {
        let lives = nics.iter().map(NicLife::new).collect();
        let problems = Problems::default();
        for (problem, reason) in state.iter().flat_map(StateFile::problems) {
            problems.set(*problem, Some(reason.clone()));
        }
        Self {
            config: config.clone(),
            catalog,
            nics,
            fabric,
            ownership: Ownership::default(),
            problems,
            state,
            runtime_lock: None,
            ports: Mutex::default(),
            refused: Mutex::default(),
            finished: Arc::default(),
            recorded: AtomicBool::default(),
            last_id: AtomicU16::default(),
            estate: Mutex::default(),
            next_journals: Mutex::default(),
            nic_watch: Mutex::new(Err(lives)),
            port_watch: Mutex::default(),
        }
    }

    /// The same, for ports whose sockets and sessions another process leaves.
    pub fn succeeding(self, estate: Option<Estate>) -> Self {
        Self { estate: Mutex::new(estate), ..self }
    }

    /// The same, under a lock of the runtime directory, or with the reason why there is none.
    pub fn locking(self, lock: Option<(DirectoryLock, Option<String>)>) -> Self {
        let (runtime_lock, reason) = lock.unzip();
        self.problems.set(Problem::RuntimeLock, reason.flatten());
        Self { runtime_lock, ..self }
    }

    /// The socket of a port on which another process listens for us.
    fn inherited(&self, config: &PortConfig) -> Option<UnixListener> {
        let mut estate = self.estate();
        let listens = config.mode == SocketMode::Server;
        estate.as_mut().filter(|_| listens)?.take_listener(&config.socket)
    }

    /// Whether another process has the ports' sessions yet.
    pub fn is_successor(&self) -> bool {
        self.estate().is_some()
    }

    /// Whether the process before this one serves a port of this name.
    pub fn is_left_to_us(&self, name: &str) -> bool {
        self.estate().as_ref().is_some_and(|estate| estate.has_listener(name))
    }

    /// Begin to bring broadcast and multicast from every NIC to the workers, and what the host has
    /// for its VMs, and to follow what becomes of the NICs.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn start_threads(self: &Arc<Self>) -> io::Result<()> {
        let started = self.nics.start_threads(&self.fabric).and_then(|()| {
            *self.port_watch() = Some(PortWatch::start(Arc::clone(self))?);
            self.watch_nics()
        });
        // All of them or none, so that it can be tried again.
        started.inspect_err(|_| self.nics.stop_threads())
    }

    /// Look at the ports no more. Not to be called with the ports locked.
    pub fn leave_ports(&self) {
        let watch = self.port_watch().take();
        drop(watch);
    }

    fn port_watch(&self) -> MutexGuard<'_, Option<PortWatch>> {
        self.port_watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follow what becomes of the NICs.
    ///
    /// # Errors
    /// No thread or descriptor to be had.
    pub fn watch_nics(self: &Arc<Self>) -> io::Result<()> {
        let mut watch = self.nic_watch();
        if let Err(lives) = &mut *watch {
            match NicWatch::start(Arc::clone(self), std::mem::take(lives)) {
                Ok(thread) => *watch = Ok(thread),
                Err(error) => {
                    *lives = self.nics.iter().map(NicLife::new).collect();
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Leave the NICs alone. Not to be called with the ports locked, which the watch may wait for.
    pub fn leave_nics(&self) {
        let mut watch = self.nic_watch();
        if let Ok(thread) = std::mem::replace(&mut *watch, Err(Vec::new())) {
            *watch = Err(thread.end());
        }
    }

    fn nic_watch(&self) -> MutexGuard<'_, Result<NicWatch, Vec<NicLife>>> {
        self.nic_watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports, by name, locked. Whoever has them waits for no front-end: neither for a session
    /// to end nor for anything to be closed that a front-end sent.
    pub fn ports(&self) -> Ports<'_> {
        self.ports.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports, to add, change or remove some for somebody who asks.
    ///
    /// # Errors
    /// [`Busy`], at once: whoever asks must not wait for a hand-over.
    fn change(&self) -> Result<Ports<'_>, Busy> {
        self.ownership.check()?;
        let ports = self.ports();
        self.ownership.check()?;
        Ok(ports)
    }

    /// Whether no port is half removed or changed: then another process could not be told of it.
    ///
    /// # Errors
    /// [`Busy::Changing`].
    pub fn check_settled(&self, ports: &BTreeMap<String, Port>) -> Result<(), Busy> {
        let settled = ports.values().all(|port| port.leaving.is_none());
        if settled { Ok(()) } else { Err(Busy::Changing) }
    }

    /// Do something as the owner of everything, which this process stays until that is done.
    ///
    /// # Errors
    /// [`Busy`].
    pub fn as_owner<T>(&self, work: impl FnOnce() -> T) -> Result<T, Busy> {
        let _ports = self.change()?;
        Ok(work())
    }

    /// All ports as a successor is told of them.
    pub fn parts(&self, ports: &BTreeMap<String, Port>) -> Vec<PortPart> {
        let stays = |port: &&Port| port.leaving != Some(Leaving::Removed);
        let served = ports.values().filter(stays).map(|port| PortPart {
            config: port.config.clone(),
            bound: Some(port.bound.clone()),
            permanent: port.permanent,
            served: true,
        });
        let refused = self.refused();
        let refused = refused.values().map(|port| PortPart {
            config: port.config.clone(),
            bound: port.bound.clone(),
            permanent: port.permanent,
            served: false,
        });
        served.chain(refused).collect()
    }

    /// The ports as the process before this one was told of them, if it says so.
    pub fn told(&self) -> Option<Vec<PortPart>> {
        self.estate().as_ref()?.ports().cloned()
    }

    fn estate(&self) -> MutexGuard<'_, Option<Estate>> {
        self.estate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The ports that are not served, by name.
    pub fn refused(&self) -> MutexGuard<'_, BTreeMap<String, RefusedPort>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock of the state directory, for the process that takes over.
    pub fn state_lock(&self) -> Option<OwnedFd> {
        self.state.as_ref().and_then(StateFile::lock)
    }

    /// The lock of the runtime directory, likewise.
    pub fn runtime_lock(&self) -> Option<OwnedFd> {
        self.runtime_lock.as_ref()?.share()
    }

    /// Lock the runtime directory again if its lock was removed, or could not be taken before.
    pub fn keep_runtime_locked(&self) {
        let Some(lock) = &self.runtime_lock else { return };
        if let Ok(kept) = self.as_owner(|| lock.keep()) {
            let reason = kept.unwrap_or_else(|in_use| Some(in_use.to_string()));
            self.problems.set(Problem::RuntimeLock, reason);
        }
    }

    /// The ports that the process before this one was given at run time, as it says itself, or as
    /// it has kept.
    pub fn remembered(&self) -> Vec<PortConfig> {
        let mut ports: Vec<PortConfig> = match &*self.estate() {
            Some(estate) => estate.added().cloned().collect(),
            None => Vec::new(),
        };
        if self.estate().as_ref().is_some_and(Estate::tells_all_ports) {
            // What is kept here besides was removed since.
            return ports;
        }
        let kept = self.state.as_ref().map(|state| state.kept().ports.clone());
        for port in kept.unwrap_or_default() {
            if ports.iter().all(|told| told.name != port.name) {
                ports.push(port);
            }
        }
        ports
    }

    /// What a port was bound to in the last run.
    fn recorded(&self, name: &str) -> Option<Bound> {
        let told = self.estate().as_ref().and_then(|estate| estate.port(name)?.bound.clone());
        let kept = || self.state.as_ref()?.kept().bindings.get(name).cloned();
        told.or_else(kept)
    }

    /// Told when the only session of `--fd` has ended.
    pub fn finished(&self) -> Arc<Notify> {
        Arc::clone(&self.finished)
    }

    /// Make a port.
    ///
    /// # Errors
    /// [`PortError`]; everything is then as it was.
    pub fn add(&self, config: PortConfig, origin: Origin) -> Result<(), PortError> {
        let mut ports = self.change()?;
        self.check_stays(&ports, &config.name)?;
        if ports.contains_key(&config.name) || self.refused().contains_key(&config.name) {
            return Err(PortError::Exists(config.name));
        }
        self.serve_port(&mut ports, config, origin, None)
    }

    /// Have a port be there: make it, or find it there with this content. One that is there and
    /// refused is tried again. Answers whether it was made.
    ///
    /// # Errors
    /// [`PortError`]; everything is then as it was.
    pub fn put(&self, config: PortConfig) -> Result<bool, PortError> {
        let mut ports = self.change()?;
        self.check_stays(&ports, &config.name)?;
        let served = ports.get(&config.name).map(|port| port.config.clone());
        let kept = || self.refused().get(&config.name).map(|port| port.config.clone());
        let Some(present) = served.or_else(kept) else {
            return self.serve_port(&mut ports, config, Origin::Api, None).map(|()| true);
        };
        let resolved = |config: PortConfig| match self.catalog.resolve(&config.profile) {
            Ok(chosen) => PortConfig { profile: chosen.profile.name.clone(), ..config },
            Err(_unknown) => config,
        };
        let port = config.name.clone();
        let differences = port_differences(&resolved(present), &resolved(config));
        if !differences.is_empty() {
            return Err(PortError::Differs { port, differences });
        }
        self.try_again(&mut ports, &port).map(|()| false)
    }

    /// Serve a port if it is refused.
    fn try_again(&self, ports: &mut BTreeMap<String, Port>, name: &str) -> Result<(), PortError> {
        let Some(port) = self.refused().remove(name) else { return Ok(()) };
        let (config, origin) = (port.config.clone(), origin_of(port.permanent));
        self.serve_port(ports, config, origin, port.bound.as_ref()).inspect_err(|error| {
            let (reason, may_pass) = (chain(error), port.may_pass || error.may_pass());
            self.refuse_quietly(RefusedPort { reason, may_pass, ..port });
        })
    }

    /// Make a port again that may have been there in the last run, with the interface that it had.
    /// One that cannot have it, or cannot be served, is refused: kept and listed.
    ///
    /// # Errors
    /// [`PortError`], for a port of the configuration that is refused for another reason than its
    /// interface.
    pub fn restore(&self, config: PortConfig, origin: Origin) -> Result<(), PortError> {
        let mut ports = self.ports();
        if ports.contains_key(&config.name) {
            let port = config.name;
            tracing::error!(port, "in the configuration file now, as which it is served");
            return Ok(());
        }
        let permanent = is_permanent(&origin);
        let bound = self.recorded(&config.name);
        let kept = config.clone();
        match self.serve_port(&mut ports, config, origin, bound.as_ref()) {
            Err(error) => {
                let (reason, may_pass) = (chain(&error), error.may_pass());
                let config = kept;
                self.refuse(RefusedPort { config, bound, reason, permanent, may_pass });
                let told = !permanent || matches!(error, PortError::Binding(_));
                if told { Ok(()) } else { Err(error) }
            }
            Ok(()) => Ok(()),
        }
    }

    /// Serve the refused ports whose obstacle has passed.
    pub fn serve_refused(&self) {
        let may_pass = |port: &&RefusedPort| port.may_pass;
        let names: Vec<String> =
            self.refused().values().filter(may_pass).map(|port| port.config.name.clone()).collect();
        for name in names {
            let Ok(mut ports) = self.change() else { return };
            // It is listed with the reason.
            let _ = self.try_again(&mut ports, &name);
        }
    }

    /// Serve a port no more, since its socket's name is not to be had.
    pub fn turn_away(&self, name: &str, error: &PortError) {
        let ending = self.ports().get_mut(name).map(Port::end);
        ending.into_iter().for_each(Ending::wait);
        let mut ports = self.ports();
        let Some(Port { config, bound, permanent, .. }) = ports.get(name) else { return };
        let (reason, may_pass) = (chain(error), error.may_pass());
        let (config, bound, permanent) = (config.clone(), Some(bound.clone()), *permanent);
        self.take_port(&mut ports, name);
        self.refuse(RefusedPort { config, bound, reason, permanent, may_pass });
    }

    fn refuse(&self, port: RefusedPort) {
        tracing::error!(port = port.config.name, reason = port.reason, "port is refused");
        self.refuse_quietly(port);
    }

    fn refuse_quietly(&self, port: RefusedPort) {
        self.refused().insert(port.config.name.clone(), port);
    }

    /// Keep what all ports are bound to, and what the uplinks are like.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn record(&self) -> Result<(), StateError> {
        let Ok(ports) = self.change() else {
            // The file is another process's, or is about to be; else the upkeep does it.
            self.recorded.store(false, Ordering::Relaxed);
            return Ok(());
        };
        self.save(&ports, None, None)
    }

    /// The same if it was not possible before, or never done.
    pub fn record_if_due(&self) {
        let failed = self.problems.has(Problem::State) || self.problems.has(Problem::StateCopy);
        if failed || !self.recorded.load(Ordering::Relaxed) {
            // What is wrong is among the problems.
            let _ = self.record();
        }
    }

    /// Write the state anew: somebody else has had its files.
    pub fn record_again(&self) {
        self.recorded.store(false, Ordering::Relaxed);
        self.record_if_due();
    }

    /// Give a port another profile. Nothing else does: no restart, no update, no new file.
    ///
    /// # Errors
    /// [`PortError`]; the port is as it was, or refused if it could not be made again. What cannot
    /// be kept is not done.
    pub fn set_profile(&self, name: &str, change: &ProfileChange) -> Result<(), PortError> {
        let ports = self.change()?;
        self.check_stays(&ports, name)?;
        let (old, permanent) = self.changeable(&ports, name)?;
        let config = if permanent {
            self.configured(&old.0, change)?
        } else {
            let (profile, allow_draft) = (change.profile.clone(), change.allow_draft);
            PortConfig { profile, allow_draft, ..old.0.clone() }
        };
        if permanent && ports.contains_key(name) {
            // It is served as the configuration file says, or it would be refused.
            return Ok(());
        }
        let (_, profile, bound) = self.check(&config, &ports, None)?;
        let recorded = PortConfig { profile: profile.name.clone(), ..config.clone() };
        self.save(&ports, Some((&recorded, &bound, permanent)), Some(name))?;
        let changed = Leaving::Changed(Box::new((recorded, bound)));
        let mut ports = self.end_session_of(ports, name, changed);
        // Whoever stops the daemon meanwhile leaves everything as it was.
        let stopping = self.ownership.check().map_err(PortError::from);
        let mut aside = None;
        if stopping.is_err() {
            let port = ports.get_mut(name);
            port.into_iter().for_each(|port| port.leaving = None);
        } else {
            self.take_port(&mut ports, name);
            aside = self.set_journals_aside(name);
        }
        let serve = |()| self.serve_port(&mut ports, config, origin_of(permanent), None);
        let Err(error) = stopping.and_then(serve) else {
            aside.iter().for_each(SetAside::discard);
            return Ok(());
        };
        aside.iter().for_each(SetAside::put_back);
        self.put_back(&mut ports, old, permanent);
        Err(error)
    }

    /// Make the sockets again whose names somebody has removed, of ports without a front-end: the
    /// others' are made when it has gone.
    pub fn remake_sockets(&self) {
        let files: Vec<_> = self
            .ports()
            .iter()
            .filter(|(_, port)| port.leaving.is_none() && port.link.session().is_none())
            .filter_map(|(name, port)| Some((name.clone(), port.file.as_ref()?.named().clone())))
            .collect();
        // A file system may take its time, and whoever wants the ports does not wait for it.
        for (name, file) in files.iter().filter(|(_, file)| !file.is_there()) {
            self.remake_socket(name, file);
        }
    }

    fn remake_socket(&self, name: &str, lost: &NamedFile) {
        let Ok(ports) = self.change() else { return };
        let is_lost = |port: &&Port| {
            let file = port.file.as_ref().map(SocketFile::named);
            port.leaving.is_none() && file == Some(lost)
        };
        let Some(port) = ports.get(name).filter(is_lost) else { return };
        let (config, bound, permanent) = (port.config.clone(), port.bound.clone(), port.permanent);
        let socket = config.socket.display();
        tracing::warn!(port = name, %socket, "the port's socket was removed: it is made again");
        let unchanged = Leaving::Changed(Box::new((config.clone(), bound.clone())));
        let mut ports = self.end_session_of(ports, name, unchanged);
        if self.ownership.check().is_err() {
            ports.get_mut(name).into_iter().for_each(|port| port.leaving = None);
            return;
        }
        self.take_port(&mut ports, name);
        self.put_back(&mut ports, (config, Some(bound)), permanent);
    }

    /// Take a port away, served or refused, that has no session any more.
    fn take_port(&self, ports: &mut BTreeMap<String, Port>, name: &str) {
        self.refused().remove(name);
        if let Some(port) = ports.remove(name) {
            self.forget(port.id);
        }
    }

    /// Have a port be as it was before a change that came to nothing, if that can still be.
    fn put_back(
        &self,
        ports: &mut BTreeMap<String, Port>,
        (config, bound): (PortConfig, Option<Bound>),
        permanent: bool,
    ) {
        if !ports.contains_key(&config.name) {
            let origin = origin_of(permanent);
            if let Err(error) = self.serve_port(ports, config.clone(), origin, bound.as_ref()) {
                let (reason, may_pass) = (chain(&error), error.may_pass());
                self.refuse(RefusedPort { config, bound, reason, permanent, may_pass });
            }
        }
        // Where that fails it is among the problems, and tried again.
        let _ = self.save(ports, None, None);
    }

    /// The port of this name, if its profile may be changed now: what is on record of its profile,
    /// and whether it is permanent.
    fn changeable(
        &self,
        ports: &BTreeMap<String, Port>,
        name: &str,
    ) -> Result<((PortConfig, Option<Bound>), bool), PortError> {
        match ports.get(name) {
            Some(port) if port.link.session().is_some() => {
                Err(PortError::Connected(name.to_owned()))
            }
            Some(port) => Ok(((port.config.clone(), Some(port.bound.clone())), port.permanent)),
            None => match self.refused().get(name) {
                Some(port) => Ok(((port.config.clone(), port.bound.clone()), port.permanent)),
                None => Err(PortError::NotFound(name.to_owned())),
            },
        }
    }

    /// A permanent port with the profile of the configuration file, which must be the one asked
    /// for: at the next start it would be refused again.
    fn configured(
        &self,
        old: &PortConfig,
        change: &ProfileChange,
    ) -> Result<PortConfig, PortError> {
        let file = self.config.ports.iter().find(|port| port.name == old.name);
        let file = file.unwrap_or(old).clone();
        let digest = |text: &str| Ok(self.catalog.resolve(text)?.profile.digest());
        let problem = |error: ResolveError| PortError::Problems(vec![error.into()]);
        if digest(&change.profile).map_err(problem)? == digest(&file.profile).map_err(problem)? {
            return Ok(file);
        }
        let (configured, asked) = (file.profile, change.profile.clone());
        Err(PortError::Configured { port: file.name, configured, asked })
    }

    /// Check, make and start a port.
    fn serve_port(
        &self,
        ports: &mut BTreeMap<String, Port>,
        mut config: PortConfig,
        origin: Origin,
        recorded: Option<&Bound>,
    ) -> Result<(), PortError> {
        let (nic, profile, bound) = self.check(&config, ports, recorded)?;
        config.profile.clone_from(&bound.profile);
        let id = self.free_id(ports).ok_or(PortError::TooMany)?;
        let route = route(id, &config, &profile, nic)?;
        let permanent = is_permanent(&origin);
        let keep = matches!(origin, Origin::Api);
        let inherited = matches!(origin, Origin::Inherited(_) | Origin::Predecessor);
        let (source, file) = match self.inherited(&config) {
            Some(listener) => (SocketSource::Listener(listener), None),
            None if self.is_successor() && is_named(&config, &origin) => {
                (SocketSource::Listener(unnamed(&config.socket)?), None)
            }
            None => open_socket(&config, origin)?,
        };
        let journals = match self.journals(&config, &profile) {
            // What was there before is served without them.
            Err(error) if !keep && !inherited => {
                let error = chain(&error);
                tracing::warn!(
                    port = config.name,
                    error,
                    "the port's ring positions have no place"
                );
                self.journals_in_memory(&config.name, &profile).unwrap_or_default()
            }
            journals => journals?,
        };
        let mut undo = Undo { registry: self, port: id, armed: true };
        let counters = self.fabric.add_port(id, &config.name)?;
        self.fabric.change_routes(|routes| drop(routes.insert(id, route)))?;
        self.redirect(nic)?;
        let kept = (journals, memory_policy(&self.config));
        let link = PortLink::new(id, Arc::clone(&self.fabric), nic.config.coalesce, kept);
        let link = Arc::new(link);
        let down = nic.config.link_to_guests && nic.status().state != NicState::Up;
        let (socket, file) = if down && !inherited {
            (PortSocket::discard(source, &config.name), None)
        } else {
            let socket = self.start(source, &config, &profile, &link);
            (socket.map_err(PortError::Thread)?, file)
        };
        // Last, so that a port that could not be made is not there after a restart.
        if keep {
            self.save(ports, Some((&config, &bound, false)), None)?;
        }
        undo.armed = false;
        tracing::info!(
            port = config.name, profile = profile.name, digest = profile.digest(),
            uplink = config.uplink, mac = %config.mac(), socket = %config.socket.display(),
            "port is served"
        );
        let leaving = None;
        let port = Port {
            id,
            config,
            profile,
            bound,
            link,
            counters,
            permanent,
            socket,
            file,
            inherited,
            leaving,
        };
        ports.insert(port.config.name.clone(), port);
        Ok(())
    }

    /// Remove a port, ending its session.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn remove(&self, name: &str) -> Result<(), PortError> {
        let ports = self.change()?;
        self.check_stays(&ports, name)?;
        let served = ports.get(name).map(|port| port.permanent);
        let permanent = served.or_else(|| self.refused().get(name).map(|port| port.permanent));
        if permanent.ok_or_else(|| PortError::NotFound(name.to_owned()))? {
            return Err(PortError::Permanent(name.to_owned()));
        }
        self.save(&ports, None, Some(name))?;
        let mut ports = self.end_session_of(ports, name, Leaving::Removed);
        self.take_port(&mut ports, name);
        self.discard_journals(name);
        tracing::info!(port = name, "port is removed");
        Ok(())
    }

    /// Whether nobody removes the port just now.
    fn check_stays(&self, ports: &BTreeMap<String, Port>, name: &str) -> Result<(), PortError> {
        match ports.get(name) {
            Some(port) if port.leaving.is_some() => Err(PortError::Leaving(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// End a port's session and wait for that without the ports, of which it stays one meanwhile,
    /// so that its name, its address and its socket are still taken. The ports, locked again.
    fn end_session_of<'r>(
        &'r self,
        mut ports: Ports<'r>,
        name: &str,
        leaving: Leaving,
    ) -> Ports<'r> {
        let Some(port) = ports.get_mut(name) else { return ports };
        port.leaving = Some(leaving);
        let ending = port.end();
        drop(ports);
        ending.wait();
        self.ports()
    }

    /// Tell of the ports whose ring positions no other process would find: after a crash nobody
    /// knows where the rings of their guests are.
    pub fn look_at_positions(&self) {
        let own_path = |name: &str| self.journals_paths(name).map(|[path, _]| path);
        let places: Vec<_> = self
            .ports()
            .iter()
            .filter_map(|(name, port)| Some((name.clone(), own_path(name)?, port.link.clone())))
            .collect();
        // As above: nobody waits for the ports while a file system takes its time.
        let is_homeless = |(_, path, link): &(_, PathBuf, Arc<PortLink>)| {
            link.journals().is_some_and(|journals| !journals.is_at(path))
        };
        let homeless: Vec<String> =
            places.into_iter().filter(is_homeless).map(|(name, ..)| name).collect();
        let told = (!homeless.is_empty()).then(|| {
            let directory = self.config.runtime_dir.as_deref().unwrap_or(Path::new("")).display();
            format!(
                "ports {}: their ring positions are not in {directory}/rings, and a crash would \
                 cut their guests off; make room, then `isonic upgrade`",
                homeless.join(", ")
            )
        });
        self.problems.set(Problem::RingPositions, told);
    }

    /// Where a port's packed rings are kept, if its guest may have any, and this daemon keeps them.
    fn journals(
        &self,
        config: &PortConfig,
        profile: &Profile,
    ) -> Result<Option<Arc<Journals>>, JournalError> {
        match self.journals_paths(&config.name) {
            Some([path, aside]) if profile.features.has(RING_PACKED) => {
                let (owner, rings) = (journals_owner(config), rings_max(profile));
                let journals = if self.is_successor() {
                    let (journals, next) = Journals::open_beside(&path, &aside, &owner, rings)?;
                    self.next_journals().extend(next);
                    journals
                } else {
                    Journals::open(&path, &owner, rings)?
                };
                Ok(Some(Arc::new(journals)))
            }
            _ => Ok(None),
        }
    }

    /// The same for as long as this process lives.
    fn journals_in_memory(
        &self,
        port: &str,
        profile: &Profile,
    ) -> Result<Option<Arc<Journals>>, JournalError> {
        let Some([path, _]) = self.journals_paths(port) else { return Ok(None) };
        Ok(Some(Arc::new(Journals::in_memory(&path, rings_max(profile))?)))
    }

    /// Those that had no room at the start have it now, or are lost. For the process after this
    /// one, when no session is left.
    fn settle_journals(&self, ports: &BTreeMap<String, Port>) {
        if self.is_successor() {
            // It has taken nothing over, and the files are the other's.
            return;
        }
        for (name, port) in ports {
            let Some([path, _]) = self.journals_paths(name) else { return };
            let settled =
                |journals: &Journals| journals.settle(&path, &journals_owner(&port.config));
            if let Some(Err(error)) = port.link.journals().map(settled) {
                let error = chain(&error);
                tracing::warn!(port = name, error, "the port's ring positions are lost");
            }
        }
    }

    /// Where they are kept, and where what is not in force is.
    fn journals_paths(&self, port: &str) -> Option<[PathBuf; 2]> {
        let directory = self.config.runtime_dir.as_ref()?;
        Some(["rings", "rings-aside"].map(|name| directory.join(name).join(port)))
    }

    fn next_journals(&self) -> MutexGuard<'_, Vec<SetAside>> {
        self.next_journals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process is the owner from now on: what it made beside the other's takes its place.
    pub fn place_journals(&self) {
        self.next_journals().drain(..).for_each(|next| next.put_back());
    }

    /// Of a port whose profile changes, if that can be.
    fn set_journals_aside(&self, port: &str) -> Option<SetAside> {
        let [path, aside] = self.journals_paths(port)?;
        SetAside::of(path, aside)
    }

    /// Of a port whose guest is gone.
    fn discard_journals(&self, port: &str) {
        if let Some([path, _]) = self.journals_paths(port) {
            Journals::remove(&path);
        }
    }

    /// Show the guests of an uplink that wants it so that its link is down, or up again: their
    /// front-ends have no backend while it is down.
    pub fn show_link(&self, nic: &Nic, up: bool) {
        if !nic.config.link_to_guests {
            return;
        }
        let of_nic =
            |port: &&mut Port| port.leaving.is_none() && port.config.uplink == nic.config.interface;
        if !up {
            let endings: Vec<_> =
                self.ports().values_mut().filter(of_nic).filter_map(Port::disconnect).collect();
            // All of them end at once.
            endings.into_iter().for_each(Ending::wait);
            return;
        }
        let stopped = |port: &&mut Port| port.socket.is_stopped();
        for port in self.ports().values_mut().filter(of_nic).filter(stopped) {
            if let Err(error) = self.connect(port) {
                let (port, reason) = (&port.config.name, chain(&error));
                tracing::error!(port, reason, "the port takes no connections");
            }
        }
    }

    /// Take connections again, of a port that was disconnected.
    fn connect(&self, port: &mut Port) -> Result<(), PortError> {
        if port.inherited {
            return Ok(());
        }
        let (source, file) = open_socket(&port.config, Origin::State)?;
        let Port { config, profile, link, .. } = &*port;
        port.socket = self.start(source, config, profile, link).map_err(PortError::Thread)?;
        port.file = file;
        Ok(())
    }

    /// End the sessions whose front-end took their memory away, until the workers end.
    pub fn watch_memory(&self) {
        while let Some(lost) = self.fabric.next_lost() {
            let ports = self.ports();
            if self.ownership.is_over() {
                // The connection is another process's as well, which sees for itself.
                return;
            }
            for port in ports.values().filter(|port| port.id == lost) {
                // Told late, it may have been an earlier session's: the rings of this one say.
                let rings = self.fabric.inspect(port.id).unwrap_or_default();
                let gone = |ring: &RingReport| ring.broken == Some(Fault::MemoryGone);
                if rings.iter().any(|(_, ring)| gone(ring)) {
                    tracing::error!(port = port.config.name, "memory is gone: session ended");
                    port.link.end_session();
                }
            }
        }
    }

    /// End all sessions and forget all ports; the state file keeps them.
    pub fn stop(&self) {
        let endings: Vec<_> = self.ports().values_mut().map(Port::end).collect();
        // All of them end at once.
        endings.into_iter().for_each(Ending::wait);
        let mut ports = self.ports();
        self.settle_journals(&ports);
        ports.clear();
    }

    /// A number that no port has, and that none had lately: packets may still be under way to it.
    fn free_id(&self, ports: &BTreeMap<String, Port>) -> Option<PortId> {
        let limit = u16::try_from(PORTS_MAX).expect("a small number");
        let last = self.last_id.load(Ordering::Relaxed);
        let mut candidates = (1..=limit).map(|step| PortId((last + step) % limit));
        let id = candidates.find(|&id| ports.values().all(|port| port.id != id))?;
        self.last_id.store(id.0, Ordering::Relaxed);
        Some(id)
    }

    /// Every reason at once why the port cannot be beside the others; else its NIC, its profile,
    /// and what is to be recorded of that.
    fn check(
        &self,
        config: &PortConfig,
        ports: &BTreeMap<String, Port>,
        recorded: Option<&Bound>,
    ) -> Result<(&Nic, Arc<Profile>, Bound), PortError> {
        let others = ports.values().filter(|port| port.config.name != config.name);
        let others: Vec<_> = others.map(|port| port.config.clone()).collect();
        let mut problems = port_problems(config, &others, &self.config.uplinks);
        problems.extend(host_address_problem(config, &self.nics.host_addresses()));
        let bound = match bind(config, &self.catalog, recorded) {
            Ok(bound) => Some(bound),
            Err(BindingError::Problems(more)) => {
                problems.extend(more);
                None
            }
            Err(error) => return Err(PortError::Binding(Box::new(error))),
        };
        match (bound, self.nics.by_name(&config.uplink)) {
            (Some((profile, bound)), Some(nic)) if problems.is_empty() => {
                check_profile(&profile, nic)?;
                Ok((nic, profile, bound))
            }
            _ => Err(PortError::Problems(problems)),
        }
    }

    /// Bring the NIC's program in step with the routes.
    pub fn redirect(&self, nic: &Nic) -> Result<(), ProgramError> {
        let routes = self.fabric.routes();
        let of_nic: Vec<_> = routes.values().filter(|route| route.uplink == nic.id).collect();
        nic.redirect(&of_nic)
    }

    /// Keep the ports added at run time, the refused ones among them, and all bindings: with one
    /// more that is about to be made (whether it is permanent), or without one that is about to go;
    /// with both, it is changed.
    fn save(
        &self,
        ports: &BTreeMap<String, Port>,
        more: Option<(&PortConfig, &Bound, bool)>,
        less: Option<&str>,
    ) -> Result<(), StateError> {
        let Some(state) = &self.state else { return Ok(()) };
        let refused = self.refused();
        let served = ports.values().filter_map(|port| {
            let (config, bound) = port.recorded()?;
            Some((config, Some(bound), port.permanent))
        });
        let refused =
            refused.values().map(|port| (&port.config, port.bound.as_ref(), port.permanent));
        let more =
            more.into_iter().map(|(config, bound, permanent)| (config, Some(bound), permanent));
        let others = served.chain(refused).filter(|(config, ..)| less != Some(&config.name));
        let mut kept = Kept::default();
        for (config, bound, permanent) in others.chain(more) {
            if let Some(bound) = bound {
                kept.bindings.insert(config.name.clone(), bound.clone());
            }
            if !permanent {
                kept.ports.push(config.clone());
            }
        }
        kept.uplinks = self.nics.known();
        let saved = state.save(&kept);
        self.problems.set(Problem::State, saved.as_ref().err().map(|error| chain(error)));
        saved?;
        self.recorded.store(true, Ordering::Relaxed);
        let copied = state.back_up(&kept).err().map(|error| chain(&error));
        self.problems.set(Problem::StateCopy, copied);
        Ok(())
    }

    fn start(
        &self,
        source: SocketSource,
        config: &PortConfig,
        profile: &Arc<Profile>,
        link: &Arc<PortLink>,
    ) -> io::Result<PortSocket> {
        let only = matches!(source, SocketSource::Stream(_) | SocketSource::Inherited);
        let only_session = only.then(|| self.finished());
        let (name, profile) = (config.name.clone(), Arc::clone(profile));
        let link = Arc::clone(link);
        let serve = move |connection: &mut Connection| {
            let session = link.connected(connection);
            let (profile, host) = (Arc::clone(&profile), Arc::clone(&session) as _);
            let end = serve_connection(connection, profile, host, &name);
            session.disconnected();
            if let Some(finished) = &only_session {
                finished.notify_one();
            }
            end
        };
        if self.is_successor() {
            PortSocket::start_at_rest(source, &config.name, serve)
        } else {
            PortSocket::start(source, &config.name, serve)
        }
    }

    /// Undo what `add` did in the fabric and the program.
    fn forget(&self, port: PortId) {
        let mut gone = None;
        let changed = self.fabric.change_routes(|routes| gone = routes.remove(&port));
        let nic = gone.and_then(|route| self.nics.iter().find(|nic| nic.id == route.uplink));
        if let Some(nic) = nic
            && let Err(error) = self.redirect(nic)
        {
            tracing::error!(%error, "frames of a port that is gone still come to us");
        }
        if changed.and_then(|()| self.fabric.remove_port(port)).is_err() {
            tracing::error!("a worker is gone");
        }
    }
}

/// What front-ends may share as their guests' memory.
fn memory_policy(config: &Config) -> MemoryPolicy {
    let files = match config.memory_files {
        config::MemoryFiles::Shared => MemoryFiles::Shared,
        config::MemoryFiles::Any => MemoryFiles::Any,
    };
    MemoryPolicy { files, max: u64::from(config.memory_max_gib) << 30 }
}

/// Where a port comes from that was there before.
fn origin_of(permanent: bool) -> Origin {
    if permanent { Origin::Configuration } else { Origin::State }
}

/// Whether a port from there is the configuration's to make and remove.
fn is_permanent(origin: &Origin) -> bool {
    !matches!(origin, Origin::Api | Origin::State)
}

/// Forgets a half-made port unless it became whole.
struct Undo<'r> {
    registry: &'r Registry,
    port: PortId,
    armed: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.registry.forget(self.port);
        }
    }
}

fn check_profile(profile: &Profile, nic: &Nic) -> Result<(), PortError> {
    let blockers = profile.blockers(&nic.facts());
    if !blockers.is_empty() {
        let (profile, uplink) = (profile.name.clone(), nic.config.interface.clone());
        return Err(PortError::Blocked { profile, uplink, blockers });
    }
    let NicStatus { packet_max, socket_mode, reason, .. } = nic.status();
    check_frame_size(profile, packet_max, socket_mode, (&nic.config.interface, &reason))
}

/// Whether the uplink of this name, whose mode has this reason, takes the profile's frames.
fn check_frame_size(
    profile: &Profile,
    packet_max: u32,
    mode: xdp::SocketMode,
    (uplink, reason): (&str, &str),
) -> Result<(), PortError> {
    if frame_max(u32::from(profile.mtu)) <= packet_max {
        return Ok(());
    }
    Err(PortError::FrameSize {
        profile: profile.name.clone(),
        mtu: profile.mtu,
        uplink: uplink.to_owned(),
        packet_max,
        reason: reason.to_owned(),
        way_out: match mode {
            xdp::SocketMode::ZeroCopy => "give the uplink `mode = \"copy\"`",
            xdp::SocketMode::Copy => "use Linux 6.6 or later",
        },
    })
}

/// The port's route, with no queue pair ready yet. Each pair is served by a worker that has a
/// socket to send on: that of its own queue for a wire, any of the uplink's for a switch.
fn route(
    id: PortId,
    config: &PortConfig,
    profile: &Profile,
    nic: &Nic,
) -> Result<Route, PortError> {
    let status = nic.status();
    let device = &status.interface.device;
    let (attachment, workers) = match config.attach {
        Attach::Switch if device.own_mac_only() => {
            let (uplink, kind) = (nic.config.interface.clone(), device.kind.clone());
            return Err(PortError::OwnMacOnly { uplink, kind });
        }
        Attach::Switch => {
            let mut workers: Vec<WorkerId> =
                status.queues.iter().map(|&(_, worker)| worker).collect();
            workers.sort_unstable();
            workers.dedup();
            // Single-queue guests, the common kind, spread over the workers too.
            let turn = id.index() % workers.len().max(1);
            workers.rotate_left(turn);
            (Attachment::Switch { mac: config.mac().0 }, workers)
        }
        Attach::Wire => {
            let all = || status.queues.iter().map(|&(queue, _)| queue).collect();
            let queues: Vec<u32> = config.queues.clone().unwrap_or_else(all);
            let workers = queues.iter().map(|&queue| worker_of(nic, &status, queue));
            let workers = workers.collect::<Result<_, _>>()?;
            (Attachment::Wire { queues }, workers)
        }
    };
    let frame_max = frame_max(u32::from(profile.mtu));
    Ok(Route::new(nic.id, attachment, frame_max, workers))
}

fn worker_of(nic: &Nic, status: &NicStatus, queue: u32) -> Result<WorkerId, PortError> {
    status.worker_of(queue).ok_or_else(|| PortError::NoSuchQueue {
        uplink: nic.config.interface.clone(),
        queue,
        present: status.queues.iter().map(|&(queue, _)| queue).collect(),
    })
}

fn open_socket(
    config: &PortConfig,
    origin: Origin,
) -> Result<(SocketSource, Option<SocketFile>), PortError> {
    match origin {
        Origin::Inherited(Inherited::Listener(listener)) => {
            return Ok((SocketSource::Listener(listener), None));
        }
        Origin::Inherited(Inherited::Stream(stream)) => {
            return Ok((SocketSource::Stream(stream), None));
        }
        Origin::Predecessor => return Ok((SocketSource::Inherited, None)),
        Origin::Configuration | Origin::Api | Origin::State => {}
    }
    if config.mode == SocketMode::Client {
        return Ok((SocketSource::Connect(config.socket.clone()), None));
    }
    let claimed = claim(&config.socket)?;
    set_access(config, &claimed.file)?;
    Ok((SocketSource::Listener(claimed.listener), Some(claimed.file)))
}

/// Whether front-ends find the port by a name that it has to be given.
fn is_named(config: &PortConfig, origin: &Origin) -> bool {
    let given = matches!(origin, Origin::Configuration | Origin::Api | Origin::State);
    given && config.mode == SocketMode::Server
}

fn set_access(config: &PortConfig, file: &SocketFile) -> Result<(), AccessError> {
    let permissions = config.socket_permissions.map(|permissions| permissions.0);
    file.set_access(config.socket_group.as_deref(), permissions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::xdp::FRAME_PACKET_MAX;

    #[test]
    fn an_mtu_that_the_sockets_do_not_take_is_refused_with_limit_cause_and_way_out() {
        let catalog = Catalog::embedded();
        let check = |mtu, mode| {
            let profile = catalog.resolve(&format!("org.isonic.net.v1,mtu={mtu}")).unwrap();
            check_frame_size(&profile.profile, FRAME_PACKET_MAX, mode, ("eth0", "old driver"))
        };
        for mode in [xdp::SocketMode::ZeroCopy, xdp::SocketMode::Copy] {
            check(3818, mode).unwrap();
        }
        let refused = check(3819, xdp::SocketMode::ZeroCopy).unwrap_err().to_string();
        for word in ["3819", "eth0", "3818", "old driver", "mode = \"copy\""] {
            assert!(refused.contains(word), "{word} is not in: {refused}");
        }
        let refused = check(9000, xdp::SocketMode::Copy).unwrap_err().to_string();
        assert!(refused.contains("Linux 6.6"), "{refused}");
    }
}
