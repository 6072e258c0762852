//! The successor as its predecessor has it: a child, and a channel to it.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use crate::control::api::PortChange;
use crate::platform::log_queue;

use super::successor_answer::{PREDECESSOR_VARIABLE, Running, SuccessorAnswer};
use super::upgrade_channel::Channel;
use super::upgrade_document::Descriptors;
use super::upgrade_error::UpgradeError;

/// How long the successor may take to report its result.
const RUNNING_WAIT_MAX: Duration = Duration::from_secs(2);
/// How long a process that has closed its end of the channel may take to end.
const END_WAIT_MAX: Duration = Duration::from_millis(200);
/// How often to check whether it has ended.
const END_RETRY: Duration = Duration::from_millis(2);

/// A process that was started and has everything.
#[derive(Debug)]
pub struct CompletedUpgrade {
    /// Its number.
    pub pid: u32,
    /// Its report, if it sent one.
    pub running: Option<Running>,
    /// The changes that it has made.
    pub changes: Vec<PortChange>,
}

/// Whether the other end of a channel is closed.
fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether an error is a time-out. A socket reports EAGAIN.
fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock)
}

/// A process that is to take over; ended when dropped, unless it has everything.
pub(super) struct Successor {
    process: Child,
    channel: Channel,
    /// It has everything.
    pub taken: bool,
    ended: bool,
    /// The changes that it would make, or has made.
    pub changes: Vec<PortChange>,
}

impl Successor {
    /// Start it as this process was started, with its end of the channel as its standard input. It
    /// gets a process group of its own. If it is a script, processes that it has started have the
    /// channel too, and so the NICs' sockets and the locks.
    pub fn start(binary: &Path) -> Result<Self, UpgradeError> {
        let (channel, theirs) = Channel::pair().map_err(UpgradeError::Give)?;
        let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
        let process = Command::new(binary)
            .args(arguments)
            .env(PREDECESSOR_VARIABLE, "stdin")
            .stdin(Stdio::from(theirs))
            .process_group(0)
            .spawn()
            .map_err(|source| UpgradeError::Start { binary: binary.to_owned(), source })?;
        tracing::info!(binary = %binary.display(), pid = process.id(), "a new process is started");
        Ok(Self { process, channel, taken: false, ended: false, changes: Vec::new() })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Break the channel from another thread: a thread that waits on it gets an error.
    ///
    /// # Errors
    /// No descriptor to be had.
    pub fn breaker(&self) -> io::Result<impl FnOnce() + Send + 'static> {
        self.channel.breaker()
    }

    /// A broken pipe, or one that is reset because something was not read, means that it has ended.
    /// The next receive reports why.
    pub fn send(
        &self,
        message: &impl serde::Serialize,
        descriptors: &Descriptors,
        deadline: Instant,
    ) -> Result<(), UpgradeError> {
        match self.channel.send(message, descriptors, deadline) {
            Err(error) if is_end(&error) => Ok(()),
            outcome => outcome.map_err(UpgradeError::Give),
        }
    }

    /// Wait until everything possible is made. Returns the changes that it would make.
    pub fn ready(&mut self, deadline: Instant) -> Result<Vec<PortChange>, UpgradeError> {
        match self.answer("ready", deadline)? {
            SuccessorAnswer::Prepared { changes } => Ok(changes),
            SuccessorAnswer::Ready => {
                tracing::warn!("the new process is older and does not say what it would change");
                Ok(Vec::new())
            }
            _ => Err(UpgradeError::Foreign),
        }
    }

    /// Wait until it has everything.
    pub fn taken(&mut self, deadline: Instant) -> Result<(), UpgradeError> {
        match self.answer("taken", deadline)? {
            SuccessorAnswer::Taken => {
                self.taken = true;
                Ok(())
            }
            _ => Err(UpgradeError::Foreign),
        }
    }

    fn answer(
        &mut self,
        step: &'static str,
        deadline: Instant,
    ) -> Result<SuccessorAnswer, UpgradeError> {
        match self.channel.receive::<SuccessorAnswer>(Some(deadline)) {
            Ok((SuccessorAnswer::Refused { reason }, _)) => Err(UpgradeError::Refused(reason)),
            Ok((answer, _)) => Ok(answer),
            Err(source) => Err(match self.status().filter(|_| is_end(&source)) {
                Some(status) => UpgradeError::Ended { step, status },
                None => {
                    let source = Some(source).filter(|error| !is_time_out(error));
                    UpgradeError::Silent { step, source }
                }
            }),
        }
    }

    /// How it has ended. Its end of the channel closes a moment before the status is available.
    fn status(&self) -> Option<ExitStatus> {
        // It stays a zombie until `end`: until then its group's number cannot be another's.
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let deadline = Instant::now() + END_WAIT_MAX;
        loop {
            match waitid(WaitId::Pid(Pid::from_child(&self.process)), options) {
                Ok(Some(status)) => {
                    let code = status.exit_status().map(|code| code << 8);
                    return code.or(status.terminating_signal()).map(ExitStatus::from_raw);
                }
                Ok(None) if Instant::now() < deadline => std::thread::sleep(END_RETRY),
                _ => return None,
            }
        }
    }

    /// Kill it, and all processes that it has started. It must have taken nothing. If it has taken
    /// everything, but too late, nobody knows the state any more: then we end too, to be started
    /// again.
    pub fn end(&mut self) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // If this fails, it has ended already.
        let _ = kill_process_group(Pid::from_child(&self.process), Signal::KILL);
        let _ = self.process.wait();
        let now = Instant::now() + Duration::from_millis(1);
        let said = self.channel.receive::<SuccessorAnswer>(Some(now));
        if let Ok((SuccessorAnswer::Taken, _)) = said {
            tracing::error!("the new process went on too late and was ended: this one ends too");
            log_queue::exit(1);
        }
    }

    /// The completed upgrade, with its report if it sends one.
    pub fn completed(mut self) -> CompletedUpgrade {
        let deadline = Instant::now() + RUNNING_WAIT_MAX;
        let running = loop {
            match self.channel.receive(Some(deadline)) {
                Ok((SuccessorAnswer::Running(running), _)) => break Some(running),
                // The answer came too late for the wait, but the token was taken in time.
                Ok((SuccessorAnswer::Taken, _)) => {}
                _ => break None,
            }
        };
        if running.is_none() && matches!(self.process.try_wait(), Ok(Some(_))) {
            tracing::error!(
                "the new process has ended after it took everything: this one ends too"
            );
            log_queue::exit(1);
        }
        let changes = std::mem::take(&mut self.changes);
        CompletedUpgrade { pid: self.process.id(), running, changes }
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if !self.taken {
            self.end();
        }
    }
}
