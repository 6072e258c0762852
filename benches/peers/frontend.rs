//! The front-end of all: DPDK's virtio-user driver in a testpmd of its own, on the other core.

use std::time::Duration;

use crate::backend::{mac, socket};
use crate::case::{Case, Scenario};
use crate::common::Bed;
use crate::testpmd::{PortStats, Testpmd};
use crate::wire;

/// Its CPU.
pub const CPU: usize = 0;

/// Bursts of 32 packets that go around where packets do: no more than the smallest ring takes.
const BURSTS: usize = 8;

/// Time for packets on the way to arrive where nothing follows them.
const SETTLE: Duration = Duration::from_millis(100);

/// A connected front-end.
pub struct Frontend {
    testpmd: Testpmd,
    scenario: Scenario,
    ports: usize,
    running: bool,
}

impl Frontend {
    /// Connects to the backend of this case.
    pub fn start(bed: &Bed, case: &Case) -> Self {
        let ports = case.ports();
        let mut devices: Vec<String> =
            (0..ports).map(|port| virtio_user(bed, case, port)).collect();
        let mode = match case.scenario {
            Scenario::GuestToGuest => "io",
            Scenario::GuestToWire => "txonly",
            Scenario::WireToGuest => {
                // The wire's far end: frames that arrive there are dropped before it.
                let (object, peer) = (wire::compile(bed), &bed.uplinks[0].peer);
                let object = object.display();
                devices.push(format!("net_af_xdp0,iface={peer},xdp_prog={object}"));
                "io"
            }
            Scenario::RoundTrip => "macswap",
        };
        let topology = if devices.len() == 1 { "loop" } else { "paired" };
        let options = format!(
            "--forward-mode={mode} --port-topology={topology} --rxq={pairs} --txq={pairs}",
            pairs = case.pairs
        );
        let mut testpmd = Testpmd::start(bed, ("front-end", &bed.wire), CPU, &devices, &options);
        match case.scenario {
            Scenario::GuestToGuest => {
                testpmd.command(&format!("set eth-peer 0 {}", mac(1)));
                testpmd.command(&format!("set eth-peer 1 {}", mac(0)));
            }
            Scenario::WireToGuest => {
                testpmd.command(&format!("set eth-peer 1 {}", mac(0)));
            }
            Scenario::GuestToWire | Scenario::RoundTrip => {}
        }
        Self { testpmd, scenario: case.scenario, ports, running: false }
    }

    /// Sends frames of this length from now on.
    pub fn send(&mut self, len: usize) {
        self.pause();
        self.testpmd.command(&format!("set txpkts {len}"));
        if self.scenario == Scenario::GuestToWire {
            self.testpmd.command("start");
        } else {
            self.testpmd.command(&format!("start tx_first {BURSTS}"));
        }
        self.running = true;
    }

    fn pause(&mut self) {
        if std::mem::take(&mut self.running) {
            self.testpmd.command("stop");
            std::thread::sleep(SETTLE);
        }
    }

    /// The counters of its ports.
    pub fn ports(&mut self) -> Vec<PortStats> {
        self.testpmd.ports(self.ports)
    }

    /// Stops sending, and receives the packets under way. Returns the packets sent and received on
    /// the backend's ports since it was started.
    pub fn drain(&mut self) -> (u64, u64) {
        self.pause();
        self.testpmd.command("set fwd rxonly");
        self.testpmd.command("start");
        std::thread::sleep(SETTLE);
        self.testpmd.command("stop");
        let ports = self.ports();
        let count = |name| ports.iter().take(self.ports).map(|port| port.get(name)).sum();
        (count("TX-packets"), count("RX-packets"))
    }

    /// Packets it sent into the wire from the far end.
    pub fn sent_from_far_end(&mut self) -> u64 {
        let ports = self.testpmd.ports(self.ports + 1);
        ports[self.ports].get("TX-packets")
    }

    /// Ends it.
    pub fn quit(&mut self) {
        self.testpmd.quit();
    }
}

fn virtio_user(bed: &Bed, case: &Case, port: usize) -> String {
    format!(
        "net_virtio_user{port},path={path},queues={pairs},queue_size=1024,mac={mac}{rings}",
        path = bed.path(&socket(port)).display(),
        pairs = case.pairs,
        mac = mac(port),
        rings = case.rings.options(),
    )
}
