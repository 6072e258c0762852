//! CLI: arguments → one request or one configuration → what is printed.
//!
//! `isonic run` becomes a [`Config`] for the daemon; every other command is one `Request` to a
//! running one, printed as a table, or with `--json` as the API has it. This module starts no
//! daemon itself: [`run`] says in an [`Action`] what is left to do.

#![forbid(unsafe_code)]

mod capture;
mod client;
mod compare;
mod export;
mod profile;
mod run;
mod show;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::capture::CaptureError;
use crate::config::{Config, ConfigError, PortProblem, RunOptions};
use crate::control::client::ClientError;
use crate::platform::text_file::FileError;
use crate::profile::export::ExportError;
use crate::profile::{CatalogError, ResolveError};

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

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve ports
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
    /// Show all counters of a running daemon
    Stats(client::Connection),
}

/// What is left to do when the arguments are dealt with.
#[derive(Debug)]
pub enum Action {
    /// Nothing: the answer is printed.
    Done,
    /// Serve these ports.
    Serve(Box<Config>, RunOptions),
}

/// Why a command failed; exit status 1.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The profile directory.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The port described by the arguments cannot be.
    #[error("{}", lines(.0))]
    Port(Vec<PortProblem>),
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

fn lines(problems: &[PortProblem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
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
        Command::Stats(connection) => client::stats(&connection)?,
    }
    Ok(Action::Done)
}

/// Print to standard output. A reader that has gone (`isonic port list | head`) is no failure.
fn print(text: &str) -> Result<(), CliError> {
    let mut output = io::stdout().lock();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CliError::Output(error)),
        _ => Ok(()),
    }
}

/// Print as JSON.
fn print_json(value: &impl serde::Serialize) -> Result<(), CliError> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}
