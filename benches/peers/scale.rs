//! The cost of VMs that are connected and idle.

use std::fs;
use std::time::Duration;

use crate::backend::{Backend, Peer, mac, socket};
use crate::case::{Case, Rings, Scenario};
use crate::client::Client;
use crate::common::Bed;
use crate::latency::{after_pauses, percentile};
use crate::report::Report;
use crate::settings::Settings;
use crate::wire::{FarEnd, Wire};
use crate::{frontend, measure, pinning};

/// Idle VMs whose cost is measured.
const IDLE: usize = 64;
/// Bytes of a frame.
const LEN: usize = 64;

/// Processor time with idle VMs.
pub const IDLE_CPU: &str = "64 idle VMs: CPU, % of a core";
/// The latency of the first packet among idle VMs.
pub const FIRST_AMONG_IDLE: &str = "64 idle VMs: latency of the first packet, median, µs";

/// Numbers of connected VMs, of which the first ones are active.
pub fn counts() -> &'static [usize] {
    if Settings::get().short { &[1, 16] } else { &[1, 16, 64, 256] }
}

/// Throughput with this many VMs connected, with one active and with two that talk to each other.
pub fn active(connected: usize, report: &mut Report) {
    for scenario in [Scenario::GuestToWire, Scenario::GuestToGuest] {
        let case = Case::new(scenario, Rings::Split, 1);
        let case = Case { idle: connected.saturating_sub(case.ports()), ..case };
        for (len, sample) in measure::run_lengths(&case, Peer::Isonic, &[LEN]) {
            let name = name(scenario, connected);
            report.add((name, len), Peer::Isonic.name(), &sample);
        }
    }
}

/// The row of a table.
pub fn name(scenario: Scenario, connected: usize) -> String {
    format!("{}, {connected} connected", Case::new(scenario, Rings::Split, 1).name())
}

/// Processor time and memory of idle VMs, and the latency of the first packet among them.
pub fn idle(report: &mut Report) {
    let case = Case { idle: IDLE - 1, ..Case::new(Scenario::RoundTrip, Rings::Split, 1) };
    let bed = Bed::new(1, 1);
    let _wire = Wire::attach(&bed, FarEnd::Reflect);
    let backend = Backend::start(Peer::Isonic, &bed, &case);
    let Backend::Isonic(daemon, _) = &backend else { unreachable!("started above") };
    let before = memory(daemon.id());
    let mut clients = measure::connect_idle(&bed, &case);
    clients.push(Client::connect(&bed.path(&socket(0)), &mac(0), LEN));
    #[allow(clippy::cast_precision_loss, reason = "64 VMs, and megabytes")]
    let each = (memory(daemon.id()) - before) / clients.len() as f64;
    report.value((&format!("{IDLE} idle VMs: memory of each"), "KiB"), "isonic", each);
    let time = if Settings::get().short { Duration::from_secs(1) } else { Duration::from_secs(10) };
    std::thread::sleep(Duration::from_millis(500));
    let ticks = daemon.cpu_ticks();
    std::thread::sleep(time);
    #[allow(clippy::cast_precision_loss, reason = "a few ticks")]
    let share = (daemon.cpu_ticks() - ticks) as f64 / time.as_secs_f64();
    report.value((IDLE_CPU, "%"), "isonic", share);
    pinning::pin_to(frontend::CPU);
    let client = clients.last_mut().expect("64 of them");
    client.round_trip();
    let mut taken = after_pauses(client);
    pinning::unpin();
    report.value((FIRST_AMONG_IDLE, "µs"), "isonic", percentile(&mut taken, 500));
}

/// A process's own resident memory, in KiB (RssAnon). Touched pages of guests' memory are not in
/// it.
fn memory(process: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    number.expect("RssAnon")
}
