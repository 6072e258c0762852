//! `isonic libvirt`: a VM's interface in libvirt's words, and stored with the VM.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::config::SocketMode;
use crate::control::Request;
use crate::control::api::{PortView, ProfileView};
use crate::device::mac::MacAddress;
use crate::libvirt::{self, BYTES_MAX, DeviceAttachment, Order, QemuSocketMode};
use crate::platform::text_file::read_text;
use crate::profile::{Catalog, Profile};

use super::api_arguments::ApiSocket;
use super::cli_error::CliError;
use super::failure::note;
use super::libvirt_hook::{self, HookArguments, InstallArguments};
use super::standard_streams::{print_data, standard_input};

/// Where ports' sockets are, if nothing is said.
const SOCKET_DIRECTORY: &str = "/run/isonic";

#[derive(Debug, Subcommand)]
pub(super) enum LibvirtCommand {
    /// Print the interface of a port or a profile for a domain's XML
    Xml(XmlArguments),
    /// Give a domain's vhost-user interfaces a profile, stored in its XML
    Stamp(StampArguments),
    /// What libvirt calls when a VM starts, stops or arrives; see install-hook
    Hook(HookArguments),
    /// Install the hook for QEMU domains beside those that are there
    InstallHook(InstallArguments),
}

#[derive(Debug, Args)]
pub(super) struct XmlArguments {
    /// The port, of a running daemon
    #[arg(value_name = "PORT", required_unless_present = "profile")]
    port: Option<String>,
    /// A profile instead, a name or a list of values; asks no daemon
    #[arg(long, value_name = "PROFILE", conflicts_with_all = ["port", "api_socket"])]
    profile: Option<String>,
    /// Of a profile: a directory with further ones
    #[arg(long, value_name = "DIRECTORY", requires = "profile")]
    profile_dir: Option<PathBuf>,
    /// Of a profile: the port's vhost-user socket [default: /run/isonic/PORT.sock]
    #[arg(long, value_name = "PATH", requires = "profile")]
    socket: Option<PathBuf>,
    /// Of a profile: the port is in client mode, so that QEMU listens
    #[arg(long, requires = "profile")]
    client: bool,
    /// Of a profile: the guest's MAC address
    #[arg(long, value_name = "ADDRESS", requires = "profile")]
    mac: Option<MacAddress>,
    /// The VM's queue pairs [default: the profile's limit]
    #[arg(long, value_name = "NUMBER")]
    queue_pairs: Option<u16>,
    /// Only the interface element, for `virsh attach-device`
    #[arg(long)]
    device: bool,
    #[command(flatten)]
    api: ApiSocket,
}

#[derive(Debug, Args)]
pub(super) struct StampArguments {
    /// The domain's XML (virsh dumpxml --inactive); - for standard input
    #[arg(value_name = "DOMAIN.xml")]
    domain: PathBuf,
    /// The profile: a name, a list of values or latest [default: what is stamped, else latest]
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    /// Give what is stamped another profile: the guest finds it at its next start
    #[arg(long, requires = "profile")]
    replace_profile: bool,
    /// Allow a profile that is a draft, which may change under the guest
    #[arg(long)]
    allow_draft: bool,
    /// A directory with further profiles
    #[arg(long, value_name = "DIRECTORY")]
    profile_dir: Option<PathBuf>,
    /// What the domain calls its uplink: an interface, or a word that each host's hook knows
    /// [default: what is stamped, else the only one of the host]
    #[arg(long, value_name = "NAME")]
    uplink: Option<String>,
    /// Only this interface, by alias, MAC address or socket; may be repeated [default: all that
    /// are vhost-user]
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// Add an interface, beside those there are; where there is none one is added anyway
    #[arg(long)]
    add: bool,
    /// Of an interface that is added: its MAC address [default: libvirt chooses]
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<MacAddress>,
    /// Of an interface that is added: the directory of its socket
    #[arg(long, value_name = "DIRECTORY", default_value = SOCKET_DIRECTORY)]
    socket_dir: PathBuf,
    /// Queue pairs [default: what is there, else one for each CPU]
    #[arg(long, value_name = "NUMBER")]
    queue_pairs: Option<u16>,
}

