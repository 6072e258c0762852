//! The isonic binary: `isonic run` is the daemon, every other command a client of one.

#![forbid(unsafe_code)]

use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use isonic::cli::{self, Action, Arguments};
use isonic::report::chain;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    // Usage errors end here, with status 2.
    let arguments = Arguments::parse();
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in chain(error.as_ref()).lines() {
                eprintln!("isonic: {line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    log_to_stderr(arguments.log_level.as_deref())?;
    match cli::run(arguments)? {
        Action::Done => Ok(()),
        Action::Serve(config, options) => Ok(isonic::daemon::run(&config, options)?),
    }
}

fn log_to_stderr(level: Option<&str>) -> Result<(), Box<dyn Error>> {
    let filter = match level {
        Some(level) => {
            EnvFilter::try_new(level).map_err(|error| format!("--log-level {level}: {error}"))?
        }
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_unset| EnvFilter::new("info")),
    };
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colours)
        .init();
    Ok(())
}
