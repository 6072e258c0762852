//! Makes a port whole or not at all, and unmakes it in reverse.

use std::io;
use std::sync::Arc;

use crate::config::{self, Config, PortConfig, host_address_problem, port_problems};
use crate::daemon::nic::{Nic, NicState};
use crate::datapath::{PortId, Route};
use crate::guest_memory::MemoryFiles;
use crate::platform::unix_socket::{SocketFile, unnamed};
use crate::profile::Profile;
use crate::report::chain;
use crate::vhost_user::{Connection, MemoryPolicy, PortSocket, SocketSource, serve_connection};
use crate::virtqueue::{JournalError, Journals};

use super::listen::{Origin, is_named, is_permanent, open_socket, origin_of};
use super::placement::{check_profile, route};
use super::port::{Port, RefusedPort};
use super::port_error::PortError;
use super::port_link::{PortLink, PortLinkSetup};
use super::port_record::BoundProfile;
use super::profile_choice::{BindingError, bind};
use super::registry::{PortMap, Registry, StateEntry};

/// A port that can be made, with its place.
struct Placed<'r> {
    id: PortId,
    nic: &'r Nic,
    config: PortConfig,
    profile: Arc<Profile>,
    bound: BoundProfile,
    route: Route,
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

impl Registry {
    /// Check, make and start a port. No other port may take this one's name, address or socket
    /// between the check and the end. So the ports are locked throughout, although the kernel is
    /// asked for addresses, and files and a socket's name are made.
    pub(super) fn serve_port(
        &self,
        ports: &mut PortMap,
        config: PortConfig,
        origin: Origin,
        recorded: Option<&BoundProfile>,
    ) -> Result<(), PortError> {
        let Placed { id, nic, config, profile, bound, route } =
            self.place(ports, config, recorded)?;
        let permanent = is_permanent(&origin);
        let keep = matches!(origin, Origin::Api);
        let inherited = matches!(origin, Origin::Inherited(_) | Origin::Predecessor);
        let (source, file) = self.take_socket(&config, origin)?;
        let journals = self.open_journals(&config, &profile, keep || inherited)?;
        let mut undo = Undo { registry: self, port: id, armed: true };
        let counters = self.workers.add_port(id, &config.name)?;
        self.workers.change_routes(|routes| drop(routes.insert(id, route)))?;
        nic.redirect(&self.workers)?;
        let link = Arc::new(PortLink::new(PortLinkSetup {
            port: id,
            workers: Arc::clone(&self.workers),
            coalesce: nic.config.coalesce,
            journals,
            memory: memory_policy(&self.config),
        }));
        let down = nic.config.link_to_guests && nic.status().state != NicState::Up;
        let (socket, file) = if down && !inherited {
            (PortSocket::discard(source, &config.name), None)
        } else {
            let socket = self.start(source, &config, &profile, &link);
            (socket.map_err(PortError::Thread)?, file)
        };
        // The state is saved last, so that a restart does not find a port that could not be made.
        if keep {
            let entry = StateEntry { config: &config, bound: Some(&bound), permanent: false };
            self.save(ports, Some(entry), None)?;
        }
        undo.armed = false;
        tracing::info!(
            port = config.name, profile = profile.name, digest = profile.digest(),
            uplink = config.uplink, mac = %config.mac(), socket = %config.socket.display(),
            "port is served"
        );
        let pending = None;
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
            pending,
        };
        ports.insert(port.config.name.clone(), port);
        Ok(())
    }

    fn place(
        &self,
        ports: &PortMap,
        mut config: PortConfig,
        recorded: Option<&BoundProfile>,
    ) -> Result<Placed<'_>, PortError> {
        let (nic, profile, bound) = self.check(&config, ports, recorded)?;
        config.profile.clone_from(&bound.profile);
        let id = self.free_id(ports).ok_or(PortError::TooMany)?;
        let route = route(id, &config, &profile, nic)?;
        Ok(Placed { id, nic, config, profile, bound, route })
    }

    /// Check that the port can exist beside the others, and return its NIC, its profile and its
    /// record. An error has every reason at once.
    pub(super) fn check(
        &self,
        config: &PortConfig,
        ports: &PortMap,
        recorded: Option<&BoundProfile>,
    ) -> Result<(&Nic, Arc<Profile>, BoundProfile), PortError> {
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

    fn take_socket(
        &self,
        config: &PortConfig,
        origin: Origin,
    ) -> Result<(SocketSource, Option<SocketFile>), PortError> {
        match self.take_inherited_listener(config) {
            Some(listener) => Ok((SocketSource::Listener(listener), None)),
            None if self.is_successor() && is_named(config, &origin) => {
                Ok((SocketSource::Listener(unnamed(&config.socket)?), None))
            }
            None => open_socket(config, origin),
        }
    }

    /// The journals of a port's packed rings. If the files cannot be had and are not `needed`, the
    /// port is served with journals in memory, or none.
    fn open_journals(
        &self,
        config: &PortConfig,
        profile: &Profile,
        needed: bool,
    ) -> Result<Option<Arc<Journals>>, JournalError> {
        match self.journals.open(config, profile, self.is_successor()) {
            Err(error) if !needed => {
                let error = chain(&error);
                tracing::warn!(
                    port = config.name,
                    error,
                    "the port's ring positions have no place"
                );
                Ok(self.journals.in_memory(&config.name, profile).unwrap_or_default())
            }
            journals => journals,
        }
    }

    /// Have a port's socket accept or connect.
    pub(super) fn start(
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
            PortSocket::start_paused(source, &config.name, serve)
        } else {
            PortSocket::start(source, &config.name, serve)
        }
    }

    /// Remove a port, served or refused, that has no session any more.
    pub(super) fn take_port(&self, ports: &mut PortMap, name: &str) {
        self.refused().remove(name);
        if let Some(port) = ports.remove(name) {
            self.forget(port.id);
        }
    }

    /// Undo the effects of making a port on the workers and the program.
    fn forget(&self, port: PortId) {
        let mut gone = None;
        let changed = self.workers.change_routes(|routes| gone = routes.remove(&port));
        let nic = gone.and_then(|route| self.nics.iter().find(|nic| nic.id == route.uplink));
        if let Some(nic) = nic
            && let Err(error) = nic.redirect(&self.workers)
        {
            tracing::error!(%error, "frames of a port that is gone still come to us");
        }
        if changed.and_then(|()| self.workers.remove_port(port)).is_err() {
            tracing::error!("a worker is gone");
        }
    }

    /// Retry a port that is refused.
    pub(super) fn try_again(&self, ports: &mut PortMap, name: &str) -> Result<(), PortError> {
        let Some(port) = self.refused().remove(name) else { return Ok(()) };
        let (config, origin) = (port.config.clone(), origin_of(port.permanent));
        self.serve_port(ports, config, origin, port.bound.as_ref()).inspect_err(|error| {
            let (reason, may_pass) = (chain(error), port.may_pass || error.may_pass());
            self.refuse_quietly(RefusedPort { reason, may_pass, ..port });
        })
    }

    /// List a port as refused.
    pub(super) fn refuse(&self, port: RefusedPort) {
        tracing::error!(port = port.config.name, reason = port.reason, "port is refused");
        self.refuse_quietly(port);
    }

    fn refuse_quietly(&self, port: RefusedPort) {
        self.refused().insert(port.config.name.clone(), port);
    }
}

/// The memory that front-ends may share as their guests'.
fn memory_policy(config: &Config) -> MemoryPolicy {
    let files = match config.memory_files {
        config::MemoryFiles::Shared => MemoryFiles::Shared,
        config::MemoryFiles::Any => MemoryFiles::Any,
    };
    MemoryPolicy { files, max: u64::from(config.memory_max_gib) << 30 }
}
