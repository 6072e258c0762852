//! AF_XDP: everything shared with the kernel on behalf of an uplink.
//!
//! From the bottom up: [`Umem`] is the frame memory and [`Frame`] the move-only token for one
//! frame in it; [`xsk_ring`] has the four rings between us and the kernel; a [`Socket`] is one NIC
//! queue with its four rings; [`Redirect`] is our XDP program on the NIC, which decides what
//! comes to us; [`MulticastTap`] brings the copies of broadcast and multicast; [`HostDevice`] joins
//! the host itself to its VMs; [`Uplink::open`] puts them together and says which mode it got and
//! why; [`Links`] tells what becomes of the NIC. [`NicFacts`] is what can be known of one before
//! that.
//!
//! `xsk_calls` has the system calls. The frame memory is a file in memory, and a socket a descriptor,
//! so that both can be given to another process, rings and all. [`BusyPoll`] has the workers' calls
//! drive the NIC; [`Handed`] is what a privileged launcher does in our place.

mod busy_poll;
mod host_device;
mod launcher;
mod link_watch;
mod multicast;
mod napi;
mod netdev;
pub mod nic;
mod program;
mod umem;
mod uplink;
mod uplink_interface;
mod usable;
mod xdp_socket;
mod xsk_calls;
pub mod xsk_ring;

pub use busy_poll::{BusyPoll, BusyPollError, Deferred, recover as recover_interrupts};
pub use host_device::{HostDevice, HostDeviceError};
pub use launcher::{Handed, MapError};
pub use link_watch::{Link, LinkNews, Links};
pub use multicast::{MulticastTap, TapError};
pub use napi::{Deferral, Napi, instances as napi_instances};
pub use nic::NicFacts;
pub use program::{AttachMode, ProgramError, QueueUse, Redirect, Verdicts};
pub use umem::{FRAGMENTS_MAX, FRAME_BYTES, FRAME_PACKET_MAX, Frame, Received, Umem};
pub use uplink::{InheritedUplink, ModeWish, Uplink, UplinkError};
pub use uplink_interface::{Interface, InterfaceError};
pub use usable::{Unusable, check_program, check_sockets};
pub use xdp_socket::{
    FRAMES_PER_SOCKET, FrameCensus, KernelStatistics, RING_ENTRIES, Socket, SocketAtRest,
    SocketError, SocketMode, SocketParts, SocketProgress, packet_max,
};
