//! The results as tables and plots for people, and as a file for programs.

use std::fmt::Write as _;
use std::fs;

use serde_json::{Map, Value, json};

use crate::backend::Cost;
use crate::case::{Case, Rings, Scenario};
use crate::chart;
use crate::common::repository;
use crate::goals::goals;
use crate::machine;
use crate::report::{ByPeer, Report, Spread, ratio};
use crate::sample::Sample;
use crate::settings::Settings;

/// Between these lines of docs/performance.md the tables are written.
const BEGIN: &str = "<!-- bench-peers: begin -->";
const END: &str = "<!-- bench-peers: end -->";

/// Who is measured, in the order of tables and plots.
const WHO: [&str; 5] = ["isonic", "dpdk", "af_xdp", "reference", "memcpy"];
/// The plots' part of them: beside memcpy nothing else could be seen.
const LEGEND: [&str; 4] = ["isonic", "DPDK", "bare AF_XDP", "reference device"];

/// Prints the tables, writes the file, and with `--docs` what docs/performance.md shows.
pub fn publish(report: &Report) {
    let settings = Settings::get();
    let tables = tables(report);
    println!("{tables}");
    fs::create_dir_all(&settings.output).expect("the directory of the results");
    let path = settings.output.join("results.json");
    let text = serde_json::to_string_pretty(&as_json(report)).expect("JSON");
    fs::write(&path, text).expect("the results");
    let mut images = String::new();
    for (name, svg) in plots(report) {
        fs::write(settings.output.join(&name), &svg).expect("a plot");
        if settings.docs {
            fs::write(repository("docs").join(&name), svg).expect("a plot");
        }
        let _ = writeln!(images, "![{}]({name})", name.trim_end_matches(".svg"));
    }
    if settings.docs {
        replace_in_docs(&format!("{tables}\n{images}"));
    }
    eprintln!("results and plots are in {}", settings.output.display());
}

fn replace_in_docs(tables: &str) {
    let path = repository("docs/performance.md");
    let text = fs::read_to_string(&path).expect("docs/performance.md");
    let (before, rest) = text.split_once(BEGIN).expect("where the tables begin");
    let (_, after) = rest.split_once(END).expect("where the tables end");
    fs::write(path, format!("{before}{BEGIN}\n\n{tables}\n{END}{after}")).expect("the page");
}

// ---- tables -------------------------------------------------------------------------------------

fn tables(report: &Report) -> String {
    let mut text = String::new();
    let facts = machine::facts();
    let facts: Vec<String> = facts.iter().map(|(name, fact)| format!("{name} {fact}")).collect();
    let _ = writeln!(text, "{}.\n", facts.join("; "));
    let goals = goals(report);
    if !goals.is_empty() {
        text += "| goal | wanted | median | min–max | |\n|---|---|---|---|---|\n";
    }
    for goal in goals {
        let Spread { median, min, max } = goal.reached;
        let met = if goal.met { "met" } else { "missed" };
        let _ = writeln!(
            text,
            "| {} | {} | {median:.2} | {min:.2}–{max:.2} | {met} {} |",
            goal.what, goal.wanted, goal.remark
        );
    }
    text += "\n| scenario | frame | who | Mpps (min–max) | cycles a packet (min–max) | of them in \
             user space | busy | isonic's Mpps / theirs |\n|---|---|---|---|---|---|---|---|\n";
    for ((name, len), peers) in &report.rows {
        for (who, samples) in in_order(peers) {
            let isonic = peers.get("isonic").map_or(&[][..], Vec::as_slice);
            let place = format!("| {name} | {len} | {who} |");
            let _ = writeln!(text, "{place} {} |", cells(who, isonic, samples).join(" | "));
        }
    }
    if !report.values.is_empty() {
        text += "\n| what | who | median | min–max | unit |\n|---|---|---|---|---|\n";
    }
    for ((what, unit), peers) in &report.values {
        for (who, values) in in_order(peers) {
            if let Some(Spread { median, min, max }) = Spread::of(values.iter().copied()) {
                let numbers = format!("{median:.2} | {min:.2}–{max:.2}");
                let _ = writeln!(text, "| {what} | {who} | {numbers} | {unit} |");
            }
        }
    }
    text
}

fn in_order<T>(peers: &ByPeer<T>) -> impl Iterator<Item = (&'static str, &Vec<T>)> {
    WHO.into_iter().filter_map(|who| Some((who, peers.get(who)?)))
}

