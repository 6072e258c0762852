//! Ethernet frames as they are, on one interface: what a test sends, and what arrives.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::{Timeout, set_socket_recv_buffer_size_force, set_socket_timeout};

use super::Netns;

/// Enough for all that a test has under way.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

/// A packet socket (packet(7)). It does not see what it sends itself.
#[derive(Debug)]
pub struct PacketSocket {
    file: File,
}

impl PacketSocket {
    /// On an interface of the namespace; a frame is waited for no longer than `patience`.
    pub fn open(namespace: &Netns, interface: &str, patience: Duration) -> Self {
        let socket = namespace.enter(|| bound(interface));
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
