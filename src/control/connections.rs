//! The API's connections, all of them: every wait has an end, and none locks another out.
//!
//! A connection is closed when no request of its own has been worked on for [`IDLE_MAX`]: it is
//! idle, or its client is slow to send a request or to read the answer. Of more than
//! [`CONNECTIONS_MAX`] the oldest that is idle makes room for the next. Only requests that are
//! worked on do not: there are as many at once, and a client that hangs up does not end its own.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::net::{UnixListener, UnixStream};
use tokio::select;
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};

use super::audit::Peer;

/// Most bytes of a request's line and headers.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// Most connections, and most requests that are worked on.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may be open without a request that is worked on.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long nobody is accepted when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long a connection that was accepted last may take to ask something.
const QUESTION_GRACE: Duration = Duration::from_millis(100);
/// How long requests in flight may keep a daemon that is stopping.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Accept connections, each with a router of its own, until `shutdown` completes and the requests
/// in flight are done, or have had their time.
pub(super) async fn serve(
    listener: UnixListener,
    router: impl Fn(Peer, Worker) -> Router,
    shutdown: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (mut open, mut connections) = (Open::default(), JoinSet::new());
    let mut stopping = pin!(shutdown);
    let (stop, stopped) = watch::channel(());
    loop {
        let stream = select! {
            () = &mut stopping => break,
            Some(_) = connections.join_next() => continue,
            stream = accept(&listener) => stream,
        };
        if !open.make_room() {
            tracing::warn!("the API has as many requests as it takes: a connection was refused");
            continue;
        }
        let activity = Activity::new();
        let closed = open.add(&activity);
        let worker = Worker { activity: Arc::clone(&activity), permits: Arc::clone(&permits) };
        let router = router(Peer::of(&stream), worker);
        connections.spawn(connection(stream, router, (activity, closed), stopped.clone()));
    }
    // Whoever connects from here on reaches the process that takes over, if there is one. Those
    // accepted get the time to ask, and are answered.
    drop(listener);
    wait(&mut connections, QUESTION_GRACE).await;
    drop(stop);
    // What is left after that ends with the set.
    wait(&mut connections, SHUTDOWN_GRACE).await;
}

/// Until all connections have ended, or for so long.
async fn wait(connections: &mut JoinSet<()>, at_most: Duration) {
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(at_most, ended).await;
}

/// The next connection, as soon as there is one and a descriptor for it.
async fn accept(listener: &UnixListener) -> UnixStream {
    let mut told = false;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::error!(%error, "the API takes no connections until there is room");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serve one connection until it ends, is idle for too long, or has to make room. When the daemon
/// stops, the request that is worked on is still answered.
async fn connection(
    stream: UnixStream,
    router: Router,
    (activity, closed): (Arc<Activity>, oneshot::Receiver<()>),
    mut stopped: watch::Receiver<()>,
) {
    let mut protocol = http1::Builder::new();
    // `overdue` has an eye on the time.
    protocol.header_read_timeout(None).max_buf_size(HEADER_BYTES_MAX).max_headers(HEADERS_MAX);
    let service = TowerToHyperService::new(router);
    let mut serving = pin!(protocol.serve_connection(TokioIo::new(stream), service));
    let mut stopping = false;
    let mut ends = pin!(async {
        select! {
            () = activity.overdue() => {}
            Ok(()) = closed => {}
        }
    });
    loop {
        select! {
            // A connection that fails is nobody else's concern.
            _ = &mut serving => return,
            () = &mut ends => return,
            _ = stopped.changed(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// Works on the requests of a connection.
#[derive(Clone)]
pub(super) struct Worker {
    activity: Arc<Activity>,
    /// One for each request that is worked on, of whatever connection.
    permits: Arc<Semaphore>,
}

impl Worker {
    /// Do this on a thread that may block. It is done whether or not its client still waits.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        // Not busy while it waits: then it is one of those that make room.
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        self.activity.set(true);
        let outcome = spawn_blocking(move || {
            let _until_done = permit;
            work()
        });
        let outcome = outcome.await;
        self.activity.set(false);
        outcome
    }
}

/// Whether a connection has a request that is worked on, and since when that is so.
struct Activity(Mutex<(bool, Instant)>);

impl Activity {
    fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new((false, Instant::now()))))
    }

    fn state(&self) -> MutexGuard<'_, (bool, Instant)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, busy: bool) {
        *self.state() = (busy, Instant::now());
    }

    fn is_busy(&self) -> bool {
        self.state().0
    }

    /// Returns when it has been idle for as long as it may.
    async fn overdue(&self) {
        loop {
            let (busy, since) = *self.state();
            let due = since + IDLE_MAX;
            if !busy && due <= Instant::now() {
                return;
            }
            let next = if busy { Instant::now() + IDLE_MAX } else { due };
            tokio::time::sleep_until(next.into()).await;
        }
    }
}

/// The connections that are open, in the order they came.
#[derive(Default)]
struct Open(VecDeque<(Arc<Activity>, oneshot::Sender<()>)>);

impl Open {
    /// Have room for one more, if need be by closing the oldest that is idle; false if there is
    /// none such.
    fn make_room(&mut self) -> bool {
        self.0.retain(|(_, close)| !close.is_closed());
        if self.0.len() < CONNECTIONS_MAX {
            return true;
        }
        let idle = self.0.iter().position(|(activity, _)| !activity.is_busy());
        let Some((_, close)) = idle.and_then(|idle| self.0.remove(idle)) else { return false };
        // It has ended already if it does not hear it.
        let _ = close.send(());
        true
    }

    fn add(&mut self, activity: &Arc<Activity>) -> oneshot::Receiver<()> {
        let (close, closed) = oneshot::channel();
        self.0.push_back((Arc::clone(activity), close));
        closed
    }
}
