//! A state that travels with a migrating VM: given, taken, and refused for every way in which it
//! may be wrong; and the session goes on whatever is sent as a state.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use isonic::device::features::{FeatureSet, PROTOCOL_DEVICE_STATE};
use isonic::profile::Profile;
use isonic::test_support::frontend::{
    Frontend, GuestFile, RING_SIZE, RecordingHost, code, pair, profile,
};
use isonic::vhost_user::PortBackend;
use serde_json::{Value, json};

const SAVE: u32 = 0;
const LOAD: u32 = 1;
/// The answer of SET_DEVICE_STATE_FD that refuses: an error, and no descriptor.
const REFUSED: u64 = 0x101;

fn connect(profile: Profile) -> Frontend {
    let host = Arc::new(RecordingHost::default()) as Arc<dyn PortBackend>;
    let frontend = Frontend::connect(profile, host);
    frontend.negotiate();
    frontend
}

/// One end of a pipe, as QEMU sends it.
fn pipe() -> File {
    let (reader, _writer) = std::io::pipe().unwrap();
    File::from(std::os::fd::OwnedFd::from(reader))
}

/// SET_DEVICE_STATE_FD: the answer, and the channel.
fn transfer(frontend: &Frontend, direction: u32, phase: u32) -> (u64, Option<File>) {
    assert!(frontend.send(code::SET_DEVICE_STATE_FD, 1, &pair(direction, phase), &[&pipe()]));
    frontend.reply_with_file(code::SET_DEVICE_STATE_FD)
}

fn channel(frontend: &Frontend, direction: u32) -> File {
    let (answer, file) = transfer(frontend, direction, 0);
    assert_eq!(answer, 0);
    file.expect("a channel")
}

/// Whether CHECK_DEVICE_STATE finds all well.
fn checked(frontend: &Frontend) -> bool {
    match frontend.number(code::CHECK_DEVICE_STATE).expect("the session should live") {
        0 => true,
        1 => false,
        other => panic!("answer {other}"),
    }
}

/// The state of the device, which must be stopped.
fn saved(frontend: &Frontend) -> Vec<u8> {
    let mut state = Vec::new();
    channel(frontend, SAVE).read_to_end(&mut state).unwrap();
    assert!(checked(frontend));
    state
}

/// Whether a session of this profile takes the state.
fn loads(profile: Profile, state: &[u8]) -> bool {
    let frontend = connect(profile);
    channel(&frontend, LOAD).write_all(state).unwrap();
    let taken = checked(&frontend);
    // Whatever it was, the session serves on.
    frontend.number(code::GET_FEATURES).expect("the session should live");
    taken
}

fn guest() -> GuestFile {
    GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x40_0000)
}

/// The state of a device that ran with two rings of the first pair, as QEMU stops it.
fn state() -> Value {
    let frontend = connect(profile());
    frontend.start(&guest(), 2);
    for ring in 0..2 {
        frontend.stop_ring(ring).unwrap();
    }
    serde_json::from_slice(&saved(&frontend)).unwrap()
}

#[test]
fn a_state_tells_the_profile_and_what_ran() {
    let profile = profile();
    let state = state();
    assert_eq!(state["format"], "org.isonic.device-state");
    assert_eq!((&state["major"], &state["minor"]), (&json!(1), &json!(0)));
    assert_eq!(state["profile"], json!(profile.name));
    assert_eq!(state["profile_digest"], json!(profile.digest()));
    // Without bit 30, which is no guest's.
    let acknowledged = profile.features.without(FeatureSet(1 << 30));
    assert_eq!(state["acknowledged"], json!(format!("{:#x}", acknowledged.0)));
    assert_eq!(state["ring_sizes"], json!([RING_SIZE, RING_SIZE, null, null]));
    assert_eq!((&state["queue_pairs"], &state["mtu"]), (&json!(1), &json!(1500)));
    let sizes = [Some(256), Some(256), None, None];
    let fingerprint = isonic::profile::fingerprint(&profile.digest(), acknowledged, &sizes, 1);
    assert_eq!(state["fingerprint"], json!(fingerprint));
}

#[test]
fn a_state_is_taken_by_a_port_with_the_same_interface_under_whatever_name() {
    let state = state().to_string();
    assert!(loads(profile(), state.as_bytes()));
    assert!(loads(Profile { name: "com.example.same".into(), ..profile() }, state.as_bytes()));
}

#[test]
fn a_state_of_a_guest_without_a_driver_is_taken_too() {
    let frontend = connect(profile());
    let state = saved(&frontend);
    assert!(loads(profile(), &state));
}

