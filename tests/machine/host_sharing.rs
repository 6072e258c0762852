//! A NIC that the host goes on using while VMs are on it: its own traffic is undisturbed, and with
//! `host = true` it and its VMs reach each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::{
    Bed, Configuration, Daemon, Guest, GuestSpec, NIC, Netns, PacketSocket, PortSpec,
    echo_datagrams, echo_stream, ping, receive_stream, run_to_end, send_stream, wait_for,
};
use isonic::test_support::StopOnDrop;
use isonic::test_support::rig_guest::{OUTSIDE, frame, mac};
use isonic::test_support::vm::Vm;

const BROADCAST: [u8; 6] = [0xff; 6];
/// Of the nearest bridge: LLDP (802.1AB, 7.1).
const LLDP: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0x0e];
/// What had time to come has come.
const SETTLED: Duration = Duration::from_millis(300);
const MEGABYTE: usize = 1 << 20;

/// The daemon with switch ports of these numbers; whether it joins the host to them.
fn start<'bed>(bed: &'bed Bed, numbers: &[u8], host: bool) -> Daemon<'bed> {
    start_in(bed, numbers, host, "auto")
}

fn start_in<'bed>(bed: &'bed Bed, numbers: &[u8], host: bool, mode: &'static str) -> Daemon<'bed> {
    let ports = numbers.iter().map(|&number| PortSpec::switch(NIC, number)).collect();
    let configuration = Configuration { host, mode, ..Configuration::new(bed, ports) };
    Daemon::start(bed, &configuration)
}

fn vm(bed: &Bed, number: u8) -> Vm {
    Vm::connect(&bed.path(&format!("vm{number}.sock")), 1)
}

/// Sockets on both ends of the uplink: in the host, and on the wire.
fn ends(bed: &Bed) -> [PacketSocket; 2] {
    let uplink = &bed.uplinks[0];
    [(&bed.host, &uplink.nic), (&*bed.wire, &uplink.peer)]
        .map(|(namespace, interface)| PacketSocket::open(namespace, interface, SETTLED))
}

fn mac_of(namespace: &Netns, interface: &str) -> [u8; 6] {
    let text = namespace.run(&["cat", &format!("/sys/class/net/{interface}/address")]);
    let bytes = text.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a byte"));
    bytes.collect::<Vec<u8>>().try_into().expect("six bytes")
}

/// A frame of VLAN 5.
fn tagged(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let frame = frame(to, from, len);
    [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat()
}

/// A frame as a packet socket shows it: the kernel has taken the tag of what was received.
fn untagged(frame: &[u8]) -> Vec<u8> {
    if frame[12..14] == [0x81, 0] { [&frame[..12], &frame[16..]].concat() } else { frame.to_vec() }
}

/// How often a frame has come to a socket.
fn times(socket: &mut PacketSocket, frame: &[u8]) -> usize {
    let frame = untagged(frame);
    let heard = std::iter::from_fn(|| socket.receive());
    heard.filter(|heard| untagged(heard) == frame).count()
}

/// How often a frame has come to a VM.
fn times_at(vm: &mut Vm, frame: &[u8]) -> usize {
    std::thread::sleep(SETTLED);
    vm.received().iter().filter(|received| *received == frame).count()
}

/// Runs a test while a VM sends frames of all kinds as fast as it can.
fn while_it_floods(vm: &mut Vm, test: impl FnOnce()) {
    let stopped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stopped.load(Ordering::Relaxed) {
                for to in [OUTSIDE, BROADCAST, LLDP] {
                    vm.send(&frame(to, mac(1), 1514));
                }
                vm.received();
                // Both processors are needed for what is tested, too.
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let _stop = StopOnDrop(&stopped);
        test();
    });
}

/// Gives both ends an IPv6 address, and answers the host's and the wire's.
fn with_ipv6(bed: &Bed) -> [&'static str; 2] {
    let addresses = ["fd77::254", "fd77::1"];
    let ends = [(&bed.host, &bed.uplinks[0].nic), (&*bed.wire, &bed.uplinks[0].peer)];
    for ((namespace, interface), address) in ends.into_iter().zip(addresses) {
        namespace.run(&["sysctl", "-qw", &format!("net.ipv6.conf.{interface}.disable_ipv6=0")]);
        let address = format!("{address}/64");
        namespace.run(&["ip", "address", "add", &address, "dev", interface, "nodad"]);
    }
    addresses
}

