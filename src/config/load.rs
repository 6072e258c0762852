//! `isonic.toml` → a [`Config`], or all its mistakes with their lines.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use crate::device::groups::ForwardGroups;
use crate::device::mac::MacAddress;
use crate::platform::text_file::{self, FileError};
use crate::profile::Catalog;
use crate::toml_document::{self, Located, Problems, Read, Section, Unreadable, read_text};

use super::rules::{
    PortProblem, fits_socket_address, names_a_file, port_problems, repeated, resolve_profile,
    uplink_problems,
};
use super::types::{
    Attach, Config, Handed, MEMORY_MAX_GIB, MemoryFiles, PortConfig, SocketMode, SocketPermissions,
    UplinkConfig, UplinkMode, UplinkSteering,
};

const API_SOCKET: &str = "/run/isonic/isonic.sock";
const STATE_DIR: &str = "/var/lib/isonic";
/// The default directory of state that outlives the process.
pub const RUNTIME_DIR: &str = "/run/isonic";
/// The most that all ports together may map beyond their shares, GiB
/// (`guest_memory::COMMON_BYTES`).
const MEMORY_MAX_GIB_MOST: i64 = 32 << 10;
/// Within the state directory.
const PROFILES_FILE: &str = "profiles.json";
/// Largest configuration file that is read, bytes: some ten thousand ports.
const FILE_BYTES_MAX: u64 = 4 << 20;
/// Most workers: more threads than one machine has CPUs are of no use.
const WORKERS_MAX: i64 = 1024;
/// Highest queue number of an uplink, well above any NIC's.
const QUEUE_MAX: i64 = 65535;
/// Default packets of one busy poll: the number that drivers are made for (NAPI_POLL_WEIGHT of
/// linux/netdevice.h).
const BUDGET: u16 = 64;
/// Most that the kernel takes.
const BUDGET_MAX: i64 = 65535;
/// Longest interface name, bytes (`IFNAMSIZ` less its final zero).
const INTERFACE_NAME_MAX: usize = 15;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It holds mistakes.
    #[error(transparent)]
    Invalid(#[from] Problems),
}

/// Read the configuration file at `path`.
///
/// # Errors
/// [`ConfigError`]; [`ConfigError::Invalid`] names every mistake.
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = text_file::read_text(path, FILE_BYTES_MAX)?;
    Ok(parse(path, &text)?)
}

/// Read the configuration in `text`; `file` names it in messages.
///
/// # Errors
/// [`Problems`].
pub fn parse(file: &Path, text: &str) -> Result<Config, Problems> {
    toml_document::read(file, text, config)
}

fn config(root: &Section<'_>) -> Option<Config> {
    let api_socket = api_socket(root);
    let state_dir = directory(root, "state_dir").map(|directory| directory.value);
    let state_dir = state_dir.unwrap_or_else(|| STATE_DIR.into());
    let runtime_dir = directory(root, "runtime_dir").map(|directory| directory.value);
    let runtime_dir = runtime_dir.unwrap_or_else(|| RUNTIME_DIR.into());
    let profile_dir = directory(root, "profile_dir");
    let profiles_file = directory(root, "profiles_file").map(|file| file.value);
    let profiles_file = profiles_file.unwrap_or_else(|| state_dir.join(PROFILES_FILE));
    let catalog = catalog(root, profile_dir.as_ref());
    let workers = root.integer::<usize>("workers", 1..=WORKERS_MAX);
    let workers = workers.map_or(1, |workers| workers.value);
    let worker_cpus = worker_cpus(root, workers);
    let memory_files = root.optional::<MemoryFiles>("memory_files").map(|files| files.value);
    let memory_max_gib = root.integer::<u32>("memory_max_gib", 1..=MEMORY_MAX_GIB_MOST);
    let uplinks = root.sections("uplinks", uplink);
    let ports = root.sections("ports", port);
    check_uplinks(root, &uplinks);
    let uplinks: Vec<UplinkConfig> = uplinks.into_iter().map(|uplink| uplink.value).collect();
    check_ports(root, &ports, &uplinks);
    if let Some(catalog) = catalog {
        check_profiles(root, &ports, &catalog);
    }
    let ports: Vec<PortConfig> = ports.into_iter().map(|port| port.config).collect();
    let profile_dir = profile_dir.map(|directory| directory.value);
    Some(Config {
        api_socket: Some(api_socket),
        state_dir: Some(state_dir),
        runtime_dir: Some(runtime_dir),
        profile_dir,
        profiles_file: Some(profiles_file),
        workers,
        worker_cpus,
        memory_files: memory_files.unwrap_or_default(),
        memory_max_gib: memory_max_gib.map_or(MEMORY_MAX_GIB, |most| most.value),
        uplinks,
        ports,
    })
}

