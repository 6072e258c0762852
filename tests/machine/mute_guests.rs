//! VMs that are connected and mute: within seconds the log says why, once, and `port show` says it
//! with the mend. A VM that is well has nothing of the kind told of it.

use std::os::unix::net::UnixStream;

use crate::common::{Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec, ping, wait_for};
use isonic::test_support::frontend::{Frontend, code, pair};
use isonic::test_support::rig_guest::{OUTSIDE, frame, mac};
use isonic::test_support::vm::Vm;
use serde_json::Value;

/// Seconds for what takes two looks.
const SECONDS: u64 = 20;

/// A daemon with so many switch ports on one uplink.
fn start(bed: &Bed, ports: u8) -> Daemon<'_> {
    let ports = (1..=ports).map(|number| PortSpec::switch(NIC, number)).collect();
    Daemon::start(bed, &Configuration::new(bed, ports))
}

fn vm(bed: &Bed, port: &str) -> Vm {
    Vm::connect(&bed.path(&format!("{port}.sock")), 1)
}

fn findings(daemon: &Daemon<'_>, port: &str) -> Vec<Value> {
    daemon.json(&["port", "show", port])["findings"].as_array().expect("a list").clone()
}

fn ids(daemon: &Daemon<'_>, port: &str) -> Vec<String> {
    let id = |finding: &Value| finding["id"].as_str().expect("a name").to_owned();
    findings(daemon, port).iter().map(id).collect()
}

/// Waits for a finding, meanwhile doing something again and again; its text.
fn wait_found(daemon: &Daemon<'_>, port: &str, id: &str, mut again: impl FnMut()) -> String {
    let mut text = String::new();
    wait_for(&format!("{id} is found of {port}"), SECONDS, || {
        again();
        let found = findings(daemon, port);
        let one = found.iter().find(|finding| finding["id"] == id);
        one.inspect(|finding| text = format!("{} {}", finding["found"], finding["mend"])).is_some()
    });
    text
}

fn wait_logged(daemon: &Daemon<'_>, words: &[&str]) {
    wait_for(&format!("{words:?} are logged"), SECONDS, || times_logged(daemon, words) > 0);
}

/// Lines of the log that have all these words.
fn times_logged(daemon: &Daemon<'_>, words: &[&str]) -> usize {
    let has_all = |line: &&str| words.iter().all(|word| line.contains(word));
    daemon.log().lines().filter(has_all).count()
}

