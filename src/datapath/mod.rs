//! DATAPATH: where packets move. One [`Worker`] is one pinned thread that owns its rings and
//! AF_XDP sockets outright; nothing mutable is shared with it but counters and mailboxes.
//!
//! A packet from a guest: `from_guest` takes it from its ring, `outlet` checks its header, and
//! `decision` says where it goes. It is copied once: into a frame of the uplink's socket, or into
//! another guest's buffers.
//!
//! A packet to a guest: `from_uplink` takes it from a socket, `decision` names the port, and it is
//! copied once into receive buffers. For a receiver without checksums or segmentation, `complete`
//! makes them in software. A ring that belongs to another worker gets its packet through that
//! worker's [`Inbox`].
//!
//! All changes ([`WorkerCommand`]) reach a worker through its mailbox, are applied between two
//! bursts, and are acknowledged. The import arrows: virtqueue, xdp, guest_memory, packet, device,
//! metrics; never vhost_user.
//!
//! The floors; a file imports from its own floor's earlier files and from the floors above:
//!
//! | floor | file | what it has |
//! |---|---|---|
//! | numbers | `ids` | ports, uplinks, workers, rings, queue pairs |
//! | | `limits` | how much at a time, how long a frame may be |
//! | frames | `frame` | a frame, wherever its bytes are |
//! | | `complete` | checksums and segments, made in software |
//! | decision | `flows` | the queue pair that a flow was last sent on |
//! | | `forwarding` | the forwarding table |
//! | | `decision` | where a frame goes: `decide` and `choose` |
//! | places | `shares` | how frames and buffers are divided among ports |
//! | | `sockets` | the sockets of a worker, and a port's way out of one |
//! | | `handover` | the inboxes of workers, and the buffers that travel |
//! | | `deliver` | a frame into a receive ring |
//! | | `survey` | what a look at a port finds |
//! | | `guest_signals` | signals to guests, whose cost is their port's |
//! | | `flood_budget` | what one flooded frame may cost |
//! | | `worker_ports` | the ports and rings of a worker |
//! | | `rotation` | the order in which transmit rings are looked at |
//! | plane | `dispatch` | a decision carried out: here, or by another worker |
//! | | `plane` | all of that, as one worker has it |
//! | bursts | `outlet` | where a guest's burst goes |
//! | | `from_guest` | packets from transmit rings |
//! | | `from_uplink` | packets from sockets |
//! | | `from_inbox` | packets from other workers and from the control plane |
//! | worker | `idle`, `sleep` | when a worker sleeps, and what wakes it |
//! | | `mailbox` | commands, and the control plane's handle |
//! | | `turns` | a worker's progress, as published |
//! | | `worker` | the loop, and commands applied |
//! | | `watchdog` | frees a worker that a front-end has made to wait |

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
mod guest_signals;
mod handover;
mod idle;
mod ids;
mod limits;
mod mailbox;
mod outlet;
mod plane;
mod rotation;
mod shares;
mod sleep;
mod sockets;
mod survey;
mod turns;
mod watchdog;
mod worker;
mod worker_ports;

pub use decision::Flood;
pub use flows::FlowTable;
pub use forwarding::{Attachment, Forwarding, ForwardingBuilder, Route};
pub use handover::{Handover, Inbox, PACKET_BYTES_MAX, Packet, PacketPool, Target};
pub use ids::{
    PortId, QueuePair, RingId, UplinkId, WorkerId, is_from_guest, pair_of, to_guest_ring,
};
pub use limits::{BURST, ETHERNET_BYTES, VLAN_BYTES, frame_max};
pub use mailbox::{
    Acknowledgement, PausedRing, PausedWorker, SocketDescriptor, WorkerCommand, WorkerGone,
    WorkerHandle,
};
pub use sockets::SocketReport;
pub use survey::{PortSight, RingReport, RingSight, Sources};
pub use turns::Turns;
pub use watchdog::{Watchdog, Watched};
pub use worker::{Setup, Worker};
