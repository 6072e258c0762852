//! Zero-copy, copy and generic mode on NICs whose drivers have all three: isonic itself in a guest
//! whose NICs QEMU emulates ([`InnerHost`]), with VMs of our own at its ports, and frames from
//! outside that they send back.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::common::{
    Bed, InnerHost, InnerNic, PROFILE, PacketSocket, exchange, program, tap, this_program, uplink,
    wait_for,
};
use crate::inside::mac;
use isonic::test_support::rig_guest::{OUTSIDE, frame};

/// Both with a queue for each of the guest's two CPUs. virtio_net has zero-copy where the device
/// uses the DMA interface of the kernel, which `iommu_platform` asks for.
const NICS: [InnerNic; 2] = [
    InnerNic { device: "igb", queues: 1, held: 0, driver: "igb", received: "rx_queue_N_packets" },
    InnerNic {
        device: "virtio-net-pci,mq=on,vectors=6,iommu_platform=on,disable-legacy=on",
        queues: 2,
        held: 0,
        driver: "virtio_net",
        received: "rxN_xdp_packets",
    },
];
const QUEUES: u32 = 2;
/// From the shortest to the longest of an MTU of 1500.
const LENGTHS: [usize; 5] = [60, 61, 594, 1300, 1514];
const FRAMES: u32 = 1000;

/// What an uplink is to be.
struct Mode {
    /// In the configuration.
    wish: &'static str,
    more: &'static str,
    xdp: &'static str,
    socket: &'static str,
    /// In the reason.
    because: &'static str,
}

const MODES: [Mode; 4] = [
    Mode {
        wish: "auto",
        more: "",
        xdp: "native",
        socket: "zerocopy",
        because: "the driver has zero-copy",
    },
    Mode {
        wish: "zerocopy",
        more: "busy_poll = true\nirq_suspend = true",
        xdp: "native",
        socket: "zerocopy",
        because: "the driver has zero-copy",
    },
    Mode { wish: "copy", more: "", xdp: "native", socket: "copy", because: "as configured" },
    Mode { wish: "generic", more: "", xdp: "generic", socket: "copy", because: "as configured" },
];

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn every_mode_is_what_is_told_and_brings_every_frame_on_drivers_with_zero_copy() {
    let bed = Bed::new(0, 1);
    let programs = [PathBuf::from(env!("CARGO_BIN_EXE_isonic")), this_program()];
    let mut host = InnerHost::boot(&bed, &NICS, &programs);
    for mode in &MODES {
        println!("{} with {:?}", mode.wish, mode.more);
        start(&mut host, mode);
        assert_modes(&mut host, mode);
        for nic in 0..NICS.len() {
            exchange_through(&bed, &mut host, nic, mode);
            the_hosts_vlan_is_undisturbed(&bed, &mut host, nic);
        }
        stop(&mut host);
    }
    jumbo_frames_go_through_virtio_net(&bed, &mut host);
}

/// isonic with a port on each NIC, and their VMs.
fn start(host: &mut InnerHost, mode: &Mode) {
    let mut configuration = "workers = 2\n".to_owned();
    for nic in 0..NICS.len() {
        configuration += &uplink_and_port(nic, mode, PROFILE);
    }
    host.start_isonic(&configuration);
    for nic in 0..NICS.len() {
        start_vm(host, nic);
    }
}

fn uplink_and_port(nic: usize, Mode { wish, more, .. }: &Mode, profile: &str) -> String {
    format!(
        "[[uplinks]]\ninterface = \"{uplink}\"\nmode = \"{wish}\"\n{more}\n\
         [[ports]]\nname = \"vm{nic}\"\nsocket = \"/run/isonic/vm{nic}.sock\"\n\
         profile = \"{profile}\"\nuplink = \"{uplink}\"\nmac = \"{mac}\"\n",
        uplink = uplink(nic),
        mac = mac_text(nic),
    )
}

fn start_vm(host: &mut InnerHost, nic: usize) {
    let program = program("echo_vm");
    host.start(&format!("vm{nic}"), &format!("ISONIC_VM={nic} {program}"));
    host.wait_running(&format!("vm{nic}"));
}

fn stop(host: &mut InnerHost) {
    host.stop("isonic");
    for nic in 0..NICS.len() {
        host.stop(&format!("vm{nic}"));
    }
}

