//! Every feature bit once: its number, its name in profiles, its provider, the clause that defines
//! it, and the other bits that it needs.
//!
//! Clauses are those of virtio 1.2 (and of the 1.4 draft where marked), protocol features those
//! of QEMU's `docs/interop/vhost-user.rst`.

use std::fmt;

/// The side that provides a device feature behind a vhost-user front-end (QEMU 7.2 to 11.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// The bit is offered by the backend's GET_FEATURES and done by its datapath.
    Backend,
    /// The front-end implements it and sets the bit by its own command line, whatever the backend
    /// offers. (GUEST_ANNOUNCE does not belong here: QEMU implements it, but masks it with the
    /// backend's offer, `user_feature_bits` in its `hw/net/vhost_net.c`.)
    Frontend,
    /// The vhost-user protocol's own bits, which no guest sees.
    Protocol,
    /// Cannot be offered behind today's front-ends, for this reason. The name is kept for it.
    Reserved(&'static str),
}

/// Bits that are never shown to a driver of virtio 1, even if offered: GSO, NOTIFY_ON_EMPTY and
/// ANY_LAYOUT (QEMU: `legacy_features` in its `hw/virtio/virtio-pci.c` and `hw/net/virtio-net.c`).
pub const LEGACY: FeatureSet = FeatureSet(1 << GSO | 1 << NOTIFY_ON_EMPTY | 1 << ANY_LAYOUT);

/// The bits that are between front-end and backend, and no guest's.
pub const TRANSPORT: FeatureSet = FeatureSet(1 << LOG_ALL | 1 << PROTOCOL_FEATURES);

/// The work that a guest may leave to the device for received packets.
pub const GUEST_OFFLOADS: [u8; 7] =
    [GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO, GUEST_USO4, GUEST_USO6];

/// One feature bit.
#[derive(Debug)]
pub struct Feature {
    /// Bit number.
    pub bit: u8,
    /// As written in profiles.
    pub name: &'static str,
    /// Who makes it true.
    pub provider: Provider,
    /// Where it is defined.
    pub clause: &'static str,
    /// Bits without which it must not be offered: any one of each group (virtio 1.2, 5.1.3.1).
    pub requires: &'static [&'static [u8]],
}

impl Feature {
    /// The bit as a mask.
    #[must_use]
    pub const fn mask(&self) -> u64 {
        1 << self.bit
    }

    /// Its name in the specification, such as `VIRTIO_NET_F_MRG_RXBUF`.
    #[must_use]
    pub fn spec_name(&self) -> String {
        let prefix = match self.bit {
            LOG_ALL => "VHOST_F_",
            PROTOCOL_FEATURES => "VHOST_USER_F_",
            // Bits 24 to 41 and above 50 by virtio 1.2, clause 6: reserved for the transport, and
            // for the device type.
            24..=41 => "VIRTIO_F_",
            _ => "VIRTIO_NET_F_",
        };
        prefix.to_owned() + &self.name.to_ascii_uppercase()
    }
}

