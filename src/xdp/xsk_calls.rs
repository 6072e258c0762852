//! AF_XDP's system calls (the kernel's Documentation/networking/af_xdp.rst), one small function
//! each. They cover a socket, its frame memory, its four rings, its queue and its statistics.
//!
//! A socket is made in this order: register its memory (on the first of those that share it), make
//! rings, map them, bind. Rings are mapped before the bind because kernels before 6.4 refuse it
//! afterwards (`xsk_mmap` of net/xdp/xsk.c). So on those kernels no other process can take the
//! socket over.

use std::any::Any;
use std::ffi::c_void;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, epoll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::net::xdp::{
    SocketAddrXdp, SocketAddrXdpFlags, SocketAddrXdpWithSharedUmem, XDP_PGOFF_RX_RING,
    XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING, XdpOptionsFlags,
    XdpRingOffset, XdpStatistics, XdpUmemReg, XdpUmemRegFlags,
};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

use super::xsk_ring::{Completion, Fill, RingParts, Rx, SocketParts, Tx};

// ---- memory -------------------------------------------------------------------------------------

/// A mapping; unmapped when dropped.
#[derive(Debug)]
pub(super) struct Mapping {
    base: *mut c_void,
    bytes: usize,
}

// SAFETY: an address range that is only unmapped through this value.
unsafe impl Send for Mapping {}
// SAFETY: as above; nothing is reachable through a shared reference.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped.
        let unmapped = unsafe { rustix::mm::munmap(self.base, self.bytes) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours");
    }
}

impl Mapping {
    /// Map `bytes` of the file from `offset` on, all pages present from the start.
    pub fn new(file: impl AsFd, bytes: usize, offset: u64) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a new mapping, where the kernel chooses.
        let base = unsafe { rustix::mm::mmap(ptr::null_mut(), bytes, access, flags, file, offset) };
        Ok(Self { base: base?, bytes })
    }

    /// Its first byte.
    pub fn base(&self) -> *mut u8 {
        self.base.cast()
    }
}

/// A file in memory of fixed size, so that a mapping of it cannot lose its pages.
pub(super) fn memory_file(bytes: u64) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("isonic-frames", flags)?;
    rustix::fs::ftruncate(&file, bytes)?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals)?;
    Ok(file)
}

/// Bytes of a file that [`memory_file`] made, in any process.
pub(super) fn memory_size(file: &OwnedFd) -> io::Result<u64> {
    let seals = rustix::fs::fcntl_get_seals(file)?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err(io::Error::other("the frame memory could be cut short"));
    }
    let bytes = rustix::fs::fstat(file)?.st_size;
    u64::try_from(bytes).map_err(io::Error::other)
}

// ---- making a socket ----------------------------------------------------------------------------

/// A bare socket. It takes CAP_NET_RAW; the later calls take no capability.
pub(super) fn socket() -> io::Result<OwnedFd> {
    let (family, flags) = (AddressFamily::XDP, SocketFlags::CLOEXEC);
    Ok(rustix::net::socket_with(family, SocketType::RAW, flags, None)?)
}

/// A socket that this process was started with, by its descriptor's number. EBADF if that is not
/// open; ENOTSOCK or EPROTOTYPE if it is something else.
pub(super) fn inherited_socket(number: u32) -> io::Result<OwnedFd> {
    let number = i32::try_from(number).map_err(|_| Errno::BADF)?;
    // SAFETY: the number is not -1. The borrow ends within this statement, and the kernel checks
    // the number itself: if it is not open, the answer is EBADF.
    let socket = unsafe { BorrowedFd::borrow_raw(number) }.try_clone_to_owned()?;
    if sockopt::socket_domain(&socket)? != AddressFamily::XDP {
        return Err(Errno::PROTOTYPE.into());
    }
    Ok(socket)
}

/// Register the frame memory: the kernel pins its pages while any process has a socket of it open.
pub(super) fn register(
    socket: BorrowedFd<'_>,
    memory: &Mapping,
    frame_bytes: u32,
) -> io::Result<()> {
    let registration = XdpUmemReg {
        addr: memory.base.expose_provenance() as u64,
        len: memory.bytes as u64,
        chunk_size: frame_bytes,
        headroom: 0,
        flags: XdpUmemRegFlags::empty(),
        tx_metadata_len: 0,
    };
    Ok(sockopt::set_xdp_umem_reg(socket, registration)?)
}

