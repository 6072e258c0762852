//! The channel from one process to the next: messages in JSON, each with any number of descriptors,
//! over a socket pair.
//!
//! The text is sent as a file, too, the first of the descriptors. So the data in the socket is
//! small, and stays there while nobody reads it. The holder of the other end can keep a message.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::net::sockopt::set_socket_send_buffer_size_force;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::upgrade_document::Descriptors;

/// Descriptors in one piece; the kernel takes 253 (SCM_MAX_FD of net/scm.h).
const PIECE: usize = 128;
/// Most descriptors in one message: a few of every ring and region of a full host.
const DESCRIPTORS_MAX: u32 = 1 << 20;
/// Room for pieces that nobody reads yet, bytes: each takes about a thousand.
const UNREAD_BYTES: usize = 8 << 20;

/// One end.
#[derive(Debug)]
pub(super) struct Channel(UnixStream);

impl Channel {
    /// Ours, and the other process's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        // It takes a capability that isonic has. Without the larger buffer, sending may have to
        // wait longer.
        let _ = set_socket_send_buffer_size_force(&ours, UNREAD_BYTES);
        Ok((Self(ours), theirs.into()))
    }

    /// The end that another process has given us.
    pub fn of(end: impl Into<UnixStream>) -> Self {
        Self(end.into())
    }

    /// Break the channel from another thread: a thread that waits on it gets an error.
    pub fn breaker(&self) -> io::Result<impl FnOnce() + Send + 'static> {
        let ours = self.0.try_clone()?;
        // This fails only if the other end has been shut down already.
        Ok(move || drop(ours.shutdown(Shutdown::Both)))
    }

    /// Send a message: the number of its descriptors, then they, with a byte for each piece of
    /// them. If the socket is full the other end must read before the deadline.
    pub fn send(
        &self,
        message: &impl Serialize,
        descriptors: &Descriptors,
        deadline: Instant,
    ) -> io::Result<()> {
        let text = File::from(rustix::fs::memfd_create("isonic-document", MemfdFlags::CLOEXEC)?);
        text.write_all_at(&serde_json::to_vec(message)?, 0)?;
        let all = [text.as_fd()].into_iter().chain(descriptors.iter().map(AsFd::as_fd));
        let all: Vec<BorrowedFd<'_>> = all.collect();
        let count = u32::try_from(all.len()).map_err(io::Error::other)?;
        self.0.set_write_timeout(Some(left(deadline)?))?;
        (&self.0).write_all(&count.to_ne_bytes())?;
        all.chunks(PIECE).try_for_each(|piece| self.send_piece(piece, deadline))
    }

    fn send_piece(&self, piece: &[BorrowedFd<'_>], deadline: Instant) -> io::Result<()> {
        self.0.set_write_timeout(Some(left(deadline)?))?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PIECE))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(piece)), "at most a piece");
        let byte = [IoSlice::new(&[0])];
        let mut sent = || sendmsg(&self.0, &byte, &mut control, SendFlags::NOSIGNAL);
        rustix::io::retry_on_intr(&mut sent)?;
        Ok(())
    }

    /// Receive a whole message, before the deadline if there is one.
    pub fn receive<T: DeserializeOwned>(
        &self,
        deadline: Option<Instant>,
    ) -> io::Result<(T, Descriptors)> {
        self.0.set_read_timeout(deadline.map(left).transpose()?)?;
        let mut count = [0; 4];
        (&self.0).read_exact(&mut count)?;
        let count = u32::from_ne_bytes(count);
        if !(1..=DESCRIPTORS_MAX).contains(&count) {
            return Err(io::Error::other("it is no message of ours"));
        }
        let mut descriptors = Vec::new();
        while descriptors.len() < count as usize {
            self.0.set_read_timeout(deadline.map(left).transpose()?)?;
            self.receive_piece(&mut descriptors)?;
        }
        let text = File::from(descriptors.remove(0));
        let mut bytes = vec![0; usize::try_from(text.metadata()?.len()).map_err(io::Error::other)?];
        text.read_exact_at(&mut bytes, 0)?;
        Ok((serde_json::from_slice(&bytes)?, Descriptors::of(descriptors)))
    }

    fn receive_piece(&self, descriptors: &mut Vec<OwnedFd>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PIECE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        let before = descriptors.len();
        let mut buffer = [IoSliceMut::new(&mut byte)];
        recvmsg(&self.0, &mut buffer, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(piece) = message {
                descriptors.extend(piece);
            }
        }
        if descriptors.len() == before {
            return Err(io::Error::other(
                "the descriptors broke off; raise the limit of open files",
            ));
        }
        Ok(())
    }
}

/// The time until a deadline.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}
