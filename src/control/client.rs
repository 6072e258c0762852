//! The other end of [`super::server`], for the command line: one blocking call per request.

use std::fmt::Write;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::api::{ApiError, ErrorBody, ErrorCode, Request};

/// How long an answer may take by default, retries included: deleting a port waits for its workers.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long an upgrade may take by default: the new process alone has 20 seconds to get ready.
const UPGRADE_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long to wait before asking a busy daemon again.
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
    /// The answer does not have the form of this version of the interface.
    #[error("the daemon's answer (status {status}) is not that of API version 1")]
    Answer {
        /// The HTTP status.
        status: StatusCode,
        /// The error of the parser.
        source: serde_json::Error,
    },
    /// No answer in time.
    #[error(
        "the daemon at {} did not answer within {} seconds",
        path.display(), patience.as_secs()
    )]
    Timeout {
        /// The socket.
        path: PathBuf,
        /// How long the client waited.
        patience: Duration,
    },
    /// No runtime to wait with.
    #[error("cannot start waiting for an answer")]
    Runtime(#[source] io::Error),
}

/// A daemon's API socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
    /// If None, the default of the request.
    patience: Option<Duration>,
}

impl Client {
    /// The daemon whose API socket is at `path`; nothing is connected yet.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), patience: None }
    }

    /// A client of the same daemon that waits this long for an answer.
    #[must_use]
    pub fn within(&self, patience: Duration) -> Self {
        Self { patience: Some(patience), ..self.clone() }
    }

    /// Ask, wait, and read the answer as `T`, the content of the request's response. A busy daemon
    /// is asked again: the process that takes over answers on the same socket.
    ///
    /// # Errors
    /// [`ClientError`]; [`ClientError::Refused`] is the daemon's own.
    pub fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let usual = match request {
            Request::Upgrade(_) => UPGRADE_WAIT_MAX,
            _ => ANSWER_WAIT_MAX,
        };
        let patience = self.patience.unwrap_or(usual);
        let deadline = Instant::now() + patience;
        let late = || ClientError::Timeout { path: self.path.clone(), patience };
        loop {
            match self.ask(request, deadline).and_then(|answer| answer.ok_or_else(late)) {
                Err(ClientError::Refused(error))
                    if error.code == ErrorCode::Busy && Instant::now() + BUSY_PAUSE < deadline =>
                {
                    std::thread::sleep(BUSY_PAUSE);
                }
                answer => return answer,
            }
        }
    }

    /// Ask once; None if there is no answer by the deadline.
    fn ask<T: DeserializeOwned>(
        &self,
        request: &Request,
        deadline: Instant,
    ) -> Result<Option<T>, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(ClientError::Runtime)?;
        let unreachable = |source| ClientError::Unreachable { path: self.path.clone(), source };
        let Some(stream) = connect(&self.path, deadline).map_err(unreachable)? else {
            return Ok(None);
        };
        let exchange = async {
            let exchange = self.exchange(stream, request);
            tokio::time::timeout_at(deadline.into(), exchange).await
        };
        let Ok(answer) = runtime.block_on(exchange) else { return Ok(None) };
        let (status, body) = answer?;
        let malformed = |source| ClientError::Answer { status, source };
        if status.is_success() {
            return serde_json::from_slice(&body).map(Some).map_err(malformed);
        }
        let body: ErrorBody = serde_json::from_slice(&body).map_err(malformed)?;
        Err(body.error.into())
    }

    async fn exchange(
        &self,
        stream: std::os::unix::net::UnixStream,
        request: &Request,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let unreachable = |source| ClientError::Unreachable { path: self.path.clone(), source };
        let stream = UnixStream::from_std(stream).map_err(unreachable)?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        let answer = sender.send_request(http_request(request)?).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        Ok((status, body.map_err(ClientError::Body)?.to_bytes()))
    }
}

/// Connect, queued behind the others while the backlog is full; None if it is not our turn by the
/// deadline.
fn connect(path: &Path, deadline: Instant) -> io::Result<Option<std::os::unix::net::UnixStream>> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    // The timeout holds for connect(2) on a Unix socket as well (Linux, unix_stream_connect).
    set_socket_timeout(&socket, Timeout::Send, Some(left))?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => {}
        Err(Errno::AGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    }
    let stream = std::os::unix::net::UnixStream::from(socket);
    stream.set_nonblocking(true)?;
    Ok(Some(stream))
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

/// A path that ends in a name, percent-encoded (RFC 3986, 2.1 and 2.3).
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
    fn whoever_accepts_and_never_answers_or_does_not_accept_is_named_with_the_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // A backlog smaller than the number of descriptors that a shell allows.
        rustix::net::listen(&listener, 8).unwrap();
        let client = Client::new(&path).within(Duration::from_millis(1100));
        let mut waiting = Vec::new();
        // In the second turn the backlog is full: nobody more may wait to be accepted.
        loop {
            let began = Instant::now();
            let error = client.call::<serde_json::Value>(&Request::Stats).unwrap_err();
            let took = began.elapsed();
            assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
            let told = error.to_string();
            assert!(told.contains("/s did not answer within 1 seconds"), "{told}");
            assert!((1.0..10.0).contains(&took.as_secs_f64()), "{took:?}");
            if !waiting.is_empty() {
                break;
            }
            while let Ok(Some(more)) = connect(&path, Instant::now()) {
                waiting.push(more);
            }
        }
    }

    #[test]
    fn a_name_cannot_leave_its_place_in_the_path() {
        assert_eq!(named("/v1/ports/", "vm-1.a"), "/v1/ports/vm-1.a");
        assert_eq!(named("/v1/ports/", "../a b?"), "/v1/ports/..%2Fa%20b%3F");
    }
}
