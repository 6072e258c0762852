//! The daemon under test: its configuration, its process, its answers.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::Value;

use super::{Bed, Finished, Process, ServiceManager, cpu_ticks, run, run_to_end, wait_for};

/// The profile that the tests bind.
pub const PROFILE: &str = "org.isonic.net.v1";
const BINARY: &str = env!("CARGO_BIN_EXE_isonic");

/// One `[[ports]]` entry.
#[derive(Clone, Debug)]
pub struct PortSpec {
    /// Its name; the socket is NAME.sock in the bed's directory.
    pub name: String,
    /// "server" or "client".
    pub mode: &'static str,
    /// The uplink's interface.
    pub uplink: String,
    /// "switch" or "wire".
    pub attach: &'static str,
    /// The uplink's queues of a wire port.
    pub queues: Option<Vec<u32>>,
    /// The MAC.
    pub mac: String,
    /// The profile: a name or a list of values.
    pub profile: String,
    /// Whether that may be a draft.
    pub allow_draft: bool,
}

impl PortSpec {
    /// A switch port on the uplink; `number` (1 to 99) makes name and MAC.
    pub fn switch(uplink: &str, number: u8) -> Self {
        Self {
            name: format!("vm{number}"),
            mode: "server",
            uplink: uplink.to_owned(),
            attach: "switch",
            queues: None,
            mac: format!("52:54:00:00:00:{number:02x}"),
            profile: PROFILE.to_owned(),
            allow_draft: false,
        }
    }

    /// This configuration with another profile, which may be a draft.
    pub fn with_profile(self, profile: &str) -> Self {
        Self { profile: profile.to_owned(), allow_draft: true, ..self }
    }

    /// A wire port on all these queues of the uplink.
    pub fn wire(uplink: &str, number: u8, queues: &[u32]) -> Self {
        let queues = Some(queues.to_vec());
        Self { attach: "wire", queues, ..Self::switch(uplink, number) }
    }
}

/// A configuration file to be.
#[derive(Clone, Debug)]
pub struct Configuration {
    /// The uplinks' interfaces, each with its queues if not all.
    pub uplinks: Vec<(String, Option<Vec<u32>>)>,
    /// The ports.
    pub ports: Vec<PortSpec>,
    /// `workers`.
    pub workers: u32,
    /// `worker_cpus`; the daemon chooses if empty.
    pub worker_cpus: Vec<usize>,
    /// `profile_dir`.
    pub profile_dir: Option<PathBuf>,
    /// The uplinks' `mode`.
    pub mode: &'static str,
    /// The uplinks' `coalesce`.
    pub coalesce: bool,
    /// The uplinks' `host`.
    pub host: bool,
    /// The uplinks' `link_to_guests`.
    pub link_to_guests: bool,
    /// More lines of the uplinks.
    pub uplink_lines: &'static str,
    /// `runtime_dir`, in the bed's directory.
    pub runtime_dir: &'static str,
}

impl Configuration {
    /// All uplinks of the bed, one worker, these ports.
    pub fn new(bed: &Bed, ports: Vec<PortSpec>) -> Self {
        let uplinks = bed.uplinks.iter().map(|uplink| (uplink.nic.clone(), None)).collect();
        Self {
            uplinks,
            ports,
            workers: 1,
            worker_cpus: Vec::new(),
            profile_dir: None,
            mode: "auto",
            coalesce: true,
            host: false,
            link_to_guests: false,
            uplink_lines: "",
            runtime_dir: "run",
        }
    }

