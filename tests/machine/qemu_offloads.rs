//! Offloads as Linux guests use them: TCP from the wire to a guest, from a guest to the wire and
//! both ways between guests, every byte compared where it arrives; what passes the wire is judged
//! by Wireshark.
//!
//! ```text
//!   vm1 ──┐           ┌── veth ── the wire: TCP of the host's kernel, dumpcap
//!         ├── isonic ─┘
//!   vm2 ──┘
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::common::{
    Bed, Capture, Checksums, Configuration, Daemon, Guest, GuestSpec, NIC, PortSpec, TcpFrame,
    Uplink, receive_stream, send_stream,
};

/// All offloads that QEMU shows guests, and packed rings.
const ALL: &str = "org.isonic.net.v3";
/// No offload at all.
const PLAIN: &str = "org.isonic.net.v2";
/// Bytes of each stream.
const STREAM: usize = 4 << 20;
/// Of Ethernet, and of a VLAN.
const ETHERNET: usize = 14;
const TAG: usize = 4;

/// What guests may switch off by themselves.
struct Switch {
    /// As `ethtool -K` knows it, and as `ethtool -k` shows it.
    names: [&'static str; 2],
    /// Whether guests send large packets then.
    large: bool,
    /// Whether they leave checksums to us.
    partial: bool,
}

const fn switch(names: [&'static str; 2], large: bool, partial: bool) -> Switch {
    Switch { names, large, partial }
}

const NOTHING_OFF: Switch = switch(["", ""], true, true);
const TSO_OFF: Switch = switch(["tso", "tcp-segmentation-offload"], false, true);
const SWITCHES: [Switch; 5] = [
    NOTHING_OFF,
    switch(["tx", "tx-checksumming"], false, false),
    TSO_OFF,
    // Segmentation in the guest's own software: the device's needs none.
    switch(["gso", "generic-segmentation-offload"], true, true),
    switch(["gro", "generic-receive-offload"], true, true),
];

// ---- the bed ------------------------------------------------------------------------------------

/// Two guests and the wire, and what their addresses are: IPv4, IPv6, IPv4 in VLAN 5.
struct Lab<'bed> {
    bed: &'bed Bed,
    daemon: Daemon<'bed>,
    guests: [Guest; 2],
    mtu: usize,
}

/// A family of addresses: those of the guests, and that of the wire (which has no VLAN: not every
/// host's kernel can).
#[derive(Clone, Copy)]
struct Family {
    guests: [&'static str; 2],
    wire: &'static str,
    /// Headers of IP and TCP, with its timestamps.
    headers: usize,
    vlan: Option<u16>,
}

const IPV4: Family =
    Family { guests: ["10.77.0.101", "10.77.0.102"], wire: "10.77.0.1", headers: 52, vlan: None };
const IPV6: Family =
    Family { guests: ["fd77::101", "fd77::102"], wire: "fd77::1", headers: 72, vlan: None };
const VLAN: Family =
    Family { guests: ["10.77.5.101", "10.77.5.102"], wire: "", headers: 52, vlan: Some(5) };

impl<'bed> Lab<'bed> {
    /// Two guests with these profiles and this many queue pairs each.
    fn new(
        bed: &'bed Bed,
        profiles: [&str; 2],
        queue_pairs: u32,
        configure: impl FnOnce(Configuration) -> Configuration,
    ) -> Self {
        let mut ports = [1, 2].map(|number| PortSpec::switch(NIC, number));
        for (port, profile) in ports.iter_mut().zip(profiles) {
            *port = port.clone().with_profile(profile);
        }
        // On an uplink each, if there are two.
        ports[1].uplink.clone_from(&bed.uplinks[bed.uplinks.len() - 1].nic);
        let configuration = configure(Configuration::new(bed, ports.to_vec()));
        let daemon = Daemon::start(bed, &configuration);
        let specs = [1, 2].map(|number| GuestSpec {
            queue_pairs,
            // Where buffers are not merged each of a ring's has room for 64 KiB.
            memory: 512 * queue_pairs,
            ..GuestSpec::new(&ports[usize::from(number) - 1], &bed.uplinks[0], number)
        });
        let guests = Guest::boot_all(bed, specs);
        let mut lab = Self { bed, daemon, guests, mtu: 1500 };
        lab.mtu = lab.guests[0].facts()["mtu"].parse().expect("a number");
        lab.address_the_wire();
        for number in [1, 2] {
            lab.address_guest(number);
        }
        lab
    }

