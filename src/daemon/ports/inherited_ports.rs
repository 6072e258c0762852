//! What the process before this one leaves of its ports: their listening sockets, and what it says
//! of them.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::config::PortConfig;
use crate::platform::unix_socket::FileIdentity;

use super::port_record::PortRecord;

/// A listening socket of the predecessor's.
#[derive(Debug)]
pub struct InheritedSocket {
    /// Whose it was; None if it was the API's.
    pub port: Option<String>,
    /// None if it was taken.
    pub listener: Option<UnixListener>,
    /// The file of its name; None if that is not told.
    pub file: Option<FileIdentity>,
}

/// The ports of the predecessor.
#[derive(Debug, Default)]
pub struct InheritedPorts {
    /// By their names: that is what front-ends know of a port.
    pub sockets: BTreeMap<PathBuf, InheritedSocket>,
    /// The API's socket, which is nobody's here if the API has another name now.
    pub api: Option<(PathBuf, InheritedSocket)>,
    /// As they are with it; None if it does not say.
    pub records: Option<Vec<PortRecord>>,
    /// It says so of all, in words that are understood.
    pub tells_all: bool,
}

impl InheritedPorts {
    /// A port as it was, if that is told.
    pub fn record(&self, name: &str) -> Option<&PortRecord> {
        self.records.iter().flatten().find(|record| record.config.name == name)
    }

    /// The ports that it was given at run time.
    pub fn added(&self) -> impl Iterator<Item = &PortConfig> {
        let added = self.records.iter().flatten().filter(|record| !record.permanent);
        added.map(|record| &record.config)
    }

    /// Whether a port's socket is among them.
    pub fn has_listener(&self, port: &str) -> bool {
        self.sockets.values().any(|socket| socket.port.as_deref() == Some(port))
    }

    /// The socket at this path, of whatever port.
    pub fn take_listener(&mut self, path: &Path) -> Option<UnixListener> {
        self.sockets.get_mut(path)?.listener.take()
    }

    /// All sockets, taken or not, by their names.
    pub fn take_sockets(&mut self) -> BTreeMap<PathBuf, InheritedSocket> {
        let mut sockets = std::mem::take(&mut self.sockets);
        sockets.extend(self.api.take());
        sockets
    }
}
