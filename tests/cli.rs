//! The binary from outside, as far as it needs no daemon: what it says of itself, and how it
//! answers bad input.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROFILE: &str = include_str!("../profiles/org.isonic.net.v1.toml");

/// Run `isonic`; the environment names no daemon.
fn isonic(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    command.args(arguments).env_remove("ISONIC_API").env_remove("RUST_LOG");
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// What `isonic run --check-config` says of this file, which fails.
fn mistakes(directory: &Path, config: &str) -> Vec<String> {
    let file = directory.join("isonic.toml");
    std::fs::write(&file, config).unwrap();
    let output = isonic(&["run", "--config", file.to_str().unwrap(), "--check-config"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let message = text(&output.stderr).replace(&format!("{}/", directory.display()), "");
    message.lines().map(|line| line.strip_prefix("isonic: ").unwrap().to_owned()).collect()
}

#[test]
fn five_mistakes_are_five_lines_with_their_numbers() {
    let directory = tempfile::tempdir().unwrap();
    let config = r#"workers = "two"
[[uplinks]]
interface = "eth0"
mod = "auto"
[[ports]]
name = "vm1"
socket = "/run/vm1.sock"
profile = "org.isonic.net.v9"
uplink = "eth1"
mac = "52:54"
"#;
    let lines = mistakes(directory.path(), config);
    let places: Vec<&str> = lines.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(
        places,
        ["isonic.toml:1:", "isonic.toml:4:", "isonic.toml:8:", "isonic.toml:9:", "isonic.toml:10:"],
        "{lines:#?}"
    );
}

#[test]
fn a_good_file_is_ok() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("isonic.toml");
    std::fs::write(&file, "[[uplinks]]\ninterface = \"eth0\"\n").unwrap();
    let output = isonic(&["run", "--config", file.to_str().unwrap(), "--check-config"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(text(&output.stdout).ends_with("ok: uplinks 1, ports 0, workers 1\n"));
}

#[test]
fn a_file_that_is_not_there_is_named_with_the_cause() {
    let output = isonic(&["run", "--config", "/nonexistent/isonic.toml"]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "isonic: cannot read /nonexistent/isonic.toml: No such file or directory (os error 2)\n"
    );
}

#[test]
fn mistakes_in_profile_files_are_told_with_file_and_line() {
    let directory = tempfile::tempdir().unwrap();
    let profiles = directory.path().join("profiles");
    std::fs::create_dir(&profiles).unwrap();
    let named = |name: &str| PROFILE.replace("org.isonic.net.v1", name);
    std::fs::write(profiles.join("a.toml"), named("com.x.v1") + "colour = 1\n").unwrap();
    std::fs::write(profiles.join("b.toml"), named("com.y.v1").replace("\"mq\"", "\"mqq\""))
        .unwrap();
    std::fs::write(profiles.join("c.toml"), named("com.z.v1")).unwrap();
    std::fs::write(profiles.join("d.toml"), named("com.z.v1")).unwrap();
    let config =
        format!("profile_dir = \"{}\"\n[[uplinks]]\ninterface = \"eth0\"\n", profiles.display());
    let lines = mistakes(directory.path(), &config).join("\n");
    for told in [
        "isonic.toml:1: profile_dir: profiles/a.toml:43: unknown key \"colour\"",
        "profiles/b.toml:10: features lists unknown \"mqq\"; did you mean \"mq\"?",
        "profiles/d.toml: the profile \"com.z.v1\" is already in profiles/c.toml",
    ] {
        assert!(lines.contains(told), "{told}\n{lines}");
    }
}

#[test]
fn one_port_that_cannot_be_is_refused_with_every_reason() {
    let output = isonic(&[
        "run",
        "--socket-path",
        "/run/x.sock",
        "--uplink",
        "eth0",
        "--profile",
        "nobodys",
        "--mac",
        "ff:ff:ff:ff:ff:ff",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    assert!(message.contains("there is no profile \"nobodys\"; known: org.dpdk.v22.11, org."));
    assert!(message.contains("ff:ff:ff:ff:ff:ff is not the address of one device"));
}

#[test]
fn a_profile_of_another_backend_is_refused_with_all_that_is_missing() {
    let arguments = ["run", "--socket-path", "/run/x.sock", "--uplink", "eth0", "--profile"];
    let output = isonic(&[&arguments[..], &["org.dpdk.v22.11"]].concat());
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    for missing in ["csum, guest_csum, gso, guest_tso4", "log_all, any_layout", "log_shmfd"] {
        assert!(message.contains(missing), "{missing}: {message}");
    }
}

#[test]
fn usage_errors_have_a_status_of_their_own() {
    for arguments in [&["run"][..], &["run", "--fd", "x"], &["port", "add", "vm1"], &["fly"]] {
        assert_eq!(isonic(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn capabilities_are_json_with_type_profiles_and_latest() {
    let output = isonic(&["run", "--print-capabilities"]);
    assert_eq!(output.status.code(), Some(0));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["type"], "net");
    assert_eq!(printed["features"], serde_json::json!([]));
    assert_eq!(printed["profiles"], serde_json::json!(["org.isonic.net.v1"]));
    assert_eq!(printed["latest"]["org.isonic.net"], "org.isonic.net.v1");
}

#[test]
fn profiles_are_listed_and_shown_without_a_daemon() {
    let table = text(&isonic(&["profile", "list", "--local"]).stdout);
    let line = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).expect(name);
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("org.isonic.net.v1")[1..3], ["latest", "yes"], "{table}");
    assert_eq!(line("org.dpdk.v22.11")[1], "no", "{table}");
    let show = ["profile", "show", "org.isonic.net.v1", "--local", "--json"];
    let shown: Value = serde_json::from_slice(&isonic(&show).stdout).unwrap();
    assert_eq!((shown["mtu"].as_u64(), shown["ring_size_max"].as_u64()), (Some(1500), Some(1024)));
    assert_eq!(shown["digest"].as_str().unwrap().len(), 64);
    let unknown = isonic(&["profile", "show", "nobodys", "--local"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("it has org.dpdk.v22.11, org.isonic.net.v1"));
}

#[test]
fn a_daemon_that_is_not_there_is_told_with_what_to_do() {
    for command in [&["port", "list"][..], &["uplink", "list"], &["stats"], &["profile", "list"]] {
        let socket = ["--api-socket", "/nonexistent/api.sock"];
        let output = isonic(&[command, &socket].concat());
        assert_eq!(output.status.code(), Some(1), "{command:?}");
        let message = text(&output.stderr);
        assert!(message.contains("cannot reach the daemon at /nonexistent/api.sock"), "{message}");
        assert!(message.contains("isonic run"), "{message}");
    }
}
