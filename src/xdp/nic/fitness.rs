//! The fitness of a kind of device as an uplink. The daemon refuses or warns by it, and the doctor
//! reports it beforehand.
//!
//! Pure. `docs/operations/uplinks.md`, "Kinds of interface", has the table, which was measured
//! (`tests/machine/uplink_kinds.rs`, `tests/machine/uplink_kinds_inner.rs`). Three things about the
//! kernel explain all of it:
//!
//! - AF_XDP takes a frame only from the device and queue that the socket is bound to
//!   (`xsk_rcv_check` of net/xdp/xsk.c). A bond, and a Hyper-V NIC with a VF, give a native program
//!   to their ports. There it finds other devices than the socket's.
//! - The generic hook is reached once for each device that a frame passes
//!   (`__netif_receive_skb_core` of net/core/dev.c). GRO is done before, at the lowest one. The
//!   kernel skips GRO for a device with a generic program of its own (`netif_elide_gro`), but not
//!   for those below.
//! - Before a device hands a frame to the one above, the kernel takes its VLAN tag out and keeps it
//!   beside the frame. An XDP program does not see it there.

use super::ethtool::Offloads;
use super::lower_devices::{Device, LinkLayer, Lower, Macvlan};

/// Why an interface can be no uplink.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Layer 3, or another layer 2.
    #[error(
        "{interface} carries no Ethernet frames ({carries}): what guests send and receive are \
         Ethernet frames; use a NIC, a TAP device or a bridge"
    )]
    NoFrames {
        /// Asked for.
        interface: String,
        /// Its link layer, or its kind.
        carries: String,
    },
    /// The loopback.
    #[error(
        "{0} is the host's own loopback: what guests send comes back to them and reaches nobody; \
         use a NIC, or a dummy device to join guests to each other alone"
    )]
    Loopback(String),
    /// An ipvlan.
    #[error(
        "{interface} is an {kind}: it passes frames by the host's IP addresses, and none to a \
         guest's MAC; use the interface below it{}, or a macvlan in passthru mode", .below
    )]
    ByAddress {
        /// Asked for.
        interface: String,
        /// ipvlan or ipvtap.
        kind: String,
        /// The interface below, in brackets.
        below: String,
    },
}

/// A property of a device that works, but not as one would expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caution {
    /// The doctor's check that it belongs to.
    pub check: &'static str,
    /// The finding.
    pub found: String,
    /// Its meaning.
    pub meaning: String,
    /// Commands, or another solution.
    pub remedy: String,
}

impl std::fmt::Display for Caution {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.found, self.meaning, self.remedy)
    }
}

/// Kinds whose frames come from the receive handler of a device below, without their VLAN tags.
const UNTAGGED: [&str; 6] = ["bridge", "bond", "team", "macvlan", "macvtap", "openvswitch"];
/// Kinds whose frames arrive on their ports, present or future.
const OF_PORTS: [&str; 3] = ["bond", "team", "bridge"];
/// Kinds that drop sent frames.
const SINKS: [&str; 2] = ["dummy", "ifb"];