#[test]
fn a_device_whose_state_was_given_goes_on_and_gives_it_again() {
    let (frontend, memory) = (connect(profile()), guest());
    frontend.start(&memory, 2);
    let [first, second] = [0, 1].map(|_| {
        for ring in 0..2 {
            frontend.stop_ring(ring).unwrap();
        }
        let state = saved(&frontend);
        for ring in 0..2 {
            frontend.start_ring(&memory, ring);
        }
        state
    });
    assert_eq!(first, second);
}

#[test]
fn a_state_says_what_ran_last_and_not_what_ran_before_that() {
    let (frontend, memory) = (connect(profile()), guest());
    frontend.start(&memory, 4);
    for ring in 0..4 {
        frontend.stop_ring(ring).unwrap();
    }
    frontend.start_ring(&memory, 0);
    frontend.start_ring(&memory, 1);
    for ring in 0..2 {
        frontend.stop_ring(ring).unwrap();
    }
    let state: Value = serde_json::from_slice(&saved(&frontend)).unwrap();
    assert_eq!(state["ring_sizes"], json!([RING_SIZE, RING_SIZE, null, null]));
    assert_eq!(state["queue_pairs"], 1);
}

/// The state with another value, and with the fingerprint that goes with it.
fn with(key: &str, value: Value) -> Vec<u8> {
    let mut state = state();
    state[key] = value;
    let digits = state["acknowledged"].as_str().unwrap().trim_start_matches("0x");
    let acknowledged = FeatureSet(u64::from_str_radix(digits, 16).unwrap());
    let sizes: Vec<Option<u16>> = serde_json::from_value(state["ring_sizes"].clone()).unwrap();
    let pairs = u16::try_from(state["queue_pairs"].as_u64().unwrap()).unwrap();
    let digest = state["profile_digest"].as_str().unwrap();
    let fingerprint = isonic::profile::fingerprint(digest, acknowledged, &sizes, pairs);
    state["fingerprint"] = json!(fingerprint);
    state.to_string().into_bytes()
}

#[test]
fn a_state_of_another_interface_is_refused_field_by_field() {
    assert!(loads(profile(), &with("queue_pairs", json!(2))), "the fields that do fit are taken");
    for (key, value) in [
        ("profile_digest", json!("0".repeat(64))),
        ("acknowledged", json!("0x8000000000000000")),
        ("ring_sizes", json!([2048, 256])),
        ("ring_sizes", json!([256, 256, null, null, 256])),
        ("queue_pairs", json!(3)),
        ("mtu", json!(9000)),
    ] {
        assert!(!loads(profile(), &with(key, value.clone())), "{key} = {value}");
    }
    let features = profile().features;
    let other = Profile { features: features.without(FeatureSet(1 << 15)), ..profile() };
    assert!(!loads(other, state().to_string().as_bytes()), "a port that offers less");
}

#[test]
fn a_damaged_or_foreign_state_is_refused() {
    let whole = state();
    let text = whole.to_string();
    for len in [0, 1, text.len() / 2, text.len() - 1] {
        assert!(!loads(profile(), &text.as_bytes()[..len]), "the first {len} bytes");
    }
    assert!(!loads(profile(), format!("{text}x").as_bytes()));
    assert!(!loads(profile(), &[0xff; 100]));
    assert!(!loads(profile(), "[".repeat(60_000).as_bytes()));
    for (key, value) in [
        ("format", json!("passt")),
        ("major", json!(0)),
        ("major", json!(2)),
        ("major", json!(-1)),
        ("profile", json!("a\nb")),
        ("profile", json!("x".repeat(4000))),
        ("profile", json!("")),
        ("profile", Value::Null),
        ("profile_digest", json!("a b")),
        ("acknowledged", json!("12")),
        ("acknowledged", json!("0x10000000000000000")),
        ("ring_sizes", json!([70_000])),
        ("ring_sizes", json!({})),
        ("mtu", json!(1e9)),
        ("fingerprint", json!("0".repeat(64))),
    ] {
        let mut state = whole.clone();
        state[key] = value.clone();
        assert!(!loads(profile(), state.to_string().as_bytes()), "{key} = {value}");
    }
}

#[test]
fn no_byte_of_a_state_can_do_more_than_be_refused() {
    let state = state().to_string().into_bytes();
    let mut refused = 0;
    for at in 0..state.len() {
        for value in [0, b'"', b'9', b'}', 0xff] {
            let mut state = state.clone();
            state[at] = value;
            refused += usize::from(!loads(profile(), &state));
        }
    }
    // What is left is the name, the minor version, and bytes that were so before.
    assert!(refused > state.len() * 4, "{refused} of {}", state.len() * 5);
}

#[test]
fn what_a_later_version_adds_is_ignored() {
    let mut state = state();
    (state["minor"], state["more"]) = (json!(7), json!({ "of": ["anything"] }));
    assert!(loads(profile(), state.to_string().as_bytes()));
}

