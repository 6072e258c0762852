//! A Linux guest under QEMU, with a command channel that needs no network
//! (`scripts/guest/guest-agent`).

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use super::emulator::note_lost_interrupt;
use super::traffic::ANSWER_SECONDS;
use super::{Agent, Bed, Monitor, Netns, PortSpec, Process, Uplink, holds_within, repository, run};

/// Seconds for a boot; it takes three under emulation on an idle core.
const BOOT_SECONDS: u64 = 30;
/// The report of a guest's kernel when it panics: all tasks, and a backtrace of every CPU.
const PANIC_PRINT: u32 = 0x41;
const QEMU_10: &str = "cache/qemu-10/qemu";

/// The guest to boot.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// The port that it is plugged into.
    pub port: PortSpec,
    /// Its address, within a /24.
    pub address: String,
    /// Queue pairs, and up to four CPUs: Linux begins with no more pairs than it has CPUs.
    pub queue_pairs: u32,
    /// Where the port's profile is, if not in the binary.
    pub profile_dir: Option<PathBuf>,
    /// An interrupt for each ring (MSI-X), as under KVM: with QEMU 10, since 7.2 crashes so under
    /// emulation when a vhost-user device starts.
    pub msix: bool,
    /// MiB. It is taken from the host only where the guest writes.
    pub memory: u32,
    /// The folder of cache/ with the kernel.
    pub image: &'static str,
    /// Whether the memory file is mapped shared, as it must be.
    pub shared: bool,
    /// Further options of its device: the last one of a name counts.
    pub device_options: String,
}

impl GuestSpec {
    /// A guest with two queue pairs on this port.
    pub fn new(port: &PortSpec, uplink: &Uplink, number: u8) -> Self {
        let address = uplink.guest_address(number);
        let (port, profile_dir, image) = (port.clone(), None, "guest");
        Self {
            port,
            address,
            queue_pairs: 2,
            profile_dir,
            msix: false,
            memory: 192,
            image,
            shared: true,
            device_options: String::new(),
        }
    }
}

/// A running guest; killed on drop.
#[derive(Debug)]
pub struct Guest {
    /// The description that it was started from.
    pub spec: GuestSpec,
    process: Process,
    console: PathBuf,
    agent: Agent,
    monitor: Monitor,
}

impl Guest {
    /// Starts QEMU and waits until the guest is up.
    pub fn boot(bed: &Bed, spec: &GuestSpec) -> Self {
        Self::launch(bed, spec).ready()
    }

    /// Boots several at once: on two cores that takes hardly longer than one.
    pub fn boot_all<const N: usize>(bed: &Bed, specs: [GuestSpec; N]) -> [Self; N] {
        specs.map(|spec| Self::launch(bed, &spec)).map(Self::ready)
    }

    /// Starts QEMU, which may have to wait for its backend; to be followed by
    /// [`ready`](Self::ready).
    pub fn launch(bed: &Bed, spec: &GuestSpec) -> Self {
        Self::start(bed, spec, &[])
    }

    /// Starts a QEMU that waits for a guest to arrive.
    pub fn await_arrival(bed: &Bed, spec: &GuestSpec) -> Self {
        Self::start(bed, spec, &["-incoming", "defer"])
    }

    fn start(bed: &Bed, spec: &GuestSpec, options: &[&str]) -> Self {
        let image = repository("cache").join(spec.image);
        assert!(image.join("stamp").exists(), "no {}: run scripts/guest-image", image.display());
        assert!(!spec.msix || repository(QEMU_10).exists(), "no QEMU 10 here: run scripts/qemu-10");
        let file = |kind: &str| bed.path(&format!("{}.{kind}", spec.port.name));
        let (console, agent, monitor) = (file("console"), file("agent"), file("monitor"));
        // An earlier guest may have left its files.
        for path in [&console, &agent, &monitor, &file("qemu")] {
            let _ = fs::remove_file(path);
        }
        let mut command_line = command_line(bed, spec);
        command_line.extend(options.iter().map(|&option| option.to_owned()));
        let name = format!("QEMU of {}", spec.port.name);
        let process = Process::start(&name, bed.wire.name(), &command_line, &file("qemu"));
        let agent = Agent::connect(&agent);
        let monitor = Monitor::new(monitor);
        Self { spec: spec.clone(), process, console, agent, monitor }
    }

    /// Waits until the guest is up.
    pub fn ready(mut self) -> Self {
        self.wait_boots(1);
        self
    }

    /// Waits until the guest has come up `times` times since QEMU was started.
    pub fn wait_boots(&mut self, times: usize) {
        let up = holds_within(BOOT_SECONDS, || {
            if let Some(status) = self.process.ended() {
                panic!("QEMU ended with {status}");
            }
            self.console().matches("GUEST-UP").count() >= times
        });
        if !up {
            self.explain();
            panic!("{} is not up: its console says how far it came", self.spec.port.name);
        }
    }

