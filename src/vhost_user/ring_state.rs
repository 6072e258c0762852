//! One ring: its settings so far, and whether it is with its worker.

#![forbid(unsafe_code)]

use vhost::vhost_user::message::FrontendReq;

use crate::guest_memory::GuestAddress;
use crate::virtqueue::{EventFd, QueueAddresses};

/// The state of SET_VRING_KICK.
#[derive(Debug, Default)]
pub(super) enum Kick {
    /// Not since the ring was last stopped.
    #[default]
    Unset,
    /// Without a descriptor: we poll.
    Polling,
    /// With one.
    Event(EventFd),
}

impl Kick {
    pub fn into_event(self) -> Option<EventFd> {
        match self {
            Self::Event(event) => Some(event),
            Self::Unset | Self::Polling => None,
        }
    }
}

impl From<Option<EventFd>> for Kick {
    fn from(event: Option<EventFd>) -> Self {
        event.map_or(Self::Polling, Self::Event)
    }
}

/// One ring: its settings, and whether it is with its worker. While it is, the worker has its
/// descriptors.
#[derive(Debug, Default)]
pub(super) struct RingState {
    pub size: Option<u16>,
    pub addresses: Option<QueueAddresses>,
    /// Where writes to the ring are logged, if they are.
    pub log: Option<GuestAddress>,
    /// The next entry to take, in force when the ring starts; of a packed ring, both positions as
    /// in "Vring state description".
    pub base: u32,
    /// The base that the front-end named or was told last. The ring's position may differ: the ring
    /// was stranded, or another process had it before.
    pub named: u32,
    pub kick: Kick,
    pub call: Option<EventFd>,
    pub err: Option<EventFd>,
    pub enabled: bool,
    pub started: bool,
    /// The settings that were refused since they were last made. While there is one the ring does
    /// not start, since its front-end may believe that it is in force.
    pub refused: Vec<FrontendReq>,
}

/// The ring's number, as workers count.
pub(super) fn number(index: usize) -> u16 {
    u16::try_from(index).expect("rings are numbered by a u8 on the wire")
}
