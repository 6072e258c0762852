//! What `packaging/` installs: systemd finds no fault with it, and its parts fit each other.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn packaged(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Lines that are no comments.
fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// The values of a setting of the unit.
fn values(unit: &str, setting: &str) -> Vec<String> {
    let value = |line: &str| Some(line.strip_prefix(setting)?.strip_prefix('=')?.to_owned());
    let values: Vec<String> = lines(unit).filter_map(value).collect();
    values.iter().flat_map(|value| value.split(' ')).map(str::to_owned).collect()
}

fn systemd(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("no {program} ({error}): run scripts/setup"))
}

#[test]
fn systemd_finds_no_fault_with_the_unit_and_the_files_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let unit = packaged("isonic.service");
    let ours = unit.replace("/usr/local/bin/isonic", env!("CARGO_BIN_EXE_isonic"));
    fs::write(path("isonic.service"), ours).unwrap();
    let verified = systemd("systemd-analyze", &["verify", "--man=no", &path("isonic.service")]);
    let said = String::from_utf8_lossy(&verified.stderr);
    let about_us: Vec<&str> = said.lines().filter(|line| line.contains("isonic")).collect();
    assert!(verified.status.success() && about_us.is_empty(), "{verified:?}");
    let root = path("root");
    fs::create_dir_all(format!("{root}/etc")).unwrap();
    let root = format!("--root={root}");
    fs::write(path("users.conf"), packaged("isonic.sysusers")).unwrap();
    fs::write(path("files.conf"), packaged("isonic.tmpfiles")).unwrap();
    let users = systemd("systemd-sysusers", &[&root, &path("users.conf")]);
    assert!(users.status.success(), "{users:?}");
    let files = systemd("systemd-tmpfiles", &["--create", &root, &path("files.conf")]);
    assert!(files.status.success(), "{files:?}");
    assert!(directory.path().join("root/run/isonic").is_dir());
}

#[test]
fn whom_the_unit_runs_as_is_whom_the_users_file_makes() {
    let (unit, users) = (packaged("isonic.service"), packaged("isonic.sysusers"));
    let made: BTreeSet<String> = lines(&users)
        .filter(|line| line.starts_with("u ") || line.starts_with("g "))
        .filter_map(|line| line.split(' ').nth(1).map(str::to_owned))
        .collect();
    let wanted = ["User", "Group", "SupplementaryGroups"].map(|setting| values(&unit, setting));
    for name in wanted.iter().flatten() {
        assert!(made.contains(name), "{name} is made by nobody: {made:?}");
    }
    for group in &wanted[2] {
        let line = format!("m isonic {group}");
        assert!(lines(&users).any(|present| present == line), "{line}");
    }
    // The directories of the defaults are those that can be written.
    for (setting, directory) in [("RuntimeDirectory", "isonic"), ("StateDirectory", "isonic")] {
        assert_eq!(values(&unit, setting), [directory]);
    }
    assert!(packaged("isonic.tmpfiles").contains("\nd /run/isonic 0755 isonic isonic -\n"));
}
