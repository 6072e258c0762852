//! libvirt's hook of QEMU domains (hooks.html). A VM that is about to run here gets its ports, and
//! one that has gone gives them back. A VM that this host cannot have is refused while it can still
//! stay where it is.
//!
//! | operation | what is done |
//! |---|---|
//! | `migrate`, `restore` | all is checked, nothing made; the sockets' paths become this host's |
//! | `prepare` | the ports are made |
//! | `start` | they must be there, and free |
//! | `started` | what QEMU has connected to must be the profile that is stored |
//! | `release` | the domain's ports are removed, whatever its XML has of them |
//! | `reconnect` | libvirt was restarted: ports that are missing are made |
//!
//! A failed `reconnect` would have libvirt kill a running VM: the caller of [`run`] must report the
//! failure and succeed. The owner `libvirt:UUID` marks a domain's ports. libvirt also releases a
//! domain that was refused, and that must not remove another domain's ports.
//!
//! libvirt is never called, because it waits for us. The daemon is asked over its API.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Attach, PortConfig, SocketMode, SocketPermissions};
use crate::control::Request;
use crate::control::api::{Deleted, ErrorCode, PortState, PortView, ProfileView};
use crate::control::client::{Client, ClientError};

pub use super::domain::may_be_ours;
use super::domain::{Domain, DomainError, Interface, Record};
use super::domain_xml::{self, Edits};
use super::interface_element::QemuSocketMode;

/// The longest time that libvirt waits for a domain that may not be ours.
const STRANGERS_WAIT_MAX: Duration = Duration::from_secs(5);

/// The answer to libvirt, and the warnings for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The XML that libvirt is to continue with, where that is another.
    pub changed: Option<String>,
    /// Settings that the XML asks for and does not get.
    pub warnings: Vec<String>,
}

/// This host's settings for every domain.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Where sockets are on this host; None leaves them where they were.
    pub socket_directory: Option<PathBuf>,
    /// The group that owns them, which QEMU's user must be in.
    pub socket_group: Option<String>,
    /// Their permissions; if None, 0660 with a group and 0600 without.
    pub socket_permissions: Option<SocketPermissions>,
    /// The interface behind each uplink that a domain may name, beside those that have its name.
    pub uplinks: BTreeMap<String, String>,
}

impl Settings {
    /// The path on this host for the socket of a domain that comes from elsewhere.
    fn arriving(&self, socket: &str) -> String {
        let file = Path::new(socket).file_name().unwrap_or_default();
        match &self.socket_directory {
            Some(directory) => directory.join(file).display().to_string(),
            None => socket.to_owned(),
        }
    }
}

/// Why the domain must not run here, or not now.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// Its XML.
    #[error(transparent)]
    Domain(#[from] DomainError),
    /// Its guest could not be served.
    #[error(
        "not all of the domain's memory is shared, and isonic has to map it: write <access \
         mode='shared'/> in <memoryBacking>, as `isonic libvirt stamp` does, and nothing else \
         elsewhere (memAccess=, <memory access=>)"
    )]
    PrivateMemory,
    /// The daemon did not answer.
    #[error("isonic cannot be asked for the ports of this domain")]
    Daemon(#[from] ClientError),
    /// This host does not know the profile.
    #[error("interface {interface} cannot be had on this host")]
    Profile {
        /// The interface.
        interface: String,
        /// The daemon's reason.
        source: ClientError,
    },
    /// This host has another interface under the profile's name.
    #[error(
        "interface {interface} has the profile {profile} with digest {stamped}, and this host has \
         another interface under that name, with digest {found}"
    )]
    Digest {
        /// The interface.
        interface: String,
        /// Its profile.
        profile: String,
        /// As stored with the domain.
        stamped: String,
        /// As it is here.
        found: String,
    },
    /// This host cannot keep the profile.
    #[error(
        "interface {interface} has the profile {profile}, which this host cannot keep on {uplink}: \
         {reasons}"
    )]
    Blocked {
        /// The interface.
        interface: String,
        /// Its profile.
        profile: String,
        /// The uplink.
        uplink: String,
        /// Every reason.
        reasons: String,
    },
    /// The uplink's name says nothing here.
    #[error(
        "interface {interface} wants the uplink \"{wanted}\", and this host has {}; say which it \
         is with --uplink {wanted}=INTERFACE of `isonic libvirt install-hook`",
        present.join(", ")
    )]
    UnknownUplink {
        /// The interface.
        interface: String,
        /// As stored.
        wanted: String,
        /// Those of the daemon.
        present: Vec<String>,
    },
    /// The interface names no uplink, and there is a choice.
    #[error(
        "interface {interface} names no uplink, and this host has {}; stamp the domain with \
         --uplink",
        present.join(", ")
    )]
    WhichUplink {
        /// The interface.
        interface: String,
        /// Those of the daemon.
        present: Vec<String>,
    },
    /// Somebody has its port.
    #[error("port \"{port}\" of interface {interface} {problem}")]
    Taken {
        /// The port.
        port: String,
        /// The interface.
        interface: String,
        /// Why the port cannot be used.
        problem: String,
    },
    /// The daemon does not make its port.
    #[error("port \"{port}\" of interface {interface} cannot be made")]
    Port {
        /// The port.
        port: String,
        /// The interface.
        interface: String,
        /// The daemon's reason.
        source: ClientError,
    },
}

