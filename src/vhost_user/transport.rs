//! Whole messages from a front-end's stream, with their descriptors, and replies to it.
//!
//! The session reads for itself. The `vhost` crate takes a body that arrives in two pieces for an
//! error, and then loses its place in the stream. Every descriptor that arrives, with whatever
//! byte, is owned from the first moment, so none leaks. All descriptors that one sendmsg(2) can
//! bring are received: the kernel would close others on this thread, which could block.
//!
//! Reads and writes block; shutdown(2) of a clone of the stream ends them.

#![forbid(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use vhost::vhost_user::message::{MAX_MSG_SIZE, VhostUserHeaderFlag};
use vm_memory::ByteValued;

use crate::platform::descriptors::OpenFileLimit;

use super::deferred_close::{DeferredClose, DescriptorCloser};

/// The protocol's version.
pub(super) const VERSION: u32 = 1;
/// Bytes of a message header: request, flags, size.
const HEADER_LEN: usize = 12;
/// The longest body that is read.
pub(super) const BODY_MAX: usize = MAX_MSG_SIZE;
/// Descriptors kept with one message: one more than any request has, so that too many shows.
pub(super) const DESCRIPTORS_MAX: usize = 33;
/// Descriptors that one sendmsg(2) brings at most (SCM_MAX_FD of include/net/scm.h). A recvmsg(2)
/// takes no more than one sendmsg(2) brought.
const DESCRIPTORS_AT_ONCE: usize = 253;

/// Why a stream cannot be followed any further.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// It ended, between two messages or within one.
    #[error("the front-end closed the connection")]
    Closed,
    /// Another protocol, or no protocol at all.
    #[error("request {code} has protocol version {version}; version 1 is spoken here")]
    Version {
        /// Request number.
        code: u32,
        /// Bits 0 and 1 of the flags.
        version: u32,
    },
    /// A body longer than any request has.
    #[error("request {code} announces a body of {len} bytes, and the limit is {BODY_MAX}")]
    TooLong {
        /// Request number.
        code: u32,
        /// Bytes.
        len: u32,
    },
    /// A port may have no more descriptors whose close(2) does not return.
    #[error(
        "{waiting} descriptors that came from front-ends wait to be closed; only events and shared \
         memory, which close at once, are of use here"
    )]
    Unclosed {
        /// Descriptors.
        waiting: usize,
    },
    /// The descriptors that came with the message would take reserved ones, or were lost already.
    #[error(
        "no file descriptor is left for what the front-end sends: the limit of open files is \
         {limit}, of which {reserved} are reserved; raise it (LimitNOFILE)"
    )]
    NoDescriptor {
        /// RLIMIT_NOFILE.
        limit: u64,
        /// Descriptors that are reserved.
        reserved: u64,
    },
    /// An error of the kernel.
    #[error("cannot read from or write to the connection")]
    Io(#[from] io::Error),
}

/// One message, whole. When it is dropped, the port's closer closes its descriptors.
#[derive(Debug)]
pub(super) struct Message {
    /// Request number, known or not.
    pub code: u32,
    /// As sent; the version was checked.
    pub flags: u32,
    pub body: Vec<u8>,
    pub descriptors: Vec<DeferredClose<OwnedFd>>,
    /// More descriptors came than are ever of use, or than this process has room for; the excess is
    /// closed.
    pub descriptors_cut: bool,
}

impl Message {
    const REPLY: u32 = VERSION | VhostUserHeaderFlag::REPLY.bits();

    pub fn needs_reply(&self) -> bool {
        self.flags & VhostUserHeaderFlag::NEED_REPLY.bits() != 0
    }

    /// The body, or its beginning, as a `T`; its length was checked against the table.
    pub fn body<T: ByteValued + Default>(&self) -> T {
        self.body_at(0)
    }

    /// The `T` at byte `offset` of the body, whose length was checked.
    pub fn body_at<T: ByteValued + Default>(&self, offset: usize) -> T {
        let mut value = T::default();
        value.as_mut_slice().copy_from_slice(&self.body[offset..offset + size_of::<T>()]);
        value
    }

    /// The first u64 of the body, if it is that long: nothing may have been checked yet.
    pub fn word(&self) -> Option<u64> {
        self.body.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
    }

    /// The last descriptor; their number was checked against the table.
    pub fn take_descriptor(&mut self) -> DeferredClose<OwnedFd> {
        self.descriptors.pop().expect("a request that has one")
    }
}

