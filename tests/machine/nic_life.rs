//! What happens to NICs while isonic runs: links go down and up, names and MTUs change, NICs are
//! removed and come back, queues stand still. Ports stay connected, traffic goes on by itself,
//! every frame is accounted for, and the log says what happened, once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, PacketSocket, PortSpec, ping, wait_for,
    wait_reachable,
};
use isonic::test_support::StopOnDrop;
use isonic::test_support::rig_guest::{OUTSIDE, datagram, frame, mac};
use isonic::test_support::vm::Vm;
use serde_json::Value;

/// Frames of one exchange, each way.
const FRAMES: usize = 20;

/// A daemon with a port on each uplink, and a VM at each port.
struct Scene<'bed> {
    bed: &'bed Bed,
    daemon: Daemon<'bed>,
    vms: Vec<Vm>,
    /// All that was ever counted.
    counts: Value,
}

impl<'bed> Scene<'bed> {
    fn new(bed: &'bed Bed) -> Self {
        Self::with(bed, 1, |_| {})
    }

    /// With so many workers, and the configuration changed.
    fn with(bed: &'bed Bed, workers: u32, change: impl FnOnce(&mut Configuration)) -> Self {
        let ports = (1..).zip(&bed.uplinks);
        let ports = ports.map(|(number, uplink)| PortSpec::switch(&uplink.nic, number)).collect();
        let mut configuration = Configuration { workers, ..Configuration::new(bed, ports) };
        change(&mut configuration);
        let daemon = Daemon::start(bed, &configuration);
        let connect = |number| Vm::connect(&bed.path(&format!("vm{number}.sock")), 1);
        let vms = (1..=bed.uplinks.len()).map(connect).collect();
        Self { bed, daemon, vms, counts: Value::Null }
    }

    fn wire(&self, uplink: usize) -> PacketSocket {
        let peer = &self.bed.uplinks[uplink].peer;
        PacketSocket::open(&self.bed.wire, peer, Duration::from_millis(100))
    }

    /// Frames go both ways over an uplink, and every one arrives.
    fn exchange(&mut self, uplink: usize) {
        let mut wire = self.wire(uplink);
        let guest = mac(u8::try_from(uplink + 1).unwrap());
        let vm = &mut self.vms[uplink];
        vm.received();
        let (out, into) = (frame(OUTSIDE, guest, 200), frame(guest, OUTSIDE, 300));
        for _ in 0..FRAMES {
            assert!(vm.try_send(0, &out), "the ring is not full");
            wire.send(&into);
        }
        let mut came = 0;
        wait_for("the VM has all frames", 5, || {
            came += vm.received().iter().filter(|frame| **frame == into).count();
            came >= FRAMES
        });
        let mut left = 0;
        wait_for("the wire has all frames", 5, || {
            while let Some(frame) = wire.receive() {
                left += usize::from(frame == out);
            }
            left >= FRAMES
        });
        assert_eq!((came, left), (FRAMES, FRAMES));
    }

    fn uplink(&self, uplink: usize) -> Value {
        self.daemon.json(&["uplink", "list"])[uplink].take()
    }

    fn wait_state(&self, uplink: usize, state: &str) {
        wait_for(&format!("uplink {uplink} is {state}"), 10, || {
            self.uplink(uplink)["state"] == state
        });
    }

    /// Waits until an uplink that was open all the time has been closed and opened.
    fn wait_open_again(&self, uplink: usize) {
        wait_for("it is opened again", 10, || {
            self.daemon.log().matches("uplink is open ").count() == self.bed.uplinks.len() + 1
        });
        self.wait_state(uplink, "up");
    }

    /// What ports and uplinks count has not become less, and every frame of the uplinks, of which
    /// so many are open, is somewhere.
    fn assert_accounts(&mut self, frames: u64) {
        assert_eq!(self.daemon.frames(), frames);
        let stats = self.daemon.json(&["stats"]);
        for kind in ["ports", "uplinks"] {
            for (name, before) in self.counts[kind].as_object().into_iter().flatten() {
                for (counter, before) in before.as_object().expect("counters") {
                    let now = &stats[kind][name][counter];
                    let what = format!("{counter} of {name} was {before} and is {now}");
                    assert!(
                        counter.starts_with("frames_") || now.as_u64() >= before.as_u64(),
                        "{what}"
                    );
                }
            }
        }
        self.counts = stats;
    }

