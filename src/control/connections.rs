//! The API's connections: every wait has an end, and no connection locks another out.
//!
//! A connection is closed after [`IDLE_MAX`] without a request of its own that is worked on. It is
//! idle, or its client is slow to send a request or to read the answer.
//!
//! There are at most [`CONNECTIONS_MAX`]: the oldest idle one is closed for the next. A connection
//! that has just come, or was just answered, is not idle yet ([`FRESH`]), nor is one whose request
//! is worked on. If none is idle, the next connection waits, and those after it wait to be
//! accepted. Then a connection that was answered closes after its next answer, so that clients that
//! ask without end do not keep others out. A client that hangs up does not end its request.

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
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet, spawn_blocking};

use super::audit::Peer;

/// Most bytes of a request's line and headers.
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// Most connections, and most requests that are worked on at once.
const CONNECTIONS_MAX: usize = 64;
/// How long a connection may be open without a request that is worked on.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// How long a connection has for its first request, and to take an answer, even if others wait.
const FRESH: Duration = Duration::from_millis(250);
/// How often to check whether there is room.
const ROOM_RETRY: Duration = Duration::from_millis(10);
/// How long to accept nobody when no descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long the connection that was accepted last may take to send a request.
const QUESTION_GRACE: Duration = Duration::from_millis(100);
/// How long a daemon that is stopping waits for requests in flight.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

/// Accept connections, each with a router of its own, until `shutdown` completes and the requests
/// in flight are done, or have had their time.
pub(super) async fn serve(
    listener: UnixListener,
    router: impl Fn(Peer, RequestWorker) -> Router,
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
        let room = async {
            while !open.make_room() {
                tokio::time::sleep(ROOM_RETRY).await;
            }
        };
        // The connection was accepted, so it is answered even while the daemon stops.
        let stops = select! {
            () = &mut stopping => true,
            () = room => false,
        };
        let activity = Activity::new();
        let closed = open.add(&activity);
        let worker =
            RequestWorker { activity: Arc::clone(&activity), permits: Arc::clone(&permits) };
        let router = router(Peer::of(&stream), worker);
        connections.spawn(connection(stream, router, activity, closed, stopped.clone()));
        if stops {
            break;
        }
    }
    // A client that connects from here on reaches the process that takes over, if there is one.
    // Accepted connections get the time to send a request, and are answered.
    drop(listener);
    wait(&mut connections, QUESTION_GRACE).await;
    drop(stop);
    // Connections that still remain are closed when the set is dropped.
    wait(&mut connections, SHUTDOWN_GRACE).await;
}

/// Wait until all connections have ended, at most this long.
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
    activity: Arc<Activity>,
    mut closed: UnboundedReceiver<Closing>,
    mut stopped: watch::Receiver<()>,
) {
    let mut protocol = http1::Builder::new();
    // A request that was sent already is read before the connection is judged idle.
    activity.begin();
    // `overdue` bounds the time instead.
    protocol.header_read_timeout(None).max_buf_size(HEADER_BYTES_MAX).max_headers(HEADERS_MAX);
    let service = TowerToHyperService::new(router);
    let mut serving = pin!(protocol.serve_connection(TokioIo::new(stream), service));
    let mut stopping = false;
    let mut overdue = pin!(activity.overdue());
    loop {
        select! {
            // A connection's failure concerns nobody else.
            _ = &mut serving => return,
            () = &mut overdue => return,
            Some(closing) = closed.recv() => match closing {
                Closing::AfterAnswer => serving.as_mut().graceful_shutdown(),
                Closing::Now => return,
            },
            _ = stopped.changed(), if !stopping => {
                stopping = true;
                serving.as_mut().graceful_shutdown();
            }
        }
    }
}

/// How a connection makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closing {
    Now,
    /// It has had one answer, and may have sent another request.
    AfterAnswer,
}

/// Works on the requests of a connection.
#[derive(Clone)]
pub(super) struct RequestWorker {
    activity: Arc<Activity>,
    /// One permit for each request that is worked on, of all connections.
    permits: Arc<Semaphore>,
}

