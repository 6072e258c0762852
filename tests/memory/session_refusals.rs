//! A request that breaks a rule is refused, and nothing else happens: the session lives, and the
//! rings that run are not touched.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use isonic::test_support::frontend::{
    Frontend, GuestFile, NEED_REPLY, RING_SIZE, RecordingHost, addresses, code, event, lingering,
    pair, profile,
};
use isonic::vhost_user::{PortBackend, Refusal, SessionEnd, TransportError};

/// A session with ring 0 running and ring 1 untouched.
fn running() -> (Frontend, Arc<RecordingHost>, GuestFile) {
    let host = Arc::new(RecordingHost::default());
    let frontend = Frontend::connect(profile(), Arc::clone(&host) as Arc<dyn PortBackend>);
    let memory = GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x40_0000);
    frontend.start(&memory, 1);
    host.moves.lock().unwrap().clear();
    (frontend, host, memory)
}

/// Each of these must be refused without ring 0 noticing.
fn all_refused(cases: &[(u32, Vec<u8>)]) {
    let (frontend, host, _memory) = running();
    for (request, body) in cases {
        assert!(!frontend.accepted(*request, body, &[]), "request {request} with {body:02x?}");
        assert_eq!(host.indices(), [0]);
    }
    assert!(host.moves.lock().unwrap().is_empty());
    assert_eq!(frontend.number(code::GET_FEATURES), Some(profile().features.0));
}

#[test]
fn features_outside_the_profile_or_without_version_1_are_refused() {
    let offered = profile().features.0;
    let features = |value: u64| (code::SET_FEATURES, value.to_ne_bytes().to_vec());
    all_refused(&[
        features(offered | 1),
        features(offered | 1 << 34),
        features(offered & !(1 << 32)),
        features(0),
        // Rings run with indirect descriptors: they cannot go now.
        features(offered & !(1 << 28)),
        (code::SET_PROTOCOL_FEATURES, (1_u64 << 9).to_ne_bytes().to_vec()),
        (code::SET_PROTOCOL_FEATURES, u64::MAX.to_ne_bytes().to_vec()),
    ]);
}

#[test]
fn the_same_features_again_are_accepted_while_rings_run() {
    let (frontend, host, _memory) = running();
    frontend.ok(code::SET_FEATURES, &profile().features.0.to_ne_bytes(), &[]);
    frontend.ok(code::SET_OWNER, &[], &[]);
    assert!(host.rings()[&0].enabled);
    assert!(host.moves.lock().unwrap().is_empty());
}

#[test]
fn a_ring_that_the_profile_does_not_have_is_refused_with_all_bits_of_its_index() {
    let mut cases = Vec::new();
    for index in [4, 0x100, 0x1_0000, 0x1_0001, 0x8000_0000, u32::MAX] {
        for request in [code::SET_VRING_NUM, code::SET_VRING_BASE, code::SET_VRING_ENABLE] {
            cases.push((request, pair(index, 1)));
        }
        cases.push((code::SET_VRING_ADDR, addresses(index, 0, [0, 0, 0])));
    }
    for index in [4_u64, 0xff, 0x1_0000, 0x1_0001, 1 << 32, u64::MAX] {
        for request in [code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_VRING_ERR] {
            cases.push((request, (index | 0x100).to_ne_bytes().to_vec()));
        }
    }
    all_refused(&cases);
}

#[test]
fn ring_sizes_above_the_profile_or_not_a_power_of_two_are_refused() {
    let sizes = [0, 3, 100, 1023, 1025, 2048, 32768, 32769, 0x1_0000, 0x1_0100, u32::MAX];
    all_refused(&sizes.map(|size| (code::SET_VRING_NUM, pair(1, size))));
}

#[test]
fn a_running_ring_keeps_its_size_base_and_addresses() {
    all_refused(&[
        (code::SET_VRING_NUM, pair(0, 128)),
        (code::SET_VRING_BASE, pair(0, 5)),
        (code::SET_VRING_ADDR, addresses(0, 0, [0x1000, 0x2000, 0x3000])),
    ]);
}

