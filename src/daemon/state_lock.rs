//! One daemon for each state directory: two would each write what the other does not know.
//!
//! The lock is an flock(2) on a file `lock` in it, which only our user can open. It goes with its
//! descriptor: a successor gets it from its predecessor, and both hold it until the first has
//! ended.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

/// How long a process that is ending may still have it.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How often it is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// Another daemon has the directory.
#[derive(Debug, thiserror::Error)]
#[error(
    "state_dir {} is in use by another isonic; stop that one, or give each a state_dir of its own",
    directory.display()
)]
pub struct LockError {
    directory: PathBuf,
}

/// A locked directory.
#[derive(Debug)]
pub struct StateLock(OwnedFd);

impl StateLock {
    /// Lock `directory`, or share the lock of a process that leaves it to us. Where it cannot be
    /// locked (its file system is read-only, say) the answer is why.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(
        directory: &Path,
        inherited: Option<OwnedFd>,
    ) -> Result<Result<Self, String>, LockError> {
        let path = directory.join("lock");
        if let Some(inherited) = inherited.filter(|inherited| is_at(inherited, &path)) {
            return Ok(Ok(Self(inherited)));
        }
        Self::within(WAIT_MAX, directory)
    }

    /// Lock it again at once: what was locked is not there any more.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take_again(directory: &Path) -> Result<Result<Self, String>, LockError> {
        Self::within(Duration::ZERO, directory)
    }

    fn within(wait: Duration, directory: &Path) -> Result<Result<Self, String>, LockError> {
        let path = directory.join("lock");
        let why = |error: io::Error| {
            let directory = directory.display();
            format!("cannot lock {directory} against a second daemon: {error}")
        };
        let file = match open(&path) {
            Ok(file) => file,
            Err(error) => return Ok(Err(why(error))),
        };
        let deadline = Instant::now() + wait;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Ok(Self(file.into()))),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(Errno::WOULDBLOCK) => {
                    return Err(LockError { directory: directory.to_owned() });
                }
                Err(error) => return Ok(Err(why(error.into()))),
            }
        }
    }

    /// Whether its file is still there for others to find.
    pub fn is_in_place(&self, directory: &Path) -> bool {
        is_at(&self.0, &directory.join("lock"))
    }

    /// It goes with this.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// For reading: a file that is open for writing would keep its file system from being made
/// read-only, and a lock takes no more.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let open = |flags| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from);
    // Where none can be made there may be one.
    Ok(open(flags | OFlags::CREATE).or_else(|_| open(flags))?)
}

fn is_at(lock: &OwnedFd, path: &Path) -> bool {
    let identity = |found: Metadata| (found.dev(), found.ino());
    let ours = lock.try_clone().map(File::from).and_then(|file| file.metadata());
    let there = std::fs::symlink_metadata(path);
    matches!((ours.map(identity), there.map(identity)), (Ok(ours), Ok(there)) if ours == there)
}
