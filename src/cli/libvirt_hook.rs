//! `isonic libvirt hook`, and the drop-in that has libvirt call it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Args;

use crate::config::SocketPermissions;
use crate::libvirt::hook::{self, Settings};
use crate::platform::text_file::{read_text, replace};
use crate::report::chain;

use super::api_arguments::ApiSocket;
use super::cli_error::CliError;
use super::failure::note;
use super::standard_streams::{print, print_data, standard_input};

/// The first lines of a drop-in that is ours.
const HEAD: &str = "#!/bin/sh\n# Made by `isonic libvirt install-hook`, which may write it anew.\n";
/// Largest file that can be ours, bytes.
const DROP_IN_BYTES_MAX: u64 = 64 << 10;

/// The settings that are given once for all domains of a host.
#[derive(Clone, Debug, Args)]
struct HostArguments {
    #[command(flatten)]
    api: ApiSocket,
    /// Where sockets are on this host; those of arriving domains are moved there [default: where
    /// they were]
    #[arg(long, value_name = "DIRECTORY")]
    socket_dir: Option<PathBuf>,
    /// The group that owns the sockets, which QEMU's user must be in
    #[arg(long, value_name = "GROUP")]
    socket_group: Option<String>,
    /// The sockets' permissions, in octal [default: 0660 with a group, 0600 without]
    #[arg(long, value_name = "BITS")]
    socket_permissions: Option<SocketPermissions>,
    /// The interface behind what domains call NAME; may be repeated
    #[arg(long = "uplink", value_name = "NAME=INTERFACE")]
    uplinks: Vec<UplinkName>,
}

/// One `NAME=INTERFACE`.
#[derive(Clone, Debug)]
struct UplinkName {
    name: String,
    interface: String,
}

impl FromStr for UplinkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, interface)) if !name.is_empty() && !interface.is_empty() => {
                Ok(Self { name: name.to_owned(), interface: interface.to_owned() })
            }
            _ => Err(format!("\"{text}\" is not NAME=INTERFACE")),
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct HookArguments {
    #[command(flatten)]
    host: HostArguments,
    /// The domain
    #[arg(value_name = "DOMAIN")]
    _domain: OsString,
    /// prepare, start, started, stopped, release, migrate, restore, reconnect
    operation: String,
    /// begin, end or -, and what else libvirt says
    #[arg(value_name = "MORE")]
    _more: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(super) struct InstallArguments {
    #[command(flatten)]
    host: HostArguments,
    /// libvirt's directory of hooks
    #[arg(long, value_name = "DIRECTORY", default_value = "/etc/libvirt/hooks")]
    directory: PathBuf,
}

impl HostArguments {
    fn settings(&self) -> Settings {
        let pair = |uplink: &UplinkName| (uplink.name.clone(), uplink.interface.clone());
        Settings {
            socket_directory: self.socket_dir.clone(),
            socket_group: self.socket_group.clone(),
            socket_permissions: self.socket_permissions,
            uplinks: self.uplinks.iter().map(pair).collect::<BTreeMap<_, _>>(),
        }
    }

    /// These arguments as words of a command line.
    fn words(&self) -> Vec<String> {
        let path = |path: &PathBuf| path.display().to_string();
        let mut words = Vec::new();
        for (option, value) in [
            ("--api-socket", self.api.api_socket.as_ref().map(path)),
            ("--socket-dir", self.socket_dir.as_ref().map(path)),
            ("--socket-group", self.socket_group.clone()),
            ("--socket-permissions", self.socket_permissions.map(|bits| bits.to_string())),
        ] {
            words.extend(value.into_iter().flat_map(|value| [option.to_owned(), value]));
        }
        for UplinkName { name, interface } in &self.uplinks {
            words.extend(["--uplink".to_owned(), format!("{name}={interface}")]);
        }
        words
    }
}

pub(super) fn run(arguments: &HookArguments) -> Result<(), CliError> {
    let outcome = call(arguments);
    if arguments.operation == "reconnect"
        && let Err(error) = &outcome
    {
        // libvirt would kill the running VM.
        note(&chain(error));
        return Ok(());
    }
    outcome
}

fn call(arguments: &HookArguments) -> Result<(), CliError> {
    let HookArguments { host, operation, .. } = arguments;
    let text = match String::from_utf8(standard_input()?) {
        Ok(text) => text,
        Err(error) => {
            // Too much may have been cut off within a letter.
            let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
            if hook::may_be_ours(&text) && operation != "release" {
                return Err(CliError::InputText(error));
            }
            text
        }
    };
    let answer = hook::run(operation, &text, &host.settings(), &host.api.client())?;
    answer.warnings.iter().for_each(|warning| note(&format!("warning: {warning}")));
    answer.changed.map_or(Ok(()), |changed| print_data(&changed))
}

/// The drop-in: calls this binary with these arguments. Without the binary, it lets all domains
/// start. It never fails for `reconnect`, where libvirt would kill a VM for it.
fn drop_in(binary: &Path, words: &[String]) -> String {
    let mut text = HEAD.to_owned();
    let binary = quoted(&binary.display().to_string());
    // Writing to a String cannot fail.
    let _ = writeln!(text, "isonic={binary}\n[ -x \"$isonic\" ] || exit 0");
    text.push_str("\"$isonic\" --log-level warn libvirt hook");
    for word in words {
        let _ = write!(text, " \\\n    {}", quoted(word));
    }
    text.push_str(
        " \\\n    -- \"$@\"\nstatus=$?\n[ \"$2\" = reconnect ] && exit 0\nexit $status\n",
    );
    text
}

/// A word that a shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', "'\\''"))
}