/// VIRTIO_NET_F_CSUM: the guest may send partial checksums.
pub const CSUM: u8 = 0;
/// VIRTIO_NET_F_GUEST_CSUM: the guest takes partial checksums.
pub const GUEST_CSUM: u8 = 1;
/// VIRTIO_NET_F_CTRL_GUEST_OFFLOADS: the guest may turn its offloads off and on.
pub const CTRL_GUEST_OFFLOADS: u8 = 2;
/// VIRTIO_NET_F_MTU: the MTU is in the configuration space.
pub const MTU: u8 = 3;
/// VIRTIO_NET_F_MAC: the address is in the configuration space.
pub const MAC: u8 = 5;
/// VIRTIO_NET_F_GSO, legacy: the guest may send any type of segmentation there was then.
pub const GSO: u8 = 6;
/// VIRTIO_NET_F_GUEST_TSO4.
pub const GUEST_TSO4: u8 = 7;
/// VIRTIO_NET_F_GUEST_TSO6.
pub const GUEST_TSO6: u8 = 8;
/// VIRTIO_NET_F_GUEST_ECN.
pub const GUEST_ECN: u8 = 9;
/// VIRTIO_NET_F_GUEST_UFO.
pub const GUEST_UFO: u8 = 10;
/// VIRTIO_NET_F_HOST_TSO4.
pub const HOST_TSO4: u8 = 11;
/// VIRTIO_NET_F_HOST_TSO6.
pub const HOST_TSO6: u8 = 12;
/// VIRTIO_NET_F_HOST_ECN.
pub const HOST_ECN: u8 = 13;
/// VIRTIO_NET_F_HOST_UFO.
pub const HOST_UFO: u8 = 14;
/// VIRTIO_NET_F_MRG_RXBUF: a packet may span several receive buffers.
pub const MRG_RXBUF: u8 = 15;
/// VIRTIO_NET_F_CTRL_VQ.
pub const CTRL_VQ: u8 = 17;
/// VIRTIO_NET_F_CTRL_VLAN: the guest says which VLANs it wants.
pub const CTRL_VLAN: u8 = 19;
/// VIRTIO_NET_F_GUEST_ANNOUNCE.
pub const GUEST_ANNOUNCE: u8 = 21;
/// VIRTIO_NET_F_MQ: several queue pairs.
pub const MQ: u8 = 22;
/// VIRTIO_F_NOTIFY_ON_EMPTY: interrupt when nothing is left to take, suppressed or not.
pub const NOTIFY_ON_EMPTY: u8 = 24;
/// VHOST_F_LOG_ALL: log the pages we write.
pub const LOG_ALL: u8 = 26;
/// VIRTIO_F_ANY_LAYOUT: buffers may be cut into descriptors anywhere.
pub const ANY_LAYOUT: u8 = 27;
/// VIRTIO_F_INDIRECT_DESC.
pub const INDIRECT_DESC: u8 = 28;
/// VIRTIO_F_EVENT_IDX.
pub const EVENT_IDX: u8 = 29;
/// VHOST_USER_F_PROTOCOL_FEATURES.
pub const PROTOCOL_FEATURES: u8 = 30;
/// VIRTIO_F_VERSION_1.
pub const VERSION_1: u8 = 32;
/// VIRTIO_F_RING_PACKED.
pub const RING_PACKED: u8 = 34;
/// VIRTIO_NET_F_GUEST_USO4.
pub const GUEST_USO4: u8 = 54;
/// VIRTIO_NET_F_GUEST_USO6.
pub const GUEST_USO6: u8 = 55;
/// VIRTIO_NET_F_HOST_USO.
pub const HOST_USO: u8 = 56;
/// VIRTIO_F_IN_ORDER: buffers are used in the order they were made available, as ours always are.
pub const IN_ORDER: u8 = 35;

const fn feature(
    bit: u8,
    name: &'static str,
    provider: Provider,
    clause: &'static str,
    requires: &'static [&'static [u8]],
) -> Feature {
    Feature { bit, name, provider, clause, requires }
}

use Provider::{Backend, Frontend, Protocol, Reserved};

/// Why reserved bits cannot be offered: the obstacle, in one sentence each. "QEMU" is 7.2 to 11.1.
mod obstacle {
    pub(super) const NO_PROPERTY: &str =
        "QEMU has no property for it, and so never shows it to a guest";
    pub(super) const NOTIFICATION_DATA: &str =
        "it puts data into the guest's kicks, and vhost-user's are eventfds, which carry none";
    // The control queue is QEMU's own: `virtio_net_handle_ctrl_iov` in hw/net/virtio-net.c.
    pub(super) const DEVICE_STATS: &str =
        "QEMU answers the guest's control queue, which has no such command there";
    pub(super) const COALESCING: &str = "QEMU answers the guest's control queue, which has no such \
         command there, and vhost-user has no message for what the guest would ask for";
    // `virtio_net_get_features` asks `qemu_has_uso`, which only taps answer; 7.2 has no property.
    pub(super) const USO: &str = "QEMU hides it behind every vhost-user backend (its \
         net/vhost-user.c has no has_uso); the software for it is here all the same";
    // `virtio_net_get_features`: hashes are a vDPA device's, or by an eBPF program for taps.
    pub(super) const HASHES: &str = "QEMU hides it behind every vhost-user backend, and vhost-user \
         has no message for the types of hash that the guest asks for";
    pub(super) const RSS: &str = "QEMU hides it behind every vhost-user backend (its steering is \
         an eBPF program for taps), and vhost-user has no message for the guest's key and table";
    // It came into `user_feature_bits` with USO: bits that are missing there are neither masked by
    // the backend's offer nor acknowledged to it.
    pub(super) const RSC_EXT: &str = "QEMU 7.2 neither asks the backend for it nor tells it that \
         the guest took it";
    pub(super) const BEYOND: &str =
        "its bit is above 63, and the messages of vhost-user carry bits 0 to 63";
}

