//! `isonic stats`: the counters, a line for each port, uplink and worker.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use clap::Args;

use crate::control::Request;
use crate::control::api::{Counters, Stats, WorkerView};

use super::api_arguments::ApiArguments;
use super::cli_error::CliError;
use super::standard_streams::{OutputReader, json_text, write_out};
use super::text_table::Table;

/// Counters with this prefix are no sums but the present whereabouts of frames.
const PRESENT: &str = "frames_";

#[derive(Debug, Args)]
pub(super) struct StatsArguments {
    /// Only these ports and uplinks [default: all, and the workers]
    #[arg(value_name = "PORT|UPLINK")]
    names: Vec<String>,
    /// Print what is zero too
    #[arg(long)]
    all: bool,
    /// Print what is added a second, again and again after so many seconds
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600),
    )]
    watch: Option<u64>,
    #[command(flatten)]
    connection: ApiArguments,
}

impl StatsArguments {
    fn ask(&self) -> Result<Stats, CliError> {
        let stats: Stats = self.connection.client().call(&Request::Stats)?;
        select(stats, &self.names)
    }

    fn print(&self, stats: &Stats, heading: &str) -> Result<OutputReader, CliError> {
        if self.connection.json {
            return write_out(&json_text(stats)?);
        }
        let idle = self.all || !self.names.is_empty();
        write_out(&table(stats, heading, Shown { zeros: self.all, idle }))
    }
}

pub(super) fn run(arguments: &StatsArguments) -> Result<(), CliError> {
    let mut before = arguments.ask()?;
    let Some(seconds) = arguments.watch else {
        return arguments.print(&before, "COUNTED").map(|_reader| ());
    };
    let mut asked = Instant::now();
    loop {
        std::thread::sleep(Duration::from_secs(seconds));
        let after = arguments.ask()?;
        let elapsed = asked.elapsed();
        asked += elapsed;
        if arguments.print(&rates(&before, &after, elapsed), "A SECOND")? == OutputReader::Gone {
            return Ok(());
        }
        before = after;
    }
}

/// Those of these names alone; all if there are none.
fn select(stats: Stats, names: &[String]) -> Result<Stats, CliError> {
    if names.is_empty() {
        return Ok(stats);
    }
    let is_known =
        |name: &&String| stats.ports.contains_key(*name) || stats.uplinks.contains_key(*name);
    if let Some(unknown) = names.iter().find(|name| !is_known(name)) {
        return Err(CliError::NothingCounted(unknown.clone()));
    }
    let of_these = |mut counted: BTreeMap<String, Counters>| {
        counted.retain(|name, _| names.contains(name));
        counted
    };
    let Stats { ports, uplinks, problems, .. } = stats;
    let (ports, uplinks) = (of_these(ports), of_these(uplinks));
    Ok(Stats { ports, uplinks, workers: Vec::new(), problems })
}

/// The increase a second of each counter between two answers, and the present value of each gauge.
fn rates(before: &Stats, after: &Stats, elapsed: Duration) -> Stats {
    let each = |before: &BTreeMap<String, Counters>, after: &BTreeMap<String, Counters>| {
        let of = |(name, counters): (&String, &Counters)| {
            (name.clone(), rates_of(before.get(name), counters, elapsed))
        };
        after.iter().map(of).collect()
    };
    let worker = |after: &WorkerView| {
        let before = before.workers.iter().find(|before| before.id == after.id);
        let rate =
            |value: fn(&WorkerView) -> u64| rate(before.map_or(0, value), value(after), elapsed);
        WorkerView {
            turns: rate(|it| it.turns),
            sleeps: rate(|it| it.sleeps),
            busy_nanoseconds: rate(|it| it.busy_nanoseconds),
            ..after.clone()
        }
    };
    Stats {
        ports: each(&before.ports, &after.ports),
        uplinks: each(&before.uplinks, &after.uplinks),
        workers: after.workers.iter().map(worker).collect(),
        problems: after.problems.clone(),
    }
}

fn rates_of(before: Option<&Counters>, after: &Counters, elapsed: Duration) -> Counters {
    let of = |(counter, &value): (&String, &u64)| {
        let before = before.and_then(|before| before.get(counter)).copied().unwrap_or(0);
        let is_sum = !counter.starts_with(PRESENT);
        (counter.clone(), if is_sum { rate(before, value, elapsed) } else { value })
    };
    after.iter().map(of).collect()
}

/// To the nearest whole number. A counter that is less than before began anew in between.
fn rate(before: u64, after: u64, elapsed: Duration) -> u64 {
    let added = u128::from(after.checked_sub(before).unwrap_or(after));
    let millis = elapsed.as_millis().max(1);
    u64::try_from((added * 1000 + millis / 2) / millis).unwrap_or(u64::MAX)
}

