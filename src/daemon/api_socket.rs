//! The API's socket, and its name.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::platform::unix_socket::{self, ClaimError, Claimed, SocketFile};

use super::upgrade::PredecessorState;

/// The API's socket.
#[derive(Debug)]
pub struct ApiSocket {
    /// It listens.
    pub listener: UnixListener,
    path: PathBuf,
    /// Removes the name when dropped; None while it is another process's, or has none.
    pub file: Option<SocketFile>,
    /// The predecessor had its name.
    inherited: bool,
}

impl ApiSocket {
    /// The API's socket at this path: the one of the process `before`, or a new one. A new one has
    /// a name only if there is no such process.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn open(path: &Path, before: &mut Option<PredecessorState>) -> Result<Self, ClaimError> {
        let path = path.to_owned();
        if let Some(listener) = before.as_mut().and_then(|before| before.take_api(&path)) {
            return Ok(Self { listener, path, file: None, inherited: true });
        }
        if before.is_some() {
            let listener = unix_socket::unnamed(&path)?;
            return Ok(Self { listener, path, file: None, inherited: false });
        }
        let Claimed { listener, file } = unix_socket::claim(&path)?;
        Ok(Self { listener, path, file: Some(file), inherited: false })
    }

    /// Take the socket's name over, or make it.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn own(&mut self) -> Result<(), ClaimError> {
        self.file = match self.inherited {
            true => SocketFile::inherit(&self.path).ok(),
            false => Some(unix_socket::name(self.listener.as_fd(), &self.path)?),
        };
        Ok(())
    }
}
