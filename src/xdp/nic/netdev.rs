//! The netdev netlink family (Linux 6.3): what a driver does of XDP and AF_XDP.

use futures_util::StreamExt;
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::packet_core::{
    DecodeError, DefaultNla, Emitable, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla,
    NlasIterator, Parseable, ParseableParametrized,
};
use serde::Serialize;

/// What a driver says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct XdpFeatures {
    /// Takes a native program.
    pub native: bool,
    /// Does what a native program says with XDP_REDIRECT, as ours does.
    pub redirect: bool,
    /// Gives a native program packets in several buffers.
    pub multi_buffer: bool,
    /// Has zero-copy AF_XDP.
    pub zero_copy: bool,
    /// Most frames of one packet in zero-copy mode; 1 where it says nothing.
    pub zero_copy_frames: u32,
    /// Completes checksums of frames that AF_XDP sends.
    pub tx_checksum: bool,
    /// Says when it sent a frame.
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
pub(in crate::xdp) async fn xdp_features(index: u32) -> Option<XdpFeatures> {
    let (connection, mut handle, _) = genetlink::new_connection().ok()?;
    tokio::spawn(connection);
    let ifindex = DefaultNla::new(DEV_IFINDEX, index.to_ne_bytes().to_vec());
    let mut request = NetlinkMessage::from(GenlMessage::from_payload(Device(vec![ifindex])));
    request.header.flags = NLM_F_REQUEST;
    let mut answers = handle.request(request).await.ok()?;
    match answers.next().await?.ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message.payload.features()),
        _ => None,
    }
}

/// A message of the family: its attributes as they are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Device(Vec<DefaultNla>);

impl Device {
    /// A number, whatever its size; none is larger than 64 bits.
    fn number(&self, kind: u16) -> Option<u64> {
        let attribute = self.0.iter().find(|attribute| attribute.kind() == kind)?;
        let mut bytes = vec![0; attribute.value_len()];
        attribute.emit_value(&mut bytes);
        match *bytes.as_slice() {
            [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
            [a, b, c, d, e, f, g, h] => Some(u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
            _ => None,
        }
    }

    fn features(&self) -> XdpFeatures {
        let has = |kind, bit| self.number(kind).unwrap_or(0) & bit != 0;
        let frames = self.number(DEV_XDP_ZC_MAX_SEGS).unwrap_or(0);
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
}

impl GenlFamily for Device {
    fn family_name() -> &'static str {
        "netdev"
    }

    fn command(&self) -> u8 {
        DEV_GET
    }

    fn version(&self) -> u8 {
        1
    }
}

impl Emitable for Device {
    fn buffer_len(&self) -> usize {
        self.0.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.0.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Device {
    fn parse_with_param(bytes: &[u8], _header: GenlHeader) -> Result<Self, DecodeError> {
        let attributes = NlasIterator::new(bytes).map(|attribute| DefaultNla::parse(&attribute?));
        Ok(Self(attributes.collect::<Result<_, _>>()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(numbers: &[(u16, u64)]) -> Device {
        let attribute =
            |&(kind, value): &(u16, u64)| DefaultNla::new(kind, value.to_ne_bytes().to_vec());
        Device(numbers.iter().map(attribute).collect())
    }

    #[test]
    fn bits_are_read_as_the_kernel_numbers_them() {
        // As ice says it: all actions, chains of 8 frames.
        let ice = device(&[(DEV_XDP_FEATURES, 0x7f), (DEV_XDP_ZC_MAX_SEGS, 8)]).features();
        assert!(ice.native && ice.redirect && ice.multi_buffer && ice.zero_copy);
        assert_eq!((ice.zero_copy_frames, ice.tx_checksum), (8, false));
        // As veth does: everything but zero-copy, and what a program can ask of a frame.
        let metadata = (DEV_XDP_RX_METADATA_FEATURES, 7);
        let veth = device(&[(DEV_XDP_FEATURES, 0x67), metadata, (DEV_XSK_FEATURES, 2)]).features();
        assert!(veth.native && !veth.zero_copy && veth.rx_vlan_tag && veth.rx_hash);
        assert!(veth.tx_checksum && !veth.tx_timestamp);
        assert_eq!(veth.zero_copy_frames, 1);
    }

    #[test]
    fn a_message_is_the_same_after_a_way_over_the_wire() {
        let sent = device(&[(DEV_IFINDEX, 7), (DEV_XDP_FEATURES, 0x7f)]);
        let mut bytes = vec![0; sent.buffer_len()];
        sent.emit(&mut bytes);
        let header = GenlHeader { cmd: DEV_GET, version: 1 };
        assert_eq!(Device::parse_with_param(&bytes, header).unwrap(), sent);
    }
}
