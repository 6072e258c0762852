//! `isonic doctor` on a veth pair: what it finds, what it says of that, and its exit status.

use std::fs;

use crate::common::{
    BRIDGE, Bed, Configuration, Daemon, Finished, NIC, PortSpec, run_to_end, wait_for,
};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_isonic");

/// What the doctor said.
#[derive(Debug)]
struct Visit {
    report: Value,
    status: Option<i32>,
}

impl Visit {
    /// `wrapped isonic doctor arguments --json` in the bed's namespace `host`.
    fn new(bed: &Bed, wrapped: &[&str], arguments: &[&str]) -> Self {
        let api = bed.path("api.sock").display().to_string();
        // A daemon of the machine's is none of this test's.
        let ours = [BINARY, "doctor", "--json", "--api-socket", &api];
        let ours = if arguments.contains(&"--api-socket") { &ours[..3] } else { &ours };
        let Finished { status, output, errors } =
            run_to_end(&mut bed.host.command(&[wrapped, ours, arguments].concat()));
        let report = serde_json::from_str(&output);
        let report = report.unwrap_or_else(|error| panic!("{error}: {output}{errors}"));
        Self { report, status: status.code() }
    }

    /// The same of the bed's NIC.
    fn of_nic(bed: &Bed) -> Self {
        Self::new(bed, &[], &["--uplink", NIC])
    }

    /// The same of a configuration.
    fn of(bed: &Bed, configuration: &Configuration) -> Self {
        let config = configuration.write(bed).display().to_string();
        Self::new(bed, &[], &["--config", &config])
    }

    /// All findings: the host's, and the first interface's.
    fn findings(&self) -> impl Iterator<Item = &Value> {
        let lists = [&self.report["host"], &self.report["uplinks"][0]["findings"]];
        lists.into_iter().flat_map(|list| list.as_array().expect("a list"))
    }

    fn finding(&self, id: &str) -> &Value {
        let found = self.findings().find(|finding| finding["id"] == id);
        found.unwrap_or_else(|| panic!("no {id} in {:#}", self.report))
    }

    /// This check has come to this, exactly one, and says what to do where that is to be done.
    fn assert(&self, id: &str, status: &str) -> &Value {
        let finding = self.finding(id);
        assert_eq!(finding["status"], status, "{finding:#}");
        if ["warning", "problem"].contains(&status) {
            assert!(finding["meaning"].as_str().is_some_and(|text| !text.is_empty()), "{finding}");
            assert!(finding["remedy"].is_string(), "{finding}");
        }
        finding
    }

    /// A port can be served, or not.
    fn assert_serves(&self, serves: bool) {
        assert_eq!(self.report["can_serve"], serves, "{:#}", self.report);
        assert_eq!(self.status, Some(if serves { 0 } else { 1 }));
    }
}

/// One port on the bed's first uplink.
fn one_port(bed: &Bed) -> Configuration {
    Configuration::new(bed, vec![PortSpec::switch(NIC, 1)])
}

