//! An uplink: a NIC with our program on it and a socket on each of its queues.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::busy_poll::{BusyPoll, BusyPollError, Deferred};
use super::host_device::{HostDevice, HostDeviceError};
use super::launcher::{Handed, MapError, SocketMap};
use super::multicast::{MulticastTap, TapError};
use super::nic::{self, AttachedProgram, SteeringError, Unfit};
use super::program::{self, AttachMode, ProgramError, Redirect};
use super::umem::{FRAGMENTS_MAX, FRAME_PACKET_MAX, Umem};
use super::uplink_interface::{Interface, InterfaceError};
use super::xdp_socket::{Binding, Socket, SocketError, SocketMode, inherit, open_all};

/// What the operator wants of the NIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ModeWish {
    /// The fastest that works.
    #[default]
    Auto,
    /// Zero-copy, or fail.
    ZeroCopy,
    /// Copy mode under a native program, or fail.
    Copy,
    /// Copy mode under a generic program.
    Generic,
}

/// Queues that the XDP program has places for (`QUEUES_MAX` of bpf/redirect.bpf.c).
const QUEUES_MAX: u32 = 256;

/// Why the NIC cannot be an uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Not there.
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    /// Of a kind that cannot carry guests' frames.
    #[error(transparent)]
    Unfit(#[from] Unfit),
    /// The mode asked for would run a program where its sockets do not get the frames.
    #[error("{0}; use mode = \"auto\" or \"generic\", or one of its ports as the uplink")]
    GenericOnly(String),
    /// Down.
    #[error("interface {0} is down; bring it up with `ip link set dev {0} up`")]
    Down(String),
    /// A queue that it does not have.
    #[error("interface {interface} has no queue {queue}: it has {count} (0 to {})", .count - 1)]
    NoSuchQueue {
        /// NIC.
        interface: String,
        /// Asked for.
        queue: u32,
        /// Queues it has.
        count: u32,
    },
    /// More queues than the XDP program has places for.
    #[error(
        "queue {queue} of {interface}: queues 0 to {} can be served; choose some with `queues`",
        QUEUES_MAX - 1
    )]
    TooManyQueues {
        /// NIC.
        interface: String,
        /// Asked for.
        queue: u32,
    },
    /// A launcher's sockets without its program.
    #[error(
        "no XDP program is on {0}: whoever hands sockets over attaches one that redirects to them"
    )]
    NoProgram(String),
    /// A launcher's map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The program is not in place.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Somebody else's program is.
    #[error("{0}")]
    Occupied(Box<Occupant>),
    /// No sockets.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Frames would arrive on queues without a socket.
    #[error(transparent)]
    Steering(#[from] SteeringError),
    /// No multicast.
    #[error(transparent)]
    Tap(#[from] TapError),
    /// The host cannot be joined to its VMs.
    #[error(transparent)]
    Host(#[from] HostDeviceError),
    /// No busy polling.
    #[error(transparent)]
    BusyPoll(#[from] BusyPollError),
    /// What another process had of it cannot be gone on with.
    #[error("its sockets cannot be taken over; Linux before 6.4 does not allow it")]
    Inherit(#[source] io::Error),
    /// It is to have other queues than it had.
    #[error("it has sockets on queues {had:?}, and is to have them on {wanted:?}")]
    OtherQueues {
        /// Those of the process before.
        had: Vec<u32>,
        /// By the configuration.
        wanted: Vec<u32>,
    },
}

/// Who has an XDP program where ours was to be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occupant {
    /// The interface that we wanted.
    wanted: String,
    /// The one with the program: that one, or the device that it is a port of.
    interface: String,
    /// The program, if it can be seen.
    program: Option<AttachedProgram>,
}

impl Occupant {
    /// Whoever keeps us from this interface.
    fn of(wanted: &str) -> Self {
        let on = |interface: &str| nic::ask(nic::program_on(interface)).ok()?.ok();
        let (mut interface, mut program) = (wanted.to_owned(), None);
        if let Some((found, master)) = on(wanted) {
            program = found;
            if let Some(master) = master.filter(|_| program.is_none()) {
                program = on(&master.interface).and_then(|(found, _)| found);
                interface = if program.is_some() { master.interface } else { interface };
            }
        }
        Self { wanted: wanted.to_owned(), interface, program }
    }
}

impl fmt::Display for Occupant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, interface, program } = self;
        let holder = program.as_ref().and_then(|program| program.holder.as_ref());
        let holder = holder.map(|holder| format!(" ({holder})")).unwrap_or_default();
        if program.as_ref().is_some_and(AttachedProgram::is_ours) {
            return write!(
                f,
                "another isonic has {interface}{holder}: a NIC has one isonic; add ports to that \
                 one with `isonic port add`, or stop it first"
            );
        }
        write!(f, "another XDP program is attached to {interface}")?;
        if interface != wanted {
            write!(f, ", of which {wanted} is a port")?;
        }
        if let Some(program) = program {
            write!(f, ": {program}{holder}")?;
        }
        write!(f, "; see `bpftool net show dev {interface}` and detach it first")
    }
}