fn forget_neighbours(bed: &Bed) {
    for namespace in [&bed.host, &*bed.wire] {
        for family in ["-4", "-6"] {
            namespace.run(&["ip", family, "neigh", "flush", "all"]);
        }
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_the_host_has_on_its_nic_is_undisturbed_while_a_vm_floods() {
    for joined in [false, true] {
        let bed = Bed::new(1, 2);
        let _daemon = start(&bed, &[1], joined);
        let mut vm = vm(&bed, 1);
        let uplink = &bed.uplinks[0];
        let [host6, wire6] = with_ipv6(&bed);
        while_it_floods(&mut vm, || {
            // Who answers to whom, found anew by each side: ARP and neighbour discovery.
            for (namespace, address) in [
                (&bed.host, &*uplink.wire_address),
                (&*bed.wire, &*uplink.host_address),
                (&bed.host, wire6),
                (&*bed.wire, host6),
            ] {
                forget_neighbours(&bed);
                ping(namespace, address, &[]);
            }
            let (host, wire) = (&bed.host, &*bed.wire);
            receive_stream(wire, MEGABYTE, || send_stream(host, &uplink.wire_address, MEGABYTE));
            receive_stream(host, MEGABYTE, || send_stream(wire, &uplink.host_address, MEGABYTE));
        });
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_host_hears_and_sends_lldp_and_its_vlans_beside_vms() {
    for joined in [false, true] {
        let bed = Bed::new(1, 1);
        let _daemon = start(&bed, &[1], joined);
        let mut vm = vm(&bed, 1);
        let uplink = &bed.uplinks[0];
        let [host, wire] = [mac_of(&bed.host, &uplink.nic), mac_of(&bed.wire, &uplink.peer)];
        let [mut here, mut there] = ends(&bed);
        let frames = [
            (frame(LLDP, wire, 60), frame(LLDP, host, 60)),
            (tagged(host, wire, 200), tagged(wire, host, 200)),
        ];
        for (arrives, departs) in frames {
            there.send(&arrives);
            assert_eq!(times(&mut here, &arrives), 1, "arrives: {arrives:x?}");
            here.send(&departs);
            assert_eq!(times(&mut there, &departs), 1, "departs: {departs:x?}");
            for own in [&arrives, &departs] {
                assert_eq!(times_at(&mut vm, own), 0, "it is the host's own: {own:x?}");
            }
        }
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_promiscuous_nic_does_not_make_the_host_answer_for_others_and_is_none_afterwards() {
    let bed = Bed::new(1, 1);
    let mut daemon = start(&bed, &[1], false);
    let uplink = &bed.uplinks[0];
    let promiscuous = |bed: &Bed| {
        let link = bed.host.run(&["ip", "-details", "link", "show", NIC]);
        !link.contains("promiscuity 0")
    };
    assert!(promiscuous(&bed));
    let unreachable = |mac: &str| {
        let (address, dev) = (&uplink.host_address, &uplink.peer);
        bed.wire.run(&["ip", "neigh", "replace", address, "lladdr", mac, "dev", dev]);
        let pinged = ["ping", "-c", "1", "-W", "1", address];
        !run_to_end(&mut bed.wire.command(&pinged)).status.success()
    };
    assert!(unreachable("02:00:00:00:00:99"), "the host answered to another's MAC");
    bed.wire.run(&["ip", "neigh", "del", &uplink.host_address, "dev", &uplink.peer]);
    ping(&bed.wire, &uplink.host_address, &[]);
    daemon.stop();
    assert!(!promiscuous(&bed));
}

/// With the XDP program in the driver; and in the stack, where frames from VMs to the host come by.
const MODES: [&str; 2] = ["auto", "generic"];

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn frames_between_host_and_vm_arrive_once_and_stay_off_the_wire() {
    MODES.into_iter().for_each(frames_arrive_once);
}

fn frames_arrive_once(mode: &'static str) {
    let bed = Bed::new(1, 1);
    let daemon = start_in(&bed, &[1, 2], true, mode);
    let [mut first, mut second] = [1, 2].map(|number| vm(&bed, number));
    let host = mac_of(&bed.host, NIC);
    let [mut here, mut there] = ends(&bed);
    for (from_vm, from_host) in [
        (frame(host, mac(1), 60), frame(mac(1), host, 60)),
        (frame(host, mac(1), 1514), frame(mac(1), host, 1514)),
        (tagged(host, mac(1), 200), tagged(mac(1), host, 200)),
    ] {
        first.send(&from_vm);
        assert_eq!(times(&mut here, &from_vm), 1, "{from_vm:x?}");
        here.send(&from_host);
        assert_eq!(times_at(&mut first, &from_host), 1, "{from_host:x?}");
        assert_eq!(times_at(&mut second, &from_host), 0);
        let on_the_wire = times(&mut there, &from_vm) + times(&mut there, &from_host);
        assert_eq!(on_the_wire, 0);
    }
    let counters = &daemon.json(&["stats"])["uplinks"][NIC];
    for (counter, count) in [("to_host_packets", 3), ("from_host_packets", 3)] {
        assert!(counters[counter].as_u64() >= Some(count), "{counters}");
    }
    for counter in ["to_host_dropped", "from_host_dropped"] {
        assert_eq!(counters[counter], 0, "{counters}");
    }
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_host_takes_from_its_vms_what_the_nic_s_mtu_allows_and_its_device_follows_it() {
    let bed = Bed::new(1, 1);
    let daemon = start(&bed, &[1], true);
    let mut vm = vm(&bed, 1);
    let host = mac_of(&bed.host, NIC);
    let [mut here, _there] = ends(&bed);
    let dropped = || daemon.json(&["stats"])["uplinks"][NIC]["to_host_dropped"].as_u64();
    for mtu in [1400, 1500] {
        bed.host.run(&["ip", "link", "set", NIC, "mtu", &mtu.to_string()]);
        wait_for("the device follows", 5, || {
            bed.host.run(&["ip", "link", "show", "isohost0"]).contains(&format!("mtu {mtu}"))
        });
        let fits = frame(host, mac(1), mtu + 14);
        wait_for("the workers follow", 5, || {
            vm.send(&fits);
            times(&mut here, &fits) > 0
        });
        let before = dropped();
        if mtu < 1500 {
            let too_long = frame(host, mac(1), mtu + 15);
            wait_for("it is dropped", 5, || {
                vm.send(&too_long);
                dropped() > before
            });
            times(&mut here, &too_long);
            vm.send(&too_long);
            assert_eq!(times(&mut here, &too_long), 0);
        }
        // The other way the kernel itself would have stopped it.
        let fits = frame(mac(1), host, mtu + 14);
        here.send(&fits);
        assert_eq!(times_at(&mut vm, &fits), 1);
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_broadcast_of_host_vm_or_wire_reaches_each_of_the_others_once() {
    MODES.into_iter().for_each(broadcasts_arrive_once);
}

fn broadcasts_arrive_once(mode: &'static str) {
    let bed = Bed::new(1, 1);
    let daemon = start_in(&bed, &[1, 2], true, mode);
    let [mut first, mut second] = [1, 2].map(|number| vm(&bed, number));
    let [host, wire] = [(&bed.host, NIC), (&*bed.wire, &*bed.uplinks[0].peer)]
        .map(|(namespace, interface)| mac_of(namespace, interface));
    let [mut here, mut there] = ends(&bed);

    let of_vm = frame(BROADCAST, mac(1), 100);
    first.send(&of_vm);
    assert_eq!((times(&mut here, &of_vm), times(&mut there, &of_vm)), (1, 1), "of a VM");
    assert_eq!((times_at(&mut first, &of_vm), times_at(&mut second, &of_vm)), (0, 1), "of a VM");

    let of_host = frame(BROADCAST, host, 100);
    here.send(&of_host);
    assert_eq!(times(&mut there, &of_host), 1, "of the host");
    let at_vms = (times_at(&mut first, &of_host), times_at(&mut second, &of_host));
    assert_eq!(at_vms, (1, 1), "of the host");

    let of_wire = frame(BROADCAST, wire, 100);
    there.send(&of_wire);
    assert_eq!(times(&mut here, &of_wire), 1, "of the wire");
    let at_vms = (times_at(&mut first, &of_wire), times_at(&mut second, &of_wire));
    assert_eq!(at_vms, (1, 1), "of the wire");

    // What somebody sends on the device itself goes nowhere.
    let device = daemon.json(&["uplink", "list"])[0]["host_device"].take();
    let device = device.as_str().expect("a device");
    let stray = frame(BROADCAST, host, 120);
    assert!(PacketSocket::open(&bed.host, device, SETTLED).is_refused(&stray));
    assert_eq!((times_at(&mut first, &stray), times(&mut there, &stray)), (0, 0));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn host_guest_and_wire_reach_each_other_with_and_without_offloads() {
    for profile in ["org.isonic.net.v3", "org.isonic.net.v1"] {
        let bed = Bed::new(1, 2);
        let uplink = &bed.uplinks[0];
        // As on a NIC: the host leaves segmentation and checksums of what it sends to it.
        bed.host.run(&["ethtool", "-K", NIC, "tx", "on", "tso", "on"]);
        let port = PortSpec::switch(NIC, 1).with_profile(profile);
        let configuration =
            Configuration { host: true, ..Configuration::new(&bed, vec![port.clone()]) };
        let daemon = Daemon::start(&bed, &configuration);
        let mut guest = Guest::boot(&bed, &GuestSpec::new(&port, uplink, 1));
        let address = guest.spec.address.clone();

        // Each finds the other by ARP, and does not know it yet.
        guest.ping(&uplink.host_address);
        bed.host.run(&["ip", "neigh", "flush", "all"]);
        ping(&bed.host, &address, &[]);
        let before = bed.wire_received(0);
        ping(&bed.host, &address, &["-s", "8000"]);
        echo_datagrams(&bed.host, &address, 8000, 20);
        echo_stream(&bed.host, &address, 8 * MEGABYTE);
        send_stream(&bed.host, &address, 8 * MEGABYTE);
        receive_stream(&bed.host, 8 * MEGABYTE, || {
            guest.send_stream(&uplink.host_address, 8 * MEGABYTE);
        });
        let seen = bed.wire_received(0) - before;
        assert!(seen < 50, "{seen} frames between host and guest went over the wire");

        guest.ping(&uplink.wire_address);
        echo_stream(&bed.wire, &address, MEGABYTE);
        ping(&bed.wire, &uplink.host_address, &[]);
        assert_eq!(daemon.port_counter("vm1", "ring_faults"), 0);
        daemon.frames();
    }
}

/// Whether what the host sends to a VM's MAC goes out on the wire, as where nobody knows it.
fn goes_to_the_wire(bed: &Bed) -> bool {
    let [mut here, mut there] = ends(bed);
    let sent = frame(mac(1), mac_of(&bed.host, NIC), 80);
    here.send(&sent);
    times(&mut there, &sent) == 1
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn nothing_is_left_of_the_way_to_the_host_however_isonic_ends() {
    let bed = Bed::new(1, 1);
    let links = || bed.host.run(&["ip", "-brief", "link"]);
    let before = links();
    let mut daemon = start(&bed, &[1], true);
    assert!(links().contains("isohost"));
    assert!(!goes_to_the_wire(&bed));
    daemon.stop();
    assert_eq!(links(), before);
    assert!(goes_to_the_wire(&bed));
    daemon.start_again();
    assert!(!goes_to_the_wire(&bed));
    let killed = Instant::now();
    daemon.kill();
    wait_for("the kernel has taken all back", 10, || links() == before);
    println!("all is back {:?} after SIGKILL", killed.elapsed());
    assert!(goes_to_the_wire(&bed));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn every_frame_that_a_vm_has_for_the_host_is_delivered_or_counted() {
    const COUNT: u64 = 20_000;
    let bed = Bed::new(1, 1);
    let daemon = start(&bed, &[1], true);
    let mut vm = vm(&bed, 1);
    let sent = frame(mac_of(&bed.host, NIC), mac(1), 1514);
    for _ in 0..COUNT {
        vm.send(&sent);
    }
    let told = || {
        let counters = daemon.json(&["stats"])["uplinks"][NIC].take();
        ["to_host_packets", "to_host_dropped"]
            .map(|counter| counters[counter].as_u64().expect("a number"))
    };
    wait_for("all are counted", 20, || told().iter().sum::<u64>() >= COUNT);
    let [delivered, dropped] = told();
    println!("{delivered} delivered, {dropped} dropped");
    assert_eq!(delivered + dropped, COUNT);
    assert_eq!(daemon.port_counter("vm1", "from_guest_packets"), COUNT);
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn vms_and_wire_go_on_when_somebody_deletes_the_way_to_the_host() {
    let bed = Bed::new(1, 1);
    let mut daemon = start(&bed, &[1, 2], true);
    let [mut first, mut second] = [1, 2].map(|number| vm(&bed, number));
    bed.host.run(&["ip", "link", "del", "isohost0"]);
    wait_for("the loss is told", 5, || daemon.log().contains("isohost0"));
    let host = mac_of(&bed.host, NIC);
    for _ in 0..300 {
        first.send(&frame(host, mac(1), 60));
        second.received();
    }
    let sent = frame(mac(2), mac(1), 60);
    first.send(&sent);
    assert_eq!(times_at(&mut second, &sent), 1);
    ping(&bed.host, &bed.uplinks[0].wire_address, &[]);
    daemon.stop();
}
