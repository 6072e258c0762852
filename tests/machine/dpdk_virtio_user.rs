//! DPDK's virtio-user driver as the front-end, which nobody here wrote: one and two queue pairs,
//! every packet accounted for.

use std::net::UdpSocket;
use std::time::Duration;

use crate::common::{Bed, Configuration, Daemon, NIC, PROFILE, PortSpec, Testpmd, wait_for};

/// The profile of the port, and what virtio-user is told to take of it.
const SPLIT: (&str, &str) = (PROFILE, "");
const PACKED: (&str, &str) = ("org.isonic.net.v2", ",packed_vq=1");
/// Whole bursts at once, in vector registers, and never a step out of order.
const IN_ORDER: (&str, &str) =
    ("org.isonic.net.v2,in_order=on", ",packed_vq=1,in_order=1,vectorized=1");

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn one_queue_pair_sends_and_every_packet_is_counted() {
    sends(1, SPLIT);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn two_queue_pairs_send_and_every_packet_is_counted() {
    sends(2, SPLIT);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn one_queue_pair_receives_and_every_packet_is_counted() {
    receives(1, SPLIT);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn two_queue_pairs_receive_and_every_packet_is_counted() {
    receives(2, SPLIT);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_send_and_receive_and_every_packet_is_counted() {
    sends(2, PACKED);
    receives(2, PACKED);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_used_in_order_send_and_receive_and_every_packet_is_counted() {
    sends(1, IN_ORDER);
    receives(1, IN_ORDER);
}

fn sends(queue_pairs: u32, (profile, options): (&str, &str)) {
    let bed = Bed::new(1, queue_pairs);
    let port = PortSpec::switch(NIC, 1).with_profile(profile);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut testpmd = Testpmd::start(&bed, &port, queue_pairs, "txonly", options);
    daemon.wait_state("vm1", "running");
    let acknowledged = daemon.json(&["port", "show", "vm1"])["binding"]["acknowledged"].to_string();
    assert_eq!(acknowledged.contains("ring_packed"), options.contains("packed_vq=1"));
    assert_eq!(acknowledged.contains("in_order"), options.contains("in_order=1"));
    let wire_before = bed.wire_received(0);
    testpmd.command("start", "nb forwarding cores");
    std::thread::sleep(Duration::from_secs(2));
    testpmd.command("stop", "Done.");
    let sent = testpmd.counter("TX-packets");
    assert!(sent > 1000, "only {sent} packets in 2 s");
    let accounted = || {
        let forwarded = daemon.port_counter("vm1", "from_guest_packets");
        (forwarded, forwarded + daemon.port_counters("vm1", "from_guest_dropped"))
    };
    wait_for("all packets are taken from the guest", 10, || accounted().1 >= sent);
    let (forwarded, taken) = accounted();
    assert_eq!(taken, sent);
    // What the veth pair itself lost, its sending end has counted.
    let lost = || -> u64 {
        let path = format!("/sys/class/net/{NIC}/statistics/tx_dropped");
        bed.host.run(&["cat", &path]).trim().parse().unwrap()
    };
    wait_for("all forwarded packets are on the wire", 10, || {
        bed.wire_received(0) - wire_before + lost() >= forwarded
    });
    assert_eq!(bed.wire_received(0) - wire_before + lost(), forwarded);
    testpmd.quit();
    daemon.wait_state("vm1", "waiting");
    daemon.frames();
}

fn receives(queue_pairs: u32, (profile, options): (&str, &str)) {
    const DATAGRAMS: u64 = 4000;
    let bed = Bed::new(1, queue_pairs);
    let port = PortSpec::switch(NIC, 1).with_profile(profile);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut testpmd = Testpmd::start(&bed, &port, queue_pairs, "rxonly", options);
    daemon.wait_state("vm1", "running");
    testpmd.command("start", "nb forwarding cores");
    let uplink = &bed.uplinks[0];
    let address = uplink.guest_address(1);
    let neighbour = ["ip", "neigh", "add", &address, "lladdr", &port.mac, "dev", &uplink.peer];
    bed.wire.run(&neighbour);
    bed.wire.enter(|| send_datagrams(&address, DATAGRAMS));
    let mut accounted = || {
        let received = testpmd.counter("RX-packets");
        (received, received + daemon.port_counters("vm1", "to_guest_dropped"))
    };
    wait_for("all datagrams have arrived or are counted as dropped", 10, || {
        accounted().1 >= DATAGRAMS
    });
    let (received, all) = accounted();
    assert_eq!(all, DATAGRAMS);
    assert_eq!(daemon.port_counter("vm1", "to_guest_packets"), received);
    assert!(received > DATAGRAMS / 2, "only {received} of {DATAGRAMS} were delivered");
    testpmd.quit();
    daemon.frames();
}

/// From sixteen sockets, so that every queue gets some; at a pace that a loaded machine can take.
fn send_datagrams(address: &str, count: u64) {
    let sockets: Vec<UdpSocket> =
        (0..16).map(|_| UdpSocket::bind("0.0.0.0:0").expect("socket")).collect();
    for (number, socket) in (0..count).zip(sockets.iter().cycle()) {
        socket.send_to(&number.to_le_bytes(), (address, 9)).expect("send");
        if number % 32 == 31 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
