//! The composition of an interface: its kind, and the devices below it, whose frames come to it.
//!
//! It is read over netlink, not from sysfs: the files of /sys/class/net are those of the namespace
//! that mounted it, which need not be ours.

use std::path::Path;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{
    InfoBridge, InfoData, InfoMacVlan, InfoMacVtap, InfoVxlan, LinkAttribute, LinkInfo,
    LinkLayerType, LinkMessage, MacVlanMode, MacVtapMode,
};
use serde::Serialize;

use super::ethtool::{Offloads, offloads};
use super::link_messages::{connect, driver, kind, name_of};

/// Most devices below one that are examined: a bridge may have a port for each VM of a host.
const BELOW_MAX: usize = 256;

/// The kind of device of an interface, and the devices below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Device {
    /// Its name.
    #[serde(skip)]
    pub interface: String,
    /// Driver, or the kind of a virtual device.
    #[serde(skip)]
    pub kind: String,
    /// The kind of its frames.
    pub link_layer: LinkLayer,
    /// The mode of a macvlan or macvtap.
    pub macvlan: Option<Macvlan>,
    /// Whether a bridge knows VLANs.
    pub vlan_filtering: bool,
    /// A station or an access point.
    pub wireless: bool,
    /// The devices below it, the nearest first.
    pub below: Vec<Lower>,
    /// The device below it is in another network namespace.
    pub below_elsewhere: bool,
}

/// The link layer of an interface (ARPHRD_ of linux/if_arp.h).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LinkLayer {
    /// Ethernet frames.
    #[default]
    Ethernet,
    /// The host's own packets, back to it.
    Loopback,
    /// Something else, by the kernel's name for it.
    Other(String),
}

/// Which frames a macvlan passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Macvlan {
    /// All of them.
    Passthru,
    /// Those for its own MAC, and broadcast and multicast.
    OwnMac,
}

impl Macvlan {
    fn of(passthru: bool) -> Self {
        if passthru { Self::Passthru } else { Self::OwnMac }
    }
}

/// A device below another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Lower {
    /// Its name.
    pub interface: String,
    /// Driver, or the kind of a virtual device.
    pub kind: String,
    /// It is a port of the device in question itself.
    pub port: bool,
    /// Its work on frames; None where it reports none.
    pub offloads: Option<Offloads>,
}

impl Device {
    /// Ask about this link.
    pub(crate) async fn read(name: &str, link: &LinkMessage) -> Self {
        let mut device = Self {
            interface: name.to_owned(),
            kind: driver(name, link),
            link_layer: link_layer(link),
            wireless: Path::new("/sys/class/net").join(name).join("phy80211").exists(),
            below_elsewhere: is_stacked(link) && parent(link).is_some_and(|it| it.elsewhere),
            ..Self::default()
        };
        device.look_at_details(link);
        let all: Vec<LinkMessage> = match connect() {
            Some(handle) => handle.link().get().execute().try_collect().await.unwrap_or_default(),
            None => Vec::new(),
        };
        for (lower, port) in below(link.header.index, &all) {
            let Some(interface) = name_of(lower) else { continue };
            let (kind, offloads) = (driver(&interface, lower), offloads(&interface).await);
            device.below.push(Lower { interface, kind, port, offloads });
        }
        device
    }

    /// The names of its ports.
    #[must_use]
    pub fn ports(&self) -> Vec<&str> {
        let ports = self.below.iter().filter(|lower| lower.port);
        ports.map(|lower| lower.interface.as_str()).collect()
    }

    /// Read the properties that only one kind of device has.
    fn look_at_details(&mut self, link: &LinkMessage) {
        match info(link) {
            Some(InfoData::MacVlan(infos)) => {
                let passthru = InfoMacVlan::Mode(MacVlanMode::Passthrough);
                self.macvlan = Some(Macvlan::of(infos.contains(&passthru)));
            }
            Some(InfoData::MacVtap(infos)) => {
                let passthru = InfoMacVtap::Mode(MacVtapMode::Passthrough);
                self.macvlan = Some(Macvlan::of(infos.contains(&passthru)));
            }
            Some(InfoData::Bridge(infos)) => {
                self.vlan_filtering = infos.contains(&InfoBridge::VlanFiltering(true));
            }
            _ => {}
        }
    }
}

fn link_layer(link: &LinkMessage) -> LinkLayer {
    match link.header.link_layer_type {
        LinkLayerType::Ether => LinkLayer::Ethernet,
        LinkLayerType::Loopback => LinkLayer::Loopback,
        other => LinkLayer::Other(other.to_string()),
    }
}

fn info(link: &LinkMessage) -> Option<&InfoData> {
    let infos = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    })?;
    infos.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    })
}

/// The device that another was made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Parent {
    index: u32,
    elsewhere: bool,
}

