//! The results: a table to read, a file for programs.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

use crate::measure::Sample;
use crate::settings::Settings;

/// All samples, by scenario and frame length, and by who was measured.
pub struct Report {
    rows: Vec<(Row, BTreeMap<&'static str, Vec<Sample>>)>,
    values: Vec<(Quantity, BTreeMap<&'static str, Vec<f64>>)>,
}

/// What a number is, and its unit.
type Quantity = (String, &'static str);

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
        Self { rows: Vec::new(), values: Vec::new() }
    }

    /// One more sample.
    pub fn add(&mut self, row: Row, peer: &'static str, sample: &Sample) {
        entry(&mut self.rows, row).entry(peer).or_default().push(*sample);
    }

    /// One more number of another kind.
    pub fn value(&mut self, (what, unit): (&str, &'static str), peer: &'static str, value: f64) {
        let quantity = (what.to_owned(), unit);
        entry(&mut self.values, quantity).entry(peer).or_default().push(value);
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
        for ((what, unit), peers) in &self.values {
            for (peer, values) in peers {
                let Spread { median, min, max } = Spread::of(values.iter().copied());
                lines.push(format!("{what:60} {peer:10} {median:.2} {unit} ({min:.2}–{max:.2})"));
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
        let values = self.values.iter().map(|((what, unit), peers)| {
            let spread = |values: &Vec<f64>| Spread::of(values.iter().copied()).json();
            let peers = peers.iter().map(|(peer, values)| ((*peer).to_owned(), spread(values)));
            let peers: serde_json::Map<String, Value> = peers.collect();
            json!({ "what": what, "unit": unit, "peers": peers })
        });
        json!({ "results": rows.collect::<Vec<_>>(), "values": values.collect::<Vec<_>>() })
    }
}

/// The value of a key, in the order in which keys came.
fn entry<K: PartialEq, V: Default>(entries: &mut Vec<(K, V)>, key: K) -> &mut V {
    let place = entries.iter().position(|(known, _)| *known == key);
    let place = place.unwrap_or_else(|| {
        entries.push((key, V::default()));
        entries.len() - 1
    });
    &mut entries[place].1
}