fn api_socket(root: &Section<'_>) -> PathBuf {
    let Some(path) = root.optional::<PathBuf>("api_socket") else { return API_SOCKET.into() };
    if !fits_socket_address(&path.value) || !names_a_file(&path.value) {
        root.note(path.line, "api_socket must be an absolute path of at most 107 bytes");
    }
    path.value
}

/// A path that means the same whatever the working directory is.
fn directory(root: &Section<'_>, key: &'static str) -> Option<Located<PathBuf>> {
    let path = root.optional::<PathBuf>(key)?;
    if path.value.is_absolute() {
        return Some(path);
    }
    root.note(path.line, format!("{key} must be an absolute path"));
    None
}

/// The profiles that ports may name; None if they cannot be read, which is noted.
fn catalog(root: &Section<'_>, directory: Option<&Located<PathBuf>>) -> Option<Catalog> {
    let error = match Catalog::load(directory.map(|directory| directory.value.as_path())) {
        Ok(catalog) => return Some(catalog),
        Err(error) => error,
    };
    let line = directory.map_or(root.line(), |directory| directory.line);
    for problem in error.to_string().lines() {
        root.note(line, format!("profile_dir: {problem}"));
    }
    None
}

fn worker_cpus(root: &Section<'_>, workers: usize) -> Option<Vec<usize>> {
    let cpus = root.list::<i64>("worker_cpus")?;
    let line = cpus.first().map_or(root.line(), |cpu| cpu.line);
    if cpus.len() != workers {
        let message = format!("worker_cpus names {} CPUs for {workers} workers", cpus.len());
        root.note(line, message);
    }
    let number = |cpu: Located<i64>| match usize::try_from(cpu.value) {
        Ok(value) => Some(value),
        Err(_negative) => {
            root.note(cpu.line, format!("worker_cpus: {} is no CPU number", cpu.value));
            None
        }
    };
    Some(cpus.into_iter().filter_map(number).collect())
}

fn queues(section: &Section<'_>) -> Option<Located<Vec<u32>>> {
    let listed = section.list::<i64>("queues")?;
    let line = listed.first().map_or(section.line(), |queue| queue.line);
    let number = |queue: &Located<i64>| {
        let number = u32::try_from(queue.value).ok().filter(|&n| i64::from(n) <= QUEUE_MAX);
        if number.is_none() {
            section.note(queue.line, format!("queues: {} is no queue number", queue.value));
        }
        number
    };
    Some(Located { value: listed.iter().filter_map(number).collect(), line })
}