/// Read the next message.
///
/// # Errors
/// [`TransportError`]; what was read of the message is gone then, its descriptors closed.
pub(super) fn read_message(
    stream: impl AsFd,
    closer: &Arc<DescriptorCloser>,
) -> Result<Message, TransportError> {
    let stream = stream.as_fd();
    let mut reader =
        MessageReader { stream, closer, descriptors: Vec::new(), descriptors_cut: false };
    let mut header = [0; HEADER_LEN];
    reader.fill(&mut header)?;
    let field =
        |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().expect("a slice of 4 bytes"));
    let (code, flags, len) = (field(0), field(4), field(8));
    let version = flags & VhostUserHeaderFlag::VERSION.bits();
    if version != VERSION {
        return Err(TransportError::Version { code, version });
    }
    let body_len = match usize::try_from(len) {
        Ok(body_len) if body_len <= BODY_MAX => body_len,
        _ => return Err(TransportError::TooLong { code, len }),
    };
    let mut body = vec![0; body_len];
    reader.fill(&mut body)?;
    let MessageReader { descriptors, descriptors_cut, .. } = reader;
    Ok(Message { code, flags, body, descriptors, descriptors_cut })
}

/// One message being read.
struct MessageReader<'s> {
    stream: BorrowedFd<'s>,
    closer: &'s Arc<DescriptorCloser>,
    descriptors: Vec<DeferredClose<OwnedFd>>,
    descriptors_cut: bool,
}

impl MessageReader<'_> {
    /// Read until `bytes` is full.
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), TransportError> {
        let mut done = 0;
        while done < bytes.len() {
            match self.receive(&mut bytes[done..])? {
                0 => return Err(TransportError::Closed),
                read => done += read,
            }
        }
        Ok(())
    }

    /// One recvmsg(2), keeping the descriptors that came along.
    fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, TransportError> {
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            let mut buffers = [IoSliceMut::new(bytes)];
            recvmsg(self.stream, &mut buffers, &mut control, RecvFlags::CMSG_CLOEXEC)
        });
        let received = match received {
            Err(rustix::io::Errno::CONNRESET) => return Err(TransportError::Closed),
            other => other.map_err(io::Error::from)?,
        };
        let before = self.descriptors.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                let deferred = descriptors.map(|fd| DeferredClose::new(fd, self.closer));
                self.descriptors.extend(deferred);
            }
        }
        // The kernel takes the lowest number that is free, and drops descriptors for which there is
        // none. Nothing else causes truncation.
        let lost = received.flags.contains(ReturnFlags::CTRUNC);
        let (new, room) = (&self.descriptors[before..], OpenFileLimit::now());
        if lost || new.iter().any(|descriptor| room.is_reserved(&**descriptor)) {
            let OpenFileLimit { limit, reserved } = room;
            OpenFileLimit::note_refusal();
            return Err(TransportError::NoDescriptor { limit, reserved });
        }
        // A body read byte by byte could bring descriptors with every byte.
        if self.descriptors.len() > DESCRIPTORS_MAX {
            self.descriptors.truncate(DESCRIPTORS_MAX);
            self.descriptors_cut = true;
        }
        check_unclosed(self.closer)?;
        Ok(received.bytes)
    }
}

/// Whether a session may continue, given how many descriptors from front-ends wait to be closed.
///
/// # Errors
/// [`TransportError::Unclosed`].
pub(super) fn check_unclosed(closer: &DescriptorCloser) -> Result<(), TransportError> {
    if closer.is_full() {
        return Err(TransportError::Unclosed { waiting: closer.waiting() });
    }
    Ok(())
}

/// Write `bytes`, with `descriptors` on the first of them.
///
/// # Errors
/// [`TransportError::Closed`] or [`TransportError::Io`].
pub(super) fn write_all(
    stream: impl AsFd,
    mut bytes: &[u8],
    descriptors: &[OwnedFd],
) -> Result<(), TransportError> {
    let borrowed: Vec<BorrowedFd<'_>> = descriptors.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !borrowed.is_empty() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(&borrowed));
        assert!(pushed, "no request has more than {DESCRIPTORS_MAX} descriptors");
    }
    while !bytes.is_empty() {
        let sent = rustix::io::retry_on_intr(|| {
            sendmsg(&stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)
        });
        match sent {
            Err(rustix::io::Errno::PIPE | rustix::io::Errno::CONNRESET) => {
                return Err(TransportError::Closed);
            }
            other => bytes = &bytes[other.map_err(io::Error::from)?..],
        }
        control.clear();
    }
    Ok(())
}

/// Answer `message` with one number: a failed (1) or successful (0) acknowledgement, or a value.
///
/// # Errors
/// As [`write_all`].
pub(super) fn reply_u64(
    stream: impl AsFd,
    message: &Message,
    value: u64,
) -> Result<(), TransportError> {
    write_all(stream, &reply_to(message, &value.to_ne_bytes()), &[])
}

/// A reply to `message` with this body.
pub(super) fn reply_to(message: &Message, body: &[u8]) -> Vec<u8> {
    let len = u32::try_from(body.len()).expect("bodies have at most BODY_MAX bytes");
    let header = [message.code, Message::REPLY, len].map(u32::to_ne_bytes);
    [header.as_flattened(), body].concat()
}
