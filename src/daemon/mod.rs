//! DAEMON: owns everything that lives long, and is the only place where sessions, workers and
//! AF_XDP sockets meet.
//!
//! [`run`] is the whole life of the process, in order. `fabric` is the workers and the forwarding
//! table they share; `uplinks` the NICs, and `steering` which of their queues receive; `host` what
//! joins the host to its VMs; `nic_watch` sees what becomes of the NICs, `nic_life` does what is to
//! be done about it, `stall` tells that a socket stands still; `ports` the registry of ports, each
//! with its socket and its `link` to the fabric; `binding` which profile a port gets; `state_file`
//! what survives a restart, and `directory_lock` keeps a second daemon out; `problems` is what is
//! wrong with the host; `signals` what the process hears; `port_watch` looks at the ports, and
//! `diagnosis` says what is wrong with them; `published` the list of profiles as a file; `service`
//! answers the API; `succession` has another process take over, `ownership` says whose everything
//! is meanwhile; `upkeep` is what is begun at the start and repeated when it fails.

#![forbid(unsafe_code)]

mod directory_lock;
mod host_port;
mod nic;
mod ownership;
mod ports;
mod problems;
mod published;
mod service;
mod stop_signals;
mod upgrade;
mod upkeep;
mod workers;

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::config::{Config, Handed, RunOptions, UplinkConfig};
use crate::control::server;
use crate::guest_memory::install_fault_handler;
use crate::platform::unix_socket::{self, ClaimError, Claimed, InheritError, SocketFile};
use crate::platform::{log_queue, privilege};
use crate::profile::{Catalog, CatalogError};
use crate::report::chain;
use crate::xdp::{BusyPollError, recover_interrupts};

use directory_lock::{Directory, DirectoryLock, LockError};
use nic::{NicError, Nics, interrupt_notes};
use ports::{Origin, PortError, Registry, StateError, StateFile};
use service::DaemonService;
use stop_signals::Signals;
pub use upgrade::refuse_predecessor;
use upgrade::{Estate, Predecessor, Succession, TakeError, notify};
use upkeep::Upkeep;
use workers::Fabric;

