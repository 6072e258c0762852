//! What does not migrate, and says why: a guest stays where it is, and its traffic goes on.

use std::fs;
use std::path::PathBuf;

use crate::common::{
    Bed, Configuration, Guest, GuestSpec, NIC, Outage, PortSpec, Scene, ping, wait_for,
};
use serde_json::json;

const V1: &str = "org.isonic.net.v1";
const V3: &str = "org.isonic.net.v3";
/// Only the newer isonic has it.
const NEW: &str = "org.isonic.net.v1000";

/// A directory with a profile that no isonic has by itself: v3 with shorter rings.
fn newer(bed: &Bed) -> PathBuf {
    let directory = bed.path("profiles");
    fs::create_dir(&directory).expect("profile directory");
    let text = format!(
        "name = \"{NEW}\"\nsummary = \"for this test\"\nextends = \"{V3}\"\nwhy = \"a test\"\n\
         ring_size_max = 512\n"
    );
    fs::write(directory.join("v1000.toml"), text).expect("profile file");
    directory
}

/// A guest with this profile on a newer isonic, and an older one on the other host, whose port has
/// another profile.
fn from_newer_to_older<'beds>(beds: &'beds [Bed; 2], profiles: [&str; 2]) -> Scene<'beds> {
    let directory = newer(&beds[0]);
    let ports = profiles.map(|profile| PortSpec::switch(NIC, 1).with_profile(profile));
    let [here, there] = [0, 1].map(|at| Configuration::new(&beds[at], vec![ports[at].clone()]));
    let here = Configuration { profile_dir: Some(directory.clone()), ..here };
    let spec = GuestSpec::new(&ports[0], &beds[0].uplinks[0], 1);
    let spec = GuestSpec { profile_dir: Some(directory), ..spec };
    Scene::with(beds, &[here, there], &spec)
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_migrates_to_an_older_isonic_that_has_its_profile_and_back() {
    let beds = Bed::pair(2);
    let mut scene = from_newer_to_older(&beds, [V3, V3]);
    let view = scene.view();
    for _ in 0..2 {
        scene.migrate();
        assert_eq!(scene.view(), view);
    }
    // The older one publishes fewer.
    let names = |at: usize| {
        let list = scene.daemons[at].json(&["profile", "list"]);
        list.as_array().expect("profiles").iter().any(|profile| profile["name"] == NEW)
    };
    assert_eq!([0, 1].map(names), [true, false]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_profile_that_the_older_isonic_lacks_is_refused_before_and_the_guest_stays_if_nobody_asked() {
    let beds = Bed::pair(2);
    // What management might have tried instead: v1 has fewer features than the guest has taken.
    let older = format!("{V1},log_all=on,protocol.log_shmfd=on");
    let mut scene = from_newer_to_older(&beds, [NEW, &older]);
    let view = scene.view();

    let socket = beds[1].path("vm2.sock").display().to_string();
    let add = ["port", "add", "vm2", "--socket", &socket, "--uplink", NIC, "--profile", NEW];
    let refusal = scene.daemons[1].refusal(&add);
    assert!(refusal.contains(&format!("there is no profile \"{NEW}\"")), "{refusal}");
    assert!(refusal.contains(V3), "which there are: {refusal}");
    assert!(!beds[1].path("vm2.sock").exists());

    let flows = scene.flows();
    let spec = scene.guest.spec.clone();
    let refused = scene.guest.fail_to_move(&beds[1], &spec);
    // "Features 0x... unsupported. Allowed features: 0x..."
    assert!(refused.qemu.contains("unsupported. Allowed features"), "{}", refused.qemu);
    assert!(refused.qemu.contains("load of migration failed"), "{}", refused.qemu);
    std::thread::sleep(std::time::Duration::from_millis(500));
    let report = flows.end(&mut scene.guest);
    let outage = Outage::between(
        refused.stopped.expect("it was stopped for the last of its memory"),
        refused.resumed.expect("and went on"),
        &report,
    );
    scene.assert_flows(&report, &[outage]);
    assert_eq!(scene.view(), view);
    scene.assert_sound();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_whose_profile_has_no_log_stays_and_qemu_says_why() {
    let beds = Bed::pair(1);
    let mut scene = Scene::new(&beds, V1, 1);
    let uri = json!({ "uri": format!("unix:{}", beds[1].path("migration").display()) });
    let refusal = scene.guest.monitor().refusal("migrate", &uri);
    assert!(refusal.contains("Migration disabled: vhost-user backend lacks"), "{refusal}");
    ping(&beds[0].wire, &scene.guest.spec.address, &[]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn post_copy_is_refused_before_anything_moves_and_the_guest_goes_on() {
    let beds = Bed::pair(1);
    let mut scene = Scene::new(&beds, V3, 1);
    let mut there = Guest::await_arrival(&beds[1], &scene.guest.spec);
    let wish = json!({ "capabilities": [{ "capability": "postcopy-ram", "state": true }] });
    let refusal = there.monitor().refusal("migrate-set-capabilities", &wish);
    assert!(refusal.contains("Postcopy is not supported"), "{refusal}");
    wait_for("QEMU says who cannot", 20, || there.log().contains("not capable of postcopy"));
    ping(&beds[0].wire, &scene.guest.spec.address, &[]);
    // It takes the guest without.
    scene.guest.begin(&mut there, &beds[1]);
    scene.arrive(there);
    ping(&beds[1].wire, &scene.guest.spec.address, &[]);
}
