//! `isonic run`: a configuration file, or one port by the conventions of vhost-user backend
//! programs (QEMU, docs/interop/vhost-user.rst, "Backend program conventions").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use crate::config::{
    self, Attach, Config, Handed, PortConfig, RunOptions, SocketMode, UplinkConfig,
};
use crate::device::mac::MacAddress;
use crate::profile::Catalog;

use super::cli_error::CliError;
use super::standard_streams::{print, print_json};

/// The commands that exist. clap would combine the options into a line that is not accepted.
pub(super) const USAGE: &str = "isonic run --config <FILE> [--check-config]
       isonic run --socket-path <PATH> --uplink <INTERFACE> --profile <PROFILE> [OPTIONS]
       isonic run --fd <NUMBER> --uplink <INTERFACE> --profile <PROFILE> [OPTIONS]
       isonic run --print-capabilities";

#[derive(Debug, Args)]
pub(super) struct RunArguments {
    /// Serve the ports of this file, and those added at run time
    #[arg(
        long,
        value_name = "FILE",
        conflicts_with_all = [
            "socket_path", "fd", "uplink", "profile", "mac", "attach", "client", "queues",
            "socket_fds", "workers", "api_socket", "allow_draft", "profile_dir",
        ],
    )]
    config: Option<PathBuf>,
    /// Check the file, report all its mistakes, and exit
    #[arg(long, requires = "config", conflicts_with_all = ["socket_path", "fd"])]
    check_config: bool,
    /// Print what this program can do as JSON, and exit; other options are ignored
    #[arg(long)]
    print_capabilities: bool,
    /// Serve one port on this vhost-user socket
    #[arg(long, value_name = "PATH", conflicts_with = "fd")]
    socket_path: Option<PathBuf>,
    /// Serve one port on this inherited vhost-user socket, listening or connected
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(i32).range(0..))]
    fd: Option<i32>,
    /// The interface behind the port
    #[arg(long, value_name = "INTERFACE")]
    uplink: Option<String>,
    /// The port's profile: a name, or a list of values such as NAME,mrg_rxbuf=off,max_ring=256
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    /// Bind the port to a profile that is a draft, which may change under the guest
    #[arg(long)]
    allow_draft: bool,
    /// Know the profiles of this directory too
    #[arg(long, value_name = "DIRECTORY")]
    profile_dir: Option<PathBuf>,
    /// The guest's MAC address [default: derived from the host and the socket's name]
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<MacAddress>,
    /// switch (shares the uplink by MAC address) or wire (has its queues alone) [default: switch]
    #[arg(long)]
    attach: Option<Attach>,
    /// Connect to the socket instead of listening on it
    #[arg(long, conflicts_with = "fd")]
    client: bool,
    /// The uplink's queues to use [default: all]
    #[arg(long, value_name = "0,1", value_delimiter = ',')]
    queues: Option<Vec<u32>>,
    /// AF_XDP sockets that a launcher made for these queues, by their descriptors, and that its XDP
    /// program redirects to [default: isonic makes them, and has a program]
    #[arg(long, value_name = "NUMBER,NUMBER", value_delimiter = ',')]
    socket_fds: Option<Vec<u32>>,
    /// Threads that move packets [default: 1]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1024))]
    workers: Option<u16>,
    /// Answer the API on this socket [default: no API]
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
}

/// The work that remains once the arguments are processed.
#[derive(Debug)]
pub enum Action {
    /// Nothing: the answer is printed.
    Done,
    /// Serve these ports.
    Serve(Box<Config>, RunOptions),
}

pub(super) fn run(arguments: RunArguments) -> Result<Action, CliError> {
    if arguments.print_capabilities {
        let catalog = Catalog::load(arguments.profile_dir.as_deref())?;
        print_json(&Capabilities::of(&catalog.usable().released()))?;
        return Ok(Action::Done);
    }
    check_usage(&arguments)?;
    let Some(file) = &arguments.config else { return single(arguments) };
    let config = config::load(file)?;
    if arguments.check_config {
        report(file, &config)?;
        return Ok(Action::Done);
    }
    Ok(Action::Serve(Box::new(config), RunOptions::default()))
}

