//! An uplink: a NIC with our program on it and a socket on each of its queues.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::busy_poll::{BusyPoll, BusyPollError, DeferredInterrupts};
use super::host_device::{HostDevice, HostDeviceError};
use super::launcher::{Handed, SocketMap, SocketMapError};
use super::mode_fallback::{open_best, open_handed};
use super::multicast::MulticastTap;
use super::nic::InterfaceError;
use super::program::{self, ProgramError, Redirect};
use super::umem::Umem;
use super::uplink_error::{Occupant, QUEUES_MAX, UplinkError};
use super::uplink_interface::Interface;
use super::xdp_attachment::{AttachMode, ModeWish, XdpAttachment};
use super::xdp_socket::Socket;

/// An uplink as another process has opened it.
#[derive(Debug)]
pub struct InheritedUplink {
    /// Kernel index of the NIC.
    pub index: u32,
    /// How it is attached.
    pub attachment: XdpAttachment,
    /// The program's link.
    pub link: OwnedFd,
    /// Broadcast and multicast.
    pub tap: OwnedFd,
    /// The frame memory.
    pub umem: OwnedFd,
    /// The sockets, by queue.
    pub sockets: Vec<(u32, OwnedFd)>,
}

/// A NIC in use. Its sockets are handed to the workers; all else stays with the control plane.
#[derive(Debug)]
pub struct Uplink {
    /// The NIC as it was when opened.
    pub interface: Interface,
    /// How it is attached.
    pub attachment: XdpAttachment,
    /// Present while it is busy polled. It is dropped before the program, whose end may end NAPI
    /// instances.
    pub deferred: Option<DeferredInterrupts>,
    /// The program; None where it is a launcher's.
    pub redirect: Option<Redirect>,
    /// Broadcast and multicast; None where the program is a launcher's and decides on them too.
    pub tap: Option<MulticastTap>,
}

impl Uplink {
    /// Open the NIC `name` with sockets on `queues` (None: all it has), busy polled if that is
    /// wanted.
    ///
    /// # Errors
    /// [`UplinkError`]; the NIC is then as it was.
    pub fn open(
        name: &str,
        queues: Option<&[u32]>,
        wish: ModeWish,
        busy_poll: Option<&BusyPoll>,
    ) -> Result<(Self, Vec<Socket>), UplinkError> {
        let (interface, queues) = usable(name, queues)?;
        let mut redirect = Redirect::load()?;
        let tap = MulticastTap::open(name, interface.index)?;
        let (attach_mode, attach_reason) = attach(&mut redirect, &interface, wish)?;
        let mut opened = open_best(&interface, &queues, wish, attach_mode)?;
        for socket in &opened.sockets {
            let fd = socket.fd().expect("a bound socket has a descriptor");
            redirect.set_socket(socket.queue(), fd)?;
        }
        let deferred = busy_poll.map(|wish| poll_busily(&interface, &mut opened.sockets, wish));
        let deferred = deferred.transpose()?;
        let (attachment, sockets) = opened.attachment(attach_mode, &attach_reason);
        let (redirect, tap) = (Some(redirect), Some(tap));
        let uplink = Self { interface, attachment, deferred, redirect, tap };
        Ok((uplink, sockets))
    }

    /// Use the NIC `name` through the objects that a launcher hands in. The launcher's program is
    /// on the NIC and redirects packets on `queues` to their sockets: all packets that come are
    /// ours.
    ///
    /// # Errors
    /// [`UplinkError`]; a launcher's socket may then be useless.
    pub fn adopt(
        name: &str,
        queues: Option<&[u32]>,
        handed: &Handed,
        wish: ModeWish,
        busy_poll: Option<&BusyPoll>,
    ) -> Result<(Self, Vec<Socket>), UplinkError> {
        let (interface, queues) = usable(name, queues)?;
        let attach_mode = program::attached(interface.index);
        let attach_mode = attach_mode.ok_or_else(|| UplinkError::NoProgram(name.to_owned()))?;
        if attach_mode == AttachMode::Native
            && let Some(reason) = interface.device.generic_only()
        {
            return Err(UplinkError::GenericOnly(reason));
        }
        let map = map_of(handed, name)?;
        let mut opened = open_handed(&interface, &queues, wish, handed)?;
        let sockets = &opened.sockets;
        for (map, socket) in map.iter().flat_map(|map| sockets.iter().map(move |it| (map, it))) {
            let fd = socket.fd().expect("a bound socket has a descriptor");
            map.set(socket.queue(), fd)?;
        }
        let deferred = busy_poll.map(|wish| poll_busily(&interface, &mut opened.sockets, wish));
        let deferred = deferred.transpose()?;
        let (attachment, sockets) = opened.attachment(attach_mode, "");
        let uplink = Self { interface, attachment, deferred, redirect: None, tap: None };
        Ok((uplink, sockets))
    }

    /// Join the host to the VMs of this NIC, as long as the device lives.
    ///
    /// # Errors
    /// [`HostDeviceError`].
    pub fn join_host(&self) -> Result<Option<HostDevice>, HostDeviceError> {
        let (Some(redirect), Some(tap)) = (&self.redirect, &self.tap) else { return Ok(None) };
        HostDevice::open(&self.interface, redirect, tap).map(Some)
    }

