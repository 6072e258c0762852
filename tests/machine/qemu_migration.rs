//! Guests migrate, and do not notice: between two hosts with an isonic and an uplink of their own
//! each, on one wire, with numbered messages going both ways all the time.
//!
//! `ISONIC_MIGRATIONS=100` makes more of them, for a soak; `ISONIC_MIGRATION_MATRIX=full` compares
//! what guests see under every profile, ring and number of queue pairs, and not only some.

use std::time::{Duration, SystemTime};

use crate::common::{
    Bed, Configuration, Guest, GuestSpec, Moves, NIC, Outage, PacketSocket, PortSpec, Report,
    Scene, ping, wait_for,
};
use serde_json::json;

/// Packed rings, offloads, an announcement of the guest's own.
const V3: &str = "org.isonic.net.v3";
const V3_SPLIT: &str = "org.isonic.net.v3,ring_packed=off";
/// What a profile from before dirty logging needs to migrate.
const LOG: &str = "log_all=on,protocol.log_shmfd=on";

/// The kernels of `scripts/guest-image`.
const LINUX_6_1: &str = "guest";
const LINUX_6_12: &str = "guest-backports";

fn wished(variable: &str) -> Option<String> {
    std::env::var(variable).ok()
}

/// Back and forth so often, with a rest at each place.
fn back_and_forth(scene: &mut Scene<'_>, times: usize) -> Moves {
    let mut moves = Moves::new();
    for _ in 0..times {
        moves.push(scene.migrate());
        std::thread::sleep(Duration::from_millis(200));
    }
    moves
}

/// What an outage was made of, for people.
fn print(moves: &Moves, report: &Report) -> Vec<Outage> {
    println!("QEMU's downtime, silence of the guest, messages lost, isonic's part (stop + start)");
    let mut outages = Vec::new();
    let mut parts = Vec::new();
    for (migration, [stop, start]) in moves {
        let outage = Outage::of(migration, report);
        let silence = 1e3 * report.longest_silence(outage.from, outage.until);
        let (downtime, lost) = (migration.downtime, report.lost_within(&outage));
        println!("{downtime:5} ms {silence:7.0} ms {lost:6} {stop:7} + {start} µs");
        outages.push(outage);
        parts.push(stop + start);
    }
    parts.sort_unstable();
    println!("isonic's part: median {} µs of {}", parts[parts.len() / 2], parts.len());
    outages
}