/// That a guest with one queue pair of short rings is well.
fn wait_well(daemon: &Daemon<'_>, port: &str) {
    wait_for(&format!("{port} is well"), SECONDS, || {
        ids(daemon, port) == ["narrower-rings", "fewer-queue-pairs"]
    });
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn memory_that_is_not_shared_is_named_with_the_mend() {
    let bed = Bed::new(1, 1);
    let daemon = start(&bed, 2);
    let (mut mute, mut well) = (Vm::connect_unshared(&bed.path("vm1.sock")), vm(&bed, "vm2"));
    assert!(mute.try_send(0, &frame(OUTSIDE, mac(1), 200)));
    assert!(well.try_send(0, &frame(OUTSIDE, mac(2), 200)));
    let text = wait_found(&daemon, "vm1", "memory-not-shared", || ());
    assert!(text.contains("share=on") && text.contains("ring 1"), "{text}");
    wait_logged(&daemon, &["ERROR", "vm1", "memory-not-shared", "share=on"]);
    wait_well(&daemon, "vm2");
    let others = ["vm2", "a port"];
    assert_eq!(times_logged(&daemon, &others), 0, "{}", daemon.log());
    assert_eq!(times_logged(&daemon, &["memory-not-shared"]), 1);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_with_another_address_is_named_until_it_has_its_own_again() {
    let bed = Bed::new(1, 1);
    let daemon = start(&bed, 1);
    let mut vm = vm(&bed, "vm1");
    let text = wait_found(&daemon, "vm1", "other-mac", || {
        vm.send(&frame(OUTSIDE, mac(9), 200));
    });
    for word in ["52:54:00:00:00:09", "mac=52:54:00:00:00:01"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    wait_logged(&daemon, &["ERROR", "vm1", "other-mac"]);
    wait_for("it has its own address", SECONDS, || {
        vm.send(&frame(OUTSIDE, mac(1), 200));
        !ids(&daemon, "vm1").contains(&"other-mac".to_owned())
    });
    wait_found(&daemon, "vm1", "other-mac", || vm.send(&frame(OUTSIDE, mac(9), 200)));
    assert_eq!(times_logged(&daemon, &["other-mac"]), 1, "once a session");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn swapped_sockets_name_both_ports() {
    let bed = Bed::new(1, 1);
    let daemon = start(&bed, 2);
    let mut vms = [vm(&bed, "vm1"), vm(&bed, "vm2")];
    let mut send = || {
        vms[0].send(&frame(OUTSIDE, mac(2), 200));
        vms[1].send(&frame(OUTSIDE, mac(1), 200));
    };
    for (port, other) in [("vm1", "vm2"), ("vm2", "vm1")] {
        let text = wait_found(&daemon, port, "swapped-sockets", &mut send);
        assert!(text.contains(other), "{text}");
        wait_logged(&daemon, &["ERROR", port, "swapped-sockets", other]);
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_driver_that_has_not_started_and_a_refused_request_are_told_at_once() {
    let bed = Bed::new(1, 1);
    let daemon = start(&bed, 1);
    let frontend = Frontend::over(UnixStream::connect(bed.path("vm1.sock")).unwrap());
    frontend.negotiate();
    wait_found(&daemon, "vm1", "driver-not-started", || ());
    assert_eq!(times_logged(&daemon, &["driver-not-started"]), 0, "it may only boot");
    frontend.refused(code::SET_VRING_NUM, &pair(0, 2048), &[]);
    let text = wait_found(&daemon, "vm1", "request-refused", || ());
    for word in ["SET_VRING_NUM", "2048", "rx_queue_size=1024", "QEMU 10.0.13"] {
        assert!(text.contains(word), "{word} is not in {text}");
    }
    // Features and no memory: QEMU has none that it could share.
    wait_found(&daemon, "vm1", "memory-not-shared", || ());
    drop(frontend);
    wait_for("nothing is told of a session that is over", SECONDS, || {
        ids(&daemon, "vm1").is_empty()
    });
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_nics_own_address_is_refused_for_a_port_and_never_taken_from_the_host() {
    let bed = Bed::new(1, 1);
    let uplink = &bed.uplinks[0];
    let address = format!("/sys/class/net/{NIC}/address");
    let own = bed.host.run(&["cat", &address]).trim().to_owned();
    bed.host.run(&["ip", "link", "add", "link", NIC, "name", "isonic-mv", "type", "macvlan"]);
    let macvlan = bed.host.run(&["cat", "/sys/class/net/isonic-mv/address"]).trim().to_owned();
    let daemon = start(&bed, 1);
    for mac in [&own, &macvlan] {
        let socket = bed.path("vm2.sock").display().to_string();
        let told = daemon.refusal(&[
            "port",
            "add",
            "vm2",
            "--socket",
            &socket,
            "--uplink",
            NIC,
            "--profile",
            crate::common::PROFILE,
            "--mac",
            mac,
        ]);
        assert!(told.contains(mac.as_str()) && told.contains("the host's own"), "{told}");
    }
    ping(&bed.wire, &uplink.host_address, &[]);

    // The host takes the port's address: it stays reachable, and the port is told of.
    bed.host.run(&["ip", "link", "set", "dev", NIC, "address", "52:54:00:00:00:01"]);
    bed.wire.run(&["ip", "neighbour", "flush", "all"]);
    let text = wait_found(&daemon, "vm1", "mac-of-host", || ());
    assert!(text.contains(NIC), "{text}");
    ping(&bed.wire, &uplink.host_address, &[]);
    wait_logged(&daemon, &["the uplink's MAC was changed", "52:54:00:00:00:01"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn qemu_without_shared_memory_and_with_default_rings_is_told_both() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let spec = GuestSpec {
        shared: false,
        queue_pairs: 1,
        device_options: ",rx_queue_size=256,tx_queue_size=256,mac=52:54:00:12:34:56".to_owned(),
        ..GuestSpec::new(&port, &bed.uplinks[0], 1)
    };
    let mut guest = Guest::boot(&bed, &spec);
    let (output, status) = guest.run(&format!("ping -c 2 -W 1 {}", bed.uplinks[0].wire_address));
    assert_ne!(status, 0, "it is mute: {output}");
    wait_found(&daemon, "vm1", "memory-not-shared", || ());
    wait_logged(&daemon, &["ERROR", "vm1", "memory-not-shared", "share=on"]);
    let told = ids(&daemon, "vm1");
    assert!(told.contains(&"narrower-rings".to_owned()), "{told:?}");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn qemu_with_another_address_than_its_ports_is_told() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let device_options = ",mac=52:54:00:12:34:56".to_owned();
    let spec = GuestSpec { device_options, ..GuestSpec::new(&port, &bed.uplinks[0], 1) };
    let mut guest = Guest::boot(&bed, &spec);
    let address = &bed.uplinks[0].wire_address;
    let text = wait_found(&daemon, "vm1", "other-mac", || {
        guest.run(&format!("ping -c 1 -W 1 {address}"));
    });
    assert!(text.contains("52:54:00:12:34:56"), "{text}");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_that_boots_pauses_and_begins_anew_is_never_called_mute() {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let address = guest.spec.address.clone();
    let well = || {
        wait_for("vm1 is well", SECONDS, || ids(&daemon, "vm1") == ["fewer-queue-pairs"]);
    };
    ping(&bed.wire, &address, &[]);
    well();
    guest.check("ip link set dev eth0 down");
    guest.rebind();
    ping(&bed.wire, &address, &[]);
    well();
    guest.monitor().query("stop");
    wait_found(&daemon, "vm1", "driver-stopped", || ());
    guest.monitor().query("cont");
    ping(&bed.wire, &address, &[]);
    well();
    guest.reboot();
    ping(&bed.wire, &address, &[]);
    well();
    assert_eq!(times_logged(&daemon, &["a port "]), 0, "{}", daemon.log());
}
