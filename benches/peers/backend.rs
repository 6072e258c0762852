//! The measured backend: isonic or a peer, serving the vhost-user sockets of a run.

use std::collections::BTreeMap;
use std::fs;
use std::time::Instant;

use serde_json::Value;

use crate::case::{Case, Scenario};
use crate::clock;
use crate::common::{Bed, Configuration, Daemon, NIC, PortSpec, Process, wait_for};
use crate::pinning::CPU;
use crate::reference;
use crate::testpmd::Testpmd;

/// Clock ticks per second (sysconf(3), _SC_CLK_TCK), which Linux never changes.
const TICKS: f64 = 100.0;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    /// The release build of this repository.
    Isonic,
    /// DPDK's testpmd: net_vhost and net_af_xdp, forwarded as they come.
    Dpdk,
    /// The reference device, twice.
    Reference,
}

impl Peer {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Isonic => "isonic",
            Self::Dpdk => "dpdk",
            Self::Reference => "reference",
        }
    }
}

/// Its counters at a moment, since it was started.
#[derive(Clone, Debug)]
pub struct Reading {
    at: Instant,
    /// Cycles that moved packets.
    busy_cycles: f64,
    /// Packets received from any side.
    packets: u64,
    /// User and system time of each thread, in clock ticks of 10 ms.
    threads: BTreeMap<String, (u64, u64)>,
    /// It calls the kernel also when it has nothing to do.
    calls_when_idle: bool,
}

/// The work of a backend's core between two readings.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Busy cycles per packet, the kernel's part included.
    pub cycles: f64,
    /// Those of them in user space.
    pub user: f64,
    /// Busy cycles, as a share of all.
    pub busy: f64,
}

impl Reading {
    /// This process, one of whose threads has moved so many packets in so many cycles.
    pub fn of_bench(busy_cycles: f64, packets: u64) -> Self {
        let threads = threads(std::process::id());
        Self { at: Instant::now(), busy_cycles, packets, threads, calls_when_idle: false }
    }

    /// The cost since an earlier reading.
    pub fn since(&self, before: &Self) -> Cost {
        #[allow(clippy::cast_precision_loss, reason = "counters of seconds")]
        let packets = (self.packets - before.packets).max(1) as f64;
        let cycles = self.busy_cycles - before.busy_cycles;
        let seconds = (self.at - before.at).as_secs_f64();
        let spent = self.threads.iter().map(|(thread, &(user, system))| {
            let (user_before, system_before) =
                before.threads.get(thread).copied().unwrap_or((0, 0));
            (user - user_before, system - system_before)
        });
        // The worker polls, so no other thread uses as much.
        let (user, system) = spent.max_by_key(|(user, system)| user + system).unwrap_or((0, 0));
        #[allow(clippy::cast_precision_loss, reason = "ticks of seconds")]
        let (user, system) = (user as f64, system as f64);
        // Neither of these two estimates is too high. The first applies the system share of all its
        // time, idle turns included, to the busy cycles. The second takes all its system time. It
        // is right for a backend that calls the kernel in busy turns only, while nobody interrupts
        // those turns.
        let by_share = cycles * system / (user + system).max(1.0);
        let all = if self.calls_when_idle { 0.0 } else { system * clock::hertz() / TICKS };
        let in_kernel = by_share.max(all);
        let user = (cycles - in_kernel).max(0.0) / packets;
        Cost { cycles: cycles / packets, user, busy: cycles / seconds / clock::hertz() }
    }
}

/// User and system time of the threads of a process (proc(5), fields 14 and 15 of stat).
fn threads(process: u32) -> BTreeMap<String, (u64, u64)> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).expect("the backend's threads");
    let threads = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit(')').next()?.split_whitespace().collect();
        let thread = entry.file_name().into_string().ok()?;
        Some((thread, (fields[11].parse().ok()?, fields[12].parse().ok()?)))
    });
    threads.collect()
}

/// Packets that went no further, by reason.
pub type Drops = BTreeMap<String, u64>;

/// A running backend; ended on drop.
pub enum Backend<'bed> {
    /// The daemon and its ports.
    Isonic(Daemon<'bed>, usize),
    /// testpmd.
    Dpdk(Testpmd),
    /// A process of this bench.
    Reference { _process: Process },
}

impl<'bed> Backend<'bed> {
    /// Starts `peer` and waits until its sockets are there.
    pub fn start(peer: Peer, bed: &'bed Bed, case: &Case) -> Self {
        let backend = match peer {
            Peer::Isonic => Self::isonic(bed, case),
            Peer::Dpdk => Self::dpdk(bed, case),
            Peer::Reference => {
                let sockets = [0, 1].map(|port| bed.path(&socket(port)));
                Self::Reference { _process: reference::start(bed, sockets) }
            }
        };
        for port in 0..case.ports() {
            let socket = bed.path(&socket(port));
            wait_for("the backend's sockets are there", 20, || socket.exists());
        }
        backend
    }

    fn isonic(bed: &'bed Bed, case: &Case) -> Self {
        let port = |port| PortSpec {
            name: name(port),
            mac: mac(port),
            profile: case.rings.profile().to_owned(),
            allow_draft: true,
            ..PortSpec::switch(NIC, 1)
        };
        let ports: Vec<_> = (0..case.ports() + case.idle).map(port).collect();
        let configuration =
            Configuration { worker_cpus: vec![CPU], ..Configuration::new(bed, ports) };
        Self::Isonic(Daemon::start(bed, &configuration), case.ports())
    }

