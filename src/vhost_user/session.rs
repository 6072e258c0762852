//! The loop of one connection: read a message, look it up, check it, have it done, answer.
//!
//! The loop runs on a thread of its own. It blocks on the stream, and on a worker that must give a
//! ring back before the answer. It owns the connection's [`Device`]; when the loop ends, for
//! whatever reason, the device takes all rings back.

#![forbid(unsafe_code)]

use std::error::Error;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};
use vhost::vhost_user::message::{
    FrontendReq, VhostTransferStateDirection, VhostTransferStatePhase, VhostUserTransferDeviceState,
};

use crate::profile::Profile;
use crate::report::chain;

use super::deferred_close::DescriptorCloser;
use super::device::Device;
use super::device_state::{DeviceState, DeviceStateError};
use super::handler::Answer;
use super::outage::RingsChange;
use super::pause::{Connection, Continuation};
use super::port_backend::PortBackend;
use super::refusal::Refusal;
use super::session_record::SessionRecord;
use super::state_transfer::Transfer;
use super::transport::{
    Message, TransportError, check_unclosed, read_message, reply_to, reply_u64, write_all,
};

/// Lines per session that are logged of refusals, of states, and of starts and stops: a front-end
/// must not fill the disk.
const LOGGED_MAX: u32 = 32;

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The front-end closed the connection, or we shut it down.
    #[error("the connection was closed")]
    Disconnected,
    /// The front-end sends something other than vhost-user, or the socket failed.
    #[error("the stream cannot be followed any further")]
    Protocol(#[source] TransportError),
    /// A refused request whose answer has no room for a refusal.
    #[error("{request} has no failed answer")]
    Unanswerable {
        /// Its name.
        request: String,
        /// Why it was refused.
        #[source]
        source: Refusal,
    },
    /// A valid request that the daemon cannot do any more.
    #[error("{request} cannot be done")]
    Failed {
        /// Its name.
        request: String,
        /// Why.
        #[source]
        source: Refusal,
    },
    /// A request recorded by another process cannot be done here.
    #[error("the session cannot be gone on with: {request}")]
    Inherited {
        /// The request's name.
        request: String,
        /// Why.
        #[source]
        source: Refusal,
    },
}

impl From<TransportError> for SessionEnd {
    fn from(error: TransportError) -> Self {
        match error {
            TransportError::Closed => Self::Disconnected,
            error => Self::Protocol(error),
        }
    }
}

/// Serve the front-end behind `stream` as port `name`. Blocks until the front-end disconnects or
/// breaks the protocol, or shutdown(2) is called on a clone of `stream`. On return, no worker has a
/// ring of the port, no guest memory is mapped, and an empty binding is recorded.
pub fn serve(
    stream: &UnixStream,
    profile: Arc<Profile>,
    backend: Arc<dyn PortBackend>,
    name: &str,
) -> SessionEnd {
    Session::new(stream, None, profile, backend, name).run()
}

/// Like [`serve`], for a connection of a [`PortSocket`](super::PortSocket). The session may have
/// begun with another process and may continue with another.
pub fn serve_connection(
    connection: &mut Connection,
    profile: Arc<Profile>,
    backend: Arc<dyn PortBackend>,
    name: &str,
) -> SessionEnd {
    let continued = connection.take_continuation();
    let stream: &UnixStream = connection;
    let mut session = Session::new(stream, Some(connection), profile, backend, name);
    if let Some(Continuation { record, followed, ours }) = continued {
        if let Err(end) = session.follow(record) {
            // Its rings are given back before the other process is told. The connection is the
            // other's until it is ours to close.
            drop(session);
            drop(followed);
            let _ = ours.recv();
            return end;
        }
        // The receiver is gone only if the process ends.
        let _ = followed.send(());
        let _ = ours.recv();
    }
    session.run()
}

struct Session<'s> {
    stream: &'s UnixStream,
    /// The connection that may ask the session to pause, if it has one.
    connection: Option<&'s Connection>,
    /// Closes what the front-end sent and nobody keeps.
    closer: Arc<DescriptorCloser>,
    device: Device,
    /// A state of the device, out or in.
    transfer: Transfer,
    port: &'s str,
    /// Requests refused so far.
    refused: u32,
    /// States given and taken so far.
    states: u32,
    /// Starts and stops so far.
    changes: u32,
}