fn host(bed: &Bed, command: &str) {
    bed.host.run(&command.split(' ').collect::<Vec<_>>());
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_good_interface_is_found_good() {
    let bed = Bed::new(1, 2);
    // As isonic would have it: the other end completes its frames.
    bed.wire.run(&["ethtool", "-K", &bed.uplinks[0].peer, "txvlan", "off"]);
    let visit = Visit::of_nic(&bed);
    visit.assert_serves(true);
    for id in [
        "privileges",
        "bpf",
        "af-xdp",
        "locked-memory",
        "link",
        "xdp-program",
        "native-xdp",
        "mtu",
        "long-packets",
        "checksum",
        "vlan-tags",
        "merging",
        "queues",
        "steering",
        "workers",
    ] {
        visit.assert(id, "ok");
    }
    // It works, and is not what one would buy.
    visit.assert("zero-copy", "note");
    visit.assert("host-addresses", "note");
    let nic = &visit.report["uplinks"][0]["nic"];
    assert_eq!((&nic["driver"], &nic["mtu"]), (&"veth".into(), &1500.into()));
    assert_eq!((&nic["channels"]["rx"], &nic["channels"]["combined"]), (&2.into(), &0.into()));
    let xdp = &nic["xdp"];
    assert_eq!((&xdp["native"], &xdp["zero_copy"]), (&true.into(), &false.into()), "{xdp}");
    assert_eq!(nic["addresses"], serde_json::json!(["10.77.0.254/24"]));
    // Nothing is left of the visit.
    assert!(!bed.host.run(&["ip", "-details", "link", "show", NIC]).contains("xdp"));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_the_other_end_of_a_veth_leaves_undone_is_found_in_its_own_namespace() {
    let bed = Bed::new(1, 1);
    let peer = &bed.uplinks[0].peer;
    bed.wire.run(&["ethtool", "-K", peer, "tx", "on", "txvlan", "on"]);
    let visit = Visit::of_nic(&bed);
    visit.assert_serves(true);
    for id in ["checksum", "vlan-tags"] {
        let finding = visit.assert(id, "warning");
        let remedy = finding["remedy"].as_str().expect("a remedy");
        assert!(remedy.contains(peer) && remedy.contains(bed.wire.name()), "{finding}");
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_interface_that_is_down_or_not_there_or_lacks_a_carrier_is_told_apart() {
    let bed = Bed::new(1, 1);
    bed.wire.run(&["ip", "link", "set", &bed.uplinks[0].peer, "down"]);
    let visit = Visit::of_nic(&bed);
    visit.assert("link", "warning");
    visit.assert_serves(true);
    host(&bed, &format!("ip link set {NIC} down"));
    let visit = Visit::of_nic(&bed);
    let finding = visit.assert("link", "problem");
    assert_eq!(finding["remedy"], format!("ip link set dev {NIC} up"));
    visit.assert_serves(false);
    let visit = Visit::new(&bed, &[], &["--uplink", "isonic-no"]);
    visit.assert("present", "problem");
    visit.assert_serves(false);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_running_daemon_is_asked_and_not_disturbed_and_its_program_is_no_obstacle() {
    let bed = Bed::new(1, 2);
    let daemon = Daemon::start(&bed, &one_port(&bed));
    let before = daemon.json(&["uplink", "list"]);
    let visit = Visit::of_nic(&bed);
    visit.assert_serves(true);
    let program = visit.assert("xdp-program", "ok");
    let found = program["found"].as_str().expect("text");
    assert!(found.contains("native") && found.contains("copy"), "{found}");
    assert!(visit.finding("daemon")["found"].as_str().is_some_and(|text| text.contains(NIC)));
    let fixed = |list: &Value| {
        let mut list = list.clone();
        list[0]["counters"].take();
        list
    };
    assert_eq!(fixed(&daemon.json(&["uplink", "list"])), fixed(&before));
    // One that does not answer here has the interface to itself.
    let visit = Visit::new(&bed, &[], &["--uplink", NIC, "--api-socket", "/nonexistent"]);
    assert!(visit.finding("xdp-program")["meaning"].as_str().unwrap().contains("another isonic"));
    visit.assert("xdp-program", "problem");
    visit.assert_serves(false);
}

/// A program that lets everything pass, compiled.
fn pass(bed: &Bed) -> String {
    let source = bed.path("pass.c");
    let object = bed.path("pass.o").display().to_string();
    let text = "__attribute__((section(\"xdp\"), used)) int pass(void *ctx) { return 2; }\n";
    fs::write(&source, text).expect("source");
    let source = source.display().to_string();
    bed.host.run(&["clang", "-O2", "-target", "bpf", "-c", &source, "-o", &object]);
    object
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn somebody_elses_program_is_a_problem() {
    let bed = Bed::new(1, 1);
    let object = pass(&bed);
    host(&bed, &format!("ip link set {NIC} xdp object {object} section xdp"));
    let visit = Visit::of_nic(&bed);
    let finding = visit.assert("xdp-program", "problem");
    assert!(finding["found"].as_str().is_some_and(|text| text.contains("\"pass\"")), "{finding}");
    visit.assert_serves(false);
    host(&bed, &format!("ip link set {NIC} xdp off"));
    Visit::of_nic(&bed).assert_serves(true);
}

/// Somebody takes our program off and puts another one there.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_program_beside_a_running_isonic_is_not_called_its_and_what_comes_of_it_is_told() {
    let bed = Bed::new(1, 1);
    let object = pass(&bed);
    let daemon = Daemon::start(&bed, &one_port(&bed));
    Visit::of_nic(&bed).assert("uplink-state", "ok");
    let links = bed.host.run(&["bpftool", "--json", "link"]);
    let links: Value = serde_json::from_str(&links).expect("JSON");
    let program = &daemon.json(&["uplink", "list"])[0]["program_id"];
    let link = links.as_array().expect("links").iter().find(|link| link["prog_id"] == *program);
    let link = &link.unwrap_or_else(|| panic!("{program} in {links}"))["id"];
    host(&bed, &format!("bpftool link detach id {link}"));
    host(&bed, &format!("ip link set {NIC} xdpgeneric object {object} section xdp"));
    let visit = Visit::of_nic(&bed);
    let finding = visit.assert("xdp-program", "problem");
    assert!(finding["found"].as_str().is_some_and(|text| text.contains("\"pass\"")), "{finding}");
    visit.assert_serves(false);
    wait_for("the daemon has failed to open it again", 20, || {
        daemon.json(&["uplink", "list"])[0]["state"] == "failed"
    });
    // It is among those looked at without being named.
    let api = bed.path("api.sock").display().to_string();
    let visit = Visit::new(&bed, &[], &["--api-socket", &api]);
    let finding = visit.assert("uplink-state", "problem");
    let told = "program";
    assert!(finding["found"].as_str().is_some_and(|text| text.contains(told)), "{finding}");
    visit.assert("daemon", "warning");
    host(&bed, &format!("ip link set {NIC} xdpgeneric off"));
    wait_for("it is opened again", 20, || daemon.json(&["uplink", "list"])[0]["state"] == "up");
    Visit::of_nic(&bed).assert("xdp-program", "ok");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_locked_memory_limit_that_is_too_low_is_told_with_what_is_wanted() {
    let bed = Bed::new(1, 2);
    let limited = ["prlimit", "--memlock=4194304"];
    let no_lock = ["setpriv", "--bounding-set=-ipc_lock", "--inh-caps=-ipc_lock"];
    let wrapped = [&limited[..], &no_lock].concat();
    let visit = Visit::new(&bed, &wrapped, &["--uplink", NIC]);
    let finding = visit.assert("locked-memory", "problem");
    assert_eq!(finding["found"], "4096 KiB allowed, 32 MiB wanted for 2 queues");
    visit.assert_serves(false);
    // With CAP_IPC_LOCK the limit does not count.
    let visit = Visit::new(&bed, &limited, &["--uplink", NIC]);
    visit.assert("locked-memory", "ok");
    visit.assert_serves(true);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn without_capabilities_it_says_which_are_missing_and_still_looks() {
    let bed = Bed::new(1, 1);
    let bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"];
    let visit = Visit::new(&bed, &bare, &["--uplink", NIC]);
    for id in ["privileges", "bpf", "af-xdp"] {
        visit.assert(id, "problem");
    }
    let found = visit.finding("privileges")["found"].as_str().expect("text");
    assert!(found.contains("CAP_NET_ADMIN CAP_NET_RAW CAP_BPF"), "{found}");
    visit.assert("link", "ok");
    visit.assert_serves(false);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn queues_that_receive_without_a_socket_are_told_by_doctor_daemon_and_list() {
    let bed = Bed::new(1, 3);
    let mut configuration = one_port(&bed);
    configuration.uplinks[0].1 = Some(vec![1]);
    let visit = Visit::of(&bed, &configuration);
    let finding = visit.assert("steering", "warning");
    assert!(finding["found"].as_str().is_some_and(|text| text.contains("0, 2")), "{finding}");
    visit.assert_serves(true);
    let daemon = Daemon::start(&bed, &configuration);
    let uplink = &daemon.json(&["uplink", "list"])[0];
    assert_eq!(uplink["unserved_queues"], serde_json::json!([0, 2]));
    assert!(daemon.log().contains("queues receive and have no socket"));
    // The daemon's queues count, whatever is asked for.
    Visit::of_nic(&bed).assert("steering", "warning");
    drop(daemon);
    // A veth has no table that could be set.
    configuration.uplink_lines = "steering = \"set\"";
    let visit = Visit::of(&bed, &configuration);
    visit.assert("steering", "problem");
    visit.assert_serves(false);
    let refused = Daemon::refused(&bed, &configuration);
    assert!(refused.errors.contains("has no indirection table"), "{refused:?}");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_queue_that_is_not_there_is_a_problem() {
    let bed = Bed::new(1, 2);
    let mut configuration = one_port(&bed);
    configuration.uplinks[0].1 = Some(vec![0, 7]);
    let visit = Visit::of(&bed, &configuration);
    assert!(visit.assert("queues", "problem")["found"].as_str().unwrap().ends_with("without 7"));
    visit.assert_serves(false);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_mtu_is_held_against_the_profiles() {
    let bed = Bed::new(1, 1);
    host(&bed, &format!("ip link set {NIC} mtu 1400"));
    let visit = Visit::of(&bed, &one_port(&bed));
    let finding = visit.assert("mtu", "problem");
    assert_eq!(finding["remedy"], format!("ip link set dev {NIC} mtu 1500"));
    assert!(finding["found"].as_str().is_some_and(|text| text.contains("vm1")), "{finding}");
    visit.assert_serves(false);
    let asked = |profile| Visit::new(&bed, &[], &["--uplink", NIC, "--profile", profile]);
    asked("org.isonic.net.v1").assert("mtu", "problem");
    asked("org.isonic.net.v1,mtu=1400").assert("mtu", "ok");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_of_a_bridge_is_told_and_what_lies_on_top_too() {
    let bed = Bed::new(1, 1);
    host(&bed, &format!("ip link add link {NIC} name isonic-mac type macvlan"));
    let above = Visit::of_nic(&bed);
    assert_eq!(above.assert("on-top", "note")["found"], "isonic-mac (macvlan) on it");
    host(&bed, "ip link delete isonic-mac");
    host(&bed, &format!("ip link add {BRIDGE} type bridge"));
    host(&bed, &format!("ip link set {NIC} master {BRIDGE}"));
    let visit = Visit::of_nic(&bed);
    let finding = visit.assert("master", "warning");
    assert_eq!(finding["remedy"], format!("ip link set dev {NIC} nomaster"));
    assert!(finding["found"].as_str().is_some_and(|text| text.contains(BRIDGE)), "{finding}");
    visit.assert_serves(true);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_wire_port_that_cuts_the_host_off_is_told() {
    let bed = Bed::new(1, 2);
    let wire = PortSpec::wire(NIC, 1, &[0, 1]);
    let visit = Visit::of(&bed, &Configuration::new(&bed, vec![wire]));
    visit.assert("host-addresses", "warning");
    let half = PortSpec::wire(NIC, 1, &[1]);
    let visit = Visit::of(&bed, &Configuration::new(&bed, vec![half]));
    visit.assert("host-addresses", "note");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn generic_mode_as_configured_is_noted() {
    let bed = Bed::new(1, 1);
    let configuration = Configuration { mode: "generic", ..one_port(&bed) };
    Visit::of(&bed, &configuration).assert("native-xdp", "note");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn directories_that_cannot_be_written_to_are_told_and_looking_makes_none() {
    let bed = Bed::new(1, 1);
    let configuration = one_port(&bed);
    Visit::of(&bed, &configuration).assert("directories", "ok");
    assert!(!bed.path("state").exists() && !bed.path("run").exists());
    fs::write(bed.path("state"), "").expect("a file");
    let visit = Visit::of(&bed, &configuration);
    let finding = visit.assert("directories", "problem");
    assert!(finding["found"].as_str().is_some_and(|text| text.contains("state_dir")), "{finding}");
    visit.assert_serves(false);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn people_get_a_table_what_to_do_and_a_line_for_each_interface() {
    let bed = Bed::new(2, 1);
    host(&bed, "ip link set isonic-nic1 down");
    let command_line = [BINARY, "doctor", "--uplink", NIC, "--uplink", "isonic-nic1"];
    let finished = run_to_end(&mut bed.host.command(&command_line));
    assert_eq!(finished.status.code(), Some(1));
    let lines: Vec<&str> = finished.output.lines().collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[0]), ["STATUS", "OF", "CHECK", "FOUND"]);
    let has = |wanted: &[&str]| lines.iter().any(|line| words(line) == wanted);
    assert!(has(&["problem", "isonic-nic1", "link", "down"]), "{}", finished.output);
    assert!(has(&["ok", NIC, "link", "up"]), "{}", finished.output);
    assert!(finished.output.contains("    -> ip link set dev isonic-nic1 up\n"));
    let [.., first, second] = lines.as_slice() else { panic!("{lines:?}") };
    assert!(first.starts_with(&format!("{NIC}: a port can be served: veth, native XDP, copy")));
    assert!(second.starts_with("isonic-nic1: no port can be served"), "{second}");
    assert!(finished.errors.contains("no port can be served here"), "{}", finished.errors);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_host_without_nics_and_a_wrong_command_line_are_told_apart() {
    let bed = Bed::new(1, 1);
    // A veth is on no bus: nothing here looks like a NIC.
    let visit = Visit::new(&bed, &[], &[]);
    assert_eq!(visit.report["uplinks"], serde_json::json!([]));
    visit.assert_serves(false);
    let wrong = run_to_end(&mut bed.host.command(&[BINARY, "doctor", "--interface", NIC]));
    assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
}
