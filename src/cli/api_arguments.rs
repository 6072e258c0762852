//! Which daemon is asked, and how its answer is printed.

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::Request;
use crate::control::api::HealthView;
use crate::control::client::Client;

use super::cli_error::CliError;
use super::failure::note;
use super::standard_streams::{print, print_json};

/// Where the API is, if neither argument nor environment says.
pub(super) const API_SOCKET: &str = "/run/isonic/isonic.sock";
/// The environment's way to say it.
const API_SOCKET_VARIABLE: &str = "ISONIC_API";

/// Which daemon.
#[derive(Clone, Debug, Args)]
pub(super) struct ApiSocket {
    /// The daemon's API socket [default: ISONIC_API, else /run/isonic/isonic.sock]
    #[arg(long, value_name = "PATH")]
    pub(super) api_socket: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ApiArguments {
    #[command(flatten)]
    api: ApiSocket,
    /// Print the answer as JSON, and an error too, on standard error
    #[arg(long)]
    pub(super) json: bool,
}

impl ApiSocket {
    /// Whether argument or environment name a daemon.
    pub(super) fn is_named(&self) -> bool {
        self.api_socket.is_some() || std::env::var_os(API_SOCKET_VARIABLE).is_some()
    }

    pub(super) fn client(&self) -> Client {
        let named = self.api_socket.clone();
        let path = named.or_else(|| std::env::var_os(API_SOCKET_VARIABLE).map(PathBuf::from));
        Client::new(&path.unwrap_or_else(|| API_SOCKET.into()))
    }
}

impl ApiArguments {
    pub(super) fn is_named(&self) -> bool {
        self.api.is_named()
    }

    pub(super) fn client(&self) -> Client {
        self.api.client()
    }

    /// Ask, and print the answer.
    pub(super) fn ask<T: DeserializeOwned + Serialize>(
        &self,
        request: &Request,
        show: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        let answer = self.client().call(request)?;
        self.print(&answer, show)
    }

    /// Ask as `ask` does, and print on standard error what is wrong with the host: a reader of a
    /// list should know.
    pub(super) fn ask_with_health<T: DeserializeOwned + Serialize>(
        &self,
        request: &Request,
        show: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        self.ask(request, show)?;
        // An older daemon does not know the question.
        let health: HealthView = self.client().call(&Request::Health).unwrap_or_default();
        for problem in health.problems {
            note(&format!("{}: {}", problem.id, problem.message));
        }
        Ok(())
    }

    pub(super) fn print<T: Serialize>(
        &self,
        answer: &T,
        show: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        if self.json { print_json(answer) } else { print(&show(answer)) }
    }
}
