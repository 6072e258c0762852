//! The interface as HTTP/1.1 and JSON on a Unix socket.
//!
//! One route per request; the body is the answer, or `{"error": {"code", "message", "reasons"}}`
//! with the matching status. Every answer to an HTTP request is JSON. The socket file's permissions
//! decide who may connect; failed requests are logged with their peers. A [`Service`] may block, so
//! each request runs on a thread of its own (`connections`).

use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{
    DefaultBodyLimit, Extension, FromRequest, FromRequestParts, Path, Request as HttpRequest, State,
};
use axum::http::request::Parts;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse, Json, Response as HttpResponse};
use axum::routing::{get, post, put};
use serde::de::DeserializeOwned;

use super::api::{ApiError, ErrorBody, ErrorCode, ProfileChange, Request, Upgrade};
use super::audit::{self, Budget, Peer};
use super::connections::{self, RequestWorker};
use super::{Response, Service};
use crate::config::PortConfig;

/// Largest request body, bytes.
const BODY_BYTES_MAX: usize = 64 * 1024;

type Shared = State<(Arc<dyn Service>, RequestWorker)>;

/// Answer requests on `listener` until `shutdown` completes and the requests in flight are done, or
/// have run out of time.
///
/// # Errors
/// The runtime cannot use the listener; the failure of a connection is no error here.
pub async fn serve(
    listener: UnixListener,
    service: Arc<dyn Service>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let budget = Arc::new(Budget::default());
    let router = move |peer, worker| router(Arc::clone(&service), &budget, peer, worker);
    connections::serve(listener, router, shutdown).await;
    Ok(())
}

/// Answers the requests of one connection.
fn router(
    service: Arc<dyn Service>,
    budget: &Arc<Budget>,
    peer: Peer,
    worker: RequestWorker,
) -> Router {
    Router::new()
        .route("/v1/ports", get(list_ports).post(add_port))
        .route("/v1/ports/{name}", get(show_port).put(put_port).delete(delete_port))
        .route("/v1/ports/{name}/profile", put(set_profile))
        .route("/v1/uplinks", get(list_uplinks))
        .route("/v1/profiles", get(list_profiles))
        .route("/v1/profiles/{name}", get(show_profile))
        .route("/v1/stats", get(stats))
        .route("/v1/version", get(version))
        .route("/v1/health", get(health))
        .route("/v1/upgrade", post(upgrade))
        .fallback(async |uri: Uri| Failure::from(no_route(&uri)))
        .method_not_allowed_fallback(async |method: Method, uri: Uri| {
            let message =
                format!("{} takes no {method}; the header Allow has what it takes", uri.path());
            Failure::invalid(StatusCode::METHOD_NOT_ALLOWED, message)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(Arc::clone(budget), audit::failures))
        .layer(Extension(peer))
        .with_state((service, worker))
}

fn no_route(uri: &Uri) -> ApiError {
    let message = format!(
        "there is no path {}; known: /v1/ports, /v1/ports/NAME, /v1/ports/NAME/profile, \
         /v1/uplinks, /v1/profiles, /v1/profiles/NAME, /v1/stats, /v1/version, /v1/health, \
         /v1/upgrade",
        uri.path()
    );
    ApiError::new(ErrorCode::NotFound, message)
}

/// A request that failed.
struct Failure {
    status: StatusCode,
    error: ApiError,
}

impl Failure {
    /// A failure because the request is not well formed.
    fn invalid(status: StatusCode, message: String) -> Self {
        Self { status, error: ApiError::new(ErrorCode::Invalid, message) }
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        let status = StatusCode::from_u16(error.code.status());
        Self { status: status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), error }
    }
}

impl IntoResponse for Failure {
    /// The error itself goes along, for `audit`.
    fn into_response(self) -> HttpResponse {
        let Self { status, error } = self;
        let mut response = (status, Json(ErrorBody { error: error.clone() })).into_response();
        response.extensions_mut().insert(error);
        response
    }
}

/// A name in the path, percent-encoded UTF-8 (RFC 3986, 2.1).
struct Name(String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(rejection) => {
                let path = parts.uri.path();
                let message =
                    format!("the name in {path} cannot be read: {}", rejection.body_text());
                Err(Failure::invalid(rejection.status(), message))
            }
        }
    }
}

/// The content that a body may have.
trait Content: DeserializeOwned {
    /// Its name, and an example.
    const KIND: &'static str;
}

