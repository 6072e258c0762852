//! Whether QEMU itself has failed a guest.
//!
//! Emulated by several threads (MTTCG), QEMU 7.2 and 10.0 lose an interrupt now and then: a CPU of
//! the guest is halted for good, with an interrupt that it never gets, or a timer that has run out
//! and woke nobody. All else goes on, until something needs that CPU. No fault of the guest's or of
//! isonic's looks like this, since a halted CPU takes what comes, so a test that fails under such
//! a guest says nothing; `scripts/test` runs it again.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::{Monitor, repository};

/// Between two looks: a healthy CPU has taken its interrupt by then.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// What QEMU's monitor shows of a CPU that it does not wake, if there is one.
fn lost_interrupt(monitor: &mut Monitor, cpus: u32) -> Option<String> {
    let first: Vec<_> = (0..cpus).map(|cpu| unwoken(monitor, cpu)).collect();
    std::thread::sleep(BETWEEN_LOOKS);
    let mut suspects = (0..cpus).zip(first).filter_map(|(cpu, what)| Some((cpu, what?)));
    let stuck = suspects.find(|(cpu, what)| unwoken(monitor, *cpu).as_ref() == Some(what));
    stuck.map(|(cpu, what)| format!("CPU {cpu} is halted with {what}"))
}

/// What a halted CPU should have been woken for.
fn unwoken(monitor: &mut Monitor, cpu: u32) -> Option<String> {
    let mut ask = |line: &str| {
        let arguments = json!({ "command-line": line, "cpu-index": cpu });
        let answer = monitor.command("human-monitor-command", &arguments);
        answer.as_str().unwrap_or_default().to_owned()
    };
    if !ask("info registers").contains("HLT=1") {
        return None;
    }
    let apic = ask("info lapic");
    let line = |name: &str| apic.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    let is_held = |name: &str| {
        let line = line(name);
        !line.is_empty() && !line.contains("(none)")
    };
    let timer = line("Timer");
    let ran_out = timer.ends_with("current_count = 0") && !timer.contains("initial_count = 0 ");
    let armed = line("LVTT").contains("one-shot") && !line("LVTT").contains("masked");
    let held = [line("ISR"), line("IRR")].join("; ");
    if is_held("ISR") || is_held("IRR") {
        Some(held)
    } else {
        (armed && ran_out).then(|| timer.to_owned())
    }
}

/// What Linux says of a timer of another CPU's that did not go off (kernel/rcu/tree_stall.h).
const TOLD_BY_LINUX: &str = "Possible timer handling issue on cpu=";

/// To be called of a test that fails: notes for `scripts/test` that QEMU lost an interrupt of its
/// guest's, if it did. What the guest wrote to its console may say so too.
pub fn note_lost_interrupt(monitor: &mut Monitor, cpus: u32, console: &str) {
    let told = console.lines().find(|line| line.contains(TOLD_BY_LINUX)).map(str::to_owned);
    let looked = std::panic::AssertUnwindSafe(|| lost_interrupt(monitor, cpus));
    // QEMU may have ended, and its monitor with it.
    let seen = told.or_else(|| std::panic::catch_unwind(looked).ok().flatten());
    let Some(what) = seen else { return };
    eprintln!("--- QEMU has lost an interrupt: {what} ---");
    let faults = repository("target/emulator-faults");
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let noted = fs::create_dir_all(&faults)
        .and_then(|()| fs::write(faults.join(test), env!("CARGO_CRATE_NAME")));
    if let Err(error) = noted {
        eprintln!("it cannot be noted: {error}");
    }
}
