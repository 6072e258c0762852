//! Packets longer than a frame of the UMEM, over a real veth pair. Over wires in memory:
//! `tests/memory/jumbo.rs`.

use std::net::UdpSocket;

use crate::common::{
    Bed, Configuration, Daemon, Guest as Linux, GuestSpec, NIC, PortSpec, echo_datagrams,
    echo_stream, ping, wait_for,
};
use isonic::datapath::frame_max;
use isonic::test_support::echo_vm::EchoVm;

/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// The VM's address, as of every first switch port.
const VM_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

/// A port with this MTU.
fn jumbo_port(mtu: u32) -> PortSpec {
    PortSpec::switch(NIC, 1).with_profile(&format!("org.isonic.net.v1,mtu={mtu}"))
}

/// The daemon with one port of this MTU, and a VM at the port that the wire knows.
fn start<'b>(bed: &'b Bed, mtu: u32, mode: &'static str) -> (Daemon<'b>, EchoVm) {
    let mut configuration = Configuration::new(bed, vec![jumbo_port(mtu)]);
    configuration.mode = mode;
    let daemon = Daemon::start(bed, &configuration);
    let vm = EchoVm::start(&bed.path("vm1.sock"), VM_MAC);
    let uplink = &bed.uplinks[0];
    let (address, mac) = (uplink.guest_address(1), "52:54:00:00:00:01");
    bed.wire.run(&["ip", "neigh", "add", &address, "lladdr", mac, "dev", &uplink.peer]);
    (daemon, vm)
}

/// Datagrams that make frames of these lengths go to the VM and come back, contents checked.
fn echo_frames(queues: u32, mtu: u32, mode: &'static str, lens: &[usize]) {
    const EACH: u64 = 20;
    let bed = Bed::with_mtu(1, queues, mtu);
    let (daemon, mut vm) = start(&bed, mtu, mode);
    let uplink = &daemon.json(&["uplink", "list"])[0];
    assert_eq!(uplink["multi_buffer"], true, "{uplink}");
    assert!(uplink["packet_max"].as_u64().unwrap() >= u64::from(frame_max(mtu)), "{uplink}");
    assert_eq!(uplink["xdp_mode"], if mode == "auto" { "native" } else { "generic" });
    vm.echo_while(|| {
        let address = bed.uplinks[0].guest_address(1);
        for len in lens {
            echo_datagrams(&bed.wire, &address, len - HEADERS, EACH);
        }
    });
    let bytes = lens.iter().sum::<usize>() as u64 * EACH;
    for counter in ["to_guest_bytes", "from_guest_bytes"] {
        assert!(daemon.port_counter("vm1", counter) >= bytes, "{counter}");
    }
    assert_eq!(daemon.port_counter("vm1", "to_guest_dropped_oversize"), 0);
    daemon.frames();
}

/// The longest of an MTU of 9000 has no VLAN tag here.
const SENT: [usize; 7] = [3840, 3841, 4096, 4097, 8192, 8193, 9014];

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn jumbo_frames_go_both_ways_under_a_native_program() {
    echo_frames(1, 9000, "auto", &SENT);
    echo_frames(2, 9000, "auto", &SENT);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn jumbo_frames_go_both_ways_under_a_generic_program() {
    echo_frames(1, 9000, "generic", &SENT);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn frames_of_the_largest_mtu_go_both_ways() {
    // The longest datagram that there is.
    echo_frames(1, 65535, "auto", &[9014, HEADERS + 65507]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_jumbo_broadcast_of_the_wire_reaches_the_vm() {
    let bed = Bed::with_mtu(1, 1, 9000);
    let (daemon, mut vm) = start(&bed, 9000, "auto");
    let sent: Vec<u8> = (0..9000 - 28).map(|at| u8::try_from(at % 251).unwrap()).collect();
    bed.wire.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.set_broadcast(true).unwrap();
        socket.send_to(&sent, ("10.77.0.255", 9)).unwrap();
    });
    wait_for("the broadcast is delivered", 10, || {
        vm.turn();
        vm.others.iter().any(|frame| frame.len() == 9014 && frame[HEADERS..] == sent)
    });
    assert_eq!(daemon.json(&["stats"])["uplinks"][NIC]["multicast_dropped"], 0);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn frames_longer_than_the_port_s_mtu_are_dropped_and_counted_on_a_veth_pair_too() {
    let bed = Bed::with_mtu(1, 1, 9000);
    let (daemon, mut vm) = start(&bed, 4000, "copy");
    let address = bed.uplinks[0].guest_address(1);
    bed.wire.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        socket.send_to(&[0; 8000], (address.as_str(), 9)).unwrap();
    });
    wait_for("the frame is counted", 10, || {
        daemon.port_counter("vm1", "to_guest_dropped_oversize") == 1
    });
    vm.turn();
    assert_eq!(daemon.port_counter("vm1", "to_guest_packets"), 0);
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_mtu_of_9000_on_a_nic_of_1500_is_refused_with_the_way_out() {
    let bed = Bed::new(1, 1);
    let refused = Daemon::refused(&bed, &Configuration::new(&bed, vec![jumbo_port(9000)]));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    for word in ["vm1", "9000", "1500", "ip link set"] {
        assert!(refused.errors.contains(word), "{word} is not in: {}", refused.errors);
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_linux_guest_with_an_mtu_of_9000_sends_and_receives_packets_of_that_size() {
    let bed = Bed::with_mtu(1, 2, 9000);
    let port = jumbo_port(9000);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let uplink = &bed.uplinks[0];
    let mut guest = Linux::boot(&bed, &GuestSpec::new(&port, uplink, 1));
    assert_eq!(guest.check("cat /sys/class/net/eth0/mtu").trim(), "9000");
    let address = guest.spec.address.clone();
    ping(&bed.wire, &address, &["-s", "8972", "-M", "do"]);
    let output = guest.check(&format!("ping -c 5 -s 8972 -W 2 {}", uplink.wire_address));
    assert!(output.contains(" 5 packets received"), "{output}");
    for length in [3800, 4100, 8972, 20000] {
        echo_datagrams(&bed.wire, &address, length, 20);
    }
    echo_stream(&bed.wire, &address, 1 << 20);
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    daemon.frames();
}
