//! Another process goes on in place of a running one, under guests and front-ends with traffic that
//! see no end of their connection: every message numbered, every packet counted.
//!
//! `ISONIC_UPGRADES=100` makes more of them, for a soak. What is printed is not asserted.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{
    Bed, Configuration, Daemon, Flow, Flows, Guest, GuestSpec, NIC, PacketSocket, PortSpec,
    ServiceManager, Testpmd, kernel_drops, ping, run, wait_for,
};
use isonic::test_support::frontend::{Frontend, GuestFile, code};
use isonic::test_support::rig_guest::{frame, mac};
use isonic::test_support::vm::Vm;
use serde_json::Value;

const SPLIT: &str = "org.isonic.net.v3,ring_packed=off";
const PACKED: &str = "org.isonic.net.v3";

/// Between two messages of a flow, each way.
const PAUSE: Duration = Duration::from_micros(500);

fn upgrades() -> usize {
    std::env::var("ISONIC_UPGRADES").map_or(10, |text| text.parse().expect("ISONIC_UPGRADES"))
}

/// What each outage was, in milliseconds, for people.
fn print(profile: &str, mut outages: Vec<u64>) {
    outages.sort_unstable();
    let milliseconds = |at: usize| outages[at] as f64 / 1000.0;
    let (middle, last) = (outages.len() / 2, outages.len() - 1);
    println!(
        "{profile}: outage of {} upgrades: {} to {} ms, median {} ms",
        outages.len(),
        milliseconds(0),
        milliseconds(last),
        milliseconds(middle)
    );
}

/// Upgrades again and again; the outages, and the packets that the guest had no buffers for, when
/// it got all at once that had waited.
fn upgrade_again_and_again(daemon: &mut Daemon<'_>, sessions: u64) -> (Vec<u64>, u64) {
    let (mut outages, mut dropped) = (Vec::new(), 0);
    for upgrade in 1..=upgrades() {
        std::thread::sleep(Duration::from_millis(500));
        let before = daemon.id();
        // Each process counts for itself.
        dropped += daemon.port_counters("vm1", "to_guest_dropped");
        let answer = daemon.upgrade(&[]);
        assert_ne!(daemon.id(), before, "upgrade {upgrade}");
        assert_eq!(answer["sessions"], sessions, "upgrade {upgrade}: {answer}");
        assert_eq!(answer["reconnecting"], serde_json::json!([]), "upgrade {upgrade}");
        outages.push(answer["outage_microseconds"].as_u64().expect("an outage"));
    }
    (outages, dropped)
}

/// What the kernel counts of an interface.
fn statistic(namespace: &crate::common::Netns, interface: &str, name: &str) -> u64 {
    let path = format!("/sys/class/net/{interface}/statistics/{name}");
    namespace.run(&["cat", &path]).trim().parse().expect("a number")
}

/// What the kernel had no room for on the way to the guest: in the sockets, in the veth pair.
fn dropped_on_the_way(bed: &Bed, daemon: &Daemon<'_>) -> u64 {
    let uplink = &daemon.json(&["stats"])["uplinks"][NIC];
    let sockets = ["kernel_rx_dropped", "kernel_rx_ring_full"];
    let sockets = sockets.map(|counter| uplink[counter].as_u64().expect("a counter"));
    let peer = &bed.uplinks[0].peer;
    let pair = [statistic(&bed.host, NIC, "rx_dropped"), statistic(&bed.wire, peer, "tx_dropped")];
    sockets.into_iter().chain(pair).sum()
}

fn under_a_guest(profile: &str, queue_pairs: u32) {
    let bed = Bed::new(1, 2);
    let port = PortSpec::switch(NIC, 1).with_profile(profile);
    let configuration =
        Configuration { workers: 2, ..Configuration::new(&bed, vec![port.clone()]) };
    let mut daemon = Daemon::start(&bed, &configuration);
    let spec = GuestSpec { queue_pairs, ..GuestSpec::new(&port, &bed.uplinks[0], 1) };
    let mut guest = Guest::boot(&bed, &spec);
    guest.know_the_wire(&bed);
    let facts = guest.facts();
    let connections = connections(guest.id());
    let flows = Flows::start(&bed, &mut guest, 4, PAUSE);
    let (outages, mut dropped) = upgrade_again_and_again(&mut daemon, 1);
    let report = flows.end(&mut guest);
    dropped += daemon.port_counters("vm1", "to_guest_dropped") + dropped_on_the_way(&bed, &daemon);
    print(profile, outages);
    let (to_guest, from_guest) = (report.lost_to_guest(), report.lost_from_guest());
    println!("  {} messages, lost to the guest {to_guest}, from it {from_guest}", report.sent());
    report.assert_exact();
    // What was taken from the guest is on the wire. What waited on the wire was brought, but for
    // what somebody had no room for, who says so.
    let missing = |flows: &[Flow]| flows.iter().map(Flow::missing).collect::<Vec<_>>();
    let lost = missing(&report.from_guest);
    assert_eq!(from_guest, 0, "{lost:?} from the guest lost; {}", kernel_drops(&bed.wire));
    let (lost, to_guest) = (missing(&report.to_guest), u64::try_from(to_guest).expect("a number"));
    assert!(to_guest <= dropped, "{lost:?} to the guest lost, {dropped} dropped");
    assert_eq!(connections, self::connections(guest.id()), "QEMU has connected anew");
    assert_eq!(guest.facts(), facts);
    daemon.wait_state("vm1", "running");
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    daemon.frames();
    guest.ping(&bed.uplinks[0].wire_address);
}

