//! One interface, and the facts that all checks need.

use crate::control::api::UplinkView;
use crate::platform::host_facts::HostFacts;
use crate::xdp::NicFacts;

use super::facts::{Candidate, Facts};
use super::kernel::Version;

/// See the module's header.
pub(super) struct Subject<'f> {
    pub facts: &'f Facts,
    pub candidate: &'f Candidate,
    pub nic: &'f NicFacts,
    pub name: &'f str,
    /// A running daemon's view of it, if the daemon has it.
    pub served: Option<&'f UplinkView>,
    /// The queues that have a socket, or would have one.
    pub queues: Vec<u32>,
}

impl<'f> Subject<'f> {
    pub fn new(facts: &'f Facts, candidate: &'f Candidate, nic: &'f NicFacts) -> Self {
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
    pub fn kernel(&self) -> Option<Version> {
        let HostFacts { kernel, kernel_build, .. } = &self.facts.host;
        Version::parse(kernel, kernel_build)
    }
}
