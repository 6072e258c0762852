//! The binary from outside, as far as it needs no daemon: what it says of itself, and how it
//! answers bad input.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

const PROFILE: &str = include_str!("../../profiles/org.isonic.net.v1.toml");

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
fn a_name_with_lines_is_on_one() {
    let directory = tempfile::tempdir().unwrap();
    let config = "[[uplinks]]\ninterface = \"eth0\"\n[[ports]]\nname = \"a\\nb\\u001b[31m\"\n\
                  socket = \"/x\\u0000y\"\nprofile = \"org.isonic.net.v1\"\nuplink = \"q\\nz\"\n";
    let lines = mistakes(directory.path(), config);
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines.iter().all(|line| line.starts_with("isonic.toml:")), "{lines:#?}");
    assert!(lines[0].contains(r"a\nb\u{1b}[31m"), "{lines:#?}");
}

#[test]
fn what_cannot_be_printed_is_a_failure_and_a_reader_that_has_gone_is_none() {
    let profile = ["profile", "show", "--local", "org.isonic.net.v1"];
    for words in [&["--help"][..], &["--version"], &["port", "add", "--help"], &profile] {
        let command = || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
            command.args(words).env_remove("ISONIC_API").stderr(std::process::Stdio::piped());
            command
        };
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command().stdout(full).spawn().unwrap().wait_with_output().unwrap();
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {told}");
        assert_eq!(told.lines().count(), 1, "{words:?}: {told}");
        assert!(told.starts_with("isonic: cannot write to standard output: "), "{told}");
        let (gone, closed) = std::io::pipe().unwrap();
        drop(gone);
        let output = command().stdout(closed).spawn().unwrap().wait_with_output().unwrap();
        assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
    }
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
fn a_profile_this_version_cannot_keep_is_refused_with_all_that_is_missing() {
    let arguments = ["run", "--socket-path", "/run/x.sock", "--uplink", "eth0", "--profile"];
    let wide = "org.dpdk.v22.11,access_platform=on";
    let output = isonic(&[&arguments[..], &[wide]].concat());
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    for missing in [wide, "does not do access_platform"] {
        assert!(message.contains(missing), "{missing}: {message}");
    }
}

