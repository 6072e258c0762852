//! The place of a NIC on the host, and its other configurators: from sysfs, and the state files of
//! systemd-networkd and NetworkManager.

use std::fs;
use std::path::Path;

use serde::Serialize;

/// A program that configures an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Manager {
    /// systemd-networkd.
    Networkd,
    /// NetworkManager.
    NetworkManager,
}

/// The interfaces with a device on a bus, by name: most likely NICs.
#[must_use]
pub fn physical_interfaces() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let on_a_bus = |path: &Path| path.join("device").exists() && !path.join("phy80211").exists();
    let found = entries.filter(|entry| on_a_bus(&entry.path()));
    let mut names: Vec<String> =
        found.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    names
}

/// A number in a file of the interface's folder in sysfs.
pub(super) fn number(interface: &str, file: &str) -> Option<u64> {
    let path = Path::new("/sys/class/net").join(interface).join(file);
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// The NUMA node of the device on the bus. A virtio device lies on another device, which knows it.
pub(super) fn numa_node(interface: &str) -> Option<u32> {
    number(interface, "device/numa_node")
        .or_else(|| number(interface, "device/../numa_node"))
        // -1 is no u64: the firmware did not say.
        .and_then(|node| u32::try_from(node).ok())
}

/// The program that configures the interface with this index, if known. Both write a file for each
/// interface of the first network namespace.
pub(super) fn manager(index: u32) -> Option<Manager> {
    let namespace = |process: &str| fs::read_link(format!("/proc/{process}/ns/net")).ok();
    if namespace("self")? != namespace("1")? {
        return None;
    }
    let says = |path: String, line: &dyn Fn(&str) -> bool| {
        fs::read_to_string(path).is_ok_and(|text| text.lines().any(line))
    };
    let networkd = |line: &str| {
        line.strip_prefix("ADMIN_STATE=").is_some_and(|state| !matches!(state, "" | "unmanaged"))
    };
    if says(format!("/run/NetworkManager/devices/{index}"), &|line| line == "managed=true") {
        return Some(Manager::NetworkManager);
    }
    says(format!("/run/systemd/netif/links/{index}"), &networkd).then_some(Manager::Networkd)
}
