//! isonic is killed under two guests with traffic, again and again.
//!
//! ISONIC_KILLS says how often in each test; the short number that is usual shows that it works, a
//! larger one how long it takes (`docs/performance.md`). What is printed is not asserted.

use std::fs;
use std::time::Duration;

use crate::common::{
    Bed, Configuration, Daemon, EchoFlow, Guest, GuestSpec, NIC, PortSpec, Tally, echo_stream,
    holds_within, wait_for,
};
use serde_json::Value;

const SPLIT: &str = "org.isonic.net.v1";
const PACKED: &str = "org.isonic.net.v3";

/// How long traffic flows between two kills.
const BETWEEN: Duration = Duration::from_secs(1);
/// How long traffic may take to come back before the test gives up.
const PATIENCE: u64 = 30;
/// Between two looks at what is held.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);
/// Mappings that one process may have more than another: stacks and the allocator's arenas.
const ARENAS: usize = 16;

fn kills() -> usize {
    std::env::var("ISONIC_KILLS").map_or(3, |text| text.parse().expect("ISONIC_KILLS: a number"))
}

/// What a leak would let grow.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holdings {
    /// The daemon's.
    descriptors: usize,
    /// The daemon's too.
    mappings: usize,
    /// Descriptors of both QEMUs.
    qemus: [usize; 2],
    /// Files for what outlives a process.
    rings: usize,
}

impl Holdings {
    /// Whether another process has as much. A thread's stack and the allocator's arenas are there
    /// when they are first needed, which is not in all of them at the same time.
    fn is_like(&self, other: &Self) -> bool {
        let mappings = self.mappings;
        mappings.abs_diff(other.mappings) <= ARENAS && *self == Self { mappings, ..other.clone() }
    }
}

/// Two guests on one uplink, and isonic.
struct Stage<'bed> {
    bed: &'bed Bed,
    daemon: Daemon<'bed>,
    guests: [Guest; 2],
}

impl<'bed> Stage<'bed> {
    fn new(bed: &'bed Bed, profile: &str, mode: &'static str) -> Self {
        let ports = [1, 2]
            .map(|number| PortSpec { mode, ..PortSpec::switch(NIC, number).with_profile(profile) });
        let daemon = Daemon::start(bed, &Configuration::new(bed, ports.to_vec()));
        let specs = [1, 2]
            .map(|number| GuestSpec::new(&ports[usize::from(number) - 1], &bed.uplinks[0], number));
        let mut guests = Guest::boot_all(bed, specs);
        guests.iter_mut().for_each(|guest| guest.know_the_wire(bed));
        Self { bed, daemon, guests }
    }

    /// What the guests see of their interfaces, and what is bound: profile, digest, fingerprint.
    fn interfaces(&mut self) -> Vec<(std::collections::BTreeMap<String, String>, Value)> {
        let bound = |name: &str| {
            let shown = self.daemon.json(&["port", "show", name]);
            let binding = &shown["binding"];
            serde_json::json!([shown["profile"], shown["profile_digest"], binding["fingerprint"]])
        };
        let bound = [bound("vm1"), bound("vm2")];
        self.guests.iter_mut().map(Guest::facts).zip(bound).collect()
    }

    fn holdings(&self) -> Holdings {
        let (descriptors, mappings) = self.daemon.holdings();
        let entries = |path: String| fs::read_dir(path).map_or(0, Iterator::count);
        Holdings {
            descriptors,
            mappings,
            qemus: self.guests.each_ref().map(|it| entries(format!("/proc/{}/fd", it.id()))),
            rings: entries(self.bed.path("run/rings").display().to_string()),
        }
    }

    /// The same once two looks in a row see the same: a connection that has just ended is seen for
    /// a while.
    fn settled(&self) -> Holdings {
        let mut last = self.holdings();
        wait_for("two looks see the same held", 10, || {
            std::thread::sleep(BETWEEN_LOOKS);
            let before = std::mem::replace(&mut last, self.holdings());
            before == last
        });
        last
    }

    fn wait_running(&self) {
        for port in ["vm1", "vm2"] {
            self.daemon.wait_state(port, "running");
        }
    }

    /// Kills isonic under both flows and starts it again. When each guest's traffic was back.
    fn kill(&mut self, flows: &[EchoFlow; 2]) -> [Duration; 2] {
        for flow in flows {
            flow.mark();
        }
        self.daemon.kill();
        self.daemon.launch_again();
        flows.each_ref().map(|flow| flow.resumed(PATIENCE))
    }
}

fn kill_again_and_again(profile: &str, mode: &'static str) {
    let bed = Bed::new(1, 2);
    let mut stage = Stage::new(&bed, profile, mode);
    let before = stage.interfaces();
    let addresses = stage.guests.each_ref().map(|guest| guest.spec.address.clone());
    let flows = addresses.each_ref().map(|address| EchoFlow::start(&bed.wire, address));
    let mut outages = Vec::new();
    let mut first = None;
    for kill in 1..=kills() {
        std::thread::sleep(BETWEEN);
        outages.extend(stage.kill(&flows));
        stage.wait_running();
        // What the first process after a kill has, every other has.
        let expected = first.get_or_insert_with(|| stage.settled()).clone();
        let what = format!("after kill {kill} as much is held as before, {expected:?}");
        if !holds_within(10, || expected.is_like(&stage.holdings())) {
            panic!("in vain waited until {what}: now it is {:?}", stage.holdings());
        }
        for port in ["vm1", "vm2"] {
            assert_eq!(stage.daemon.port_counter(port, "ring_faults"), 0, "{port}, kill {kill}");
        }
        stage.daemon.frames();
    }
    let tallies = flows.map(EchoFlow::stop);
    report(profile, mode, outages, &tallies);
    for tally in &tallies {
        assert_eq!(tally.damaged, 0, "{tally:?}");
        assert!(tally.returned > 0, "{tally:?}");
    }
    for address in &addresses {
        echo_stream(&bed.wire, address, 1 << 20);
    }
    assert_eq!(stage.interfaces(), before);
}

fn report(profile: &str, mode: &str, mut outages: Vec<Duration>, tallies: &[Tally]) {
    outages.sort_unstable();
    let side = if mode == "client" { "isonic connects" } else { "QEMU with reconnect=1" };
    let (median, worst) = (outages[outages.len() / 2], outages[outages.len() - 1]);
    println!(
        "{profile}, {side}: {} outages, least {:?}, median {median:?}, worst {worst:?}",
        outages.len(),
        outages[0]
    );
    for tally in tallies {
        println!("  {tally:?}");
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn split_rings_go_on_after_each_kill_when_qemu_connects() {
    kill_again_and_again(SPLIT, "server");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn split_rings_go_on_after_each_kill_when_isonic_connects() {
    kill_again_and_again(SPLIT, "client");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_go_on_after_each_kill_when_qemu_connects() {
    kill_again_and_again(PACKED, "server");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_go_on_after_each_kill_when_isonic_connects() {
    kill_again_and_again(PACKED, "client");
}
