//! All checks in their order, and the report that comes of them.

use serde::Serialize;

use crate::xdp::NicFacts;

use super::facts::{Candidate, Facts};
use super::finding::{Finding, Status};
use super::subject::Subject;
use super::{cpus, frames, host_checks, interface_checks, queues};

/// Version of the report's form; fields are added, never renamed or removed.
const REPORT_VERSION: u32 = 1;

/// The result of an examination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The version of this form.
    pub version: u32,
    /// Whether a port can be served.
    pub can_serve: bool,
    /// The findings of the host.
    pub host: Vec<Finding>,
    /// The results of each interface.
    pub uplinks: Vec<UplinkReport>,
}

/// The result of one interface.
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
    /// The kernel's facts of it.
    pub nic: Option<NicFacts>,
}

/// Judge the facts.
#[must_use]
pub fn examine(facts: &Facts) -> Report {
    let host = host_checks::examine(facts);
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
    let mut findings = interface_checks::examine(&subject);
    findings.extend(frames::examine(&subject));
    findings.extend(queues::examine(&subject));
    findings.extend(cpus::examine(&subject));
    let can_serve = no_problem(&findings);
    let summary = summary(&subject, can_serve, &findings);
    UplinkReport { interface, can_serve, summary, findings, nic: Some(nic.clone()) }
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
