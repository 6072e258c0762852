//! The rules for a port, and for what it may share with the others.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::device::mac::MacAddress;
use crate::profile::{Blocker, Catalog, Chosen, ResolveError};

use super::types::{Attach, Handed, PortConfig, SocketPermissions, UplinkConfig, UplinkMode};

/// Longest port name, bytes: it becomes part of file names, labels and URLs.
const NAME_MAX: usize = 63;
/// Longest path of a Unix socket, bytes (unix(7): `sun_path` less its final zero).
pub const SOCKET_PATH_MAX: usize = 107;
/// Longest owner, bytes: a UUID and whose it is fit several times.
const OWNER_MAX: usize = 128;

/// One reason why a port cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortProblem {
    /// The name could not be part of a URL or a file name.
    #[error("\"{0}\" is no port name: 1 to {NAME_MAX} letters, digits and . _ -")]
    Name(String),
    /// Another port has the name.
    #[error("there is already a port \"{0}\"")]
    NameTaken(String),
    /// The path depends on a working directory, or does not fit a socket address.
    #[error("socket {} must be an absolute path of at most {SOCKET_PATH_MAX} bytes", .0.display())]
    SocketPath(PathBuf),
    /// No socket can have such a path anywhere.
    #[error("socket {} must be the path of a file, without a zero byte", .0.display())]
    SocketName(PathBuf),
    /// Another port has the socket.
    #[error("socket {} is already that of port \"{other}\"", path.display())]
    SocketTaken {
        /// The path.
        path: PathBuf,
        /// The port that has it.
        other: String,
    },
    /// The address is a group's, or zero.
    #[error("mac {0} is not the address of one device; clear the lowest bit of its first byte")]
    MacNotUnicast(MacAddress),
    /// Another port of the same uplink has the address.
    #[error("mac {mac} is already that of port \"{other}\" on the same uplink")]
    MacTaken {
        /// The address.
        mac: MacAddress,
        /// The port that has it.
        other: String,
    },
    /// The host has the address: the guest would get the host's packets.
    #[error(
        "mac {mac} is the host's own, of its interface {interface}, and the host would be cut \
         off; give the port another one, and QEMU's device the same (`mac=`)"
    )]
    MacOfHost {
        /// The address.
        mac: MacAddress,
        /// The host's interface that has it.
        interface: String,
    },
    /// No such uplink is configured.
    #[error("there is no uplink \"{name}\"; configured: {}", known.join(", "))]
    UnknownUplink {
        /// As asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// With a launcher's program, only queues tell ports apart.
    #[error("uplink \"{0}\" has a launcher's program, which is for attach = \"wire\"")]
    NotWire(String),
    /// The owner is no word.
    #[error("owner \"{}\" must be 1 to {OWNER_MAX} printable characters", .0.escape_debug())]
    Owner(String),
    /// Only wire ports have queues of their own.
    #[error("queues is for attach = \"wire\"; a switch port shares those of its uplink")]
    QueuesOfSwitchPort,
    /// A port with no queue would move nothing.
    #[error("queues is empty; leave it out to take all queues of the uplink")]
    NoQueue,
    /// The uplink is configured without this queue.
    #[error("queue {queue} is not among those of uplink \"{uplink}\"")]
    UnknownQueue {
        /// Counted from 0.
        queue: u32,
        /// The uplink.
        uplink: String,
    },
    /// One queue listed twice.
    #[error("queue {0} is listed twice")]
    QueueTwice(u32),
    /// Two ports want one queue, at least one of them for itself alone.
    #[error("queue {queue} of uplink \"{uplink}\" is already that of wire port \"{other}\"")]
    QueueTaken {
        /// Counted from 0.
        queue: u32,
        /// The uplink.
        uplink: String,
        /// The port that has it.
        other: String,
    },
    /// A wire port without `queues` leaves no queue for other ports.
    #[error(
        "ports \"{port}\" and \"{other}\" share uplink \"{uplink}\", and \"{greedy}\" is a wire \
         port that takes all its queues; give that one queues = [...]"
    )]
    WholeUplinkTaken {
        /// The port in question.
        port: String,
        /// The other one.
        other: String,
        /// Which of the two takes all.
        greedy: String,
        /// The uplink.
        uplink: String,
    },
    /// The wire ports hold every queue of the uplink.
    #[error("the wire ports of uplink \"{0}\" leave no queue to its switch ports")]
    NoQueueLeft(String),
    /// No such profile, or mistakes in a list of values.
    #[error(transparent)]
    Profile(#[from] ResolveError),
    /// The profile may still change, and the port was not made for that.
    #[error(
        "profile \"{0}\" is a draft, which may change under the guest; choose a released one, or \
         allow it for this port with allow_draft = true (--allow-draft)"
    )]
    Draft(String),
    /// No uplink of this host could keep the profile.
    #[error("profile \"{name}\" cannot be used: {blocker}")]
    ProfileBlocked {
        /// The profile.
        name: String,
        /// Why.
        blocker: Blocker,
    },
}