#[test]
fn values_without_a_meaning_are_refused() {
    let aligned = [0x7f00_0000_0000, 0x7f00_0000_4000, 0x7f00_0000_8000];
    all_refused(&[
        (code::SET_VRING_ENABLE, pair(0, 2)),
        (code::SET_VRING_ENABLE, pair(0, u32::MAX)),
        (code::SET_VRING_BASE, pair(1, 0x1_0000)),
        (code::SET_VRING_ADDR, addresses(1, 1, aligned)),
        (code::SET_VRING_ADDR, addresses(1, 0x8000_0000, aligned)),
        (code::SET_VRING_ADDR, addresses(1, 0, [aligned[0] + 8, aligned[1], aligned[2]])),
        (code::SET_VRING_ADDR, addresses(1, 0, [aligned[0], aligned[1] + 1, aligned[2]])),
        (code::SET_VRING_ADDR, addresses(1, 0, [aligned[0], aligned[1], aligned[2] + 2])),
        (code::NET_SET_MTU, 1501_u64.to_ne_bytes().to_vec()),
        (code::NET_SET_MTU, (1500_u64 | 1 << 32).to_ne_bytes().to_vec()),
        // No descriptor, though the flag says that there is one.
        (code::SET_VRING_KICK, 1_u64.to_ne_bytes().to_vec()),
        (code::SET_MEM_TABLE, 0_u64.to_ne_bytes().to_vec()),
    ]);
}

#[test]
fn requests_nobody_offered_or_knows_are_refused_whole() {
    let unknown = [0, 7, 21, 22, 23, 24, 25, 27, 28, 31, 32, 33, 35, 41, 43, 44, 45];
    let mut cases = Vec::new();
    for request in unknown.into_iter().chain([99, 0x100, u32::MAX]) {
        for len in [0, 8, 12, 4096] {
            cases.push((request, vec![0x5a; len]));
        }
    }
    all_refused(&cases);
}

#[test]
fn a_request_of_a_protocol_feature_not_acknowledged_is_refused() {
    let host = Arc::new(RecordingHost::default());
    let frontend = Frontend::connect(profile(), host);
    frontend.number(code::GET_FEATURES).unwrap();
    // REPLY_ACK alone.
    frontend.ok(code::SET_PROTOCOL_FEATURES, &8_u64.to_ne_bytes(), &[]);
    frontend.refused(code::NET_SET_MTU, &1500_u64.to_ne_bytes(), &[]);
    frontend.refused(code::SEND_RARP, &0_u64.to_ne_bytes(), &[]);
    frontend.refused(code::SET_STATUS, &0_u64.to_ne_bytes(), &[]);
    frontend.refused(code::RESET_DEVICE, &[], &[]);
    frontend.refused(code::CLOSE_CRYPTO_SESSION, &0_u64.to_ne_bytes(), &[]);
    let (channel, _peer) = UnixStream::pair().unwrap();
    frontend.refused(code::SET_BACKEND_REQ_FD, &[], &[&File::from(OwnedFd::from(channel))]);
}

#[test]
fn a_backend_channel_that_is_no_connection_is_refused() {
    let (frontend, _host, memory) = running();
    let (datagrams, _peer) = UnixDatagram::pair().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let others = [event(), memory.file, File::from(OwnedFd::from(datagrams))];
    for file in others.into_iter().chain([File::from(OwnedFd::from(listener))]) {
        frontend.refused(code::SET_BACKEND_REQ_FD, &[], &[&file]);
    }
    let (ours, _theirs) = UnixStream::pair().unwrap();
    let ours = File::from(OwnedFd::from(ours));
    frontend.refused(code::SET_BACKEND_REQ_FD, &[], &[]);
    frontend.refused(code::SET_BACKEND_REQ_FD, &[], &[&ours, &ours]);
    frontend.refused(code::SET_BACKEND_REQ_FD, &[0; 8], &[&ours]);
}

