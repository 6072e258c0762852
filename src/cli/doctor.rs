//! `isonic doctor`: gathers what there is to know, has it judged, and prints what came of it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;

use crate::config::{self, Attach, Config, SocketMode, UplinkConfig};
use crate::control::Request;
use crate::control::api::{HealthView, VersionView};
use crate::control::client::Client;
use crate::doctor::{self, Candidate, DaemonFacts, Facts, Finding, Promise, Report, Status};
use crate::platform::directory::Directory;
use crate::platform::host_facts::HostFacts;
use crate::profile::{Catalog, Profile};
use crate::report::chain;
use crate::xdp::nic::physical_interfaces;
use crate::xdp::{NicFacts, check_program, check_sockets};

use super::api_arguments::ApiArguments;
use super::cli_error::CliError;
use super::text_table::Table;

#[derive(Debug, Args)]
pub(super) struct DoctorArguments {
    /// The interface in question; may be repeated [default: the configuration's uplinks, or every
    /// NIC]
    #[arg(long, value_name = "INTERFACE")]
    uplink: Vec<String>,
    /// The configuration to be served: its uplinks, ports, workers and limits
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The profile that a port should have: a name or a list of values
    #[arg(long, value_name = "PROFILE")]
    profile: Option<String>,
    #[command(flatten)]
    connection: ApiArguments,
}

pub(super) fn run(arguments: &DoctorArguments) -> Result<(), CliError> {
    let config = arguments.config.as_deref().map(config::load).transpose()?;
    let facts = gather(arguments, config.as_ref())?;
    let report = doctor::examine(&facts);
    arguments.connection.print(&report, show)?;
    if report.can_serve { Ok(()) } else { Err(CliError::CannotServe) }
}

fn gather(arguments: &DoctorArguments, config: Option<&Config>) -> Result<Facts, CliError> {
    let catalog = Catalog::load(config.and_then(|config| config.profile_dir.as_deref()))?;
    let daemon = daemon(&client(&arguments.connection, config));
    let candidates = candidates(arguments, config, daemon.as_ref(), &catalog)?;
    let (our_sockets, our_program) = doctor::our_part(&candidates);
    Ok(Facts {
        host: HostFacts::read(our_sockets, our_program),
        program: check_program().map_err(|error| chain(&error)),
        sockets: check_sockets().map_err(|error| chain(&error)),
        directories: config.map(directories).unwrap_or_default(),
        daemon,
        workers: config.map_or(1, |config| config.workers),
        worker_cpus: config.and_then(|config| config.worker_cpus.clone()),
        profiles: promises(arguments, &catalog)?,
        candidates,
        all_wanted: !arguments.uplink.is_empty() || config.is_some(),
    })
}

/// Where the configuration has isonic write.
fn directories(config: &Config) -> Vec<Directory> {
    let made = [("state_dir", &config.state_dir), ("runtime_dir", &config.runtime_dir)];
    let made = made.into_iter().filter_map(|(what, path)| Some((what, path.as_deref()?)));
    let made = made.map(|(what, path)| Directory::made(what, path));
    let listening = config.ports.iter().filter(|port| port.mode == SocketMode::Server);
    let sockets = listening.map(|port| ("the ports' sockets", port.socket.as_path()));
    let api = config.api_socket.iter().map(|path| ("api_socket", path.as_path()));
    let mut seen = BTreeSet::new();
    let existing = api.chain(sockets).filter_map(|(what, path)| Some((what, path.parent()?)));
    let existing = existing.filter(|(_, path)| seen.insert(path.to_owned()));
    made.chain(existing.map(|(what, path)| Directory::existing(what, path))).collect()
}

/// The daemon of the configuration, unless another is named.
fn client(connection: &ApiArguments, config: Option<&Config>) -> Client {
    match config.and_then(|config| config.api_socket.as_deref()) {
        Some(path) if !connection.is_named() => Client::new(path),
        _ => connection.client(),
    }
}

/// None where no daemon answers: the doctor needs none.
fn daemon(client: &Client) -> Option<DaemonFacts> {
    let VersionView { version, .. } = client.call(&Request::Version).ok()?;
    // An older one does not know the question.
    let HealthView { problems } = client.call(&Request::Health).unwrap_or_default();
    Some(DaemonFacts { version, uplinks: client.call(&Request::ListUplinks).ok()?, problems })
}

/// The profiles that a port may get here: the one asked for, or every released one.
fn promises(arguments: &DoctorArguments, catalog: &Catalog) -> Result<Vec<Promise>, CliError> {
    if let Some(profile) = &arguments.profile {
        return Ok(vec![promise(catalog, profile, None)?]);
    }
    let usable = |profile: &&Arc<Profile>| {
        profile.host_blockers().is_empty() && !catalog.is_draft(&profile.name)
    };
    let any = |profile: &Arc<Profile>| {
        let Profile { name, mtu, .. } = &**profile;
        Promise { profile: name.clone(), mtu: *mtu, port: None }
    };
    Ok(catalog.iter().filter(usable).map(any).collect())
}

