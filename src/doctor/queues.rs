//! Whether every queue that receives has a socket.

use std::collections::BTreeMap;

use super::finding::{Finding, list, ranges};
use super::kernel::IRQ_SUSPENSION;
use super::subject::Subject;
use crate::config::UplinkSteering;

/// Queues that the XDP program has places for.
const QUEUES_MAX: u32 = 256;

pub(super) fn examine(subject: &Subject<'_>) -> Vec<Finding> {
    let mut findings = vec![queues(subject), steering(subject)];
    let others = [left(subject), rules(subject), suspension(subject), held_back(subject)];
    findings.extend(others.into_iter().flatten());
    findings
}

/// Whether the wanted queues are there.
fn queues(subject: &Subject<'_>) -> Finding {
    let (id, count) = ("queues", subject.nic.receive_queues());
    let absent: Vec<u32> = subject.queues.iter().copied().filter(|&queue| queue >= count).collect();
    let found = match &subject.nic.channels {
        None => format!("{count}"),
        Some(channels) => format!(
            "combined {} of {}, rx {} of {}, tx {} of {}",
            channels.combined,
            channels.combined_max,
            channels.rx,
            channels.rx_max,
            channels.tx,
            channels.tx_max
        ),
    };
    if !absent.is_empty() {
        return Finding::problem(id, format!("{found}; without {}", ranges(absent)))
            .means("the configuration wants a queue that is not there, and isonic does not start")
            .mend(format!("ethtool --set-channels {} combined N", subject.name));
    }
    if subject.queues.iter().any(|&queue| queue >= QUEUES_MAX) {
        return Finding::problem(id, found)
            .means(format!("isonic serves queues 0 to {}", QUEUES_MAX - 1))
            .mend("queues = [...] of the uplink, with steering = \"set\"");
    }
    Finding::ok(id, found)
}

/// Whether every frame arrives at one of them.
fn steering(subject: &Subject<'_>) -> Finding {
    let (id, name) = ("steering", subject.name);
    let (count, table) = (subject.nic.receive_queues(), &subject.nic.steering.table);
    let unserved = subject.nic.steering.unserved(count, &subject.queues);
    if unserved.is_empty() {
        let how = match table {
            Some(table) if subject.queues.len() < count as usize => {
                format!("the indirection table ({} entries) leads to ours only", table.len())
            }
            _ => "every queue that receives has a socket".to_owned(),
        };
        return Finding::ok(id, how);
    }
    let lost = format!("queues {} receive and have no socket", ranges(unserved));
    let meaning = "frames for VMs that arrive there are the host's, which drops them";
    let set = subject.candidate.wanted.steering == UplinkSteering::Set;
    match table {
        Some(table) if set && subject.served.is_none() => {
            let found = format!("{lost}; isonic will set the table ({} entries)", table.len());
            Finding::ok(id, found)
        }
        Some(table) => Finding::warning(id, lost).means(meaning).mend(spread_command(
            name,
            count,
            table.len(),
            &subject.queues,
        )),
        None if set => Finding::problem(id, format!("{lost}, and there is no indirection table"))
            .means("steering = \"set\" cannot be done here, and isonic does not start")
            .mend("leave out `queues`, to take all"),
        None => Finding::warning(id, format!("{lost}, and there is no indirection table"))
            .means(meaning)
            .mend("leave out `queues`, to take all"),
    }
}

/// The note of an isonic that set the table and was killed.
fn left(subject: &Subject<'_>) -> Option<Finding> {
    if !subject.candidate.steering_left || subject.served.is_some() {
        return None;
    }
    let name = subject.name;
    let found = "an isonic that was killed left its indirection table set";
    Some(
        Finding::warning("steering-left", found)
            .means("all traffic arrives on the queues that it had")
            .mend(format!("start isonic again, or: ethtool --set-rxfh-indir {name} default")),
    )
}

/// The command that spreads a NIC with `count` queues over these alone, or isonic's own option for
/// it.
#[must_use]
pub fn spread_command(interface: &str, count: u32, entries: usize, queues: &[u32]) -> String {
    let ours = "or steering = \"set\"";
    if queues.is_empty() || entries == 0 {
        return ours.to_owned();
    }
    let first = queues.iter().copied().min().unwrap_or(0);
    let number = u32::try_from(queues.len()).unwrap_or(count);
    let command = if (first..first + number).all(|queue| queues.contains(&queue)) {
        match first {
            0 => format!("equal {number}"),
            _ => format!("start {first} equal {number}"),
        }
    } else {
        let weight = |queue| if queues.contains(&queue) { "1" } else { "0" };
        let weights: Vec<&str> = (0..count).map(weight).collect();
        format!("weight {}", weights.join(" "))
    };
    format!("ethtool --set-rxfh-indir {interface} {command}, {ours}")
}

fn rules(subject: &Subject<'_>) -> Option<Finding> {
    let (id, name) = ("flow-rules", subject.name);
    let steering = &subject.nic.steering;
    if steering.rules.is_empty() {
        return None;
    }
    let mut beside: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for rule in steering.rules_beside(&subject.queues) {
        beside.entry(rule.queue.unwrap_or_default()).or_default().push(rule.location);
    }
    let count = steering.rules.len();
    if beside.is_empty() {
        return Some(Finding::ok(id, format!("{count}, to queues with sockets")));
    }
    let to = |(queue, rules): (&u32, &Vec<u32>)| format!("{} to queue {queue}", list(rules));
    let told: Vec<String> = beside.iter().map(to).collect();
    let finding = Finding::note(id, format!("of {count}, rule {}", list(&told)));
    Some(
        finding
            .means("what they match stays with the host, which may be what they are for")
            .mend(format!("ethtool --show-ntuple {name}")),
    )
}

/// The kernel that `irq_suspend` needs.
fn suspension(subject: &Subject<'_>) -> Option<Finding> {
    let wanted = subject.candidate.wanted.irq_suspend;
    let kernel = subject.kernel().filter(|&kernel| wanted && kernel < IRQ_SUSPENSION)?;
    Some(
        Finding::problem("irq-suspension", format!("irq_suspend on Linux {kernel}"))
            .means(format!("queues have that setting since Linux {IRQ_SUSPENSION}"))
            .mend("install a later kernel, or leave out `irq_suspend`"),
    )
}

/// Interrupts that an earlier program's busy polling left held back: a queue may then wait for ever
/// (Linux 58e2330bd455).
fn held_back(subject: &Subject<'_>) -> Option<Finding> {
    let (id, name) = ("held-interrupts", subject.name);
    let timeout = subject.nic.gro_flush_timeout.filter(|&timeout| timeout > 0)?;
    let polls = subject.nic.defer_hard_irqs.unwrap_or(0);
    let finding =
        Finding::note(id, format!("gro_flush_timeout {timeout} ns, napi_defer_hard_irqs {polls}"));
    Some(
        finding
            .means("right for busy polling; else frames wait so long for nothing")
            .mend(format!("echo 0 >/sys/class/net/{name}/gro_flush_timeout")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_the_queues_in_ethtools_words() {
        let command = |queues: &[u32]| spread_command("eth0", 4, 128, queues);
        assert!(command(&[0, 1]).starts_with("ethtool --set-rxfh-indir eth0 equal 2,"));
        assert!(command(&[2, 3]).contains("start 2 equal 2,"));
        assert!(command(&[0, 2]).contains("weight 1 0 1 0,"));
        assert!(command(&[1, 0]).contains("equal 2,"));
    }
}
