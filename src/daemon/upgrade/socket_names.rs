//! The names of the sockets, once they are ours: a socket that the predecessor had keeps its name,
//! a new one is given its own, and a name that no port of ours has is removed.
//!
//! Nothing of that is done before everything is ours. So a successor that never comes to be the
//! owner leaves no name behind, however it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::platform::unix_socket::SocketFile;
use crate::vhost_user::{PortSocket, SocketSource};

use crate::daemon::ports::{InheritedSocket, Port, PortError, Registry};

/// Own them: the ports whose name is not to be had, which take no connection.
pub(super) fn own(registry: &Registry, api: Option<&Path>) -> Vec<(String, PortError)> {
    let mut left = registry.take_inherited_sockets();
    // With the ports locked: a name belongs to a port that is there, and to no other.
    let mut ports = registry.ports();
    let mut nameless = Vec::new();
    let listens = |port: &&mut Port| port.file.is_none() && port.socket.listener().is_some();
    for port in ports.values_mut().filter(listens) {
        match left.remove(&port.config.socket) {
            Some(socket) => port.file = file(&port.config.socket, &socket),
            None => {
                nameless.extend(name(port).err().map(|error| (port.config.name.clone(), error)))
            }
        }
    }
    drop(ports);
    if let Some(api) = api {
        left.remove(api);
    }
    give_up(left);
    nameless
}

fn name(port: &mut Port) -> Result<(), PortError> {
    let named = port.name_socket();
    if named.is_err() {
        // Before it may accept.
        port.socket.begin_stop();
    }
    named
}

/// The file of a socket that keeps its name; older versions do not tell which it is.
fn file(path: &Path, socket: &InheritedSocket) -> Option<SocketFile> {
    match socket.file {
        Some(identity) => Some(SocketFile::left(path, identity)),
        None => SocketFile::inherit(path).ok(),
    }
}

/// Nobody listens there any more. A name of which it is not told whose it is stays.
fn give_up(left: BTreeMap<PathBuf, InheritedSocket>) {
    for (path, InheritedSocket { listener, file, .. }) in left {
        tracing::info!(socket = %path.display(), "no port has this socket any more");
        drop(file.map(|identity| SocketFile::left(&path, identity)));
        if let Some(listener) = listener {
            // A front-end may have sent something already.
            drop(PortSocket::discard(SocketSource::Listener(listener), &path.to_string_lossy()));
        }
    }
}