/// The sockets of a process, by inode: a connection that is made anew is another.
fn connections(process: u32) -> Vec<String> {
    let entries = std::fs::read_dir(format!("/proc/{process}/fd")).expect("descriptors");
    let target = |entry: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_link(entry.ok()?.path()).ok()?.into_os_string().into_string().ok()
    };
    let mut sockets: Vec<String> =
        entries.filter_map(target).filter(|target| target.starts_with("socket:")).collect();
    sockets.sort();
    sockets
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_with_packed_rings_loses_nothing_over_ten_upgrades() {
    under_a_guest(PACKED, 2);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_with_split_rings_loses_nothing_over_ten_upgrades() {
    under_a_guest(SPLIT, 1);
}

/// DPDK's driver sends as fast as it can, and what it sends is counted on the wire.
fn under_full_load(profile: &str, options: &str) {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1).with_profile(profile);
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut testpmd = Testpmd::start(&bed, &port, 1, "txonly", options);
    daemon.wait_state("vm1", "running");
    let before = bed.wire_received(0);
    testpmd.command("start", "nb forwarding cores");
    let mut outages = Vec::new();
    // Counters begin anew with each process, so what it had counted is asked for before it goes.
    let mut dropped = 0;
    for _ in 0..upgrades() {
        std::thread::sleep(Duration::from_millis(300));
        dropped += daemon.port_counters("vm1", "from_guest_dropped");
        outages.push(daemon.upgrade(&[])["outage_microseconds"].as_u64().expect("an outage"));
    }
    testpmd.command("stop", "Done.");
    let sent = testpmd.counter("TX-packets");
    print(profile, outages);
    dropped += daemon.port_counters("vm1", "from_guest_dropped");
    // What the veth pair itself lost, its sending end has counted.
    let lost = || -> u64 {
        let path = format!("/sys/class/net/{NIC}/statistics/tx_dropped");
        bed.host.run(&["cat", &path]).trim().parse().expect("a number")
    };
    let arrived = || bed.wire_received(0) - before;
    wait_for("all that was taken from the guest is on the wire", 10, || {
        arrived() + lost() + dropped >= sent
    });
    println!("  {sent} packets sent, {} arrived, {dropped} dropped", arrived());
    assert_eq!(arrived() + lost() + dropped, sent);
    assert!(!daemon.log().contains("front-end disconnected"), "a connection has ended");
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn dpdk_goes_on_at_full_load_with_split_and_packed_rings() {
    under_full_load("org.isonic.net.v1", "");
    under_full_load("org.isonic.net.v2", ",packed_vq=1");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_program_that_does_not_start_changes_nothing() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let memory = GuestFile::new(0, 0x7f00_0000_0000, 0x10_0000);
    let frontend = Frontend::over(UnixStream::connect(bed.path("vm1.sock")).expect("connect"));
    frontend.start(&memory, 2);
    daemon.wait_state("vm1", "running");
    let broken = program(&bed, "broken", "exit 7");
    let killed = program(&bed, "killed", "kill -9 $$");
    for (binary, reason) in [
        (broken.display().to_string(), "before it was ready (exit status: 7)"),
        (killed.display().to_string(), "before it was ready (signal: 9"),
        ("/nonexistent/isonic".to_owned(), "cannot start /nonexistent/isonic"),
        ("/bin/true".to_owned(), "before it was ready"),
    ] {
        let refusal = daemon.refusal(&["upgrade", "--binary", &binary]);
        assert!(refusal.contains(reason), "{binary}: {refusal}");
    }
    // The configuration of the next process is what is there now: it cannot have this NIC.
    let text = std::fs::read_to_string(bed.path("isonic.toml")).expect("configuration");
    let path = bed.path("isonic.toml");
    std::fs::write(&path, text.replace("workers = 1", "workers = 0")).expect("configuration");
    let refusal = daemon.refusal(&["upgrade"]);
    // In its own words.
    assert!(refusal.contains("workers") && !refusal.contains("the log"), "{refusal}");
    std::fs::write(&path, text).expect("configuration");
    // The same process serves the same session.
    assert_eq!(frontend.stop_ring(0), Some(0));
    frontend.start_ring(&memory, 0);
    daemon.wait_state("vm1", "running");
    ping(&bed.host, &bed.uplinks[0].wire_address, &[]);
}

/// What a program has started has what it was given: the NIC's sockets, and the locks.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_script_that_is_ended_leaves_nobody_who_holds_the_nic() {
    let bed = Bed::new(1, 1);
    let configuration = Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]);
    let mut daemon = Daemon::start(&bed, &configuration);
    let begun = bed.path("begun");
    let script = program(&bed, "waits", &format!("touch {}\nsleep 1000\nexit 0", begun.display()));
    std::thread::scope(|scope| {
        let words = ["upgrade", "--binary", &script.display().to_string()].map(str::to_owned);
        let bed = &bed;
        scope.spawn(move || Daemon::ask(bed, &words.each_ref().map(String::as_str)));
        wait_for("the script is started", 20, || begun.exists());
        daemon.stop();
    });
    daemon.start_again();
    daemon.wait_state("vm1", "waiting");
    assert_eq!(daemon.json(&["uplink", "list"])[0]["state"], "up");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_session_that_cannot_be_gone_on_with_ends_and_all_others_go_on() {
    let bed = Bed::new(1, 1);
    let ports = [1, 2].map(|number| PortSpec::switch(NIC, number));
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.to_vec()));
    let [lost, kept] = [1, 2].map(|number| {
        let memory = GuestFile::new(0, 0x7f00_0000_0000, 0x20_0000);
        let path = bed.path(&format!("vm{number}.sock"));
        let frontend = Frontend::over(UnixStream::connect(path).expect("connect"));
        frontend.start(&memory, 2);
        daemon.wait_state(&format!("vm{number}"), "running");
        (frontend, memory)
    });
    // A front-end that takes part of its memory away, where nobody looks: to map it again is
    // refused.
    lost.1.file.set_len(0x10_0000).expect("a shorter file");
    let answer = daemon.upgrade(&[]);
    assert_eq!(answer["reconnecting"], serde_json::json!(["vm1"]), "{answer}");
    assert_eq!(answer["sessions"], 1);
    assert_eq!(lost.0.number(code::GET_FEATURES), None, "its connection has ended");
    daemon.wait_state("vm1", "waiting");
    let again = Frontend::over(UnixStream::connect(bed.path("vm1.sock")).expect("connect"));
    again.start(&GuestFile::new(0, 0x7f00_0000_0000, 0x10_0000), 2);
    daemon.wait_state("vm1", "running");
    daemon.wait_state("vm2", "running");
    assert_eq!(kept.0.stop_ring(1), Some(0));
    drop(again);
    // Who has half a message on the way is not waited for either.
    assert!(kept.0.send_bytes(&[1, 0, 0, 0, 1], &[]));
    let answer = daemon.upgrade(&[]);
    assert_eq!(answer["reconnecting"], serde_json::json!(["vm2"]), "{answer}");
    daemon.stop();
    assert!(!bed.path("vm1.sock").exists() && !bed.path("api.sock").exists(), "names stayed");
}