pub(super) fn install(arguments: &InstallArguments) -> Result<(), CliError> {
    let binary = std::env::current_exe().map_err(CliError::Binary)?;
    let text = drop_in(&binary, &arguments.host.words());
    let directory = arguments.directory.join("qemu.d");
    let path = directory.join("isonic");
    let failed = |source| CliError::Install { path: path.clone(), source };
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
        Ok(metadata) => {
            let present = metadata.is_file().then(|| read_text(&path, DROP_IN_BYTES_MAX));
            if !present.is_some_and(|text| text.is_ok_and(|text| text.starts_with(HEAD))) {
                return Err(CliError::ForeignHook(path));
            }
        }
    }
    fs::create_dir_all(&directory).map_err(failed)?;
    replace(&path, text.as_bytes()).map_err(failed)?;
    fs::set_permissions(&path, Permissions::from_mode(0o755)).map_err(failed)?;
    print(&format!(
        "installed {}; libvirt looks for new hooks when it is told to: `systemctl reload libvirtd` \
         (or virtqemud)\n",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_in_holds_what_it_was_given_to_the_letter() {
        let words = ["--socket-group".to_owned(), "it's $(mine)\n".to_owned()];
        let text = drop_in(Path::new("/bin/echo"), &words);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hook");
        fs::write(&path, text).unwrap();
        let mut shell = std::process::Command::new("sh");
        let output = shell.arg(&path).args(["-vm", "prepare", "begin", "-"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "--log-level warn libvirt hook --socket-group it's $(mine)\n -- -vm prepare begin -\n"
        );
    }

    #[test]
    fn a_drop_in_fails_as_the_hook_does_but_not_on_reconnect() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hook");
        for (binary, operation, status) in [
            ("/bin/false", "prepare", 1),
            ("/bin/false", "reconnect", 0),
            ("/no/such/isonic", "prepare", 0),
        ] {
            fs::write(&path, drop_in(Path::new(binary), &[])).unwrap();
            let mut shell = std::process::Command::new("sh");
            let ended = shell.arg(&path).args(["vm", operation, "begin", "-"]).status().unwrap();
            assert_eq!(ended.code(), Some(status), "{binary} {operation}");
        }
    }
}
