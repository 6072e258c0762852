//! Random packets: both devices must deliver the same ones, and give back the same chains.

use isonic::test_support::guest_driver::{HEADER, Used};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::scenes::frame;
use super::stage::{Stage, Who};

/// Runs of the script; each makes both devices anew.
const CASES: u32 = 64;

/// What happens between two looks at the devices.
#[derive(Clone, Debug)]
enum Burst {
    /// Packets from the guest: the length of each, and where it is cut.
    Send(Vec<(usize, Vec<usize>)>),
    /// Buffers that the guest posts, each of pieces; then frames of these lengths arrive.
    Arrive(Vec<Vec<usize>>, Vec<usize>),
}

/// What was seen after one burst.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    departed: Vec<Vec<u8>>,
    completed: Vec<Used>,
    received: Vec<(Vec<u8>, Vec<u8>)>,
}

fn burst() -> impl Strategy<Value = Burst> {
    // Some too short, some too long.
    let len = || prop_oneof![0..30_usize, 14..128_usize, 128..1540_usize];
    let packet = (len(), vec(1..400_usize, 0..4));
    // A buffer is at least as long as the header (virtio 1.2, 5.1.6.3.1).
    let piece = prop_oneof![1..40_usize, 40..2000_usize];
    let buffer =
        (HEADER..60_usize, vec(piece, 0..3)).prop_map(|(first, rest)| [vec![first], rest].concat());
    let arriving = prop_oneof![14..128_usize, 128..1540_usize];
    prop_oneof![
        vec(packet, 1..30).prop_map(Burst::Send),
        (vec(buffer, 0..20), vec(arriving, 1..20))
            .prop_map(|(buffers, frames)| Burst::Arrive(buffers, frames)),
    ]
}

fn play(who: Who, bursts: &[Burst]) -> Vec<Seen> {
    let mut stage = Stage::new(who);
    stage.run();
    let mut seen = Vec::new();
    for (number, burst) in bursts.iter().enumerate() {
        match burst {
            Burst::Send(packets) => {
                for (len, pieces) in packets {
                    let bytes = frame(*len, number as u8);
                    stage.sender().send(&bytes[..*len], pieces);
                }
            }
            Burst::Arrive(buffers, frames) => {
                for buffer in buffers {
                    stage.receiver().post_chain(buffer);
                }
                for len in frames {
                    stage.arrive(&frame(*len, number as u8));
                }
            }
        }
        stage.settle();
        let received = stage.receiver().received();
        seen.push(Seen { departed: stage.departed(), completed: stage.completed(), received });
    }
    seen
}

#[test]
fn random_packets_fare_alike() {
    let config = Config { cases: CASES, failure_persistence: None, ..Config::default() };
    // The same script each time: a failure can be looked at again.
    let random = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, random);
    // At most 20 posted buffers of 3 pieces stay from each burst, and the ring has 256 entries.
    let script = vec(burst(), 1..4);
    let played = runner.run(&script, |bursts| {
        prop_assert_eq!(play(Who::Ours, &bursts), play(Who::Reference, &bursts));
        Ok(())
    });
    played.unwrap();
}
