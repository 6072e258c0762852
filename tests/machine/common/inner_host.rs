//! A machine in the machine, for NICs that this one has not got. QEMU 10 emulates them, and a
//! kernel with zero-copy in their drivers runs them. isonic itself runs in there.
//!
//! ```text
//!   namespace "wire"            QEMU                guest
//!   isonic-tap0  <── frames ──> igb         <──> eth0 ┐
//!                                                     ├ isonic <──> VMs, programs of ours
//!   isonic-tap1  <── frames ──> virtio-net  <──> eth1 ┘
//! ```

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use super::guest::accelerator;
use super::{Agent, Bed, PacketSocket, Process, XskFacts, repository, run, wait_for};

const IMAGE: &str = "guest-zerocopy";
const QEMU_10: &str = "cache/qemu-10/qemu";
const BOOT_SECONDS: u64 = 30;
/// How long a frame may take through an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A NIC of the inner host: its place, from 0, is that of its tap and of its name there.
#[derive(Clone, Copy, Debug)]
pub struct InnerNic {
    /// QEMU's device, and its properties.
    pub device: &'static str,
    /// Queues of its tap.
    pub queues: u32,
    /// Bytes of its frames that its tap holds at a time, before the NIC has to wait; 0 for any.
    pub held: u32,
    /// Its driver's name.
    pub driver: &'static str,
    /// The driver's counter of packets received on a queue, in `ethtool -S`, with N for its number.
    pub received: &'static str,
}

/// A running inner host; killed on drop.
#[derive(Debug)]
pub struct InnerHost {
    process: Process,
    console: PathBuf,
    agent: Agent,
}

impl InnerHost {
    /// Boots one with these NICs, called `uplink0` and so on there, and these programs in /bin.
    pub fn boot(bed: &Bed, nics: &[InnerNic], programs: &[PathBuf]) -> Self {
        for path in [repository("cache").join(IMAGE).join("stamp"), repository(QEMU_10)] {
            assert!(path.exists(), "no {}: use scripts/test", path.display());
        }
        let initrd = bed.path("inner.initrd");
        let with = repository("scripts/guest-with");
        run(Command::new(with).arg(IMAGE).arg(&initrd).args(programs));
        for (number, nic) in nics.iter().enumerate() {
            make_tap(bed, number, nic);
        }
        let (console, agent) = (bed.path("inner.console"), bed.path("inner.agent"));
        let command_line = command_line(bed, nics);
        let log = bed.path("inner.qemu");
        let process = Process::start("QEMU", bed.wire.name(), &command_line, &log);
        let agent = Agent::connect(&agent);
        let mut host = Self { process, console, agent };
        wait_for("the inner host is up", BOOT_SECONDS, || host.is_up());
        host.check("mkdir -p /run/isonic /var/lib/isonic");
        for number in 0..nics.len() {
            host.name_nic(number);
        }
        host
    }

    fn is_up(&mut self) -> bool {
        if let Some(status) = self.process.ended() {
            panic!("QEMU ended with {status}");
        }
        let console = fs::read(&self.console).unwrap_or_default();
        String::from_utf8_lossy(&console).contains("GUEST-UP")
    }

    /// Finds the NIC by its address, since the order of drivers decides the kernel's name.
    fn name_nic(&mut self, number: usize) {
        let (name, mac) = (uplink(number), mac(number));
        self.check(&format!(
            "cd /sys/class/net && nic=$(dirname $(grep -l {mac} */address)) && \
             ip link set $nic down && ip link set $nic name {name} && ip link set {name} up"
        ));
    }

    /// Runs a command that must succeed.
    pub fn check(&mut self, command: &str) -> String {
        self.agent.check(command)
    }

    /// Starts isonic with this configuration and no memory of another, and waits until its API
    /// answers.
    pub fn start_isonic(&mut self, configuration: &str) {
        let lines: Vec<String> = configuration.lines().map(|line| format!("'{line}'")).collect();
        self.check("rm -rf /var/lib/isonic/*");
        self.check(&format!("printf '%s\\n' {} >/tmp/isonic.toml", lines.join(" ")));
        self.start("isonic", "isonic run --config /tmp/isonic.toml");
        self.check(
            "until isonic port list >/dev/null 2>&1; do \
             kill -0 $(cat /tmp/isonic.id) || { cat /tmp/isonic.log; exit 1; }; sleep 0.1; done",
        );
    }

    /// Starts a command in the background, known by this name.
    pub fn start(&mut self, name: &str, command: &str) {
        self.check(&format!("{command} >/tmp/{name}.log 2>&1 & echo $! >/tmp/{name}.id"));
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, name: &str) {
        // Its parent has ended, so nobody here can wait for it as a child.
        self.check(&format!(
            "id=$(cat /tmp/{name}.id); kill $id; until [ ! -e /proc/$id ] || \
             grep -q '^State:.Z' /proc/$id/status 2>/dev/null; do sleep 0.1; done"
        ));
    }

    /// The id of a process that was started.
    pub fn id(&mut self, name: &str) -> u32 {
        self.check(&format!("cat /tmp/{name}.id")).trim().parse().expect("a process id")
    }