/// Features with bits above 63 (1.4 draft, 5.1.3). No message carries them, so they have a name and
/// no number here.
const BEYOND: &[&str] = &[
    "rss_context",
    "guest_udp_tunnel_gso",
    "guest_udp_tunnel_gso_csum",
    "host_udp_tunnel_gso",
    "host_udp_tunnel_gso_csum",
];

/// Why the feature with this name cannot be offered behind any present front-end; None without an
/// obstacle.
#[must_use]
pub fn obstacle(name: &str) -> Option<&'static str> {
    if BEYOND.contains(&name) {
        return Some(obstacle::BEYOND);
    }
    match by_name(name)?.provider {
        Reserved(why) => Some(why),
        Backend | Frontend | Protocol => None,
    }
}

/// All device features, by bit.
pub static FEATURES: &[Feature] = &[
    feature(CSUM, "csum", Backend, "5.1.3", &[]),
    feature(GUEST_CSUM, "guest_csum", Backend, "5.1.3", &[]),
    feature(2, "ctrl_guest_offloads", Frontend, "5.1.3", &[&[CTRL_VQ]]),
    feature(MTU, "mtu", Backend, "5.1.3", &[]),
    feature(MAC, "mac", Frontend, "5.1.3", &[]),
    feature(GSO, "gso", Backend, "5.1.3.2 (legacy)", &[]),
    feature(GUEST_TSO4, "guest_tso4", Backend, "5.1.3", &[&[GUEST_CSUM]]),
    feature(GUEST_TSO6, "guest_tso6", Backend, "5.1.3", &[&[GUEST_CSUM]]),
    feature(GUEST_ECN, "guest_ecn", Backend, "5.1.3", &[&[GUEST_TSO4, GUEST_TSO6]]),
    feature(GUEST_UFO, "guest_ufo", Backend, "5.1.3", &[&[GUEST_CSUM]]),
    feature(HOST_TSO4, "host_tso4", Backend, "5.1.3", &[&[CSUM]]),
    feature(HOST_TSO6, "host_tso6", Backend, "5.1.3", &[&[CSUM]]),
    feature(HOST_ECN, "host_ecn", Backend, "5.1.3", &[&[HOST_TSO4, HOST_TSO6]]),
    feature(HOST_UFO, "host_ufo", Backend, "5.1.3", &[&[CSUM]]),
    feature(MRG_RXBUF, "mrg_rxbuf", Backend, "5.1.3", &[]),
    feature(16, "status", Frontend, "5.1.3", &[]),
    feature(CTRL_VQ, "ctrl_vq", Frontend, "5.1.3", &[]),
    feature(18, "ctrl_rx", Frontend, "5.1.3", &[&[CTRL_VQ]]),
    feature(CTRL_VLAN, "ctrl_vlan", Frontend, "5.1.3", &[&[CTRL_VQ]]),
    feature(20, "ctrl_rx_extra", Frontend, "5.1.3", &[&[CTRL_VQ]]),
    feature(GUEST_ANNOUNCE, "guest_announce", Backend, "5.1.3", &[&[CTRL_VQ]]),
    feature(MQ, "mq", Backend, "5.1.3", &[&[CTRL_VQ]]),
    feature(23, "ctrl_mac_addr", Frontend, "5.1.3", &[&[CTRL_VQ]]),
    feature(NOTIFY_ON_EMPTY, "notify_on_empty", Backend, "6.3 (legacy)", &[]),
    feature(LOG_ALL, "log_all", Protocol, "vhost-user, Migration", &[]),
    feature(ANY_LAYOUT, "any_layout", Backend, "6.3 (legacy)", &[]),
    feature(INDIRECT_DESC, "indirect_desc", Backend, "2.7.5.3", &[]),
    feature(EVENT_IDX, "event_idx", Backend, "2.7.7", &[]),
    feature(PROTOCOL_FEATURES, "protocol_features", Protocol, "vhost-user, Feature bits", &[]),
    feature(VERSION_1, "version_1", Backend, "6.1", &[]),
    feature(33, "access_platform", Backend, "6", &[]),
    feature(RING_PACKED, "ring_packed", Backend, "2.8", &[]),
    feature(IN_ORDER, "in_order", Backend, "2.7.9", &[]),
    feature(36, "order_platform", Reserved(obstacle::NO_PROPERTY), "6", &[]),
    feature(38, "notification_data", Reserved(obstacle::NOTIFICATION_DATA), "6", &[]),
    feature(40, "ring_reset", Backend, "2.6.1", &[]),
    feature(
        50,
        "device_stats",
        Reserved(obstacle::DEVICE_STATS),
        "5.1.3 (1.4 draft)",
        &[&[CTRL_VQ]],
    ),
    feature(51, "hash_tunnel", Reserved(obstacle::HASHES), "5.1.3 (1.4 draft)", &[&[CTRL_VQ]]),
    feature(52, "vq_notf_coal", Reserved(obstacle::COALESCING), "5.1.3 (1.4 draft)", &[&[CTRL_VQ]]),
    feature(53, "notf_coal", Reserved(obstacle::COALESCING), "5.1.3", &[&[CTRL_VQ]]),
    feature(GUEST_USO4, "guest_uso4", Reserved(obstacle::USO), "5.1.3", &[&[GUEST_CSUM]]),
    feature(GUEST_USO6, "guest_uso6", Reserved(obstacle::USO), "5.1.3", &[&[GUEST_CSUM]]),
    feature(HOST_USO, "host_uso", Reserved(obstacle::USO), "5.1.3", &[&[CSUM]]),
    feature(57, "hash_report", Reserved(obstacle::HASHES), "5.1.3", &[&[CTRL_VQ]]),
    feature(59, "guest_hdrlen", Reserved(obstacle::NO_PROPERTY), "5.1.3", &[]),
    feature(60, "rss", Reserved(obstacle::RSS), "5.1.3", &[&[CTRL_VQ]]),
    feature(61, "rsc_ext", Reserved(obstacle::RSC_EXT), "5.1.3", &[&[GUEST_TSO4, GUEST_TSO6]]),
    feature(62, "standby", Frontend, "5.1.3", &[]),
    feature(63, "speed_duplex", Frontend, "5.1.3", &[]),
];

