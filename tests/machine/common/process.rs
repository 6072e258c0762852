//! Child processes that never outlive the test, with their output kept for the report.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use super::PATIENCE;

/// How long a command that should end by itself may take.
const COMMAND_SECONDS: u64 = 240;

/// The status and output of a command that ended.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub output: String,
    /// Its standard error.
    pub errors: String,
}

/// Runs a command to its end; panics unless it succeeds. Gives its standard output.
pub fn run(command: &mut Command) -> String {
    let finished = run_to_end(command);
    assert!(finished.status.success(), "{command:?}: {finished:?}");
    finished.output
}

/// Runs a command to its end, whatever that is. Killed, and a panic, after [`COMMAND_SECONDS`].
pub fn run_to_end(command: &mut Command) -> Finished {
    let directory = tempfile::tempdir().expect("temporary directory");
    let [output, errors] = ["output", "errors"].map(|name| directory.path().join(name));
    let child = command
        .stdin(Stdio::null())
        .stdout(File::create(&output).expect("output file"))
        .stderr(File::create(&errors).expect("errors file"))
        .spawn();
    let mut child = child.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let status = wait_bounded(&mut child, COMMAND_SECONDS);
    let [output, errors] = [output, errors].map(|path| text_of(&path));
    let status = status.unwrap_or_else(|| {
        panic!("{command:?} did not end in {COMMAND_SECONDS} s\n{output}\n{errors}")
    });
    Finished { status, output, errors }
}

/// Waits for the end of a child; kills it and gives `None` after `seconds`.
fn wait_bounded(child: &mut Child, seconds: u64) -> Option<ExitStatus> {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return Some(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn text_of(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// User and system time that a process has used so far, in clock ticks of 10 ms (proc(5), fields 14
/// and 15 of stat).
pub fn cpu_ticks(process: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("stat");
    let after_name = stat.rsplit(')').next().expect("fields");
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<u64>().expect("a number")).sum()
}

/// A process in the background; killed on drop. Its output goes to a file, which is printed if
/// the test panics.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// The one that has taken its place.
    successor: Option<Pid>,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `program` with `arguments` in the namespace; stdin is a pipe. `log` is appended to.
    pub fn start(name: &str, namespace: &str, command_line: &[String], log: &Path) -> Self {
        Self::start_with(name, namespace, command_line, log, Stdio::piped())
    }

    /// Starts `program` as [`Self::start`] does, with this standard input.
    pub fn start_with(
        name: &str,
        namespace: &str,
        command_line: &[String],
        log: &Path,
        stdin: Stdio,
    ) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("log file");
        // setpriv: if the test is killed, so is the child. Neither setpriv nor ip forks, so the
        // process id stays.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "ip", "netns", "exec", namespace])
            .args(command_line)
            .stdin(stdin)
            .stdout(file.try_clone().expect("log file"))
            .stderr(file)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name}: {error}"));
        Self { child, successor: None, name: name.to_owned(), log: log.to_owned() }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        match self.successor {
            Some(successor) => successor.as_raw_nonzero().get().try_into().expect("positive"),
            None => self.child.id(),
        }
    }

    /// Makes orphans of child processes ours, so that they can be waited for.
    pub fn adopt_orphans() {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("prctl");
    }

    /// Waits for its successful end; from now on, this is the process that took over.
    pub fn succeeded_by(&mut self, id: u32) {
        let status = self.wait(10);
        assert!(status.success(), "{} ended with {status}", self.name);
        self.successor = Pid::from_raw(id.try_into().expect("a process id"));
    }

    /// Leaves orphans to others again: an earlier test may have adopted them.
    pub fn leave_orphans() {
        rustix::process::set_child_subreaper(None).expect("prctl");
    }

    /// Its standard input.
    pub fn stdin(&mut self) -> &mut std::process::ChildStdin {
        self.child.stdin.as_mut().expect("stdin is a pipe")
    }

    /// All that it has written.
    pub fn log(&self) -> String {
        text_of(&self.log)
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        match self.successor {
            Some(successor) => {
                let ended = waitpid(Some(successor), WaitOptions::NOHANG).expect("wait");
                ended.map(|(_, status)| ExitStatus::from_raw(status.as_raw()))
            }
            None => self.child.try_wait().expect("wait"),
        }
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        if let Some(successor) = self.successor {
            let _ = kill_process(successor, Signal::KILL);
            let _ = waitpid(Some(successor), WaitOptions::empty());
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// SIGTERM, and waits for the end: 10 s on a quiet machine.
    pub fn terminate(&mut self) -> ExitStatus {
        run(Command::new("kill").arg(self.id().to_string()));
        self.wait(10)
    }

    /// Waits for the end: `seconds` on a quiet machine.
    pub fn wait(&mut self, seconds: u64) -> ExitStatus {
        let deadline = Instant::now() + Duration::from_secs(PATIENCE * seconds);
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            if Instant::now() >= deadline {
                self.kill();
                panic!("{} did not end in {} s", self.name, PATIENCE * seconds);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!("--- output of {} ---\n{}", self.name, self.log());
        }
    }
}
