//! NICs as their drivers describe themselves, and what is said of them.

use super::*;
use crate::config::{UplinkMode, UplinkSteering};
use crate::xdp::nic::{
    AttachedProgram, Channels, FlowRule, LinkFacts, Offloads, Rings, Steering, XdpFeatures,
};

const KERNEL: &str = "6.18.44";

fn host(kernel: &str) -> HostFacts {
    HostFacts {
        kernel: kernel.to_owned(),
        cpus: (0..16).collect(),
        nodes: (0..16).map(|cpu| (cpu, if cpu < 8 { 0 } else { 1 })).collect(),
        available_memory: Some(64 << 30),
        unprivileged_bpf_disabled: Some(2),
        ..HostFacts::default()
    }
}

/// A NIC with an interrupt and a queue pair for each of `queues` CPUs, as most have.
fn nic(driver: &str, queues: u32, xdp: Option<XdpFeatures>) -> NicFacts {
    NicFacts {
        link: LinkFacts {
            interface: "eth1".to_owned(),
            index: 3,
            driver: driver.to_owned(),
            mtu: 1500,
            up: true,
            carrier: true,
            receive_queues: queues,
            ..LinkFacts::default()
        },
        channels: Some(Channels { combined: queues, combined_max: 64, ..Channels::default() }),
        rings: Some(Rings { rx: 512, rx_max: 4096, tx: 512, tx_max: 4096 }),
        offloads: Some(Offloads { gro: true, ..Offloads::default() }),
        xdp,
        steering: Steering {
            table: Some(crate::xdp::nic::steering::spread(128, &Vec::from_iter(0..queues))),
            ..Steering::default()
        },
        ..NicFacts::default()
    }
}

fn zero_copy(frames: u32) -> Option<XdpFeatures> {
    let multi_buffer = frames > 1;
    Some(XdpFeatures { zero_copy: true, zero_copy_frames: frames, multi_buffer, ..native() })
}

fn native() -> XdpFeatures {
    XdpFeatures { native: true, redirect: true, zero_copy_frames: 1, ..XdpFeatures::default() }
}

// As in the drivers of Linux 6.18 (`xdp_set_features_flag` and `xdp_zc_max_segs` of each).
fn ixgbe() -> NicFacts {
    nic("ixgbe", 8, zero_copy(1))
}

fn ice() -> NicFacts {
    nic("ice", 16, zero_copy(8))
}

fn ena() -> NicFacts {
    nic("ena", 8, Some(native()))
}

fn candidate(nic: NicFacts) -> Candidate {
    Candidate {
        wanted: UplinkConfig::of("eth1"),
        nic: Ok(nic),
        promises: Vec::new(),
        wires: Vec::new(),
        steering_left: false,
    }
}

fn facts(candidate: Candidate) -> Facts {
    let promise = |profile: &str, mtu| Promise { profile: profile.into(), mtu, port: None };
    Facts {
        host: host(KERNEL),
        program: Ok(()),
        sockets: Ok(()),
        daemon: None,
        workers: 1,
        worker_cpus: None,
        profiles: vec![promise("v1", 1500), promise("small", 1400)],
        candidates: vec![candidate],
        all_wanted: true,
    }
}

fn found<'r>(report: &'r Report, id: &str) -> &'r Finding {
    let all = report.host.iter().chain(report.uplinks.iter().flat_map(|it| &it.findings));
    let mut of_id = all.filter(|finding| finding.id == id);
    of_id.next().unwrap_or_else(|| panic!("no {id} in {report:#?}"))
}

fn status(report: &Report, id: &str) -> Status {
    found(report, id).status
}

/// The report on a NIC of which nothing but this differs from the usual.
fn with(nic: NicFacts, change: impl FnOnce(&mut NicFacts)) -> Report {
    let mut nic = nic;
    change(&mut nic);
    examine(&facts(candidate(nic)))
}

/// The report on an uplink configured so.
fn wanting(nic: NicFacts, change: impl FnOnce(&mut UplinkConfig)) -> Report {
    let mut candidate = candidate(nic);
    change(&mut candidate.wanted);
    examine(&facts(candidate))
}

