//! `isonic libvirt hook` beside a real daemon, called as libvirt calls it (hooks.html): ports come
//! and go with their domains, and nobody's port goes with another's domain.

use std::fs;
use std::process::{Command, Stdio};

use crate::common::{Bed, Configuration, Daemon, Finished, NIC, PortSpec, run, run_to_end};

const BINARY: &str = env!("CARGO_BIN_EXE_isonic");
const V3: &str = "org.isonic.net.v3";
const UUID: &str = "11111111-2222-4333-8444-555555555555";
const OTHER_UUID: &str = "99999999-2222-4333-8444-555555555555";
const PORT: &str = "vm1-net0";

/// A domain's XML with an interface of this profile, whose socket is in the bed.
fn domain(bed: &Bed, profile: &str, more: &[&str]) -> String {
    let bare = format!(
        "<domain type='qemu'><name>vm1</name><uuid>{UUID}</uuid><memory>1</memory>\
         <vcpu>1</vcpu><devices/></domain>"
    );
    stamp(bed, &bare, &[&["--profile", profile, "--mac", "52:54:00:00:00:01"][..], more].concat())
}

fn stamp(bed: &Bed, xml: &str, more: &[&str]) -> String {
    let file = bed.path("domain.xml");
    fs::write(&file, xml).expect("XML");
    let mut command = Command::new(BINARY);
    command.args(["libvirt", "stamp"]).arg(&file).arg("--socket-dir").arg(bed.directory());
    run(command.args(more))
}

/// One call of the hook.
fn call_with(bed: &Bed, options: &[&str], operation: &str, xml: &str) -> Finished {
    let file = bed.path("stdin.xml");
    fs::write(&file, xml).expect("XML");
    let quoted = |word: &str| format!("'{word}'");
    let options: Vec<String> = options.iter().copied().map(quoted).collect();
    let end = if matches!(operation, "stopped" | "release") { "end" } else { "begin" };
    let script = format!(
        "exec {BINARY} libvirt hook --api-socket {} {} -- vm1 {operation} {end} - <{}",
        bed.path("api.sock").display(),
        options.join(" "),
        file.display()
    );
    run_to_end(Command::new("sh").args(["-c", &script]).stdin(Stdio::null()))
}

fn call(bed: &Bed, operation: &str, xml: &str) -> String {
    let finished = call_with(bed, &[], operation, xml);
    assert!(finished.status.success(), "{operation}: {finished:?}");
    finished.output
}

fn refused(bed: &Bed, operation: &str, xml: &str) -> String {
    let finished = call_with(bed, &[], operation, xml);
    assert_eq!(finished.status.code(), Some(1), "{operation}: {finished:?}");
    assert_eq!(finished.output, "");
    finished.errors
}