    fn text(&self, bed: &Bed) -> String {
        let mut text = format!(
            "api_socket = {:?}\nstate_dir = {:?}\nruntime_dir = {:?}\nworkers = {}\n",
            bed.path("api.sock"),
            bed.path("state"),
            bed.path(self.runtime_dir),
            self.workers
        );
        if !self.worker_cpus.is_empty() {
            let _ = writeln!(text, "worker_cpus = {:?}", self.worker_cpus);
        }
        if let Some(directory) = &self.profile_dir {
            let _ = writeln!(text, "profile_dir = {directory:?}");
        }
        for (interface, queues) in &self.uplinks {
            let Self { mode, coalesce, host, link_to_guests, uplink_lines, .. } = self;
            let _ = write!(
                text,
                "\n[[uplinks]]\ninterface = {interface:?}\nmode = {mode:?}\n\
                 coalesce = {coalesce}\nhost = {host}\nlink_to_guests = {link_to_guests}\n\
                 {uplink_lines}\n"
            );
            if let Some(queues) = queues {
                let _ = writeln!(text, "queues = {queues:?}");
            }
        }
        for port in &self.ports {
            let socket = bed.path(&format!("{}.sock", port.name));
            let _ = write!(
                text,
                "\n[[ports]]\nname = {:?}\nsocket = {socket:?}\nmode = {:?}\nprofile = {:?}\n\
                 allow_draft = {}\nuplink = {:?}\nattach = {:?}\nmac = {:?}\n",
                port.name,
                port.mode,
                port.profile,
                port.allow_draft,
                port.uplink,
                port.attach,
                port.mac
            );
            if let Some(queues) = &port.queues {
                let _ = writeln!(text, "queues = {queues:?}");
            }
        }
        text
    }

    /// Writes the file and gives its path.
    pub fn write(&self, bed: &Bed) -> PathBuf {
        let path = bed.path("isonic.toml");
        fs::write(&path, self.text(bed)).expect("configuration file");
        path
    }
}

/// A running daemon in the bed's namespace `host`; killed on drop.
#[derive(Debug)]
pub struct Daemon<'bed> {
    bed: &'bed Bed,
    /// The launcher: a command that executes the one after it.
    launcher: Vec<String>,
    process: Process,
}

impl<'bed> Daemon<'bed> {
    /// Starts it and waits until its API answers.
    pub fn start(bed: &'bed Bed, configuration: &Configuration) -> Self {
        // As many descriptors as a shell usually gives, and as many as the hard limit allows.
        let launcher = ["prlimit", "--nofile=1024:", BINARY].map(str::to_owned);
        Self::start_by(bed, configuration, &launcher)
    }

    /// Starts it with this pipe as its standard error, and waits until its API answers.
    pub fn start_logging_to(bed: &'bed Bed, configuration: &Configuration, log: &File) -> Self {
        let fd = log.as_raw_fd();
        let command = format!("exec \"$@\" 2>/proc/{}/fd/{fd}", std::process::id());
        let launcher = ["sh", "-c", &command, "sh", BINARY].map(str::to_owned);
        Self::start_by(bed, configuration, &launcher)
    }

    /// Starts it by a command that ends in the path of isonic's binary.
    pub fn start_by(bed: &'bed Bed, configuration: &Configuration, launcher: &[String]) -> Self {
        configuration.write(bed);
        Self { bed, launcher: launcher.to_vec(), process: Self::launch(bed, launcher) }
    }

    fn launch(bed: &Bed, launcher: &[String]) -> Process {
        let mut process = Self::spawn(bed, launcher);
        wait_for("isonic's API answers", 10, || {
            if let Some(status) = process.ended() {
                panic!("isonic ended with {status}");
            }
            run_to_end(&mut Self::client(bed, &["port", "list"])).status.success()
        });
        process
    }

    fn spawn(bed: &Bed, launcher: &[String]) -> Process {
        let config = bed.path("isonic.toml").display().to_string();
        let arguments = ["run", "--config", &config].map(str::to_owned);
        let command_line = [launcher, &arguments].concat();
        let log = bed.path("isonic.log");
        Process::start("isonic", bed.host.name(), &command_line, &log)
    }

    /// Runs `isonic run` where it is expected to refuse; panics if it keeps running.
    pub fn refused(bed: &Bed, configuration: &Configuration) -> Finished {
        Self::refused_by(bed, configuration, &[BINARY.to_owned()])
    }

