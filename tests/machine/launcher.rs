//! A privileged launcher has its XDP program on the NIC. It makes the AF_XDP sockets too, which
//! isonic inherits and needs no capability for the network then; or it gives the map that its
//! program redirects by, pinned or as the device plugin for Kubernetes does.

use std::ffi::CString;
use std::fs;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::common::{
    Bed, Configuration, Daemon, NIC, PacketSocket, PortSpec, Process, exchange, run_to_end,
};
use isonic::test_support::echo_vm::EchoVm;
use isonic::xdp::{AttachMode, Interface, QueueUse, Redirect};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept, bind, listen, recvmsg, sendmsg,
    socket_with,
};

/// Debian's "nobody".
const USER: u32 = 65534;
const QUEUES: u32 = 2;
const VM_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
/// Frame memory of two queues.
const LOCKED: u64 = 32 << 20;

/// What the launcher holds.
struct Launcher {
    sockets: Vec<OwnedFd>,
    program: Option<Redirect>,
}

impl Launcher {
    /// A socket for each queue, and a program that sends all of that queue to it.
    fn prepare(bed: &Bed) -> Self {
        let mut launcher = Self::without_program(bed);
        let program = Self::with_map(bed);
        for (queue, socket) in (0..).zip(&launcher.sockets) {
            program.set_socket(queue, socket.as_fd()).expect("the socket");
        }
        launcher.program = Some(program);
        launcher
    }

    fn without_program(bed: &Bed) -> Self {
        // To be inherited: no CLOEXEC.
        let socket =
            || socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::empty(), None);
        let sockets = bed.host.enter(|| (0..QUEUES).map(|_| socket().expect("a socket")).collect());
        Self { sockets, program: None }
    }

    /// A program that redirects by a map without sockets.
    fn with_map(bed: &Bed) -> Redirect {
        bed.host.enter(|| {
            let mut program = Redirect::load().expect("the program");
            let index = Interface::read(NIC).expect("the NIC").index;
            program.attach(NIC, index, AttachMode::Native).expect("attached");
            (0..QUEUES).for_each(|queue| program.set_queue(queue, QueueUse::Wire).expect("queue"));
            program
        })
    }

    fn numbers(&self) -> Vec<String> {
        self.sockets.iter().map(|socket| socket.as_raw_fd().to_string()).collect()
    }
}

/// One wire port with all queues of an uplink with these lines.
fn configuration(bed: &Bed, uplink_lines: String) -> Configuration {
    let port = PortSpec { queues: None, ..PortSpec::wire(NIC, 1, &[]) };
    // As long as the test, like all that is told of the uplink.
    let uplink_lines = uplink_lines.leak();
    Configuration { uplink_lines, ..Configuration::new(bed, vec![port]) }
}

fn with_sockets(bed: &Bed, launcher: &Launcher) -> Configuration {
    configuration(bed, format!("socket_fds = [{}]", launcher.numbers().join(", ")))
}

