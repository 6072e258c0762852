//! A port's socket: gets connections, one session at a time, until stopped.
//!
//! One thread waits (for a connection, for the end of the session, for `stop`); each session runs
//! on another. As a server the socket accepts; as a client it connects and retries. It retries soon
//! at first, since a front-end that lost us listens again at once, then every half second. Both
//! survive any number of disconnects and reconnects, in whatever order the two sides start.
//!
//! It can pause (`ask_to_pause`), so that another process takes its session over. It can begin
//! paused (`start_paused`), to continue a session that another process had (`inherit`). A session
//! that does not pause in time is cut: the other process takes over a whole port, or its front-end
//! connects anew.
//!
//! Stopping a socket waits until its session has given its rings back, at most [`END_WAIT_MAX`]. A
//! session whose thread waits for something of its front-end's is left behind, and must be cut off
//! by its port. The listener, every connection and everything that leads to descriptors in
//! front-ends' messages are closed by the port's `DescriptorCloser`.
//!
//! It does not make or remove socket paths: a server's listener comes bound.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use crate::platform::descriptors::OpenFileLimit;

use super::deferred_close::{DeferredClose, DescriptorCloser};
use super::pause::{Connection, Continuation, ContinuedSession, PauseHandle, PausedSession};
use super::session::SessionEnd;
use super::wake_event::WakeEvent;

/// Between the first two attempts to connect; then twice as long each time.
const RETRY_FIRST: Duration = Duration::from_millis(10);
/// The longest time between two.
const RETRY_MAX: Duration = Duration::from_millis(500);
/// How long a new connection waits for the session before it to end.
const PATIENCE: Duration = Duration::from_secs(2);
/// Minimum time between the beginnings of two sessions. QEMU 7.2 connects anew at once, thousands
/// of times a second, to a backend that has fewer queue pairs than it wants. (`net_vhost_user_init`
/// of its net/vhost-user.c waits for a connection that it accepts.)
const PACE: Duration = Duration::from_millis(20);
/// How long a session may take to end. Its longest step of its own is to unmap its memory.
const END_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a session that was cut while another process waits may take to end.
const CUT_WAIT_MAX: Duration = Duration::from_millis(100);
/// A session shorter than this counts as one that came and went, ...
const SHORT: Duration = Duration::from_secs(1);
/// ... of which at most so many in a row are logged.
const LOGGED_MAX: u32 = 8;

/// Where connections come from.
#[derive(Debug)]
pub enum SocketSource {
    /// Front-ends connect to us.
    Listener(UnixListener),
    /// We connect to the front-end's socket at this path.
    Connect(PathBuf),
    /// One connection that exists already.
    Stream(UnixStream),
    /// Only the connection of the session with which it resumes.
    Inherited,
}

/// The state of a socket's session when it has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// There is none, and no worker has a ring of it.
    Whole,
    /// Its thread waits for something of its front-end's: workers may have rings of it. The port
    /// must take them back itself and refuse all further calls of the session.
    LeftBehind,
}

/// Runs one session to its end.
type Serve = Arc<dyn Fn(&mut Connection) -> SessionEnd + Send + Sync>;

/// The commands to the waiting thread.
enum SocketCommand {
    Stop,
    Pause { until: Instant, done: Sender<Option<PausedSession>>, resumed: Receiver<Resumption> },
}

/// How a socket that is paused resumes.
struct Resumption {
    /// The session of another process to continue with.
    session: Option<(ContinuedSession, Sender<()>)>,
    /// Disconnected when the other process has dropped its sender.
    ours: Receiver<()>,
}

/// A port's socket; stopped when dropped.
pub struct PortSocket {
    /// None if the socket was never started.
    way: Option<(Arc<WakeEvent>, Sender<SocketCommand>)>,
    /// Where front-ends connect, if they do; another process may take it over.
    listener: Option<Arc<DeferredClose<UnixListener>>>,
    closer: Arc<DescriptorCloser>,
    /// While it is paused: the way to have it resume.
    resume: Option<Sender<Resumption>>,
    thread: Option<JoinHandle<Ended>>,
}