    /// Runs one beside another, with files of its own, where it is expected to refuse.
    pub fn refused_beside(bed: &Bed, configuration: &Configuration) -> Finished {
        let own = [("api.sock", "api2.sock"), ("state", "state2"), ("run", "run2")];
        Self::refused_with(bed, configuration, &own)
    }

    /// Runs one with these files in place of the other's, where it is expected to refuse.
    pub fn refused_with(
        bed: &Bed,
        configuration: &Configuration,
        own: &[(&str, &str)],
    ) -> Finished {
        let mut text = configuration.text(bed);
        for (path, other) in own {
            let quoted = |path: &str| format!("{:?}", bed.path(path));
            text = text.replace(&quoted(path), &quoted(other));
        }
        let config = bed.path("beside.toml");
        fs::write(&config, text).expect("configuration file");
        let config = config.display().to_string();
        run_to_end(&mut bed.host.command(&["timeout", "10", BINARY, "run", "--config", &config]))
    }

    /// Runs it by a command that ends in the path of isonic's binary, where it is expected to
    /// refuse.
    pub fn refused_by(bed: &Bed, configuration: &Configuration, launcher: &[String]) -> Finished {
        let config = configuration.write(bed).display().to_string();
        let launcher: Vec<&str> = launcher.iter().map(String::as_str).collect();
        let command_line =
            [&["timeout", "10"], &launcher[..], &["run", "--config", &config]].concat();
        run_to_end(&mut bed.host.command(&command_line))
    }

    fn client(bed: &Bed, arguments: &[&str]) -> std::process::Command {
        let mut command = std::process::Command::new(BINARY);
        command.args(arguments).arg("--json").arg("--api-socket").arg(bed.path("api.sock"));
        command
    }

    /// The answer that a client command prints with `--json`; panics unless it succeeds.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let text = run(&mut Self::client(self.bed, arguments));
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// The outcome of a client command with `--json`.
    pub fn ask(bed: &Bed, arguments: &[&str]) -> Finished {
        run_to_end(&mut Self::client(bed, arguments))
    }

    /// The processes that take over are this one's to wait for.
    pub fn adopt_orphans() {
        Process::adopt_orphans();
    }

