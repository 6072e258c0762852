//! DATAPATH: where packets move. One [`Worker`] is one pinned thread that owns its rings and
//! AF_XDP sockets outright; nothing mutable is shared with it but counters and mailboxes.
//!
//! A packet from a guest: `from_guest` takes it from its ring, checks its header, looks its
//! destination up in [`Forwarding`], and copies it once: into a frame of the uplink's socket, or
//! into another guest's buffers (`deliver`). A packet to a guest: `from_uplink` takes it from a
//! socket, looks the port up, and `deliver` copies it once into receive buffers. What a receiver
//! does not do itself (checksums, segmentation), `complete` does in software. A ring that belongs
//! to another worker gets its packet through that worker's [`Inbox`].
//!
//! All changes (`Command`) reach a worker through its mailbox, are applied between two bursts, and
//! are acknowledged. The import arrows: virtqueue, xdp, guest_memory, packet, device, metrics;
//! never vhost_user.

#![forbid(unsafe_code)]

mod complete;
mod deliver;
mod flood;
mod flows;
mod forwarding;
mod frame;
mod from_guest;
mod from_uplink;
mod handover;
mod idle;
mod mailbox;
mod ports;
mod rotation;
mod shares;
mod signals;
mod sockets;
mod survey;
mod watchdog;
mod worker;

pub use flood::Flood;
pub use flows::FlowTable;
pub use forwarding::{Attachment, Forwarding, ForwardingBuilder, Route};
pub use handover::{Handover, Inbox, PACKET_BYTES_MAX, Packet, PacketPool, Target};
pub use mailbox::{
    Acknowledgement, Command, RingAtRest, RingReport, SocketDescriptor, WorkerAtRest, WorkerGone,
    WorkerHandle,
};
pub use sockets::SocketReport;
pub use survey::{PortSight, RingSight, Sources};
pub use watchdog::{Watchdog, Watched};
pub use worker::{Setup, Turns, Worker};

use crate::packet::tag_bytes;

/// Most packets taken from one ring or socket before the next one has its turn.
pub const BURST: u16 = 64;

/// Bytes of an Ethernet header, and of the two VLAN tags a frame may have beyond its MTU.
pub const ETHERNET_BYTES: u32 = 14;
/// Two 802.1Q tags (QinQ).
pub const VLAN_BYTES: u32 = 8;

/// The longest frame of an interface with this MTU, in bytes, without the frame check sequence. It
/// has two tags: [`is_within`] is the whole rule.
#[must_use]
pub const fn frame_max(mtu: u32) -> u32 {
    mtu + ETHERNET_BYTES + VLAN_BYTES
}

/// Whether a frame of `len` bytes is one of an interface with this [`frame_max`]: it has at most
/// its MTU behind the Ethernet header and the VLAN tags that it really has, up to two (virtio 1.2,
/// 5.1.4.1). `start` is the frame or its first bytes; a tag that is not in them does not count.
#[inline]
fn is_within(frame_max: u32, len: u32, start: &[u8]) -> bool {
    let untagged = frame_max.saturating_sub(VLAN_BYTES);
    len <= untagged || len - untagged <= tag_bytes(start)
}

/// A port's number on this host, its place in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// An uplink's number on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UplinkId(pub u16);

/// A worker's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u16);

impl PortId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl UplinkId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

impl WorkerId {
    /// As an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// The receive ring of a queue pair (virtio 1.2, 5.1.2: receiveqN is queue 2(N-1)).
#[must_use]
pub const fn to_guest_ring(pair: u16) -> u16 {
    2 * pair
}

/// The queue pair of a ring.
#[must_use]
pub const fn pair_of(ring: u16) -> u16 {
    ring / 2
}

/// Whether packets of a ring come from the guest (transmitqN is queue 2(N-1)+1).
#[must_use]
pub const fn is_from_guest(ring: u16) -> bool {
    ring % 2 == 1
}
