//! A port's socket: gets connections, one session at a time, until stopped.
//!
//! One thread waits (for a connection, for the end of the session, for `stop`); each session runs
//! on another. As a server the socket accepts; as a client it connects, and tries again every
//! half second. Both take any number of disconnects and reconnects, whoever starts first.
//!
//! Does not make or remove socket paths: a server's listener comes bound.

#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::session::SessionEnd;

/// Between two attempts to connect.
const RETRY: Duration = Duration::from_millis(500);
/// How long a new connection waits for the session before it to end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where connections come from.
#[derive(Debug)]
pub enum SocketSource {
    /// Front-ends connect to us.
    Listener(UnixListener),
    /// We connect to the front-end's socket at this path.
    Connect(PathBuf),
    /// One connection that is there already.
    Stream(UnixStream),
}

/// Runs one session to its end.
type Serve = Arc<dyn Fn(&UnixStream) -> SessionEnd + Send + Sync>;

/// A port's socket; stopped when dropped.
pub struct PortSocket {
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
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
        serve: impl Fn(&UnixStream) -> SessionEnd + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let wake = Arc::new(event()?);
        let mut keeper = Keeper {
            name: name.to_owned(),
            serve: Arc::new(serve),
            stop: Arc::clone(&wake),
            live: None,
            waiting: None,
            attempted: None,
            failed: false,
        };
        if let SocketSource::Listener(listener) = &source {
            listener.set_nonblocking(true)?;
        }
        let thread = std::thread::Builder::new()
            .name(format!("port {name}"))
            .spawn(move || keeper.run(source))?;
        Ok(Self { wake, thread: Some(thread) })
    }

    /// End the session, if there is one, and take no more. Returns when its rings are back with
    /// nobody. Does nothing the second time.
    pub fn stop(&mut self) {
        if let Some(thread) = self.thread.take() {
            signal(&self.wake);
            if thread.join().is_err() {
                tracing::error!("the thread of a port's socket has panicked");
            }
        }
    }
}

impl Drop for PortSocket {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A session that runs.
struct Live {
    stream: UnixStream,
    thread: JoinHandle<()>,
    done: Arc<OwnedFd>,
}

/// The waiting thread's own.
struct Keeper {
    name: String,
    serve: Serve,
    stop: Arc<OwnedFd>,
    live: Option<Live>,
    /// A connection that came during a session, and until when it may wait.
    waiting: Option<(UnixStream, Instant)>,
    /// When a connection was last tried for.
    attempted: Option<Instant>,
    /// Whether the last attempt failed, which was logged then.
    failed: bool,
}

/// What a wait ended with.
struct Ready {
    stop: bool,
    done: bool,
    connection: bool,
}

impl Keeper {
    fn run(&mut self, source: SocketSource) {
        let result = match source {
            SocketSource::Listener(listener) => self.run_server(&listener),
            SocketSource::Connect(path) => self.run_client(&path),
            SocketSource::Stream(stream) => self.run_once(stream),
        };
        if let Err(error) = result {
            tracing::error!(port = self.name, %error, "the port's socket cannot go on");
        }
        self.waiting = None;
        self.end_session();
    }