/// The features of this version's datapath: the widest a profile's backend features may be.
pub const IMPLEMENTED: FeatureSet = FeatureSet(
    // Checksums and segmentation are done in software for receivers that cannot, so they depend on
    // no NIC and no neighbour (`datapath/complete.rs`).
    1 << CSUM
        | 1 << GUEST_CSUM
        | 1 << MTU
        | 1 << GSO
        | 1 << GUEST_TSO4
        | 1 << GUEST_TSO6
        | 1 << GUEST_ECN
        | 1 << GUEST_UFO
        | 1 << HOST_TSO4
        | 1 << HOST_TSO6
        | 1 << HOST_ECN
        | 1 << HOST_UFO
        | 1 << MRG_RXBUF
        // The front-end does it, but shows the bit to its guest only if we offer it.
        | 1 << GUEST_ANNOUNCE
        | 1 << MQ
        | 1 << NOTIFY_ON_EMPTY
        | 1 << LOG_ALL
        // Every descriptor chain is accepted in the way of VERSION_1, which includes any layout.
        | 1 << ANY_LAYOUT
        | 1 << INDIRECT_DESC
        | 1 << EVENT_IDX
        | 1 << PROTOCOL_FEATURES
        | 1 << VERSION_1
        | 1 << RING_PACKED
        | 1 << IN_ORDER,
);

