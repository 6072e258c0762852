//! The facts about this host: its kernel, its CPUs and nodes, its limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use rustix::system::uname;
use serde::Serialize;

use super::privilege;

/// The facts about a host that decide how well it can serve ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct HostFacts {
    /// `uname -r`.
    pub kernel: String,
    /// `uname -v`, which has the relevant version number on Debian.
    pub kernel_build: String,
    /// Capabilities that we need and lack.
    pub missing_capabilities: Vec<String>,
    /// Locked memory allowed, bytes; None if unlimited.
    pub locked_memory: Option<u64>,
    /// Open files allowed, by the hard limit; None if unlimited.
    pub open_files: Option<u64>,
    /// Memory that could be had, bytes.
    pub available_memory: Option<u64>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<u32>,
    /// Huge pages of the default size.
    pub huge_pages: u64,
    /// The CPUs that we may run on.
    pub cpus: BTreeSet<usize>,
    /// The NUMA node of each CPU.
    pub nodes: BTreeMap<usize, u32>,
    /// CPUs that the scheduler leaves alone (`isolcpus=`).
    pub isolated: BTreeSet<usize>,
    /// Whether TAP devices can be made: /dev/net/tun is there.
    pub tun: bool,
    /// CPUs without a tick while one thread runs (`nohz_full=`).
    pub tickless: BTreeSet<usize>,
}

impl HostFacts {
    /// Read the facts. Capabilities are those to make `sockets` and to put a `program` on a NIC.
    #[must_use]
    pub fn read(sockets: bool, program: bool) -> Self {
        let system = uname();
        let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
        let cpus = |file: &str| cpu_list(&read(&format!("/sys/devices/system/cpu/{file}")));
        let limit = getrlimit(Resource::Memlock).current;
        let memory = read("/proc/meminfo");
        Self {
            kernel: text(system.release()),
            kernel_build: text(system.version()),
            missing_capabilities: privilege::missing(sockets, program),
            locked_memory: limit.filter(|_| !privilege::may_lock_memory()),
            open_files: getrlimit(Resource::Nofile).maximum,
            available_memory: memory_field(&memory, "MemAvailable").map(|kib| kib << 10),
            unprivileged_bpf_disabled: read("/proc/sys/kernel/unprivileged_bpf_disabled")
                .trim()
                .parse()
                .ok(),
            huge_pages: memory_field(&memory, "HugePages_Total").unwrap_or(0),
            cpus: core_affinity::get_core_ids()
                .unwrap_or_default()
                .into_iter()
                .map(|cpu| cpu.id)
                .collect(),
            nodes: nodes(),
            isolated: cpus("isolated"),
            tun: Path::new("/dev/net/tun").exists(),
            tickless: cpus("nohz_full"),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A number of /proc/meminfo (proc_meminfo(5)).
fn memory_field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

fn nodes() -> BTreeMap<usize, u32> {
    let entries = fs::read_dir("/sys/devices/system/node").into_iter().flatten().flatten();
    let node = |name: &str| name.strip_prefix("node")?.parse::<u32>().ok();
    let of_node = |entry: fs::DirEntry| {
        let node = node(entry.file_name().to_str()?)?;
        let cpus = cpu_list(&fs::read_to_string(entry.path().join("cpulist")).ok()?);
        Some(cpus.into_iter().map(move |cpu| (cpu, node)))
    };
    entries.filter_map(of_node).flatten().collect()
}

/// Parse the kernel's form of a set of CPUs: `0-3,8`. Other text is skipped.
fn cpu_list(text: &str) -> BTreeSet<usize> {
    /// More CPUs than any machine has.
    const CPUS_MAX: usize = 1 << 16;
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        Some(first..=usize::min(last, CPUS_MAX))
    };
    text.split(',').filter_map(range).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cpus_is_read_as_the_kernel_writes_it() {
        let list = |text| Vec::from_iter(cpu_list(text));
        assert_eq!(list("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(list("5"), [5]);
        assert_eq!(list("\n"), [0; 0]);
        assert_eq!(list("(null)"), [0; 0], "what nohz_full says where there are none");
        assert_eq!(list("3-1"), [0; 0]);
    }

    #[test]
    fn memory_is_read_by_its_whole_name() {
        let text = "MemTotal:  10 kB\nMemAvailable:    7 kB\nHugePages_Total:  2\n";
        assert_eq!(memory_field(text, "MemAvailable"), Some(7));
        assert_eq!(memory_field(text, "HugePages_Total"), Some(2));
        assert_eq!(memory_field(text, "Mem"), None);
    }

    #[test]
    fn this_host_has_a_kernel_and_cpus() {
        let host = HostFacts::read(true, true);
        assert!(host.kernel.contains('.') && !host.cpus.is_empty());
    }
}