    fn run_server(&mut self, listener: &UnixListener) -> io::Result<()> {
        loop {
            let deadline = self.waiting.as_ref().map(|(_, deadline)| *deadline);
            let ready = self.wait(Some(listener).filter(|_| self.waiting.is_none()), deadline)?;
            if ready.stop {
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

    fn accept(&mut self, listener: &UnixListener) {
        match listener.accept().and_then(|(stream, _)| {
            stream.set_nonblocking(false)?;
            Ok(stream)
        }) {
            Ok(stream) => self.waiting = Some((stream, Instant::now() + PATIENCE)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(port = self.name, %error, "cannot accept a connection");
                // Out of descriptors, most likely: do not spin until there are some.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }

    /// Begin the session of a connection that waits, or give up on it.
    fn serve_waiting(&mut self) {
        let Some((stream, deadline)) = self.waiting.take() else { return };
        if self.live.is_none() {
            self.begin_session(stream);
        } else if Instant::now() < deadline {
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
        loop {
            let due = self.attempted.map(|attempted| attempted + RETRY);
            if self.live.is_none() && due.is_none_or(|due| due <= Instant::now()) {
                self.try_connect(path);
                continue;
            }
            let ready = self.wait(None, due.filter(|_| self.live.is_none()))?;
            if ready.stop {
                return Ok(());
            }
            if ready.done {
                self.end_session();
            }
        }
    }

    fn try_connect(&mut self, path: &Path) {
        self.attempted = Some(Instant::now());
        match connect_to(path) {
            Ok(stream) => {
                self.failed = false;
                tracing::info!(port = self.name, path = %path.display(), "connected");
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

    fn run_once(&mut self, stream: UnixStream) -> io::Result<()> {
        self.begin_session(stream);
        while self.live.is_some() {
            let ready = self.wait(None, None)?;
            if ready.stop || ready.done {
                self.end_session();
            }
        }
        Ok(())
    }

    fn begin_session(&mut self, stream: UnixStream) {
        match self.spawn(stream) {
            Ok(live) => self.live = Some(live),
            Err(error) => {
                tracing::error!(port = self.name, %error, "cannot start a session");
            }
        }
    }

    fn spawn(&self, stream: UnixStream) -> io::Result<Live> {
        let done = Arc::new(event()?);
        let (ours, serve, name) = (stream.try_clone()?, Arc::clone(&self.serve), self.name.clone());
        let signal_done = SignalOnDrop(Arc::clone(&done));
        let thread =
            std::thread::Builder::new().name(format!("session {name}")).spawn(move || {
                let _signal_done = signal_done;
                tracing::info!(port = name, "front-end connected");
                match serve(&stream) {
                    SessionEnd::Disconnected => {
                        tracing::info!(port = name, "front-end disconnected")
                    }
                    end => {
                        let error: &(dyn std::error::Error + 'static) = &end;
                        tracing::warn!(port = name, error, "session ended");
                    }
                }
            })?;
        Ok(Live { stream: ours, thread, done })
    }

    /// Have the session end, if there is one, and wait until it has.
    fn end_session(&mut self) {
        let Some(Live { stream, thread, .. }) = self.live.take() else { return };
        // Fails where the front-end has closed already, which is as good.
        let _ = stream.shutdown(Shutdown::Both);
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
        // poll(2) wants descriptors; where there is nothing to watch, watch `stop` twice.
        let done = self.live.as_ref().map_or(self.stop.as_fd(), |live| live.done.as_fd());
        let listening = listener.map_or(self.stop.as_fd(), AsFd::as_fd);
        let mut fds = [self.stop.as_fd(), done, listening]
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        let timeout = deadline.map(|deadline| {
            let left = deadline.saturating_duration_since(Instant::now());
            Timespec::try_from(left).expect("a deadline is at most seconds away")
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [stop, done, connection] = fds.map(|fd| !fd.revents().is_empty());
        Ok(Ready {
            stop,
            done: done && self.live.is_some(),
            connection: connection && listener.is_some(),
        })
    }
}

/// Tells the keeper that a session's thread ends, however it ends.
struct SignalOnDrop(Arc<OwnedFd>);

impl Drop for SignalOnDrop {
    fn drop(&mut self) {
        signal(&self.0);
    }
}

fn event() -> io::Result<OwnedFd> {
    Ok(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?)
}

fn signal(event: &OwnedFd) {
    // Fails only when the counter is full, and then the other side has its signal.
    let _ = rustix::io::write(event, &1_u64.to_ne_bytes());
}

/// Connect without blocking: a listener with a full backlog would hold us, and `stop` with us.
fn connect_to(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}
