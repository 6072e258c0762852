//! The harness of the tests that need a machine: network namespaces, the daemon, QEMU guests and
//! DPDK's virtio-user, all real.
//!
//! (`Libvirtd` is Debian's libvirtd, in directories of its own.)
//!
//! A test makes a [`Bed`], starts a [`Daemon`] and its counterparts on it, and asserts. Everything
//! started is recorded by process id and ended on drop, by a panic too. The next run removes the
//! remains of a killed one.
//!
//! Beds exclude each other over all processes of this machine, because two emulated guests keep two
//! cores busy. Parts of tests without a bed run in parallel.
//!
//! Needs root, Debian's packages (`scripts/setup`) and the guest (`scripts/guest-image`); a test
//! fails and says so where they are missing. Knows nothing of the library: only the binary, its
//! configuration file, its JSON and the wire.

#![allow(dead_code, unused_imports, reason = "every test binary uses its own part")]

mod agent;
mod bed;
mod capture;
mod daemon;
mod echo_flow;
mod emulator;
mod exchange;
mod flows;
mod guest;
mod inner_host;
mod libvirt;
mod migration;
mod monitor;
mod netns;
mod packet_socket;
mod passage;
mod process;
mod scene;
mod service_manager;
mod testpmd;
mod traffic;
mod xsk;

pub use agent::Agent;
pub use bed::{BRIDGE, Bed, NIC, Uplink, take_machine};
pub use capture::{Capture, Checksums, TcpFrame};
pub use daemon::{Configuration, Daemon, PROFILE, PortSpec};
pub use echo_flow::{EchoFlow, Tally};
pub use exchange::exchange;
pub use flows::{Flow, Flows, Outage, Report, kernel_drops};
pub use guest::{Guest, GuestSpec};
pub use inner_host::{InnerHost, InnerNic, program, tap, this_program, uplink, variable};
pub use libvirt::{Libvirtd, Qemu, open_to};
pub use migration::{Migration, Refused};
pub use monitor::Monitor;
pub use netns::Netns;
pub use packet_socket::{PacketSocket, tcp_burst};
pub use passage::{Fate, Passage, passage};
pub use process::{Finished, Process, cpu_ticks, run, run_to_end};
pub use scene::{Moves, Scene};
pub use service_manager::ServiceManager;
pub use testpmd::{Testpmd, VirtioUser};
pub use traffic::{echo_datagrams, echo_stream, ping, receive_stream, send_stream, wait_reachable};
pub use xsk::{XskFacts, spoil_fill_rings, xsk_facts};

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// The factor by which things may take longer than on a quiet machine: other work may be under way
/// here too. A test that passes does not wait for it.
const PATIENCE: u64 = 4;

/// Polls until `what` holds; panics with it after `seconds`, many times over on a quiet machine.
pub fn wait_for(what: &str, seconds: u64, holds: impl FnMut() -> bool) {
    assert!(holds_within(seconds, holds), "waited {} s in vain until {what}", PATIENCE * seconds);
}

/// Polls until something holds; answers whether it did, as in [`wait_for`].
pub fn holds_within(seconds: u64, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(PATIENCE * seconds);
    while !holds() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// A file of the repository.
pub fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}
