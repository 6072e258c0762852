//! A VM that was started on a host with DPDK's vhost moves to one with isonic, and back: the port
//! has the profile that was captured from DPDK, and the guest is none the wiser.

use std::time::Duration;

use crate::common::{
    Bed, Configuration, Daemon, Flows, Guest, GuestSpec, NIC, Outage, PortSpec, Testpmd, ping,
    wait_reachable,
};

const PROFILE: &str = "org.dpdk.v22.11";

/// Under QEMU 7.2, which has no property for in_order and shows it to nobody.
fn there_and_back(rings: &str) {
    let beds = Bed::pair(1);
    let [dpdks, isonics] = &beds;
    let port = PortSpec::switch(NIC, 1).with_profile(PROFILE);
    let daemon = Daemon::start(isonics, &Configuration::new(isonics, vec![port.clone()]));
    let as_started = PortSpec { profile: format!("{PROFILE},in_order=off{rings}"), ..port };
    let spec = GuestSpec::new(&as_started, &dpdks.uplinks[0], 1);
    let spec = GuestSpec { queue_pairs: 1, ..spec };

    let mut dpdk = Testpmd::switch(dpdks, "vm1.sock");
    let mut guest = Guest::boot(dpdks, &spec);
    wait_reachable(&dpdks.wire, &spec.address, 20);
    let view = guest.view();
    let flows = Flows::start(dpdks, &mut guest, 2, Duration::from_millis(4));
    let mut outages = Vec::new();
    for host in [isonics, dpdks, isonics] {
        let there = Guest::await_arrival(host, &spec);
        let migration = guest.move_into(there, host);
        println!("downtime {} ms", migration.downtime);
        outages.push(migration);
        wait_reachable(&host.wire, &spec.address, 20);
        assert_eq!(guest.view(), view);
    }
    let report = flows.end(&mut guest);
    let outages: Vec<Outage> = outages.iter().map(|one| Outage::of(one, &report)).collect();
    println!(
        "{} messages, lost to the guest {}, from it {}",
        report.sent(),
        report.lost_to_guest(),
        report.lost_from_guest()
    );
    report.assert_exact();
    // DPDK's and QEMU's part of it too.
    assert_eq!((report.lost_from_guest(), report.late_from_guest()), (0, 0));
    let amiss = report.lost_outside(&outages);
    assert!(amiss.is_empty(), "{amiss:?}");
    ping(&isonics.wire, &spec.address, &[]);
    assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
    daemon.frames();
    guest.kill();
    dpdk.quit();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_with_packed_rings_moves_from_dpdk_to_isonic_and_back_and_sees_no_difference() {
    there_and_back("");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_with_split_rings_moves_from_dpdk_to_isonic_and_back_and_sees_no_difference() {
    there_and_back(",ring_packed=off");
}
