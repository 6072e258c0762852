//! NICs as their drivers describe themselves, and their findings.

use super::*;
use crate::config::{Attach, Handed, UplinkConfig, UplinkMode, UplinkSteering};
use crate::control::api::{ProblemView, UplinkView};
use crate::platform::directory::Directory;
use crate::platform::host_facts::HostFacts;
use crate::xdp::NicFacts;
use crate::xdp::nic::{
    AttachedProgram, Channels, Device, FlowRule, Holder, LinkFacts, LinkLayer, Lower, Macvlan,
    Offloads, Rings, Steering, XdpFeatures,
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
        directories: Vec::new(),
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

/// The report on a NIC that differs from the usual in this change only.
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
            nic.link.program = Some(AttachedProgram { ids: vec![17], name, ..Default::default() });
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

/// An uplink as a running isonic tells it, with its program.
fn view(state: &str, program: Option<u32>) -> UplinkView {
    serde_json::from_value(serde_json::json!({
        "interface": "eth1", "state": state, "problem": "queue 3 is busy", "driver": "ice",
        "xdp_mode": "native", "socket_mode": "zerocopy", "reason": "the driver has zero-copy",
        "multi_buffer": true, "packet_max": 3840, "queues": [0, 1], "mtu": 1500,
        "mac": "02:00:00:00:00:01", "counters": {}, "ports": [], "program_id": program,
    }))
    .expect("a view")
}

fn served(view: UplinkView, program: Option<AttachedProgram>) -> Report {
    let mut candidate = candidate(ice());
    if let Ok(nic) = &mut candidate.nic {
        nic.link.program = program;
    }
    let mut facts = facts(candidate);
    facts.daemon =
        Some(DaemonFacts { version: "1".to_owned(), uplinks: vec![view], problems: vec![] });
    examine(&facts)
}

#[test]
fn the_running_isonics_program_is_known_by_its_number_and_another_is_not_called_its() {
    let attached = |id, name: Option<&str>| {
        let holder = Some(Holder { process: 7, name: "xdp-loader".to_owned() });
        Some(AttachedProgram {
            ids: vec![id],
            name: name.map(str::to_owned),
            holder,
            generic: true,
        })
    };
    let ours = served(view("up", Some(17)), attached(17, Some("isonic_redirect")));
    assert_eq!(status(&ours, "xdp-program"), Status::Ok);
    for (id, name) in [(18, Some("pass")), (18, None), (18, Some("isonic_redirect"))] {
        let report = served(view("up", Some(17)), attached(id, name));
        let finding = found(&report, "xdp-program");
        assert_eq!(finding.status, Status::Problem, "{finding:?}");
        assert!(finding.found.contains("process 7, xdp-loader"), "{finding:?}");
        assert!(!report.can_serve);
    }
    // An isonic before this one has no number to tell.
    let report = served(view("up", None), attached(18, Some("pass")));
    assert_eq!(status(&report, "xdp-program"), Status::Problem);
    assert_eq!(status(&served(view("up", None), attached(18, None)), "xdp-program"), Status::Ok);
    // An uplink that could not be opened has no program, so this one is somebody else's.
    let report = served(view("failed", None), attached(18, Some("pass")));
    assert_eq!(status(&report, "xdp-program"), Status::Problem);
    assert_eq!(status(&served(view("up", Some(17)), None), "xdp-program"), Status::Warning);
}

#[test]
fn an_uplink_that_failed_or_is_gone_is_told_with_its_reason() {
    for (state, expected) in [
        ("up", Status::Ok),
        ("down", Status::Warning),
        ("gone", Status::Problem),
        ("failed", Status::Problem),
    ] {
        let report = served(view(state, None), None);
        let finding = found(&report, "uplink-state");
        assert_eq!(finding.status, expected, "{finding:?}");
        assert_eq!(finding.found.contains("queue 3 is busy"), state == "failed", "{finding:?}");
        let daemon = report.host.iter().find(|finding| finding.id == "daemon").expect("one");
        let lost = expected == Status::Problem;
        assert_eq!(daemon.status, if lost { Status::Warning } else { Status::Ok }, "{daemon:?}");
        assert_eq!(daemon.found.contains(&format!("eth1 ({state})")), state != "up", "{daemon:?}");
    }
}

#[test]
fn a_directory_that_cannot_be_written_to_is_a_problem_and_all_are_one_line_if_they_can() {
    let directory = |path: &str, problem: Option<&str>| Directory {
        what: "state_dir",
        path: path.into(),
        problem: problem.map(str::to_owned),
    };
    let mut facts = facts(candidate(ixgbe()));
    facts.directories = vec![directory("/a", None), directory("/b", None)];
    assert_eq!(found(&examine(&facts), "directories").found, "/a and /b can be written to");
    facts.directories.push(directory("/c", Some("its file system is full")));
    let report = examine(&facts);
    assert_eq!(found(&report, "directories").found, "state_dir /c: its file system is full");
    assert!(!report.can_serve);
}

#[test]
fn what_will_stop_front_ends_is_told_before_it_does() {
    let mut facts = facts(candidate(ixgbe()));
    for number in 0..100 {
        let promise = Promise { profile: "p".into(), mtu: 1500, port: Some(format!("vm{number}")) };
        facts.candidates[0].promises.push(promise);
    }
    for (limit, told) in [(1024, Status::Warning), (4096, Status::Ok)] {
        facts.host.open_files = Some(limit);
        assert_eq!(found(&examine(&facts), "open-files").status, told, "{limit}");
    }
    let problem = ProblemView { id: "state".into(), message: "the disk is full".into() };
    let (version, uplinks) = ("1".to_owned(), Vec::new());
    facts.daemon = Some(DaemonFacts { version, uplinks, problems: vec![problem] });
    let report = examine(&facts);
    let told = found(&report, "daemon-problem");
    assert_eq!((told.status, &*told.found), (Status::Warning, "state: the disk is full"));
}

fn virtual_device(kind: &str, below: &[(&str, bool, bool)]) -> NicFacts {
    let lower = |&(name, port, gro): &(&str, bool, bool)| Lower {
        interface: name.to_owned(),
        kind: "ixgbe".to_owned(),
        port,
        offloads: Some(Offloads { gro, ..Offloads::default() }),
    };
    let mut nic = nic(kind, 1, Some(XdpFeatures::default()));
    let below = below.iter().map(lower).collect();
    nic.device = Device { interface: "eth1".into(), kind: kind.into(), below, ..Device::default() };
    nic
}

#[test]
fn what_cannot_be_an_uplink_is_a_problem() {
    for layer in [LinkLayer::Loopback, LinkLayer::Other("NONE".to_owned())] {
        let mut nic = virtual_device("tun", &[]);
        nic.device.link_layer = layer;
        let report = examine(&facts(candidate(nic)));
        assert_eq!(status(&report, "kind"), Status::Problem);
        assert!(!report.can_serve);
    }
    let report = examine(&facts(candidate(virtual_device("ipvlan", &[("eth0", false, true)]))));
    assert!(!report.can_serve && found(&report, "kind").found.contains("(eth0)"));
}

#[test]
fn a_bond_is_served_in_generic_mode_though_its_driver_says_it_has_native_xdp() {
    let mut bond = virtual_device("bond", &[("nic0", true, true), ("nic1", true, false)]);
    bond.xdp = Some(native());
    let report = examine(&facts(candidate(bond.clone())));
    assert!(report.can_serve && report.uplinks[0].summary.contains("generic XDP, copy"));
    assert!(found(&report, "native-xdp").found.contains("runs on nic0, nic1"));
    let merging = found(&report, "merging");
    assert_eq!(merging.remedy.as_deref(), Some("ethtool --offload nic0 gro off"));
    assert_eq!(status(&report, "vlan-tags"), Status::Warning);
    let report = wanting(bond, |wanted| wanted.mode = UplinkMode::Copy);
    assert_eq!(status(&report, "native-xdp"), Status::Problem);
}

#[test]
fn gro_of_a_nic_itself_is_no_alarm_in_generic_mode_and_that_of_a_port_below_is_one() {
    let report = wanting(ice(), |wanted| wanted.mode = UplinkMode::Generic);
    assert_eq!(status(&report, "merging"), Status::Ok);
    let bridge = |gro| virtual_device("bridge", &[("nic0", true, gro)]);
    assert_eq!(status(&examine(&facts(candidate(bridge(true)))), "merging"), Status::Warning);
    assert_eq!(status(&examine(&facts(candidate(bridge(false)))), "merging"), Status::Ok);
}

#[test]
fn a_bridge_that_filters_vlans_and_a_vlan_device_need_no_warning_of_tags() {
    let tags = |nic| status(&examine(&facts(candidate(nic))), "vlan-tags");
    let mut bridge = virtual_device("bridge", &[("nic0", true, false)]);
    assert_eq!(tags(bridge.clone()), Status::Warning);
    bridge.device.vlan_filtering = true;
    assert_eq!(tags(bridge), Status::Ok);
    let mut vlan = virtual_device("vlan", &[("nic0", false, false)]);
    vlan.offloads = Some(Offloads { vlan_strip: true, ..Offloads::default() });
    assert_eq!(tags(vlan), Status::Ok);
}

#[test]
fn a_macvlan_serves_wire_ports_and_switch_ports_only_in_passthru_mode() {
    let report = |mode, attach| {
        let mut nic = virtual_device("macvlan", &[("eth0", false, false)]);
        nic.device.macvlan = Some(mode);
        let mut candidate = candidate(nic);
        let promise = Promise { profile: "v1".into(), mtu: 1500, port: Some("vm1".into()) };
        candidate.add_port(attach, None, promise);
        status(&examine(&facts(candidate)), "kind")
    };
    assert_eq!(report(Macvlan::OwnMac, Attach::Switch), Status::Problem);
    assert_eq!(report(Macvlan::OwnMac, Attach::Wire), Status::Warning);
    assert_eq!(report(Macvlan::Passthru, Attach::Switch), Status::Ok);
}

#[test]
fn on_a_kernel_that_does_not_say_native_xdp_is_told_of_drivers_that_are_known_to_have_it() {
    let on_debian_12 = |nic| {
        let mut facts = facts(candidate(nic));
        facts.host = host("6.1.0-50-amd64");
        examine(&facts)
    };
    let summary = |report: &Report| report.uplinks[0].summary.clone();
    for driver in ["e1000e", "vmxnet3", "r8169"] {
        let report = on_debian_12(nic(driver, 1, None));
        assert!(summary(&report).contains("generic XDP, copy"), "{}", summary(&report));
        assert_eq!(status(&report, "native-xdp"), Status::Warning, "{driver}");
    }
    for kind in ["bridge", "vlan", "macvlan", "dummy"] {
        let mut nic = virtual_device(kind, &[]);
        nic.xdp = None;
        let report = on_debian_12(nic);
        assert!(summary(&report).contains("generic XDP, copy"), "{}", summary(&report));
    }
    let report = on_debian_12(nic("ixgbe", 8, None));
    assert!(summary(&report).contains("native XDP, zero-copy"), "{}", summary(&report));
    let mut insists = candidate(nic("e1000e", 1, None));
    insists.wanted.mode = UplinkMode::Copy;
    let mut facts = facts(insists);
    facts.host = host("6.1.0-50-amd64");
    assert!(!examine(&facts).can_serve);
}

#[test]
fn what_a_launcher_does_needs_no_privileges_and_its_program_is_no_obstacle() {
    let mut candidate = candidate(ice());
    candidate.wanted.handed = Some(Handed::Sockets(vec![3]));
    if let Ok(nic) = &mut candidate.nic {
        nic.link.program = Some(AttachedProgram { ids: vec![5], ..Default::default() });
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
    // If one interface is enough, the larger need counts.
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
