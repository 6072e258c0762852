//! The measured values, round by round, and the numbers made from them.

use std::collections::BTreeMap;

use crate::sample::Sample;

/// A scenario and a frame length.
pub type Row = (String, usize);
/// The name of a number, and its unit.
pub type Quantity = (String, &'static str);
/// Values by peer; the entries are rounds.
pub type ByPeer<T> = BTreeMap<&'static str, Vec<T>>;

/// All samples and numbers, in the order in which they came first.
#[derive(Default)]
pub struct Report {
    /// Throughput and cost.
    pub rows: Vec<(Row, ByPeer<Sample>)>,
    /// All else.
    pub values: Vec<(Quantity, ByPeer<f64>)>,
}

/// The middle one, the least and the most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    /// The middle value; for an even count, the mean of the two in the middle.
    pub median: f64,
    /// Least.
    pub min: f64,
    /// Most.
    pub max: f64,
}

impl Spread {
    /// The spread of these values; None if there are none.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (&min, &max) = (values.first()?, values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self { median, min, max })
    }
}

impl Report {
    /// One more sample.
    pub fn add(&mut self, row: Row, peer: &'static str, sample: &Sample) {
        entry(&mut self.rows, row).entry(peer).or_default().push(*sample);
    }

    /// One more number of another kind.
    pub fn value(&mut self, (what, unit): (&str, &'static str), peer: &'static str, value: f64) {
        let quantity = (what.to_owned(), unit);
        entry(&mut self.values, quantity).entry(peer).or_default().push(value);
    }

    /// The samples of a row, round by round; none if it was not measured.
    pub fn samples(&self, row: (&str, usize), peer: &str) -> &[Sample] {
        let found = self.rows.iter().find(|((name, len), _)| (name.as_str(), *len) == row);
        found.and_then(|(_, peers)| peers.get(peer)).map_or(&[], Vec::as_slice)
    }

    /// A number of another kind, round by round; none if it was not measured.
    pub fn numbers(&self, what: &str, peer: &str) -> &[f64] {
        let found = self.values.iter().find(|((known, _), _)| known == what);
        found.and_then(|(_, peers)| peers.get(peer)).map_or(&[], Vec::as_slice)
    }
}

/// The spread of the ratios of each round: other load on the machine in a round meets both.
pub fn ratio<T>(of: &[T], to: &[T], number: impl Fn(&T) -> f64) -> Option<Spread> {
    Spread::of(of.iter().zip(to).map(|(of, to)| number(of) / number(to)))
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
