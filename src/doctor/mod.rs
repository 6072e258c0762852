//! DOCTOR: whether a port can be served here, and what would mend it if not.
//!
//! Pure: [`Facts`] in, a [`Report`] out. Who gathers them is `cli`, from `xdp`, `platform`, the
//! configuration and a daemon that may run; nothing is touched for it. `host` judges the host,
//! `link`, `frames`, `queues` and `cpus` an interface, each in a few functions of one finding each;
//! `kernel` and `drivers` are what is known of those two beforehand.
//!
//! A finding that is no [`Status::Ok`] says what it means, and the command that mends it where
//! there is one. Its `id` never changes.

#![forbid(unsafe_code)]

mod cpus;
mod drivers;
mod finding;
mod frames;
mod host;
mod kernel;
mod link;
mod queues;

use serde::Serialize;

use crate::config::{Attach, Handed, UplinkConfig};
use crate::control::api::{ProblemView, UplinkView};
use crate::platform::directory::Directory;
use crate::platform::host::HostFacts;
use crate::xdp::NicFacts;

use kernel::Version;

pub use finding::{Finding, Status};
pub use queues::spread_command;

/// Version of the report's form; fields are added, never renamed or removed.
const REPORT_VERSION: u32 = 1;

/// All that is known when the doctor is asked.
#[derive(Clone, Debug)]
pub struct Facts {
    /// The host.
    pub host: HostFacts,
    /// Whether our XDP program could be loaded, or why not.
    pub program: Result<(), String>,
    /// Whether AF_XDP sockets could be made, or why not.
    pub sockets: Result<(), String>,
    /// The directories of the configuration.
    pub directories: Vec<Directory>,
    /// The daemon that answers here, if one does.
    pub daemon: Option<DaemonFacts>,
    /// Workers wanted.
    pub workers: usize,
    /// Their CPUs; chosen by the daemon if None.
    pub worker_cpus: Option<Vec<usize>>,
    /// The profiles that a port may have here, with their MTUs.
    pub profiles: Vec<Promise>,
    /// The interfaces in question.
    pub candidates: Vec<Candidate>,
    /// All of them are wanted; else one that can be used is enough.
    pub all_wanted: bool,
}

/// A running daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonFacts {
    /// Its version.
    pub version: String,
    /// Its uplinks.
    pub uplinks: Vec<UplinkView>,
    /// What it says is wrong with the host.
    pub problems: Vec<ProblemView>,
}

/// An MTU that is promised to guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// By the profile of this name.
    pub profile: String,
    /// Bytes.
    pub mtu: u16,
    /// The port that has the profile; None for one that any port may get.
    pub port: Option<String>,
}

/// An interface in question.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// How it would be used.
    pub wanted: UplinkConfig,
    /// What it is, or why that is not known.
    pub nic: Result<NicFacts, String>,
    /// What its ports promise.
    pub promises: Vec<Promise>,
    /// The queues of its wire ports: all if a port's list is None.
    pub wires: Vec<Option<Vec<u32>>>,
    /// An isonic that was killed left its indirection table set.
    pub steering_left: bool,
}

impl Candidate {
    /// A port that is joined to the interface so.
    pub fn add_port(&mut self, attach: Attach, queues: Option<Vec<u32>>, promise: Promise) {
        if attach == Attach::Wire {
            self.wires.push(queues);
        }
        self.promises.push(promise);
    }
}

/// Whether we make the sockets of any of these, and whether our program goes on any: a launcher may
/// do either for us.
#[must_use]
pub fn our_part(candidates: &[Candidate]) -> (bool, bool) {
    let any = |ours: fn(&Option<Handed>) -> bool| {
        candidates.is_empty() || candidates.iter().any(|it| ours(&it.wanted.handed))
    };
    let sockets = any(|handed| !matches!(handed, Some(Handed::Sockets(_))));
    (sockets, any(Option::is_none))
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Of this form.
    pub version: u32,
    /// Whether a port can be served.
    pub can_serve: bool,
    /// Of the host.
    pub host: Vec<Finding>,
    /// Of each interface.
    pub uplinks: Vec<UplinkReport>,
}

