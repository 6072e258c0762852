//! Whatever a front-end sends and whenever it goes, its session ends with all rings back, no
//! descriptor kept and nothing mapped.
//!
//! The censuses are of the whole process, so no other test may run meanwhile.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;

use crate::my_turn;
use isonic::test_support::frontend::{
    Frontend, GuestFile, NEED_REPLY, RING_SIZE, RecordingHost, addresses, code, event, pair,
    profile,
};
use isonic::vhost_user::PortBackend;
use proptest::test_runner::{RngAlgorithm, TestRng};
use rand_source::Source;

/// Open descriptors, and mappings of guest memory.
fn census() -> (usize, usize) {
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    (descriptors, maps.lines().filter(|line| line.contains("isonic-guest")).count())
}

/// Nothing was kept since `before`. A session of an earlier test may still have been closing then,
/// and one of this test's may still be: there may be less, and it may take a moment.
fn assert_nothing_kept(before: (usize, usize)) {
    let mut now = census();
    for _ in 0..500 {
        if now.0 <= before.0 && now.1 <= before.1 {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
        now = census();
    }
    panic!("descriptors and mappings: {before:?} before, {now:?} after");
}

/// Seeded random numbers.
mod rand_source {
    use super::{RngAlgorithm, TestRng};
    use proptest::prelude::RngCore;

    pub struct Source(TestRng);

    impl Source {
        pub fn new(seed: u8) -> Self {
            Self(TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
        }

        pub fn next(&mut self) -> u64 {
            self.0.next_u64()
        }

        /// Below `limit`.
        pub fn below(&mut self, limit: u64) -> u64 {
            self.next() % limit
        }

        pub fn bytes(&mut self, len: u64) -> Vec<u8> {
            (0..len).map(|_| self.next().to_le_bytes()[0]).collect()
        }
    }
}

fn connect() -> (Frontend, Arc<RecordingHost>) {
    let host = Arc::new(RecordingHost::default());
    (Frontend::connect(profile(), Arc::clone(&host) as Arc<dyn PortBackend>), host)
}

/// One message of a start: request, body, descriptor.
type Step = (u32, Vec<u8>, Option<File>);

/// All messages of a start in QEMU's order, two rings, and a stop.
fn script(memory: &GuestFile) -> Vec<Step> {
    let mut steps: Vec<Step> = vec![
        (code::SET_PROTOCOL_FEATURES, profile().protocol_features.0.to_ne_bytes().into(), None),
        (code::SET_DEVICE_STATE_FD, pair(0, 0), Some(event())),
        (code::SET_DEVICE_STATE_FD, pair(1, 0), Some(event())),
        (code::SET_OWNER, vec![], None),
        (code::SET_FEATURES, profile().features.0.to_ne_bytes().into(), None),
        (code::SET_MEM_TABLE, GuestFile::table(&[memory]), Some(memory.file.try_clone().unwrap())),
    ];
    for index in 0..2 {
        let event_body = u64::from(index).to_ne_bytes().to_vec();
        steps.push((code::SET_VRING_NUM, pair(index, RING_SIZE), None));
        steps.push((code::SET_VRING_BASE, pair(index, 0), None));
        steps.push((code::SET_VRING_ADDR, addresses(index, 0, memory.ring(index)), None));
        steps.push((code::SET_VRING_KICK, event_body.clone(), Some(event())));
        steps.push((code::SET_VRING_CALL, event_body.clone(), Some(event())));
        steps.push((code::SET_VRING_ERR, event_body, Some(event())));
        steps.push((code::SET_VRING_ENABLE, pair(index, 1), None));
    }
    steps.push((code::GET_VRING_BASE, pair(0, 0), None));
    steps
}

#[test]
fn a_disconnect_at_any_byte_of_any_message_takes_all_rings_back() {
    let _turn = my_turn();
    let memory = GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000);
    let before = census();
    for last in 0..script(&memory).len() {
        for cut in [0, 1, 11, 12, 13, 19] {
            let (frontend, host) = connect();
            let steps = script(&memory);
            for (request, body, file) in &steps[..last] {
                let files: Vec<&File> = file.iter().collect();
                frontend.send(*request, 1, body, &files);
            }
            let (request, body, file) = &steps[last];
            let len = u32::try_from(body.len()).unwrap();
            let header = [*request, 1, len].map(u32::to_ne_bytes).concat();
            let message = [&header[..], body].concat();
            let files: Vec<&File> = file.iter().collect();
            if cut > 0 {
                frontend.send_bytes(&message[..cut.min(message.len())], &files);
            }
            frontend.disconnect();
            assert!(host.indices().is_empty(), "after {last} messages and {cut} bytes");
        }
    }
    assert_nothing_kept(before);
}

#[test]
fn two_hundred_connects_leave_no_descriptor_and_no_mapping() {
    let _turn = my_turn();
    let memory = GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000);
    let before = census();
    for _ in 0..200 {
        let (frontend, host) = connect();
        frontend.start(&memory, 4);
        assert_eq!(census().1, before.1 + 1, "the guest's memory is mapped once");
        frontend.disconnect();
        assert!(host.indices().is_empty());
        assert_nothing_kept(before);
    }
}

