//! The channel that a state goes through (SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE).
//!
//! The channel is always ours: a socket pair, whose other end the front-end gets with the answer
//! and "must use" (vhost-user, SET_DEVICE_STATE_FD). Its own descriptor is closed unused. A
//! front-end's pipe, or any other descriptor of its own, shares its flags with the front-end. With
//! those it could make a read or write block the session for ever. Ours cannot.
//!
//! Nothing waits here. A state to be saved is in the channel whole before the front-end has its
//! end. A state to be loaded is read as it comes, between messages. When the front-end asks for the
//! result it has closed its end: the whole state is there, or it is refused.

#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::device_state::{DeviceStateError, STATE_MAX};

/// Bytes taken at once.
const PIECE: usize = 4096;

/// A state on its way.
#[derive(Debug, Default)]
pub(super) enum Transfer {
    /// None.
    #[default]
    Idle,
    /// Out, and whole.
    Saved,
    /// In, so far as `bytes`; the channel is gone when it has ended.
    Loading {
        /// Our end.
        channel: Option<UnixStream>,
        /// The bytes so far.
        bytes: Vec<u8>,
    },
}

impl Transfer {
    /// A channel with `state` in it, to be read by the front-end to its end.
    ///
    /// # Errors
    /// [`DeviceStateError::Channel`].
    pub fn save(&mut self, state: &[u8]) -> Result<OwnedFd, DeviceStateError> {
        let (mut ours, theirs) = channel()?;
        // This write is partial only if a socket's buffer is below 64 KiB.
        ours.write_all(state).map_err(DeviceStateError::Channel)?;
        *self = Self::Saved;
        Ok(theirs)
    }

    /// A channel for the front-end to write a state to. An earlier transfer is forgotten: its
    /// migration has failed.
    ///
    /// # Errors
    /// [`DeviceStateError::Channel`].
    pub fn load(&mut self) -> Result<OwnedFd, DeviceStateError> {
        let (ours, theirs) = channel()?;
        *self = Self::Loading { channel: Some(ours), bytes: Vec::new() };
        Ok(theirs)
    }

    /// Whether no transfer is under way: another process could not continue one.
    pub fn is_idle(&self) -> bool {
        matches!(self, Self::Idle)
    }

    /// The channel that something may come from.
    pub fn incoming(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Loading { channel, .. } => channel.as_ref().map(AsFd::as_fd),
            Self::Idle | Self::Saved => None,
        }
    }

    /// Read at most a piece of what is there; false if there is nothing yet, or no more.
    ///
    /// # Errors
    /// [`DeviceStateError`]; the transfer has then failed, and so will the front-end's next write.
    pub fn receive(&mut self) -> Result<bool, DeviceStateError> {
        let Self::Loading { channel, bytes } = self else { return Ok(false) };
        let Some(socket) = channel else { return Ok(false) };
        let mut piece = [0; PIECE];
        let failed = match socket.read(&mut piece) {
            Ok(0) => {
                *channel = None;
                return Ok(false);
            }
            Ok(len) if bytes.len() + len <= STATE_MAX => {
                bytes.extend_from_slice(&piece[..len]);
                return Ok(true);
            }
            Ok(_) => DeviceStateError::TooLong,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => DeviceStateError::Channel(error),
        };
        *self = Self::Idle;
        Err(failed)
    }

    /// End the transfer. Returns the whole state that came in; None if one went out.
    ///
    /// # Errors
    /// [`DeviceStateError`].
    pub fn finish(&mut self) -> Result<Option<Vec<u8>>, DeviceStateError> {
        // Bounded: every piece but the last has a byte or more, and there are at most STATE_MAX.
        while self.receive()? {}
        match std::mem::take(self) {
            Self::Idle => Err(DeviceStateError::Missing),
            Self::Saved => Ok(None),
            Self::Loading { channel: Some(_), .. } => Err(DeviceStateError::Unfinished),
            Self::Loading { channel: None, bytes } => Ok(Some(bytes)),
        }
    }
}

/// Our end, which never blocks, and the front-end's.
fn channel() -> Result<(UnixStream, OwnedFd), DeviceStateError> {
    let (ours, theirs) = UnixStream::pair().map_err(DeviceStateError::Channel)?;
    ours.set_nonblocking(true).map_err(DeviceStateError::Channel)?;
    Ok((ours, theirs.into()))
}
