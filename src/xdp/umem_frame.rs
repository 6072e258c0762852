//! The move-only token for one frame of a frame memory, and a frame's contents.

/// Bytes of one frame; a packet and the headroom before it fit in one.
pub const FRAME_BYTES: u32 = 4096;

/// Longest packet that one frame can receive: the kernel keeps the first 256 bytes for an XDP
/// program (XDP_PACKET_HEADROOM of linux/bpf.h).
pub const FRAME_PACKET_MAX: u32 = FRAME_BYTES - 256;

/// Most frames of one packet: a packet of the largest MTU, 65535 bytes, is received in so many. The
/// kernel also sends at most so many in copy mode: one linear part and CONFIG_MAX_SKB_FRAGS, 17,
/// pages (`xsk_build_skb` of net/xdp/xsk.c).
pub const FRAGMENTS_MAX: usize = 18;

/// One frame that is ours: not in any ring, so neither the kernel nor the NIC touches it.
///
/// Made only when the UMEM is divided and when a ring gives one back; consumed by the ring it is
/// put into. So a frame is in one place at a time, and its bytes may be borrowed as a slice.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    /// Byte offset into the UMEM: of the frame, or of the packet in it after it was received.
    address: u64,
}

impl Frame {
    #[inline]
    pub(super) fn at(address: u64) -> Self {
        Self { address }
    }

    #[inline]
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

/// A frame with a received packet, or a piece of one, in it.
#[derive(Debug, PartialEq, Eq)]
pub struct Received {
    /// The frame; its offset is the packet's.
    pub frame: Frame,
    /// Bytes in it.
    pub len: u32,
    /// The packet continues in the next one.
    pub more: bool,
}