impl Content for PortConfig {
    const KIND: &'static str =
        r#"port: {"name": ..., "socket": ..., "profile": ..., "uplink": ...}"#;
}

impl Content for ProfileChange {
    const KIND: &'static str = r#"change of a profile: {"profile": ...}"#;
}

impl Content for Upgrade {
    const KIND: &'static str = r#"upgrade: {} or {"binary": ...}"#;
}

/// A body, which is one object.
struct Object<T>(T);

impl<T: Content, S: Send + Sync> FromRequest<S> for Object<T> {
    type Rejection = Failure;

    async fn from_request(request: HttpRequest, state: &S) -> Result<Self, Failure> {
        let body = Bytes::from_request(request, state).await.map_err(|rejection| {
            let limit = format!("a body may have {BODY_BYTES_MAX} bytes");
            Failure::invalid(rejection.status(), format!("{}; {limit}", rejection.body_text()))
        })?;
        content(&body).map(Self).map_err(|problem| {
            let message = format!("the body is no {}: {problem}", T::KIND);
            Failure::invalid(StatusCode::BAD_REQUEST, message)
        })
    }
}

/// The content of a body, or what is wrong with it and where. Arrays are refused: serde would take
/// an array for an object whose fields it has in order.
fn content<T: Content>(body: &[u8]) -> Result<T, String> {
    match body.iter().position(|byte| !byte.is_ascii_whitespace()) {
        None => Err("it is empty".to_owned()),
        Some(place) if body[place] != b'{' => Err(format!("byte {place} begins no object")),
        Some(_) => serde_json::from_slice(body).map_err(|error| error.to_string()),
    }
}

/// An answer, or the reason for none.
type Outcome = Result<HttpResponse, Failure>;

async fn list_ports(State(shared): Shared) -> Outcome {
    answer(shared, Request::ListPorts).await
}

async fn show_port(State(shared): Shared, Name(name): Name) -> Outcome {
    answer(shared, Request::ShowPort(name)).await
}

async fn add_port(State(shared): Shared, Object(port): Object<PortConfig>) -> Outcome {
    answer(shared, Request::AddPort(port)).await
}

async fn put_port(
    State(shared): Shared,
    Name(name): Name,
    Object(port): Object<PortConfig>,
) -> Outcome {
    if port.name != name {
        let message = format!("the path is that of port {name:?}, and the body of {:?}", port.name);
        return Err(Failure::invalid(StatusCode::BAD_REQUEST, message));
    }
    answer(shared, Request::PutPort(port)).await
}

async fn set_profile(
    State(shared): Shared,
    Name(name): Name,
    Object(change): Object<ProfileChange>,
) -> Outcome {
    answer(shared, Request::SetProfile(name, change)).await
}

async fn delete_port(State(shared): Shared, Name(name): Name) -> Outcome {
    answer(shared, Request::DeletePort(name)).await
}

async fn list_uplinks(State(shared): Shared) -> Outcome {
    answer(shared, Request::ListUplinks).await
}

async fn list_profiles(State(shared): Shared) -> Outcome {
    answer(shared, Request::ListProfiles).await
}

async fn show_profile(State(shared): Shared, Name(name): Name) -> Outcome {
    answer(shared, Request::ShowProfile(name)).await
}

async fn stats(State(shared): Shared) -> Outcome {
    answer(shared, Request::Stats).await
}

async fn version(State(shared): Shared) -> Outcome {
    answer(shared, Request::Version).await
}

async fn health(State(shared): Shared) -> Outcome {
    answer(shared, Request::Health).await
}

async fn upgrade(State(shared): Shared, Object(upgrade): Object<Upgrade>) -> Outcome {
    answer(shared, Request::Upgrade(upgrade)).await
}

async fn answer((service, worker): (Arc<dyn Service>, RequestWorker), request: Request) -> Outcome {
    match worker.run(move || service.call(request)).await {
        Ok(Ok(response)) => Ok(success(&response)),
        Ok(Err(error)) => Err(error.into()),
        Err(panic) => {
            tracing::error!(%panic, "a request failed in us");
            Err(ApiError::new(ErrorCode::Internal, "the request failed; see the log").into())
        }
    }
}

fn success(response: &Response) -> HttpResponse {
    let made = matches!(response, Response::Made(_));
    let status = if made { StatusCode::CREATED } else { StatusCode::OK };
    (status, Json(response)).into_response()
}
