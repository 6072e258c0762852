//! Busy polling on a veth pair: what is asked of the sockets, what of the NIC, and that the NIC has
//! its own settings again however isonic ends.

use std::fs;
use std::time::Duration;

use crate::common::{Bed, Configuration, Daemon, NIC, PacketSocket, PortSpec, exchange, xsk_facts};
use isonic::test_support::echo_vm::EchoVm;
use isonic::xdp::{Deferral, Interface, napi_instances};

const QUEUES: u32 = 2;
const VM_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
/// The administrator's own.
const OWN: Deferral =
    Deferral { defer_hard_irqs: 7, gro_flush_timeout: 12_345, irq_suspend_timeout: 0 };
const POLLED: Deferral =
    Deferral { defer_hard_irqs: 2, gro_flush_timeout: 200_000, irq_suspend_timeout: 0 };
const SUSPENDED: Deferral = Deferral { irq_suspend_timeout: 20_000_000, ..POLLED };

/// A NIC with settings of its administrator's, whose queues are polled by the kernel, GRO being on,
/// whether there is an XDP program or not.
fn bed() -> Bed {
    let bed = Bed::new(1, QUEUES);
    bed.host.run(&["ethtool", "-K", NIC, "gro", "on"]);
    for (name, value) in [
        ("napi_defer_hard_irqs", OWN.defer_hard_irqs),
        ("gro_flush_timeout", OWN.gro_flush_timeout),
    ] {
        bed.host.run(&["sh", "-c", &format!("echo {value} >/sys/class/net/{NIC}/{name}")]);
    }
    assert_settings(&bed, OWN);
    bed
}

fn polled(bed: &Bed) -> Configuration {
    let configuration = Configuration::new(bed, vec![PortSpec::switch(NIC, 1)]);
    Configuration { uplink_lines: "busy_poll = true\nbusy_poll_budget = 16", ..configuration }
}

/// What every queue of the NIC has.
fn assert_settings(bed: &Bed, expected: Deferral) {
    let instances = bed.host.enter(|| {
        let index = Interface::read(NIC).expect("the NIC").index;
        napi_instances(index).expect("its instances")
    });
    assert_eq!(instances.len(), QUEUES as usize);
    assert!(instances.iter().all(|napi| napi.deferral == expected), "{instances:?}");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn sockets_are_told_and_frames_are_moved_and_an_idle_worker_sleeps() {
    let bed = bed();
    let daemon = Daemon::start(&bed, &polled(&bed));
    let sockets = xsk_facts(daemon.id());
    assert_eq!(sockets.len(), QUEUES as usize);
    let told = sockets.iter().all(|socket| socket.prefer_busy_poll && socket.busy_poll > 0);
    assert!(told, "{sockets:?}");
    let mut vm = EchoVm::start(&bed.path("vm1.sock"), VM_MAC);
    let peer = &bed.uplinks[0].peer;
    let mut socket = PacketSocket::open(&bed.wire, peer, Duration::from_secs(5));
    vm.echo_while(|| exchange(&mut socket, VM_MAC, 20_000, &[60, 594, 1514]));
    for counter in ["to_guest_packets", "from_guest_packets"] {
        assert_eq!(daemon.port_counter("vm1", counter), 20_000, "{counter}");
    }
    daemon.frames();
    // To be asked wakes it.
    let sleeps = || daemon.json(&["stats"])["workers"][0]["sleeps"].as_u64().expect("sleeps");
    let before = sleeps();
    crate::common::wait_for("the worker sleeps again", 5, || sleeps() > before);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_socket_is_told_nothing_unless_it_is_wanted() {
    let bed = bed();
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![]));
    let sockets = xsk_facts(daemon.id());
    assert!(sockets.iter().all(|socket| !socket.prefer_busy_poll), "{sockets:?}");
    assert_settings(&bed, OWN);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_nic_has_its_own_settings_again_however_isonic_ends() {
    let bed = bed();
    let mut daemon = Daemon::start(&bed, &polled(&bed));
    assert_settings(&bed, POLLED);
    daemon.stop();
    assert_settings(&bed, OWN);
    // Killed, it cannot put them back; who starts next knows what they were.
    for _ in 0..2 {
        daemon.start_again();
        assert_settings(&bed, POLLED);
        daemon.kill();
        assert_settings(&bed, POLLED);
    }
    daemon.start_again();
    assert_settings(&bed, POLLED);
    daemon.stop();
    assert_settings(&bed, OWN);
}

/// By an epoll instance for each socket, which the kernel tells apart by what it waits for.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn interrupts_are_suspended_while_packets_are_found_where_that_is_wanted() {
    let bed = bed();
    let lines = "busy_poll = true\nirq_suspend = true";
    let configuration = Configuration { uplink_lines: lines, ..polled(&bed) };
    let mut daemon = Daemon::start(&bed, &configuration);
    assert_settings(&bed, SUSPENDED);
    assert_eq!(instances_of_one(daemon.id()), QUEUES as usize);
    let mut vm = EchoVm::start(&bed.path("vm1.sock"), VM_MAC);
    let peer = &bed.uplinks[0].peer;
    let mut socket = PacketSocket::open(&bed.wire, peer, Duration::from_secs(5));
    vm.echo_while(|| exchange(&mut socket, VM_MAC, 5000, &[60, 594, 1514]));
    daemon.frames();
    daemon.kill();
    assert_settings(&bed, SUSPENDED);
    daemon.start_again();
    daemon.stop();
    assert_settings(&bed, OWN);
    let mut daemon = Daemon::start(&bed, &polled(&bed));
    assert_eq!(instances_of_one(daemon.id()), 0);
    daemon.stop();
}

/// How many epoll instances of a process wait for one descriptor alone.
fn instances_of_one(process: u32) -> usize {
    let descriptors = fs::read_dir(format!("/proc/{process}/fdinfo")).expect("descriptors");
    let facts = descriptors.filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok());
    facts.filter(|facts| facts.matches("tfd:").count() == 1).count()
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn who_starts_after_a_kill_puts_them_back_though_it_does_not_poll() {
    let bed = bed();
    let mut daemon = Daemon::start(&bed, &polled(&bed));
    daemon.kill();
    assert_settings(&bed, POLLED);
    Configuration::new(&bed, vec![]).write(&bed);
    daemon.start_again();
    assert_settings(&bed, OWN);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn settings_of_the_whole_nic_are_put_back_where_its_queues_have_none() {
    let bed = bed();
    // As on a kernel before 6.13.
    let note = r#"{"device":{"defer_hard_irqs":3,"gro_flush_timeout":4567}}"#;
    leave_note(&bed, note);
    let _daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![]));
    let expected = Deferral { defer_hard_irqs: 3, gro_flush_timeout: 4567, ..OWN };
    assert_settings(&bed, expected);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_note_that_says_nothing_is_told_with_the_way_out() {
    let bed = bed();
    leave_note(&bed, "{\"device\":");
    let refused = Daemon::refused(&bed, &polled(&bed));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    for word in ["interrupts/isonic-nic0.json", "remove it"] {
        assert!(refused.errors.contains(word), "{word} is not in: {}", refused.errors);
    }
    assert_settings(&bed, OWN);
}

fn leave_note(bed: &Bed, text: &str) {
    let notes = bed.path("run/interrupts");
    fs::create_dir_all(&notes).expect("directory");
    fs::write(notes.join(format!("{NIC}.json")), text).expect("note");
}
