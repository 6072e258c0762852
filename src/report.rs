//! REPORT: an error and its causes on one line, for the log, the API and the command line.

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
