//! The log: its level, its form and its colours.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::fmt::{self, Debug};
use std::io::{self, IsTerminal};

use tracing::field::{Field, Visit};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::platform::log_queue::{self, LogLine};
use crate::report::{chain, printable};

/// The level of modules that no directive names.
const DEFAULT: &str = "info";
/// The environment variable with the log's directives.
const VARIABLE: &str = "RUST_LOG";

/// Log on standard error: as `--log-level` says, else as RUST_LOG does. RUST_LOG may be meant for
/// other programs too: a mistake in it is told and changes nothing.
///
/// A daemon's lines are queued, so that none of its threads waits for a reader of the log. Those of
/// other commands are written at once.
///
/// # Errors
/// The mistake in `--log-level`, in words.
pub fn start(level: Option<&str>, queued: bool) -> Result<(), String> {
    let (filter, mistake) = match level {
        Some(level) => (filter(level).map_err(|mistake| format!("--log-level {mistake}"))?, None),
        None => match env::var(VARIABLE).map(|text| filter(&text)) {
            Ok(Ok(filter)) => (filter, None),
            Ok(Err(mistake)) => (EnvFilter::new(DEFAULT), Some(mistake)),
            Err(_unset) => (EnvFilter::new(DEFAULT), None),
        },
    };
    let thread = queued.then(|| log_queue::start(lost_line));
    let writer = match &thread {
        Some(Ok(())) => BoxMakeWriter::new(|| LogLine),
        Some(Err(_)) | None => BoxMakeWriter::new(io::stderr),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(wants_colours(env::var_os("NO_COLOR").as_deref(), io::stderr().is_terminal()))
        .fmt_fields(OneLine)
        // It would say so on standard error, and panic where that is what has failed.
        .log_internal_errors(false)
        .init();
    if let Some(mistake) = mistake {
        tracing::warn!("{VARIABLE} is ignored: {mistake}");
    }
    if let Some(Err(error)) = thread {
        tracing::warn!(%error, "no thread for the log: whoever logs waits until it is read");
    }
    Ok(())
}

/// A line of the log that says how many others are missing.
fn lost_line(lost: u64) -> String {
    let mut time = String::new();
    // It has no time then.
    let _ = SystemTime.format_time(&mut Writer::new(&mut time));
    format!("{time}  WARN {}: log lines are lost: nobody took them lost={lost}\n", module_path!())
}

/// Puts the fields of a log line on one line whatever they contain. A front-end chooses the name of
/// a quoted file, and must not write log lines of ours.
struct OneLine;

impl<'w> FormatFields<'w> for OneLine {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = Line { writer, first: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

/// A line that is being written: the message, then each field as `name=value`.
struct Line<'w> {
    writer: Writer<'w>,
    first: bool,
    result: fmt::Result,
}

impl Line<'_> {
    fn write(&mut self, field: &Field, value: &str) {
        let space = if std::mem::replace(&mut self.first, false) { "" } else { " " };
        let value = printable(value);
        let written = match field.name() {
            "message" => write!(self.writer, "{space}{value}"),
            name => write!(self.writer, "{space}{name}={value}"),
        };
        self.result = self.result.and(written);
    }
}

impl Visit for Line<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.write(field, &format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.write(field, value);
        } else {
            self.record_debug(field, &value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        self.write(field, &chain(value));
    }
}

/// Only on a terminal, and unless NO_COLOR is set to anything (no-color.org).
fn wants_colours(no_color: Option<&OsStr>, is_terminal: bool) -> bool {
    is_terminal && no_color.is_none_or(OsStr::is_empty)
}

/// The filter of these directives. The library takes a word that is no level for a module's name,
/// and then logs nothing else. So such a word must be one of our modules. Without a level among
/// them, modules that are not named have the default one.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let directives: Vec<&str> =
        text.split(',').map(str::trim).filter(|directive| !directive.is_empty()).collect();
    let is_level = |directive: &&str| directive.parse::<LevelFilter>().is_ok();
    let is_ours = |word: &str| word.split("::").next() == Some("isonic");
    let strange = directives.iter().find(|directive| {
        !directive.contains(['=', '[']) && !is_level(directive) && !is_ours(directive)
    });
    if let Some(word) = strange.copied().or(directives.is_empty().then_some("")) {
        return Err(format!(
            "{text:?}: {word:?} is no level; write off, error, warn, info, debug or trace, or a \
             filter such as isonic::vhost_user=debug"
        ));
    }
    let default = if directives.iter().any(is_level) { None } else { Some(DEFAULT) };
    let all = default.into_iter().chain(directives).collect::<Vec<_>>().join(",");
    EnvFilter::try_new(all).map_err(|error| format!("{text:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_is_told_and_does_not_switch_the_log_off() {
        for typo in ["INFOO", "inf", "verbose", "warn,debgu", "isonics", "", " , ", "isonic=loud"] {
            let mistake = filter(typo).unwrap_err();
            assert!(mistake.contains(&format!("{typo:?}: ")), "{mistake}");
        }
    }

    #[test]
    fn what_no_directive_names_is_logged_as_ever() {
        for (text, meant) in [
            ("WARN", "warn"),
            ("isonic::vhost_user=debug", "isonic::vhost_user=debug,info"),
            ("off,isonic=debug", "isonic=debug,off"),
            ("isonic::daemon", "isonic::daemon=trace,info"),
            ("isonic::demon=debug", "isonic::demon=debug,info"),
        ] {
            assert_eq!(filter(text).unwrap().to_string(), meant);
        }
    }

    #[test]
    fn colours_are_for_terminals_whose_user_wants_them() {
        assert!(wants_colours(None, true) && wants_colours(Some(OsStr::new("")), true));
        assert!(!wants_colours(Some(OsStr::new("1")), true) && !wants_colours(None, false));
    }
}
