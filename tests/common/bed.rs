//! What every test stands on: two namespaces joined by veth pairs, and a directory.
//!
//! ```text
//!   namespace "host": isonic here            namespace "wire": the network
//!   isonic-nic0  10.77.0.254  <── veth ──>  isonic-peer0  10.77.0.1
//!   isonic-nic1  10.77.1.254  <── veth ──>  isonic-peer1  10.77.1.1
//! ```

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::netns::{Netns, PREFIX, left_in};

/// The first uplink's interface.
pub const NIC: &str = "isonic-nic0";

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

/// Namespaces, veth pairs and a directory. Only one exists at a time on the machine.
#[derive(Debug)]
pub struct Bed {
    /// Where isonic runs.
    pub host: Netns,
    /// The network beyond the uplinks.
    pub wire: Netns,
    /// The veth pairs.
    pub uplinks: Vec<Uplink>,
    directory: tempfile::TempDir,
    // Last, so that all is gone when the next bed is made.
    _lock: File,
}

impl Bed {
    /// A bed with `uplinks` veth pairs of `queues` queues each.
    pub fn new(uplinks: usize, queues: u32) -> Self {
        Self::with_mtu(uplinks, queues, 1500)
    }

    /// The same with veth pairs of this MTU.
    pub fn with_mtu(uplinks: usize, queues: u32, mtu: u32) -> Self {
        require_machine();
        let lock = File::create("/run/isonic-tests.lock").expect("lock file");
        flock(&lock, FlockOperation::LockExclusive).expect("lock");
        Netns::sweep();
        let (host, wire) = (Netns::new("host"), Netns::new("wire"));
        let options = format!("mtu {mtu} numtxqueues {queues} numrxqueues {queues}");
        let uplinks = (0..uplinks).map(|number| join(&host, &wire, number, &options)).collect();
        for name in left_in(&std::env::temp_dir()) {
            let _ = fs::remove_dir_all(std::env::temp_dir().join(name));
        }
        let prefix = format!("{PREFIX}{}-", std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().expect("directory");
        Self { host, wire, uplinks, directory, _lock: lock }
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

fn require_machine() {
    assert!(rustix::process::geteuid().is_root(), "must run as root: use scripts/test");
    for program in ["ip", "ethtool", "ping", "setpriv", "sysctl"] {
        let found = ["/bin", "/sbin", "/usr/bin", "/usr/sbin"]
            .iter()
            .any(|folder| Path::new(folder).join(program).exists());
        assert!(found, "no {program} on this machine: run scripts/setup");
    }
}

/// A veth pair, `options` on both ends.
fn join(host: &Netns, wire: &Netns, number: usize, options: &str) -> Uplink {
    let uplink = Uplink {
        nic: format!("isonic-nic{number}"),
        peer: format!("isonic-peer{number}"),
        host_address: format!("10.77.{number}.254"),
        wire_address: format!("10.77.{number}.1"),
        subnet: number,
    };
    ip(
        host,
        &format!(
            "link add {} {options} type veth peer name {} netns {} {options}",
            uplink.nic,
            uplink.peer,
            wire.name()
        ),
    );
    let ends =
        [(host, &uplink.nic, &uplink.host_address), (wire, &uplink.peer, &uplink.wire_address)];
    for (namespace, interface, address) in ends {
        ip(namespace, &format!("address add {address}/24 dev {interface}"));
        ip(namespace, &format!("link set {interface} up"));
        // A veth end that leaves checksums to the receiver's NIC sends frames over AF_XDP whose
        // checksum nobody ever fills in: TCP would hang where ping works.
        namespace.run(&["ethtool", "-K", interface, "tx", "off"]);
    }
    uplink
}

fn ip(namespace: &Netns, arguments: &str) {
    let command_line: Vec<&str> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
    namespace.run(&command_line);
}
