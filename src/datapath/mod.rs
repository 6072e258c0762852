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
mod decision;
mod deliver;
mod dispatch;
mod flood_budget;
mod flows;
mod forwarding;
mod frame;
mod from_guest;
mod from_inbox;
mod from_uplink;
mod handover;
mod idle;
mod ids;
mod limits;
mod mailbox;
mod outlet;
mod plane;
mod ports;
mod rotation;
mod shares;
mod signals;
mod sleep;
mod sockets;
mod survey;
mod turns;
mod watchdog;
mod worker;

pub use decision::Flood;
pub use flows::FlowTable;
pub use forwarding::{Attachment, Forwarding, ForwardingBuilder, Route};
pub use handover::{Handover, Inbox, PACKET_BYTES_MAX, Packet, PacketPool, Target};
pub use ids::{PortId, QueuePair, UplinkId, WorkerId, is_from_guest, pair_of, to_guest_ring};
pub use limits::{BURST, ETHERNET_BYTES, VLAN_BYTES, frame_max};
pub use mailbox::{
    Acknowledgement, Command, RingAtRest, SocketDescriptor, WorkerAtRest, WorkerGone, WorkerHandle,
};
pub use sockets::SocketReport;
pub use survey::{PortSight, RingReport, RingSight, Sources};
pub use turns::Turns;
pub use watchdog::{Watchdog, Watched};
pub use worker::{Setup, Worker};

#[cfg(test)]
mod tests;
