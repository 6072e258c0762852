//! The commands that are one request to a running daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::{Attach, PortConfig, SocketMode, SocketPermissions};
use crate::control::Request;
use crate::control::api::{Deleted, PortView, ProfileChange, Upgrade, UplinkView};
use crate::device::mac::MacAddress;

use super::api_arguments::ApiArguments;
use super::cli_error::CliError;
use super::{compare, show};

#[derive(Debug, Subcommand)]
pub(super) enum PortCommand {
    /// Add a port, kept over restarts of the daemon
    Add(Box<AddArguments>),
    /// List all ports
    List(ApiArguments),
    /// Show one port: its state, what its front-end agreed to, its rings and counters
    Show(Named),
    /// Give a port another profile, while no front-end is connected
    SetProfile(ChangeArguments),
    /// Compare two ports, as `port show --json` printed them, as their guests see them
    Compare(compare::PortFiles),
    /// Delete a port
    Del(Named),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// Its name
    name: String,
    #[command(flatten)]
    connection: ApiArguments,
}

#[derive(Debug, Args)]
pub(super) struct AddArguments {
    /// The port's name: up to 63 letters, digits and . _ -
    name: String,
    /// The vhost-user socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The interface behind the port
    #[arg(long, value_name = "INTERFACE")]
    uplink: String,
    /// The port's profile: a name, or a list of values such as NAME,mrg_rxbuf=off,max_ring=256
    #[arg(long, value_name = "PROFILE")]
    profile: String,
    /// Bind the port to a profile that is a draft, which may change under the guest
    #[arg(long)]
    allow_draft: bool,
    /// The guest's MAC address [default: derived from the host and the name]
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<MacAddress>,
    /// switch (shares the uplink by MAC address) or wire (has its queues alone) [default: switch]
    #[arg(long)]
    attach: Option<Attach>,
    /// Connect to the socket instead of listening on it
    #[arg(long)]
    client: bool,
    /// Of a wire port: the uplink's queues that are its own [default: all]
    #[arg(long, value_name = "0,1", value_delimiter = ',')]
    queues: Option<Vec<u32>>,
    /// The group that owns the socket file
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// The socket file's permissions, in octal [default: 0600]
    #[arg(long, value_name = "BITS")]
    socket_permissions: Option<SocketPermissions>,
    /// Succeed if the port is there already with this content; one with another is refused
    #[arg(long)]
    if_not_exists: bool,
    /// Who will remove the port: of a libvirt domain's, libvirt:UUID
    #[arg(long, value_name = "WORD")]
    owner: Option<String>,
    #[command(flatten)]
    connection: ApiArguments,
}

#[derive(Debug, Args)]
pub(super) struct ChangeArguments {
    /// The port's name
    name: String,
    /// Its profile from now on: a name or a list of values
    profile: String,
    /// Allow a profile that is a draft
    #[arg(long)]
    allow_draft: bool,
    #[command(flatten)]
    connection: ApiArguments,
}

impl AddArguments {
    fn into_parts(self) -> Result<(PortConfig, ApiArguments), CliError> {
        let port = PortConfig {
            name: self.name,
            // The daemon's working directory is not ours.
            socket: std::path::absolute(self.socket).map_err(CliError::WorkingDirectory)?,
            mode: if self.client { SocketMode::Client } else { SocketMode::Server },
            profile: self.profile,
            allow_draft: self.allow_draft,
            uplink: self.uplink,
            attach: self.attach.unwrap_or_default(),
            mac: self.mac,
            queues: self.queues,
            socket_group: self.socket_group,
            socket_permissions: self.socket_permissions,
            owner: self.owner,
        };
        Ok((port, self.connection))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum UplinkCommand {
    /// List all uplinks, with the AF_XDP mode of each and why
    List(ApiArguments),
}

#[derive(Debug, Args)]
pub(super) struct UpgradeArguments {
    /// The program that is to go on [default: what is where the daemon was started from]
    #[arg(long, value_name = "PATH")]
    binary: Option<PathBuf>,
    /// Upgrade even if running VMs lose by it, as when the configuration file has another profile
    /// or MAC for their port
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    connection: ApiArguments,
}

pub(super) fn port(command: PortCommand) -> Result<(), CliError> {
    match command {
        PortCommand::Add(arguments) => {
            let put = arguments.if_not_exists;
            let (port, connection) = arguments.into_parts()?;
            let request = if put { Request::PutPort(port) } else { Request::AddPort(port) };
            connection.ask(&request, show::port)
        }
        PortCommand::List(connection) => connection
            .ask_with_health(&Request::ListPorts, |ports: &Vec<PortView>| show::ports(ports)),
        PortCommand::Show(Named { name, connection }) => {
            connection.ask(&Request::ShowPort(name), show::port)
        }
        PortCommand::SetProfile(ChangeArguments { name, profile, allow_draft, connection }) => {
            let change = ProfileChange { profile, allow_draft };
            connection.ask(&Request::SetProfile(name, change), show::port)
        }
        PortCommand::Compare(files) => compare::ports(&files),
        PortCommand::Del(Named { name, connection }) => {
            let done = |answer: &Deleted| format!("deleted port {}\n", answer.deleted);
            connection.ask(&Request::DeletePort(name), done)
        }
    }
}

pub(super) fn uplink(command: &UplinkCommand) -> Result<(), CliError> {
    let UplinkCommand::List(connection) = command;
    let show = |uplinks: &Vec<UplinkView>| show::uplinks(uplinks);
    connection.ask_with_health(&Request::ListUplinks, show)
}

pub(super) fn upgrade(arguments: UpgradeArguments) -> Result<(), CliError> {
    let UpgradeArguments { binary, force, connection } = arguments;
    // The daemon's working directory is not ours.
    let binary = binary.map(std::path::absolute).transpose().map_err(CliError::WorkingDirectory)?;
    connection.ask(&Request::Upgrade(Upgrade { binary, force }), show::upgraded)
}