impl fmt::Debug for PortSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortSocket").field("running", &self.thread.is_some()).finish()
    }
}

impl PortSocket {
    /// Begin to take connections for port `name`; `serve` runs each session on a thread of its
    /// own, one at a time.
    ///
    /// # Errors
    /// The kernel has no event descriptor or thread to give.
    pub fn start(
        source: SocketSource,
        name: &str,
        serve: impl Fn(&mut Connection) -> SessionEnd + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (socket, socket_thread) = Self::new(name, Arc::new(serve))?;
        socket.begin(socket_thread, source)
    }

    /// Like [`start`](Self::start), but take no connection before [`resume`](Self::resume).
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_paused(
        source: SocketSource,
        name: &str,
        serve: impl Fn(&mut Connection) -> SessionEnd + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let (mut socket, socket_thread) = Self::new(name, Arc::new(serve))?;
        socket.ask_to_pause(Instant::now());
        socket.begin(socket_thread, source)
    }

    fn new(name: &str, serve: Serve) -> io::Result<(Self, SocketThread)> {
        let wake = Arc::new(WakeEvent::new()?);
        let closer = DescriptorCloser::new(name);
        let (commands, received) = unbounded();
        let socket_thread = SocketThread {
            name: name.to_owned(),
            serve,
            closer: Arc::clone(&closer),
            ended: Ended::Whole,
            full: false,
            wake: Arc::clone(&wake),
            commands: received,
            live: None,
            waiting: None,
            attempt: (Instant::now(), RETRY_FIRST),
            begun: None,
            short: 0,
            failed: false,
        };
        let (listener, resume, thread) = (None, None, None);
        let way = Some((wake, commands));
        Ok((Self { way, listener, closer, resume, thread }, socket_thread))
    }

    /// A socket that takes no connection, as after [`stop`](Self::stop).
    #[must_use]
    pub fn stopped(name: &str) -> Self {
        let closer = DescriptorCloser::new(name);
        Self { way: None, listener: None, closer, resume: None, thread: None }
    }

    /// Whether it takes no connection any more.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.thread.is_none()
    }

    /// A stopped socket, in place of one for `source`. The closer closes `source`, since front-ends
    /// may have sent something there already.
    #[must_use]
    pub fn discard(source: SocketSource, name: &str) -> Self {
        let socket = Self::stopped(name);
        drop(ConnectionSource::of(source, &socket.closer));
        socket
    }

    fn begin(mut self, mut socket_thread: SocketThread, source: SocketSource) -> io::Result<Self> {
        let source = ConnectionSource::of(source, &self.closer);
        if let ConnectionSource::Listener(listener) = &source {
            listener.set_nonblocking(true)?;
            self.listener = Some(Arc::clone(listener));
        }
        let thread = std::thread::Builder::new()
            .name(format!("port {}", socket_thread.name))
            .spawn(move || socket_thread.run(source))?;
        self.thread = Some(thread);
        Ok(self)
    }

    /// Where front-ends connect, if they do.
    #[must_use]
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(|listener| listener.as_fd())
    }

    /// Have it take no connection, and pause its session between two messages, so that another
    /// process can take over both. A session that does not pause before the deadline ends: it is in
    /// half a message, say. Returns at once, so that all ports are asked before any is waited for.
    pub fn ask_to_pause(&mut self, until: Instant) -> PendingPause {
        let (done, paused) = bounded(1);
        let (resume, resumed) = bounded(1);
        self.resume = Some(resume);
        self.command(SocketCommand::Pause { until, done, resumed });
        PendingPause { paused, until }
    }

    /// Continue with the session and the connections as before the pause.
    pub fn resume(&mut self) {
        self.resume = None;
    }

    /// Continue where another process is paused, with its session if it had one. Messages and new
    /// connections are ours as soon as the sender of `ours` is dropped. The receiver tells that the
    /// session was replayed, or has ended because it could not be.
    pub fn inherit(
        &mut self,
        session: Option<ContinuedSession>,
        ours: Receiver<()>,
    ) -> Receiver<()> {
        let (followed, outcome) = bounded(1);
        let session = session.map(|session| (session, followed));
        if let Some(resume) = self.resume.take() {
            // Fails only if the socket has stopped.
            let _ = resume.send(Resumption { session, ours });
        }
        outcome
    }

    fn command(&self, command: SocketCommand) {
        let Some((wake, commands)) = &self.way else { return };
        // If the socket has stopped, nobody receives it, and nothing is left to do.
        let _ = commands.send(command);
        wake.signal();
    }

    /// Begin to [`stop`](Self::stop), without waiting.
    pub fn begin_stop(&mut self) {
        self.resume = None;
        self.command(SocketCommand::Stop);
    }

    /// End the session, if there is one, and take no more. Returns when nobody has its rings, or it
    /// is left behind. Does nothing the second time.
    pub fn stop(&mut self) -> Ended {
        let Some(thread) = self.thread.take() else { return Ended::Whole };
        self.begin_stop();
        thread.join().unwrap_or_else(|_| {
            tracing::error!("the thread of a port's socket has panicked");
            Ended::LeftBehind
        })
    }
}

