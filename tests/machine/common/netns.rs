//! Network namespaces, named after the test process so that a later run finds those of a killed
//! one.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fd::AsFd;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::process::run;

/// The prefix of the names of namespaces and directories; the process id follows.
pub const PREFIX: &str = "isonic-test-";

/// A network namespace without IPv6, whose own chatter would spoil the counts; removed on drop.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// A new one. `role` is the last part of its name.
    pub fn new(role: &str) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{role}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]));
        let namespace = Self { name };
        namespace.run(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]);
        namespace.run(&["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"]);
        namespace.run(&["ip", "link", "set", "lo", "up"]);
        namespace
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that will run inside.
    pub fn command(&self, command_line: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).args(command_line);
        command
    }

    /// Runs a command inside; panics unless it succeeds.
    pub fn run(&self, command_line: &[&str]) -> String {
        run(&mut self.command(command_line))
    }

    /// Runs a closure on a thread that is inside: for sockets of our own.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("namespace file");
        let body = move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("entering the namespace");
            inside()
        };
        std::thread::scope(|scope| match scope.spawn(body).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Removes the namespaces of test processes that are no more.
    pub fn sweep() {
        for name in left_in(Path::new("/run/netns")) {
            run(Command::new("ip").args(["netns", "delete", &name]));
        }
    }
}

/// The names in a directory that begin as ours do, with the id of a process that is no more.
pub fn left_in(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_left = |name: &String| {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        process.is_some_and(|id| !fs::exists(format!("/proc/{id}")).unwrap_or(true))
    };
    names.filter(is_left).collect()
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}