fn wait_uplink(daemon: &Daemon<'_>, state: &str) {
    wait_for(&format!("the uplink is {state}"), 10, || {
        daemon.json(&["uplink", "list"])[0]["state"] == state
    });
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_uplink_that_cannot_go_over_is_named_and_whoever_goes_on_follows_its_link() {
    let bed = Bed::new(1, 1);
    let mut configuration = Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]);
    let mut daemon = Daemon::start(&bed, &configuration);
    let set = |state: &str| drop(bed.host.run(&["ip", "link", "set", NIC, state]));
    set("down");
    wait_uplink(&daemon, "down");
    let refusal = daemon.refusal(&["upgrade"]);
    assert!(refusal.contains(NIC) && refusal.contains("it is not up"), "{refusal}");
    for _ in 0..2 {
        set("up");
        wait_uplink(&daemon, "up");
        daemon.upgrade(&[]);
        set("down");
        wait_uplink(&daemon, "down");
    }
    set("up");
    wait_uplink(&daemon, "up");
    daemon.frames();
    daemon.stop();
    configuration.uplink_lines = "busy_poll = true";
    let daemon = Daemon::start(&bed, &configuration);
    let refusal = daemon.refusal(&["upgrade"]);
    assert!(refusal.contains("it is busy polled; restart isonic instead"), "{refusal}");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn host_and_vm_reach_each_other_whatever_becomes_of_an_upgrade() {
    let bed = Bed::new(1, 1);
    let ports = vec![PortSpec::switch(NIC, 1)];
    let configuration = Configuration { host: true, ..Configuration::new(&bed, ports) };
    let mut daemon = Daemon::start(&bed, &configuration);
    let mut vm = Vm::connect(&bed.path("vm1.sock"), 1);
    let address = bed.host.run(&["cat", &format!("/sys/class/net/{NIC}/address")]);
    let bytes = address.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hex"));
    let host: [u8; 6] = bytes.collect::<Vec<u8>>().try_into().expect("six bytes");
    let mut exchange = || {
        let mut socket = PacketSocket::open(&bed.host, NIC, Duration::from_millis(100));
        let (out, back) = (frame(host, mac(1), 200), frame(mac(1), host, 300));
        vm.send(&out);
        wait_for("the host has the VM's frame", 10, || socket.receive().as_ref() == Some(&out));
        socket.send(&back);
        wait_for("the VM has the host's frame", 10, || vm.received().contains(&back));
    };
    exchange();
    daemon.refusal(&["upgrade", "--binary", "/bin/true"]);
    exchange();
    for _ in 0..2 {
        daemon.upgrade(&[]);
        exchange();
    }
}