impl PortProblem {
    /// Whether the description itself is wrong, whatever else is on this host or changes there. The
    /// request must then be changed.
    #[must_use]
    pub const fn is_of_the_port_itself(&self) -> bool {
        matches!(
            self,
            Self::Name(_)
                | Self::SocketPath(_)
                | Self::SocketName(_)
                | Self::Profile(_)
                | Self::Draft(_)
                | Self::MacNotUnicast(_)
                | Self::Owner(_)
                | Self::QueuesOfSwitchPort
                | Self::NoQueue
                | Self::QueueTwice(_)
        )
    }
}

/// The profile that `port` asks for, if this host can keep it.
/// [`crate::profile::Profile::blockers`] tells whether a given uplink can.
///
/// # Errors
/// Every reason why no uplink could.
pub fn resolve_profile(port: &PortConfig, catalog: &Catalog) -> Result<Chosen, Vec<PortProblem>> {
    let chosen = catalog.resolve(&port.profile).map_err(|error| vec![error.into()])?;
    let name = &chosen.profile.name;
    let mut problems = Vec::new();
    if chosen.draft && !port.allow_draft {
        problems.push(PortProblem::Draft(name.clone()));
    }
    let blocked = |blocker| PortProblem::ProfileBlocked { name: name.clone(), blocker };
    problems.extend(chosen.profile.host_blockers().into_iter().map(blocked));
    if problems.is_empty() { Ok(chosen) } else { Err(problems) }
}

/// The differences of `wanted` from `present`, each in words; empty if there are none. A setting
/// that either leaves out stands for its default.
#[must_use]
pub fn port_differences(present: &PortConfig, wanted: &PortConfig) -> Vec<String> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, present: String, wanted: String| {
        if present != wanted {
            differences.push(format!("{what} is {present}, and {wanted} is asked for"));
        }
    };
    let socket = |port: &PortConfig| port.socket.display().to_string();
    let queues = |port: &PortConfig| match &port.queues {
        Some(queues) => format!("{queues:?}"),
        None => "all".to_owned(),
    };
    let word = |word: &Option<String>| word.clone().unwrap_or_else(|| "none".to_owned());
    let permissions = |port: &PortConfig| {
        port.socket_permissions.unwrap_or(SocketPermissions::OWNER_ONLY).to_string()
    };
    let text = |value: &dyn ToString| value.to_string();
    compare("name", present.name.clone(), wanted.name.clone());
    compare("socket", socket(present), socket(wanted));
    compare("mode", text(&present.mode), text(&wanted.mode));
    compare("profile", present.profile.clone(), wanted.profile.clone());
    compare("allow_draft", text(&present.allow_draft), text(&wanted.allow_draft));
    compare("uplink", present.uplink.clone(), wanted.uplink.clone());
    compare("attach", text(&present.attach), text(&wanted.attach));
    compare("mac", text(&present.mac()), text(&wanted.mac()));
    compare("queues", queues(present), queues(wanted));
    compare("socket_group", word(&present.socket_group), word(&wanted.socket_group));
    compare("socket_permissions", permissions(present), permissions(wanted));
    compare("owner", word(&present.owner), word(&wanted.owner));
    differences
}

/// Every reason why `port` cannot stand beside `others`; empty if it can.
#[must_use]
pub fn port_problems(
    port: &PortConfig,
    others: &[PortConfig],
    uplinks: &[UplinkConfig],
) -> Vec<PortProblem> {
    let mut problems = Vec::new();
    check_itself(port, &mut problems);
    for other in others {
        check_names(port, other, &mut problems);
    }
    match uplinks.iter().find(|uplink| uplink.interface == port.uplink) {
        None => problems.push(PortProblem::UnknownUplink {
            name: port.uplink.clone(),
            known: uplinks.iter().map(|uplink| uplink.interface.clone()).collect(),
        }),
        Some(uplink) => check_queues(port, others, uplink, &mut problems),
    }
    problems
}