/// Perform `operation` for the domain with this XML.
///
/// # Errors
/// [`HookError`], which libvirt shows to the caller of the operation.
pub fn run(
    operation: &str,
    text: &str,
    settings: &Settings,
    daemon: &Client,
) -> Result<Answer, HookError> {
    if operation == "release" {
        return release(text, daemon).map(|()| Answer::default());
    }
    // Checked before parsing: the XML of other domains is none of our business.
    if !may_be_ours(text) {
        return Ok(Answer::default());
    }
    let document = domain_xml::parse(text).map_err(DomainError::from)?;
    let domain = Domain::new(&document)?;
    let stamped = domain.stamped()?;
    if stamped.is_empty() {
        return Ok(Answer::default());
    }
    let owner = owner(domain)?;
    let hook = Hook { operation, owner, settings, daemon };
    match operation {
        "migrate" | "restore" => {
            hook.check(&stamped)?;
            let mut edits = Edits::new(&document);
            for (interface, _) in &stamped {
                let socket = settings.arriving(interface.socket()?);
                edits.set(interface.source()?, "path", &socket);
            }
            let changed = edits.apply();
            let changed = (changed != text).then_some(changed);
            return Ok(Answer { changed, ..Answer::default() });
        }
        "prepare" if !domain.shares_memory() => return Err(HookError::PrivateMemory),
        "prepare" => {
            hook.make(&stamped)?;
            let warnings = stamped.iter().flat_map(|(interface, _)| interface.ignored()).collect();
            return Ok(Answer { warnings, ..Answer::default() });
        }
        "reconnect" => hook.make(&stamped)?,
        "start" => hook.verify(&stamped, PortState::Waiting)?,
        "started" => hook.verify(&stamped, PortState::Running)?,
        // `stopped`, `attach`, and operations of later versions.
        _ => {}
    }
    Ok(Answer::default())
}

/// The owner of a domain's ports.
fn owner(domain: Domain<'_, '_>) -> Result<String, DomainError> {
    Ok(format!("libvirt:{}", domain.text("uuid")?))
}

/// Remove a domain's ports. Only its UUID counts: an interface may have been pulled out with its
/// record, and ports may have been made for the domain by hand.
fn release(text: &str, daemon: &Client) -> Result<(), HookError> {
    let is_ours = may_be_ours(text);
    let daemon = if is_ours { daemon.clone() } else { daemon.within(STRANGERS_WAIT_MAX) };
    match remove(text, &daemon) {
        // Mistakes in the XML of others are none of our business, and they need no daemon.
        Err(HookError::Domain(_) | HookError::Daemon(ClientError::Unreachable { .. }))
            if !is_ours =>
        {
            Ok(())
        }
        outcome => outcome,
    }
}

fn remove(text: &str, daemon: &Client) -> Result<(), HookError> {
    let document = domain_xml::parse(text).map_err(DomainError::from)?;
    let owner = owner(Domain::new(&document)?)?;
    let of_domain = |port: &PortView| port.owner.as_deref() == Some(owner.as_str());
    let ports: Vec<PortView> = daemon.call(&Request::ListPorts)?;
    let mut outcome = Ok(());
    for port in ports.into_iter().filter(of_domain) {
        let deleted: Result<Deleted, _> = daemon.call(&Request::DeletePort(port.name));
        outcome = match deleted {
            Err(ClientError::Refused(gone)) if gone.code == ErrorCode::NotFound => outcome,
            Err(error) => Err(error.into()),
            Ok(_) => outcome,
        };
    }
    outcome
}