impl UplinkError {
    /// Whether it may pass by itself: the NIC is not there, or down, or its queues have another
    /// process's sockets still. The kernel parts with those of a process that was killed when it
    /// gets to it, and not before the last frame was sent.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Socket(error) => error.is_busy(),
            Self::Down(_) => true,
            other => other.is_absence(),
        }
    }

    /// Whether the NIC is not there.
    #[must_use]
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Interface(InterfaceError::NotFound(_)))
    }
}

/// An uplink as another process has opened it.
#[derive(Debug)]
pub struct InheritedUplink {
    /// Kernel index of the NIC.
    pub index: u32,
    /// Where the program runs.
    pub attach_mode: AttachMode,
    /// How packets move.
    pub socket_mode: SocketMode,
    /// Why not something better.
    pub reason: String,
    /// The longest packet, bytes.
    pub packet_max: u32,
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
    /// Where the program runs.
    pub attach_mode: AttachMode,
    /// How packets move.
    pub socket_mode: SocketMode,
    /// Why not something better.
    pub reason: String,
    /// The longest packet that every socket sends and receives, bytes.
    pub packet_max: u32,
    /// While it is busy polled. Goes before the program, whose end may end NAPI instances.
    pub deferred: Option<Deferred>,
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
        let (socket_mode, socket_reason, mut sockets) =
            bind(&interface, &queues, wish, attach_mode)?;
        for socket in &sockets {
            let fd = socket.fd().expect("a bound socket has a descriptor");
            redirect.set_socket(socket.queue(), fd)?;
        }
        let deferred = busy_poll.map(|wish| poll_busily(&interface, &mut sockets, wish));
        let deferred = deferred.transpose()?;
        let reason = sentence(&[&attach_reason, &socket_reason]);
        let uplink = Self {
            interface,
            attach_mode,
            socket_mode,
            reason,
            packet_max: packet_max(&sockets),
            deferred,
            redirect: Some(redirect),
            tap: Some(tap),
        };
        Ok((uplink, sockets))
    }

    /// Use the NIC `name` by what a launcher hands in. Its program is on the NIC and redirects what
    /// arrives on `queues` to their sockets: whatever comes, comes to us.
    ///
    /// # Errors
    /// [`UplinkError`]; a launcher's socket may then be of no use any more.
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
        let mut sockets = bind_once(&interface, &queues, wish, handed)?;
        for (map, socket) in map.iter().flat_map(|map| sockets.iter().map(move |it| (map, it))) {
            let fd = socket.fd().expect("a bound socket has a descriptor");
            map.set(socket.queue(), fd)?;
        }
        let deferred = busy_poll.map(|wish| poll_busily(&interface, &mut sockets, wish));
        let socket_mode = sockets.first().and_then(Socket::mode).unwrap_or(SocketMode::Copy);
        let uplink = Self {
            interface,
            attach_mode,
            socket_mode,
            reason: "the program is a launcher's; the kernel chose the sockets' mode".to_owned(),
            packet_max: packet_max(&sockets),
            deferred: deferred.transpose()?,
            redirect: None,
            tap: None,
        };
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

    /// Go on with the NIC `name` as another process has opened it. The program is loaded anew and
    /// is in force with [`Redirect::replace`]; until then, and until its sockets
    /// [go on](Socket::resume), the NIC is the other process's.
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
        let InheritedUplink { attach_mode, socket_mode, reason, packet_max, .. } = inherited;
        let mut redirect = Redirect::load()?;
        redirect.inherit(inherited.link);
        let tap = MulticastTap::inherit(inherited.tap);
        let umem = Arc::new(Umem::of_file(inherited.umem).map_err(UplinkError::Inherit)?);
        let mut sockets = Vec::with_capacity(had.len());
        for (queue, fd) in inherited.sockets {
            let socket = Socket::adopt(fd, queue, Arc::clone(&umem), packet_max);
            let socket = socket.map_err(UplinkError::Inherit)?;
            redirect.set_socket(queue, socket.fd().expect("it was just taken over"))?;
            sockets.push(socket);
        }
        let uplink = Self {
            interface,
            attach_mode,
            socket_mode,
            reason,
            packet_max,
            deferred: None,
            redirect: Some(redirect),
            tap: Some(tap),
        };
        Ok((uplink, sockets))
    }

    /// Whether a packet may have several frames (XDP_USE_SG).
    #[must_use]
    pub fn multi_buffer(&self) -> bool {
        self.packet_max > FRAME_PACKET_MAX
    }
}

fn poll_busily(
    interface: &Interface,
    sockets: &mut [Socket],
    wish: &BusyPoll,
) -> Result<Deferred, BusyPollError> {
    for socket in sockets {
        socket.poll_busily(wish.budget, wish.suspend).map_err(BusyPollError::Socket)?;
    }
    Deferred::start(interface, wish)
}