/// A set of feature bits 0 to 63, all that a vhost-user message carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FeatureSet(pub u64);

impl FeatureSet {
    /// Whether `bit` is in the set.
    #[must_use]
    pub const fn has(self, bit: u8) -> bool {
        self.0 & (1 << bit) != 0
    }

    /// The bits of this set that `other` lacks.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// The bits of both.
    #[must_use]
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether no bit is set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The bit numbers, ascending.
    pub fn bits(self) -> impl Iterator<Item = u8> {
        (0..64).filter(move |&bit| self.has(bit))
    }

    /// The names, ascending by bit; unknown bits as `bit_N`.
    #[must_use]
    pub fn names(self) -> Vec<String> {
        self.bits().map(name_of).collect()
    }
}

impl FromIterator<u8> for FeatureSet {
    fn from_iter<I: IntoIterator<Item = u8>>(bits: I) -> Self {
        Self(bits.into_iter().fold(0, |set, bit| set | 1 << bit))
    }
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} ({})", self.0, self.names().join(", "))
    }
}

/// The features of `set` that lack a prerequisite in `offered`. Each comes with the first unmet
/// group of bits, of which it needs one (virtio 1.2, 5.1.3.1).
pub fn unmet(
    set: FeatureSet,
    offered: FeatureSet,
) -> impl Iterator<Item = (&'static Feature, FeatureSet)> {
    FEATURES.iter().filter(move |feature| set.has(feature.bit)).filter_map(move |feature| {
        let lacking = |group: &&&[u8]| !group.iter().any(|&bit| offered.has(bit));
        let group = feature.requires.iter().find(lacking)?;
        Some((feature, group.iter().copied().collect()))
    })
}

/// The feature with this name in profiles.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Feature> {
    FEATURES.iter().find(|feature| feature.name == name)
}

/// The protocol feature with this name in profiles.
#[must_use]
pub fn protocol_by_name(name: &str) -> Option<&'static ProtocolFeature> {
    PROTOCOL.iter().find(|feature| feature.name == name)
}

/// The names of a set of protocol features, ascending by bit; unknown bits as `bit_N`.
#[must_use]
pub fn protocol_names(set: FeatureSet) -> Vec<String> {
    let name = |bit| match PROTOCOL.iter().find(|feature| feature.bit == bit) {
        Some(feature) => feature.name.to_owned(),
        None => format!("bit_{bit}"),
    };
    set.bits().map(name).collect()
}

fn name_of(bit: u8) -> String {
    match FEATURES.iter().find(|feature| feature.bit == bit) {
        Some(feature) => feature.name.to_owned(),
        None => format!("bit_{bit}"),
    }
}

/// One vhost-user protocol feature.
#[derive(Debug)]
pub struct ProtocolFeature {
    /// Bit number.
    pub bit: u8,
    /// As written in profiles.
    pub name: &'static str,
}

/// VHOST_USER_PROTOCOL_F_MQ.
pub const PROTOCOL_MQ: u8 = 0;
/// VHOST_USER_PROTOCOL_F_LOG_SHMFD: the log of written pages is a file that comes with its message.
pub const PROTOCOL_LOG_SHMFD: u8 = 1;
/// VHOST_USER_PROTOCOL_F_RARP.
pub const PROTOCOL_RARP: u8 = 2;
/// VHOST_USER_PROTOCOL_F_REPLY_ACK.
pub const PROTOCOL_REPLY_ACK: u8 = 3;
/// VHOST_USER_PROTOCOL_F_MTU.
pub const PROTOCOL_MTU: u8 = 4;
/// VHOST_USER_PROTOCOL_F_BACKEND_REQ: a socket for requests of ours, of which there are none.
pub const PROTOCOL_BACKEND_REQ: u8 = 5;
/// VHOST_USER_PROTOCOL_F_CRYPTO_SESSION: a crypto device's; DPDK offers it for every device.
pub const PROTOCOL_CRYPTO_SESSION: u8 = 7;
/// VHOST_USER_PROTOCOL_F_BACKEND_SEND_FD: descriptors with requests of ours.
pub const PROTOCOL_BACKEND_SEND_FD: u8 = 10;
/// VHOST_USER_PROTOCOL_F_HOST_NOTIFIER: one of the requests that we do not make.
pub const PROTOCOL_HOST_NOTIFIER: u8 = 11;
/// VHOST_USER_PROTOCOL_F_RESET_DEVICE.
pub const PROTOCOL_RESET_DEVICE: u8 = 13;
/// VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS.
pub const PROTOCOL_CONFIGURE_MEM_SLOTS: u8 = 15;
/// VHOST_USER_PROTOCOL_F_STATUS.
pub const PROTOCOL_STATUS: u8 = 16;
/// VHOST_USER_PROTOCOL_F_DEVICE_STATE: a state of ours travels in the front-end's migration stream.
pub const PROTOCOL_DEVICE_STATE: u8 = 19;