/// What isonic says of its uplinks, and what the kernel says of its sockets.
fn assert_modes(host: &mut InnerHost, mode: &Mode) {
    let uplinks = host.json("uplink list");
    for (number, nic) in NICS.iter().enumerate() {
        let uplink = &uplinks[number];
        assert_eq!(uplink["driver"], nic.driver, "{uplink}");
        assert_eq!(uplink["queues"], serde_json::json!([0, 1]), "{uplink}");
        assert_eq!(uplink["xdp_mode"], mode.xdp, "{uplink}");
        assert_eq!(uplink["socket_mode"], mode.socket, "{uplink}");
        let reason = uplink["reason"].as_str().expect("a reason");
        assert!(reason.contains(mode.because), "{uplink}");
    }
    let sockets = host.xsk_facts(&program("sockets_of_isonic"));
    assert_eq!(sockets.len(), NICS.len() * QUEUES as usize, "{sockets:?}");
    for socket in &sockets {
        assert_eq!(socket.zero_copy, mode.socket == "zerocopy", "{sockets:?}");
        assert_eq!(socket.prefer_busy_poll, !mode.more.is_empty(), "{sockets:?}");
    }
}

/// Every frame comes back, and all that is counted adds up: by isonic, and by the NIC's driver.
/// (virtio_net counts what it gives to native programs.) igb spreads flows over its queues by
/// itself; before virtio_net a tap does, by where answers came from, which may be one of them.
fn exchange_through(bed: &Bed, host: &mut InnerHost, nic: usize, mode: &Mode) {
    let received = |host: &mut InnerHost| host.queue_packets(nic, NICS[nic].received, QUEUES);
    let before = received(host);
    let began = Instant::now();
    exchange(&mut tap(bed, nic), mac(nic), FRAMES, &LENGTHS);
    let took = began.elapsed();
    let of_queues = received(host).into_iter().zip(before);
    let of_queues: Vec<u64> = of_queues.map(|(after, before)| after - before).collect();
    let driver = NICS[nic].driver;
    println!("{driver}: {FRAMES} frames there and back in {took:?}, by queue {of_queues:?}");
    if mode.xdp == "native" {
        assert_eq!(of_queues.iter().sum::<u64>(), u64::from(FRAMES), "{of_queues:?}");
        let spreads = driver == "igb";
        assert!(!spreads || of_queues.iter().all(|&packets| packets > 0), "{of_queues:?}");
    }
    assert_accounts(&host.json("stats"), nic, FRAMES);
}

/// All frames went in and out and were counted as such, nothing else was, and no frame of the
/// UMEM is lost.
fn assert_accounts(stats: &Value, nic: usize, frames: u32) {
    let (port, uplink) = (&stats["ports"][format!("vm{nic}")], &stats["uplinks"][uplink(nic)]);
    for (counters, name) in [
        (port, "to_guest_packets"),
        (port, "from_guest_packets"),
        (uplink, "rx_packets"),
        (uplink, "tx_packets"),
    ] {
        assert_eq!(counters[name], frames, "{name}: {stats}");
    }
    for counters in [port, uplink] {
        for (name, value) in counters.as_object().expect("counters") {
            let is_loss = ["dropped", "kernel_", "faults"].iter().any(|part| name.contains(part));
            // The driver finds no frame to receive into for a moment while a socket is bound.
            let is_loss = is_loss && name != "kernel_fill_ring_empty";
            assert!(!is_loss || value == 0, "{name}: {stats}");
        }
    }
    let place = |name: &str| uplink[name].as_u64().expect("a counter");
    let places = ["frames_free", "frames_receiving", "frames_transmitting", "frames_away"];
    assert_eq!(places.map(place).iter().sum::<u64>(), place("frames_total"), "{stats}");
}

/// A VLAN device of the host's on the NIC hears questions with its tag, to all and to itself, and
/// answers them.
fn the_hosts_vlan_is_undisturbed(bed: &Bed, host: &mut InnerHost, nic: usize) {
    const ASKER: [u8; 6] = [0x02, 0xff, 0, 0, 0, 8];
    let vlan = format!("{}.7", uplink(nic));
    let number = u8::try_from(nic).expect("a few");
    let (address, asking) = ([10, 78, number, 1], [10, 78, number, 2]);
    // The NIC itself would answer for it too.
    host.check(&format!(
        "sysctl -q -w net.ipv4.conf.all.arp_ignore=1 && \
         ip link add link {} name {vlan} type vlan id 7 && \
         ip address add 10.78.{nic}.1/24 dev {vlan} && ip link set {vlan} up",
        uplink(nic)
    ));
    let mac = nic_mac(nic);
    let mut wire = tap(bed, nic);
    for to in [[0xff; 6], mac] {
        // ARP (RFC 826) with a tag (IEEE 802.1Q).
        let question = [&to[..], &ASKER, &[0x81, 0, 0, 7, 8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &ASKER];
        let question = [&question.concat()[..], &asking, &[0; 6], &address, &[0; 18]].concat();
        wire.send(&question);
        // The kernel gives its tag apart from it.
        let is_answer = |frame: &Vec<u8>| frame[..12] == [ASKER, mac].concat();
        let answers = std::iter::from_fn(|| wire.receive());
        let answer = answers.into_iter().find(is_answer).expect("an answer");
        assert_eq!(answer[12..32], [&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2], &mac[..], &address].concat());
    }
    let sent = host.check(&format!("cat /sys/class/net/{vlan}/statistics/tx_packets"));
    assert_eq!(sent.trim(), "2", "with the tag");
    host.check(&format!("ip link delete {vlan}"));
}

