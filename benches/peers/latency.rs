//! How long a packet takes through the backend to the wire, and back.

use std::time::Duration;

use crate::backend::{Backend, Peer, mac, socket};
use crate::case::{Case, Rings, Scenario};
use crate::client::Client;
use crate::common::Bed;
use crate::report::Report;
use crate::settings::Settings;
use crate::wire::{FarEnd, Wire};
use crate::{frontend, pinning};

/// Bytes of a frame.
const LEN: usize = 64;
/// Frames on the way when the rate that a backend can keep up with is looked for.
const WINDOW: usize = 64;
/// A pause after which an idle backend sleeps if it ever does.
const PAUSE: Duration = Duration::from_millis(20);
const CASE: Case = Case::new(Scenario::RoundTrip, Rings::Split, 1);

/// Runs `work` with a client of a backend whose wire reflects.
fn with_client<T>(peer: Peer, work: impl FnOnce(&mut Client) -> T) -> T {
    let bed = Bed::new(1, 1);
    let _wire = Wire::attach(&bed, FarEnd::Reflect);
    let _backend = Backend::start(peer, &bed, &CASE);
    pinning::pin_to(frontend::CPU);
    let mut client = Client::connect(&bed.path(&socket(0)), &mac(0), LEN);
    // The first packets find nothing in any cache, and DPDK's backend not started yet.
    std::thread::sleep(Settings::get().warm_up());
    for _ in 0..10 {
        client.round_trip();
    }
    let result = work(&mut client);
    pinning::unpin();
    result
}

/// Half the rate that the slower of the peers keeps up with, to be the load of both.
pub fn half_load() -> f64 {
    let time = Settings::get().time();
    let rates = [Peer::Isonic, Peer::Dpdk]
        .map(|peer| with_client(peer, |client| client.rate(WINDOW, time)));
    rates[0].min(rates[1]) / 2.0
}

/// One round of one peer.
pub fn run(peer: Peer, load: f64, report: &mut Report) {
    let time = Settings::get().time();
    with_client(peer, |client| {
        let mut add = |what: &str, of: usize, taken: &mut Vec<Duration>| {
            report.value((&format!("latency {what}"), "µs"), peer.name(), percentile(taken, of));
        };
        let start = std::time::Instant::now();
        let mut unloaded = Vec::new();
        while start.elapsed() < time {
            unloaded.push(client.round_trip());
        }
        add("unloaded, median", 500, &mut unloaded);
        add("unloaded, 99.9th percentile", 999, &mut unloaded);
        let mut loaded = client.under_load(load, time);
        add("at half load, median", 500, &mut loaded);
        add("at half load, 99.9th percentile", 999, &mut loaded);
        let mut first = after_pauses(client);
        add("of the first packet after idle, median", 500, &mut first);
    });
}

/// Round trips of packets that nothing came before for a while.
pub fn after_pauses(client: &mut Client) -> Vec<Duration> {
    let count = if Settings::get().short { 5 } else { 50 };
    let after_pause = |_| {
        std::thread::sleep(PAUSE);
        client.round_trip()
    };
    (0..count).map(after_pause).collect()
}

/// The most that this many of a thousand take, in microseconds.
pub fn percentile(taken: &mut [Duration], per_mille: usize) -> f64 {
    taken.sort_unstable();
    let rank = |count: usize| count * per_mille / 1000;
    let taken = taken.get(rank(taken.len().saturating_sub(1)));
    taken.map_or(f64::NAN, |taken| taken.as_secs_f64() * 1e6)
}