fn uplink(section: &Section<'_>) -> Option<Located<UplinkConfig>> {
    let interface = section.required::<String>("interface");
    let queues = queues(section);
    let mode = section.optional::<UplinkMode>("mode").map(|mode| mode.value).unwrap_or_default();
    if let Some(queues) = &queues {
        if queues.value.is_empty() {
            section.note(queues.line, "queues is empty; leave it out to take all queues");
        }
        for queue in repeated(Some(&queues.value)) {
            section.note(queues.line, format!("queue {queue} is listed twice"));
        }
    }
    let Located { value: interface, line } = interface?;
    if interface.is_empty() || interface.len() > INTERFACE_NAME_MAX {
        let limit = INTERFACE_NAME_MAX;
        section.note(line, format!("\"{interface}\" is no interface name: 1 to {limit} bytes"));
    }
    let coalesce = section.optional::<bool>("coalesce").is_none_or(|coalesce| coalesce.value);
    let switch =
        |key: &'static str| section.optional::<bool>(key).is_some_and(|switch| switch.value);
    let (host, link_to_guests) = (switch("host"), switch("link_to_guests"));
    let busy_poll = busy_poll(section);
    let irq_suspend = section.optional::<bool>("irq_suspend").filter(|suspend| suspend.value);
    if let (Some(suspend), None) = (&irq_suspend, busy_poll) {
        section.note(suspend.line, "irq_suspend without busy_poll = true does nothing");
    }
    let handed = handed(section);
    let steering = section.optional::<UplinkSteering>("steering");
    let mut value = UplinkConfig {
        interface,
        queues: queues.map(|queues| queues.value),
        mode,
        coalesce,
        forward_groups: forward_groups(section),
        host,
        link_to_guests,
        busy_poll,
        irq_suspend: irq_suspend.is_some(),
        steering: steering.map(|steering| steering.value).unwrap_or_default(),
        handed: handed.as_ref().map(|handed| handed.value.clone()),
    };
    value.count_queues();
    let handed_line = handed.map_or(line, |handed| handed.line);
    for problem in uplink_problems(&value) {
        section.note(handed_line, problem.to_string());
    }
    Some(Located { value, line })
}

/// The reserved groups that are forwarded.
fn forward_groups(section: &Section<'_>) -> ForwardGroups {
    let groups = section.list::<ForwardGroups>("forward_groups").unwrap_or_default();
    groups.into_iter().fold(ForwardGroups::NONE, |all, group| all | group.value)
}

/// The resource that a launcher hands in: one thing, if any.
fn handed(section: &Section<'_>) -> Option<Located<Handed>> {
    let path = |key, make: fn(PathBuf) -> Handed| {
        let path = directory(section, key)?;
        Some(Located { value: make(path.value), line: path.line })
    };
    let fds = socket_fds(section);
    let fds = fds.map(|fds| Located { value: Handed::Sockets(fds.value), line: fds.line });
    let map = path("map", Handed::Map);
    let plugin = path("device_plugin", Handed::DevicePlugin);
    let mut given = [fds, map, plugin].into_iter().flatten();
    let first = given.next();
    if let Some(second) = given.next() {
        section.note(second.line, "give one of socket_fds, map and device_plugin");
    }
    first
}

fn socket_fds(section: &Section<'_>) -> Option<Located<Vec<u32>>> {
    let listed = section.list::<i64>("socket_fds")?;
    let line = listed.first().map_or(section.line(), |fd| fd.line);
    let number = |fd: &Located<i64>| {
        let number = u32::try_from(fd.value).ok();
        if number.is_none() {
            section.note(fd.line, format!("socket_fds: {} is no descriptor", fd.value));
        }
        number
    };
    Some(Located { value: listed.iter().filter_map(number).collect(), line })
}

/// The budget, if the uplink is to be polled.
fn busy_poll(section: &Section<'_>) -> Option<u16> {
    let wanted = section.optional::<bool>("busy_poll").is_some_and(|wanted| wanted.value);
    let budget = section.integer::<u16>("busy_poll_budget", 1..=BUDGET_MAX);
    if let Some(budget) = budget.as_ref().filter(|_| !wanted) {
        section.note(budget.line, "busy_poll_budget without busy_poll = true does nothing");
    }
    wanted.then(|| budget.map_or(BUDGET, |budget| budget.value))
}

fn check_uplinks(root: &Section<'_>, uplinks: &[Located<UplinkConfig>]) {
    if uplinks.is_empty() {
        root.note(root.line(), "there is no uplink: add [[uplinks]] with interface = \"...\"");
    }
    for (index, uplink) in uplinks.iter().enumerate() {
        let name = &uplink.value.interface;
        if let Some(first) = uplinks[..index].iter().find(|seen| seen.value.interface == *name) {
            let message = format!("uplink \"{name}\" is already on line {}", first.line);
            root.note(uplink.line, message);
        }
    }
}

