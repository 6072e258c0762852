//! The commands that are one request to a running daemon.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::{Attach, PortConfig, SocketMode, SocketPermissions};
use crate::control::Request;
use crate::control::api::{Deleted, PortView, ProfileView, Stats, UplinkView};
use crate::control::client::{Client, ClientError};
use crate::device::mac::MacAddress;
use crate::profile::Catalog;

use super::capture::{self, CaptureArguments};
use super::export::{self, ExportArguments};
use super::{CliError, print, print_json, show};

/// Where the API is, if neither argument nor environment says.
const API_SOCKET: &str = "/run/isonic/isonic.sock";
/// The environment's way to say it.
const API_SOCKET_VARIABLE: &str = "ISONIC_API";

#[derive(Debug, Args)]
pub(super) struct Connection {
    /// The daemon's API socket [default: ISONIC_API, else /run/isonic/isonic.sock]
    #[arg(long, value_name = "PATH")]
    api_socket: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum PortCommand {
    /// Add a port, kept over restarts of the daemon
    Add(Box<AddArguments>),
    /// List all ports
    List(Connection),
    /// Show one port: its state, what its front-end agreed to, its rings and counters
    Show(Named),
    /// Delete a port
    Del(Named),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// Its name
    name: String,
    #[command(flatten)]
    connection: Connection,
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
    /// The port's profile
    #[arg(long, value_name = "NAME")]
    profile: String,
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
    #[command(flatten)]
    connection: Connection,
}

impl AddArguments {
    fn into_parts(self) -> Result<(PortConfig, Connection), CliError> {
        let port = PortConfig {
            name: self.name,
            // The daemon's working directory is not ours.
            socket: std::path::absolute(self.socket).map_err(CliError::WorkingDirectory)?,
            mode: if self.client { SocketMode::Client } else { SocketMode::Server },
            profile: self.profile,
            uplink: self.uplink,
            attach: self.attach.unwrap_or_default(),
            mac: self.mac,
            queues: self.queues,
            socket_group: self.socket_group,
            socket_permissions: self.socket_permissions,
        };
        Ok((port, self.connection))
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum UplinkCommand {
    /// List all uplinks, with the AF_XDP mode of each and why
    List(Connection),
}

#[derive(Debug, Subcommand)]
pub(super) enum ProfileCommand {
    /// List all profiles, and which this host can keep
    List(ProfileSource),
    /// Show one profile: what a guest sees, and what stands against it on this host
    Show {
        /// Its name
        name: String,
        #[command(flatten)]
        source: ProfileSource,
    },
    /// Print the interface of any vhost-user backend as a profile file
    Capture(CaptureArguments),
    /// Print a profile as libvirt, QEMU, Node Feature Discovery or Nova want to have it
    Export(ExportArguments),
}

#[derive(Debug, Args)]
pub(super) struct ProfileSource {
    /// Ask no daemon: the profiles in this binary
    #[arg(long, conflicts_with = "api_socket")]
    local: bool,
    #[command(flatten)]
    connection: Connection,
}

impl Connection {
    fn client(&self) -> Client {
        let named = self.api_socket.clone();
        let path = named.or_else(|| std::env::var_os(API_SOCKET_VARIABLE).map(PathBuf::from));
        Client::new(&path.unwrap_or_else(|| API_SOCKET.into()))
    }

    /// Ask, and print the answer.
    fn ask<T: DeserializeOwned + Serialize>(
        &self,
        request: &Request,
        show: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        let answer = self.client().call(request)?;
        self.print(&answer, show)
    }

    fn print<T: Serialize>(
        &self,
        answer: &T,
        show: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        if self.json { print_json(answer) } else { print(&show(answer)) }
    }
}

pub(super) fn port(command: PortCommand) -> Result<(), CliError> {
    match command {
        PortCommand::Add(arguments) => {
            let (port, connection) = arguments.into_parts()?;
            connection.ask(&Request::AddPort(port), show::port)
        }
        PortCommand::List(connection) => {
            connection.ask(&Request::ListPorts, |ports: &Vec<PortView>| show::ports(ports))
        }
        PortCommand::Show(Named { name, connection }) => {
            connection.ask(&Request::ShowPort(name), show::port)
        }
        PortCommand::Del(Named { name, connection }) => {
            let done = |answer: &Deleted| format!("deleted port {}\n", answer.deleted);
            connection.ask(&Request::DeletePort(name), done)
        }
    }
}

pub(super) fn uplink(command: &UplinkCommand) -> Result<(), CliError> {
    let UplinkCommand::List(connection) = command;
    connection.ask(&Request::ListUplinks, |uplinks: &Vec<UplinkView>| show::uplinks(uplinks))
}

pub(super) fn stats(connection: &Connection) -> Result<(), CliError> {
    connection.ask(&Request::Stats, |stats: &Stats| show::stats(stats))
}

pub(super) fn profile(command: ProfileCommand) -> Result<(), CliError> {
    match command {
        ProfileCommand::List(source) => {
            let profiles = source
                .find(&Request::ListProfiles, |catalog| Ok(ProfileView::all(catalog, &[])))?;
            source.connection.print(&profiles, |profiles| show::profiles(profiles))
        }
        ProfileCommand::Show { name, source } => {
            let request = Request::ShowProfile(name.clone());
            let profile = source.find(&request, |catalog| embedded_profile(&name, catalog))?;
            source.connection.print(&profile, show::profile)
        }
        ProfileCommand::Capture(arguments) => capture::run(arguments),
        ProfileCommand::Export(arguments) => export::run(&arguments),
    }
}

fn embedded_profile(name: &str, catalog: &Catalog) -> Result<ProfileView, CliError> {
    let unknown = || super::unknown_profile(name, catalog);
    let profile = catalog.get(name).ok_or_else(unknown)?;
    Ok(ProfileView::new(profile, catalog, &[]))
}

impl ProfileSource {
    /// The daemon's answer, or this binary's own where no daemon is asked or none is there; which
    /// of the two is said on standard error. A daemon named by argument or environment must be
    /// there: its profiles may be others.
    fn find<T: DeserializeOwned>(
        &self,
        request: &Request,
        local: impl FnOnce(&Catalog) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        if !self.local {
            let named = self.connection.api_socket.is_some()
                || std::env::var_os(API_SOCKET_VARIABLE).is_some();
            match self.connection.client().call(request) {
                Err(ClientError::Unreachable { .. }) if !named => {}
                outcome => return Ok(outcome?),
            }
            eprintln!("isonic: no daemon at {API_SOCKET}; these are the profiles of the binary");
        }
        local(&Catalog::embedded())
    }
}
