//! CLI: arguments → one request or one configuration → printed output.
//!
//! `isonic run` becomes a [`Config`](crate::config::Config) for the daemon. Every other command is
//! one `Request` to a running one, printed as a table, or with `--json` as the API has it. This
//! module starts no daemon itself: [`run`] returns the remaining work as an [`Action`].
//!
//! Its files, each above those that it imports:
//! - `cli_error`;
//! - `failure` (how an error is told), `standard_streams` and `text_table`;
//! - `api_arguments`: the daemon to ask;
//! - `show` and `compare`: answers as text;
//! - a file for each command or family of commands;
//! - `commands`: the list of commands.
//!
//! `logging` is for the binary.

#![forbid(unsafe_code)]

mod api_arguments;
mod capture;
mod cli_error;
mod commands;
mod compare;
mod daemon_commands;
mod doctor;
mod export;
pub mod failure;
mod libvirt;
mod libvirt_hook;
pub mod logging;
mod profile;
mod run;
mod show;
mod standard_streams;
mod stats;
mod text_table;

pub use cli_error::CliError;
pub use commands::{Arguments, run};
pub use run::Action;
