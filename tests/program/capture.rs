//! `isonic profile capture` against sessions of ours, and against backends that answer as no
//! session of ours would. DPDK's is in `dpdk_capture.rs`.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use isonic::profile::{Catalog, Profile};
use isonic::test_support::frontend::{Frontend, GuestFile, RecordingHost, code};
use isonic::vhost_user::{PortBackend, PortSocket, SocketSource, serve};

const VERSION_1: u64 = 1 << 32;
const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Of the protocol features.
const REPLY_ACK: u64 = 1 << 3;

fn capture(socket: &Path, further: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    command.args(["profile", "capture", "--socket"]).arg(socket).args(further);
    command.env_remove("RUST_LOG").output().unwrap()
}

fn captured(socket: &Path, further: &[&str]) -> (Profile, String) {
    let output = capture(socket, further);
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    (isonic::profile::parse(Path::new("captured.toml"), &text).unwrap(), text)
}

fn refused(socket: &Path, further: &[&str]) -> String {
    let output = capture(socket, further);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

fn v1() -> Arc<Profile> {
    Arc::clone(Catalog::embedded().get("org.isonic.net.v1").unwrap())
}

/// A port of ours with the profile v1.
fn port(source: SocketSource) -> (PortSocket, Arc<RecordingHost>) {
    let host = Arc::new(RecordingHost::default());
    let port_host = Arc::clone(&host) as Arc<dyn PortBackend>;
    let profile = v1();
    let socket = PortSocket::start(source, "isonic-test", move |stream| {
        serve(stream, Arc::clone(&profile), Arc::clone(&port_host), "isonic-test")
    });
    (socket.unwrap(), host)
}

/// A socket in a directory that goes with the first.
fn place() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("backend");
    (directory, path)
}

/// What a backend makes of a request that is no question: an acknowledgement, or None to close the
/// connection.
type Verdict = fn(request: u32, value: u64) -> Option<u64>;

/// A backend that offers this and answers every other request by `verdict`.
fn backend(path: &Path, features: u64, protocol: u64, verdict: Verdict) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            answer(&stream, features, protocol, verdict);
        }
    });
}

fn answer(mut stream: &UnixStream, features: u64, protocol: u64, verdict: Verdict) -> Option<()> {
    loop {
        let mut header = [0; 12];
        stream.read_exact(&mut header).ok()?;
        let [request, flags, length] =
            [0, 4, 8].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()));
        let mut body = vec![0; usize::try_from(length).unwrap()];
        stream.read_exact(&mut body).ok()?;
        let value = body.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let answer = match request {
            code::GET_FEATURES => features,
            code::GET_PROTOCOL_FEATURES => protocol,
            _ => verdict(request, value)?,
        };
        let asks = [code::GET_FEATURES, code::GET_PROTOCOL_FEATURES].contains(&request);
        if asks || flags & 0x8 != 0 {
            let head = [request, 0x5, 8].map(u32::to_ne_bytes).concat();
            stream.write_all(&[&head[..], &answer.to_ne_bytes()].concat()).ok()?;
        }
    }
}

/// Entries of a SET_VRING_NUM: the second half of its body.
fn entries(value: u64) -> u64 {
    u64::from_ne_bytes(value.to_ne_bytes()) >> 32
}

#[test]
fn a_port_of_ours_is_captured_as_exactly_its_profile_and_left_as_it_was() {
    let (_directory, path) = place();
    let (_socket, host) = port(SocketSource::Listener(UnixListener::bind(&path).unwrap()));
    let (profile, text) = captured(&path, &["--name", "com.x.v1"]);
    assert_eq!(profile.digest(), v1().digest(), "{text}");
    assert_eq!(profile.name, "com.x.v1");
    assert!(text.contains("# The largest MTU that NET_SET_MTU took"), "{text}");
    assert!(host.moves.lock().unwrap().is_empty(), "no ring was ever started");
    let memory = GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000);
    Frontend::over(UnixStream::connect(&path).unwrap()).start(&memory, 2);
}

#[test]
fn a_port_that_connects_by_itself_is_captured_too() {
    let (_directory, path) = place();
    let (_socket, _host) = port(SocketSource::Connect(path.clone()));
    let (profile, _) = captured(&path, &["--listen"]);
    assert_eq!(profile.digest(), v1().digest());
    assert!(!path.exists(), "the socket is gone");
}

