//! QEMU's half of an interface: the settings by which QEMU's guest sees the profile.
//!
//! A guest's interface has two halves. The backend's half is bound to its profile. QEMU's half
//! follows its own defaults, which differ between machine types, unless told otherwise. Every bit
//! that QEMU decides, or could take away, is therefore said: on if the profile has it, else off.
//! Properties are those of virtio-net-pci (QEMU 7.2, `hw/net/virtio-net.c` and
//! `include/hw/virtio/virtio.h`). Later properties are named only where a profile needs them on.
//!
//! Pure data, written down by [`super::export_formats`] for QEMU and by `libvirt` for libvirt. A
//! value that cannot be expressed is an error, and is never left out.

use crate::device::features::{self, FeatureSet};

use super::definition::Profile;

/// QEMU's rings (`VIRTIO_NET_RX_QUEUE_MIN_SIZE`, `VIRTQUEUE_MAX_SIZE`), entries.
const QEMU_RING_MIN: u16 = 256;
const QEMU_RING_MAX: u16 = 1024;

/// Why QEMU cannot show a profile to a guest.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QemuDeviceError {
    /// No property of QEMU's shows these bits to a guest, or hides them from it.
    #[error("{profile}: QEMU has no property for {}", bits.names().join(", "))]
    Inexpressible {
        /// The profile.
        profile: String,
        /// The bits.
        bits: FeatureSet,
    },
    /// QEMU always shows these.
    #[error("{profile}: QEMU always shows {}, and the profile lacks it", bits.names().join(", "))]
    AlwaysShown {
        /// The profile.
        profile: String,
        /// The bits.
        bits: FeatureSet,
    },
    /// QEMU has no rings as small as the profile's.
    #[error(
        "{profile}: its rings have at most {ring_size_max} entries, and QEMU's have at least \
         {QEMU_RING_MIN}"
    )]
    RingTooSmall {
        /// The profile.
        profile: String,
        /// Entries.
        ring_size_max: u16,
    },
    /// More queue pairs than the profile has.
    #[error("{profile}: it has at most {limit} queue pairs, and {wanted} are asked for")]
    QueuePairs {
        /// The profile.
        profile: String,
        /// Asked for.
        wanted: u16,
        /// The profile's.
        limit: u16,
    },
}

