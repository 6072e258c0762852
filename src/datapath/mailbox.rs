//! Commands from the control plane to a worker: applied between two bursts, acknowledged.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};

use crate::guest_memory::GuestMemory;
use crate::metrics::{PortCounter, Published, SocketCounter};
use crate::virtqueue::{EventFd, EventKind, Queue, QueueSetup, Ring};
use crate::xdp::{PausedSocket, Socket, Umem};

use super::forwarding::Forwarding;
use super::handover::Inbox;
use super::ids::{PortId, RingId, UplinkId};
use super::sockets::SocketReport;
use super::survey::{PortSight, RingReport};

/// The worker has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker has ended")]
pub struct WorkerGone;

/// A descriptor of a socket, with its uplink and its queue.
pub type SocketDescriptor = (UplinkId, u32, OwnedFd);

/// A ring of a paused worker: the state that its session does not have.
#[derive(Debug)]
pub struct PausedRing {
    /// The port.
    pub port: PortId,
    /// Ring number.
    pub index: u16,
    /// The next entry to take, as in SET_VRING_BASE.
    pub position: u32,
    /// It is broken: to be started by its front-end only.
    pub broken: bool,
    /// The driver's signal.
    pub kick: Option<OwnedFd>,
    /// The signal to the driver.
    pub call: Option<OwnedFd>,
    /// The signal that it is broken.
    pub err: Option<OwnedFd>,
}

/// All state of a paused worker. Nothing of it changes any more, so another process may take it
/// over, if this worker never resumes.
#[derive(Debug)]
pub struct PausedWorker {
    /// The sockets.
    pub sockets: Vec<(UplinkId, PausedSocket)>,
    /// The rings, with descriptors of their events.
    pub rings: Vec<PausedRing>,
}

/// A change to a worker. Each is acknowledged by its `done`, after which it is true.
#[derive(Debug)]
pub enum WorkerCommand {
    /// Use this table from now on.
    SetForwarding {
        /// The table.
        table: Arc<Forwarding>,
        /// Acknowledged, with the table before: a worker frees none.
        done: Sender<Arc<Forwarding>>,
    },
    /// Be ready for rings of this port; returns where its counters are published.
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
        /// Acknowledged, with the rings: a worker closes and unmaps nothing.
        done: Sender<Vec<Box<Ring>>>,
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
    /// Stop serving this ring; returns it, published and untouched from then on.
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
        /// The ring.
        ring: RingId,
        /// Which one.
        kind: EventKind,
        /// The new one.
        event: Option<EventFd>,
        /// Acknowledged, with the old one: to close a descriptor with thousands of watchers takes
        /// long.
        done: Sender<Option<EventFd>>,
    },
    /// Use other memory for a ring. Returns the queue as it was, or None if there is no such ring
    /// or it cannot run there.
    Relocate {
        /// The ring.
        ring: RingId,
        /// All that is needed to run it, but for its position.
        setup: QueueSetup,
        /// The memory. The sender keeps it, and the old one: a worker unmaps nothing.
        memory: Arc<GuestMemory>,
        /// Acknowledged.
        done: Sender<Option<Queue>>,
    },
    /// Report the port's rings, and publish all counters.
    Inspect {
        /// The port.
        port: PortId,
        /// The report.
        done: Sender<Vec<RingReport>>,
    },
    /// Report all rings, each with its port, and publish all counters.
    InspectAll {
        /// The report.
        done: Sender<Vec<(PortId, RingReport)>>,
    },
    /// Look at these ports, and at the kick descriptors of those that are told with true.
    Survey {
        /// The ports; few, for nothing moves meanwhile.
        ports: Vec<(PortId, bool)>,
        /// The sight of each port.
        done: Sender<Vec<PortSight>>,
    },
    /// Stop serving the uplink's sockets. Returns them, untouched from then on, when no other
    /// worker has a frame of theirs. Packets that guests send there are dropped and counted until
    /// the next sockets are given.
    TakeSockets {
        /// The uplink.
        uplink: UplinkId,
        /// Acknowledged, with the sockets that this worker had.
        done: Sender<Vec<Socket>>,
    },
    /// Serve these sockets; returns where each is counted.
    GiveSockets {
        /// The uplink, of which this worker has no other socket on the same queue.
        uplink: UplinkId,
        /// The sockets.
        sockets: Vec<Socket>,
        /// Acknowledged.
        done: Sender<Vec<Arc<Published<SocketCounter>>>>,
    },
    /// Look for frames that other workers lend in this memory. To be changed while no worker has a
    /// socket of the uplink.
    SetMemory {
        /// The uplink.
        uplink: UplinkId,
        /// The memory; None while the uplink is gone.
        umem: Option<Arc<Umem>>,
        /// Acknowledged, with the old memory: a worker unmaps nothing.
        done: Sender<Option<Arc<Umem>>>,
    },
    /// Report the sockets' progress, after waking the kernel for frames that it still has to send.
    Examine {
        /// The report.
        done: Sender<Vec<SocketReport>>,
    },
    /// Give descriptors of the sockets, for another process to have.
    Sockets {
        /// By uplink and queue.
        done: Sender<io::Result<Vec<SocketDescriptor>>>,
    },
    /// Take nothing more from guests and sockets, and only accept handovers of other workers.
    /// Returns how many were ever accepted. All packets taken before are then delivered or handed
    /// over.
    Pause {
        /// Acknowledged.
        done: Sender<u64>,
    },
    /// While paused, when nothing is handed over any more: show everything to guests and kernel,
    /// and report all state.
    Report {
        /// The report.
        done: Sender<io::Result<PausedWorker>>,
    },
    /// While paused: set these sockets to the state in which another process paused them. Returns
    /// whether that is possible.
    Adopt {
        /// Those that another process had; not all need be this worker's.
        sockets: Arc<Vec<(UplinkId, PausedSocket)>>,
        /// Acknowledged.
        done: Sender<bool>,
    },
    /// Continue after a pause.
    Resume {
        /// Acknowledged.
        done: Sender<()>,
    },
    /// End after this turn.
    Stop,
}

