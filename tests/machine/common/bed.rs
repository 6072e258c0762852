//! The base of every test: two namespaces joined by veth pairs, and a directory.
//!
//! ```text
//!   namespace "host": isonic here            namespace "wire": the network
//!   isonic-nic0  10.77.0.254  <── veth ──>  isonic-peer0  10.77.0.1
//!   isonic-nic1  10.77.1.254  <── veth ──>  isonic-peer1  10.77.1.1
//! ```
//!
//! A [pair](Bed::pair) has two hosts on one wire:
//!
//! ```text
//!   "host" of the first                     "wire" of both
//!   isonic-nic0  10.77.0.254  <── veth ──>  isonic-peer0 ┐
//!                                                        ├ isonic-br0  10.77.0.1
//!   isonic-nic0  10.77.0.253  <── veth ──>  isonic-peer1 ┘
//!   "host" of the second
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use super::libvirt::end_guests;
use super::netns::{Netns, PREFIX, left_in};
use super::process::Process;

/// The first uplink's interface.
pub const NIC: &str = "isonic-nic0";
/// The bridge that joins the far ends of a pair's uplinks.
pub const BRIDGE: &str = "isonic-br0";

/// One veth pair.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Our end, in the namespace `host`.
    pub nic: String,
    /// The other end, in the namespace `wire`.
    pub peer: String,
    /// The host's own address, on our end.
    pub host_address: String,
    /// The address of the other end.
    pub wire_address: String,
    subnet: usize,
}

impl Uplink {
    /// The address of the guest with this number, 1 to 99.
    pub fn guest_address(&self, number: u8) -> String {
        format!("10.77.{}.{}", self.subnet, 100 + number)
    }
}

/// Namespaces, veth pairs and a directory. Only one, or a pair, exists at a time on the machine.
#[derive(Debug)]
pub struct Bed {
    /// Where isonic runs.
    pub host: Netns,
    /// The network beyond the uplinks.
    pub wire: Arc<Netns>,
    /// The veth pairs.
    pub uplinks: Vec<Uplink>,
    directory: tempfile::TempDir,
    // Last, so that all is gone when the next bed is made.
    _lock: Arc<File>,
}

impl Bed {
    /// A bed with `uplinks` veth pairs of `queues` queues each.
    pub fn new(uplinks: usize, queues: u32) -> Self {
        Self::with_mtu(uplinks, queues, 1500)
    }

    /// A bed with veth pairs of this MTU.
    pub fn with_mtu(uplinks: usize, queues: u32, mtu: u32) -> Self {
        let lock = only_one();
        let (host, wire) = (Netns::new("host"), Arc::new(Netns::new("wire")));
        let options = format!("mtu {mtu} numtxqueues {queues} numrxqueues {queues}");
        let uplinks = (0..uplinks).map(|number| Uplink {
            nic: format!("isonic-nic{number}"),
            peer: format!("isonic-peer{number}"),
            host_address: format!("10.77.{number}.254"),
            wire_address: format!("10.77.{number}.1"),
            subnet: number,
        });
        let uplinks: Vec<Uplink> = uplinks.collect();
        for uplink in &uplinks {
            join(&host, &wire, uplink, &options);
            address(&wire, &uplink.peer, &uplink.wire_address);
        }
        Self { host, wire, uplinks, directory: directory(), _lock: lock }
    }