#[test]
fn crypto_sessions_are_offered_by_the_protocol_and_refused_by_the_device() {
    let (frontend, host, _memory) = running();
    frontend.refused(code::CLOSE_CRYPTO_SESSION, &0_u64.to_ne_bytes(), &[]);
    assert_eq!(host.indices(), [0]);
    // Its answer would have to be a session.
    assert!(frontend.send(code::CREATE_CRYPTO_SESSION, NEED_REPLY, &[0; 700], &[]));
    assert_eq!(frontend.reply(code::CREATE_CRYPTO_SESSION), None);
    let end = frontend.ended();
    assert!(matches!(end, SessionEnd::Unanswerable { source: Refusal::NoCrypto, .. }));
}

#[test]
fn a_descriptor_that_is_no_eventfd_is_refused() {
    let (frontend, host, memory) = running();
    let (reader, _writer) = std::io::pipe().unwrap();
    let pipe = File::from(std::os::fd::OwnedFd::from(reader));
    for request in [code::SET_VRING_KICK, code::SET_VRING_CALL, code::SET_VRING_ERR] {
        frontend.refused(request, &0_u64.to_ne_bytes(), &[&pipe]);
        frontend.refused(request, &0_u64.to_ne_bytes(), &[&memory.file]);
        // Two of them, or one where the flag says none.
        frontend.refused(request, &0_u64.to_ne_bytes(), &[&event(), &event()]);
        frontend.refused(request, &0x100_u64.to_ne_bytes(), &[&event()]);
    }
    assert_eq!(host.indices(), [0]);
    assert!(host.moves.lock().unwrap().is_empty());
}

#[test]
fn a_ring_outside_the_memory_is_refused_and_can_be_set_right() {
    let (frontend, host, memory) = running();
    frontend.ok(code::SET_VRING_NUM, &pair(1, RING_SIZE), &[]);
    let end = memory.frontend + memory.size;
    frontend.ok(code::SET_VRING_ADDR, &addresses(1, 0, [end - 16, end, end]), &[]);
    frontend.refused(code::SET_VRING_KICK, &1_u64.to_ne_bytes(), &[&event()]);
    assert_eq!(host.indices(), [0]);
    frontend.start_ring(&memory, 1);
    assert_eq!(host.indices(), [0, 1]);
}

#[test]
fn refusals_without_a_reply_flag_are_silent_and_the_session_goes_on() {
    let (frontend, host, _memory) = running();
    for _ in 0..1000 {
        assert!(frontend.send(code::SET_VRING_NUM, 1, &pair(99, 99), &[]));
        assert!(frontend.send(77, 1, &[1, 2, 3], &[]));
    }
    assert_eq!(frontend.number(code::GET_QUEUE_NUM), Some(2));
    assert_eq!(host.indices(), [0]);
}

#[test]
fn a_refused_request_whose_answer_has_no_room_for_it_ends_the_session() {
    let (frontend, host, _memory) = running();
    assert_eq!(frontend.stop_ring(0x1_0000), None);
    let end = frontend.ended();
    assert!(matches!(
        end,
        SessionEnd::Unanswerable {
            source: Refusal::NoSuchRing { ring: 0x1_0000, limit: 4, .. },
            ..
        }
    ));
    assert!(host.indices().is_empty());
}

#[test]
fn another_protocol_or_an_endless_body_ends_the_session_with_its_reason() {
    let (frontend, host, _memory) = running();
    assert!(frontend.send(code::GET_FEATURES, 2, &[], &[]));
    let end = frontend.ended();
    assert!(matches!(end, SessionEnd::Protocol(TransportError::Version { code: 1, version: 2 })));
    assert!(host.indices().is_empty());

    let (frontend, host, _memory) = running();
    assert!(frontend.send(code::SET_MEM_TABLE, NEED_REPLY, &[0; 4097], &[]));
    let end = frontend.ended();
    assert!(matches!(end, SessionEnd::Protocol(TransportError::TooLong { code: 5, len: 4097 })));
    assert!(host.indices().is_empty());
}

