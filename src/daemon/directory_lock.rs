//! One daemon for each state directory and each runtime directory. Two daemons would overwrite each
//! other's state, and take each other's notes for those of a crashed daemon.
//!
//! The lock is an flock(2) on a file in the directory, which only our user can open. It is released
//! with its descriptor. A successor gets the descriptor from its predecessor, and both hold the
//! lock until the predecessor has ended.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

/// How long to wait for the lock while the other process ends.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How often it is tried again.
const RETRY: Duration = Duration::from_millis(20);

/// A directory of the configuration that only one daemon uses at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockedDirectory {
    /// `state_dir`.
    State,
    /// `runtime_dir`.
    Runtime,
}

impl LockedDirectory {
    fn setting(self) -> &'static str {
        match self {
            Self::State => "state_dir",
            Self::Runtime => "runtime_dir",
        }
    }

    /// The file that is locked. Each has its own: both settings may name one directory.
    fn file(self) -> &'static str {
        match self {
            Self::State => "lock",
            Self::Runtime => "runtime.lock",
        }
    }
}

/// Another daemon has the directory.
#[derive(Debug, thiserror::Error)]
#[error(
    "{setting} {} is in use by another isonic{}; stop that one, or give each a {setting} of its \
     own",
    directory.display(),
    holder.map(|id| format!(" (process {id})")).unwrap_or_default(),
    setting = kind.setting()
)]
pub struct LockError {
    kind: LockedDirectory,
    directory: PathBuf,
    /// Its process, if we can see that.
    holder: Option<u32>,
}

/// The lock of a directory; where it cannot be taken, the daemon runs without.
#[derive(Debug)]
pub struct DirectoryLock {
    kind: LockedDirectory,
    directory: PathBuf,
    held: Mutex<Option<OwnedFd>>,
}

impl DirectoryLock {
    /// Lock `directory`, or share the lock of a process that hands it over. Where it cannot be
    /// locked (its file system is read-only, say) the second answer is why.
    ///
    /// # Errors
    /// [`LockError`].
    pub fn take(
        kind: LockedDirectory,
        directory: &Path,
        inherited: Option<OwnedFd>,
    ) -> Result<(Self, Option<String>), LockError> {
        let lock = Self { kind, directory: directory.to_owned(), held: Mutex::default() };
        if let Some(inherited) = inherited.filter(|inherited| is_at(inherited, &lock.path())) {
            *lock.held() = Some(inherited);
            return Ok((lock, None));
        }
        let taken = lock.within(WAIT_MAX)?;
        let reason = taken.map(|taken| *lock.held() = Some(taken)).err();
        Ok((lock, reason))
    }

    /// Lock it if it is not locked, or again if the directory was removed under us: another daemon
    /// that starts now would find no lock. Where it cannot be locked the answer is why.
    ///
    /// # Errors
    /// [`LockError`]: another daemon has it.
    pub fn keep(&self) -> Result<Option<String>, LockError> {
        let mut held = self.held();
        if held.as_ref().is_some_and(|lock| is_at(lock, &self.path())) {
            return Ok(None);
        }
        match self.within(Duration::ZERO)? {
            Ok(lock) => {
                let (setting, directory) = (self.kind.setting(), self.directory.display());
                tracing::warn!(setting, %directory, "the directory had no lock, and is locked now");
                *held = Some(lock);
                Ok(None)
            }
            Err(reason) => Ok(Some(reason)),
        }
    }

    /// Whether it was locked, here or by the predecessor.
    pub fn is_held(&self) -> bool {
        self.held().is_some()
    }

    /// The lock, for the process that takes over.
    pub fn share(&self) -> Option<OwnedFd> {
        self.held().as_ref()?.try_clone().ok()
    }

    fn held(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self) -> PathBuf {
        self.directory.join(self.kind.file())
    }

