//! Why a command failed.

use std::io;
use std::path::PathBuf;

use crate::capture::CaptureError;
use crate::config::{ConfigError, HandedProblem, PortProblem};
use crate::control::client::ClientError;
use crate::libvirt::StampError;
use crate::libvirt::hook::HookError;
use crate::platform::text_file::FileError;
use crate::profile::export_formats::ExportError;
use crate::profile::qemu_device::QemuDeviceError;
use crate::profile::{CatalogError, ResolveError};
use crate::report::printable;

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
        /// The difference.
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
    /// The daemon no longer knows the port's profile by its name.
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
