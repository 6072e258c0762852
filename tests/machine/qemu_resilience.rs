//! What ends and comes back: guests, front-ends, the daemon itself.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec, echo_stream, ping, wait_for,
    wait_reachable,
};
use isonic::test_support::frontend::{Frontend, GuestFile};

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_killed_guest_is_replaced_by_another() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let spec = GuestSpec::new(&port, &bed.uplinks[0], 1);
    let live_and_die = || {
        let mut guest = Guest::boot(&bed, &spec);
        ping(&bed.wire, &spec.address, &[]);
        guest.kill();
        daemon.wait_state("vm1", "waiting");
        assert_eq!(daemon.json(&["port", "show", "vm1"])["binding"], serde_json::Value::Null);
    };
    // The first may bring what then stays, such as a thread's stack.
    live_and_die();
    let before = daemon.holdings();
    live_and_die();
    wait_for("descriptors and mappings are as before", 5, || daemon.holdings() == before);
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_that_was_started_before_the_daemon_is_served_when_it_comes() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let guest = Guest::launch(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let guest = guest.ready();
    ping(&bed.wire, &guest.spec.address, &[]);
    daemon.wait_state("vm1", "running");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_live_guest_has_its_traffic_back_after_the_daemon_was_stopped_or_killed() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let address = guest.spec.address.clone();
    ping(&bed.wire, &address, &[]);
    for end in [Daemon::stop, Daemon::kill, Daemon::stop, Daemon::kill] {
        end(&mut daemon);
        daemon.start_again();
        wait_reachable(&bed.wire, &address, 20);
        ping(&bed.wire, &address, &[]);
        guest.ping(&bed.uplinks[0].wire_address);
        echo_stream(&bed.wire, &address, 1 << 20);
    }
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn two_hundred_connections_leave_nothing_behind() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let memory = GuestFile::new(0, 0x7f00_0000_0000, 1 << 20);
    let connect = |rings: u32| {
        let stream = UnixStream::connect(bed.path("vm1.sock")).unwrap();
        Frontend::over(stream).start(&memory, rings);
    };
    // The first connection may bring what then stays, such as a thread's stack.
    connect(4);
    daemon.wait_state("vm1", "waiting");
    let (before, frames) = (daemon.holdings(), daemon.frames());
    for number in 0..200 {
        connect(number % 5);
    }
    daemon.wait_state("vm1", "waiting");
    // Each connection would leave one. What a thread that was not there yet has for itself, its
    // stack and the allocator's arena, is no more than some.
    wait_for("hardly more descriptors and mappings than before", 5, || {
        let now = daemon.holdings();
        now.0 < before.0 + 50 && now.1 < before.1 + 50
    });
    assert_eq!(daemon.frames(), frames);
}

/// QEMU 7.2 tries again and again without a pause (`net_vhost_user_init`).
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_front_end_that_wants_more_pairs_than_there_are_fills_no_log_and_holds_up_nobody() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1).with_profile("org.isonic.net.v3,queue_pairs=1");
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let spec = GuestSpec { queue_pairs: 1, ..GuestSpec::new(&port, &bed.uplinks[0], 1) };
    let wider = PortSpec { profile: "org.isonic.net.v3".to_owned(), ..port };
    let wanting = GuestSpec { port: wider, queue_pairs: 4, ..spec.clone() };
    let mut guest = Guest::launch(&bed, &wanting);
    wait_for("isonic says that they come and go", 20, || {
        daemon.log().contains("front-ends come and go, which is logged no more")
    });
    wait_for("QEMU says why", 20, || guest.log().contains("more queues than supported: 1"));
    std::thread::sleep(Duration::from_secs(2));
    guest.kill();
    daemon.wait_state("vm1", "waiting");
    let log = daemon.log();
    assert!(log.matches("front-end connected").count() <= 8, "{log}");
    // The first after a rest is an ordinary one.
    std::thread::sleep(Duration::from_secs(1));
    let guest = Guest::boot(&bed, &spec);
    ping(&bed.wire, &guest.spec.address, &[]);
    assert_eq!(daemon.log().matches("front-end connected").count(), 9);
}

/// One per cent of a core is 10 ticks of 10 ms in 10 s; polling would be 1000.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_connected_idle_guest_costs_next_to_nothing() {
    const TICKS_MAX: u64 = 10;
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    ping(&bed.wire, &guest.spec.address, &[]);
    std::thread::sleep(Duration::from_secs(2));
    let before = daemon.cpu_ticks();
    std::thread::sleep(Duration::from_secs(10));
    let used = daemon.cpu_ticks() - before;
    println!("an idle daemon used {used} ticks of 10 ms in 10 s");
    assert!(used <= TICKS_MAX, "{used} ticks of 10 ms in 10 s");
    // And it wakes up.
    ping(&bed.wire, &guest.spec.address, &[]);
}