    fn address_the_wire(&self) {
        let wire = &self.bed.wire;
        for Uplink { peer, .. } in &self.bed.uplinks {
            // Frames as they are: nothing merged that is looked at, no tag beside its frame.
            wire.run(&["ethtool", "-K", peer, "gro", "off", "txvlan", "off", "rxvlan", "off"]);
        }
        let peer = &self.bed.uplinks[0].peer;
        for key in ["disable_ipv6=0", "accept_dad=0", "router_solicitations=0"] {
            wire.run(&["sysctl", "-qw", &format!("net.ipv6.conf.{peer}.{key}")]);
        }
        let address = format!("{}/64", IPV6.wire);
        wire.run(&["ip", "-6", "address", "add", &address, "dev", peer]);
    }

    fn address_guest(&mut self, number: usize) {
        let (ipv6, vlan) = (IPV6.guests[number - 1], VLAN.guests[number - 1]);
        let guest = &mut self.guests[number - 1];
        for key in ["disable_ipv6=0", "accept_dad=0", "router_solicitations=0"] {
            guest.check(&format!("sysctl -q -w net.ipv6.conf.eth0.{key}"));
        }
        guest.check(&format!("ip -6 address add {ipv6}/64 dev eth0"));
        guest.check("ip link add link eth0 name eth0.5 type vlan id 5");
        guest.check(&format!("ip address add {vlan}/24 dev eth0.5 && ip link set eth0.5 up"));
    }

    /// Switches one offload of both guests off, all others on.
    fn switch(&mut self, switch: &Switch) {
        let [word, name] = switch.names;
        for guest in &mut self.guests {
            guest.check("ethtool -K eth0 tx on tso on gso on gro on");
            if !word.is_empty() {
                guest.check(&format!("ethtool -K eth0 {word} off"));
                assert_eq!(guest.offloads("eth0")[name], "off");
            }
        }
    }

    /// Payload of a full segment.
    fn segment(&self, family: Family) -> usize {
        self.mtu - family.headers
    }
}

// ---- streams ------------------------------------------------------------------------------------

/// What the ports have counted, by port and counter.
struct Counts(BTreeMap<(usize, String), u64>);

impl Counts {
    fn now(daemon: &Daemon<'_>) -> Self {
        let stats = daemon.json(&["stats"]);
        let of = |number: usize| {
            let counters = stats["ports"][format!("vm{number}")].as_object().expect("counters");
            let pairs = counters.clone().into_iter();
            pairs.map(move |(name, value)| ((number, name), value.as_u64().expect("a number")))
        };
        Self(of(1).chain(of(2)).collect())
    }

    fn of(&self, port: usize, name: &str) -> u64 {
        self.0[&(port, name.to_owned())]
    }
}

impl Lab<'_> {
    /// What was counted while something was done.
    fn counting(&mut self, act: impl FnOnce(&mut Self)) -> Counts {
        let before = Counts::now(&self.daemon);
        act(self);
        let mut counts = Counts::now(&self.daemon);
        counts.0.iter_mut().for_each(|(key, value)| *value -= before.0[key]);
        counts
    }

    /// From the wire to the first guest; gives how many frames were merged with others.
    fn wire_to_guest(&mut self, family: Family) -> u64 {
        let counted = self.counting(|lab| send_stream(&lab.bed.wire, family.guests[0], STREAM));
        counted.of(1, "to_guest_coalesced")
    }

    /// From the first guest to the wire; gives how many frames software cut.
    fn guest_to_wire(&mut self, family: Family) -> u64 {
        let counted = self.counting(|lab| {
            let (bed, guest) = (lab.bed, &mut lab.guests[0]);
            receive_stream(&bed.wire, STREAM, || guest.send_stream(family.wire, STREAM));
        });
        counted.of(1, "from_guest_segments")
    }

    /// From one guest (1 or 2) to the other; gives the payload of a packet that arrived, on
    /// average.
    fn guest_to_guest(&mut self, family: Family, from: usize) -> usize {
        let counted = self.counting(|lab| {
            lab.guests[from - 1].send_stream(family.guests[2 - from], STREAM);
        });
        let cut = counted.of(from, "from_guest_segments");
        assert_eq!(cut > 0, self.bed.uplinks.len() > 1, "{cut} frames were cut for the wire");
        let packets = usize::try_from(counted.of(3 - from, "to_guest_packets")).expect("a number");
        STREAM / packets
    }

