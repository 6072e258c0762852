//! The results: a table to read, a file for programs.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::measure::Sample;
use crate::settings::Settings;

/// All samples, by scenario and frame length, and by who was measured.
pub struct Report {
    rows: Vec<(Row, BTreeMap<&'static str, Vec<Sample>>)>,
}

/// A scenario and a frame length.
pub type Row = (String, usize);

/// The middle one, the least and the most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    /// Of an even number the mean of the two in the middle.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Most.
    pub max: f64,
}

impl Spread {
    /// Of at least one value.
    pub fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            return Self::default();
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { median, min, max }
    }

    fn json(self) -> Value {
        json!({ "median": self.median, "min": self.min, "max": self.max })
    }
}

impl Report {
    /// Empty.
    pub fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// One more sample.
    pub fn add(&mut self, row: Row, peer: &'static str, sample: &Sample) {
        let place = self.rows.iter().position(|(known, _)| *known == row);
        let place = place.unwrap_or_else(|| {
            self.rows.push((row, BTreeMap::new()));
            self.rows.len() - 1
        });
        self.rows[place].1.entry(peer).or_default().push(*sample);
    }

    /// Prints the table and writes the file.
    pub fn finish(&self) {
        println!("{}", self.table());
        let output = &Settings::get().output;
        fs::create_dir_all(output).expect("the directory of the results");
        let path = output.join("results.json");
        let text = serde_json::to_string_pretty(&self.json()).expect("JSON");
        fs::write(&path, text).expect("the results");
        println!("written to {}", path.display());
    }

    fn table(&self) -> String {
        let mut lines = Vec::new();
        for ((name, len), peers) in &self.rows {
            for (peer, samples) in peers {
                let packets = Spread::of(samples.iter().map(|sample| sample.packets / 1e6));
                let costs = || samples.iter().filter_map(|sample| sample.cost);
                let cycles = Spread::of(costs().map(|cost| cost.cycles));
                let user = Spread::of(costs().map(|cost| cost.user * cost.cycles));
                let busy = Spread::of(costs().map(|cost| cost.busy * 100.0));
                lines.push(format!(
                    "{name:32} {len:5} {peer:10} {:7.3} Mpps ({:.3}–{:.3}) {:7.0} cycles \
                     ({:.0}–{:.0}), {:.0} of them user; busy {:.0} %",
                    packets.median,
                    packets.min,
                    packets.max,
                    cycles.median,
                    cycles.min,
                    cycles.max,
                    user.median,
                    busy.median
                ));
            }
        }
        lines.join("\n")
    }

    fn json(&self) -> Value {
        let rows = self.rows.iter().map(|((name, len), peers)| {
            let peers = peers.iter().map(|(peer, samples)| {
                let costs = || samples.iter().filter_map(|sample| sample.cost);
                let value = json!({
                    "packets_per_second": Spread::of(samples.iter().map(|sample| sample.packets)).json(),
                    "cycles_per_packet": Spread::of(costs().map(|cost| cost.cycles)).json(),
                    "user_share": Spread::of(costs().map(|cost| cost.user)).json(),
                    "busy_share": Spread::of(costs().map(|cost| cost.busy)).json(),
                });
                ((*peer).to_owned(), value)
            });
            let peers: serde_json::Map<String, Value> = peers.collect();
            json!({ "scenario": name, "frame": len, "peers": peers })
        });
        json!({ "results": rows.collect::<Vec<_>>() })
    }
}