/// Why the daemon did not start, or ended. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A capability is missing.
    #[error(
        "isonic needs the capabilities {missing} to use AF_XDP; run it as root, or under systemd \
         with AmbientCapabilities={missing}"
    )]
    Privilege {
        /// Names, as setpriv(1) and systemd have them.
        missing: String,
    },
    /// The profile directory.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// A NIC.
    #[error(transparent)]
    Nic(#[from] NicError),
    /// What an isonic that was killed left of a NIC's settings.
    #[error(transparent)]
    Interrupts(#[from] BusyPollError),
    /// The workers could not be started.
    #[error("cannot start the workers")]
    Workers(#[source] io::Error),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The runtime directory.
    #[error(transparent)]
    Runtime(#[from] LockError),
    /// A port of the configuration.
    #[error("port \"{name}\" cannot be served")]
    Port {
        /// Which.
        name: String,
        /// Why.
        #[source]
        source: PortError,
    },
    /// The API's socket.
    #[error(transparent)]
    Claim(#[from] ClaimError),
    /// The API's server or the signal handlers.
    #[error("cannot serve the API")]
    Serve(#[source] io::Error),
    /// `--fd` names no usable socket.
    #[error(transparent)]
    Inherit(#[from] InheritError),
    /// The process before this one, which was to leave everything to it.
    #[error("cannot go on where the process before this one was")]
    Take(#[from] TakeError),
}

/// How long a signal may take through the runtime.
const SIGNAL_WAIT: Duration = Duration::from_millis(1);
/// How long a thread of the API waits for its next request.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(u32::MAX as u64);

/// Serve until told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`], with everything undone.
pub fn run(config: &Config, options: RunOptions) -> Result<(), DaemonError> {
    raise_descriptor_limit();
    let Some((predecessor, estate)) = Predecessor::find()? else {
        return live(config, options, None);
    };
    let outcome = live(config, options, Some((&predecessor, estate)));
    if let Err(error) = &outcome {
        predecessor.refuse(&chain(error));
    }
    outcome
}

/// A whole life, which may begin with what a process before this one leaves.
fn live(
    config: &Config,
    options: RunOptions,
    before: Option<(&Predecessor, Estate)>,
) -> Result<(), DaemonError> {
    let (predecessor, mut estate) = before.unzip();
    // 1. What can be refused without touching anything.
    check_privileges(config)?;
    let catalog = Arc::new(Catalog::load(config.profile_dir.as_deref())?);
    let waits = predecessor.is_some_and(Predecessor::waits);
    let state = open_state(config, &mut estate, waits)?;
    let runtime_lock = lock_runtime_directory(config, &mut estate)?;
    let mut api =
        config.api_socket.as_deref().map(|path| Api::open(path, &mut estate)).transpose()?;
    let listener = api.as_ref().map(|api| api.listener.as_fd());
    let succession = Arc::new(Succession::new(listener).map_err(DaemonError::Serve)?);
    // 2. A front-end that truncates its memory must not end us; a signal ends us in order.
    install_fault_handler();
    let runtime = start_runtime().map_err(DaemonError::Serve)?;
    let signals = runtime.block_on(async { Signals::new() }).map_err(DaemonError::Serve)?;
    // 3. NICs and workers.
    if let Some(notes) = interrupt_notes(config) {
        recover_interrupts(&notes)?;
    }
    let known = state.as_ref().map(|state| state.kept().uplinks.clone()).unwrap_or_default();
    let (nics, sockets) = Nics::open(config, &mut estate, &known)?;
    let at_rest = predecessor.is_some();
    let fabric = Fabric::start(config, &nics, sockets, at_rest).map_err(DaemonError::Workers)?;
    let nics = Arc::new(nics);
    // 4. Ports: those of the configuration, then those added at run time.
    let registry = Registry::new(config, catalog, nics, Arc::clone(&fabric), state);
    let registry = Arc::new(registry.succeeding(estate).locking(runtime_lock));
    let watched = Arc::clone(&registry);
    let watch = std::thread::Builder::new()
        .name("memory".to_owned())
        .spawn(move || watched.watch_memory())
        .map_err(DaemonError::Workers)?;
    // 5. Serve.
    // The ports first, since guests may be waiting for them.
    let (stop, told) = (Arc::new(Notify::new()), Arc::clone(&registry));
    runtime.spawn(heed(signals, Arc::clone(&stop), told));
    let outcome = add_ports(&registry, config, options, waits)
        .and_then(|()| predecessor.map_or(Ok(()), |it| take_over(it, &registry, &mut api)))
        .and_then(|()| {
            let begun = Upkeep::begin(&registry, predecessor.is_some());
            begun.map_err(DaemonError::Workers)
        })
        .and_then(|upkeep| {
            // It ends with the runtime.
            runtime.spawn(upkeep.keep());
            serve(&runtime, &stop, api.as_ref(), &registry, &succession)
        });
    let outcome = if predecessor.is_some() { outlive(outcome, &runtime, &stop) } else { outcome };
    leave_or_return(&runtime, &registry, &succession, outcome.is_ok());
    drop(api);
    // 6. Stop in reverse: sessions give their rings back, then nobody needs the workers.
    registry.leave_ports();
    registry.stop();
    registry.leave_nics();
    registry.nics.stop_threads();
    fabric.stop();
    if watch.join().is_err() {
        tracing::error!("the thread that watches for lost memory has panicked");
    }
    outcome
}

/// End here if another process has everything, or is to have it: without undoing anything.
fn leave_or_return(
    runtime: &Runtime,
    registry: &Arc<Registry>,
    succession: &Succession,
    served: bool,
) {
    if registry.ownership.stop() {
        // A signal that came last of all is still on its way through the runtime.
        runtime.block_on(async { tokio::time::sleep(SIGNAL_WAIT).await });
        if registry.ownership.stop_asked() {
            succession.stop_successor();
        }
    } else {
        notify(&[NotifyState::Stopping]);
        if !served || !succession.leave_with_manager(registry) {
            return;
        }
    }
    tracing::info!("another process goes on with everything: this one ends");
    log_queue::exit(0);
}

/// A process that has taken over ends when it is told to, and not because the API cannot be served.
fn outlive(
    outcome: Result<(), DaemonError>,
    runtime: &Runtime,
    stop: &Notify,
) -> Result<(), DaemonError> {
    if let Err(DaemonError::Serve(error)) = &outcome {
        tracing::error!(%error, "the API is not served; packets move");
        runtime.block_on(stop.notified());
        return Ok(());
    }
    outcome
}

/// Go on where the process before this one rests; or end, so that it goes on itself.
fn take_over(
    predecessor: &Predecessor,
    registry: &Registry,
    api: &mut Option<Api>,
) -> Result<(), DaemonError> {
    if let Err(error) = predecessor.take_over(registry) {
        predecessor.refuse(&chain(&error));
        // Without undoing anything, for all of it is the other's.
        log_queue::exit(1);
    }
    if let Some(Err(error)) = api.as_mut().map(Api::own) {
        tracing::error!(error = chain(&error), "the API is not served; packets move");
        *api = None;
    }
    Ok(())
}

/// The API's socket.
struct Api {
    listener: UnixListener,
    path: PathBuf,
    /// Removes the name when dropped; None while it is another process's, or has none.
    file: Option<SocketFile>,
    /// It had its name with the process before this one.
    inherited: bool,
}

impl Api {
    fn open(path: &Path, estate: &mut Option<Estate>) -> Result<Self, ClaimError> {
        let path = path.to_owned();
        if let Some(listener) = estate.as_mut().and_then(|estate| estate.take_api(&path)) {
            return Ok(Self { listener, path, file: None, inherited: true });
        }
        if estate.is_some() {
            let listener = unix_socket::unnamed(&path)?;
            return Ok(Self { listener, path, file: None, inherited: false });
        }
        let Claimed { listener, file } = unix_socket::claim(&path)?;
        Ok(Self { listener, path, file: Some(file), inherited: false })
    }

    /// The name is ours from now on.
    fn own(&mut self) -> Result<(), ClaimError> {
        self.file = match self.inherited {
            true => SocketFile::inherit(&self.path).ok(),
            false => Some(unix_socket::name(self.listener.as_fd(), &self.path)?),
        };
        Ok(())
    }
}

/// A queue pair takes six descriptors, and the usual soft limit of 1024 is for programs that call
/// select(2), which we do not.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// As far as no launcher makes sockets or has its program on the NICs for us.
fn check_privileges(config: &Config) -> Result<(), DaemonError> {
    let makes_sockets = |it: &UplinkConfig| !matches!(it.handed, Some(Handed::Sockets(_)));
    let has_program = |uplink: &UplinkConfig| uplink.handed.is_none();
    let uplinks = &config.uplinks;
    let (sockets, program) = (uplinks.iter().any(makes_sockets), uplinks.iter().any(has_program));
    match privilege::missing(sockets, program).join(" ") {
        missing if missing.is_empty() => Ok(()),
        missing => Err(DaemonError::Privilege { missing }),
    }
}

/// The state, and the lock of its directory, which a process before this one may leave. One that
/// `waits` knows all of the state and continues if we end, so nothing is taken over without.
fn open_state(
    config: &Config,
    estate: &mut Option<Estate>,
    waits: bool,
) -> Result<Option<StateFile>, StateError> {
    let Some(directory) = config.state_dir.as_deref() else { return Ok(None) };
    let lock = estate.as_mut().and_then(Estate::take_state_lock);
    let state = StateFile::open(directory, lock)?;
    if waits {
        state.check_whole()?;
    }
    Ok(Some(state))
}

/// The lock of the runtime directory, likewise, and why it could not be locked. Taken before what a
/// killed daemon left there is looked for: of one that runs, none of it is to be touched.
fn lock_runtime_directory(
    config: &Config,
    estate: &mut Option<Estate>,
) -> Result<Option<(DirectoryLock, Option<String>)>, LockError> {
    let Some(directory) = config.runtime_dir.as_deref() else { return Ok(None) };
    // Older versions have none to leave, and hold none.
    let lock = estate.as_mut().and_then(Estate::take_runtime_lock);
    DirectoryLock::take(Directory::Runtime, directory, lock).map(Some)
}

/// The API's. One thread for requests is there from the start and stays: where no more can be made
/// (RLIMIT_NPROC, a cgroup's limit) requests wait for it.
fn start_runtime() -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().thread_keep_alive(THREAD_KEEP_ALIVE).build()?;
    runtime.block_on(runtime.spawn_blocking(|| ())).map_err(io::Error::other)?;
    Ok(runtime)
}

/// A port that cannot be served is refused: kept, listed with the reason, and tried again where
/// that may pass. Only if there is no other port is it an error, since nobody loses anything then;
/// or if a process that `waits` serves the port.
fn add_ports(
    registry: &Arc<Registry>,
    config: &Config,
    options: RunOptions,
    waits: bool,
) -> Result<(), DaemonError> {
    let mut first = None;
    for port in &config.ports {
        let origin = match options.socket_fd {
            Some(_) if registry.is_successor() => Origin::Predecessor,
            Some(number) => Origin::Inherited(unix_socket::inherited(number)?),
            None => Origin::Configuration,
        };
        let served = waits && registry.is_left_to_us(&port.name);
        if let Err(source) = registry.restore(port.clone(), origin) {
            let error = DaemonError::Port { name: port.name.clone(), source };
            if served {
                return Err(error);
            }
            first.get_or_insert(error);
        }
    }
    for port in registry.remembered() {
        let name = port.name.clone();
        registry
            .restore(port, Origin::State)
            .map_err(|source| DaemonError::Port { name, source })?;
    }
    first.filter(|_| registry.ports().is_empty()).map_or(Ok(()), Err)
}

/// Have the daemon stop at the first signal. A later one is not lost either: it may come when
/// another process has taken over, which is to stop then.
async fn heed(mut signals: Signals, stop: Arc<Notify>, registry: Arc<Registry>) {
    loop {
        let name = signals.stopping().await;
        tracing::info!("{name}: stopping");
        registry.ownership.ask_to_stop();
        stop.notify_one();
    }
}

fn serve(
    runtime: &Runtime,
    stop: &Arc<Notify>,
    api: Option<&Api>,
    registry: &Arc<Registry>,
    succession: &Arc<Succession>,
) -> Result<(), DaemonError> {
    let (finished, succeeded) = (registry.finished(), succession.ended());
    let (stop, owner) = (Arc::clone(stop), Arc::clone(registry));
    let stopped = async move {
        tokio::select! {
            () = stop.notified() => {}
            () = finished.notified() => {
                tracing::info!("the only session has ended: stopping");
                owner.ownership.ask_to_stop();
            }
            () = succeeded.notified() => {}
        }
    };
    tracing::info!("serving");
    notify(&[NotifyState::Ready]);
    if let Some(file) = api.and_then(|api| api.file.as_ref()) {
        succession.name_api(file);
    }
    match api {
        Some(api) => {
            let (registry, succession) = (Arc::clone(registry), Arc::clone(succession));
            let service = Arc::new(DaemonService::new(registry, succession));
            let listener = api.listener.try_clone().map_err(DaemonError::Serve)?;
            let served = runtime.block_on(server::serve(listener, service, stopped));
            served.map_err(DaemonError::Serve)
        }
        None => {
            runtime.block_on(stopped);
            Ok(())
        }
    }
}
