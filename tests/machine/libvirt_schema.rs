//! What libvirt's schema says of the XML that isonic prints.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::common::take_machine;

const V1: &str = "org.isonic.net.v1";
const V3: &str = "org.isonic.net.v3";
/// Debian's package libvirt0 has them.
const SCHEMA: &str = "/usr/share/libvirt/schemas/domain.rng";
/// What a user begins with, as libvirt prints it.
const DOMAIN: &str = include_str!("../program/domain.xml");

fn exported(arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    command.args(["profile", "export"]).args(arguments).env_remove("RUST_LOG");
    printed(&command.output().unwrap())
}

/// What `isonic libvirt stamp -` makes of a domain.
fn stamped(arguments: &[&str], domain: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    command.args(["libvirt", "stamp", "-"]).args(arguments);
    command.env_remove("RUST_LOG").env_remove("ISONIC_API");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Shorter than a pipe is deep.
    child.stdin.take().unwrap().write_all(domain.as_bytes()).unwrap();
    printed(&child.wait_with_output().unwrap())
}

fn printed(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asserts that the fragment in a domain is as libvirt's schema wants it.
fn assert_fragment_valid(fragment: &str) {
    assert!(Path::new(SCHEMA).exists(), "no {SCHEMA} on this machine: run scripts/setup");
    let rest = "<name>vm</name><memory unit='MiB'>256</memory>\
                <os><type arch='x86_64' machine='q35'>hvm</type></os>";
    let domain = fragment.replacen("  <devices>", &format!("{rest}<devices>"), 1);
    assert_ne!(domain, fragment);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("domain.xml");
    fs::write(&file, domain).unwrap();
    let mut xmllint = Command::new("xmllint");
    let output = xmllint.args(["--noout", "--relaxng", SCHEMA]).arg(&file).output();
    let output = output.expect("no xmllint on this machine: run scripts/setup");
    assert!(output.status.success(), "{fragment}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// libvirt's own program finds nothing wrong with it.
fn assert_domain_valid(domain: &str) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("domain.xml");
    fs::write(&file, domain).unwrap();
    let output = Command::new("virt-xml-validate").arg(&file).arg("domain").output();
    let output = output.expect("no virt-xml-validate on this machine: run scripts/setup libvirt");
    assert!(output.status.success(), "{domain}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_domain_xml_is_valid_by_libvirts_schema() {
    let _machine = take_machine();
    assert_fragment_valid(&exported(&[V1, "--format", "libvirt"]));
    assert_fragment_valid(&exported(&[
        V1,
        "--format",
        "libvirt",
        "--mac",
        "52:54:00:00:00:01",
        "--queue-pairs",
        "2",
        "--socket",
        "/run/vm's <1>&.sock",
        "--client",
    ]));
    for name in [V3, "org.dpdk.v22.11", "org.openvswitch.v3.1"] {
        assert_fragment_valid(&exported(&[name, "--format", "libvirt"]));
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_schema_notices_what_it_should() {
    let _machine = take_machine();
    let broken = exported(&[V1, "--format", "libvirt"]).replace("packed='off'", "packed='maybe'");
    assert!(std::panic::catch_unwind(|| assert_fragment_valid(&broken)).is_err());
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_stamped_domain_is_valid() {
    let _machine = take_machine();
    assert_domain_valid(DOMAIN);
    for profile in [V1, "latest", "org.dpdk.v22.11", "org.openvswitch.v3.1,in_order=on"] {
        let once = stamped(&["--profile", profile, "--uplink", "blue"], DOMAIN);
        assert_domain_valid(&once);
        assert_domain_valid(&stamped(&["--add", "--profile", profile], &once));
    }
}
