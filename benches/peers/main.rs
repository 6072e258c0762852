//! isonic beside its peers: the same front-end, the same wire, in one run on one machine.
//!
//! `scripts/bench-peers` prepares the machine and runs this. Each round runs every peer once, one
//! after the other, so that what the machine does beside it meets all alike; what is compared are
//! the medians. Each run makes its own namespaces and ends its own processes (`tests/common`), and
//! fails if a packet that was sent was neither received nor counted as dropped.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/common/mod.rs"]
mod common;

mod backend;
mod case;
mod clock;
mod frontend;
mod measure;
mod report;
mod settings;
mod testpmd;
mod wire;

use backend::Peer;
use case::Case;
use report::Report;
use settings::Settings;

fn main() {
    let settings = Settings::get();
    let mut report = Report::new();
    for round in 1..=settings.rounds {
        for case in Case::ALL.iter().filter(|case| settings.wants(&case.name())) {
            for peer in [Peer::Isonic, Peer::Dpdk] {
                eprintln!("round {round} of {}: {}, {}", settings.rounds, case.name(), peer.name());
                for (len, sample) in measure::run(case, peer) {
                    report.add((case.name(), len), peer.name(), &sample);
                }
            }
        }
    }
    report.finish();
}
