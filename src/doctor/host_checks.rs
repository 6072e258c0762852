//! Checks that hold for every interface: privileges, limits, the kernel.

use super::facts::{Candidate, Facts, our_part};
use super::finding::{Finding, list};
use super::kernel::{self, Version};
use crate::control::api::{ProblemView, UplinkState, UplinkView};
use crate::platform::directory::Directory;

/// Locked memory of one queue: its frames and rings (docs/operations.md, "Configuration").
const QUEUE_BYTES: u64 = 16 << 20;
const MIB: u64 = 1 << 20;

pub(super) fn examine(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![
        privileges(facts),
        program(facts),
        sockets(facts),
        locked_memory(facts),
        memory(facts),
        kernel(facts),
    ];
    findings.extend(faults(facts));
    findings.push(huge_pages(facts));
    findings.push(workers(facts));
    findings.push(open_files(facts));
    findings.extend(directories(facts));
    findings.extend(daemon(facts));
    findings.extend(problems(facts));
    findings
}

fn privileges(facts: &Facts) -> Finding {
    let missing = &facts.host.missing_capabilities;
    let open = facts.host.unprivileged_bpf_disabled == Some(0);
    if !missing.is_empty() {
        let missing = missing.join(" ");
        return Finding::problem("privileges", format!("{missing}: missing"))
            .means("AF_XDP needs them for its sockets and for the XDP program")
            .mend(format!("run as root, or under systemd with AmbientCapabilities={missing}"));
    }
    let all = "all capabilities that are needed";
    if open {
        return Finding::note("privileges", format!("{all}; and BPF is open to everybody"))
            .means("isonic does not need that, and it is seen as a risk")
            .mend("sysctl kernel.unprivileged_bpf_disabled=2");
    }
    Finding::ok("privileges", all)
}

fn program(facts: &Facts) -> Finding {
    if !our_part(&facts.candidates).1 {
        return Finding::ok("bpf", "not needed: a launcher has its program on the NIC");
    }
    let Err(reason) = &facts.program else {
        return Finding::ok("bpf", "our XDP program loads");
    };
    let finding = Finding::problem("bpf", format!("our XDP program does not load: {reason}"));
    let oldest = kernel::OLDEST;
    match version(facts) {
        Some(version) if version < oldest => finding
            .means(format!("it needs Linux {oldest} or its changes carried back"))
            .mend("install a later kernel"),
        _ => finding
            .means("the kernel has no BPF for XDP, or this process may not use it")
            .mend("what libbpf says of it on standard error"),
    }
}

fn sockets(facts: &Facts) -> Finding {
    if !our_part(&facts.candidates).0 {
        return Finding::ok("af-xdp", "not needed: a launcher makes the sockets");
    }
    match &facts.sockets {
        Ok(()) => Finding::ok("af-xdp", "AF_XDP sockets can be made"),
        Err(reason) => Finding::problem("af-xdp", reason.clone())
            .means("frames would have no way to isonic")
            .mend("grep XDP_SOCKETS /boot/config-$(uname -r)"),
    }
}

/// The queues of all interfaces, if all are wanted; else those of the greediest.
fn wanted_queues(facts: &Facts) -> u64 {
    let queues = |candidate: &Candidate| {
        let all = candidate.nic.as_ref().map_or(1, |nic| u64::from(nic.receive_queues()));
        candidate.wanted.queues.as_ref().map_or(all, |queues| queues.len() as u64)
    };
    let each = facts.candidates.iter().map(queues);
    if facts.all_wanted { each.sum() } else { each.max().unwrap_or(0) }
}

fn locked_memory(facts: &Facts) -> Finding {
    let queues = wanted_queues(facts);
    let (wanted, id) = (queues * QUEUE_BYTES, "locked-memory");
    match facts.host.locked_memory {
        None => Finding::ok(id, format!("no limit ({} MiB wanted)", wanted / MIB)),
        Some(limit) if limit >= wanted => {
            Finding::ok(id, format!("{} MiB allowed, {} wanted", limit / MIB, wanted / MIB))
        }
        Some(limit) => {
            let found = format!(
                "{} KiB allowed, {} MiB wanted for {queues} queues",
                limit / 1024,
                wanted / MIB
            );
            Finding::problem(id, found)
                .means("frame memory is pinned, and counts against the limit")
                .mend("LimitMEMLOCK=infinity in isonic.service, or `ulimit -l unlimited`")
        }
    }
}

fn memory(facts: &Facts) -> Finding {
    let wanted = wanted_queues(facts) * QUEUE_BYTES;
    let Some(available) = facts.host.available_memory else {
        return Finding::note("memory", "the kernel does not say how much there is");
    };
    let found = format!("{} MiB available, {} wanted", available / MIB, wanted / MIB);
    if available < wanted {
        return Finding::warning("memory", found)
            .means("the frame memory of all queues may not be had")
            .mend("take fewer queues with `queues = [...]`");
    }
    Finding::ok("memory", found)
}

fn version(facts: &Facts) -> Option<Version> {
    Version::parse(&facts.host.kernel, &facts.host.kernel_build)
}

fn kernel(facts: &Facts) -> Finding {
    let release = &facts.host.kernel;
    let Some(version) = version(facts) else {
        return Finding::note("kernel", format!("{release}, of which nothing is known"));
    };
    let found = format!("Linux {version}");
    let lacking = kernel::lacking(version);
    if lacking.is_empty() {
        return Finding::ok("kernel", found);
    }
    Finding::note("kernel", format!("{found}, of {release}"))
        .means(format!("unless your distribution carried it back, without {}", list(&lacking)))
        .mend("install a later kernel if you need one of them")
}