    fn dpdk(bed: &'bed Bed, case: &Case) -> Self {
        let vhost = |port| {
            let path = bed.path(&socket(port));
            format!("net_vhost{port},iface={},queues={}", path.display(), case.pairs)
        };
        let mut devices: Vec<String> = (0..case.ports()).map(vhost).collect();
        if case.scenario != Scenario::GuestToGuest {
            devices.push(format!("net_af_xdp0,iface={NIC}"));
        }
        let options = format!("--forward-mode=io --rxq={0} --txq={0}", case.pairs);
        let mut testpmd = Testpmd::start(bed, ("backend", &bed.host), CPU, &devices, &options);
        testpmd.command("set record-core-cycles on");
        testpmd.command("start");
        Self::Dpdk(testpmd)
    }

    /// Waits until the front-end's rings are started.
    pub fn wait_running(&self) {
        if let Self::Isonic(daemon, ports) = self {
            for port in 0..*ports {
                daemon.wait_state(&name(port), "running");
            }
        }
    }

    /// Its counters now; the reference device has none.
    pub fn reading(&mut self) -> Option<Reading> {
        let asked = Instant::now();
        let (process, busy_cycles, packets) = match self {
            Self::Reference { .. } => return None,
            Self::Isonic(daemon, _) => {
                let stats = daemon.json(&["stats"]);
                let workers = stats["workers"].as_array().into_iter().flatten();
                let busy: u64 = workers.map(|worker| count(worker, "busy_nanoseconds")).sum();
                let from_guests = sum(&stats["ports"], |name| name == "from_guest_packets");
                let from_uplinks = sum(&stats["uplinks"], |name| name == "rx_packets");
                #[allow(clippy::cast_precision_loss, reason = "nanoseconds of minutes")]
                let cycles = busy as f64 * clock::hertz() / 1e9;
                (daemon.id(), cycles, from_guests + from_uplinks)
            }
            Self::Dpdk(testpmd) => {
                let stats = testpmd.forwarding();
                #[allow(clippy::cast_precision_loss, reason = "cycles of minutes")]
                let cycles = stats.busy_cycles as f64;
                (testpmd.id(), cycles, stats.packets)
            }
        };
        // The asking thread shares a CPU with a front-end that polls, and is held up before and
        // after.
        let at = asked + asked.elapsed() / 2;
        let threads = threads(process);
        // DPDK's AF_XDP driver asks the kernel for packets when it finds none.
        let calls_when_idle = matches!(self, Self::Dpdk(_));
        Some(Reading { at, busy_cycles, packets, threads, calls_when_idle })
    }

    /// The packets it has dropped.
    pub fn drops(&mut self) -> Drops {
        let mut drops = Drops::new();
        match self {
            Self::Isonic(daemon, _) => {
                let stats = daemon.json(&["stats"]);
                // The NIC also counts the kernel's drops.
                for part in [&stats["ports"], &stats["uplinks"]] {
                    for (name, value) in all_counters(part) {
                        if name.contains("_dropped_") && !name.starts_with("kernel_") {
                            *drops.entry(name).or_default() += value;
                        }
                    }
                }
            }
            Self::Dpdk(testpmd) => {
                drops.insert("forwarding".to_owned(), testpmd.forwarding().dropped);
            }
            Self::Reference { .. } => {}
        }
        drops
    }

    /// How many packets may be left in its rings when all stands still.
    pub fn may_keep(&self) -> u64 {
        match self {
            Self::Isonic(..) | Self::Reference { .. } => 0,
            // Its AF_XDP driver wakes the kernel only when it sends. The last bursts stay in the
            // transmit ring if the kernel had no time.
            Self::Dpdk(_) => 2048,
        }
    }
}

fn name(port: usize) -> String {
    format!("vm{}", port + 1)
}

/// The file of a port's socket.
pub fn socket(port: usize) -> String {
    format!("{}.sock", name(port))
}

/// The MAC of a port, as isonic is configured.
pub fn mac(port: usize) -> String {
    let [high, low] = u16::try_from(port + 1).expect("few ports").to_be_bytes();
    format!("52:54:00:00:{high:02x}:{low:02x}")
}

fn counters(part: &Value) -> Vec<(String, u64)> {
    let all = part.as_object().into_iter().flatten();
    all.filter_map(|(name, value)| Some((name.clone(), value.as_u64()?))).collect()
}

fn count(part: &Value, name: &str) -> u64 {
    part[name].as_u64().unwrap_or_else(|| panic!("isonic counts no {name}: {part}"))
}

fn all_counters(parts: &Value) -> impl Iterator<Item = (String, u64)> {
    parts.as_object().into_iter().flat_map(|all| all.values()).flat_map(counters)
}

/// Over all ports or uplinks, the counters of this name.
fn sum(parts: &Value, wanted: impl Fn(&str) -> bool) -> u64 {
    all_counters(parts).filter(|(name, _)| wanted(name)).map(|(_, value)| value).sum()
}
