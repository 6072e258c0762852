//! The service manager: it is told the state of the service, and keeps descriptors for the next
//! process (sd_notify(3), "FDSTORE=1").
//!
//! It keeps one descriptor: the end of a socket pair that has both documents in it, with all the
//! descriptors they name. We need not know whether the service is stopped or restarted. If it is
//! stopped, the manager closes what it keeps, and front-ends then see their connections end.

use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::platform::unix_socket::{Inherited, inherited};

/// The name under which the descriptor is kept.
const NAME: &str = "isonic";
/// How long the manager may take to receive it.
const BARRIER_WAIT_MAX: Duration = Duration::from_secs(5);

/// Whether there is a manager that keeps descriptors. systemd sets both variables since version
/// 254; for older versions `packaging/isonic.service` sets the second.
pub(super) fn keeps() -> bool {
    let kept = std::env::var("FDSTORE").ok().and_then(|most| most.parse::<u32>().ok());
    std::env::var_os("NOTIFY_SOCKET").is_some() && kept.is_some_and(|most| most > 0)
}

/// Tell the manager our state, if there is one.
pub fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager does not hear us");
    }
}

/// Have `end` kept. Returns when the manager has it: it ignores messages of a process that has
/// ended.
pub(super) fn keep(end: &OwnedFd) -> io::Result<()> {
    let name = NotifyState::FdName(NAME);
    // Without FDPOLL=0 it would be dropped at once: the other end of the pair is closed soon.
    let state = [NotifyState::FdStore, name, NotifyState::Custom("FDPOLL=0")];
    sd_notify::notify_with_fds(&state, &[end.as_fd()])?;
    let (mut ours, theirs) = UnixStream::pair()?;
    sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()])?;
    drop(theirs);
    ours.set_read_timeout(Some(BARRIER_WAIT_MAX))?;
    // The manager closes the other end, and sends nothing.
    ours.read(&mut [0]).map(drop)
}

/// The channel that was kept for this process; the manager then drops it.
pub(super) fn kept() -> Option<UnixStream> {
    let mut given = sd_notify::listen_fds_with_names().ok()?;
    let (number, _) = given.find(|(_, name)| name == NAME)?;
    // It is read only once, whatever the result.
    notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(NAME)]);
    match inherited(number) {
        Ok(Inherited::Stream(end)) => Some(end),
        Ok(Inherited::Listener(_)) | Err(_) => None,
    }
}
