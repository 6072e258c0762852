//! The host's bad days: what is full, read-only, damaged, missing or used up. Guests that were
//! served are served, what cannot be done is refused by name, and nobody is left waiting.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use crate::common::{Bed, Configuration, Daemon, NIC, PortSpec, run, wait_for};
use isonic::test_support::frontend::{Frontend, event};
use rustix::fs::{OFlags, fcntl_setfl};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_isonic");

/// A file system of 512 KiB; unmounted on drop.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: PathBuf) -> Self {
        fs::create_dir_all(&path).expect("a directory");
        Self::call("mount", &["-t", "tmpfs", "-o", "size=512k", "tmpfs"], &path);
        Self(path)
    }

    fn call(program: &str, options: &[&str], path: &Path) {
        run(std::process::Command::new(program).args(options).arg(path));
    }

    fn fill(&self) {
        let mut file = File::create(self.0.join("filler")).expect("a file");
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).expect("the file");
    }

    fn set_read_only(&self, read_only: bool) {
        let option = if read_only { "remount,ro" } else { "remount,rw" };
        Self::call("mount", &["-o", option], &self.0);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// The identifiers of what the daemon says is wrong.
fn problems(bed: &Bed) -> Vec<String> {
    let mut stream = UnixStream::connect(bed.path("api.sock")).expect("the API");
    stream.write_all(b"GET /v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    let health: Value = serde_json::from_str(body).expect("JSON");
    let problems = health["problems"].as_array().expect("problems");
    problems.iter().map(|problem| problem["id"].as_str().unwrap().to_owned()).collect()
}

/// The words that add a port of this name by command.
fn add(bed: &Bed, name: &str) -> Vec<String> {
    let socket = bed.path(&format!("{name}.sock")).display().to_string();
    let words = ["port", "add", name, "--socket", &socket, "--uplink", NIC];
    let profile = ["--profile", "org.isonic.net.v1"];
    words.into_iter().chain(profile).map(str::to_owned).collect()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

fn connect(bed: &Bed, port: &str) -> Frontend {
    let stream = UnixStream::connect(bed.path(&format!("{port}.sock"))).expect("the port's socket");
    Frontend::over(stream)
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_full_or_read_only_state_directory_stops_changes_and_nothing_else() {
    let bed = Bed::new(1, 1);
    let disk = SmallDisk::mount(bed.path("state"));
    let configuration = Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]);
    let mut daemon = Daemon::start(&bed, &configuration);
    daemon.json(&words(&add(&bed, "added")));
    assert_eq!(problems(&bed), [""; 0]);
    let change = ["port", "set-profile", "added", "org.isonic.net.v2"];
    for trouble in ["full", "read-only"] {
        if trouble == "full" {
            disk.fill()
        } else {
            disk.set_read_only(true)
        }
        for change in [words(&add(&bed, "other")), change.to_vec(), vec!["port", "del", "added"]] {
            let refusal = daemon.refusal(&change);
            assert!(refusal.contains("cannot write the state"), "{change:?}: {refusal}");
        }
        // Nothing has come of it.
        assert!(!bed.path("other.sock").exists());
        let check = |daemon: &Daemon<'_>| {
            let ports = daemon.json(&["port", "list"]);
            assert_eq!(ports.as_array().map(Vec::len), Some(2), "{ports}");
            let added = daemon.json(&["port", "show", "added"]);
            assert_eq!(added["profile"], "org.isonic.net.v1");
            assert_eq!(added["state"], "waiting");
            connect(&bed, "added").negotiate();
            connect(&bed, "vm1").negotiate();
            assert!(problems(&bed).contains(&"state".to_owned()));
        };
        check(&daemon);
        // What was served is served after a crash too.
        daemon.kill();
        daemon.start_again();
        check(&daemon);
        daemon.upgrade(&[]);
        check(&daemon);
        if trouble == "full" {
            disk.empty();
        } else {
            disk.set_read_only(false);
            // `ip netns exec` gives the daemon mounts of its own, and they keep the flag.
            daemon.kill();
            daemon.start_again();
        }
        wait_for("the state is kept again", 20, || problems(&bed).is_empty());
    }
    assert_eq!(daemon.json(&change)["profile"], "org.isonic.net.v2");
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_damaged_state_file_costs_no_port() {
    let bed = Bed::new(1, 1);
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    daemon.json(&words(&add(&bed, "added")));
    let path = bed.path("state/ports.json");
    daemon.stop();
    let good = fs::read(&path).expect("the state");
    fs::write(&path, &good[..good.len() / 2]).expect("half a state");
    daemon.start_again();
    daemon.wait_state("added", "waiting");
    assert_eq!(problems(&bed), ["state-damaged"]);
    assert!(bed.path("state/ports.json.damaged-1").exists());
    assert_eq!(fs::read(&path).expect("the state"), good);
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_upgrade_that_comes_to_nothing_leaves_a_whole_state_behind() {
    let bed = Bed::new(1, 1);
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    daemon.json(&words(&add(&bed, "added")));
    let copies = ["state/ports.json", "state/ports.backup.json"].map(|name| bed.path(name));
    let good = copies.each_ref().map(|path| fs::read(path).expect("the state"));
    for (path, good) in copies.iter().zip(&good) {
        fs::write(path, &good[..good.len() / 2]).expect("half a state");
    }
    daemon.refusal(&["upgrade"]);
    assert_eq!(copies.each_ref().map(|path| fs::read(path).expect("the state")), good);
    daemon.kill();
    daemon.start_again();
    daemon.wait_state("added", "waiting");
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_second_daemon_with_the_same_state_is_refused_and_an_upgrade_is_not() {
    let bed = Bed::new(1, 1);
    let configuration = Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]);
    let mut daemon = Daemon::start(&bed, &configuration);
    let refused = || {
        let refused = Daemon::refused(&bed, &configuration);
        assert!(refused.errors.contains("is in use by another isonic"), "{refused:?}");
    };
    refused();
    daemon.upgrade(&[]);
    refused();
    daemon.kill();
    daemon.start_again();
    daemon.stop();
}

/// Two NICs, two daemons: nothing but the directory is in the way.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_second_daemon_with_the_same_runtime_directory_is_refused_and_harms_nothing() {
    let bed = Bed::new(2, 1);
    let port = |uplink: usize| {
        PortSpec::switch(&bed.uplinks[uplink].nic, 1).with_profile("org.isonic.net.v2")
    };
    let uplinks = |uplink: usize| vec![(bed.uplinks[uplink].nic.clone(), None)];
    let [first, second] = [0, 1].map(|number| Configuration {
        uplinks: uplinks(number),
        ..Configuration::new(&bed, vec![port(number)])
    });
    let mut daemon = Daemon::start(&bed, &first);
    let positions = || fs::metadata(bed.path("run/rings/vm1")).expect("positions").ino();
    let before = positions();
    let refused = |daemon: &Daemon<'_>| {
        let own = [("api.sock", "api2.sock"), ("state", "state2"), ("vm1.sock", "vm2.sock")];
        let refused = Daemon::refused_with(&bed, &second, &own);
        let told = format!(
            "runtime_dir {} is in use by another isonic (process {}); stop that one, or give each \
             a runtime_dir of its own",
            bed.path("run").display(),
            daemon.id()
        );
        assert!(refused.errors.contains(&told), "{refused:?}");
        assert_eq!(positions(), before);
    };
    refused(&daemon);
    daemon.upgrade(&[]);
    refused(&daemon);
    // As of a version that has no such lock.
    fs::remove_file(bed.path("run/runtime.lock")).expect("the lock");
    daemon.upgrade(&[]);
    refused(&daemon);
    // It is taken again by whoever runs.
    fs::remove_file(bed.path("run/runtime.lock")).expect("the lock");
    wait_for("the directory is locked again", 20, || bed.path("run/runtime.lock").exists());
    refused(&daemon);
    daemon.kill();
    daemon.start_again();
    refused(&daemon);
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_runtime_directory_that_cannot_be_locked_is_told_until_it_can_be() {
    let bed = Bed::new(1, 1);
    let disk = SmallDisk::mount(bed.path("run"));
    disk.set_read_only(true);
    let configuration = Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]);
    let mut daemon = Daemon::start(&bed, &configuration);
    daemon.wait_state("vm1", "waiting");
    assert_eq!(problems(&bed), ["runtime-lock"]);
    daemon.upgrade(&[]);
    assert_eq!(problems(&bed), ["runtime-lock"]);
    daemon.stop();
    drop(disk);
    fs::remove_dir(bed.path("run")).expect("the directory");
    fs::write(bed.path("run"), "in the way").expect("a file");
    daemon.start_again();
    assert_eq!(problems(&bed), ["runtime-lock"]);
    fs::remove_file(bed.path("run")).expect("the file");
    wait_for("the directory is locked", 20, || problems(&bed).is_empty());
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn signals_that_mean_nothing_here_are_told_and_ignored() {
    let bed = Bed::new(1, 1);
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    for signal in ["HUP", "USR1", "USR2", "ALRM", "PIPE", "XFSZ"] {
        run(std::process::Command::new("kill").args(["-s", signal]).arg(daemon.id().to_string()));
        let told = format!("SIG{signal}");
        wait_for(&told, 10, || signal == "PIPE" || daemon.log().contains(&told));
        daemon.json(&["port", "list"]);
    }
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_that_cannot_be_served_keeps_no_other_from_it_and_is_served_when_it_can_be() {
    let bed = Bed::new(1, 1);
    let ports = [1, 2].map(|number| PortSpec::switch(NIC, number));
    fs::write(bed.path("vm1.sock"), "in the way").expect("a file");
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.to_vec()));
    daemon.wait_state("vm2", "waiting");
    let refused = daemon.json(&["port", "show", "vm1"]);
    assert_eq!(refused["state"], "refused");
    assert!(refused["refusal"].as_str().unwrap().contains("is no socket"), "{refused}");
    fs::remove_file(bed.path("vm1.sock")).expect("the file");
    daemon.wait_state("vm1", "waiting");
    connect(&bed, "vm1").negotiate();
    daemon.stop();
}

