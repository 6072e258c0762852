//! A driver's support of XDP and AF_XDP, from the netdev netlink family (Linux 6.3).

use rtnetlink::packet_core::NLM_F_ACK;
use serde::Serialize;

use crate::xdp::netdev::{NetdevMessage, ask};

/// The features that a driver reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct XdpFeatures {
    /// Takes a native program.
    pub native: bool,
    /// Carries out XDP_REDIRECT of a native program, as ours uses it.
    pub redirect: bool,
    /// Gives a native program packets in several buffers.
    pub multi_buffer: bool,
    /// Has zero-copy AF_XDP.
    pub zero_copy: bool,
    /// Most frames of one packet in zero-copy mode; 1 where it reports nothing.
    pub zero_copy_frames: u32,
    /// Completes checksums of frames that AF_XDP sends.
    pub tx_checksum: bool,
    /// Reports when it sent a frame.
    pub tx_timestamp: bool,
    /// Sends a frame at a given time.
    pub tx_launch_time: bool,
    /// Gives programs the hash of a received frame.
    pub rx_hash: bool,
    /// Gives programs the VLAN tag that the NIC took out of a received frame.
    pub rx_vlan_tag: bool,
    /// Gives programs the time when a frame was received.
    pub rx_timestamp: bool,
}

// linux/netdev.h.
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
const DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const DEV_XDP_RX_METADATA_FEATURES: u16 = 5;
const DEV_XSK_FEATURES: u16 = 6;

const ACT_BASIC: u64 = 1 << 0;
const ACT_REDIRECT: u64 = 1 << 1;
const ACT_XSK_ZEROCOPY: u64 = 1 << 3;
const ACT_RX_SG: u64 = 1 << 5;
const RX_TIMESTAMP: u64 = 1 << 0;
const RX_HASH: u64 = 1 << 1;
const RX_VLAN_TAG: u64 = 1 << 2;
const XSK_TX_TIMESTAMP: u64 = 1 << 0;
const XSK_TX_CHECKSUM: u64 = 1 << 1;
const XSK_TX_LAUNCH_TIME: u64 = 1 << 2;

/// Ask about the NIC with this index. None where the kernel does not know the question.
pub(crate) fn xdp_features(index: u32) -> Option<XdpFeatures> {
    let answers =
        ask(NetdevMessage::new(DEV_GET, &[(DEV_IFINDEX, index.into())]), NLM_F_ACK).ok()?;
    answers.first().map(features)
}

fn features(answer: &NetdevMessage) -> XdpFeatures {
    let has = |kind, bit| answer.number(kind).unwrap_or(0) & bit != 0;
    let frames = answer.number(DEV_XDP_ZC_MAX_SEGS).unwrap_or(0);
    XdpFeatures {
        native: has(DEV_XDP_FEATURES, ACT_BASIC),
        redirect: has(DEV_XDP_FEATURES, ACT_REDIRECT),
        multi_buffer: has(DEV_XDP_FEATURES, ACT_RX_SG),
        zero_copy: has(DEV_XDP_FEATURES, ACT_XSK_ZEROCOPY),
        zero_copy_frames: u32::try_from(frames).unwrap_or(1).max(1),
        tx_checksum: has(DEV_XSK_FEATURES, XSK_TX_CHECKSUM),
        tx_timestamp: has(DEV_XSK_FEATURES, XSK_TX_TIMESTAMP),
        tx_launch_time: has(DEV_XSK_FEATURES, XSK_TX_LAUNCH_TIME),
        rx_hash: has(DEV_XDP_RX_METADATA_FEATURES, RX_HASH),
        rx_vlan_tag: has(DEV_XDP_RX_METADATA_FEATURES, RX_VLAN_TAG),
        rx_timestamp: has(DEV_XDP_RX_METADATA_FEATURES, RX_TIMESTAMP),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(numbers: &[(u16, u64)]) -> XdpFeatures {
        features(&NetdevMessage::new(DEV_GET, numbers))
    }

    #[test]
    fn bits_are_read_as_the_kernel_numbers_them() {
        // As ice says it: all actions, chains of 8 frames.
        let ice = said(&[(DEV_XDP_FEATURES, 0x7f), (DEV_XDP_ZC_MAX_SEGS, 8)]);
        assert!(ice.native && ice.redirect && ice.multi_buffer && ice.zero_copy);
        assert_eq!((ice.zero_copy_frames, ice.tx_checksum), (8, false));
        // As veth does: everything except zero-copy, and all metadata that a program can ask for.
        let metadata = (DEV_XDP_RX_METADATA_FEATURES, 7);
        let veth = said(&[(DEV_XDP_FEATURES, 0x67), metadata, (DEV_XSK_FEATURES, 2)]);
        assert!(veth.native && !veth.zero_copy && veth.rx_vlan_tag && veth.rx_hash);
        assert!(veth.tx_checksum && !veth.tx_timestamp);
        assert_eq!(veth.zero_copy_frames, 1);
    }
}
