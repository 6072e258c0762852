//! What operators do with a running daemon, beside real NICs: ports that are asked for twice,
//! errors for programs, counters of many ports, and who asked for what failed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::common::{
    Bed, Configuration, Daemon, Finished, NIC, PROFILE, PortSpec, run_to_end, wait_for,
};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_isonic");

fn command(bed: &Bed, arguments: &[&str]) -> Command {
    let mut command = Command::new(BINARY);
    command.args(arguments).env("ISONIC_API", bed.path("api.sock"));
    command
}

fn isonic(bed: &Bed, arguments: &[&str]) -> Finished {
    run_to_end(&mut command(bed, arguments))
}

/// The error that a command with `--json` ends with.
fn error(bed: &Bed, arguments: &[&str]) -> Value {
    let finished = isonic(bed, &[arguments, &["--json"]].concat());
    assert_eq!((finished.status.code(), finished.output.as_str()), (Some(1), ""));
    let line = finished.errors.lines().last().expect("an error");
    serde_json::from_str::<Value>(line).unwrap_or_else(|_| panic!("{finished:?}"))["error"].clone()
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_is_asked_for_twice_and_each_difference_is_told() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]));
    let socket = bed.path("vm2.sock").display().to_string();
    let add = ["port", "add", "vm2", "--socket", &socket, "--uplink", NIC, "--profile", PROFILE];
    let again = [&add[..], &["--if-not-exists"]].concat();
    let made = daemon.json(&again);
    assert_eq!(daemon.json(&again), made);
    // The same in other words: a list of values that changes nothing, the default permissions.
    let same = [&again[..8], &["org.isonic.net.v1,mtu=1500", "--if-not-exists"]].concat();
    assert_eq!(daemon.json(&[&same[..], &["--socket-permissions", "0600"]].concat()), made);
    assert_eq!(error(&bed, &add)["code"], "exists");
    let other = ["--mac", "52:54:00:00:00:07", "--owner", "me", "--socket-permissions", "0660"];
    let told = error(&bed, &[&again[..], &other].concat());
    assert_eq!(told["code"], "exists");
    let reasons = told["reasons"].as_array().expect("reasons");
    assert_eq!(reasons.len(), 3, "{reasons:?}");
    assert!(reasons[0].as_str().expect("text").contains("52:54:00:00:00:07 is asked for"));
    assert_eq!(reasons[1], "socket_permissions is 0600, and 0660 is asked for");
    assert_eq!(reasons[2], "owner is none, and me is asked for");
    assert_eq!(daemon.json(&["port", "show", "vm2"]), made, "it is as it was");
    // What no host could have is the request's fault, what this one cannot is not.
    let told = error(
        &bed,
        &["port", "add", "vm 3", "--socket", &socket, "--uplink", "eth9", "--profile", PROFILE],
    );
    assert_eq!(
        (&told["code"], told["reasons"].as_array().map(Vec::len)),
        (&"invalid".into(), Some(3))
    );
    let told = error(
        &bed,
        &["port", "add", "vm3", "--socket", &socket, "--uplink", NIC, "--profile", PROFILE],
    );
    assert_eq!(
        (&told["code"], told["reasons"].as_array().map(Vec::len)),
        (&"refused".into(), Some(1))
    );
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn who_asked_for_what_failed_is_in_the_log_and_cannot_write_it() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, Vec::new()));
    let name = "a\nb INFO isonic: port is removed\u{1b}[2K";
    let told = error(&bed, &["port", "del", name]);
    assert_eq!(told["code"], "not_found");
    wait_for("the failure is logged", 5, || daemon.log().contains("request failed"));
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("request failed")).expect("a line");
    for part in ["WARN", "method=DELETE", "status=404", "uid=0", "program=\"isonic\"", "pid="] {
        assert!(line.contains(part), "{part} is not in {line}");
    }
    assert!(
        !log.contains('\u{1b}') && !log.lines().any(|line| line.starts_with("b INFO")),
        "{log}"
    );
    // People's terminals are safe from the answer, too.
    let errors = isonic(&bed, &["port", "del", name]).errors;
    assert_eq!(errors.lines().count(), 1, "{errors:?}");
    assert!(!errors.contains('\u{1b}'), "{errors:?}");
    for _ in 0..60 {
        isonic(&bed, &["port", "show", "nobodys"]);
    }
    assert!(daemon.log().matches("request failed").count() <= 20);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn counters_of_many_ports_are_one_question_and_a_line_each() {
    const PORTS: usize = 99;
    let bed = Bed::new(2, 1);
    let ports = (1..=99).map(|number| PortSpec::switch(NIC, number)).collect();
    let daemon = Daemon::start(&bed, &Configuration::new(&bed, ports));
    let all = isonic(&bed, &["stats", "--all"]).output;
    assert_eq!(all.matches("\nport vm").count(), PORTS, "{all}");
    assert_eq!(all.matches("to_guest_packets=0").count(), PORTS, "{all}");
    // Every port and uplink of it, and no more than a look at the list has a worker wake up.
    let sleeps = || daemon.json(&["stats"])["workers"][0]["sleeps"].as_u64().expect("sleeps");
    let before = sleeps();
    isonic(&bed, &["port", "list"]);
    let woken = sleeps() - before;
    assert!(woken < 40, "{woken} times for {PORTS} ports");
    let one = isonic(&bed, &["stats", "vm7", "isonic-nic1"]).output;
    assert_eq!(one.lines().count(), 3, "{one}");
    assert!(one.contains("\nport vm7"), "{one}");
    let chosen = daemon.json(&["stats", "vm7"]);
    assert_eq!(chosen["ports"].as_object().map(serde_json::Map::len), Some(1));
    let unknown = isonic(&bed, &["stats", "vm7", "vm700"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(unknown.errors.contains("there is no port or uplink \"vm700\""), "{unknown:?}");
}

/// Ended when the test does.
struct Watch(Child);

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_watch_prints_rates_until_nobody_reads_them() {
    let bed = Bed::new(1, 1);
    let _daemon = Daemon::start(&bed, &Configuration::new(&bed, vec![PortSpec::switch(NIC, 1)]));
    let mut watch = command(&bed, &["stats", "vm1", "--watch"]);
    let mut watch = Watch(watch.stdout(Stdio::piped()).spawn().expect("isonic stats"));
    let output = watch.0.stdout.take().expect("output");
    let lines: Vec<String> =
        BufReader::new(output).lines().take(4).map(|line| line.expect("a line")).collect();
    assert_eq!(lines[0], lines[2], "{lines:?}");
    assert!(
        lines[0].contains("A SECOND") && lines[1].starts_with("port vm1  nothing"),
        "{lines:?}"
    );
    wait_for("it ends without a reader", 10, || watch.0.try_wait().expect("a child").is_some());
    assert!(watch.0.wait().expect("a child").success());
}
