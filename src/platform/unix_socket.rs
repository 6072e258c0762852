//! Sockets with a name in the file system: how a process takes the name and gives it back.
//!
//! A socket file outlives the process that made it. So a name that is taken may belong to a live
//! process or to a dead one. [`claim`] tells them apart by connecting. It refuses the name of a
//! live process, takes over that of a dead one, and leaves anything that is no socket alone.
//!
//! The [`SocketFile`] removes the name again, unless another process has taken it since.
//!
//! A process that is not the owner yet makes its sockets [`unnamed`], and gives them their names
//! ([`name`]) when it becomes the owner. So it leaves nothing if it never does.
//!
//! Used for the API and for every port. It accepts no connections itself.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, FlockOperation, Mode, flock};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 64;
/// Permissions of a socket file until others are set: its owner's only.
const OWNER_ONLY: u32 = 0o600;

/// How long another process of our user may hold the lock of a name.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(2);
/// Time between two attempts.
const LOCK_RETRY: Duration = Duration::from_millis(5);

/// Why a socket's name could not be taken.
#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    /// A process listens on it.
    #[error(
        "socket {} is in use by a running process; stop that process or choose another path",
        .0.display()
    )]
    Live(PathBuf),
    /// Another kind of file has the path, and is not ours to remove.
    #[error("{} exists and is no socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The directory is not there.
    #[error("socket {}: its directory does not exist; create it first", .0.display())]
    NoDirectory(PathBuf),
    /// We may not write to the directory: systemd's ProtectSystem, most likely.
    #[error(
        "socket {}: its directory is read-only here; in a systemd unit, ReadWritePaths= names what \
         can be written",
        .0.display()
    )]
    ReadOnly(PathBuf),
    /// The operating system refused.
    #[error("cannot create socket {}", path.display())]
    System {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A listening socket and its name.
#[derive(Debug)]
pub struct Claimed {
    /// Listening, blocking, its file open to the owner only.
    pub listener: UnixListener,
    /// Removes the name when dropped.
    pub file: SocketFile,
}

/// The name of a socket of ours; removed when this is dropped, if it is still ours.
#[derive(Debug)]
pub struct SocketFile(NamedFile);

/// A name, and the file that had it when it was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedFile {
    path: PathBuf,
    identity: FileIdentity,
}

/// Device and inode of a socket's file.
pub type FileIdentity = (u64, u64);

/// Listen on `path`.
///
/// # Errors
/// [`ClaimError`]; nothing was changed then.
pub fn claim(path: &Path) -> Result<Claimed, ClaimError> {
    let listener = new_listener(path)?;
    let file = name(listener.as_fd(), path)?;
    Ok(Claimed { listener, file })
}

/// A socket that is to listen on `path` once it has that [`name`]. The name is available, as far as
/// a check without changes can tell.
///
/// # Errors
/// [`ClaimError`].
pub fn unnamed(path: &Path) -> Result<UnixListener, ClaimError> {
    is_taken(path)?;
    let directory = path.parent().unwrap_or(path);
    if !directory.is_dir() {
        return Err(ClaimError::NoDirectory(path.to_owned()));
    }
    match rustix::fs::access(directory, Access::WRITE_OK) {
        Err(Errno::ROFS) => Err(ClaimError::ReadOnly(path.to_owned())),
        _ => new_listener(path),
    }
}

/// Give a socket its name, and have it listen.
///
/// # Errors
/// [`ClaimError`]; nothing was changed then.
pub fn name(socket: BorrowedFd<'_>, path: &Path) -> Result<SocketFile, ClaimError> {
    let system = |source| ClaimError::System { path: path.to_owned(), source };
    // If two processes both see a dead socket, the second must not remove the first's new one. So
    // the name is locked while we look and act.
    let _lock = NameLock::take(path);
    if is_taken(path)? {
        std::fs::remove_file(path).map_err(system)?;
    }
    listen(socket, path).map_err(|errno| match errno {
        Errno::ROFS => ClaimError::ReadOnly(path.to_owned()),
        Errno::NOENT | Errno::NOTDIR => ClaimError::NoDirectory(path.to_owned()),
        _ => system(errno.into()),
    })?;
    SocketFile::inherit(path).map_err(system)
}

