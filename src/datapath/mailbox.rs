//! Commands from the control plane to a worker: applied between two bursts, acknowledged.

use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use crate::metrics::{PortCounter, Published};
use crate::virtqueue::{EventFd, EventKind, Fault, Ring};

use super::{Forwarding, Inbox, PortId};

/// The worker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker has ended")]
pub struct WorkerGone;

/// What a worker reports of one of its rings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RingReport {
    /// Ring number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// The fault that broke it.
    pub broken: Option<Fault>,
}

/// A change to a worker. Each is acknowledged by its `done`, after which it is true.
#[derive(Debug)]
pub enum Command {
    /// Use this table from now on.
    SetForwarding {
        /// The table.
        table: Arc<Forwarding>,
        /// Acknowledged.
        done: Sender<()>,
    },
    /// Be ready for rings of this port; answers where its counters are published.
    AddPort {
        /// The port.
        port: PortId,
        /// Its name, for the log.
        name: Arc<str>,
        /// Acknowledged.
        done: Sender<Arc<Published<PortCounter>>>,
    },
    /// Forget the port and its rings.
    RemovePort {
        /// The port.
        port: PortId,
        /// Acknowledged.
        done: Sender<()>,
    },
    /// Serve this ring.
    Give {
        /// The port.
        port: PortId,
        /// Ring number.
        index: u16,
        /// The ring.
        ring: Box<Ring>,
        /// Acknowledged.
        done: Sender<()>,
    },
    /// Serve this ring no more; answers the ring, published and untouched from then on.
    Take {
        /// The port.
        port: PortId,
        /// Ring number.
        index: u16,
        /// Acknowledged, with the ring if there is one.
        done: Sender<Option<Box<Ring>>>,
    },
    /// Use another event descriptor for a ring from now on.
    Exchange {
        /// The ring: its port and its number.
        ring: (PortId, u16),
        /// Which one.
        kind: EventKind,
        /// The new one.
        event: Option<EventFd>,
        /// Acknowledged.
        done: Sender<()>,
    },
    /// Report the port's rings, and publish all counters.
    Inspect {
        /// The port.
        port: PortId,
        /// The report.
        done: Sender<Vec<RingReport>>,
    },
    /// End after this turn.
    Stop,
}

/// The control plane's handle on a worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    commands: Sender<Command>,
    inbox: Arc<Inbox>,
}

impl WorkerHandle {
    /// The handle, and the worker's end of the mailbox.
    #[must_use]
    pub fn new(inbox: Arc<Inbox>) -> (Self, Receiver<Command>) {
        let (commands, mailbox) = unbounded();
        (Self { commands, inbox }, mailbox)
    }

    /// The worker's inbox, to hand packets over.
    #[must_use]
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Use this table from now on.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn set_forwarding(&self, table: Arc<Forwarding>) -> Result<(), WorkerGone> {
        self.call(|done| Command::SetForwarding { table, done })
    }

    /// Be ready for rings of this port.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn add_port(
        &self,
        port: PortId,
        name: Arc<str>,
    ) -> Result<Arc<Published<PortCounter>>, WorkerGone> {
        self.call(|done| Command::AddPort { port, name, done })
    }

    /// Forget the port and its rings.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn remove_port(&self, port: PortId) -> Result<(), WorkerGone> {
        self.call(|done| Command::RemovePort { port, done })
    }

    /// Serve this ring.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give(&self, port: PortId, index: u16, ring: Ring) -> Result<(), WorkerGone> {
        self.call(|done| Command::Give { port, index, ring: Box::new(ring), done })
    }

    /// Serve this ring no more.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn take(&self, port: PortId, index: u16) -> Result<Option<Ring>, WorkerGone> {
        let ring = self.call(|done| Command::Take { port, index, done })?;
        Ok(ring.map(|ring| *ring))
    }

    /// Use another event descriptor for a ring from now on.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn exchange(
        &self,
        ring: (PortId, u16),
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), WorkerGone> {
        self.call(|done| Command::Exchange { ring, kind, event, done })
    }

    /// Report the port's rings.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn inspect(&self, port: PortId) -> Result<Vec<RingReport>, WorkerGone> {
        self.call(|done| Command::Inspect { port, done })
    }

    /// End. Rings still there are dropped.
    pub fn stop(&self) {
        // A worker that has ended already is what was asked for.
        let _ = self.commands.send(Command::Stop);
        self.inbox.wake();
    }

    fn call<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, WorkerGone> {
        let (done, answer) = bounded(1);
        self.commands.send(command(done)).map_err(|_| WorkerGone)?;
        self.inbox.wake();
        answer.recv().map_err(|_| WorkerGone)
    }
}
