//! How much is done at a time, and how long a frame may be.

use crate::packet::tag_bytes;

/// Most packets taken from one ring or socket before the next one has its turn.
pub const BURST: u16 = 64;

/// Bytes of an Ethernet header, and of the two VLAN tags a frame may have beyond its MTU.
pub const ETHERNET_BYTES: u32 = 14;
/// Two 802.1Q tags (QinQ).
pub const VLAN_BYTES: u32 = 8;

/// The longest frame of an interface with this MTU, in bytes, without the frame check sequence. It
/// has two tags: `is_within` is the whole rule.
#[must_use]
pub const fn frame_max(mtu: u32) -> u32 {
    mtu + ETHERNET_BYTES + VLAN_BYTES
}

/// Whether a frame of `len` bytes is one of an interface with this [`frame_max`]. Behind the
/// Ethernet header and its actual VLAN tags, up to two, it has at most its MTU (virtio 1.2,
/// 5.1.4.1).
///
/// `start` is the frame or its first bytes; a tag beyond them does not count.
#[inline]
pub(super) fn is_within(frame_max: u32, len: u32, start: &[u8]) -> bool {
    let untagged = frame_max.saturating_sub(VLAN_BYTES);
    len <= untagged || len - untagged <= tag_bytes(start)
}