impl<'s> Session<'s> {
    fn new(
        stream: &'s UnixStream,
        connection: Option<&'s Connection>,
        profile: Arc<Profile>,
        backend: Arc<dyn PortBackend>,
        port: &'s str,
    ) -> Self {
        let device = Device::new(profile, backend);
        let closer =
            connection.map_or_else(|| DescriptorCloser::new(port), |of| Arc::clone(of.closer()));
        let transfer = Transfer::Idle;
        let (refused, states, changes) = (0, 0, 0);
        Self { stream, connection, closer, device, transfer, port, refused, states, changes }
    }

    fn run(&mut self) -> SessionEnd {
        loop {
            if let Err(end) = self.serve_message() {
                return end;
            }
        }
    }

    /// Do all requests that were sent to another process; nobody waits for the answers. The guest
    /// runs and keeps its memory: the memory policy applies only to sessions that begin here.
    fn follow(&mut self, record: SessionRecord) -> Result<(), SessionEnd> {
        self.device.room.keep();
        let limit = std::mem::replace(&mut self.device.memory_max, u64::MAX);
        self.device.known_bases = record.named;
        for said in record.messages {
            let mut message = said.into_message(&self.closer);
            let followed = self.answer(&mut message);
            followed.map_err(|source| SessionEnd::Inherited { request: message.name(), source })?;
        }
        self.device.known_bases = Vec::new();
        self.device.memory_max = limit.max(self.device.memory.bytes());
        if self.device.room.kept() {
            tracing::warn!(
                port = self.port,
                "the guest's memory is a file that isonic would refuse a new session, since each \
                 access could wait for its file system; it is kept until the front-end \
                 disconnects. Share other memory then, or set memory_files = \"any\""
            );
        }
        if self.device.memory_max > limit {
            tracing::warn!(
                port = self.port,
                bytes = self.device.memory_max,
                limit,
                "the guest has more memory than memory_max_gib allows; it is kept until the \
                 front-end disconnects"
            );
        }
        self.device.set_last_run(record.ran);
        Ok(())
    }

    /// One message, from reading it to its answer.
    fn serve_message(&mut self) -> Result<(), SessionEnd> {
        self.await_message()?;
        let mut message = read_message(self.stream, &self.closer)?;
        let answer = self.timed(&mut message);
        // The descriptors are closed before the answer, so that the front-end finds none of them
        // with us. A close that may block is already with the closer.
        message.descriptors.clear();
        check_unclosed(&self.closer)?;
        // An acknowledgement is due if the request's own features say so after it was done:
        // SET_PROTOCOL_FEATURES itself may ask for one.
        let acknowledge = message.needs_reply() && self.device.acknowledges();
        match answer {
            Ok(Answer::Reply(reply)) => write_all(self.stream, &reply, &[])?,
            Ok(Answer::Value(value)) => reply_u64(self.stream, &message, value)?,
            Ok(Answer::Done) if acknowledge => reply_u64(self.stream, &message, 0)?,
            Ok(Answer::Done) => {}
            Ok(Answer::Channel(end)) => {
                write_all(self.stream, &reply_to(&message, &0_u64.to_ne_bytes()), &[end])?;
            }
            Err(refusal) => {
                let number = self.refuse(&message, refusal)?;
                if let Some(number) = number.or(acknowledge.then_some(1)) {
                    reply_u64(self.stream, &message, number)?;
                }
            }
        }
        Ok(())
    }

