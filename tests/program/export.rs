//! `isonic profile export`, from outside: what is printed, and bad input. What libvirt's schema
//! says of the XML: `tests/machine/libvirt_schema.rs`.

use std::process::{Command, Output};

const V1: &str = "org.isonic.net.v1";
const V3: &str = "org.isonic.net.v3";

fn export(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    command.args(["profile", "export"]).args(arguments).env_remove("RUST_LOG").output().unwrap()
}

fn exported(arguments: &[&str]) -> String {
    let output = export(arguments);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str]) -> String {
    let output = export(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn each_bit_of_the_profile_is_where_libvirt_looks_for_it() {
    let xml = exported(&[V1, "--format", "libvirt", "--mac", "52:54:00:00:00:01"]);
    for part in [
        "<mac address='52:54:00:00:00:01'/>",
        "<model type='virtio-non-transitional'/>",
        "queues='16' rx_queue_size='1024' tx_queue_size='1024' event_idx='on' packed='off'",
        "<guest csum='off' tso4='off' tso6='off' ecn='off' ufo='off'/>",
        "<qemu:property name='host_mtu' type='unsigned' value='1500'/>",
        "<qemu:property name='ctrl_guest_offloads' type='bool' value='false'/>",
        "<qemu:property name='ctrl_rx' type='bool' value='true'/>",
    ] {
        assert!(xml.contains(part), "{part} is not in\n{xml}");
    }
}

#[test]
fn each_offload_is_on_or_off_in_its_own_place() {
    let xml = exported(&[V3, "--format", "libvirt"]);
    for part in [
        "queues='128' rx_queue_size='1024' tx_queue_size='1024' event_idx='on' packed='on'",
        "<host csum='on' gso='off' tso4='on' tso6='on' ecn='on' ufo='off' mrg_rxbuf='on'/>",
        "<guest csum='on' tso4='on' tso6='on' ecn='on' ufo='off'/>",
        "<qemu:property name='guest_announce' type='bool' value='true'/>",
        "<qemu:property name='ctrl_guest_offloads' type='bool' value='false'/>",
    ] {
        assert!(xml.contains(part), "{part} is not in\n{xml}");
    }
    let xml = exported(&["org.dpdk.v22.11", "--format", "libvirt"]);
    for part in [
        "<host csum='on' gso='on' tso4='off' tso6='off' ecn='on' ufo='on' mrg_rxbuf='on'/>",
        "<guest csum='on' tso4='on' tso6='on' ecn='on' ufo='on'/>",
        "<qemu:property name='ctrl_guest_offloads' type='bool' value='true'/>",
        "<model type='virtio-transitional'/>",
        "<qemu:property name='in_order' type='bool' value='true'/>",
    ] {
        assert!(xml.contains(part), "{part} is not in\n{xml}");
    }
}

#[test]
fn qemus_arguments_are_one_a_line_or_an_array() {
    let lines = exported(&[V1, "--format", "qemu", "--chardev", "c0", "--queue-pairs", "3"]);
    assert!(lines.starts_with("-netdev vhost-user,id=c0-net,chardev=c0,queues=3\n-device virtio-"));
    let json = exported(&[V1, "--format", "qemu", "--chardev", "c0", "--json"]);
    let words: Vec<String> = serde_json::from_str(&json).unwrap();
    assert_eq!((words[0].as_str(), words[2].as_str()), ("-netdev", "-device"));
}

#[test]
fn schedulers_get_one_name_for_each_profile() {
    let nfd = exported(&[V1, "org.dpdk.v22.11", "--format", "nfd"]);
    assert!(nfd.contains("\nprofile.isonic.org/org.isonic.net.v1="), "{nfd}");
    assert!(nfd.contains("\nprofile.isonic.org/org.dpdk.v22.11="), "{nfd}");
    let nova = exported(&[V1, "org.dpdk.v22.11", "--format", "nova"]);
    assert!(nova.contains("\n      uuid: '$COMPUTE_NODE'\n"), "{nova}");
    assert!(nova.contains("\n        - 'CUSTOM_ISONIC_ORG_DPDK_V22_11'\n"), "{nova}");
}

#[test]
fn profiles_of_a_directory_are_exported_too_and_its_mistakes_told() {
    let directory = tempfile::tempdir().unwrap();
    let text = include_str!("../../profiles/org.isonic.net.v1.toml").replace(V1, "com.x.v1");
    let file = directory.path().join("x.toml");
    let from = directory.path().to_str().unwrap();
    let arguments = ["com.x.v1", "--format", "qemu", "--profile-dir", from];
    std::fs::write(&file, text.replace("= 1500", "= 9000")).unwrap();
    assert!(exported(&arguments).contains(",host_mtu=9000,"));
    std::fs::write(&file, text + "colour = 1\n").unwrap();
    assert!(refused(&arguments).contains("x.toml:43: unknown key \"colour\""));
}

#[test]
fn bad_input_is_told_with_what_would_do() {
    assert!(refused(&["nobodys", "--format", "qemu"]).contains("known: org.dpdk.v22.11, org."));
    let several = refused(&[V1, "org.dpdk.v22.11", "--format", "libvirt"]);
    assert!(several.contains("a device has one profile"), "{several}");
    let pairs = refused(&[V1, "--format", "qemu", "--queue-pairs", "17"]);
    assert!(pairs.contains("it has at most 16 queue pairs, and 17 are asked for"), "{pairs}");
    for arguments in [&[V1][..], &["--format", "qemu"], &[V1, "--format", "vmware"]] {
        assert_eq!(export(arguments).status.code(), Some(2), "{arguments:?}");
    }
}
