//! Checks of whether the interface can be had: its state, its users, and the host's work on it.

use super::facts::Candidate;
use super::finding::{Finding, list};
use super::kernel::HOST_SHARING;
use super::subject::Subject;
use crate::control::api::{UplinkState, UplinkView};
use crate::xdp::nic::{AttachedProgram, Manager};

pub(super) fn examine(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = vec![driver(subject), kind(subject), up(subject), program(subject)];
    findings.extend(state(subject));
    findings.extend(master(subject));
    findings.extend(uppers(subject));
    findings.extend(addresses(subject));
    findings.extend(host_sharing(subject));
    findings.extend(manager(subject));
    findings
}

/// The parts that join the host to its VMs (`host = true`).
fn host_sharing(subject: &Subject<'_>) -> Option<Finding> {
    let id = "host-sharing";
    if !subject.candidate.wanted.host {
        return None;
    }
    if subject.kernel().is_some_and(|kernel| kernel < HOST_SHARING) {
        let found = format!("host = true on Linux {}", subject.facts.host.kernel);
        return Some(
            Finding::problem(id, found)
                .means(format!("its programs are attached by tcx, since Linux {HOST_SHARING}"))
                .mend("install a later kernel, or leave out `host`"),
        );
    }
    Some(if subject.facts.host.tun {
        Finding::ok(id, "host and VMs reach each other")
    } else {
        Finding::problem(id, "there is no /dev/net/tun")
            .means("packets between the host and its VMs go through a TAP device")
            .mend("modprobe tun")
    })
}

fn driver(subject: &Subject<'_>) -> Finding {
    let nic = subject.nic;
    let part = |what: &str, version: &Option<String>| {
        version.as_ref().map(|version| format!(", {what} {version}")).unwrap_or_default()
    };
    let (version, firmware) =
        (part("version", &nic.driver_version), part("firmware", &nic.firmware));
    Finding::ok("driver", format!("{}{version}{firmware}", nic.link.driver))
}

/// Whether a device of this kind can be an uplink.
fn kind(subject: &Subject<'_>) -> Finding {
    let (id, device) = ("kind", &subject.nic.device);
    if let Err(unfit) = device.fit() {
        return Finding::problem(id, unfit.to_string())
            .means("isonic does not start with it")
            .mend("isonic doctor, without --uplink, looks at every NIC");
    }
    let Candidate { promises, wires, .. } = subject.candidate;
    let cautions = device.cautions(false);
    if let Some(caution) = cautions.into_iter().find(|caution| caution.check == id) {
        // Every port that is no wire port is a switch port.
        let refused = device.own_mac_only() && promises.len() > wires.len();
        let of = if refused { Finding::problem } else { Finding::warning };
        return of(id, caution.found).means(caution.meaning).mend(caution.remedy);
    }
    let names: Vec<&str> = device.below.iter().map(|lower| lower.interface.as_str()).collect();
    let kind = &device.kind;
    Finding::ok(
        id,
        if names.is_empty() { kind.clone() } else { format!("{kind} on {}", list(&names)) },
    )
}

/// The uplink's state in the running isonic.
fn state(subject: &Subject<'_>) -> Option<Finding> {
    let (id, view) = ("uplink-state", subject.served?);
    let problem = view.problem.as_deref().unwrap_or("no reason is known");
    Some(match view.state {
        UplinkState::Up => Finding::ok(id, "packets move"),
        UplinkState::Down => Finding::warning(id, "the running isonic has it down")
            .means("what VMs send there is dropped and counted until the link is up")
            .mend(format!("ip link set dev {} up, or see to the cable", subject.name)),
        UplinkState::Gone => Finding::problem(id, "the running isonic knows no such interface")
            .means("its VMs are cut off; it is used again when it is up under this name")
            .mend("ip link"),
        UplinkState::Failed => {
            Finding::problem(id, format!("the running isonic cannot open it: {problem}"))
                .means("its VMs are cut off; isonic tries again every five seconds")
                .mend("see to the reason; isonic need not be restarted")
        }
    })
}

fn up(subject: &Subject<'_>) -> Finding {
    let (name, link) = (subject.name, &subject.nic.link);
    if !link.up {
        return Finding::problem("link", "down")
            .means("nothing can be bound to it")
            .mend(format!("ip link set dev {name} up"));
    }
    if !link.carrier {
        return Finding::warning("link", "up, without a carrier")
            .means("nothing comes in and nothing goes out until there is another end")
            .mend(format!("ethtool {name}"));
    }
    Finding::ok("link", "up")
}

