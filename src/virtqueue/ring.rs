//! A queue with its event descriptors, which a session hands to a worker and takes back.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use crate::device::net_header;
use crate::device::offloads::Offloads;
use crate::guest_memory::GuestMemory;

use super::fault::Fault;
use super::queue::Queue;
use super::setup::{ActivateError, QueueSetup};

/// Why a descriptor that came with a message cannot serve as an event.
#[derive(Debug, thiserror::Error)]
pub enum EventFdError {
    /// A pipe or socket could block the worker that writes it.
    #[error("the descriptor is {0}, not an eventfd")]
    NotAnEventFd(String),
    /// The kernel refused to examine it.
    #[error("cannot examine the event descriptor")]
    Io(#[from] io::Error),
}

/// An eventfd that the front-end shares with us, made non-blocking. A clone is the same descriptor,
/// closed with the last of them.
#[derive(Clone, Debug)]
pub struct EventFd(Arc<File>);

impl EventFd {
    /// Whether a descriptor is an event, whose close(2) never blocks. The check reads its name from
    /// the kernel, which involves no file system: fstat(2) of a foreign file could block for ever.
    /// No file can have this name, since names of files begin with a slash.
    ///
    /// # Errors
    /// [`EventFdError`].
    pub fn check(descriptor: impl AsFd) -> Result<(), EventFdError> {
        let number = descriptor.as_fd().as_raw_fd();
        let target = std::fs::read_link(format!("/proc/self/fd/{number}"))?;
        if target.as_os_str() == "anon_inode:[eventfd]" {
            return Ok(());
        }
        Err(EventFdError::NotAnEventFd(target.display().to_string()))
    }

    /// Take a descriptor that came with a message. One that is no event is closed here, which may
    /// block: a caller that must not wait calls [`check`](Self::check) first.
    ///
    /// # Errors
    /// [`EventFdError`].
    pub fn new(file: File) -> Result<Self, EventFdError> {
        Self::check(&file)?;
        let flags = rustix::fs::fcntl_getfl(&file).map_err(io::Error::from)?;
        rustix::fs::fcntl_setfl(&file, flags | rustix::fs::OFlags::NONBLOCK)
            .map_err(io::Error::from)?;
        Ok(Self(Arc::new(file)))
    }

    /// Another descriptor of this event, for another thread or process.
    ///
    /// # Errors
    /// No descriptor left.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.0.try_clone()?.into())
    }

    /// Signal the other side. A full counter is a signal that was not yet read. Any other failure
    /// harms only the front-end.
    ///
    /// # Errors
    /// [`Fault::CallBlocked`]: the front-end has made the descriptor block again, and we were
    /// interrupted while waiting. A write that does not block is never interrupted.
    #[inline]
    pub fn signal(&self) -> Result<(), Fault> {
        match rustix::io::write(&*self.0, &1u64.to_ne_bytes()) {
            Err(rustix::io::Errno::INTR) => Err(Fault::CallBlocked),
            _ => Ok(()),
        }
    }

    /// Signal the other side, which may have made the descriptor block: it is made non-blocking
    /// again first. A failure harms only the front-end.
    pub fn signal_apart(&self) {
        if let Ok(flags) = rustix::fs::fcntl_getfl(&*self.0) {
            let _ = rustix::fs::fcntl_setfl(&*self.0, flags | rustix::fs::OFlags::NONBLOCK);
        }
        let _ = self.signal();
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One of the event descriptors of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// SET_VRING_KICK: the driver's signal to us.
    Kick,
    /// SET_VRING_CALL: our signal to the driver.
    Call,
    /// SET_VRING_ERR: our signal that the ring is broken.
    Err,
}

/// The negotiated format of a ring's packets, decided when it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingKind {
    /// Bytes of the virtio-net header.
    pub header_len: usize,
    /// VIRTIO_NET_F_MRG_RXBUF: a packet to the guest may span several chains.
    pub mergeable: bool,
    /// The work on its packets that the guest may leave to us, or we to the guest.
    pub offloads: Offloads,
}

impl Default for RingKind {
    /// The kind of a modern driver without any offload.
    fn default() -> Self {
        Self { header_len: net_header::LEN, mergeable: false, offloads: Offloads::NONE }
    }
}

/// One virtqueue of a started session. It belongs to the session or to one worker, never both. A
/// worker exchanges only its memory and its descriptors in place. For any other change the session
/// takes it back, changes it, and hands it over again.
#[derive(Debug)]
pub struct Ring {
    /// The ring itself.
    pub queue: Queue,
    /// The driver's signal to us; None asks us to poll.
    pub kick: Option<EventFd>,
    /// Our signal to the driver; None asks us to send none.
    pub call: Option<EventFd>,
    /// Our signal that the ring is broken.
    pub err: Option<EventFd>,
    /// SET_VRING_ENABLE. A ring that is started but disabled gets no packets; its own packets are
    /// taken and discarded (vhost-user: "Ring states").
    pub enabled: bool,
    /// The negotiated format of its packets.
    pub kind: RingKind,
    /// Why the ring is no longer served.
    pub broken: Option<Fault>,
}

impl Ring {
    /// Stop serving the ring; the first fault counts. The first call returns the descriptor that
    /// tells the front-end.
    #[cold]
    pub fn break_with(&mut self, fault: Fault) -> Option<&EventFd> {
        let first = self.broken.is_none();
        self.broken.get_or_insert(fault);
        self.err.as_ref().filter(|_| first)
    }

    /// Continue in `memory`, by `setup` but at the ring's position; only between two bursts.
    /// Returns the former queue, which keeps its memory mapped until it is dropped.
    ///
    /// # Errors
    /// [`ActivateError`]; the ring is as it was then.
    pub fn relocate(
        &mut self,
        setup: QueueSetup,
        memory: &Arc<GuestMemory>,
    ) -> Result<Queue, ActivateError> {
        // A packed ring has two positions. Between two bursts no entry is taken and not yet used,
        // so the position of available entries is enough.
        let [low, high, ..] = self.queue.ring().position().to_le_bytes();
        let base = u16::from_le_bytes([low, high]);
        let queue = QueueSetup { base, ..setup }.activate(memory, self.queue.journal())?;
        Ok(std::mem::replace(&mut self.queue, queue))
    }

    /// Use another event descriptor from now on; returns the one before.
    #[allow(clippy::must_use_candidate, reason = "whoever does not want it closes it")]
    pub fn set_event(&mut self, kind: EventKind, event: Option<EventFd>) -> Option<EventFd> {
        let place = match kind {
            EventKind::Kick => &mut self.kick,
            EventKind::Call => &mut self.call,
            EventKind::Err => &mut self.err,
        };
        std::mem::replace(place, event)
    }

    /// The descriptor to signal the driver by, if it wants to know of the publications that were
    /// [settled](super::settle).
    #[inline]
    pub fn wants_signal(&mut self) -> Option<&EventFd> {
        // Asked even without a descriptor: the decision covers the publications until now.
        let wanted = self.queue.ring_mut().needs_notification();
        self.call.as_ref().filter(|_| wanted)
    }
}
