//! What isonic may do without being root: an ordinary user with three capabilities, each of which
//! is needed, and why.

use std::fs;
use std::os::unix::fs::chown;
use std::time::Duration;

use crate::common::{Bed, Configuration, Daemon, NIC, PacketSocket, PortSpec, exchange};
use caps::{CapSet, Capability};
use isonic::test_support::echo_vm::EchoVm;
use isonic::xdp::{ModeWish, Uplink};

/// Debian's "nobody".
const USER: u32 = 65534;
/// All that is needed.
const CAPABILITIES: [&str; 3] = ["net_admin", "net_raw", "bpf"];
/// Those, and what goes without a limit of locked memory.
const WITH_LOCK: [&str; 4] = ["net_admin", "net_raw", "bpf", "ipc_lock"];
const VM_MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

/// A bed of one queue whose directory, with isonic in it, is the user's.
fn bed() -> Bed {
    let bed = Bed::new(1, 1);
    // Where it was built nobody else may be let in.
    fs::copy(env!("CARGO_BIN_EXE_isonic"), bed.path("isonic")).expect("isonic");
    chown(bed.directory(), Some(USER), Some(USER)).expect("the user's directory");
    bed
}

fn configuration(bed: &Bed) -> Configuration {
    Configuration::new(bed, vec![PortSpec::switch(NIC, 1)])
}

/// The command that runs isonic as the user with these capabilities and no others to be had, and no
/// locked memory but by one of them: what `packaging/isonic.service` has systemd do, whose limit of
/// locked memory cannot be raised here on every machine.
fn as_user(bed: &Bed, capabilities: &[&str]) -> Vec<String> {
    let sets = capabilities.iter().map(|name| format!(",+{name}")).collect::<String>();
    let isonic = bed.path("isonic").display().to_string();
    let words = format!(
        "prlimit --memlock=0 setpriv --reuid={USER} --regid={USER} --clear-groups \
         --inh-caps=-all{sets} --ambient-caps=-all{sets} --bounding-set=-all{sets} \
         --no-new-privs --pdeathsig=KILL {isonic}"
    );
    words.split_whitespace().map(str::to_owned).collect()
}

/// Every frame that is sent to the VM comes back.
fn assert_traffic(bed: &Bed, daemon: &Daemon<'_>) {
    let mut vm = EchoVm::start(&bed.path("vm1.sock"), VM_MAC);
    let peer = &bed.uplinks[0].peer;
    let mut socket = PacketSocket::open(&bed.wire, peer, Duration::from_secs(5));
    vm.echo_while(|| exchange(&mut socket, VM_MAC, 1000, &[60, 594, 1514]));
    assert_eq!(daemon.port_counter("vm1", "from_guest_packets"), 1000);
}

/// A line of /proc/PID/status.
fn status(process: u32, name: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("status");
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_ordinary_user_with_the_capabilities_serves_a_port() {
    let bed = bed();
    let launcher = as_user(&bed, &WITH_LOCK);
    let mut daemon = Daemon::start_by(&bed, &configuration(&bed), &launcher);
    assert_eq!(status(daemon.id(), "Uid:").split_whitespace().next(), Some("65534"));
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK and CAP_BPF of linux/capability.h.
    let all = format!("{:016x}", 1_u64 << 12 | 1 << 13 | 1 << 14 | 1 << 39);
    for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
        assert_eq!(status(daemon.id(), set), all, "{set}");
    }
    assert_traffic(&bed, &daemon);
    // Ports come and go with no more.
    let socket = bed.path("vm2.sock").display().to_string();
    let (uplink, profile) = (NIC, crate::common::PROFILE);
    let options = ["--socket", &socket, "--uplink", uplink, "--profile", profile];
    daemon.json(&[&["port", "add", "vm2"][..], &options[..]].concat());
    daemon.json(&["port", "del", "vm2"]);
    daemon.stop();
    assert!(!bed.host.run(&["ip", "-details", "link"]).contains("xdp"), "the program stayed");
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn such_a_user_may_poll_busily() {
    let bed = bed();
    let configuration = Configuration { uplink_lines: "busy_poll = true", ..configuration(&bed) };
    let launcher = as_user(&bed, &WITH_LOCK);
    let daemon = Daemon::start_by(&bed, &configuration, &launcher);
    let sockets = crate::common::xsk_facts(daemon.id());
    assert!(sockets.iter().all(|socket| socket.prefer_busy_poll), "{sockets:?}");
    assert_traffic(&bed, &daemon);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn without_one_of_them_it_is_refused_naming_that_one() {
    let bed = bed();
    for missing in CAPABILITIES {
        let others: Vec<&str> =
            WITH_LOCK.into_iter().filter(|&capability| capability != missing).collect();
        let launcher = as_user(&bed, &others);
        let refused = Daemon::refused_by(&bed, &configuration(&bed), &launcher);
        assert_eq!(refused.status.code(), Some(1), "{refused:?}");
        let name = format!("CAP_{}", missing.to_uppercase());
        assert!(refused.errors.contains(&format!("the capabilities {name} to")), "{refused:?}");
    }
}

/// The kernel's word, not ours: what it refuses to a thread that lacks one.
#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn the_kernel_wants_each_of_them() {
    let bed = Bed::new(1, 1);
    let open = || Uplink::open(NIC, None, ModeWish::Auto, None);
    drop(bed.host.enter(open).expect("with all of them"));
    for missing in [Capability::CAP_NET_ADMIN, Capability::CAP_NET_RAW, Capability::CAP_BPF] {
        let refused = bed.host.enter(|| {
            // CAP_SYS_ADMIN stands in for CAP_BPF. Of this thread alone.
            for capability in [missing, Capability::CAP_SYS_ADMIN] {
                caps::drop(None, CapSet::Effective, capability).expect("to have less");
            }
            open().map(drop)
        });
        let error = refused.expect_err(&format!("an uplink without {missing}"));
        let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
        let text = causes.map(|cause| format!("{cause}: ")).collect::<String>();
        let denied = ["os error 1)", "os error 13)"].iter().any(|errno| text.contains(errno));
        assert!(denied, "without {missing}: {text}");
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn without_memory_to_lock_it_is_refused_with_the_way_out() {
    let bed = bed();
    let launcher = as_user(&bed, &CAPABILITIES);
    let refused = Daemon::refused_by(&bed, &configuration(&bed), &launcher);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    for word in ["16777216 bytes", "ulimit -l"] {
        assert!(refused.errors.contains(word), "{word} is not in: {}", refused.errors);
    }
}