/// The future answer to a command.
#[derive(Debug)]
#[must_use]
pub struct Acknowledgement<T>(Receiver<T>);

impl<T> Acknowledgement<T> {
    /// Wait for it.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn wait(self) -> Result<T, WorkerGone> {
        self.0.recv().map_err(|_| WorkerGone)
    }
}

/// The control plane's handle on a worker.
#[derive(Clone, Debug)]
pub struct WorkerHandle {
    commands: Sender<WorkerCommand>,
    inbox: Arc<Inbox>,
}

impl WorkerHandle {
    /// The handle, and the worker's end of the mailbox.
    #[must_use]
    pub fn new(inbox: Arc<Inbox>) -> (Self, Receiver<WorkerCommand>) {
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
        self.send_forwarding(table)?.wait().map(drop)
    }

    /// Use this table from now on, while other workers are told too.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn send_forwarding(
        &self,
        table: Arc<Forwarding>,
    ) -> Result<Acknowledgement<Arc<Forwarding>>, WorkerGone> {
        self.send(|done| WorkerCommand::SetForwarding { table, done })
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
        self.call(|done| WorkerCommand::AddPort { port, name, done })
    }

    /// Forget the port and its rings.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn remove_port(&self, port: PortId) -> Result<(), WorkerGone> {
        self.call(|done| WorkerCommand::RemovePort { port, done }).map(drop)
    }

    /// Serve this ring.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give(&self, port: PortId, index: u16, ring: Ring) -> Result<(), WorkerGone> {
        self.call(|done| WorkerCommand::Give { port, index, ring: Box::new(ring), done })
    }

    /// Serve this ring once the worker resumes. Nobody waits for it: a paused worker applies all
    /// commands in order before it resumes.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give_paused(&self, port: PortId, index: u16, ring: Ring) -> Result<(), WorkerGone> {
        self.send(|done| WorkerCommand::Give { port, index, ring: Box::new(ring), done }).map(drop)
    }

    /// Stop serving this ring.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn take(&self, port: PortId, index: u16) -> Result<Option<Ring>, WorkerGone> {
        let ring = self.call(|done| WorkerCommand::Take { port, index, done })?;
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
        self.call(|done| WorkerCommand::Exchange { ring: ring.into(), kind, event, done }).map(drop)
    }

    /// Use other memory for a ring; the queue as it was, or None if there is no such ring or
    /// it cannot run there.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn relocate(
        &self,
        ring: (PortId, u16),
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<Option<Queue>, WorkerGone> {
        let memory = Arc::clone(memory);
        self.call(|done| WorkerCommand::Relocate { ring: ring.into(), setup, memory, done })
    }

    /// Report the port's rings.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn inspect(&self, port: PortId) -> Result<Vec<RingReport>, WorkerGone> {
        self.call(|done| WorkerCommand::Inspect { port, done })
    }

    /// Report all rings, each with its port.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn inspect_all(&self) -> Result<Vec<(PortId, RingReport)>, WorkerGone> {
        self.call(|done| WorkerCommand::InspectAll { done })
    }

    /// Look at these ports, and at the kick descriptors of those that are told with true.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn survey(&self, ports: Vec<(PortId, bool)>) -> Result<Vec<PortSight>, WorkerGone> {
        self.call(|done| WorkerCommand::Survey { ports, done })
    }

    /// Stop serving the uplink's sockets, and return them.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn take_sockets(&self, uplink: UplinkId) -> Result<Vec<Socket>, WorkerGone> {
        self.call(|done| WorkerCommand::TakeSockets { uplink, done })
    }

    /// Serve these sockets of the uplink.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn give_sockets(
        &self,
        uplink: UplinkId,
        sockets: Vec<Socket>,
    ) -> Result<Vec<Arc<Published<SocketCounter>>>, WorkerGone> {
        self.call(|done| WorkerCommand::GiveSockets { uplink, sockets, done })
    }

    /// Look for lent frames of the uplink in this memory.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn set_memory(&self, uplink: UplinkId, umem: Option<Arc<Umem>>) -> Result<(), WorkerGone> {
        self.call(|done| WorkerCommand::SetMemory { uplink, umem, done }).map(drop)
    }

    /// Report how far the sockets are.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn examine(&self) -> Result<Vec<SocketReport>, WorkerGone> {
        self.call(|done| WorkerCommand::Examine { done })
    }

    /// Descriptors of its sockets, by uplink and queue.
    ///
    /// # Errors
    /// [`WorkerGone`]; inside, no descriptor left.
    pub fn sockets(&self) -> Result<io::Result<Vec<SocketDescriptor>>, WorkerGone> {
        self.call(|done| WorkerCommand::Sockets { done })
    }

    /// Take nothing more. The answer is how many handovers of other workers were ever accepted.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn pause(&self) -> Result<Acknowledgement<u64>, WorkerGone> {
        self.send(|done| WorkerCommand::Pause { done })
    }

    /// The state of a paused worker that gets no more handovers.
    ///
    /// # Errors
    /// [`WorkerGone`]; inside, no descriptor left.
    pub fn report(&self) -> Result<Acknowledgement<io::Result<PausedWorker>>, WorkerGone> {
        self.send(|done| WorkerCommand::Report { done })
    }

    /// Set those of these sockets that are its own to the state in which another process paused
    /// them; false if that is impossible.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn adopt(
        &self,
        sockets: &Arc<Vec<(UplinkId, PausedSocket)>>,
    ) -> Result<Acknowledgement<bool>, WorkerGone> {
        let sockets = Arc::clone(sockets);
        self.send(|done| WorkerCommand::Adopt { sockets, done })
    }

    /// Continue after a pause.
    ///
    /// # Errors
    /// [`WorkerGone`].
    pub fn resume(&self) -> Result<Acknowledgement<()>, WorkerGone> {
        self.send(|done| WorkerCommand::Resume { done })
    }

    /// End. Rings still there are dropped.
    pub fn stop(&self) {
        // A worker that has ended already has stopped as well.
        let _ = self.commands.send(WorkerCommand::Stop);
        self.inbox.wake();
    }

    fn call<T>(&self, command: impl FnOnce(Sender<T>) -> WorkerCommand) -> Result<T, WorkerGone> {
        self.send(command)?.wait()
    }

    /// Have a command applied while other workers apply theirs.
    fn send<T>(
        &self,
        command: impl FnOnce(Sender<T>) -> WorkerCommand,
    ) -> Result<Acknowledgement<T>, WorkerGone> {
        let (done, answer) = bounded(1);
        self.commands.send(command(done)).map_err(|_| WorkerGone)?;
        self.inbox.wake();
        Ok(Acknowledgement(answer))
    }
}
