//! The facts that the doctor judges.

use crate::config::{Attach, Handed, UplinkConfig};
use crate::control::api::{ProblemView, UplinkView};
use crate::platform::directory::Directory;
use crate::platform::host_facts::HostFacts;
use crate::xdp::NicFacts;

/// All facts of one examination.
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
    /// The problems of the host that it reports.
    pub problems: Vec<ProblemView>,
}

/// An MTU that is promised to guests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Promise {
    /// The profile that promises it, by name.
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
    /// The NIC's facts, or why they are not known.
    pub nic: Result<NicFacts, String>,
    /// The MTUs that its ports promise.
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

/// Whether we make the sockets of any of these, and whether our program is attached to any. A
/// launcher may do either for us.
#[must_use]
pub fn our_part(candidates: &[Candidate]) -> (bool, bool) {
    let any = |ours: fn(&Option<Handed>) -> bool| {
        candidates.is_empty() || candidates.iter().any(|it| ours(&it.wanted.handed))
    };
    let sockets = any(|handed| !matches!(handed, Some(Handed::Sockets(_))));
    (sockets, any(Option::is_none))
}
