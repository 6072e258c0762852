//! NICs that take a table of where to receive: isonic itself in a guest whose NICs QEMU emulates
//! ([`InnerHost`]), with one queue of each, and frames of many flows from outside.

use std::path::PathBuf;

use crate::common::{
    Bed, InnerHost, InnerNic, PROFILE, exchange, program, tap, this_program, uplink, wait_for,
};
use crate::inside::mac;
use serde_json::json;

/// Both with a queue for each of the guest's two CPUs, and a table of 128 entries.
const NICS: [InnerNic; 2] = [
    InnerNic { device: "igb", queues: 1, held: 0, driver: "igb", received: "rx_queue_N_packets" },
    InnerNic {
        device: "virtio-net-pci,mq=on,rss=on,vectors=6,iommu_platform=on,disable-legacy=on",
        queues: 2,
        held: 0,
        driver: "virtio_net",
        received: "rxN_xdp_packets",
    },
];
/// The queue that is taken of each.
const QUEUE: u32 = 1;
const FRAMES: u32 = 400;

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_table_is_set_so_that_every_frame_finds_a_socket_and_put_back_in_the_end_and_after_a_crash() {
    let bed = Bed::new(0, 1);
    let programs = [PathBuf::from(env!("CARGO_BIN_EXE_isonic")), this_program()];
    let mut host = InnerHost::boot(&bed, &NICS, &programs);
    let before = [0, 1].map(|nic| table(&mut host, nic));
    assert!(before.iter().all(|table| table.contains(&0) && table.contains(&QUEUE)), "{before:?}");
    start(&mut host, "set");
    for nic in 0..NICS.len() {
        assert_eq!(table(&mut host, nic), [QUEUE; 128]);
        assert_eq!(host.json("uplink list")[nic]["steering_set"], true);
        every_frame_comes_on_our_queue(&bed, &mut host, nic);
    }
    // Stopped: as it was.
    stop(&mut host);
    assert_eq!([0, 1].map(|nic| table(&mut host, nic)), before);
    assert_eq!(host.check("ls /run/isonic/steering").trim(), "");
    // Killed: as isonic had it, which the doctor knows.
    start(&mut host, "set");
    kill(&mut host);
    assert_eq!([0, 1].map(|nic| table(&mut host, nic)), [[QUEUE; 128]; 2]);
    assert_eq!(findings(&mut host, "steering-left"), ["warning"; 2]);
    assert_eq!(findings(&mut host, "steering"), ["ok"; 2], "the table leads to ours");
    // And as it was with the next isonic, which only looks.
    start(&mut host, "check");
    assert_eq!([0, 1].map(|nic| table(&mut host, nic)), before);
    for nic in 0..NICS.len() {
        let uplink = &host.json("uplink list")[nic];
        assert_eq!(uplink["unserved_queues"], json!([0]), "{uplink}");
        assert_eq!(uplink["steering_set"], false, "{uplink}");
    }
    assert_eq!(findings(&mut host, "steering"), ["warning"; 2]);
    assert!(host.log("isonic").contains("queues receive and have no socket"));
    stop(&mut host);
    // What somebody else has set meanwhile stays.
    start(&mut host, "set");
    assert_eq!(host.json("uplink list")[0]["unserved_queues"], json!([]));
    host.check(&format!("ethtool --set-rxfh-indir {} equal 2", uplink(0)));
    wait_for("it is seen", 20, || host.json("uplink list")[0]["unserved_queues"] == json!([0]));
    assert!(host.log("isonic").contains("queues receive and have no socket"));
    stop(&mut host);
    let even: Vec<u32> = (0..128).map(|entry| entry % 2).collect();
    assert_eq!(table(&mut host, 0), even);
}

/// isonic with one queue of each NIC and a port on it, and their VMs.
fn start(host: &mut InnerHost, steering: &str) {
    let part = |nic: usize| {
        format!(
            "[[uplinks]]\ninterface = \"{uplink}\"\nqueues = [{QUEUE}]\nsteering = \"{steering}\"\n\
             [[ports]]\nname = \"vm{nic}\"\nsocket = \"/run/isonic/vm{nic}.sock\"\n\
             profile = \"{PROFILE}\"\nuplink = \"{uplink}\"\nmac = \"{mac}\"\n",
            uplink = uplink(nic),
            mac = mac(nic).map(|byte| format!("{byte:02x}")).join(":"),
        )
    };
    let parts: Vec<String> = (0..NICS.len()).map(part).collect();
    host.start_isonic(&parts.concat());
    for nic in 0..NICS.len() {
        let program = program("echo_vm");
        host.start(&format!("vm{nic}"), &format!("ISONIC_VM={nic} {program}"));
        host.wait_running(&format!("vm{nic}"));
    }
}

fn stop(host: &mut InnerHost) {
    host.stop("isonic");
    stop_vms(host);
}

fn kill(host: &mut InnerHost) {
    host.check("kill -9 $(cat /tmp/isonic.id)");
    host.stop("isonic");
    stop_vms(host);
}

fn stop_vms(host: &mut InnerHost) {
    for nic in 0..NICS.len() {
        host.stop(&format!("vm{nic}"));
    }
}

/// What `ethtool -x` shows: lines of `entry: queue queue ...`.
fn table(host: &mut InnerHost, nic: usize) -> Vec<u32> {
    let output = host.check(&format!("ethtool -x {}", uplink(nic)));
    let lines = output.lines().skip(1).take_while(|line| !line.starts_with("RSS"));
    let queues = lines.filter_map(|line| line.split_once(':')).flat_map(|(_, queues)| {
        queues.split_whitespace().map(|queue| queue.parse().expect("a queue"))
    });
    queues.collect()
}

fn every_frame_comes_on_our_queue(bed: &Bed, host: &mut InnerHost, nic: usize) {
    let before = host.queue_packets(nic, NICS[nic].received, 2);
    exchange(&mut tap(bed, nic), mac(nic), FRAMES, &[60, 1514]);
    let after = host.queue_packets(nic, NICS[nic].received, 2);
    let received = [after[0] - before[0], after[1] - before[1]];
    assert_eq!(received, [0, u64::from(FRAMES)], "{}", NICS[nic].driver);
}

/// The doctor's statuses of a check, of both uplinks of the configuration in force.
fn findings(host: &mut InnerHost, id: &str) -> Vec<String> {
    let text = host.check("isonic doctor --config /tmp/isonic.toml --json || true");
    let report: serde_json::Value = serde_json::from_str(&text).expect("a report");
    let uplinks = report["uplinks"].as_array().expect("uplinks").iter();
    let findings = uplinks.flat_map(|uplink| uplink["findings"].as_array().expect("findings"));
    let of_id = findings.filter(|finding| finding["id"] == id);
    of_id.map(|finding| finding["status"].as_str().expect("a word").to_owned()).collect()
}
