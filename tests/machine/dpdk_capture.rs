//! The interface of DPDK's vhost, captured from the running backend: what Debian's version offers
//! is what the shipped profile says.

use std::path::Path;

use crate::common::{Bed, Testpmd, repository, run};
use isonic::profile::parse;

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_dpdks_vhost_offers_is_the_shipped_profile_again_and_again() {
    let bed = Bed::new(0, 1);
    let mut backend = Testpmd::backend(&bed, "backend.sock");
    let shipped = repository("profiles/org.dpdk.v22.11.toml");
    let shipped = parse(&shipped, &std::fs::read_to_string(&shipped).unwrap()).unwrap();
    for _ in 0..3 {
        let socket = bed.path("backend.sock").display().to_string();
        let capture = ["profile", "capture", "--name", &shipped.name, "--socket", &socket];
        let text = run(std::process::Command::new(env!("CARGO_BIN_EXE_isonic")).args(capture));
        let captured = parse(Path::new("captured.toml"), &text).unwrap();
        assert_eq!(captured.digest(), shipped.digest(), "{text}");
    }
    backend.quit();
}
