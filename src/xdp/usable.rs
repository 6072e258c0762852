//! Whether this kernel lets this process use AF_XDP at all, found without touching a NIC.

use std::io;

use super::program::{ProgramError, Redirect};

/// Why AF_XDP sockets cannot be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// The kernel was built without.
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)")]
    NotBuilt,
    /// A capability or a sandbox.
    #[error("this process may not make AF_XDP sockets; it needs CAP_NET_RAW")]
    Forbidden,
    /// Anything else.
    #[error("an AF_XDP socket cannot be made: error {0}")]
    Other(i32),
}

/// Load our XDP program as an uplink does, and release it.
///
/// # Errors
/// [`ProgramError::Load`].
pub fn check_program() -> Result<(), ProgramError> {
    Redirect::load().map(drop)
}

/// Make an AF_XDP socket, which is bound to nothing, and close it.
///
/// # Errors
/// [`Unusable`].
pub fn check_sockets() -> Result<(), Unusable> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let made = socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None);
    match made.map_err(io::Error::from) {
        Ok(_socket) => Ok(()),
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EAFNOSUPPORT) => Unusable::NotBuilt,
            Some(libc::EPERM | libc::EACCES) => Unusable::Forbidden,
            other => Unusable::Other(other.unwrap_or_default()),
        }),
    }
}
