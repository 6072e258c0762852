//! The peer of each failed request: one line of the log for each, within bounds.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{Extension, Request, State};
use axum::http::Method;
use axum::middleware::Next;
use axum::response::Response;
use tokio::net::UnixStream;

use super::api::ApiError;
use crate::report::bounded;

/// Most lines in a window. A client that fails in a loop must not fill the log.
const LINES_MAX: u32 = 20;
/// How long a window is.
const WINDOW: Duration = Duration::from_secs(60);

/// The peer of a connection, as the kernel reports it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Peer {
    uid: Option<u32>,
    pid: Option<i32>,
}

impl Peer {
    /// At the other end of this connection.
    pub fn of(stream: &UnixStream) -> Self {
        match stream.peer_cred() {
            Ok(credentials) => Self { uid: Some(credentials.uid()), pid: credentials.pid() },
            Err(_unknown) => Self::default(),
        }
    }

    /// The name of its program, which is its own to choose; empty if it has ended.
    fn program(self) -> String {
        let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        self.pid.and_then(name).unwrap_or_default().trim_end().to_owned()
    }
}

/// The lines that may still be logged.
#[derive(Debug, Default)]
pub(super) struct Budget(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    started: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Budget {
    /// Whether one more line may be logged at `now`; if so, how many were left out before it.
    fn take(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.started.is_none_or(|started| now.duration_since(started) >= WINDOW) {
            *window = Window { started: Some(now), lines: 0, left_out: window.left_out };
        }
        if window.lines == LINES_MAX {
            window.left_out += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.left_out))
    }
}

/// Answer a request, and log it if it failed. The error is among the answer's extensions.
pub(super) async fn failures(
    State(budget): State<Arc<Budget>>,
    Extension(peer): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    if let Some(error) = response.extensions().get::<ApiError>()
        && let Some(left_out) = budget.take(Instant::now())
    {
        let status = response.status().as_u16();
        log(peer, &FailedRequest { method, path, status, error, left_out });
    }
    response
}

/// A request that was answered with an error.
struct FailedRequest<'e> {
    method: Method,
    path: String,
    status: u16,
    error: &'e ApiError,
    /// Lines about other requests before this one that were left out.
    left_out: u64,
}

/// A failed GET is only info: it changes nothing, and many clients probe that way.
fn log(peer: Peer, request: &FailedRequest<'_>) {
    let Peer { uid, pid } = peer;
    let &FailedRequest { ref method, ref path, status, error, left_out } = request;
    let (program, error, path) = (peer.program(), &error.message, bounded(path));
    if *method == Method::GET {
        tracing::info!(
            %method, path, status, uid, pid, ?program, ?error, left_out, "request failed"
        );
    } else {
        tracing::warn!(
            %method, path, status, uid, pid, ?program, ?error, left_out, "request failed"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_those_left_out_are_counted() {
        let (budget, start) = (Budget::default(), Instant::now());
        for _ in 0..LINES_MAX {
            assert_eq!(budget.take(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(budget.take(start), None);
        }
        assert_eq!(budget.take(start + WINDOW), Some(1000));
        assert_eq!(budget.take(start + WINDOW), Some(0));
    }
}