/// Give the socket its four rings of so many entries, a power of two.
pub(super) fn make_rings(socket: BorrowedFd<'_>, entries: u32) -> io::Result<()> {
    sockopt::set_xdp_umem_fill_ring_size(socket, entries)?;
    sockopt::set_xdp_umem_completion_ring_size(socket, entries)?;
    sockopt::set_xdp_rx_ring_size(socket, entries)?;
    Ok(sockopt::set_xdp_tx_ring_size(socket, entries)?)
}

/// A queue of a NIC.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueueAddress {
    /// The NIC's kernel index.
    pub interface: u32,
    /// The queue.
    pub queue: u32,
}

/// Bind to a queue. If a socket shares its frame memory, the kernel uses that socket's flags.
pub(super) fn bind(
    socket: BorrowedFd<'_>,
    QueueAddress { interface, queue }: QueueAddress,
    flags: SocketAddrXdpFlags,
    shared: Option<BorrowedFd<'_>>,
) -> io::Result<()> {
    let Some(shared_umem_fd) = shared else {
        return Ok(rustix::net::bind(socket, &SocketAddrXdp::new(flags, interface, queue))?);
    };
    let addr = SocketAddrXdp::new(SocketAddrXdpFlags::XDP_SHARED_UMEM, interface, queue);
    Ok(rustix::net::bind(socket, &SocketAddrXdpWithSharedUmem { addr, shared_umem_fd })?)
}

/// Let one wake-up call transmit so many frames in copy mode.
pub(super) fn set_transmit_budget(socket: BorrowedFd<'_>, frames: u32) -> io::Result<()> {
    /// XDP_MAX_TX_SKB_BUDGET of linux/if_xdp.h, which rustix does not know.
    const MAX_TX_SKB_BUDGET: libc::c_int = 9;
    set_option(socket, libc::SOL_XDP, MAX_TX_SKB_BUDGET, frames)
}

/// Have the socket's calls drive the NIC, which takes at most `budget` packets at each: busy
/// polling (`xsk_recvmsg` of net/xdp/xsk.c).
pub(super) fn set_busy_poll(socket: BorrowedFd<'_>, budget: u16) -> io::Result<()> {
    // From asm-generic/socket.h; neither rustix nor libc has these two.
    const SO_PREFER_BUSY_POLL: libc::c_int = 69;
    const SO_BUSY_POLL_BUDGET: libc::c_int = 70;
    /// µs that a blocking call polls. Ours do not block; to them it only allows polling.
    const BUSY_POLL: u32 = 20;
    set_option(socket, libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_BUSY_POLL, BUSY_POLL)?;
    set_option(socket, libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, budget.into())
}

