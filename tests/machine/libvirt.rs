//! Guests under Debian's libvirtd, on ports that libvirt's hook makes and removes.
//!
//! QEMU is Debian's and runs as the user that libvirt gives it, not as root. Under emulation it
//! must not have MSI-X; that is the domain's own override, which stamping leaves alone.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::common::{
    Agent, Bed, Libvirtd, Process, Qemu, echo_datagrams, echo_stream, open_to, repository, run,
    run_to_end, wait_for, wait_reachable,
};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_isonic");
const V1: &str = "org.isonic.net.v1";
const V3: &str = "org.isonic.net.v3";
/// QEMU's largest rings, entries.
const QEMU_RING_MAX: u64 = 1024;
/// Bits of virtio 1.2, 5.1.3.
const CTRL_GUEST_OFFLOADS: usize = 2;
const MTU: usize = 3;
const DOMAIN: &str = "isonic-vm1";
const PORT: &str = "isonic-vm1-net0";
const MAC: &str = "52:54:00:00:00:01";
const GUEST: &str = "10.77.0.101";

/// The wire: all uplinks' far ends on one bridge, with an address.
fn bridged_bed(uplinks: usize) -> Bed {
    let bed = Bed::new(uplinks, 1);
    let ip = |arguments: &str| {
        let command_line: Vec<&str> = ["ip"].into_iter().chain(arguments.split(' ')).collect();
        bed.wire.run(&command_line);
    };
    ip("link add isonic-br0 type bridge");
    for uplink in &bed.uplinks {
        ip(&format!("address flush dev {}", uplink.peer));
        ip(&format!("link set {} master isonic-br0", uplink.peer));
    }
    ip("address add 10.77.0.1/24 dev isonic-br0");
    ip("link set isonic-br0 up");
    open_to(bed.directory(), Qemu::Debian.user());
    let image = repository("cache/guest");
    assert!(image.join("stamp").exists(), "no guest to boot: run scripts/guest-image");
    for file in ["vmlinux", "initrd"] {
        fs::copy(image.join(file), bed.path(file)).expect("the guest's files");
    }
    bed
}

/// One host: an isonic on an uplink of its own, and a libvirtd with our hook.
struct Host<'bed> {
    bed: &'bed Bed,
    number: u8,
    isonic: Process,
    libvirt: Libvirtd,
}

impl<'bed> Host<'bed> {
    fn new(bed: &'bed Bed, number: u8, qemu: Qemu) -> Self {
        let path = |kind: &str| bed.path(&format!("host{number}{kind}"));
        for kind in ["", ".profiles"] {
            fs::create_dir(path(kind)).expect("directory");
        }
        let nic = &bed.uplinks[usize::from(number) - 1].nic;
        let text = format!(
            "api_socket = {:?}\nstate_dir = {:?}\nruntime_dir = {:?}\nprofile_dir = {:?}\n\
             [[uplinks]]\ninterface = {nic:?}\n",
            path(".api"),
            path(".state"),
            path(".run"),
            path(".profiles"),
        );
        fs::write(path(".toml"), text).expect("configuration");
        let isonic = Self::launch(bed, number);
        let mut install = Command::new(BINARY);
        install.args(["libvirt", "install-hook", "--socket-group", qemu.user(), "--directory"]);
        install.arg(Libvirtd::hooks(bed, number)).arg("--api-socket").arg(path(".api"));
        install.arg("--socket-dir").arg(path(""));
        run(install.args(["--uplink", &format!("blue={nic}")]));
        // It looks for hooks when it starts, or is reloaded.
        let libvirt = Libvirtd::start(bed, number, qemu);
        Self { bed, number, isonic, libvirt }
    }

    fn launch(bed: &Bed, number: u8) -> Process {
        let path = |kind: &str| bed.path(&format!("host{number}{kind}")).display().to_string();
        let words = [BINARY, "run", "--config", &path(".toml")];
        let command_line: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let name = format!("isonic of host {number}");
        let log = PathBuf::from(path(".log"));
        let isonic = Process::start(&name, bed.host.name(), &command_line, &log);
        wait_for("isonic answers", 20, || {
            let mut list = Command::new(BINARY);
            list.args(["port", "list", "--api-socket", &path(".api")]);
            run_to_end(&mut list).status.success()
        });
        isonic
    }