fn names(daemon: &Daemon<'_>) -> Vec<String> {
    let ports = daemon.json(&["port", "list"]);
    let name = |port: &serde_json::Value| port["name"].as_str().expect("a name").to_owned();
    ports.as_array().expect("ports").iter().map(name).collect()
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_domain_has_its_ports_from_prepare_to_release() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let xml = domain(&bed, V3, &[]);
    // Arriving is checked, and leaves nothing behind should it end there.
    assert_eq!(call(&bed, "migrate", &xml), "");
    assert_eq!(names(&daemon), [""; 0]);
    for operation in ["prepare", "start", "started"] {
        assert_eq!(call(&bed, operation, &xml), "");
    }
    let port = daemon.json(&["port", "show", PORT]);
    assert_eq!(port["owner"], format!("libvirt:{UUID}"));
    assert_eq!((&port["profile"], &port["uplink"]), (&V3.into(), &NIC.into()));
    assert_eq!(port["mac"], "52:54:00:00:00:01");
    assert!(bed.path("vm1-net0.sock").exists());
    // Once more, as after a libvirtd that was killed; and one that was plugged in meanwhile.
    for operation in ["reconnect", "prepare", "attach", "whatever comes"] {
        assert_eq!(call(&bed, operation, &xml), "");
    }
    let socket = bed.path("hot.sock").display().to_string();
    let owner = format!("libvirt:{UUID}");
    let hot = ["port", "add", "hot", "--socket", &socket, "--uplink", NIC, "--profile", V3];
    daemon.json(&[&hot[..], &["--owner", &owner]].concat());
    assert_eq!(call(&bed, "stopped", &xml), "");
    assert_eq!(names(&daemon), ["hot", PORT]);
    assert_eq!(call(&bed, "release", &xml), "");
    assert_eq!(names(&daemon), [""; 0]);
    assert!(refused(&bed, "start", &xml).contains("is not there any more"));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_domain_gives_back_its_ports_whatever_is_left_of_it() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let xml = domain(&bed, V3, &[]);
    let part = |from: &str, to: &str| {
        let (before, rest) = xml.split_once(from).expect("its begin");
        let (_, after) = rest.split_once(to).expect("its end");
        format!("{before}{after}")
    };
    let pulled = part("<interface ", "</interface>");
    let forgotten = part("<metadata>", "</metadata>").replace("isonic", "");
    let newer = xml.replace("/libvirt/1'", "/libvirt/2'");
    let bare = format!("<domain><uuid>{UUID}</uuid></domain>");
    for left in [pulled, forgotten, newer, bare] {
        call(&bed, "prepare", &xml);
        assert_eq!(names(&daemon), [PORT]);
        // Another's release, with as little, takes nothing.
        call(&bed, "release", &left.replace(UUID, OTHER_UUID));
        assert_eq!(names(&daemon), [PORT]);
        call(&bed, "release", &left);
        assert_eq!(names(&daemon), [""; 0], "{left}");
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_a_domain_asks_for_and_does_not_get_is_said_once() {
    let bed = Bed::new(1, 1);
    let _daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let limit = "<bandwidth><inbound average='9'/></bandwidth></interface>";
    let xml = domain(&bed, V3, &[]).replace("</interface>", limit);
    for (operation, times) in [("migrate", 0), ("prepare", 1), ("start", 0), ("release", 0)] {
        let said = call_with(&bed, &[], operation, &xml).errors;
        assert_eq!(said.matches("<bandwidth> is ignored").count(), times, "{operation}: {said}");
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn another_domain_with_the_same_port_is_refused_and_released_without_harm() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let xml = domain(&bed, V3, &[]);
    let copy = xml.replace(UUID, OTHER_UUID);
    call(&bed, "prepare", &xml);
    for operation in ["prepare", "migrate", "restore"] {
        let told = refused(&bed, operation, &copy);
        assert!(told.contains(&format!("is that of libvirt:{UUID}")), "{told}");
    }
    // libvirt releases what it could not start.
    assert_eq!(call(&bed, "release", &copy), "");
    assert_eq!(names(&daemon), [PORT]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_an_earlier_life_left_is_made_anew() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let xml = domain(&bed, V3, &[]);
    call(&bed, "prepare", &xml);
    let replace = ["--profile", "org.isonic.net.v1", "--replace-profile"];
    let changed = stamp(&bed, &xml, &replace);
    assert!(refused(&bed, "start", &changed).contains("has the interface with digest"));
    call(&bed, "prepare", &changed);
    assert_eq!(daemon.json(&["port", "show", PORT])["profile"], "org.isonic.net.v1");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_of_the_administrators_is_used_if_it_is_the_same_and_never_removed() {
    let bed = Bed::new(1, 1);
    let port = PortSpec { name: PORT.into(), ..PortSpec::switch(NIC, 1) }.with_profile(V3);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port]));
    let xml = domain(&bed, V3, &[]);
    for operation in ["migrate", "prepare", "start", "started", "release"] {
        assert_eq!(call(&bed, operation, &xml), "");
    }
    assert_eq!(names(&daemon), [PORT]);
    for other in [xml.replace("00:01", "00:02"), domain(&bed, "org.isonic.net.v1", &[])] {
        assert!(refused(&bed, "prepare", &other).contains("is there with another interface"));
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn all_of_a_domains_ports_are_made_or_none() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let one = domain(&bed, V3, &[]);
    // The second has the first one's address.
    let two = stamp(&bed, &one, &["--add", "--profile", V3, "--mac", "52:54:00:00:00:01"]);
    let told = refused(&bed, "prepare", &two);
    assert!(told.contains("\"vm1-net1\"") && told.contains("is already that of port"), "{told}");
    assert_eq!(names(&daemon), [""; 0]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_this_host_cannot_keep_is_refused_on_arrival_with_the_reason() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let v3 = domain(&bed, V3, &[]);
    let digest = v3.split("digest='").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
    for (xml, told) in [
        (v3.replace("profile='org.isonic.net.v3'", "profile='org.isonic.net.v9'"), "no profile"),
        (v3.replace(digest, "beef"), "another interface under that name"),
        (domain(&bed, "org.isonic.net.v3,mtu=9000", &[]), "raise it with `ip link"),
        (domain(&bed, V3, &["--uplink", "blue"]), "this host has isonic-nic0; say which it is"),
    ] {
        for operation in ["migrate", "restore", "prepare"] {
            let refusal = refused(&bed, operation, &xml);
            assert!(refusal.contains("\"ua-isonic-net0\"") && refusal.contains(told), "{refusal}");
        }
    }
    assert_eq!(names(&daemon), [""; 0]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_only_a_host_knows_is_the_hooks() {
    let bed = Bed::new(2, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let xml = domain(&bed, V3, &["--uplink", "blue"]);
    let here = bed.path("here");
    fs::create_dir(&here).expect("directory");
    let options = [
        "--uplink",
        "blue=isonic-nic1",
        "--socket-dir",
        here.to_str().unwrap(),
        "--socket-group",
        "nogroup",
    ];
    let arrived = call_with(&bed, &options, "migrate", &xml);
    assert!(arrived.status.success(), "{arrived:?}");
    let old = bed.path("vm1-net0.sock").display().to_string();
    let new = here.join("vm1-net0.sock").display().to_string();
    assert_eq!(arrived.output, xml.replace(&old, &new), "nothing but the path is another");
    // Where it is by now, it stays.
    assert_eq!(call_with(&bed, &options, "migrate", &arrived.output).output, "");
    assert!(call_with(&bed, &options, "prepare", &arrived.output).status.success());
    let port = daemon.json(&["port", "show", PORT]);
    assert_eq!((&port["uplink"], &port["socket"]), (&"isonic-nic1".into(), &new.clone().into()));
    let mode = run(Command::new("stat").args(["--format", "%a %G", &new]));
    assert_eq!(mode.trim(), "660 nogroup");
    // Two uplinks, and no word which: nothing is guessed.
    let told = refused(&bed, "prepare", &domain(&bed, V3, &[]));
    assert!(told.contains("this host has isonic-nic0, isonic-nic1"), "{told}");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_interface_of_a_port_is_printed_from_what_the_daemon_has_on_record() {
    let bed = Bed::new(1, 1);
    let list = "org.isonic.net.v3,mrg_rxbuf=off,max_ring=256";
    let port = PortSpec { mode: "client", ..PortSpec::switch(NIC, 1).with_profile(list) };
    let _daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port]));
    let mut command = Command::new(BINARY);
    command.args(["libvirt", "xml", "vm1", "--queue-pairs", "1", "--api-socket"]);
    let xml = run(command.arg(bed.path("api.sock")));
    let socket = bed.path("vm1.sock");
    for part in [
        &format!("<source type='unix' path='{}' mode='server'/>", socket.display()),
        "<mac address='52:54:00:00:00:01'/>",
        "mrg_rxbuf='off'",
        "<driver queues='1' rx_queue_size='256'",
        "<access mode='shared'/>",
    ] {
        assert!(xml.contains(part), "{part} is not in\n{xml}");
    }
}