fn faults(facts: &Facts) -> Vec<Finding> {
    let Some(version) = version(facts) else { return Vec::new() };
    let finding = |fault: &kernel::Fault| {
        let found = format!("Linux {version} had {}", fault.id);
        let finding = if fault.concerns_us {
            Finding::warning("kernel-fault", found)
        } else {
            Finding::note("kernel-fault", found)
        };
        let releases = fault.fixed_in();
        finding
            .means(format!("{}; fixed in {releases}, or by your distribution", fault.what))
            .mend(format!("look for {} in the kernel package's changelog", fault.id))
    };
    kernel::faults(version).map(finding).collect()
}

fn huge_pages(facts: &Facts) -> Finding {
    let count = facts.host.huge_pages;
    Finding::ok("huge-pages", format!("{count}; isonic needs none, guests' memory may have them"))
}

fn workers(facts: &Facts) -> Finding {
    let (workers, cpus) = (facts.workers, &facts.host.cpus);
    let id = "workers";
    let absent: Vec<usize> =
        facts.worker_cpus.iter().flatten().copied().filter(|cpu| !cpus.contains(cpu)).collect();
    if !absent.is_empty() {
        return Finding::warning(id, format!("CPU {} is not ours to run on", list(&absent)))
            .means("its worker runs where the scheduler puts it")
            .mend("worker_cpus with CPUs of `nproc --all` and of isonic's cpuset");
    }
    if workers > cpus.len() {
        return Finding::warning(id, format!("{workers} workers, {} CPUs", cpus.len()))
            .means("none is pinned, and they take turns")
            .mend(format!("workers = {}", cpus.len().max(1)));
    }
    let queues = wanted_queues(facts);
    if workers as u64 > queues && queues > 0 {
        return Finding::warning(id, format!("{workers} workers, {queues} queues"))
            .means("a worker without a queue receives nothing from the wire")
            .mend(format!("workers = {queues}"));
    }
    Finding::ok(id, format!("{workers} of {} CPUs", cpus.len()))
}

/// The directories that cannot be written to; one finding for all if there is none.
fn directories(facts: &Facts) -> Vec<Finding> {
    let (id, all) = ("directories", &facts.directories);
    let finding = |it: &Directory| {
        let found = format!("{} {}: {}", it.what, it.path.display(), it.problem.as_ref()?);
        Some(
            Finding::problem(id, found)
                .means("isonic does not start, or serves ports and keeps nothing of them")
                .mend(format!("mkdir -p {0}; df {0}; for a service: its User=", it.path.display())),
        )
    };
    let broken: Vec<Finding> = all.iter().filter_map(finding).collect();
    if !broken.is_empty() || all.is_empty() {
        return broken;
    }
    let names: Vec<String> = all.iter().map(|it| it.path.display().to_string()).collect();
    vec![Finding::ok(id, format!("{} can be written to", list(&names)))]
}

fn daemon(facts: &Facts) -> Option<Finding> {
    let daemon = facts.daemon.as_ref()?;
    let name = |uplink: &UplinkView| match uplink.state {
        UplinkState::Up => uplink.interface.clone(),
        state => format!("{} ({})", uplink.interface, format!("{state:?}").to_lowercase()),
    };
    let names: Vec<String> = daemon.uplinks.iter().map(name).collect();
    let (id, found) = ("daemon", format!("isonic {} runs, with {}", daemon.version, list(&names)));
    let lost =
        |uplink: &UplinkView| matches!(uplink.state, UplinkState::Failed | UplinkState::Gone);
    if !daemon.uplinks.iter().any(lost) {
        return Some(Finding::ok(id, found));
    }
    Some(
        Finding::warning(id, found)
            .means("the ports of an uplink that failed or is gone are cut off from its network")
            .mend("isonic uplink list"),
    )
}

fn problems(facts: &Facts) -> Vec<Finding> {
    let problems = facts.daemon.iter().flat_map(|daemon| &daemon.problems);
    let finding = |problem: &ProblemView| {
        Finding::warning("daemon-problem", format!("{}: {}", problem.id, problem.message))
            .means("the running isonic serves, but not all that it is asked for")
            .mend("docs/operations.md, \"When the host has a bad day\"")
    };
    problems.map(finding).collect()
}

/// Descriptors, as QEMU starts a device, of three things. The first is the daemon itself with a
/// waiting port; then a connected front-end with a dozen regions; then a queue pair.
const OPEN_FILES: [u64; 3] = [300, 25, 4];

/// Open files, against the ports of the configuration, all of one queue pair at least.
fn open_files(facts: &Facts) -> Finding {
    let id = "open-files";
    let Some(limit) = facts.host.open_files else { return Finding::ok(id, "no limit") };
    let [own, port, pair] = OPEN_FILES;
    let promises = facts.candidates.iter().flat_map(|candidate| &candidate.promises);
    let ports = promises.filter(|promise| promise.port.is_some()).count() as u64;
    let wanted = own + u64::max(ports, 1) * (port + pair);
    let found = format!("{limit} allowed, {wanted} wanted for ports of one queue pair each");
    if limit >= wanted {
        return Finding::ok(id, found);
    }
    Finding::warning(id, found)
        .means("front-ends are refused when nothing but the reserve for control is left")
        .mend("LimitNOFILE=524288 in isonic.service, or `ulimit -Hn 524288`")
}
