//! The other end of [`super::server`], for the command line: one blocking call per request.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::{ApiError, ErrorBody, ErrorCode, Request};

/// How long an answer may take if nothing else is said: deleting a port waits for its workers.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long to wait before asking again whoever is busy, or takes over.
const BUSY_PAUSE: Duration = Duration::from_millis(100);
/// Largest answer, bytes: some thousands of ports.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers on the socket.
    #[error(
        "cannot reach the daemon at {}; is `isonic run` running, with this api_socket? \
         (--api-socket or ISONIC_API names another)",
        path.display()
    )]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The daemon answered with an error.
    #[error(transparent)]
    Refused(#[from] ApiError),
    /// The connection failed on the way.
    #[error("the connection to the daemon failed")]
    Transport(#[from] hyper::Error),
    /// The request could not be made.
    #[error("the request cannot be put into HTTP")]
    Request(#[from] hyper::http::Error),
    /// The answer did not arrive, or is far too large.
    #[error("the daemon's answer broke off")]
    Body(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The answer is not what this version of the interface says.
    #[error("the daemon's answer (status {status}) is not that of API version 1")]
    Answer {
        /// The HTTP status.
        status: StatusCode,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// No answer in time.
    #[error("the daemon did not answer within {} seconds", .0.as_secs())]
    Timeout(Duration),
    /// No runtime to wait with.
    #[error("cannot start waiting for an answer")]
    Runtime(#[source] io::Error),
}

/// A daemon's API socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    patience: Duration,
}

impl Client {
    /// The daemon whose API socket is at `path`; nothing is connected yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), patience: ANSWER_WAIT_MAX }
    }

    /// The same daemon, whose answer is waited for as long as this.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self { patience, ..self.clone() }
    }

    /// Ask, wait, and read the answer as `T`, the content of the request's response. A daemon that
    /// is busy is asked again: the process that takes over answers on the same socket.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] is the daemon's own.
    pub fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let deadline = Instant::now() + ANSWER_WAIT_MAX;
        loop {
            match self.ask(request) {
                Err(ClientError::Refused(error))
                    if error.code == ErrorCode::Busy && Instant::now() + BUSY_PAUSE < deadline =>
                {
                    std::thread::sleep(BUSY_PAUSE);
                }
                answer => return answer,
            }
        }
    }

    fn ask<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        let exchange = async { tokio::time::timeout(self.patience, self.exchange(request)).await };
        let timeout = |_elapsed| ClientError::Timeout(self.patience);
        let (status, body) = runtime.block_on(exchange).map_err(timeout)??;
        let malformed = |source| ClientError::Answer { status, source };
        if status.is_success() {
            return serde_json::from_slice(&body).map_err(malformed);
        }
        let body: ErrorBody = serde_json::from_slice(&body).map_err(malformed)?;
        Err(body.error.into())
    }

    async fn exchange(&self, request: &Request) -> Result<(StatusCode, Bytes), ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: self.path.clone(), source };
        let stream = UnixStream::connect(&self.path).await.map_err(unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(http_request(request)?).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(ClientError::Body)?.to_bytes()))
    }
}

fn http_request(request: &Request) -> Result<hyper::Request<Full<Bytes>>, ClientError> {
    let (method, path) = route(request);
    let body = match request {
        Request::AddPort(port) | Request::PutPort(port) => serde_json::to_vec(port),
        Request::SetProfile(_, change) => serde_json::to_vec(change),
        Request::Upgrade(upgrade) => serde_json::to_vec(upgrade),
        _ => Ok(Vec::new()),
    };
    let body = body.map_err(|error| ClientError::Body(error.into()))?;
    let http = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, "isonic")
        .header(hyper::header::CONTENT_TYPE, "application/json")
        .body(Full::from(body))?;
    Ok(http)
}

fn route(request: &Request) -> (Method, String) {
    match request {
        Request::ListPorts => (Method::GET, "/v1/ports".into()),
        Request::ShowPort(name) => (Method::GET, named("/v1/ports/", name)),
        Request::AddPort(_) => (Method::POST, "/v1/ports".into()),
        Request::PutPort(port) => (Method::PUT, named("/v1/ports/", &port.name)),
        Request::DeletePort(name) => (Method::DELETE, named("/v1/ports/", name)),
        Request::SetProfile(name, _) => (Method::PUT, named("/v1/ports/", name) + "/profile"),
        Request::ListUplinks => (Method::GET, "/v1/uplinks".into()),
        Request::ListProfiles => (Method::GET, "/v1/profiles".into()),
        Request::ShowProfile(name) => (Method::GET, named("/v1/profiles/", name)),
        Request::Stats => (Method::GET, "/v1/stats".into()),
        Request::Version => (Method::GET, "/v1/version".into()),
        Request::Health => (Method::GET, "/v1/health".into()),
        Request::Upgrade(_) => (Method::POST, "/v1/upgrade".into()),
    }
}

/// A path that ends in a name, whatever characters that has (RFC 3986, 2.1 and 2.3).
fn named(prefix: &str, name: &str) -> String {
    let mut path = prefix.to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            path.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(path, "%{byte:02X}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_leave_its_place_in_the_path() {
        assert_eq!(named("/v1/ports/", "vm-1.a"), "/v1/ports/vm-1.a");
        assert_eq!(named("/v1/ports/", "../a b?"), "/v1/ports/..%2Fa%20b%3F");
    }
}
