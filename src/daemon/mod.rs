//! DAEMON: owns everything that lives long, and is the only place where sessions, workers and
//! AF_XDP sockets meet.
//!
//! [`run`] is the whole life of the process, in order. From the bottom:
//!
//! - `directory_lock`: keeps a second daemon out.
//! - `problems`: the problems of the host.
//! - `ownership`: whether this process owns everything.
//! - `stop_signals`: the signals that the process handles.
//! - `host_port`: the host's port of the forwarding table.
//! - `workers`: the workers and the forwarding table they share.
//! - `nic`: the NICs, and the reaction when one goes down or away.
//! - `ports`: the ports, each with its socket and its link to the workers.
//! - `watches`: the threads of NICs and ports.
//! - `upgrade`: has another process take over.
//! - `published`: the list of profiles as a file.
//! - `upkeep`: begins tasks at the start and repeats those that fail.
//! - `service`: answers the API; `api_socket`: its socket.
//! - `daemon_error`: why there is no daemon.
//!
//! # Locks
//!
//! A thread that has a lock takes only those below it. The floors have this order:
//!
//! 1. `upkeep`: the published list.
//! 2. `watches`: the threads. Stopping one waits for it, and it may wait for the ports.
//! 3. `ports::registry`: the ports; then the refused ones; then what was inherited.
//!    `ports::ring_journals`: the journals that wait to be put in force.
//! 4. `ports::port_link`: a session's state.
//! 5. `nic::nic_in_use`: a NIC; then `nic::indirection_table`: its tables.
//! 6. `workers`: the routes; the sockets' counters; the watchdog.
//! 7. `host_port`: the host's NIC.
//! 8. Each alone: `ownership`, `problems`, `directory_lock`; in other modules the budgets
//!    of mappings, the descriptors to be closed, a thread's handle, the log's queue.
//!
//! Workers take none of them, so a thread may wait for a worker with any of them: microseconds.
//! With the ports locked no thread waits for a front-end (`ports::port::Ending`). The exception is
//! an upgrade, which has half a second for all of them (`upgrade::paused`). Files are touched with
//! the ports locked where a comment says why: to make a port, to write the state, and as owner
//! (`Registry::as_owner`).

#![forbid(unsafe_code)]

mod api_socket;
mod daemon_error;
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
mod watches;
mod workers;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use crate::config::{Config, Handed, RunOptions, UplinkConfig};
use crate::control::server;
use crate::guest_memory::install_fault_handler;
use crate::platform::unix_socket;
use crate::platform::{log_queue, privilege};
use crate::profile::Catalog;
use crate::report::chain;
use crate::xdp::recover_interrupts;

use api_socket::ApiSocket;
pub use daemon_error::DaemonError;
use directory_lock::{DirectoryLock, LockError, LockedDirectory};
use nic::{Nics, interrupt_notes};
use ownership::Ownership;
use ports::{Origin, Registry, RegistrySetup, StateFile, StateFileError};
use problems::{HostProblem, HostProblems};
use service::DaemonService;
use stop_signals::Signals;
pub use upgrade::refuse_predecessor;
use upgrade::{
    ExportSource, ImportTarget, OwnProgram, Predecessor, PredecessorState, Upgrader, notify,
};
use upkeep::{Upkeep, UpkeepSetup};
use watches::Watches;
use workers::{Workers, WorkersSetup};

/// How long a signal may take to pass through the runtime.
const SIGNAL_WAIT: Duration = Duration::from_millis(1);
/// How long a thread of the API waits for its next request.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(u32::MAX as u64);

/// Serve until told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`], with everything undone.
pub fn run(config: &Config, options: RunOptions) -> Result<(), DaemonError> {
    raise_descriptor_limit();
    let Some((predecessor, before)) = Predecessor::find()? else {
        return live(config, options, None);
    };
    let outcome = live(config, options, Some((&predecessor, before)));
    if let Err(error) = &outcome {
        predecessor.refuse(&chain(error));
    }
    outcome
}