/// Say all of ring 1 in QEMU's order but for what is left out, the kick last.
fn say_ring(frontend: &Frontend, memory: &GuestFile, without: u32) {
    let index = 1_u64.to_ne_bytes();
    let steps = [
        (code::SET_VRING_NUM, pair(1, RING_SIZE), None),
        (code::SET_VRING_BASE, pair(1, 0), None),
        (code::SET_VRING_ADDR, addresses(1, 0, memory.ring(1)), None),
        (code::SET_VRING_CALL, index.to_vec(), Some(event())),
        (code::SET_VRING_KICK, index.to_vec(), Some(event())),
    ];
    for (request, body, file) in steps.into_iter().filter(|(request, ..)| *request != without) {
        let files: Vec<&File> = file.iter().collect();
        // Not asked for: a front-end need not hear that a ring could not start.
        assert!(frontend.send(request, 1, &body, &files));
    }
    assert_eq!(frontend.number(code::GET_QUEUE_NUM), Some(2), "all of them were done");
}

#[test]
fn a_ring_does_not_start_with_what_was_in_force_before_a_refusal() {
    let end = 0x7f00_0000_0000_u64 + (1 << 40);
    let refused: [(u32, Vec<u8>, bool); 9] = [
        (code::SET_VRING_NUM, pair(1, 4096), false),
        (code::SET_VRING_NUM, pair(1, 100), false),
        (code::SET_VRING_NUM, pair(1, RING_SIZE), true),
        (code::SET_VRING_BASE, pair(1, 0x1_0000), false),
        (code::SET_VRING_ADDR, addresses(1, 2, [end; 3]), false),
        (code::SET_VRING_ADDR, addresses(1, 0, [end + 1, end, end]), false),
        (code::SET_VRING_ADDR, pair(1, 0), false),
        (code::SET_VRING_KICK, 1_u64.to_ne_bytes().to_vec(), false),
        (code::SET_VRING_CALL, 1_u64.to_ne_bytes().to_vec(), false),
    ];
    for (request, body, with_descriptor) in refused {
        let (frontend, host, memory) = running();
        // A run, so that there is something to be left over.
        frontend.start_ring(&memory, 1);
        assert_eq!(host.indices(), [0, 1]);
        frontend.stop_ring(1).unwrap();
        let descriptor = event();
        let files: &[&File] = if with_descriptor { &[&descriptor] } else { &[] };
        frontend.refused(request, &body, files);
        say_ring(&frontend, &memory, request);
        assert_eq!(host.indices(), [0], "after {request} with {body:02x?} was refused");
        say_ring(&frontend, &memory, 0);
        assert_eq!(host.indices(), [0, 1], "{request} came again");
    }
}

#[test]
fn a_ring_that_runs_goes_on_after_a_refusal_and_starts_again_only_without_one() {
    let (frontend, host, memory) = running();
    frontend.start_ring(&memory, 1);
    frontend.refused(code::SET_VRING_NUM, &pair(1, 512), &[]);
    assert_eq!(host.indices(), [0, 1]);
    frontend.stop_ring(1).unwrap();
    say_ring(&frontend, &memory, code::SET_VRING_NUM);
    assert_eq!(host.indices(), [0], "its front-end believes that it has 512 entries");
    frontend.ok(code::SET_VRING_NUM, &pair(1, 512), &[]);
    assert_eq!(host.rings()[&1].queue.ring().size(), 512);
}

