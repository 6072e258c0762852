//! The kernel's facts of the AF_XDP sockets of another process, asked of the sockets themselves.
//! The module can also spoil the memory that they share with that process.

use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::net::sockopt;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};

/// XDP_OPTIONS and XDP_OPTIONS_ZEROCOPY of linux/if_xdp.h.
const XDP_OPTIONS: libc::c_int = 8;
const XDP_OPTIONS_ZEROCOPY: u32 = 1;
/// From asm-generic/socket.h; libc has not got it.
const SO_PREFER_BUSY_POLL: libc::c_int = 69;

/// One AF_XDP socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct XskFacts {
    /// XDP_OPTIONS: whether the NIC itself reads and writes its frames.
    pub zero_copy: bool,
    /// SO_PREFER_BUSY_POLL.
    pub prefer_busy_poll: bool,
    /// SO_BUSY_POLL, µs.
    pub busy_poll: u32,
}

/// XDP_UMEM_PGOFF_FILL_RING of linux/if_xdp.h, as /proc/PID/maps shows it.
const FILL_RING: &str = " 100000000 ";
/// Makes the kernel refuse every entry of the fill rings of a process's sockets: no frame is at
/// their addresses.
pub fn spoil_fill_rings(process: u32) {
    let offsets = sockopt::xdp_mmap_offsets(&sockets(process)[0]).expect("XDP_MMAP_OFFSETS");
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).expect("mappings");
    let memory = fs::File::options().write(true).open(format!("/proc/{process}/mem"));
    let memory = memory.expect("memory");
    let rings: Vec<(u64, u64)> = maps.lines().filter_map(fill_ring).collect();
    assert!(!rings.is_empty(), "{maps}");
    for (start, end) in rings {
        let entries = start + offsets.fr.desc;
        let length = usize::try_from(end - entries).expect("some kilobytes");
        memory.write_all_at(&vec![0xff; length], entries).expect("written");
    }
}

/// The addresses of a fill ring, if a line of /proc/PID/maps has one: from and to.
fn fill_ring(line: &str) -> Option<(u64, u64)> {
    let (start, rest) = line.split_once('-').filter(|_| line.contains(FILL_RING))?;
    let (end, _) = rest.split_once(' ')?;
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// The facts of a process's sockets.
pub fn xsk_facts(process: u32) -> Vec<XskFacts> {
    sockets(process).iter().map(facts).collect()
}

fn sockets(process: u32) -> Vec<OwnedFd> {
    let id = Pid::from_raw(process.try_into().expect("a process id")).expect("a process id");
    let pidfd = pidfd_open(id, PidfdFlags::empty()).expect("the process");
    let descriptors = fs::read_dir(format!("/proc/{process}/fd")).expect("descriptors");
    let numbers = descriptors.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    // One that was closed meanwhile is none.
    let copies = numbers
        .filter_map(|number: i32| pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()).ok());
    copies.filter(is_xsk).collect()
}

fn is_xsk(descriptor: &OwnedFd) -> bool {
    option(descriptor, libc::SOL_SOCKET, libc::SO_DOMAIN) == Some(libc::AF_XDP.cast_unsigned())
}

fn facts(socket: &OwnedFd) -> XskFacts {
    let of_socket = |name| option(socket, libc::SOL_SOCKET, name).expect("a socket option");
    XskFacts {
        zero_copy: option(socket, libc::SOL_XDP, XDP_OPTIONS).expect("XDP_OPTIONS")
            & XDP_OPTIONS_ZEROCOPY
            != 0,
        prefer_busy_poll: of_socket(SO_PREFER_BUSY_POLL) != 0,
        busy_poll: of_socket(libc::SO_BUSY_POLL),
    }
}

/// A socket option that is a number; None if the descriptor is no socket.
fn option(descriptor: &impl AsFd, level: libc::c_int, name: libc::c_int) -> Option<u32> {
    let mut value = MaybeUninit::<u32>::zeroed();
    let mut length = libc::socklen_t::try_from(size_of::<u32>()).expect("4");
    let fd = descriptor.as_fd().as_raw_fd();
    // SAFETY: the value is as long as `length` says, and both live across the call.
    let status =
        unsafe { libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &raw mut length) };
    // SAFETY: the value has zeroes or the kernel's bytes: a number either way.
    (status == 0).then(|| unsafe { value.assume_init() })
}