#[test]
fn every_message_with_any_number_of_descriptors_and_any_size_leaks_nothing() {
    let _turn = my_turn();
    let memory = GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000);
    let mut random = Source::new(1);
    let before = census();
    let extra: Vec<File> = (0..8).map(|_| event()).chain([event()]).collect();
    for request in 0..50 {
        for count in 0..=8 {
            for len in [0, 4, 8, 12, 32, 40, 48, 4096] {
                let (frontend, host) = connect();
                if random.below(2) == 0 {
                    frontend.start(&memory, 2);
                }
                let files: Vec<&File> = extra.iter().take(count).collect();
                let body = random.bytes(len);
                frontend.send(request, NEED_REPLY, &body, &files);
                frontend.send(request, 1, &vec![0; body.len()], &files);
                frontend.disconnect();
                assert!(host.indices().is_empty(), "request {request}");
            }
        }
    }
    drop(extra);
    assert_nothing_kept(before);
}

#[test]
fn one_session_outlives_thousands_of_hostile_messages() {
    let _turn = my_turn();
    let memory = GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000);
    let (frontend, host) = connect();
    frontend.start(&memory, 2);
    let mut random = Source::new(2);
    let files: Vec<File> = (0..8).map(|_| event()).collect();
    // Once round first, so that every descriptor slot the session may hold is filled.
    let mut before = None;
    for turn in 0..6000 {
        // Requests that answer with a payload end the session when refused; leave those out.
        let choices = [0, 2, 5, 7, 8, 9, 10, 14, 16, 18, 19, 20, 21, 35, 37, 38, 41, 99];
        let request = choices[usize::try_from(random.below(18)).unwrap()];
        let count = usize::try_from(random.below(9)).unwrap();
        let len = [8, 8, 8, 40, 40, 0, 72, 300][usize::try_from(random.below(8)).unwrap()];
        let mut body = random.bytes(len);
        if let Some(index) = body.first_chunk_mut::<4>() {
            *index = u32::try_from(random.below(6)).unwrap().to_ne_bytes();
        }
        let chosen: Vec<&File> = files.iter().take(count).collect();
        let _ = frontend.accepted(request, &body, &chosen);
        if turn == 1000 {
            before = Some(census());
        }
    }
    // Each of the four rings may have gained or lost an error descriptor since.
    let (before, after) = (before.unwrap(), census());
    assert!(after.0.abs_diff(before.0) <= 4, "{before:?} {after:?}");
    assert_eq!(after.1, before.1);
    assert!(frontend.number(code::GET_FEATURES).is_some());
    frontend.disconnect();
    assert!(host.indices().is_empty());
}

#[test]
fn random_bytes_end_the_session_and_nothing_else() {
    let _turn = my_turn();
    let memory = GuestFile::new(0x4000_0000, 0x7f00_0000_0000, 0x10_0000);
    let before = census();
    let mut random = Source::new(3);
    for _ in 0..300 {
        let (frontend, host) = connect();
        frontend.start(&memory, 1);
        let len = 1 + random.below(500);
        let noise = random.bytes(len);
        // The session may close before all of it is written.
        let _ = (&frontend.stream).write_all(&noise);
        frontend.disconnect();
        assert!(host.indices().is_empty());
    }
    assert_nothing_kept(before);
}

#[test]
fn more_descriptors_than_any_request_has_are_closed() {
    let _turn = my_turn();
    let (frontend, _host) = connect();
    frontend.negotiate();
    let before = census();
    let files: Vec<File> = (0..64).map(|_| event()).collect();
    let borrowed: Vec<&File> = files.iter().collect();
    for request in [code::SET_MEM_TABLE, code::SET_VRING_CALL, code::SET_OWNER, 99] {
        frontend.refused(request, &[0; 40], &borrowed);
        // With every byte of the body anew.
        let header = [request, NEED_REPLY, 40].map(u32::to_ne_bytes).concat();
        assert!(frontend.send_bytes(&header, &borrowed));
        for _ in 0..40 {
            assert!(frontend.send_bytes(&[0], &borrowed[..8]));
        }
        assert_eq!(frontend.reply(request), Some(1_u64.to_ne_bytes().to_vec()));
    }
    drop(files);
    assert_nothing_kept(before);
}