/// A port's socket that was asked to pause.
#[derive(Debug)]
pub struct PendingPause {
    paused: Receiver<Option<PausedSession>>,
    until: Instant,
}

impl PendingPause {
    /// The paused session, if there is one. Waits at most a little longer than the deadline.
    #[must_use]
    pub fn wait(self) -> Option<PausedSession> {
        // A socket that has stopped has no session. A socket whose thread does not answer hands
        // over nothing: it pauses before it accepts again.
        self.paused.recv_deadline(self.until + 2 * CUT_WAIT_MAX).ok().flatten()
    }
}

impl Drop for PortSocket {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where connections come from, as the waiting thread has it.
enum ConnectionSource {
    Listener(Arc<DeferredClose<UnixListener>>),
    Connect(PathBuf),
    Stream(DeferredClose<UnixStream>),
    Inherited,
}

impl ConnectionSource {
    fn of(source: SocketSource, closer: &Arc<DescriptorCloser>) -> Self {
        match source {
            SocketSource::Listener(listener) => {
                Self::Listener(Arc::new(DeferredClose::new(listener, closer)))
            }
            SocketSource::Connect(path) => Self::Connect(path),
            SocketSource::Stream(stream) => Self::Stream(DeferredClose::new(stream, closer)),
            SocketSource::Inherited => Self::Inherited,
        }
    }
}

/// A session that runs.
struct RunningSession {
    stream: Arc<DeferredClose<UnixStream>>,
    pause_handle: PauseHandle,
    thread: JoinHandle<()>,
    done: Arc<WakeEvent>,
}

/// The state of the waiting thread.
struct SocketThread {
    name: String,
    serve: Serve,
    closer: Arc<DescriptorCloser>,
    /// Whether all sessions so far gave their rings back.
    ended: Ended,
    /// Too many descriptors wait to be closed, which was logged then.
    full: bool,
    wake: Arc<WakeEvent>,
    commands: Receiver<SocketCommand>,
    live: Option<RunningSession>,
    /// A connection that came during a session, and its deadline.
    waiting: Option<(DeferredClose<UnixStream>, Instant)>,
    /// When to try to connect next, and how long to wait if that fails.
    attempt: (Instant, Duration),
    /// When the last session began.
    begun: Option<Instant>,
    /// Short sessions in a row.
    short: u32,
    /// Whether the last attempt failed, which was logged then.
    failed: bool,
}

/// The result of a wait.
struct Ready {
    commanded: bool,
    done: bool,
    connection: bool,
}

impl SocketThread {
    fn run(&mut self, source: ConnectionSource) -> Ended {
        let result = match source {
            ConnectionSource::Listener(listener) => self.run_server(&listener),
            ConnectionSource::Connect(path) => self.run_client(&path),
            ConnectionSource::Stream(stream) => self.run_once(stream),
            ConnectionSource::Inherited => self.run_inherited(),
        };
        if let Err(error) = result {
            tracing::error!(port = self.name, %error, "the port's socket cannot go on");
        }
        self.waiting = None;
        self.end_session();
        self.ended
    }