    /// Kills isonic; started again it knows what is in its state and its directory of profiles.
    fn restart_isonic(&mut self) {
        self.isonic.kill();
        self.isonic = Self::launch(self.bed, self.number);
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.bed.path(&format!("host{}{kind}", self.number))
    }

    /// What a client command with `--json` prints.
    fn json(&self, arguments: &[&str]) -> Value {
        let mut command = Command::new(BINARY);
        command.args(arguments).args(["--json", "--api-socket"]).arg(self.path(".api"));
        serde_json::from_str(&run(&mut command)).expect("JSON")
    }

    fn ports(&self) -> Vec<String> {
        let ports = self.json(&["port", "list"]);
        let name = |port: &Value| port["name"].as_str().expect("a name").to_owned();
        ports.as_array().expect("ports").iter().map(name).collect()
    }

    /// The guest that runs here.
    fn guest(&self) -> Agent {
        Agent::connect(&self.libvirt.directory("lib").join("agent"))
    }

    /// Defines a domain.
    fn define(&self, xml: &str) {
        let file = self.path(".xml");
        fs::write(&file, xml).expect("XML");
        self.libvirt.virsh(&["define", file.to_str().unwrap(), "--validate"]);
    }
}

/// A domain that boots the tests' guest, as somebody wrote it who knows nothing of isonic.
fn bare(bed: &Bed, name: &str, qemu: Qemu) -> String {
    let emulator = qemu.emulator().display().to_string();
    let path = |file: &str| bed.path(file).display().to_string();
    let cmdline =
        format!("console=ttyS0 quiet panic=-1 no_timer_check iomem=relaxed isonic.ip={GUEST}/24");
    format!(
        "<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>192</memory>
  <vcpu>2</vcpu>
  <os>
    <type arch='x86_64' machine='pc-q35-7.2'>hvm</type>
    <kernel>{}</kernel>
    <initrd>{}</initrd>
    <cmdline>{cmdline}</cmdline>
  </os>
  <features>
    <acpi/>
  </features>
  <cpu mode='custom' match='exact' check='none'>
    <model>qemu64</model>
  </cpu>
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <serial type='file'>
      <source path='{}'/>
      <target port='0'/>
    </serial>
    <channel type='unix'>
      <source mode='bind' path='{}'/>
      <target type='virtio' name='isonic.agent'/>
    </channel>
    <memballoon model='none'/>
  </devices>
</domain>
",
        path("vmlinux"),
        path("initrd"),
        // Each libvirtd's own.
        "/var/lib/libvirt/console",
        "/var/lib/libvirt/agent",
    )
}

/// The same with a profile.
fn stamped(bed: &Bed, xml: &str, more: &[&str]) -> String {
    let file = bed.path("domain.xml");
    fs::write(&file, xml).expect("XML");
    let mut stamp = Command::new(BINARY);
    stamp.args(["libvirt", "stamp"]).arg(file).args(more);
    run(stamp.args(["--uplink", "blue", "--socket-dir"]).arg(bed.path("host1")))
}

/// A stamped domain whose interface has no MSI-X.
fn domain(bed: &Bed, qemu: Qemu, profile: &str, more: &[&str]) -> String {
    let bare = bare(bed, DOMAIN, qemu);
    let xml = stamped(bed, &bare, &[&["--profile", profile, "--mac", MAC][..], more].concat());
    let vectors = "<qemu:frontend>
        <qemu:property name='vectors' type='unsigned' value='0'/>";
    // The guest's image has no option ROM to load.
    let xml = xml.replacen("<alias name='ua-", "<rom enabled='no'/><alias name='ua-", 1);
    let xml = xml.replacen("<qemu:frontend>", vectors, 1);
    assert_eq!(stamped(bed, &xml, more), xml, "what is not ours stays");
    xml
}

fn wait_up(bed: &Bed) {
    wait_reachable(&bed.wire, GUEST, 90);
    // It waits for the guest's server, too.
    echo_stream(&bed.wire, GUEST, 64 << 10);
}

