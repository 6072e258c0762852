//! Traffic whose contents are checked, between a namespace and a guest's echo server.

use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use super::{Netns, run_to_end, wait_for};

/// How often a datagram is sent before it counts as lost for good: UDP may lose one.
const ATTEMPTS: usize = 5;
const TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stream of one test may be silent.
const STREAM_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the last answers to echo requests may be under way, seconds. Late is not lost.
pub(super) const ANSWER_SECONDS: u32 = 10;

/// Sends five echo requests with these further options; panics unless all are answered. ping
/// itself compares the contents and says "wrong data byte".
pub fn ping(from: &Netns, address: &str, options: &[&str]) {
    let answer = ANSWER_SECONDS.to_string();
    let fixed = ["ping", "-c", "5", "-i", "0.2", "-W", &answer, "-p", "5a"];
    let command_line: Vec<&str> = fixed.iter().chain(options).copied().chain([address]).collect();
    let finished = run_to_end(&mut from.command(&command_line));
    let good = finished.output.contains(" 5 received") && !finished.output.contains("wrong data");
    assert!(finished.status.success() && good, "ping {options:?} {address}: {finished:?}");
}

/// Whether one echo request is answered.
pub fn pings_through(from: &Netns, address: &str) -> bool {
    run_to_end(&mut from.command(&["ping", "-c", "1", "-W", "1", address])).status.success()
}

/// Bytes that differ by place and by seed, so that nothing moved or repeated goes unnoticed.
fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..length).map(|_| next()).collect()
}

/// Sends `count` datagrams of `length` bytes to the guest's echo server; every one must come back
/// as it was.
pub fn echo_datagrams(from: &Netns, address: &str, length: usize, count: u64) {
    from.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("socket");
        socket.connect((address, 7)).expect("connect");
        socket.set_read_timeout(Some(TIMEOUT)).expect("timeout");
        for seed in 0..count {
            let sent = pattern(length, seed);
            let answered = (0..ATTEMPTS).any(|_| echoed(&socket, &sent));
            assert!(answered, "datagram {seed} of {length} bytes to {address} did not come back");
        }
    });
}

/// A late answer to an earlier attempt is skipped; any other difference is a failure.
fn echoed(socket: &UdpSocket, sent: &[u8]) -> bool {
    socket.send(sent).expect("send");
    let mut buffer = vec![0; 65536];
    match socket.recv(&mut buffer) {
        Ok(length) => {
            assert_eq!(length, sent.len(), "the datagram came back with another length");
            assert!(buffer[..length] == *sent, "the datagram came back with other contents");
            true
        }
        Err(_) => false,
    }
}

/// Sends `length` bytes through a TCP connection to the guest's echo server and compares what
/// comes back: contents checked both ways.
pub fn echo_stream(from: &Netns, address: &str, length: usize) {
    from.enter(|| {
        let mut stream = None;
        // A guest that has just booted may answer before its server listens.
        wait_for("the guest's echo server takes connections", 20, || {
            stream = TcpStream::connect((address, 7)).ok();
            stream.is_some()
        });
        let mut stream = stream.expect("it was waited for");
        stream.set_read_timeout(Some(TIMEOUT * 5)).expect("timeout");
        let sent = pattern(length, 1);
        let mut writer = stream.try_clone().expect("clone");
        let mut received = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&sent).expect("write");
                writer.shutdown(std::net::Shutdown::Write).expect("shutdown");
            });
            stream.read_to_end(&mut received).expect("read");
        });
        assert!(received == sent, "the stream came back with other contents");
    });
}

/// The port of `guest-stream`.
const STREAM_PORT: u16 = 9;

/// Sends `length` bytes to the guest's `guest-stream serve`, which must find every one right.
pub fn send_stream(from: &Netns, address: &str, length: usize) {
    from.enter(|| {
        let address: IpAddr = address.parse().expect("address");
        let mut stream = TcpStream::connect((address, STREAM_PORT)).expect("connect");
        stream.set_read_timeout(Some(STREAM_TIMEOUT)).expect("timeout");
        stream.set_write_timeout(Some(STREAM_TIMEOUT)).expect("timeout");
        stream.write_all(&pattern(length, 1)).expect("write");
        stream.shutdown(std::net::Shutdown::Write).expect("shutdown");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answer");
        assert_eq!(answer, format!("good {length}"), "the stream to {address}");
    });
}

/// Checks the stream that `send`, `guest-stream send` in a guest, brings to the namespace.
pub fn receive_stream(at: &Netns, length: usize, send: impl FnOnce()) {
    let listener = at.enter(|| TcpListener::bind(("::", STREAM_PORT)).expect("listen"));
    listener.set_nonblocking(true).expect("non-blocking");
    std::thread::scope(|scope| {
        let checker = scope.spawn(|| check_stream(&listener, length));
        send();
        checker.join().expect("the stream is as it was sent");
    });
}

fn check_stream(listener: &TcpListener, length: usize) {
    let deadline = Instant::now() + STREAM_TIMEOUT;
    let mut stream = loop {
        match listener.accept() {
            Ok((stream, _)) => break stream,
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("nobody connects: {error}"),
        }
    };
    stream.set_nonblocking(false).expect("blocking");
    stream.set_read_timeout(Some(STREAM_TIMEOUT)).expect("timeout");
    let mut received = Vec::new();
    stream.read_to_end(&mut received).expect("read");
    let good = received == pattern(length, 1);
    let word = if good { "good" } else { "bad at" };
    stream.write_all(format!("{word} {}", received.len()).as_bytes()).expect("answer");
    assert!(good, "{} bytes arrived, not those that were sent", received.len());
}

/// Waits until an address answers.
pub fn wait_reachable(from: &Netns, address: &str, seconds: u64) {
    wait_for(&format!("{address} answers"), seconds, || pings_through(from, address));
}