#[test]
fn whatever_is_not_well_says_what_it_means() {
    let mut bad = candidate(ena());
    bad.wanted.queues = Some(vec![1]);
    if let Ok(nic) = &mut bad.nic {
        nic.link.carrier = false;
        nic.link.mtu = 9000;
        nic.numa_node = Some(0);
        nic.offloads = Some(Offloads { vlan_strip: true, lro: true, ..Offloads::default() });
        nic.gro_flush_timeout = Some(20_000);
        nic.steering.rules = vec![FlowRule { location: 5, queue: Some(2) }];
    }
    let mut facts = facts(bad);
    facts.host = host("6.1.10");
    facts.host.missing_capabilities = vec!["CAP_BPF".into()];
    facts.program = Err("no".into());
    facts.sockets = Err("no".into());
    let report = examine(&facts);
    let all = report.host.iter().chain(&report.uplinks[0].findings);
    for finding in all.filter(|finding| finding.status != Status::Ok) {
        assert!(!finding.meaning.is_empty(), "{finding:?}");
        let must_be_mended = finding.status >= Status::Warning;
        assert!(!must_be_mended || finding.remedy.is_some(), "{finding:?}");
    }
}

#[test]
fn nics_with_zero_copy_are_served_with_it() {
    for (nic, driver) in [(ixgbe(), "ixgbe"), (ice(), "ice")] {
        let report = examine(&facts(candidate(nic)));
        assert!(report.can_serve);
        assert_eq!(status(&report, "zero-copy"), Status::Ok);
        let summary = &report.uplinks[0].summary;
        assert!(summary.contains(&format!("{driver}, native XDP, zero-copy")), "{summary}");
    }
}

#[test]
fn a_driver_that_never_had_zero_copy_is_noted_and_one_that_has_it_by_now_is_a_warning() {
    for driver in ["ena", "bnxt_en", "veth"] {
        let report = examine(&facts(candidate(nic(driver, 4, Some(native())))));
        assert_eq!(status(&report, "zero-copy"), Status::Note, "{driver}");
        assert!(report.can_serve);
    }
    let report = examine(&facts(candidate(nic("igb", 4, Some(native())))));
    let finding = found(&report, "zero-copy");
    assert_eq!(finding.status, Status::Warning);
    assert!(finding.found.contains("6.14"), "{finding:?}");
}

#[test]
fn a_mode_that_the_driver_lacks_is_a_problem_only_if_it_is_insisted_on() {
    let insists = |mode| wanting(ena(), |wanted| wanted.mode = mode);
    assert!(!insists(UplinkMode::Zerocopy).can_serve);
    assert!(insists(UplinkMode::Copy).can_serve);
    let without =
        |mode| wanting(nic("e1000e", 1, Some(XdpFeatures::default())), |wanted| wanted.mode = mode);
    assert_eq!(status(&without(UplinkMode::Auto), "native-xdp"), Status::Warning);
    assert!(without(UplinkMode::Auto).uplinks[0].summary.contains("generic"));
    assert_eq!(status(&without(UplinkMode::Copy), "native-xdp"), Status::Problem);
}

#[test]
fn a_kernel_that_does_not_say_what_drivers_have_is_not_held_against_them() {
    let mut old = facts(candidate(nic("mlx5_core", 8, None)));
    old.host = host("6.1.0-50-amd64");
    old.host.kernel_build = "#1 SMP Debian 6.1.176-1 (2026-11-01)".to_owned();
    let report = examine(&old);
    assert!(report.can_serve);
    assert_eq!(status(&report, "native-xdp"), Status::Note);
    assert_eq!(status(&report, "zero-copy"), Status::Ok, "mlx5 has had it since 5.3");
    assert_eq!(status(&report, "kernel"), Status::Note);
    assert_eq!(found(&report, "kernel").found, "Linux 6.1.176, of 6.1.0-50-amd64");
}

#[test]
fn jumbo_frames_are_held_against_what_zero_copy_carries() {
    let jumbo = |nic| with(nic, |nic| nic.link.mtu = 9000);
    // ixgbe takes a packet of one frame; ice one of eight.
    assert_eq!(status(&jumbo(ixgbe()), "long-packets"), Status::Warning);
    assert_eq!(status(&jumbo(ice()), "long-packets"), Status::Ok);
    let copy = wanting(ice(), |wanted| wanted.mode = UplinkMode::Copy);
    assert!(found(&copy, "long-packets").found.starts_with("up to 69120 bytes"));
}