fn parent(link: &LinkMessage) -> Option<Parent> {
    let number = |wanted: fn(&LinkAttribute) -> Option<u32>| {
        link.attributes.iter().find_map(wanted).filter(|&index| index > 0)
    };
    let linked = number(|attribute| match attribute {
        LinkAttribute::Link(index) => Some(*index),
        _ => None,
    });
    let elsewhere =
        link.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::LinkNetNsId(_)));
    // A VXLAN reports the device that it sends through in its own attributes.
    let through = match info(link) {
        Some(InfoData::Vxlan(infos)) => infos.iter().find_map(|info| match info {
            InfoVxlan::Link(index) => Some(*index),
            _ => None,
        }),
        _ => None,
    };
    let index = linked.or(through).filter(|&index| elsewhere || index != link.header.index)?;
    Some(Parent { index, elsewhere })
}

/// Whether it receives the frames of its parent: a veth's other end is called its parent too.
fn is_stacked(link: &LinkMessage) -> bool {
    !matches!(kind(link).as_deref(), Some("veth" | "netkit" | "vxcan"))
}

/// All devices below the one with this index, the nearest first, and whether each is a port of it.
fn below(index: u32, all: &[LinkMessage]) -> Vec<(&LinkMessage, bool)> {
    let (mut found, mut seen, mut next) = (Vec::new(), vec![index], vec![index]);
    while !next.is_empty() && found.len() < BELOW_MAX {
        let mut nearest = Vec::new();
        for upper in next {
            for link in all.iter().filter(|link| lies_below(link, upper, all)) {
                if seen.contains(&link.header.index) || found.len() == BELOW_MAX {
                    continue;
                }
                seen.push(link.header.index);
                nearest.push(link.header.index);
                found.push((link, is_port_of(link, index)));
            }
        }
        next = nearest;
    }
    found
}

fn lies_below(link: &LinkMessage, upper: u32, all: &[LinkMessage]) -> bool {
    let is_parent = || {
        let upper = all.iter().find(|other| other.header.index == upper)?;
        let parent = parent(upper).filter(|parent| is_stacked(upper) && !parent.elsewhere)?;
        Some(parent.index == link.header.index)
    };
    is_port_of(link, upper) || is_parent().unwrap_or(false)
}

fn is_port_of(link: &LinkMessage, index: u32) -> bool {
    link.attributes.contains(&LinkAttribute::Controller(index))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rtnetlink::packet_route::link::InfoKind;

    fn link(index: u32, kind: InfoKind, attributes: &[LinkAttribute]) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = attributes.to_vec();
        message.attributes.push(LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]));
        message
    }

    fn found(index: u32, all: &[LinkMessage]) -> Vec<(u32, bool)> {
        below(index, all).into_iter().map(|(link, port)| (link.header.index, port)).collect()
    }

    #[test]
    fn what_lies_below_is_found_through_ports_and_parents_nearest_first() {
        // A bridge of a VLAN device and a TAP; the VLAN is on a bond of two NICs.
        let port_of = LinkAttribute::Controller;
        let all = [
            link(1, InfoKind::Bridge, &[]),
            link(2, InfoKind::Vlan, &[port_of(1), LinkAttribute::Link(3)]),
            link(3, InfoKind::Bond, &[]),
            link(4, InfoKind::Dummy, &[port_of(3)]),
            link(5, InfoKind::Dummy, &[port_of(3)]),
            link(6, InfoKind::Tun, &[port_of(1)]),
            link(7, InfoKind::Dummy, &[]),
        ];
        assert_eq!(found(1, &all), [(2, true), (6, true), (3, false), (4, false), (5, false)]);
        assert_eq!(found(2, &all), [(3, false), (4, false), (5, false)]);
        assert_eq!(found(7, &all), []);
    }

    #[test]
    fn the_other_end_of_a_veth_is_not_below_it_and_a_ring_ends() {
        let ends = [
            link(1, InfoKind::Veth, &[LinkAttribute::Link(2)]),
            link(2, InfoKind::Veth, &[LinkAttribute::Link(1)]),
        ];
        assert_eq!(found(1, &ends), []);
        let ring = [
            link(1, InfoKind::MacVlan, &[LinkAttribute::Link(2)]),
            link(2, InfoKind::MacVlan, &[LinkAttribute::Link(1)]),
        ];
        assert_eq!(found(1, &ring), [(2, false)]);
        let elsewhere = LinkAttribute::LinkNetNsId(0);
        let moved = link(1, InfoKind::MacVlan, &[LinkAttribute::Link(2), elsewhere]);
        assert_eq!(found(1, &[moved, ends[1].clone()]), []);
    }

    #[test]
    fn a_vxlan_lies_on_the_device_that_it_names() {
        let data = InfoData::Vxlan(vec![InfoVxlan::Id(5), InfoVxlan::Link(2)]);
        let mut vxlan = link(1, InfoKind::Vxlan, &[]);
        vxlan.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vxlan),
            LinkInfo::Data(data),
        ])];
        assert_eq!(found(1, &[vxlan, link(2, InfoKind::Dummy, &[])]), [(2, false)]);
    }

    #[test]
    fn a_bridge_with_a_thousand_ports_is_not_looked_at_without_end() {
        let ports =
            (2..2002).map(|index| link(index, InfoKind::Tun, &[LinkAttribute::Controller(1)]));
        let all: Vec<_> = [link(1, InfoKind::Bridge, &[])].into_iter().chain(ports).collect();
        assert_eq!(below(1, &all).len(), BELOW_MAX);
    }
}
