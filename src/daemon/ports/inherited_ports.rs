//! The ports that the process before this one hands over: their listening sockets and their
//! records.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::config::PortConfig;
use crate::platform::unix_socket::FileIdentity;

use super::port_record::PortRecord;

/// A listening socket of the predecessor's.
#[derive(Debug)]
pub struct InheritedSocket {
    /// The port that had it; None if it was the API's.
    pub port: Option<String>,
    /// None if it was taken.
    pub listener: Option<UnixListener>,
    /// The file of its name; None if it is unknown.
    pub file: Option<FileIdentity>,
}

/// The ports of the predecessor.
#[derive(Debug, Default)]
pub struct InheritedPorts {
    /// By their names, by which front-ends know a port.
    pub sockets: BTreeMap<PathBuf, InheritedSocket>,
    /// The API's socket, which stays unused if the API has another name now.
    pub api: Option<(PathBuf, InheritedSocket)>,
    /// Their records with the predecessor; None if it sends none.
    pub records: Option<Vec<PortRecord>>,
    /// It has sent the records of all ports, and we could read them.
    pub tells_all: bool,
}

impl InheritedPorts {
    /// The record of a port, if there is one.
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

    /// The socket at this path, whichever port had it.
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