#[test]
fn an_mtu_below_all_profiles_serves_none_and_the_drivers_limit_is_known() {
    let report = with(ixgbe(), |nic| nic.link.mtu = 1280);
    let finding = found(&report, "mtu");
    assert_eq!(finding.status, Status::Problem);
    assert_eq!(finding.remedy.as_deref(), Some("ip link set dev eth1 mtu 1400"));
    let mut candidate = candidate(ixgbe());
    if let Ok(nic) = &mut candidate.nic {
        nic.link.mtu_max = Some(3050);
    }
    let promise = Promise { profile: "big".into(), mtu: 9000, port: Some("vm1".into()) };
    candidate.add_port(Attach::Switch, None, promise);
    let report = examine(&facts(candidate));
    let finding = found(&report, "mtu");
    assert!(finding.remedy.as_ref().is_some_and(|remedy| remedy.contains("3050")), "{finding:?}");
}

#[test]
fn queues_without_a_socket_matter_only_if_the_nic_leads_there() {
    let two = |wanted: &mut UplinkConfig| wanted.queues = Some(vec![0, 1]);
    let report = wanting(ixgbe(), two);
    let finding = found(&report, "steering");
    assert_eq!(finding.status, Status::Warning);
    assert!(finding.found.contains("2-7"), "{finding:?}");
    let remedy = finding.remedy.as_ref().expect("a command");
    assert!(remedy.contains("--set-rxfh-indir eth1 equal 2"), "{remedy}");
    // Steered, by the administrator or by isonic to be.
    let mut steered = ixgbe();
    steered.steering.table = Some(vec![0, 1, 0, 1]);
    assert_eq!(status(&wanting(steered, two), "steering"), Status::Ok);
    let set = |wanted: &mut UplinkConfig| {
        two(wanted);
        wanted.steering = UplinkSteering::Set;
    };
    assert_eq!(status(&wanting(ixgbe(), set), "steering"), Status::Ok);
    let mut without = ixgbe();
    without.steering.table = None;
    assert_eq!(status(&wanting(without.clone(), two), "steering"), Status::Warning);
    assert_eq!(status(&wanting(without, set), "steering"), Status::Problem);
}

#[test]
fn a_table_that_a_killed_isonic_left_is_told_until_an_isonic_runs() {
    let mut left = candidate(ixgbe());
    left.steering_left = true;
    assert_eq!(status(&examine(&facts(left)), "steering-left"), Status::Warning);
    let none = examine(&facts(candidate(ixgbe())));
    assert!(none.uplinks[0].findings.iter().all(|finding| finding.id != "steering-left"));
}

#[test]
fn receive_and_combined_queues_are_counted_together() {
    // mlx5 may have both.
    let report = with(ixgbe(), |nic| {
        nic.channels = Some(Channels { rx: 2, combined: 4, ..Channels::default() });
        nic.steering.table = None;
    });
    assert_eq!(status(&report, "steering"), Status::Ok);
    let report = wanting(ixgbe(), |wanted| wanted.queues = Some(vec![8]));
    assert!(found(&report, "queues").found.ends_with("without 8"));
    assert!(!report.can_serve);
}

#[test]
fn more_queues_than_the_program_has_places_for_are_a_problem_unless_some_are_chosen() {
    let large = || nic("ice", 300, zero_copy(8));
    assert_eq!(status(&examine(&facts(candidate(large()))), "queues"), Status::Problem);
    let some = wanting(large(), |wanted| wanted.queues = Some((0..8).collect()));
    assert_eq!(status(&some, "queues"), Status::Ok);
}

#[test]
fn rules_to_other_queues_are_noted_by_their_number() {
    let report = with(ixgbe(), |nic| {
        let rule = |location, queue| FlowRule { location, queue };
        nic.steering.rules = vec![rule(1, Some(0)), rule(2, Some(9)), rule(3, None)];
    });
    let finding = found(&report, "flow-rules");
    assert_eq!((finding.status, &*finding.found), (Status::Note, "of 3, rule 2 to queue 9"));
}

