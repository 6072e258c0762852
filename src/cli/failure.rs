//! The report of a failure: a line for each reason on standard error, or with `--json` an object
//! like the API's; and the exit status.

use std::error::Error;
use std::ffi::OsString;
use std::io::Write;

use serde_json::json;

use crate::control::client::ClientError;
use crate::report::{bounded, chain, printable};

use super::cli_error::CliError;

/// The exit status of a wrong command line, which is clap's too.
pub const USAGE_STATUS: u8 = 2;
/// The exit status of every other failure.
pub const FAILURE_STATUS: u8 = 1;

/// Whether errors are to be JSON. It reads the words themselves, so that it also works for a wrong
/// command line.
#[must_use]
pub fn wants_json(words: &[OsString]) -> bool {
    words.iter().take_while(|word| *word != "--").any(|word| word == "--json")
}

/// Say on standard error why the command failed. Answers its exit status.
#[must_use]
pub fn tell(error: &(dyn Error + 'static), json: bool) -> u8 {
    let ours = error.downcast_ref::<CliError>();
    let text = bounded(&chain(error));
    if json {
        let reasons = ours.and_then(reasons).unwrap_or_else(|| lines(&text));
        tell_json(&code(ours), &text, &reasons);
    } else if matches!(ours, Some(CliError::Client(_))) {
        // One line, whatever a daemon of an earlier version has in it.
        note(&text);
    } else {
        text.lines().for_each(note);
    }
    status(error)
}

/// The exit status of a command that failed so.
#[must_use]
pub fn status(error: &(dyn Error + 'static)) -> u8 {
    match error.downcast_ref() {
        Some(CliError::Usage(_)) => USAGE_STATUS,
        _ => FAILURE_STATUS,
    }
}

/// As [`tell`], for a command line that clap refuses. Answers its exit status.
#[must_use]
pub fn tell_usage(error: &clap::Error, json: bool) -> u8 {
    let is_answer = error.exit_code() == 0;
    if json && !is_answer {
        let text = error.to_string();
        let message = text.trim_start_matches("error: ");
        let first: Vec<&str> = message.lines().take_while(|line| !line.is_empty()).collect();
        let first = first.join("\n");
        tell_json("usage", &first, &lines(&first));
    } else {
        let printed = error.print().and_then(|()| std::io::stdout().flush());
        // Standard error may be closed: nobody can be told then.
        if is_answer {
            return tell_printed(printed);
        }
    }
    if is_answer { 0 } else { USAGE_STATUS }
}

/// The exit status of an answer that clap prints. A reader that has gone is no failure.
fn tell_printed(printed: std::io::Result<()>) -> u8 {
    match printed {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            tell(&CliError::Output(error), false)
        }
        _ => 0,
    }
}

/// One line on standard error, whatever is in it.
pub(super) fn note(line: &str) {
    // Standard error may be closed: nobody can be told then.
    let _ = writeln!(std::io::stderr(), "isonic: {}", printable(line));
}

fn lines(text: &str) -> Vec<String> {
    text.lines().map(|line| line.trim().to_owned()).collect()
}

fn tell_json(code: &str, message: &str, reasons: &[String]) {
    let message = lines(message).join("; ");
    let body = json!({ "error": { "code": code, "message": message, "reasons": reasons } });
    let _ = writeln!(std::io::stderr(), "{body}");
}

/// The API's own code if the daemon has answered with an error.
fn code(error: Option<&CliError>) -> String {
    let code = match error {
        Some(CliError::Usage(_)) => "usage",
        Some(CliError::Client(ClientError::Refused(error))) => {
            let code = serde_json::to_value(error.code).unwrap_or_default();
            return code.as_str().unwrap_or_default().to_owned();
        }
        Some(CliError::Client(ClientError::Unreachable { .. })) => "unreachable",
        Some(CliError::Client(_)) => "no_answer",
        _ => "failed",
    };
    code.to_owned()
}

/// Those of the daemon's error.
fn reasons(error: &CliError) -> Option<Vec<String>> {
    match error {
        CliError::Client(ClientError::Refused(error)) if !error.reasons.is_empty() => {
            Some(error.reasons.clone())
        }
        _ => None,
    }
}
