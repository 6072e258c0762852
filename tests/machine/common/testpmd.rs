//! DPDK: its virtio-user driver as the front-end, and its vhost as a backend. virtio-user is a
//! second implementation. It sends messages in another order than QEMU and Linux, and polls the
//! rings in another way.

use std::io::Write;

use super::{Bed, Netns, PortSpec, Process, wait_for};

/// How virtio-user is started as a port's front-end.
#[derive(Clone, Debug)]
pub struct VirtioUser<'a> {
    /// Queue pairs.
    pub queue_pairs: u32,
    /// testpmd's forwarding mode.
    pub mode: &'a str,
    /// More options of the device's, each with a comma before it.
    pub device: &'a str,
    /// More options of the environment's (EAL).
    pub environment: &'a str,
    /// More options of testpmd's.
    pub testpmd: &'a str,
}

/// A running `dpdk-testpmd`; ended on drop.
#[derive(Debug)]
pub struct Testpmd {
    process: Process,
}

impl Testpmd {
    /// Starts it with this many queue pairs, a forwarding mode of testpmd's, and more options of
    /// virtio-user's, not forwarding.
    pub fn start(bed: &Bed, port: &PortSpec, queue_pairs: u32, mode: &str, options: &str) -> Self {
        let options =
            VirtioUser { queue_pairs, mode, device: options, environment: "", testpmd: "" };
        Self::front_end(bed, port, &options)
    }

    /// Starts it as a port's front-end, not forwarding.
    pub fn front_end(bed: &Bed, port: &PortSpec, options: &VirtioUser<'_>) -> Self {
        let VirtioUser { queue_pairs, mode, device, environment, testpmd } = options;
        let device = format!(
            "net_virtio_user0,path={socket},queues={queue_pairs},queue_size=256,mac={mac}{device}",
            socket = bed.path(&format!("{}.sock", port.name)).display(),
            mac = port.mac,
        );
        let testpmd = format!(
            "--nb-cores=1 --rxq={queue_pairs} --txq={queue_pairs} --forward-mode={mode} {testpmd}"
        );
        let environment = format!("{environment} --vdev={device}");
        Self::launch(bed, &bed.wire, &port.name, &environment, &testpmd)
    }

    /// Starts it as a backend with default options that listens on this socket of the bed's.
    pub fn backend(bed: &Bed, socket: &str) -> Self {
        let device = format!("--vdev=net_vhost0,iface={}", bed.path(socket).display());
        Self::launch(bed, &bed.wire, socket, &device, "--nb-cores=1")
    }

    /// Starts it as the backend of a host: between this socket of the bed's and the host's uplink,
    /// forwarding everything, one queue pair.
    pub fn switch(bed: &Bed, socket: &str) -> Self {
        let vhost = format!("--vdev=net_vhost0,iface={}", bed.path(socket).display());
        let uplink = format!("--vdev=net_af_packet0,iface={}", bed.uplinks[0].nic);
        let options = "--nb-cores=1 --forward-mode=io --auto-start";
        Self::launch(bed, &bed.host, socket, &format!("{vhost} {uplink}"), options)
    }

    fn launch(bed: &Bed, namespace: &Netns, name: &str, environment: &str, options: &str) -> Self {
        // `stdbuf`: we wait for lines that DPDK would keep in its buffer. `--no-huge`: DPDK's
        // memory is then one memfd, which vhost-user can share, and the machine needs no huge
        // pages.
        let words = format!(
            "stdbuf --output=L dpdk-testpmd -l 0-1 --no-huge -m 256 --no-pci --no-telemetry \
             --file-prefix=isonic-{id}-{host} {environment} -- -i --total-num-mbufs=8192 {options}",
            id = std::process::id(),
            host = namespace.name(),
        );
        let command_line: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let log = bed.path(&format!("{name}.testpmd"));
        // An earlier process's log must not satisfy the wait below.
        let _ = std::fs::remove_file(&log);
        let mut process = Process::start("dpdk-testpmd", namespace.name(), &command_line, &log);
        wait_for("dpdk-testpmd is ready", 30, || {
            if let Some(status) = process.ended() {
                panic!("dpdk-testpmd ended with {status}");
            }
            process.log().contains("testpmd>")
        });
        Self { process }
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Gives a command and waits until it has printed `answer` (once more than before).
    pub fn command(&mut self, command: &str, answer: &str) -> String {
        let before = self.process.log();
        let (seen, length) = (before.matches(answer).count(), before.len());
        writeln!(self.process.stdin(), "{command}").expect("dpdk-testpmd's input");
        let process = &self.process;
        wait_for(&format!("dpdk-testpmd answers {command:?}"), 20, || {
            process.log().matches(answer).count() > seen
        });
        self.process.log().split_off(length)
    }

    /// A counter of the port's, such as "TX-packets".
    pub fn counter(&mut self, counter: &str) -> u64 {
        let answer = self.command("show port stats 0", "Tx-pps:");
        let value = answer.split_once(&format!("{counter}:")).map(|(_, rest)| rest);
        let digits = value.and_then(|rest| rest.split_whitespace().next());
        digits.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{answer}"))
    }

    /// Ends it as a user would.
    pub fn quit(&mut self) {
        let _ = writeln!(self.process.stdin(), "quit");
        self.process.wait(20);
    }
}
