//! CONTROL: the one interface by which people and programs drive a running daemon.
//!
//! [`api`] has the whole of it as types. [`server`] carries it as HTTP and JSON over a Unix socket,
//! so that curl serves as a client. [`client`] is the other end, for our own command line.
//! `connections` bounds what clients may take; `audit` logs the peers of failed requests. A
//! [`Service`] answers: this module knows no port, ring or uplink.

#![forbid(unsafe_code)]

pub mod api;
mod audit;
pub mod client;
mod connections;
pub mod server;

pub use api::{ApiError, ErrorCode, Request, Response};

/// Answers requests: the daemon, or a test.
pub trait Service: Send + Sync + 'static {
    /// Answer one request. May block; called on a thread that may.
    ///
    /// # Errors
    /// [`ApiError`]; nothing was changed then.
    fn call(&self, request: Request) -> Result<Response, ApiError>;
}
