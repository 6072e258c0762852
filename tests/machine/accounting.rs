//! Every frame is delivered or counted, once, under one name: from the wire to the guests and from
//! the guests to the wire, when all send more than the others take.

use std::time::Duration;

use crate::common::{Bed, Configuration, Daemon, NIC, Netns, PacketSocket, PortSpec, wait_for};
use isonic::test_support::rig_guest::{OUTSIDE, datagram, frame, mac};
use isonic::test_support::vm::Vm;
use serde_json::Value;

/// Of the interfaces; the ports' is 1500.
const MTU: u32 = 1600;
/// Longer than a port takes, but not than the wire does.
const OVERSIZE: usize = 1580;
const BROADCAST: [u8; 6] = [0xff; 6];
/// An address that neither a guest nor the host has.
const UNKNOWN: [u8; 6] = [0x02, 0xff, 0, 0, 0, 7];

/// What the wire sends: to whom, how long, how many.
const WIRE: [([u8; 6], usize, u64); 6] = [
    ([0x52, 0x54, 0, 0, 0, 1], 200, 30_000),
    ([0x52, 0x54, 0, 0, 0, 2], 200, 30_000),
    (UNKNOWN, 200, 5000),
    (BROADCAST, 200, 3000),
    ([0x52, 0x54, 0, 0, 0, 2], OVERSIZE, 500),
    ([0x52, 0x54, 0, 0, 0, 1], 14, 500),
];

/// What a guest sends.
#[derive(Clone, Copy)]
struct Load {
    to_wire: u64,
    to_other: u64,
    broadcast: u64,
    runts: u64,
    oversize: u64,
}

const LOADS: [Load; 2] = [
    Load { to_wire: 20_000, to_other: 0, broadcast: 0, runts: 0, oversize: 300 },
    Load { to_wire: 20_000, to_other: 5000, broadcast: 500, runts: 300, oversize: 0 },
];

impl Load {
    fn total(&self) -> u64 {
        self.to_wire + self.to_other + self.broadcast + self.runts + self.oversize
    }

    /// Its frames, one kind after the other, from guest `number`.
    fn frames(self, number: u8) -> impl Iterator<Item = Vec<u8>> {
        let (own, other) = (mac(number), mac(3 - number));
        let kinds = [
            (OUTSIDE, 100, self.to_wire),
            (other, 100, self.to_other),
            (BROADCAST, 100, self.broadcast),
            (OUTSIDE, 13, self.runts),
            (OUTSIDE, OVERSIZE, self.oversize),
        ];
        kinds.into_iter().flat_map(move |(to, len, count)| {
            let mut sent = frame(to, own, len);
            sent.truncate(len);
            (0..count).map(move |_| sent.clone())
        })
    }
}

/// What the kernel counts of an interface.
fn counted(namespace: &Netns, interface: &str, name: &str) -> u64 {
    let path = format!("/sys/class/net/{interface}/statistics/{name}");
    namespace.run(&["cat", &path]).trim().parse().expect("a number")
}

/// What passes the XDP program: all frames, and those of them to groups.
fn count_passed(socket: &mut PacketSocket) -> [u64; 2] {
    let mut passed = [0; 2];
    while let Some(frame) = socket.receive() {
        passed[0] += 1;
        passed[1] += u64::from(frame[0] & 1);
    }
    passed
}

/// All counters, when none changes any more.
fn settled(daemon: &Daemon<'_>) -> Value {
    let relevant = |stats: &Value| [&stats["ports"], &stats["uplinks"]].map(Value::clone);
    let mut stats = daemon.json(&["stats"]);
    wait_for("all is counted", 20, || {
        std::thread::sleep(Duration::from_millis(500));
        let before = std::mem::replace(&mut stats, daemon.json(&["stats"]));
        relevant(&before) == relevant(&stats)
    });
    stats
}

/// The sum of the counters whose names begin so.
fn sum(counters: &Value, beginnings: &[&str]) -> u64 {
    let counters = counters.as_object().expect("counters").iter();
    let named = counters.filter(|(name, _)| beginnings.iter().any(|begin| name.starts_with(begin)));
    named.filter_map(|(_, value)| value.as_u64()).sum()
}