fn promise(catalog: &Catalog, text: &str, port: Option<&str>) -> Result<Promise, CliError> {
    let profile = catalog.resolve(text)?.profile;
    let port = port.map(str::to_owned);
    Ok(Promise { profile: profile.name.clone(), mtu: profile.mtu, port })
}

/// The interfaces that were named, else those of the configuration. Without either, all physical
/// ones and those of a running daemon.
fn candidates(
    arguments: &DoctorArguments,
    config: Option<&Config>,
    daemon: Option<&DaemonFacts>,
    catalog: &Catalog,
) -> Result<Vec<Candidate>, CliError> {
    let configured = config.map_or(&[][..], |config| &config.uplinks);
    let wanted: Vec<UplinkConfig> = if arguments.uplink.is_empty() {
        match config {
            Some(_) => configured.to_vec(),
            None => {
                let served = daemon.into_iter().flat_map(|daemon| &daemon.uplinks);
                let mut names = physical_interfaces();
                names.extend(served.map(|uplink| uplink.interface.clone()));
                let names: BTreeSet<String> = names.into_iter().collect();
                names.iter().map(|name| UplinkConfig::of(name)).collect()
            }
        }
    } else {
        let of_name = |name: &String| configured.iter().find(|it| it.interface == *name).cloned();
        let named = arguments.uplink.iter();
        named.map(|name| of_name(name).unwrap_or_else(|| UplinkConfig::of(name))).collect()
    };
    wanted.into_iter().map(|wanted| candidate(arguments, config, catalog, wanted)).collect()
}

fn candidate(
    arguments: &DoctorArguments,
    config: Option<&Config>,
    catalog: &Catalog,
    wanted: UplinkConfig,
) -> Result<Candidate, CliError> {
    let name = wanted.interface.clone();
    let mut candidate = Candidate {
        nic: NicFacts::read(&name).map_err(|error| chain(&error)),
        promises: Vec::new(),
        wires: Vec::new(),
        steering_left: steering_note(config, &name).exists(),
        wanted,
    };
    for port in config.map_or(&[][..], |config| &config.ports) {
        if port.uplink == name {
            let promise = promise(catalog, &port.profile, Some(&port.name))?;
            candidate.add_port(port.attach, port.queues.clone(), promise);
        }
    }
    if let Some(profile) = &arguments.profile {
        candidate.add_port(Attach::Switch, None, promise(catalog, profile, None)?);
    }
    Ok(candidate)
}

fn steering_note(config: Option<&Config>, interface: &str) -> PathBuf {
    let directory = config.and_then(|config| config.runtime_dir.as_deref());
    config::steering_note(directory.unwrap_or(Path::new(config::RUNTIME_DIR)), interface)
}

// ---- for people ---------------------------------------------------------------------------------

fn word(status: Status) -> &'static str {
    match status {
        Status::Ok => "ok",
        Status::Note => "note",
        Status::Warning => "warning",
        Status::Problem => "problem",
    }
}

/// A table of the findings, then the meaning and remedy of each, then a line for each interface.
fn show(report: &Report) -> String {
    let of_host = report.host.iter().map(|finding| ("host", finding));
    let of_uplinks = report.uplinks.iter().flat_map(|uplink| {
        uplink.findings.iter().map(|finding| (uplink.interface.as_str(), finding))
    });
    let findings: Vec<(&str, &Finding)> = of_host.chain(of_uplinks).collect();
    let mut table = Table::new(&["STATUS", "OF", "CHECK", "FOUND"]);
    for (of, finding) in &findings {
        let (status, of) = (word(finding.status).to_owned(), (*of).to_owned());
        table.row(vec![status, of, finding.id.to_owned(), finding.found.clone()]);
    }
    let mut text = table.render();
    for (of, finding) in findings.iter().filter(|(_, finding)| finding.status != Status::Ok) {
        text.push_str(&advice(of, finding));
    }
    text.push('\n');
    for uplink in &report.uplinks {
        text.push_str(&format!("{}\n", uplink.summary));
    }
    if report.uplinks.is_empty() {
        text.push_str("no NIC was found; name an interface with --uplink\n");
    }
    text
}

fn advice(of: &str, finding: &Finding) -> String {
    let status = word(finding.status);
    let mut text = format!("\n{status}: {of}: {}: {}\n", finding.id, finding.found);
    if !finding.meaning.is_empty() {
        text.push_str(&format!("    {}\n", finding.meaning));
    }
    if let Some(remedy) = &finding.remedy {
        text.push_str(&format!("    -> {remedy}\n"));
    }
    text
}
