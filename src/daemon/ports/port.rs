//! One port, served or refused.

use std::sync::Arc;

use crate::config::PortConfig;
use crate::datapath::PortId;
use crate::metrics::{PortCounter, Published};
use crate::platform::unix_socket::{self, SocketFile};
use crate::profile::Profile;
use crate::vhost_user::{Ended, PortSocket};

use super::listen::set_access;
use super::port_error::PortError;
use super::port_link::PortLink;
use super::port_record::BoundProfile;

/// One port.
#[derive(Debug)]
pub struct Port {
    /// Its number.
    pub id: PortId,
    /// As configured.
    pub config: PortConfig,
    /// The profile that its guest sees.
    pub profile: Arc<Profile>,
    /// The record of that profile.
    pub bound: BoundProfile,
    /// Its session's side.
    pub link: Arc<PortLink>,
    /// The counters of each worker for it.
    pub counters: Vec<Arc<Published<PortCounter>>>,
    /// The configuration file has it.
    pub permanent: bool,
    /// Accepts or connects, one session at a time.
    pub socket: PortSocket,
    /// Removes the socket's name when the port goes, or while it takes no connections.
    pub file: Option<SocketFile>,
    /// It has its one connection from the command line, and cannot get another.
    pub inherited: bool,
    /// Set while its session is ending.
    pub pending: Option<Pending>,
}

/// The purpose for which a port's session ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pending {
    /// It is removed. It is no longer in the state file.
    Removed,
    /// It is made again with another profile, which is in the state file already.
    Changed(Box<(PortConfig, BoundProfile)>),
}

impl Port {
    /// Its entry in the state file, if it has one.
    pub fn recorded(&self) -> Option<(&PortConfig, &BoundProfile)> {
        match &self.pending {
            None => Some((&self.config, &self.bound)),
            Some(Pending::Changed(to)) => Some((&to.0, &to.1)),
            Some(Pending::Removed) => None,
        }
    }

    /// Give its socket the name for which it was made.
    ///
    /// # Errors
    /// [`PortError`].
    pub fn name_socket(&mut self) -> Result<(), PortError> {
        if let Some(listener) = self.socket.listener() {
            let file = unix_socket::name(listener, &self.config.socket)?;
            set_access(&self.config, &file)?;
            self.file = Some(file);
        }
        Ok(())
    }

    /// End its session and take no connection. Wait for the result with the ports unlocked.
    pub fn disconnect(&mut self) -> Option<Ending> {
        if self.inherited {
            return None;
        }
        self.file = None;
        Some(self.end())
    }

    /// Take its socket, which begins to stop.
    pub fn end(&mut self) -> Ending {
        let mut socket =
            std::mem::replace(&mut self.socket, PortSocket::stopped(&self.config.name));
        socket.begin_stop();
        Ending { name: self.config.name.clone(), link: Arc::clone(&self.link), socket }
    }
}

/// A port's socket that stops. Waiting for it takes as long as its front-end likes, up to a bound,
/// so nobody waits while the ports are locked.
#[must_use]
pub struct Ending {
    name: String,
    link: Arc<PortLink>,
    socket: PortSocket,
}

impl Ending {
    /// Wait until no ring of the session is with a worker. A session that does not end is cut off.
    pub fn wait(mut self) {
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
    /// The record of its profile; None if it never had one.
    pub bound: Option<BoundProfile>,
    /// Why it is not served.
    pub reason: String,
    /// The configuration file has it.
    pub permanent: bool,
    /// The obstacle is the host's, and may pass by itself.
    pub may_pass: bool,
}
