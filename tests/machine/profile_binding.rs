//! The daemon and its ports' profiles over restarts, without guests: what is published, what is
//! recorded, what is refused, and what only a command changes.

use std::fs;
use std::os::unix::net::UnixStream;
use std::process::Command;

use crate::common::{Bed, Configuration, Daemon, NIC, PROFILE, PortSpec, run_to_end, wait_for};
use isonic::device::features::{MRG_RXBUF, RING_PACKED};
use isonic::test_support::frontend::{Frontend, code};
use serde_json::Value;

const OWN: &str = "com.example.net.v1";

/// A directory with the profile `com.example.net.v1` of this ring size.
fn write_own(bed: &Bed, ring_size: u16) {
    let directory = bed.path("profiles");
    fs::create_dir_all(&directory).expect("profile directory");
    let text = format!(
        "name = \"{OWN}\"\nsummary = \"ours\"\nextends = \"{PROFILE}\"\nwhy = \"a test\"\n\
         ring_size_max = {ring_size}\n"
    );
    fs::write(directory.join("own.toml"), text).expect("profile file");
}

fn configuration(bed: &Bed, profile: &str) -> Configuration {
    let port = PortSpec { profile: profile.to_owned(), ..PortSpec::switch(NIC, 1) };
    Configuration { profile_dir: Some(bed.path("profiles")), ..Configuration::new(bed, vec![port]) }
}

fn state(bed: &Bed) -> Value {
    let text = fs::read_to_string(bed.path("state/ports.json")).expect("state file");
    serde_json::from_str(&text).expect("JSON")
}

