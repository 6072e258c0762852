//! The API's answers, for people. Programs use `--json`.

use std::fmt::Display;
use std::time::{Duration, SystemTime};

use crate::control::api::{
    BindingView, BitsView, Direction, FindingView, PortState, PortView, ProfileView, RingView,
    Severity, SocketKind, Upgraded, UplinkState, UplinkView, XdpMode,
};

use crate::device::features::{FEATURES, Feature};

use super::text_table::{Table, pairs};

/// Most names in one cell of a table.
const NAMES_MAX: usize = 8;

fn list(items: &[impl Display]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

fn state(state: PortState) -> &'static str {
    match state {
        PortState::Waiting => "waiting",
        PortState::Connected => "connected",
        PortState::Running => "running",
        PortState::Refused => "refused",
    }
}

fn xdp_mode(mode: XdpMode) -> &'static str {
    match mode {
        XdpMode::Native => "native",
        XdpMode::Generic => "generic",
    }
}

fn socket_mode(kind: SocketKind) -> &'static str {
    match kind {
        SocketKind::Zerocopy => "zerocopy",
        SocketKind::Copy => "copy",
    }
}

fn bits(bits: &BitsView) -> String {
    format!("{} ({})", bits.hex, bits.names.join(", "))
}

pub(super) fn upgraded(upgraded: &Upgraded) -> String {
    let Upgraded { pid, version, sessions, reconnecting, changed, .. } = upgraded;
    let (stood_still, unanswered) =
        (upgraded.outage_microseconds, upgraded.unanswered_microseconds);
    let version = version.as_deref().unwrap_or("of an unknown version");
    let mut text = format!("isonic {version}, process {pid}, goes on with {sessions} sessions\n");
    for (what, time) in
        [("packets stood still for", stood_still), ("front-ends got no answer for", unanswered)]
    {
        if let Some(time) = time {
            text += &format!("{what} {}.{:03} ms\n", time / 1000, time % 1000);
        }
    }
    if !reconnecting.is_empty() {
        text += &format!("front-ends that connect anew: {}\n", list(reconnecting));
    }
    for change in changed {
        text += &format!("changed: {change}\n");
    }
    text
}

pub(super) fn ports(ports: &[PortView]) -> String {
    let heading = ["NAME", "STATE", "UPLINK", "ATTACH", "MAC", "PROFILE", "SOCKET", "PROBLEM"];
    let mut table = Table::new(&heading);
    for port in ports {
        table.row(vec![
            port.name.clone(),
            state(port.state).to_owned(),
            port.uplink.clone(),
            port.attach.to_string(),
            port.mac.to_string(),
            port.profile.clone(),
            port.socket.display().to_string(),
            problems(port).join("; "),
        ]);
    }
    table.render()
}

/// The problems that keep a port from working, each in one phrase; notes are in `port show`.
fn problems(port: &PortView) -> Vec<String> {
    let broken = |ring: &RingView| {
        let fault = ring.broken.as_ref()?;
        Some(format!("ring {} is broken: {fault}", ring.index))
    };
    let worth =
        |finding: &&FindingView| finding.severity > Severity::Note && finding.id != "ring-broken";
    let found = port.findings.iter().filter(worth).map(|finding| finding.id.clone());
    let broken = port.rings.iter().filter_map(broken);
    port.refusal.iter().cloned().chain(broken).chain(found).collect()
}

fn findings(findings: &[FindingView]) -> String {
    let line = |finding: &FindingView| {
        let FindingView { id, severity, found, mend } = finding;
        let severity = match severity {
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Problem => "problem",
        };
        format!("{severity}: {id}: {found}\n  -> {mend}\n")
    };
    findings.iter().map(line).collect()
}

pub(super) fn port(port: &PortView) -> String {
    let mut text = pairs(&[
        ("name", port.name.clone()),
        ("state", state(port.state).to_owned()),
        ("socket", format!("{} ({})", port.socket.display(), port.mode)),
        ("uplink", format!("{} ({})", port.uplink, port.attach)),
        ("mac", port.mac.to_string()),
        ("profile", port.profile.clone()),
        ("digest", port.profile_digest.clone()),
    ]);
    if let Some(owner) = &port.owner {
        text.push_str(&pairs(&[("owner", owner.clone())]));
    }
    if let Some(refusal) = &port.refusal {
        text.push_str(&format!("refused: {refusal}\n"));
    }
    if !port.findings.is_empty() {
        text.push('\n');
        text.push_str(&findings(&port.findings));
    }
    if let Some(agreed) = &port.binding {
        text.push_str("\nbinding\n");
        text.push_str(&binding(agreed));
    }
    if !port.rings.is_empty() {
        text.push('\n');
        text.push_str(&rings(&port.rings));
    }
    if !port.counters.is_empty() {
        text.push('\n');
        let mut table = Table::new(&["COUNTER", "VALUE"]);
        for (counter, value) in &port.counters {
            table.row(vec![counter.clone(), value.to_string()]);
        }
        text.push_str(&table.render());
    }
    text
}

