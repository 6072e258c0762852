//! PACKET: frames as bytes: where their headers are, which flow they are of, their checksums, and
//! one large frame as many small ones, both ways.
//!
//! What a guest leaves to its device (virtio 1.2, 5.1.6.2), the NIC would do; where it cannot, or
//! where there is none between two guests, it is done here. All of it is pure: no I/O, no
//! allocation, and no trust in any byte. A frame that was copied out of a guest's memory once is
//! what all these functions look at.
//!
//! Its files, each above those that it imports: `offload` (what is left to do with a frame),
//! `headers` (where they are), `checksum`, `flow`, then `segment` (one frame as many) and
//! `coalesce` (many as one).
//!
//! What is deliberately not done: tunnels, IPv6 jumbograms, and SCTP's checksum, which is none of
//! the ones' complement kind.

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
