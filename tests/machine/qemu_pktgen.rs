//! `scripts/pktgen` inside a guest: the kernel's packet generator on virtio-net.

use crate::common::{Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec};

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_generates_packets_and_every_one_is_counted() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let before = daemon.port_counter("vm1", "from_guest_packets");
    let dropped_before = daemon.port_counters("vm1", "from_guest_dropped");
    // Two threads at a rate that an emulated guest keeps up with.
    let output = guest.check(
        "pktgen --interface eth0 --to 02:ff:00:00:00:09 --seconds 2 --rate 2000 --threads 2",
    );
    assert_eq!(output.lines().count(), 2, "a line for each thread: {output}");
    assert!(output.contains("errors: 0"), "{output}");
    let sent: u64 = output.lines().map(packets).sum();
    assert!(sent > 500, "only {sent} packets: {output}");
    let all = || {
        daemon.port_counter("vm1", "from_guest_packets") - before
            + daemon.port_counters("vm1", "from_guest_dropped")
            - dropped_before
    };
    // The guest's own stack may add a packet now and then.
    crate::common::wait_for("all packets are taken from the guest", 10, || all() >= sent);
    assert!(all() <= sent + 20, "{} packets of {sent}", all());
    guest.check("[ \"$(grep -c 'Devices:.*eth0' /proc/net/pktgen/kpktgend_0)\" = 0 ]");
    daemon.frames();
}

/// The number before "(60byte,0frags)" in "Result: OK: 2000001(...) usec, 4000 (60byte,0frags)".
fn packets(line: &str) -> u64 {
    let count = line.split_once(" usec, ").and_then(|(_, rest)| rest.split(' ').next());
    count.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("no packets in {line:?}"))
}
