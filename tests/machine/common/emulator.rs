//! Whether QEMU itself has failed a guest.
//!
//! Emulated by several threads (MTTCG), QEMU 7.2 and 10.0 lose an interrupt now and then. A CPU of
//! the guest is then halted for good. It has an interrupt that it never gets, or a timer that has
//! expired without waking it. All else continues until something needs that CPU.
//!
//! A fault of the guest or of isonic looks different, since a halted CPU takes interrupts. A test
//! that fails under such a guest therefore says nothing, and `scripts/test` runs it again.

use std::fs;
use std::time::Duration;

use serde_json::json;

use super::{Monitor, repository};

/// Between two looks: a healthy CPU has taken its interrupt by then.
const BETWEEN_LOOKS: Duration = Duration::from_secs(1);

/// The pending event of a CPU that QEMU does not wake, by QEMU's monitor, if there is one.
fn lost_interrupt(monitor: &mut Monitor, cpus: u32) -> Option<String> {
    let first: Vec<_> = (0..cpus).map(|cpu| unwoken(monitor, cpu)).collect();
    std::thread::sleep(BETWEEN_LOOKS);
    let mut suspects = (0..cpus).zip(first).filter_map(|(cpu, what)| Some((cpu, what?)));
    let stuck = suspects.find(|(cpu, what)| unwoken(monitor, *cpu).as_ref() == Some(what));
    stuck.map(|(cpu, what)| format!("CPU {cpu} is halted with {what}"))
}

/// The event that should have woken a halted CPU.
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

/// Linux's message about another CPU's timer that did not go off (kernel/rcu/tree_stall.h).
const TOLD_BY_LINUX: &str = "Possible timer handling issue on cpu=";

/// For a test that fails: notes for `scripts/test` that QEMU lost an interrupt of its guest, if it
/// did. The guest's console may say so too.
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
