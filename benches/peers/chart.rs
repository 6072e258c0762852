//! Bar charts in SVG. A group is a frame length, a bar is a peer, and a whisker shows the least and
//! the most.

use std::fmt::Write as _;

use crate::report::Spread;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 280.0;
/// Around the bars: left, top, right, bottom.
const MARGINS: [f64; 4] = [56.0, 40.0, 12.0, 56.0];
/// Colours of the peers, in order; they can be told apart without colour vision too.
const COLOURS: [&str; 5] = ["#0072b2", "#e69f00", "#999999", "#009e73", "#cc79a7"];

/// A group: its label, and its bars by place in the legend.
pub type Group = (String, Vec<(usize, Spread)>);

/// A chart with this title, legend and unit of the vertical axis.
pub fn bars(title: &str, unit: &str, legend: &[&str], groups: &[Group]) -> String {
    let [left, top, right, bottom] = MARGINS;
    let (width, height) = (WIDTH - left - right, HEIGHT - top - bottom);
    let highest = groups.iter().flat_map(|(_, bars)| bars.iter().map(|(_, bar)| bar.max));
    let step = step(highest.fold(0.0, f64::max));
    let scale = height / (step * 5.0);
    let y = |value: f64| top + height - value * scale;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{left}\" y=\"20\" font-size=\"14\">{title}, {unit}</text>\n"
    );
    for line in 0..=5 {
        let value = f64::from(line) * step;
        let (y, end) = (y(value), left + width);
        let _ = writeln!(
            svg,
            "<path d=\"M{left} {y:.1}H{end}\" stroke=\"#ddd\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            left - 6.0,
            y + 4.0,
            label(value)
        );
    }
    let count = |number: usize| f64::from(u32::try_from(number).expect("few bars"));
    let group_width = width / count(groups.len().max(1));
    let bar_width = group_width * 0.8 / count(legend.len().max(1));
    for (number, (name, bars)) in groups.iter().enumerate() {
        let start = left + group_width * (count(number) + 0.1);
        for (place, spread) in bars {
            let x = start + bar_width * count(*place);
            let (middle, up) = (x + bar_width / 2.0, y(spread.median));
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{up:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{}\"/>\
                 <path d=\"M{middle:.1} {:.1}V{:.1}\" stroke=\"black\"/>",
                bar_width * 0.9,
                spread.median * scale,
                COLOURS[place % COLOURS.len()],
                y(spread.max),
                y(spread.min)
            );
        }
        let middle = left + group_width * (count(number) + 0.5);
        let below = top + height + 18.0;
        let _ = writeln!(
            svg,
            "<text x=\"{middle:.1}\" y=\"{below}\" text-anchor=\"middle\">{name}</text>"
        );
    }
    for (place, name) in legend.iter().enumerate() {
        let (x, below) = (left + 130.0 * count(place), HEIGHT - 20.0);
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{below}\" width=\"10\" height=\"10\" fill=\"{}\"/>\
             <text x=\"{}\" y=\"{}\">{name}</text>",
            COLOURS[place % COLOURS.len()],
            x + 16.0,
            below + 10.0
        );
    }
    svg + "</svg>\n"
}

/// A round number such that five of it reach this high.
fn step(highest: f64) -> f64 {
    let power = 10f64.powf((highest / 5.0).max(1e-6).log10().floor());
    let steps = [1.0, 2.0, 2.5, 5.0, 10.0];
    let step = steps.into_iter().find(|step| step * power * 5.0 >= highest);
    step.unwrap_or(10.0) * power
}

fn label(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