pub(super) fn run(command: LibvirtCommand) -> Result<(), CliError> {
    match command {
        LibvirtCommand::Xml(arguments) => xml(&arguments),
        LibvirtCommand::Stamp(arguments) => stamp(arguments),
        LibvirtCommand::Hook(arguments) => libvirt_hook::run(&arguments),
        LibvirtCommand::InstallHook(arguments) => libvirt_hook::install(&arguments),
    }
}

fn xml(arguments: &XmlArguments) -> Result<(), CliError> {
    let (profile, attachment) = match (&arguments.port, &arguments.profile) {
        (Some(port), _) => of_port(port, arguments)?,
        (None, profile) => of_profile(profile.as_deref().unwrap_or_default(), arguments)?,
    };
    print_data(&if arguments.device {
        libvirt::device(&profile, &attachment)?
    } else {
        libvirt::fragment(&profile, &attachment)?
    })
}

fn of_profile(
    name: &str,
    arguments: &XmlArguments,
) -> Result<(Profile, DeviceAttachment), CliError> {
    let catalog = Catalog::load(arguments.profile_dir.as_deref())?;
    let profile = catalog.resolve(name)?.profile;
    let default = || Path::new(SOCKET_DIRECTORY).join("PORT.sock");
    let attachment = DeviceAttachment {
        socket: arguments.socket.clone().unwrap_or_else(default).display().to_string(),
        mode: if arguments.client { QemuSocketMode::Server } else { QemuSocketMode::Client },
        mac: arguments.mac.map(|mac| mac.to_string()),
        queue_pairs: arguments.queue_pairs,
    };
    Ok((Profile::clone(&profile), attachment))
}

fn of_port(name: &str, arguments: &XmlArguments) -> Result<(Profile, DeviceAttachment), CliError> {
    let daemon = arguments.api.client();
    let port: PortView = daemon.call(&Request::ShowPort(name.to_owned()))?;
    let profile: ProfileView = daemon.call(&Request::ShowProfile(port.profile.clone()))?;
    // The port's digest decides: its profile's name may have come to mean another interface.
    let profile = profile.profile().filter(|profile| profile.digest() == port.profile_digest);
    let profile = profile.ok_or_else(|| CliError::PortProfile {
        port: port.name.clone(),
        profile: port.profile.clone(),
        digest: port.profile_digest.clone(),
    })?;
    let attachment = DeviceAttachment {
        socket: port.socket.display().to_string(),
        mode: match port.mode {
            SocketMode::Server => QemuSocketMode::Client,
            SocketMode::Client => QemuSocketMode::Server,
        },
        mac: Some(port.mac.to_string()),
        queue_pairs: arguments.queue_pairs,
    };
    Ok((profile, attachment))
}

fn stamp(arguments: StampArguments) -> Result<(), CliError> {
    let catalog = Catalog::load(arguments.profile_dir.as_deref())?;
    let limit = u64::try_from(BYTES_MAX).unwrap_or(u64::MAX);
    let text = match &arguments.domain {
        path if path == Path::new("-") => {
            String::from_utf8(standard_input()?).map_err(CliError::InputText)?
        }
        path => read_text(path, limit)?,
    };
    let order = Order {
        profile: arguments.profile,
        replace_profile: arguments.replace_profile,
        allow_draft: arguments.allow_draft,
        uplink: arguments.uplink,
        only: arguments.interfaces,
        add: arguments.add,
        mac: arguments.mac.map(|mac| mac.to_string()),
        queue_pairs: arguments.queue_pairs,
        socket_directory: arguments.socket_dir,
    };
    let stamped = libvirt::stamp(&text, &order, &catalog)?;
    for record in &stamped.records {
        note(&format!("{}: {}, digest {}", record.alias, record.profile, record.digest));
    }
    stamped.warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
    print_data(&stamped.text)
}