#[test]
fn a_ring_larger_than_the_frames_that_fill_it_is_told_in_zero_copy_mode() {
    let large = |nic: &mut NicFacts| {
        nic.rings = Some(Rings { rx: 4096, rx_max: 8160, tx: 512, tx_max: 8160 });
    };
    let finding = found(&with(ice(), large), "nic-rings").clone();
    assert_eq!(finding.remedy.as_deref(), Some("ethtool --set-ring eth1 rx 2048"));
    assert_eq!(status(&with(ena(), large), "nic-rings"), Status::Ok);
}

#[test]
fn offloads_that_spoil_frames_are_told_with_the_command() {
    let off = |change: fn(&mut Offloads), id: &str| {
        let report = with(ice(), |nic| change(nic.offloads.as_mut().expect("offloads")));
        let finding = found(&report, id);
        assert_eq!(finding.status, Status::Warning, "{finding:?}");
        finding.remedy.clone().expect("a command")
    };
    let vlan = off(|offloads| offloads.vlan_strip = true, "vlan-tags");
    assert_eq!(vlan, "ethtool --offload eth1 rxvlan off");
    assert!(off(|offloads| offloads.lro = true, "merging").ends_with("lro off"));
    assert!(off(|offloads| offloads.gro_hardware = true, "merging").ends_with("rx-gro-hw off"));
    let virtio = with(nic("virtio_net", 2, zero_copy(1)), |nic| {
        nic.offloads = Some(Offloads { gro_hardware: true, ..Offloads::default() });
    });
    assert_eq!(status(&virtio, "merging"), Status::Ok);
}

#[test]
fn a_program_is_somebody_elses_another_isonics_or_that_of_the_daemon_that_answers() {
    let attached = |name: &str| {
        with(ice(), |nic| {
            let name = Some(name.to_owned());
            nic.link.program = Some(AttachedProgram { ids: vec![17], name, generic: false });
        })
    };
    let others = attached("xdp_dispatcher");
    let finding = found(&others, "xdp-program");
    assert_eq!(finding.found, "program 17 \"xdp_dispatcher\" is attached");
    assert!(!others.can_serve);
    let ours = attached("isonic_redirect");
    assert!(found(&ours, "xdp-program").meaning.contains("another isonic"));
    assert!(!ours.can_serve);
}

#[test]
fn what_a_launcher_does_needs_no_privileges_and_its_program_is_no_obstacle() {
    let mut candidate = candidate(ice());
    candidate.wanted.handed = Some(Handed::Sockets(vec![3]));
    if let Ok(nic) = &mut candidate.nic {
        nic.link.program = Some(AttachedProgram { ids: vec![5], name: None, generic: false });
    }
    let mut facts = facts(candidate);
    facts.program = Err("no".into());
    facts.sockets = Err("no".into());
    assert_eq!(our_part(&facts.candidates), (false, false));
    assert!(examine(&facts).can_serve);
    facts.candidates[0].wanted.handed = Some(Handed::Map("/map".into()));
    assert_eq!(our_part(&facts.candidates), (true, false));
    assert!(!examine(&facts).can_serve, "the sockets are ours");
    facts.candidates[0].wanted.handed = None;
    assert_eq!(our_part(&facts.candidates), (true, true));
}

#[test]
fn locked_memory_is_wanted_for_every_queue_of_every_uplink() {
    let mut facts = facts(candidate(ixgbe()));
    facts.candidates.push(candidate(ice()));
    facts.host.locked_memory = Some(24 * (16 << 20));
    assert_eq!(status(&examine(&facts), "locked-memory"), Status::Ok);
    facts.host.locked_memory = Some(24 * (16 << 20) - 1);
    assert_eq!(status(&examine(&facts), "locked-memory"), Status::Problem);
    // Where one is enough, the larger of them.
    facts.all_wanted = false;
    assert_eq!(status(&examine(&facts), "locked-memory"), Status::Ok);
}

#[test]
fn one_interface_is_enough_where_none_was_named_and_all_are_wanted_where_they_were() {
    let mut facts = facts(candidate(ixgbe()));
    let mut down = candidate(ena());
    if let Ok(nic) = &mut down.nic {
        nic.link.up = false;
    }
    facts.candidates.push(down);
    assert!(!examine(&facts).can_serve);
    facts.all_wanted = false;
    assert!(examine(&facts).can_serve);
    facts.candidates.clear();
    assert!(!examine(&facts).can_serve);
}

