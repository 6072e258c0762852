//! PACKET: frames as bytes: where their headers are, which flow they are of, their checksums, and
//! one large frame as many small ones, both ways.
//!
//! What a guest leaves to its device (virtio 1.2, 5.1.6.2), the NIC would do; where it cannot, or
//! where there is none between two guests, it is done here. All of it is pure: no I/O, no
//! allocation, and no trust in any byte. A frame that was copied out of a guest's memory once is
//! what all these functions look at.
//!
//! What is deliberately not done: tunnels, IPv6 jumbograms, and SCTP's checksum, which is none of
//! the ones' complement kind.

#![forbid(unsafe_code)]

pub mod checksum;
mod coalesce;
mod flow;
mod headers;
mod segment;

pub use coalesce::{Piece, Pushed, TOKENS_MAX, TcpSegment, Train};
pub use flow::{FLOW_BYTES_MAX, flow_hash};
pub use headers::{Headers, Network, Transport, tag_bytes};
pub use segment::{SEGMENTS_MAX, Wanted, WantedKind, segment};

/// Longest headers that are looked at: Ethernet, two tags, IP with options or extension headers,
/// and TCP with options. What comes behind is payload, or unknown.
pub const HEADERS_MAX: usize = 256;

/// Longest frame that stands for several: the longest IP packet behind Ethernet and two tags.
pub const FRAME_MAX: usize = 65535 + 14 + 8;

/// A checksum left to be done: sum the bytes from `start` to the end of the frame, among them the
/// sum of the pseudo header in the field's place; store the complement at `start + offset`
/// (virtio 1.2, 5.1.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// The first byte that is summed, from the start of the frame.
    pub start: u16,
    /// The field, from there.
    pub offset: u16,
}

impl PartialChecksum {
    /// Whether it is that of the frame's own TCP or UDP. `start` is the frame or its headers.
    #[inline]
    #[must_use]
    pub fn is_of_transport(self, start: &[u8]) -> bool {
        Headers::parse(start).is_some_and(|headers| headers.checksum() == self)
    }
}

/// How a frame is cut into several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    /// TCP segments over IPv4.
    Tcp4,
    /// TCP segments over IPv6.
    Tcp6,
    /// The IP fragments of one UDP datagram (UFO), over either.
    UdpFragments,
    /// A UDP datagram for each (USO), over IPv4.
    Udp4,
    /// A UDP datagram for each (USO), over IPv6.
    Udp6,
}

/// A frame that stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segmentation {
    /// How it is cut.
    pub kind: SegmentKind,
    /// TCP's CWR is set (virtio's GSO_ECN), which is for the first segment alone.
    pub ecn: bool,
    /// Most payload in each; of a fragment, most bytes behind its IP headers.
    pub size: u16,
    /// Bytes of all the frame's headers.
    pub header_len: u16,
    /// Where the frame is cut: all of it goes as one if no more than `size` bytes are behind.
    pub cut_at: u16,
    /// Bytes in front of the `size` in each: `header_len`, but for fragments, of which only the
    /// first has a UDP header, among its `size` bytes.
    pub repeated_len: u16,
}

/// What is left to do with a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum to complete.
    pub checksum: Option<PartialChecksum>,
    /// A frame to cut; `checksum` is its transport's then.
    pub segmentation: Option<Segmentation>,
}

impl Offload {
    /// Nothing.
    pub const PLAIN: Self = Self { checksum: None, segmentation: None };

    /// Nothing is left to do.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.checksum.is_none() && self.segmentation.is_none()
    }
}
