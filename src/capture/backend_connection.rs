//! The front-end's end of a connection: whole requests out, whole replies in, within a time.
//!
//! The `vhost` crate's `Frontend` would do most of it, but it waits for ever: it retries a read
//! that times out. It also takes unknown protocol features for an error.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg,
};
use vhost::vhost_user::message::{FrontendReq, VhostUserHeaderFlag};

use crate::platform::unix_socket::{Claimed, claim};

use super::target::{CaptureError, CaptureTarget, Side};

/// Request, flags, size.
const HEADER_LEN: usize = 12;
/// Protocol version 1.
const VERSION: u32 = 0x1;
const REPLY: u32 = VhostUserHeaderFlag::REPLY.bits();
const NEED_REPLY: u32 = VhostUserHeaderFlag::NEED_REPLY.bits();

/// Where connections come from: the backend's socket, or ours.
pub(super) struct BackendSocket<'t> {
    target: &'t CaptureTarget,
    /// With [`Side::Listen`]; its name is removed on drop.
    claimed: Option<Claimed>,
}

impl<'t> BackendSocket<'t> {
    pub fn open(target: &'t CaptureTarget) -> Result<Self, CaptureError> {
        let claimed = match target.side {
            Side::Connect => None,
            Side::Listen => Some(claim(&target.socket)?),
        };
        Ok(Self { target, claimed })
    }

    /// How long an answer may take.
    pub fn timeout(&self) -> Duration {
        self.target.timeout
    }

    /// A new connection.
    pub fn connect(&self) -> Result<BackendConnection, CaptureError> {
        let stream = match &self.claimed {
            Some(claimed) => self.accept(claimed)?,
            None => self.dial().map_err(|source| CaptureError::Connect {
                socket: self.target.socket.clone(),
                source,
            })?,
        };
        let timeout = self.target.timeout;
        stream.set_read_timeout(Some(timeout))?;
        stream.set_write_timeout(Some(timeout))?;
        Ok(BackendConnection { stream, timeout, answered: false })
    }

    /// A full queue of connections is an error here and not a wait without end.
    fn dial(&self) -> io::Result<UnixStream> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(&self.target.socket)?)?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false)?;
        Ok(stream)
    }

    fn accept(&self, claimed: &Claimed) -> Result<UnixStream, CaptureError> {
        let deadline = Instant::now() + self.target.timeout;
        let mut fds = [PollFd::new(&claimed.listener, PollFlags::IN)];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut fds, Some(&left)) {
                Ok(0) => {
                    return Err(CaptureError::NobodyConnected {
                        socket: self.target.socket.clone(),
                        seconds: self.target.timeout.as_secs(),
                    });
                }
                Ok(_) => return Ok(claimed.listener.accept()?.0),
                Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(io::Error::from(errno).into()),
            }
        }
    }
}

/// The outcome of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome<T> {
    /// It was answered.
    Answer(T),
    /// The connection was closed instead.
    Closed,
}

impl<T> Outcome<T> {
    /// The answer as something else.
    pub fn map<U>(self, value: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Self::Answer(answer) => Outcome::Answer(value(answer)),
            Self::Closed => Outcome::Closed,
        }
    }
}

/// One connection with a backend.
pub(super) struct BackendConnection {
    stream: UnixStream,
    timeout: Duration,
    /// Whether anything was answered yet.
    answered: bool,
}

impl BackendConnection {
    /// Send a request that has no answer.
    pub fn tell(
        &mut self,
        code: FrontendReq,
        body: &[u8],
        file: Option<&OwnedFd>,
    ) -> Result<Outcome<()>, CaptureError> {
        self.send(code, VERSION, body, file)
    }

    /// Send a request and read its answer, a u64.
    pub fn answer(&mut self, code: FrontendReq) -> Result<Outcome<u64>, CaptureError> {
        self.exchange(code, VERSION, &[], None)
    }

    /// As [`Self::answer`], where a connection that is closed instead is an error.
    pub fn number(&mut self, code: FrontendReq) -> Result<u64, CaptureError> {
        match self.answer(code)? {
            Outcome::Answer(value) => Ok(value),
            Outcome::Closed if self.answered => Err(CaptureError::Closed(code)),
            Outcome::Closed => Err(CaptureError::Turned),
        }
    }

    /// Send a request that asks for an acknowledgement, and tell whether it was done. The backend
    /// must have REPLY_ACK.
    pub fn acknowledged(
        &mut self,
        code: FrontendReq,
        body: &[u8],
        file: Option<&OwnedFd>,
    ) -> Result<Outcome<bool>, CaptureError> {
        Ok(self.exchange(code, VERSION | NEED_REPLY, body, file)?.map(|value| value == 0))
    }

    fn exchange(
        &mut self,
        code: FrontendReq,
        flags: u32,
        body: &[u8],
        file: Option<&OwnedFd>,
    ) -> Result<Outcome<u64>, CaptureError> {
        if self.send(code, flags, body, file)? == Outcome::Closed {
            return Ok(Outcome::Closed);
        }
        let mut header = [0; HEADER_LEN];
        if !self.fill(&mut header, code)? {
            return Ok(Outcome::Closed);
        }
        let field = |at: usize| {
            u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (request, flags, length) = (field(0), field(4), field(8));
        if request != u32::from(code) || flags & (VERSION | REPLY) != VERSION | REPLY || length != 8
        {
            let found = format!("request {request}, flags {flags:#x}, {length} bytes");
            return Err(CaptureError::NotVhostUser { request: code, found });
        }
        let mut value = [0; 8];
        if !self.fill(&mut value, code)? {
            return Ok(Outcome::Closed);
        }
        self.answered = true;
        Ok(Outcome::Answer(u64::from_ne_bytes(value)))
    }

    fn send(
        &mut self,
        code: FrontendReq,
        flags: u32,
        body: &[u8],
        file: Option<&OwnedFd>,
    ) -> Result<Outcome<()>, CaptureError> {
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let header = [u32::from(code), flags, length].map(u32::to_ne_bytes).concat();
        let message = [&header[..], body].concat();
        let files: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&files));
        }
        let mut rest = &message[..];
        while !rest.is_empty() {
            let sent = rustix::io::retry_on_intr(|| {
                sendmsg(&self.stream, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)
            });
            match sent.map_err(io::Error::from) {
                Ok(sent) => rest = &rest[sent..],
                Err(error) if is_closed(&error) => return Ok(Outcome::Closed),
                Err(error) => return Err(self.failed(error, code)),
            }
            control.clear();
        }
        Ok(Outcome::Answer(()))
    }

    /// Read until `bytes` is full; false if the connection is closed before.
    fn fill(&mut self, bytes: &mut [u8], code: FrontendReq) -> Result<bool, CaptureError> {
        match self.stream.read_exact(bytes) {
            Ok(()) => Ok(true),
            Err(error) if is_closed(&error) => Ok(false),
            Err(error) => Err(self.failed(error, code)),
        }
    }

    fn failed(&self, error: io::Error, code: FrontendReq) -> CaptureError {
        match error.kind() {
            io::ErrorKind::WouldBlock => {
                CaptureError::Silent { request: code, seconds: self.timeout.as_secs() }
            }
            _ => error.into(),
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}