/// The guest's interface is the profile.
fn assert_profile(host: &Host<'_>, profile: &str) {
    let facts = host.guest().facts();
    let view = host.json(&["profile", "show", profile]);
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let offered = number(&facts["features_offered"]);
    assert_eq!(offered, number(view["guest_features"]["hex"].as_str().unwrap()), "{facts:?}");
    assert_eq!(facts["mtu"], view["mtu"].to_string());
    let rings = view["ring_size_max"].as_u64().unwrap().min(QEMU_RING_MAX);
    assert_eq!(facts["ring_size_from_guest_max"], rings.to_string());
    assert_eq!((&*facts["queue_pairs_max"], &*facts["mac"]), ("2", MAC));
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_domains_port_lives_as_long_as_its_guest_and_comes_back_with_it() {
    let bed = bridged_bed(1);
    let host = Host::new(&bed, 1, Qemu::Debian);
    let xml = domain(&bed, Qemu::Debian, V3, &[]);
    host.define(&xml);
    // What libvirt made of it is as stamped.
    let defined = host.libvirt.virsh(&["dumpxml", "--inactive", DOMAIN]);
    assert_eq!(stamped(&bed, &defined, &["--profile", V3]), defined);
    assert_eq!(host.ports(), [""; 0]);

    host.libvirt.virsh(&["start", DOMAIN]);
    wait_up(&bed);
    assert_profile(&host, V3);
    let port = host.json(&["port", "show", PORT]);
    let uuid = host.libvirt.virsh(&["domuuid", DOMAIN]).trim().to_owned();
    assert_eq!(
        (&port["state"], &port["owner"]),
        (&"running".into(), &format!("libvirt:{uuid}").into())
    );
    echo_stream(&bed.wire, GUEST, 1 << 20);

    host.guest().check("(sleep 0.2; reboot -f) >/dev/null 2>&1 &");
    wait_for("the guest is down", 20, || agent_is_down(&bed));
    wait_up(&bed);

    let saved = bed.path("saved").display().to_string();
    host.libvirt.virsh(&["save", DOMAIN, &saved]);
    assert_eq!(host.ports(), [""; 0]);
    host.libvirt.virsh(&["restore", &saved]);
    wait_up(&bed);
    assert_eq!(host.ports(), [PORT]);

    host.libvirt.virsh(&["managedsave", DOMAIN]);
    assert_eq!(host.ports(), [""; 0]);
    host.libvirt.virsh(&["start", DOMAIN]);
    wait_up(&bed);

    host.libvirt.virsh(&["destroy", DOMAIN]);
    assert_eq!(host.ports(), [""; 0]);
    host.libvirt.virsh(&["start", DOMAIN]);
    wait_up(&bed);
    assert_profile(&host, V3);
}

/// Nobody answers: it has gone down, or is on its way up.
fn agent_is_down(bed: &Bed) -> bool {
    !run_to_end(&mut bed.wire.command(&["ping", "-c", "1", "-W", "1", GUEST])).status.success()
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_restarted_libvirtd_kills_no_guest_and_puts_back_what_is_missing() {
    let bed = bridged_bed(1);
    let mut host = Host::new(&bed, 1, Qemu::Debian);
    // Split rings, which outlive isonic.
    host.define(&domain(&bed, Qemu::Debian, V1, &[]));
    host.libvirt.virsh(&["start", DOMAIN]);
    wait_up(&bed);

    host.isonic.kill();
    host.libvirt.restart();
    assert_eq!(host.libvirt.state(DOMAIN), "running");
    // Even the port is lost.
    fs::remove_dir_all(host.path(".state")).expect("state");
    host.restart_isonic();
    assert_eq!(host.ports(), [""; 0]);
    host.libvirt.restart();
    assert_eq!(host.libvirt.state(DOMAIN), "running");
    assert_eq!(host.ports(), [PORT]);
    wait_up(&bed);
    assert_profile(&host, V1);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_migrates_to_a_host_that_has_its_profile_and_stays_where_it_is_until_then() {
    let bed = bridged_bed(2);
    // Under emulation the earlier one loses what the guest writes meanwhile (tests/README.md).
    let mut source = Host::new(&bed, 1, Qemu::Ten);
    let mut destination = Host::new(&bed, 2, Qemu::Ten);
    let profile = "com.example.net.v1";
    let text = format!(
        "name = {profile:?}\nsummary = \"small rings\"\nextends = {V3:?}\n\
         why = \"a test\"\nring_size_max = 512\n"
    );
    fs::write(source.path(".profiles").join("x.toml"), &text).expect("profile");
    source.restart_isonic();
    let directory = source.path(".profiles").display().to_string();
    source.define(&domain(&bed, Qemu::Ten, profile, &["--profile-dir", &directory]));
    source.libvirt.virsh(&["start", DOMAIN]);
    wait_up(&bed);

    let migrate = |from: &Host<'_>, to: &Host<'_>| {
        let stream = format!("unix://{}", bed.path("stream").display());
        let arguments = ["migrate", "--live", "--p2p", "--persistent", "--undefinesource", DOMAIN];
        let uri = to.libvirt.uri();
        from.libvirt.try_virsh(&[&arguments[..], &[&uri, "--migrateuri", &stream]].concat())
    };
    let refusal = |from: &Host<'_>, to: &Host<'_>, told: &str| {
        let finished = migrate(from, to);
        assert!(!finished.status.success(), "{finished:?}");
        let told_by = finished.errors.rsplit("exit status 1: ").next().unwrap_or_default();
        println!("virsh migrate: {}", told_by.trim());
        assert!(finished.errors.contains(told), "{told} is not in {}", finished.errors);
        assert_eq!(from.libvirt.state(DOMAIN), "running");
        echo_datagrams(&bed.wire, GUEST, 1400, 5);
        assert_eq!((from.ports(), to.ports()), (vec![PORT.to_owned()], Vec::new()));
    };
    refusal(&source, &destination, "there is no profile \"com.example.net.v1\"");
    let file = destination.path(".profiles").join("x.toml");
    fs::write(&file, text.replace("= 512", "= 256")).expect("profile");
    destination.restart_isonic();
    refusal(&source, &destination, "another interface under that name, with digest");
    destination.isonic.kill();
    fs::write(&file, &text).expect("profile");
    let finished = migrate(&source, &destination);
    assert!(finished.errors.contains("cannot reach the daemon"), "{finished:?}");
    destination.restart_isonic();

    for (from, to) in [(&source, &destination), (&destination, &source)] {
        let before = from.guest().facts();
        let words = ["ping", "-q", "-i", "0.02", "-w", "8", GUEST].map(str::to_owned);
        let mut pings = Process::start("ping", bed.wire.name(), &words, &to.path(".ping"));
        let began = std::time::Instant::now();
        let finished = migrate(from, to);
        assert!(finished.status.success(), "{finished:?}");
        println!("virsh migrate took {:?}", began.elapsed());
        pings.wait(20);
        // One every 20 ms. How many are lost is for the reader.
        println!("{}", pings.log());
        wait_up(&bed);
        assert_eq!(to.libvirt.state(DOMAIN), "running");
        assert_eq!((from.ports(), to.ports()), (Vec::new(), vec![PORT.to_owned()]));
        let port = to.json(&["port", "show", PORT]);
        let socket = to.path("").join("isonic-vm1-net0.sock");
        assert_eq!((&port["state"], &port["socket"]), (&"running".into(), &socket.to_str().into()));
        assert_eq!(to.guest().facts(), before);
        assert_profile(to, profile);
    }
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn an_interface_is_plugged_in_and_pulled_out_while_the_guest_runs() {
    let bed = bridged_bed(1);
    let host = Host::new(&bed, 1, Qemu::Ten);
    // With MSI-X, which what is plugged in has whatever the domain overrides.
    let bare = bare(&bed, DOMAIN, Qemu::Ten);
    let spare = "<controller type='pci' model='pcie-root-port'/>\n    ";
    let root = "<controller type='pci' index='0' model='pcie-root'/>\n    ";
    let controllers = format!("{root}{}<memballoon", spare.repeat(4));
    let bare = bare.replacen("<memballoon", &controllers, 1);
    host.define(&stamped(&bed, &bare, &["--profile", V3, "--mac", MAC]));
    host.libvirt.virsh(&["start", DOMAIN]);
    wait_up(&bed);

    let uuid = host.libvirt.virsh(&["domuuid", DOMAIN]).trim().to_owned();
    let (owner, socket) = (format!("libvirt:{uuid}"), host.path("").join("hot.sock"));
    let add = ["port", "add", "hot", "--profile", V3, "--uplink", &bed.uplinks[0].nic];
    let more = ["--owner", &owner, "--mac", "52:54:00:00:00:02", "--socket"];
    host.json(&[&add[..], &more, &[socket.to_str().unwrap()]].concat());
    let mut xml = Command::new(BINARY);
    xml.args(["libvirt", "xml", "hot", "--device", "--queue-pairs", "2", "--api-socket"]);
    let device = run(xml.arg(host.path(".api")));
    let file = bed.path("device.xml");
    fs::write(&file, device).expect("XML");
    let file = file.to_str().unwrap();
    host.libvirt.virsh(&["attach-device", DOMAIN, file, "--live"]);
    let mut guest = host.guest();
    wait_for("the guest has a second interface", 30, || {
        guest.run("[ -e /sys/class/net/eth1 ]").1 == 0
    });
    guest.check("ip address add 10.77.0.150/24 dev eth1 && ip link set eth1 up");
    wait_reachable(&bed.wire, "10.77.0.150", 20);
    assert_eq!(guest.check("cat /sys/class/net/eth1/address").trim(), "52:54:00:00:00:02");
    // libvirt overrides nothing of what is plugged in (docs/libvirt.md).
    let [at_start, plugged_in] = ["eth0", "eth1"]
        .map(|name| guest.check(&format!("cat /sys/class/net/{name}/device/features")));
    let bits = at_start.trim().bytes().zip(plugged_in.trim().bytes());
    let different: Vec<usize> =
        bits.enumerate().filter(|(_, (a, b))| a != b).map(|(bit, _)| bit).collect();
    assert_eq!(different, [CTRL_GUEST_OFFLOADS, MTU]);

    host.libvirt.virsh(&["detach-device", DOMAIN, file, "--live"]);
    wait_for("the guest's second interface is gone", 30, || {
        guest.run("[ ! -e /sys/class/net/eth1 ]").1 == 0
    });
    wait_for("its port is free", 20, || host.json(&["port", "show", "hot"])["state"] == "waiting");
    echo_datagrams(&bed.wire, GUEST, 1400, 5);
    // What was plugged in goes with the domain.
    host.libvirt.virsh(&["destroy", DOMAIN]);
    assert_eq!(host.ports(), [""; 0]);
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn a_guest_of_a_transitional_profile_has_a_transitional_device() {
    let bed = bridged_bed(1);
    let host = Host::new(&bed, 1, Qemu::Debian);
    // QEMU 7.2 has no in_order.
    let profile = "org.dpdk.v22.11,in_order=off";
    let xml = domain(&bed, Qemu::Debian, profile, &[]);
    assert!(xml.contains("<model type='virtio-transitional'/>"));
    host.define(&xml);
    host.libvirt.virsh(&["start", DOMAIN]);
    wait_up(&bed);
    assert_profile(&host, profile);
    // virtio 1.2, 4.1.2.1: 0x1000 is the transitional network device's, 0x1041 the other's.
    assert_eq!(
        host.guest().check("cat /sys/bus/virtio/devices/virtio0/../device").trim(),
        "0x1000"
    );
}

#[test]
#[ignore = "needs root and a machine: scripts/test"]
fn other_peoples_domains_do_not_notice_the_hook() {
    let bed = bridged_bed(1);
    let mut host = Host::new(&bed, 1, Qemu::Debian);
    let plain = bare(&bed, DOMAIN, Qemu::Debian);
    host.isonic.kill();
    host.define(&plain);
    host.libvirt.virsh(&["start", DOMAIN]);
    assert_eq!(host.libvirt.state(DOMAIN), "running");
    host.libvirt.virsh(&["destroy", DOMAIN]);
    host.libvirt.virsh(&["undefine", DOMAIN]);
    host.define(&domain(&bed, Qemu::Debian, V3, &[]));
    let told = host.libvirt.refusal(&["start", DOMAIN]);
    assert!(told.contains("cannot reach the daemon"), "{told}");
    host.restart_isonic();
    host.libvirt.virsh(&["start", DOMAIN]);
    wait_up(&bed);
}