/// A port, and the lines that its problems belong to.
struct LocatedPort {
    config: PortConfig,
    lines: PortLines,
}

struct PortLines {
    name: usize,
    socket: usize,
    profile: usize,
    uplink: usize,
    mac: usize,
    queues: usize,
}

fn port(section: &Section<'_>) -> Option<LocatedPort> {
    let name = section.required::<String>("name");
    let socket = section.required::<PathBuf>("socket");
    let mode = section.optional::<SocketMode>("mode").map(|mode| mode.value).unwrap_or_default();
    let profile = section.required::<String>("profile");
    let allow_draft = section.optional::<bool>("allow_draft").is_some_and(|draft| draft.value);
    let uplink = section.required::<String>("uplink");
    let attach =
        section.optional::<Attach>("attach").map(|attach| attach.value).unwrap_or_default();
    let mac = section.optional::<MacAddress>("mac");
    let queues = queues(section);
    let socket_group = section.optional::<String>("socket_group").map(|group| group.value);
    let socket_permissions = section.optional("socket_permissions").map(|bits| bits.value);
    let (name, socket, profile, uplink) = (name?, socket?, profile?, uplink?);
    let lines = PortLines {
        name: name.line,
        socket: socket.line,
        profile: profile.line,
        uplink: uplink.line,
        mac: mac.as_ref().map_or(name.line, |mac| mac.line),
        queues: queues.as_ref().map_or(section.line(), |queues| queues.line),
    };
    let config = PortConfig {
        name: name.value,
        socket: socket.value,
        mode,
        profile: profile.value,
        allow_draft,
        uplink: uplink.value,
        attach,
        mac: mac.map(|mac| mac.value),
        queues: queues.map(|queues| queues.value),
        socket_group,
        socket_permissions,
        // The file itself owns the ports in it.
        owner: None,
    };
    Some(LocatedPort { config, lines })
}

/// Checks each port against those before it, so that a conflict is told once, where it arises.
fn check_ports(root: &Section<'_>, ports: &[LocatedPort], uplinks: &[UplinkConfig]) {
    let configs: Vec<PortConfig> = ports.iter().map(|port| port.config.clone()).collect();
    for (port, before) in ports.iter().zip(0..) {
        port.note(root, &port_problems(&port.config, &configs[..before], uplinks));
    }
}

fn check_profiles(root: &Section<'_>, ports: &[LocatedPort], catalog: &Catalog) {
    for port in ports {
        if let Err(problems) = resolve_profile(&port.config, catalog) {
            port.note(root, &problems);
        }
    }
}

impl LocatedPort {
    fn note(&self, root: &Section<'_>, problems: &[PortProblem]) {
        for problem in problems {
            let message = format!("port \"{}\": {problem}", self.config.name);
            root.note(self.lines.of(problem), message);
        }
    }
}

impl PortLines {
    fn of(&self, problem: &PortProblem) -> usize {
        match problem {
            PortProblem::Name(_) | PortProblem::NameTaken(_) | PortProblem::Owner(_) => self.name,
            PortProblem::SocketPath(_)
            | PortProblem::SocketName(_)
            | PortProblem::SocketTaken { .. } => self.socket,
            PortProblem::MacNotUnicast(_)
            | PortProblem::MacTaken { .. }
            | PortProblem::MacOfHost { .. } => self.mac,
            PortProblem::UnknownUplink { .. } | PortProblem::NotWire(_) => self.uplink,
            PortProblem::Profile(_)
            | PortProblem::Draft(_)
            | PortProblem::ProfileBlocked { .. } => self.profile,
            PortProblem::QueuesOfSwitchPort
            | PortProblem::NoQueue
            | PortProblem::UnknownQueue { .. }
            | PortProblem::QueueTwice(_)
            | PortProblem::QueueTaken { .. }
            | PortProblem::WholeUplinkTaken { .. }
            | PortProblem::NoQueueLeft(_) => self.queues,
        }
    }
}

