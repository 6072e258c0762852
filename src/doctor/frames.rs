//! The ways of frames: hooks, modes, lengths, and the NIC's own changes to frames.

use super::drivers;
use super::facts::Promise;
use super::finding::{Finding, list};
use super::subject::Subject;
use crate::config::UplinkMode;
use crate::control::api::{SocketKind, XdpMode};
use crate::xdp::nic::Offloads;
use crate::xdp::{BindMode, RING_ENTRIES, packet_max};

/// Bytes of a frame beyond its MTU: an Ethernet header and two VLAN tags.
const FRAME_OVERHEAD: u32 = 14 + 8;
/// Most frames of a packet in copy mode, where the kernel takes several.
const COPY_FRAMES: usize = 18;

/// The mode that the uplink has, or most likely would get.
pub(super) struct ExpectedMode {
    generic: bool,
    zero_copy: bool,
}

impl ExpectedMode {
    pub(super) fn words(&self) -> &'static str {
        match (self.generic, self.zero_copy) {
            (true, _) => "generic XDP, copy",
            (false, true) => "native XDP, zero-copy",
            (false, false) => "native XDP, copy",
        }
    }
}

pub(super) fn mode(subject: &Subject<'_>) -> ExpectedMode {
    if let Some(view) = subject.served {
        let generic = view.xdp_mode == XdpMode::Generic;
        let zero_copy = view.socket_mode == SocketKind::Zerocopy;
        return ExpectedMode { generic, zero_copy };
    }
    let wanted = subject.candidate.wanted.mode;
    let native = takes_native(subject);
    let generic = wanted == UplinkMode::Generic || (wanted == UplinkMode::Auto && !native);
    let zero_copy = !generic && wanted != UplinkMode::Copy && has_zero_copy(subject);
    ExpectedMode { generic, zero_copy }
}

/// Whether it would take a native program that brings frames. The kind of device decides, then the
/// driver's word, then the table of drivers.
fn takes_native(subject: &Subject<'_>) -> bool {
    if subject.nic.device.generic_only().is_some() {
        return false;
    }
    match &subject.nic.xdp {
        Some(xdp) => xdp.native && xdp.redirect,
        None => drivers::find(&subject.nic.link.driver)
            .is_some_and(|driver| driver.native(subject.kernel()).0),
    }
}

/// Whether it would have zero-copy: by the driver's word, else by the table of drivers.
fn has_zero_copy(subject: &Subject<'_>) -> bool {
    match &subject.nic.xdp {
        Some(xdp) if xdp.native => xdp.zero_copy,
        _ => drivers::find(&subject.nic.link.driver)
            .is_some_and(|driver| driver.zero_copy_since.is_some()),
    }
}

pub(super) fn examine(subject: &Subject<'_>) -> Vec<Finding> {
    let mode = mode(subject);
    let mut findings = vec![native(subject, &mode), zero_copy(subject, &mode)];
    findings.extend(driver_caveat(subject, &mode));
    findings.push(mtu(subject));
    findings.push(long_packets(subject, &mode));
    findings.extend(ring_size(subject, &mode));
    findings.extend(vlan(subject, &mode));
    findings.extend(checksum(subject));
    findings.extend(merging(subject, &mode));
    findings
}