impl Device {
    /// Whether it can be an uplink at all.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn fit(&self) -> Result<(), Unfit> {
        let interface = self.interface.clone();
        let no_frames =
            |carries: String| Err(Unfit::NoFrames { interface: interface.clone(), carries });
        match (&self.link_layer, self.kind.as_str()) {
            (LinkLayer::Loopback, _) => Err(Unfit::Loopback(interface)),
            (LinkLayer::Other(name), _) => no_frames(format!("link type {}", name.to_lowercase())),
            (_, "vrf") => no_frames("a VRF routes packets".to_owned()),
            (_, kind @ ("ipvlan" | "ipvtap")) => {
                let below = self.below.first().map(|lower| format!(" ({})", lower.interface));
                let (kind, below) = (kind.to_owned(), below.unwrap_or_default());
                Err(Unfit::ByAddress { interface, kind, below })
            }
            _ => Ok(()),
        }
    }

    /// Why a native program would not bring the device's frames to its sockets; None if it would.
    #[must_use]
    pub fn generic_only(&self) -> Option<String> {
        let ports = self.ports();
        if ports.is_empty() && !OF_PORTS.contains(&self.kind.as_str()) {
            return None;
        }
        let on = if ports.is_empty() { "its ports".to_owned() } else { ports.join(", ") };
        Some(format!(
            "a native program of a {} runs on {on}, whose frames the kernel gives to no AF_XDP \
             socket of {}",
            self.kind, self.interface
        ))
    }

    /// Whether it passes unicast only for its own MAC.
    #[must_use]
    pub fn own_mac_only(&self) -> bool {
        self.macvlan == Some(Macvlan::OwnMac)
    }

    /// The cautions for this device under a program of this kind.
    #[must_use]
    pub fn cautions(&self, generic: bool) -> Vec<Caution> {
        let mut cautions = Vec::new();
        cautions.extend(self.mac_caution());
        cautions.extend(self.sink_caution());
        if generic {
            cautions.extend(self.merging_caution());
            cautions.extend(self.vlan_caution());
        }
        cautions
    }

    fn mac_caution(&self) -> Option<Caution> {
        let Self { interface, kind, .. } = self;
        if self.wireless {
            return Some(Caution {
                check: "kind",
                found: format!("{interface} is a wireless interface"),
                meaning: "an access point knows a station by one MAC, and sends it frames for no \
                          other"
                    .to_owned(),
                remedy: "use a wired NIC".to_owned(),
            });
        }
        self.own_mac_only().then(|| {
            let below = self.below.first().map_or("NIC", |lower| lower.interface.as_str());
            Caution {
                check: "kind",
                found: format!("{interface} is a {kind} that passes unicast for its own MAC only"),
                meaning: "no switch port can be served; a wire port gets what is for that MAC"
                    .to_owned(),
                remedy: format!(
                    "ip link add link {below} name {interface} type {kind} mode passthru, in its \
                     place; or attach = \"wire\" for a guest with its MAC"
                ),
            }
        })
    }

    fn sink_caution(&self) -> Option<Caution> {
        let Self { interface, kind, .. } = self;
        SINKS.contains(&kind.as_str()).then(|| Caution {
            check: "kind",
            found: format!("{interface} is a {kind} device, which drops all that is sent"),
            meaning: "guests on it reach each other, and nobody else".to_owned(),
            remedy: "use a NIC, unless that is what is wanted".to_owned(),
        })
    }

    /// The caution that segments merged below come as one long frame.
    fn merging_caution(&self) -> Option<Caution> {
        let merging: Vec<String> = self.below.iter().filter_map(Lower::stop_merging).collect();
        let what = match (merging.is_empty(), self.below_elsewhere) {
            (true, false) => return None,
            (true, true) => "the device below is in another network namespace".to_owned(),
            _ => {
                let names = self.below.iter().filter(|lower| lower.stop_merging().is_some());
                let names: Vec<&str> = names.map(|lower| lower.interface.as_str()).collect();
                format!("GRO merges what is received below ({})", names.join(", "))
            }
        };
        let remedy = match merging.is_empty() {
            true => "there: ethtool --offload NIC gro off rx-gro-hw off".to_owned(),
            false => merging.join("; "),
        };
        Some(Caution {
            check: "merging",
            found: what,
            meaning: "guests get frames longer than their MTU, or none: TCP from outside crawls"
                .to_owned(),
            remedy,
        })
    }

    fn vlan_caution(&self) -> Option<Caution> {
        let Self { interface, kind, .. } = self;
        if !UNTAGGED.contains(&kind.as_str()) && self.ports().is_empty() {
            return None;
        }
        if self.vlan_filtering {
            return None;
        }
        let remedy = match (kind.as_str(), self.ports().first()) {
            ("bridge", _) => format!(
                "ip link set dev {interface} type bridge vlan_filtering 1, which drops tagged \
                 frames, or a VLAN device on {interface} for each VLAN"
            ),
            (_, Some(_)) | (_, None) => {
                format!("a VLAN device on {interface} for each VLAN, or the interface below it")
            }
        };
        Some(Caution {
            check: "vlan-tags",
            found: format!("the kernel takes them out of unicast before it comes to a {kind}"),
            meaning: "a frame of a VLAN reaches its VM as if it were of none".to_owned(),
            remedy,
        })
    }
}

