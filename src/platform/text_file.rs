//! Files that people name: read whole if they are plausible, otherwise refused before they are
//! read.
//!
//! A wrong path may lead to a directory, a device without end, a pipe without a writer, or a disk
//! image. None of them is waited for or read into memory.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why a file's text cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A directory, device, pipe or socket.
    #[error("{} is no regular file", .0.display())]
    NoFile(PathBuf),
    /// Larger than any file of its kind is.
    #[error("{} has more than {limit} bytes, the most that a file of this kind may have",
        path.display())]
    TooLarge {
        /// Which.
        path: PathBuf,
        /// Bytes.
        limit: u64,
    },
    /// Not UTF-8.
    #[error("{} is no text in UTF-8; convert it first (iconv --to-code UTF-8)", path.display())]
    NoText {
        /// Which.
        path: PathBuf,
        /// The place of the first invalid bytes.
        #[source]
        source: std::string::FromUtf8Error,
    },
}

/// The text of the file at `path`, of at most `limit` bytes.
///
/// # Errors
/// [`FileError`].
pub fn read_text(path: &Path, limit: u64) -> Result<String, FileError> {
    let unreadable = |source| FileError::Unreadable { path: path.to_owned(), source };
    // Without O_NONBLOCK, opening a pipe waits for its writer.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let file = File::options().read(true).custom_flags(flags).open(path).map_err(unreadable)?;
    if !file.metadata().map_err(unreadable)?.is_file() {
        return Err(FileError::NoFile(path.to_owned()));
    }
    let mut bytes = Vec::new();
    // One byte more than allowed reveals a file that is too large, whatever size it claims to have.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > limit) {
        return Err(FileError::TooLarge { path: path.to_owned(), limit });
    }
    String::from_utf8(bytes).map_err(|source| FileError::NoText { path: path.to_owned(), source })
}

/// Replace the file at `path` by one with this content. At any time, even after a crash, a reader
/// finds the old or the new content whole.
///
/// # Errors
/// The file system's; the old content is then unchanged, and nothing of the new is left.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    // The file is of a killed process, or of another user: we must not write into it.
    let _ = std::fs::remove_file(&new);
    let written = write_new(&new, content).and_then(|()| std::fs::rename(&new, path));
    if let Err(error) = written {
        // On a full disk the part that was written takes room that others lack.
        let _ = std::fs::remove_file(&new);
        return Err(error);
    }
    // The rename itself is stored in the directory.
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_at_the_limit_is_read_and_one_beyond_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, "four").unwrap();
        assert_eq!(read_text(&path, 4).unwrap(), "four");
        assert!(matches!(read_text(&path, 3), Err(FileError::TooLarge { limit: 3, .. })));
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let pipe = directory.path().join("pipe");
        let mode = rustix::fs::Mode::RUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        for path in [directory.path(), &pipe, Path::new("/dev/zero")] {
            assert!(matches!(read_text(path, 9), Err(FileError::NoFile(_))), "{}", path.display());
        }
        assert!(matches!(read_text(Path::new("/no/such"), 9), Err(FileError::Unreadable { .. })));
    }

    #[test]
    fn a_file_that_cannot_be_replaced_is_as_it_was_and_what_was_left_half_written_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        let (path, new) = (directory.path().join("f"), directory.path().join("f.new"));
        replace(&path, b"old").unwrap();
        std::os::unix::fs::symlink("/dev/full", &new).unwrap();
        replace(&path, b"newer").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"newer");
        // A directory is in its place.
        std::fs::create_dir(&new).unwrap();
        replace(&path, b"lost").unwrap_err();
        assert_eq!(std::fs::read(&path).unwrap(), b"newer");
    }

    #[test]
    fn what_is_no_text_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(matches!(read_text(&path, 9), Err(FileError::NoText { .. })));
    }
}
