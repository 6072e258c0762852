//! Aligned columns for people.

use crate::report::printable;

/// Rows under a heading, each column as wide as its widest cell.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    /// Characters of the widest cell of each column so far.
    widths: Vec<usize>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(heading.iter().map(|&cell| cell.to_owned()).collect());
        table
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        let cells: Vec<String> = cells.into_iter().map(|cell| printable(&cell)).collect();
        self.widths.resize(self.widths.len().max(cells.len()), 0);
        for (width, cell) in self.widths.iter_mut().zip(&cells) {
            *width = (*width).max(cell.chars().count());
        }
        self.rows.push(cells);
    }

    pub(super) fn render(&self) -> String {
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, &width) in row.iter().zip(&self.widths) {
                line.push_str(&format!("{cell:width$}  "));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Names and values below one another, values aligned.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let line = |(name, value): &(&str, String)| {
        let name = format!("{name}:");
        format!("{name:width$} {}", printable(value)).trim_end().to_owned() + "\n"
    };
    pairs.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let mut table = Table::new(&["NAME", "MTU"]);
        table.row(vec!["a-long-name".into(), "1500".into()]);
        table.row(vec!["b".into(), String::new()]);
        assert_eq!(table.render(), "NAME         MTU\na-long-name  1500\nb\n");
    }

    #[test]
    fn a_long_table_is_rendered_in_one_pass() {
        let mut table = Table::new(&["OF", "VALUE"]);
        for row in 0..100_000 {
            table.row(vec![format!("port {row}"), "0".into()]);
        }
        assert_eq!(table.render().lines().count(), 100_001);
    }

    #[test]
    fn nothing_that_others_chose_moves_the_cursor_or_begins_a_line() {
        let mut table = Table::new(&["NAME"]);
        table.row(vec!["a\nb\u{1b}[2K\r\u{9b}31m\u{202e}é".into()]);
        assert_eq!(table.render(), "NAME\na\\nb\\u{1b}[2K\\r\\u{9b}31m\\u{202e}é\n");
        assert_eq!(pairs(&[("a", "b\nc".into())]), "a: b\\nc\n");
    }

    #[test]
    fn values_are_aligned() {
        let text = pairs(&[("mtu", "1500".into()), ("digest", "ab".into())]);
        assert_eq!(text, "mtu:    1500\ndigest: ab\n");
    }
}