type StampedInterfaces<'d, 't> = [(Interface<'d, 't>, Record)];

struct Hook<'h> {
    operation: &'h str,
    owner: String,
    settings: &'h Settings,
    daemon: &'h Client,
}

impl Hook<'_> {
    /// Whether all ports could be made.
    fn check(&self, stamped: &StampedInterfaces<'_, '_>) -> Result<(), HookError> {
        let ports = self.ports()?;
        for (interface, record) in stamped {
            let wanted = self.wanted(*interface, record)?;
            self.place(&wanted, *interface, &record.digest, &ports)?;
        }
        Ok(())
    }

    /// Make the ports: all of them or none.
    fn make(&self, stamped: &StampedInterfaces<'_, '_>) -> Result<(), HookError> {
        let ports = self.ports()?;
        let mut made = Vec::new();
        for (interface, record) in stamped {
            let outcome = self.make_one(*interface, record, &ports);
            match outcome {
                Ok(port) => made.extend(port),
                Err(error) => {
                    for port in made {
                        // The first reason is the one to tell.
                        let _: Result<Deleted, _> = self.daemon.call(&Request::DeletePort(port));
                    }
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Make one port if it is not there; its name if it was made.
    fn make_one(
        &self,
        interface: Interface<'_, '_>,
        record: &Record,
        ports: &[PortView],
    ) -> Result<Option<String>, HookError> {
        let wanted = self.wanted(interface, record)?;
        match self.place(&wanted, interface, &record.digest, ports)? {
            PortPlace::Ready => return Ok(None),
            PortPlace::Left => {
                let name = wanted.name.clone();
                self.daemon.call::<Deleted>(&Request::DeletePort(name))?;
            }
            PortPlace::Free => {}
        }
        let name = wanted.name.clone();
        let made = self.daemon.call::<PortView>(&Request::AddPort(wanted));
        let (port, interface) = (name.clone(), interface.name());
        made.map_err(|source| HookError::Port { port, interface, source })?;
        Ok(Some(name))
    }

    /// The state of the place where a port should be.
    fn place(
        &self,
        wanted: &PortConfig,
        interface: Interface<'_, '_>,
        digest: &str,
        ports: &[PortView],
    ) -> Result<PortPlace, HookError> {
        let Some(present) = ports.iter().find(|port| port.name == wanted.name) else {
            return Ok(PortPlace::Free);
        };
        let is_ours = present.owner.as_deref() == Some(self.owner.as_str());
        let taken = |problem: String| {
            let (port, interface) = (wanted.name.clone(), interface.name());
            Err(HookError::Taken { port, interface, problem })
        };
        let is_ready = is_same(present, wanted, digest) && (is_ours || present.owner.is_none());
        let is_in_use = matches!(present.state, PortState::Connected | PortState::Running);
        if is_in_use && !(is_ready && self.operation == "reconnect") {
            let whose = present.owner.as_deref().unwrap_or("somebody");
            return taken(format!("has a front-end connected, and is that of {whose}"));
        }
        if is_ready {
            return Ok(PortPlace::Ready);
        }
        if is_ours {
            return Ok(PortPlace::Left);
        }
        taken(match &present.owner {
            Some(owner) => format!("is that of {owner}; see `isonic port show {}`", wanted.name),
            None => {
                format!("is there with another interface; see `isonic port show {}`", wanted.name)
            }
        })
    }

    /// The ports must be there, with the profiles that are stored, and as far as `state` at most.
    fn verify(
        &self,
        stamped: &StampedInterfaces<'_, '_>,
        state: PortState,
    ) -> Result<(), HookError> {
        let ports = self.ports()?;
        for (interface, record) in stamped {
            let port = interface.port()?;
            let problem = match ports.iter().find(|present| present.name == port) {
                None => Some("is not there any more".to_owned()),
                Some(present) => problem(present, record, state),
            };
            if let Some(problem) = problem {
                let (port, interface) = (port.to_owned(), interface.name());
                return Err(HookError::Taken { port, interface, problem });
            }
        }
        Ok(())
    }

    fn ports(&self) -> Result<Vec<PortView>, HookError> {
        Ok(self.daemon.call(&Request::ListPorts)?)
    }

    /// The port of an interface on this host, which can keep its profile.
    fn wanted(
        &self,
        interface: Interface<'_, '_>,
        record: &Record,
    ) -> Result<PortConfig, HookError> {
        let profile = self.profile(interface, record)?;
        let uplink = self.uplink(interface, record, &profile)?;
        let reasons = profile.uplinks.get(&uplink).unwrap_or(&profile.blockers);
        if !reasons.is_empty() {
            let (profile, reasons) = (record.profile.clone(), reasons.join("; "));
            return Err(HookError::Blocked {
                interface: interface.name(),
                profile,
                uplink,
                reasons,
            });
        }
        let Settings { socket_group, socket_permissions, .. } = self.settings;
        let group_may = socket_group.as_ref().map(|_| SocketPermissions(0o660));
        Ok(PortConfig {
            name: interface.port()?.to_owned(),
            socket: match self.operation {
                "migrate" | "restore" => self.settings.arriving(interface.socket()?).into(),
                // libvirt does not ask for the XML any more.
                _ => interface.socket()?.into(),
            },
            mode: match interface.mode()? {
                QemuSocketMode::Client => SocketMode::Server,
                QemuSocketMode::Server => SocketMode::Client,
            },
            profile: record.profile.clone(),
            allow_draft: record.draft,
            uplink,
            attach: Attach::Switch,
            mac: Some(interface.address()?.ok_or_else(|| interface.wrong("has no <mac>"))?),
            queues: None,
            socket_group: socket_group.clone(),
            socket_permissions: socket_permissions.or(group_may),
            owner: Some(self.owner.clone()),
        })
    }

    /// The daemon's word on a profile, which must be the one that is stored.
    fn profile(
        &self,
        interface: Interface<'_, '_>,
        record: &Record,
    ) -> Result<ProfileView, HookError> {
        let asked = self.daemon.call(&Request::ShowProfile(record.profile.clone()));
        let profile: ProfileView = asked.map_err(|source| match source {
            ClientError::Refused(_) => HookError::Profile { interface: interface.name(), source },
            _ => HookError::Daemon(source),
        })?;
        if profile.digest == record.digest {
            return Ok(profile);
        }
        Err(HookError::Digest {
            interface: interface.name(),
            profile: record.profile.clone(),
            stamped: record.digest.clone(),
            found: profile.digest,
        })
    }

    /// The interface behind the port: the one that the domain's word means here, or the only one.
    fn uplink(
        &self,
        interface: Interface<'_, '_>,
        record: &Record,
        profile: &ProfileView,
    ) -> Result<String, HookError> {
        let present: Vec<String> = profile.uplinks.keys().cloned().collect();
        let Some(wanted) = &record.uplink else {
            return match <[String; 1]>::try_from(present) {
                Ok([only]) => Ok(only),
                Err(present) => {
                    Err(HookError::WhichUplink { interface: interface.name(), present })
                }
            };
        };
        let meant = self.settings.uplinks.get(wanted).unwrap_or(wanted);
        if present.contains(meant) {
            return Ok(meant.clone());
        }
        let wanted = wanted.clone();
        Err(HookError::UnknownUplink { interface: interface.name(), wanted, present })
    }
}

/// The state of the place where a port should be.
enum PortPlace {
    /// Nothing.
    Free,
    /// The port.
    Ready,
    /// One that an earlier life of the domain left.
    Left,
}

/// Whether a port is as wanted. (Group and permissions are not shown, and no guest sees them.)
fn is_same(present: &PortView, wanted: &PortConfig, digest: &str) -> bool {
    present.state != PortState::Refused
        && present.socket == wanted.socket
        && present.mode == wanted.mode
        && present.profile_digest == digest
        && present.uplink == wanted.uplink
        && Some(present.mac) == wanted.mac
}

/// Why a port is not as it has to be.
fn problem(present: &PortView, record: &Record, state: PortState) -> Option<String> {
    if let Some(refusal) = &present.refusal {
        return Some(format!("is refused: {refusal}"));
    }
    let bound = present.binding.as_ref().map(|binding| &binding.digest);
    let digest = bound.unwrap_or(&present.profile_digest);
    if *digest != record.digest {
        return Some(format!(
            "has the interface with digest {digest}, and the domain that of {}, with digest {}",
            record.profile, record.digest
        ));
    }
    (state == PortState::Waiting && present.state != PortState::Waiting)
        .then(|| "has a front-end connected already".to_owned())
}
