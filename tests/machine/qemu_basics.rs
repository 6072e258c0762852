//! One QEMU guest on a switch port: what reaches it, what it sees, what it may do to its device.

use crate::common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec, echo_datagrams, echo_stream, ping,
    wait_reachable,
};

/// What fits an MTU of 1500 with the headers of IPv4 and ICMP or UDP, bytes.
const LARGEST_UNFRAGMENTED: usize = 1472;
/// Six fragments.
const FRAGMENTED: usize = 8000;

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn every_kind_of_traffic_passes_both_ways_unchanged() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let address = guest.spec.address.clone();

    ping(&bed.wire, &address, &[]);
    ping(&bed.wire, &address, &["-s", "1472", "-M", "do"]);
    ping(&bed.wire, &address, &["-s", "8000"]);
    guest.ping(&bed.uplinks[0].wire_address);
    echo_datagrams(&bed.wire, &address, 1, 20);
    echo_datagrams(&bed.wire, &address, LARGEST_UNFRAGMENTED, 50);
    echo_datagrams(&bed.wire, &address, FRAGMENTED, 50);
    echo_stream(&bed.wire, &address, 8 << 20);

    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    assert!(daemon.port_counter("vm1", "from_guest_packets") > 5000);
    assert!(daemon.port_counter("vm1", "to_guest_packets") > 5000);
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_guest_sees_exactly_its_profile_and_the_binding_says_so() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let facts = guest.facts();
    let profile = daemon.json(&["profile", "show", crate::common::PROFILE]);

    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let told = number(profile["guest_features"]["hex"].as_str().unwrap());
    assert_eq!(number(&facts["features_offered"]), told, "told {profile}, seen {facts:?}");
    for ring in ["ring_size_from_guest_max", "ring_size_to_guest_max"] {
        assert_eq!(facts[ring], profile["ring_size_max"].to_string());
    }
    assert_eq!(facts["queue_pairs_max"], "2");
    assert_eq!(facts["mtu"], profile["mtu"].to_string());
    assert_eq!(facts["mac"], port.mac);

    daemon.wait_state("vm1", "running");
    let view = daemon.json(&["port", "show", "vm1"]);
    let binding = &view["binding"];
    assert_eq!(binding["digest"], profile["digest"]);
    assert_eq!(binding["queue_pairs"], 2);
    assert_eq!(binding["offered"], profile["features"]);
    let negotiated = number(&facts["features_negotiated"]);
    let acknowledged = number(binding["acknowledged"]["hex"].as_str().unwrap());
    let backend = number(binding["offered"]["hex"].as_str().unwrap());
    // Bit 30 is between front-end and backend: no guest sees it.
    let guest_bits = !(1 << 30);
    assert_eq!(acknowledged & guest_bits, negotiated & backend & guest_bits);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn traffic_passes_again_after_a_rebind_of_the_driver_and_a_reboot() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let address = guest.spec.address.clone();
    ping(&bed.wire, &address, &[]);
    for _ in 0..3 {
        guest.rebind();
        ping(&bed.wire, &address, &[]);
    }
    guest.reboot();
    ping(&bed.wire, &address, &[]);
    guest.ping(&bed.uplinks[0].wire_address);
    echo_stream(&bed.wire, &address, 1 << 20);
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_that_connects_to_qemu_works_whoever_starts_first_and_reconnects() {
    let bed = Bed::new(1, 1);
    let port = PortSpec { mode: "client", ..PortSpec::switch(NIC, 1) };
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let address = guest.spec.address.clone();
    ping(&bed.wire, &address, &[]);
    daemon.stop();
    daemon.start_again();
    wait_reachable(&bed.wire, &address, 20);
    ping(&bed.wire, &address, &[]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn workers_share_the_queues_of_a_guest() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let configuration =
        Configuration { workers: 2, ..Configuration::new(&bed, vec![port.clone()]) };
    let daemon = Daemon::start(&bed, &configuration);
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let address = guest.spec.address.clone();
    for _ in 0..8 {
        // Each stream takes another source port, and so perhaps another queue.
        echo_stream(&bed.wire, &address, 1 << 20);
    }
    echo_datagrams(&bed.wire, &address, FRAGMENTED, 50);
    guest.ping(&bed.uplinks[0].wire_address);
    daemon.frames();
}