    /// TCP in all four directions, in guests that are switched so.
    fn all_directions(&mut self, family: Family, switch: &Switch) {
        let &Switch { large, partial, .. } = switch;
        let capture = Capture::start(self.bed, 0);
        let merged = self.wire_to_guest(family);
        let cut = self.guest_to_wire(family);
        let senders = [(family.wire, false), (family.guests[0], partial)];
        self.assert_wire(&capture.tcp_frames(), family, senders);
        // What is longer than a frame of the UMEM is large already.
        assert_eq!(merged > 0, self.mtu == 1500, "{merged} frames were merged");
        assert_eq!(cut > 0, large, "{cut} frames were cut");
        self.between_guests(family, [large; 2]);
    }

    /// TCP between the guests; whether the second and the first are expected to receive large
    /// packets.
    fn between_guests(&mut self, family: Family, large: [bool; 2]) {
        let segment = self.segment(family);
        for (from, large) in [1, 2].into_iter().zip(large) {
            let payload = self.guest_to_guest(family, from);
            assert_eq!(payload > segment, large, "{payload} bytes a packet from vm{from}");
        }
    }

    /// What passed the wire: the streams whole that these sent, in frames no longer than its MTU,
    /// no bad checksum. `senders` are addresses, and whether their checksums are ours.
    fn assert_wire(&self, frames: &[TcpFrame], family: Family, senders: [(&str, bool); 2]) {
        let longest = self.mtu + ETHERNET + family.vlan.map_or(0, |_| TAG);
        let segments = STREAM / self.segment(family);
        for (from, ours) in senders {
            let from: IpAddr = from.parse().expect("address");
            let mut sent = frames.iter().filter(|frame| frame.from == from);
            assert!(sent.clone().count() >= segments, "{} of {segments}", sent.clone().count());
            let bad = sent.find(|frame| {
                let good = match frame.checksums {
                    Checksums::Good => true,
                    Checksums::OtherZero => !ours,
                    Checksums::Bad => false,
                };
                !good || frame.len > longest || frame.vlan != family.vlan
            });
            assert!(bad.is_none(), "{bad:?}");
        }
    }

    /// Nobody has seen a bad checksum, nor a broken ring.
    fn assert_clean(&mut self) {
        let snmp = ["cat", "/proc/net/snmp"];
        let guests = self.guests.each_mut().map(|guest| guest.check(&snmp.join(" ")));
        for snmp in guests.iter().chain([&self.bed.wire.run(&snmp)]) {
            for protocol in ["Tcp:", "Udp:"] {
                assert_eq!(checksum_errors(snmp, protocol), "0", "{snmp}");
            }
        }
        for port in ["vm1", "vm2"] {
            assert_eq!(self.daemon.port_counter(port, "ring_faults"), 0);
            assert_eq!(self.daemon.port_counter(port, "from_guest_dropped_header"), 0);
        }
        self.daemon.frames();
    }
}

/// InCsumErrors of a protocol: names and values are on two lines, in the same order.
fn checksum_errors<'a>(snmp: &'a str, protocol: &str) -> &'a str {
    let mut lines = snmp.lines().filter(|line| line.starts_with(protocol));
    let [names, values] = [lines.next(), lines.next()].map(|line| line.expect(protocol).split(' '));
    let mut pairs = names.zip(values);
    pairs.find(|(name, _)| *name == "InCsumErrors").expect("InCsumErrors").1
}

