//! `isonic libvirt` without a daemon or libvirtd: what is printed, and what happens to bad input.
//! What libvirt's schema says of it: `tests/machine/libvirt_schema.rs`.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const V1: &str = "org.isonic.net.v1";

/// What a user begins with, as libvirt prints it.
const DOMAIN: &str = include_str!("domain.xml");

fn isonic(arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    command.args(["libvirt"]).args(arguments).env_remove("RUST_LOG").env_remove("ISONIC_API");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    // It may end before it has read all.
    let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn printed(arguments: &[&str], input: &str) -> String {
    let output = isonic(arguments, input);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn refused(arguments: &[&str], input: &str) -> String {
    let output = isonic(arguments, input);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(output.stdout.is_empty(), "{output:?}");
    String::from_utf8(output.stderr).unwrap()
}

/// A call of the hook, beside no daemon.
fn hook<'w>(domain: &'w str, operation: &'w str) -> [&'w str; 8] {
    ["hook", "--api-socket", "/no/such", "--", domain, operation, "begin", "-"]
}

#[test]
fn a_stamped_domain_is_the_same_when_stamped_again() {
    for profile in [V1, "latest", "org.dpdk.v22.11", "org.openvswitch.v3.1,in_order=on"] {
        let stamp = ["stamp", "-", "--profile", profile, "--uplink", "blue"];
        let stamped = printed(&stamp, DOMAIN);
        assert_eq!(printed(&stamp, &stamped), stamped);
        assert_eq!(printed(&["stamp", "-"], &stamped), stamped);
        let two = printed(&["stamp", "-", "--add", "--profile", profile], &stamped);
        assert_eq!(two.matches("<interface type='vhostuser'>").count(), 2);
        assert!(two.contains("somebody else's"));
    }
}

#[test]
fn a_file_is_stamped_as_standard_input_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vm1.xml");
    fs::write(&file, DOMAIN).unwrap();
    let from_file = printed(&["stamp", file.to_str().unwrap(), "--profile", V1], "");
    assert_eq!(from_file, printed(&["stamp", "-", "--profile", V1], DOMAIN));
    assert_eq!(fs::read_to_string(&file).unwrap(), DOMAIN, "the file is left alone");
}

#[test]
fn the_interface_of_a_profile_is_that_of_profile_export() {
    let mac = ["--mac", "52:54:00:00:00:01", "--queue-pairs", "2", "--socket", "/run/a.sock"];
    let xml = printed(&[&["xml", "--profile", V1][..], &mac].concat(), "");
    let mut export = Command::new(env!("CARGO_BIN_EXE_isonic"));
    export.args(["profile", "export", V1, "--format", "libvirt"]).args(mac);
    assert_eq!(xml, String::from_utf8(export.output().unwrap().stdout).unwrap());
    let device = printed(&[&["xml", "--device", "--profile", V1][..], &mac].concat(), "");
    assert!(device.starts_with("<interface type='vhostuser'>\n  <mac address"), "{device}");
    assert!(!device.contains("qemu:") && !device.contains("<alias"), "{device}");
}

#[test]
fn hostile_and_mistaken_input_is_refused_and_told() {
    let bomb = "<!DOCTYPE d [<!ENTITY a 'aa'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>";
    for (input, told) in [
        ("", "cannot be read"),
        ("<domain>", "cannot be read"),
        (bomb, "DTD"),
        ("<network/>", "not of a <domain>"),
        ("<domain><name>a</name></domain>", "no <devices>"),
        ("<domain><devices/></domain>", "no <name>"),
    ] {
        let error = refused(&["stamp", "-"], input);
        assert!(error.contains(told), "{input}: {error}");
    }
    let large = DOMAIN.replace("somebody", &"x".repeat(10 << 20));
    assert!(refused(&["stamp", "-"], &large).contains("at most 4194304"));
    assert!(refused(&["stamp", "/dev/zero"], "").contains("no regular file"));
    assert!(refused(&["stamp", "-", "--profile", "nobodys"], DOMAIN).contains("known: "));
}

/// A domain with this vhost-user interface.
fn with_interface(inside: &str) -> String {
    let interface = format!("<interface type='vhostuser'>{inside}</interface>");
    DOMAIN.replace("<memballoon model='none'/>", &interface)
}