/// Whether `port` has the address of one of the host's `interfaces`, each with its own. A wire port
/// may: every packet of its queues is its own, whatever the address.
#[must_use]
pub fn host_address_problem(
    port: &PortConfig,
    interfaces: &[(String, MacAddress)],
) -> Option<PortProblem> {
    let mac = port.mac();
    let (interface, _) = interfaces.iter().find(|(_, own)| *own == mac)?;
    let problem = PortProblem::MacOfHost { mac, interface: interface.clone() };
    (port.attach == Attach::Switch).then_some(problem)
}

/// A mistake in the resource that an uplink is to have from a launcher.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandedProblem {
    /// An uplink without a queue would move nothing.
    #[error("socket_fds is empty; leave it out to have isonic make the sockets")]
    None,
    /// The number of sockets must be that of queues: each is for the next queue.
    #[error("socket_fds has {fds} descriptors for {queues} queues")]
    Count {
        /// Descriptors.
        fds: usize,
        /// Queues.
        queues: usize,
    },
    /// One socket cannot be bound twice.
    #[error("descriptor {0} is listed twice in socket_fds")]
    Twice(u32),
    /// The program is the launcher's.
    #[error("mode = \"generic\" is for isonic's own program, and here it is a launcher's")]
    Generic,
    /// Our program is needed to tell the host's frames from VMs'.
    #[error("host = true is for isonic's own program, and here it is a launcher's")]
    Host,
}

/// All mistakes in the resource that an uplink is to have from a launcher.
#[must_use]
pub fn uplink_problems(uplink: &UplinkConfig) -> Vec<HandedProblem> {
    let Some(handed) = &uplink.handed else { return Vec::new() };
    let mut problems = Vec::new();
    if let Handed::Sockets(fds) = handed {
        let queues = uplink.queues.as_ref().map_or(0, Vec::len);
        if fds.is_empty() {
            problems.push(HandedProblem::None);
        } else if fds.len() != queues {
            problems.push(HandedProblem::Count { fds: fds.len(), queues });
        }
        problems.extend(repeated(Some(fds)).map(HandedProblem::Twice));
    }
    if uplink.mode == UplinkMode::Generic {
        problems.push(HandedProblem::Generic);
    }
    if uplink.host {
        problems.push(HandedProblem::Host);
    }
    problems
}

/// Whether a port may have this name, which becomes part of file names.
#[must_use]
pub fn is_port_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let dots_alone = name.bytes().all(|byte| byte == b'.');
    !dots_alone && name.len() <= NAME_MAX && name.bytes().all(allowed)
}

fn check_itself(port: &PortConfig, problems: &mut Vec<PortProblem>) {
    if !is_port_name(&port.name) {
        problems.push(PortProblem::Name(port.name.clone()));
    }
    if !fits_socket_address(&port.socket) {
        problems.push(PortProblem::SocketPath(port.socket.clone()));
    }
    if !names_a_file(&port.socket) {
        problems.push(PortProblem::SocketName(port.socket.clone()));
    }
    if !port.mac().is_unicast() {
        problems.push(PortProblem::MacNotUnicast(port.mac()));
    }
    let is_word =
        |owner: &&String| (1..=OWNER_MAX).contains(&owner.len()) && owner.bytes().all(is_graphic);
    if let Some(owner) = port.owner.as_ref().filter(|owner| !is_word(owner)) {
        problems.push(PortProblem::Owner(owner.clone()));
    }
    match (&port.queues, port.attach) {
        (Some(_), Attach::Switch) => problems.push(PortProblem::QueuesOfSwitchPort),
        (Some(queues), Attach::Wire) if queues.is_empty() => problems.push(PortProblem::NoQueue),
        _ => {}
    }
    problems.extend(repeated(port.queues.as_deref()).map(PortProblem::QueueTwice));
}