/// The counters to show beside those that are not zero.
#[derive(Clone, Copy)]
struct Shown {
    /// Those that are.
    zeros: bool,
    /// Ports, uplinks and workers of which all are.
    idle: bool,
}

/// A line for each port, uplink and worker.
fn table(stats: &Stats, heading: &str, Shown { zeros, idle }: Shown) -> String {
    let mut table = Table::new(&["OF", heading]);
    let mut left_out = 0;
    let mut add = |of: String, counters: &Counters| {
        let shown = counters.iter().filter(|&(_, &value)| zeros || value != 0);
        let shown: Vec<String> = shown.map(|(name, value)| format!("{name}={value}")).collect();
        if shown.is_empty() && !idle {
            left_out += 1;
        } else {
            let shown = if shown.is_empty() { "nothing".to_owned() } else { shown.join(" ") };
            table.row(vec![of, shown]);
        }
    };
    for (port, counters) in &stats.ports {
        add(format!("port {port}"), counters);
    }
    for (uplink, counters) in &stats.uplinks {
        add(format!("uplink {uplink}"), counters);
    }
    for worker in &stats.workers {
        let cpu = worker.cpu.map(|cpu| format!(" (CPU {cpu})")).unwrap_or_default();
        add(format!("worker {}{cpu}", worker.id), &counters_of(worker));
    }
    let problems = stats.problems.iter().map(|problem| format!("problem: {problem}\n"));
    let mut text = problems.collect::<String>() + &table.render();
    if left_out > 0 {
        text += &format!("{left_out} more have counted nothing; --all prints them\n");
    }
    text
}

fn counters_of(worker: &WorkerView) -> Counters {
    let counters = [
        ("turns", worker.turns),
        ("sleeps", worker.sleeps),
        ("busy_nanoseconds", worker.busy_nanoseconds),
    ];
    counters.map(|(name, value)| (name.to_owned(), value)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counters(values: &[(&str, u64)]) -> Counters {
        values.iter().map(|&(name, value)| (name.to_owned(), value)).collect()
    }

    fn stats(packets: u64) -> Stats {
        let port = |packets| counters(&[("drops", 0), ("packets", packets)]);
        Stats {
            ports: [("vm1".into(), port(packets)), ("vm2".into(), port(0))].into(),
            uplinks: [("eth0".into(), counters(&[("frames_free", 9), ("rx", packets)]))].into(),
            workers: vec![WorkerView {
                id: 0,
                cpu: Some(3),
                turns: packets,
                sleeps: 0,
                busy_nanoseconds: 0,
            }],
            problems: Vec::new(),
        }
    }

    #[test]
    fn each_has_a_line_of_what_is_not_zero() {
        assert_eq!(
            table(&stats(3), "COUNTED", Shown { zeros: false, idle: false }),
            "OF                COUNTED\n\
             port vm1          packets=3\n\
             uplink eth0       frames_free=9 rx=3\n\
             worker 0 (CPU 3)  turns=3\n\
             1 more have counted nothing; --all prints them\n"
        );
        let all = table(&stats(3), "COUNTED", Shown { zeros: true, idle: true });
        assert!(all.contains("port vm2          drops=0 packets=0\n"), "{all}");
        let named = table(&stats(0), "COUNTED", Shown { zeros: false, idle: true });
        assert!(named.contains("port vm2          nothing\n"), "{named}");
    }

    #[test]
    fn problems_come_first_whatever_is_asked_for() {
        let problems = vec!["the disk is full".to_owned()];
        let chosen = select(Stats { problems, ..stats(3) }, &["vm1".to_owned()]).unwrap();
        let text = table(&chosen, "COUNTED", Shown { zeros: false, idle: true });
        assert!(text.starts_with("problem: the disk is full\n"), "{text}");
    }

    #[test]
    fn names_choose_and_an_unknown_one_is_told() {
        let chosen = select(stats(3), &["vm2".into(), "eth0".into()]).unwrap();
        assert_eq!((chosen.ports.len(), chosen.uplinks.len(), chosen.workers.len()), (1, 1, 0));
        let error = select(stats(3), &["vm3".into()]).unwrap_err().to_string();
        assert!(error.contains("\"vm3\"") && error.contains("isonic port list"), "{error}");
    }

    #[test]
    fn a_rate_is_of_what_was_added_even_if_counters_began_anew() {
        let of = |before, after| rates(&stats(before), &stats(after), Duration::from_millis(500));
        let rates = of(100, 150);
        assert_eq!(rates.ports["vm1"]["packets"], 100);
        assert_eq!(rates.uplinks["eth0"], counters(&[("frames_free", 9), ("rx", 100)]));
        assert_eq!(rates.workers[0].turns, 100);
        assert_eq!(of(100, 7).ports["vm1"]["packets"], 14);
        assert_eq!(rate(0, u64::MAX, Duration::ZERO), u64::MAX);
    }
}
