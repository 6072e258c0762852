//! The number of signals of an event that nobody reads.

use std::os::fd::{AsRawFd, BorrowedFd};

/// How often an eventfd that nobody reads was signalled (its counter, proc_pid_fdinfo(5)). None if
/// it is no eventfd, or the kernel reports no counter.
#[must_use]
pub fn signals(event: BorrowedFd<'_>) -> Option<u64> {
    let path = format!("/proc/self/fdinfo/{}", event.as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    let count = text.lines().find_map(|line| line.strip_prefix("eventfd-count:"))?;
    u64::from_str_radix(count.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn signals_are_counted_and_stay() {
        let event = eventfd(1, EventfdFlags::empty()).unwrap();
        rustix::io::write(&event, &40_u64.to_ne_bytes()).unwrap();
        assert_eq!(signals(event.as_fd()), Some(41));
        assert_eq!(signals(event.as_fd()), Some(41));
        assert_eq!(signals(File::open("/dev/null").unwrap().as_fd()), None);
    }
}