/// Without a file, a socket, an uplink and a profile have to be named.
fn check_usage(arguments: &RunArguments) -> Result<(), CliError> {
    let is_one_port = arguments.socket_path.is_some() || arguments.fd.is_some();
    let parts = [
        (is_one_port, "--socket-path PATH (or --fd NUMBER)"),
        (arguments.uplink.is_some(), "--uplink INTERFACE"),
        (arguments.profile.is_some(), "--profile PROFILE"),
    ];
    let missing = parts.iter().filter(|(is_there, _)| !is_there);
    let missing: Vec<&str> = missing.map(|&(_, option)| option).collect();
    if arguments.config.is_some() || missing.is_empty() {
        return Ok(());
    }
    let way = match missing.len() == parts.len() {
        true => "give --config FILE, or for one port".to_owned(),
        false => "for one port give also".to_owned(),
    };
    Err(CliError::Usage(format!(
        "nothing to serve: {way} {}; see `isonic run --help`",
        missing.join(" and ")
    )))
}

fn report(file: &Path, config: &Config) -> Result<(), CliError> {
    let file = file.display();
    let (uplinks, ports) = (config.uplinks.len(), config.ports.len());
    let workers = config.workers;
    print(&format!("{file}: ok: uplinks {uplinks}, ports {ports}, workers {workers}\n"))
}