/// What the XDP program did: redirected, passed, without a socket.
fn verdicts(stats: &Value) -> [u64; 3] {
    ["xdp_redirected", "xdp_passed", "xdp_no_socket"]
        .map(|name| stats["uplinks"][NIC][name].as_u64().expect("a counter"))
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn under_overload_every_frame_is_delivered_or_counted_under_one_name() {
    let bed = Bed::with_mtu(1, 2, MTU);
    let uplink = &bed.uplinks[0];
    let ports = [1, 2].map(|number| PortSpec::switch(NIC, number)).to_vec();
    let configuration = Configuration { workers: 2, ..Configuration::new(&bed, ports) };
    let daemon = Daemon::start(&bed, &configuration);
    let mut vms = ["vm1.sock", "vm2.sock"].map(|name| Vm::connect(&bed.path(name), 2));
    let mut wire = PacketSocket::open(&bed.wire, &uplink.peer, Duration::from_millis(1));
    let mut host = PacketSocket::open(&bed.host, NIC, Duration::from_millis(1000));
    let kernel = || {
        let lost_to_nic = counted(&bed.wire, &uplink.peer, "tx_dropped");
        let lost_to_wire = counted(&bed.host, NIC, "tx_dropped");
        [lost_to_nic, lost_to_wire, counted(&bed.wire, &uplink.peer, "rx_packets")]
    };
    let before = kernel();
    let before_all = verdicts(&daemon.json(&["stats"]));

    // All at once. The first guest takes nothing after its first buffers.
    let mut received = [0, 0];
    let mut passed = [0, 0];
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for (to, len, count) in WIRE {
                let sent = &frame(to, OUTSIDE, len)[..len];
                (0..count).for_each(|_| wire.offer(sent));
            }
        });
        scope.spawn(|| passed = count_passed(&mut host));
        for (number, ((vm, load), received)) in
            (1..).zip(vms.iter_mut().zip(LOADS).zip(&mut received))
        {
            scope.spawn(move || {
                for (place, sent) in load.frames(number).enumerate() {
                    while !vm.try_send(place % 2, &sent) {
                        std::thread::yield_now();
                    }
                    if number == 2 {
                        *received += vm.received().len() as u64;
                    }
                }
            });
        }
    });
    let quiet = |vms: &mut [Vm]| vms.iter_mut().all(Vm::is_quiet);
    wait_for("all is taken from the guests", 20, || quiet(&mut vms));
    let stats = settled(&daemon);
    let after = kernel();
    let [lost_to_nic, lost_to_wire, arrived] = std::array::from_fn(|at| after[at] - before[at]);
    for (vm, received) in vms.iter_mut().zip(&mut received) {
        *received += vm.received().len() as u64;
    }
    let more = count_passed(&mut host);
    let passed: [u64; 2] = std::array::from_fn(|at| passed[at] + more[at]);
    let now = verdicts(&stats);
    let [redirected, let_pass, no_socket] = std::array::from_fn(|at| now[at] - before_all[at]);
    let of_uplink = &stats["uplinks"][NIC];
    let of_ports = [&stats["ports"]["vm1"], &stats["ports"]["vm2"]];
    let uplink = |names: &[&str]| sum(of_uplink, names);
    println!("{of_uplink:#}\n{:#}\n{:#}", of_ports[0], of_ports[1]);
    println!("lost to NIC {lost_to_nic}, to the wire {lost_to_wire}; passed {passed:?}");

    // From the wire to our sockets, or to the host.
    let sent: u64 = WIRE.iter().map(|(_, _, count)| count).sum();
    assert_eq!(sent, lost_to_nic + redirected + let_pass);
    assert_eq!(no_socket, 0);
    let taken = uplink(&["rx_packets", "rx_dropped_fragments"]);
    let refused = uplink(&["kernel_rx_dropped", "kernel_rx_ring_full"]);
    assert_eq!(redirected, taken + refused);
    assert_eq!(let_pass, passed[0]);
    // To groups: to the host, and a copy to us.
    assert_eq!(passed[1], uplink(&["multicast_packets", "multicast_dropped"]));
    // From our sockets and from guests to the guests.
    let brought = uplink(&["rx_packets"]) - uplink(&["rx_dropped_no_port"])
        + 2 * uplink(&["multicast_packets"])
        + LOADS.iter().map(|load| load.to_other + load.broadcast).sum::<u64>();
    let all = ["to_guest_packets", "to_guest_dropped_"];
    assert_eq!(brought, of_ports.iter().map(|port| sum(port, &all)).sum::<u64>());
    for (port, received) in of_ports.iter().zip(received) {
        assert_eq!(sum(port, &["to_guest_packets"]), received);
    }
    // From the guests.
    for (port, load) in of_ports.iter().zip(LOADS) {
        assert_eq!(load.total(), sum(port, &["from_guest_packets", "from_guest_dropped_"]));
        assert_eq!(load.runts, sum(port, &["from_guest_dropped_runt"]));
        assert_eq!(load.oversize, sum(port, &["from_guest_dropped_oversize"]));
    }
    let to_wire: u64 = LOADS.iter().map(|load| load.to_wire + load.broadcast).sum();
    assert_eq!(to_wire, uplink(&["tx_packets", "tx_dropped_"]));
    assert_eq!(uplink(&["tx_packets"]), arrived + lost_to_wire);
    assert_eq!(uplink(&["kernel_invalid"]), 0);
    // It was an overload.
    assert!(sum(of_ports[0], &["to_guest_dropped_no_buffers"]) > 0);
    daemon.frames();
}

/// One of two queues is ours, and datagrams of many flows come in on both.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_frame_for_a_vm_on_a_queue_without_a_socket_is_counted() {
    const FLOWS: u16 = 64;
    let bed = Bed::new(1, 2);
    let ports = vec![PortSpec::switch(NIC, 1)];
    let uplinks = vec![(NIC.to_owned(), Some(vec![0]))];
    let configuration = Configuration { uplinks, ..Configuration::new(&bed, ports) };
    let daemon = Daemon::start(&bed, &configuration);
    let mut vm = Vm::connect(&bed.path("vm1.sock"), 1);
    let before = verdicts(&daemon.json(&["stats"]));
    let peer = &bed.uplinks[0].peer;
    let mut wire = PacketSocket::open(&bed.wire, peer, Duration::from_millis(1));
    (0..FLOWS).for_each(|flow| wire.send(&datagram(mac(1), flow)));
    (0..FLOWS).for_each(|_| wire.send(&frame(UNKNOWN, OUTSIDE, 200)));
    let now = verdicts(&settled(&daemon));
    let [redirected, passed, no_socket] = std::array::from_fn(|at| now[at] - before[at]);
    assert_eq!(redirected + no_socket, u64::from(FLOWS));
    assert_eq!(passed, u64::from(FLOWS));
    assert!(redirected > 0 && no_socket > 0, "{redirected} and {no_socket}");
    assert_eq!(vm.received().len() as u64, redirected);
}