/// Where libvirt's XML has a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Xml {
    /// An attribute of `<driver>`.
    Driver(&'static str),
    /// An attribute of `<driver><host>`.
    Host(&'static str),
    /// An attribute of `<driver><guest>`.
    Guest(&'static str),
    /// Nowhere: `<qemu:override>`.
    Override,
}

/// A property of QEMU's that shows one bit or hides it.
#[derive(Debug)]
pub struct Property {
    /// Its name in QEMU.
    pub qemu: &'static str,
    /// Where libvirt has it.
    pub xml: Xml,
    feature: &'static str,
    /// Younger than QEMU 7.2, and off by default: said only if it is on.
    only_on: bool,
}

const fn property(qemu: &'static str, feature: &'static str, xml: Xml) -> Property {
    Property { qemu, feature, xml, only_on: false }
}

use Xml::{Driver, Guest, Host, Override};

/// All bits that QEMU is told about one by one.
static PROPERTIES: &[Property] = &[
    property("csum", "csum", Host("csum")),
    property("gso", "gso", Host("gso")),
    property("host_tso4", "host_tso4", Host("tso4")),
    property("host_tso6", "host_tso6", Host("tso6")),
    property("host_ecn", "host_ecn", Host("ecn")),
    property("host_ufo", "host_ufo", Host("ufo")),
    property("mrg_rxbuf", "mrg_rxbuf", Host("mrg_rxbuf")),
    property("guest_csum", "guest_csum", Guest("csum")),
    property("guest_tso4", "guest_tso4", Guest("tso4")),
    property("guest_tso6", "guest_tso6", Guest("tso6")),
    property("guest_ecn", "guest_ecn", Guest("ecn")),
    property("guest_ufo", "guest_ufo", Guest("ufo")),
    property("event_idx", "event_idx", Driver("event_idx")),
    property("packed", "ring_packed", Driver("packed")),
    property("iommu_platform", "access_platform", Driver("iommu")),
    property("rss", "rss", Driver("rss")),
    property("hash", "hash_report", Driver("rss_hash_report")),
    property("indirect_desc", "indirect_desc", Override),
    property("any_layout", "any_layout", Override),
    property("notify_on_empty", "notify_on_empty", Override),
    property("mq", "mq", Override),
    property("status", "status", Override),
    property("ctrl_vq", "ctrl_vq", Override),
    property("ctrl_rx", "ctrl_rx", Override),
    property("ctrl_vlan", "ctrl_vlan", Override),
    property("ctrl_rx_extra", "ctrl_rx_extra", Override),
    property("ctrl_mac_addr", "ctrl_mac_addr", Override),
    property("ctrl_guest_offloads", "ctrl_guest_offloads", Override),
    property("guest_announce", "guest_announce", Override),
    property("guest_rsc_ext", "rsc_ext", Override),
    property("queue_reset", "ring_reset", Override),
    Property { qemu: "in_order", feature: "in_order", xml: Override, only_on: true },
];

/// Shown whatever is said (QEMU, `virtio_net_get_features`; a device that is no legacy one).
const ALWAYS_SHOWN: [&str; 2] = ["mac", "version_1"];
/// Shown if and only if [`HOST_MTU`] is given.
const BY_HOST_MTU: &str = "mtu";
/// The property with the MTU, bytes.
pub const HOST_MTU: &str = "host_mtu";

fn bit(name: &str) -> u8 {
    // A test asks for every name of this file.
    features::by_name(name).map_or(u8::MAX, |feature| feature.bit)
}

/// QEMU's half of one device: everything that is settled before it is written down.
#[derive(Debug)]
pub struct QemuDevice {
    /// Each property to be said, and whether it is on.
    pub properties: Vec<(&'static Property, bool)>,
    /// `rx_queue_size` and `tx_queue_size`, entries.
    pub ring_size: u16,
    /// `queues`.
    pub queue_pairs: u16,
    /// `host_mtu`, bytes; None where the guest is told of none.
    pub host_mtu: Option<u16>,
    /// Whether drivers from before virtio 1 have an interface too ([`Profile::is_transitional`]).
    pub transitional: bool,
}

impl QemuDevice {
    /// QEMU's settings for this profile; `queue_pairs` is the profile's limit if None.
    ///
    /// # Errors
    /// [`QemuDeviceError`].
    pub fn new(profile: &Profile, queue_pairs: Option<u16>) -> Result<Self, QemuDeviceError> {
        let offered = profile.features.union(profile.frontend_features);
        check_bits(profile)?;
        let name = || profile.name.clone();
        if profile.ring_size_max < QEMU_RING_MIN {
            let ring_size_max = profile.ring_size_max;
            return Err(QemuDeviceError::RingTooSmall { profile: name(), ring_size_max });
        }
        let limit = profile.queue_pairs_max;
        let wanted = queue_pairs.unwrap_or(limit);
        if wanted == 0 || wanted > limit {
            return Err(QemuDeviceError::QueuePairs { profile: name(), wanted, limit });
        }
        let said = PROPERTIES.iter().map(|property| (property, offered.has(bit(property.feature))));
        Ok(Self {
            properties: said.filter(|(property, on)| *on || !property.only_on).collect(),
            ring_size: profile.ring_size_max.min(QEMU_RING_MAX),
            queue_pairs: wanted,
            host_mtu: offered.has(bit(BY_HOST_MTU)).then_some(profile.mtu),
            transitional: profile.is_transitional(),
        })
    }

    /// The names that are ours to say, whether this profile needs them or not.
    pub fn property_names() -> impl Iterator<Item = &'static str> {
        PROPERTIES.iter().map(|property| property.qemu).chain([HOST_MTU])
    }
}

fn check_bits(profile: &Profile) -> Result<(), QemuDeviceError> {
    let shown = profile.guest_features();
    let name = || profile.name.clone();
    let always: FeatureSet = ALWAYS_SHOWN.into_iter().map(bit).collect();
    let bits = always.without(shown);
    if !bits.is_empty() {
        return Err(QemuDeviceError::AlwaysShown { profile: name(), bits });
    }
    let said = PROPERTIES.iter().map(|property| property.feature).chain([BY_HOST_MTU]);
    let bits = shown.without(always).without(said.map(bit).collect());
    if !bits.is_empty() {
        return Err(QemuDeviceError::Inexpressible { profile: name(), bits });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Catalog;

    fn v1() -> Profile {
        Catalog::embedded().get("org.isonic.net.v1").unwrap().as_ref().clone()
    }

    #[test]
    fn every_name_is_known_and_every_bit_said_once() {
        let names = PROPERTIES.iter().map(|property| property.feature);
        let names: Vec<&str> = names.chain(ALWAYS_SHOWN).chain([BY_HOST_MTU]).collect();
        let bits: FeatureSet =
            names.iter().map(|name| features::by_name(name).unwrap().bit).collect();
        assert_eq!(bits.bits().count(), names.len());
    }

    #[test]
    fn what_qemu_cannot_do_is_refused_and_not_left_out() {
        let refused = |profile: &Profile| QemuDevice::new(profile, None).unwrap_err();
        let standby: FeatureSet = ["standby"].into_iter().map(bit).collect();
        let wide = Profile { frontend_features: v1().frontend_features.union(standby), ..v1() };
        assert!(
            matches!(refused(&wide), QemuDeviceError::Inexpressible { bits, .. } if bits == standby)
        );
        let no_mac = Profile { frontend_features: FeatureSet::default(), ..v1() };
        assert!(matches!(refused(&no_mac), QemuDeviceError::AlwaysShown { .. }));
        let small = Profile { ring_size_max: 128, ..v1() };
        assert!(matches!(refused(&small), QemuDeviceError::RingTooSmall { .. }));
        let error = QemuDevice::new(&v1(), Some(17)).unwrap_err();
        assert!(error.to_string().contains("at most 16 queue pairs, and 17"));
    }

    #[test]
    fn larger_rings_than_qemus_are_qemus_largest() {
        let large = Profile { ring_size_max: 32768, ..v1() };
        assert_eq!(QemuDevice::new(&large, None).unwrap().ring_size, 1024);
    }

    #[test]
    fn only_a_profile_that_shows_a_legacy_bit_is_for_legacy_drivers() {
        let transitional = |profile: &Profile| QemuDevice::new(profile, None).unwrap().transitional;
        let dpdk = Catalog::embedded().get("org.dpdk.v22.11").unwrap().clone();
        assert!(transitional(&dpdk) && !transitional(&v1()));
    }
}