    /// Take over the NIC `name` as another process has opened it. The program is loaded anew and
    /// is in force with [`Redirect::replace`]. Until then, and until its sockets
    /// [resume](Socket::resume), the NIC is the other process's.
    ///
    /// # Errors
    /// [`UplinkError`]; nothing has changed for the other process.
    pub fn inherit(
        name: &str,
        queues: Option<&[u32]>,
        inherited: InheritedUplink,
    ) -> Result<(Self, Vec<Socket>), UplinkError> {
        let interface = Interface::read(name)?;
        if interface.index != inherited.index {
            return Err(InterfaceError::NotFound(name.to_owned()).into());
        }
        let had: Vec<u32> = inherited.sockets.iter().map(|&(queue, _)| queue).collect();
        let wanted = queues.map_or_else(|| had.clone(), <[u32]>::to_vec);
        if had != wanted {
            return Err(UplinkError::OtherQueues { had, wanted });
        }
        let attachment = inherited.attachment;
        let mut redirect = Redirect::load()?;
        redirect.inherit(inherited.link);
        let tap = MulticastTap::inherit(inherited.tap);
        let umem = Arc::new(Umem::of_file(inherited.umem).map_err(UplinkError::Inherit)?);
        let mut sockets = Vec::with_capacity(had.len());
        for (queue, fd) in inherited.sockets {
            let socket = Socket::adopt(fd, queue, Arc::clone(&umem), attachment.packet_max);
            let socket = socket.map_err(UplinkError::Inherit)?;
            redirect.set_socket(queue, socket.fd().expect("it was just taken over"))?;
            sockets.push(socket);
        }
        let (redirect, tap) = (Some(redirect), Some(tap));
        let uplink = Self { interface, attachment, deferred: None, redirect, tap };
        Ok((uplink, sockets))
    }
}

fn poll_busily(
    interface: &Interface,
    sockets: &mut [Socket],
    wish: &BusyPoll,
) -> Result<DeferredInterrupts, BusyPollError> {
    for socket in sockets {
        socket.poll_busily(wish.budget, wish.suspend).map_err(BusyPollError::Socket)?;
    }
    DeferredInterrupts::start(interface, wish)
}

/// The map that our sockets are to be put into; None where a launcher has put its own into one.
fn map_of(handed: &Handed, interface: &str) -> Result<Option<SocketMap>, SocketMapError> {
    Ok(match handed {
        Handed::Sockets(_) => None,
        Handed::Map(path) => Some(SocketMap::pinned(path)?),
        Handed::DevicePlugin(path) => Some(SocketMap::from_device_plugin(path, interface)?),
    })
}

/// The NIC, which has to be up, and its queues that are wanted.
fn usable(name: &str, queues: Option<&[u32]>) -> Result<(Interface, Vec<u32>), UplinkError> {
    let interface = Interface::read(name)?;
    interface.device.fit()?;
    if !interface.up {
        return Err(UplinkError::Down(name.to_owned()));
    }
    let queues = chosen_queues(&interface, queues)?;
    Ok((interface, queues))
}

fn chosen_queues(interface: &Interface, queues: Option<&[u32]>) -> Result<Vec<u32>, UplinkError> {
    let count = interface.receive_queues;
    let queues = queues.map_or_else(|| (0..count).collect(), <[u32]>::to_vec);
    let name = || interface.name.clone();
    if let Some(&queue) = queues.iter().find(|&&queue| queue >= count) {
        return Err(UplinkError::NoSuchQueue { interface: name(), queue, count });
    }
    if let Some(&queue) = queues.iter().find(|&&queue| queue >= QUEUES_MAX) {
        return Err(UplinkError::TooManyQueues { interface: name(), queue });
    }
    Ok(queues)
}

/// Attach natively unless another mode was asked for. The generic hook serves where any mode will
/// do, and the driver refuses or its frames would come to no socket.
fn attach(
    redirect: &mut Redirect,
    interface: &Interface,
    wish: ModeWish,
) -> Result<(AttachMode, String), UplinkError> {
    let mut attach = |mode| redirect.attach(&interface.name, interface.index, mode);
    let generic = |reason| Ok((AttachMode::Generic, reason));
    let attached = match (wish, interface.device.generic_only()) {
        (ModeWish::Generic, _) => attach(AttachMode::Generic)
            .and_then(|()| generic("generic mode as configured".to_owned())),
        (ModeWish::Auto, Some(reason)) => {
            attach(AttachMode::Generic).and_then(|()| generic(reason))
        }
        (_, Some(reason)) => return Err(UplinkError::GenericOnly(reason)),
        (_, None) => match attach(AttachMode::Native) {
            Err(ProgramError::Attach { source, .. }) if wish == ModeWish::Auto => {
                let driver = &interface.driver;
                let reason = format!("driver {driver} takes no native XDP: {source}");
                attach(AttachMode::Generic).and_then(|()| generic(reason))
            }
            attached => attached.map(|()| (AttachMode::Native, String::new())),
        },
    };
    let (mode, reason) = attached.map_err(|error| match error {
        ProgramError::Occupied(interface) => {
            UplinkError::Occupied(Box::new(Occupant::of(&interface)))
        }
        error => error.into(),
    })?;
    // The reported mode is the one that the kernel chose, not the one asked for.
    Ok((program::attached(interface.index).unwrap_or(mode), reason))
}