fn native(subject: &Subject<'_>, mode: &ExpectedMode) -> Finding {
    let (id, wanted) = ("native-xdp", subject.candidate.wanted.mode);
    let driver = &subject.nic.link.driver;
    let slower = "every frame becomes a packet of the kernel's first, which takes longer";
    if let Some(view) = subject.served {
        return match mode.generic {
            true => Finding::note(id, format!("the running isonic has none: {}", view.reason))
                .means(slower),
            false => Finding::ok(id, "in use"),
        };
    }
    if wanted == UplinkMode::Generic {
        return Finding::note(id, "generic, as configured").means(slower);
    }
    if takes_native(subject) {
        return match &subject.nic.xdp {
            Some(_) => Finding::ok(id, format!("{driver} has it")),
            None => Finding::note(id, by_table(subject))
                .means("the kernel does not say (it does since Linux 6.3): it will be tried"),
        };
    }
    let ports = subject.nic.device.generic_only();
    let (found, better) = match ports {
        Some(reason) => (reason, "one of its ports as the uplink"),
        None if subject.nic.xdp.is_none() => (by_table(subject), "a NIC with native XDP"),
        None => (format!("{driver} has none"), "a NIC whose driver has native XDP"),
    };
    match mode.generic {
        true => Finding::warning(id, found).means(slower).mend(better),
        false => Finding::problem(id, found)
            .means("the uplink's mode needs it, so that isonic does not start")
            .mend("mode = \"auto\""),
    }
}

/// The entry of a driver in the table, for a kernel that does not say.
fn by_table(subject: &Subject<'_>) -> String {
    let driver = &subject.nic.link.driver;
    match drivers::find(driver).map(|driver| driver.native(subject.kernel())) {
        Some((true, since)) => format!("{driver} has had it since Linux {since}"),
        Some((false, since)) => format!("{driver} has it since Linux {since} only"),
        None => format!("no driver {driver} is known to have it"),
    }
}

fn zero_copy(subject: &Subject<'_>, mode: &ExpectedMode) -> Finding {
    let (id, wanted) = ("zero-copy", subject.candidate.wanted.mode);
    let cost = "each frame is copied once more, and each batch sent takes a system call";
    if let Some(view) = subject.served {
        return match mode.zero_copy {
            true => Finding::ok(id, "in use"),
            false => Finding::note(id, format!("copy mode: {}", view.reason)).means(cost),
        };
    }
    if mode.zero_copy {
        return Finding::ok(id, "the driver has it");
    }
    if has_zero_copy(subject) {
        let finding = Finding::note(id, "the driver has it, and the configuration another mode");
        return finding.means(cost).mend("mode = \"auto\"");
    }
    let driver = &subject.nic.link.driver;
    let known = drivers::find(driver).and_then(|driver| driver.zero_copy_since);
    let found = match known {
        Some(since) => format!("this {driver} has none; it came with Linux {since}"),
        None => format!("driver {driver} has none"),
    };
    match (wanted, known) {
        (UplinkMode::Zerocopy, _) => Finding::problem(id, found)
            .means("the uplink's mode is zerocopy, so that isonic does not start")
            .mend("mode = \"auto\""),
        (_, Some(_)) => Finding::warning(id, found)
            .means(format!("copy mode: {cost}"))
            .mend("install a later kernel"),
        (_, None) => Finding::note(id, found).means(format!("copy mode: {cost}")),
    }
}

fn driver_caveat(subject: &Subject<'_>, mode: &ExpectedMode) -> Option<Finding> {
    let caveat = drivers::find(&subject.nic.link.driver)?.caveat?;
    // Most caveats are about zero-copy. A virtio device's says what it needs for zero-copy, which
    // matters where it has none.
    (mode.zero_copy || !has_zero_copy(subject)).then(|| {
        let found = format!("known of {}", subject.nic.link.driver);
        Finding::note("driver-faults", found).means(caveat)
    })
}