/// A whole life, which may begin with the state of a process before this one.
fn live(
    config: &Config,
    options: RunOptions,
    before: Option<(&Predecessor, PredecessorState)>,
) -> Result<(), DaemonError> {
    let (predecessor, mut before) = before.unzip();
    // 1. Checks that can fail without touching anything.
    check_privileges(config)?;
    let catalog = Arc::new(Catalog::load(config.profile_dir.as_deref())?);
    let waits = predecessor.is_some_and(Predecessor::waits);
    let state = open_state(config, &mut before, waits)?.map(Arc::new);
    let (runtime_lock, unlocked) = lock_runtime_directory(config, &mut before)?.unzip();
    let runtime_lock = runtime_lock.map(Arc::new);
    let mut api =
        config.api_socket.as_deref().map(|path| ApiSocket::open(path, &mut before)).transpose()?;
    let listener = api.as_ref().map(|api| api.listener.as_fd());
    let program = OwnProgram::new(listener).map_err(DaemonError::Serve)?;
    // 2. A front-end that truncates its memory must not end us; a signal ends us in order.
    install_fault_handler();
    let runtime = start_runtime().map_err(DaemonError::Serve)?;
    let signals = runtime.block_on(async { Signals::new() }).map_err(DaemonError::Serve)?;
    // 3. NICs and workers, then the ports.
    let directories = Directories { state, runtime_lock };
    let daemon = Daemon::build(config, catalog, directories, before)?;
    daemon.problems.set(HostProblem::RuntimeLock, unlocked.flatten());
    let memory_watch = daemon.watch_memory().map_err(DaemonError::Workers)?;
    let upgrader = Arc::new(daemon.upgrader(program));
    // 4. Serve. The ports come first, since guests may be waiting for them: those of the
    // configuration, then those added at run time.
    let stop = Arc::new(Notify::new());
    runtime.spawn(heed(signals, Arc::clone(&stop), Arc::clone(&daemon.ownership)));
    let outcome = add_ports(&daemon.registry, config, options, waits)
        .and_then(|()| predecessor.map_or(Ok(()), |it| take_over(it, &daemon, config, &mut api)))
        .and_then(|()| {
            let begun = Upkeep::begin(daemon.kept(config), predecessor.is_some());
            begun.map_err(DaemonError::Workers)
        })
        .and_then(|upkeep| {
            // It ends with the runtime.
            runtime.spawn(upkeep.keep());
            serve(&runtime, &stop, api.as_ref(), &daemon, &upgrader)
        });
    let outcome = if predecessor.is_some() { outlive(outcome, &runtime, &stop) } else { outcome };
    leave_or_return(&runtime, &daemon.ownership, &upgrader, outcome.is_ok());
    drop(api);
    // 5. Stop in reverse.
    daemon.stop();
    if memory_watch.join().is_err() {
        tracing::error!("the thread that watches for lost memory has panicked");
    }
    outcome
}

/// The directories that are this daemon's.
struct Directories {
    state: Option<Arc<StateFile>>,
    runtime_lock: Option<Arc<DirectoryLock>>,
}

/// All that lives as long as the process serves. Each part is used by itself.
struct Daemon {
    catalog: Arc<Catalog>,
    ownership: Arc<Ownership>,
    problems: Arc<HostProblems>,
    state: Option<Arc<StateFile>>,
    runtime_lock: Option<Arc<DirectoryLock>>,
    workers: Arc<Workers>,
    nics: Arc<Nics>,
    registry: Arc<Registry>,
    watches: Arc<Watches>,
}

