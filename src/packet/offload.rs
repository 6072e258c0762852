//! The work left to do on a frame: a checksum, or a cut into several frames, with their limits.

/// Longest headers that are read: Ethernet, two tags, IP with options or extension headers, and TCP
/// with options. Later bytes are payload, or unknown.
pub const HEADERS_MAX: usize = 256;

/// Longest frame that stands for several: the longest IP packet behind Ethernet and two tags.
pub const FRAME_MAX: usize = 65535 + 14 + 8;

/// A checksum left to do. Sum the bytes from `start` to the end of the frame, with the sum of the
/// pseudo header in the field's place. Store the complement at `start + offset` (virtio 1.2,
/// 5.1.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartialChecksum {
    /// The first byte that is summed, from the start of the frame.
    pub start: u16,
    /// The field, from `start`.
    pub offset: u16,
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
    /// TCP's CWR is set (virtio's GSO_ECN), for the first segment only.
    pub ecn: bool,
    /// Most payload in each; for a fragment, most bytes behind its IP headers.
    pub size: u16,
    /// Bytes of all the frame's headers.
    pub header_len: u16,
    /// Where the frame is cut. It stays whole if no more than `size` bytes are behind this place.
    pub cut_at: u16,
    /// Bytes in front of the `size` in each. It is `header_len`, except for fragments: only the
    /// first has a UDP header, among its `size` bytes.
    pub repeated_len: u16,
}

/// The work left to do on a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offload {
    /// A checksum to complete.
    pub checksum: Option<PartialChecksum>,
    /// A frame to cut; `checksum` is its transport's then.
    pub segmentation: Option<Segmentation>,
}

impl Offload {
    /// No work.
    pub const PLAIN: Self = Self { checksum: None, segmentation: None };

    /// Whether no work is left to do.
    #[inline]
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.checksum.is_none() && self.segmentation.is_none()
    }
}
