//! The machine of a measurement, and its software.

use std::fs;
use std::process::Command;

use crate::clock;
use crate::common::run;
use crate::settings::Settings;

/// Facts by name, in the order to show them.
pub fn facts() -> Vec<(&'static str, String)> {
    let settings = Settings::get();
    let pages = if settings.huge_pages.is_some() { "2 MiB" } else { "4 KiB" };
    vec![
        ("date", output(&["date", "-u", "+%F"])),
        ("commit", output(&["git", "describe", "--always", "--dirty"])),
        ("processor", processor()),
        ("kernel", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()),
        ("system", system()),
        ("DPDK", output(&["dpkg-query", "--show", "--showformat=${Version}", "dpdk-dev"])),
        ("Rust", output(&["rustc", "--version"])),
        ("pages of DPDK's memory", pages.to_owned()),
        ("rounds", settings.rounds.to_string()),
        ("seconds of a measurement", settings.seconds.to_string()),
    ]
    .into_iter()
    .map(|(name, value)| (name, value.trim().to_owned()))
    .collect()
}

fn output(command_line: &[&str]) -> String {
    let mut command = Command::new(command_line[0]);
    run(command.args(&command_line[1..]).current_dir(env!("CARGO_MANIFEST_DIR")))
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, value)| value)
    };
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    let virtual_machine = if field("flags").contains("hypervisor") { ", virtual" } else { "" };
    format!(
        "{count} × {} (family {}, model {}), cycle counter {:.0} MHz{virtual_machine}",
        field("model name"),
        field("cpu family"),
        field("model\t"),
        clock::hertz() / 1e6
    )
}

fn system() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.unwrap_or("unknown").trim_matches('"').to_owned()
}
