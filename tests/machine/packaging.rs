//! What `packaging/` installs: systemd finds no fault with it. That its parts fit each other:
//! `tests/program/packaging.rs`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::common::take_machine;

fn packaged(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn systemd(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.unwrap_or_else(|error| panic!("no {program} ({error}): run scripts/setup"))
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn systemd_finds_no_fault_with_the_unit_and_the_files_beside_it() {
    let _machine = take_machine();
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
