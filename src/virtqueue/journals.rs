//! The file with the journals of all rings of one port.
//!
//! ```text
//! 0      magic, version and rings, owner                u64 each
//! 4096   a slot per ring
//! ```
//!
//! A file of another version, port or number of rings is neither read nor changed. A new one
//! replaces it, so that a process that still has it mapped keeps its data. All pages are allocated
//! from the start, so a file system that fills up later does no harm.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::FallocateFlags;
use sha2::{Digest, Sha256};
use vm_memory::FileOffset;
use vm_memory::mmap::{MmapRegion, MmapRegionError};

use super::journal::{Journal, JournalSlot};

/// "isonring" as it lies in the file.
const MAGIC: u64 = u64::from_le_bytes(*b"isonring");
/// Version of the slots' layout. A file of another version is not read.
const VERSION: u32 = 1;
/// Where the slots begin, bytes.
const SLOTS: usize = 4096;

/// Why a port's file cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file system refused.
    #[error(
        "cannot keep the ring positions of the port in {}; make room there, or choose another \
         runtime_dir",
        path.display()
    )]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It cannot be mapped.
    #[error("cannot map {}", path.display())]
    Map {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: MmapRegionError,
    },
}

/// The journals of a port's rings.
#[derive(Debug)]
pub struct Journals {
    mapping: Arc<MmapRegion>,
    rings: u16,
}

impl Journals {
    /// Map the file at `path`, for `rings` rings of the port. `owner` tells the port from all
    /// others on this host. Rings that begin find the state that was left in the file.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open(path: &Path, owner: &str, rings: u16) -> Result<Self, JournalError> {
        let (header, length) = (header(owner, rings), length(rings));
        let file = existing(path, &header, length)
            .and_then(|found| found.map_or_else(|| make(path, &header, length), Ok));
        Self::map(path, file, rings)
    }

    /// Map the file while another process owns the port: nothing changes at `path`. A replacement
    /// file is made as `aside`; the next owner [puts it in place](SetAside::put_back).
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn open_beside(
        path: &Path,
        aside: &Path,
        owner: &str,
        rings: u16,
    ) -> Result<(Self, Option<SetAside>), JournalError> {
        let (header, length) = (header(owner, rings), length(rings));
        if let Some(file) = existing(path, &header, length).transpose() {
            return Ok((Self::map(path, file, rings)?, None));
        }
        let journals = Self::map(aside, make(aside, &header, length), rings)?;
        let next = SetAside { place: path.to_owned(), aside: aside.to_owned() };
        Ok((journals, Some(next)))
    }

    /// Keep the journals in memory, where there is no room for a file, until this process ends.
    ///
    /// # Errors
    /// [`JournalError::Map`].
    pub fn in_memory(path: &Path, rings: u16) -> Result<Self, JournalError> {
        let mapping = MmapRegion::new(length(rings));
        let mapping =
            mapping.map_err(|source| JournalError::Map { path: path.to_owned(), source })?;
        Ok(Self { mapping: Arc::new(mapping), rings })
    }

    /// Write journals that are only in memory to a file at `path`, for the next process. No ring
    /// may run any more.
    ///
    /// # Errors
    /// [`JournalError`].
    pub fn settle(&self, path: &Path, owner: &str) -> Result<(), JournalError> {
        if self.mapping.file_offset().is_some() {
            return Ok(());
        }
        let made = make(path, &header(owner, self.rings), length(self.rings));
        made.and_then(|file| file.write_all_at(&self.slots(), SLOTS as u64))
            .map_err(|source| JournalError::File { path: path.to_owned(), source })
    }

    /// Whether the journals are in the file at `path`. They are not if that file was removed or
    /// replaced, or if there is no file.
    #[must_use]
    pub fn is_at(&self, path: &Path) -> bool {
        let Some(file) = self.mapping.file_offset() else { return false };
        let identity = |data: fs::Metadata| (data.dev(), data.ino());
        let own = file.file().metadata().map(identity);
        own.is_ok_and(|own| fs::symlink_metadata(path).map(identity).is_ok_and(|at| at == own))
    }

    /// The bytes of all slots.
    fn slots(&self) -> Vec<u8> {
        let words = (length(self.rings) - SLOTS) / size_of::<AtomicU64>();
        let first = self.mapping.as_ptr().wrapping_add(SLOTS).cast::<AtomicU64>();
        let word = |index: usize| {
            // SAFETY: inside the mapping, which is as long as all slots and starts at a page; a
            // slot is made of such words.
            unsafe { &*first.wrapping_add(index) }.load(Ordering::Acquire)
        };
        (0..words).flat_map(|index| word(index).to_ne_bytes()).collect()
    }

    fn map(path: &Path, file: io::Result<File>, rings: u16) -> Result<Self, JournalError> {
        let file = file.map_err(|source| JournalError::File { path: path.to_owned(), source })?;
        let mapping = MmapRegion::build(
            Some(FileOffset::new(file, 0)),
            length(rings),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
        );
        let mapping =
            mapping.map_err(|source| JournalError::Map { path: path.to_owned(), source })?;
        Ok(Self { mapping: Arc::new(mapping), rings })
    }

    /// The journal of ring `index`.
    ///
    /// # Panics
    /// If the port has no such ring.
    #[must_use]
    pub fn ring(&self, index: u16) -> Journal {
        assert!(index < self.rings, "ring {index} of {}", self.rings);
        let offset = SLOTS + usize::from(index) * size_of::<JournalSlot>();
        let slot = self.mapping.as_ptr().wrapping_add(offset).cast::<JournalSlot>();
        // SAFETY: inside the mapping, which is as long as all slots, starts at a page and lives as
        // long as the Arc. A slot is made of atomics, of which any bits are valid.
        unsafe { Journal::new(slot, Arc::clone(&self.mapping) as _) }
    }

    /// Remove the file at `path`, of a port that is gone.
    pub fn remove(path: &Path) {
        if let Err(error) = fs::remove_file(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a port's ring positions stay behind");
        }
    }
}