fn binding(binding: &BindingView) -> String {
    let size = |size: &Option<u16>| size.map_or_else(|| "-".to_owned(), |size| size.to_string());
    let sizes: Vec<String> = binding.ring_sizes.iter().map(size).collect();
    pairs(&[
        ("  profile", binding.profile.clone()),
        ("  digest", binding.digest.clone()),
        ("  offered", bits(&binding.offered)),
        ("  acknowledged", bits(&binding.acknowledged)),
        ("  protocol features", bits(&binding.protocol_features)),
        ("  ring sizes", list(&sizes)),
        ("  queue pairs", binding.queue_pairs.to_string()),
        ("  rings started in", micros(binding.start_microseconds)),
        ("  rings stopped in", micros(binding.stop_microseconds)),
        ("  fingerprint", binding.fingerprint.clone()),
    ])
}

fn micros(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value} us"))
}

fn rings(rings: &[RingView]) -> String {
    let mut table = Table::new(&["RING", "DIRECTION", "SIZE", "ENABLED", "WORKER", "BROKEN"]);
    for ring in rings {
        let direction = match ring.direction {
            Direction::ToGuest => "to_guest",
            Direction::FromGuest => "from_guest",
        };
        table.row(vec![
            ring.index.to_string(),
            direction.to_owned(),
            ring.size.to_string(),
            if ring.enabled { "yes" } else { "no" }.to_owned(),
            ring.worker.to_string(),
            ring.broken.clone().unwrap_or_default(),
        ]);
    }
    table.render()
}

pub(super) fn uplinks(uplinks: &[UplinkView]) -> String {
    let heading = [
        "INTERFACE",
        "STATE",
        "DRIVER",
        "XDP",
        "SOCKET",
        "QUEUES",
        "MTU",
        "PACKET MAX",
        "MAC",
        "PORTS",
        "WHY",
    ];
    let mut table = Table::new(&heading);
    for uplink in uplinks {
        table.row(vec![
            interface(uplink),
            uplink_state(uplink),
            uplink.driver.clone(),
            xdp_mode(uplink.xdp_mode).to_owned(),
            socket_mode(uplink.socket_mode).to_owned(),
            list(&uplink.queues),
            uplink.mtu.to_string(),
            uplink.packet_max.to_string(),
            uplink.mac.to_string(),
            names(&uplink.ports),
            why(uplink),
        ]);
    }
    table.render()
}

/// The ports of an uplink, by name if they fit a line.
fn names(ports: &[String]) -> String {
    if ports.len() <= NAMES_MAX { list(ports) } else { format!("{} ports", ports.len()) }
}

/// The uplink's name, and the interface's if that was renamed.
fn interface(uplink: &UplinkView) -> String {
    let UplinkView { interface, present_name, .. } = uplink;
    if interface == present_name {
        return interface.clone();
    }
    format!("{interface} (now {present_name})")
}

fn uplink_state(uplink: &UplinkView) -> String {
    let word = match uplink.state {
        UplinkState::Up => return "up".to_owned(),
        UplinkState::Down => "down",
        UplinkState::Gone => "gone",
        UplinkState::Failed => "failed",
    };
    let since = SystemTime::UNIX_EPOCH + Duration::from_secs(uplink.state_since);
    format!("{word} for {} s", since.elapsed().unwrap_or_default().as_secs())
}

/// The uplink's problem, or else the reason for its mode.
fn why(uplink: &UplinkView) -> String {
    let mut why = vec![uplink.problem.as_ref().unwrap_or(&uplink.reason).clone()];
    if !uplink.unserved_queues.is_empty() {
        let queues = list(&uplink.unserved_queues);
        why.push(format!("queues {queues} receive and have no socket"));
    }
    why.extend(uplink.cautions.iter().cloned());
    why.join("; ")
}