impl Read for SocketMode {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        read_text(value)
    }
}

impl Read for Attach {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        read_text(value)
    }
}

impl Read for ForwardGroups {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        read_text(value)
    }
}

impl Read for MemoryFiles {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        read_text(value)
    }
}

impl Read for UplinkMode {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        read_text(value)
    }
}

impl Read for UplinkSteering {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        read_text(value)
    }
}

impl Read for MacAddress {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        read_text(value)
    }
}

impl Read for SocketPermissions {
    fn read(value: &DeValue<'_>) -> Result<Self, Unreadable> {
        read_text(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINIMAL: &str = r#"
[[uplinks]]
interface = "eth0"

[[ports]]
name = "vm1"
socket = "/run/vm1.sock"
profile = "org.isonic.net.v1"
uplink = "eth0"
"#;

    fn lines(text: &str) -> Vec<String> {
        let problems = parse(Path::new("c.toml"), text).unwrap_err();
        problems.to_string().lines().map(str::to_owned).collect()
    }

    #[test]
    fn what_is_left_out_has_a_sensible_default() {
        let config = parse(Path::new("c.toml"), MINIMAL).unwrap();
        assert_eq!(config.api_socket, Some(API_SOCKET.into()));
        assert_eq!(config.state_dir, Some(STATE_DIR.into()));
        assert_eq!(config.runtime_dir, Some(RUNTIME_DIR.into()));
        assert_eq!(config.profiles_file, Some("/var/lib/isonic/profiles.json".into()));
        assert_eq!((config.workers, config.worker_cpus), (1, None));
        assert_eq!(config.uplinks[0], UplinkConfig::of("eth0"));
        let port = &config.ports[0];
        assert_eq!((port.mode, port.attach), (SocketMode::Server, Attach::Switch));
        assert_eq!(port.mac(), MacAddress::derived(crate::platform::machine_id(), "vm1"));
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let profiles = tempfile::tempdir().unwrap();
        let text = r#"
api_socket = "/a.sock"
state_dir = "/s"
runtime_dir = "/r"
profile_dir = "PROFILES"
profiles_file = "/p.json"
workers = 2
worker_cpus = [3, 1]
[[uplinks]]
interface = "eth0"
queues = [0, 1]
mode = "zerocopy"
link_to_guests = true
steering = "set"
busy_poll = true
busy_poll_budget = 8
irq_suspend = true
[[ports]]
name = "vm1"
socket = "/run/vm1.sock"
mode = "client"
profile = "org.isonic.net.v1,max_ring=256"
allow_draft = true
uplink = "eth0"
attach = "wire"
mac = "52:54:00:00:00:02"
queues = [1]
socket_group = "kvm"
socket_permissions = "0660"
"#;
        let text = text.replace("PROFILES", &profiles.path().display().to_string());
        let config = parse(Path::new("c.toml"), &text).unwrap();
        assert_eq!(config.profile_dir.as_deref(), Some(profiles.path()));
        assert_eq!(config.profiles_file, Some("/p.json".into()));
        assert_eq!(config.runtime_dir, Some("/r".into()));
        assert_eq!(config.worker_cpus, Some(vec![3, 1]));
        assert_eq!(config.uplinks[0].queues, Some(vec![0, 1]));
        assert_eq!(config.uplinks[0].mode, UplinkMode::Zerocopy);
        assert!(config.uplinks[0].link_to_guests);
        assert_eq!(config.uplinks[0].steering, UplinkSteering::Set);
        assert_eq!((config.uplinks[0].busy_poll, config.uplinks[0].irq_suspend), (Some(8), true));
        let port = &config.ports[0];
        assert_eq!((port.mode, port.attach), (SocketMode::Client, Attach::Wire));
        assert_eq!(port.profile, "org.isonic.net.v1,max_ring=256");
        assert!(port.allow_draft);
        assert_eq!(port.mac, Some(MacAddress([0x52, 0x54, 0, 0, 0, 2])));
        assert_eq!(port.queues, Some(vec![1]));
        assert_eq!(port.socket_permissions, Some(SocketPermissions(0o660)));
        let json = serde_json::to_string(port).unwrap();
        assert_eq!(serde_json::from_str::<PortConfig>(&json).unwrap(), *port);
    }

    #[test]
    fn busy_polling_has_a_budget_that_means_nothing_alone() {
        let with = |keys: &str| MINIMAL.replace("\"eth0\"\n\n", &format!("\"eth0\"\n{keys}\n"));
        let config = parse(Path::new("c.toml"), &with("busy_poll = true")).unwrap();
        assert_eq!(config.uplinks[0].busy_poll, Some(64));
        for (keys, word) in [
            ("busy_poll_budget = 8", "busy_poll = true"),
            ("irq_suspend = true", "busy_poll = true"),
            ("busy_poll = true\nbusy_poll_budget = 0", "busy_poll_budget"),
            ("busy_poll = true\nbusy_poll_budget = 65536", "busy_poll_budget"),
            ("busy_poll = 1", "busy_poll"),
        ] {
            let told = lines(&with(keys));
            assert!(told.len() == 1 && told[0].contains(word), "{keys}: {told:?}");
        }
    }

    #[test]
    fn a_launcher_s_sockets_are_one_for_each_queue_and_for_wire_ports() {
        let with = |keys: &str, attach: &str| {
            let text = MINIMAL.replace("\"eth0\"\n\n", &format!("\"eth0\"\n{keys}\n"));
            format!("{text}attach = \"{attach}\"\n")
        };
        let config = parse(Path::new("c.toml"), &with("socket_fds = [7, 4]", "wire")).unwrap();
        let uplink = &config.uplinks[0];
        assert_eq!(uplink.handed, Some(Handed::Sockets(vec![7, 4])));
        assert_eq!(uplink.queues, Some(vec![0, 1]));
        let config = parse(Path::new("c.toml"), &with("map = \"/sys/fs/bpf/m\"", "wire")).unwrap();
        assert_eq!(config.uplinks[0].handed, Some(Handed::Map("/sys/fs/bpf/m".into())));
        for (keys, attach, word) in [
            ("socket_fds = [7, 4]\nqueues = [3]", "wire", "2 descriptors for 1 queues"),
            ("socket_fds = []", "wire", "empty"),
            ("socket_fds = [7]\nmap = \"/m\"", "wire", "give one of"),
            ("device_plugin = \"p.sock\"", "wire", "absolute"),
            ("map = \"/m\"", "switch", "attach = \"wire\""),
            ("socket_fds = [7, 7]", "wire", "listed twice"),
            ("socket_fds = [-1]\nqueues = []", "wire", "no descriptor"),
            ("socket_fds = [7]\nmode = \"generic\"", "wire", "generic"),
            ("socket_fds = [7]\nhost = true", "wire", "host = true"),
            ("socket_fds = [7]", "switch", "attach = \"wire\""),
        ] {
            let told = lines(&with(keys, attach)).join("\n");
            assert!(told.contains(word), "{keys}: {told}");
        }
    }

    #[test]
    fn five_mistakes_are_told_at_once_with_their_lines() {
        let text = r#"workers = "two"
[[uplinks]]
interface = "eth0"
mod = "auto"
[[ports]]
name = "vm1"
socket = "/run/vm1.sock"
profile = "org.isonic.net.v1"
uplink = "eth1"
mac = "52:54"
[[ports]]
name = "vm2"
socket = "/run/vm1.sock"
profile = "org.isonic.net.v1"
uplink = "eth0"
"#;
        assert_eq!(
            lines(text),
            [
                "c.toml:1: workers must be an integer, and this is of type string",
                "c.toml:4: unknown key \"mod\"; did you mean \"mode\"?",
                "c.toml:9: port \"vm1\": there is no uplink \"eth1\"; configured: eth0",
                "c.toml:10: mac: \"52:54\" is no MAC address; write six pairs of hexadecimal \
                 digits, 52:54:00:12:34:56",
                "c.toml:13: port \"vm2\": socket /run/vm1.sock is already that of port \"vm1\"",
            ]
        );
    }

    #[test]
    fn duplicates_are_told_once_where_they_arise() {
        let text = format!("{MINIMAL}{}", MINIMAL.replace("vm1.sock", "vm2.sock"));
        assert_eq!(
            lines(&text),
            [
                "c.toml:12: uplink \"eth0\" is already on line 3",
                "c.toml:15: port \"vm1\": there is already a port \"vm1\"",
            ]
        );
    }

    #[test]
    fn values_out_of_range_are_refused() {
        for (text, expected) in [
            ("workers = 0\n", "c.toml:1: workers is 0, and must be 1 to 1024"),
            ("worker_cpus = [0, 1]\n", "c.toml:1: worker_cpus names 2 CPUs for 1 workers"),
            ("worker_cpus = [-1]\n", "c.toml:1: worker_cpus: -1 is no CPU number"),
            ("state_dir = \"s\"\n", "c.toml:1: state_dir must be an absolute path"),
        ] {
            assert_eq!(lines(&format!("{text}{MINIMAL}")), [expected]);
        }
        let queues = MINIMAL.replace("\"eth0\"\n\n", "\"eth0\"\nqueues = [0, 0, -1]\n\n");
        assert_eq!(
            lines(&queues),
            ["c.toml:4: queues: -1 is no queue number", "c.toml:4: queue 0 is listed twice"]
        );
    }

    #[test]
    fn groups_to_forward_are_known_by_name_and_pause_is_not_one() {
        let with = |groups: &str| {
            let line = format!("\"eth0\"\nforward_groups = {groups}\n\n");
            MINIMAL.replace("\"eth0\"\n\n", &line)
        };
        let config = parse(Path::new("c.toml"), &with("[\"lldp\", \"stp\"]")).unwrap();
        let groups = config.uplinks[0].forward_groups;
        let allowed = |last| groups.allow([0x01, 0x80, 0xc2, 0, 0, last]);
        assert_eq!([0, 1, 2, 3, 14].map(allowed), [true, false, false, false, true]);
        assert_eq!(
            lines(&with("[\"pause\", \"lacpp\"]")),
            [
                "c.toml:4: forward_groups: pause frames are never forwarded: one guest could stop \
                 the NIC for all",
                "c.toml:4: forward_groups: \"lacpp\" is no group to forward; write stp, lacp, \
                 eapol or lldp",
            ]
        );
    }

    #[test]
    fn profiles_are_looked_up_and_their_mistakes_told() {
        let unknown = MINIMAL.replace("net.v1", "net.v999");
        assert_eq!(
            lines(&unknown),
            ["c.toml:8: port \"vm1\": there is no profile \"org.isonic.net.v999\"; known: \
              org.dpdk.v22.11, org.isonic.net.v1, org.isonic.net.v2, org.isonic.net.v3, \
              org.isonic.net.v4, org.openvswitch.v3.1"]
        );
        let nothing = lines(&MINIMAL.replace("org.isonic.net.v1", ""));
        assert!(nothing[0].starts_with("c.toml:8: port \"vm1\": no profile is named"));
        let values = lines(&MINIMAL.replace("net.v1", "net.v1,mq=perhaps,max_ring=100000"));
        assert!(values[0].contains("mq is on or off; max_ring=100000: max_ring is a number"));
        let missing = lines(&format!("profile_dir = \"/nonexistent\"{MINIMAL}"));
        assert_eq!(missing.len(), 1);
        assert!(missing[0].starts_with("c.toml:1: profile_dir: /nonexistent: cannot be read"));
    }

    #[test]
    fn a_configuration_without_uplinks_says_what_to_add() {
        assert!(lines("")[0].contains("add [[uplinks]]"));
    }

    #[test]
    fn permissions_are_octal() {
        assert_eq!("0660".parse(), Ok(SocketPermissions(0o660)));
        for text in ["", "660x", "0999", "1777", "rw-rw----", "+660"] {
            assert!(text.parse::<SocketPermissions>().is_err(), "{text}");
        }
    }
}
