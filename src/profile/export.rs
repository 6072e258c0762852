//! A profile as other programs want to have it: QEMU's arguments, libvirt's XML, a feature file of
//! Node Feature Discovery, a provider file of Nova.
//!
//! A guest's interface is made by two halves. The backend's is bound to its profile; QEMU's
//! follows its own defaults, which differ between machine types, unless told otherwise. So every
//! bit that QEMU decides, or could take away, is said here: on what the profile has, off what it
//! lacks. Properties are those of virtio-net-pci (QEMU 7.2, `hw/net/virtio-net.c` and
//! `include/hw/virtio/virtio.h`); what came later is named only where a profile needs it on.
//!
//! Pure text. What cannot be expressed is an error, never left out.

#![forbid(unsafe_code)]

use std::fmt::Write;

use crate::device::features::{self, FeatureSet};

use super::Profile;

/// QEMU's rings (`VIRTIO_NET_RX_QUEUE_MIN_SIZE`, `VIRTQUEUE_MAX_SIZE`), entries.
const QEMU_RING_MIN: u16 = 256;
const QEMU_RING_MAX: u16 = 1024;
/// Characters of a label's name and of its value (Kubernetes, "Labels and Selectors").
const LABEL_MAX: usize = 63;
/// Hexadecimal digits of the digest that a label's value has.
const LABEL_DIGEST: usize = 16;
/// The namespace of our labels; NFD wants one.
const LABEL_NAMESPACE: &str = "profile.isonic.org";
/// Characters of a trait (Nova's provider schema).
const TRAIT_MAX: usize = 255;
const TRAIT_PREFIX: &str = "CUSTOM_ISONIC_";
/// The device's name in libvirt's XML; `ua-` is for names that users give.
const ALIAS: &str = "ua-isonic-net0";

/// Why a profile cannot be exported.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
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
    /// The name makes no label or trait.
    #[error(
        "\"{name}\" cannot be part of {what} ({rule}); give the interface a plain name in a \
         profile file"
    )]
    Name {
        /// The profile's name.
        name: String,
        /// "a node label" or "a trait".
        what: &'static str,
        /// What it may consist of.
        rule: &'static str,
    },
}

/// What of a VM's device is not in the profile.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attachment {
    /// Where the backend listens.
    pub socket: String,
    /// The guest's MAC address; None leaves it to QEMU or libvirt.
    pub mac: Option<String>,
    /// Queue pairs of this VM; None is the profile's limit.
    pub queue_pairs: Option<u16>,
    /// Whether QEMU listens on the socket, and the backend connects.
    pub client: bool,
}

