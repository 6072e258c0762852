//! A guest migrates between two isonics under QEMU 10, which takes a state of the device along: to
//! a port with the same interface, and not to one with another.

use crate::common::{
    Bed, Configuration, Guest, GuestSpec, NIC, PortSpec, Scene, ping, wait_reachable,
};

const V4: &str = "org.isonic.net.v4";
const V3: &str = "org.isonic.net.v3";
/// The features of v4, every one of them, on another interface.
const OTHER: &str = "org.isonic.net.v4,max_ring=512";

fn configuration(bed: &Bed, profile: &str) -> Configuration {
    Configuration::new(bed, vec![PortSpec::switch(NIC, 1).with_profile(profile)])
}

/// A guest of QEMU 10 on a port with the first of these profiles, and a port with the second.
fn scene<'beds>(beds: &'beds [Bed; 2], [here, there]: [&str; 2]) -> Scene<'beds> {
    let port = PortSpec::switch(NIC, 1).with_profile(here);
    let spec = GuestSpec::new(&port, &beds[0].uplinks[0], 1);
    let spec = GuestSpec { queue_pairs: 1, msix: true, ..spec };
    let configurations = [configuration(&beds[0], here), configuration(&beds[1], there)];
    Scene::with(beds, &configurations, &spec)
}

/// The session's fingerprint, as far as the log has it.
fn fingerprint(scene: &Scene<'_>) -> String {
    scene.binding()["fingerprint"].as_str().expect("a session")[..16].to_owned()
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_arrives_on_a_port_with_its_interface_and_the_state_says_so_on_both_sides() {
    let beds = Bed::pair(1);
    let mut scene = scene(&beds, [V4, V4]);
    let view = scene.view();
    let told = format!("profile {V4}, fingerprint {}", fingerprint(&scene));
    // With the same fingerprint.
    scene.migrate();
    assert_eq!(scene.view(), view);
    ping(&beds[1].wire, &scene.guest.spec.address, &[]);
    for (daemon, words) in scene.daemons.iter().zip(["device state given", "the same interface"]) {
        let log = daemon.log();
        let line = log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains(&told), "{told} is not in: {line}");
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_stays_where_it_is_until_there_is_a_port_with_its_interface() {
    let beds = Bed::pair(1);
    let mut scene = scene(&beds, [V4, OTHER]);
    let before = fingerprint(&scene);
    let stays = |scene: &mut Scene<'_>| {
        let spec = scene.guest.spec.clone();
        let refused = scene.guest.fail_to_move(&beds[1], &spec);
        ping(&beds[0].wire, &spec.address, &[]);
        assert_eq!(fingerprint(scene), before);
        (refused.qemu, scene.daemons[1].log())
    };
    // The same features, so that QEMU itself finds nothing wrong.
    let (qemu, isonic) = stays(&mut scene);
    assert!(qemu.contains("Back-end failed to process its internal state"), "{qemu}");
    for told in ["CHECK_DEVICE_STATE", V4, OTHER, "set-profile"] {
        assert!(isonic.contains(told), "{told} is not in: {isonic}");
    }
    // Nobody there to take the state.
    scene.daemons[1].replace(&configuration(&beds[1], V3));
    let (qemu, _) = stays(&mut scene);
    assert!(qemu.contains("does not support migration state transfer"), "{qemu}");

    scene.daemons[1].replace(&configuration(&beds[1], V4));
    scene.migrate();
    wait_reachable(&beds[1].wire, &scene.guest.spec.address, 20);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_stream_without_a_state_is_taken_because_there_is_nothing_to_compare() {
    let beds = Bed::pair(1);
    let mut scene = scene(&beds, [V3, V4]);
    let mut there = Guest::await_arrival(&beds[1], &scene.guest.spec);
    scene.guest.begin(&mut there, &beds[1]);
    scene.arrive(there);
    wait_reachable(&beds[1].wire, &scene.guest.spec.address, 20);
    let log = scene.daemons[1].log();
    assert!(!log.contains("device state"), "{log}");
}