    /// All that it has written to its console.
    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned()
    }

    /// Runs a command in the guest's shell: its output, and its exit status.
    pub fn run(&mut self, command: &str) -> (String, i32) {
        self.agent.try_run(command).unwrap_or_else(|error| {
            self.explain();
            panic!("{command:?} in {}: {error}", self.spec.port.name);
        })
    }

    /// Makes a guest that no longer answers print the state of its tasks and CPUs on its console
    /// (the kernel's `unknown_nmi_panic`).
    fn explain(&mut self) {
        if self.process.ended().is_none() {
            let console = self.console();
            note_lost_interrupt(&mut self.monitor, cpus(&self.spec), &console);
            self.monitor.query("inject-nmi");
            std::thread::sleep(Duration::from_secs(10));
        }
    }

    /// Runs a command that must succeed.
    pub fn check(&mut self, command: &str) -> String {
        let (output, status) = self.run(command);
        assert_eq!(status, 0, "{command:?} in {}: {output}", self.spec.port.name);
        output
    }

    /// Echo requests from the guest; all must be answered.
    pub fn ping(&mut self, address: &str) {
        let output = self.check(&format!("ping -c 5 -W {ANSWER_SECONDS} {address}"));
        assert!(output.contains(" 5 packets received"), "{output}");
    }

    /// Sets fixed neighbour entries, so that neither it nor the wire asks for the other's address
    /// again. A side that asks keeps three messages meanwhile and drops the others, which nothing
    /// here counts.
    pub fn know_the_wire(&mut self, bed: &Bed) {
        let Uplink { peer, wire_address, .. } = &bed.uplinks[0];
        let (address, mac) = (&self.spec.address, &self.spec.port.mac);
        let neighbour = ["ip", "neigh", "replace", address, "lladdr", mac, "dev", peer];
        bed.wire.run(&[&neighbour[..], &["nud", "permanent"]].concat());
        let mac = bed.wire.run(&["cat", &format!("/sys/class/net/{peer}/address")]);
        self.check(&format!("arp -s {wire_address} {}", mac.trim()));
    }

    /// Sends a stream of known bytes to an address; the server there must find all right.
    pub fn send_stream(&mut self, address: &str, length: usize) {
        let output = self.check(&format!("timeout 50 guest-stream send {address} {length}"));
        assert_eq!(output.trim_end(), format!("good {length}"));
    }

    /// The packets that a queue pair has received and sent: "rx" and "tx".
    pub fn queue_packets(&mut self, pair: u32) -> BTreeMap<&'static str, u64> {
        let output = self.check("ethtool -S eth0");
        let count = |direction| {
            let name = format!("{direction}_queue_{pair}_packets:");
            let value = output.lines().find_map(|line| line.trim().strip_prefix(&name));
            value.and_then(|value| value.trim().parse().ok()).unwrap_or_else(|| panic!("{output}"))
        };
        ["rx", "tx"].into_iter().map(|direction| (direction, count(direction))).collect()
    }

    /// `ethtool -k` of an interface: on or off by name.
    pub fn offloads(&mut self, interface: &str) -> BTreeMap<String, String> {
        let output = self.check(&format!("ethtool -k {interface}"));
        let pairs = output.lines().filter_map(|line| line.trim().split_once(": "));
        let word = |value: &str| value.split(' ').next().unwrap_or_default().to_owned();
        pairs.map(|(name, value)| (name.to_owned(), word(value))).collect()
    }

    /// The guest's view of its interface (`scripts/guest/guest-facts`).
    pub fn facts(&mut self) -> BTreeMap<String, String> {
        self.agent.facts()
    }

    /// All that the guest can tell of its interface, and that must never change. These are facts,
    /// ethtool's tables, the driver's name and place, offloads, queues, and how often its link has
    /// changed.
    pub fn view(&mut self) -> String {
        // The guest reports a new link with some delay.
        self.check("until grep -q up /sys/class/net/eth0/operstate; do sleep 0.1; done");
        let tables = "for table in -g -l -i -k; do ethtool $table eth0 || exit 1; done";
        let system = "cd /sys/class/net/eth0 && ls queues && for fact in address mtu carrier \
                      carrier_changes tx_queue_len type flags; do echo $fact $(cat $fact); done";
        self.check(&format!("guest-facts && {tables} && {system} && ip address show eth0"))
    }

    /// Reboots from inside and waits until it is up again; to be done once.
    pub fn reboot(&mut self) {
        self.check("(sleep 0.2; reboot -f) >/dev/null 2>&1 &");
        self.wait_boots(2);
    }

    /// Takes the interface away from its driver and gives it back.
    pub fn rebind(&mut self) {
        let driver = "/sys/bus/virtio/drivers/virtio_net";
        self.check(&format!("echo virtio0 >{driver}/unbind && [ ! -e /sys/class/net/eth0 ]"));
        self.check(&format!("echo virtio0 >{driver}/bind && guest-network"));
    }

    /// QEMU's monitor.
    pub fn monitor(&mut self) -> &mut Monitor {
        &mut self.monitor
    }

    /// All that QEMU has written.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Waits until QEMU has ended by itself, and not well; its output.
    pub fn gave_up(&mut self) -> String {
        let status = self.process.wait(30);
        assert!(!status.success(), "QEMU ended with {status}");
        self.log()
    }

    /// QEMU's process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// SIGKILL for QEMU.
    pub fn kill(&mut self) {
        self.process.kill();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let console = self.console();
            if self.process.ended().is_none() {
                note_lost_interrupt(&mut self.monitor, cpus(&self.spec), &console);
            }
            eprintln!("--- console of {} ---\n{console}", self.spec.port.name);
        }
    }
}

