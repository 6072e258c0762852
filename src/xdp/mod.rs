//! AF_XDP: everything shared with the kernel on behalf of an uplink.
//!
//! From the bottom up: [`Umem`] is the frame memory and [`Frame`] the move-only token for one
//! frame in it; [`ring`] has the four rings between us and the kernel; a [`Socket`] is one NIC
//! queue with its four rings; [`Redirect`] is our XDP program on the NIC, which decides what
//! comes to us; [`MulticastTap`] brings the copies of broadcast and multicast; [`Uplink::open`]
//! puts them together and says which mode it got and why.
//!
//! xsk-rs creates the UMEM and the sockets and owns their lifetimes. The rings are mapped a
//! second time from the sockets' descriptors, since its queues cost one C call per descriptor.

mod interface;
mod multicast;
mod program;
pub mod ring;
mod socket;
mod umem;
mod uplink;

pub use interface::{Interface, InterfaceError};
pub use multicast::{MulticastTap, TapError};
pub use program::{AttachMode, ProgramError, QueueUse, Redirect};
pub use socket::{Socket, SocketError, SocketMode, SocketParts};
pub use umem::{FRAGMENTS_MAX, FRAME_BYTES, FRAME_PACKET_MAX, Frame, Received, Umem};
pub use uplink::{ModeWish, Uplink, UplinkError};
