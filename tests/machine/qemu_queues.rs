//! Many queue pairs: a guest that takes more and fewer of them under traffic, one that takes all
//! 128, and front-ends with 128 beside many other ports.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec, echo_datagrams, echo_stream, ping,
    wait_for,
};
use isonic::test_support::frontend::{Frontend, GuestFile};

/// Rings of 256 entries, as QEMU has by default: 256 larger ones are more than a small guest's
/// memory.
const PROFILE: &str = "org.isonic.net.v3,max_ring=256";

/// The guest uses this many pairs from now on, and the backend knows of it.
fn set_pairs(guest: &mut Guest, daemon: &Daemon<'_>, pairs: u32) {
    guest.check(&format!("ethtool -L eth0 combined {pairs}"));
    assert_eq!(guest.facts()["queue_pairs"], pairs.to_string());
    let port = &guest.spec.port.name;
    wait_for(&format!("{pairs} pairs are in use"), 20, || {
        daemon.json(&["port", "show", port])["binding"]["queue_pairs"] == pairs
    });
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_takes_more_and_fewer_pairs_while_traffic_goes_on() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1).with_profile(PROFILE);
    let configuration =
        Configuration { workers: 2, ..Configuration::new(&bed, vec![port.clone()]) };
    let daemon = Daemon::start(&bed, &configuration);
    let spec = GuestSpec { queue_pairs: 4, ..GuestSpec::new(&port, &bed.uplinks[0], 1) };
    let mut guest = Guest::boot(&bed, &spec);
    let address = spec.address;
    beside_streams(&bed, &address, || {
        for pairs in [4, 1, 3, 2, 4, 1, 4] {
            set_pairs(&mut guest, &daemon, pairs);
            guest.ping(&bed.uplinks[0].wire_address);
        }
    });
    ping(&bed.wire, &address, &[]);
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    daemon.frames();
}

/// Moves every interrupt of eth0 to the CPU that follows, twenty times. The guest masks it
/// meanwhile, and QEMU gives the ring another call descriptor, and the first again.
const MOVE_INTERRUPTS: &str = concat!(
    r"interrupts=$(sed -n 's/^ *\([0-9]*\):.* virtio0-[io].*/\1/p' /proc/interrupts); ",
    "[ -n \"$interrupts\" ] || exit 1; ",
    "for turn in $(seq 20); do for interrupt in $interrupts; do ",
    "echo $(((interrupt + turn) % 4)) >/proc/irq/$interrupt/smp_affinity_list || exit 1; ",
    "done; sleep 0.1; done",
);

fn a_guest_moves_its_interrupts_between_its_processors_while_traffic_goes_on(profile: &str) {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1).with_profile(profile);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let one = GuestSpec::new(&port, &bed.uplinks[0], 1);
    let spec = GuestSpec { queue_pairs: 4, msix: true, ..one };
    let mut guest = Guest::boot(&bed, &spec);
    beside_streams(&bed, &spec.address, || {
        guest.check(MOVE_INTERRUPTS);
    });
    guest.ping(&bed.uplinks[0].wire_address);
    assert_eq!(daemon.port_counter("vm1", "to_guest_dropped_not_ready"), 0);
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn interrupts_of_packed_rings_move_between_processors_under_traffic() {
    a_guest_moves_its_interrupts_between_its_processors_while_traffic_goes_on(PROFILE);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn interrupts_of_split_rings_move_between_processors_under_traffic() {
    let profile = format!("{PROFILE},ring_packed=off");
    a_guest_moves_its_interrupts_between_its_processors_while_traffic_goes_on(&profile);
}

/// Does something while two streams at a time go to the guest and back, four each at least.
fn beside_streams(bed: &Bed, address: &str, something: impl FnOnce()) {
    struct Stop<'s>(&'s AtomicBool);
    impl Drop for Stop<'_> {
        // Also when `something` panics: the scope waits for its threads.
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stopped = AtomicBool::new(false);
    // Every byte of every stream comes back, or the thread panics.
    let traffic = || {
        let mut streams = 0;
        while !stopped.load(Ordering::Relaxed) || streams < 4 {
            echo_stream(&bed.wire, address, 1 << 20);
            streams += 1;
        }
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(traffic), scope.spawn(traffic)];
        let stop = Stop(&stopped);
        something();
        drop(stop);
        for thread in threads {
            thread.join().expect("traffic");
        }
    });
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_takes_all_128_pairs_and_gives_them_back() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1).with_profile(PROFILE);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let spec = GuestSpec { queue_pairs: 128, ..GuestSpec::new(&port, &bed.uplinks[0], 1) };
    let mut guest = Guest::boot(&bed, &spec);
    assert_eq!(guest.facts()["queue_pairs_max"], "128");
    for pairs in [128, 1, 128] {
        set_pairs(&mut guest, &daemon, pairs);
        guest.ping(&bed.uplinks[0].wire_address);
        echo_stream(&bed.wire, &spec.address, 1 << 20);
        echo_datagrams(&bed.wire, &spec.address, 1000, 50);
    }
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn front_ends_with_256_rings_come_and_go_beside_many_other_ports() {
    let bed = Bed::new(1, 2);
    let ports = (1..=66).map(|number| PortSpec::switch(NIC, number).with_profile(PROFILE));
    let ports: Vec<PortSpec> = ports.collect();
    let configuration = Configuration { workers: 2, ..Configuration::new(&bed, ports) };
    let daemon = Daemon::start(&bed, &configuration);
    let memory = GuestFile::new(0, 0x7f00_0000_0000, 256 * 0x10000);
    let connect = |port: &str| {
        let stream = UnixStream::connect(bed.path(&format!("{port}.sock"))).expect("connection");
        let frontend = Frontend::over(stream);
        frontend.start(&memory, 256);
        assert_eq!(daemon.json(&["port", "show", port])["binding"]["queue_pairs"], 128);
        frontend
    };
    // Together they have more descriptors than a process may have by default.
    let come_and_go = || {
        let names = ["vm1", "vm66"];
        drop(names.map(connect));
        names.iter().for_each(|name| daemon.wait_state(name, "waiting"));
    };
    // The first time may bring what then stays, such as threads' stacks.
    come_and_go();
    let before = daemon.holdings();
    come_and_go();
    wait_for("descriptors and mappings are as before", 5, || daemon.holdings() == before);
    daemon.frames();
}
