//! Diagnoses a port, with remedies: from facts to findings, without side effects.
//!
//! A port that is served may still not work. Its VM may be connected and mute: memory that is not
//! shared, another address, a driver that never starts. Each such state is one finding with a name
//! that never changes, a description, and the remedy. A state that is normal while a guest boots is
//! no finding, or a note. `port_watch` gathers the facts and logs; the API shows the findings.

use std::time::Duration;

use crate::control::api::{FindingView, Severity};
use crate::device::features::{LEGACY, MQ, TRANSPORT};
use crate::device::mac::MacAddress;
use crate::profile::Profile;
use crate::profile::qemu_device::QemuDevice;
use crate::vhost_user::SessionBinding;
use crate::virtqueue::Fault;

/// How long a front-end may be connected before the log reports that no driver has started.
pub const DRIVER_PATIENCE: Duration = Duration::from_secs(60);

/// All facts of a port.
#[derive(Clone, Copy, Debug)]
pub struct PortFacts<'f> {
    /// The address that it was given.
    pub mac: MacAddress,
    /// The host's interface that has the same address now; only for a switch port.
    pub host_interface: Option<&'f str>,
    /// The profile of its guest.
    pub profile: &'f Profile,
    /// Its uplink.
    pub uplink: &'f str,
    /// The state of the uplink, with its reason, if no packets move there.
    pub uplink_is: Option<&'f str>,
    /// Its front-end, if one is connected.
    pub session: Option<&'f SessionFacts>,
}

/// The facts of a session.
#[derive(Clone, Debug, Default)]
pub struct SessionFacts {
    /// The negotiated features and rings.
    pub binding: SessionBinding,
    /// Rings ran in it before.
    pub ran: bool,
    /// Packets moved in it, either way.
    pub moved: bool,
    /// The rings that are with their workers.
    pub rings: Vec<RingFacts>,
    /// Features were acknowledged, and no memory came, for at least two looks.
    pub memory_missing: bool,
    /// The other address from which its guest sends, if there is one.
    pub foreign: Option<Foreign>,
}

/// The facts of a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingFacts {
    /// Ring number.
    pub index: u16,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// The fault for which it is no longer served.
    pub broken: Option<Fault>,
    /// The driver has written nothing into it.
    pub untouched: bool,
    /// The driver has signalled entries, and there are none.
    pub unheard: bool,
}

/// A source address that is not the port's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// The address.
    pub mac: MacAddress,
    /// The guest sends from no other.
    pub alone: bool,
    /// The port that has this address.
    pub port: Option<String>,
    /// The guest of that port sends from this port's address.
    pub swapped: bool,
}

/// All findings, the worst first.
pub fn findings(facts: &PortFacts<'_>) -> Vec<FindingView> {
    let mut found = Vec::new();
    found.extend(host_address(facts));
    found.extend(uplink(facts));
    if let Some(session) = facts.session {
        found.extend(memory(session));
        found.extend(session.rings.iter().find_map(broken));
        found.extend(source(facts, session));
        found.extend(refusal(session));
        found.extend(start(session));
        found.extend(narrower(facts.profile, session));
    }
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    found
}

/// Whether the log reports a finding in a session of this age. A finding that is logged elsewhere
/// is not repeated.
pub fn is_logged(finding: &FindingView, age: Duration) -> bool {
    match &*finding.id {
        "uplink-down" | "ring-broken" | "request-refused" => false,
        "driver-not-started" => age >= DRIVER_PATIENCE,
        _ => finding.severity >= Severity::Warning,
    }
}

fn finding(
    id: &str,
    severity: Severity,
    found: impl Into<String>,
    mend: impl Into<String>,
) -> FindingView {
    FindingView { id: id.to_owned(), severity, found: found.into(), mend: mend.into() }
}

fn problem(id: &str, found: impl Into<String>, mend: impl Into<String>) -> FindingView {
    finding(id, Severity::Problem, found, mend)
}

fn note(id: &str, found: impl Into<String>, mend: impl Into<String>) -> FindingView {
    finding(id, Severity::Note, found, mend)
}

// ---- the host -----------------------------------------------------------------------------------

