//! isonic beside its peers: the same front-end, the same wire, in one run on one machine.
//!
//! `scripts/bench-peers` prepares the machine and runs this. Each round runs every peer once, one
//! after the other, so that other load on the machine meets all alike. The medians are compared.
//!
//! Each run makes its own namespaces and ends its own processes (`tests/machine/common`). It fails
//! if a packet that was sent was neither received nor counted as dropped.

#[path = "../../tests/machine/common/mod.rs"]
mod common;

mod backend;
mod case;
mod ceiling;
mod chart;
mod client;
mod clock;
mod frontend;
mod goals;
mod latency;
mod machine;
mod measure;
mod parts;
mod pinning;
mod reference;
mod report;
mod sample;
mod scale;
mod settings;
mod tables;
mod testpmd;
mod wire;

#[allow(dead_code, reason = "the other benches use the rest")]
#[path = "../common/mod.rs"]
mod rings;

use backend::Peer;
use case::{Case, Rings, Scenario};
use report::Report;
use settings::Settings;
use tables::publish;

/// Who is compared.
const PEERS: [Peer; 2] = [Peer::Isonic, Peer::Dpdk];

fn main() {
    let settings = Settings::get();
    if !settings.serve_reference.is_empty() {
        reference::serve(&settings.serve_reference);
    }
    raise_descriptor_limit();
    let mut report = Report::default();
    let half_load = settings.wants("latency").then(latency::half_load);
    for round in 1..=settings.rounds {
        eprintln!("round {round} of {}", settings.rounds);
        for case in Case::ALL.iter().filter(|case| settings.wants(&case.name())) {
            throughput(case, &mut report);
        }
        if let Some(load) = half_load {
            for peer in PEERS {
                eprintln!("  latency, {}", peer.name());
                latency::run(peer, load, &mut report);
            }
        }
        for &connected in scale::counts().iter().filter(|_| settings.wants("connected")) {
            eprintln!("  {connected} VMs connected");
            scale::active(connected, &mut report);
        }
        if settings.wants("parts") {
            parts::run(&mut report);
        }
        if settings.wants("idle") {
            eprintln!("  idle VMs");
            scale::idle(&mut report);
        }
    }
    publish(&report);
}

/// One round of all peers and ceilings.
fn throughput(case: &Case, report: &mut Report) {
    let plain = case.pairs == 1 && case.rings == Rings::Split;
    // It has no wire but its own, and split rings.
    let reference = plain && case.scenario == Scenario::GuestToGuest;
    for peer in PEERS.into_iter().chain(reference.then_some(Peer::Reference)) {
        eprintln!("  {}, {}", case.name(), peer.name());
        for (len, sample) in measure::run(case, peer) {
            report.add((case.name(), len), peer.name(), &sample);
        }
    }
    for &len in Settings::get().frames().iter().filter(|_| plain) {
        let (name, sample) = ceiling::run(case.scenario, len);
        report.add((case.name(), len), name, &sample);
    }
}

/// A backend has some ten descriptors for each VM; children inherit the limit.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("descriptors");
}
