//! A libvirtd of its own: Debian's, with other directories mounted over its own. Neither it nor the
//! machine's libvirtd knows of the other. Two of them are two hosts.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Bed, Finished, Process, repository, run, run_to_end, wait_for};

/// The directories that a libvirtd has to itself.
const DIRECTORIES: [(&str, &str); 5] = [
    ("etc", "/etc/libvirt"),
    ("lib", "/var/lib/libvirt"),
    ("run", "/run/libvirt"),
    ("cache", "/var/cache/libvirt"),
    ("log", "/var/log/libvirt"),
];

/// Which QEMU a libvirtd starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qemu {
    /// Debian's 7.2, as the user that Debian has for it.
    Debian,
    /// The QEMU of `scripts/qemu-10`, as root.
    Ten,
}

impl Qemu {
    /// Its path.
    pub fn emulator(self) -> PathBuf {
        match self {
            Self::Debian => "/usr/bin/qemu-system-x86_64".into(),
            Self::Ten => {
                let qemu = repository("cache/qemu-10/qemu");
                assert!(qemu.exists(), "no QEMU 10 here: run scripts/qemu-10");
                qemu
            }
        }
    }

    /// Who it runs as; the group has the same name.
    pub fn user(self) -> &'static str {
        match self {
            Self::Debian => "libvirt-qemu",
            Self::Ten => "root",
        }
    }

    /// The shell's way to hide the modules of 7.2 from QEMU 10, which would load them and end. Some
    /// stay: without them, 7.2 does not answer libvirt's questions.
    fn hiding(self, root: &Path) -> String {
        let (modules, own) = ("/usr/lib/x86_64-linux-gnu/qemu", root.join("modules"));
        let own = own.display();
        match self {
            Self::Debian => String::new(),
            Self::Ten => format!(
                "mkdir -p {own} && cp {modules}/accel-* {own} && mount --bind {own} {modules} && "
            ),
        }
    }
}

/// A running libvirtd; ended on drop, with the guests that it started.
#[derive(Debug)]
pub struct Libvirtd {
    name: String,
    namespace: String,
    root: PathBuf,
    qemu: Qemu,
    process: Process,
}

impl Libvirtd {
    /// A new one. `number` (1 to 9) tells its host from the others.
    pub fn start(bed: &Bed, number: u8, qemu: Qemu) -> Self {
        let user = qemu.user();
        let root = bed.path(&format!("libvirt{number}"));
        for (directory, _) in DIRECTORIES {
            fs::create_dir_all(root.join(directory)).expect("libvirt's directory");
        }
        // QEMU's own are made by Debian's package.
        run(Command::new("cp").args(["--archive", "/var/lib/libvirt/."]).arg(root.join("lib")));
        let write = |name: &str, text: String| {
            fs::write(root.join("etc").join(name), text).expect("libvirt's configuration");
        };
        write(
            "libvirtd.conf",
            format!(
                "unix_sock_group = \"root\"\nunix_sock_rw_perms = \"0700\"\n\
                 auth_unix_rw = \"none\"\nhost_uuid = \"{digit}\"\nlog_outputs = \"2:stderr\"\n",
                digit = "11111111-1111-4111-8111-111111111111".replace('1', &number.to_string())
            ),
        );
        write(
            "qemu.conf",
            format!(
                "user = \"{user}\"\ngroup = \"{user}\"\nsecurity_driver = \"none\"\n\
                 dynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\n\
                 cgroup_controllers = []\nstdio_handler = \"file\"\n"
            ),
        );
        let name = format!("libvirtd {number}");
        let namespace = bed.wire.name().to_owned();
        let process = Self::launch(&name, &namespace, &root, qemu);
        Self { name, namespace, root, qemu, process }
    }