impl RequestWorker {
    /// Do this on a thread that may block. It is completed even if the client has gone.
    pub async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        // It is idle while it waits for a permit, and so may be closed to make room.
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

/// The state of a connection.
struct Activity(Mutex<Now>);

#[derive(Clone, Copy)]
struct Now {
    /// It was polled: from here on a delay is the client's.
    begun: bool,
    /// It has a request that is worked on.
    busy: bool,
    /// Since when `busy` is as it is.
    since: Instant,
    /// It had an answer.
    answered: bool,
}

impl Activity {
    fn new() -> Arc<Self> {
        let (begun, busy, since, answered) = (false, false, Instant::now(), false);
        Arc::new(Self(Mutex::new(Now { begun, busy, since, answered })))
    }

    fn begin(&self) {
        let mut state = self.state();
        *state = Now { begun: true, since: Instant::now(), ..*state };
    }

    fn state(&self) -> MutexGuard<'_, Now> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, busy: bool) {
        let mut state = self.state();
        let answered = state.answered || !busy;
        *state = Now { busy, since: Instant::now(), answered, ..*state };
    }

    fn is_idle(&self) -> bool {
        let Now { begun, busy, since, .. } = *self.state();
        begun && !busy && since.elapsed() >= FRESH
    }

    fn was_answered(&self) -> bool {
        self.state().answered
    }

    /// Returns when it has been idle for the time allowed.
    async fn overdue(&self) {
        loop {
            let Now { busy, since, .. } = *self.state();
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
struct Open(VecDeque<OpenConnection>);

struct OpenConnection {
    activity: Arc<Activity>,
    close: UnboundedSender<Closing>,
    /// It was told to close after its next answer.
    is_leaving: bool,
}

impl Open {
    /// Make room for one more, if need be by closing the oldest idle connection; false if none is
    /// idle yet.
    fn make_room(&mut self) -> bool {
        self.0.retain(|open| !open.close.is_closed());
        if self.0.len() < CONNECTIONS_MAX {
            return true;
        }
        let idle = self.0.iter().position(|open| open.activity.is_idle());
        if let Some(open) = idle.and_then(|idle| self.0.remove(idle)) {
            // Sending fails only if it has ended already.
            let _ = open.close.send(Closing::Now);
            return true;
        }
        let may_leave =
            |open: &&mut OpenConnection| !open.is_leaving && open.activity.was_answered();
        if let Some(open) = self.0.iter_mut().find(may_leave) {
            open.is_leaving = true;
            let _ = open.close.send(Closing::AfterAnswer);
        }
        false
    }

    fn add(&mut self, activity: &Arc<Activity>) -> UnboundedReceiver<Closing> {
        let (close, closed) = unbounded_channel();
        let activity = Arc::clone(activity);
        self.0.push_back(OpenConnection { activity, close, is_leaving: false });
        closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(open: &mut Open) -> Vec<(Arc<Activity>, UnboundedReceiver<Closing>)> {
        let connect = |_| {
            assert!(open.make_room());
            let activity = Activity::new();
            let closed = open.add(&activity);
            (activity, closed)
        };
        (0..CONNECTIONS_MAX).map(connect).collect()
    }

    fn age(activity: &Activity) {
        activity.begin();
        activity.state().since -= FRESH;
    }

    #[test]
    fn the_oldest_that_is_idle_makes_room_and_none_that_has_just_come() {
        let mut open = Open::default();
        let mut all = full(&mut open);
        assert!(!open.make_room(), "all have just come");
        assert!(all.iter_mut().all(|(_, closed)| closed.try_recv().is_err()));
        age(&all[3].0);
        age(&all[5].0);
        all[3].0.state().busy = true;
        // The runtime has not polled it yet.
        all[1].0.state().since -= FRESH;
        assert!(open.make_room());
        assert_eq!(all[5].1.try_recv(), Ok(Closing::Now));
        assert!(all[3].1.try_recv().is_err(), "its request is worked on");
    }

    #[test]
    fn one_that_asks_without_end_closes_after_an_answer_and_is_one_of_all_until_then() {
        let mut open = Open::default();
        let mut all = full(&mut open);
        all[7].0.set(true);
        assert!(!open.make_room());
        all[7].0.set(false);
        assert!(!open.make_room() && !open.make_room());
        assert_eq!(all[7].1.try_recv(), Ok(Closing::AfterAnswer));
        assert!(all[7].1.try_recv().is_err(), "told once");
        drop(all.remove(7));
        assert!(open.make_room());
    }
}
