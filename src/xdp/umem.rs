//! Frame memory: the only place where tokens of its frames are made.

use std::any::Any;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::slice;

use super::umem_frame::{FRAME_BYTES, Frame, Received};
use super::xsk_calls::{self, Mapping};

/// The frame memory of one uplink, shared by its sockets.
#[derive(Debug)]
pub struct Umem {
    base: *mut u8,
    bytes: usize,
    owner: Owner,
}

/// The owner of the memory, which ends when this is dropped.
#[derive(Debug)]
enum Owner {
    /// A file of ours, mapped: the kernel and other processes can have it too.
    File {
        /// All of it.
        mapping: Mapping,
        /// The file.
        file: OwnedFd,
    },
    /// Anything else.
    Other { _keep: Box<dyn Any + Send + Sync> },
}

// SAFETY: the memory is plain bytes, valid while `owner` lives. Only the holder of a frame's token
// may touch that frame.
unsafe impl Send for Umem {}
// SAFETY: as above: a shared reference reaches only frames whose token the caller holds.
unsafe impl Sync for Umem {}

impl Umem {
    /// # Safety
    /// `base` must be the start of `bytes` readable and writable bytes that stay mapped while
    /// `owner` lives. Only the kernel and the holders of frame tokens may touch them.
    pub unsafe fn new(base: *mut u8, bytes: usize, owner: Box<dyn Any + Send + Sync>) -> Self {
        Self { base, bytes, owner: Owner::Other { _keep: owner } }
    }

    /// Fresh memory of so many bytes, all of it allocated.
    ///
    /// # Errors
    /// The kernel has less memory than that.
    pub(super) fn create(bytes: u64) -> io::Result<Self> {
        Self::of_file(xsk_calls::memory_file(bytes)?)
    }

    /// The memory that another process has created; its sockets have it registered.
    ///
    /// # Errors
    /// The file is not one of ours, or cannot be mapped.
    pub(super) fn of_file(file: OwnedFd) -> io::Result<Self> {
        let bytes = usize::try_from(xsk_calls::memory_size(&file)?).map_err(io::Error::other)?;
        let mapping = Mapping::new(&file, bytes, 0)?;
        Ok(Self { base: mapping.base(), bytes, owner: Owner::File { mapping, file } })
    }

    /// The memory's file; None for plain memory.
    #[must_use]
    pub fn file(&self) -> Option<BorrowedFd<'_>> {
        match &self.owner {
            Owner::File { file, .. } => Some(file.as_fd()),
            Owner::Other { .. } => None,
        }
    }

    /// Its size.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Register the memory with a socket, for all sockets that share it.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn register(&self, socket: BorrowedFd<'_>) -> io::Result<()> {
        match &self.owner {
            Owner::File { mapping, .. } => xsk_calls::register(socket, mapping, FRAME_BYTES),
            Owner::Other { .. } => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Divide the memory into frames: the only place where tokens are made from nothing.
    pub(super) fn divide(&self) -> impl Iterator<Item = Frame> + use<> {
        (0..(self.bytes as u64) / u64::from(FRAME_BYTES))
            .map(|index| Frame::at(index * u64::from(FRAME_BYTES)))
    }

    /// The tokens of these frames, which another process had; None if it cannot have had them.
    pub(super) fn adopt(&self, addresses: &[u64]) -> Option<Vec<Frame>> {
        let mut sorted = addresses.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let frame = u64::from(FRAME_BYTES);
        let ours = |&address: &u64| address < self.bytes as u64 && address.is_multiple_of(frame);
        let all = sorted.len() == addresses.len() && sorted.iter().all(ours);
        all.then(|| addresses.iter().copied().map(Frame::at).collect())
    }

    /// The packet that a frame received.
    #[inline]
    #[must_use]
    pub fn packet<'f>(&'f self, received: &'f Received) -> &'f [u8] {
        let (offset, len) = self.checked(received.frame.address(), received.len);
        // SAFETY: inside the mapping (checked). The token says that no ring holds the frame, so
        // nobody writes it while both are borrowed.
        unsafe { slice::from_raw_parts(self.base.add(offset), len) }
    }

    /// The first `len` bytes of a frame, to fill in.
    #[inline]
    pub fn room<'f>(&'f self, frame: &'f mut Frame, len: u32) -> &'f mut [u8] {
        let (offset, len) = self.checked(frame.address(), len);
        // SAFETY: as in `packet`, and the token is borrowed exclusively.
        unsafe { slice::from_raw_parts_mut(self.base.add(offset), len) }
    }

    /// # Panics
    /// If the range leaves the UMEM: the kernel or we broke the ring protocol.
    #[inline]
    fn checked(&self, address: u64, len: u32) -> (usize, usize) {
        let end = address.saturating_add(u64::from(len));
        assert!(end <= self.bytes as u64, "descriptor {address:#x}+{len:#x} outside the UMEM");
        // Both are at most `bytes`, a usize.
        #[allow(clippy::cast_possible_truncation)]
        (address as usize, len as usize)
    }
}