/// Linux begins with no more queue pairs than it has CPUs.
fn cpus(spec: &GuestSpec) -> u32 {
    spec.queue_pairs.min(4)
}

/// KVM only where `scripts/test` found that it boots this guest.
pub(super) fn accelerator() -> Vec<String> {
    let found = fs::read_to_string(repository("cache/guest/accelerator")).unwrap_or_default();
    let words = if found.starts_with("kvm") {
        "-accel kvm -cpu host"
    } else {
        "-accel tcg,thread=multi -cpu max"
    };
    words.split(' ').map(str::to_owned).collect()
}

/// QEMU's half of the interface, as a user would get it.
fn exported_device(spec: &GuestSpec) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_isonic"));
    let profile = &spec.port.profile;
    command.args(["profile", "export", profile, "--format", "qemu", "--mac", &spec.port.mac]);
    if let Some(directory) = &spec.profile_dir {
        command.arg("--profile-dir").arg(directory);
    }
    let arguments = run(command.args(["--queue-pairs", &spec.queue_pairs.to_string()]));
    arguments.trim_end().replace('\n', " ")
}

/// The memory of a guest, KiB. A ring of 256 posted buffers takes up to a megabyte.
///
/// The size is never a multiple of 256 KiB. In such memory QEMU before 9.0 clears the dirty bits of
/// 64 pages at a time when a migration asks for them. It forgets that its emulated processors' TLBs
/// still mark pages among these as dirty. Later writes to those pages do not travel (QEMU's commit
/// 03bfc2188f06, "physmem: Fix migration dirty bitmap coherency with TCG memory access"). QEMU does
/// not forget when it clears page by page.
fn memory_kib(spec: &GuestSpec) -> u32 {
    /// The least that QEMU rounds to.
    const ODD_KIB: u32 = 8;
    1024 * spec.memory.max(4 * spec.queue_pairs) + ODD_KIB
}

fn command_line(bed: &Bed, spec: &GuestSpec) -> Vec<String> {
    let image = repository("cache").join(spec.image);
    let file = |kind: &str| bed.path(&format!("{}.{kind}", spec.port.name)).display().to_string();
    let socket = file("sock");
    // A port in client mode connects to QEMU; QEMU does not wait for it.
    let side = if spec.port.mode == "client" { "server=on,wait=on" } else { "reconnect=1" };
    let qemu_10 = repository(QEMU_10).display().to_string();
    let (qemu, vectors) = match accelerator()[1].as_str() {
        "kvm" => ("qemu-system-x86_64", ""),
        _ if spec.msix => (&*qemu_10, ""),
        _ => ("qemu-system-x86_64", ",vectors=0"),
    };
    let device = exported_device(spec);
    let words = format!(
        "{qemu} -machine q35,memory-backend=memory -smp {cpus} -m {size}K \
         -object memory-backend-memfd,id=memory,size={size}K,share={share} -nodefaults \
         -no-user-config \
         -kernel {image}/vmlinux -initrd {image}/initrd -display none \
         -chardev socket,id=vhost,path={socket},{side} \
         {device},romfile={vectors}{options} \
         -serial file:{console} -chardev socket,id=agent,path={agent},server=on,wait=off \
         -device virtio-serial-pci{vectors} -device virtserialport,chardev=agent \
         -chardev socket,id=monitor,path={monitor},server=on,wait=off \
         -mon chardev=monitor,mode=control",
        share = if spec.shared { "on" } else { "off" },
        options = spec.device_options,
        cpus = cpus(spec),
        size = memory_kib(spec),
        image = image.display(),
        console = file("console"),
        agent = file("agent"),
        monitor = file("monitor"),
    );
    let append = format!(
        "console=ttyS0 quiet panic=-1 unknown_nmi_panic panic_print={PANIC_PRINT:#x} \
         no_timer_check iomem=relaxed isonic.ip={}/24",
        spec.address
    );
    let mut command_line: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    command_line.extend(accelerator());
    command_line.extend(["-append".to_owned(), append]);
    command_line
}