/// Whether the MTUs promised to guests fit.
fn mtu(subject: &Subject<'_>) -> Finding {
    let (id, link, name) = ("mtu", &subject.nic.link, subject.name);
    let fits = |promise: &&Promise| u32::from(promise.mtu) <= link.mtu;
    let raise = |promise: &Promise| {
        let mtu = u32::from(promise.mtu);
        match link.mtu_max {
            Some(max) if max < mtu => format!("another profile: the driver takes up to {max}"),
            _ => format!("ip link set dev {name} mtu {mtu}"),
        }
    };
    let broken = subject.candidate.promises.iter().filter(|promise| !fits(promise));
    if let Some(promise) = broken.max_by_key(|promise| promise.mtu) {
        let who = promise.port.as_ref().map(|port| format!(" of port \"{port}\""));
        let (profile, who) = (&promise.profile, who.unwrap_or_default());
        return Finding::problem(
            id,
            format!("{}, and {profile}{who} has {}", link.mtu, promise.mtu),
        )
        .means("frames that are promised to the guest do not fit, so that the port is refused")
        .mend(raise(promise));
    }
    let fitting: Vec<&Promise> = subject.facts.profiles.iter().filter(fits).collect();
    if fitting.is_empty() {
        let smallest = subject.facts.profiles.iter().min_by_key(|promise| promise.mtu);
        let finding = Finding::problem(id, link.mtu.to_string());
        return match smallest {
            Some(promise) => finding
                .means(format!("no profile fits; {} has the smallest MTU", promise.profile))
                .mend(raise(promise)),
            None => finding.means("there is no profile"),
        };
    }
    let names: Vec<&str> = fitting.iter().map(|promise| promise.profile.as_str()).collect();
    Finding::ok(id, format!("{}: fits {}", link.mtu, list(&names)))
}

fn long_packets(subject: &Subject<'_>, mode: &ExpectedMode) -> Finding {
    let (id, mtu) = ("long-packets", subject.nic.link.mtu);
    let frame_max = mtu + FRAME_OVERHEAD;
    let one = packet_max(BindMode::Copy, 1);
    let longest = match (subject.served, mode.zero_copy) {
        (Some(view), _) => view.packet_max,
        (None, true) => {
            let frames = subject.nic.xdp.as_ref().map_or(1, |xdp| xdp.zero_copy_frames);
            packet_max(BindMode::ZeroCopy, frames as usize)
        }
        (None, false) => packet_max(BindMode::Copy, COPY_FRAMES),
    };
    // The kernel wants a native program to say that it takes packets in several buffers, as ours
    // does, and the driver to give such packets.
    let native_takes = subject.nic.xdp.as_ref().is_none_or(|xdp| xdp.multi_buffer);
    if frame_max > one && !mode.generic && !native_takes && subject.served.is_none() {
        return Finding::warning(id, format!("the driver gives XDP no packets beyond {one} bytes"))
            .means(format!("with an MTU of {mtu} it may take no native program"))
            .mend(format!("ip link set dev {} mtu 1500", subject.name));
    }
    if frame_max > longest {
        return Finding::warning(id, format!("up to {longest} bytes, MTU {mtu}"))
            .means("longer ones are dropped, and ports with such an MTU refused")
            .mend("mode = \"copy\", which takes several frames to a packet");
    }
    Finding::ok(id, format!("up to {longest} bytes, MTU {mtu}"))
}

/// A driver that starts with fewer frames than its ring has may never take the others (ice, i40e:
/// anza-xyz/agave#6836).
fn ring_size(subject: &Subject<'_>, mode: &ExpectedMode) -> Option<Finding> {
    let (name, id) = (subject.name, "nic-rings");
    let rings = subject.nic.rings.as_ref()?;
    let found = format!("rx {} of {}, tx {} of {}", rings.rx, rings.rx_max, rings.tx, rings.tx_max);
    if mode.zero_copy && rings.rx > RING_ENTRIES {
        let finding = Finding::warning(id, found);
        return Some(
            finding
                .means(format!(
                    "a queue has {RING_ENTRIES} frames to receive into, and drivers were seen to \
                     lose some for good that start with fewer than their ring takes"
                ))
                .mend(format!("ethtool --set-ring {name} rx {RING_ENTRIES}")),
        );
    }
    Some(Finding::ok(id, found))
}