#[test]
fn a_port_that_is_in_use_is_not_disturbed() {
    let (_directory, path) = place();
    let (_socket, host) = port(SocketSource::Listener(UnixListener::bind(&path).unwrap()));
    let memory = GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000);
    let first = Frontend::over(UnixStream::connect(&path).unwrap());
    first.start(&memory, 2);
    let told = refused(&path, &[]);
    assert!(told.contains("another front-end is connected to the backend"), "{told}");
    assert_eq!(host.indices(), [0, 1]);
}

#[test]
fn as_json_each_number_says_how_it_was_found() {
    let (_directory, path) = place();
    let (_socket, _host) = port(SocketSource::Listener(UnixListener::bind(&path).unwrap()));
    let output = capture(&path, &["--json"]);
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(found["digest"], v1().digest());
    for (key, value, how) in [
        ("ring_size_max", 1024, "tried"),
        ("mtu", 1500, "tried"),
        ("queue_pairs_max", 16, "told"),
        ("memory_slots", 64, "told"),
    ] {
        assert_eq!((&found[key]["value"], &found[key]["found"]), (&value.into(), &how.into()));
    }
    assert_eq!(found["blockers"], serde_json::json!([]));
}

#[test]
fn a_backend_that_refuses_by_hanging_up_is_connected_to_again() {
    let (_directory, path) = place();
    backend(&path, VERSION_1, 0, |request, value| {
        (request != code::SET_VRING_NUM || entries(value) <= 512).then_some(0)
    });
    let (profile, text) = captured(&path, &[]);
    assert_eq!((profile.ring_size_max, profile.queue_pairs_max), (512, 1));
    assert_eq!((profile.memory_slots, profile.mtu), (8, 1500));
    assert!(text.contains("# Not found: the backend cannot be asked"), "{text}");
}

#[test]
fn a_limit_that_a_backend_does_not_keep_is_said_to_be_unknown() {
    let (_directory, path) = place();
    let mtu = 1 << 4;
    backend(&path, VERSION_1 | PROTOCOL_FEATURES, REPLY_ACK | mtu, |_, _| Some(0));
    let (profile, text) = captured(&path, &[]);
    assert_eq!(profile.ring_size_max, 32768);
    assert!(text.contains("acknowledges every SET_VRING_NUM"), "{text}");
    assert!(text.contains("acknowledges every NET_SET_MTU"), "{text}");
}

#[test]
fn the_largest_mtu_of_those_that_are_taken_is_found() {
    let (_directory, path) = place();
    let mtu = 1 << 4;
    backend(&path, VERSION_1 | PROTOCOL_FEATURES, REPLY_ACK | mtu, |request, value| {
        Some(u64::from(request == code::NET_SET_MTU && value > 9216))
    });
    assert_eq!(captured(&path, &[]).0.mtu, 9216);
}

#[test]
fn a_bit_without_a_name_is_told_and_not_left_out() {
    let (_directory, path) = place();
    backend(&path, VERSION_1 | 1 << 37 | 1 << 44, 0, |_, _| Some(0));
    let told = refused(&path, &[]);
    assert!(told.contains("offers features") && told.contains("bit 37, bit 44"), "{told}");
}

#[test]
fn what_can_be_no_profile_is_refused_with_the_reason() {
    let (_directory, path) = place();
    backend(&path, 1 << 15, 0, |_, _| Some(0));
    let told = refused(&path, &[]);
    assert!(told.contains("cannot be a profile: features lacks \"version_1\""), "{told}");
    let told = refused(&path, &["--name", "a b"]);
    assert!(told.contains("\"a b\" is no profile name"), "{told}");
}

#[test]
fn what_is_no_vhost_user_backend_is_told_and_never_waited_for_long() {
    let (directory, path) = place();
    let told = refused(&path, &[]);
    assert!(told.contains("cannot connect to") && told.contains("No such file"), "{told}");
    // Nobody accepts: the connection waits in the queue, and nothing answers.
    let _silent = UnixListener::bind(&path).unwrap();
    let told = refused(&path, &["--timeout", "1"]);
    assert!(told.contains("GET_FEATURES was not answered in 1 s"), "{told}");
    let other = directory.path().join("other");
    let listener = UnixListener::bind(&other).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 64]);
    });
    let told = refused(&other, &[]);
    assert!(told.contains("the answer to GET_FEATURES is no vhost-user message"), "{told}");
}

#[test]
fn nobody_who_connects_is_told_and_the_socket_removed() {
    let (_directory, path) = place();
    let told = refused(&path, &["--listen", "--timeout", "1"]);
    assert!(told.contains("no backend has connected to"), "{told}");
    assert!(!path.exists());
    let _taken = UnixListener::bind(&path).unwrap();
    let told = refused(&path, &["--listen", "--timeout", "1"]);
    assert!(told.contains("is in use by a running process"), "{told}");
}
