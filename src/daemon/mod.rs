//! DAEMON: owns everything that lives long, and is the only place where sessions, workers and
//! AF_XDP sockets meet.
//!
//! [`run`] is the whole life of the process, in order. `fabric` is the workers and the forwarding
//! table they share; `uplinks` the NICs; `ports` the registry of ports, each with its socket and
//! its `link` to the fabric; `binding` which profile a port gets; `state_file` what survives a
//! restart; `published` the list of profiles as a file; `service` answers the API.

#![forbid(unsafe_code)]

mod binding;
mod fabric;
mod link;
mod ports;
mod published;
mod rarp;
mod service;
mod state_file;
mod uplinks;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::config::{Config, RunOptions};
use crate::control::server;
use crate::guest_memory::install_fault_handler;
use crate::platform::unix_socket::{self, ClaimError, InheritError};
use crate::profile::{Catalog, CatalogError};
use crate::report::chain;

use fabric::Fabric;
use ports::{Origin, PortError, Registry};
use published::{PublishError, PublishedList};
use service::DaemonService;
use state_file::{StateError, StateFile};
use uplinks::{NicError, Nics};

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
    /// The workers could not be started.
    #[error("cannot start the workers")]
    Workers(#[source] io::Error),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
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
    /// The published list of profiles.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// How often the uplinks are looked at for the published list.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(5);

/// Serve until told to stop by SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`], with everything undone.
pub fn run(config: &Config, options: RunOptions) -> Result<(), DaemonError> {
    // 1. What can be refused without touching anything.
    check_privileges()?;
    let catalog = Arc::new(Catalog::load(config.profile_dir.as_deref())?);
    let state = config.state_dir.as_deref().map(StateFile::open).transpose()?;
    let api = config.api_socket.as_deref().map(unix_socket::claim).transpose()?;
    // 2. A front-end that truncates its memory must not end us; a signal ends us in order.
    raise_descriptor_limit();
    install_fault_handler();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(DaemonError::Serve)?;
    let signals = runtime.block_on(async { Signals::new() }).map_err(DaemonError::Serve)?;
    // 3. NICs and workers.
    let (nics, sockets) = Nics::open(&config.uplinks, config.workers)?;
    let fabric = Fabric::start(config, &nics, sockets).map_err(DaemonError::Workers)?;
    let nics = Arc::new(nics);
    let taps = nics.start_taps(&fabric).map_err(DaemonError::Workers)?;
    // 4. Ports: those of the configuration, then those added at run time.
    let registry =
        Arc::new(Registry::new(config, catalog, Arc::clone(&nics), Arc::clone(&fabric), state));
    let watched = Arc::clone(&registry);
    let watch = std::thread::Builder::new()
        .name("memory".to_owned())
        .spawn(move || watched.watch_memory())
        .map_err(DaemonError::Workers)?;
    // 5. Serve.
    let outcome = publish(&registry)
        .and_then(|list| add_ports(&registry, config, options).map(|()| list))
        .and_then(|list| {
            if let Some(list) = list {
                // It ends with the runtime.
                runtime.spawn(keep_published(list, Arc::clone(&registry)));
            }
            serve(&runtime, signals, api, &registry)
        });
    // 6. Stop in reverse: sessions give their rings back, then nobody needs the workers.
    registry.stop();
    drop(taps);
    fabric.stop();
    if watch.join().is_err() {
        tracing::error!("the thread that watches for lost memory has panicked");
    }
    outcome
}

/// A queue pair takes six descriptors, and the usual soft limit of 1024 is for programs that call
/// select(2), which we do not.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// AF_XDP wants CAP_NET_RAW for its sockets, CAP_NET_ADMIN and CAP_BPF for the program.
fn check_privileges() -> Result<(), DaemonError> {
    use caps::{CapSet, Capability};
    let has = |capability| caps::has_cap(None, CapSet::Effective, capability).unwrap_or(false);
    let wanted = [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_BPF];
    // CAP_SYS_ADMIN includes CAP_BPF (capabilities(7)).
    let stands_in = |wanted| wanted == Capability::CAP_BPF && has(Capability::CAP_SYS_ADMIN);
    let missing: Vec<_> =
        wanted.into_iter().filter(|&wanted| !has(wanted) && !stands_in(wanted)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.iter().map(ToString::to_string);
    Err(DaemonError::Privilege { missing: names.collect::<Vec<_>>().join(" ") })
}

/// A port of the configuration must be served, or is refused if its guest would find another
/// interface; one of the state file that no longer can be served (its NIC is gone from the
/// configuration, say) is kept for the next start.
fn add_ports(
    registry: &Arc<Registry>,
    config: &Config,
    options: RunOptions,
) -> Result<(), DaemonError> {
    for port in &config.ports {
        let origin = match options.socket_fd {
            Some(number) => Origin::Inherited(unix_socket::inherited(number)?),
            None => Origin::Configuration,
        };
        registry
            .restore(port.clone(), origin)
            .map_err(|source| DaemonError::Port { name: port.name.clone(), source })?;
    }
    for port in registry.remembered() {
        let name = port.name.clone();
        registry
            .restore(port, Origin::State)
            .map_err(|source| DaemonError::Port { name, source })?;
    }
    Ok(registry.record()?)
}

/// Publish the list of profiles again when an uplink's MTU has changed.
async fn keep_published(list: PublishedList, registry: Arc<Registry>) {
    loop {
        tokio::time::sleep(PUBLISH_INTERVAL).await;
        if let Err(error) = list.update(&registry.catalog, &registry.nics.facts()) {
            tracing::error!(error = chain(&error), "the published list of profiles is out of date");
        }
    }
}

/// Write the list of profiles, if this daemon publishes one.
fn publish(registry: &Registry) -> Result<Option<PublishedList>, DaemonError> {
    let Some(path) = registry.config.profiles_file.clone() else { return Ok(None) };
    let list = PublishedList::new(path);
    list.update(&registry.catalog, &registry.nics.facts())?;
    Ok(Some(list))
}

/// What ends the daemon; from now on it ends in order.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Take over SIGTERM and SIGINT. Call it inside a runtime.
    fn new() -> io::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())? })
    }
}

fn serve(
    runtime: &Runtime,
    mut signals: Signals,
    api: Option<unix_socket::Claimed>,
    registry: &Arc<Registry>,
) -> Result<(), DaemonError> {
    let finished = registry.finished();
    let stopped = async move {
        tokio::select! {
            _ = signals.terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = signals.interrupt.recv() => tracing::info!("SIGINT: stopping"),
            () = finished.notified() => tracing::info!("the only session has ended: stopping"),
        }
    };
    tracing::info!("serving");
    match api {
        Some(unix_socket::Claimed { listener, file }) => {
            let service = Arc::new(DaemonService::new(Arc::clone(registry)));
            let served = runtime.block_on(server::serve(listener, service, stopped));
            drop(file);
            served.map_err(DaemonError::Serve)
        }
        None => {
            runtime.block_on(stopped);
            Ok(())
        }
    }
}
