//! PACKET: frames as bytes: their headers, flows and checksums, and one large frame as many small
//! ones, both ways.
//!
//! A guest leaves work to its device (virtio 1.2, 5.1.6.2), which a NIC would do. If the NIC
//! cannot, or if two guests have none between them, it is done here. All of it is pure: no I/O, no
//! allocation, and no trust in any byte. All functions read a frame that was copied once out of a
//! guest's memory.
//!
//! Its files, each above those that it imports: `offload` (work left to do on a frame), `headers`
//! (their places), `checksum`, `flow`, then `segment` (one frame as many) and `coalesce` (many as
//! one).
//!
//! Deliberately missing are tunnels, IPv6 jumbograms, and SCTP's checksum, which is no ones'
//! complement sum.

#![forbid(unsafe_code)]

pub mod checksum;
mod coalesce;
mod flow;
mod headers;
mod offload;
mod segment;

pub use coalesce::{Piece, Pushed, TOKENS_MAX, TcpSegment, Train};
pub use flow::{FLOW_BYTES_MAX, flow_hash};
pub use headers::{Headers, Network, Transport, tag_bytes};
pub use offload::{FRAME_MAX, HEADERS_MAX, Offload, PartialChecksum, SegmentKind, Segmentation};
pub use segment::{SEGMENTS_MAX, Wanted, WantedKind, segment};