#[test]
fn a_state_that_comes_in_pieces_is_taken_while_the_front_end_writes() {
    let frontend = connect(profile());
    let mut channel = channel(&frontend, LOAD);
    for byte in state().to_string().as_bytes() {
        channel.write_all(&[*byte]).unwrap();
    }
    drop(channel);
    assert!(checked(&frontend));
}

#[test]
fn a_state_without_end_is_cut_off_and_the_front_end_does_not_wait() {
    let frontend = connect(profile());
    let mut channel = channel(&frontend, LOAD);
    // More than any socket's buffer: if the session did not read, this would block for ever, and if
    // it did not stop, this would never fail.
    let error = loop {
        if let Err(error) = channel.write_all(&[b' '; 4096]) {
            break error;
        }
    };
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
    assert!(!checked(&frontend));
    assert!(!saved(&frontend).is_empty(), "another transfer works");
}

#[test]
fn a_channel_that_is_not_closed_is_refused_at_once() {
    let frontend = connect(profile());
    let mut channel = channel(&frontend, LOAD);
    channel.write_all(state().to_string().as_bytes()).unwrap();
    assert!(!checked(&frontend));
    // It was the session's last word on that one.
    assert!(!checked(&frontend));
    assert!(channel.write_all(b"more").is_err());
}

#[test]
fn a_second_transfer_takes_the_place_of_the_first() {
    let frontend = connect(profile());
    let mut first = channel(&frontend, LOAD);
    let mut second = channel(&frontend, LOAD);
    assert!(first.write_all(b"late").is_err());
    second.write_all(state().to_string().as_bytes()).unwrap();
    drop(second);
    assert!(checked(&frontend));
    assert!(!checked(&frontend), "a transfer is checked once");
}

#[test]
fn whatever_descriptor_the_front_end_sends_is_closed_unused() {
    let regular = tempfile::tempfile().unwrap();
    let (socket, peer) = UnixStream::pair().unwrap();
    let socket = File::from(std::os::fd::OwnedFd::from(socket));
    for descriptor in [&regular, &socket, &File::open("/dev/null").unwrap()] {
        let frontend = connect(profile());
        assert!(frontend.send(code::SET_DEVICE_STATE_FD, 1, &pair(SAVE, 0), &[descriptor]));
        let (answer, file) = frontend.reply_with_file(code::SET_DEVICE_STATE_FD);
        assert_eq!(answer, 0);
        assert!(file.unwrap().read_to_end(&mut Vec::new()).unwrap() > 0);
        assert!(checked(&frontend));
    }
    assert_eq!(regular.metadata().unwrap().len(), 0);
    peer.set_nonblocking(true).unwrap();
    assert_eq!((&peer).read(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_transfer_against_the_rules_is_refused_with_a_number_and_no_descriptor() {
    let frontend = connect(profile());
    assert!(!checked(&frontend), "nothing was transferred");
    for (direction, phase) in [(2, 0), (u32::MAX, 0), (SAVE, 1), (LOAD, 7)] {
        let (answer, file) = transfer(&frontend, direction, phase);
        assert_eq!((answer, file.is_none()), (REFUSED, true), "{direction}, {phase}");
    }
    // No descriptor, and a body of another length.
    for body in [&pair(SAVE, 0)[..], &[0; 4]] {
        frontend.send(code::SET_DEVICE_STATE_FD, 1, body, &[]);
        assert_eq!(frontend.reply_with_file(code::SET_DEVICE_STATE_FD).0, REFUSED);
    }
    frontend.start(&guest(), 1);
    for direction in [SAVE, LOAD] {
        assert_eq!(transfer(&frontend, direction, 0).0, REFUSED, "ring 0 runs");
    }
    assert!(!checked(&frontend));
    frontend.stop_ring(0).unwrap();
    assert!(!saved(&frontend).is_empty());
}

#[test]
fn without_the_protocol_feature_there_is_no_transfer() {
    let host = Arc::new(RecordingHost::default()) as Arc<dyn PortBackend>;
    let offered = profile().protocol_features.without(FeatureSet(1 << PROTOCOL_DEVICE_STATE));
    for protocol_features in [profile().protocol_features, offered] {
        let profile = Profile { protocol_features, ..profile() };
        let frontend = Frontend::connect(profile, Arc::clone(&host));
        frontend.ok(code::SET_PROTOCOL_FEATURES, &offered.0.to_ne_bytes(), &[]);
        assert_eq!(transfer(&frontend, SAVE, 0).0, REFUSED);
        assert!(!checked(&frontend));
        assert!(frontend.number(code::GET_FEATURES).is_some());
    }
}

#[test]
fn a_session_ends_in_the_middle_of_a_transfer() {
    let frontend = connect(profile());
    let mut channel = channel(&frontend, LOAD);
    channel.write_all(b"{").unwrap();
    frontend.disconnect();
    assert!(channel.write_all(b"}").is_err());
}