fn length(rings: u16) -> usize {
    SLOTS + usize::from(rings) * size_of::<JournalSlot>()
}

fn header(owner: &str, rings: u16) -> [u8; 24] {
    let owner = Sha256::digest(owner.as_bytes());
    let kind = u64::from(VERSION) << 32 | u64::from(rings);
    let mut header = [0; 24];
    header[..8].copy_from_slice(&MAGIC.to_le_bytes());
    header[8..16].copy_from_slice(&kind.to_le_bytes());
    header[16..].copy_from_slice(&owner[..8]);
    header
}

/// The file that begins with `header`, if it is at this path.
fn existing(path: &Path, header: &[u8], length: usize) -> io::Result<Option<File>> {
    // Do not follow a link, and do not wait for the other end of a pipe.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    if let Ok(mut file) = File::options().read(true).write(true).custom_flags(flags).open(path) {
        let data = file.metadata()?;
        let mut found = vec![0; header.len()];
        if data.is_file()
            && data.len() == length as u64
            && file.read_exact(&mut found).is_ok()
            && found == header
        {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// A port's file under another name: one that may be needed again, or one to be used next.
#[derive(Debug)]
pub struct SetAside {
    place: PathBuf,
    aside: PathBuf,
}

impl SetAside {
    /// Rename the file of a port, if there is one, to `aside`, in a directory that is made.
    #[must_use]
    pub fn of(place: PathBuf, aside: PathBuf) -> Option<Self> {
        if let Some(directory) = aside.parent() {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).ok()?;
        }
        fs::rename(&place, &aside).ok()?;
        Some(Self { place, aside })
    }

    /// Put the file in its place, and replace any file there.
    pub fn put_back(&self) {
        if let Some(directory) = self.place.parent() {
            // The next step reports a failure.
            let _ = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        }
        if let Err(error) = fs::rename(&self.aside, &self.place) {
            let path = self.place.display();
            tracing::warn!(%path, %error, "a port's ring positions are lost");
        }
    }

    /// Remove the file, since it is not needed.
    pub fn discard(&self) {
        Journals::remove(&self.aside);
    }
}

fn make(path: &Path, header: &[u8], length: usize) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    let mut file = options.read(true).write(true).create_new(true).mode(0o600).open(path)?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, length as u64)?;
    file.write_all(header)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::journal::JournalState;
    use super::*;
    use crate::guest_memory::FrontendAddress;
    use crate::virtqueue::{QueueAddresses, QueueOptions, QueueSetup};

    const SETUP: QueueSetup = QueueSetup {
        size: 8,
        addresses: QueueAddresses {
            descriptors: FrontendAddress(0x1000),
            available: FrontendAddress(0x2000),
            used: FrontendAddress(0x3000),
        },
        base: 0x8000,
        named: 0x8000,
        options: QueueOptions::NONE,
        log: None,
    };

    fn leave(journals: &Journals, index: u16) {
        let journal = journals.ring(index);
        journal.open(&SETUP, 7);
        journal.store(JournalState { position: 0x8000 | index, count: 0, mark: 7 });
    }

    fn left(journals: &Journals, index: u16) -> Option<u16> {
        journals.ring(index).left(&SETUP, 7).map(|state| state.position)
    }

    #[test]
    fn the_next_process_finds_what_each_ring_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rings/vm1");
        let journals = Journals::open(&path, "/run/vm1.sock", 4).unwrap();
        assert_eq!(left(&journals, 3), None);
        leave(&journals, 3);
        leave(&journals, 1);
        drop(journals);
        let journals = Journals::open(&path, "/run/vm1.sock", 4).unwrap();
        let found: Vec<_> = (0..4).map(|index| left(&journals, index)).collect();
        assert_eq!(found, [None, Some(0x8001), None, Some(0x8003)]);
        Journals::remove(&path);
        let journals = Journals::open(&path, "/run/vm1.sock", 4).unwrap();
        assert_eq!(left(&journals, 3), None, "of a port that was removed in between");
    }

    #[test]
    fn a_file_that_is_not_this_ports_is_replaced_and_left_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vm1");
        for (owner, rings) in [("/run/vm1.sock", 2), ("/other/vm1.sock", 4)] {
            let theirs = Journals::open(&path, owner, rings).unwrap();
            leave(&theirs, 1);
            let ours = Journals::open(&path, "/run/vm1.sock", 4).unwrap();
            assert_eq!(left(&ours, 1), None);
            assert_eq!(left(&theirs, 1), Some(0x8001));
        }
        for text in ["", "no such file", &"x".repeat(length(4))] {
            fs::write(&path, text).unwrap();
            assert_eq!(left(&Journals::open(&path, "/run/vm1.sock", 4).unwrap(), 1), None);
        }
    }

    #[test]
    fn a_file_of_a_process_that_still_owns_the_port_is_replaced_only_when_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let [path, aside] = ["rings/vm1", "aside/vm1"].map(|name| directory.path().join(name));
        let theirs = Journals::open(&path, "/run/old.sock", 4).unwrap();
        leave(&theirs, 1);
        let (ours, next) = Journals::open_beside(&path, &aside, "/run/new.sock", 4).unwrap();
        leave(&ours, 2);
        let again = Journals::open(&path, "/run/old.sock", 4).unwrap();
        assert_eq!(left(&again, 1), Some(0x8001), "the owner finds its own after a crash");
        next.expect("another owner's file is there").put_back();
        let (again, next) = Journals::open_beside(&path, &aside, "/run/new.sock", 4).unwrap();
        assert_eq!((left(&again, 1), left(&again, 2)), (None, Some(0x8002)));
        assert!(next.is_none(), "it is in its place");
    }

    #[test]
    fn what_had_no_room_for_a_file_becomes_one_when_the_process_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("rings/vm1");
        let journals = Journals::in_memory(&path, 4).unwrap();
        leave(&journals, 3);
        assert!(!path.exists());
        assert_eq!(left(&journals, 3), Some(0x8003), "a front-end may connect anew");
        journals.settle(&path, "/run/vm1.sock").unwrap();
        drop(journals);
        let next = Journals::open(&path, "/run/vm1.sock", 4).unwrap();
        assert_eq!((left(&next, 2), left(&next, 3)), (None, Some(0x8003)));
        leave(&next, 2);
        next.settle(&path, "/run/vm1.sock").unwrap();
        assert_eq!(left(&next, 2), Some(0x8002), "it is a file, and stays it");
    }

    #[test]
    fn links_pipes_and_full_disks_are_no_journals() {
        let directory = tempfile::tempdir().unwrap();
        let (path, other) = (directory.path().join("vm1"), directory.path().join("other"));
        fs::write(&other, "theirs").unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        Journals::open(&path, "p", 1).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"theirs");
        fs::remove_file(&path).unwrap();
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU);
        rustix::fs::mknodat(rustix::fs::CWD, &path, kind, mode, 0).unwrap();
        Journals::open(&path, "p", 1).unwrap();
        let refused = Journals::open(Path::new("/proc/vm1"), "p", 1).unwrap_err();
        assert!(refused.to_string().contains("/proc/vm1"), "{refused}");
    }
}