/// Where libvirt's XML has a property.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Xml {
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
struct Property {
    qemu: &'static str,
    feature: &'static str,
    xml: Xml,
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
/// Shown if and only if host_mtu is given.
const BY_HOST_MTU: &str = "mtu";

fn bit(name: &str) -> u8 {
    // A test asks for every name of this file.
    features::by_name(name).map_or(u8::MAX, |feature| feature.bit)
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// QEMU's half of one device: everything that is settled before it is written down.
struct Device {
    /// Each property to be said, and whether it is on.
    properties: Vec<(&'static Property, bool)>,
    ring_size: u16,
    queue_pairs: u16,
    host_mtu: Option<u16>,
}

impl Device {
    fn new(profile: &Profile, attachment: &Attachment) -> Result<Self, ExportError> {
        let offered = profile.features.union(profile.frontend_features);
        check_bits(profile)?;
        let name = || profile.name.clone();
        if profile.ring_size_max < QEMU_RING_MIN {
            let ring_size_max = profile.ring_size_max;
            return Err(ExportError::RingTooSmall { profile: name(), ring_size_max });
        }
        let limit = profile.queue_pairs_max;
        let wanted = attachment.queue_pairs.unwrap_or(limit);
        if wanted == 0 || wanted > limit {
            return Err(ExportError::QueuePairs { profile: name(), wanted, limit });
        }
        let said = PROPERTIES.iter().map(|property| (property, offered.has(bit(property.feature))));
        Ok(Self {
            properties: said.filter(|(property, on)| *on || !property.only_on).collect(),
            ring_size: profile.ring_size_max.min(QEMU_RING_MAX),
            queue_pairs: wanted,
            host_mtu: offered.has(bit(BY_HOST_MTU)).then_some(profile.mtu),
        })
    }

    /// The attributes of one of the XML's elements.
    fn attributes(&self, select: impl Fn(Xml) -> Option<&'static str>) -> String {
        self.properties.iter().fold(String::new(), |mut text, (property, on)| {
            if let Some(attribute) = select(property.xml) {
                // Writing to a String cannot fail, here and below.
                let _ = write!(text, " {attribute}='{}'", on_off(*on));
            }
            text
        })
    }
}

fn check_bits(profile: &Profile) -> Result<(), ExportError> {
    let shown = profile.guest_features();
    let name = || profile.name.clone();
    let always: FeatureSet = ALWAYS_SHOWN.into_iter().map(bit).collect();
    let bits = always.without(shown);
    if !bits.is_empty() {
        return Err(ExportError::AlwaysShown { profile: name(), bits });
    }
    let said = PROPERTIES.iter().map(|property| property.feature).chain([BY_HOST_MTU]);
    let bits = shown.without(always).without(said.map(bit).collect());
    if !bits.is_empty() {
        return Err(ExportError::Inexpressible { profile: name(), bits });
    }
    Ok(())
}

/// QEMU's arguments, each with its value: `-netdev` and `-device`. They refer to a character
/// device with the id `chardev`, and the VM's memory must be shared.
///
/// # Errors
/// [`ExportError`].
pub fn qemu(
    profile: &Profile,
    attachment: &Attachment,
    chardev: &str,
) -> Result<Vec<String>, ExportError> {
    let device = Device::new(profile, attachment)?;
    let chardev = escaped(chardev);
    let netdev =
        format!("vhost-user,id={chardev}-net,chardev={chardev},queues={}", device.queue_pairs);
    let mut text = format!("virtio-net-pci,netdev={chardev}-net");
    if let Some(mac) = &attachment.mac {
        let _ = write!(text, ",mac={}", escaped(mac));
    }
    // virtio 1 only: no legacy interface stands beside the profile's.
    text.push_str(",disable-legacy=on,disable-modern=off");
    let size = device.ring_size;
    let _ = write!(text, ",rx_queue_size={size},tx_queue_size={size}");
    if let Some(mtu) = device.host_mtu {
        let _ = write!(text, ",host_mtu={mtu}");
    }
    for (property, on) in &device.properties {
        let _ = write!(text, ",{}={}", property.qemu, on_off(*on));
    }
    Ok(["-netdev".to_owned(), netdev, "-device".to_owned(), text].into())
}

/// QEMU's option values end at a comma, unless it is doubled (qemu(1)).
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// A fragment of libvirt's domain XML: the interface, and what has no XML form as overrides
/// (libvirt, formatdomain.html, "vhost-user interface"; drvqemu.html, "Overriding properties of
/// QEMU devices", since libvirt 8.2).
///
/// # Errors
/// [`ExportError`].
pub fn libvirt(profile: &Profile, attachment: &Attachment) -> Result<String, ExportError> {
    let device = Device::new(profile, attachment)?;
    let mut text = format!(
        "<!-- {}, digest {}: merge into the VM's <domain>. Its memory must be shared:\n     \
         <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking> -->\n\
         <domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>\n  \
         <devices>\n",
        comment(&profile.name),
        profile.digest()
    );
    text.push_str(&interface(&device, attachment));
    text.push_str("  </devices>\n");
    text.push_str(&overrides(&device));
    text.push_str("</domain>\n");
    Ok(text)
}

/// What has no XML form. `<mtu>` is one, but libvirt 9.0 wants to set it on a host interface too,
/// which a vhost-user device has not, and then does not start the VM.
fn overrides(device: &Device) -> String {
    let mut text =
        format!("  <qemu:override>\n    <qemu:device alias='{ALIAS}'>\n      <qemu:frontend>\n");
    if let Some(mtu) = device.host_mtu {
        let _ = writeln!(
            text,
            "        <qemu:property name='host_mtu' type='unsigned' value='{mtu}'/>"
        );
    }
    for (property, on) in device.properties.iter().filter(|(property, _)| property.xml == Override)
    {
        let _ = writeln!(
            text,
            "        <qemu:property name='{}' type='bool' value='{on}'/>",
            property.qemu
        );
    }
    text.push_str("      </qemu:frontend>\n    </qemu:device>\n  </qemu:override>\n");
    text
}

fn interface(device: &Device, attachment: &Attachment) -> String {
    let mut text = String::from("    <interface type='vhostuser'>\n");
    if let Some(mac) = &attachment.mac {
        let _ = writeln!(text, "      <mac address='{}'/>", attribute(mac));
    }
    let socket = attribute(&attachment.socket);
    // The mode is QEMU's.
    if attachment.client {
        let _ = writeln!(text, "      <source type='unix' path='{socket}' mode='server'/>");
    } else {
        let _ = writeln!(
            text,
            "      <source type='unix' path='{socket}' mode='client'>\n        \
             <reconnect enabled='yes' timeout='1'/>\n      </source>"
        );
    }
    let driver = device.attributes(|xml| if let Driver(name) = xml { Some(name) } else { None });
    let host = device.attributes(|xml| if let Host(name) = xml { Some(name) } else { None });
    let guest = device.attributes(|xml| if let Guest(name) = xml { Some(name) } else { None });
    let (pairs, size) = (device.queue_pairs, device.ring_size);
    let _ = writeln!(
        text,
        "      <model type='virtio-non-transitional'/>\n      \
         <driver queues='{pairs}' rx_queue_size='{size}' tx_queue_size='{size}'{driver}>\n        \
         <host{host}/>\n        <guest{guest}/>\n      </driver>"
    );
    let _ = writeln!(text, "      <alias name='{ALIAS}'/>\n    </interface>");
    text
}

/// XML 1.0, 2.4: what an attribute's value in apostrophes cannot hold.
fn attribute(value: &str) -> String {
    let value = value.replace('&', "&amp;").replace('<', "&lt;");
    value.replace('\'', "&apos;")
}

/// XML 1.0, 2.5: a comment holds no two hyphens in a row.
fn comment(value: &str) -> String {
    value.replace("--", "- -")
}

/// A feature file for Node Feature Discovery's `local` source
/// (`/etc/kubernetes/node-feature-discovery/features.d/`; its customization guide, "Input
/// format"): one label for each profile, whose value begins the digest.
///
/// # Errors
/// [`ExportError::Name`].
pub fn nfd(profiles: &[&Profile]) -> Result<String, ExportError> {
    let mut text = String::from("# The interface profiles that this node's isonic can keep.\n");
    for profile in profiles {
        let name = &profile.name;
        let edges = [name.bytes().next(), name.bytes().last()];
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        let ends_well = edges.iter().flatten().all(u8::is_ascii_alphanumeric);
        if name.len() > LABEL_MAX || !name.bytes().all(plain) || !ends_well {
            return Err(ExportError::Name {
                name: name.clone(),
                what: "a node label",
                rule: "63 letters, digits and . _ -, the first and the last a letter or digit",
            });
        }
        let digest = profile.digest();
        let _ = writeln!(text, "{LABEL_NAMESPACE}/{name}={}", &digest[..LABEL_DIGEST]);
    }
    Ok(text)
}

/// A provider file for Nova (`[compute] provider_config_location`; its "Managing Resource
/// Providers Using Config Files", schema 1.0): one trait for each profile.
///
/// # Errors
/// [`ExportError::Name`].
pub fn nova(profiles: &[&Profile]) -> Result<String, ExportError> {
    let mut text = String::from(
        "# The interface profiles that this host's isonic can keep. nova-compute reads this file\n\
         # when it starts.\n\
         meta:\n  schema_version: '1.0'\n\
         providers:\n  - identification:\n      uuid: '$COMPUTE_NODE'\n    \
         traits:\n      additional:\n",
    );
    let mut seen = Vec::new();
    for profile in profiles {
        let name = trait_name(&profile.name);
        if name.len() > TRAIT_MAX || seen.contains(&name) {
            return Err(ExportError::Name {
                name: profile.name.clone(),
                what: "a trait of its own",
                rule: "255 capital letters, digits and _, which every other character becomes",
            });
        }
        let _ = writeln!(text, "        - '{name}'");
        seen.push(name);
    }
    Ok(text)
}

/// Traits consist of capital letters, digits and underscores.
fn trait_name(profile: &str) -> String {
    let plain =
        |byte: u8| if byte.is_ascii_alphanumeric() { byte.to_ascii_uppercase() } else { b'_' };
    TRAIT_PREFIX.chars().chain(profile.bytes().map(plain).map(char::from)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::Catalog;

    fn v1() -> Profile {
        Catalog::embedded().get("org.isonic.net.v1").unwrap().as_ref().clone()
    }

    fn device(profile: &Profile, attachment: &Attachment) -> Vec<String> {
        let arguments = qemu(profile, attachment, "vhost").unwrap();
        assert_eq!((arguments[0].as_str(), arguments[2].as_str()), ("-netdev", "-device"));
        arguments[3].split(',').map(str::to_owned).collect()
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
    fn qemu_is_told_all_that_the_profile_has_and_all_that_it_lacks() {
        let attachment = Attachment { mac: Some("52:54:00:00:00:01".into()), ..Default::default() };
        let said = device(&v1(), &attachment);
        for wanted in [
            "mac=52:54:00:00:00:01",
            "disable-legacy=on",
            "host_mtu=1500",
            "rx_queue_size=1024",
            "mrg_rxbuf=on",
            "mq=on",
            "ctrl_vq=on",
            "csum=off",
            "guest_announce=off",
            "packed=off",
            "ctrl_guest_offloads=off",
            "queue_reset=off",
        ] {
            assert!(said.contains(&wanted.to_owned()), "{wanted} is not in {said:?}");
        }
        assert!(!said.iter().any(|property| property.starts_with("in_order")));
    }

    #[test]
    fn without_the_mtu_bit_no_mtu_is_given() {
        let features = v1().features.without([features::MTU].into_iter().collect());
        let said = device(&Profile { features, ..v1() }, &Attachment::default());
        assert!(!said.iter().any(|property| property.starts_with("host_mtu")));
    }

    #[test]
    fn what_qemu_cannot_do_is_refused_and_not_left_out() {
        let refused = |profile: &Profile| qemu(profile, &Attachment::default(), "v").unwrap_err();
        let standby: FeatureSet = ["standby"].into_iter().map(bit).collect();
        let wide = Profile { frontend_features: v1().frontend_features.union(standby), ..v1() };
        assert!(
            matches!(refused(&wide), ExportError::Inexpressible { bits, .. } if bits == standby)
        );
        let no_mac = Profile { frontend_features: FeatureSet::default(), ..v1() };
        assert!(matches!(refused(&no_mac), ExportError::AlwaysShown { .. }));
        let small = Profile { ring_size_max: 128, ..v1() };
        assert!(matches!(refused(&small), ExportError::RingTooSmall { .. }));
        let attachment = Attachment { queue_pairs: Some(17), ..Default::default() };
        let error = libvirt(&v1(), &attachment).unwrap_err();
        assert!(error.to_string().contains("at most 16 queue pairs, and 17"));
    }

    #[test]
    fn larger_rings_than_qemus_are_qemus_largest() {
        let said = device(&Profile { ring_size_max: 32768, ..v1() }, &Attachment::default());
        assert!(said.contains(&"tx_queue_size=1024".to_owned()));
    }

    #[test]
    fn nothing_given_by_a_user_breaks_out_of_its_place() {
        let attachment = Attachment {
            socket: "/run/a'b<&.sock".into(),
            mac: Some("x,y".into()),
            ..Default::default()
        };
        let arguments = qemu(&v1(), &attachment, "a,b").unwrap();
        assert!(arguments[1].contains("chardev=a,,b,queues=16"));
        assert!(arguments[3].contains("mac=x,,y,"));
        let xml = libvirt(&v1(), &attachment).unwrap();
        assert!(xml.contains("path='/run/a&apos;b&lt;&amp;.sock'"));
    }

    #[test]
    fn a_node_has_one_label_for_each_profile() {
        let file = nfd(&[&v1()]).unwrap();
        let label = format!("profile.isonic.org/org.isonic.net.v1={}", &v1().digest()[..16]);
        assert_eq!(file.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>(), [label]);
        for name in ["a+b", "-a", &"a".repeat(64)] {
            let named = Profile { name: name.into(), ..v1() };
            assert!(matches!(nfd(&[&named]), Err(ExportError::Name { .. })), "{name}");
        }
    }

    #[test]
    fn a_host_has_one_trait_for_each_profile_and_none_stands_for_two() {
        let file = nova(&[&v1()]).unwrap();
        assert!(file.ends_with("        - 'CUSTOM_ISONIC_ORG_ISONIC_NET_V1'\n"), "{file}");
        let twin = Profile { name: "org-isonic-net.v1".into(), ..v1() };
        assert!(matches!(nova(&[&v1(), &twin]), Err(ExportError::Name { .. })));
    }
}