    /// Two hosts on one wire, each with an uplink of `queues` queues and a directory of its own.
    /// The description of a port on one serves the same port on the other.
    pub fn pair(queues: u32) -> [Self; 2] {
        let lock = only_one();
        let wire = Arc::new(Netns::new("wire"));
        ip(&wire, &format!("link add {BRIDGE} type bridge mcast_snooping 0"));
        address(&wire, BRIDGE, "10.77.0.1");
        ip(&wire, &format!("link set {BRIDGE} up"));
        [0, 1].map(|number| {
            let host = Netns::new(&format!("host{number}"));
            let uplink = Uplink {
                nic: NIC.to_owned(),
                peer: format!("isonic-peer{number}"),
                host_address: format!("10.77.0.{}", 254 - number),
                wire_address: "10.77.0.1".to_owned(),
                subnet: 0,
            };
            let options = format!("numtxqueues {queues} numrxqueues {queues}");
            join(&host, &wire, &uplink, &options);
            ip(&wire, &format!("link set {} master {BRIDGE}", uplink.peer));
            let (wire, lock) = (Arc::clone(&wire), Arc::clone(&lock));
            Self { host, wire, uplinks: vec![uplink], directory: directory(), _lock: lock }
        })
    }

    /// Makes a veth pair anew that was removed, with so many queues.
    pub fn join_again(&self, uplink: usize, queues: u32) {
        let uplink = &self.uplinks[uplink];
        join(&self.host, &self.wire, uplink, &format!("numtxqueues {queues} numrxqueues {queues}"));
        address(&self.wire, &uplink.peer, &uplink.wire_address);
    }

    /// A file in the bed's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The bed's directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Frames that the wire's end of an uplink has received, by the kernel's count.
    pub fn wire_received(&self, uplink: usize) -> u64 {
        let peer = &self.uplinks[uplink].peer;
        let path = format!("/sys/class/net/{peer}/statistics/rx_packets");
        self.wire.run(&["cat", &path]).trim().parse().expect("a number")
    }
}

/// Waits until no other test has the machine; it is this one's until the file is dropped. A test
/// without a bed that starts processes takes the machine too. Its processes would otherwise inherit
/// descriptors that a launcher's test, in another thread, means for its own.
pub fn take_machine() -> File {
    require_machine();
    let lock = File::create("/run/isonic-tests.lock").expect("lock file");
    flock(&lock, FlockOperation::LockExclusive).expect("lock");
    lock
}

/// Waits until no other bed is there, and removes what killed tests left.
fn only_one() -> Arc<File> {
    let lock = take_machine();
    Process::leave_orphans();
    Netns::sweep();
    for name in left_in(&std::env::temp_dir()) {
        let directory = std::env::temp_dir().join(name);
        for host in fs::read_dir(&directory).into_iter().flatten().flatten() {
            end_guests(&host.path());
        }
        let _ = fs::remove_dir_all(directory);
    }
    Arc::new(lock)
}

fn directory() -> tempfile::TempDir {
    let prefix = format!("{PREFIX}{}-", std::process::id());
    tempfile::Builder::new().prefix(&prefix).tempdir().expect("directory")
}

fn require_machine() {
    assert!(rustix::process::geteuid().is_root(), "must run as root: use scripts/test");
    for program in ["ip", "ethtool", "ping", "setpriv", "sysctl"] {
        let found = ["/bin", "/sbin", "/usr/bin", "/usr/sbin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists());
        assert!(found, "no {program} on this machine: run scripts/setup");
    }
}

/// A veth pair, `options` on both ends, with an address on the near one.
fn join(host: &Netns, wire: &Netns, uplink: &Uplink, options: &str) {
    let (nic, peer) = (&uplink.nic, &uplink.peer);
    let far = format!("name {peer} netns {} {options}", wire.name());
    ip(host, &format!("link add {nic} {options} type veth peer {far}"));
    address(host, nic, &uplink.host_address);
    for (namespace, interface) in [(host, nic), (wire, peer)] {
        ip(namespace, &format!("link set {interface} up"));
        // A veth end may leave checksums to the receiver's NIC. Over AF_XDP, such a checksum is
        // never filled in, and TCP would hang where ping works.
        namespace.run(&["ethtool", "-K", interface, "tx", "off"]);
    }
}

fn address(namespace: &Netns, interface: &str, address: &str) {
    ip(namespace, &format!("address add {address}/24 dev {interface}"));
}

fn ip(namespace: &Netns, arguments: &str) {
    let command_line: Vec<&str> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
    namespace.run(&command_line);
}