pub(super) fn profiles(profiles: &[ProfileView]) -> String {
    let heading = ["NAME", "FAMILY", "STATUS", "USABLE", "RINGS", "PAIRS", "MTU", "DIGEST"];
    let mut table = Table::new(&heading);
    for profile in profiles {
        table.row(vec![
            profile.name.clone(),
            profile.family.clone().unwrap_or_else(|| "-".to_owned()),
            status(profile).to_owned(),
            usable(profile),
            profile.ring_size_max.to_string(),
            profile.queue_pairs_max.to_string(),
            profile.mtu.to_string(),
            profile.digest.chars().take(12).collect(),
        ]);
    }
    let mut text = table.render();
    for profile in profiles {
        text.push_str(&against(profile));
    }
    text
}

fn status(profile: &ProfileView) -> &'static str {
    match (profile.draft, profile.latest) {
        (true, _) => "draft",
        (false, true) => "latest",
        (false, false) if profile.name.contains('=') => "made of values",
        (false, false) => "released",
    }
}

/// On all uplinks, on some by name, or on none.
fn usable(profile: &ProfileView) -> String {
    let able: Vec<&str> = profile.able_uplinks().collect();
    if !profile.is_usable() {
        "no".to_owned()
    } else if able.len() == profile.uplinks.len() {
        "yes".to_owned()
    } else {
        list(&able)
    }
}

/// The blockers of a profile, a line for each reason; empty if there are none.
fn against(profile: &ProfileView) -> String {
    let name = &profile.name;
    let mut text = String::new();
    for blocker in &profile.blockers {
        text.push_str(&format!("{name}: {blocker}\n"));
    }
    for (uplink, blockers) in &profile.uplinks {
        // Blockers on every uplink are listed already.
        for blocker in blockers.iter().filter(|blocker| !profile.blockers.contains(blocker)) {
            text.push_str(&format!("{name} on {uplink}: {blocker}\n"));
        }
    }
    text
}

pub(super) fn profile(profile: &ProfileView) -> String {
    let mut facts = vec![
        ("name", profile.name.clone()),
        ("status", status(profile).to_owned()),
        ("summary", profile.summary.clone()),
        ("source", profile.source.clone()),
    ];
    if let (Some(base), Some(why)) = (&profile.extends, &profile.why) {
        facts.extend([("extends", base.clone()), ("why", why.clone())]);
    }
    facts.extend([
        ("digest", profile.digest.clone()),
        ("usable", usable(profile)),
        ("guest sees", profile.guest_features.hex.clone()),
        ("backend offers", profile.features.hex.clone()),
        ("front-end adds", profile.frontend_features.hex.clone()),
        ("protocol features", bits(&profile.protocol_features)),
        ("ring size max", profile.ring_size_max.to_string()),
        ("queue pairs max", profile.queue_pairs_max.to_string()),
        ("mtu", profile.mtu.to_string()),
        ("memory slots", profile.memory_slots.to_string()),
        ("ethtool -k", offloads(profile)),
        ("xdp in guest", xdp(profile)),
    ]);
    let mut text = pairs(&facts);
    text.push_str(&against(profile));
    text + "\n" + &feature_table(profile)
}

fn offloads(profile: &ProfileView) -> String {
    let word = |(name, on): (&String, &bool)| format!("{name} {}", if *on { "on" } else { "off" });
    profile.linux_offloads.iter().map(word).collect::<Vec<_>>().join(", ")
}

/// Whether a Linux guest loads a native XDP program.
fn xdp(profile: &ProfileView) -> String {
    match profile.xdp_obstacles.as_slice() {
        [] => "yes".to_owned(),
        obstacles => format!("no: {}", obstacles.join(", ")),
    }
}

