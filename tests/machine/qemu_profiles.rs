//! What guests see of their profiles: every bit of every profile that ships and can be used, of a
//! draft, of lists of values, and of two at once on one uplink; and of DPDK's, under DPDK itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PROFILE, PortSpec, Testpmd, echo_stream,
    wait_reachable,
};
use serde_json::Value;

/// The bits that QEMU adds by itself, whatever the backend offers: `virtio_net_properties` of its
/// hw/net/virtio-net.c, as far as a profile can have them. Every other bit that a guest sees is
/// one that the backend offers.
const ADDED_BY_QEMU: [&str; 8] = [
    "mac",
    "status",
    "ctrl_vq",
    "ctrl_rx",
    "ctrl_vlan",
    "ctrl_rx_extra",
    "ctrl_mac_addr",
    "ctrl_guest_offloads",
];
/// QEMU's largest ring (`VIRTQUEUE_MAX_SIZE`), entries: of larger ones a guest sees this.
const QEMU_RING_MAX: u64 = 1024;
/// Offered by a backend and kept from the guest: vhost-user's own, and those of the legacy
/// interface.
const KEPT_FROM_GUESTS: [&str; 5] =
    ["protocol_features", "log_all", "any_layout", "notify_on_empty", "gso"];

/// The newest that ships.
const LATEST: &str = "org.isonic.net.v3";

type Facts = BTreeMap<String, String>;

/// A draft made from v1, and a released version that differs from it.
fn profiles(bed: &Bed) -> PathBuf {
    let directory = bed.path("profiles");
    std::fs::create_dir(&directory).expect("profile directory");
    let extension = |version: &str, more: &str| {
        let text = format!(
            "name = \"org.isonic.net.{version}\"\nsummary = \"for this test\"\n\
             extends = \"{PROFILE}\"\nwhy = \"a test\"\n{more}\n"
        );
        std::fs::write(directory.join(format!("{version}.toml")), text).expect("profile file");
    };
    let draft = "add_features = [\"ring_packed\"]\nmtu = 1400\nring_size_max = 512\ndraft = true";
    extension("v1001", draft);
    extension("v1000", "ring_size_max = 256");
    directory
}