/// A shell script with these lines.
fn program(bed: &Bed, name: &str, lines: &str) -> PathBuf {
    let path = bed.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{lines}\n")).expect("a program");
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("permissions");
    path
}

/// A program that becomes isonic when something is written to the pipe beside it.
struct HeldProgram {
    path: PathBuf,
    pipe: PathBuf,
}

impl HeldProgram {
    fn new(bed: &Bed) -> Self {
        let pipe = bed.path("held.pipe");
        bed.host.run(&["mkfifo", &pipe.display().to_string()]);
        let lines = format!(
            "echo $$ >{0}.id\nread -r word <{0}\nexec {1} \"$@\"",
            pipe.display(),
            env!("CARGO_BIN_EXE_isonic"),
        );
        Self { path: program(bed, "held", &lines), pipe }
    }

    fn arguments(&self) -> [String; 3] {
        ["upgrade".to_owned(), "--binary".to_owned(), self.path.display().to_string()]
    }

    fn id(&self) -> Option<u32> {
        let text = std::fs::read_to_string(format!("{}.id", self.pipe.display())).ok()?;
        text.trim().parse().ok()
    }

    fn wait_started(&self) {
        wait_for("the new program is started", 20, || self.id().is_some());
    }

    fn release(&self) {
        std::fs::write(&self.pipe, "go\n").expect("a reader");
    }
}

/// A file system of 64 KiB; unmounted in the end.
struct Mounted(String);

impl Mounted {
    fn new(path: &str) -> Self {
        run(std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k"])
            .args(["tmpfs", path]));
        Self(path.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").args(["--lazy", &self.0]).status();
    }
}

/// Whether there is such a process, which is no zombie.
fn runs(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.starts_with(" Z"))
}

/// A request as any client makes it: status and body. None if the connection was closed without an
/// answer.
fn ask(bed: &Bed, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let mut stream = UnixStream::connect(bed.path("api.sock")).expect("the API's socket");
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
    let head = format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
    stream.write_all(format!("{head}{body}").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some((status, serde_json::from_str(body).unwrap_or_default()))
}

fn port_json(bed: &Bed, name: &str) -> String {
    let socket = bed.path(&format!("{name}.sock"));
    serde_json::json!({
        "name": name, "socket": socket, "profile": "org.isonic.net.v1", "uplink": NIC,
    })
    .to_string()
}

fn started(bed: &Bed, number: u8) -> (Frontend, GuestFile) {
    let memory = GuestFile::new(0, 0x7f00_0000_0000, 0x10_0000);
    let path = bed.path(&format!("vm{number}.sock"));
    let frontend = Frontend::over(UnixStream::connect(path).expect("connect"));
    frontend.start(&memory, 2);
    (frontend, memory)
}

fn kept_ports(bed: &Bed) -> Vec<String> {
    let text = std::fs::read_to_string(bed.path("state/ports.json")).expect("state");
    let state: Value = serde_json::from_str(&text).expect("JSON");
    let ports = state["ports"].as_array().expect("ports").iter();
    let mut names: Vec<_> =
        ports.map(|port| port["name"].as_str().expect("a name").to_owned()).collect();
    names.sort();
    names
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn while_a_new_program_hangs_the_api_answers_and_changes_are_to_be_asked_for_again() {
    let bed = Bed::new(1, 1);
    let ports = vec![PortSpec::switch(NIC, 1)];
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports));
    let (frontend, _memory) = started(&bed, 1);
    daemon.json(&[
        "port",
        "add",
        "old",
        "--socket",
        &bed.path("old.sock").display().to_string(),
        "--uplink",
        NIC,
        "--profile",
        "org.isonic.net.v1",
    ]);
    let held = HeldProgram::new(&bed);
    let arguments = held.arguments();
    let words: Vec<&str> = arguments.iter().skip(1).map(String::as_str).collect();
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            held.wait_started();
            assert_eq!(ask(&bed, "GET", "/v1/ports", "").expect("an answer").0, 200);
            let busy = |method: &str, path: &str, body: &str| {
                let (status, answer) = ask(&bed, method, path, body).expect("an answer");
                assert_eq!((status, &answer["error"]["code"]), (503, &"busy".into()), "{answer}");
            };
            busy("POST", "/v1/ports", &port_json(&bed, "new"));
            busy("DELETE", "/v1/ports/old", "");
            busy("PUT", "/v1/ports/old/profile", r#"{"profile": "org.isonic.net.v2"}"#);
            let (status, answer) = ask(&bed, "POST", "/v1/upgrade", "{}").expect("an answer");
            assert_eq!(status, 409, "{answer}");
            assert!(answer.to_string().contains("another upgrade is under way"), "{answer}");
            // A command asks again by itself, and is done by the new process.
            let added = scope.spawn(|| {
                Daemon::ask(
                    &bed,
                    &[
                        "port",
                        "add",
                        "new",
                        "--socket",
                        &bed.path("new.sock").display().to_string(),
                        "--uplink",
                        NIC,
                        "--profile",
                        "org.isonic.net.v1",
                    ],
                )
            });
            held.release();
            added.join().expect("added")
        });
        let answer = daemon.upgrade(&words);
        assert_eq!(answer["sessions"], 1, "{answer}");
        assert!(others.join().expect("answers").status.success());
    });
    assert_eq!(kept_ports(&bed), ["new", "old"]);
    for name in ["new", "old"] {
        UnixStream::connect(bed.path(&format!("{name}.sock"))).expect("it is served");
    }
    assert_eq!(frontend.stop_ring(1), Some(0));
}