fn program(subject: &Subject<'_>) -> Finding {
    let (name, id) = (subject.name, "xdp-program");
    let handed = subject.candidate.wanted.handed.is_some();
    let open = |view: &&UplinkView| matches!(view.state, UplinkState::Up | UplinkState::Down);
    let Some(program) = &subject.nic.link.program else {
        return match subject.served.filter(open) {
            None => Finding::ok(id, "none is attached"),
            Some(_) => Finding::warning(id, "that of the running isonic is gone")
                .means("VMs receive nothing from the wire")
                .mend("isonic attaches it again within five seconds; else restart it"),
        };
    };
    let holder = program.holder.as_ref().map(|holder| format!(" ({holder})"));
    let found = format!("{program}{} is attached", holder.unwrap_or_default());
    if let Some(view) = subject.served.filter(|view| open(view) && is_its(view, program, handed)) {
        let mode = format!("{:?}, {:?}", view.xdp_mode, view.socket_mode).to_lowercase();
        return Finding::ok(id, format!("that of the running isonic: {mode}; {}", view.reason));
    }
    if handed {
        return Finding::ok(id, format!("{found}, the launcher's"));
    }
    let finding = Finding::problem(id, found);
    if program.is_ours() {
        return finding
            .means("another isonic has the interface, and its API is not the one that was asked")
            .mend("--api-socket of that isonic, or stop it");
    }
    let meaning = match subject.served {
        Some(_) => "it is not that of the running isonic, whose VMs receive nothing meanwhile",
        None => "two programs cannot be attached by two owners",
    };
    finding
        .means(meaning)
        .mend(format!("bpftool net show dev {name}; then ip link set dev {name} xdp off"))
}

/// Whether the program on an interface is the one of the isonic that serves it. An earlier version
/// does not tell its program's number. A program's name needs privileges to see.
fn is_its(view: &UplinkView, program: &AttachedProgram, handed: bool) -> bool {
    match view.program_id {
        Some(id) => program.ids.contains(&id),
        None => handed || program.name.is_none() || program.is_ours(),
    }
}

fn master(subject: &Subject<'_>) -> Option<Finding> {
    let (name, id) = (subject.name, "master");
    let master = subject.nic.link.master.as_ref()?;
    let found = format!("a port of the {} {}", master.kind, master.interface);
    let meaning = match master.kind.as_str() {
        "bond" | "team" => {
            "VMs would use this one link of several, and lose it when the bond changes to another"
        }
        _ => {
            "VMs' frames go past it: they do not reach what is connected to it, and their \
             addresses are learnt on no port of it"
        }
    };
    Some(
        Finding::warning(id, found).means(meaning).mend(format!("ip link set dev {name} nomaster")),
    )
}

fn uppers(subject: &Subject<'_>) -> Option<Finding> {
    let uppers = &subject.nic.link.uppers;
    if uppers.is_empty() {
        return None;
    }
    let names: Vec<String> =
        uppers.iter().map(|upper| format!("{} ({})", upper.interface, upper.kind)).collect();
    let finding = Finding::note("on-top", format!("{} on it", list(&names)));
    Some(finding.means("their traffic passes to them, but for what a wire port takes"))
}

/// A wire port takes every frame that arrives, the host's own too.
fn addresses(subject: &Subject<'_>) -> Option<Finding> {
    let addresses = &subject.nic.link.addresses;
    if addresses.is_empty() {
        return None;
    }
    let found = format!("{} on it", list(addresses));
    let everything = subject.candidate.wires.iter().any(|queues| {
        let queues = queues.as_ref().unwrap_or(&subject.queues);
        (0..subject.nic.receive_queues()).all(|queue| queues.contains(&queue))
    });
    if everything {
        let finding = Finding::warning("host-addresses", found);
        return Some(
            finding
                .means("a wire port takes every queue, so that the host is cut off from these")
                .mend("give the wire port queues = [...], or the host another interface"),
        );
    }
    Some(Finding::note("host-addresses", found).means("the host goes on using them"))
}

fn manager(subject: &Subject<'_>) -> Option<Finding> {
    let name = subject.name;
    let (who, remedy) = match subject.nic.manager? {
        Manager::NetworkManager => {
            ("NetworkManager", format!("nmcli device set {name} managed no"))
        }
        Manager::Networkd => (
            "systemd-networkd",
            format!("Unmanaged=yes in the [Link] section of {name}'s .network file"),
        ),
    };
    let finding = Finding::note("managed", format!("{who} manages it"));
    Some(
        finding
            .means("it may set the interface down, its MTU or its queues, at its own time")
            .mend(remedy),
    )
}