    /// Whether a connection may come: not while too many descriptors from front-ends wait to be
    /// closed.
    fn may_connect(&mut self) -> bool {
        let full = self.closer.is_full();
        if full && !std::mem::replace(&mut self.full, full) {
            tracing::error!(
                port = self.name,
                descriptors = self.closer.waiting(),
                "what front-ends sent does not close: no connection is taken until it does"
            );
        }
        self.full = full;
        !full
    }

    fn run_server(&mut self, listener: &UnixListener) -> io::Result<()> {
        loop {
            let may_connect = self.may_connect();
            let listening = Some(listener).filter(|_| self.waiting.is_none() && may_connect);
            let due = self.due().into_iter().chain(self.look_again()).min();
            let ready = self.wait(listening, due)?;
            if ready.commanded && self.obey() {
                return Ok(());
            }
            if ready.done {
                self.end_session();
            }
            if ready.connection {
                self.accept(listener);
            }
            self.serve_waiting();
        }
    }

    /// When to check again whether connections may come: no event tells.
    fn look_again(&self) -> Option<Instant> {
        self.full.then(|| Instant::now() + RETRY_MAX)
    }

    /// When something is to be done about the connection that waits.
    fn due(&self) -> Option<Instant> {
        let (_, deadline) = self.waiting.as_ref()?;
        match self.begun {
            Some(begun) if self.live.is_none() => Some(begun + PACE),
            _ => Some(*deadline),
        }
    }

    fn accept(&mut self, listener: &UnixListener) {
        match listener.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(false)?;
            Ok(stream)
        }) {
            Ok(stream) if OpenFileLimit::now().is_reserved(&stream) => self.refuse(&no_room()),
            Ok(stream) => {
                let stream = DeferredClose::new(stream, &self.closer);
                self.waiting = Some((stream, Instant::now() + PATIENCE));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                self.refuse(&error);
                // Out of descriptors, most likely: do not spin until there are some.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// A connection cannot be served; this is logged once until one can.
    fn refuse(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.failed, true) {
            tracing::error!(
                port = self.name, %error,
                "front-ends are refused until there is room; this is not logged again"
            );
        }
    }

    /// Begin the session of a connection that waits, or give up on it.
    fn serve_waiting(&mut self) {
        let Some((stream, deadline)) = self.waiting.take() else { return };
        let too_soon = self.begun.is_some_and(|begun| begun.elapsed() < PACE);
        if self.live.is_none() && !too_soon {
            self.begin_session(stream);
        } else if self.live.is_none() || Instant::now() < deadline {
            self.waiting = Some((stream, deadline));
        } else {
            tracing::warn!(
                port = self.name,
                "a second front-end connected while one is served, and was closed; \
                 a port serves one at a time"
            );
        }
    }

    fn run_client(&mut self, path: &Path) -> io::Result<()> {
        // It may be told to pause before it connects.
        if self.obey() {
            return Ok(());
        }
        loop {
            let (due, _) = self.attempt;
            if self.live.is_none() && due <= Instant::now() {
                self.try_connect(path);
                continue;
            }
            let ready = self.wait(None, Some(due).filter(|_| self.live.is_none()))?;
            if ready.commanded && self.obey() {
                return Ok(());
            }
            if ready.done {
                self.end_session();
                // A front-end that hangs up at once is not retried without a delay.
                if due + RETRY_MAX < Instant::now() {
                    self.attempt = (Instant::now() + RETRY_FIRST, RETRY_FIRST);
                }
            }
        }
    }

    fn try_connect(&mut self, path: &Path) {
        let (_, pause) = self.attempt;
        self.attempt = (Instant::now() + pause, (2 * pause).min(RETRY_MAX));
        if !self.may_connect() {
            return;
        }
        match connect_to(path) {
            Ok(stream) => {
                tracing::info!(port = self.name, path = %path.display(), "connected");
                let stream = DeferredClose::new(stream, &self.closer);
                self.begin_session(stream);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failed, true) {
                    tracing::warn!(
                        port = self.name, path = %path.display(), %error,
                        "cannot connect to the front-end's socket; trying again until it is there"
                    );
                }
            }
        }
    }

