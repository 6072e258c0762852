//! Several guests on one uplink: with each other, with the wire, beside the host's own traffic.

use crate::common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec, echo_datagrams, echo_stream, ping,
};

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn two_guests_on_one_uplink_reach_each_other_the_wire_and_leave_the_host_its_own() {
    let bed = Bed::new(1, 2);
    let uplink = &bed.uplinks[0];
    let ports = [1, 2].map(|number| PortSpec::switch(NIC, number));
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.to_vec()));
    let specs =
        [1, 2].map(|number| GuestSpec::new(&ports[usize::from(number) - 1], uplink, number));
    let [mut first, mut second] = Guest::boot_all(&bed, specs);
    let addresses = [first.spec.address.clone(), second.spec.address.clone()];

    first.ping(&addresses[1]);
    second.ping(&addresses[0]);
    for address in &addresses {
        ping(&bed.wire, address, &[]);
        echo_stream(&bed.wire, address, 1 << 20);
        echo_datagrams(&bed.wire, address, 8000, 20);
    }
    first.ping(&uplink.wire_address);
    second.ping(&uplink.wire_address);

    ping(&bed.host, &uplink.wire_address, &["-s", "8000"]);
    ping(&bed.wire, &uplink.host_address, &[]);
    for port in ["vm1", "vm2"] {
        assert_eq!(daemon.port_counter(port, "ring_faults"), 0);
    }
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn frames_between_guests_stay_off_the_wire_and_broadcasts_reach_everybody() {
    let bed = Bed::new(1, 1);
    let uplink = &bed.uplinks[0];
    let ports = [1, 2].map(|number| PortSpec::switch(NIC, number));
    let _daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.to_vec()));
    let specs =
        [1, 2].map(|number| GuestSpec::new(&ports[usize::from(number) - 1], uplink, number));
    let [mut first, second] = Guest::boot_all(&bed, specs);

    first.ping(&second.spec.address);
    let before = bed.wire_received(0);
    let output = first.check(&format!("ping -c 200 -A -W 2 {}", second.spec.address));
    assert!(output.contains(" 200 packets received"), "{output}");
    let seen = bed.wire_received(0) - before;
    assert!(seen < 20, "{seen} frames of 400 between two guests went over the wire");

    // Whoever answers has got the ARP request, a broadcast: nobody is known any more.
    bed.wire.run(&["ip", "neigh", "flush", "all"]);
    let everybody = [&first.spec.address, &second.spec.address, &uplink.host_address];
    for address in everybody {
        ping(&bed.wire, address, &[]);
    }
}
