//! Standing still for another process to go on: a port's socket takes no connection, and its
//! session stops between two messages, until both go on here, or never do because this process
//! ends.
//!
//! Whoever asks gets what there is ([`SessionAtRest`]) and keeps the way to say that it goes on; to
//! drop that says so too.

#![forbid(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::closer::{Closer, Deferred};
use super::record::Record;

/// A session that stands still between two messages.
#[derive(Debug)]
pub struct SessionAtRest {
    /// The connection.
    pub stream: OwnedFd,
    /// What was said on it.
    pub record: Record,
}

/// A session that began with another process.
#[derive(Debug)]
pub struct InheritedSession {
    /// The connection.
    pub stream: UnixStream,
    /// What was said on it.
    pub record: Record,
}

/// What a session that began with another process starts from.
#[derive(Debug)]
pub(super) struct Inheritance {
    /// What was said to the other.
    pub record: Record,
    /// Who is to know that it was followed.
    pub followed: Sender<()>,
    /// When the other's sender is gone, the connection is ours to read from.
    pub ours: Receiver<()>,
}

/// An eventfd that somebody polls.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    pub fn ring(&self) {
        // Fails only when the counter is full, and then the other side has its signal.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Wait until it rings, at most until `deadline`; false if it does not.
    pub fn rings_by(&self, deadline: Instant) -> bool {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).expect("a deadline is at most seconds away");
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Err(rustix::io::Errno::INTR) => {}
                outcome => return outcome.is_ok_and(|ready| ready > 0),
            }
        }
    }

    /// Have it silent again.
    pub fn hush(&self) {
        // Fails only if it is silent.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Asks a session to stand still.
#[derive(Debug)]
struct Pause {
    record: Sender<io::Result<Record>>,
    go_on: Receiver<()>,
}

/// The way to a session that runs on another thread.
#[derive(Debug)]
pub(super) struct Pauser {
    bell: Arc<Bell>,
    pauses: Sender<Pause>,
}

impl Pauser {
    /// Have the session stand still before the deadline, or not at all: what was said in it, and
    /// what has it go on when dropped.
    pub fn pause(&self, until: Instant) -> Option<(Record, Sender<()>)> {
        let (record, recorded) = bounded(1);
        let (goes_on, go_on) = bounded(0);
        self.pauses.send(Pause { record, go_on }).ok()?;
        self.bell.ring();
        match recorded.recv_deadline(until) {
            Ok(Ok(record)) => Some((record, goes_on)),
            // Busy, at its end, or without a descriptor left.
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

/// A front-end's connection, as a session gets it.
#[derive(Debug)]
pub struct Connection {
    stream: Arc<Deferred<UnixStream>>,
    closer: Arc<Closer>,
    bell: Arc<Bell>,
    pauses: Receiver<Pause>,
    inherited: Option<Inheritance>,
}

impl Connection {
    pub(super) fn new(
        stream: Arc<Deferred<UnixStream>>,
        closer: Arc<Closer>,
        inherited: Option<Inheritance>,
    ) -> io::Result<(Self, Pauser)> {
        let bell = Arc::new(Bell::new()?);
        let (asks, pauses) = unbounded();
        let pauser = Pauser { bell: Arc::clone(&bell), pauses: asks };
        Ok((Self { stream, closer, bell, pauses, inherited }, pauser))
    }

    /// The connection itself, for whoever may have to end it.
    #[must_use]
    pub fn stream(&self) -> Arc<Deferred<UnixStream>> {
        Arc::clone(&self.stream)
    }

    /// Closes what comes with messages and is not kept.
    pub(super) fn closer(&self) -> &Arc<Closer> {
        &self.closer
    }

    pub(super) fn take_inherited(&mut self) -> Option<Inheritance> {
        self.inherited.take()
    }

    /// Readable when there is a [`pause`](Self::pause) to make.
    pub(super) fn asked_to_pause(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Give the record to whoever asked, and stand still until they have us go on.
    pub(super) fn pause(&self, record: impl Fn() -> io::Result<Record>) {
        self.bell.hush();
        while let Ok(pause) = self.pauses.try_recv() {
            // Somebody who waits no more, or got no record, goes on without us.
            if pause.record.send(record()).is_ok() {
                let _ = pause.go_on.recv();
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