/// Adds the port "added" with this profile.
fn add(bed: &Bed, daemon: &Daemon<'_>, profile: &str) -> Value {
    let socket = bed.path("added.sock").display().to_string();
    let uplink = ["--uplink", NIC, "--profile", profile];
    daemon.json(&[&["port", "add", "added", "--socket", &socket], &uplink[..]].concat())
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_published_list_is_a_file_and_follows_the_uplink() {
    let bed = Bed::new(1, 1);
    write_own(&bed, 512);
    let daemon = Daemon::start(&bed, &configuration(&bed, PROFILE));
    let published = || -> Value {
        let text = fs::read_to_string(bed.path("state/profiles.json")).expect("published list");
        serde_json::from_str(&text).expect("a whole file")
    };
    assert_eq!(published(), daemon.json(&["profile", "list"]));
    assert_eq!(published()[0]["name"], OWN);
    assert_eq!(published()[0]["uplinks"][NIC], serde_json::json!([]));
    bed.host.run(&["ip", "link", "set", NIC, "mtu", "1400"]);
    wait_for("the list says that the MTU is too small", 30, || {
        let list = published();
        let blocker = list[0]["uplinks"][NIC][0].as_str();
        blocker.is_some_and(|text| text.contains("carries 1400"))
    });
    let refusal = daemon.refusal(&["profile", "check", OWN, "--uplink", NIC]);
    assert!(refusal.contains("cannot be kept on uplink"), "{refusal}");
    let socket = bed.path("other.sock").display().to_string();
    let port = ["port", "add", "other", "--socket", &socket, "--uplink", NIC, "--profile", OWN];
    assert!(daemon.refusal(&port).contains("carries 1400"));
    let unknown = daemon.refusal(&["profile", "check", OWN, "--uplink", "eth7"]);
    assert!(unknown.contains("no uplink \"eth7\"; it has isonic-nic0"), "{unknown}");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_list_of_values_is_stored_in_its_one_spelling_with_its_digest() {
    let bed = Bed::new(1, 1);
    write_own(&bed, 512);
    let mut daemon = Daemon::start(&bed, &configuration(&bed, PROFILE));
    let canonical = "org.isonic.net.v3,mrg_rxbuf=off,max_ring=256";
    let added = add(&bed, &daemon, "latest, max_ring=256, mrg_rxbuf=off");
    assert_eq!(added["profile"], canonical);
    assert_eq!(state(&bed)["ports"][0]["profile"], canonical);
    assert_eq!(state(&bed)["bindings"]["added"]["digest"], added["profile_digest"]);
    daemon.stop();
    daemon.start_again();
    let shown = daemon.json(&["port", "show", "added"]);
    assert_eq!((&shown["profile"], &shown["state"]), (&canonical.into(), &"waiting".into()));
    assert_eq!(shown["profile_digest"], added["profile_digest"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn another_interface_under_the_old_name_is_refused_listed_and_not_forgotten() {
    let bed = Bed::new(1, 1);
    write_own(&bed, 512);
    let mut daemon = Daemon::start(&bed, &configuration(&bed, PROFILE));
    let added = add(&bed, &daemon, OWN);
    daemon.stop();
    write_own(&bed, 256);
    daemon.start_again();
    let ports = daemon.json(&["port", "list"]);
    let names: Vec<&str> =
        ports.as_array().expect("ports").iter().filter_map(|port| port["name"].as_str()).collect();
    assert_eq!(names, ["added", "vm1"]);
    assert_eq!((&ports[0]["state"], &ports[1]["state"]), (&"refused".into(), &"waiting".into()));
    assert_eq!(ports[0]["profile_digest"], added["profile_digest"]);
    let ours = daemon.json(&["profile", "show", OWN])["digest"].clone();
    let reason = ports[0]["refusal"].as_str().expect("a reason");
    for told in [&added["profile_digest"], &ours] {
        assert!(reason.contains(told.as_str().expect("digest")), "{reason}");
    }
    assert!(UnixStream::connect(bed.path("added.sock")).is_err(), "nobody may connect");

    // The old file brings it back, from a state that was written meanwhile.
    daemon.stop();
    write_own(&bed, 512);
    daemon.start_again();
    assert_eq!(daemon.json(&["port", "show", "added"])["state"], "waiting");

    // Or a command binds it anew.
    daemon.stop();
    write_own(&bed, 256);
    daemon.start_again();
    let bound = daemon.json(&["port", "set-profile", "added", OWN]);
    assert_eq!((&bound["state"], &bound["profile_digest"]), (&"waiting".into(), &ours));
    daemon.stop();
    daemon.start_again();
    assert_eq!(daemon.json(&["port", "show", "added"])["state"], "waiting");

    // And one that is refused can be deleted for good.
    daemon.stop();
    fs::remove_file(bed.path("profiles/own.toml")).expect("profile file");
    daemon.start_again();
    let shown = daemon.json(&["port", "show", "added"]);
    assert!(shown["refusal"].as_str().is_some_and(|it| it.contains("there is no profile")));
    daemon.json(&["port", "del", "added"]);
    assert_eq!(state(&bed)["ports"], serde_json::json!([]));
    assert!(state(&bed)["bindings"].get("added").is_none());
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_of_the_configuration_changes_its_profile_only_by_file_and_command() {
    let bed = Bed::new(1, 1);
    write_own(&bed, 512);
    let mut daemon = Daemon::start(&bed, &configuration(&bed, PROFILE));
    let refusal = daemon.refusal(&["port", "set-profile", "vm1", OWN]);
    assert!(refusal.contains("which asks for org.isonic.net.v1; write com.example.net.v1 there"));
    assert_eq!(daemon.json(&["port", "show", "vm1"])["profile"], PROFILE);
    daemon.stop();
    drop(daemon);
    let mut daemon = Daemon::start(&bed, &configuration(&bed, OWN));
    let shown = daemon.json(&["port", "show", "vm1"]);
    assert_eq!((&shown["state"], &shown["profile"]), (&"refused".into(), &PROFILE.into()));
    let reason = shown["refusal"].as_str().expect("a reason");
    assert!(reason.contains("the configuration file asks for com.example.net.v1"), "{reason}");
    assert!(reason.contains("isonic port set-profile vm1 com.example.net.v1"), "{reason}");
    let changed = daemon.json(&["port", "set-profile", "vm1", OWN]);
    assert_eq!((&changed["state"], &changed["profile"]), (&"waiting".into(), &OWN.into()));
    assert_eq!(daemon.json(&["port", "set-profile", "vm1", OWN]), changed, "nothing to do");
    daemon.stop();
    daemon.start_again();
    assert_eq!(daemon.json(&["port", "show", "vm1"])["state"], "waiting");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn another_mac_in_the_configuration_is_refused_by_name_until_the_port_is_bound_anew() {
    let bed = Bed::new(1, 1);
    let configured = |mac: &str| {
        let port = PortSpec { mac: mac.to_owned(), ..PortSpec::switch(NIC, 1) };
        Configuration::new(&bed, vec![port])
    };
    let [old, new] = ["52:54:00:00:00:01", "52:54:00:00:00:02"];
    let mut daemon = Daemon::start(&bed, &configured(old));
    daemon.stop();
    assert_eq!(state(&bed)["bindings"]["vm1"]["mac"], old);
    drop(daemon);
    let mut daemon = Daemon::start(&bed, &configured(new));
    let shown = daemon.json(&["port", "show", "vm1"]);
    assert_eq!(shown["state"], "refused");
    let reason = shown["refusal"].as_str().expect("a reason");
    for told in [old, new, "isonic port set-profile vm1 org.isonic.net.v1"] {
        assert!(reason.contains(told), "{reason}");
    }
    let bound = daemon.json(&["port", "set-profile", "vm1", PROFILE]);
    assert_eq!((&bound["state"], &bound["mac"]), (&"waiting".into(), &new.into()));
    daemon.stop();

    // A state file of an older version says nothing of MACs, and is completed.
    let mut text = state(&bed);
    text["bindings"]["vm1"].as_object_mut().expect("a binding").remove("mac");
    fs::write(bed.path("state/ports.json"), text.to_string()).expect("state file");
    daemon.start_again();
    assert_eq!(daemon.json(&["port", "show", "vm1"])["state"], "waiting");
    assert_eq!(state(&bed)["bindings"]["vm1"]["mac"], new);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_with_a_front_end_keeps_its_profile() {
    let bed = Bed::new(1, 1);
    write_own(&bed, 512);
    let daemon = Daemon::start(&bed, &configuration(&bed, PROFILE));
    let before = add(&bed, &daemon, PROFILE);
    let front_end = UnixStream::connect(bed.path("added.sock")).expect("connection");
    daemon.wait_state("added", "connected");
    let refusal = daemon.refusal(&["port", "set-profile", "added", OWN]);
    assert!(refusal.contains("has a front-end connected; shut the VM down first"), "{refusal}");
    let shown = daemon.json(&["port", "show", "added"]);
    assert_eq!((&shown["state"], &shown["profile"]), (&"connected".into(), &PROFILE.into()));
    assert_eq!(shown["binding"]["digest"], before["profile_digest"]);
    drop(front_end);
    daemon.wait_state("added", "waiting");
    for (profile, told) in [
        ("com.example.net.v2", "did you mean \"com.example.net.v1\"?"),
        ("org.isonic.net.v1,access_platform=on", "does not do access_platform"),
        ("", "no profile is named"),
    ] {
        let refusal = daemon.refusal(&["port", "set-profile", "added", profile]);
        assert!(refusal.contains(told), "{refusal}");
    }
    assert_eq!(daemon.json(&["port", "show", "added"])["profile"], PROFILE);
    let changed = daemon.json(&["port", "set-profile", "added", OWN]);
    assert_eq!(changed["profile"], OWN);
    assert_eq!(state(&bed)["bindings"]["added"]["digest"], changed["profile_digest"]);

    compare(&bed, &before, &before, true);
    compare(&bed, &before, &changed, false);
}

/// `isonic port compare` of two answers of `port show`.
fn compare(bed: &Bed, from: &Value, to: &Value, same: bool) {
    let files = [("from.json", from), ("to.json", to)].map(|(name, view)| {
        fs::write(bed.path(name), view.to_string()).expect("file");
        bed.path(name)
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    let finished = run_to_end(command.args(["port", "compare", "--json"]).args(&files));
    let answer: Value = serde_json::from_str(&finished.output).expect("JSON");
    assert_eq!(answer["same"], same, "{answer}");
    assert_eq!(finished.status.success(), same);
}

/// As a guest that was rebooted, or has another driver, while isonic was not there.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_may_take_less_than_in_its_last_session_and_never_more_than_was_bound() {
    let bed = Bed::new(1, 1);
    write_own(&bed, 512);
    let mut daemon = Daemon::start(&bed, &configuration(&bed, PROFILE));
    let connect = || Frontend::over(UnixStream::connect(bed.path("vm1.sock")).expect("the port"));
    let frontend = connect();
    frontend.negotiate();
    let offered = frontend.number(code::GET_FEATURES).expect("features");
    daemon.stop();
    daemon.start_again();
    let frontend = connect();
    assert_eq!(frontend.number(code::GET_FEATURES), Some(offered));
    let protocol = frontend.number(code::GET_PROTOCOL_FEATURES).expect("protocol features");
    frontend.ok(code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
    let less = offered & !(1 << MRG_RXBUF);
    frontend.ok(code::SET_FEATURES, &less.to_ne_bytes(), &[]);
    let more = offered | 1 << RING_PACKED;
    frontend.refused(code::SET_FEATURES, &more.to_ne_bytes(), &[]);
}