#[test]
fn usage_errors_have_a_status_of_their_own() {
    for arguments in [&["run"][..], &["run", "--fd", "x"], &["port", "add", "vm1"], &["fly"]] {
        assert_eq!(isonic(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

/// Standard error of a command that fails with this status.
fn told(arguments: &[&str], status: i32) -> String {
    let output = isonic(arguments);
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {output:?}");
    assert_eq!(text(&output.stdout), "", "{arguments:?}");
    text(&output.stderr)
}

#[test]
fn a_run_without_a_port_is_told_what_is_missing_by_commands_that_are_accepted() {
    let message = told(&["run"], 2);
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.contains("--config FILE, or for one port --socket-path PATH"), "{message}");
    let message = told(&["run", "--uplink", "e", "--profile", "org.isonic.net.v1"], 2);
    assert!(message.contains("give also --socket-path PATH (or --fd NUMBER)"), "{message}");
    // What clap says of itself teaches whole commands too.
    let message = told(&["run", "--config", "f", "--socket-path", "s"], 2);
    for usage in USAGES {
        assert!(message.contains(usage), "{usage}: {message}");
    }
}

const USAGES: [&str; 3] = [
    "isonic run --config <FILE>",
    "isonic run --socket-path <PATH> --uplink <INTERFACE> --profile <PROFILE>",
    "isonic run --fd <NUMBER> --uplink <INTERFACE> --profile <PROFILE>",
];

#[test]
fn a_log_level_that_is_none_is_refused_and_one_of_the_environment_ignored() {
    let message = told(&["--log-level", "INFOO", "profile", "list", "--local"], 2);
    assert_eq!(
        message,
        "isonic: --log-level \"INFOO\": \"INFOO\" is no level; write off, error, warn, info, \
         debug or trace, or a filter such as isonic::vhost_user=debug\n"
    );
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    command.args(["profile", "list", "--local"]).env("RUST_LOG", "INFOO").env("NO_COLOR", "1");
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let message = text(&output.stderr);
    assert!(message.contains("WARN") && message.contains("RUST_LOG is ignored"), "{message}");
    assert!(!message.contains('\u{1b}'), "{message:?}");
}

#[test]
fn with_json_every_failure_is_one_line_of_json() {
    for (arguments, status, code) in [
        (
            &["port", "list", "--json", "--api-socket", "/nonexistent/api.sock"][..],
            1,
            "unreachable",
        ),
        (
            &["profile", "show", "--local", "org.isonic.net.v1,mq=maybe,rsss=on", "--json"],
            1,
            "failed",
        ),
        (&["port", "show", "--json"], 2, "usage"),
        (&["stats", "--watch", "never", "--json"], 2, "usage"),
        (&["--log-level", "x", "port", "list", "--json"], 2, "usage"),
    ] {
        let message = told(arguments, status);
        assert_eq!(message.lines().count(), 1, "{message}");
        let error: Value = serde_json::from_str(&message).unwrap();
        assert_eq!(error["error"]["code"], code, "{message}");
        let reasons = error["error"]["reasons"].as_array().unwrap();
        assert!(!reasons.is_empty() && error["error"]["message"].is_string(), "{message}");
    }
}

#[test]
fn an_error_is_lines_of_the_terminals_own() {
    let message = told(&["run", "--config", "/nonexistent/\u{1b}[2K\nisonic: all is well"], 1);
    assert_eq!(message.lines().count(), 2, "{message:?}");
    assert!(!message.contains('\u{1b}'), "{message:?}");
}

/// The profiles in the binary.
const RELEASED: [&str; 5] = [
    "org.dpdk.v22.11",
    "org.isonic.net.v1",
    "org.isonic.net.v2",
    "org.isonic.net.v3",
    "org.openvswitch.v3.1",
];

#[test]
fn capabilities_are_json_with_type_profiles_and_latest() {
    let output = isonic(&["run", "--print-capabilities"]);
    assert_eq!(output.status.code(), Some(0));
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["type"], "net");
    assert_eq!(printed["features"], serde_json::json!([]));
    assert_eq!(printed["profiles"], serde_json::json!(RELEASED));
    assert_eq!(printed["latest"]["org.isonic.net"], "org.isonic.net.v3");
}

#[test]
fn profiles_are_listed_and_shown_without_a_daemon() {
    let table = text(&isonic(&["profile", "list", "--local"]).stdout);
    let line = |name: &str| {
        let line = table.lines().find(|line| line.starts_with(name)).expect(name);
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(line("org.isonic.net.v3")[1..3], ["org.isonic.net", "latest"], "{table}");
    assert_eq!(line("org.dpdk.v22.11")[3], "yes", "{table}");
    let show = ["profile", "show", "org.isonic.net.v1", "--local", "--json"];
    let shown: Value = serde_json::from_slice(&isonic(&show).stdout).unwrap();
    assert_eq!((shown["mtu"].as_u64(), shown["ring_size_max"].as_u64()), (Some(1500), Some(1024)));
    assert_eq!(shown["digest"].as_str().unwrap().len(), 64);
    let unknown = isonic(&["profile", "show", "nobodys", "--local"]);
    assert_eq!(unknown.status.code(), Some(1));
    assert!(text(&unknown.stderr).contains("known: org.dpdk.v22.11, org.isonic.net.v1"));
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

/// A directory with a draft, com.x.v2, and what it was made from.
fn profiles() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let v1 = PROFILE.replace("org.isonic.net.v1", "com.x.v1").replace("= 1024", "= 512");
    std::fs::write(directory.path().join("1.toml"), v1).unwrap();
    let v2 = "name = \"com.x.v2\"\nsummary = \"larger frames, more rings\"\ndraft = true\n\
              extends = \"com.x.v1\"\nwhy = \"storage\"\nmtu = 9000\n\
              add_features = [\"csum\", \"access_platform\"]\n";
    std::fs::write(directory.path().join("2.toml"), v2).unwrap();
    directory
}

fn json(arguments: &[&str]) -> Value {
    let output = isonic(&[arguments, &["--json"]].concat());
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn a_directory_of_profiles_is_listed_without_a_daemon_drafts_and_blockers_too() {
    let directory = profiles();
    let place = ["--profile-dir", directory.path().to_str().unwrap()];
    let list = json(&[&["profile", "list"], &place[..]].concat());
    let names: Vec<&str> =
        list.as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names[..2], ["com.x.v1", "com.x.v2"]);
    assert!(names.contains(&"org.isonic.net.v1"), "{names:?}");
    assert_eq!((&list[0]["latest"], &list[1]["draft"]), (&true.into(), &true.into()));
    assert_eq!((&list[1]["extends"], &list[1]["why"]), (&"com.x.v1".into(), &"storage".into()));
    assert_eq!(list[1]["blockers"][0], "this version of isonic does not do access_platform");
    let capabilities = isonic(&[&["run", "--print-capabilities"], &place[..]].concat());
    let printed: Value = serde_json::from_slice(&capabilities.stdout).unwrap();
    assert_eq!(printed["profiles"], serde_json::json!([&["com.x.v1"], &RELEASED[..]].concat()));
    let shown = text(&isonic(&[&["profile", "show", "com.x.v2"], &place[..]].concat()).stdout);
    let blocker = "does not do access_platform";
    for told in ["draft", "storage", "VIRTIO_NET_F_CSUM", "tx-checksumming on", blocker] {
        assert!(shown.contains(told), "{told} in {shown}");
    }
}

#[test]
fn a_difference_is_told_bit_by_bit() {
    let directory = profiles();
    let place = ["--profile-dir", directory.path().to_str().unwrap()];
    let command = [&["profile", "diff", "com.x.v1", "com.x.v2,mtu=1500"], &place[..]].concat();
    let difference = json(&command);
    assert_eq!(difference["same"], false);
    assert_eq!(
        difference["changes"][1],
        serde_json::json!({ "what": "feature csum", "from": "off", "to": "on", "guest": true })
    );
    let whats: Vec<&str> = difference["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| change["what"].as_str().unwrap())
        .collect();
    assert_eq!(
        whats,
        [
            "feature access_platform",
            "feature csum",
            "ethtool -k scatter-gather",
            "ethtool -k tx-checksumming"
        ]
    );
    assert!(text(&isonic(&command).stdout).contains("feature csum"));
    let same = isonic(&["profile", "diff", "--local", "latest", "org.isonic.net.v3"]);
    assert!(text(&same.stdout).contains("are the same interface"));
}

#[test]
fn a_check_tells_every_blocker_and_its_status_says_no() {
    let directory = profiles();
    let place = ["--profile-dir", directory.path().to_str().unwrap()];
    let check = |profile: &str, uplink: &str| {
        isonic(&[&["profile", "check", profile, "--uplink", uplink, "--json"], &place[..]].concat())
    };
    // Every host has a loopback interface, whose MTU is above any Ethernet's.
    let good = check("com.x.v1", "lo");
    assert_eq!(good.status.code(), Some(0), "{good:?}");
    let bad = check("com.x.v2", "lo");
    assert_eq!(bad.status.code(), Some(1));
    let answer: Value = serde_json::from_slice(&bad.stdout).unwrap();
    assert_eq!((&answer["usable"], &answer["uplink"]), (&false.into(), &"lo".into()));
    assert_eq!(
        answer["blockers"],
        serde_json::json!(["this version of isonic does not do access_platform"])
    );
    assert!(text(&bad.stderr).contains("com.x.v2 cannot be kept on uplink lo"));
    let nowhere = check("com.x.v1", "isonic-none");
    assert_eq!(nowhere.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&nowhere.stderr).unwrap();
    assert_eq!(told["error"]["code"], "failed");
    let message = told["error"]["message"].as_str().unwrap();
    assert!(message.contains("there is no interface \"isonic-none\""), "{message}");
}

#[test]
fn a_check_of_what_nobody_can_offer_says_who_stands_in_the_way() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    let file = "name = \"com.x.v1\"\nsummary = \"s\"\nextends = \"org.isonic.net.v1\"\n\
                why = \"w\"\n\
                add_features = [\"csum\", \"host_uso\", \"host_udp_tunnel_gso\"]\n";
    std::fs::write(directory.path().join("1.toml"), file).unwrap();
    let check = ["profile", "check", "com.x.v1", "--uplink", "lo", "--profile-dir", place];
    let output = isonic(&check);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    for line in [
        "1.toml:5: add_features lists \"host_uso\": QEMU hides it behind every vhost-user backend",
        "1.toml:5: add_features lists \"host_udp_tunnel_gso\": its bit is above 63",
    ] {
        assert!(told.contains(line), "{told}");
    }
    let values = ["profile", "check", "org.isonic.net.v1,rss=on", "--uplink", "lo", "--local"];
    let output = isonic(&values);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("rss cannot be on: QEMU hides it"), "{output:?}");
}

#[test]
fn the_baseline_of_two_hosts_is_the_newest_that_both_have() {
    let directory = profiles();
    let hosts = tempfile::tempdir().unwrap();
    let [old, new] = ["old.json", "new.json"].map(|name| hosts.path().join(name));
    let list = isonic(&["profile", "list", "--local", "--json"]);
    std::fs::write(&old, list.stdout).unwrap();
    let place = directory.path().to_str().unwrap();
    let list = isonic(&["profile", "list", "--profile-dir", place, "--json"]);
    std::fs::write(&new, list.stdout).unwrap();
    let [old, new] = [old, new].map(|path| path.to_str().unwrap().to_owned());
    let found = json(&["profile", "baseline", &old, &new]);
    assert_eq!((&found[0]["family"], &found[0]["baseline"]), (&"com.x".into(), &Value::Null));
    assert_eq!(found[0]["newer"][0]["reasons"][0]["host"], old.as_str());
    let ours = found.as_array().unwrap().iter().find(|it| it["family"] == "org.isonic.net");
    assert_eq!(ours.unwrap()["baseline"], "org.isonic.net.v3");
    let none = isonic(&["profile", "baseline", "--family", "com.x", &old, &new]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none.stdout).contains("it does not have this profile"));
    assert!(text(&none.stderr).contains("no profile of com.x can be kept by all"));
}

#[test]
fn files_that_are_something_else_are_told_apart_from_those_to_be_compared() {
    let directory = tempfile::tempdir().unwrap();
    let other = directory.path().join("other.json");
    std::fs::write(&other, "{\"name\": 1}").unwrap();
    let large = directory.path().join("large.json");
    std::fs::File::create(&large).unwrap().set_len((64 << 20) + 1).unwrap();
    let [other, large] = [other, large].map(|path| path.to_str().unwrap().to_owned());
    let folder = directory.path().to_str().unwrap();
    for (file, told) in [
        (other.as_str(), "other.json is not what isonic profile list --json prints"),
        (&large, "large.json has more than 67108864 bytes"),
        (folder, "is no regular file"),
        ("/nonexistent/a.json", "cannot read /nonexistent/a.json: No such file"),
    ] {
        let output = isonic(&["profile", "baseline", file]);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains(told), "{output:?}");
    }
    let output = isonic(&["port", "compare", &other, &other]);
    assert!(text(&output.stderr).contains("is not what isonic port show NAME --json prints"));
}