fn vlan(subject: &Subject<'_>, mode: &ExpectedMode) -> Option<Finding> {
    let (id, name) = ("vlan-tags", subject.name);
    if let Some(finding) = caution(subject, mode, id) {
        return Some(finding);
    }
    let device = &subject.nic.device;
    if device.vlan_filtering {
        return Some(Finding::ok(id, "the bridge drops tagged frames of VLANs that it lacks"));
    }
    // The lower device does the offloads of a device above it.
    if !device.below.is_empty() {
        return Some(Finding::ok(id, "stay in the frames"));
    }
    // A veth's tag stays beside the frame if the other end put it there.
    let (strips, remedy) = match &subject.nic.peer {
        Some(peer) => {
            let end = peer.interface.as_deref().unwrap_or("PEER");
            let inserts = peer.offloads.as_ref()?.vlan_insert;
            (inserts, format!("ethtool --offload {end} txvlan off{}", where_of(subject)))
        }
        None => {
            let strips = subject.nic.offloads.as_ref()?.vlan_strip;
            (strips, format!("ethtool --offload {name} rxvlan off"))
        }
    };
    if !strips {
        return Some(Finding::ok(id, "stay in the frames"));
    }
    let by = if subject.nic.peer.is_some() { "the other end" } else { "the NIC" };
    let finding = Finding::warning(id, format!("{by} takes them out of frames"));
    Some(finding.means("a frame of a VLAN reaches its VM without its tag").mend(remedy))
}

fn where_of(subject: &Subject<'_>) -> String {
    let namespace = subject.nic.peer.as_ref().and_then(|peer| peer.namespace.as_ref());
    namespace.map(|path| format!(" (in {})", path.display())).unwrap_or_default()
}

/// A veth leaves undone what it calls an offload, and with AF_XDP nobody completes it.
fn checksum(subject: &Subject<'_>) -> Option<Finding> {
    let (id, peer) = ("checksum", subject.nic.peer.as_ref()?);
    let end = peer.interface.as_deref().unwrap_or("PEER");
    let command = format!("ethtool --offload {end} tx off{}", where_of(subject));
    match peer.offloads.as_ref().map(|offloads| offloads.tx_checksum) {
        Some(false) => Some(Finding::ok(id, format!("the other end, {end}, completes its own"))),
        Some(true) => Some(
            Finding::warning(id, format!("the other end, {end}, leaves checksums undone"))
                .means("guests drop what it sends over TCP and UDP, while ping works")
                .mend(command),
        ),
        None => Some(
            Finding::note(id, "the other end is nowhere that we may look")
                .means("if it leaves checksums undone, TCP hangs and ping works")
                .mend(command),
        ),
    }
}

fn merging(subject: &Subject<'_>, mode: &ExpectedMode) -> Option<Finding> {
    let (id, name) = ("merging", subject.name);
    if let Some(finding) = caution(subject, mode, id) {
        return Some(finding);
    }
    let Offloads { gro, gro_hardware, lro, .. } = subject.nic.offloads.as_ref()?;
    // virtio_net ends it by itself when a program is attached (`virtnet_xdp_set`).
    let hardware = *gro_hardware && subject.nic.link.driver != "virtio_net";
    if mode.generic {
        // `netif_elide_gro` and `generic_xdp_install` of the kernel.
        let found = if *gro || hardware || *lro { "the kernel ends it by itself" } else { "off" };
        return Some(Finding::ok(id, found));
    }
    if *lro || hardware {
        let option = if *lro { "lro" } else { "rx-gro-hw" };
        return Some(
            Finding::warning(id, "the NIC merges what it receives")
                .means(
                    "many drivers take no XDP program while it is on, and VMs must get frames as \
                     they came",
                )
                .mend(format!("ethtool --offload {name} {option} off")),
        );
    }
    let found = if *gro { "GRO, which comes after our program" } else { "off" };
    Some(Finding::ok(id, found))
}

/// This check's caution for the kind of device.
fn caution(subject: &Subject<'_>, mode: &ExpectedMode, id: &'static str) -> Option<Finding> {
    let cautions = subject.nic.device.cautions(mode.generic);
    let caution = cautions.into_iter().find(|caution| caution.check == id)?;
    Some(Finding::warning(id, caution.found).means(caution.meaning).mend(caution.remedy))
}