/// All protocol features, by bit: those of other backends too, whose profiles name them.
pub static PROTOCOL: &[ProtocolFeature] = &[
    ProtocolFeature { bit: PROTOCOL_MQ, name: "mq" },
    ProtocolFeature { bit: PROTOCOL_LOG_SHMFD, name: "log_shmfd" },
    ProtocolFeature { bit: PROTOCOL_RARP, name: "rarp" },
    ProtocolFeature { bit: PROTOCOL_REPLY_ACK, name: "reply_ack" },
    ProtocolFeature { bit: PROTOCOL_MTU, name: "mtu" },
    ProtocolFeature { bit: PROTOCOL_BACKEND_REQ, name: "backend_req" },
    ProtocolFeature { bit: 6, name: "cross_endian" },
    ProtocolFeature { bit: PROTOCOL_CRYPTO_SESSION, name: "crypto_session" },
    ProtocolFeature { bit: 8, name: "pagefault" },
    ProtocolFeature { bit: 9, name: "config" },
    ProtocolFeature { bit: PROTOCOL_BACKEND_SEND_FD, name: "backend_send_fd" },
    ProtocolFeature { bit: PROTOCOL_HOST_NOTIFIER, name: "host_notifier" },
    ProtocolFeature { bit: 12, name: "inflight_shmfd" },
    ProtocolFeature { bit: PROTOCOL_RESET_DEVICE, name: "reset_device" },
    ProtocolFeature { bit: 14, name: "inband_notifications" },
    ProtocolFeature { bit: PROTOCOL_CONFIGURE_MEM_SLOTS, name: "configure_mem_slots" },
    ProtocolFeature { bit: PROTOCOL_STATUS, name: "status" },
    ProtocolFeature { bit: 17, name: "xen_mmap" },
    ProtocolFeature { bit: 18, name: "shared_object" },
    ProtocolFeature { bit: PROTOCOL_DEVICE_STATE, name: "device_state" },
    ProtocolFeature { bit: 20, name: "get_vring_base_inflight" },
    ProtocolFeature { bit: 21, name: "gpa_addresses" },
    ProtocolFeature { bit: 22, name: "shmem" },
];