    /// Wait for the next message. Meanwhile read a state that the front-end writes, which may be
    /// longer than the channel holds, and pause if asked to.
    fn await_message(&mut self) -> Result<(), SessionEnd> {
        loop {
            // poll(2) wants descriptors; where there is nothing to watch, watch the stream twice.
            let stream = self.stream.as_fd();
            let channel = self.transfer.incoming();
            let connection = self.connection.filter(|_| self.transfer.is_idle());
            let pausing = connection.map_or(stream, Connection::asked_to_pause);
            let mut fds = [stream, channel.unwrap_or(stream), pausing]
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(TransportError::Io(error.into()).into()),
            }
            let [message, state, pause] = fds.map(|fd| !fd.revents().is_empty());
            // The pause comes first: a message that has arrived is for the process that continues.
            if pause && let Some(connection) = connection {
                connection.pause(|| self.device.record());
                continue;
            }
            if message {
                return Ok(());
            }
            if state && let Err(error) = self.transfer.receive() {
                self.log("SET_DEVICE_STATE_FD", &error.into());
            }
        }
    }

    /// Do what `message` asks for, and note how long it took.
    fn timed(&mut self, message: &mut Message) -> Result<Answer, Refusal> {
        let (begun, before) = (Instant::now(), self.device.started());
        let answer = self.answer(message);
        if let Some(request) = message.request() {
            let change = self.device.note_time(request.code, before, begun.elapsed());
            self.log_change(change);
        }
        answer
    }

    /// Do what `message` asks for.
    fn answer(&mut self, message: &mut Message) -> Result<Answer, Refusal> {
        let request = message.request().ok_or(Refusal::Unknown)?;
        let transfers: fn(&mut Self, &Message) -> Result<Answer, Refusal> = match request.code {
            FrontendReq::SET_DEVICE_STATE_FD => Self::transfer_state,
            FrontendReq::CHECK_DEVICE_STATE => Self::check_state,
            _ => return self.device.answer(request, message),
        };
        message.check_shape(request)?;
        self.device.check(request, message)?;
        transfers(self, message)
    }

    /// SET_DEVICE_STATE_FD. The front-end's own descriptor is not used.
    fn transfer_state(&mut self, message: &Message) -> Result<Answer, Refusal> {
        self.device.check_suspended()?;
        let state = self.device.state();
        let VhostUserTransferDeviceState { direction, phase } = message.body();
        let refused = DeviceStateError::Transfer { direction, phase };
        if VhostTransferStatePhase::try_from(phase) != Ok(VhostTransferStatePhase::STOPPED) {
            return Err(refused.into());
        }
        let end = match VhostTransferStateDirection::try_from(direction) {
            Ok(VhostTransferStateDirection::SAVE) => self.transfer.save(&state.write())?,
            Ok(VhostTransferStateDirection::LOAD) => self.transfer.load()?,
            Err(_) => return Err(refused.into()),
        };
        Ok(Answer::Channel(end))
    }

    /// CHECK_DEVICE_STATE: whether a state was saved whole, or one was loaded and its VM has this
    /// port's interface.
    fn check_state(&mut self, _: &Message) -> Result<Answer, Refusal> {
        match self.transfer.finish()? {
            None => {
                let state = self.device.state();
                self.log_state("device state given", &state);
            }
            Some(bytes) => {
                let state = DeviceState::read(&bytes)?;
                state.check(&self.device.profile)?;
                self.log_state("device state taken: the same interface", &state);
            }
        }
        Ok(Answer::Value(0))
    }

    /// Log the refusal, and end the session if it cannot continue. Returns the answer, if the
    /// request has one of its own for a refusal.
    fn refuse(&mut self, message: &Message, refusal: Refusal) -> Result<Option<u64>, SessionEnd> {
        self.log(&message.name(), &refusal);
        if refusal.ends_session() {
            return Err(SessionEnd::Failed { request: message.name(), source: refusal });
        }
        let request = message.request();
        let number = request.and_then(|request| request.refusal);
        if number.is_none() && request.is_some_and(|request| request.payload_reply) {
            return Err(SessionEnd::Unanswerable { request: message.name(), source: refusal });
        }
        Ok(number)
    }

    fn log_state(&mut self, what: &str, state: &DeviceState) {
        self.states = self.states.saturating_add(1);
        if self.states <= LOGGED_MAX {
            tracing::info!(port = self.port, %state, "{what}");
        }
    }

    fn log_change(&mut self, change: Option<RingsChange>) {
        let Some(change) = change else { return };
        self.changes = self.changes.saturating_add(1);
        if self.changes > LOGGED_MAX {
            return;
        }
        let port = self.port;
        match change {
            RingsChange::Started(took) => {
                tracing::info!(port, us = took.as_micros(), "rings started")
            }
            RingsChange::Stopped(took) => {
                tracing::info!(port, us = took.as_micros(), "rings stopped")
            }
        }
    }

    fn log(&mut self, request: &str, refusal: &Refusal) {
        self.refused = self.refused.saturating_add(1);
        self.device.note_refusal(request, &chain(refusal));
        if self.refused <= LOGGED_MAX {
            let error: &(dyn Error + 'static) = refusal;
            tracing::warn!(port = self.port, request, error, "request refused");
        }
        if self.refused == LOGGED_MAX {
            tracing::warn!(port = self.port, "further refusals of this session are not logged");
        }
    }
}