impl Daemon {
    /// Open the NICs, start the workers, and have a registry without ports. If there is a process
    /// `before` this one, everything is made beside what it hands over, and paused.
    fn build(
        config: &Config,
        catalog: Arc<Catalog>,
        directories: Directories,
        before: Option<PredecessorState>,
    ) -> Result<Self, DaemonError> {
        let Directories { state, runtime_lock } = directories;
        if let Some(notes) = interrupt_notes(config) {
            recover_interrupts(&notes)?;
        }
        let known = state.as_ref().map(|state| state.kept().uplinks.clone()).unwrap_or_default();
        let paused = before.is_some();
        let (mut inherited_uplinks, inherited) =
            before.map(|before| (before.uplinks, before.ports)).unzip();
        let uplinks = inherited_uplinks.get_or_insert_default();
        let (nics, sockets) = Nics::open(config, uplinks, &known)?;
        let (cpus, uplinks) = (config.worker_cpus.clone(), nics.for_workers());
        let workers = Workers::start(WorkersSetup { cpus, sockets, uplinks, paused });
        let (nics, workers) = (Arc::new(nics), workers.map_err(DaemonError::Workers)?);
        let (ownership, problems) = (Arc::<Ownership>::default(), Arc::<HostProblems>::default());
        let registry = Arc::new(Registry::new(RegistrySetup {
            config: config.clone(),
            catalog: Arc::clone(&catalog),
            nics: Arc::clone(&nics),
            workers: Arc::clone(&workers),
            ownership: Arc::clone(&ownership),
            problems: Arc::clone(&problems),
            state: state.clone(),
            inherited,
        }));
        let watches = Arc::new(Watches::new(
            Arc::clone(&nics),
            Arc::clone(&workers),
            Arc::clone(&registry),
            Arc::clone(&ownership),
        ));
        Ok(Self {
            catalog,
            ownership,
            problems,
            state,
            runtime_lock,
            workers,
            nics,
            registry,
            watches,
        })
    }

    /// End the sessions whose front-end took their memory away, until the workers end.
    fn watch_memory(&self) -> io::Result<JoinHandle<()>> {
        let (workers, registry) = (Arc::clone(&self.workers), Arc::clone(&self.registry));
        let ownership = Arc::clone(&self.ownership);
        std::thread::Builder::new().name("memory".to_owned()).spawn(move || {
            while let Some(lost) = workers.next_lost() {
                registry.end_session_without_memory(lost);
                if ownership.is_over() {
                    return;
                }
            }
        })
    }

    fn upgrader(&self, program: OwnProgram) -> Upgrader {
        let exported = ExportSource {
            registry: Arc::clone(&self.registry),
            nics: Arc::clone(&self.nics),
            workers: Arc::clone(&self.workers),
            ownership: Arc::clone(&self.ownership),
            problems: Arc::clone(&self.problems),
            watches: Arc::clone(&self.watches),
            state: self.state.clone(),
            runtime_lock: self.runtime_lock.clone(),
        };
        Upgrader::new(program, exported)
    }

    fn kept(&self, config: &Config) -> UpkeepSetup {
        UpkeepSetup {
            registry: Arc::clone(&self.registry),
            nics: Arc::clone(&self.nics),
            catalog: Arc::clone(&self.catalog),
            watches: Arc::clone(&self.watches),
            problems: Arc::clone(&self.problems),
            runtime_lock: self.runtime_lock.clone(),
            profiles_file: config.profiles_file.clone(),
        }
    }

    fn service(&self, upgrader: &Arc<Upgrader>) -> DaemonService {
        DaemonService {
            registry: Arc::clone(&self.registry),
            nics: Arc::clone(&self.nics),
            workers: Arc::clone(&self.workers),
            catalog: Arc::clone(&self.catalog),
            ownership: Arc::clone(&self.ownership),
            problems: Arc::clone(&self.problems),
            upgrader: Arc::clone(upgrader),
        }
    }

    /// Sessions give their rings back first; then nobody needs the workers.
    fn stop(&self) {
        self.watches.leave_ports();
        self.registry.stop();
        self.watches.leave_nics();
        self.nics.stop_threads();
        self.workers.stop();
    }
}

