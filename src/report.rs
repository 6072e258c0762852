//! REPORT: an error and its causes on one line, for the log, the API and the command line. It also
//! makes texts that others have chosen safe to show.

#![forbid(unsafe_code)]

use std::borrow::Cow;
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

/// The most of one word that a text may have, characters.
const WORD_MAX: usize = 256;
/// The characters shown of a longer word.
const WORD_SHOWN: usize = 64;
/// The most that an error may have in all, characters: a list of a thousand ports.
const TEXT_MAX: usize = 128 << 10;

/// An error's text with the long words of others cut: a name of 30 000 letters is of no use.
#[must_use]
pub fn bounded(text: &str) -> String {
    let mut all = String::with_capacity(text.len());
    for word in text.split_inclusive(char::is_whitespace) {
        all.push_str(&shortened(word, WORD_MAX, WORD_SHOWN));
    }
    shortened(&all, TEXT_MAX, TEXT_MAX).into_owned()
}

fn shortened(text: &str, max: usize, shown: usize) -> Cow<'_, str> {
    let length = text.chars().count();
    if length <= max {
        return Cow::Borrowed(text);
    }
    let begin: String = text.chars().take(shown).collect();
    Cow::Owned(format!("{begin}… ({} more letters) ", length - shown))
}

/// A text of several lines on one.
#[must_use]
pub fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ")
}

/// A text that others have chosen, without characters that move a terminal's cursor, begin a line
/// or turn the reading direction. Those are escaped.
#[must_use]
pub fn printable(text: &str) -> String {
    escape_all_but(text, is_harmless)
}

/// As [`printable`], for text whose lines may end.
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
    fn what_others_have_made_long_is_not_repeated() {
        let told = bounded(&format!("there is no port \"{}\"; see", "é".repeat(30_000)));
        assert!(told.starts_with("there is no port \"éé"), "{told}");
        assert!(told.ends_with("more letters) see") && told.len() < 300, "{told}");
        let short = "a text with lines\nas it is";
        assert_eq!(bounded(short), short);
        assert!(bounded(&"a ".repeat(1 << 20)).len() < TEXT_MAX + 100);
    }

    #[test]
    fn lines_become_one() {
        assert_eq!(one_line("error: a\n\n  b\n"), "error: a; b");
    }

    #[test]
    fn only_lines_that_are_ours_end() {
        let text = "a\n\tb\u{1b}[2K\u{202e}é\u{2028}";
        assert_eq!(printable(text), "a\\n\\tb\\u{1b}[2K\\u{202e}é\\u{2028}");
        assert_eq!(printable_lines(text), "a\n\\tb\\u{1b}[2K\\u{202e}é\\u{2028}");
    }
}
