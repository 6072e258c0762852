//! The differences between two profiles, two ports, or several hosts, from a guest's side.
//!
//! Works on the API's answers, from the daemon or from files that `--json` made on other hosts. It
//! asks no daemon by itself.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::api::{BitsView, PortView, ProfileView};
use crate::platform::text_file::read_text;
use crate::profile::family_of;

use super::cli_error::CliError;
use super::standard_streams::{print, print_json};
use super::text_table::Table;

/// Largest file that is read, bytes: the list of some thousand profiles.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// One thing that is not the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Change {
    what: String,
    from: String,
    to: String,
    /// Whether a guest can notice.
    guest: bool,
}

/// Notes what differs.
#[derive(Default)]
struct Changes(Vec<Change>);

impl Changes {
    fn note(&mut self, what: &str, from: &impl ToString, to: &impl ToString, guest: bool) {
        let (from, to) = (from.to_string(), to.to_string());
        if from != to {
            self.0.push(Change { what: what.to_owned(), from, to, guest });
        }
    }

    /// Bits that are on in one of the two only; those of `told` are known already.
    fn note_bits(&mut self, what: &str, [from, to, told]: [&BTreeSet<String>; 3], guest: bool) {
        for name in from.symmetric_difference(to).filter(|name| !told.contains(*name)) {
            let word = |set: &BTreeSet<String>| if set.contains(name) { "on" } else { "off" };
            self.note(&format!("{what} {name}"), &word(from), &word(to), guest);
        }
    }

    fn guest_notices(&self) -> bool {
        self.0.iter().any(|change| change.guest)
    }
}

fn names(bits: &BitsView) -> BTreeSet<String> {
    bits.names.iter().cloned().collect()
}

fn change_table(changes: &[Change]) -> String {
    let mut table = Table::new(&["WHAT", "FROM", "TO", "GUEST SEES IT"]);
    for change in changes {
        let guest = if change.guest { "yes" } else { "no" };
        table.row(vec![
            change.what.clone(),
            change.from.clone(),
            change.to.clone(),
            guest.to_owned(),
        ]);
    }
    table.render()
}

// ---- two profiles ------------------------------------------------------------------------

/// The answer of `profile diff`.
#[derive(Debug, Serialize)]
pub(super) struct ProfileDifference {
    from: String,
    to: String,
    from_digest: String,
    to_digest: String,
    /// Whether both are one interface.
    same: bool,
    changes: Vec<Change>,
}

impl ProfileDifference {
    pub(super) fn between(from: &ProfileView, to: &ProfileView) -> Self {
        let none = BTreeSet::new();
        let mut changes = Changes::default();
        let seen = [names(&from.guest_features), names(&to.guest_features)];
        changes.note_bits("feature", [&seen[0], &seen[1], &none], true);
        for (name, on) in &from.linux_offloads {
            let word = |on: bool| if on { "on" } else { "off" };
            let other = to.linux_offloads.get(name).copied().unwrap_or_default();
            changes.note(&format!("ethtool -k {name}"), &word(*on), &word(other), true);
        }
        changes.note("ring size max", &from.ring_size_max, &to.ring_size_max, true);
        changes.note("queue pairs max", &from.queue_pairs_max, &to.queue_pairs_max, true);
        let shows_mtu = seen.iter().any(|names| names.contains("mtu"));
        changes.note("mtu", &from.mtu, &to.mtu, shows_mtu);
        let told: BTreeSet<String> = seen[0].symmetric_difference(&seen[1]).cloned().collect();
        for (what, from, to) in [
            ("backend offers", &from.features, &to.features),
            ("front-end adds", &from.frontend_features, &to.frontend_features),
        ] {
            changes.note_bits(what, [&names(from), &names(to), &told], false);
        }
        let protocol = [names(&from.protocol_features), names(&to.protocol_features)];
        changes.note_bits("protocol feature", [&protocol[0], &protocol[1], &none], false);
        changes.note("memory slots", &from.memory_slots, &to.memory_slots, false);
        Self {
            from: from.name.clone(),
            to: to.name.clone(),
            from_digest: from.digest.clone(),
            to_digest: to.digest.clone(),
            same: from.digest == to.digest,
            changes: changes.0,
        }
    }
}

pub(super) fn show_profiles(difference: &ProfileDifference) -> String {
    if difference.same {
        let ProfileDifference { from, to, from_digest, .. } = difference;
        return format!("{from} and {to} are the same interface: {from_digest}\n");
    }
    change_table(&difference.changes)
}

// ---- two ports ---------------------------------------------------------------------------