/// What came of one interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct UplinkReport {
    /// Its name.
    pub interface: String,
    /// Whether a port can be served on it.
    pub can_serve: bool,
    /// One line for people.
    pub summary: String,
    /// In the order of a frame's way.
    pub findings: Vec<Finding>,
    /// What the kernel says of it.
    pub nic: Option<NicFacts>,
}

/// Judge the facts.
#[must_use]
pub fn examine(facts: &Facts) -> Report {
    let host = host::examine(facts);
    let uplinks: Vec<UplinkReport> =
        facts.candidates.iter().map(|candidate| examine_uplink(facts, candidate)).collect();
    let usable = |uplink: &UplinkReport| uplink.can_serve;
    let uplinks_serve = !uplinks.is_empty()
        && if facts.all_wanted { uplinks.iter().all(usable) } else { uplinks.iter().any(usable) };
    Report { version: REPORT_VERSION, can_serve: no_problem(&host) && uplinks_serve, host, uplinks }
}

fn no_problem(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.status != Status::Problem)
}

fn examine_uplink(facts: &Facts, candidate: &Candidate) -> UplinkReport {
    let interface = candidate.wanted.interface.clone();
    let nic = match &candidate.nic {
        Ok(nic) => nic,
        Err(reason) => {
            let absent = Finding::problem("present", reason.clone())
                .means("there is nothing to serve ports on")
                .mend("ip link");
            let summary = format!("{interface}: no: {reason}");
            let findings = vec![absent];
            return UplinkReport { interface, can_serve: false, summary, findings, nic: None };
        }
    };
    let subject = Subject::new(facts, candidate, nic);
    let mut findings = link::examine(&subject);
    findings.extend(frames::examine(&subject));
    findings.extend(queues::examine(&subject));
    findings.extend(cpus::examine(&subject));
    let can_serve = no_problem(&findings);
    let summary = summary(&subject, can_serve, &findings);
    UplinkReport { interface, can_serve, summary, findings, nic: Some(nic.clone()) }
}

/// One interface, and what all checks ask of it.
struct Subject<'f> {
    facts: &'f Facts,
    candidate: &'f Candidate,
    nic: &'f NicFacts,
    name: &'f str,
    /// What a running daemon says of it, if it has it.
    served: Option<&'f UplinkView>,
    /// The queues that have a socket, or would have one.
    queues: Vec<u32>,
}

impl<'f> Subject<'f> {
    fn new(facts: &'f Facts, candidate: &'f Candidate, nic: &'f NicFacts) -> Self {
        let name = nic.link.interface.as_str();
        let daemon = facts.daemon.as_ref();
        let served = daemon.and_then(|it| it.uplinks.iter().find(|view| view.interface == name));
        let queues = served
            .map(|view| view.queues.clone())
            .or_else(|| candidate.wanted.queues.clone())
            .unwrap_or_else(|| (0..nic.receive_queues()).collect());
        Self { facts, candidate, nic, name, served, queues }
    }

    /// The kernel's version, if its name says it.
    fn kernel(&self) -> Option<Version> {
        let HostFacts { kernel, kernel_build, .. } = &self.facts.host;
        Version::parse(kernel, kernel_build)
    }
}

fn summary(subject: &Subject<'_>, can_serve: bool, findings: &[Finding]) -> String {
    let of = |status| findings.iter().filter(|finding| finding.status == status).count();
    let word = |count: usize, word: &str| match count {
        0 => String::new(),
        1 => format!(", 1 {word}"),
        count => format!(", {count} {word}s"),
    };
    let nic = subject.nic;
    format!(
        "{}: {}: {}, {}, MTU {}, queues {}{}{}",
        subject.name,
        if can_serve { "a port can be served" } else { "no port can be served" },
        nic.link.driver,
        frames::mode(subject).words(),
        nic.link.mtu,
        nic.receive_queues(),
        word(of(Status::Problem), "problem"),
        word(of(Status::Warning), "warning"),
    )
}

#[cfg(test)]
mod tests;