/// What every one of the sockets carries.
fn packet_max(sockets: &[Socket]) -> u32 {
    sockets.iter().map(Socket::packet_max).min().expect("a NIC has a queue")
}

/// The map that our sockets are to be put into; None where a launcher has put its own into one.
fn map_of(handed: &Handed, interface: &str) -> Result<Option<SocketMap>, MapError> {
    Ok(match handed {
        Handed::Sockets(_) => None,
        Handed::Map(path) => Some(SocketMap::pinned(path)?),
        Handed::DevicePlugin(path) => Some(SocketMap::from_device_plugin(path, interface)?),
    })
}

/// A launcher's socket can be tried once, so the kernel falls back to copy mode by itself. It does
/// so too where packets are to have more frames than the driver takes.
fn bind_once(
    interface: &Interface,
    queues: &[u32],
    wish: ModeWish,
    handed: &Handed,
) -> Result<Vec<Socket>, SocketError> {
    let mode = match wish {
        ModeWish::ZeroCopy => Some(SocketMode::ZeroCopy),
        ModeWish::Copy => Some(SocketMode::Copy),
        ModeWish::Auto | ModeWish::Generic => None,
    };
    let frames = match (mode, interface.zero_copy_frames as usize) {
        (Some(SocketMode::Copy), _) | (None, 0) => FRAGMENTS_MAX,
        (_, frames) => frames.max(1),
    };
    let inherited = match handed {
        Handed::Sockets(numbers) => Some(inherit(numbers)?),
        Handed::Map(_) | Handed::DevicePlugin(_) => None,
    };
    open_all(interface, queues, Binding { mode, frames }, inherited)
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

/// Native unless it was not asked for; generic where any mode will do and the driver refuses, or
/// its frames would come to no socket.
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
    // Told is what the kernel did, whatever was asked of it.
    Ok((program::attached(interface.index).unwrap_or(mode), reason))
}

/// Zero-copy where the wish and the program's mode allow it and the driver has it, else copy.
fn bind(
    interface: &Interface,
    queues: &[u32],
    wish: ModeWish,
    attached: AttachMode,
) -> Result<(SocketMode, String, Vec<Socket>), SocketError> {
    let zero_copy =
        attached == AttachMode::Native && matches!(wish, ModeWish::Auto | ModeWish::ZeroCopy);
    if !zero_copy {
        let asked = if wish == ModeWish::Copy { "copy mode as configured" } else { "" };
        let (sockets, limit) = open_widest(interface, queues, SocketMode::Copy)?;
        return Ok((SocketMode::Copy, sentence(&[asked, &limit]), sockets));
    }
    // To try costs the frame memory, which would be made twice: some tens of milliseconds in which
    // every guest of a daemon that is started again waits.
    if interface.zero_copy_frames == 0 && wish == ModeWish::Auto {
        let refused = format!("driver {} has no zero-copy", interface.driver);
        let (sockets, limit) = open_widest(interface, queues, SocketMode::Copy)?;
        return Ok((SocketMode::Copy, sentence(&[&refused, &limit]), sockets));
    }
    match open_widest(interface, queues, SocketMode::ZeroCopy) {
        Ok((sockets, limit)) => {
            Ok((SocketMode::ZeroCopy, sentence(&["the driver has zero-copy", &limit]), sockets))
        }
        Err(error) if error.is_busy() => Err(error),
        Err(SocketError::Bind { source, .. }) if wish == ModeWish::Auto => {
            let refused = format!("the driver refused zero-copy: {source}");
            let (sockets, limit) = open_widest(interface, queues, SocketMode::Copy)?;
            Ok((SocketMode::Copy, sentence(&[&refused, &limit]), sockets))
        }
        Err(error) => Err(error),
    }
}

/// For packets of several frames where kernel and driver take them, else of one, and why.
fn open_widest(
    interface: &Interface,
    queues: &[u32],
    mode: SocketMode,
) -> Result<(Vec<Socket>, String), SocketError> {
    let frames = match mode {
        SocketMode::ZeroCopy => interface.zero_copy_frames as usize,
        SocketMode::Copy => FRAGMENTS_MAX,
    };
    let why = if frames > 1 {
        match open_all(interface, queues, Binding { mode: Some(mode), frames }, None) {
            Ok(sockets) => return Ok((sockets, String::new())),
            // Somebody has a queue: nothing narrower would be had either.
            Err(error) if error.is_busy() => return Err(error),
            // A kernel before 6.6 does not know the flag.
            Err(SocketError::Bind { source, .. }) => source.to_string(),
            Err(error) => return Err(error),
        }
    } else {
        "the driver takes no more in this mode".to_owned()
    };
    let binding = Binding { mode: Some(mode), frames: 1 };
    let sockets = open_all(interface, queues, binding, None)?;
    Ok((sockets, format!("a packet is one frame of {FRAME_PACKET_MAX} bytes at most: {why}")))
}

/// The parts that say something, one after the other.
fn sentence(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join("; ")
}
