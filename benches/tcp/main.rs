//! TCP with and without what isonic does for it, in one run on one machine: `scripts/bench-tcp`.
//!
//! Two Linux guests and the wire, iperf3 between them. Each round measures every case once with and
//! once without, one after the other, so that what the machine does beside it meets both alike; what
//! is compared are the medians. Under emulation the guests are what bounds the rate, so there is
//! also what a gigabit costs isonic's worker.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec, cpu_ticks, wait_reachable,
};
use serde_json::Value;

const PROFILE: &str = "org.isonic.net.v3";
const ROUNDS: usize = 5;
const SECONDS: u32 = 3;

/// Who sends to whom, and what is switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Case {
    /// The sender's segmentation offload.
    GuestToGuest,
    /// The sender's segmentation offload.
    GuestToWire,
    /// The uplink's coalescing.
    WireToGuest,
}

impl Case {
    fn name(self) -> [&'static str; 2] {
        match self {
            Self::GuestToGuest => ["guest → guest", "segmentation offload"],
            Self::GuestToWire => ["guest → wire", "segmentation offload"],
            Self::WireToGuest => ["wire → guest", "coalescing"],
        }
    }
}

/// One transfer.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Mbit/s of payload that arrived.
    rate: f64,
    /// Milliseconds of the worker's turns that moved packets, per gigabit of payload.
    worker: f64,
    /// CPUs used by both guests' QEMU, vCPUs and all.
    guests: f64,
}

type Samples = BTreeMap<(Case, bool), Vec<Sample>>;

struct Lab<'bed> {
    bed: &'bed Bed,
    ports: Vec<PortSpec>,
    daemon: Daemon<'bed>,
    guests: [Guest; 2],
}

impl<'bed> Lab<'bed> {
    fn new(bed: &'bed Bed) -> Self {
        let ports = [1, 2].map(|number| PortSpec::switch(NIC, number).with_profile(PROFILE));
        let daemon = Daemon::start(bed, &Configuration::new(bed, ports.to_vec()));
        let specs = [1, 2]
            .map(|number| GuestSpec::new(&ports[usize::from(number) - 1], &bed.uplinks[0], number));
        let mut guests = Guest::boot_all(bed, specs);
        for guest in &mut guests {
            guest.check("iperf3 --server --daemon >/dev/null");
        }
        Self { bed, ports: ports.to_vec(), daemon, guests }
    }

    /// Starts the daemon anew with or without coalescing; the guests' front-ends connect again.
    fn coalesce(&mut self, coalesce: bool) {
        let configuration = Configuration::new(self.bed, self.ports.clone());
        self.daemon.stop();
        Configuration { coalesce, ..configuration }.write(self.bed);
        self.daemon.start_again();
        for guest in &self.guests {
            wait_reachable(&self.bed.wire, &guest.spec.address, 20);
        }
    }

    fn measure(&mut self, case: Case) -> Sample {
        let before = self.clocks();
        let result = self.transfer(case);
        let after = self.clocks();
        let received = &result["end"]["sum_received"];
        let number = |name: &str| received[name].as_f64().expect("a number");
        let gigabits = number("bytes") * 8.0 / 1e9;
        Sample {
            rate: number("bits_per_second") / 1e6,
            worker: (after.worker - before.worker) / 1e6 / gigabits,
            guests: (after.guests - before.guests) / number("seconds"),
        }
    }

    /// iperf3's own report.
    fn transfer(&mut self, case: Case) -> Value {
        let addresses = self.guests.each_ref().map(|guest| guest.spec.address.clone());
        let client = |to: &str| format!("iperf3 --client {to} --time {SECONDS} --json");
        let text = match case {
            Case::GuestToGuest => self.guests[0].check(&client(&addresses[1])),
            Case::GuestToWire => {
                let wire = &self.bed.uplinks[0].wire_address;
                self.bed.wire.run(&["iperf3", "--server", "--one-off", "--daemon"]);
                self.guests[0].check(&client(wire))
            }
            Case::WireToGuest => {
                let words = client(&addresses[0]);
                self.bed.wire.run(&words.split(' ').collect::<Vec<_>>())
            }
        };
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("iperf3: {error}: {text}"))
    }

    fn clocks(&self) -> Clocks {
        let stats = self.daemon.json(&["stats"]);
        let worker = stats["workers"][0]["busy_nanoseconds"].as_f64().expect("nanoseconds");
        let ticks: u64 = self.guests.iter().map(|guest| cpu_ticks(guest.id())).sum();
        // Some hundred ticks a second: exact.
        #[allow(clippy::cast_precision_loss)]
        let guests = ticks as f64 / 100.0;
        Clocks { worker, guests }
    }
}

/// Time used so far: by the worker in nanoseconds, by the guests in seconds.
struct Clocks {
    worker: f64,
    guests: f64,
}

fn main() {
    let bed = Bed::new(1, 2);
    let mut lab = Lab::new(&bed);
    let mut samples = Samples::new();
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        for with in [true, false] {
            lab.coalesce(with);
            let segmentation = if with { "on" } else { "off" };
            lab.guests[0].check(&format!("ethtool -K eth0 tso {segmentation}"));
            for case in [Case::GuestToGuest, Case::GuestToWire, Case::WireToGuest] {
                samples.entry((case, with)).or_default().push(lab.measure(case));
            }
        }
    }
    report(&samples);
}

/// A table for docs/performance.md.
fn report(samples: &Samples) {
    println!("| TCP | | Mbit/s | worker, ms per Gbit | guests, CPUs |");
    println!("|---|---|---|---|---|");
    for case in [Case::GuestToGuest, Case::GuestToWire, Case::WireToGuest] {
        let [direction, what] = case.name();
        let [with, without] = [true, false].map(|with| median(&samples[&(case, with)]));
        for (word, Sample { rate, worker, guests }) in [("with", with), ("without", without)] {
            println!("| {direction} | {word} {what} | {rate:.0} | {worker:.2} | {guests:.2} |");
        }
        let [rate, worker] = [with.rate / without.rate, with.worker / without.worker];
        println!("| | ratio | {rate:.2} | {worker:.2} | |");
    }
}

fn median(samples: &[Sample]) -> Sample {
    let of = |value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Sample {
        rate: of(|sample| sample.rate),
        worker: of(|sample| sample.worker),
        guests: of(|sample| sample.guests),
    }
}
