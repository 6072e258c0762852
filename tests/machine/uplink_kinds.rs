//! Uplinks that are no plain NIC: what passes each kind of device that this machine's kernel has,
//! what doctor and daemon say of it, and what both refuse (docs/operations.md, "Kinds of
//! interface"). `uplink_kinds_inner.rs` has the kinds for which another kernel is booted.

use std::time::Duration;

use crate::common::{
    BRIDGE, Bed, Configuration, Daemon, Fate, Finished, NIC, PacketSocket, Passage, PortSpec,
    passage, run_to_end, tcp_burst, wait_for,
};
use isonic::test_support::rig_guest::mac;
use isonic::test_support::vm::Vm;
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_isonic");
/// Of the device on the NIC.
const DEVICE: &str = "isonic-up0";
/// Fits a VXLAN on an MTU of 1500.
const PROFILE: &str = "org.isonic.net.v1,mtu=1400";
/// As a VXLAN above, or a bridge on it.
const SILENCE: Duration = Duration::from_millis(100);

fn host(bed: &Bed, command: &str) -> String {
    bed.host.run(&command.split(' ').collect::<Vec<_>>())
}

fn configuration(bed: &Bed, uplink: &str, port: PortSpec) -> Configuration {
    let mut configuration =
        Configuration::new(bed, vec![PortSpec { profile: PROFILE.into(), ..port }]);
    configuration.uplinks = vec![(uplink.to_owned(), None)];
    configuration
}

/// What the doctor says of an interface: can_serve, and its findings.
fn doctor(bed: &Bed, arguments: &[&str]) -> (bool, Vec<Value>) {
    let command_line = [&[BINARY, "doctor", "--json"], arguments].concat();
    let Finished { output, errors, .. } = run_to_end(&mut bed.host.command(&command_line));
    let report: Value =
        serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}{errors}"));
    let findings = report["uplinks"][0]["findings"].as_array().expect("findings").clone();
    (report["can_serve"] == true, findings)
}

fn finding<'f>(findings: &'f [Value], id: &str) -> &'f Value {
    findings.iter().find(|finding| finding["id"] == id).unwrap_or_else(|| panic!("{findings:#?}"))
}

/// A daemon with the port and its VM.
fn serve<'bed>(bed: &'bed Bed, uplink: &str, port: PortSpec) -> (Daemon<'bed>, Vm) {
    let daemon = Daemon::start(bed, &configuration(bed, uplink, port));
    let vm = Vm::connect(&bed.path("vm1.sock"), 1);
    (daemon, vm)
}

fn wire(bed: &Bed, interface: &str) -> PacketSocket {
    PacketSocket::open(&bed.wire, interface, SILENCE)
}

/// What passes, which is what the doctor has said before: of VLAN tags.
fn assert_passes(bed: &Bed, far: &str, expected: Passage) {
    let asked = ["--uplink", DEVICE, "--profile", PROFILE, "--api-socket", "/none"];
    let (serves, findings) = doctor(bed, &asked);
    assert!(serves, "{findings:#?}");
    let loses_tags = expected.tagged == Fate::Untagged;
    assert_eq!(finding(&findings, "vlan-tags")["status"] == "warning", loses_tags);
    let (daemon, mut vm) = serve(bed, DEVICE, PortSpec::switch(DEVICE, 1));
    let uplink = daemon.json(&["uplink", "list"])[0].take();
    assert_eq!(uplink["xdp_mode"], "generic", "{uplink}");
    let told = uplink["cautions"].as_array().expect("cautions").iter();
    assert_eq!(
        told.filter(|it| it.to_string().contains("takes them out")).count() == 1,
        loses_tags
    );
    assert_eq!(passage(&mut wire(bed, far), &mut vm, mac(1)), expected);
}