/// The protocol features whose messages this version answers.
pub const PROTOCOL_IMPLEMENTED: FeatureSet = FeatureSet(
    1 << PROTOCOL_MQ
        | 1 << PROTOCOL_LOG_SHMFD
        | 1 << PROTOCOL_RARP
        | 1 << PROTOCOL_REPLY_ACK
        | 1 << PROTOCOL_MTU
        | 1 << PROTOCOL_BACKEND_REQ
        | 1 << PROTOCOL_CRYPTO_SESSION
        | 1 << PROTOCOL_BACKEND_SEND_FD
        | 1 << PROTOCOL_HOST_NOTIFIER
        | 1 << PROTOCOL_RESET_DEVICE
        | 1 << PROTOCOL_CONFIGURE_MEM_SLOTS
        | 1 << PROTOCOL_STATUS
        | 1 << PROTOCOL_DEVICE_STATE,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_and_names_occur_once_and_ascend() {
        assert!(FEATURES.windows(2).all(|pair| pair[0].bit < pair[1].bit));
        for feature in FEATURES {
            assert_eq!(by_name(feature.name).unwrap().bit, feature.bit);
        }
        assert!(PROTOCOL.windows(2).all(|pair| pair[0].bit < pair[1].bit));
        for feature in PROTOCOL {
            assert_eq!(protocol_by_name(feature.name).unwrap().bit, feature.bit);
        }
    }

    #[test]
    fn names_of_the_specification_follow_from_ours() {
        for (name, of_the_specification) in [
            ("mrg_rxbuf", "VIRTIO_NET_F_MRG_RXBUF"),
            ("indirect_desc", "VIRTIO_F_INDIRECT_DESC"),
            ("protocol_features", "VHOST_USER_F_PROTOCOL_FEATURES"),
            ("log_all", "VHOST_F_LOG_ALL"),
            ("ring_reset", "VIRTIO_F_RING_RESET"),
            ("rss", "VIRTIO_NET_F_RSS"),
        ] {
            assert_eq!(by_name(name).unwrap().spec_name(), of_the_specification);
        }
    }

    #[test]
    fn what_cannot_be_offered_says_who_stands_in_the_way() {
        for (name, who) in [
            ("guest_uso4", "QEMU hides it behind every vhost-user backend"),
            ("guest_uso6", "has_uso"),
            ("host_uso", "the software for it is here"),
            ("rss", "no message for the guest's key and table"),
            ("hash_report", "no message for the types of hash"),
            ("hash_tunnel", "no message for the types of hash"),
            ("notf_coal", "QEMU answers the guest's control queue"),
            ("vq_notf_coal", "QEMU answers the guest's control queue"),
            ("device_stats", "QEMU answers the guest's control queue"),
            ("guest_udp_tunnel_gso", "bits 0 to 63"),
            ("host_udp_tunnel_gso_csum", "bits 0 to 63"),
            ("rss_context", "bits 0 to 63"),
            ("notification_data", "eventfds"),
            ("order_platform", "QEMU has no property"),
            ("guest_hdrlen", "QEMU has no property"),
            ("rsc_ext", "QEMU 7.2"),
        ] {
            let why = obstacle(name).unwrap_or_else(|| panic!("{name} could be offered"));
            assert!(why.contains(who), "{name}: {why}");
        }
        let reserved = FEATURES.iter().filter(|it| matches!(it.provider, Reserved(_)));
        assert!(reserved.clone().all(|it| !IMPLEMENTED.has(it.bit)));
        assert!(BEYOND.iter().all(|name| by_name(name).is_none()));
        for name in ["csum", "mac", "log_all", "nonsense"] {
            assert_eq!(obstacle(name), None, "{name}");
        }
    }

    #[test]
    fn only_what_a_backend_provides_is_implemented() {
        for bit in IMPLEMENTED.bits() {
            let feature = FEATURES.iter().find(|feature| feature.bit == bit).unwrap();
            assert!(matches!(feature.provider, Backend | Protocol), "{}", feature.name);
        }
    }

    #[test]
    fn numbers_are_those_of_the_kernels_headers() {
        use virtio_bindings::{virtio_config, virtio_net, virtio_ring};
        let same = [
            (CSUM, virtio_net::VIRTIO_NET_F_CSUM),
            (MTU, virtio_net::VIRTIO_NET_F_MTU),
            (MRG_RXBUF, virtio_net::VIRTIO_NET_F_MRG_RXBUF),
            (CTRL_VQ, virtio_net::VIRTIO_NET_F_CTRL_VQ),
            (MQ, virtio_net::VIRTIO_NET_F_MQ),
            (INDIRECT_DESC, virtio_ring::VIRTIO_RING_F_INDIRECT_DESC),
            (EVENT_IDX, virtio_ring::VIRTIO_RING_F_EVENT_IDX),
            (NOTIFY_ON_EMPTY, virtio_config::VIRTIO_F_NOTIFY_ON_EMPTY),
            (ANY_LAYOUT, virtio_config::VIRTIO_F_ANY_LAYOUT),
            (GSO, virtio_net::VIRTIO_NET_F_GSO),
            (VERSION_1, virtio_config::VIRTIO_F_VERSION_1),
        ];
        for (ours, theirs) in same {
            assert_eq!(u32::from(ours), theirs);
        }
    }
}