    fn launch(name: &str, namespace: &str, root: &Path, qemu: Qemu) -> Process {
        let mounts: String = DIRECTORIES
            .iter()
            .map(|(own, place)| {
                let own = root.join(own);
                format!("mkdir -p {place} && mount --bind {} {place} && ", own.display())
            })
            .collect();
        let script =
            format!("{mounts}{}exec libvirtd --pid-file {}/pid", qemu.hiding(root), root.display());
        let words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", &script];
        let command_line: Vec<String> = words.into_iter().map(str::to_owned).collect();
        let mut process = Process::start(name, namespace, &command_line, &root.join("out"));
        wait_for("libvirtd answers", 60, || {
            if let Some(status) = process.ended() {
                panic!("{name} ended with {status}");
            }
            run_to_end(&mut Self::command(root, &["version"])).status.success()
        });
        process
    }

    fn uri_of(root: &Path) -> String {
        format!("qemu+unix:///system?socket={}/run/libvirt-sock", root.display())
    }

    fn command(root: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.args(["--quiet", "--connect", &Self::uri_of(root)]).args(arguments);
        command
    }

    /// Where other hosts find it.
    pub fn uri(&self) -> String {
        Self::uri_of(&self.root)
    }

    /// The directory of the hooks of the one with this number.
    pub fn hooks(bed: &Bed, number: u8) -> PathBuf {
        bed.path(&format!("libvirt{number}/etc/hooks"))
    }

    /// One of its directories, `lib` say, which it knows as `/var/lib/libvirt`.
    pub fn directory(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// The output of virsh with these arguments, which must succeed.
    pub fn virsh(&self, arguments: &[&str]) -> String {
        let finished = self.try_virsh(arguments);
        assert!(finished.status.success(), "virsh {arguments:?}: {finished:?}");
        finished.output
    }

    /// virsh with these arguments.
    pub fn try_virsh(&self, arguments: &[&str]) -> Finished {
        run_to_end(&mut Self::command(&self.root, arguments))
    }

    /// The error of virsh when it is refused; panics if it succeeds.
    pub fn refusal(&self, arguments: &[&str]) -> String {
        let finished = self.try_virsh(arguments);
        assert!(!finished.status.success(), "virsh {arguments:?}: {finished:?}");
        finished.errors
    }

    /// "running", "shut off" …
    pub fn state(&self, domain: &str) -> String {
        self.virsh(&["domstate", domain]).trim().to_owned()
    }

    /// Ends it and starts it again; its guests run on.
    pub fn restart(&mut self) {
        self.process.terminate();
        self.process = Self::launch(&self.name, &self.namespace, &self.root, self.qemu);
    }
}

impl Drop for Libvirtd {
    fn drop(&mut self) {
        self.process.kill();
        end_guests(&self.root);
        if std::thread::panicking() {
            for log in fs::read_dir(self.root.join("log/qemu")).into_iter().flatten().flatten() {
                let text = fs::read_to_string(log.path()).unwrap_or_default();
                eprintln!("--- {} ---\n{text}", log.path().display());
            }
        }
    }
}

/// Kills the QEMUs that the libvirtd below this directory has started, which outlive it.
pub fn end_guests(root: &Path) {
    for file in fs::read_dir(root.join("run/qemu")).into_iter().flatten().flatten() {
        let path = file.path();
        if path.extension().is_none_or(|extension| extension != "pid") {
            continue;
        }
        let Ok(process) = fs::read_to_string(&path) else { continue };
        let command_line = fs::read(format!("/proc/{}/cmdline", process.trim()));
        let command_line = command_line.unwrap_or_default();
        // Another process may have the number by now. The arguments of ours name libvirt's
        // directories, and files of the bed.
        let bed = root.parent().unwrap_or(root).display().to_string();
        if String::from_utf8_lossy(&command_line).contains(&bed) {
            let _ = Command::new("kill").args(["-KILL", process.trim()]).status();
        }
    }
}

/// Lets QEMU's user into a directory, and write there.
pub fn open_to(directory: &Path, user: &str) {
    let text = run(Command::new("id").args(["--user", user]));
    let number = text.trim().parse().expect("a user's number");
    chown(directory, Some(number), None).expect("chown");
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("permissions");
}
