//! TCP with and without what isonic does for it, in one run on one machine: `scripts/bench-tcp`.
//!
//! Two Linux guests and the wire, iperf3 between them. Each round measures every case once with and
//! once without, one after the other, so that other load on the machine meets both alike. The
//! ratios within the rounds are compared. Under emulation the guests bound the rate, so isonic's
//! cost of a gigabit is told too.

#[allow(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/machine/common/mod.rs"]
mod common;

use std::collections::BTreeMap;

use common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec, cpu_ticks, wait_reachable,
};
use serde_json::Value;

/// All offloads; split rings, since packed ones do not outlive a restart of the daemon.
const PROFILE: &str = "org.isonic.net.v3,ring_packed=off";
const ROUNDS: usize = 9;
const SECONDS: u32 = 3;

/// The ends of a transfer. Each variant names the setting that is switched on and off.
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
    /// Milliseconds of CPU time that isonic used, turns that found nothing included, per gigabit
    /// of payload.
    isonic: f64,
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
            isonic: (after.isonic - before.isonic) * 1e3 / gigabits,
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
        // Some hundred ticks a second: exact.
        #[allow(clippy::cast_precision_loss)]
        let seconds = |ticks: u64| ticks as f64 / 100.0;
        let guests = self.guests.iter().map(|guest| cpu_ticks(guest.id())).sum();
        Clocks { isonic: seconds(self.daemon.cpu_ticks()), guests: seconds(guests) }
    }
}

/// CPU time used so far, in seconds.
struct Clocks {
    isonic: f64,
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

/// A table for docs/performance.md: medians, and the ratios' medians and spreads.
fn report(samples: &Samples) {
    println!("| TCP | | Mbit/s | isonic, ms per Gbit | guests, CPUs |");
    println!("|---|---|---|---|---|");
    for case in [Case::GuestToGuest, Case::GuestToWire, Case::WireToGuest] {
        let [direction, what] = case.name();
        let both = [true, false].map(|with| samples[&(case, with)].as_slice());
        for (word, samples) in ["with", "without"].into_iter().zip(both) {
            let of = |value: fn(&Sample) -> f64| sorted(samples.iter().map(value))[ROUNDS / 2];
            let [rate, isonic] = [of(|sample| sample.rate), of(|sample| sample.isonic)];
            let guests = of(|sample| sample.guests);
            println!("| {direction} | {word} {what} | {rate:.0} | {isonic:.0} | {guests:.1} |");
        }
        let [rate, isonic] = [ratio(both, |sample| sample.rate), ratio(both, |s| s.isonic)];
        println!("| | ratio | {rate} | {isonic} | |");
    }
}

/// The ratio of with to without, round by round: the median, the least and the most.
fn ratio([with, without]: [&[Sample]; 2], value: fn(&Sample) -> f64) -> String {
    let rounds = with.iter().zip(without);
    let ratios = sorted(rounds.map(|(with, without)| value(with) / value(without)));
    format!("{:.2} ({:.2} to {:.2})", ratios[ROUNDS / 2], ratios[0], ratios[ROUNDS - 1])
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
