//! REPORT: an error and its causes on one line, for the log, the API and the command line; and
//! what others have chosen, as it may be shown.

#![forbid(unsafe_code)]

use std::error::Error;

/// The error's message and those of its causes, outermost first, joined by `: `.
#[must_use]
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What cannot move a terminal's cursor, begin a line or turn the reading direction, from what
/// others have chosen: the rest is escaped.
#[must_use]
pub fn printable(text: &str) -> String {
    escape_all_but(text, is_harmless)
}

/// The same of lines, which may end.
#[must_use]
pub fn printable_lines(text: &str) -> String {
    escape_all_but(text, |letter| letter == '\n' || is_harmless(letter))
}

fn escape_all_but(text: &str, is_harmless: fn(char) -> bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in text.chars() {
        if is_harmless(letter) {
            escaped.push(letter);
        } else {
            escaped.extend(letter.escape_default());
        }
    }
    escaped
}

/// Neither a control character nor one that reorders its line (Unicode, UAX #9).
fn is_harmless(letter: char) -> bool {
    let turns = matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}');
    !letter.is_control() && !turns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lines_that_are_ours_end() {
        let text = "a\n\tb\u{1b}[2K\u{202e}é\u{2028}";
        assert_eq!(printable(text), "a\\n\\tb\\u{1b}[2K\\u{202e}é\\u{2028}");
        assert_eq!(printable_lines(text), "a\n\\tb\\u{1b}[2K\\u{202e}é\\u{2028}");
    }
}