/// Whether a dead socket has the name.
///
/// # Errors
/// [`ClaimError`]: something else has it.
fn is_taken(path: &Path) -> Result<bool, ClaimError> {
    let system = |source| ClaimError::System { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if is_missing(&error) => Ok(false),
        Err(error) => Err(system(error)),
        Ok(found) if !found.file_type().is_socket() => Err(ClaimError::NotASocket(path.to_owned())),
        Ok(_) if is_live(path).map_err(system)? => Err(ClaimError::Live(path.to_owned())),
        Ok(_) => Ok(true),
    }
}

/// Whether the name, or a directory before it, is missing.
fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// A file `PATH.lock` beside a socket, locked and removed again.
///
/// Only our own user can open it. A lock on the directory itself could be taken by anyone who may
/// read the directory.
///
/// There is no lock where the file cannot be had: a read-only or full file system, another user's
/// file, a lock that is never released. Two processes rarely take over the same dead socket in the
/// same instant, and a missing port would be worse.
struct NameLock(PathBuf, File);

impl NameLock {
    fn take(socket: &Path) -> Option<Self> {
        let mut name = socket.file_name()?.to_owned();
        name.push(".lock");
        let path = socket.with_file_name(name);
        let deadline = Instant::now() + LOCK_WAIT_MAX;
        loop {
            let file = open_own(&path)?;
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                // The former holder has removed its file: the locked file must be the present one.
                Ok(()) if is_at(&file, &path) => return Some(Self(path, file)),
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => std::thread::sleep(LOCK_RETRY),
                Err(_) => return None,
            }
            if Instant::now() >= deadline {
                return None;
            }
        }
    }
}