impl Lower {
    /// The command that stops its merging; None if it merges nothing.
    fn stop_merging(&self) -> Option<String> {
        let Offloads { gro, gro_hardware, lro, .. } = self.offloads.as_ref()?;
        // A TAP's packets come one by one, and as long as its holder writes them.
        let software = *gro && self.kind != "tun";
        let options = [(software, "gro off"), (*gro_hardware, "rx-gro-hw off"), (*lro, "lro off")];
        let options: Vec<&str> = options.iter().filter(|(on, _)| *on).map(|it| it.1).collect();
        let command = format!("ethtool --offload {} {}", self.interface, options.join(" "));
        (!options.is_empty()).then_some(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(kind: &str, below: &[(&str, bool, Offloads)]) -> Device {
        let lower = |(name, port, offloads): &(&str, bool, Offloads)| Lower {
            interface: (*name).to_owned(),
            kind: "ixgbe".to_owned(),
            port: *port,
            offloads: Some(offloads.clone()),
        };
        Device {
            interface: "up0".to_owned(),
            kind: kind.to_owned(),
            below: below.iter().map(lower).collect(),
            ..Device::default()
        }
    }

    fn gro() -> Offloads {
        Offloads { gro: true, ..Offloads::default() }
    }

    fn checks(device: &Device, generic: bool) -> Vec<&'static str> {
        device.cautions(generic).iter().map(|caution| caution.check).collect()
    }

    #[test]
    fn a_nic_is_fit_and_needs_no_caution() {
        let nic = device("ixgbe", &[]);
        assert_eq!((nic.fit(), nic.generic_only()), (Ok(()), None));
        assert_eq!((checks(&nic, false), checks(&nic, true)), (vec![], vec![]));
    }

    #[test]
    fn what_carries_no_frames_is_refused_with_what_it_is_and_a_way_out() {
        let mut tunnel = device("tun", &[]);
        tunnel.link_layer = LinkLayer::Other("NONE".to_owned());
        let mut loopback = device("unknown", &[]);
        loopback.link_layer = LinkLayer::Loopback;
        for (device, wanted) in [
            (tunnel, "carries no Ethernet frames (link type none)"),
            (loopback, "loopback"),
            (device("vrf", &[]), "VRF"),
            (device("ipvlan", &[("eth0", false, gro())]), "interface below it (eth0)"),
            (device("ipvtap", &[]), "is an ipvtap"),
        ] {
            let text = device.fit().unwrap_err().to_string();
            assert!(text.starts_with("up0 ") && text.contains(wanted), "{text}");
            assert!(text.contains("; use "), "{text}");
        }
    }

    #[test]
    fn a_device_whose_frames_arrive_on_its_ports_takes_no_native_program() {
        for kind in ["bond", "team", "bridge"] {
            assert!(device(kind, &[]).generic_only().is_some(), "{kind}, without a port yet");
        }
        // A Hyper-V NIC belongs to this kind while it has a VF.
        assert_eq!(device("hv_netvsc", &[]).generic_only(), None);
        let text = device("hv_netvsc", &[("eth1", true, gro())]).generic_only().unwrap();
        assert!(text.contains("runs on eth1"), "{text}");
        // A parent is no port.
        assert_eq!(device("vlan", &[("eth0", false, gro())]).generic_only(), None);
    }

    #[test]
    fn what_merges_below_is_named_with_its_own_command() {
        let hardware = Offloads { gro_hardware: true, ..gro() };
        let below =
            [("eth0", true, gro()), ("eth1", true, hardware), ("eth2", true, Offloads::default())];
        let bridge = device("bridge", &below);
        let caution = bridge.cautions(true).into_iter().find(|it| it.check == "merging").unwrap();
        assert_eq!(
            caution.remedy,
            "ethtool --offload eth0 gro off; ethtool --offload eth1 gro off rx-gro-hw off"
        );
        assert!(caution.found.contains("(eth0, eth1)"), "{caution:?}");
        // A TAP among its ports merges nothing.
        let mut tap = device("bridge", &[("tap0", true, gro())]);
        tap.below[0].kind = "tun".to_owned();
        assert_eq!(checks(&tap, true), ["vlan-tags"]);
        // A native program is not affected by the devices below it.
        assert_eq!(checks(&device("vlan", &[("eth0", false, gro())]), true), ["merging"]);
        let mut moved = device("macvlan", &[]);
        (moved.macvlan, moved.below_elsewhere) = (Some(Macvlan::Passthru), true);
        assert_eq!(checks(&moved, true), ["merging", "vlan-tags"]);
    }

    #[test]
    fn tags_are_lost_above_a_receive_handler_and_kept_by_vlan_and_vxlan() {
        for kind in ["bridge", "bond", "team", "macvlan", "macvtap", "openvswitch"] {
            assert_eq!(checks(&device(kind, &[]), true), ["vlan-tags"], "{kind}");
            assert_eq!(checks(&device(kind, &[]), false), [""; 0], "{kind}");
        }
        for kind in ["vlan", "vxlan", "veth"] {
            assert_eq!(checks(&device(kind, &[]), true), [""; 0], "{kind}");
        }
        let mut filtering = device("bridge", &[]);
        filtering.vlan_filtering = true;
        assert_eq!(checks(&filtering, true), [""; 0]);
    }

    #[test]
    fn kinds_that_keep_frames_back_are_told() {
        let mut macvlan = device("macvlan", &[("eth0", false, Offloads::default())]);
        macvlan.macvlan = Some(Macvlan::OwnMac);
        let caution = &macvlan.cautions(true)[0];
        let wanted = "ip link add link eth0 name up0 type macvlan mode passthru";
        assert!(caution.remedy.starts_with(wanted), "{caution:?}");
        assert!(macvlan.own_mac_only());
        macvlan.macvlan = Some(Macvlan::Passthru);
        assert!(!macvlan.own_mac_only() && checks(&macvlan, true) == ["vlan-tags"]);
        assert_eq!(checks(&device("dummy", &[]), true), ["kind"]);
        let wireless = Device { wireless: true, ..device("iwlwifi", &[]) };
        assert_eq!(checks(&wireless, false), ["kind"]);
    }
}
