//! The frames that an uplink lets through: each kind is sent, and looked for at the other end.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use isonic::test_support::rig_guest::{OUTSIDE, frame};
use isonic::test_support::vm::Vm;

use super::PacketSocket;

/// Frames of a kind.
const FRAMES: usize = 5;
/// How long a frame is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// The wait for frames that will not come, after the others came.
const SILENCE: Duration = Duration::from_millis(300);
/// 802.1Q, VLAN 100.
const TAG: [u8; 4] = [0x81, 0, 0, 100];
const BROADCAST: [u8; 6] = [0xff; 6];

/// The fate of the frames of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// All came as they were sent.
    Whole,
    /// All came, without their VLAN tag.
    Untagged,
    /// None came.
    Lost,
}

/// The fates of frames of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Passage {
    /// From the wire to the VM's MAC.
    pub unicast: Fate,
    /// From the wire to the VM's MAC, with a VLAN tag.
    pub tagged: Fate,
    /// From the wire to all.
    pub flooded: Fate,
    /// From the VM to the wire.
    pub sent: Fate,
}

impl Passage {
    /// Everything goes through as it is.
    pub const WHOLE: Self =
        Self { unicast: Fate::Whole, tagged: Fate::Whole, flooded: Fate::Whole, sent: Fate::Whole };
}

/// Tries it: `vm`, whose MAC this is, and the wire send frames to each other.
pub fn passage(wire: &mut PacketSocket, vm: &mut Vm, mac: [u8; 6]) -> Passage {
    let (unicast, tagged, flooded) =
        (frame(mac, OUTSIDE, 100), tag(&frame(mac, OUTSIDE, 101)), frame(BROADCAST, OUTSIDE, 102));
    let out = frame(OUTSIDE, mac, 103);
    vm.received();
    for _ in 0..FRAMES {
        for frame in [&unicast, &tagged, &flooded] {
            wire.send(frame);
        }
        vm.send(&out);
    }
    let (mut came, mut left) = (Vec::new(), Vec::new());
    let deadline = Instant::now() + PATIENCE;
    let mut silent = Instant::now();
    while Instant::now() < deadline && silent.elapsed() < SILENCE {
        let arrived = vm.received();
        let sent: Vec<_> = std::iter::from_fn(|| wire.receive()).collect();
        if !arrived.is_empty() || sent.contains(&out) {
            silent = Instant::now();
        }
        came.extend(arrived);
        left.extend(sent);
    }
    Passage {
        unicast: fate(&came, &unicast),
        tagged: fate(&came, &tagged),
        flooded: fate(&came, &flooded),
        sent: fate(&left, &out),
    }
}

fn tag(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &TAG, &frame[12..]].concat()
}

fn fate(came: &[Vec<u8>], sent: &[u8]) -> Fate {
    let count = |wanted: &[u8]| came.iter().filter(|frame| frame[..] == *wanted).count();
    let whole = count(sent);
    let without = [&sent[..12], &sent[16..]].concat();
    let untagged = if sent[12..16] == TAG { count(&without) } else { 0 };
    match (whole, untagged) {
        (FRAMES, 0) => Fate::Whole,
        (0, FRAMES) => Fate::Untagged,
        (0, 0) => Fate::Lost,
        other => panic!("of {FRAMES} frames came (whole, untagged) {other:?}"),
    }
}