/// Ports come and go as fast as they can while one process after the other takes over: what was
/// answered is so.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn each_request_is_executed_by_one_process_or_answered_ask_again() {
    let bed = Bed::new(1, 1);
    let ports = vec![PortSpec::switch(NIC, 1)];
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports));
    let (frontend, _memory) = started(&bed, 1);
    let over = AtomicBool::new(false);
    let come_and_go = |name: &str| {
        let (path, body) = (format!("/v1/ports/{name}"), port_json(&bed, name));
        let (mut there, mut done, mut busy) = (false, 0, 0);
        while !over.load(Ordering::Relaxed) || done == 0 {
            let answer = match there {
                false => ask(&bed, "POST", "/v1/ports", &body),
                true => ask(&bed, "DELETE", &path, ""),
            };
            match answer.unwrap_or_else(|| panic!("{name}: closed without an answer")) {
                (200 | 201, _) => (there, done) = (!there, done + 1),
                (503, _) => busy += 1,
                other => panic!("{name}, which is there: {there}: {other:?}"),
            }
        }
        (there, done, busy)
    };
    let outcomes = std::thread::scope(|scope| {
        let names = ["a", "b", "c"];
        let threads = names.map(|name| (name, scope.spawn(move || come_and_go(name))));
        for upgrade in 0..5 {
            let answer = daemon.upgrade(&[]);
            assert_eq!(answer["sessions"], 1, "upgrade {upgrade}: {answer}");
        }
        over.store(true, Ordering::Relaxed);
        threads.map(|(name, thread)| (name, thread.join().expect("answers")))
    });
    println!("port, (there, done, asked again): {outcomes:?}");
    let there = outcomes.iter().filter(|(_, (there, ..))| *there).map(|(name, _)| *name);
    assert_eq!(kept_ports(&bed), there.collect::<Vec<_>>());
    for (name, (there, ..)) in outcomes {
        let connects = UnixStream::connect(bed.path(&format!("{name}.sock"))).is_ok();
        assert_eq!(connects, there, "{name}");
    }
    assert_eq!(frontend.stop_ring(1), Some(0));
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_stop_ends_an_upgrade_that_is_prepared_and_is_not_lost_while_one_is_completed() {
    let bed = Bed::new(1, 1);
    let ports: Vec<_> = (1..=2).map(|number| PortSpec::switch(NIC, number)).collect();
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports));
    let held = HeldProgram::new(&bed);
    let upgrade = |arguments: &[String]| {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        Daemon::ask(&bed, &words)
    };
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| upgrade(&held.arguments()));
        held.wait_started();
        daemon.stop();
        let refused = refused.join().expect("an answer");
        assert!(refused.errors.contains("told to stop"), "{refused:?}");
    });
    let ended = held.id().expect("a process");
    wait_for("the new program has ended", 10, || !runs(ended));
    let names = ["api.sock", "vm1.sock", "vm2.sock"];
    assert!(names.iter().all(|name| !bed.path(name).exists()), "names stayed");

    // A front-end in half a message makes the hand-over long enough to be told to stop in it.
    daemon.start_again();
    let (frontend, _memory) = started(&bed, 1);
    let half = Frontend::over(UnixStream::connect(bed.path("vm2.sock")).expect("connect"));
    assert!(half.send_bytes(&[1, 0, 0, 0, 1, 0], &[]));
    Daemon::adopt_orphans();
    let answer = std::thread::scope(|scope| {
        let answer = scope.spawn(|| upgrade(&["upgrade".to_owned()]));
        wait_for("the hand-over has begun", 20, || {
            ask(&bed, "GET", "/v1/version", "").is_none_or(|(status, _)| status == 503)
        });
        daemon.stop();
        answer.join().expect("an answer")
    });
    let answer: Value = serde_json::from_str(&answer.output).expect("it had begun");
    let id = answer["pid"].as_u64().and_then(|id| u32::try_from(id).ok()).expect("a process");
    wait_for("the process that has taken over has stopped, too", 20, || !runs(id));
    assert!(names.iter().all(|name| !bed.path(name).exists()), "names stayed");
    assert_eq!(frontend.number(code::GET_FEATURES), None, "its session has ended");
    assert!(!bed.host.run(&["ip", "-details", "link"]).contains("xdp"), "the program is kept");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn front_ends_in_half_a_message_are_cut_by_one_deadline_for_all_of_them() {
    let bed = Bed::new(1, 1);
    let ports: Vec<_> = (1..=13).map(|number| PortSpec::switch(NIC, number)).collect();
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports));
    let (good, _memory) = started(&bed, 1);
    let half: Vec<_> = (2..=13)
        .map(|number| {
            let path = bed.path(&format!("vm{number}.sock"));
            let frontend = Frontend::over(UnixStream::connect(path).expect("connect"));
            assert!(frontend.number(code::GET_FEATURES).is_some());
            assert!(frontend.send_bytes(&[1, 0, 0, 0, 1, 0], &[]));
            frontend
        })
        .collect();
    let answer = daemon.upgrade(&[]);
    let (sessions, reconnecting) = (&answer["sessions"], &answer["reconnecting"]);
    assert_eq!((sessions.as_u64(), reconnecting.as_array().map(Vec::len)), (Some(1), Some(12)));
    // Half a second for all of them; each for itself had it, that were six.
    let unanswered = answer["unanswered_microseconds"].as_u64().expect("a time");
    let outage = answer["outage_microseconds"].as_u64().expect("a time");
    assert!((500_000..4_000_000).contains(&unanswered), "{answer}");
    assert!(outage < unanswered, "{answer}");
    for frontend in &half {
        assert_eq!(frontend.number(code::GET_FEATURES), None, "its connection has ended");
    }
    assert_eq!(good.stop_ring(1), Some(0));
    // Whoever connects anew is served.
    let again = Frontend::over(UnixStream::connect(bed.path("vm2.sock")).expect("connect"));
    assert!(again.number(code::GET_FEATURES).is_some());
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_full_disk_does_not_end_who_has_taken_over_and_is_told_until_there_is_room() {
    let bed = Bed::new(1, 1);
    let ports = vec![PortSpec::switch(NIC, 1)];
    let configuration = Configuration::new(&bed, ports);
    std::fs::create_dir(bed.path("state")).expect("state directory");
    let state = bed.path("state").display().to_string();
    let _mounted = Mounted::new(&state);
    let mut daemon = Daemon::start(&bed, &configuration);
    let (frontend, _memory) = started(&bed, 1);
    let filler = format!("{state}/filler");
    let full = std::io::copy(
        &mut std::io::repeat(0),
        &mut std::fs::File::create(&filler).expect("a file"),
    );
    assert_eq!(full.expect_err("it is full").kind(), std::io::ErrorKind::StorageFull);
    let answer = daemon.upgrade(&[]);
    assert_eq!(answer["sessions"], 1, "{answer}");
    let problems = || daemon.json(&["stats"])["problems"].as_array().expect("problems").clone();
    assert!(problems().iter().any(|problem| problem.to_string().contains("ports.json")));
    std::fs::remove_file(&filler).expect("the filler");
    wait_for("what could not be written is written", 20, || problems().is_empty());
    assert!(bed.path("state/ports.json").exists());
    assert_eq!(frontend.stop_ring(1), Some(0));
}