/// What is printed when it is stamped, and what is said beside.
fn stamped(input: &str, more: &[&str]) -> (String, String) {
    let output = isonic(&[&["stamp", "-", "--profile", V1], more].concat(), input);
    assert!(output.status.success(), "{input}\n{output:?}");
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

const SOURCE: &str = "<source type='unix' path='/run/a.sock' mode='client'/><model type='virtio'/>";

#[test]
fn an_interface_of_another_backend_is_left_to_it() {
    let passt = "<interface type='vhostuser'><mac address='52:54:00:aa:00:01'/>\
                 <source dev='eth0'/><backend type='passt' logFile='/p.log'/></interface>";
    let ours = "<interface type='vhostuser'>";
    let beside = with_interface(SOURCE).replace(ours, &format!("{passt}{ours}"));
    let (xml, _) = stamped(&beside, &[]);
    assert!(xml.contains(passt), "{xml}");
    assert_eq!(xml.matches("<isonic:interface ").count(), 1, "{xml}");
    let told = refused(&["stamp", "-", "--interface", "52:54:00:aa:00:01"], &beside);
    assert!(told.contains("no vhost-user interface \"52:54:00:aa:00:01\""), "{told}");
    let (alone, _) = stamped(&DOMAIN.replace("<memballoon model='none'/>", passt), &[]);
    assert!(alone.contains(passt) && alone.contains("vm1-net0.sock"), "{alone}");
    let default = format!("{SOURCE}<backend type='default'/>");
    assert!(stamped(&with_interface(&default), &[]).0.contains("path='/run/a.sock'"));
}

#[test]
fn what_is_asked_for_and_not_done_is_said() {
    let policed = "<bandwidth><inbound average='1000'/></bandwidth><vlan><tag id='42'/></vlan>\
                   <filterref filter='clean-traffic'/><port isolated='yes'/>";
    let (xml, said) = stamped(&with_interface(&format!("{SOURCE}{policed}")), &[]);
    assert!(xml.contains(policed), "{xml}");
    for ignored in ["<bandwidth>", "<vlan>", "<filterref>", "<port>"] {
        assert_eq!(said.matches(&format!("{ignored} is ignored: ")).count(), 1, "{said}");
    }
    assert_eq!(said.matches("isonic: warning: ").count(), 4, "{said}");
    let nothing = "<bandwidth /><port isolated='no'/><link state='up'/>";
    let (_, said) = stamped(&with_interface(&format!("{SOURCE}{nothing}")), &[]);
    assert!(!said.contains("warning"), "{said}");
    let qemu = "<domain type='qemu' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>";
    let by_hand = "<qemu:commandline><qemu:arg value='-netdev'/>\
                   <qemu:arg value='vhost-user,id=n1,chardev=c1'/></qemu:commandline></domain>";
    let domain = DOMAIN.replace("<domain type='qemu'>", qemu).replace("</domain>", by_hand);
    let (xml, said) = stamped(&domain, &[]);
    assert!(xml.contains("vm1-net0.sock") && said.contains("<qemu:commandline>"), "{said}");
}

#[test]
fn what_libvirt_reads_is_read_however_it_is_written() {
    let plain = with_interface(SOURCE);
    let (expected, _) = stamped(&plain, &[]);
    let (marked, _) = stamped(&format!("\u{feff}{plain}"), &[]);
    assert_eq!(marked, format!("\u{feff}{expected}"));
    let (ended, _) = stamped(&plain.replace('\n', "\r\n"), &[]);
    assert_eq!(ended.replace("\r\n", "\n"), expected);
    let verbose =
        SOURCE.replace("/>", "></source>").replacen("'virtio'></source>", "'virtio'></model>", 1);
    assert!(stamped(&with_interface(&verbose), &[]).0.contains("path='/run/a.sock'"));
    let commented = DOMAIN.replace("<memballoon", &format!("<!-- {plain} --><memballoon"));
    let (xml, _) = stamped(&commented, &[]);
    assert!(xml.contains("vm1-net0.sock"), "{xml}");
    // libvirt takes a byte of one digit, and writes two.
    let short = with_interface(&format!("<mac address='52:54:0:AA:0:E'/>{SOURCE}"));
    let (xml, _) = stamped(&short, &["--interface", "52:54:00:aa:00:0e"]);
    assert!(xml.contains("address='52:54:0:AA:0:E'"), "{xml}");
    let iommu = SOURCE.replace("<model", "<driver name='vhost' iommu='on' ats='on'/><model");
    let (xml, _) = stamped(&with_interface(&iommu), &[]);
    assert!(xml.contains("iommu='off'") && xml.contains("ats='on'"), "{xml}");
}

#[test]
fn a_domain_that_could_never_run_is_refused_with_the_place_and_the_way_out() {
    let with = |from: &str, to: &str| with_interface(&SOURCE.replace(from, to));
    let long = format!("/run/{}.sock", "x".repeat(103));
    let anonymous = with_interface(SOURCE)
        .replace("<vcpu>", "<memoryBacking><source type='anonymous'/></memoryBacking><vcpu>");
    for (domain, told) in [
        (with("/run/a.sock", &long), "of 113 bytes, and the path of a socket has at most 107"),
        (with("/run/a.sock", "/run/a.sock "), "the socket \"/run/a.sock \", whose file name"),
        (with("/run/a.sock", "/tmp/a#bdf=0000:3b:00.2"), "a#bdf=0000:3b:00.2\""),
        (with("<model", "<mac address='01:00:5e:00:00:01'/><model"), "not that of one device"),
        (with("<model", "<mac address='52:54:00:aa:00'/><model"), "is no MAC address"),
        (anonymous, "write <source type='memfd'/>"),
    ] {
        let error = refused(&["stamp", "-", "--profile", V1], &domain);
        assert!(error.contains(told) && error.lines().count() == 1, "{told}: {error}");
    }
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("utf16.xml");
    let wide: Vec<u8> =
        DOMAIN.encode_utf16().flat_map(|unit| unit.to_le_bytes()).collect::<Vec<_>>();
    fs::write(&file, [&[0xff, 0xfe], &wide[..]].concat()).unwrap();
    let error = refused(&["stamp", file.to_str().unwrap()], "");
    assert!(error.contains("utf16.xml is no text in UTF-8; convert it first (iconv"), "{error}");
}

#[test]
fn the_hook_leaves_other_peoples_domains_alone_whatever_is_in_them() {
    let large = "x".repeat(10 << 20);
    for operation in ["prepare", "start", "started", "stopped", "release", "migrate", "restore"] {
        for input in ["", "no XML", DOMAIN, "<!DOCTYPE d [<!ENTITY a 'a'>]><d>&a;</d>"] {
            let arguments = hook("vm", operation);
            assert_eq!(printed(&arguments, input), "", "{operation}");
        }
        let arguments = hook("-vm", operation);
        assert_eq!(printed(&arguments, &large), "", "{operation}");
    }
}

#[test]
fn the_hook_refuses_a_domain_of_ours_that_it_cannot_serve_but_never_a_reconnect() {
    let stamped = printed(&["stamp", "-", "--profile", V1], DOMAIN);
    let broken = stamped.replace("</domain>", "");
    let newer = stamped.replace("/libvirt/1'", "/libvirt/2'");
    for (input, told) in [
        (&stamped, "cannot reach the daemon at /no/such"),
        (&broken, "cannot be read"),
        (&newer, "update isonic"),
    ] {
        for operation in ["prepare", "migrate", "restore"] {
            let hook = hook("vm", operation);
            let error = refused(&hook, input);
            assert!(error.contains(told), "{operation}: {error}");
        }
        let hook = hook("vm", "reconnect");
        let output = isonic(&hook, input);
        assert!(output.status.success(), "{output:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains(told));
    }
}

#[test]
fn the_hook_refuses_to_start_a_domain_whose_memory_was_made_private_since() {
    let stamped = printed(&["stamp", "-", "--profile", V1], DOMAIN);
    let dimm = "<devices><memory model='dimm' access='private'><target/></memory>";
    let cell = "<cpu><numa><cell memAccess='private'/></numa></cpu><devices>";
    for (from, to) in [("<access mode='shared'/>", ""), ("<devices>", dimm), ("<devices>", cell)] {
        let private = stamped.replace(from, to);
        assert_ne!(private, stamped);
        let told = refused(&hook("vm", "prepare"), &private);
        assert!(told.contains("memory is shared") && told.contains("mode='shared'"), "{told}");
        // A VM that runs is not stopped for it.
        assert!(isonic(&hook("vm", "reconnect"), &private).status.success());
    }
    let shared = "<devices><memory model='dimm' access='shared'><target/></memory>";
    let told = refused(&hook("vm", "prepare"), &stamped.replace("<devices>", shared));
    assert!(told.contains("cannot reach the daemon"), "{told}");
}

#[test]
fn the_hook_is_installed_beside_others_and_over_none() {
    let directory = tempfile::tempdir().unwrap();
    let hooks = directory.path().join("hooks");
    let install = |more: &[&str]| {
        let arguments = ["install-hook", "--directory", hooks.to_str().unwrap()];
        isonic(&[&arguments[..], more].concat(), "")
    };
    let path = hooks.join("qemu.d/isonic");
    let more = ["--socket-group", "kvm", "--uplink", "blue=eth1", "--uplink", "red=eth2"];
    assert!(install(&more).status.success());
    let first = fs::read_to_string(&path).unwrap();
    for word in ["'--socket-group'", "'kvm'", "'blue=eth1'", "'red=eth2'"] {
        assert!(first.contains(word), "{word} is not in {first}");
    }
    // It is called as libvirt does, and does as the hook does.
    let call = |operation: &str, input: &str| {
        let mut command = Command::new(&path);
        command.args(["vm", operation, "begin", "-"]).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    };
    assert!(install(&["--api-socket", "/no/such"]).status.success(), "ours is written anew");
    assert_ne!(fs::read_to_string(&path).unwrap(), first);
    assert!(call("prepare", DOMAIN).status.success());
    let stamped = printed(&["stamp", "-", "--profile", V1], DOMAIN);
    assert_eq!(call("prepare", &stamped).status.code(), Some(1));
    assert!(call("reconnect", &stamped).status.success());
    for foreign in ["#!/bin/sh\nexit 0\n", ""] {
        fs::write(&path, foreign).unwrap();
        let output = install(&[]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8(output.stderr).unwrap().contains("not ours"));
        assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
    }
    fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(!install(&[]).status.success());
    assert!(Path::new("/etc/passwd").exists());
}
