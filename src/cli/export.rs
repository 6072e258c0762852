//! `isonic profile export`: a profile in the words of QEMU, libvirt, Kubernetes or OpenStack.

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, ValueEnum};

use crate::device::mac::MacAddress;
use crate::libvirt::{self, DeviceAttachment, QemuSocketMode};
use crate::profile::export_formats;
use crate::profile::{Catalog, Profile};

use super::cli_error::CliError;
use super::standard_streams::{print_data, print_json};

/// Stands in the XML where no socket is given.
const SOCKET_PLACEHOLDER: &str = "/run/isonic/PORT.sock";

/// Who is to read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// The interface of libvirt's domain XML, and overrides
    Libvirt,
    /// QEMU's -netdev and -device
    Qemu,
    /// A file for Node Feature Discovery's features.d
    Nfd,
    /// A provider file for Nova
    Nova,
}

#[derive(Debug, Args)]
pub(super) struct ExportArguments {
    /// The profile, a name or a list of values; several for nfd and nova
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
    /// Who is to read it
    #[arg(long, value_enum)]
    format: Format,
    /// A directory with further profiles
    #[arg(long, value_name = "DIRECTORY")]
    profile_dir: Option<PathBuf>,
    /// Of libvirt: the port's vhost-user socket
    #[arg(long, value_name = "PATH", default_value = SOCKET_PLACEHOLDER)]
    socket: String,
    /// Of libvirt: the port is in client mode, so that QEMU listens
    #[arg(long)]
    client: bool,
    /// Of qemu: the id of the socket's character device
    #[arg(long, value_name = "ID", default_value = "vhost")]
    chardev: String,
    /// Of libvirt and qemu: the guest's MAC address
    #[arg(long, value_name = "ADDRESS")]
    mac: Option<MacAddress>,
    /// Of libvirt and qemu: the VM's queue pairs [default: the profile's limit]
    #[arg(long, value_name = "NUMBER")]
    queue_pairs: Option<u16>,
    /// Of qemu: print a JSON array of arguments
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &ExportArguments) -> Result<(), CliError> {
    let catalog = Catalog::load(arguments.profile_dir.as_deref())?;
    let resolve = |name: &String| Ok(catalog.resolve(name)?.profile);
    let chosen: Vec<Arc<Profile>> =
        arguments.names.iter().map(resolve).collect::<Result<_, CliError>>()?;
    let profiles: Vec<&Profile> = chosen.iter().map(AsRef::as_ref).collect();
    match arguments.format {
        Format::Nfd => print_data(&export_formats::nfd(&profiles)?),
        Format::Nova => print_data(&export_formats::nova(&profiles)?),
        Format::Libvirt => print_data(&libvirt::fragment(one(&profiles)?, &attachment(arguments))?),
        Format::Qemu => {
            let ExportArguments { queue_pairs, chardev, .. } = arguments;
            let mac = arguments.mac.map(|mac| mac.to_string());
            let words =
                export_formats::qemu(one(&profiles)?, mac.as_deref(), *queue_pairs, chardev)?;
            if arguments.json {
                return print_json(&words);
            }
            let lines: Vec<String> = words.chunks(2).map(|pair| pair.join(" ") + "\n").collect();
            print_data(&lines.concat())
        }
    }
}

fn attachment(arguments: &ExportArguments) -> DeviceAttachment {
    DeviceAttachment {
        socket: arguments.socket.clone(),
        mac: arguments.mac.map(|mac| mac.to_string()),
        queue_pairs: arguments.queue_pairs,
        mode: if arguments.client { QemuSocketMode::Server } else { QemuSocketMode::Client },
    }
}

/// One device has one profile.
fn one<'p>(profiles: &[&'p Profile]) -> Result<&'p Profile, CliError> {
    match profiles {
        [profile] => Ok(profile),
        _ => Err(CliError::SeveralProfiles),
    }
}