    /// The message of a client command that is refused; panics if it succeeds.
    pub fn refusal(&self, arguments: &[&str]) -> String {
        let finished = run_to_end(&mut Self::client(self.bed, arguments));
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}: {finished:?}");
        let last = finished.errors.lines().last().unwrap_or_default();
        let error: Value = serde_json::from_str(last)
            .unwrap_or_else(|error| panic!("{arguments:?}: {error}: {finished:?}"));
        error["error"]["message"].as_str().expect("a message").to_owned()
    }

    /// A port's counter.
    pub fn port_counter(&self, port: &str, counter: &str) -> u64 {
        let stats = self.json(&["stats"]);
        let value = &stats["ports"][port][counter];
        value.as_u64().unwrap_or_else(|| panic!("no counter {counter} of {port} in {stats}"))
    }

    /// The sum of a port's counters whose names start so.
    pub fn port_counters(&self, port: &str, prefix: &str) -> u64 {
        let stats = self.json(&["stats"]);
        let counters = stats["ports"][port].as_object().expect("the port's counters");
        let of_prefix = counters.iter().filter(|(name, _)| name.starts_with(prefix));
        of_prefix.filter_map(|(_, value)| value.as_u64()).sum()
    }

    /// Waits until a port is in this state: waiting, connected or running.
    pub fn wait_state(&self, port: &str, state: &str) {
        wait_for(&format!("{port} is {state}"), 20, || {
            self.json(&["port", "show", port])["state"] == state
        });
    }

    /// Has another process take over everything; the answer of the command.
    pub fn upgrade(&mut self, arguments: &[&str]) -> Value {
        Process::adopt_orphans();
        let answer = self.json(&[&["upgrade"], arguments].concat());
        let id = answer["pid"].as_u64().and_then(|id| u32::try_from(id).ok());
        self.process.succeeded_by(id.expect("a process id"));
        answer
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// All that it has logged, over its restarts.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// SIGTERM; it must end by itself, and well.
    pub fn stop(&mut self) {
        let status = self.process.terminate();
        assert!(status.success(), "isonic ended with {status} on SIGTERM");
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again, without waiting for more than the process.
    pub fn launch_again(&mut self) {
        self.process = Self::spawn(self.bed, &self.launcher);
    }

    /// Starts it as a service manager does, with the descriptors that the manager keeps for it.
    pub fn start_as_service(
        bed: &'bed Bed,
        configuration: &Configuration,
        manager: &mut ServiceManager,
    ) -> Self {
        configuration.write(bed);
        let launcher = Vec::new();
        Self { bed, launcher, process: Self::spawn_as_service(bed, manager) }
    }

    /// Starts it again as a service manager does.
    pub fn start_again_as_service(&mut self, manager: &mut ServiceManager) {
        self.process = Self::spawn_as_service(self.bed, manager);
    }

    fn spawn_as_service(bed: &Bed, manager: &mut ServiceManager) -> Process {
        // The kept descriptor comes as number 3 (sd_listen_fds(3)); the manager keeps its copy.
        let kept = manager.kept.get("isonic").map(|kept| kept.try_clone().expect("descriptor"));
        let listen = if kept.is_some() { "LISTEN_FDS=1 LISTEN_FDNAMES=isonic" } else { "" };
        let script = format!("exec 3<&0 </dev/null; LISTEN_PID=$$ {listen} exec \"$@\"");
        let config = bed.path("isonic.toml").display().to_string();
        let environment = manager.environment();
        let words = ["env", &environment[0], &environment[1], "sh", "-c", &script, "sh"];
        let command_line = [&words[..], &[BINARY, "run", "--config", &config]].concat();
        let command_line: Vec<String> = command_line.into_iter().map(str::to_owned).collect();
        let (log, stdin) = (bed.path("isonic.log"), kept.map_or(Stdio::null(), Stdio::from));
        let process = Process::start_with("isonic", bed.host.name(), &command_line, &log, stdin);
        manager.hear("READY=1");
        process
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill), same configuration.
    pub fn start_again(&mut self) {
        self.process = Self::launch(self.bed, &self.launcher);
    }

    /// Stops it and starts it as if it were another: with this configuration, and no state.
    pub fn replace(&mut self, configuration: &Configuration) {
        self.stop();
        fs::remove_dir_all(self.bed.path("state")).expect("state directory");
        configuration.write(self.bed);
        self.start_again();
    }

    /// Open descriptors and mappings: what a leak would let grow.
    pub fn holdings(&self) -> (usize, usize) {
        let proc = PathBuf::from(format!("/proc/{}", self.id()));
        let descriptors = fs::read_dir(proc.join("fd")).expect("descriptors").count();
        let mappings = fs::read_to_string(proc.join("maps")).expect("mappings").lines().count();
        (descriptors, mappings)
    }

    /// User and system time used so far, in clock ticks of 10 ms.
    pub fn cpu_ticks(&self) -> u64 {
        cpu_ticks(self.id())
    }

    /// Asserts that each uplink knows where all its frames are; gives their number.
    pub fn frames(&self) -> u64 {
        let stats = self.json(&["stats"]);
        let uplinks = stats["uplinks"].as_object().expect("uplinks");
        let mut all = 0;
        for (interface, counters) in uplinks {
            let count = |name: &str| counters[name].as_u64().unwrap_or(0);
            let places = ["frames_free", "frames_receiving", "frames_transmitting", "frames_away"];
            let found: u64 = places.into_iter().map(count).sum();
            assert_eq!(found, count("frames_total"), "{interface} lost frames: {counters}");
            all += found;
        }
        all
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let stats = run_to_end(&mut Self::client(self.bed, &["stats"]));
            eprintln!("--- isonic stats ---\n{}{}", stats.output, stats.errors);
        }
    }
}
