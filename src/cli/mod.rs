//! CLI: arguments → one request or one configuration → what is printed.
//!
//! `isonic run` becomes a [`Config`] for the daemon; every other command is one `Request` to a
//! running one, printed as a table, or with `--json` as the API has it. This module starts no
//! daemon itself: [`run`] says in an [`Action`] what is left to do.

#![forbid(unsafe_code)]

mod capture;
mod client;
mod compare;
mod doctor;
mod export;
pub mod failure;
mod hook;
mod libvirt;
pub mod log;
mod profile;
mod run;
mod show;
mod stats;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::capture::CaptureError;
use crate::config::{Config, ConfigError, HandedProblem, PortProblem, RunOptions};
use crate::control::client::ClientError;
use crate::libvirt::StampError;
use crate::libvirt::hook::HookError;
use crate::platform::text_file::FileError;
use crate::profile::export_formats::ExportError;
use crate::profile::qemu_device::QemuDeviceError;
use crate::profile::{CatalogError, ResolveError};
use crate::report::{printable, printable_lines};

/// A vhost-user virtio-net backend whose datapath is AF_XDP, with versioned interface profiles.
#[derive(Debug, Parser)]
#[command(name = "isonic", version)]
pub struct Arguments {
    /// What to log, on standard error: error, warn, info, debug, trace, or a filter such as
    /// isonic::vhost_user=debug [default: RUST_LOG, else info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<String>,
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// Whether this is to be the daemon.
    #[must_use]
    pub fn serves(&self) -> bool {
        matches!(self.command, Command::Run(_))
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve ports
    #[command(override_usage = run::USAGE)]
    Run(Box<run::RunArguments>),
    /// Add, list, show, change, compare or delete ports
    #[command(subcommand)]
    Port(client::PortCommand),
    /// List the uplinks of a running daemon
    #[command(subcommand)]
    Uplink(client::UplinkCommand),
    /// List, show, compare, check, capture or export profiles
    #[command(subcommand)]
    Profile(profile::ProfileCommand),
    /// Interfaces in libvirt's domains: XML, stored profiles, the hook
    #[command(subcommand)]
    Libvirt(libvirt::LibvirtCommand),
    /// Show what a running daemon has counted: packets, bytes, and drops by reason
    Stats(stats::StatsArguments),
    /// Say whether ports can be served here, and what would mend it; the status is 1 if not
    Doctor(doctor::DoctorArguments),
    /// Have a new process, perhaps of another version, go on in place of a running daemon
    Upgrade(client::UpgradeArguments),
}

/// What is left to do when the arguments are dealt with.
#[derive(Debug)]
pub enum Action {
    /// Nothing: the answer is printed.
    Done,
    /// Serve these ports.
    Serve(Box<Config>, RunOptions),
}

/// Why a command failed; exit status 1, but 2 of [`CliError::Usage`].
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The arguments make no command.
    #[error("{0}")]
    Usage(String),
    /// Nothing of that name is counted.
    #[error("there is no port or uplink \"{0}\"; see `isonic port list` and `isonic uplink list`")]
    NothingCounted(String),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The profile directory.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The port described by the arguments cannot be.
    #[error("{}", lines(.0))]
    Port(Vec<PortProblem>),
    /// Nor can the uplink.
    #[error("{}", lines(.0))]
    Handed(Vec<HandedProblem>),
    /// The socket's path depends on a working directory that is gone.
    #[error("the working directory cannot be read; give --socket-path as an absolute path")]
    WorkingDirectory(#[source] io::Error),
    /// The daemon, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No daemon was asked, and there is no such profile here.
    #[error(transparent)]
    Profile(#[from] ResolveError),
    /// The daemon has no such uplink.
    #[error(
        "the daemon has no uplink \"{name}\"; it has {}; with --local, any interface of this host \
         can be checked",
        known.join(", ")
    )]
    UnknownUplink {
        /// As asked for.
        name: String,
        /// Those there are.
        known: Vec<String>,
    },
    /// This host has no such interface.
    #[error("there is no interface \"{name}\" on this host")]
    UnknownInterface {
        /// As asked for.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The answer to `profile check` is no.
    #[error("profile {profile} cannot be kept on uplink {uplink}")]
    NotUsable {
        /// The profile.
        profile: String,
        /// The uplink.
        uplink: String,
    },
    /// The answer to `profile baseline` is that there is none.
    #[error("no profile{} can be kept by all of these hosts", of_family(family))]
    NoBaseline {
        /// The family, if one was asked for.
        family: Option<String>,
    },
    /// The answer to `doctor` is no.
    #[error("no port can be served here; each problem above says what would mend it")]
    CannotServe,
    /// The answer to `port compare` is no.
    #[error("the two sessions are not the same to a guest")]
    Different,
    /// A file that should be compared cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file that should be compared is something else.
    #[error("{} is not what {command} prints", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The command that makes such a file.
        command: &'static str,
        /// In what it differs.
        #[source]
        source: serde_json::Error,
    },
    /// Another backend's interface could not be captured.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The profile has no form in the format.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// The profile cannot be shown by QEMU.
    #[error(transparent)]
    Frontend(#[from] QemuDeviceError),
    /// The domain cannot be stamped.
    #[error(transparent)]
    Stamp(#[from] StampError),
    /// The domain must not run here.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// What the port has is not known by its name any more.
    #[error(
        "port \"{port}\" has the profile {profile} with digest {digest}, which the daemon cannot \
         show any more; see `isonic port show {port}`"
    )]
    PortProfile {
        /// The port.
        port: String,
        /// Its profile.
        profile: String,
        /// Its digest.
        digest: String,
    },
    /// Somebody else's hook is where ours would be.
    #[error("{} is there and not ours; move it, or install with another --directory", .0.display())]
    ForeignHook(PathBuf),
    /// The hook cannot be written.
    #[error("cannot install the hook {}", path.display())]
    Install {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path of this binary is not known.
    #[error("cannot find out where isonic itself is")]
    Binary(#[source] io::Error),
    /// Standard input.
    #[error("cannot read standard input")]
    Input(#[source] io::Error),
    /// Standard input is not UTF-8.
    #[error("standard input is no text in UTF-8; convert it first (iconv --to-code UTF-8)")]
    InputText(#[source] std::string::FromUtf8Error),
    /// One device, several profiles.
    #[error("a device has one profile: give one name, or use the format nfd or nova")]
    SeveralProfiles,
    /// Standard output.
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    /// An answer of ours is not expressible in JSON.
    #[error("cannot write JSON")]
    Json(#[from] serde_json::Error),
}

fn lines(problems: &[impl ToString]) -> String {
    let line = |problem: &_| printable(&ToString::to_string(problem));
    problems.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn of_family(family: &Option<String>) -> String {
    family.as_ref().map(|family| format!(" of {family}")).unwrap_or_default()
}

/// Do what the arguments say, short of running a daemon.
///
/// # Errors
/// [`CliError`].
pub fn run(arguments: Arguments) -> Result<Action, CliError> {
    match arguments.command {
        Command::Run(arguments) => return run::run(*arguments),
        Command::Port(command) => client::port(command)?,
        Command::Uplink(command) => client::uplink(&command)?,
        Command::Profile(command) => profile::run(command)?,
        Command::Libvirt(command) => libvirt::run(command)?,
        Command::Stats(arguments) => stats::run(&arguments)?,
        Command::Doctor(arguments) => doctor::run(&arguments)?,
        Command::Upgrade(arguments) => client::upgrade(arguments)?,
    }
    Ok(Action::Done)
}

/// Whether anybody reads what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    Present,
    Gone,
}

/// Write to standard output, to the letter. A reader that has gone (`isonic port list | head`) is
/// no failure.
fn write_out(text: &str) -> Result<Reader, CliError> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => Ok(Reader::Present),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(CliError::Output(error)),
    }
}

/// Print lines for people, on whose terminal nothing happens that others have chosen.
fn print(text: &str) -> Result<(), CliError> {
    write_out(&printable_lines(text)).map(|_reader| ())
}

/// Print what another program reads, to the letter.
fn print_data(text: &str) -> Result<(), CliError> {
    write_out(text).map(|_reader| ())
}

/// As JSON.
fn json_text(value: &impl serde::Serialize) -> Result<String, CliError> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// Print as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    print_data(&json_text(value)?)
}