fn host_address(facts: &PortFacts<'_>) -> Option<FindingView> {
    let (interface, mac) = (facts.host_interface?, facts.mac);
    Some(problem(
        "mac-of-host",
        format!("{interface} of the host has the port's address {mac} now, and gets its frames"),
        format!("give {interface}, or the port and QEMU's device, another address"),
    ))
}

fn uplink(facts: &PortFacts<'_>) -> Option<FindingView> {
    let (uplink, how) = (facts.uplink, facts.uplink_is?);
    let found = format!("uplink {uplink} is {how}: nothing passes to or from the wire");
    Some(finding("uplink-down", Severity::Warning, found, "see `isonic uplink list`"))
}

// ---- memory -------------------------------------------------------------------------------------

const SHARE: &str = "give QEMU's memory backend share=on (-object memory-backend-memfd,id=memory,\
                     size=...,share=on -machine memory-backend=memory); libvirt: <memoryBacking> \
                     with <access mode='shared'/>, as `isonic libvirt stamp` writes it";

/// A driver's kick means that the ring has entries. If our mapping of the ring is empty all the
/// same, the guest writes into a copy of its own. (MAP_PRIVATE does that, which is QEMU's default
/// for a memory file.)
fn memory(session: &SessionFacts) -> Option<FindingView> {
    let unheard = session.rings.iter().filter(|ring| ring.unheard).map(|ring| ring.index);
    let unheard: Vec<String> = unheard.map(|index| index.to_string()).collect();
    let found = if session.memory_missing {
        "the front-end shares no memory of its guest".to_owned()
    } else if unheard.is_empty() {
        return None;
    } else {
        format!(
            "the guest's memory is not shared: its driver has filled ring {} and kicked, and \
             nothing is there",
            unheard.join(", ")
        )
    };
    Some(problem("memory-not-shared", found, SHARE))
}

fn broken(ring: &RingFacts) -> Option<FindingView> {
    let (index, fault) = (ring.index, ring.broken?);
    Some(match fault {
        Fault::Unmapped { address, .. } => problem(
            "memory-partly-shared",
            format!(
                "ring {index} is broken: the guest uses memory at {address:#x} that is not shared: \
                 a DIMM or NUMA node without share=on, or a fault of its driver"
            ),
            "share all memory, plugged in too (share=on at each memory backend; libvirt: <memory \
             access='shared'>, <cell memAccess='shared'>), then reset the device in the guest",
        ),
        fault => problem(
            "ring-broken",
            format!("ring {index} is broken and not served: {fault}"),
            "reset the device in the guest: unbind and bind its driver, or reboot",
        ),
    })
}

// ---- addresses ----------------------------------------------------------------------------------

fn source(facts: &PortFacts<'_>, session: &SessionFacts) -> Option<FindingView> {
    let Foreign { mac, alone, port, swapped } = session.foreign.as_ref()?;
    let own = facts.mac;
    let Some(port) = port else {
        return Some(if *alone {
            problem(
                "other-mac",
                format!(
                    "the guest sends from {mac}, and the port has {own}: what is for the guest \
                     does not reach it"
                ),
                format!(
                    "give QEMU's device mac={own}, or the port mac = \"{mac}\"; a guest with \
                     addresses of its own choice wants attach = \"wire\""
                ),
            )
        } else {
            note(
                "more-macs",
                format!("the guest sends from {mac} too, and what is for that does not reach it"),
                "a guest that bridges or routes for others wants attach = \"wire\"",
            )
        });
    };
    let its = format!("the guest sends from {mac}, the address of port \"{port}\"");
    Some(if *swapped {
        problem(
            "swapped-sockets",
            format!("{its}, whose guest sends from this port's: their sockets are swapped"),
            format!("exchange the sockets of the two VMs' front-ends, or the MACs ({own}, {mac})"),
        )
    } else {
        problem(
            "mac-of-other-port",
            its,
            format!("give its QEMU the socket of port \"{port}\", or its device mac={own}"),
        )
    })
}

// ---- how far it has come ------------------------------------------------------------------------

fn refusal(session: &SessionFacts) -> Option<FindingView> {
    let refusal = session.binding.refusal.as_deref()?;
    let runs = !session.rings.is_empty();
    let severity = if runs { Severity::Note } else { Severity::Warning };
    let found = format!("the front-end's last request that was refused: {refusal}");
    Some(finding("request-refused", severity, found, "see the log for all of this session's"))
}

