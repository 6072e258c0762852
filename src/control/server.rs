//! The interface as HTTP/1.1 and JSON on a Unix socket.
//!
//! One route per request; the body is the answer, or `{"error": {"code", "message"}}` with a
//! status that says the same. Who may connect is decided by the socket file's permissions. A
//! [`Service`] may block, so each request runs on a thread of its own.

use std::io;
use std::os::unix::net::UnixListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Json, Response as HttpResponse};
use axum::routing::{get, post, put};
use futures_util::future::{Either, select};
use serde::de::DeserializeOwned;

use super::api::{ApiError, ErrorBody, ErrorCode, Request};
use super::{Response, Service};

/// Largest request body, bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;
/// How long requests in flight may keep a daemon that is stopping.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

type Shared = State<Arc<dyn Service>>;

/// Answer requests on `listener` until `shutdown` completes and the requests in flight are done,
/// or have had their time.
///
/// # Errors
/// The listener is of no use to the runtime; a connection that fails is nobody else's concern.
pub async fn serve(
    listener: UnixListener,
    service: Arc<dyn Service>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let (stopping, stopped) = tokio::sync::oneshot::channel();
    let signal = async move {
        shutdown.await;
        // The receiver is gone only when serving has ended already.
        let _ = stopping.send(());
    };
    let serving = axum::serve(listener, router(service)).with_graceful_shutdown(signal);
    let overdue = async move {
        let _ = stopped.await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    match select(pin!(serving.into_future()), pin!(overdue)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right(((), _)) => Ok(()),
    }
}

fn router(service: Arc<dyn Service>) -> Router {
    Router::new()
        .route("/v1/ports", get(list_ports).post(add_port))
        .route("/v1/ports/{name}", get(show_port).delete(delete_port))
        .route("/v1/ports/{name}/profile", put(set_profile))
        .route("/v1/uplinks", get(list_uplinks))
        .route("/v1/profiles", get(list_profiles))
        .route("/v1/profiles/{name}", get(show_profile))
        .route("/v1/stats", get(stats))
        .route("/v1/version", get(version))
        .route("/v1/upgrade", post(upgrade))
        .fallback(async || failure(StatusCode::NOT_FOUND, no_route()))
        .method_not_allowed_fallback(async || {
            let message = "this method is not for this path";
            let error = ApiError::new(ErrorCode::Invalid, message);
            failure(StatusCode::METHOD_NOT_ALLOWED, error)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(service)
}

fn no_route() -> ApiError {
    let message = "there is no such path; known: /v1/ports, /v1/ports/NAME, \
                   /v1/ports/NAME/profile, /v1/uplinks, /v1/profiles, /v1/profiles/NAME, \
                   /v1/stats, /v1/version, /v1/upgrade";
    ApiError::new(ErrorCode::NotFound, message)
}

async fn list_ports(State(service): Shared) -> HttpResponse {
    answer(service, Request::ListPorts).await
}

async fn show_port(State(service): Shared, Path(name): Path<String>) -> HttpResponse {
    answer(service, Request::ShowPort(name)).await
}

async fn add_port(State(service): Shared, body: Result<Bytes, BytesRejection>) -> HttpResponse {
    match content(body, "port") {
        Ok(port) => answer(service, Request::AddPort(port)).await,
        Err(refusal) => refusal,
    }
}

async fn set_profile(
    State(service): Shared,
    Path(name): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> HttpResponse {
    match content(body, "change of a profile") {
        Ok(change) => answer(service, Request::SetProfile(name, change)).await,
        Err(refusal) => refusal,
    }
}

/// What the body says, or the answer to one that says nothing of the kind.
#[allow(clippy::result_large_err, reason = "it is the answer, and is sent at once")]
fn content<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
    kind: &str,
) -> Result<T, HttpResponse> {
    let body = body.map_err(|rejection| {
        let error = ApiError::new(ErrorCode::Invalid, rejection.body_text());
        failure(rejection.status(), error)
    })?;
    serde_json::from_slice(&body).map_err(|error| {
        let message = format!("the body is no {kind}: {error}");
        failure(StatusCode::BAD_REQUEST, ApiError::new(ErrorCode::Invalid, message))
    })
}

async fn delete_port(State(service): Shared, Path(name): Path<String>) -> HttpResponse {
    answer(service, Request::DeletePort(name)).await
}

async fn list_uplinks(State(service): Shared) -> HttpResponse {
    answer(service, Request::ListUplinks).await
}

async fn list_profiles(State(service): Shared) -> HttpResponse {
    answer(service, Request::ListProfiles).await
}

async fn show_profile(State(service): Shared, Path(name): Path<String>) -> HttpResponse {
    answer(service, Request::ShowProfile(name)).await
}

async fn stats(State(service): Shared) -> HttpResponse {
    answer(service, Request::Stats).await
}

async fn version(State(service): Shared) -> HttpResponse {
    answer(service, Request::Version).await
}

async fn upgrade(State(service): Shared, body: Result<Bytes, BytesRejection>) -> HttpResponse {
    match content(body, "upgrade") {
        Ok(upgrade) => answer(service, Request::Upgrade(upgrade)).await,
        Err(refusal) => refusal,
    }
}

async fn answer(service: Arc<dyn Service>, request: Request) -> HttpResponse {
    let creates = matches!(request, Request::AddPort(_));
    let status = if creates { StatusCode::CREATED } else { StatusCode::OK };
    let call = tokio::task::spawn_blocking(move || service.call(request));
    match call.await {
        Ok(Ok(response)) => success(status, &response),
        Ok(Err(error)) => failure(status_of(error.code), error),
        Err(panic) => {
            tracing::error!(%panic, "a request failed in us");
            let error = ApiError::new(ErrorCode::Internal, "the request failed; see the log");
            failure(StatusCode::INTERNAL_SERVER_ERROR, error)
        }
    }
}

fn success(status: StatusCode, response: &Response) -> HttpResponse {
    (status, Json(response)).into_response()
}

fn failure(status: StatusCode, error: ApiError) -> HttpResponse {
    (status, Json(ErrorBody { error })).into_response()
}

fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::NotFound => StatusCode::NOT_FOUND,
        ErrorCode::Exists | ErrorCode::Refused => StatusCode::CONFLICT,
        ErrorCode::Invalid => StatusCode::BAD_REQUEST,
        ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