/// A vhost-user backend program's description of itself. Its profiles are those that it can keep
/// and that are no drafts. `type` and `features` are QEMU's (docs/interop/vhost-user.json), which
/// has no features for `net`. The other fields are ours.
#[derive(Debug, Serialize)]
struct Capabilities {
    #[serde(rename = "type")]
    kind: &'static str,
    features: [&'static str; 0],
    version: &'static str,
    profiles: Vec<String>,
    /// By family.
    latest: BTreeMap<String, String>,
}

impl Capabilities {
    fn of(catalog: &Catalog) -> Self {
        let latest = catalog.latest().into_iter();
        Self {
            kind: "net",
            features: [],
            version: env!("CARGO_PKG_VERSION"),
            profiles: catalog.iter().map(|profile| profile.name.clone()).collect(),
            latest: latest.map(|(family, it)| (family.to_owned(), it.name.clone())).collect(),
        }
    }
}

/// The configuration of a daemon with one port, which keeps no state.
fn single(arguments: RunArguments) -> Result<Action, CliError> {
    let attach = arguments.attach.unwrap_or_default();
    let socket = socket(&arguments)?;
    let mut uplink = UplinkConfig {
        queues: arguments.queues.clone(),
        handed: arguments.socket_fds.map(Handed::Sockets),
        ..UplinkConfig::of(&arguments.uplink.unwrap_or_default())
    };
    uplink.count_queues();
    let handed = config::uplink_problems(&uplink);
    if !handed.is_empty() {
        return Err(CliError::Handed(handed));
    }
    let port = PortConfig {
        name: port_name(&socket),
        socket,
        mode: if arguments.client { SocketMode::Client } else { SocketMode::Server },
        profile: arguments.profile.unwrap_or_default(),
        allow_draft: arguments.allow_draft,
        uplink: uplink.interface.clone(),
        attach,
        mac: arguments.mac,
        queues: arguments.queues.filter(|_| attach == Attach::Wire),
        socket_group: None,
        socket_permissions: None,
        owner: None,
    };
    let mut problems = config::port_problems(&port, &[], std::slice::from_ref(&uplink));
    let catalog = Catalog::load(arguments.profile_dir.as_deref())?;
    problems.extend(config::resolve_profile(&port, &catalog).err().into_iter().flatten());
    if !problems.is_empty() {
        return Err(CliError::Port(problems));
    }
    let config = Config {
        api_socket: arguments.api_socket,
        state_dir: None,
        runtime_dir: None,
        profile_dir: arguments.profile_dir,
        profiles_file: None,
        workers: arguments.workers.map_or(1, usize::from),
        worker_cpus: None,
        memory_files: config::MemoryFiles::default(),
        memory_max_gib: config::MEMORY_MAX_GIB,
        uplinks: vec![uplink],
        ports: vec![port],
    };
    Ok(Action::Serve(Box::new(config), RunOptions { socket_fd: arguments.fd }))
}

/// Where the port's socket is, as an absolute path; for `--fd` the kernel's name of it.
fn socket(arguments: &RunArguments) -> Result<PathBuf, CliError> {
    match (&arguments.socket_path, arguments.fd) {
        (Some(path), _) => std::path::absolute(path).map_err(CliError::WorkingDirectory),
        (None, fd) => Ok(format!("/proc/self/fd/{}", fd.unwrap_or_default()).into()),
    }
}

/// A name for a port that was given none: its socket's. The derived address then differs from port
/// to port.
fn port_name(socket: &Path) -> String {
    let stem = socket.file_stem().unwrap_or_default().to_string_lossy();
    let fitting = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let name: String = stem.chars().filter(|&letter| fitting(letter)).take(63).collect();
    if name.chars().all(|letter| letter == '.') { "port".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::Arguments;
    use super::*;

    fn arguments(words: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(words.split(' '))
    }

    fn served(words: &str) -> (Config, RunOptions) {
        match super::super::run(arguments(words).unwrap()).unwrap() {
            Action::Serve(config, options) => (*config, options),
            Action::Done => panic!("nothing to serve"),
        }
    }

    #[test]
    fn one_port_is_served_without_a_file_api_or_state() {
        let (config, options) = served(
            "isonic run --socket-path /run/vm7.sock --uplink eth0 --profile org.isonic.net.v1 \
             --client --workers 2 --queues 0,1",
        );
        assert_eq!((config.api_socket, config.state_dir), (None, None));
        assert_eq!(config.uplinks[0].queues, Some(vec![0, 1]));
        let port = &config.ports[0];
        assert_eq!((port.name.as_str(), port.mode), ("vm7", SocketMode::Client));
        assert_eq!((port.queues.as_ref(), config.workers), (None, 2));
        assert_eq!(options.socket_fd, None);
    }

    #[test]
    fn a_wire_port_has_the_queues_for_its_own() {
        let (config, options) = served(
            "isonic run --fd 3 --uplink eth0 --profile org.isonic.net.v1 --attach wire \
             --queues 1 --mac 52:54:00:00:00:02",
        );
        assert_eq!(config.ports[0].queues, Some(vec![1]));
        assert_eq!(options.socket_fd, Some(3));
    }

    #[test]
    fn forms_that_contradict_each_other_are_refused_as_usage() {
        for words in [
            "isonic run",
            "isonic run --config f --socket-path s",
            "isonic run --socket-path s --fd 3 --uplink e --profile p",
            "isonic run --socket-path s --uplink e",
            "isonic run --check-config --socket-path s --uplink e --profile p",
            "isonic run --fd 3 --client --uplink e --profile p",
            "isonic run --socket-path s --uplink e --profile p --mac nonsense",
        ] {
            let refused = match arguments(words) {
                Err(error) => error.exit_code() == 2,
                Ok(arguments) => {
                    matches!(super::super::run(arguments), Err(CliError::Usage(_)))
                }
            };
            assert!(refused, "{words}");
        }
    }

    #[test]
    fn what_is_missing_is_named_and_given_it_is_accepted() {
        let run = |words: &str| super::super::run(arguments(words).unwrap());
        let told = run("isonic run").unwrap_err().to_string();
        assert!(told.contains("--config FILE, or for one port --socket-path PATH"), "{told}");
        let told = run("isonic run --uplink e --profile org.isonic.net.v1").unwrap_err();
        assert!(told.to_string().contains("give also --socket-path PATH (or --fd"), "{told}");
        run("isonic run --uplink e --profile org.isonic.net.v1 --socket-path /s").unwrap();
    }

    #[test]
    fn print_capabilities_ignores_what_else_is_there() {
        assert!(arguments("isonic run --print-capabilities --socket-path s").is_ok());
        assert!(arguments("isonic run --print-capabilities").is_ok());
    }

    #[test]
    fn all_that_is_wrong_with_a_port_is_told_at_once() {
        let words = "isonic run --socket-path /s --uplink e --profile nobodys \
                     --mac ff:ff:ff:ff:ff:ff";
        let error = super::super::run(arguments(words).unwrap()).unwrap_err();
        let CliError::Port(problems) = error else { panic!("{error}") };
        assert_eq!(problems.len(), 2, "{problems:?}");
    }

    #[test]
    fn every_socket_gives_a_usable_name() {
        for (socket, name) in [("/run/vm 1.sock", "vm1"), ("/run/..sock", "port"), ("/", "port")] {
            assert_eq!(port_name(Path::new(socket)), name, "{socket}");
        }
    }
}