/// End here, without undoing anything, if another process has everything, or is to have it.
fn leave_or_return(runtime: &Runtime, ownership: &Ownership, upgrader: &Upgrader, served: bool) {
    if ownership.stop() {
        // The last signal may still be on its way through the runtime.
        runtime.block_on(async { tokio::time::sleep(SIGNAL_WAIT).await });
        if ownership.stop_asked() {
            upgrader.stop_successor();
        }
    } else {
        notify(&[NotifyState::Stopping]);
        if !served || !upgrader.leave_with_manager() {
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

/// Take over from the predecessor; or end, so that it resumes.
fn take_over(
    predecessor: &Predecessor,
    daemon: &Daemon,
    config: &Config,
    api: &mut Option<ApiSocket>,
) -> Result<(), DaemonError> {
    let imported = ImportTarget {
        registry: &daemon.registry,
        nics: &daemon.nics,
        workers: &daemon.workers,
        api_socket: config.api_socket.as_deref(),
    };
    if let Err(error) = predecessor.take_over(imported) {
        predecessor.refuse(&chain(&error));
        // Nothing is undone, for all of it is the predecessor's.
        log_queue::exit(1);
    }
    if let Some(Err(error)) = api.as_mut().map(ApiSocket::own) {
        tracing::error!(error = chain(&error), "the API is not served; packets move");
        *api = None;
    }
    Ok(())
}

/// A queue pair takes six descriptors. The usual soft limit of 1024 is for programs that call
/// select(2), which we do not.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// The capabilities for what no launcher does for us: making sockets and attaching the program to
/// NICs.
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

/// The state, and the lock of its directory, which a predecessor may hand over. A predecessor that
/// `waits` knows the whole state and continues if we end, so nothing is taken over without it.
fn open_state(
    config: &Config,
    before: &mut Option<PredecessorState>,
    waits: bool,
) -> Result<Option<StateFile>, StateFileError> {
    let Some(directory) = config.state_dir.as_deref() else { return Ok(None) };
    let lock = before.as_mut().and_then(|before| before.state_lock.take());
    let state = StateFile::open(directory, lock)?;
    if waits {
        state.check_whole()?;
    }
    Ok(Some(state))
}

/// The lock of the runtime directory, and why it could not be locked. It is taken before we look
/// for the notes of a killed daemon there: those of a running daemon must not be touched.
fn lock_runtime_directory(
    config: &Config,
    before: &mut Option<PredecessorState>,
) -> Result<Option<(DirectoryLock, Option<String>)>, LockError> {
    let Some(directory) = config.runtime_dir.as_deref() else { return Ok(None) };
    // Older versions hold no such lock.
    let lock = before.as_mut().and_then(|before| before.runtime_lock.take());
    DirectoryLock::take(LockedDirectory::Runtime, directory, lock).map(Some)
}

/// The runtime of the API. One thread for requests exists from the start and stays. Where no more
/// threads can be made (RLIMIT_NPROC, a cgroup's limit) requests wait for it.
fn start_runtime() -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().thread_keep_alive(THREAD_KEEP_ALIVE).build()?;
    runtime.block_on(runtime.spawn_blocking(|| ())).map_err(io::Error::other)?;
    Ok(runtime)
}

/// A port that cannot be served is refused: kept, listed with the reason, and retried where the
/// obstacle may pass. It is an error only if there is no other port, since nobody loses anything
/// then, or if a process that `waits` serves the port.
fn add_ports(
    registry: &Registry,
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

/// Have the daemon stop at the first signal. A later signal is not lost: if another process has
/// taken over by then, that process is told to stop.
async fn heed(mut signals: Signals, stop: Arc<Notify>, ownership: Arc<Ownership>) {
    loop {
        let name = signals.stopping().await;
        tracing::info!("{name}: stopping");
        ownership.ask_to_stop();
        stop.notify_one();
    }
}

fn serve(
    runtime: &Runtime,
    stop: &Arc<Notify>,
    api: Option<&ApiSocket>,
    daemon: &Daemon,
    upgrader: &Arc<Upgrader>,
) -> Result<(), DaemonError> {
    let (finished, succeeded) = (daemon.registry.finished(), upgrader.ended());
    let (stop, ownership) = (Arc::clone(stop), Arc::clone(&daemon.ownership));
    let stopped = async move {
        tokio::select! {
            () = stop.notified() => {}
            () = finished.notified() => {
                tracing::info!("the only session has ended: stopping");
                ownership.ask_to_stop();
            }
            () = succeeded.notified() => {}
        }
    };
    tracing::info!("serving");
    notify(&[NotifyState::Ready]);
    if let Some(file) = api.and_then(|api| api.file.as_ref()) {
        upgrader.name_api(file);
    }
    match api {
        Some(api) => {
            let service = Arc::new(daemon.service(upgrader));
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