#[derive(Debug, Args)]
pub(super) struct PortFiles {
    /// What `isonic port show --json` printed on one host
    from: PathBuf,
    /// And on the other
    to: PathBuf,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// The answer of `port compare`.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct PortDifference {
    /// Whether a guest that moved from one to the other would notice nothing.
    same: bool,
    /// Whether both had a front-end connected; if not, the profiles' promises are compared.
    sessions: bool,
    changes: Vec<Change>,
}

impl PortDifference {
    fn between(from: &PortView, to: &PortView) -> Self {
        let mut changes = Changes::default();
        let same_interface = from.profile_digest == to.profile_digest;
        changes.note("profile", &from.profile, &to.profile, !same_interface);
        changes.note("profile digest", &from.profile_digest, &to.profile_digest, true);
        changes.note("mac", &from.mac, &to.mac, true);
        let bindings = from.binding.as_ref().zip(to.binding.as_ref());
        if let Some((from, to)) = bindings {
            let none = BTreeSet::new();
            let sets = |of: &BitsView| names(of);
            let agreed = [sets(&from.acknowledged), sets(&to.acknowledged)];
            // Bits between front-end and backend: a front-end may log pages at one end only.
            let transport = ["log_all", "protocol_features"].map(str::to_owned).into();
            changes.note_bits("acknowledged", [&agreed[0], &agreed[1], &transport], true);
            let protocol = [sets(&from.protocol_features), sets(&to.protocol_features)];
            changes.note_bits("protocol feature", [&protocol[0], &protocol[1], &none], false);
            let sizes = |sizes: &[Option<u16>]| {
                let size =
                    |size: &Option<u16>| size.map_or("-".to_owned(), |size| size.to_string());
                sizes.iter().map(size).collect::<Vec<_>>().join(",")
            };
            changes.note("ring sizes", &sizes(&from.ring_sizes), &sizes(&to.ring_sizes), true);
            changes.note("queue pairs", &from.queue_pairs, &to.queue_pairs, true);
            changes.note("fingerprint", &from.fingerprint, &to.fingerprint, true);
        }
        let same = !changes.guest_notices();
        Self { same, sessions: bindings.is_some(), changes: changes.0 }
    }
}

pub(super) fn ports(files: &PortFiles) -> Result<(), CliError> {
    let command = "isonic port show NAME --json";
    let (from, to) = (read(&files.from, command)?, read(&files.to, command)?);
    let difference = PortDifference::between(&from, &to);
    if files.json {
        print_json(&difference)?;
    } else {
        print(&show_ports(&difference))?;
    }
    if difference.same { Ok(()) } else { Err(CliError::Different) }
}

fn show_ports(difference: &PortDifference) -> String {
    let compared = if difference.sessions { "sessions" } else { "ports, without a session," };
    let mut text = String::new();
    if difference.same {
        text.push_str(&format!("the two {compared} are the same to a guest\n"));
    }
    if !difference.changes.is_empty() {
        text.push_str(&change_table(&difference.changes));
    }
    text
}

fn read<T: DeserializeOwned>(path: &Path, command: &'static str) -> Result<T, CliError> {
    let text = read_text(path, FILE_BYTES_MAX)?;
    serde_json::from_str(&text).map_err(|source| CliError::Content {
        path: path.to_owned(),
        command,
        source,
    })
}

// ---- several hosts -----------------------------------------------------------------------

#[derive(Debug, Args)]
pub(super) struct HostFiles {
    /// The profiles.json of each host, or what `isonic profile list --json` printed there
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Of this family only [default: of every family]
    #[arg(long)]
    family: Option<String>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

/// One host's published list.
struct Host {
    name: String,
    profiles: BTreeMap<String, ProfileView>,
}

/// The newest profile of one family that all hosts can keep.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Baseline {
    family: String,
    baseline: Option<String>,
    digest: Option<String>,
    /// Those that are newer, newest first.
    newer: Vec<Newer>,
}

/// Why it is not this one.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Newer {
    profile: String,
    reasons: Vec<Reason>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Reason {
    host: String,
    why: String,
}

pub(super) fn baseline(files: &HostFiles) -> Result<(), CliError> {
    let hosts: Vec<Host> = files.files.iter().map(|path| host(path)).collect::<Result<_, _>>()?;
    let mut found = baselines(&hosts);
    if let Some(family) = &files.family {
        found.retain(|baseline| baseline.family == *family);
    }
    if files.json {
        print_json(&found)?;
    } else {
        print(&show_baselines(&found))?;
    }
    if found.iter().any(|baseline| baseline.baseline.is_some()) {
        return Ok(());
    }
    Err(CliError::NoBaseline { family: files.family.clone() })
}

fn host(path: &Path) -> Result<Host, CliError> {
    let profiles: Vec<ProfileView> = read(path, "isonic profile list --json")?;
    let profiles = profiles.into_iter().map(|profile| (profile.name.clone(), profile)).collect();
    Ok(Host { name: path.display().to_string(), profiles })
}

