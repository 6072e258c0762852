//! Which files may be a guest's memory.

use std::os::fd::AsFd;

use super::map_error::MapError;

/// The files that a front-end may share as its guest's memory, and as its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryFiles {
    /// Files of memory only: memfd, tmpfs (`/dev/shm`), hugetlbfs. The kernel alone provides their
    /// pages, so no access to them waits for another program.
    #[default]
    Shared,
    /// Files of any file system. Each access, and each close(2), waits for that file system,
    /// however long it takes; a worker then waits with all of its guests.
    Any,
}

impl MemoryFiles {
    /// Whether this file may be memory. The check asks no file system, which could block for ever.
    /// It reads seals in the kernel, and only files of shared memory have them (fcntl(2),
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