    /// What the log says once.
    fn assert_logged_once(&self, lines: &[&str]) {
        let log = self.daemon.log();
        for line in lines {
            assert_eq!(log.matches(line).count(), 1, "{line:?} in:\n{log}");
        }
        assert!(!log.contains("front-end disconnected"), "a port lost its front-end:\n{log}");
    }

    fn host(&self, command_line: &str) {
        self.bed.host.run(&command_line.split(' ').collect::<Vec<_>>());
    }

    fn dropped_down(&self, port: &str) -> u64 {
        self.daemon.port_counter(port, "from_guest_dropped_uplink_down")
    }
}

/// Frames of the sockets of so many queues.
fn frames(queues: u64) -> u64 {
    queues * 4096
}

/// The link is down after `down` and up again after `up`.
fn goes_down_and_up(down: impl FnOnce(&Bed), up: impl FnOnce(&Bed)) {
    let bed = Bed::new(1, 2);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    scene.assert_accounts(frames(2));
    down(&bed);
    scene.wait_state(0, "down");
    for _ in 0..FRAMES {
        assert!(scene.vms[0].try_send(0, &frame(OUTSIDE, mac(1), 200)));
    }
    wait_for("they are counted", 5, || scene.dropped_down("vm1") == FRAMES as u64);
    scene.assert_accounts(0);
    up(&bed);
    scene.wait_state(0, "up");
    scene.exchange(0);
    scene.assert_accounts(frames(2));
    scene.assert_logged_once(&["the uplink's link is down", "the uplink's link is up"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_link_goes_down_and_up() {
    goes_down_and_up(
        |bed| drop(bed.host.run(&["ip", "link", "set", NIC, "down"])),
        |bed| drop(bed.host.run(&["ip", "link", "set", NIC, "up"])),
    );
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_carrier_is_lost_and_found() {
    let set =
        |bed: &Bed, state| drop(bed.wire.run(&["ip", "link", "set", &bed.uplinks[0].peer, state]));
    goes_down_and_up(|bed| set(bed, "down"), |bed| set(bed, "up"));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_mtu_is_changed() {
    let bed = Bed::new(1, 1);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    scene.host(&format!("ip link set {NIC} mtu 1400"));
    wait_for("it is seen", 5, || scene.uplink(0)["mtu"] == 1400);
    scene.exchange(0);
    scene.host(&format!("ip link set {NIC} mtu 1500"));
    wait_for("it is seen", 5, || scene.daemon.log().matches("MTU was changed").count() == 2);
    scene.exchange(0);
    scene.assert_accounts(frames(1));
    assert_eq!(scene.uplink(0)["state"], "up");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_nic_is_renamed_and_is_the_same_uplink_until_it_is_removed() {
    let bed = Bed::new(1, 1);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    scene.host(&format!("ip link set {NIC} down"));
    scene.host(&format!("ip link set {NIC} name isonic-new0"));
    scene.host("ip link set isonic-new0 up");
    wait_for("it is seen", 5, || scene.uplink(0)["present_name"] == "isonic-new0");
    scene.wait_state(0, "up");
    scene.exchange(0);
    let uplink = scene.uplink(0);
    assert_eq!(uplink["interface"], NIC);
    assert_eq!(uplink["ports"], serde_json::json!(["vm1"]));
    scene.host("ip link delete isonic-new0");
    scene.wait_state(0, "gone");
    bed.join_again(0, 1);
    scene.wait_state(0, "up");
    assert_eq!(scene.uplink(0)["present_name"], NIC);
    scene.exchange(0);
    scene.assert_accounts(frames(1));
    scene.assert_logged_once(&["was renamed", "NIC is gone", "the uplink is back"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_nic_is_removed_and_comes_back_again_and_again() {
    goes_and_comes("auto");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_nic_under_a_generic_program_is_removed_and_comes_back_again_and_again() {
    goes_and_comes("generic");
}

fn goes_and_comes(mode: &'static str) {
    let bed = Bed::new(1, 2);
    let mut scene = Scene::with(&bed, 2, |configuration| configuration.mode = mode);
    let mut holdings = Vec::new();
    for round in 1..=3 {
        scene.exchange(0);
        scene.assert_accounts(frames(2));
        holdings.push(scene.daemon.holdings());
        scene.host(&format!("ip link delete {NIC}"));
        scene.wait_state(0, "gone");
        let before = scene.dropped_down("vm1");
        for _ in 0..FRAMES {
            assert!(scene.vms[0].try_send(0, &frame(OUTSIDE, mac(1), 200)));
        }
        wait_for("they are counted", 5, || scene.dropped_down("vm1") == before + FRAMES as u64);
        scene.assert_accounts(0);
        bed.join_again(0, 2);
        scene.wait_state(0, "up");
        let log = scene.daemon.log();
        assert_eq!(log.matches("NIC is gone").count(), round, "{log}");
        assert_eq!(log.matches("the uplink is back").count(), round, "{log}");
    }
    scene.exchange(0);
    scene.assert_accounts(frames(2));
    // As many descriptors as ever. Mappings differ by what the allocator and threads' stacks take;
    // those of one opening, left over, would be more.
    let (descriptors, mappings) = scene.daemon.holdings();
    let same = holdings.iter().all(|&(before, _)| before == descriptors);
    assert!(same, "{descriptors} descriptors after {holdings:?}");
    assert!(mappings < holdings[0].1 + 9, "{mappings} after {holdings:?}");
    scene.assert_logged_once(&[]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_nic_that_comes_back_with_fewer_queues_is_told_of_and_used_when_it_has_them() {
    let bed = Bed::new(1, 2);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    scene.host(&format!("ip link delete {NIC}"));
    scene.wait_state(0, "gone");
    bed.join_again(0, 1);
    scene.wait_state(0, "failed");
    let problem = scene.uplink(0)["problem"].to_string();
    assert!(problem.contains("no queue 1") && problem.contains("ethtool -L"), "{problem}");
    scene.assert_accounts(0);
    scene.host(&format!("ip link delete {NIC}"));
    scene.wait_state(0, "gone");
    bed.join_again(0, 2);
    scene.wait_state(0, "up");
    scene.exchange(0);
    scene.assert_accounts(frames(2));
    scene.assert_logged_once(&["cannot be opened again"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_nic_that_the_host_shares_with_its_vms_is_shared_again_when_it_is_back() {
    let bed = Bed::new(1, 1);
    let mut scene = Scene::with(&bed, 1, |configuration| configuration.host = true);
    for reached in 1..=2 {
        scene.exchange(0);
        let uplink = scene.uplink(0);
        assert_eq!(uplink["host_device"], "isohost0");
        // To the MAC that it has now.
        let text = uplink["mac"].as_str().unwrap();
        let byte = |byte| u8::from_str_radix(byte, 16).unwrap();
        let own: Vec<u8> = text.split(':').map(byte).collect();
        assert!(scene.vms[0].try_send(0, &frame(own.try_into().unwrap(), mac(1), 200)));
        wait_for("the host has it", 5, || {
            scene.uplink(0)["counters"]["to_host_packets"] == reached
        });
        scene.host(&format!("ip link delete {NIC}"));
        scene.wait_state(0, "gone");
        let links = bed.host.run(&["ip", "link"]);
        assert!(!links.contains("isohost0"), "{links}");
        bed.join_again(0, 1);
        scene.wait_state(0, "up");
    }
    scene.exchange(0);
    scene.assert_accounts(frames(1));
}

/// Fewer queues than there are sockets the kernel does not allow.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn queues_are_added_and_get_sockets() {
    let bed = Bed::new(1, 2);
    bed.host.run(&["ethtool", "-L", NIC, "rx", "1"]);
    let mut scene = Scene::new(&bed);
    assert_eq!(scene.uplink(0)["queues"], serde_json::json!([0]));
    scene.exchange(0);
    scene.host(&format!("ethtool -L {NIC} rx 2"));
    wait_for("they have sockets", 10, || scene.uplink(0)["queues"] == serde_json::json!([0, 1]));
    scene.wait_state(0, "up");
    scene.exchange(0);
    scene.assert_accounts(frames(2));
    let fewer =
        crate::common::run_to_end(&mut bed.host.command(&["ethtool", "-L", NIC, "rx", "1"]));
    assert!(!fewer.status.success(), "{fewer:?}");
    scene.exchange(0);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn one_of_two_uplinks_is_removed_and_the_other_loses_no_packet() {
    let bed = Bed::new(2, 1);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    scene.exchange(1);
    let mut wire = scene.wire(0);
    let into = frame(mac(1), OUTSIDE, 300);
    let (mut sent, mut came) = (0, 0);
    // Frames go on over the one while the other goes, is away, and comes back.
    let mut go_on = |vm: &mut Vm, until: &mut dyn FnMut() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !until() {
            assert!(Instant::now() < deadline, "in vain");
            for _ in 0..8 {
                wire.send(&into);
                sent += 1;
            }
            std::thread::sleep(Duration::from_millis(1));
            came += vm.received().len();
        }
        wait_for("all have come", 5, || {
            came += vm.received().len();
            came >= sent
        });
        assert_eq!(came, sent);
    };
    let Scene { daemon, vms, .. } = &mut scene;
    let state = |state: &str| daemon.json(&["uplink", "list"])[1]["state"] == state;
    bed.host.run(&["ip", "link", "delete", &bed.uplinks[1].nic]);
    go_on(&mut vms[0], &mut || state("gone"));
    bed.join_again(1, 1);
    go_on(&mut vms[0], &mut || state("up"));
    scene.exchange(1);
    scene.exchange(0);
    scene.assert_accounts(frames(2));
}

/// On two queues, of which one belongs to the worker that does not have the VM's ring.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_happens_under_load_loses_no_frame_for_good() {
    let bed = Bed::new(1, 2);
    let mut scene = Scene::with(&bed, 2, |_| {});
    for _ in 0..3 {
        scene.exchange(0);
        scene.assert_accounts(frames(2));
        let (mut wire, stopped) = (scene.wire(0), AtomicBool::new(false));
        let Scene { daemon, vms, .. } = &mut scene;
        let state = |state: &str| {
            wait_for(state, 10, || daemon.json(&["uplink", "list"])[0]["state"] == state);
        };
        std::thread::scope(|scope| {
            let _stop = StopOnDrop(&stopped);
            scope.spawn(|| {
                let datagrams: Vec<_> = (0..64).map(|flow| datagram(mac(1), flow)).collect();
                while !stopped.load(Ordering::Relaxed) {
                    datagrams.iter().for_each(|datagram| wire.offer(datagram));
                }
            });
            scope.spawn(|| {
                let out = frame(OUTSIDE, mac(1), 200);
                while !stopped.load(Ordering::Relaxed) {
                    vms[0].try_send(0, &out);
                    vms[0].received();
                }
            });
            for _ in 0..3 {
                bed.host.run(&["ip", "link", "set", NIC, "down"]);
                state("down");
                bed.host.run(&["ip", "link", "set", NIC, "up"]);
                state("up");
            }
            bed.host.run(&["ip", "link", "delete", NIC]);
            state("gone");
        });
        bed.join_again(0, 2);
        scene.wait_state(0, "up");
    }
    scene.exchange(0);
    scene.assert_accounts(frames(2));
    scene.assert_logged_once(&[]);
    assert_eq!(scene.daemon.port_counter("vm1", "ring_faults"), 0);
}

/// Three queues of each uplink over two workers.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn uplinks_share_workers_and_workers_share_uplinks() {
    let bed = Bed::new(2, 3);
    let mut scene = Scene::with(&bed, 2, |_| {});
    for _ in 0..2 {
        scene.exchange(0);
        scene.exchange(1);
        scene.assert_accounts(frames(6));
    }
    for uplink in 0..2 {
        assert_eq!(scene.uplink(uplink)["queues"], serde_json::json!([0, 1, 2]));
    }
}

/// What ports are placed by and checked against is known from before: a wire port of the second
/// queue, and one of the host's.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn isonic_is_started_again_while_a_nic_is_away_and_the_other_uplinks_vms_have_theirs() {
    let bed = Bed::new(2, 2);
    let mut scene = Scene::with(&bed, 2, |configuration| {
        configuration.host = true;
        let away = &bed.uplinks[1].nic;
        configuration.ports[1] = PortSpec { name: "vm2".into(), ..PortSpec::wire(away, 2, &[1]) };
    });
    scene.exchange(0);
    scene.daemon.stop();
    let away = &bed.uplinks[1];
    scene.host(&format!("ip link delete {}", away.nic));
    scene.daemon.start_again();
    let connect = |number| Vm::connect(&bed.path(&format!("vm{number}.sock")), 1);
    scene.vms = (1..=2).map(connect).collect();
    assert_eq!(scene.uplink(1)["state"], "gone");
    assert_eq!(scene.uplink(1)["queues"], serde_json::json!([0, 1]));
    scene.exchange(0);
    assert!(scene.vms[1].try_send(0, &frame(OUTSIDE, mac(2), 200)));
    wait_for("it is counted", 5, || scene.dropped_down("vm2") == 1);
    // A second start that does not see it either knows it all the same.
    scene.daemon.stop();
    scene.daemon.start_again();
    scene.vms = (1..=2).map(connect).collect();
    scene.exchange(0);

    bed.join_again(1, 2);
    scene.wait_state(1, "up");
    let mut wire = scene.wire(1);
    wait_for("both queues have sockets again", 5, || {
        (0..16).for_each(|flow| wire.send(&datagram(mac(2), flow)));
        !scene.vms[1].received().is_empty()
    });
    scene.exchange(0);
    scene.counts = Value::Null;
    scene.assert_accounts(frames(4));
    let log = scene.daemon.log();
    assert_eq!(log.matches("the uplink cannot be opened yet").count(), 2, "{log}");
    // One that is down is waited for too.
    scene.daemon.stop();
    scene.host(&format!("ip link set {} down", away.nic));
    scene.daemon.start_again();
    let problem = scene.uplink(1)["problem"].to_string();
    assert!(problem.contains("ip link set dev"), "{problem}");
    scene.host(&format!("ip link set {} up", away.nic));
    scene.wait_state(1, "up");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_nic_that_was_never_there_is_an_error() {
    let bed = Bed::new(1, 1);
    let mut configuration = Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]);
    let mut daemon = Daemon::start(&bed, &configuration);
    daemon.stop();
    configuration.uplinks.push(("isonic-none0".to_owned(), None));
    let refused = Daemon::refused(&bed, &configuration);
    assert!(refused.errors.contains("no interface \"isonic-none0\""), "{refused:?}");
}

/// The id of the link that a process has its XDP program attached by.
fn xdp_link(process: u32) -> u32 {
    let descriptors = std::fs::read_dir(format!("/proc/{process}/fdinfo")).expect("descriptors");
    let facts = descriptors.filter_map(|entry| std::fs::read_to_string(entry.ok()?.path()).ok());
    let id = |facts: String| -> Option<u32> {
        let value = |name| facts.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        value("link_type:").filter(|&kind| kind == "xdp")?;
        value("link_id:")?.parse().ok()
    };
    facts.filter_map(id).next().expect("a link")
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_program_that_somebody_detaches_is_put_back() {
    let bed = Bed::new(1, 2);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    scene.assert_accounts(frames(2));
    scene.host(&format!("bpftool link detach id {}", xdp_link(scene.daemon.id())));
    wait_for("it is seen", 10, || scene.daemon.log().contains("detached the uplink's XDP program"));
    scene.wait_open_again(0);
    scene.exchange(0);
    scene.assert_accounts(frames(2));
    scene.assert_logged_once(&["detached the uplink's XDP program"]);
}

/// A fault below the view of a ring: what the daemon has told the kernel of frames to receive into
/// is not what the kernel finds.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_fill_ring_that_the_kernel_finds_empty_is_seen_told_of_counted_and_opened_again() {
    let bed = Bed::new(1, 1);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    scene.assert_accounts(frames(1));
    crate::common::spoil_fill_rings(scene.daemon.id());
    let mut wire = scene.wire(0);
    let into = frame(mac(1), OUTSIDE, 300);
    let stats = |daemon: &Daemon<'_>, counter: &str| {
        daemon.json(&["stats"])["uplinks"][NIC][counter].as_u64().expect("a number")
    };
    wait_for("it is seen", 10, || {
        wire.send(&into);
        stats(&scene.daemon, "rx_stalls") == 1
    });
    scene.wait_open_again(0);
    scene.exchange(0);
    scene.assert_accounts(frames(1));
    scene.assert_logged_once(&["the kernel finds no frame to receive into"]);
    assert_eq!(stats(&scene.daemon, "rx_stalls"), 1);
}

/// The wire beyond a bridge that passes frames on to a queue. After [`STAND_STILL`] that sends a
/// byte a second: nobody lets go of the frames, since the kernel says that one was sent when its
/// buffer is freed. Answers what runs commands there.
fn slow_way<'b>(bed: &'b Bed) -> impl Fn(&str) + 'b {
    let peer = &bed.uplinks[0].peer;
    let wire = |command_line: &str| {
        bed.wire.run(&command_line.split(' ').collect::<Vec<_>>());
    };
    wire("ip link add isonic-br0 type bridge");
    wire("ip link add isonic-slow0 type veth peer name isonic-slow1");
    wire("ip link set isonic-slow1 up");
    for interface in [peer, "isonic-slow0"] {
        wire(&format!("ip link set {interface} master isonic-br0"));
        wire(&format!("ip link set {interface} up"));
    }
    wire("ip link set isonic-br0 up");
    wire
}

const STAND_STILL: &str =
    "tc qdisc add dev isonic-slow0 root tbf rate 8bit burst 1600 limit 1000000";

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_queue_that_stands_still_is_seen_told_of_counted_and_opened_again() {
    let bed = Bed::new(1, 1);
    let wire = slow_way(&bed);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    scene.assert_accounts(frames(1));
    wire(STAND_STILL);
    for _ in 0..FRAMES {
        assert!(scene.vms[0].try_send(0, &frame(OUTSIDE, mac(1), 1000)));
    }
    let stats = |daemon: &Daemon<'_>, counter: &str| {
        daemon.json(&["stats"])["uplinks"][NIC][counter].as_u64().expect("a number")
    };
    wait_for("it is seen", 5, || stats(&scene.daemon, "tx_stalls") == 1);
    // The kernel does not part with the queue before the buffers.
    scene.wait_state(0, "failed");
    let problem = scene.uplink(0)["problem"].to_string();
    assert!(problem.contains("queue 0") && problem.contains("busy"), "{problem}");
    assert!(stats(&scene.daemon, "tx_frames_abandoned") > 0);
    scene.assert_accounts(0);
    wire("tc qdisc del dev isonic-slow0 root");
    scene.wait_state(0, "up");
    scene.exchange(0);
    scene.assert_accounts(frames(1));
    let lines = ["a queue stands still", "cannot be opened again", "the uplink is back"];
    scene.assert_logged_once(&lines);
    assert_eq!(stats(&scene.daemon, "tx_stalls"), 1);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn isonic_is_started_again_while_the_kernel_still_has_its_queues() {
    let bed = Bed::new(1, 1);
    let wire = slow_way(&bed);
    let mut scene = Scene::new(&bed);
    scene.exchange(0);
    wire(STAND_STILL);
    for _ in 0..64 {
        assert!(scene.vms[0].try_send(0, &frame(OUTSIDE, mac(1), 1000)));
    }
    wait_for("some are on their way", 5, || {
        scene.daemon.port_counter("vm1", "from_guest_packets") > 60
    });
    scene.daemon.kill();
    scene.daemon.start_again();
    let uplink = scene.uplink(0);
    assert_eq!(uplink["state"], "failed", "{uplink}");
    assert!(uplink["problem"].to_string().contains("busy"), "{uplink}");
    scene.vms = vec![Vm::connect(&bed.path("vm1.sock"), 1)];
    wire("tc qdisc del dev isonic-slow0 root");
    scene.wait_state(0, "up");
    scene.exchange(0);
    scene.assert_logged_once(&["the uplink cannot be opened yet"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_sees_its_link_follow_the_uplink_where_that_is_asked_for() {
    let bed = Bed::new(1, 1);
    let port = PortSpec::switch(NIC, 1);
    let configuration = Configuration::new(&bed, vec![port.clone()]);
    let daemon = Daemon::start(&bed, &Configuration { link_to_guests: true, ..configuration });
    let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, &bed.uplinks[0], 1));
    let address = guest.spec.address.clone();
    wait_reachable(&bed.wire, &address, 20);
    for _ in 0..2 {
        for (state, carrier) in [("down", "0"), ("up", "1")] {
            bed.host.run(&["ip", "link", "set", NIC, state]);
            wait_for(&format!("the guest sees its link {state}"), 20, || {
                guest.check("cat /sys/class/net/eth0/carrier").trim() == carrier
            });
        }
        wait_reachable(&bed.wire, &address, 20);
        ping(&bed.wire, &address, &[]);
    }
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    assert_eq!(daemon.frames(), frames(1));
}
