//! The origin of a port, and the socket that follows from it.

use crate::config::{PortConfig, SocketMode};
use crate::platform::unix_socket::{AccessError, Inherited, SocketFile, claim};
use crate::vhost_user::SocketSource;

use super::port_error::PortError;

/// The origin of a port.
#[derive(Debug)]
pub enum Origin {
    /// The configuration file or the command line.
    Configuration,
    /// The API: kept in the state file.
    Api,
    /// The state file.
    State,
    /// The command line, with the socket inherited.
    Inherited(Inherited),
    /// The command line, in a process that takes over the predecessor's sessions.
    Predecessor,
}

/// The origin of a port that existed before.
pub fn origin_of(permanent: bool) -> Origin {
    if permanent { Origin::Configuration } else { Origin::State }
}

/// Whether only the configuration makes and removes a port of this origin.
pub fn is_permanent(origin: &Origin) -> bool {
    !matches!(origin, Origin::Api | Origin::State)
}

/// The socket of a port that is made or connected, and its name if that is ours.
///
/// # Errors
/// The name cannot be had, or not with these access rights.
pub fn open_socket(
    config: &PortConfig,
    origin: Origin,
) -> Result<(SocketSource, Option<SocketFile>), PortError> {
    match origin {
        Origin::Inherited(Inherited::Listener(listener)) => {
            return Ok((SocketSource::Listener(listener), None));
        }
        Origin::Inherited(Inherited::Stream(stream)) => {
            return Ok((SocketSource::Stream(stream), None));
        }
        Origin::Predecessor => return Ok((SocketSource::Inherited, None)),
        Origin::Configuration | Origin::Api | Origin::State => {}
    }
    if config.mode == SocketMode::Client {
        return Ok((SocketSource::Connect(config.socket.clone()), None));
    }
    let claimed = claim(&config.socket)?;
    set_access(config, &claimed.file)?;
    Ok((SocketSource::Listener(claimed.listener), Some(claimed.file)))
}

/// Whether front-ends find the port by a name that we have to make.
pub fn is_named(config: &PortConfig, origin: &Origin) -> bool {
    let given = matches!(origin, Origin::Configuration | Origin::Api | Origin::State);
    given && config.mode == SocketMode::Server
}

/// Set the access rights of a port's socket.
///
/// # Errors
/// [`AccessError`].
pub fn set_access(config: &PortConfig, file: &SocketFile) -> Result<(), AccessError> {
    let permissions = config.socket_permissions.map(|permissions| permissions.0);
    file.set_access(config.socket_group.as_deref(), permissions)
}
