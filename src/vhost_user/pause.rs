//! Pausing a session, so that another process can take its connection over.
//!
//! A session pauses between two messages. The caller gets its record ([`PausedSession`]) and a
//! sender. The session resumes when that sender is dropped; if this process ends it never does.

#![forbid(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use super::deferred_close::{DeferredClose, DescriptorCloser};
use super::session_record::SessionRecord;
use super::wake_event::WakeEvent;

/// A session that is paused between two messages.
#[derive(Debug)]
pub struct PausedSession {
    /// The connection.
    pub stream: OwnedFd,
    /// The messages of the session so far.
    pub record: SessionRecord,
}

/// A session that began with another process.
#[derive(Debug)]
pub struct ContinuedSession {
    /// The connection.
    pub stream: UnixStream,
    /// The messages of the session so far.
    pub record: SessionRecord,
}

/// The state from which a session continues that began with another process.
#[derive(Debug)]
pub(super) struct Continuation {
    /// The messages that were sent to the other process.
    pub record: SessionRecord,
    /// Is sent to when the record was replayed.
    pub followed: Sender<()>,
    /// When the other's sender is dropped, the connection is ours to read from.
    pub ours: Receiver<()>,
}

/// Asks a session to pause.
#[derive(Debug)]
struct Pause {
    record: Sender<io::Result<SessionRecord>>,
    resume: Receiver<()>,
}

/// The way to a session that runs on another thread.
#[derive(Debug)]
pub(super) struct PauseHandle {
    wake: Arc<WakeEvent>,
    pauses: Sender<Pause>,
}

impl PauseHandle {
    /// Have the session pause before the deadline, or not at all. Returns its record, and the
    /// sender that has it resume when dropped.
    pub fn pause(&self, until: Instant) -> Option<(SessionRecord, Sender<()>)> {
        let (record, recorded) = bounded(1);
        let (resumes, resume) = bounded(0);
        self.pauses.send(Pause { record, resume }).ok()?;
        self.wake.signal();
        match recorded.recv_deadline(until) {
            Ok(Ok(record)) => Some((record, resumes)),
            // Busy, at its end, or without a descriptor left.
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

/// A front-end's connection, as a session gets it.
#[derive(Debug)]
pub struct Connection {
    stream: Arc<DeferredClose<UnixStream>>,
    closer: Arc<DescriptorCloser>,
    wake: Arc<WakeEvent>,
    pauses: Receiver<Pause>,
    continued: Option<Continuation>,
}

impl Connection {
    pub(super) fn new(
        stream: Arc<DeferredClose<UnixStream>>,
        closer: Arc<DescriptorCloser>,
        continued: Option<Continuation>,
    ) -> io::Result<(Self, PauseHandle)> {
        let wake = Arc::new(WakeEvent::new()?);
        let (asks, pauses) = unbounded();
        let pause_handle = PauseHandle { wake: Arc::clone(&wake), pauses: asks };
        Ok((Self { stream, closer, wake, pauses, continued }, pause_handle))
    }

    /// The connection itself, for a caller that may have to end it.
    #[must_use]
    pub fn stream(&self) -> Arc<DeferredClose<UnixStream>> {
        Arc::clone(&self.stream)
    }

    /// Closes what comes with messages and is not kept.
    pub(super) fn closer(&self) -> &Arc<DescriptorCloser> {
        &self.closer
    }

    pub(super) fn take_continuation(&mut self) -> Option<Continuation> {
        self.continued.take()
    }

    /// Readable when there is a [`pause`](Self::pause) to make.
    pub(super) fn asked_to_pause(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Give the record to the caller that asked, and wait until it has us resume.
    pub(super) fn pause(&self, record: impl Fn() -> io::Result<SessionRecord>) {
        self.wake.clear();
        while let Ok(pause) = self.pauses.try_recv() {
            // A caller that has stopped waiting, or gets no record, must not hold the session up.
            if pause.record.send(record()).is_ok() {
                let _ = pause.resume.recv();
            }
        }
    }
}

impl Deref for Connection {
    type Target = UnixStream;

    fn deref(&self) -> &UnixStream {
        &self.stream
    }
}