/// A front-end that gives more descriptors than there is room for.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_profile_that_cannot_be_had_costs_a_port_no_ring_position() {
    let bed = Bed::new(1, 1);
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let directory = bed.path("sockets");
    fs::create_dir(&directory).expect("a directory");
    let socket = directory.join("vm1.sock").display().to_string();
    let packed = "org.isonic.net.v2";
    let port = ["port", "add", "vm1", "--socket", &socket, "--uplink", NIC, "--profile", packed];
    daemon.json(&port);
    daemon.stop();
    fs::remove_dir_all(&directory).expect("the directory");
    daemon.start_again();
    let positions = || fs::read(bed.path("run/rings/vm1")).expect("the port's ring positions");
    let before = positions();
    daemon.refusal(&["port", "set-profile", "vm1", "org.isonic.net.v1"]);
    assert_eq!(positions(), before);
    fs::create_dir(&directory).expect("a directory");
    daemon.wait_state("vm1", "waiting");
    daemon.json(&["port", "set-profile", "vm1", "org.isonic.net.v1"]);
    assert!(!bed.path("run/rings/vm1").exists(), "a profile without packed rings has none");
    assert!(!bed.path("run/rings-aside/vm1").exists());
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn without_descriptors_a_session_ends_and_control_and_other_sessions_do_not() {
    let bed = Bed::new(1, 1);
    let ports = [1, 2].map(|number| PortSpec::switch(NIC, number));
    let launcher = ["prlimit", "--nofile=96:96", BINARY].map(str::to_owned);
    let mut daemon = Daemon::start_by(&bed, &Configuration::new(&bed, ports.to_vec()), &launcher);
    for _ in 0..3 {
        let greedy = connect(&bed, "vm1");
        greedy.negotiate();
        let file = event();
        // SET_VRING_CALL and SET_VRING_ERR of every ring.
        let all = (0..32_u64).flat_map(|ring| [(13, ring), (14, ring)]);
        let taken = all.take_while(|(request, ring)| {
            greedy.send(*request, 0x1, &ring.to_ne_bytes(), &[&file]) && greedy.number(1).is_some()
        });
        let taken = taken.count();
        assert!((1..64).contains(&taken), "{taken} were taken");
        daemon.json(&["port", "list"]);
        daemon.json(&words(&add(&bed, "added")));
        daemon.json(&["port", "del", "added"]);
        connect(&bed, "vm2").negotiate();
        drop(greedy);
        daemon.wait_state("vm1", "waiting");
    }
    assert!(daemon.log().contains("no file descriptor is left"), "{}", daemon.log());
    // Nothing but the reserved ones was left for a moment only.
    wait_for("it is told", 10, || problems(&bed).contains(&"open-files".to_owned()));
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn all_ports_whose_ring_positions_have_no_place_are_named_for_as_long_as_they_have_none() {
    let bed = Bed::new(1, 1);
    fs::write(bed.path("run"), "in the way").expect("a file");
    let ports =
        [1, 2].map(|number| PortSpec::switch(NIC, number).with_profile("org.isonic.net.v3"));
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.to_vec()));
    let told = |daemon: &Daemon<'_>| daemon.json(&["stats"])["problems"].to_string();
    assert!(told(&daemon).contains("ports vm1, vm2: their ring positions"), "{}", told(&daemon));
    fs::remove_file(bed.path("run")).expect("the file");
    daemon.upgrade(&[]);
    assert_eq!(told(&daemon), "[]");
    fs::remove_dir_all(bed.path("run/rings")).expect("the directory");
    wait_for("what was removed is missed", 10, || told(&daemon).contains("ports vm1, vm2:"));
    daemon.upgrade(&[]);
    assert_eq!(told(&daemon), "[]");
    // Where nothing can be put.
    fs::remove_file(bed.path("run/rings/vm1")).expect("the file");
    fs::create_dir_all(bed.path("run/rings/vm1/in-the-way")).expect("a directory");
    daemon.upgrade(&[]);
    assert!(told(&daemon).contains("ports vm1:"), "{}", told(&daemon));
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_that_is_deleted_stays_deleted_when_its_state_directory_comes_back() {
    let bed = Bed::new(1, 1);
    let configuration = Configuration::new(&bed, Vec::new());
    let mut daemon = Daemon::start(&bed, &configuration);
    daemon.json(&words(&add(&bed, "added")));
    let path = configuration.write(&bed);
    let text = fs::read_to_string(&path).expect("configuration");
    fs::write(&path, text.replace("/state\"", "/elsewhere\"")).expect("configuration");
    daemon.upgrade(&[]);
    daemon.json(&["port", "del", "added"]);
    fs::write(&path, text).expect("configuration");
    daemon.upgrade(&[]);
    assert_eq!(daemon.json(&["port", "list"]), serde_json::json!([]));
    daemon.stop();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_socket_that_is_removed_is_made_again_and_one_that_is_replaced_is_nobodys() {
    let bed = Bed::new(1, 1);
    let ports = [1, 2].map(|number| PortSpec::switch(NIC, number));
    let mut daemon = Daemon::start(&bed, &Configuration::new(&bed, ports.to_vec()));
    let with_session = connect(&bed, "vm2");
    with_session.negotiate();
    for port in ["vm1", "vm2"] {
        fs::remove_file(bed.path(&format!("{port}.sock"))).expect("the socket");
    }
    wait_for("a front-end may come again", 10, || bed.path("vm1.sock").exists());
    connect(&bed, "vm1").negotiate();
    assert!(!bed.path("vm2.sock").exists(), "its session goes on");
    assert!(with_session.number(1).is_some());
    drop(with_session);
    wait_for("it has gone", 10, || bed.path("vm2.sock").exists());
    connect(&bed, "vm2").negotiate();
    daemon.wait_state("vm1", "waiting");
    fs::remove_file(bed.path("vm1.sock")).expect("the socket");
    fs::write(bed.path("vm1.sock"), "somebody's").expect("a file");
    daemon.wait_state("vm1", "refused");
    fs::remove_file(bed.path("vm1.sock")).expect("the file");
    daemon.wait_state("vm1", "waiting");
    daemon.stop();
}

/// The name of a file that a front-end gives is quoted in the log.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn no_name_that_a_front_end_chooses_writes_a_line_of_the_log() {
    let bed = Bed::new(1, 1);
    let configuration = Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]);
    let mut daemon = Daemon::start(&bed, &configuration);
    let forged = "2026-11-28T03:14:15.926535Z  INFO isonic::daemon::ports: port is removed";
    let path = bed.path(&format!("x\n{forged}\n\u{1b}[2K\u{1b}[31m"));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    let frontend = connect(&bed, "vm1");
    frontend.negotiate();
    frontend.send(13, 0x1, &0_u64.to_ne_bytes(), &[&file.expect("a file")]);
    assert!(frontend.number(1).is_some(), "the session goes on");
    wait_for("the refusal is logged", 10, || daemon.log().contains("request refused"));
    let log = daemon.log();
    assert!(log.lines().all(|line| !line.starts_with("2026-11-28T03:14:15.926535Z")), "{log}");
    assert!(log.contains(r"x\n2026-11-28"), "{log}");
    assert!(!log.contains('\u{1b}'), "{log}");
    daemon.stop();
}