/// In several frames of the UMEM, which virtio_net has in copy mode.
fn jumbo_frames_go_through_virtio_net(bed: &Bed, host: &mut InnerHost) {
    let nic = 1;
    host.check(&format!("ip link set {} mtu 9000", uplink(nic)));
    let mode = Mode { wish: "copy", ..MODES[2] };
    host.start_isonic(&uplink_and_port(nic, &mode, &format!("{PROFILE},mtu=9000")));
    start_vm(host, nic);
    let facts = &host.json("uplink list")[0];
    assert_eq!(facts["multi_buffer"], true, "{facts}");
    exchange(&mut tap(bed, nic), mac(nic), FRAMES / 10, &[60, 3841, 9014]);
    assert_accounts(&host.json("stats"), nic, FRAMES / 10);
    host.stop("isonic");
    host.stop(&format!("vm{nic}"));
}

/// What the NIC sends is held up outside, by a queue that sends a byte a second: QEMU's tap takes
/// no more, the NIC completes nothing, and in zero-copy mode that is where isonic's frames are. One
/// at a time: QEMU 10.0 ends itself when the driver resets a queue in which more are waiting.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn zero_copy_that_stands_still_again_and_again_becomes_copy_mode() {
    const NIC: InnerNic = InnerNic { queues: 1, held: 4000, ..NICS[1] };
    let bed = Bed::new(0, 1);
    let programs = [PathBuf::from(env!("CARGO_BIN_EXE_isonic")), this_program()];
    let mut host = InnerHost::boot(&bed, &[NIC], &programs);
    host.start_isonic(&uplink_and_port(0, &MODES[0], PROFILE));
    start_vm(&mut host, 0);
    let facts = |host: &mut InnerHost| host.json("uplink list")[0].take();
    assert_eq!(facts(&mut host)["socket_mode"], "zerocopy");
    exchange(&mut tap(&bed, 0), mac(0), FRAMES, &LENGTHS);

    let wire = |command_line: &str| {
        bed.wire.run(&command_line.split(' ').collect::<Vec<_>>());
    };
    wire("ip link add isonic-br0 type bridge");
    wire("ip link add isonic-slow0 type veth peer name isonic-slow1");
    for interface in ["isonic-tap0", "isonic-slow0"] {
        wire(&format!("ip link set {interface} master isonic-br0"));
    }
    for interface in ["isonic-br0", "isonic-slow0", "isonic-slow1"] {
        wire(&format!("ip link set {interface} up"));
    }
    wire("tc qdisc add dev isonic-slow0 root tbf rate 8bit burst 1600 limit 1000000");
    let mut outside = PacketSocket::open(&bed.wire, "isonic-tap0", Duration::from_secs(2));
    let into = frame(mac(0), OUTSIDE, 200);
    wait_for("zero-copy has stood still three times", 120, || {
        let counters = facts(&mut host)["counters"].take();
        if counters["frames_transmitting"] == 0 {
            outside.offer(&into);
            wait_until_sent_back(&mut host, &counters);
        }
        counters["tx_stalls"].as_u64() >= Some(3)
    });
    wait_for("it is in copy mode", 20, || facts(&mut host)["socket_mode"] == "copy");
    let uplink = facts(&mut host);
    let reason = uplink["reason"].as_str().expect("a reason");
    assert!(reason.contains("zero-copy stood still again and again"), "{uplink}");
    let log = host.log("isonic");
    assert_eq!(log.matches("copy mode from now on").count(), 1, "{log}");

    wire("tc qdisc del dev isonic-slow0 root");
    wait_for("it is up", 20, || facts(&mut host)["state"] == "up");
    // What was on its way comes first.
    while outside.receive().is_some() {}
    exchange(&mut tap(&bed, 0), mac(0), FRAMES, &LENGTHS);
    assert_eq!(facts(&mut host)["socket_mode"], "copy", "{:?}", facts(&mut host));
}

/// Until one more frame than was counted has come and has been sent on, or cannot have.
fn wait_until_sent_back(host: &mut InnerHost, before: &Value) {
    let count = |counters: &Value, name: &str| counters[name].as_u64().expect("a counter");
    let deadline = Instant::now() + Duration::from_secs(5);
    while Instant::now() < deadline {
        let now = &host.json("uplink list")[0]["counters"];
        let [received, sent] = ["rx_packets", "tx_packets"].map(|name| count(now, name));
        if received > count(before, "rx_packets") && sent == received {
            return;
        }
    }
}

/// The address of the NIC itself.
fn nic_mac(nic: usize) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 1, u8::try_from(nic).expect("a few")]
}

fn mac_text(nic: usize) -> String {
    mac(nic).map(|byte| format!("{byte:02x}")).join(":")
}
