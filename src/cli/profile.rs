//! `isonic profile`: what a running daemon publishes, or what this binary would.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::Request;
use crate::control::api::ProfileView;
use crate::control::client::ClientError;
use crate::profile::{Catalog, UplinkFacts};

use super::api_arguments::{API_SOCKET, ApiArguments};
use super::capture::{self, CaptureArguments};
use super::cli_error::CliError;
use super::export::{self, ExportArguments};
use super::failure::note;
use super::{compare, show};

#[derive(Debug, Subcommand)]
pub(super) enum ProfileCommand {
    /// List all profiles, and which this host can keep
    List(ProfileSource),
    /// Show one profile: what it pins, what a guest sees, what stands against it on this host
    Show {
        /// Its name, or a list of values such as NAME,mrg_rxbuf=off,max_ring=256
        profile: String,
        #[command(flatten)]
        source: ProfileSource,
    },
    /// Show what a guest would see change from one profile to another
    Diff {
        /// The one that it has
        from: String,
        /// The other
        to: String,
        #[command(flatten)]
        source: ProfileSource,
    },
    /// Check whether a profile can be kept here, with every reason if not; the status is 1 then
    Check {
        /// Its name or a list of values
        profile: String,
        /// The interface that would be behind the port
        #[arg(long, value_name = "INTERFACE")]
        uplink: String,
        #[command(flatten)]
        source: ProfileSource,
    },
    /// Find the newest profile that several hosts can keep, and why newer ones cannot be
    Baseline(compare::HostFiles),
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
    /// Ask no daemon: the profiles in this binary and in a directory
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "api_socket")]
    profile_dir: Option<PathBuf>,
    #[command(flatten)]
    connection: ApiArguments,
}

pub(super) fn run(command: ProfileCommand) -> Result<(), CliError> {
    match command {
        ProfileCommand::List(source) => {
            let all = |catalog: &Catalog| Ok(ProfileView::all(catalog, &[]));
            let profiles = source.find(&Request::ListProfiles, all)?;
            source.connection.print(&profiles, |profiles| show::profiles(profiles))
        }
        ProfileCommand::Show { profile, source } => {
            source.connection.print(&source.profile(&profile, &[])?, show::profile)
        }
        ProfileCommand::Diff { from, to, source } => {
            let (from, to) = (source.profile(&from, &[])?, source.profile(&to, &[])?);
            let difference = compare::ProfileDifference::between(&from, &to);
            source.connection.print(&difference, compare::show_profiles)
        }
        ProfileCommand::Check { profile, uplink, source } => check(&profile, &uplink, &source),
        ProfileCommand::Baseline(files) => compare::baseline(&files),
        ProfileCommand::Capture(arguments) => capture::run(arguments),
        ProfileCommand::Export(arguments) => export::run(&arguments),
    }
}

/// The answer of `profile check`.
#[derive(Debug, Serialize)]
struct Check {
    profile: String,
    digest: String,
    uplink: String,
    usable: bool,
    /// Every reason why not.
    blockers: Vec<String>,
}

fn check(text: &str, uplink: &str, source: &ProfileSource) -> Result<(), CliError> {
    let facts = UplinkFacts::of_interface(uplink);
    let known = facts.as_ref().map(std::slice::from_ref).unwrap_or_default();
    let profile = source.profile(text, known)?;
    let Some(blockers) = profile.uplinks.get(uplink).cloned() else {
        let name = uplink.to_owned();
        return Err(match facts {
            Err(source) if profile.uplinks.is_empty() => {
                CliError::UnknownInterface { name, source }
            }
            _ => CliError::UnknownUplink { name, known: profile.uplinks.into_keys().collect() },
        });
    };
    let answer = Check {
        profile: profile.name.clone(),
        digest: profile.digest,
        uplink: uplink.to_owned(),
        usable: blockers.is_empty(),
        blockers,
    };
    source.connection.print(&answer, |answer| {
        if answer.usable {
            return format!("{} can be kept on {uplink}\n", answer.profile);
        }
        answer.blockers.iter().map(|blocker| format!("{blocker}\n")).collect()
    })?;
    if answer.usable {
        return Ok(());
    }
    Err(CliError::NotUsable { profile: profile.name, uplink: uplink.to_owned() })
}

impl ProfileSource {
    /// One profile, by name or list of values; without a daemon, against these uplinks.
    fn profile(&self, text: &str, uplinks: &[UplinkFacts]) -> Result<ProfileView, CliError> {
        self.find(&Request::ShowProfile(text.to_owned()), |catalog| {
            let chosen = catalog.resolve(text)?;
            Ok(ProfileView::new(&chosen.profile, catalog, uplinks))
        })
    }

    /// The daemon's answer, or this binary's own where no daemon is asked or none is there. A note
    /// on standard error says when the binary answers for an absent daemon. A daemon named by
    /// argument or environment must be there: its profiles may be others.
    fn find<T: DeserializeOwned>(
        &self,
        request: &Request,
        local: impl FnOnce(&Catalog) -> Result<T, CliError>,
    ) -> Result<T, CliError> {
        if !self.local && self.profile_dir.is_none() {
            match self.connection.client().call(request) {
                Err(ClientError::Unreachable { .. }) if !self.connection.is_named() => {}
                outcome => return Ok(outcome?),
            }
            note(&format!("no daemon at {API_SOCKET}; these are the profiles of the binary"));
        }
        local(&Catalog::load(self.profile_dir.as_deref())?)
    }
}