    fn within(&self, wait: Duration) -> Result<Result<OwnedFd, String>, LockError> {
        let why = |error: io::Error| {
            let (setting, directory) = (self.kind.setting(), self.directory.display());
            format!("cannot lock {setting} {directory} against a second daemon: {error}")
        };
        let made = fs::create_dir_all(&self.directory).and_then(|()| open(&self.path()));
        let file = match made {
            Ok(file) => file,
            Err(error) => return Ok(Err(why(error))),
        };
        let deadline = Instant::now() + wait;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(Ok(file.into())),
                Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(RETRY),
                Err(Errno::WOULDBLOCK) => return Err(self.in_use(&file)),
                Err(error) => return Ok(Err(why(error.into()))),
            }
        }
    }

    fn in_use(&self, file: &File) -> LockError {
        let lock = file.metadata().ok();
        let holder = lock.and_then(|lock| holder(&identity(&lock), self.kind.file()));
        LockError { kind: self.kind, directory: self.directory.clone(), holder }
    }
}

/// For reading: a file that is open for writing would keep its file system from being made
/// read-only. A lock needs no more than reading.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let open = |flags| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map(File::from);
    // Where no file can be made there may be one already.
    Ok(open(flags | OFlags::CREATE).or_else(|_| open(flags))?)
}

fn identity(found: &Metadata) -> (u64, u64) {
    (found.dev(), found.ino())
}

fn is_at(lock: &OwnedFd, path: &Path) -> bool {
    let ours = lock.try_clone().map(File::from).and_then(|file| file.metadata());
    let there = fs::symlink_metadata(path);
    matches!((ours, there), (Ok(ours), Ok(there)) if identity(&ours) == identity(&there))
}

/// The first process other than ours that has this file open, among those that we may look at.
/// Descriptors of another name are not looked into: some file systems do not answer in time.
fn holder(file: &(u64, u64), name: &str) -> Option<u32> {
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let has_it = |descriptor: fs::DirEntry| {
        let path = descriptor.path();
        fs::read_link(&path).is_ok_and(|target| target.file_name() == Some(name.as_ref()))
            && fs::metadata(&path).is_ok_and(|found| identity(&found) == *file)
    };
    ids.filter(|&id: &u32| id != std::process::id()).find(|id| {
        let descriptors = fs::read_dir(format!("/proc/{id}/fd")).into_iter().flatten().flatten();
        descriptors.into_iter().any(has_it)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(kind: LockedDirectory, directory: &Path) -> (DirectoryLock, Option<String>) {
        DirectoryLock::take(kind, directory, None).unwrap()
    }

    #[test]
    fn a_directory_is_one_daemons_and_each_setting_has_a_lock_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        let (state, _) = take(LockedDirectory::State, &path);
        let (runtime, _) = take(LockedDirectory::Runtime, &path);
        assert!(state.is_held() && runtime.is_held());
        let refused = DirectoryLock::take(LockedDirectory::Runtime, &path, None).unwrap_err();
        let told = format!("runtime_dir {} is in use by another isonic", path.display());
        assert!(refused.to_string().starts_with(&told), "{refused}");
        let inherited = runtime.share();
        let (next, _) = DirectoryLock::take(LockedDirectory::Runtime, &path, inherited).unwrap();
        drop(runtime);
        assert!(DirectoryLock::take(LockedDirectory::Runtime, &path, None).is_err());
        drop(next);
        assert!(take(LockedDirectory::Runtime, &path).0.is_held());
    }

    #[test]
    fn a_lock_of_another_directory_is_not_inherited() {
        let directory = tempfile::tempdir().unwrap();
        let [old, new] = ["old", "new"].map(|name| directory.path().join(name));
        let (before, _) = take(LockedDirectory::Runtime, &old);
        let (after, _) =
            DirectoryLock::take(LockedDirectory::Runtime, &new, before.share()).unwrap();
        assert!(after.is_held() && new.join("runtime.lock").exists());
        assert!(DirectoryLock::take(LockedDirectory::Runtime, &old, None).is_err());
    }

    #[test]
    fn what_cannot_be_locked_is_locked_when_it_can_be() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run");
        fs::write(&path, "in the way").unwrap();
        let (lock, reason) = take(LockedDirectory::Runtime, &path);
        assert!(reason.is_some_and(|reason| reason.contains("cannot lock runtime_dir")));
        assert!(!lock.is_held() && lock.keep().unwrap().is_some());
        fs::remove_file(&path).unwrap();
        assert_eq!(lock.keep().unwrap(), None);
        fs::remove_dir_all(&path).unwrap();
        assert_eq!(lock.keep().unwrap(), None, "it was removed, and is there again");
        assert!(DirectoryLock::take(LockedDirectory::Runtime, &path, None).is_err());
    }
}
