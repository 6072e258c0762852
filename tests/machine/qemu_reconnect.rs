//! Whatever ends a session, the guest's rings go on where they were, or where a new driver has
//! them: packed ones, of which a front-end does not know how far they are when it loses us.

use std::collections::BTreeMap;
use std::fs;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::common::{
    Bed, Configuration, Daemon, EchoFlow, Guest, GuestSpec, NIC, PortSpec, echo_stream, wait_for,
    wait_reachable,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde_json::{Value, json};

const PACKED: &str = "org.isonic.net.v3";
/// Seconds until the test gives up on traffic.
const PATIENCE: u64 = 30;

/// A guest with packed rings, and isonic.
struct Stage<'bed> {
    bed: &'bed Bed,
    daemon: Daemon<'bed>,
    guest: Guest,
}

impl<'bed> Stage<'bed> {
    fn new(bed: &'bed Bed) -> Self {
        let port = PortSpec::switch(NIC, 1).with_profile(PACKED);
        let daemon = Daemon::start(bed, &Configuration::new(bed, vec![port.clone()]));
        let guest = Guest::boot(bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
        let stage = Self { bed, daemon, guest };
        stage.use_rings();
        stage
    }

    /// More packets than the rings have places, so that their positions are not the first ones.
    fn use_rings(&self) {
        wait_reachable(&self.bed.wire, &self.guest.spec.address, PATIENCE);
        echo_stream(&self.bed.wire, &self.guest.spec.address, 4 << 20);
    }

    /// What the guest sees, and what is bound.
    fn interface(&mut self) -> (BTreeMap<String, String>, Value) {
        self.daemon.wait_state("vm1", "running");
        let shown = self.daemon.json(&["port", "show", "vm1"]);
        let bound = json!([shown["profile_digest"], shown["binding"]["fingerprint"]]);
        (self.guest.facts(), bound)
    }

    fn assert_as_before(&mut self, before: &(BTreeMap<String, String>, Value)) {
        self.use_rings();
        assert_eq!(self.interface(), *before);
        assert_eq!(self.daemon.port_counter("vm1", "ring_faults"), 0);
    }

    /// Breaks the connection between QEMU and isonic, both of which live: a third process shuts
    /// isonic's end of it down. To be done once it is there: QEMU takes a second to connect again,
    /// and what was on its way meanwhile may look like traffic that is back.
    fn break_connection(&self) {
        self.daemon.wait_state("vm1", "running");
        wait_for("isonic has a connection to break", 20, || self.shut_down() > 0);
    }

    /// Answers how many connections were shut down.
    fn shut_down(&self) -> usize {
        let path = self.bed.path("vm1.sock");
        let id = i32::try_from(self.daemon.id()).expect("a process id");
        let process = Pid::from_raw(id).expect("a process id");
        let process = pidfd_open(process, PidfdFlags::empty()).expect("isonic");
        let mut broken = 0;
        for entry in fs::read_dir(format!("/proc/{id}/fd")).expect("descriptors") {
            let number = entry.expect("descriptor").file_name();
            let number = number.to_string_lossy().parse().expect("a number");
            // It may be closed by now.
            let Ok(ours) = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()) else {
                continue;
            };
            let stream = UnixStream::from(ours);
            let name = stream.local_addr().ok();
            let ours = name.is_some_and(|name| name.as_pathname() == Some(&path));
            if ours && stream.peer_addr().is_ok() {
                stream.shutdown(Shutdown::Both).expect("shutdown");
                broken += 1;
            }
        }
        broken
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_session_that_breaks_while_both_sides_live_goes_on() {
    let bed = Bed::new(1, 2);
    let mut stage = Stage::new(&bed);
    let before = stage.interface();
    let flow = EchoFlow::start(&bed.wire, &stage.guest.spec.address);
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(500));
        flow.mark();
        stage.break_connection();
        let outage = flow.resumed(PATIENCE);
        println!("a broken connection: {outage:?} until traffic was back");
    }
    let tally = flow.stop();
    println!("{tally:?}");
    assert_eq!((tally.damaged, tally.repeated), (0, 0));
    stage.assert_as_before(&before);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_that_is_paused_goes_on_whether_or_not_isonic_was_killed_meanwhile() {
    let bed = Bed::new(1, 2);
    let mut stage = Stage::new(&bed);
    let before = stage.interface();
    for killed in [false, true, true] {
        stage.guest.monitor().command("stop", &json!({}));
        if killed {
            stage.daemon.kill();
            stage.daemon.start_again();
        }
        stage.guest.monitor().command("cont", &json!({}));
        stage.assert_as_before(&before);
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_driver_that_was_loaded_anew_while_isonic_was_away_begins_at_its_own_first_position() {
    let bed = Bed::new(1, 2);
    let mut stage = Stage::new(&bed);
    let before = stage.interface();
    stage.daemon.kill();
    stage.guest.rebind();
    stage.daemon.start_again();
    stage.assert_as_before(&before);
    // And a whole guest.
    stage.daemon.kill();
    stage.guest.reboot();
    stage.daemon.start_again();
    stage.assert_as_before(&before);
    // A driver that is loaded anew while isonic is there, which is then killed.
    stage.guest.rebind();
    stage.use_rings();
    stage.daemon.kill();
    stage.daemon.start_again();
    stage.assert_as_before(&before);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn another_qemu_on_the_port_of_a_killed_one_begins_at_its_own_first_position() {
    let bed = Bed::new(1, 2);
    let mut stage = Stage::new(&bed);
    let before = stage.interface();
    stage.guest.kill();
    stage.daemon.wait_state("vm1", "waiting");
    stage.guest = Guest::boot(&bed, &stage.guest.spec.clone());
    stage.assert_as_before(&before);
    // Both at once.
    stage.guest.kill();
    stage.daemon.kill();
    stage.daemon.start_again();
    stage.guest = Guest::boot(&bed, &stage.guest.spec.clone());
    stage.assert_as_before(&before);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_is_kept_of_a_ports_rings_goes_with_the_port() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port]));
    let add = |name: &str, profile: &str| {
        let socket = bed.path(&format!("{name}.sock")).display().to_string();
        let uplink = ["--uplink", NIC, "--profile", profile];
        daemon.json(&[&["port", "add", name, "--socket", &socket], &uplink[..]].concat());
    };
    let kept = || {
        let entries = fs::read_dir(bed.path("run/rings")).map(|entries| {
            entries.map(|entry| entry.expect("entry").file_name().into_string().expect("a name"))
        });
        entries.map(Iterator::collect::<Vec<_>>).unwrap_or_default()
    };
    assert_eq!(kept(), Vec::<String>::new(), "split rings say themselves where they are");
    add("packed", PACKED);
    add("split", "org.isonic.net.v1");
    assert_eq!(kept(), ["packed"]);
    daemon.json(&["port", "set-profile", "packed", "org.isonic.net.v1"]);
    assert_eq!(kept(), Vec::<String>::new());
    daemon.json(&["port", "set-profile", "packed", PACKED]);
    assert_eq!(kept(), ["packed"]);
    daemon.json(&["port", "del", "packed"]);
    assert_eq!(kept(), Vec::<String>::new());
}
