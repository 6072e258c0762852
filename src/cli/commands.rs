//! All commands, and who does each.

use clap::{Parser, Subcommand};

use super::cli_error::CliError;
use super::run::{Action, RunArguments, USAGE, run as serve};
use super::{daemon_commands, doctor, libvirt, profile, stats};

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
    #[command(override_usage = USAGE)]
    Run(Box<RunArguments>),
    /// Add, list, show, change, compare or delete ports
    #[command(subcommand)]
    Port(daemon_commands::PortCommand),
    /// List the uplinks of a running daemon
    #[command(subcommand)]
    Uplink(daemon_commands::UplinkCommand),
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
    Upgrade(daemon_commands::UpgradeArguments),
}

/// Run the command of these arguments, short of running a daemon.
///
/// # Errors
/// [`CliError`].
pub fn run(arguments: Arguments) -> Result<Action, CliError> {
    match arguments.command {
        Command::Run(arguments) => return serve(*arguments),
        Command::Port(command) => daemon_commands::port(command)?,
        Command::Uplink(command) => daemon_commands::uplink(&command)?,
        Command::Profile(command) => profile::run(command)?,
        Command::Libvirt(command) => libvirt::run(command)?,
        Command::Stats(arguments) => stats::run(&arguments)?,
        Command::Doctor(arguments) => doctor::run(&arguments)?,
        Command::Upgrade(arguments) => daemon_commands::upgrade(arguments)?,
    }
    Ok(Action::Done)
}