    /// All that it has written.
    pub fn log(&mut self, name: &str) -> String {
        self.check(&format!("cat /tmp/{name}.log"))
    }

    /// The answer of isonic to a client command with `--json`.
    pub fn json(&mut self, arguments: &str) -> Value {
        let text = self.check(&format!("isonic {arguments} --json"));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments}: {error}: {text}"))
    }

    /// Waits until a port has a VM with rings.
    pub fn wait_running(&mut self, port: &str) {
        wait_for(&format!("{port} is running"), 20, || {
            self.json(&format!("port show {port}"))["state"] == "running"
        });
    }

    /// The facts of isonic's sockets that this program, run inside, prints as JSON.
    pub fn xsk_facts(&mut self, program: &str) -> Vec<XskFacts> {
        let id = self.id("isonic");
        let output = self.check(&format!("ISONIC_PROCESS={id} {program}"));
        let line = output.lines().find_map(|line| line.split_once("sockets: "));
        let (_, json) = line.unwrap_or_else(|| panic!("no facts: {output}"));
        serde_json::from_str(json).expect("facts")
    }

    /// Packets that a NIC's driver has counted on each of these queues, by names with the queue's
    /// number in place of `N`.
    pub fn queue_packets(&mut self, nic: usize, name: &str, queues: u32) -> Vec<u64> {
        let output = self.check(&format!("ethtool -S {}", uplink(nic)));
        let count = |queue: u32| {
            let name = name.replace('N', &queue.to_string());
            let line = output.lines().find_map(|line| line.trim().strip_prefix(&*name));
            let value = line.and_then(|rest| rest.strip_prefix(": "));
            value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("{name}: {output}"))
        };
        (0..queues).map(count).collect()
    }
}

impl Drop for InnerHost {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = fs::read(&self.console).unwrap_or_default();
            eprintln!("--- inner console ---\n{}", String::from_utf8_lossy(&console));
            let (logs, _) = self.agent.run("for log in /tmp/*.log; do echo $log; cat $log; done");
            eprintln!("--- inner logs ---\n{logs}");
        }
    }
}

/// The test that runs, to be run inside too.
pub fn this_program() -> PathBuf {
    std::env::current_exe().expect("this program's path")
}

/// The command that runs a function of `inside.rs` inside.
pub fn program(function: &str) -> String {
    let file = this_program().file_name().expect("a name").to_string_lossy().into_owned();
    format!("{file} --exact inside::{function} --ignored --nocapture")
}

/// A number that a function inside was given by its environment.
pub fn variable(name: &str) -> u32 {
    let value = std::env::var(name).unwrap_or_else(|_| panic!("no {name}: this runs in a guest"));
    value.parse().expect("a number")
}

/// The far end of a NIC.
pub fn tap(bed: &Bed, number: usize) -> PacketSocket {
    PacketSocket::open(&bed.wire, &format!("isonic-tap{number}"), PATIENCE)
}

/// The name of a NIC inside.
pub fn uplink(number: usize) -> String {
    format!("uplink{number}")
}

/// A NIC's own address.
fn mac(number: usize) -> String {
    format!("52:54:00:00:01:{number:02x}")
}

fn make_tap(bed: &Bed, number: usize, nic: &InnerNic) {
    let name = format!("isonic-tap{number}");
    let queues = if nic.queues > 1 { "multi_queue" } else { "" };
    let ip = |words: &str| {
        bed.wire.run(&["ip"].into_iter().chain(words.split_whitespace()).collect::<Vec<_>>());
    };
    ip(&format!("tuntap add {name} mode tap {queues}"));
    ip(&format!("link set {name} mtu 9000 up"));
}

fn command_line(bed: &Bed, nics: &[InnerNic]) -> Vec<String> {
    let file = |kind: &str| bed.path(&format!("inner.{kind}")).display().to_string();
    let mut words = format!(
        "{qemu} -machine q35 -smp 2 -m 1024 -nodefaults -no-user-config -display none -no-reboot \
         -kernel {image}/vmlinux -initrd {initrd} -serial file:{console} \
         -chardev socket,id=agent,path={agent},server=on,wait=off",
        qemu = repository(QEMU_10).display(),
        image = repository("cache").join(IMAGE).display(),
        initrd = file("initrd"),
        console = file("console"),
        agent = file("agent"),
    );
    for (number, InnerNic { device, queues, held, .. }) in nics.iter().enumerate() {
        words += &format!(
            " -netdev tap,id=net{number},ifname=isonic-tap{number},script=no,downscript=no,\
             vhost=off,queues={queues},sndbuf={held} \
             -device {device},netdev=net{number},mac={mac},romfile=",
            mac = mac(number)
        );
    }
    words += " -device virtio-serial-pci -device virtserialport,chardev=agent";
    let mut command_line: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    command_line.extend(accelerator());
    let append = "console=ttyS0 quiet panic=-1 no_timer_check";
    command_line.extend(["-append".to_owned(), append.to_owned()]);
    command_line
}
