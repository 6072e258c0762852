//! A guest migrates between two isonics under QEMU 10, which takes a state of the device along: to
//! a port with the same interface, and not to one with another.
//!
//! QEMU 10 is that of `scripts/qemu-10`. Both uplinks are ports of one bridge, so that the guest is
//! reached wherever it is.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::{Bed, Process, ping, repository, run, wait_for, wait_reachable};
use serde_json::{Value, json};

const BINARY: &str = env!("CARGO_BIN_EXE_isonic");
const V4: &str = "org.isonic.net.v4";
const V3: &str = "org.isonic.net.v3";
/// The features of v4, every one of them, on another interface.
const OTHER: &str = "org.isonic.net.v4,max_ring=512";
const MAC: &str = "52:54:00:00:00:01";
const GUEST: &str = "10.77.0.101";

/// The wire: both uplinks' far ends on one bridge, with an address.
fn bridged_bed() -> Bed {
    let bed = Bed::new(2, 1);
    let ip = |arguments: &str| {
        let command_line: Vec<&str> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
        bed.wire.run(&command_line);
    };
    ip("link add isonic-br0 type bridge");
    for uplink in &bed.uplinks {
        ip(&format!("address flush dev {}", uplink.peer));
        ip(&format!("link set {} master isonic-br0", uplink.peer));
    }
    ip("address add 10.77.0.1/24 dev isonic-br0");
    ip("link set isonic-br0 up");
    bed
}

/// One host: an isonic with one port on an uplink of its own, and perhaps a QEMU on it.
struct Host<'bed> {
    bed: &'bed Bed,
    name: &'static str,
    isonic: Process,
    qemu: Option<Process>,
    monitor: Option<Monitor>,
}

impl<'bed> Host<'bed> {
    /// An isonic on this uplink, whose port has this profile.
    fn new(bed: &'bed Bed, name: &'static str, uplink: usize, profile: &str) -> Self {
        let path = |kind: &str| bed.path(&format!("{name}.{kind}"));
        // The one before it on this host, if there was one, was killed.
        for kind in ["sock", "api", "log"] {
            let _ = fs::remove_file(path(kind));
        }
        let words = format!(
            "{BINARY} run --socket-path {} --api-socket {} --uplink {} --profile {profile} \
             --allow-draft --mac {MAC}",
            path("sock").display(),
            path("api").display(),
            bed.uplinks[uplink].nic
        );
        let command_line: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        let isonic = Process::start(name, bed.host.name(), &command_line, &path("log"));
        let host = Self { bed, name, isonic, qemu: None, monitor: None };
        wait_for("isonic makes the port's socket", 20, || host.path("sock").exists());
        host
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.bed.path(&format!("{}.{kind}", self.name))
    }

    /// A QEMU with this profile's half of the interface; it boots the guest, or waits for one.
    fn start_qemu(&mut self, profile: &str, incoming: bool) {
        let qemu = repository("cache/qemu-10/qemu");
        assert!(qemu.exists(), "no QEMU 10 here: run scripts/qemu-10");
        let image = repository("cache/guest");
        assert!(image.join("stamp").exists(), "no guest to boot: run scripts/guest-image");
        let export = ["profile", "export", profile, "--format", "qemu", "--queue-pairs", "1"];
        let device = run(Command::new(BINARY).args(export).args(["--mac", MAC]));
        let words = format!(
            "{qemu} -machine q35,memory-backend=memory -accel tcg -cpu max -smp 1 -m 128 \
             -object memory-backend-memfd,id=memory,size=128M,share=on -nodefaults -no-user-config \
             -kernel {image}/vmlinux -initrd {image}/initrd -display none \
             -chardev socket,id=vhost,path={socket} {device},romfile= \
             -serial file:{console} -qmp unix:{monitor},server=on,wait=off",
            qemu = qemu.display(),
            image = image.display(),
            socket = self.path("sock").display(),
            device = device.trim_end().replace('\n', " "),
            console = self.path("console").display(),
            monitor = self.path("qmp").display(),
        );
        let mut command_line: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
        if incoming {
            command_line.extend(["-incoming".to_owned(), self.stream_uri()]);
        }
        let append = format!("console=ttyS0 quiet panic=-1 no_timer_check isonic.ip={GUEST}/24");
        command_line.extend(["-append".to_owned(), append]);
        let name = format!("QEMU of {}", self.name);
        let _ = fs::remove_file(self.path("qmp"));
        let _ = fs::remove_file(self.path("qemu"));
        let wire = self.bed.wire.name();
        let process = Process::start(&name, wire, &command_line, &self.path("qemu"));
        self.qemu = Some(process);
        self.monitor = Some(Monitor::connect(&self.path("qmp")));
    }

    /// Where a migration to this host goes.
    fn stream_uri(&self) -> String {
        format!("unix:{}", self.path("migration").display())
    }

    fn monitor(&mut self) -> &mut Monitor {
        self.monitor.as_mut().expect("a QEMU")
    }

    /// How a migration to another host ends here: "completed" or "failed".
    fn migrate(&mut self, uri: &str) -> String {
        let monitor = self.monitor();
        monitor.command("migrate", &json!({ "uri": uri }));
        let mut status = String::new();
        wait_for("the migration ends", 90, || {
            let answer = monitor.command("query-migrate", &json!({}));
            status = answer["status"].as_str().unwrap_or_default().to_owned();
            matches!(status.as_str(), "completed" | "failed")
        });
        status
    }