/// Every switch over IPv4; IPv6 and a VLAN with all offloads on.
fn every_switch(profile: &str) {
    let bed = Bed::new(1, 2);
    let mut lab = Lab::new(&bed, [profile, profile], 2, |configuration| configuration);
    for switch in &SWITCHES {
        lab.switch(switch);
        lab.all_directions(IPV4, switch);
    }
    lab.switch(&NOTHING_OFF);
    lab.all_directions(IPV6, &NOTHING_OFF);
    lab.between_guests(VLAN, [true; 2]);
    lab.assert_clean();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_with_merged_buffers() {
    every_switch(ALL);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn packed_rings_without_merged_buffers() {
    every_switch("org.isonic.net.v3,mrg_rxbuf=off");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn split_rings_with_merged_buffers() {
    every_switch("org.isonic.net.v3,ring_packed=off");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn split_rings_without_merged_buffers() {
    every_switch("org.isonic.net.v3,ring_packed=off,mrg_rxbuf=off");
}

// ---- guests that take less than is sent ---------------------------------------------------------

/// The first guest sends as large as it likes; the second takes no large packet.
fn to_a_guest_that_takes_less(profile: &str) {
    let bed = Bed::new(1, 2);
    let configure = |configuration| Configuration { coalesce: false, ..configuration };
    let mut lab = Lab::new(&bed, [ALL, profile], 2, configure);
    let told = lab.guests.each_mut().map(|guest| guest.offloads("eth0"));
    assert_eq!(told[0]["rx-gro-hw"], "on");
    assert_eq!(told[1]["rx-gro-hw"], "off");
    for family in [IPV4, IPV6, VLAN] {
        lab.between_guests(family, [false, told[1]["tcp-segmentation-offload"] == "on"]);
    }
    // An uplink that merges nothing, for a guest that would take it.
    assert_eq!(lab.wire_to_guest(IPV4), 0);
    // The device cannot be told by whom it serves: QEMU keeps such commands for itself.
    for word in ["rx", "rx-gro-hw"] {
        lab.guests[0].run(&format!("ethtool -K eth0 {word} off"));
    }
    let after = lab.guests[0].offloads("eth0");
    assert_eq!((&after["rx-checksumming"], &after["rx-gro-hw"]), (&"on".into(), &"on".into()));
    lab.assert_clean();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_that_takes_partial_checksums_only_gets_segments() {
    let profile = "org.isonic.net.v3,guest_tso4=off,guest_tso6=off,guest_ecn=off";
    to_a_guest_that_takes_less(profile);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_that_takes_no_offload_gets_complete_segments() {
    to_a_guest_that_takes_less(PLAIN);
}

// ---- the wire in between ------------------------------------------------------------------------

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn guests_on_two_uplinks_reach_each_other_over_the_wire_with_and_without_tags() {
    let bed = Bed::new(2, 2);
    let mut lab = Lab::new(&bed, [ALL, ALL], 2, |configuration| configuration);
    let bridge = "isonic-bridge";
    bed.wire.run(&["ip", "link", "add", bridge, "type", "bridge"]);
    for Uplink { peer, .. } in &bed.uplinks {
        bed.wire.run(&["ip", "link", "set", peer, "master", bridge]);
    }
    bed.wire.run(&["ip", "link", "set", bridge, "up"]);
    for family in [IPV4, VLAN] {
        let capture = Capture::start(&bed, 0);
        // Cut for the wire, and merged again behind it.
        lab.between_guests(family, [true; 2]);
        let senders = family.guests.map(|guest| (guest, true));
        lab.assert_wire(&capture.tcp_frames(), family, senders);
    }
    lab.assert_clean();
}

// ---- jumbo frames, many queues ------------------------------------------------------------------

fn jumbo_frames_on_four_queue_pairs(values: &str) {
    let bed = Bed::with_mtu(1, 4, 9000);
    let profile = format!("{ALL},mtu=9000{values}");
    let mut lab = Lab::new(&bed, [&profile, &profile], 4, |configuration| configuration);
    for guest in &mut lab.guests {
        let facts = guest.facts();
        assert_eq!((facts["mtu"].as_str(), facts["queue_pairs"].as_str()), ("9000", "4"));
    }
    for switch in [NOTHING_OFF, TSO_OFF] {
        lab.switch(&switch);
        lab.all_directions(IPV4, &switch);
    }
    lab.each_queue_pair();
    lab.assert_clean();
}

impl Lab<'_> {
    /// A stream from each CPU of the first guest leaves on that CPU's queue pair, and what comes
    /// back comes back on it.
    fn each_queue_pair(&mut self) {
        for pair in 0..4 {
            // The guest's kernel may send from another CPU when it is behind.
            let carried = (0..5).any(|_| self.carries_a_stream(pair));
            assert!(carried, "no stream stayed on queue pair {pair}");
        }
    }

    /// Whether a stream from CPU `pair` was sent on queue pair `pair` and answered there.
    fn carries_a_stream(&mut self, pair: u32) -> bool {
        let before = self.guests[0].queue_packets(pair);
        let to = IPV4.guests[1];
        let command = format!("taskset {:#x} guest-stream send {to} {STREAM}", 1 << pair);
        self.guests[0].check(&command);
        let after = self.guests[0].queue_packets(pair);
        // A few acknowledgements at least, however few there are for jumbo frames.
        ["rx", "tx"].into_iter().all(|direction| after[direction] - before[direction] > 3)
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn jumbo_frames_on_four_queue_pairs_of_packed_rings_with_merged_buffers() {
    jumbo_frames_on_four_queue_pairs("");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn jumbo_frames_on_four_queue_pairs_of_split_rings_without_merged_buffers() {
    jumbo_frames_on_four_queue_pairs(",ring_packed=off,mrg_rxbuf=off");
}
