//! The goals for isonic, and whether it reaches them.

use crate::case::{Case, Rings, Scenario};
use crate::clock;
use crate::report::{Report, Spread, ratio};
use crate::sample::Sample;
use crate::scale;
use crate::settings::Settings;

/// One goal.
pub struct Goal {
    /// The measured quantity.
    pub what: String,
    /// The goal: "≥ 1.20".
    pub wanted: String,
    /// The measured values.
    pub reached: Spread,
    /// Whether the median is good enough.
    pub met: bool,
    /// A remark to read with the result.
    pub remark: String,
}

/// The limit of a goal.
#[derive(Clone, Copy)]
enum Limit {
    AtLeast(f64),
    AtMost(f64),
}

impl Limit {
    fn goal(self, what: &str, reached: Option<Spread>) -> Option<Goal> {
        let reached = reached?;
        let (wanted, met) = match self {
            Self::AtLeast(limit) => (format!("≥ {limit:.2}"), reached.median >= limit),
            Self::AtMost(limit) => (format!("≤ {limit:.2}"), reached.median <= limit),
        };
        Some(Goal { what: what.to_owned(), wanted, reached, met, remark: String::new() })
    }
}

/// All goals with a measurement; none for a short run, which is too short to judge.
pub fn goals(report: &Report) -> Vec<Goal> {
    let mut goals = Vec::new();
    if Settings::get().short {
        return goals;
    }
    goals.extend(between_guests(report));
    for scenario in [Scenario::GuestToWire, Scenario::RoundTrip] {
        for len in [64, 1500] {
            goals.extend(through_the_wire(report, scenario, len));
        }
    }
    goals.extend(many_guests(report));
    goals.extend(latency(report));
    goals
}

fn name(scenario: Scenario) -> String {
    Case::new(scenario, Rings::Split, 1).name()
}

fn packets(sample: &Sample) -> f64 {
    sample.packets
}

fn cycles(sample: &Sample) -> f64 {
    sample.cost.map_or(f64::NAN, |cost| cost.cycles)
}

fn between_guests(report: &Report) -> Vec<Goal> {
    let name = name(Scenario::GuestToGuest);
    let of = |len, peer| report.samples((&name, len), peer);
    let compared =
        |len, number: fn(&Sample) -> f64| ratio(of(len, "isonic"), of(len, "dpdk"), number);
    let mut small =
        Limit::AtLeast(1.2).goal("guest to guest, 64: packets / DPDK's", compared(64, packets));
    // If isonic's core is not fully busy, the front-end limits the packets: the reader must know.
    let busy = of(64, "isonic").iter().filter_map(|sample| Some(sample.cost?.busy));
    if let (Some(goal), Some(busy)) = (&mut small, Spread::of(busy)) {
        goal.remark = format!("isonic's core is {:.0} % busy", busy.median * 100.0);
    }
    let goals = [
        Limit::AtMost(0.67).goal("guest to guest, 64: cycles / DPDK's", compared(64, cycles)),
        small,
        Limit::AtLeast(1.2).goal("guest to guest, 1500: packets / DPDK's", compared(1500, packets)),
    ];
    goals.into_iter().flatten().collect()
}

fn through_the_wire(report: &Report, scenario: Scenario, len: usize) -> Vec<Goal> {
    let name = name(scenario);
    let of = |peer| report.samples((&name, len), peer);
    let to = |peer| ratio(of("isonic"), of(peer), packets);
    let user = of("isonic").iter().filter_map(|sample| sample.cost);
    let user = user.map(|cost| cost.user / clock::hertz() * 1e9);
    let goals = [
        Limit::AtLeast(1.1).goal(&format!("{name}, {len}: packets / DPDK's"), to("dpdk")),
        Limit::AtLeast(0.95)
            .goal(&format!("{name}, {len}: packets / a bare AF_XDP socket's"), to("af_xdp")),
        Limit::AtMost(40.0)
            .goal(&format!("{name}, {len}: ns in user space per packet"), Spread::of(user))
            .filter(|_| (scenario, len) == (Scenario::GuestToWire, 64)),
    ];
    goals.into_iter().flatten().collect()
}

fn many_guests(report: &Report) -> Vec<Goal> {
    let Some(&most) = scale::counts().last() else { return Vec::new() };
    let goal = |scenario| {
        let of = |connected| report.samples((&scale::name(scenario, connected), 64), "isonic");
        let what = format!("{}: packets / those with 1", scale::name(scenario, most));
        Limit::AtLeast(0.95).goal(&what, ratio(of(most), of(1), packets))
    };
    let idle = |what: &str, limit: f64| {
        Limit::AtMost(limit).goal(what, Spread::of(report.numbers(what, "isonic").iter().copied()))
    };
    let goals = [
        goal(Scenario::GuestToWire),
        goal(Scenario::GuestToGuest),
        idle(scale::IDLE_CPU, 1.0),
        idle(scale::FIRST_AMONG_IDLE, 100.0),
    ];
    goals.into_iter().flatten().collect()
}

fn latency(report: &Report) -> Option<Goal> {
    let what = "latency at half load, 99.9th percentile";
    let of = |peer| report.numbers(what, peer);
    let reached = ratio(of("isonic"), of("dpdk"), |latency| *latency);
    Limit::AtMost(1.0).goal(&format!("{what}: / DPDK's"), reached)
}