fn migrations_under_load(profile: &str, queue_pairs: u32, times: usize) {
    let beds = Bed::pair(2);
    let mut scene = Scene::new(&beds, profile, queue_pairs);
    let view = scene.view();
    let flows = scene.flows();
    let moves = back_and_forth(&mut scene, times);
    let report = flows.end(&mut scene.guest);
    let outages = print(&moves, &report);
    scene.assert_flows(&report, &outages);
    assert_eq!(scene.view(), view);
    scene.assert_sound();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn ten_migrations_under_load_lose_only_what_was_sent_to_a_guest_that_stood_still() {
    let times = wished("ISONIC_MIGRATIONS").map_or(10, |times| times.parse().expect("a number"));
    migrations_under_load(V3, 2, times);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_with_four_pairs_of_split_rings_migrates_back_and_forth_under_load() {
    migrations_under_load(V3_SPLIT, 4, 4);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_sees_the_same_before_and_after_under_every_profile_that_can_migrate() {
    let [v1, v2] = ["v1", "v2"].map(|version| format!("org.isonic.net.{version},{LOG}"));
    let v2_split = format!("{v2},ring_packed=off");
    let mut cases = vec![(LINUX_6_1, &*v1, 1), (LINUX_6_1, &v2, 4), (LINUX_6_12, V3, 2)];
    if wished("ISONIC_MIGRATION_MATRIX").is_some_and(|matrix| matrix == "full") {
        cases.clear();
        for image in [LINUX_6_1, LINUX_6_12] {
            for profile in [&v1, &v2, &v2_split, V3, V3_SPLIT] {
                cases.extend([1, 4].map(|queue_pairs| (image, profile, queue_pairs)));
            }
        }
    }
    for (image, profile, queue_pairs) in cases {
        println!("{image}, {profile}, queue pairs: {queue_pairs}");
        same_before_and_after(image, profile, queue_pairs);
    }
}

fn same_before_and_after(image: &'static str, profile: &str, queue_pairs: u32) {
    let beds = Bed::pair(2);
    let port = PortSpec::switch(NIC, 1).with_profile(profile);
    let configurations = beds.each_ref().map(|bed| Configuration::new(bed, vec![port.clone()]));
    // QEMU 7.2's emulation and newer kernels do not go together: now and then they panic.
    let msix = image != LINUX_6_1;
    let spec = GuestSpec::new(&port, &beds[0].uplinks[0], 1);
    let spec = GuestSpec { queue_pairs, image, msix, ..spec };
    let mut scene = Scene::with(&beds, &configurations, &spec);
    let view = scene.view();
    for _ in 0..2 {
        scene.migrate();
        assert_eq!(scene.view(), view, "{profile}");
        scene.guest.ping(&scene.bed().uplinks[0].wire_address);
    }
    scene.assert_sound();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_neighbour_on_the_other_host_reaches_a_guest_before_and_after_it_has_come_and_gone() {
    let beds = Bed::pair(1);
    let ports = [1, 2].map(|number| PortSpec::switch(NIC, number).with_profile(V3));
    let configurations = beds.each_ref().map(|bed| Configuration::new(bed, ports.to_vec()));
    let specs = [1, 2].map(|number| {
        let spec = GuestSpec::new(&ports[usize::from(number) - 1], &beds[0].uplinks[0], number);
        GuestSpec { queue_pairs: 1, ..spec }
    });
    let mut scene = Scene::with(&beds, &configurations, &specs[0]);
    let mut neighbour = Guest::boot(&beds[1], &specs[1]);
    // A port for the guest is there as well, and then a QEMU that waits for it.
    neighbour.ping(&specs[0].address);
    let mut there = Guest::await_arrival(&beds[1], &specs[0]);
    scene.daemons[1].wait_state("vm1", "connected");
    neighbour.ping(&specs[0].address);
    scene.guest.begin(&mut there, &beds[1]);
    scene.arrive(there);
    neighbour.ping(&specs[0].address);
    let local = scene.daemons[1].port_counter("vm1", "to_guest_packets");
    assert!(local > 0);
    scene.migrate();
    neighbour.ping(&specs[0].address);
    scene.assert_sound();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn migrations_are_cancelled_half_way_and_then_completed_with_nothing_lost_but_by_the_last() {
    let beds = Bed::pair(2);
    let mut scene = Scene::new(&beds, V3, 2);
    let flows = scene.flows();
    for _ in 0..3 {
        slow_down(&mut scene.guest, 4 << 20);
        let mut there = Guest::await_arrival(scene.other(), &scene.guest.spec);
        scene.guest.begin(&mut there, scene.other());
        scene.wait_acknowledged("log_all", true);
        wait_for("some of the memory is copied", 60, || {
            let progress = scene.guest.monitor().query("query-migrate");
            progress["ram"]["transferred"].as_u64() > Some(6 << 20)
        });
        scene.guest.monitor().query("migrate_cancel");
        assert_eq!(scene.guest.outcome()["status"], "cancelled");
        scene.wait_acknowledged("log_all", false);
    }
    slow_down(&mut scene.guest, 0);
    let moves = vec![scene.migrate(), scene.migrate()];
    let report = flows.end(&mut scene.guest);
    let outages = print(&moves, &report);
    scene.assert_flows(&report, &outages);
    scene.assert_sound();
}

/// So many bytes a second at most; 0 is no limit.
fn slow_down(guest: &mut Guest, bandwidth: u32) {
    let bandwidth = json!({ "max-bandwidth": bandwidth });
    guest.monitor().command("migrate-set-parameters", &bandwidth);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_changes_its_number_of_queues_while_it_migrates() {
    let beds = Bed::pair(2);
    let mut scene = Scene::new(&beds, V3, 4);
    let flows = scene.flows();
    for pairs in [1, 3] {
        slow_down(&mut scene.guest, 16 << 20);
        let mut there = Guest::await_arrival(scene.other(), &scene.guest.spec);
        scene.guest.begin(&mut there, scene.other());
        for count in [2, 4, 1, 3, pairs] {
            scene.guest.check(&format!("ethtool -L eth0 combined {count}"));
        }
        let state = scene.guest.monitor().query("query-migrate");
        assert_eq!(state["status"], "active", "the changes came during the migration");
        slow_down(&mut scene.guest, 0);
        scene.arrive(there);
        assert_eq!(scene.guest.facts()["queue_pairs"], pairs.to_string());
        let port = scene.daemons[scene.at].json(&["port", "show", "vm1"]);
        assert_eq!(port["binding"]["queue_pairs"], pairs);
        ping(&scene.bed().wire, &scene.guest.spec.address, &[]);
    }
    // A flow may go another way with each change, so some may be late or lost; none is wrong.
    let report = flows.end(&mut scene.guest);
    report.assert_exact();
    scene.assert_sound();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_is_saved_to_a_file_and_goes_on_from_it_on_another_host() {
    let beds = Bed::pair(2);
    let mut scene = Scene::new(&beds, V3, 2);
    let view = scene.view();
    let flows = scene.flows();
    let file = beds[0].path("saved");
    let mut outages = Vec::new();
    for _ in 0..2 {
        let stopped = seconds();
        scene.save_and_restore(&file);
        outages.push((stopped, seconds()));
        assert_eq!(scene.view(), view);
    }
    let report = flows.end(&mut scene.guest);
    let outage = |(stopped, resumed)| Outage::between(stopped, resumed, &report);
    let outages: Vec<Outage> = outages.into_iter().map(outage).collect();
    scene.assert_flows(&report, &outages);
    scene.assert_sound();
}

/// Ethernet's types of what tells a network where a guest is: RARP (RFC 903), ARP (RFC 826).
const RARP: [u8; 2] = [0x80, 0x35];
const ARP: [u8; 2] = [0x08, 0x06];

/// A guest that says nothing by itself migrates back and forth: what tells the wire where it is.
fn announced(profile: &str, ethertype: [u8; 2]) {
    let beds = Bed::pair(2);
    let mut scene = Scene::new(&beds, profile, 2);
    for _ in 0..2 {
        assert_eq!(scene.place_on_the_wire(), Some(scene.at));
        let there = scene.other().uplinks[0].peer.clone();
        let mut heard = PacketSocket::open(&scene.bed().wire, &there, Duration::from_secs(20));
        scene.migrate();
        let mac = mac(&scene.guest.spec.port.mac);
        let is_announcement = |frame: &[u8]| {
            frame[..6] == [0xff; 6] && frame[6..12] == mac && frame[12..14] == ethertype
        };
        let mut frames = std::iter::from_fn(|| heard.receive());
        let announcement = frames.find(|frame| is_announcement(frame));
        assert!(announcement.is_some(), "no announcement by {ethertype:x?} on {there}");
        assert_eq!(scene.place_on_the_wire(), Some(scene.at));
        ping(&scene.bed().wire, &scene.guest.spec.address, &[]);
    }
}

fn mac(text: &str) -> Vec<u8> {
    text.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("hexadecimal")).collect()
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_silent_guest_announces_itself_and_the_switch_has_moved_when_it_did() {
    announced(V3, ARP);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_silent_guest_that_cannot_is_announced_and_the_switch_has_moved_when_it_was() {
    announced("org.isonic.net.v3,guest_announce=off", RARP);
}

fn seconds() -> f64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64()
}
