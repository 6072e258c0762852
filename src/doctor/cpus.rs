//! Whether workers would run near the NIC.

use super::finding::{Finding, ranges};
use super::subject::Subject;

pub(super) fn examine(subject: &Subject<'_>) -> Vec<Finding> {
    [node(subject), isolation(subject)].into_iter().flatten().collect()
}

/// The workers' CPUs: as configured, else the last CPUs, as the daemon chooses.
fn worker_cpus(subject: &Subject<'_>) -> Vec<usize> {
    let facts = subject.facts;
    let chosen = || facts.host.cpus.iter().rev().take(facts.workers).copied().collect();
    facts.worker_cpus.clone().unwrap_or_else(chosen)
}

fn numbers(cpus: &[usize]) -> String {
    let mut cpus: Vec<u64> = cpus.iter().map(|&cpu| cpu as u64).collect();
    cpus.sort_unstable();
    ranges(cpus)
}

fn node(subject: &Subject<'_>) -> Option<Finding> {
    let (id, host) = ("numa", &subject.facts.host);
    let node = subject.nic.numa_node?;
    let is_near = |cpu: &usize| host.nodes.get(cpu).is_none_or(|&of| of == node);
    let cpus = worker_cpus(subject);
    let far: Vec<usize> = cpus.iter().copied().filter(|cpu| !is_near(cpu)).collect();
    let found = format!("the NIC is on node {node}, workers on CPU {}", numbers(&cpus));
    if far.is_empty() {
        return Some(Finding::ok(id, found));
    }
    let near = host.cpus.iter().rev().copied().filter(|cpu| is_near(cpu));
    let near: Vec<usize> = near.take(cpus.len()).collect();
    let finding = Finding::warning(id, found).means("every frame crosses to another node");
    Some(if near.len() == cpus.len() {
        finding.mend(format!("worker_cpus = {near:?}"))
    } else {
        finding.mend(format!("workers = {}, and worker_cpus on node {node}", near.len().max(1)))
    })
}

fn isolation(subject: &Subject<'_>) -> Option<Finding> {
    let host = &subject.facts.host;
    let cpus = worker_cpus(subject);
    let left_alone = |cpu: &usize| host.isolated.contains(cpu) && host.tickless.contains(cpu);
    if cpus.is_empty() {
        return None;
    }
    let id = "isolation";
    if cpus.iter().all(left_alone) {
        return Some(Finding::ok(id, format!("CPU {} has nothing else to do", numbers(&cpus))));
    }
    let list = numbers(&cpus).replace(", ", ",");
    let found = format!("CPU {} runs other tasks too", numbers(&cpus));
    let finding = Finding::note(id, found).means("frames wait while another task runs");
    Some(finding.mend(format!("isolcpus={list} nohz_full={list} on the kernel's command line")))
}
