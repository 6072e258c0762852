//! The daemon on a veth pair, without guests: what it says of its uplinks, what it refuses, and
//! what it leaves behind.

use std::fs::File;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::common::{
    Bed, Configuration, Daemon, Finished, NIC, PortSpec, Process, ping, run_to_end, wait_for,
};
use isonic::test_support::frontend::{Frontend, GuestFile, NEED_REPLY, code};

/// One port on the bed's first uplink.
fn one_port(bed: &Bed) -> Configuration {
    Configuration::new(bed, vec![PortSpec::switch(NIC, 1)])
}

/// A refusal: one clear message that names what it is about, a failing status, nothing left.
fn assert_refused(bed: &Bed, refused: &Finished, names: &[&str]) {
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    let message = refused.errors.to_lowercase();
    for name in names {
        assert!(message.contains(&name.to_lowercase()), "{name:?} is not in: {}", refused.errors);
    }
    assert!(!message.contains("panicked"), "{message}");
    assert_nothing_left(bed);
}

/// No program on the NIC, no API socket, and the host has the NIC to itself.
fn assert_nothing_left(bed: &Bed) {
    let links = bed.host.run(&["ip", "-details", "link"]);
    assert!(!links.contains("xdp"), "the XDP program stayed: {links}");
    assert!(!bed.path("api.sock").exists(), "the API socket stayed");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_uplink_tells_its_mode_and_why() {
    let bed = Bed::new(1, 2);
    let daemon = Daemon::start(&bed, &one_port(&bed));
    let uplinks = daemon.json(&["uplink", "list"]);
    let uplink = &uplinks[0];
    assert_eq!(uplink["interface"], NIC);
    assert_eq!(uplink["driver"], "veth");
    assert_eq!(uplink["xdp_mode"], "native");
    assert_eq!(uplink["socket_mode"], "copy");
    assert_eq!(uplink["queues"], serde_json::json!([0, 1]));
    assert_eq!(uplink["mtu"], 1500);
    assert!(uplink["reason"].as_str().is_some_and(|reason| reason.len() > 10), "{uplink}");
    assert!(bed.host.run(&["ip", "-details", "link", "show", NIC]).contains("xdp"));
}

/// An AF_XDP socket on queue 1 of the NIC, as one that the kernel has not yet taken from a process
/// that was killed.
fn hold_queue(bed: &Bed) -> impl Sized + Send + use<> {
    use rustix::net::sockopt;
    use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice};
    #[repr(align(4096))]
    struct Frames([u8; 4 * 4096]);
    let frames = Box::new(Frames([0; 4 * 4096]));
    let memory = XdpUmemReg {
        addr: frames.0.as_ptr().expose_provenance() as u64,
        len: frames.0.len() as u64,
        chunk_size: 4096,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    bed.host.enter(|| {
        let (family, flags) = (AddressFamily::XDP, SocketFlags::CLOEXEC);
        let socket = rustix::net::socket_with(family, SocketType::RAW, flags, None);
        let socket = socket.expect("a socket");
        sockopt::set_xdp_umem_reg(&socket, memory).expect("frames");
        sockopt::set_xdp_umem_fill_ring_size(&socket, 4).expect("a fill ring");
        sockopt::set_xdp_umem_completion_ring_size(&socket, 4).expect("a completion ring");
        sockopt::set_xdp_rx_ring_size(&socket, 4).expect("an rx ring");
        // Only sockets of the network stack know interfaces.
        let inet = std::net::UdpSocket::bind("0.0.0.0:0").expect("a UDP socket");
        let interface = netdevice::name_to_index(&inet, NIC).expect("the NIC");
        let address = SocketAddrXdp::new(SocketAddrXdpFlags::empty(), interface, 1);
        rustix::net::bind(&socket, &address).expect("a free queue");
        (socket, frames)
    })
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_queue_whose_socket_is_about_to_go_is_waited_for_and_one_that_stays_in_use_is_refused() {
    let bed = Bed::new(1, 2);
    let held = hold_queue(&bed);
    let refused = Daemon::refused(&bed, &one_port(&bed));
    assert_refused(&bed, &refused, &["queue 1", NIC, "busy"]);
    let release = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(500));
        drop(held);
    });
    let daemon = Daemon::start(&bed, &one_port(&bed));
    release.join().expect("released");
    let uplink = &daemon.json(&["uplink", "list"])[0];
    // Nothing narrower was taken because the queue was busy.
    assert_eq!((&uplink["socket_mode"], &uplink["multi_buffer"]), (&"copy".into(), &true.into()));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_host_keeps_its_traffic_and_gets_its_nic_back() {
    let bed = Bed::new(1, 2);
    let mut daemon = Daemon::start(&bed, &one_port(&bed));
    let uplink = &bed.uplinks[0];
    ping(&bed.host, &uplink.wire_address, &[]);
    ping(&bed.wire, &uplink.host_address, &["-s", "8000"]);
    daemon.stop();
    assert_nothing_left(&bed);
    assert!(!bed.path("vm1.sock").exists(), "the port's socket stayed");
    daemon.start_again();
    daemon.kill();
    let links = bed.host.run(&["ip", "-details", "link"]);
    assert!(!links.contains("xdp"), "the XDP program outlived its daemon: {links}");
    ping(&bed.wire, &uplink.host_address, &[]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_nic_that_does_not_exist_is_refused() {
    let bed = Bed::new(1, 1);
    let mut configuration = one_port(&bed);
    configuration.uplinks[0].0 = "isonic-no".to_owned();
    configuration.ports[0].uplink = "isonic-no".to_owned();
    let refused = Daemon::refused(&bed, &configuration);
    assert_refused(&bed, &refused, &["isonic-no"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_nic_that_is_down_is_refused_with_the_way_out() {
    let bed = Bed::new(1, 1);
    bed.host.run(&["ip", "link", "set", NIC, "down"]);
    let refused = Daemon::refused(&bed, &one_port(&bed));
    assert_refused(&bed, &refused, &[NIC, "down", "ip link set"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_queue_that_the_nic_does_not_have_is_refused() {
    let bed = Bed::new(1, 2);
    let mut configuration = one_port(&bed);
    configuration.uplinks[0].1 = Some(vec![0, 7]);
    let refused = Daemon::refused(&bed, &configuration);
    assert_refused(&bed, &refused, &[NIC, "7"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_lack_of_privilege_is_refused_naming_what_is_needed() {
    let bed = Bed::new(1, 1);
    let config = one_port(&bed).write(&bed).display().to_string();
    let command_line = [
        "timeout",
        "10",
        "setpriv",
        "--bounding-set=-all",
        "--inh-caps=-all",
        env!("CARGO_BIN_EXE_isonic"),
        "run",
        "--config",
        &config,
    ];
    let refused = run_to_end(&mut bed.host.command(&command_line));
    assert_refused(&bed, &refused, &["cap_"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_port_socket_in_use_by_a_live_process_is_refused() {
    let bed = Bed::new(1, 1);
    let socket = bed.path("vm1.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let refused = Daemon::refused(&bed, &one_port(&bed));
    assert_refused(&bed, &refused, &["vm1.sock"]);
    assert!(socket.exists(), "the other process's socket was removed");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_socket_left_by_a_dead_process_is_taken_over() {
    let bed = Bed::new(1, 1);
    for name in ["vm1.sock", "api.sock"] {
        drop(UnixListener::bind(bed.path(name)).unwrap());
        assert!(bed.path(name).exists());
    }
    let daemon = Daemon::start(&bed, &one_port(&bed));
    assert_eq!(daemon.json(&["port", "show", "vm1"])["state"], "waiting");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_second_daemon_on_the_same_nic_is_refused_and_the_first_goes_on() {
    let bed = Bed::new(1, 1);
    let daemon = Daemon::start(&bed, &one_port(&bed));
    let refused = Daemon::refused(&bed, &one_port(&bed));
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert_eq!(daemon.json(&["port", "show", "vm1"])["state"], "waiting");
    // Another one with other files learns who has the NIC.
    let mut other = one_port(&bed);
    other.ports[0].name = "vm2".to_owned();
    let refused = Daemon::refused_beside(&bed, &other);
    let wanted = format!("another isonic has {NIC} (process {}, isonic)", daemon.id());
    assert!(refused.errors.contains(&wanted), "{refused:?}");
    ping(&bed.wire, &bed.uplinks[0].host_address, &[]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn one_port_is_served_from_the_command_line_alone() {
    let bed = Bed::new(1, 1);
    let socket = bed.path("vm1.sock");
    let path = socket.display().to_string();
    let options = ["--socket-path", &path, "--uplink", NIC, "--profile", crate::common::PROFILE];
    let command_line: Vec<String> = [env!("CARGO_BIN_EXE_isonic"), "run"]
        .iter()
        .chain(&options)
        .map(|&word| word.to_owned())
        .collect();
    let log = bed.path("isonic.log");
    let mut isonic = Process::start("isonic", bed.host.name(), &command_line, &log);
    wait_for("the port's socket answers", 10, || UnixStream::connect(&socket).is_ok());
    let memory = GuestFile::new(0, 0x7f00_0000_0000, 1 << 20);
    Frontend::over(UnixStream::connect(&socket).unwrap()).start(&memory, 2);
    assert!(isonic.terminate().success(), "SIGTERM should end it well");
    assert_nothing_left(&bed);
    assert!(!socket.exists(), "the socket stayed");
}

/// Adds a port at run time.
fn add(bed: &Bed, daemon: &Daemon<'_>, name: &str) {
    let socket = bed.path(&format!("{name}.sock")).display().to_string();
    let options = ["--socket", &socket, "--uplink", NIC, "--profile", crate::common::PROFILE];
    daemon.json(&[&["port", "add", name][..], &options[..]].concat());
}

/// The names of its ports.
fn names(daemon: &Daemon<'_>) -> Vec<String> {
    let ports = daemon.json(&["port", "list"]);
    let name = |port: &serde_json::Value| port["name"].as_str().expect("a name").to_owned();
    ports.as_array().expect("a list").iter().map(name).collect()
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn ports_added_at_run_time_survive_a_killed_daemon_and_deleted_ones_stay_away() {
    let bed = Bed::new(1, 1);
    let mut daemon = Daemon::start(&bed, &one_port(&bed));
    for name in ["extra", "gone"] {
        add(&bed, &daemon, name);
    }
    daemon.json(&["port", "del", "gone"]);
    let before = daemon.json(&["port", "show", "extra"]);
    daemon.kill();
    daemon.start_again();
    let after = daemon.json(&["port", "show", "extra"]);
    for field in ["mac", "socket", "profile", "profile_digest", "uplink", "attach"] {
        assert_eq!(after[field], before[field], "{field} changed");
    }
    assert_eq!(names(&daemon), ["extra", "vm1"]);
    // What the state file said at the start is no longer so once it was changed.
    daemon.json(&["port", "del", "extra"]);
    add(&bed, &daemon, "another");
    daemon.kill();
    daemon.start_again();
    assert_eq!(names(&daemon), ["another", "vm1"]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_cannot_be_promised_an_mtu_that_the_uplink_does_not_carry() {
    let bed = Bed::new(1, 1);
    bed.host.run(&["ip", "link", "set", NIC, "mtu", "1400"]);
    let refused = Daemon::refused(&bed, &one_port(&bed));
    assert_refused(&bed, &refused, &["vm1", "1400", "1500"]);
}

/// A socket whose close(2) waits for minutes, whatever is set on it: what lingers waits in its
/// queue.
fn blocking_descriptor() -> (File, impl Sized) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a listener");
    let lingers = TcpStream::connect(listener.local_addr().expect("an address")).expect("joined");
    let peer = listener.accept().expect("joined").0;
    lingers.set_nonblocking(true).expect("set");
    while (&lingers).write(&[0; 65536]).is_ok() {}
    let minutes = Some(Duration::from_secs(600));
    rustix::net::sockopt::set_socket_linger(&lingers, minutes).expect("set");
    let (near, far) = UnixStream::pair().expect("a pair");
    let inner = File::from(OwnedFd::from(lingers));
    assert!(Frontend::over(far.try_clone().expect("another")).send_bytes(&[0], &[&inner]));
    // On its way: whoever closes the near end closes it.
    drop(inner);
    (File::from(OwnedFd::from(near)), (peer, far))
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_front_end_whose_descriptors_do_not_close_holds_up_nobody() {
    let bed = Bed::new(1, 1);
    let mut daemon = Daemon::start(&bed, &one_port(&bed));
    add(&bed, &daemon, "hostile");
    let hostile = UnixStream::connect(bed.path("hostile.sock")).expect("connected");
    let hostile = Frontend::over(hostile);
    hostile.negotiate();
    let mut kept = Vec::new();
    for _ in 0..3 {
        let (descriptor, keeps) = blocking_descriptor();
        let header = [code::SET_OWNER, NEED_REPLY, 0].map(u32::to_ne_bytes).concat();
        assert!(hostile.send_bytes(&header[..8], &[&descriptor]));
        // Before the message is whole: who closes it last waits, and that is not us.
        drop(descriptor);
        assert!(hostile.send_bytes(&header[8..], &[]));
        assert_eq!(hostile.reply(code::SET_OWNER), Some(1_u64.to_ne_bytes().to_vec()));
        kept.push(keeps);
    }
    hostile.ok(code::SET_OWNER, &[], &[]);
    // Nobody who may wait for that does.
    daemon.json(&["port", "del", "hostile"]);
    assert_eq!(names(&daemon), ["vm1"]);
    add(&bed, &daemon, "hostile");
    let again = UnixStream::connect(bed.path("hostile.sock")).expect("connected");
    Frontend::over(again).negotiate();
    daemon.stop();
}
