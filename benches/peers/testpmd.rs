//! DPDK's testpmd, as the front-end of every run and as the peer that is compared with.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::Duration;

use crate::common::{Bed, Netns, Process, wait_for};
use crate::settings::Settings;

/// How often a log is looked at for an answer.
const LOOK: Duration = Duration::from_millis(10);

/// A port's counters by testpmd's names, and the rates since they were last asked for.
#[derive(Clone, Debug, Default)]
pub struct PortStats {
    counters: BTreeMap<String, u64>,
}

impl PortStats {
    /// A counter such as "TX-packets"; 0 if testpmd does not know it.
    pub fn get(&self, name: &str) -> u64 {
        self.counters.get(name).copied().unwrap_or(0)
    }
}

/// The totals of `show fwd stats all` over all ports.
#[derive(Clone, Copy, Debug, Default)]
pub struct ForwardStats {
    /// Cycles of turns that moved packets.
    pub busy_cycles: u64,
    /// Packets they received.
    pub packets: u64,
    /// Packets that could not be sent on.
    pub dropped: u64,
}

/// A running testpmd whose main thread and forwarding thread are on one CPU.
pub struct Testpmd {
    process: Process,
}

impl Testpmd {
    /// Starts it with these devices and options and waits for its prompt.
    pub fn start(
        bed: &Bed,
        (name, namespace): (&str, &Netns),
        cpu: usize,
        devices: &[String],
        options: &str,
    ) -> Self {
        let memory = match &Settings::get().huge_pages {
            Some(directory) => format!("--single-file-segments --huge-dir={}", directory.display()),
            // Its memory is one memfd then, which vhost-user can share too.
            None => "--no-huge".to_owned(),
        };
        let devices: Vec<String> =
            devices.iter().map(|device| format!("--vdev={device}")).collect();
        let words = format!(
            "stdbuf --output=L dpdk-testpmd --lcores 0@{cpu},1@{cpu} -m 512 --no-pci \
             --no-telemetry {memory} --file-prefix=isonic-{name}-{id} {devices} -- -i --nb-cores=1 \
             --disable-link-check --total-num-mbufs=32768 {options}",
            id = std::process::id(),
            devices = devices.join(" "),
        );
        let command_line: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let log = bed.path(&format!("{name}.testpmd"));
        let mut process = Process::start(name, namespace.name(), &command_line, &log);
        wait_for(&format!("{name} is ready"), 60, || {
            if let Some(status) = process.ended() {
                panic!("{name} ended with {status}");
            }
            process.log().contains("testpmd>")
        });
        Self { process }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Gives a command and returns what it prints, up to the next prompt.
    pub fn command(&mut self, command: &str) -> String {
        let before = self.process.log();
        let (prompts, length) = (before.matches("testpmd>").count(), before.len());
        writeln!(self.process.stdin(), "{command}").expect("testpmd's input");
        for _ in 0..2000 {
            let log = self.process.log();
            if log.matches("testpmd>").count() > prompts {
                return log[length..].to_owned();
            }
            if let Some(status) = self.process.ended() {
                panic!("testpmd ended with {status} on {command:?}");
            }
            std::thread::sleep(LOOK);
        }
        panic!("testpmd does not answer {command:?}");
    }

    /// The counters of its first `count` ports.
    pub fn ports(&mut self, count: usize) -> Vec<PortStats> {
        let answer = self.command("show port stats all");
        let ports: Vec<PortStats> =
            answer.split("NIC statistics for port").skip(1).map(parse).collect();
        assert!(ports.len() >= count, "testpmd has fewer ports than {count}: {answer}");
        ports
    }

    /// Forwarding since `start`.
    pub fn forwarding(&mut self) -> ForwardStats {
        let answer = self.command("show fwd stats all");
        // The port's own lines, and behind those the sum of all ports.
        let all = answer.split("Accumulated forward statistics").nth(1).unwrap_or(&answer);
        let number = |text: &str, name: &str| {
            let rest = text.split_once(name)?.1;
            let rest = rest.trim_start_matches([' ', ':', '=']);
            let end = rest.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(rest.len());
            rest[..end].parse().ok()
        };
        ForwardStats {
            busy_cycles: number(&answer, "total cycles").unwrap_or(0),
            packets: number(&answer, "packets=").unwrap_or(0),
            dropped: number(all, "TX-dropped").unwrap_or(0),
        }
    }

    /// Ends it as a user would.
    pub fn quit(&mut self) {
        let _ = writeln!(self.process.stdin(), "quit");
        self.process.wait(30);
    }
}

/// `NAME: VALUE` pairs, several in a line.
fn parse(text: &str) -> PortStats {
    let words: Vec<&str> = text.split_whitespace().collect();
    let pairs = words.windows(2).filter_map(|pair| {
        let name = pair[0].strip_suffix(':')?;
        Some((name.to_owned(), pair[1].parse().ok()?))
    });
    PortStats { counters: pairs.collect() }
}
