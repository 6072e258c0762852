//! The `vhost` crate's request handler, fed one checked message at a time.
//!
//! The crate reads from and answers to a socket pair of our own, whose other end is here. That
//! makes its rules ours to complete: a message it gets is there whole, so it never blocks and
//! never loses its place; and whether it answered before it reported an error, which its errors
//! do not tell, is seen from whether an answer came out.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::net::RecvFlags;
use vhost::vhost_user::BackendReqHandler;

use super::device::Device;
use super::message::{BODY_MAX, HEADER_LEN, Message};
use super::transport::{TransportError, write_all};

/// What the crate made of a message.
#[derive(Debug)]
pub(super) struct Outcome {
    /// Whether the request was done.
    pub result: Result<(), vhost::vhost_user::Error>,
    /// The answer to pass on; empty if there is none.
    pub reply: Vec<u8>,
}

/// See the module's header.
pub(super) struct Relay {
    near: UnixStream,
    handler: BackendReqHandler<Mutex<Device>>,
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("near", &self.near).finish_non_exhaustive()
    }
}

impl Relay {
    /// A relay that acts on `device`.
    ///
    /// # Errors
    /// No socket pair to be had.
    pub fn new(device: Arc<Mutex<Device>>) -> io::Result<Self> {
        let (near, far) = UnixStream::pair()?;
        Ok(Self { near, handler: BackendReqHandler::from_stream(far, device) })
    }

    /// Have the crate handle `message`, whose shape was checked against the table: the crate then
    /// reads all of it whatever it makes of it.
    ///
    /// # Errors
    /// [`TransportError`] of our own socket pair.
    pub fn pass(&mut self, message: &Message) -> Result<Outcome, TransportError> {
        let len = u32::try_from(message.body.len()).expect("bodies have at most BODY_MAX bytes");
        let mut bytes = Vec::with_capacity(HEADER_LEN + message.body.len());
        for field in [message.code, message.flags, len] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(&message.body);
        write_all(&self.near, &bytes, &message.descriptors)?;
        let result = self.handler.handle_request();
        Ok(Outcome { result, reply: self.reply()? })
    }

    /// What the crate answered.
    fn reply(&self) -> io::Result<Vec<u8>> {
        let mut reply = vec![0; HEADER_LEN + BODY_MAX];
        match rustix::net::recv(&self.near, &mut reply[..], RecvFlags::DONTWAIT) {
            Ok((_, len)) => reply.truncate(len),
            Err(rustix::io::Errno::AGAIN) => reply.clear(),
            Err(error) => return Err(error.into()),
        }
        Ok(reply)
    }
}