/// The cells of one row of the throughput table, after its place.
fn cells(who: &str, isonic: &[Sample], samples: &[Sample]) -> [String; 5] {
    let none = || "–".to_owned();
    let packets = Spread::of(samples.iter().map(|sample| sample.packets / 1e6));
    let of_cost = |number: fn(Cost) -> f64| {
        Spread::of(samples.iter().filter_map(|sample| sample.cost.map(number)))
    };
    let with_range = |spread: Spread, digits: usize| {
        let Spread { median, min, max } = spread;
        format!("{median:.digits$} ({min:.digits$}–{max:.digits$})")
    };
    let ratio = ratio(isonic, samples, |sample| sample.packets).filter(|_| who != "isonic");
    [
        packets.map_or_else(none, |packets| with_range(packets, 3)),
        of_cost(|cost| cost.cycles).map_or_else(none, |cycles| with_range(cycles, 0)),
        of_cost(|cost| cost.user).map_or_else(none, |cycles| format!("{:.0}", cycles.median)),
        of_cost(|cost| cost.busy).map_or_else(none, |busy| format!("{:.0} %", busy.median * 100.0)),
        ratio.map_or_else(none, |ratio| format!("{:.2}", ratio.median)),
    ]
}

// ---- for programs -------------------------------------------------------------------------------

fn as_json(report: &Report) -> Value {
    let facts: Map<String, Value> =
        machine::facts().into_iter().map(|(name, fact)| (name.to_owned(), fact.into())).collect();
    let sample = |sample: &Sample| {
        json!({
            "packets_per_second": sample.packets,
            "cycles_per_packet": sample.cost.map(|cost| cost.cycles),
            "user_cycles_per_packet": sample.cost.map(|cost| cost.user),
            "busy_share": sample.cost.map(|cost| cost.busy),
        })
    };
    let rows = report.rows.iter().map(|((name, len), peers)| {
        let rounds = |(who, samples): (&str, &Vec<Sample>)| {
            let samples: Vec<Value> = samples.iter().map(sample).collect();
            (who.to_owned(), samples.into())
        };
        let peers: Map<String, Value> = in_order(peers).map(rounds).collect();
        json!({ "scenario": name, "frame": len, "rounds": peers })
    });
    let values = report
        .values
        .iter()
        .map(|((what, unit), peers)| json!({ "what": what, "unit": unit, "rounds": peers }));
    let goals = goals(report).into_iter().map(|goal| {
        json!({
            "goal": goal.what, "wanted": goal.wanted, "median": goal.reached.median,
            "met": goal.met, "remark": goal.remark,
        })
    });
    json!({
        "machine": facts,
        "goals": goals.collect::<Vec<_>>(),
        "throughput": rows.collect::<Vec<_>>(),
        "values": values.collect::<Vec<_>>(),
    })
}

// ---- plots --------------------------------------------------------------------------------------

/// The plots of each measured scenario: packets, and cycles of the backend.
fn plots(report: &Report) -> Vec<(String, String)> {
    let scenarios =
        [Scenario::GuestToGuest, Scenario::GuestToWire, Scenario::WireToGuest, Scenario::RoundTrip];
    let mut plots = Vec::new();
    for name in scenarios.map(|scenario| Case::new(scenario, Rings::Split, 1).name()) {
        let file = name.replace(' ', "-");
        let packets = groups(report, &name, |sample| Some(sample.packets / 1e6));
        let cycles = groups(report, &name, |sample| Some(sample.cost?.cycles));
        if packets.is_empty() {
            continue;
        }
        let chart = |unit, groups: &[chart::Group]| chart::bars(&name, unit, &LEGEND, groups);
        plots.push((format!("performance-{file}.svg"), chart("Mpps", &packets)));
        plots.push((format!("performance-{file}-cycles.svg"), chart("cycles a packet", &cycles)));
    }
    plots
}

fn groups(
    report: &Report,
    name: &str,
    number: impl Fn(&Sample) -> Option<f64>,
) -> Vec<chart::Group> {
    let rows = report.rows.iter().filter(|((known, _), _)| known == name);
    let group = |((_, len), peers): &((String, usize), ByPeer<Sample>)| {
        let bars = WHO.iter().take(LEGEND.len()).enumerate().filter_map(|(place, who)| {
            let samples = peers.get(who)?;
            Some((place, Spread::of(samples.iter().filter_map(&number))?))
        });
        (format!("{len} bytes"), bars.collect())
    };
    rows.map(group).collect()
}