fn is_graphic(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

/// Whether a file could have this path: it ends in a name, and has no zero byte, which ends the
/// kernel's strings.
#[must_use]
pub fn names_a_file(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    let last = bytes.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    !bytes.contains(&0) && !matches!(last, b"" | b"." | b"..")
}

pub(super) fn fits_socket_address(path: &Path) -> bool {
    path.is_absolute() && path.as_os_str().as_bytes().len() <= SOCKET_PATH_MAX
}

/// The numbers that occur again, once for each repetition.
pub(super) fn repeated(queues: Option<&[u32]>) -> impl Iterator<Item = u32> {
    let mut seen = BTreeSet::new();
    queues.unwrap_or_default().iter().copied().filter(move |&queue| !seen.insert(queue))
}

fn check_names(port: &PortConfig, other: &PortConfig, problems: &mut Vec<PortProblem>) {
    if port.name == other.name {
        problems.push(PortProblem::NameTaken(port.name.clone()));
        // A derived address would only repeat that the names are the same.
        return;
    }
    if port.socket == other.socket {
        let (path, other) = (port.socket.clone(), other.name.clone());
        problems.push(PortProblem::SocketTaken { path, other });
    }
    if port.uplink == other.uplink && port.mac() == other.mac() {
        problems.push(PortProblem::MacTaken { mac: port.mac(), other: other.name.clone() });
    }
}

fn check_queues(
    port: &PortConfig,
    others: &[PortConfig],
    uplink: &UplinkConfig,
    problems: &mut Vec<PortProblem>,
) {
    let name = &uplink.interface;
    if uplink.handed.is_some() && port.attach != Attach::Wire {
        problems.push(PortProblem::NotWire(name.clone()));
    }
    let own = port.queues.as_deref().unwrap_or_default();
    for &queue in own {
        if uplink.queues.as_ref().is_some_and(|queues| !queues.contains(&queue)) {
            problems.push(PortProblem::UnknownQueue { queue, uplink: name.clone() });
        }
    }
    let takes_all = |port: &PortConfig| port.attach == Attach::Wire && port.queues.is_none();
    let mut neighbours: Vec<&PortConfig> =
        others.iter().filter(|other| other.uplink == *name && other.name != port.name).collect();
    for other in &neighbours {
        if let Some(greedy) = [port, other].into_iter().find(|port| takes_all(port)) {
            problems.push(PortProblem::WholeUplinkTaken {
                port: port.name.clone(),
                other: other.name.clone(),
                greedy: greedy.name.clone(),
                uplink: name.clone(),
            });
        }
        let taken = other.queues.as_deref().unwrap_or_default();
        for &queue in own.iter().filter(|queue| taken.contains(queue)) {
            let (uplink, other) = (name.clone(), other.name.clone());
            problems.push(PortProblem::QueueTaken { queue, uplink, other });
        }
    }
    neighbours.push(port);
    if leaves_no_queue(&neighbours, uplink) {
        problems.push(PortProblem::NoQueueLeft(name.clone()));
    }
}

/// Whether there is a switch port and no queue but those of wire ports. While the host decides the
/// uplink's queues, that is unknown, and the answer is false.
fn leaves_no_queue(ports: &[&PortConfig], uplink: &UplinkConfig) -> bool {
    let Some(queues) = &uplink.queues else { return false };
    let wired = |queue: &u32| {
        ports.iter().any(|port| port.queues.as_ref().is_some_and(|own| own.contains(queue)))
    };
    ports.iter().any(|port| port.attach == Attach::Switch) && queues.iter().all(wired)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::types::SocketMode;

    fn port(name: &str) -> PortConfig {
        PortConfig {
            name: name.into(),
            socket: format!("/run/{name}.sock").into(),
            mode: SocketMode::Server,
            profile: "org.isonic.net.v1".into(),
            allow_draft: false,
            uplink: "eth0".into(),
            attach: Attach::Switch,
            mac: None,
            queues: None,
            socket_group: None,
            socket_permissions: None,
            owner: None,
        }
    }

    fn wire(name: &str, queues: Option<Vec<u32>>) -> PortConfig {
        PortConfig { attach: Attach::Wire, queues, ..port(name) }
    }

    fn eth0(queues: Option<Vec<u32>>) -> [UplinkConfig; 1] {
        [UplinkConfig { queues, ..UplinkConfig::of("eth0") }]
    }

    #[test]
    fn two_switch_ports_share_an_uplink() {
        assert_eq!(port_problems(&port("a"), &[port("b")], &eth0(None)), []);
    }

    #[test]
    fn wire_and_switch_share_an_uplink_on_different_queues_only() {
        let uplink = eth0(Some(vec![0, 1]));
        assert_eq!(port_problems(&wire("a", Some(vec![0])), &[port("b")], &uplink), []);
        assert_eq!(
            port_problems(&wire("a", Some(vec![0, 1])), &[port("b")], &uplink),
            [PortProblem::NoQueueLeft("eth0".into())]
        );
        assert_eq!(
            port_problems(&port("a"), &[wire("b", Some(vec![0, 1]))], &uplink),
            [PortProblem::NoQueueLeft("eth0".into())]
        );
        for (one, other) in [(wire("a", None), port("b")), (port("a"), wire("b", None))] {
            let problems = port_problems(&one, &[other], &uplink);
            assert!(matches!(problems[..], [PortProblem::WholeUplinkTaken { .. }]), "{problems:?}");
        }
    }

    #[test]
    fn a_wire_queue_has_one_owner() {
        let taken = PortProblem::QueueTaken { queue: 1, uplink: "eth0".into(), other: "b".into() };
        let (a, b) = (wire("a", Some(vec![0, 1])), wire("b", Some(vec![1])));
        assert_eq!(port_problems(&a, &[b], &eth0(None)), [taken]);
    }

    #[test]
    fn queues_must_be_the_uplinks_own_and_listed_once() {
        let queues = port_problems(&wire("a", Some(vec![0, 0, 7])), &[], &eth0(Some(vec![0, 1])));
        let unknown = PortProblem::UnknownQueue { queue: 7, uplink: "eth0".into() };
        assert_eq!(queues, [PortProblem::QueueTwice(0), unknown]);
        assert_eq!(
            port_problems(&wire("a", Some(vec![])), &[], &eth0(None)),
            [PortProblem::NoQueue]
        );
        let switch = PortConfig { queues: Some(vec![0]), ..port("a") };
        assert_eq!(port_problems(&switch, &[], &eth0(None)), [PortProblem::QueuesOfSwitchPort]);
    }

    #[test]
    fn names_sockets_and_addresses_are_unique() {
        let other = PortConfig { mac: Some(port("a").mac()), ..port("b") };
        let same_socket = PortConfig { socket: "/run/a.sock".into(), ..port("c") };
        assert_eq!(
            port_problems(&port("a"), &[port("a"), other, same_socket], &eth0(None)),
            [
                PortProblem::NameTaken("a".into()),
                PortProblem::MacTaken { mac: port("a").mac(), other: "b".into() },
                PortProblem::SocketTaken { path: "/run/a.sock".into(), other: "c".into() },
            ]
        );
    }

    #[test]
    fn a_switch_port_cannot_have_an_address_of_the_host_and_a_wire_port_can() {
        let interfaces = [("eth7".to_owned(), port("a").mac()), ("eth8".into(), port("b").mac())];
        let told = host_address_problem(&port("b"), &interfaces).unwrap().to_string();
        assert!(told.contains("eth8") && told.contains("cut off"), "{told}");
        assert_eq!(host_address_problem(&port("c"), &interfaces), None);
        assert_eq!(host_address_problem(&wire("a", None), &interfaces), None);
    }

    #[test]
    fn the_same_address_on_another_uplink_is_no_conflict() {
        let elsewhere =
            PortConfig { mac: Some(port("a").mac()), uplink: "eth1".into(), ..port("b") };
        assert_eq!(port_problems(&port("a"), &[elsewhere], &eth0(None)), []);
    }

    #[test]
    fn a_profile_that_nobody_has_is_refused_with_those_there_are() {
        let catalog = Catalog::embedded();
        assert!(resolve_profile(&port("a"), &catalog).is_ok());
        let other = PortConfig { profile: "org.isonic.net.v999".into(), ..port("a") };
        let message = resolve_profile(&other, &catalog).unwrap_err()[0].to_string();
        assert!(message.contains("v999") && message.contains("known: org.dpdk.v22.11, org."));
    }

    #[test]
    fn a_draft_wants_to_be_allowed() {
        let directory = tempfile::tempdir().unwrap();
        let text = "name = \"com.x.v1\"\nsummary = \"s\"\ndraft = true\nwhy = \"w\"\n\
                    extends = \"org.isonic.net.v1\"\nmtu = 1400\n";
        std::fs::write(directory.path().join("x.toml"), text).unwrap();
        let catalog = Catalog::load(Some(directory.path())).unwrap();
        for profile in ["com.x.v1", "com.x.v1,max_ring=256"] {
            let port = PortConfig { profile: profile.into(), ..port("a") };
            let problems = resolve_profile(&port, &catalog).unwrap_err();
            assert_eq!(problems, [PortProblem::Draft(profile.into())]);
            let allowed = PortConfig { allow_draft: true, ..port };
            assert!(resolve_profile(&allowed, &catalog).is_ok());
        }
    }

    #[test]
    fn a_port_that_is_wrong_by_itself_is_told_everything() {
        let wrong = PortConfig {
            socket: "relative".into(),
            uplink: "eth9".into(),
            mac: Some(MacAddress([0xff; 6])),
            ..port("a/b")
        };
        assert_eq!(port_problems(&wrong, &[], &eth0(None)).len(), 4);
        for name in ["", ".", "..", &"x".repeat(64)] {
            let problems = port_problems(&port(name), &[], &eth0(None));
            assert!(problems.contains(&PortProblem::Name(name.into())), "{name}");
        }
    }
}