impl Drop for NameLock {
    fn drop(&mut self) {
        if is_at(&self.1, &self.0) {
            // Removed before it is unlocked, so that nobody locks a file that is about to vanish.
            // The next process uses a file that stays.
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// The file at `path`, made if missing, if it is our user's and no other user may open it.
fn open_own(path: &Path) -> Option<File> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let mut options = File::options();
    options.read(true).write(true).create(true).mode(OWNER_ONLY).custom_flags(flags);
    let file = options.open(path).ok()?;
    let ours = |found: &Metadata| {
        let owner = rustix::process::geteuid().as_raw();
        found.is_file() && found.uid() == owner && found.mode() & 0o077 == 0
    };
    file.metadata().is_ok_and(|found| ours(&found)).then_some(file)
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |found: Metadata| (found.dev(), found.ino());
    let there = std::fs::symlink_metadata(path).map(identity);
    matches!((file.metadata().map(identity), there), (Ok(ours), Ok(there)) if ours == there)
}

/// Whether a process listens. Only a refused connection proves that none does; one that would have
/// to wait (EAGAIN: a full backlog) proves that one does.
fn is_live(path: &Path) -> io::Result<bool> {
    let socket = new_socket(SocketFlags::NONBLOCK)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Err(Errno::CONNREFUSED) => Ok(false),
        Ok(()) | Err(Errno::AGAIN) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

fn new_socket(flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

/// A socket without a name that does not listen yet. `path` is its later name.
fn new_listener(path: &Path) -> Result<UnixListener, ClaimError> {
    let new = || {
        SocketAddrUnix::new(path)?;
        new_socket(SocketFlags::empty()).map(UnixListener::from)
    };
    new().map_err(|errno| ClaimError::System { path: path.to_owned(), source: errno.into() })
}

fn listen(socket: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<()> {
    // The file gets the socket's own mode. So it is never open to others, not even between bind and
    // a later chmod (Linux, net/unix/af_unix.c, unix_bind_bsd).
    rustix::fs::fchmod(socket, Mode::from_raw_mode(OWNER_ONLY))?;
    rustix::net::bind(socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(socket, BACKLOG)
}

/// Why a socket file's owner or permissions could not be set.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// No such group.
    #[error("socket {}: there is no group \"{group}\" in /etc/group", path.display())]
    UnknownGroup {
        /// The socket.
        path: PathBuf,
        /// As asked for.
        group: String,
    },
    /// Only a member may give a file to a group.
    #[error(
        "socket {} cannot be given to the group \"{group}\": isonic's user is not a member of it; \
         make it one (SupplementaryGroups= in the unit), or choose another group",
        path.display()
    )]
    NotAMember {
        /// The socket.
        path: PathBuf,
        /// As asked for.
        group: String,
    },
    /// The operating system refused.
    #[error("cannot set the owner or permissions of socket {}", path.display())]
    System {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl NamedFile {
    /// Whether the name is still this file's: it was neither removed nor replaced.
    #[must_use]
    pub fn is_there(&self) -> bool {
        std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == self.identity)
    }
}

impl SocketFile {
    /// The path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The name of a listening socket that another process has claimed, and leaves to us.
    ///
    /// # Errors
    /// There is no such name.
    pub fn inherit(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::symlink_metadata(path)?;
        if !metadata.file_type().is_socket() {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(Self::left(path, (metadata.dev(), metadata.ino())))
    }

    /// The name, for a caller that manages it without the socket.
    #[must_use]
    pub fn named(&self) -> &NamedFile {
        &self.0
    }

    /// The name of such a socket, which is ours only if it is still this file.
    #[must_use]
    pub fn left(path: &Path, identity: FileIdentity) -> Self {
        Self(NamedFile { path: path.to_owned(), identity })
    }

    /// The file that has the name.
    #[must_use]
    pub fn identity(&self) -> FileIdentity {
        self.0.identity
    }

    /// Open the socket to a group (a name in `/etc/group`, or a number) and set its permission
    /// bits; None leaves either as it is.
    ///
    /// # Errors
    /// [`AccessError`].
    pub fn set_access(
        &self,
        group: Option<&str>,
        permissions: Option<u32>,
    ) -> Result<(), AccessError> {
        let system = |source| AccessError::System { path: self.0.path.clone(), source };
        if let Some(group) = group {
            let id = group_id(group).map_err(system)?.ok_or_else(|| AccessError::UnknownGroup {
                path: self.0.path.clone(),
                group: group.to_owned(),
            })?;
            chown(&self.0.path, None, Some(id)).map_err(|error| match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    AccessError::NotAMember { path: self.0.path.clone(), group: group.to_owned() }
                }
                _ => system(error),
            })?;
        }
        if let Some(bits) = permissions {
            let permissions = std::fs::Permissions::from_mode(bits);
            std::fs::set_permissions(&self.0.path, permissions).map_err(system)?;
        }
        Ok(())
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.0.is_there()
            && let Err(error) = std::fs::remove_file(&self.0.path)
        {
            tracing::warn!(path = %self.0.path.display(), %error, "socket file left behind");
        }
    }
}

/// The number of a group. Directory services are not asked: they may block, and a daemon that
/// starts before the network must not block.
fn group_id(group: &str) -> io::Result<Option<u32>> {
    if let Ok(id) = group.parse() {
        return Ok(Some(id));
    }
    let groups = std::fs::read_to_string("/etc/group")?;
    let id_of = |line: &str| {
        let mut fields = line.split(':');
        if fields.next() == Some(group) { fields.nth(1)?.parse().ok() } else { None }
    };
    Ok(groups.lines().find_map(id_of))
}

/// A socket that another process opened for us.
#[derive(Debug)]
pub enum Inherited {
    /// Front-ends connect to it.
    Listener(UnixListener),
    /// A front-end is connected already.
    Stream(UnixStream),
}

/// The descriptor is not what `--fd` needs.
#[derive(Debug, thiserror::Error)]
pub enum InheritError {
    /// It is not open.
    #[error("file descriptor {0} is not open; --fd takes a descriptor that the parent left open")]
    NotOpen(i32),
    /// It is something else.
    #[error("file descriptor {0} is no Unix stream socket, and --fd takes nothing else")]
    NotAUnixSocket(i32),
    /// The operating system refused.
    #[error("cannot use file descriptor {number}")]
    System {
        /// Which.
        number: i32,
        /// Why.
        source: io::Error,
    },
}

/// The socket at descriptor `number`, as a duplicate that is closed on exec. The original stays
/// open. So end a connection with shutdown(2), which reaches the other side even then.
///
/// # Errors
/// [`InheritError`].
pub fn inherited(number: i32) -> Result<Inherited, InheritError> {
    // BorrowedFd must not be -1, and other negative numbers are never open.
    if number < 0 {
        return Err(InheritError::NotOpen(number));
    }
    // SAFETY: number is not -1. The borrow ends within this statement, and the kernel checks the
    // number itself: if it is not open, the answer is EBADF.
    let copy = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned();
    let socket = copy.map_err(|source| match source.raw_os_error() {
        Some(errno) if errno == Errno::BADF.raw_os_error() => InheritError::NotOpen(number),
        _ => InheritError::System { number, source },
    })?;
    classify(socket, number)
}

fn classify(socket: OwnedFd, number: i32) -> Result<Inherited, InheritError> {
    use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
    let refused = |errno| match errno {
        Errno::NOTSOCK => InheritError::NotAUnixSocket(number),
        _ => InheritError::System { number, source: errno.into() },
    };
    let domain = socket_domain(socket.as_fd()).map_err(refused)?;
    if domain != AddressFamily::UNIX || socket_type(&socket).map_err(refused)? != SocketType::STREAM
    {
        return Err(InheritError::NotAUnixSocket(number));
    }
    if socket_acceptconn(&socket).map_err(refused)? {
        Ok(Inherited::Listener(socket.into()))
    } else {
        Ok(Inherited::Stream(socket.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_socket_is_made_for_its_owner_only_and_removed_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let claimed = claim(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, OWNER_ONLY);
        drop(claimed);
        assert!(!path.exists());
    }

    #[test]
    fn a_socket_without_a_name_touches_nothing_until_it_is_named_and_refuses_what_it_cannot_have() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = unnamed(&path).unwrap();
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let live = claim(&directory.path().join("live")).unwrap();
        assert!(matches!(unnamed(live.file.path()), Err(ClaimError::Live(_))));
        assert!(matches!(unnamed(&path.join("x")), Err(ClaimError::NoDirectory(_))));
        let file = name(socket.as_fd(), &path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(file);
        assert!(!path.exists());
    }

    #[test]
    fn a_name_that_was_left_is_removed_only_while_it_is_the_same_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let ours = UnixListener::bind(&path).unwrap();
        let found = std::fs::symlink_metadata(&path).unwrap();
        let identity = (found.dev(), found.ino());
        let moved = directory.path().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        let _theirs = UnixListener::bind(&path).unwrap();
        drop(SocketFile::left(&path, identity));
        assert!(path.exists(), "somebody else's");
        std::fs::rename(&moved, &path).unwrap();
        drop(SocketFile::left(&path, identity));
        assert!(!path.exists());
        drop(ours);
    }

    #[test]
    fn a_directory_that_cannot_be_written_is_told_with_the_way_out() {
        let told = ClaimError::ReadOnly("/run/x/s".into()).to_string();
        assert!(told.contains("/run/x/s") && told.contains("ReadWritePaths="), "{told}");
    }

    #[test]
    fn a_live_socket_is_refused_even_when_its_backlog_is_full() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(claim(&path), Err(ClaimError::Live(_))));

        let crowded = directory.path().join("crowded");
        let socket = new_socket(SocketFlags::empty()).unwrap();
        rustix::net::bind(&socket, &SocketAddrUnix::new(&crowded).unwrap()).unwrap();
        rustix::net::listen(&socket, 0).unwrap();
        let _waiting = UnixStream::connect(&crowded).unwrap();
        assert!(matches!(claim(&crowded), Err(ClaimError::Live(_))));
    }

    #[test]
    fn a_dead_socket_is_taken_over() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _claimed = claim(&path).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    /// A user who may read the directory, or who made the lock's file first, does not prevent a
    /// claim.
    #[test]
    fn no_lock_of_somebody_elses_stands_in_the_way() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let held = File::open(directory.path()).unwrap();
        flock(&held, FlockOperation::LockExclusive).unwrap();
        drop(claim(&path).unwrap());
        // Open to others, so others may have locked it.
        let lock = directory.path().join("s.lock");
        std::fs::write(&lock, "").unwrap();
        std::fs::set_permissions(&lock, std::fs::Permissions::from_mode(0o644)).unwrap();
        let theirs = File::open(&lock).unwrap();
        flock(&theirs, FlockOperation::LockExclusive).unwrap();
        drop(claim(&path).unwrap());
        assert!(lock.exists(), "it is not ours to remove");
        // A link or a pipe is not followed or waited for.
        std::fs::remove_file(&lock).unwrap();
        let mode = Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &lock, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        drop(claim(&path).unwrap());
    }

    #[test]
    fn of_many_who_take_over_a_dead_socket_one_has_it_and_no_lock_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        for _ in 0..50 {
            drop(UnixListener::bind(&path).unwrap());
            let racers: Vec<_> = (0..4)
                .map(|_| {
                    let path = path.clone();
                    std::thread::spawn(move || claim(&path))
                })
                .collect();
            let claims: Vec<_> = racers.into_iter().map(|racer| racer.join().unwrap()).collect();
            assert_eq!(claims.iter().filter(|claim| claim.is_ok()).count(), 1, "{claims:?}");
            UnixStream::connect(&path).unwrap();
            drop(claims);
            let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    #[test]
    fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(claim(&path), Err(ClaimError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn a_missing_directory_is_named_as_such() {
        let error = claim(Path::new("/nonexistent/dir/s")).unwrap_err();
        assert!(matches!(error, ClaimError::NoDirectory(_)), "{error}");
    }

    #[test]
    fn a_name_that_somebody_else_has_taken_since_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let claimed = claim(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let _other = UnixListener::bind(&path).unwrap();
        drop(claimed);
        assert!(path.exists());
    }

    #[test]
    fn access_is_widened_only_as_told() {
        let directory = tempfile::tempdir().unwrap();
        let claimed = claim(&directory.path().join("s")).unwrap();
        let own_group = std::fs::metadata(directory.path()).unwrap().gid().to_string();
        claimed.file.set_access(Some(&own_group), Some(0o660)).unwrap();
        let mode = std::fs::metadata(claimed.file.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660);
        let error = claimed.file.set_access(Some("no-such-group"), None).unwrap_err();
        assert!(matches!(error, AccessError::UnknownGroup { .. }));
        assert_eq!(group_id("root").unwrap(), Some(0));
    }

    #[test]
    fn an_inherited_descriptor_is_told_by_its_kind() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let (stream, _other) = UnixStream::pair().unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(matches!(inherited(listener.as_raw_fd()), Ok(Inherited::Listener(_))));
        assert!(matches!(inherited(stream.as_raw_fd()), Ok(Inherited::Stream(_))));
        let refused = inherited(file.as_raw_fd());
        assert!(matches!(refused, Err(InheritError::NotAUnixSocket(_))));
        assert!(matches!(inherited(-1), Err(InheritError::NotOpen(-1))));
        assert!(matches!(inherited(i32::MAX), Err(InheritError::NotOpen(_))));
    }
}
