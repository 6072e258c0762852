//! Making the sockets of an uplink: one for each queue, on one frame memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::xdp::SocketAddrXdpFlags;

use super::umem::Umem;
use super::umem_frame::FRAME_BYTES;
use super::uplink_interface::Interface;
use super::xdp_attachment::{BindMode, packet_max};
use super::xdp_socket::{FRAMES_PER_SOCKET, RING_ENTRIES, Socket, mode_of};
use super::xsk_calls::{self, QueueAddress};
use super::xsk_ring::SocketParts;

/// Longest wait for a queue that has another socket. The kernel releases the socket of a closed
/// descriptor or a killed process some time later (`xp_put_pool` leaves it to a work queue).
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(2);
/// Time between two attempts.
const RELEASE_RETRY: Duration = Duration::from_millis(2);

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The frame memory could not be made or registered.
    #[error(
        "cannot create the frame memory ({bytes} bytes): it is locked, so see `ulimit -l`, or \
         CAP_IPC_LOCK, and free memory"
    )]
    Umem {
        /// Wanted.
        bytes: u64,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A descriptor that was to be a socket is none.
    #[error("descriptor {number} is no AF_XDP socket that this process was started with")]
    Inherit {
        /// As configured.
        number: u32,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The socket or its rings could not be made.
    #[error("cannot create an AF_XDP socket for queue {queue} of {interface}")]
    Create {
        /// NIC.
        interface: String,
        /// Queue.
        queue: u32,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The socket could not be bound.
    #[error("cannot bind an AF_XDP socket to queue {queue} of {interface} in {mode:?} mode")]
    Bind {
        /// NIC.
        interface: String,
        /// Queue.
        queue: u32,
        /// Mode tried.
        mode: BindMode,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

impl SocketError {
    /// Whether a queue has another socket, perhaps of a process that has just ended.
    pub(super) fn is_busy(&self) -> bool {
        matches!(self, Self::Bind { source, .. } if is_busy(source))
    }
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EBUSY)
}

/// The parameters for binding sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Binding {
    /// None: the kernel chooses zero-copy where the driver has it.
    pub mode: Option<BindMode>,
    /// Most frames of a packet.
    pub frames: usize,
}

/// Open one socket per queue, on one UMEM: the `inherited` ones, if any, or new ones. It waits for
/// queues whose socket was just closed.
pub(super) fn open_all(
    interface: &Interface,
    queues: &[u32],
    binding: Binding,
    inherited: Option<Vec<OwnedFd>>,
) -> Result<Vec<Socket>, SocketError> {
    let mut inherited = inherited.map(Vec::into_iter);
    let deadline = Instant::now() + RELEASE_WAIT_MAX;
    let umem = create_umem(queues.len())?;
    let mut unassigned = umem.divide();
    let mut sockets: Vec<Socket> = Vec::with_capacity(queues.len());
    for &queue in queues {
        let own = unassigned.by_ref().take(FRAMES_PER_SOCKET);
        let name = || interface.name.clone();
        let create_error = |source| SocketError::Create { interface: name(), queue, source };
        // Where the kernel chooses, it tries copy mode last.
        let mode = binding.mode.unwrap_or(BindMode::Copy);
        let bind_error = |source| SocketError::Bind { interface: name(), queue, mode, source };
        let fd = match &mut inherited {
            Some(sockets) => sockets.next().expect("as many as queues"),
            None => xsk_calls::socket().map_err(create_error)?,
        };
        let first = sockets.first().and_then(Socket::fd);
        if first.is_none() {
            register(fd.as_fd(), &umem)?;
        }
        let parts = equip(fd.as_fd()).map_err(create_error)?;
        let address = QueueAddress { interface: interface.index, queue };
        bind(fd.as_fd(), address, bind_flags(binding), first, deadline).map_err(bind_error)?;
        let mode = mode_of(fd.as_fd()).map_err(bind_error)?;
        let packet_max = packet_max(mode, binding.frames);
        let socket = Socket::new(queue, Arc::clone(&umem), parts, own, packet_max);
        sockets.push(socket.with_descriptor(fd));
    }
    Ok(sockets)
}

/// The sockets that a launcher made, by their descriptors' numbers. All are checked before one is
/// used: a socket that was given memory has it for good.
pub(super) fn inherit(numbers: &[u32]) -> Result<Vec<OwnedFd>, SocketError> {
    let inherited = |&number: &u32| {
        xsk_calls::inherited_socket(number)
            .map_err(|source| SocketError::Inherit { number, source })
    };
    numbers.iter().map(inherited).collect()
}

/// Frame memory for so many sockets.
fn create_umem(sockets: usize) -> Result<Arc<Umem>, SocketError> {
    let bytes = (sockets * FRAMES_PER_SOCKET) as u64 * u64::from(FRAME_BYTES);
    Umem::create(bytes).map(Arc::new).map_err(|source| SocketError::Umem { bytes, source })
}

/// Register the frame memory with the kernel, on the first of the sockets that share it.
fn register(fd: BorrowedFd<'_>, umem: &Umem) -> Result<(), SocketError> {
    umem.register(fd).map_err(|source| SocketError::Umem { bytes: umem.bytes(), source })
}

/// Give an unbound socket its rings.
fn equip(fd: BorrowedFd<'_>) -> io::Result<SocketParts> {
    xsk_calls::make_rings(fd, RING_ENTRIES)?;
    xsk_calls::map_rings(fd, RING_ENTRIES)
}

/// Flags for the first socket of a UMEM. The kernel uses them for the others that share it too.
fn bind_flags(Binding { mode, frames }: Binding) -> SocketAddrXdpFlags {
    let copy = match mode {
        Some(BindMode::ZeroCopy) => SocketAddrXdpFlags::XDP_ZEROCOPY,
        Some(BindMode::Copy) => SocketAddrXdpFlags::XDP_COPY,
        None => SocketAddrXdpFlags::empty(),
    };
    let several =
        if frames > 1 { SocketAddrXdpFlags::XDP_USE_SG } else { SocketAddrXdpFlags::empty() };
    copy | several | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP
}

/// Bind, and wait until `deadline` for a queue that has another socket.
fn bind(
    fd: BorrowedFd<'_>,
    address: QueueAddress,
    flags: SocketAddrXdpFlags,
    shared: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> io::Result<()> {
    loop {
        match xsk_calls::bind(fd, address, flags, shared) {
            Err(error) if is_busy(&error) && Instant::now() < deadline => {
                std::thread::sleep(RELEASE_RETRY);
            }
            outcome => return outcome,
        }
    }
}