/// Of a configuration's ports.
type Edit<'e> = &'e dyn Fn(&mut Vec<PortSpec>);

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_an_edited_configuration_takes_from_a_running_vm_is_refused_until_it_is_insisted_on() {
    let bed = Bed::new(2, 1);
    let ports: Vec<_> = (1..=3).map(|number| PortSpec::switch(NIC, number)).collect();
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.clone()));
    let (frontend, memory) = started(&bed, 1);
    let edited = |edit: Edit<'_>| {
        let mut ports = ports.clone();
        edit(&mut ports);
        Configuration::new(&bed, ports).write(&bed);
    };
    let other = &bed.uplinks[1].nic;
    let edits: [(&str, Edit<'_>); 4] = [
        ("org.isonic.net.v2", &|ports| ports[0].profile = "org.isonic.net.v2".to_owned()),
        ("52:54:00:00:00:77", &|ports| ports[0].mac = "52:54:00:00:00:77".to_owned()),
        (other, &|ports| ports[0].uplink.clone_from(other)),
        ("gone", &|ports| drop(ports.remove(0))),
    ];
    for (told, edit) in edits {
        edited(edit);
        let refusal = daemon.refusal(&["upgrade"]);
        for word in ["vm1", told, "--force"] {
            assert!(refusal.contains(word), "{told}: {refusal}");
        }
        // The same process serves the same session.
        assert_eq!(frontend.stop_ring(0), Some(0));
        frontend.start_ring(&memory, 0);
        daemon.wait_state("vm1", "running");
    }
    // Nobody uses vm2: that is no loss, and is told.
    edited(&|ports| ports[1].mac = "52:54:00:00:00:78".to_owned());
    let answer = daemon.upgrade(&[]);
    assert_eq!(answer["sessions"], 1, "{answer}");
    let changed = answer["changed"].as_array().expect("changes");
    assert_eq!((changed.len(), &changed[0]["port"]), (1, &"vm2".into()), "{answer}");
    assert_eq!(daemon.json(&["port", "show", "vm2"])["state"], "refused");
    edited(&|ports| ports[0].mac = "52:54:00:00:00:77".to_owned());
    let answer = daemon.upgrade(&["--force"]);
    assert_eq!(answer["reconnecting"], serde_json::json!(["vm1"]), "{answer}");
    assert_eq!(daemon.json(&["port", "show", "vm1"])["state"], "refused");
    assert_eq!(frontend.number(code::GET_FEATURES), None, "its session has ended");
    // The way out that the refusal names.
    daemon.json(&["port", "set-profile", "vm1", "org.isonic.net.v1"]);
    let shown = daemon.json(&["port", "show", "vm1"]);
    assert_eq!((&shown["state"], &shown["mac"]), (&"waiting".into(), &"52:54:00:00:00:77".into()));
}

