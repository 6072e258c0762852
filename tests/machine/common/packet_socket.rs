//! Ethernet frames as they are, on one interface: those that a test sends, and those that arrive.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};

use super::Netns;

/// Enough for all that a test has under way.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// A packet socket (packet(7)). It does not see the frames that it sends itself.
#[derive(Debug)]
pub struct PacketSocket {
    file: File,
}

impl PacketSocket {
    /// On an interface of the namespace; a frame is waited for no longer than `patience`.
    pub fn open(namespace: &Netns, interface: &str, patience: Duration) -> Self {
        Self::over(namespace.enter(|| bound(interface)), patience)
    }

    /// A socket on an interface of the current namespace; a frame is waited for no longer than
    /// `patience`.
    pub fn here(interface: &str, patience: Duration) -> Self {
        Self::over(bound(interface), patience)
    }

    fn over(socket: OwnedFd, patience: Duration) -> Self {
        set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES).expect("receive buffer");
        set_socket_timeout(&socket, Timeout::Recv, Some(patience)).expect("timeout");
        Self { file: File::from(socket) }
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        let sent = self.file.write(frame).expect("send a frame");
        assert_eq!(sent, frame.len(), "a frame goes whole or not at all");
    }

    /// Whether the kernel drops a frame that is to be sent.
    pub fn is_refused(&mut self, frame: &[u8]) -> bool {
        self.file.write(frame).is_err()
    }

    /// Sends a frame that may be lost on the spot, which the interface counts.
    pub fn offer(&mut self, frame: &[u8]) {
        let _ = self.file.write(frame);
    }

    /// The next frame that arrives, if one does in time.
    pub fn receive(&mut self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 16];
        match self.file.read(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                Some(frame)
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => None,
            Err(error) => panic!("receive a frame: {error}"),
        }
    }
}

/// Sends one TCP packet of `segments` thousand bytes from an interface, for the kernel to cut. Its
/// segments arrive together at the other end of a veth that leaves no checksum undone.
pub fn tcp_burst(namespace: &Netns, interface: &str, to: [u8; 6], segments: u16) {
    let socket = namespace.enter(|| bound(interface));
    let on = 1i32;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("4");
    // SAFETY: `on` lives across the call, and `length` is its size.
    let status = unsafe {
        let (level, name) = (libc::SOL_PACKET, libc::PACKET_VNET_HDR);
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), length)
    };
    assert_eq!(status, 0, "PACKET_VNET_HDR: {}", std::io::Error::last_os_error());
    let (source, target) = ([10, 77, 0, 1], [10, 77, 0, 101]);
    let tcp_length = 20 + segments * 1000;
    let [high, low] = (20 + tcp_length).to_be_bytes();
    let mut ip = [&[0x45, 0, high, low, 0, 1, 0x40, 0, 64, 6, 0, 0][..], &source, &target].concat();
    let sum = !folded(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    // The checksum field holds the sum of the pseudo header (RFC 9293, section 3.1).
    let pseudo = [&source[..], &target, &[0, 6], &tcp_length.to_be_bytes()].concat();
    let mut tcp = [0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0];
    tcp[16..18].copy_from_slice(&folded(&pseudo).to_be_bytes());
    // struct virtio_net_hdr: VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_TCPV4; the length of
    // the headers and of a segment, where the checksum starts and lies.
    let fields = [54u16, 1000, 34, 16].map(u16::to_ne_bytes).concat();
    let ethernet = [&to[..], &[2, 0, 0, 0, 0, 0x11, 8, 0]].concat();
    let data = vec![0x5a; usize::from(segments) * 1000];
    let packet = [&[1u8, 1][..], &fields, &ethernet, &ip, &tcp, &data].concat();
    let sent = File::from(socket).write(&packet).expect("send a packet to be cut");
    assert_eq!(sent, packet.len());
}

/// The sum of RFC 1071 over whole words.
fn folded(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    u16::try_from((sum & 0xffff) + (sum >> 16)).expect("folded")
}

fn bound(interface: &str) -> OwnedFd {
    // SAFETY: no pointers are passed.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    assert!(socket >= 0, "packet socket: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor was just made, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let index = name_to_index(&socket, interface).expect("interface");
    // SAFETY: all zeroes are a valid address.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("17");
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("3").to_be();
    address.sll_ifindex = i32::try_from(index).expect("an index");
    let length = libc::socklen_t::try_from(size_of_val(&address)).expect("20");
    // SAFETY: `address` lives across the call, and `length` is its size.
    let status = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(status, 0, "bind: {}", std::io::Error::last_os_error());
    socket
}