    fn run_once(&mut self, stream: DeferredClose<UnixStream>) -> io::Result<()> {
        self.begin_session(stream);
        while self.live.is_some() {
            let ready = self.wait(None, None)?;
            let stop = ready.commanded && self.obey();
            if stop || ready.done {
                self.end_session();
            }
        }
        Ok(())
    }

    /// Serve the session that another process had, and no other.
    fn run_inherited(&mut self) -> io::Result<()> {
        while !self.obey() && self.live.is_some() {
            if self.wait(None, None)?.done {
                self.end_session();
            }
        }
        Ok(())
    }

    /// Execute a command; returns whether it is to stop.
    fn obey(&mut self) -> bool {
        self.wake.clear();
        while let Ok(command) = self.commands.try_recv() {
            match command {
                SocketCommand::Stop => return true,
                SocketCommand::Pause { until, done, resumed } => self.pause(until, &done, &resumed),
            }
        }
        false
    }

    fn pause(
        &mut self,
        until: Instant,
        done: &Sender<Option<PausedSession>>,
        resumed: &Receiver<Resumption>,
    ) {
        let (session, resumes) = self.live.as_ref().and_then(|live| live.pause(until)).unzip();
        let busy = |live: &&RunningSession| session.is_none() && !live.thread.is_finished();
        if let Some(live) = self.live.as_ref().filter(busy) {
            tracing::warn!(
                port = self.name,
                "the session did not stand still in time for another process and was cut: \
                 its front-end connects anew"
            );
            live.cut();
        }
        // The receiver may only want to have it resume later.
        let _ = done.send(session);
        if let Ok(Resumption { session, ours }) = resumed.recv() {
            if let Some((ContinuedSession { stream, record }, followed)) = session {
                let stream = DeferredClose::new(stream, &self.closer);
                let ours = ours.clone();
                self.begin(stream, Some(Continuation { record, followed, ours }));
            }
            let _ = ours.recv();
        }
        drop(resumes);
    }

    fn begin_session(&mut self, stream: DeferredClose<UnixStream>) {
        let now = Instant::now();
        let short = self.begun.replace(now).is_some_and(|begun| now - begun < SHORT);
        self.short = if short { self.short.saturating_add(1) } else { 0 };
        if self.short == LOGGED_MAX {
            tracing::warn!(
                port = self.name,
                "front-ends come and go, which is logged no more: is queues= of QEMU's netdev more \
                 than the profile's queue pairs?"
            );
        }
        self.begin(stream, None);
    }

    fn begin(&mut self, stream: DeferredClose<UnixStream>, continued: Option<Continuation>) {
        match self.spawn(stream, continued) {
            Ok(live) => {
                self.failed = false;
                self.live = Some(live);
            }
            Err(error) => self.refuse(&error),
        }
    }