fn start(session: &SessionFacts) -> Option<FindingView> {
    let SessionFacts { rings, ran, moved, .. } = session;
    if rings.is_empty() {
        return Some(if *ran {
            note(
                "driver-stopped",
                "the rings are stopped: the guest is paused, migrates or reboots, its driver is \
                 gone, or QEMU has set its link down",
                "none while that is meant; else look at the VM",
            )
        } else {
            note(
                "driver-not-started",
                "no driver of the guest has started its rings",
                "none while it boots, is paused, or has yet to arrive; else load a driver for \
                 virtio-net in the guest",
            )
        });
    }
    if !rings.iter().any(|ring| ring.enabled) {
        return Some(note(
            "rings-disabled",
            "the front-end has started the rings and enabled none",
            "look at the VM: QEMU enables them when the guest's driver starts",
        ));
    }
    let silent = rings.iter().all(|ring| ring.untouched && !ring.unheard) && !moved;
    silent.then(|| {
        note(
            "interface-unused",
            "the guest's driver has started, and has neither sent nor made room to receive",
            "bring the interface up in the guest: ip link set dev IF up",
        )
    })
}

// ---- narrower than the profile ------------------------------------------------------------------

/// The properties that the guest lacks of its profile; nothing before its rings run.
fn narrower(profile: &Profile, session: &SessionFacts) -> Vec<FindingView> {
    if session.rings.is_empty() {
        return Vec::new();
    }
    let SessionFacts { binding, .. } = session;
    [narrow_rings(profile, binding), narrow_pairs(profile, binding), features(profile, binding)]
        .into_iter()
        .flatten()
        .collect()
}

fn narrow_rings(profile: &Profile, binding: &SessionBinding) -> Option<FindingView> {
    let limit = profile.ring_size_max;
    let smallest = binding.ring_sizes.iter().flatten().copied().min()?;
    let best = QemuDevice::new(profile, Some(1)).map_or(limit, |frontend| frontend.ring_size);
    (smallest < best).then(|| {
        note(
            "narrower-rings",
            format!("rings of {smallest} entries, and profile {} has {limit}", profile.name),
            format!(
                "give QEMU's device rx_queue_size={best},tx_queue_size={best}: it takes 256 by \
                 itself"
            ),
        )
    })
}

fn narrow_pairs(profile: &Profile, binding: &SessionBinding) -> Option<FindingView> {
    let (limit, pairs) = (profile.queue_pairs_max, binding.queue_pairs);
    (pairs < limit && binding.offered.has(MQ)).then(|| {
        let vectors = 2 * u32::from(limit) + 2;
        note(
            "fewer-queue-pairs",
            format!("{pairs} of the {limit} queue pairs of profile {}", profile.name),
            format!(
                "if more are wanted: queues={limit} at QEMU's netdev, mq=on,vectors={vectors} at \
                 its device, and in the guest `ethtool -L IF combined N`, at most one a CPU"
            ),
        )
    })
}

