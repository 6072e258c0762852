//! Why there is no daemon.

use std::io;

use crate::platform::unix_socket::{ClaimError, InheritError};
use crate::profile::CatalogError;
use crate::xdp::BusyPollError;

use super::directory_lock::LockError;
use super::nic::NicError;
use super::ports::{PortError, StateFileError};
use super::upgrade::ImportError;

/// Why the daemon did not start, or ended. Everything is undone then.
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
    /// The interrupt settings that a killed isonic left on a NIC could not be put back.
    #[error(transparent)]
    Interrupts(#[from] BusyPollError),
    /// The workers could not be started.
    #[error("cannot start the workers")]
    Workers(#[source] io::Error),
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateFileError),
    /// The runtime directory.
    #[error(transparent)]
    Runtime(#[from] LockError),
    /// A port of the configuration.
    #[error("port \"{name}\" cannot be served")]
    Port {
        /// The port's name.
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
    /// The process before this one, which was to hand everything over.
    #[error("cannot go on where the process before this one was")]
    Import(#[from] ImportError),
}
