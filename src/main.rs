//! The isonic binary: `isonic run` is the daemon, every other command a client of one.

#![forbid(unsafe_code)]

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use isonic::cli::{self, Action, Arguments, CliError, failure, logging};
use isonic::platform::log_queue;
use isonic::report::chain;

fn main() -> ExitCode {
    let words: Vec<OsString> = std::env::args_os().collect();
    let json = failure::wants_json(&words);
    let status = match Arguments::try_parse_from(words).map(start) {
        Ok(Ok(())) => {
            log_queue::flush();
            return ExitCode::SUCCESS;
        }
        Ok(Err(error)) => {
            isonic::daemon::refuse_predecessor(&chain(error.as_ref()));
            // Why we end comes last; and where the log is stuck, so would we be.
            if log_queue::flush() {
                failure::tell(error.as_ref(), json)
            } else {
                failure::status(error.as_ref())
            }
        }
        Err(usage) => {
            isonic::daemon::refuse_predecessor(&usage.to_string());
            failure::tell_usage(&usage, json)
        }
    };
    ExitCode::from(status)
}

fn start(arguments: Arguments) -> Result<(), Box<dyn Error>> {
    logging::start(arguments.log_level.as_deref(), arguments.serves()).map_err(CliError::Usage)?;
    match cli::run(arguments)? {
        Action::Done => Ok(()),
        Action::Serve(config, options) => Ok(isonic::daemon::run(&config, options)?),
    }
}
