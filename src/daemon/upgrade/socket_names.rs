//! The names of the sockets, once they are ours. A socket of the predecessor's keeps its name, a
//! new one is given its own, and a name without a port of ours is removed.
//!
//! Nothing of this is done before everything is ours. So a successor that never becomes the owner
//! leaves no name behind, however it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::platform::unix_socket::SocketFile;
use crate::vhost_user::{PortSocket, SocketSource};

use crate::daemon::ports::{InheritedSocket, Port, PortError, Registry};

/// Take the names over. Returns the ports whose name cannot be had, which take no connection.
pub(super) fn own(registry: &Registry, api: Option<&Path>) -> Vec<(String, PortError)> {
    let mut left = registry.take_inherited_sockets();
    // With the ports locked: a name belongs to an existing port and to no other.
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
        // The socket must stop before it may accept.
        port.socket.begin_stop();
    }
    named
}

/// The file of a socket that keeps its name; older versions do not report which file it is.
fn file(path: &Path, socket: &InheritedSocket) -> Option<SocketFile> {
    match socket.file {
        Some(identity) => Some(SocketFile::left(path, identity)),
        None => SocketFile::inherit(path).ok(),
    }
}

/// Remove names on which nobody listens any more. A name stays if we do not know which file is its
/// socket's.
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
