//! A profile in the formats of other programs: QEMU's arguments, a feature file of Node Feature
//! Discovery, a provider file of Nova.
//!
//! Pure text. A value that cannot be expressed is an error, and is never left out.

#![forbid(unsafe_code)]

use std::fmt::Write;

use super::definition::Profile;
use super::qemu_device::{HOST_MTU, QemuDevice, QemuDeviceError};

/// Characters of a label's name and of its value (Kubernetes, "Labels and Selectors").
const LABEL_MAX: usize = 63;
/// Hexadecimal digits of the digest that a label's value has.
const LABEL_DIGEST: usize = 16;
/// The namespace of our labels; NFD wants one.
const LABEL_NAMESPACE: &str = "profile.isonic.org";
/// Characters of a trait (Nova's provider schema).
const TRAIT_MAX: usize = 255;
const TRAIT_PREFIX: &str = "CUSTOM_ISONIC_";

/// Why a profile cannot be exported.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExportError {
    /// QEMU cannot show it.
    #[error(transparent)]
    Frontend(#[from] QemuDeviceError),
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
        /// The characters and length that are allowed.
        rule: &'static str,
    },
}

/// QEMU's arguments, each with its value: `-netdev` and `-device`. They refer to a character
/// device with the id `chardev`, and the VM's memory must be shared. `mac` is left to QEMU and
/// `queue_pairs` is the profile's limit if None.
///
/// # Errors
/// [`ExportError`].
pub fn qemu(
    profile: &Profile,
    mac: Option<&str>,
    queue_pairs: Option<u16>,
    chardev: &str,
) -> Result<Vec<String>, ExportError> {
    let device = QemuDevice::new(profile, queue_pairs)?;
    let chardev = escaped(chardev);
    let netdev =
        format!("vhost-user,id={chardev}-net,chardev={chardev},queues={}", device.queue_pairs);
    let mut text = format!("virtio-net-pci,netdev={chardev}-net");
    if let Some(mac) = mac {
        // Writing to a String cannot fail, here and below.
        let _ = write!(text, ",mac={}", escaped(mac));
    }
    // Without it the bus decides: QEMU shows no legacy interface behind a PCI Express port.
    let _ = write!(text, ",disable-legacy={},disable-modern=off", on_off(!device.transitional));
    let size = device.ring_size;
    let _ = write!(text, ",rx_queue_size={size},tx_queue_size={size}");
    if let Some(mtu) = device.host_mtu {
        let _ = write!(text, ",{HOST_MTU}={mtu}");
    }
    for (property, on) in &device.properties {
        let _ = write!(text, ",{}={}", property.qemu, on_off(*on));
    }
    Ok(["-netdev".to_owned(), netdev, "-device".to_owned(), text].into())
}

fn on_off(on: bool) -> &'static str {
    if on { "on" } else { "off" }
}

/// QEMU's option values end at a comma, unless it is doubled (qemu(1)).
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
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
    use crate::device::features;
    use crate::profile::Catalog;

    fn v1() -> Profile {
        Catalog::embedded().get("org.isonic.net.v1").unwrap().as_ref().clone()
    }

    fn device(profile: &Profile, mac: Option<&str>) -> Vec<String> {
        let arguments = qemu(profile, mac, None, "vhost").unwrap();
        assert_eq!((arguments[0].as_str(), arguments[2].as_str()), ("-netdev", "-device"));
        arguments[3].split(',').map(str::to_owned).collect()
    }

    #[test]
    fn qemu_is_told_all_that_the_profile_has_and_all_that_it_lacks() {
        let said = device(&v1(), Some("52:54:00:00:00:01"));
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
        let said = device(&Profile { features, ..v1() }, None);
        assert!(!said.iter().any(|property| property.starts_with("host_mtu")));
    }

    #[test]
    fn a_transitional_profile_is_shown_to_legacy_drivers_too() {
        let dpdk = Catalog::embedded().get("org.dpdk.v22.11").unwrap().clone();
        let said = device(&dpdk, None);
        assert!(said.contains(&"disable-legacy=off".to_owned()), "{said:?}");
        assert!(said.contains(&"disable-modern=off".to_owned()), "{said:?}");
    }

    #[test]
    fn nothing_given_by_a_user_breaks_out_of_its_place() {
        let arguments = qemu(&v1(), Some("x,y"), None, "a,b").unwrap();
        assert!(arguments[1].contains("chardev=a,,b,queues=16"));
        assert!(arguments[3].contains("mac=x,,y,"));
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