    fn spawn(
        &self,
        stream: DeferredClose<UnixStream>,
        continued: Option<Continuation>,
    ) -> io::Result<RunningSession> {
        let done = Arc::new(WakeEvent::new()?);
        let (stream, serve, name) = (Arc::new(stream), Arc::clone(&self.serve), self.name.clone());
        let closer = Arc::clone(&self.closer);
        let (connection, pause_handle) = Connection::new(Arc::clone(&stream), closer, continued)?;
        let signal_done = SignalOnDrop(Arc::clone(&done));
        let (logged, begun) = (self.short < LOGGED_MAX, Instant::now());
        let thread =
            std::thread::Builder::new().name(format!("session {name}")).spawn(move || {
                let _signal_done = signal_done;
                // Dropped before `_signal_done`: the connection is not ours any more when the
                // signal comes.
                let mut connection = connection;
                if logged {
                    tracing::info!(port = name, "front-end connected");
                }
                let end = serve(&mut connection);
                // The front-end need not wait for the connection to be closed.
                let _ = connection.shutdown(Shutdown::Both);
                match end {
                    SessionEnd::Disconnected if !logged && begun.elapsed() < SHORT => {}
                    SessionEnd::Disconnected => {
                        tracing::info!(port = name, "front-end disconnected");
                    }
                    end => {
                        let error: &(dyn std::error::Error + 'static) = &end;
                        tracing::warn!(port = name, error, "session ended");
                    }
                }
            })?;
        Ok(RunningSession { stream, pause_handle, thread, done })
    }

    /// Have the session end, if there is one, and wait until it has; if it does not, leave it
    /// behind.
    fn end_session(&mut self) {
        let Some(RunningSession { stream, thread, done, .. }) = self.live.take() else { return };
        // Fails where the front-end has closed already, which has the same effect.
        let _ = stream.shutdown(Shutdown::Both);
        if !done.wait_until(Instant::now() + END_WAIT_MAX) {
            self.ended = Ended::LeftBehind;
            tracing::error!(
                port = self.name,
                "the session's thread does not end, and is left behind: it waits for something of \
                 its front-end's"
            );
            return;
        }
        if thread.join().is_err() {
            tracing::error!(port = self.name, "the session's thread has panicked");
        }
    }

    /// Sleep until something happens or `deadline`.
    fn wait(
        &self,
        listener: Option<&UnixListener>,
        deadline: Option<Instant>,
    ) -> io::Result<Ready> {
        // poll(2) wants descriptors; where there is nothing to watch, watch ours twice.
        let done = self.live.as_ref().map_or(self.wake.as_fd(), |live| live.done.as_fd());
        let listening = listener.map_or(self.wake.as_fd(), AsFd::as_fd);
        let mut fds = [self.wake.as_fd(), done, listening]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left).expect("a deadline is at most seconds away")
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [commanded, done, connection] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            commanded,
            done: done && self.live.is_some(),
            connection: connection && listener.is_some(),
        })
    }
}

/// Tells the waiting thread that a session's thread ends, however it ends.
struct SignalOnDrop(Arc<WakeEvent>);

impl Drop for SignalOnDrop {
    fn drop(&mut self) {
        self.0.signal();
    }
}

impl RunningSession {
    /// Have the session pause until the sender is dropped; None if it does not pause.
    fn pause(&self, until: Instant) -> Option<(PausedSession, Sender<()>)> {
        let stream = self.stream.as_fd().try_clone_to_owned().ok()?;
        let (record, resumes) = self.pause_handle.pause(until)?;
        Some((PausedSession { stream, record }, resumes))
    }

    /// End the connection. The session gives its rings back meanwhile; the caller does not wait for
    /// one that is stuck.
    fn cut(&self) {
        // Fails where the front-end has closed already, which has the same effect.
        let _ = self.stream.shutdown(Shutdown::Both);
        // The result does not matter: the other process does not get this session.
        let _ = self.done.wait_until(Instant::now() + CUT_WAIT_MAX);
    }
}

/// The error of a connection that is closed because it would take reserved descriptors.
fn no_room() -> io::Error {
    OpenFileLimit::note_refusal();
    let OpenFileLimit { limit, reserved } = OpenFileLimit::now();
    io::Error::other(format!(
        "all but {reserved} of {limit} file descriptors are open, and these are reserved; raise \
         the limit of open files (LimitNOFILE)"
    ))
}

/// Connect without blocking: a listener with a full backlog would block us, and `stop` with us.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    if OpenFileLimit::now().is_reserved(&stream) { Err(no_room()) } else { Ok(stream) }
}
