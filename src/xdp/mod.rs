//! AF_XDP: everything shared with the kernel on behalf of an uplink.
//!
//! The floors, each file importing only from those above it:
//!
//! - `umem_frame`: the move-only token for one frame, and a frame's contents.
//! - `xsk_ring`: the four rings between us and the kernel; `xsk_calls`: AF_XDP's system calls.
//! - `umem`: the frame memory.
//! - `xdp_attachment`: how a NIC is attached; `census`: the counts of a socket.
//! - `program`: our XDP program on the NIC, which decides which frames come to us.
//! - `netdev`: a netlink family; `nic`: all facts about a NIC; `uplink_interface`: the facts needed
//!   to open it; `link_watch`: its changes while in use.
//! - `xdp_socket`: one queue of a NIC, with its four rings and its frames.
//! - `launcher`: a privileged launcher in our place; `usable`: whether the kernel lets us use
//!   AF_XDP.
//! - `open_sockets`: the sockets of all queues; `mode_fallback`: zero-copy, or the next best mode.
//! - `multicast`: the copies of broadcast and multicast; `host_device`: joins the host to its VMs.
//! - `napi`, `busy_poll`: the workers' calls drive the NIC.
//! - `uplink_error`: why a NIC cannot be an uplink; `uplink`: all of it put together.
//!
//! The frame memory is a file in memory, and a socket a descriptor, so that both can be given to
//! another process, rings and all.

mod busy_poll;
mod census;
mod host_device;
mod launcher;
mod link_watch;
mod mode_fallback;
mod multicast;
mod napi;
mod netdev;
pub mod nic;
mod open_sockets;
mod program;
mod umem;
mod umem_frame;
mod uplink;
mod uplink_error;
mod uplink_interface;
mod usable;
mod xdp_attachment;
mod xdp_socket;
mod xsk_calls;
pub mod xsk_ring;

pub use busy_poll::{BusyPoll, BusyPollError, DeferredInterrupts, recover as recover_interrupts};
pub use census::{FrameCensus, KernelStatistics, SocketProgress};
pub use host_device::{HostDevice, HostDeviceError};
pub use launcher::{Handed, SocketMapError};
pub use link_watch::{Link, LinkNews, Links};
pub use multicast::{MulticastTap, TapError};
pub use napi::{Deferral, Napi, instances as napi_instances};
pub use nic::{InterfaceError, NicFacts};
pub use open_sockets::SocketError;
pub use program::{ProgramError, QueueUse, Redirect, Verdicts};
pub use umem::Umem;
pub use umem_frame::{FRAGMENTS_MAX, FRAME_BYTES, FRAME_PACKET_MAX, Frame, Received};
pub use uplink::{InheritedUplink, Uplink};
pub use uplink_error::UplinkError;
pub use uplink_interface::Interface;
pub use usable::{Unusable, check_program, check_sockets};
pub use xdp_attachment::{AttachMode, BindMode, ModeWish, XdpAttachment, packet_max};
pub use xdp_socket::paused_socket::PausedSocket;
pub use xdp_socket::{FRAMES_PER_SOCKET, RING_ENTRIES, Socket};
pub use xsk_ring::SocketParts;
