//! A privileged launcher with its own XDP program on the NIC. It hands in the sockets, or the
//! XSKMAP that its program redirects by, into which our sockets are put.

use std::ffi::CString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use libbpf_rs::libbpf_sys;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recvmsg, sendmsg, socket_with,
};

/// The objects that are handed in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handed {
    /// Sockets that this process was started with, by their descriptors, one for each queue.
    Sockets(Vec<u32>),
    /// A map that is pinned in a BPF file system.
    Map(PathBuf),
    /// A map that the AF_XDP device plugin for Kubernetes gives at this socket.
    DevicePlugin(PathBuf),
}

/// Why there is no map.
#[derive(Debug, thiserror::Error)]
pub enum SocketMapError {
    /// Not there, or not for us.
    #[error("cannot open the pinned map {}", path.display())]
    Pinned {
        /// Where.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// Something else.
    #[error("what was handed in as a map for sockets is none (BPF_MAP_TYPE_XSKMAP)")]
    NoSocketMap,
    /// The map takes no socket there.
    #[error("the launcher's map takes no socket for queue {queue}")]
    Queue {
        /// Which.
        queue: u32,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// The device plugin does not answer.
    #[error("the device plugin at {} does not answer", path.display())]
    Plugin {
        /// Its socket.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Its answer does not fit the request.
    #[error("the device plugin at {} answers {request:?} with {answer:?}", path.display())]
    Refused {
        /// Its socket.
        path: PathBuf,
        /// The request.
        request: String,
        /// The answer.
        answer: String,
    },
}

/// An XSKMAP: it maps a queue to the socket that has the queue's packets.
#[derive(Debug)]
pub(super) struct SocketMap(OwnedFd);

impl SocketMap {
    /// Open a pinned map.
    pub fn pinned(path: &Path) -> Result<Self, SocketMapError> {
        let failed = |source| SocketMapError::Pinned { path: path.to_owned(), source };
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| failed(e.into()))?;
        // SAFETY: the name ends in a zero and outlives the call.
        let fd = unsafe { libbpf_sys::bpf_obj_get(name.as_ptr()) };
        if fd < 0 {
            return Err(failed(io::Error::from_raw_os_error(-fd)));
        }
        // SAFETY: a new descriptor that the call made for us.
        Self::checked(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Check the map: with keys and values of other sizes the kernel would read beyond ours.
    fn checked(map: OwnedFd) -> Result<Self, SocketMapError> {
        let mut info = libbpf_sys::bpf_map_info::default();
        let mut len = u32::try_from(size_of_val(&info)).expect("a hundred bytes");
        // SAFETY: the answer is as long as `len` says, and both outlive the call.
        let result = unsafe {
            libbpf_sys::bpf_map_get_info_by_fd(map.as_raw_fd(), &raw mut info, &raw mut len)
        };
        let is_map = result == 0 && info.type_ == libbpf_sys::BPF_MAP_TYPE_XSKMAP;
        if is_map { Ok(Self(map)) } else { Err(SocketMapError::NoSocketMap) }
    }

    /// Give a queue's packets to the socket, until it is closed.
    pub fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> Result<(), SocketMapError> {
        let value = socket.as_raw_fd();
        // SAFETY: keys and values of an XSKMAP have four bytes (`xsk_map_alloc` of
        // net/xdp/xskmap.c), and these outlive the call.
        let result = unsafe {
            libbpf_sys::bpf_map_update_elem(
                self.0.as_raw_fd(),
                (&raw const queue).cast(),
                (&raw const value).cast(),
                0,
            )
        };
        let failed =
            || SocketMapError::Queue { queue, source: io::Error::from_raw_os_error(-result) };
        if result == 0 { Ok(()) } else { Err(failed()) }
    }
}

// ---- the device plugin --------------------------------------------------------------------------

// Words of the plugin's protocol, version 0.1 (constants/constants.go and internal/udsserver of
// github.com/redhat-et/afxdp-plugins-for-kubernetes). Each side sends one message at a time, over a
// socket that keeps message boundaries.
const CONNECT: &str = "/connect";
const HOST_OK: &str = "/host_ok";
const MAP_FD: &str = "/xsk_map_fd";
const FD_ACK: &str = "/fd_ack";
const FIN: &str = "/fin";
const FIN_ACK: &str = "/fin_ack";

/// Its messages are shorter.
const MESSAGE_BYTES_MAX: usize = 64;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

impl SocketMap {
    /// The map of the NIC `interface` from the device plugin, which knows the pod by its host name.
    pub fn from_device_plugin(path: &Path, interface: &str) -> Result<Self, SocketMapError> {
        let failed = |source: io::Error| SocketMapError::Plugin { path: path.to_owned(), source };
        let plugin = connect_to(path).map_err(failed)?;
        let system = rustix::system::uname();
        let pod = system.nodename().to_string_lossy();
        let ask = |request: String, wanted: &str| {
            let (answer, fd) = ask(&plugin, &request).map_err(failed)?;
            if answer == wanted {
                return Ok(fd);
            }
            Err(SocketMapError::Refused { path: path.to_owned(), request, answer })
        };
        ask(format!("{CONNECT}, {pod}"), HOST_OK)?;
        let map = ask(format!("{MAP_FD}, {interface}"), FD_ACK)?;
        ask(FIN.to_owned(), FIN_ACK)?;
        Self::checked(map.ok_or(SocketMapError::NoSocketMap)?)
    }
}

fn connect_to(path: &Path) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// One request: the answer, and the descriptor that came with it.
fn ask(plugin: &impl AsFd, request: &str) -> io::Result<(String, Option<OwnedFd>)> {
    let mut nothing = SendAncillaryBuffer::default();
    let bytes = [IoSlice::new(request.as_bytes())];
    sendmsg(plugin, &bytes, &mut nothing, SendFlags::NOSIGNAL)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut answer = [0; MESSAGE_BYTES_MAX];
    let mut room = [IoSliceMut::new(&mut answer)];
    let got = recvmsg(plugin, &mut room, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let text = String::from_utf8_lossy(&answer[..got.bytes]);
    Ok((text.trim_end_matches('\0').to_owned(), fd))
}
