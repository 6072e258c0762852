//! AF_XDP: everything shared with the kernel on behalf of an uplink.
//!
//! From the bottom up: [`Umem`] is the frame memory and [`Frame`] the move-only token for one
//! frame in it; [`ring`] has the four rings between us and the kernel; a [`Socket`] is one NIC
//! queue with its four rings; [`Redirect`] is our XDP program on the NIC, which decides what
//! comes to us; [`MulticastTap`] brings the copies of broadcast and multicast; [`HostDevice`] joins
//! the host itself to its VMs; [`Uplink::open`] puts them together and says which mode it got and
//! why; [`Links`] tells what becomes of the NIC. [`NicFacts`] is what can be known of one before
//! that.
//!
//! `raw` has the system calls. The frame memory is a file in memory, and a socket a descriptor,
//! so that both can be given to another process, rings and all. [`BusyPoll`] has the workers' calls
//! drive the NIC; [`Handed`] is what a privileged launcher does in our place.

mod busy_poll;
mod host;
mod interface;
mod launcher;
mod link;
mod multicast;
mod napi;
mod netdev;
pub mod nic;
mod program;
mod raw;
pub mod ring;
mod socket;
mod umem;
mod uplink;
mod usable;

pub use busy_poll::{BusyPoll, BusyPollError, Deferred, recover as recover_interrupts};
pub use host::{HostDevice, HostDeviceError};
pub use interface::{Interface, InterfaceError};
pub use launcher::{Handed, MapError};
pub use link::{Link, LinkNews, Links};
pub use multicast::{MulticastTap, TapError};
pub use napi::{Deferral, Napi, instances as napi_instances};
pub use nic::NicFacts;
pub use program::{AttachMode, ProgramError, QueueUse, Redirect, Verdicts};
pub use socket::{
    FRAMES_PER_SOCKET, FrameCensus, KernelStatistics, RING_ENTRIES, Socket, SocketAtRest,
    SocketError, SocketMode, SocketParts, SocketProgress, packet_max,
};
pub use umem::{FRAGMENTS_MAX, FRAME_BYTES, FRAME_PACKET_MAX, Frame, Received, Umem};
pub use uplink::{InheritedUplink, ModeWish, Uplink, UplinkError};
pub use usable::{Unusable, check_program, check_sockets};