fn features(profile: &Profile, binding: &SessionBinding) -> Option<FindingView> {
    let unseen = TRANSPORT.union(LEGACY);
    let missing = profile.features.without(binding.acknowledged).without(unseen);
    if missing.is_empty() {
        return None;
    }
    let names = missing.names().join(", ");
    Some(note(
        "features-not-taken",
        format!("of profile {} the guest's driver has not taken {names}", profile.name),
        "if QEMU's device has one of them off, turn it on (`isonic profile export`); else the \
         driver is too old for it, or does not want it",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::features::FeatureSet;
    use crate::profile::Catalog;

    fn v1() -> Profile {
        Profile::clone(Catalog::embedded().get("org.isonic.net.v1").unwrap())
    }

    fn ring(index: u16) -> RingFacts {
        RingFacts { index, enabled: true, broken: None, untouched: false, unheard: false }
    }

    /// A guest that has all of its profile and works.
    fn healthy(profile: &Profile) -> SessionFacts {
        let rings = 2 * profile.queue_pairs_max;
        SessionFacts {
            binding: SessionBinding {
                offered: profile.features,
                acknowledged: profile.features,
                ring_sizes: vec![Some(profile.ring_size_max); usize::from(rings)],
                queue_pairs: profile.queue_pairs_max,
                regions: 1,
                ..SessionBinding::default()
            },
            ran: true,
            moved: true,
            rings: (0..rings).map(ring).collect(),
            ..SessionFacts::default()
        }
    }

    fn facts<'f>(profile: &'f Profile, session: Option<&'f SessionFacts>) -> PortFacts<'f> {
        let (host_interface, uplink, uplink_is) = (None, "eth0", None);
        PortFacts { mac: mac(1), host_interface, profile, uplink, uplink_is, session }
    }

    fn mac(last: u8) -> MacAddress {
        MacAddress([0x52, 0x54, 0, 0, 0, last])
    }

    /// The findings in a session that is healthy except for a change.
    fn found(change: impl FnOnce(&mut SessionFacts)) -> Vec<FindingView> {
        let profile = v1();
        let mut session = healthy(&profile);
        change(&mut session);
        findings(&facts(&profile, Some(&session)))
    }

    /// Check that there is one finding, with this name and severity, whose text has these words.
    fn assert_one(found: &[FindingView], id: &str, severity: Severity, words: &[&str]) {
        let [one] = found else { panic!("{id}: {found:?}") };
        assert_eq!((&*one.id, one.severity), (id, severity));
        let text = format!("{} {}", one.found, one.mend);
        words.iter().for_each(|word| assert!(text.contains(word), "{word} is not in: {text}"));
    }

    fn foreign(port: Option<&str>, alone: bool, swapped: bool) -> Option<Foreign> {
        Some(Foreign { mac: mac(9), alone, port: port.map(str::to_owned), swapped })
    }

    #[test]
    fn a_healthy_guest_and_a_port_without_one_have_no_finding() {
        assert_eq!(found(|_| ()), []);
        assert_eq!(findings(&facts(&v1(), None)), []);
    }

    #[test]
    fn memory_that_is_not_shared_is_told_by_rings_that_were_kicked_and_are_empty() {
        let told = found(|session| {
            session.moved = false;
            for ring in &mut session.rings {
                (ring.untouched, ring.unheard) = (true, ring.index == 1);
            }
        });
        let words = ["ring 1 ", "share=on", "<access mode='shared'/>"];
        assert_one(&told, "memory-not-shared", Severity::Problem, &words);
    }

    #[test]
    fn a_front_end_that_shares_no_memory_at_all_is_told_the_same() {
        let told = found(|session| {
            (session.memory_missing, session.ran) = (true, false);
            session.rings.clear();
        });
        let ids: Vec<&str> = told.iter().map(|finding| &*finding.id).collect();
        assert_eq!(ids, ["memory-not-shared", "driver-not-started"]);
        assert!(told[0].mend.contains("share=on"));
    }

    #[test]
    fn an_address_outside_all_regions_names_memory_that_was_plugged_in() {
        let fault = Fault::Unmapped { index: 1, address: 0x1_0007_8000, len: 1 };
        let told = found(|session| session.rings[0].broken = Some(fault));
        let words = ["0x100078000", "DIMM", "access='shared'"];
        assert_one(&told, "memory-partly-shared", Severity::Problem, &words);
        let fault = Fault::Loop { head: 3, size: 256 };
        let told = found(|session| session.rings[0].broken = Some(fault));
        assert_one(&told, "ring-broken", Severity::Problem, &["ring 0", "loops", "reset"]);
    }

    #[test]
    fn another_address_is_a_problem_only_if_the_guest_has_none_of_its_ports() {
        let told = found(|session| session.foreign = foreign(None, true, false));
        let words = ["52:54:00:00:00:09", "mac=52:54:00:00:00:01", "wire"];
        assert_one(&told, "other-mac", Severity::Problem, &words);
        let told = found(|session| session.foreign = foreign(None, false, false));
        assert_one(&told, "more-macs", Severity::Note, &["52:54:00:00:00:09", "wire"]);
    }

    #[test]
    fn the_address_of_another_port_names_it_and_swapped_sockets_name_both() {
        let told = found(|session| session.foreign = foreign(Some("b"), true, false));
        assert_one(&told, "mac-of-other-port", Severity::Problem, &["port \"b\"", "socket"]);
        let told = found(|session| session.foreign = foreign(Some("b"), true, true));
        assert_one(&told, "swapped-sockets", Severity::Problem, &["port \"b\"", "exchange"]);
    }

    #[test]
    fn a_boot_a_pause_and_an_interface_that_is_down_are_notes() {
        let told = found(|session| {
            session.rings.clear();
            session.ran = false;
        });
        assert_one(&told, "driver-not-started", Severity::Note, &["virtio-net"]);
        let told = found(|session| session.rings.clear());
        assert_one(&told, "driver-stopped", Severity::Note, &["paused"]);
        let told = found(|session| session.rings.iter_mut().for_each(|ring| ring.enabled = false));
        assert_one(&told, "rings-disabled", Severity::Note, &["enabled none"]);
        let told = found(|session| {
            session.moved = false;
            session.rings.iter_mut().for_each(|ring| ring.untouched = true);
        });
        assert_one(&told, "interface-unused", Severity::Note, &["ip link set"]);
    }

    #[test]
    fn what_the_log_tells_is_what_nobody_else_tells_and_no_normal_boot() {
        let minute = DRIVER_PATIENCE;
        let logged = |id, severity, age| is_logged(&finding(id, severity, "", ""), age);
        let none = Duration::ZERO;
        assert!(logged("memory-not-shared", Severity::Problem, none));
        for told_elsewhere in ["uplink-down", "ring-broken", "request-refused"] {
            assert!(!logged(told_elsewhere, Severity::Problem, minute));
        }
        assert!(!logged("narrower-rings", Severity::Note, minute));
        assert!(!logged("driver-not-started", Severity::Note, minute - Duration::from_secs(1)));
        assert!(logged("driver-not-started", Severity::Note, minute));
    }

    #[test]
    fn a_refused_request_is_a_warning_until_rings_run() {
        let refuse = |session: &mut SessionFacts| {
            session.binding.refusal = Some("SET_VRING_NUM: ring 0 of 1024 entries".into());
        };
        let told = found(refuse);
        assert_one(&told, "request-refused", Severity::Note, &["SET_VRING_NUM", "1024"]);
        let told = found(|session| {
            refuse(session);
            session.rings.clear();
        });
        assert_eq!((&*told[0].id, told[0].severity), ("request-refused", Severity::Warning));
    }

    #[test]
    fn a_front_end_with_default_options_is_told_what_is_narrower_and_by_which_option() {
        let told = found(|session| {
            session.binding.ring_sizes = vec![Some(256), Some(256)];
            session.binding.queue_pairs = 1;
            session.binding.acknowledged = FeatureSet(v1().features.0 & !(1 << MQ));
        });
        let text: Vec<String> =
            told.iter().map(|it| format!("{}: {} -> {}", it.id, it.found, it.mend)).collect();
        assert_eq!(told.len(), 3, "{text:?}");
        for (at, word) in [
            (0, "narrower-rings: rings of 256 entries"),
            (0, "rx_queue_size=1024,tx_queue_size=1024"),
            (1, "fewer-queue-pairs: 1 of the 16"),
            (1, "queues=16 at QEMU's netdev, mq=on,vectors=34"),
            (2, "features-not-taken"),
            (2, "has not taken mq"),
        ] {
            assert!(text[at].contains(word), "{word} is not in {}", text[at]);
        }
        assert!(told.iter().all(|finding| finding.severity == Severity::Note));
    }

    #[test]
    fn rings_as_long_as_qemus_longest_are_not_called_narrow() {
        let profile = Profile { ring_size_max: 4096, ..v1() };
        let mut session = healthy(&profile);
        session.binding.ring_sizes = vec![Some(1024); 32];
        assert_eq!(findings(&facts(&profile, Some(&session))), []);
    }

    #[test]
    fn a_host_that_has_got_the_ports_address_and_an_uplink_that_is_down_are_named() {
        let profile = v1();
        let facts = PortFacts { host_interface: Some("eth0"), ..facts(&profile, None) };
        let words = ["eth0", "52:54:00:00:00:01"];
        assert_one(&findings(&facts), "mac-of-host", Severity::Problem, &words);
        let facts = PortFacts { host_interface: None, uplink_is: Some("down"), ..facts };
        assert_one(&findings(&facts), "uplink-down", Severity::Warning, &["eth0 is down"]);
    }

    #[test]
    fn the_worst_comes_first() {
        let told = found(|session| {
            session.binding.queue_pairs = 1;
            session.foreign = foreign(None, true, false);
        });
        let severities: Vec<Severity> = told.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Problem, Severity::Note]);
    }
}