/// What reads the log may hang: its pipe is full then, and a write to it would never return.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_log_that_nobody_reads_stops_nothing() {
    let bed = Bed::new(1, 1);
    let configuration =
        Configuration::new(&bed, vec![PortSpec::switch(NIC, 1), PortSpec::switch(NIC, 2)]);
    let (mut reader, writer) = std::io::pipe().expect("a pipe");
    let mut writer = File::from(OwnedFd::from(writer));
    let mut daemon = Daemon::start_logging_to(&bed, &configuration, &writer);
    // Full to the last byte, after what the daemon has written already.
    fcntl_setfl(&writer, OFlags::NONBLOCK).expect("a pipe that says when it is full");
    while writer.write(b".").is_ok() {}
    // Sessions and the API have something to log. That the pipe blocks is the daemon's own setting.
    for round in 0..20 {
        let frontend = connect(&bed, ["vm1", "vm2"][round % 2]);
        frontend.negotiate();
        let file = File::open("/dev/null").expect("a file");
        frontend.send(13, 0x1, &0_u64.to_ne_bytes(), &[&file]);
        assert!(frontend.number(1).is_some(), "the session goes on");
    }
    daemon.refusal(&["port", "show", "none"]);
    daemon.json(&words(&add(&bed, "added")));
    daemon.json(&["port", "del", "added"]);
    daemon.stop();
    // It was the daemon's log, with no room left for what it did since.
    drop(writer);
    let mut log = String::new();
    reader.read_to_string(&mut log).expect("the log");
    assert!(log.contains("uplink is open") && !log.contains("port is removed"), "{log}");
}