fn names(bits: &Value) -> BTreeSet<String> {
    let names = bits["names"].as_array().expect("names").iter();
    names.map(|name| name.as_str().expect("a name").to_owned()).collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// A guest on this port, with QEMU's half as the port's profile, perhaps from `directory`, says.
fn spec(bed: &Bed, daemon: &Daemon<'_>, port: &PortSpec, directory: Option<&Path>) -> GuestSpec {
    let profile = daemon.json(&["profile", "show", &port.profile]);
    let most = profile["queue_pairs_max"].as_u64().expect("queue pairs");
    let number = port.name.trim_start_matches("vm").parse().expect("a number");
    let in_order = names(&profile["features"]).contains("in_order");
    let port = if in_order { under_qemu_7_2(port) } else { port.clone() };
    GuestSpec {
        profile_dir: directory.map(Path::to_owned),
        queue_pairs: if most > 1 { 2 } else { 1 },
        ..GuestSpec::new(&port, &bed.uplinks[0], number)
    }
}

/// The port as its guest sees it under QEMU 7.2, which has no property for in_order and shows it to
/// nobody, whatever the backend offers.
fn under_qemu_7_2(port: &PortSpec) -> PortSpec {
    PortSpec { profile: format!("{},in_order=off", port.profile), ..port.clone() }
}

/// Compares what the guest sees with `profile show`, bit by bit; gives what it sees.
fn assert_sees_its_profile(daemon: &Daemon<'_>, guest: &mut Guest) -> Facts {
    let port = guest.spec.port.clone();
    let profile = daemon.json(&["profile", "show", &port.profile]);
    let facts = guest.facts();
    assert_bits(&profile, &facts);
    for ring in ["ring_size_from_guest_max", "ring_size_to_guest_max"] {
        let most = profile["ring_size_max"].as_u64().expect("entries").min(QEMU_RING_MAX);
        assert_eq!(facts[ring], most.to_string(), "{}: {ring}", port.profile);
    }
    assert_eq!(facts["queue_pairs_max"], guest.spec.queue_pairs.to_string());
    let shows_mtu = names(&profile["guest_features"]).contains("mtu");
    let mtu = if shows_mtu { profile["mtu"].to_string() } else { "1500".to_owned() };
    assert_eq!(facts["mtu"], mtu, "{}", port.profile);
    assert_eq!(facts["mac"], port.mac);
    let offloads = guest.offloads("eth0");
    let told = profile["linux_offloads"].as_object().expect("offloads");
    for (name, on) in told {
        let word = if *on == Value::Bool(true) { "on" } else { "off" };
        assert_eq!(offloads[name], word, "{}: {name}", port.profile);
    }
    facts.into_iter().chain(offloads).collect()
}

fn assert_bits(profile: &Value, facts: &Facts) {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).expect("hex");
    let told = number(profile["guest_features"]["hex"].as_str().expect("hex"));
    let (offered, negotiated) =
        (number(&facts["features_offered"]), number(&facts["features_negotiated"]));
    for bit in 0..64 {
        let [told, seen] = [told, offered].map(|bits| bits >> bit & 1);
        assert_eq!(seen, told, "bit {bit} of {}", profile["name"]);
        assert!(negotiated >> bit & 1 <= seen, "bit {bit} was never offered");
    }
    let frontend = names(&profile["frontend_features"]);
    assert!(frontend.is_subset(&set(&ADDED_BY_QEMU)), "{frontend:?}");
    let mut expected = names(&profile["features"]);
    expected.retain(|name| !KEPT_FROM_GUESTS.contains(&name.as_str()));
    expected.extend(frontend);
    assert_eq!(names(&profile["guest_features"]), expected);
}