#[test]
fn a_list_of_values_is_refused_with_all_its_mistakes() {
    let list = "org.isonic.net.v1,mrg_rxbuff=off,max_ring=300000,mq=maybe";
    let output = isonic(&["profile", "show", "--local", list]);
    assert_eq!(output.status.code(), Some(1));
    let message = text(&output.stderr);
    for told in
        ["did you mean \"mrg_rxbuf\"?", "max_ring is a number from 1 to 32768", "mq is on or off"]
    {
        assert!(message.contains(told), "{message}");
    }
    let output = isonic(&["profile", "show", "--local", "org.isonic.net.v11"]);
    assert!(text(&output.stderr).contains("did you mean \"org.isonic.net.v1\"?"));
}

#[test]
fn a_draft_is_served_only_where_that_is_allowed() {
    let (directory, profiles) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let draft = PROFILE
        .replace("org.isonic.net.v1", "com.x.v1")
        .replace("summary", "draft = true\nsummary");
    std::fs::write(profiles.path().join("1.toml"), draft).unwrap();
    let config = format!(
        "profile_dir = {:?}\n[[uplinks]]\ninterface = \"eth0\"\n[[ports]]\nname = \"vm1\"\n\
         socket = \"/run/vm1.sock\"\nuplink = \"eth0\"\nprofile = \"com.x.v1\"\n",
        profiles.path()
    );
    let lines = mistakes(directory.path(), &config);
    assert!(lines[0].starts_with("isonic.toml:8: port \"vm1\": profile \"com.x.v1\" is a draft"));
    let file = directory.path().join("isonic.toml");
    std::fs::write(&file, config + "allow_draft = true\n").unwrap();
    let output = isonic(&["run", "--config", file.to_str().unwrap(), "--check-config"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn no_daemon_is_an_error_for_programs_too() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("api.sock");
    std::fs::write(&socket, "").unwrap();
    let output = isonic(&["port", "list", "--json", "--api-socket", socket.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let told: Value = serde_json::from_slice(&output.stderr).unwrap();
    assert_eq!(told["error"]["code"], "unreachable");
}