#[test]
fn no_ring_starts_by_features_or_in_memory_that_were_to_be_replaced() {
    let offered = profile().features.0;
    let (frontend, host, memory) = running();
    frontend.stop_ring(0).unwrap();
    frontend.refused(code::SET_FEATURES, &(offered | 1).to_ne_bytes(), &[]);
    say_ring(&frontend, &memory, 0);
    assert!(host.indices().is_empty());
    frontend.ok(code::SET_FEATURES, &offered.to_ne_bytes(), &[]);
    assert_eq!(host.indices(), [1], "it waited for nothing else");
    frontend.stop_ring(1).unwrap();
    let table = GuestFile::table(&[&memory]);
    frontend.refused(code::SET_MEM_TABLE, &table, &[&event()]);
    say_ring(&frontend, &memory, 0);
    assert!(host.indices().is_empty());
    frontend.ok(code::SET_MEM_TABLE, &table, &[&memory.file]);
    assert_eq!(host.indices(), [1]);
}

#[test]
fn the_offer_is_the_profile_s_and_nothing_is_forced_on() {
    for bit in [0, 3, 17] {
        let mut profile = profile();
        profile.protocol_features.0 &= !(1 << bit);
        let offer = profile.protocol_features.0;
        let frontend = Frontend::connect(profile, Arc::new(RecordingHost::default()));
        assert_eq!(frontend.number(code::GET_PROTOCOL_FEATURES), Some(offer), "bit {bit}");
        // As front-ends go on: what they were offered they may have.
        assert!(frontend.send(code::SET_PROTOCOL_FEATURES, 1, &offer.to_ne_bytes(), &[]));
        let pairs = frontend.number(code::GET_QUEUE_NUM);
        assert_eq!(pairs.is_some(), bit != 0, "GET_QUEUE_NUM needs mq alone");
    }
}

/// "It is recommended that back-ends either ignore this message, or use it to disable all rings."
#[test]
fn reset_owner_discards_nothing() {
    const RESET_OWNER: u32 = 4;
    let (frontend, host, _memory) = running();
    frontend.ok(RESET_OWNER, &[], &[]);
    assert_eq!(host.indices(), [0]);
    assert!(host.moves.lock().unwrap().is_empty());
}

#[test]
fn a_descriptor_whose_close_waits_is_refused_and_the_session_goes_on() {
    let (frontend, host, memory) = running();
    let region = GuestFile::table(&[&memory]);
    let requests = [
        (code::SET_OWNER, vec![]),
        (code::SET_MEM_TABLE, region),
        (code::ADD_MEM_REG, memory.single()),
        (code::SET_VRING_KICK, 1_u64.to_ne_bytes().to_vec()),
        (code::SET_VRING_CALL, 1_u64.to_ne_bytes().to_vec()),
        (code::SET_LOG_FD, vec![]),
        (code::SET_BACKEND_REQ_FD, vec![]),
        (99, vec![]),
    ];
    let mut peers = Vec::new();
    for (request, body) in requests {
        let (socket, peer) = lingering();
        assert!(frontend.send(request, NEED_REPLY, &body, &[&socket]));
        // Ours is not the last any more.
        drop(socket);
        assert_eq!(frontend.reply(request), Some(1_u64.to_ne_bytes().to_vec()), "{request}");
        peers.push(peer);
    }
    assert_eq!(host.indices(), [0]);
}

#[test]
fn a_front_end_that_sends_more_than_is_closed_loses_its_session_and_nothing_else() {
    // Epoll sets of epoll sets and pipes close at once, and are not known to: a thread has them.
    let (frontend, host, _memory) = running();
    let (near, _far) = UnixStream::pair().unwrap();
    let file = File::from(OwnedFd::from(near));
    let many: Vec<&File> = std::iter::repeat_n(&file, 64).collect();
    for _ in 0..20 {
        if !frontend.send(code::SET_OWNER, 1, &[], &many) {
            break;
        }
    }
    drop(frontend);
    let deadline = Instant::now() + Duration::from_secs(30);
    while !host.indices().is_empty() {
        assert!(Instant::now() < deadline, "rings are back whatever is closed meanwhile");
        std::thread::sleep(Duration::from_millis(5));
    }
}
