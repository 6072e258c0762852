//! The daemon's copy of a NIC's broadcast and multicast.
//!
//! An XDP program cannot give a frame to the host and to us. So multicast passes to the host, which
//! needs it (ARP, neighbour discovery, its own groups). A packet socket on the NIC brings us a copy
//! of the passed frames.
//!
//! A control thread makes one system call per frame, which suits the few multicast frames of a
//! switched uplink. A VM with much multicast should have a wire port.
//!
//! This socket also makes the NIC promiscuous, since the NIC must not filter frames for the VMs'
//! MACs. PACKET_ADD_MEMBERSHIP ends with the socket, and so with us.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Why the socket could not be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot open a packet socket on {interface} ({step}); it needs CAP_NET_RAW")]
pub struct TapError {
    /// NIC.
    pub interface: String,
    /// The call that failed.
    pub step: &'static str,
    /// The kernel's reason.
    #[source]
    pub source: io::Error,
}

/// A packet socket that receives a NIC's multicast and keeps the NIC promiscuous.
#[derive(Debug)]
pub struct MulticastTap {
    socket: OwnedFd,
}

/// A VLAN tag that the kernel took out of a frame and reports beside it (struct tpacket_auxdata).
const VLAN_TAG_BYTES: usize = 4;

impl MulticastTap {
    /// Open on the NIC with this index.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(interface: &str, index: u32) -> Result<Self, TapError> {
        let failed = |step, source| TapError { interface: interface.to_owned(), step, source };
        // Protocol 0 receives nothing until the filter is in place and bind names one.
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
        if fd < 0 {
            return Err(failed("socket", io::Error::last_os_error()));
        }
        // SAFETY: a new descriptor.
        let tap = Self { socket: unsafe { OwnedFd::from_raw_fd(fd) } };
        tap.filter_multicast().map_err(|source| failed("filter", source))?;
        tap.ignore_outgoing().map_err(|source| failed("ignore outgoing", source))?;
        tap.want_vlan_tags().map_err(|source| failed("auxdata", source))?;
        tap.join_promiscuous(index).map_err(|source| failed("promiscuous", source))?;
        tap.bind(index).map_err(|source| failed("bind", source))?;
        Ok(tap)
    }

    /// The socket that another process has opened.
    #[must_use]
    pub fn inherit(socket: OwnedFd) -> Self {
        Self { socket }
    }

    /// Wait for one frame and receive it, with its VLAN tag put back in place. Returns its length;
    /// None for a frame that does not fit, which is lost.
    ///
    /// # Errors
    /// The kernel's; ENETDOWN while the NIC is down.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        // Room in front of the frame for the tag: the two addresses move forward when there is one.
        let mut part = libc::iovec {
            iov_base: buffer[VLAN_TAG_BYTES..].as_mut_ptr().cast(),
            iov_len: buffer.len() - VLAN_TAG_BYTES,
        };
        let room = part.iov_len;
        let mut control = [0u64; 8];
        // SAFETY: a struct of integers and pointers, for which zeroes are valid.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // MSG_TRUNC: return the frame's own length, even if more than fits.
        let (fd, flags) = (self.socket.as_raw_fd(), libc::MSG_TRUNC);
        // SAFETY: all buffers outlive the call and are as long as said.
        let got = unsafe { libc::recvmsg(fd, &raw mut message, flags) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        if got > room {
            return Ok(None);
        }
        Ok(Some(match vlan_tag(&message) {
            Some(tag) if got >= 12 => {
                buffer.copy_within(VLAN_TAG_BYTES..VLAN_TAG_BYTES + 12, 0);
                buffer[12..16].copy_from_slice(&tag);
                got + VLAN_TAG_BYTES
            }
            _ => {
                buffer.copy_within(VLAN_TAG_BYTES..VLAN_TAG_BYTES + got, 0);
                got
            }
        }))
    }

    /// How many frames were lost since the last call, for want of room in the socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn lost(&self) -> io::Result<u64> {
        // SAFETY: a struct of integers, for which zeroes are valid.
        let mut statistics: libc::tpacket_stats = unsafe { std::mem::zeroed() };
        let mut len = libc::socklen_t::try_from(size_of_val(&statistics)).expect("8");
        let (fd, name) = (self.socket.as_raw_fd(), libc::PACKET_STATISTICS);
        let pointer = (&raw mut statistics).cast();
        // SAFETY: the struct outlives the call and is `len` bytes long.
        let result = unsafe { libc::getsockopt(fd, libc::SOL_PACKET, name, pointer, &raw mut len) };
        if result == 0 { Ok(statistics.tp_drops.into()) } else { Err(io::Error::last_os_error()) }
    }

    /// Accept only frames whose first byte has the group bit: a classic BPF program of
    /// `ldb [0]; jset #1, accept, reject`.
    fn filter_multicast(&self) -> io::Result<()> {
        let instruction = |code: u32, jt, jf, k| libc::sock_filter {
            code: u16::try_from(code).expect("classic BPF codes are 16 bits"),
            jt,
            jf,
            k,
        };
        let mut program = [
            instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, 0),
            instruction(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K, 0, 1, 1),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, u32::MAX),
            instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
        ];
        let filter = libc::sock_fprog { len: 4, filter: program.as_mut_ptr() };
        self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &filter)
    }

    /// Accept frames by this program instead of the filter.
    pub(super) fn filter_with(&self, program: BorrowedFd<'_>) -> io::Result<()> {
        self.set_option(libc::SOL_SOCKET, libc::SO_ATTACH_BPF, &program.as_raw_fd())
    }

    fn ignore_outgoing(&self) -> io::Result<()> {
        self.set_option(libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32)
    }

    fn want_vlan_tags(&self) -> io::Result<()> {
        self.set_option(libc::SOL_PACKET, libc::PACKET_AUXDATA, &1i32)
    }

    fn join_promiscuous(&self, index: u32) -> io::Result<()> {
        let request = libc::packet_mreq {
            mr_ifindex: signed(index),
            mr_type: u16::try_from(libc::PACKET_MR_PROMISC).expect("1"),
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set_option(libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
    }

    fn bind(&self, index: u32) -> io::Result<()> {
        // SAFETY: a struct of integers, for which zeroes are valid.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).expect("17");
        address.sll_protocol = u16::try_from(libc::ETH_P_ALL).expect("3").to_be();
        address.sll_ifindex = signed(index);
        let len = libc::socklen_t::try_from(size_of_val(&address)).expect("20");
        // SAFETY: the address outlives the call and is `len` bytes long.
        let result =
            unsafe { libc::bind(self.socket.as_raw_fd(), (&raw const address).cast(), len) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn set_option<T>(&self, level: i32, name: i32, value: &T) -> io::Result<()> {
        let len = libc::socklen_t::try_from(size_of::<T>()).expect("a small struct");
        // SAFETY: the value outlives the call and is `len` bytes long.
        let result = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(value).cast(),
                len,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl AsFd for MulticastTap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An interface index as the C int that packet(7) takes; the kernel hands out positive ones.
#[allow(clippy::cast_possible_wrap)]
fn signed(index: u32) -> i32 {
    index as i32
}

/// The tag reported in the message's auxiliary data, in wire order.
fn vlan_tag(message: &libc::msghdr) -> Option<[u8; VLAN_TAG_BYTES]> {
    // SAFETY: recvmsg filled the control buffer, which is still there, and its length.
    let header = unsafe { libc::CMSG_FIRSTHDR(message) };
    // SAFETY: CMSG_FIRSTHDR gives null or a whole, aligned header inside the buffer.
    let found = unsafe { header.as_ref() }?;
    if (found.cmsg_level, found.cmsg_type) != (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
        return None;
    }
    // SAFETY: the kernel puts a whole tpacket_auxdata behind such a header.
    let data: libc::tpacket_auxdata =
        unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
    if data.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    // 802.1Q, unless the kernel says which.
    let protocol = if data.tp_status & libc::TP_STATUS_VLAN_TPID_VALID == 0 {
        0x8100
    } else {
        data.tp_vlan_tpid
    };
    let ([p0, p1], [t0, t1]) = (protocol.to_be_bytes(), data.tp_vlan_tci.to_be_bytes());
    Some([p0, p1, t0, t1])
}