fn baselines(hosts: &[Host]) -> Vec<Baseline> {
    let names: BTreeSet<&String> = hosts.iter().flat_map(|host| host.profiles.keys()).collect();
    let mut families: BTreeMap<&str, Vec<(Vec<u32>, &str)>> = BTreeMap::new();
    for name in names {
        let (family, version) = family_of(name).unwrap_or((name, Vec::new()));
        families.entry(family).or_default().push((version, name));
    }
    families.into_iter().map(|(family, versions)| newest(family, versions, hosts)).collect()
}

fn newest(family: &str, mut versions: Vec<(Vec<u32>, &str)>, hosts: &[Host]) -> Baseline {
    versions.sort_by_key(|(version, _)| Reverse(version.clone()));
    let mut found =
        Baseline { family: family.to_owned(), baseline: None, digest: None, newer: Vec::new() };
    for (_, name) in versions {
        let reasons = reasons(name, hosts);
        if reasons.is_empty() {
            found.digest = hosts[0].profiles.get(name).map(|profile| profile.digest.clone());
            found.baseline = Some(name.to_owned());
            break;
        }
        found.newer.push(Newer { profile: name.to_owned(), reasons });
    }
    found
}

/// Every reason why not all of these hosts can keep the profile.
fn reasons(name: &str, hosts: &[Host]) -> Vec<Reason> {
    let first = hosts.iter().find_map(|host| Some((host, host.profiles.get(name)?)));
    let mut reasons = Vec::new();
    for host in hosts {
        let mut note = |why| reasons.push(Reason { host: host.name.clone(), why });
        let Some(profile) = host.profiles.get(name) else {
            note("it does not have this profile".to_owned());
            continue;
        };
        if let Some((other, theirs)) = first
            && theirs.digest != profile.digest
        {
            let (ours, theirs) = (&profile.digest, &theirs.digest);
            let other = &other.name;
            note(format!("another interface has the name: digest {ours}, on {other} {theirs}"));
        }
        if profile.draft {
            note("it is a draft there".to_owned());
        }
        if !profile.is_usable() {
            note(blockers(profile));
        }
    }
    reasons
}

fn blockers(profile: &ProfileView) -> String {
    if !profile.blockers.is_empty() {
        return profile.blockers.join("; ");
    }
    let told = |(uplink, blockers): (&String, &Vec<String>)| {
        format!("on {uplink}: {}", blockers.join("; "))
    };
    profile.uplinks.iter().map(told).collect::<Vec<_>>().join("; ")
}

