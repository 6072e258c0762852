//! Commands in a guest, over a port of its virtio console (`scripts/guest/guest-agent`): they need
//! no network.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use super::wait_for;

/// How long a command may be silent; on a quiet machine none is for longer than some seconds.
const COMMAND_SECONDS: u64 = 180;

/// A command channel.
#[derive(Debug)]
pub struct Agent {
    stream: UnixStream,
    commands: u32,
}

impl Agent {
    /// Connects to QEMU's end, when it is there.
    pub fn connect(path: &Path) -> Self {
        let mut channel = None;
        // The socket is there before QEMU listens on it.
        wait_for("QEMU makes the command channel", 20, || {
            channel = UnixStream::connect(path).ok();
            channel.is_some()
        });
        let stream = channel.expect("command channel");
        stream.set_read_timeout(Some(Duration::from_secs(COMMAND_SECONDS))).expect("timeout");
        Self { stream, commands: 0 }
    }

    /// Runs a command in the guest's shell: its output, and its exit status.
    pub fn run(&mut self, command: &str) -> (String, i32) {
        self.try_run(command).unwrap_or_else(|error| panic!("{command:?} in the guest: {error}"))
    }

    /// Runs a command: its output and exit status, if the guest answers.
    pub fn try_run(&mut self, command: &str) -> io::Result<(String, i32)> {
        self.commands += 1;
        let line = format!("RUN {} {command}\n", self.commands);
        self.stream.write_all(line.as_bytes())?;
        let mark = format!("\nDONE {} ", self.commands);
        let mut answer = String::new();
        loop {
            if let Some((output, status)) = answer.split_once(&mark)
                && let Some(status) = status.strip_suffix('\n')
            {
                return Ok((output.to_owned(), status.parse().expect("exit status")));
            }
            answer.push_str(&self.receive()?);
        }
    }

    /// The bytes that have come.
    fn receive(&mut self) -> io::Result<String> {
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => Err(io::Error::other("QEMU hung up")),
            Ok(length) => Ok(String::from_utf8_lossy(&buffer[..length]).into_owned()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(io::Error::other(format!("no answer in {COMMAND_SECONDS} s")))
            }
            Err(error) => Err(error),
        }
    }

    /// Runs a command that must succeed.
    pub fn check(&mut self, command: &str) -> String {
        let (output, status) = self.run(command);
        assert_eq!(status, 0, "{command:?} in the guest: {output}");
        output
    }

    /// The guest's view of its interface (`scripts/guest/guest-facts`).
    pub fn facts(&mut self) -> BTreeMap<String, String> {
        let facts = self.check("guest-facts");
        let pairs = facts.lines().filter_map(|line| line.split_once('='));
        pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }
}