/// The command that runs isonic as an ordinary user with this capability, if any. Frame memory is
/// locked: by the limit, and where that cannot be raised, as in a container, by the capability for
/// it alone.
fn as_user(bed: &Bed, capability: &str) -> (Vec<String>, u64) {
    fs::copy(env!("CARGO_BIN_EXE_isonic"), bed.path("isonic")).expect("isonic");
    chown(bed.directory(), Some(USER), Some(USER)).expect("the user's directory");
    let limit = format!("--memlock={LOCKED}");
    let raised = run_to_end(Command::new("prlimit").args([&limit, "true"])).status.success();
    // CAP_IPC_LOCK of linux/capability.h.
    let (command, set, bits) = if raised {
        (format!("prlimit {limit}"), capability.to_owned(), 0)
    } else {
        ("env".to_owned(), format!("{capability},+ipc_lock"), 1_u64 << 14)
    };
    let words = format!(
        "{command} setpriv --reuid={USER} --regid={USER} --clear-groups --inh-caps=-all{set} \
         --ambient-caps=-all{set} --bounding-set=-all{set} --no-new-privs --pdeathsig=KILL {}",
        bed.path("isonic").display()
    );
    (words.split_whitespace().map(str::to_owned).collect(), bits)
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn with_a_launcher_s_sockets_isonic_needs_no_capability_for_the_network() {
    let bed = Bed::new(1, QUEUES);
    let launcher = Launcher::prepare(&bed);
    let (command, capabilities) = as_user(&bed, "");
    let mut daemon = Daemon::start_by(&bed, &with_sockets(&bed, &launcher), &command);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.id())).expect("status");
    for set in ["CapEff", "CapPrm", "CapBnd"] {
        assert!(status.contains(&format!("{set}:\t{capabilities:016x}\n")), "{status}");
    }
    let uplink = &daemon.json(&["uplink", "list"])[0];
    assert_eq!((&uplink["xdp_mode"], &uplink["socket_mode"]), (&"native".into(), &"copy".into()));
    assert!(uplink["reason"].as_str().expect("a reason").contains("a launcher's"), "{uplink}");
    assert_eq!(uplink["multi_buffer"], true, "{uplink}");
    let mut vm = EchoVm::start(&bed.path("vm1.sock"), VM_MAC);
    let peer = &bed.uplinks[0].peer;
    let mut socket = PacketSocket::open(&bed.wire, peer, Duration::from_secs(5));
    vm.echo_while(|| exchange(&mut socket, VM_MAC, 2000, &[60, 594, 1514]));
    assert_eq!(daemon.port_counter("vm1", "from_guest_packets"), 2000);
    // Whatever comes on a wire port's queue is the VM's, broadcast too.
    let mut broadcast = [0xff; 60];
    broadcast[6..12].copy_from_slice(&[0x02, 0xff, 0, 0, 0, 9]);
    socket.send(&broadcast);
    crate::common::wait_for("the broadcast is there", 10, || {
        vm.turn();
        vm.others.iter().any(|frame| *frame == broadcast)
    });
    daemon.frames();
    daemon.stop();
    // The program is the launcher's, and stays.
    assert!(bed.host.run(&["ip", "-details", "link", "show", NIC]).contains("xdp"));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn one_port_is_served_so_from_the_command_line() {
    let bed = Bed::new(1, QUEUES);
    let launcher = Launcher::prepare(&bed);
    let (mut command, _) = as_user(&bed, "");
    let socket = bed.path("vm1.sock");
    let fds = launcher.numbers().join(",");
    let path = socket.display().to_string();
    let options = [
        "run",
        "--socket-path",
        &path,
        "--uplink",
        NIC,
        "--profile",
        crate::common::PROFILE,
        "--attach",
        "wire",
        "--socket-fds",
        &fds,
        "--mac",
        "52:54:00:00:00:01",
    ];
    command.extend(options.map(str::to_owned));
    let log = bed.path("isonic.log");
    let _isonic = Process::start("isonic", bed.host.name(), &command, &log);
    crate::common::wait_for("the port's socket is there", 10, || socket.exists());
    let mut vm = EchoVm::start(&socket, VM_MAC);
    let peer = &bed.uplinks[0].peer;
    let mut wire = PacketSocket::open(&bed.wire, peer, Duration::from_secs(5));
    vm.echo_while(|| exchange(&mut wire, VM_MAC, 200, &[60, 1514]));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn what_is_handed_over_wrongly_is_refused_with_what_is_wrong() {
    let bed = Bed::new(1, QUEUES);
    let launcher = Launcher::without_program(&bed);
    let refusal = |configuration: &Configuration| {
        let refused = Daemon::refused(&bed, configuration);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        refused.errors
    };
    let told = refusal(&with_sockets(&bed, &launcher));
    assert!(told.contains("no XDP program is on isonic-nic0"), "{told}");
    drop(launcher);
    let launcher = Launcher::prepare(&bed);
    let first = launcher.sockets[0].as_raw_fd();
    // The first is standard output, a file here; the other is not open.
    for wrong in [1, 1000] {
        let told = refusal(&configuration(&bed, format!("socket_fds = [{first}, {wrong}]")));
        assert!(told.contains(&format!("descriptor {wrong} is no AF_XDP socket")), "{told}");
    }
}

// ---- maps ---------------------------------------------------------------------------------------

/// Frames go to the VM and back through sockets that isonic has put into the launcher's map.
fn assert_traffic(bed: &Bed, daemon: &Daemon<'_>) {
    let mut vm = EchoVm::start(&bed.path("vm1.sock"), VM_MAC);
    let peer = &bed.uplinks[0].peer;
    let mut socket = PacketSocket::open(&bed.wire, peer, Duration::from_secs(5));
    vm.echo_while(|| exchange(&mut socket, VM_MAC, 500, &[60, 594, 1514]));
    assert_eq!(daemon.port_counter("vm1", "from_guest_packets"), 500);
    daemon.frames();
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn sockets_are_put_into_a_pinned_map() {
    let bed = Bed::new(1, QUEUES);
    let program = Launcher::with_map(&bed);
    let pins = bed.path("bpf").display().to_string();
    fs::create_dir(&pins).expect("directory");
    // A BPF file system in a mount namespace of a process's own, so that it goes with it.
    let script = format!("mount -t bpf bpf {pins} && echo mounted && exec sleep 600");
    let command = ["unshare", "--mount", "sh", "-c", &script].map(str::to_owned);
    let mount = Process::start("mount", bed.host.name(), &command, &bed.path("mount.log"));
    crate::common::wait_for("it is mounted", 10, || mount.log().contains("mounted"));
    let pinned = format!("/proc/{}/root{pins}/sockets", mount.id());
    pin(program.sockets(), &pinned);
    let daemon = Daemon::start(&bed, &configuration(&bed, format!("map = {pinned:?}")));
    assert_traffic(&bed, &daemon);
    drop(daemon);
    let told = Daemon::refused(&bed, &configuration(&bed, format!("map = \"{pinned}.no\""))).errors;
    assert!(told.contains("cannot open the pinned map"), "{told}");
}

fn pin(map: BorrowedFd<'_>, path: &str) {
    let path = CString::new(path).expect("a path");
    // SAFETY: the path ends in a zero and outlives the call.
    let result = unsafe { libbpf_rs::libbpf_sys::bpf_obj_pin(map.as_raw_fd(), path.as_ptr()) };
    assert_eq!(result, 0, "{path:?}");
}

/// Answers one isonic as the device plugin for Kubernetes does (internal/udsserver of
/// github.com/redhat-et/afxdp-plugins-for-kubernetes); gives what it was asked.
fn serve_as_plugin(listener: &OwnedFd, map: BorrowedFd<'_>, device: &str) -> Vec<String> {
    let connection = accept(listener).expect("isonic connects");
    let mut requests = Vec::new();
    loop {
        let mut bytes = [0; 64];
        let mut room = [IoSliceMut::new(&mut bytes)];
        let mut nothing = RecvAncillaryBuffer::default();
        let got = recvmsg(&connection, &mut room, &mut nothing, RecvFlags::empty());
        let length = got.expect("a request").bytes;
        let request = String::from_utf8_lossy(&bytes[..length]).into_owned();
        let (word, rest) = request.split_once(", ").unwrap_or((&request, ""));
        let answer = match (word, rest) {
            ("", _) => return requests,
            ("/connect", _) => "/host_ok",
            ("/xsk_map_fd", name) if name == device => "/fd_ack",
            ("/xsk_map_fd", _) => "/fd_nak",
            ("/fin", _) => "/fin_ack",
            _ => "/nak",
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let maps = [map];
        if answer == "/fd_ack" {
            assert!(control.push(SendAncillaryMessage::ScmRights(&maps)));
        }
        let bytes = [IoSlice::new(answer.as_bytes())];
        sendmsg(&connection, &bytes, &mut control, SendFlags::empty()).expect("an answer");
        requests.push(request);
    }
}

fn listen_as_plugin(path: &Path) -> OwnedFd {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let listener = socket_with(family, kind, SocketFlags::CLOEXEC, None).expect("a socket");
    bind(&listener, &SocketAddrUnix::new(path).expect("a path")).expect("bound");
    chown(path, Some(USER), Some(USER)).expect("the user's socket");
    listen(&listener, 1).expect("listens");
    listener
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn sockets_are_put_into_the_map_of_a_device_plugin() {
    let bed = Bed::new(1, QUEUES);
    let program = Launcher::with_map(&bed);
    let (command, _) = as_user(&bed, ",+net_raw");
    let path = bed.path("plugin.sock");
    let listener = listen_as_plugin(&path);
    let configuration = configuration(&bed, format!("device_plugin = {path:?}"));
    std::thread::scope(|scope| {
        let plugin = scope.spawn(|| serve_as_plugin(&listener, program.sockets(), NIC));
        let daemon = Daemon::start_by(&bed, &configuration, &command);
        let requests = plugin.join().expect("the plugin");
        let host = rustix::system::uname();
        let host = host.nodename().to_string_lossy();
        let expected =
            [format!("/connect, {host}"), format!("/xsk_map_fd, {NIC}"), "/fin".to_owned()];
        assert_eq!(requests, expected);
        assert_traffic(&bed, &daemon);
    });
    // It knows no such device.
    std::thread::scope(|scope| {
        scope.spawn(|| serve_as_plugin(&listener, program.sockets(), "another"));
        let refused = Daemon::refused_by(&bed, &configuration, &command);
        assert!(refused.errors.contains("/fd_nak"), "{refused:?}");
    });
}