/// An epoll instance that asks a socket whether it has packets. While it has, the interrupts of its
/// queue stay suspended ([`suspend_interrupts`]). Linux 6.9.
pub(super) fn suspender(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    /// struct epoll_params of linux/eventpoll.h.
    #[repr(C)]
    struct Params {
        busy_poll_usecs: u32,
        busy_poll_budget: u16,
        prefer_busy_poll: u8,
        pad: u8,
    }
    /// EPIOCSPARAMS.
    const SET_PARAMS: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<Params>(0x8a, 1);
    // It never polls by itself, since nobody waits on it, but without these values it does not look
    // for the queue.
    let params = Params { busy_poll_usecs: 1, busy_poll_budget: 1, prefer_busy_poll: 1, pad: 0 };
    let instance = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    // SAFETY: the request takes a struct epoll_params, which has this layout, and only reads it.
    unsafe {
        rustix::ioctl::ioctl(&instance, rustix::ioctl::Setter::<SET_PARAMS, _>::new(params))?;
    }
    epoll::add(&instance, socket, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    Ok(instance)
}

fn set_option(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    name: libc::c_int,
    value: u32,
) -> io::Result<()> {
    let (fd, len) = (socket.as_raw_fd(), libc::socklen_t::try_from(size_of::<u32>()).expect("4"));
    // SAFETY: the value outlives the call and is `len` bytes long.
    let result = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

// ---- rings --------------------------------------------------------------------------------------

/// Map the socket's four rings of so many entries each.
pub(super) fn map_rings(socket: BorrowedFd<'_>, entries: u32) -> io::Result<SocketParts> {
    let offsets = sockopt::xdp_mmap_offsets(socket)?;
    let frame_ring = size_of::<u64>();
    let packet_ring = size_of::<libc::xdp_desc>();
    let map = |page, offset, entry| map_ring(socket, page, offset, entries, entry);
    let rx = map(XDP_PGOFF_RX_RING, offsets.rx, packet_ring)?;
    let tx = map(XDP_PGOFF_TX_RING, offsets.tx, packet_ring)?;
    let fill = map(XDP_UMEM_PGOFF_FILL_RING, offsets.fr, frame_ring)?;
    let completion = map(XDP_UMEM_PGOFF_COMPLETION_RING, offsets.cr, frame_ring)?;
    // SAFETY: the kernel laid the rings out so, and nobody else moves our side's indices.
    unsafe {
        Ok(SocketParts {
            rx: Rx::new(rx),
            tx: Tx::new(tx),
            fill: Fill::new(fill),
            completion: Completion::new(completion),
        })
    }
}

fn map_ring(
    socket: BorrowedFd<'_>,
    page: u64,
    offset: XdpRingOffset,
    entries: u32,
    entry_bytes: usize,
) -> io::Result<RingParts> {
    let at = |offset: u64| usize::try_from(offset).map_err(io::Error::other);
    let flags = offset.flags.ok_or(Errno::OPNOTSUPP)?;
    let bytes = at(offset.desc)? + entries as usize * entry_bytes;
    let mapping = Mapping::new(socket, bytes, page)?;
    let part = |offset: usize| mapping.base().wrapping_add(offset);
    Ok(RingParts {
        producer: part(at(offset.producer)?).cast(),
        consumer: part(at(offset.consumer)?).cast(),
        flags: part(at(flags)?).cast(),
        entries: part(at(offset.desc)?),
        size: entries,
        keep: Arc::new(mapping) as Arc<dyn Any + Send + Sync>,
    })
}

/// Whether the NIC itself reads and writes the frames of a bound socket.
pub(super) fn is_zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(sockopt::xdp_options(socket)?.contains(XdpOptionsFlags::XDP_OPTIONS_ZEROCOPY))
}

// ---- while it runs ------------------------------------------------------------------------------

/// The kernel's counts for the socket.
pub(super) fn statistics(socket: BorrowedFd<'_>) -> io::Result<XdpStatistics> {
    Ok(sockopt::xdp_statistics(socket)?)
}

/// Have the kernel transmit. False when another call is useless now: EBUSY and ENOBUFS say that the
/// driver's queue is full, ENETDOWN and ENXIO that the NIC is down or gone. Frames not taken stay
/// in the ring for the next turn. EAGAIN says that the batch limit was reached.
pub(super) fn wake_transmit(socket: BorrowedFd<'_>) -> bool {
    matches!(rustix::net::send(socket, &[], SendFlags::DONTWAIT), Ok(_) | Err(Errno::AGAIN))
}

/// Have the kernel receive into the frames of the fill ring.
pub(super) fn wake_receive(socket: BorrowedFd<'_>) {
    // A receive of nothing into nothing; its errors show when transmitting.
    let _ = rustix::net::recv(socket, &mut [] as &mut [u8], RecvFlags::DONTWAIT);
}

/// If the socket has packets, keep the interrupts of its queue off for `irq_suspend_timeout`. The
/// epoll event for packets does it (`ep_suspend_napi_irqs` of fs/eventpoll.c, Linux 6.13).
pub(super) fn suspend_interrupts(suspender: BorrowedFd<'_>) {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut event = [const { MaybeUninit::uninit() }; 1];
    // It cannot fail, and without an event nothing is suspended.
    let _ = epoll::wait(suspender, &mut event, Some(&at_once));
}

/// Have the kernel transmit on a busy polled socket. The kernel leaves this to the receiving side's
/// poll and skips the send call for it (`xsk_no_wakeup` of net/xdp/xsk.c), but not in poll(2).
pub(super) fn wake_polled_transmit(socket: BorrowedFd<'_>) {
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut asked = [PollFd::from_borrowed_fd(socket, PollFlags::OUT)];
    // Its errors show when transmitting.
    let _ = rustix::event::poll(&mut asked, Some(&at_once));
}
