//! The ethtool netlink family: queues, rings, offloads.

use std::collections::BTreeSet;

use ethtool::{
    EthtoolAttr, EthtoolChannelAttr, EthtoolError, EthtoolFeatureAttr, EthtoolHandle,
    EthtoolMessage, EthtoolRingAttr,
};
use futures_util::{Stream, TryStreamExt};
use netlink_packet_generic::GenlMessage;
use serde::Serialize;

/// Queues by kind: drivers with paired queues say "combined", veth says "rx" and "tx", mlx5 may say
/// both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "ethtool's words")]
pub struct Channels {
    pub rx: u32,
    pub rx_max: u32,
    pub tx: u32,
    pub tx_max: u32,
    pub combined: u32,
    pub combined_max: u32,
}

impl Channels {
    /// Queues that receive now.
    #[must_use]
    pub fn receiving(&self) -> u32 {
        self.rx + self.combined
    }
}

/// Sizes of the NIC's own rings, descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "ethtool's words")]
pub struct Rings {
    pub rx: u32,
    pub rx_max: u32,
    pub tx: u32,
    pub tx_max: u32,
}

/// A NIC's own work on frames, where it concerns us.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Offloads {
    /// Takes VLAN tags (802.1Q) out of received frames.
    pub vlan_strip: bool,
    /// Puts VLAN tags into frames that it sends; a veth sends the tag beside the frame.
    pub vlan_insert: bool,
    /// Completes checksums of frames that it sends; a veth leaves them undone.
    pub tx_checksum: bool,
    /// The kernel merges received segments.
    pub gro: bool,
    /// The NIC merges them, so that they can be cut again.
    pub gro_hardware: bool,
    /// The NIC merges them.
    pub lro: bool,
}

impl Offloads {
    /// From the kernel's names of active features (`netdev_features_strings` of
    /// net/ethtool/common.c).
    fn of(active: &BTreeSet<String>) -> Self {
        let any = |names: &[&str]| names.iter().any(|&name| active.contains(name));
        Self {
            vlan_strip: any(&["rx-vlan-hw-parse"]),
            vlan_insert: any(&["tx-vlan-hw-insert"]),
            tx_checksum: any(&["tx-checksum-ipv4", "tx-checksum-ipv6", "tx-checksum-ip-generic"]),
            gro: any(&["rx-gro"]),
            gro_hardware: any(&["rx-gro-hw"]),
            lro: any(&["rx-lro"]),
        }
    }
}

/// Queues in use and at most. None where the driver does not say.
pub(crate) async fn channels(name: &str) -> Option<Channels> {
    let attributes = first(connect()?.channel().get(Some(name)).execute().await.ok()?).await?;
    let mut channels = Channels::default();
    for attribute in attributes {
        let EthtoolAttr::Channel(attribute) = attribute else { continue };
        match attribute {
            EthtoolChannelAttr::RxCount(count) => channels.rx = count,
            EthtoolChannelAttr::RxMax(count) => channels.rx_max = count,
            EthtoolChannelAttr::TxCount(count) => channels.tx = count,
            EthtoolChannelAttr::TxMax(count) => channels.tx_max = count,
            EthtoolChannelAttr::CombinedCount(count) => channels.combined = count,
            EthtoolChannelAttr::CombinedMax(count) => channels.combined_max = count,
            _ => {}
        }
    }
    Some(channels).filter(|channels| channels.receiving() > 0)
}

/// Ring sizes. None where the driver has none or does not say.
pub(super) async fn rings(name: &str) -> Option<Rings> {
    let attributes = first(connect()?.ring().get(Some(name)).execute().await.ok()?).await?;
    let mut rings = Rings::default();
    for attribute in attributes {
        let EthtoolAttr::Ring(attribute) = attribute else { continue };
        match attribute {
            EthtoolRingAttr::Rx(count) => rings.rx = count,
            EthtoolRingAttr::RxMax(count) => rings.rx_max = count,
            EthtoolRingAttr::Tx(count) => rings.tx = count,
            EthtoolRingAttr::TxMax(count) => rings.tx_max = count,
            _ => {}
        }
    }
    Some(rings).filter(|rings| rings.rx > 0)
}

/// Offloads in force.
pub(super) async fn offloads(name: &str) -> Option<Offloads> {
    let attributes = first(connect()?.feature().get(Some(name)).execute().await.ok()?).await?;
    let mut active = None;
    for attribute in attributes {
        if let EthtoolAttr::Feature(EthtoolFeatureAttr::Active(bits)) = attribute {
            let on = bits.into_iter().filter(|bit| bit.value).map(|bit| bit.name);
            active = Some(on.collect());
        }
    }
    active.map(|active| Offloads::of(&active))
}

fn connect() -> Option<EthtoolHandle> {
    let (connection, handle, _) = ethtool::new_connection().ok()?;
    tokio::spawn(connection);
    Some(handle)
}

/// The attributes of the first answer; None where the driver does not know the question.
async fn first(
    answers: impl Stream<Item = Result<GenlMessage<EthtoolMessage>, EthtoolError>>,
) -> Option<Vec<EthtoolAttr>> {
    let mut answers = Box::pin(answers);
    Some(answers.try_next().await.ok()??.payload.nlas)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_names_are_what_people_know_by_others() {
        let active = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        let veth = active(&["tx-checksum-ip-generic", "tx-vlan-hw-insert", "rx-vlan-hw-parse"]);
        let expected = Offloads {
            vlan_strip: true,
            vlan_insert: true,
            tx_checksum: true,
            ..Offloads::default()
        };
        assert_eq!(Offloads::of(&veth), expected);
        assert_eq!(Offloads::of(&active(&["tx-checksum-sctp"])), Offloads::default());
    }
}