#[test]
fn workers_far_from_the_nic_are_told_which_cpus_are_near() {
    let report = with(ice(), |nic| nic.numa_node = Some(0));
    let finding = found(&report, "numa");
    assert_eq!(finding.status, Status::Warning, "the last CPU is on node 1");
    assert_eq!(finding.remedy.as_deref(), Some("worker_cpus = [7]"));
    assert_eq!(status(&with(ice(), |nic| nic.numa_node = Some(1)), "numa"), Status::Ok);
    let mut facts = facts(candidate(ice()));
    facts.worker_cpus = Some(vec![99]);
    assert_eq!(status(&examine(&facts), "workers"), Status::Warning);
}

#[test]
fn workers_are_held_against_cpus_and_queues() {
    let with_workers = |workers| {
        let mut facts = facts(candidate(ixgbe()));
        facts.workers = workers;
        found(&examine(&facts), "workers").clone()
    };
    assert_eq!(with_workers(8).status, Status::Ok);
    assert_eq!(with_workers(9).remedy.as_deref(), Some("workers = 8"));
    assert_eq!(with_workers(17).remedy.as_deref(), Some("workers = 16"));
}

#[test]
fn isolated_cpus_are_noticed() {
    let mut facts = facts(candidate(ice()));
    assert_eq!(status(&examine(&facts), "isolation"), Status::Note);
    facts.host.isolated = [15].into();
    assert_eq!(status(&examine(&facts), "isolation"), Status::Note, "and nohz_full");
    facts.host.tickless = [15].into();
    assert_eq!(status(&examine(&facts), "isolation"), Status::Ok);
}

#[test]
fn a_kernel_fault_that_concerns_us_is_a_warning_and_one_that_does_not_is_a_note() {
    let on = |kernel: &str| {
        let mut facts = facts(candidate(ice()));
        facts.host = host(kernel);
        examine(&facts)
    };
    assert_eq!(status(&on("6.1.15"), "kernel-fault"), Status::Warning);
    assert_eq!(status(&on("6.12.90"), "kernel-fault"), Status::Note);
    assert!(on("6.18.44").host.iter().all(|finding| finding.id != "kernel-fault"));
}

#[test]
fn what_the_configuration_asks_of_the_kernel_is_there_or_a_problem() {
    let on = |kernel: &str, tun: bool| {
        let mut facts = facts(candidate(ice()));
        facts.host = HostFacts { tun, ..host(kernel) };
        let wanted = &mut facts.candidates[0].wanted;
        (wanted.host, wanted.irq_suspend) = (true, true);
        examine(&facts)
    };
    let good = on("6.18.44", true);
    assert_eq!(status(&good, "host-sharing"), Status::Ok);
    assert!(good.can_serve && good.uplinks[0].findings.iter().all(|it| it.id != "irq-suspension"));
    assert_eq!(
        found(&on("6.18.44", false), "host-sharing").remedy.as_deref(),
        Some("modprobe tun")
    );
    let old = on("6.1.15", true);
    assert!(found(&old, "host-sharing").meaning.contains("6.6"));
    assert!(found(&old, "irq-suspension").meaning.contains("6.13"));
    assert!(!old.can_serve);
}

#[test]
fn what_drivers_are_known_for_is_told() {
    let virtio = examine(&facts(candidate(nic("virtio_net", 2, Some(native())))));
    assert!(found(&virtio, "driver-faults").meaning.contains("IOMMU"));
    let igb = examine(&facts(candidate(nic("igb", 2, zero_copy(1)))));
    assert_eq!(status(&igb, "driver-faults"), Status::Note);
    let i40e = examine(&facts(candidate(nic("i40e", 2, zero_copy(5)))));
    assert!(found(&i40e, "driver-faults").meaning.contains("i40e: fix registering XDP RxQ info"));
}

#[test]
fn the_report_is_json_with_lower_case_statuses() {
    let json = serde_json::to_value(examine(&facts(candidate(ixgbe())))).unwrap();
    assert_eq!((&json["version"], &json["can_serve"]), (&1.into(), &true.into()));
    assert_eq!(json["host"][0]["status"], "ok");
    assert_eq!(json["uplinks"][0]["nic"]["driver"], "ixgbe");
}
