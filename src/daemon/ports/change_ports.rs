//! Ports are added, put, removed and given another profile, on request.

use crate::config::{PortConfig, port_differences};
use crate::control::api::ProfileChange;
use crate::platform::unix_socket::{NamedFile, SocketFile};
use crate::profile::ResolveError;
use crate::report::chain;
use crate::virtqueue::SetAside;

use super::listen::{Origin, origin_of};
use super::port::{Pending, Port, RefusedPort};
use super::port_error::PortError;
use super::port_record::BoundProfile;
use super::registry::{LockedPorts, PortMap, Registry, StateEntry};

/// A port as it was before a change.
struct Before {
    config: PortConfig,
    bound: Option<BoundProfile>,
    permanent: bool,
}

impl Registry {
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

    /// Make a port unless it exists with this content. If it exists and is refused, it is retried.
    /// Answers whether it was made.
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
        let mut ports = self.end_session_of(ports, name, Pending::Removed);
        self.take_port(&mut ports, name);
        // With the ports locked: a new port of this name has files of its own.
        self.journals.discard(name);
        tracing::info!(port = name, "port is removed");
        Ok(())
    }

    /// Give a port another profile. Only this call does: no restart, no update, no new file.
    ///
    /// # Errors
    /// [`PortError`]; the port is as it was, or refused if it could not be made again. A change
    /// that cannot be kept is not made.
    pub fn set_profile(&self, name: &str, change: &ProfileChange) -> Result<(), PortError> {
        let ports = self.change()?;
        self.check_stays(&ports, name)?;
        let before = self.changeable(&ports, name)?;
        let permanent = before.permanent;
        let config = if permanent {
            self.configured(&before.config, change)?
        } else {
            let (profile, allow_draft) = (change.profile.clone(), change.allow_draft);
            PortConfig { profile, allow_draft, ..before.config.clone() }
        };
        if permanent && ports.contains_key(name) {
            // It is served with the configuration file's profile; otherwise it would be refused.
            return Ok(());
        }
        let (_, profile, bound) = self.check(&config, &ports, None)?;
        let recorded = PortConfig { profile: profile.name.clone(), ..config.clone() };
        let entry = StateEntry { config: &recorded, bound: Some(&bound), permanent };
        self.save(&ports, Some(entry), Some(name))?;
        let changed = Pending::Changed(Box::new((recorded, bound)));
        let mut ports = self.end_session_of(ports, name, changed);
        // If the daemon was told to stop meanwhile, everything stays as it was.
        let stopping = self.ownership.check().map_err(PortError::from);
        let mut aside = None;
        if stopping.is_err() {
            let port = ports.get_mut(name);
            port.into_iter().for_each(|port| port.pending = None);
        } else {
            self.take_port(&mut ports, name);
            aside = self.journals.set_aside(name);
        }
        let serve = |()| self.serve_port(&mut ports, config, origin_of(permanent), None);
        let Err(error) = stopping.and_then(serve) else {
            aside.iter().for_each(SetAside::discard);
            return Ok(());
        };
        aside.iter().for_each(SetAside::put_back);
        self.put_back(&mut ports, before);
        Err(error)
    }

    /// The port of this name before the change, if its profile may be changed now.
    fn changeable(&self, ports: &PortMap, name: &str) -> Result<Before, PortError> {
        match ports.get(name) {
            Some(port) if port.link.session().is_some() => {
                Err(PortError::Connected(name.to_owned()))
            }
            Some(port) => Ok(Before {
                config: port.config.clone(),
                bound: Some(port.bound.clone()),
                permanent: port.permanent,
            }),
            None => match self.refused().get(name) {
                Some(port) => Ok(Before {
                    config: port.config.clone(),
                    bound: port.bound.clone(),
                    permanent: port.permanent,
                }),
                None => Err(PortError::NotFound(name.to_owned())),
            },
        }
    }

    /// A permanent port with the profile of the configuration file, which must be the requested
    /// one. With another profile the port would be refused at the next start.
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

    /// Make the sockets again whose names somebody has removed. Ports with a front-end get theirs
    /// when it has gone.
    pub fn remake_sockets(&self) {
        let files: Vec<_> = self
            .ports()
            .iter()
            .filter(|(_, port)| port.pending.is_none() && port.link.session().is_none())
            .filter_map(|(name, port)| Some((name.clone(), port.file.as_ref()?.named().clone())))
            .collect();
        // A file system may take its time; the ports must not be locked meanwhile.
        for (name, file) in files.iter().filter(|(_, file)| !file.is_there()) {
            self.remake_socket(name, file);
        }
    }

    fn remake_socket(&self, name: &str, lost: &NamedFile) {
        let Ok(ports) = self.change() else { return };
        let is_lost = |port: &&Port| {
            let file = port.file.as_ref().map(SocketFile::named);
            port.pending.is_none() && file == Some(lost)
        };
        let Some(port) = ports.get(name).filter(is_lost) else { return };
        let (config, bound, permanent) = (port.config.clone(), port.bound.clone(), port.permanent);
        let socket = config.socket.display();
        tracing::warn!(port = name, %socket, "the port's socket was removed: it is made again");
        let unchanged = Pending::Changed(Box::new((config.clone(), bound.clone())));
        let mut ports = self.end_session_of(ports, name, unchanged);
        if self.ownership.check().is_err() {
            ports.get_mut(name).into_iter().for_each(|port| port.pending = None);
            return;
        }
        self.take_port(&mut ports, name);
        self.put_back(&mut ports, Before { config, bound: Some(bound), permanent });
    }

    /// Make a port again as it was before a change that failed, if that is possible.
    fn put_back(&self, ports: &mut PortMap, Before { config, bound, permanent }: Before) {
        if !ports.contains_key(&config.name) {
            let origin = origin_of(permanent);
            if let Err(error) = self.serve_port(ports, config.clone(), origin, bound.as_ref()) {
                let (reason, may_pass) = (chain(&error), error.may_pass());
                self.refuse(RefusedPort { config, bound, reason, permanent, may_pass });
            }
        }
        // A failure is among the problems, and retried.
        let _ = self.save(ports, None, None);
    }

    /// End a port's session, and wait for that with the ports unlocked. The port stays in the map
    /// meanwhile, so that its name, address and socket remain taken. Returns the ports, locked
    /// again.
    fn end_session_of<'r>(
        &'r self,
        mut ports: LockedPorts<'r>,
        name: &str,
        pending: Pending,
    ) -> LockedPorts<'r> {
        let Some(port) = ports.get_mut(name) else { return ports };
        port.pending = Some(pending);
        let ending = port.end();
        drop(ports);
        ending.wait();
        self.ports()
    }
}
