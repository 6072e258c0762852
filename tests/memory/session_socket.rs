//! A port's socket takes any number of connections, in any order of who starts first.

use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isonic::test_support::frontend::{
    Frontend, GuestFile, RecordingHost, code, lingering, profile,
};
use isonic::vhost_user::{Ended, PortBackend, PortSocket, SessionEnd, SocketSource, serve};

fn start(source: SocketSource) -> (PortSocket, Arc<RecordingHost>) {
    let host = Arc::new(RecordingHost::default());
    let port_host = Arc::clone(&host) as Arc<dyn PortBackend>;
    let profile = Arc::new(profile());
    let socket = PortSocket::start(source, "isonic-test", move |stream| {
        serve(stream, Arc::clone(&profile), Arc::clone(&port_host), "isonic-test")
    });
    (socket.unwrap(), host)
}

fn memory() -> GuestFile {
    GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000)
}

fn frontend(path: &Path) -> Frontend {
    Frontend::over(UnixStream::connect(path).unwrap())
}

/// Wait until `condition` holds; much longer than it ever takes.
fn eventually(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come true");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_server_serves_one_front_end_after_another() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port");
    let listener = UnixListener::bind(&path).unwrap();
    // The first is there before the port is.
    let early = frontend(&path);
    let (mut socket, host) = start(SocketSource::Listener(listener));
    early.start(&memory(), 2);
    drop(early);
    for _ in 0..20 {
        let next = frontend(&path);
        next.start(&memory(), 2);
        assert_eq!(host.indices(), [0, 1]);
    }
    socket.stop();
    socket.stop();
    assert!(host.indices().is_empty());
}

#[test]
fn a_second_front_end_takes_over_when_the_first_goes_and_is_closed_when_it_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port");
    let (_socket, host) = start(SocketSource::Listener(UnixListener::bind(&path).unwrap()));
    let first = frontend(&path);
    first.start(&memory(), 2);
    let second = frontend(&path);
    assert_eq!(second.number(code::GET_FEATURES), None, "it was closed");
    assert_eq!(host.indices(), [0, 1], "the first did not notice");
    let third = frontend(&path);
    drop(first);
    third.start(&memory(), 1);
    assert_eq!(host.indices(), [0]);
}

/// QEMU 7.2 does so while it wants more queue pairs than there are.
#[test]
fn front_ends_that_come_and_go_at_once_are_served_at_a_pace_that_costs_nothing() {
    const SESSIONS: u32 = 25;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port");
    let (_socket, _host) = start(SocketSource::Listener(UnixListener::bind(&path).unwrap()));
    let begun = Instant::now();
    for _ in 0..SESSIONS {
        assert_eq!(frontend(&path).number(code::GET_FEATURES), Some(profile().features.0));
    }
    // At least: a slow machine takes longer.
    assert!(begun.elapsed() >= Duration::from_millis(20) * (SESSIONS - 1));
}

#[test]
fn stop_ends_a_session_in_the_middle_of_a_message() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port");
    let (mut socket, host) = start(SocketSource::Listener(UnixListener::bind(&path).unwrap()));
    let frontend = frontend(&path);
    frontend.start(&memory(), 2);
    assert!(frontend.send_bytes(&[1, 0, 0], &[]));
    socket.stop();
    assert!(host.indices().is_empty());
    assert_eq!(frontend.number(code::GET_FEATURES), None);
}

#[test]
fn a_client_connects_whoever_is_first_and_again_after_each_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("front-end");
    let (mut socket, host) = start(SocketSource::Connect(path.clone()));
    for _ in 0..2 {
        let listener = UnixListener::bind(&path).unwrap();
        let accept = || Frontend::over(listener.accept().unwrap().0);
        let first = accept();
        first.start(&memory(), 2);
        assert_eq!(host.indices(), [0, 1]);
        drop(first);
        let second = accept();
        second.start(&memory(), 1);
        assert_eq!(host.indices(), [0]);
        drop((second, listener));
        std::fs::remove_file(&path).unwrap();
        eventually(|| host.indices().is_empty());
    }
    socket.stop();
}

#[test]
fn a_client_stops_while_nobody_listens() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, _host) = start(SocketSource::Connect(directory.path().join("nobody")));
    drop(socket);
}

#[test]
fn a_stream_that_is_there_already_is_served_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (mut socket, host) = start(SocketSource::Stream(theirs));
    let frontend = Frontend::over(ours);
    frontend.start(&memory(), 2);
    drop(frontend);
    eventually(|| host.indices().is_empty());
    socket.stop();
}

/// A front-end that speaks no protocol, and has a socket that lingers behind that, which is not
/// read.
fn hostile(path: &Path) -> (Frontend, TcpStream) {
    let (frontend, (descriptor, peer)) = (frontend(path), lingering());
    assert!(frontend.send_bytes(&[0; 12], &[]));
    assert!(frontend.send_bytes(&[0; 12], &[&descriptor]));
    (frontend, peer)
}

/// Closing a connection closes what nobody has received of it.
#[test]
fn what_waits_unread_in_a_connection_holds_up_neither_the_next_session_nor_a_stop() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("port");
    let (mut socket, host) = start(SocketSource::Listener(UnixListener::bind(&path).unwrap()));
    let mut peers = Vec::new();
    let mut served = frontend(&path);
    served.start(&memory(), 2);
    for _ in 0..3 {
        // All of it is there before its session begins.
        let (hostile, peer) = hostile(&path);
        peers.push(peer);
        drop(served);
        assert_eq!(hostile.number(code::GET_FEATURES), None, "its session has ended");
        served = frontend(&path);
        served.start(&memory(), 1);
        assert_eq!(host.indices(), [0]);
    }
    // The one that waits to be served has something to be closed too.
    let _waiting = hostile(&path);
    assert_eq!(socket.stop(), Ended::Whole);
    assert!(host.indices().is_empty());
    drop(socket);
}

#[test]
fn a_session_that_does_not_end_is_left_behind_by_whoever_stops_its_socket() {
    let (_ours, theirs) = UnixStream::pair().unwrap();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let mut socket = PortSocket::start(SocketSource::Stream(theirs), "isonic-test", move |_| {
        // As in a system call that waits for something of the front-end's.
        let _ = held.lock().unwrap().recv();
        SessionEnd::Disconnected
    })
    .unwrap();
    assert!(!socket.is_stopped());
    socket.begin_stop();
    assert_eq!(socket.stop(), Ended::LeftBehind);
    assert!(socket.is_stopped());
    assert_eq!(socket.stop(), Ended::Whole, "nothing more can be stopped");
    drop(release);
}
