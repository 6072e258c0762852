//! The present and past state of an uplink's NIC: data.

use std::os::fd::OwnedFd;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::datapath::WorkerId;
use crate::device::mac::MacAddress;
use crate::xdp::nic::Caution;
use crate::xdp::{AttachMode, BindMode, Interface, UplinkError, XdpAttachment};

/// A NIC that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("uplink {interface} cannot be used")]
pub struct NicError {
    /// Its name.
    pub interface: String,
    /// Why.
    #[source]
    pub source: UplinkError,
}

/// Whether packets move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicState {
    /// They do.
    Up,
    /// The link is down, by the administrator or for want of a carrier.
    Down,
    /// There is no such interface.
    Gone,
    /// It is there, and could not be opened again.
    Failed,
}

/// An uplink as it was opened last, and how it is now.
#[derive(Clone, Debug)]
pub struct NicStatus {
    /// The NIC, under its present name or the last that it had.
    pub interface: Interface,
    /// How it is attached.
    pub attachment: XdpAttachment,
    /// Our queues, and the worker that has each one's socket.
    pub queues: Vec<(u32, WorkerId)>,
    /// Whether packets move.
    pub state: NicState,
    /// Since when.
    pub since: SystemTime,
    /// Why it failed; empty if it has not.
    pub problem: String,
    /// The name of the device that joins the host itself to the VMs.
    pub host_device: Option<String>,
    /// Queues that receive and have no socket.
    pub unserved_queues: Vec<u32>,
    /// Whether its indirection table is one of ours.
    pub steering_set: bool,
    /// The effects of its kind of device on frames, and the remedies.
    pub cautions: Vec<Caution>,
}

impl NicStatus {
    /// Whether it is open: its sockets and its program are there.
    pub fn is_open(&self) -> bool {
        matches!(self.state, NicState::Up | NicState::Down)
    }

    /// The worker that has, or had, the socket of a queue.
    pub fn worker_of(&self, queue: u32) -> Option<WorkerId> {
        self.queues.iter().find(|&&(own, _)| own == queue).map(|&(_, worker)| worker)
    }
}

/// An uplink as it was opened last: the facts by which ports were checked and placed. With them
/// ports can be served while the NIC is away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownUplink {
    /// Driver of its NIC.
    pub driver: String,
    /// The NIC's own MAC.
    pub mac: MacAddress,
    /// The NIC's MTU, bytes.
    pub mtu: u32,
    /// The longest packet, bytes.
    pub packet_max: u32,
    /// Where the program ran.
    pub attach_mode: AttachMode,
    /// How packets moved.
    pub socket_mode: BindMode,
    /// Its queues with a socket.
    pub queues: Vec<u32>,
}

impl KnownUplink {
    /// How it was attached.
    pub fn attachment(&self) -> XdpAttachment {
        XdpAttachment {
            attach_mode: self.attach_mode,
            socket_mode: self.socket_mode,
            reason: "as it was before isonic was started".to_owned(),
            packet_max: self.packet_max,
        }
    }
}

/// The state and descriptors of an uplink for another process, except its sockets.
#[derive(Debug)]
pub struct ExportedUplink {
    /// How it is.
    pub status: NicStatus,
    /// The program's link, the packet socket, and the frame memory.
    pub descriptors: [OwnedFd; 3],
}

#[cfg(test)]
impl NicStatus {
    /// An uplink that is up, with two queues: for tests.
    pub fn sample() -> Self {
        Self {
            interface: Interface {
                name: "eth0".into(),
                index: 2,
                driver: "veth".into(),
                mac: [2, 0, 0, 0, 0, 1],
                mtu: 1500,
                up: true,
                receive_queues: 2,
                zero_copy_frames: 0,
                device: crate::xdp::nic::Device::default(),
            },
            attachment: XdpAttachment {
                attach_mode: AttachMode::Native,
                socket_mode: BindMode::Copy,
                reason: "old driver".into(),
                packet_max: crate::xdp::FRAME_PACKET_MAX,
            },
            queues: vec![(0, WorkerId(0)), (1, WorkerId(0))],
            state: NicState::Up,
            since: SystemTime::now(),
            problem: String::new(),
            host_device: None,
            unserved_queues: Vec::new(),
            steering_set: false,
            cautions: Vec::new(),
        }
    }
}
