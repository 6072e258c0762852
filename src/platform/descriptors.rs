//! Reserved room in the table of open files. The descriptors of front-ends must not take the last
//! places, which the API, the state file and the NICs need.
//!
//! The kernel gives the lowest free number (POSIX, "File Descriptor Allocation"). So at least as
//! many descriptors are open as a new one's number says. A number near the limit means that the
//! table is nearly full, so there is no need to count.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Resource, getrlimit};

/// Most descriptors that are reserved; at a low limit, a quarter of it.
const RESERVED_MAX: u64 = 256;

/// How many requests were refused for want of room.
static REFUSALS: AtomicU64 = AtomicU64::new(0);

/// The limit on open descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFileLimit {
    /// RLIMIT_NOFILE: every number is below it.
    pub limit: u64,
    /// The highest of these numbers are for control.
    pub reserved: u64,
}

impl OpenFileLimit {
    /// From the limit in force now.
    #[must_use]
    pub fn now() -> Self {
        Self::of(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }

    /// From this limit.
    #[must_use]
    pub fn of(limit: u64) -> Self {
        Self { limit, reserved: RESERVED_MAX.min(limit / 4) }
    }

    /// Descriptors that are not reserved.
    #[must_use]
    pub fn unreserved(&self) -> u64 {
        self.limit - self.reserved
    }

    /// Whether a new descriptor took one of the reserved places.
    #[must_use]
    pub fn is_reserved(&self, descriptor: &impl AsFd) -> bool {
        let number = descriptor.as_fd().as_raw_fd();
        u64::try_from(number).is_ok_and(|number| number >= self.unreserved())
    }

    /// Count a refusal because only reserved places are left.
    pub fn note_refusal() {
        REFUSALS.fetch_add(1, Ordering::Relaxed);
    }

    /// How many refusals were counted.
    #[must_use]
    pub fn refusals() -> u64 {
        REFUSALS.load(Ordering::Relaxed)
    }

    /// Whether only the reserved places are left: the next descriptor would take one of them.
    #[must_use]
    pub fn is_full(&self) -> bool {
        std::fs::File::open("/dev/null").map_or(true, |file| self.is_reserved(&file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_numbers_are_reserved() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let number = u64::try_from(file.as_raw_fd()).unwrap();
        assert!(!OpenFileLimit { limit: number + 10, reserved: 9 }.is_reserved(&file));
        assert!(OpenFileLimit { limit: number + 10, reserved: 10 }.is_reserved(&file));
    }

    #[test]
    fn of_a_low_limit_a_quarter_is_reserved_and_never_more_than_is_of_use() {
        assert_eq!(OpenFileLimit::of(96).unreserved(), 72);
        assert_eq!(OpenFileLimit::of(65536).unreserved(), 65536 - RESERVED_MAX);
        assert_eq!(OpenFileLimit::of(0).unreserved(), 0);
    }
}