/// A guest's front-end knows the base that it named at first, wherever and whenever its ring
/// positions begin to be kept.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn ring_positions_that_move_or_get_room_in_an_upgrade_survive_a_crash() {
    let bed = Bed::new(1, 1);
    let block = |name: &str| std::fs::write(bed.path(name), "in the way").expect("a file");
    let make_room = |name: &str| std::fs::remove_file(bed.path(name)).expect("the file");
    block("run");
    let port = PortSpec::switch(NIC, 1).with_profile(PACKED);
    let configuration = Configuration::new(&bed, vec![port.clone()]);
    let mut daemon = Daemon::start(&bed, &configuration);
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let problems = |daemon: &Daemon<'_>| daemon.json(&["stats"])["problems"].to_string();
    let told = |daemon: &Daemon<'_>| problems(daemon).contains("make room, then `isonic upgrade`");
    assert!(told(&daemon), "{}", problems(&daemon));
    make_room("run");
    guest.ping(&bed.uplinks[0].wire_address);
    upgrade_and_crash(&bed, &mut daemon, &mut guest);
    assert_eq!(problems(&daemon), "[]");
    // And back to where there are old ones of the same ring.
    for runtime_dir in ["moved", "run"] {
        Configuration { runtime_dir, ..configuration.clone() }.write(&bed);
        upgrade_and_crash(&bed, &mut daemon, &mut guest);
        assert!(bed.path(runtime_dir).join("rings/vm1").exists());
    }
    // A stop without an upgrade finds room too.
    block("late");
    Configuration { runtime_dir: "late", ..configuration }.write(&bed);
    upgrade_twice(&bed, &mut daemon, &mut guest);
    assert!(told(&daemon), "{}", problems(&daemon));
    make_room("late");
    daemon.stop();
    start_again(&bed, &mut daemon, &mut guest);
}

fn upgrade_and_crash(bed: &Bed, daemon: &mut Daemon<'_>, guest: &mut Guest) {
    upgrade_twice(bed, daemon, guest);
    daemon.kill();
    start_again(bed, daemon, guest);
}

/// What one process is told the next one has to tell.
fn upgrade_twice(bed: &Bed, daemon: &mut Daemon<'_>, guest: &mut Guest) {
    for _ in 0..2 {
        assert_eq!(daemon.upgrade(&[])["sessions"], 1);
        guest.ping(&bed.uplinks[0].wire_address);
    }
}