/// Boots these two at once, each compared with its profile, and sends something through both.
fn two_guests(profiles: [&str; 2], directory: impl Fn(&Bed) -> PathBuf) -> [Facts; 2] {
    let bed = Bed::new(1, 2);
    let [first, second] = profiles;
    let ports = [
        PortSpec::switch(NIC, 1).with_profile(first),
        PortSpec::switch(NIC, 2).with_profile(second),
    ];
    let directory = directory(&bed);
    let configuration = Configuration {
        profile_dir: Some(directory.clone()),
        ..Configuration::new(&bed, ports.to_vec())
    };
    let daemon = Daemon::start(&bed, &configuration);
    let specs = ports.each_ref().map(|port| spec(&bed, &daemon, port, Some(&directory)));
    let guests = Guest::boot_all(&bed, specs);
    guests.map(|mut guest| {
        let facts = assert_sees_its_profile(&daemon, &mut guest);
        echo_stream(&bed.wire, &guest.spec.address, 1 << 18);
        facts
    })
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_sees_every_bit_of_every_profile_that_ships_and_can_be_used() {
    let bed = Bed::new(1, 2);
    let mut configuration = Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]);
    let mut daemon = Daemon::start(&bed, &configuration);
    let list = daemon.json(&["profile", "list"]);
    let usable = list.as_array().expect("profiles").iter().filter(|profile| {
        profile["uplinks"][NIC].as_array().is_some_and(Vec::is_empty)
            && profile["source"] == "the binary"
    });
    let usable: Vec<&str> = usable.map(|profile| profile["name"].as_str().expect("name")).collect();
    assert!(usable.contains(&PROFILE), "{usable:?}");
    for name in usable {
        daemon.stop();
        drop(daemon);
        // Another profile for a port that was bound is another port.
        std::fs::remove_dir_all(bed.path("state")).expect("state directory");
        let port = PortSpec::switch(NIC, 1).with_profile(name);
        configuration.ports = vec![port.clone()];
        daemon = Daemon::start(&bed, &configuration);
        let mut guest = Guest::boot(&bed, &spec(&bed, &daemon, &port, None));
        assert_sees_its_profile(&daemon, &mut guest);
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn two_guests_under_two_profiles_on_one_uplink_each_see_their_own() {
    let values = "org.isonic.net.v1,mrg_rxbuf=off,event_idx=off,ctrl_vlan=off,max_ring=256";
    let [draft, listed] = two_guests(["org.isonic.net.v1001", values], profiles);
    assert_eq!((draft["mtu"].as_str(), listed["mtu"].as_str()), ("1400", "1500"));
    assert_eq!(draft["ring_size_to_guest_max"], "512");
    assert_eq!(draft["rx-vlan-filter"], "on");
    assert_eq!(listed["rx-vlan-filter"], "off");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_sees_the_same_under_a_larger_set_of_profiles_as_under_a_smaller() {
    let empty = |bed: &Bed| {
        let directory = bed.path("profiles");
        std::fs::create_dir(&directory).expect("profile directory");
        directory
    };
    // The second is another one for company, without a base.
    let [older, bare] = two_guests([PROFILE, "any_layout=on,max_ring=256"], empty);
    let [newer, _] = two_guests([PROFILE, "org.isonic.net.v1000"], profiles);
    assert_eq!(newer, older);
    assert_eq!(bare["queue_pairs_max"], "1");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_keeps_its_interface_when_its_port_was_made_with_latest() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1).with_profile("latest");
    let mut configuration = Configuration::new(&bed, vec![port.clone()]);
    let mut daemon = Daemon::start(&bed, &configuration);
    let known = PortSpec { profile: LATEST.to_owned(), ..port };
    let mut guest = Guest::boot(&bed, &spec(&bed, &daemon, &known, None));
    let facts = assert_sees_its_profile(&daemon, &mut guest);
    let bound = |daemon: &Daemon<'_>| {
        daemon.wait_state("vm1", "running");
        let shown = daemon.json(&["port", "show", "vm1"]);
        ["profile", "profile_digest"].map(|key| shown[key].clone()).map(|it| it.to_string())
    };
    let before = bound(&daemon);
    daemon.kill();
    drop(daemon);
    // The same file of configuration, and a newer profile under the word `latest`.
    let directory = profiles(&bed);
    configuration.profile_dir = Some(directory.clone());
    let daemon = Daemon::start(&bed, &configuration);
    assert!(Path::new(&directory).join("v1000.toml").exists());
    assert_eq!(daemon.json(&["profile", "show", "latest"])["name"], "org.isonic.net.v1000");
    assert_eq!(bound(&daemon), before);
    wait_reachable(&bed.wire, &guest.spec.address, 20);
    echo_stream(&bed.wire, &guest.spec.address, 1 << 20);
    assert_eq!(assert_sees_its_profile(&daemon, &mut guest), facts);
    // A guest that is started again finds it too.
    guest.reboot();
    assert_eq!(assert_sees_its_profile(&daemon, &mut guest), facts);
    let view = daemon.json(&["port", "show", "vm1"]);
    assert_eq!(view["binding"]["fingerprint"].as_str().map(str::len), Some(64));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_sees_under_dpdks_profile_what_it_sees_under_dpdk() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1).with_profile("org.dpdk.v22.11");
    let spec = GuestSpec::new(&under_qemu_7_2(&port), &bed.uplinks[0], 1);
    let spec = GuestSpec { queue_pairs: 1, ..spec };
    let seen = |guest: &mut Guest| (guest.facts(), guest.offloads("eth0"));

    let mut dpdk = Testpmd::backend(&bed, "vm1.sock");
    let mut guest = Guest::boot(&bed, &spec);
    let under_dpdk = seen(&mut guest);
    guest.kill();
    dpdk.quit();

    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![port.clone()]));
    let mut guest = Guest::boot(&bed, &spec);
    assert_eq!(seen(&mut guest), under_dpdk);
    assert_sees_its_profile(&daemon, &mut guest);
    echo_stream(&bed.wire, &guest.spec.address, 1 << 18);
}
