//! Every kind of ring that DPDK's virtio-user knows, each with every number of queue pairs and
//! every size of frame, and the contents compared byte by byte.
//!
//! ```text
//!   this test ── packet socket ── veth ── isonic ── vhost-user ── testpmd, swaps the addresses
//!             ◀──────────────────────────────────────────────────
//! ```

use std::time::Duration;

use crate::common::{Bed, Configuration, Daemon, NIC, PacketSocket, PortSpec, Testpmd, VirtioUser};

/// One kind of ring: what virtio-user is told, and what it says it does with them.
struct Rings {
    packed: bool,
    mergeable: bool,
    in_order: bool,
    vectorized: bool,
    /// The paths that DPDK takes: from us, to us.
    paths: [&'static str; 2],
    /// Why a path is not the vectorized one, in DPDK's words; it says nothing where its code has no
    /// such path.
    but: &'static str,
}

const fn rings(options: [bool; 4], paths: [&'static str; 2], but: &'static str) -> Rings {
    let [packed, mergeable, in_order, vectorized] = options;
    Rings { packed, mergeable, in_order, vectorized, paths, but }
}

const NO: bool = false;
const PLAIN: [&str; 2] = ["standard Rx", "standard Tx"];
const MERGED: [&str; 2] = ["mergeable buffer Rx", "standard Tx"];
const ORDERED: [&str; 2] = ["inorder Rx", "inorder Tx"];
const PACKED: [&str; 2] = ["packed ring standard Rx", "packed ring standard Tx"];
const PACKED_MERGED: [&str; 2] = ["packed ring mergeable buffer Rx", "packed ring standard Tx"];
const UNMET: &str = "disabled packed ring vectorized path for requirements not met";

/// All there are; the order of the four is packed, mergeable, in order, vectorized. Which path DPDK
/// takes is `set_rxtx_funcs` and `virtio_dev_configure` of its drivers/net/virtio/virtio_ethdev.c.
const TABLE: [Rings; 16] = [
    rings([NO, NO, NO, NO], PLAIN, ""),
    rings([NO, NO, NO, true], ["vectorized Rx", "standard Tx"], ""),
    rings([NO, NO, true, NO], ORDERED, ""),
    rings([NO, NO, true, true], ORDERED, ""),
    rings([NO, true, NO, NO], MERGED, ""),
    rings([NO, true, NO, true], MERGED, "disabled split ring vectorized rx for mrg_rxbuf enabled"),
    rings([NO, true, true, NO], ORDERED, ""),
    rings([NO, true, true, true], ORDERED, ""),
    rings([true, NO, NO, NO], PACKED, ""),
    rings([true, NO, NO, true], PACKED, UNMET),
    rings([true, NO, true, NO], PACKED, ""),
    rings([true, NO, true, true], ["packed ring vectorized Rx", "packed ring vectorized Tx"], ""),
    rings([true, true, NO, NO], PACKED_MERGED, ""),
    rings([true, true, NO, true], PACKED_MERGED, UNMET),
    rings([true, true, true, NO], PACKED_MERGED, ""),
    rings(
        [true, true, true, true],
        ["packed ring mergeable buffer Rx", "packed ring vectorized Tx"],
        "disabled packed ring vectorized rx for mrg_rxbuf enabled",
    ),
];

/// Bytes, Ethernet header included: a small one, and what MTUs of 1500 and 9000 allow.
const SIZES: [usize; 3] = [64, 14 + 1500, 14 + 9000];
/// Frames of each size.
const FRAMES: usize = 192;
/// Frames under way at once: so few that nobody along the way has to drop one, however slow he is.
/// The smallest buffers that DPDK posts hold 2 KiB, and a ring has 256.
const WINDOW: usize = 32;
/// How long a frame may be under way.
const PATIENCE: Duration = Duration::from_secs(5);

const HERE: [u8; 6] = [0x02, 0xff, 0, 0, 0, 9];
const PORT_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn split_rings_return_every_frame_unchanged_on_one_queue_pair() {
    every_combination(NO, 1);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn split_rings_return_every_frame_unchanged_on_two_queue_pairs() {
    every_combination(NO, 2);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn split_rings_return_every_frame_unchanged_on_four_queue_pairs() {
    every_combination(NO, 4);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_return_every_frame_unchanged_on_one_queue_pair() {
    every_combination(true, 1);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_return_every_frame_unchanged_on_two_queue_pairs() {
    every_combination(true, 2);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_return_every_frame_unchanged_on_four_queue_pairs() {
    every_combination(true, 4);
}

/// All rings of this layout in the table, one after the other on one port.
fn every_combination(packed: bool, queue_pairs: u32) {
    let bed = Bed::with_mtu(1, queue_pairs, 9000);
    let port = PortSpec::switch(NIC, 1).with_profile("org.isonic.net.v2,in_order=on,mtu=9000");
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut wire = PacketSocket::open(&bed.wire, &bed.uplinks[0].peer, PATIENCE);
    for rings in TABLE.iter().filter(|rings| rings.packed == packed) {
        let mut testpmd = rings.start(&bed, &port, queue_pairs);
        daemon.wait_state("vm1", "running");
        rings.assert_negotiated(&daemon);
        rings.assert_paths(&testpmd.log());
        testpmd.command("start", "nb forwarding cores");
        for size in SIZES {
            let before = counted(&daemon);
            let lost = round_trip(&mut wire, size);
            let after = counted(&daemon);
            let [delivered, taken, dropped] = std::array::from_fn(|at| after[at] - before[at]);
            let all = FRAMES as u64;
            let what = || format!("{} × {queue_pairs}, {size} bytes: {lost} lost", rings.options());
            assert_eq!((delivered, taken, dropped), (all, all, 0), "{}", what());
            assert_eq!(lost, 0, "{}", what());
        }
        assert_every_queue_was_used(&mut testpmd, queue_pairs);
        testpmd.quit();
        daemon.wait_state("vm1", "waiting");
    }
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    daemon.frames();
}

impl Rings {
    fn options(&self) -> String {
        let [packed, mergeable, in_order, vectorized] =
            [self.packed, self.mergeable, self.in_order, self.vectorized].map(u8::from);
        format!(
            ",packed_vq={packed},mrg_rxbuf={mergeable},in_order={in_order},vectorized={vectorized}"
        )
    }

    fn start(&self, bed: &Bed, port: &PortSpec, queue_pairs: u32) -> Testpmd {
        // Where buffers are merged they are small, so that they must be; MULTI_SEGS sends them so.
        let buffers = if self.mergeable { "--enable-scatter" } else { "--mbuf-size=9216" };
        let options = VirtioUser {
            queue_pairs,
            mode: "macswap",
            device: &self.options(),
            // AVX-512 is not used unless asked for.
            environment: "--force-max-simd-bitwidth=512 --log-level=pmd.net.virtio.*:info",
            testpmd: &format!("--max-pkt-len=9018 --tx-offloads=0x8000 {buffers}"),
        };
        Testpmd::front_end(bed, port, &options)
    }

    fn assert_negotiated(&self, daemon: &Daemon<'_>) {
        let view = daemon.json(&["port", "show", "vm1"]);
        let names = view["binding"]["acknowledged"]["names"].as_array().expect("names");
        for (name, wanted) in [
            ("ring_packed", self.packed),
            ("mrg_rxbuf", self.mergeable),
            ("in_order", self.in_order),
        ] {
            let negotiated = names.iter().any(|other| other == name);
            assert_eq!(negotiated, wanted, "{}: {name}", self.options());
        }
    }

    /// What DPDK says it does is what the table says.
    fn assert_paths(&self, log: &str) {
        let vectors = is_x86_feature_detected!("avx512f");
        let without = self.packed && self.vectorized && !vectors;
        let (paths, but) = match () {
            () if without && self.mergeable => (PACKED_MERGED, UNMET),
            () if without => (PACKED, UNMET),
            () => (self.paths, self.but),
        };
        for path in paths {
            let line = format!("virtio: using {path} path on port 0");
            assert!(log.contains(&line), "{}: no {line:?} in\n{log}", self.options());
        }
        let disabled = log.lines().any(|line| line.contains("disabled"));
        assert!(
            log.contains(but) && disabled != but.is_empty(),
            "{}: not {but:?} in\n{log}",
            self.options()
        );
    }
}

/// Delivered to the guest, taken from it, and dropped for any reason.
fn counted(daemon: &Daemon<'_>) -> [u64; 3] {
    [
        daemon.port_counter("vm1", "to_guest_packets"),
        daemon.port_counter("vm1", "from_guest_packets"),
        daemon.port_counters("vm1", "to_guest_dropped")
            + daemon.port_counters("vm1", "from_guest_dropped"),
    ]
}

/// Sends frames of `size` bytes and compares what returns; gives how many did not.
fn round_trip(wire: &mut PacketSocket, size: usize) -> usize {
    let frames: Vec<Vec<u8>> = (0..FRAMES).map(|number| frame(number, size)).collect();
    let mut returned = [false; FRAMES];
    for window in (0..FRAMES).collect::<Vec<_>>().chunks(WINDOW) {
        window.iter().for_each(|&number| wire.send(&frames[number]));
        let mut left = window.len();
        while left > 0 {
            let Some(frame) = wire.receive() else { break };
            // Other than ours there is what the kernel itself sends.
            if frame[..6] != HERE {
                continue;
            }
            let number = number_of(&frame);
            let sent = frames.get(number).unwrap_or_else(|| panic!("frame {number} of {size}"));
            assert!(!std::mem::replace(&mut returned[number], true), "frame {number} came twice");
            assert_eq!(frame[6..12], PORT_MAC, "frame {number} of {size} bytes");
            assert!(frame[12..] == sent[12..], "frame {number} of {size} bytes: {frame:02x?}");
            left -= 1;
        }
    }
    returned.iter().filter(|returned| !**returned).count()
}

/// Where the number of a frame is: behind the headers of Ethernet, IPv4 and UDP.
const NUMBER_AT: usize = 14 + 20 + 8;

/// A datagram, of one flow of many so that all queues get some, with its number and bytes that
/// differ by number and by place.
fn frame(number: usize, size: usize) -> Vec<u8> {
    let low = |value: usize| value.to_le_bytes()[0];
    let word = |value: usize| u16::try_from(value).expect("a small number").to_be_bytes();
    let [flow, length, datagram] = [word(1024 + number % 64), word(size - 14), word(size - 34)];
    let mut frame = [&PORT_MAC[..], &HERE, &[0x08, 0]].concat();
    frame.extend([0x45, 0, length[0], length[1], 0, low(number), 0, 0, 64, 17, 0, 0]);
    frame.extend([10, 1, 2, 3, 10, 4, 5, 6]);
    frame.extend([flow[0], flow[1], 0, 9, datagram[0], datagram[1], 0, 0]);
    frame.extend(u32::try_from(number).expect("a small number").to_le_bytes());
    frame.extend((frame.len()..size).map(|at| low(at * 7 + at / 256 * 3 + number * 11)));
    frame
}

fn number_of(frame: &[u8]) -> usize {
    let number = frame[NUMBER_AT..].first_chunk().expect("a frame of ours");
    u32::from_le_bytes(*number).try_into().expect("a number")
}

/// Frames of so many flows went over each of the queue pairs, there and back.
fn assert_every_queue_was_used(testpmd: &mut Testpmd, queue_pairs: u32) {
    let counters = testpmd.command("show port xstats 0", "tx_q0_size_1519_max_packets");
    for pair in 0..queue_pairs {
        for direction in ["rx", "tx"] {
            let name = format!("{direction}_q{pair}_good_packets:");
            let value = counters.split_once(&name).map(|(_, rest)| rest.trim_start());
            let used = value.is_some_and(|value| !value.starts_with('0'));
            assert!(used, "{name} {counters}");
        }
    }
}