/// Every bit of either half, in the words of the specification.
fn feature_table(profile: &ProfileView) -> String {
    let mut table = Table::new(&["BIT", "FEATURE", "SPECIFICATION", "FROM", "GUEST SEES IT"]);
    let of = |bits: &BitsView, feature: &Feature| bits.names.iter().any(|it| it == feature.name);
    for feature in FEATURES {
        let halves = [(&profile.features, "backend"), (&profile.frontend_features, "front-end")];
        let from: Vec<&str> =
            halves.iter().filter(|(bits, _)| of(bits, feature)).map(|(_, half)| *half).collect();
        if from.is_empty() {
            continue;
        }
        let seen = if of(&profile.guest_features, feature) { "yes" } else { "no" };
        table.row(vec![
            feature.bit.to_string(),
            feature.spec_name(),
            feature.clause.to_owned(),
            list(&from),
            seen.to_owned(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::{Attach, SocketMode};
    use crate::device::features::FeatureSet;
    use crate::device::mac::MacAddress;
    use crate::profile::{Catalog, UplinkFacts};

    fn view() -> PortView {
        let agreed = BindingView {
            profile: "p".into(),
            digest: "d".into(),
            offered: BitsView::device(FeatureSet(1 << 32)),
            acknowledged: BitsView::device(FeatureSet(1 << 32)),
            protocol_features: BitsView::protocol(FeatureSet(1)),
            ring_sizes: vec![Some(256), None],
            queue_pairs: 1,
            stop_microseconds: None,
            start_microseconds: Some(1),
            fingerprint: "f".into(),
        };
        let ring = RingView {
            index: 1,
            direction: Direction::FromGuest,
            size: 256,
            enabled: true,
            broken: Some("descriptor 7 loops".into()),
            worker: 0,
        };
        PortView {
            name: "vm1".into(),
            socket: "/run/vm1.sock".into(),
            mode: SocketMode::Server,
            profile: "p".into(),
            profile_digest: "d".into(),
            uplink: "eth0".into(),
            attach: Attach::Switch,
            mac: MacAddress([2, 0, 0, 0, 0, 1]),
            owner: None,
            state: PortState::Running,
            refusal: None,
            findings: Vec::new(),
            binding: Some(agreed),
            counters: BTreeMap::from([("from_guest_packets".into(), 5)]),
            rings: vec![ring],
        }
    }

    #[test]
    fn a_port_is_one_line_in_a_list() {
        let text = ports(&[view()]);
        let line = text.lines().nth(1).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        let expected =
            ["vm1", "running", "eth0", "switch", "02:00:00:00:00:01", "p", "/run/vm1.sock"];
        assert_eq!(words[..7], expected);
        assert_eq!(words[7..].join(" "), "ring 1 is broken: descriptor 7 loops");
    }

    #[test]
    fn the_names_of_many_ports_are_their_number() {
        let ports = |number: usize| (1..=number).map(|it| format!("vm{it}")).collect::<Vec<_>>();
        assert_eq!(names(&ports(2)), "vm1,vm2");
        assert_eq!(names(&ports(1000)), "1000 ports");
    }

    #[test]
    fn a_port_shows_its_binding_a_broken_ring_and_its_counters() {
        let text = port(&view());
        for shown in
            ["0x100000000 (version_1)", "256,-", "1 us", "descriptor 7 loops", "from_guest_packets"]
        {
            assert!(text.contains(shown), "{shown} in {text}");
        }
    }

    #[test]
    fn what_was_found_is_told_with_its_mend_and_marks_the_port_in_a_list() {
        let finding = |id: &str, severity| FindingView {
            id: id.into(),
            severity,
            found: "it is so".into(),
            mend: "do this".into(),
        };
        let worse = finding("other-mac", Severity::Problem);
        let view =
            PortView { findings: vec![worse, finding("narrower-rings", Severity::Note)], ..view() };
        let text = port(&view);
        for line in ["problem: other-mac: it is so\n  -> do this", "note: narrower-rings: "] {
            assert!(text.contains(line), "{line} in {text}");
        }
        let line = ports(&[view]);
        let last = line.lines().nth(1).unwrap().split_whitespace().last();
        assert_eq!(last, Some("other-mac"));
    }

    #[test]
    fn a_profile_is_usable_where_nothing_stands_against_it() {
        let catalog = Catalog::embedded();
        let v1 = catalog.get("org.isonic.net.v1").unwrap();
        let uplink = |name: &str, mtu| UplinkFacts { name: name.into(), mtu };
        let told = |uplinks: &[UplinkFacts]| usable(&ProfileView::new(v1, &catalog, uplinks));
        assert_eq!(told(&[]), "yes");
        assert_eq!(told(&[uplink("a", 1500), uplink("b", 1400)]), "a");
        assert_eq!(told(&[uplink("b", 1400)]), "no");
        let against_b = ProfileView::new(v1, &catalog, &[uplink("b", 1400)]);
        for text in [profile(&against_b), profiles(std::slice::from_ref(&against_b))] {
            assert!(text.contains("org.isonic.net.v1 on b: its MTU is 1500"), "{text}");
        }
        let text = profile(&against_b);
        assert!(text.contains("15   VIRTIO_NET_F_MRG_RXBUF"), "{text}");
        assert!(text.contains("xdp in guest:      yes"), "{text}");
    }

    #[test]
    fn a_refused_port_says_why() {
        let refused = PortView {
            state: PortState::Refused,
            refusal: Some("another interface".into()),
            ..view()
        };
        assert!(port(&refused).contains("refused: another interface"));
        assert!(ports(&[refused]).contains(" refused "));
    }
}