    fn wait_running(&mut self) {
        let monitor = self.monitor();
        wait_for("the guest runs", 30, || {
            monitor.command("query-status", &json!({}))["status"] == "running"
        });
    }

    /// The session's fingerprint, as far as the log has it.
    fn fingerprint(&self) -> String {
        let ask = ["port", "list", "--json", "--api-socket"];
        let ports = run(Command::new(BINARY).args(ask).arg(self.path("api")));
        let ports: Value = serde_json::from_str(&ports).expect("JSON");
        let fingerprint = ports[0]["binding"]["fingerprint"].as_str().expect("a session");
        fingerprint[..16].to_owned()
    }

    /// What its QEMU wrote when it ended by itself, which it must have, and not well.
    fn qemu_gave_up(&mut self) -> String {
        let mut qemu = self.qemu.take().expect("a QEMU");
        let status = qemu.wait(30);
        assert!(!status.success(), "QEMU ended with {status}");
        qemu.log()
    }
}

/// QEMU's monitor, as far as a migration needs it.
struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    fn connect(path: &std::path::Path) -> Self {
        let mut stream = None;
        wait_for("QEMU makes its monitor", 30, || {
            stream = UnixStream::connect(path).ok();
            stream.is_some()
        });
        let stream = stream.expect("monitor");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("timeout");
        let mut monitor = Self { stream: BufReader::new(stream) };
        monitor.line();
        monitor.command("qmp_capabilities", &json!({}));
        // The source then waits for the destination's word, and goes on if that is no.
        let capability = json!([{ "capability": "return-path", "state": true }]);
        monitor.command("migrate-set-capabilities", &json!({ "capabilities": capability }));
        monitor
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).expect("the monitor answers");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn command(&mut self, name: &str, arguments: &Value) -> Value {
        let command = json!({ "execute": name, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{command}").expect("monitor");
        loop {
            let answer = self.line();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(answer) = answer.get("return") {
                return answer.clone();
            }
        }
    }
}

/// A guest that has come up on a port with this profile.
fn guest_on<'bed>(bed: &'bed Bed, profile: &str) -> Host<'bed> {
    let mut source = Host::new(bed, "source", 0, profile);
    source.start_qemu(profile, false);
    let console = source.path("console");
    wait_for("the guest is up", 90, || {
        let console = fs::read(&console).unwrap_or_default();
        String::from_utf8_lossy(&console).contains("GUEST-UP")
    });
    wait_reachable(&bed.wire, GUEST, 20);
    source
}

#[test]
fn a_guest_arrives_on_a_port_with_its_interface_and_the_state_says_so_on_both_sides() {
    let bed = bridged_bed();
    let mut source = guest_on(&bed, V4);
    let fingerprint = source.fingerprint();
    let mut destination = Host::new(&bed, "destination", 1, V4);
    destination.start_qemu(V4, true);
    assert_eq!(source.migrate(&destination.stream_uri()), "completed");
    destination.wait_running();
    wait_reachable(&bed.wire, GUEST, 20);
    ping(&bed.wire, GUEST, &[]);
    let told = format!("profile {V4}, fingerprint {fingerprint}");
    for (host, words) in [(&source, "device state given"), (&destination, "the same interface")] {
        let log = host.isonic.log();
        let line = log.lines().find(|line| line.contains(words)).unwrap_or_else(|| panic!("{log}"));
        assert!(line.contains(&told), "{told} is not in: {line}");
    }
    assert_eq!(destination.fingerprint(), fingerprint);
}

#[test]
fn a_guest_stays_where_it_is_until_there_is_a_port_with_its_interface() {
    let bed = bridged_bed();
    let mut source = guest_on(&bed, V4);
    let fingerprint = source.fingerprint();
    let stays = |source: &mut Host<'_>, profile: &str| {
        let mut destination = Host::new(&bed, "destination", 1, profile);
        destination.start_qemu(V4, true);
        assert_eq!(source.migrate(&destination.stream_uri()), "failed");
        source.wait_running();
        ping(&bed.wire, GUEST, &[]);
        assert_eq!(source.fingerprint(), fingerprint);
        (destination.qemu_gave_up(), destination.isonic.log())
    };
    // The same features, so that QEMU itself finds nothing wrong.
    let (qemu, isonic) = stays(&mut source, OTHER);
    assert!(qemu.contains("Back-end failed to process its internal state"), "{qemu}");
    for told in ["CHECK_DEVICE_STATE", V4, OTHER, "set-profile"] {
        assert!(isonic.contains(told), "{told} is not in: {isonic}");
    }
    // Nobody there to take the state.
    let (qemu, _) = stays(&mut source, V3);
    assert!(qemu.contains("does not support migration state transfer"), "{qemu}");

    let mut destination = Host::new(&bed, "destination", 1, V4);
    destination.start_qemu(V4, true);
    assert_eq!(source.migrate(&destination.stream_uri()), "completed");
    destination.wait_running();
    wait_reachable(&bed.wire, GUEST, 20);
}

#[test]
fn a_stream_without_a_state_is_taken_because_there_is_nothing_to_compare() {
    let bed = bridged_bed();
    let mut source = guest_on(&bed, V3);
    let mut destination = Host::new(&bed, "destination", 1, V4);
    destination.start_qemu(V3, true);
    assert_eq!(source.migrate(&destination.stream_uri()), "completed");
    destination.wait_running();
    wait_reachable(&bed.wire, GUEST, 20);
    assert!(!destination.isonic.log().contains("device state"), "{}", destination.isonic.log());
}