fn show_baselines(baselines: &[Baseline]) -> String {
    let mut table = Table::new(&["FAMILY", "BASELINE", "NEWER", "HOST", "WHY NOT"]);
    for found in baselines {
        let baseline = found.baseline.clone().unwrap_or_else(|| "none".to_owned());
        table.row(vec![found.family.clone(), baseline]);
        for newer in &found.newer {
            for reason in &newer.reasons {
                table.row(vec![
                    String::new(),
                    String::new(),
                    newer.profile.clone(),
                    reason.host.clone(),
                    reason.why.clone(),
                ]);
            }
        }
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::{Catalog, UplinkFacts};

    fn view(text: &str) -> ProfileView {
        let catalog = Catalog::embedded();
        ProfileView::new(&catalog.resolve(text).unwrap().profile, &catalog, &[])
    }

    fn told(from: &str, to: &str) -> Vec<(String, bool)> {
        let difference = ProfileDifference::between(&view(from), &view(to));
        let line = |change: Change| {
            (format!("{}: {} to {}", change.what, change.from, change.to), change.guest)
        };
        difference.changes.into_iter().map(line).collect()
    }

    #[test]
    fn what_a_guest_would_see_change_is_told_apart_from_what_it_would_not() {
        let to = "org.isonic.net.v1,mrg_rxbuf=off,ctrl_vlan=off,max_ring=256,protocol.rarp=off";
        let lines = told("org.isonic.net.v1", to);
        let expected = [
            ("feature ctrl_vlan: on to off", true),
            ("feature mrg_rxbuf: on to off", true),
            ("ethtool -k rx-vlan-filter: on to off", true),
            ("ring size max: 1024 to 256", true),
            ("protocol feature rarp: on to off", false),
        ];
        assert_eq!(lines, expected.map(|(line, guest)| (line.to_owned(), guest)));
        assert_eq!(told("latest", "org.isonic.net.v3"), []);
    }

    #[test]
    fn bits_that_no_guest_sees_are_no_change_to_it() {
        let lines = told("org.isonic.net.v1", "org.isonic.net.v1,any_layout=on");
        assert_eq!(lines, [("backend offers any_layout: off to on".to_owned(), false)]);
        let lines = told("mtu=1400", "mtu=1500");
        assert_eq!(lines, [("mtu: 1400 to 1500".to_owned(), false)]);
    }

    fn port(change: impl FnOnce(&mut serde_json::Value)) -> PortView {
        let bits = serde_json::json!({ "hex": "0x0", "names": ["mq", "log_all"] });
        let mut view = serde_json::json!({
            "name": "vm1", "socket": "/s", "mode": "server", "profile": "p", "uplink": "eth0",
            "profile_digest": "d", "attach": "switch", "mac": "52:54:00:00:00:01",
            "state": "running", "counters": {}, "rings": [],
            "binding": {
                "profile": "p", "digest": "d", "offered": bits, "acknowledged": bits,
                "protocol_features": bits, "ring_sizes": [256, null], "queue_pairs": 1,
                "fingerprint": "f",
            },
        });
        change(&mut view);
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn sessions_are_the_same_if_a_guest_could_not_tell_them_apart() {
        let one = port(|_| ());
        let compared =
            |change: fn(&mut serde_json::Value)| PortDifference::between(&one, &port(change));
        // Another host, another word for the same interface, pages logged by the front-end there.
        let moved = compared(|view| {
            view["uplink"] = "eth1".into();
            view["profile"] = "q".into();
            view["binding"]["acknowledged"]["names"] = serde_json::json!(["mq"]);
        });
        assert!(moved.same && moved.sessions);
        let whats: Vec<&str> = moved.changes.iter().map(|change| change.what.as_str()).collect();
        assert_eq!(whats, ["profile"]);
        let changes: [fn(&mut serde_json::Value); 5] = [
            |view| view["profile_digest"] = "e".into(),
            |view| view["mac"] = "52:54:00:00:00:02".into(),
            |view| view["binding"]["ring_sizes"][0] = 512.into(),
            |view| view["binding"]["queue_pairs"] = 2.into(),
            |view| view["binding"]["acknowledged"]["names"] = serde_json::json!([]),
        ];
        for change in changes {
            let difference = compared(change);
            assert!(!difference.same, "{difference:?}");
            assert!(show_ports(&difference).contains("yes"));
        }
        let waiting = compared(|view| view["binding"] = serde_json::Value::Null);
        assert!(waiting.same && !waiting.sessions);
    }

    /// Hosts a, b, … each with these profiles: version of com.x, MTU, and MTU of its only uplink.
    fn hosts(lists: &[&[(u32, u16, u32)]]) -> Vec<Host> {
        let catalog = Catalog::embedded();
        let profile = |&(version, mtu, uplink): &(u32, u16, u32)| {
            let chosen = catalog.resolve(&format!("latest,mtu={mtu}")).unwrap();
            let uplink = [UplinkFacts { name: "eth0".into(), mtu: uplink }];
            let name = format!("com.x.v{version}");
            let view = ProfileView::new(&chosen.profile, &catalog, &uplink);
            (name.clone(), ProfileView { name, ..view })
        };
        let host = |(name, list): (&str, &&[(u32, u16, u32)])| Host {
            name: name.to_owned(),
            profiles: list.iter().map(profile).collect(),
        };
        ["a", "b", "c"].into_iter().zip(lists).map(host).collect()
    }

    #[test]
    fn the_baseline_is_the_newest_that_all_can_keep_and_newer_ones_are_explained() {
        let found = baselines(&hosts(&[
            &[(1, 1500, 1500), (2, 1400, 1500), (9, 9000, 9000), (10, 1300, 1500)],
            &[(1, 1500, 1500), (2, 1400, 1500), (9, 9000, 1500)],
            &[(1, 1500, 1500), (2, 1400, 1500), (9, 9000, 9000)],
        ]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].baseline.as_deref(), Some("com.x.v2"));
        let newer: Vec<&str> = found[0].newer.iter().map(|it| it.profile.as_str()).collect();
        assert_eq!(newer, ["com.x.v10", "com.x.v9"]);
        let hosts: Vec<&str> =
            found[0].newer[0].reasons.iter().map(|reason| reason.host.as_str()).collect();
        assert_eq!(hosts, ["b", "c"]);
        let why = &found[0].newer[1].reasons;
        assert_eq!((why.len(), why[0].host.as_str()), (1, "b"));
        assert!(why[0].why.starts_with("on eth0: its MTU is 9000"), "{}", why[0].why);
    }

    #[test]
    fn one_name_for_two_interfaces_is_no_baseline() {
        let found = baselines(&hosts(&[&[(1, 1500, 1500)], &[(1, 1400, 1500)]]));
        assert_eq!(found[0].baseline, None);
        assert!(found[0].newer[0].reasons[0].why.contains("another interface has the name"));
        assert!(show_baselines(&found).contains("none"));
    }
}
