//! The profile file: the values found, and how, for the person who reads it.

use std::fmt::Write;
use std::path::Path;

use crate::device::features::{self, FeatureSet, GUEST_CSUM};
use crate::profile::{self, Profile};

use super::measured::{HowFound, MeasuredInterface};
use super::target::CaptureError;

/// The features that virtio-net-pci shows whatever the backend offers (QEMU 7.2 to 11.1, its
/// defaults).
const FRONTEND_DEFAULTS: [&str; 7] =
    ["mac", "status", "ctrl_vq", "ctrl_rx", "ctrl_vlan", "ctrl_rx_extra", "ctrl_mac_addr"];
/// Shown by default, and of use only where the guest has offloads to turn off.
const CTRL_GUEST_OFFLOADS: &str = "ctrl_guest_offloads";

/// The profile and its file.
pub(super) fn profile(
    name: &str,
    interface: &MeasuredInterface,
) -> Result<(Profile, String), CaptureError> {
    let text = text(name, interface);
    let profile = profile::parse(Path::new("the captured profile"), &text)
        .map_err(CaptureError::NoProfile)?;
    Ok((profile, text))
}

fn text(name: &str, interface: &MeasuredInterface) -> String {
    let mut text = String::from(
        "# Captured from a running backend by `isonic profile capture`: its answers, and what it\n\
         # took when tried. No ring was started.\n\n",
    );
    let summary = format!(
        "captured: {} feature bits, up to {} queue pairs, MTU {}",
        interface.features.bits().count(),
        interface.queue_pairs.0,
        interface.mtu.0
    );
    // Writing to a String cannot fail, here and below.
    let _ = writeln!(text, "name = {name:?}\nsummary = {summary:?}\n");
    text.push_str("# The answer to GET_FEATURES.\n");
    list(&mut text, "features", &interface.features.names());
    let frontend = frontend_features(interface.features);
    let frontend_bits: FeatureSet =
        frontend.iter().filter_map(|name| Some(features::by_name(name)?.bit)).collect();
    let all = interface.features.union(frontend_bits);
    let unmet: Vec<&str> =
        features::unmet(interface.features, all).map(|(feature, _)| feature.name).collect();
    if !unmet.is_empty() {
        text.push_str(
            "# Offered against virtio 1.2, 5.1.3.1: each of these needs a feature that is not.\n",
        );
        list(&mut text, "without_prerequisites", &unmet);
    }
    text.push_str(
        "# Not measured, because these are the front-end's: what QEMU shows by default, whatever\n\
         # the backend offers.\n",
    );
    list(&mut text, "frontend_features", &frontend);
    text.push_str("# The answer to GET_PROTOCOL_FEATURES.\n");
    let protocol = features::protocol_names(interface.protocol_features);
    list(&mut text, "protocol_features", &protocol);
    numbers(&mut text, interface);
    text
}

fn numbers(text: &mut String, interface: &MeasuredInterface) {
    let (size, finding) = interface.ring_size;
    let how = match finding {
        HowFound::EverythingAcknowledged => {
            "Not found: the backend acknowledges every SET_VRING_NUM, also those that virtio\n\
             # forbids. This is virtio's own limit."
        }
        _ => "The largest size that SET_VRING_NUM and SET_VRING_ADDR took, by trying.",
    };
    let _ = writeln!(text, "# {how}\nring_size_max = {size}\n");
    let (pairs, finding) = interface.queue_pairs;
    let how = match finding {
        HowFound::Told => "The answer to GET_QUEUE_NUM.",
        _ => "The backend does not offer several queue pairs.",
    };
    let _ = writeln!(text, "# {how}\nqueue_pairs_max = {pairs}\n");
    let (mtu, finding) = interface.mtu;
    let how = match finding {
        HowFound::Tried => "The largest MTU that NET_SET_MTU took, by trying.",
        HowFound::EverythingAcknowledged => {
            "Not found: the backend acknowledges every NET_SET_MTU, so the front-end's host_mtu\n\
             # decides. Write the VMs' own here if it is not Ethernet's."
        }
        _ => {
            "Not found: the backend cannot be asked, so the front-end's host_mtu decides.\n\
             # Write the VMs' own here if it is not Ethernet's."
        }
    };
    let _ = writeln!(text, "# {how}\nmtu = {mtu}\n");
    let (slots, finding) = interface.memory_slots;
    let how = match finding {
        HowFound::Told => "The answer to GET_MAX_MEM_SLOTS.",
        _ => "What SET_MEM_TABLE holds: the backend does not offer configure_mem_slots.",
    };
    let _ = writeln!(text, "# {how}\nmemory_slots = {slots}");
}

fn list<T: AsRef<str>>(text: &mut String, key: &str, names: &[T]) {
    let _ = writeln!(text, "{key} = [");
    for name in names {
        let _ = writeln!(text, "    \"{}\",", name.as_ref());
    }
    text.push_str("]\n\n");
}

/// The defaults, less what would be of no use.
fn frontend_features(offered: FeatureSet) -> Vec<&'static str> {
    let with_offloads = offered.has(GUEST_CSUM).then_some(CTRL_GUEST_OFFLOADS);
    FRONTEND_DEFAULTS.into_iter().chain(with_offloads).collect()
}
