//! Wire ports: the uplink's queues belong to one guest, and everything goes through unparsed.

use crate::common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, PortSpec, echo_datagrams, echo_stream, ping,
};

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn two_guests_have_an_uplink_each_to_themselves() {
    let bed = Bed::new(2, 1);
    let ports =
        [0, 1].map(|uplink| PortSpec::wire(&bed.uplinks[uplink].nic, uplink_port(uplink), &[0]));
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.to_vec()));
    let specs = [0, 1]
        .map(|uplink| GuestSpec::new(&ports[uplink], &bed.uplinks[uplink], uplink_port(uplink)));
    let mut guests = Guest::boot_all(&bed, specs);
    for (guest, uplink) in guests.iter_mut().zip(&bed.uplinks) {
        guest.ping(&uplink.wire_address);
        ping(&bed.wire, &guest.spec.address, &["-s", "8000"]);
        echo_stream(&bed.wire, &guest.spec.address, 1 << 20);
        echo_datagrams(&bed.wire, &guest.spec.address, 1472, 20);
    }
    // Unparsed: whatever MAC the guest gives itself.
    let uplink = &bed.uplinks[0];
    guests[0].check("ip link set eth0 down && ip link set eth0 address 02:00:00:00:00:77");
    guests[0].check("ip link set eth0 up");
    bed.wire.run(&["ip", "neigh", "flush", "all"]);
    guests[0].ping(&uplink.wire_address);
    ping(&bed.wire, &guests[0].spec.address, &[]);
    daemon.frames();
}

fn uplink_port(uplink: usize) -> u8 {
    u8::try_from(uplink).unwrap() + 1
}