fn make_bridge(bed: &Bed) {
    host(bed, &format!("ip link add {DEVICE} type bridge forward_delay 0 mcast_snooping 0"));
    host(bed, &format!("ip link set {NIC} master {DEVICE}"));
    host(bed, &format!("ip link set {DEVICE} up"));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_passes_a_bridge_a_macvlan_in_passthru_mode_and_a_vxlan_is_what_is_told() {
    let bed = Bed::new(1, 1);
    let (end, peer) = (&bed.uplinks[0], &bed.uplinks[0].peer);
    let without_tags = Passage { tagged: Fate::Untagged, ..Passage::WHOLE };
    make_bridge(&bed);
    assert_passes(&bed, peer, without_tags);
    host(&bed, &format!("ip link delete {DEVICE}"));
    for kind in ["macvlan", "macvtap"] {
        host(&bed, &format!("ip link add link {NIC} name {DEVICE} type {kind} mode passthru"));
        host(&bed, &format!("ip link set {DEVICE} up"));
        assert_passes(&bed, peer, without_tags);
        host(&bed, &format!("ip link delete {DEVICE}"));
    }
    let vxlan = |name: &str, local: &str, remote: &str| {
        format!("ip link add {name} type vxlan id 5 dstport 4789 local {local} remote {remote}")
    };
    host(&bed, &format!("{} dev {NIC}", vxlan(DEVICE, &end.host_address, &end.wire_address)));
    host(&bed, &format!("ip link set {DEVICE} up"));
    let far = "isonic-far0";
    let command = vxlan(far, &end.wire_address, &end.host_address);
    bed.wire.run(&command.split(' ').collect::<Vec<_>>());
    bed.wire.run(&["ip", "link", "set", far, "up"]);
    assert_passes(&bed, far, Passage::WHOLE);
}

/// Ten segments that the kernel cuts from one packet, so that GRO finds them together.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_a_bridges_port_merges_is_lost_and_the_command_that_is_named_mends_it() {
    let bed = Bed::new(1, 1);
    make_bridge(&bed);
    host(&bed, &format!("ethtool -K {NIC} gro on"));
    // Its own makes no difference.
    host(&bed, &format!("ethtool -K {DEVICE} gro off"));
    let config = configuration(&bed, DEVICE, PortSpec::switch(DEVICE, 1));
    let file = config.write(&bed).display().to_string();
    let remedy = format!("ethtool --offload {NIC} gro off");
    let (_, findings) = doctor(&bed, &["--config", &file]);
    let merging = finding(&findings, "merging");
    assert_eq!(merging["status"], "warning");
    assert_eq!(merging["remedy"], *remedy);
    let (daemon, mut vm) = serve(&bed, DEVICE, PortSpec::switch(DEVICE, 1));
    assert!(daemon.log().contains(&remedy), "{}", daemon.log());
    tcp_burst(&bed.wire, &bed.uplinks[0].peer, mac(1), 10);
    wait_for("what was merged is dropped as too long", 10, || {
        daemon.port_counter("vm1", "to_guest_dropped_oversize") > 0
    });
    vm.received();
    host(&bed, &remedy);
    let (_, findings) = doctor(&bed, &["--config", &file]);
    assert_eq!(finding(&findings, "merging")["status"], "ok");
    let lost = daemon.port_counter("vm1", "to_guest_dropped_oversize");
    tcp_burst(&bed.wire, &bed.uplinks[0].peer, mac(1), 10);
    let mut came = 0;
    wait_for("every segment comes", 10, || {
        came += vm.received().len();
        came >= 10
    });
    assert_eq!(daemon.port_counter("vm1", "to_guest_dropped_oversize"), lost);
    // What is told follows what is.
    wait_for("the daemon has seen it too", 20, || {
        !daemon.json(&["uplink", "list"])[0]["cautions"].to_string().contains("gro off")
    });
    host(&bed, &format!("ethtool -K {NIC} gro on"));
    wait_for("and that it is on again", 20, || daemon.log().matches(&remedy).count() == 2);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_kernel_merges_nothing_on_a_nic_with_a_generic_program_and_no_alarm_is_raised() {
    let bed = Bed::new(1, 1);
    host(&bed, &format!("ethtool -K {NIC} gro on"));
    let mut config = configuration(&bed, NIC, PortSpec::switch(NIC, 1));
    config.mode = "generic";
    let file = config.write(&bed).display().to_string();
    let (_, findings) = doctor(&bed, &["--config", &file]);
    assert_eq!(finding(&findings, "merging")["status"], "ok");
    let daemon = Daemon::start(&bed, &config);
    let mut vm = Vm::connect(&bed.path("vm1.sock"), 1);
    assert_eq!(daemon.json(&["uplink", "list"])[0]["cautions"], serde_json::json!([]));
    tcp_burst(&bed.wire, &bed.uplinks[0].peer, mac(1), 10);
    let mut came = 0;
    wait_for("every segment comes", 10, || {
        came += vm.received().len();
        came >= 10
    });
    assert_eq!(daemon.port_counter("vm1", "to_guest_dropped_oversize"), 0);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_macvlan_that_passes_its_own_mac_only_serves_a_wire_port_and_refuses_a_switch_port() {
    let bed = Bed::new(1, 1);
    host(&bed, &format!("ip link add link {NIC} name {DEVICE} type macvlan mode bridge"));
    host(&bed, &format!("ip link set {DEVICE} address 52:54:00:00:00:01 up"));
    let port = PortSpec { mac: "52:54:00:00:00:02".into(), ..PortSpec::switch(DEVICE, 1) };
    let config = configuration(&bed, DEVICE, port);
    let file = config.write(&bed).display().to_string();
    let (serves, findings) = doctor(&bed, &["--config", &file]);
    assert_eq!((serves, &finding(&findings, "kind")["status"]), (false, &"problem".into()));
    let refused = Daemon::refused(&bed, &config);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(refused.errors.contains("passes unicast for its own MAC only"), "{refused:?}");
    let (_daemon, mut vm) = serve(&bed, DEVICE, PortSpec::wire(DEVICE, 1, &[0]));
    let passage = passage(&mut wire(&bed, &bed.uplinks[0].peer), &mut vm, mac(1));
    assert_eq!((passage.unicast, passage.sent), (Fate::Whole, Fate::Whole), "{passage:?}");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_carries_no_ethernet_frames_is_refused_by_doctor_and_daemon_with_the_reason() {
    let bed = Bed::new(1, 1);
    host(&bed, &format!("ip tuntap add dev {DEVICE} mode tun"));
    host(&bed, &format!("ip link set {DEVICE} up"));
    for (interface, reason) in [(DEVICE, "carries no Ethernet frames"), ("lo", "own loopback")] {
        let (serves, findings) = doctor(&bed, &["--uplink", interface]);
        let kind = finding(&findings, "kind");
        assert_eq!((serves, &kind["status"]), (false, &"problem".into()));
        assert!(kind["found"].as_str().is_some_and(|text| text.contains(reason)), "{kind}");
        let config = configuration(&bed, interface, PortSpec::switch(interface, 1));
        let refused = Daemon::refused(&bed, &config);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        assert!(
            refused.errors.contains(reason) && refused.errors.contains("; use "),
            "{refused:?}"
        );
    }
    let links = host(&bed, "ip -details link");
    assert!(!links.contains("xdp"), "{links}");
}

/// Nothing leaves it; it is served, for those who want just that, and told.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_device_that_drops_what_is_sent_is_served_with_a_warning() {
    let bed = Bed::new(1, 1);
    host(&bed, &format!("ip link add {DEVICE} type ifb"));
    host(&bed, &format!("ip link set {DEVICE} up"));
    let (serves, findings) = doctor(&bed, &["--uplink", DEVICE, "--api-socket", "/none"]);
    assert_eq!((serves, &finding(&findings, "kind")["status"]), (true, &"warning".into()));
    let config = Configuration {
        ports: vec![PortSpec::switch(DEVICE, 1), PortSpec::switch(DEVICE, 2)],
        ..configuration(&bed, DEVICE, PortSpec::switch(DEVICE, 1))
    };
    let _daemon = Daemon::start(&bed, &config);
    let [mut one, mut other] =
        [1, 2].map(|number| Vm::connect(&bed.path(&format!("vm{number}.sock")), 1));
    let between = isonic::test_support::rig_guest::frame(mac(2), mac(1), 200);
    one.send(&between);
    wait_for("VMs reach each other", 10, || other.received().contains(&between));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_of_a_bridge_that_has_a_program_is_told_where_that_is() {
    let bed = Bed::new(1, 1);
    host(&bed, &format!("ip link add {BRIDGE} type bridge"));
    host(&bed, &format!("ip link set {NIC} master {BRIDGE}"));
    host(&bed, &format!("ip link set {BRIDGE} up"));
    let first = Daemon::start(&bed, &configuration(&bed, BRIDGE, PortSpec::switch(BRIDGE, 1)));
    let mut second = configuration(&bed, NIC, PortSpec::switch(NIC, 2));
    second.ports[0].name = "vm2".to_owned();
    let refused = Daemon::refused_beside(&bed, &second);
    let wanted = format!("another isonic has {BRIDGE} (process {}, isonic)", first.id());
    assert!(refused.errors.contains(&wanted), "{refused:?}");
}