fn start_again(bed: &Bed, daemon: &mut Daemon<'_>, guest: &mut Guest) {
    daemon.start_again();
    daemon.wait_state("vm1", "running");
    guest.ping(&bed.uplinks[0].wire_address);
}

/// The sockets' names that are there.
fn names(bed: &Bed) -> Vec<String> {
    let directory = std::fs::read_dir(bed.path(".")).expect("the bed's directory");
    let names = directory.map(|entry| entry.expect("a name").file_name().into_string());
    let mut names: Vec<_> = names.map(|name| name.expect("UTF-8")).collect();
    names.retain(|name| name.contains(".sock"));
    names.sort();
    names
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn whoever_is_the_owner_in_the_end_has_the_names_of_his_sockets_and_no_others() {
    let bed = Bed::new(1, 1);
    let ports: Vec<_> = (1..=4).map(|number| PortSpec::switch(NIC, number)).collect();
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.clone()));
    let before = names(&bed);
    let (frontend, memory) = started(&bed, 1);
    // What the successor would have, beside what it is refused for.
    let mut edited = [ports.clone(), vec![PortSpec::switch(NIC, 9)]].concat();
    edited[0].mac = "52:54:00:00:00:77".to_owned();
    Configuration::new(&bed, edited.clone()).write(&bed);
    daemon.refusal(&["upgrade"]);
    assert_eq!(names(&bed), before);
    edited[0] = ports[0].clone();
    // vm2 goes, vm3 moves, vm4 is another port at the same socket.
    edited.remove(1);
    let configuration = Configuration::new(&bed, edited);
    configuration.write(&bed);
    let path = bed.path("isonic.toml");
    let text = std::fs::read_to_string(&path).expect("configuration");
    let moved =
        text.replace("/vm3.sock", "/vm3x.sock").replace("name = \"vm4\"", "name = \"vm4b\"");
    std::fs::write(&path, moved).expect("configuration");
    let answer = daemon.upgrade(&[]);
    assert_eq!(answer["sessions"], 1, "{answer}");
    let names_now = ["api.sock", "vm1.sock", "vm3x.sock", "vm4.sock", "vm9.sock"];
    assert_eq!(names(&bed), names_now);
    for name in &names_now[2..] {
        let connected = Frontend::over(UnixStream::connect(bed.path(name)).expect("connect"));
        assert!(connected.number(code::GET_FEATURES).is_some(), "{name}");
    }
    assert_eq!(frontend.stop_ring(0), Some(0));
    frontend.start_ring(&memory, 0);
    daemon.stop();
    assert_eq!(names(&bed), [""; 0]);
}

/// A service that is restarted, or upgraded, under a manager that keeps what it leaves.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_restart_under_a_service_manager_loses_nothing() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1).with_profile(PACKED);
    let configuration = Configuration::new(&bed, vec![port.clone()]);
    let mut manager = ServiceManager::new(&bed);
    let mut daemon = Daemon::start_as_service(&bed, &configuration, &mut manager);
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let connections = connections(guest.id());
    let flows = Flows::start(&bed, &mut guest, 2, PAUSE);
    for restart in 0..3 {
        std::thread::sleep(Duration::from_millis(500));
        let hears = std::thread::scope(|scope| {
            let hears = scope.spawn(|| manager.hear("BARRIER=1"));
            daemon.stop();
            hears.join()
        });
        hears.expect("it heard a barrier");
        assert_eq!(manager.kept.len(), 1, "restart {restart}");
        daemon.start_again_as_service(&mut manager);
        assert_eq!(manager.kept.len(), 0, "restart {restart}: what was taken is kept no more");
    }
    let answer = daemon.upgrade(&[]);
    // By the old process; the new one is ready before or after.
    let main = format!("MAINPID={}", daemon.id());
    manager.hear("READY=1");
    if !manager.said.contains(&main) {
        manager.hear(&main);
    }
    assert_eq!(answer["sessions"], 1);
    let report = flows.end(&mut guest);
    println!("{} messages, lost to the guest {}", report.sent(), report.lost_to_guest());
    report.assert_exact();
    assert_eq!(report.lost_from_guest(), 0);
    assert_eq!(connections, self::connections(guest.id()), "QEMU has connected anew");
    daemon.frames();
    // Stopped for good: the manager closes what it keeps.
    std::thread::scope(|scope| {
        scope.spawn(|| manager.hear("BARRIER=1"));
        daemon.stop();
    });
    assert!(bed.host.run(&["ip", "-details", "link"]).contains("xdp"), "the program is kept");
    manager.kept.clear();
    wait_for("the NIC is the host's alone", 10, || {
        !bed.host.run(&["ip", "-details", "link"]).contains("xdp")
    });
}
