//! The service manager's part: it is told how far we are, and keeps for the next process what this
//! one leaves (sd_notify(3), "FDSTORE=1").
//!
//! It keeps one descriptor: the end of a socket pair that has both documents in it, with all the
//! descriptors they name. Nothing is said to it of whether the service is stopped or restarted; if
//! it is stopped, the manager closes what it keeps, and front-ends see the end of their connections
//! then.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::platform::unix_socket::{Inherited, inherited};

/// Under which it is kept.
const NAME: &str = "isonic";
/// How long the manager may take to have it.
const BARRIER_WAIT_MAX: Duration = Duration::from_secs(5);

/// Whether there is a manager that keeps descriptors: systemd sets both variables since version
/// 254, and `packaging/isonic.service` the second for those before.
pub(super) fn keeps() -> bool {
    let kept = std::env::var("FDSTORE").ok().and_then(|most| most.parse::<u32>().ok());
    std::env::var_os("NOTIFY_SOCKET").is_some() && kept.is_some_and(|most| most > 0)
}

/// Say how far we are, if anybody wants to know.
pub fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager does not hear us");
    }
}

/// Have it kept. Returns when the manager has it: it does not look for what a process has sent that
/// is gone.
pub(super) fn keep(end: &OwnedFd) -> io::Result<()> {
    let name = NotifyState::FdName(NAME);
    // Or it would be dropped at once: the other end of the pair is closed soon.
    let state = [NotifyState::FdStore, name, NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[end.as_fd()])?;
    let (mut ours, theirs) = UnixStream::pair()?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    ours.set_read_timeout(Some(BARRIER_WAIT_MAX))?;
    // The manager closes the other end, and sends nothing.
    ours.read(&mut [0]).map(drop)
}

/// What was kept for this process, which is kept no more.
pub(super) fn kept() -> Option<UnixStream> {
    let mut given = sd_notify::listen_fds_with_names().ok()?;
    let (number, _) = given.find(|(_, name)| name == NAME)?;
    // It is read from once, whatever becomes of it.
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)]);
    match inherited(number) {
        Ok(Inherited::Stream(end)) => Some(end),
        Ok(Inherited::Listener(_)) | Err(_) => None,
    }
}
