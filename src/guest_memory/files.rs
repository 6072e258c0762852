//! Which files may be a guest's memory.

use std::os::fd::AsFd;

use super::map_error::MapError;

/// What files a front-end may share as its guest's memory, and as its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryFiles {
    /// Files of memory only: memfd, tmpfs (`/dev/shm`), hugetlbfs. Their pages come from the kernel
    /// alone, so that no access to them waits for anybody.
    #[default]
    Shared,
    /// Files of any file system. Each access, and each close(2), waits for that file system as long
    /// as it takes: a worker does so with all of its guests.
    Any,
}

impl MemoryFiles {
    /// Whether this file may be memory. No file system is asked, which could take for ever: seals
    /// are looked at in the kernel, and only files of shared memory have them (fcntl(2),
    /// F_GET_SEALS; `memfd_file_seals_ptr` of mm/memfd.c: `shmem_file`, `is_file_hugepages`).
    ///
    /// # Errors
    /// [`MapError::Foreign`].
    pub fn check(self, file: impl AsFd) -> Result<(), MapError> {
        match self {
            Self::Any => Ok(()),
            Self::Shared => match rustix::fs::fcntl_get_seals(file) {
                Ok(_) => Ok(()),
                Err(_) => Err(MapError::Foreign),
            },
        }
    }
}
