//! What the log says of a refused request, and how often.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use crate::my_turn;
use isonic::profile::Profile;
use isonic::test_support::frontend::{Frontend, RecordingHost, code, event, pair, profile};
use isonic::vhost_user::serve;

/// A log in memory.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Serve `talk` and return the log's lines.
fn logged(talk: impl FnOnce(&Frontend)) -> Vec<String> {
    let log = Log::default();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let writer = log.clone();
    let session = std::thread::spawn(move || {
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .finish();
        let host = Arc::new(RecordingHost::default());
        tracing::subscriber::with_default(subscriber, || {
            serve(&theirs, Arc::new(profile()), host, "isonic-test")
        })
    });
    let frontend = Frontend::over(ours);
    frontend.negotiate();
    talk(&frontend);
    drop(frontend);
    session.join().unwrap();
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

/// Assert that one line was logged and has all of `parts`.
fn assert_one_line_with(lines: &[String], parts: &[&str]) {
    let [line] = lines else { panic!("{lines:#?}") };
    for part in ["WARN", "request refused", "isonic-test"].iter().chain(parts) {
        assert!(line.contains(part), "no {part} in {line}");
    }
}

#[test]
fn a_refusal_names_port_request_value_limit_and_profile() {
    let _turn = my_turn();
    let lines = logged(|frontend| frontend.refused(code::SET_VRING_NUM, &pair(1, 2048), &[]));
    assert_one_line_with(
        &lines,
        &["SET_VRING_NUM", "ring 1", "2048", "1024", "org.isonic.test.v1"],
    );
    let lines = logged(|frontend| {
        frontend.refused(code::NET_SET_MTU, &9000_u64.to_ne_bytes(), &[]);
    });
    assert_one_line_with(&lines, &["NET_SET_MTU", "9000", "1500", "host_mtu"]);
    let lines = logged(|frontend| {
        let features = profile().features.0 | 1 << 34;
        frontend.refused(code::SET_FEATURES, &features.to_ne_bytes(), &[]);
    });
    assert_one_line_with(&lines, &["SET_FEATURES", "0x400000000", "ring_packed"]);
    // The cause behind it as well.
    let lines = logged(|frontend| frontend.refused(code::SET_VRING_NUM, &pair(1, 3), &[]));
    assert_one_line_with(&lines, &["ring 1 cannot run", "ring size 3 is not a power of two"]);
}

#[test]
fn a_flood_of_refusals_is_logged_thirty_two_times_and_then_once_more() {
    let _turn = my_turn();
    let lines = logged(|frontend| {
        for _ in 0..5000 {
            frontend.refused(code::SET_VRING_NUM, &pair(99, 1), &[]);
        }
    });
    assert_eq!(lines.len(), 33, "{lines:#?}");
    assert!(lines[32].contains("further refusals"));
}

#[test]
fn a_state_of_another_interface_is_refused_with_every_difference_and_the_way_out() {
    let _turn = my_turn();
    let lines = logged(|frontend| load(frontend, &state_of_another_port()));
    assert_one_line_with(
        &lines,
        &[
            "CHECK_DEVICE_STATE",
            "the VM has profile com.example.v9 (digest ",
            "the port org.isonic.test.v1 (digest ",
            "the VM has MTU 9000, the port 1500",
            "isonic port set-profile PORT com.example.v9",
        ],
    );
}

#[test]
fn states_without_end_are_logged_thirty_two_times() {
    let _turn = my_turn();
    let lines = logged(|frontend| {
        for _ in 0..100 {
            frontend.send(code::SET_DEVICE_STATE_FD, 1, &pair(0, 0), &[&event()]);
            let _ = frontend.reply_with_file(code::SET_DEVICE_STATE_FD);
            assert_eq!(frontend.number(code::CHECK_DEVICE_STATE), Some(0));
        }
    });
    assert_eq!(lines.len(), 32, "{lines:#?}");
    assert!(lines.iter().all(|line| line.contains("device state given")), "{lines:#?}");
}

#[test]
fn a_state_that_cannot_be_read_is_not_quoted() {
    let _turn = my_turn();
    let lines = logged(|frontend| load(frontend, b"{\"format\": \"\x1b[2Jnonsense\"}"));
    assert_one_line_with(&lines, &["CHECK_DEVICE_STATE", "cannot be read at line 1"]);
    assert!(!lines[0].contains("nonsense"), "{lines:?}");
}

/// Load this state, and have it refused.
fn load(frontend: &Frontend, state: &[u8]) {
    frontend.send(code::SET_DEVICE_STATE_FD, 1, &pair(1, 0), &[&event()]);
    let (_, channel) = frontend.reply_with_file(code::SET_DEVICE_STATE_FD);
    channel.unwrap().write_all(state).unwrap();
    assert_eq!(frontend.number(code::CHECK_DEVICE_STATE), Some(1));
}

/// The state of a port with another name and MTU.
fn state_of_another_port() -> Vec<u8> {
    let other = Profile { name: "com.example.v9".into(), mtu: 9000, ..profile() };
    let frontend = Frontend::connect(other, Arc::new(RecordingHost::default()));
    frontend.negotiate();
    frontend.send(code::SET_DEVICE_STATE_FD, 1, &pair(0, 0), &[&event()]);
    let (_, channel) = frontend.reply_with_file(code::SET_DEVICE_STATE_FD);
    let mut state = Vec::new();
    channel.unwrap().read_to_end(&mut state).unwrap();
    state
}
