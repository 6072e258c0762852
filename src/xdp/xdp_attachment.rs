//! How a NIC is attached: where the program runs, how packets move, and how long they may be.

use serde::{Deserialize, Serialize};

use super::umem_frame::{FRAGMENTS_MAX, FRAME_PACKET_MAX};

/// The operator's choice of mode for the NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeWish {
    /// The fastest that works.
    #[default]
    Auto,
    /// Zero-copy, or fail.
    ZeroCopy,
    /// Copy mode under a native program, or fail.
    Copy,
    /// Copy mode under a generic program.
    Generic,
}

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachMode {
    /// In the driver, before the kernel makes a packet buffer.
    Native,
    /// In the network stack, for any driver; slower.
    Generic,
}

/// How packets move between the NIC and our frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BindMode {
    /// The NIC reads and writes the frames itself.
    ZeroCopy,
    /// The kernel copies.
    Copy,
}

/// How an uplink's NIC is attached: the one record of it, from the opening on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XdpAttachment {
    /// Where the program runs.
    pub attach_mode: AttachMode,
    /// How packets move.
    pub socket_mode: BindMode,
    /// The reason why it has no better mode.
    pub reason: String,
    /// The longest packet that every socket sends and receives, bytes.
    pub packet_max: u32,
}

impl XdpAttachment {
    /// Whether the program is at the kernel's generic hook.
    #[must_use]
    pub fn is_generic(&self) -> bool {
        self.attach_mode == AttachMode::Generic
    }

    /// Whether a packet may have several frames (XDP_USE_SG).
    #[must_use]
    pub fn multi_buffer(&self) -> bool {
        self.packet_max > FRAME_PACKET_MAX
    }
}

/// The longest packet of a socket in this mode with at most `frames` frames to a packet.
///
/// The limit is the part of a received packet that a frame holds. In zero-copy mode, a frame holds
/// less if packets have several. The kernel then keeps 320 bytes at the end of each for its struct
/// skb_shared_info, and gives drivers a multiple of 128 (`xsk_pool_get_rx_frame_size`).
#[must_use]
pub fn packet_max(mode: BindMode, frames: usize) -> u32 {
    const SHARED_INFO: u32 = 320;
    let frames = u32::try_from(frames.min(FRAGMENTS_MAX)).expect("a small constant");
    match mode {
        BindMode::ZeroCopy if frames > 1 => frames * ((FRAME_PACKET_MAX - SHARED_INFO) / 128 * 128),
        BindMode::ZeroCopy | BindMode::Copy => frames * FRAME_PACKET_MAX,
    }
}
