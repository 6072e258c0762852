//! A front-end that says exactly what a test tells it to, its guest's memory, and a host that
//! remembers which rings it was given.
//!
//! Messages are written byte by byte, so that tests can also send messages that no decent front-end
//! would send. Failures panic: this is for tests only.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::sockopt::set_socket_linger;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::device::features::{
    EVENT_IDX, FeatureSet, INDIRECT_DESC, MQ, MRG_RXBUF, MTU, PROTOCOL_FEATURES,
    PROTOCOL_IMPLEMENTED, VERSION_1,
};
use crate::profile::Profile;
use crate::vhost_user::{
    MemoryPolicy, PortBackend, PortBackendError, SessionBinding, SessionEnd, serve,
};
use crate::virtqueue::{EventFd, EventKind, Ring};

/// Request numbers (vhost-user, "Front-end message types").
#[allow(missing_docs)]
pub mod code {
    pub const GET_FEATURES: u32 = 1;
    pub const SET_FEATURES: u32 = 2;
    pub const SET_OWNER: u32 = 3;
    pub const SET_MEM_TABLE: u32 = 5;
    pub const SET_LOG_BASE: u32 = 6;
    pub const SET_LOG_FD: u32 = 7;
    pub const SET_VRING_NUM: u32 = 8;
    pub const SET_VRING_ADDR: u32 = 9;
    pub const SET_VRING_BASE: u32 = 10;
    pub const GET_VRING_BASE: u32 = 11;
    pub const SET_VRING_KICK: u32 = 12;
    pub const SET_VRING_CALL: u32 = 13;
    pub const SET_VRING_ERR: u32 = 14;
    pub const GET_PROTOCOL_FEATURES: u32 = 15;
    pub const SET_PROTOCOL_FEATURES: u32 = 16;
    pub const GET_QUEUE_NUM: u32 = 17;
    pub const SET_VRING_ENABLE: u32 = 18;
    pub const SEND_RARP: u32 = 19;
    pub const NET_SET_MTU: u32 = 20;
    pub const SET_BACKEND_REQ_FD: u32 = 21;
    pub const CREATE_CRYPTO_SESSION: u32 = 26;
    pub const CLOSE_CRYPTO_SESSION: u32 = 27;
    pub const RESET_DEVICE: u32 = 34;
    pub const GET_MAX_MEM_SLOTS: u32 = 36;
    pub const ADD_MEM_REG: u32 = 37;
    pub const REM_MEM_REG: u32 = 38;
    pub const SET_STATUS: u32 = 39;
    pub const GET_STATUS: u32 = 40;
    pub const SET_DEVICE_STATE_FD: u32 = 42;
    pub const CHECK_DEVICE_STATE: u32 = 43;
}

/// Flags of a request, version 1, that asks for an acknowledgement.
pub const NEED_REPLY: u32 = 0x9;
/// Entries of the rings that [`Frontend`] sets up.
pub const RING_SIZE: u32 = 256;

/// A profile that offers all there is, with two queue pairs.
#[must_use]
pub fn profile() -> Profile {
    let bits = [MTU, MRG_RXBUF, MQ, INDIRECT_DESC, EVENT_IDX, PROTOCOL_FEATURES, VERSION_1];
    Profile {
        name: "org.isonic.test.v1".to_owned(),
        summary: "for tests".to_owned(),
        features: set(bits),
        frontend_features: FeatureSet::default(),
        protocol_features: PROTOCOL_IMPLEMENTED,
        ring_size_max: 1024,
        queue_pairs_max: 2,
        mtu: 1500,
        memory_slots: 8,
    }
}

fn set(bits: impl IntoIterator<Item = u8>) -> FeatureSet {
    FeatureSet(bits.into_iter().fold(0, |set, bit| set | 1 << bit))
}

/// An eventfd, to send as kick, call or err.
#[must_use]
pub fn event() -> File {
    File::from(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap())
}

/// A socket whose close(2) waits for longer than any test, and the end that does not read. Bytes
/// written to the first cannot all be sent.
#[must_use]
pub fn lingering() -> (File, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (far, _) = listener.accept().unwrap();
    near.set_nonblocking(true).unwrap();
    while (&near).write(&[0; 65536]).is_ok() {}
    set_socket_linger(&near, Some(Duration::from_secs(600))).unwrap();
    (File::from(OwnedFd::from(near)), far)
}

/// Whether the eventfd was signalled; takes the signal.
#[must_use]
pub fn signalled(event: &File) -> bool {
    let mut event: &File = event;
    event.read(&mut [0; 8]).is_ok()
}

/// One region of a guest's memory, in a memfd.
#[derive(Debug)]
pub struct GuestFile {
    /// The memfd.
    pub file: File,
    /// Guest address.
    pub guest: u64,
    /// Front-end address.
    pub frontend: u64,
    /// Bytes.
    pub size: u64,
}

impl GuestFile {
    /// `size` zero bytes at these addresses.
    #[must_use]
    pub fn new(guest: u64, frontend: u64, size: u64) -> Self {
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let file = File::from(rustix::fs::memfd_create("isonic-guest", flags).unwrap());
        file.set_len(size).unwrap();
        Self { file, guest, frontend, size }
    }

    /// The region as memory messages have it: guest address, size, front-end address, offset.
    #[must_use]
    pub fn description(&self) -> Vec<u8> {
        [self.guest, self.size, self.frontend, 0].iter().flat_map(|v| v.to_ne_bytes()).collect()
    }

    /// Body of a SET_MEM_TABLE with these regions.
    #[must_use]
    pub fn table(regions: &[&Self]) -> Vec<u8> {
        let count = u64::try_from(regions.len()).unwrap().to_ne_bytes();
        let descriptions = regions.iter().flat_map(|region| region.description());
        count.into_iter().chain(descriptions).collect()
    }

    /// Body of an ADD_MEM_REG or REM_MEM_REG.
    #[must_use]
    pub fn single(&self) -> Vec<u8> {
        [vec![0; 8], self.description()].concat()
    }

    /// Where ring `index` is laid out, as front-end addresses: descriptors, available, used.
    #[must_use]
    pub fn ring(&self, index: u32) -> [u64; 3] {
        let start = self.frontend + u64::from(index) * 0x10000;
        [start, start + 0x4000, start + 0x8000]
    }

    /// Set the used index of ring `index`, as if so many entries had been served.
    pub fn set_used_index(&self, index: u32, value: u16) {
        let offset = u64::from(index) * 0x10000 + 0x8000 + 2;
        self.file.write_all_at(&value.to_le_bytes(), offset).unwrap();
    }
}

/// Body of the vring messages that carry an index and a number.
#[must_use]
pub fn pair(index: u32, value: u32) -> Vec<u8> {
    [index.to_ne_bytes(), value.to_ne_bytes()].concat()
}

/// Body of a SET_VRING_ADDR.
#[must_use]
pub fn addresses(index: u32, flags: u32, parts: [u64; 3]) -> Vec<u8> {
    addresses_logged(index, flags, parts, 0)
}

/// Body of a SET_VRING_ADDR with an address to log the ring at.
#[must_use]
pub fn addresses_logged(
    index: u32,
    flags: u32,
    [descriptors, available, used]: [u64; 3],
    log: u64,
) -> Vec<u8> {
    let parts = [descriptors, used, available, log].map(u64::to_ne_bytes).concat();
    [pair(index, flags), parts].concat()
}

/// A front-end connected to a session of ours that runs on a thread.
#[derive(Debug)]
pub struct Frontend {
    /// Our end of the connection.
    pub stream: UnixStream,
    session: Option<JoinHandle<SessionEnd>>,
}

impl Frontend {
    /// Connect to a new session with this profile and host.
    #[must_use]
    pub fn connect(profile: Profile, host: Arc<dyn PortBackend>) -> Self {
        let (stream, theirs) = UnixStream::pair().unwrap();
        let session =
            std::thread::spawn(move || serve(&theirs, Arc::new(profile), host, "isonic-test"));
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, session: Some(session) }
    }

    /// Use a stream that is connected already.
    #[must_use]
    pub fn over(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        Self { stream, session: None }
    }

    /// Send a message. False if the session has closed the connection.
    pub fn send(&self, request: u32, flags: u32, body: &[u8], files: &[&File]) -> bool {
        let len = u32::try_from(body.len()).unwrap();
        let header = [request, flags, len].map(u32::to_ne_bytes).concat();
        self.send_bytes(&[&header[..], body].concat(), files)
    }

    /// Send any bytes, with descriptors on the first.
    pub fn send_bytes(&self, bytes: &[u8], files: &[&File]) -> bool {
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(|file| file.as_fd()).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        let buffers = [IoSlice::new(bytes)];
        match sendmsg(&self.stream, &buffers, &mut control, SendFlags::NOSIGNAL) {
            Ok(sent) => {
                assert_eq!(sent, bytes.len());
                true
            }
            Err(_) => false,
        }
    }

    /// Body of the next reply, which must be to `request`; None if the session has ended.
    #[must_use]
    pub fn reply(&self, request: u32) -> Option<Vec<u8>> {
        let mut header = [0; 12];
        (&self.stream).read_exact(&mut header).ok()?;
        let [code, flags, len] =
            [0, 4, 8].map(|at| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap()));
        assert_eq!((code, flags), (request, 0x5));
        let mut body = vec![0; usize::try_from(len).unwrap()];
        (&self.stream).read_exact(&mut body).unwrap();
        Some(body)
    }

    /// The number that answers `request`, and the descriptor that came with it.
    ///
    /// # Panics
    /// If the session has ended.
    #[must_use]
    pub fn reply_with_file(&self, request: u32) -> (u64, Option<File>) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut reply = [0; 20];
        let mut buffers = [IoSliceMut::new(&mut reply)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        let received = recvmsg(&self.stream, &mut buffers, &mut control, flags).unwrap();
        assert_eq!(received.bytes, 20, "a header and a number");
        assert_eq!(reply[..4], request.to_ne_bytes());
        let file = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut files) => files.next().map(File::from),
            _ => None,
        });
        (u64::from_ne_bytes(reply[12..].try_into().unwrap()), file)
    }

    /// The number that answers `request`; None if the session ended instead.
    #[must_use]
    pub fn number(&self, request: u32) -> Option<u64> {
        self.send(request, 1, &[], &[]);
        self.reply(request).map(|body| u64::from_ne_bytes(body.try_into().unwrap()))
    }

    /// Whether a request is acknowledged as done.
    ///
    /// # Panics
    /// If the session ends instead.
    #[must_use]
    pub fn accepted(&self, request: u32, body: &[u8], files: &[&File]) -> bool {
        assert!(self.send(request, NEED_REPLY, body, files));
        let body = self.reply(request).expect("the session should live and acknowledge");
        match u64::from_ne_bytes(body.try_into().unwrap()) {
            0 => true,
            1 => false,
            other => panic!("acknowledgement {other}"),
        }
    }

    /// A request that must be acknowledged as done.
    pub fn ok(&self, request: u32, body: &[u8], files: &[&File]) {
        assert!(self.accepted(request, body, files), "request {request} was refused");
    }

    /// A request that must be refused.
    pub fn refused(&self, request: u32, body: &[u8], files: &[&File]) {
        assert!(!self.accepted(request, body, files), "request {request} was accepted");
    }

    /// All up to the device features, acknowledging everything offered.
    pub fn negotiate(&self) {
        let offered = self.number(code::GET_FEATURES).unwrap();
        let protocol = self.number(code::GET_PROTOCOL_FEATURES).unwrap();
        self.ok(code::SET_PROTOCOL_FEATURES, &protocol.to_ne_bytes(), &[]);
        self.ok(code::SET_OWNER, &[], &[]);
        self.ok(code::SET_FEATURES, &offered.to_ne_bytes(), &[]);
    }

    /// Negotiate, share `memory`, and start rings 0 to `rings` in QEMU's order, enabled.
    pub fn start(&self, memory: &GuestFile, rings: u32) {
        self.negotiate();
        self.ok(code::SET_MEM_TABLE, &GuestFile::table(&[memory]), &[&memory.file]);
        for index in 0..rings {
            self.start_ring(memory, index);
        }
    }

    /// Start ring `index` in QEMU's order, and enable it.
    pub fn start_ring(&self, memory: &GuestFile, index: u32) {
        self.ok(code::SET_VRING_NUM, &pair(index, RING_SIZE), &[]);
        self.ok(code::SET_VRING_BASE, &pair(index, 0), &[]);
        self.ok(code::SET_VRING_ADDR, &addresses(index, 0, memory.ring(index)), &[]);
        self.ok(code::SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[&event()]);
        self.ok(code::SET_VRING_CALL, &u64::from(index).to_ne_bytes(), &[&event()]);
        self.ok(code::SET_VRING_ENABLE, &pair(index, 1), &[]);
    }

    /// GET_VRING_BASE; None if the session ended instead.
    #[must_use]
    pub fn stop_ring(&self, index: u32) -> Option<u32> {
        self.send(code::GET_VRING_BASE, 1, &pair(index, 0), &[]);
        let body = self.reply(code::GET_VRING_BASE)?;
        assert_eq!(body[..4], index.to_ne_bytes());
        Some(u32::from_ne_bytes(body[4..].try_into().unwrap()))
    }

    /// Close the connection and say how the session ended.
    pub fn disconnect(mut self) -> SessionEnd {
        self.stream.shutdown(std::net::Shutdown::Both).unwrap();
        self.session.take().unwrap().join().unwrap()
    }

    /// How the session ended by itself.
    pub fn ended(mut self) -> SessionEnd {
        self.session.take().unwrap().join().unwrap()
    }
}

/// A host that keeps the rings it is given, and counts.
#[derive(Debug, Default)]
pub struct RecordingHost {
    rings: Mutex<BTreeMap<u16, Ring>>,
    /// Every `give` (true) and `take` that found a ring (false), in order.
    pub moves: Mutex<Vec<(u16, bool)>>,
    /// Every announcement.
    pub announced: Mutex<Vec<[u8; 6]>>,
    /// The last binding.
    pub binding: Mutex<SessionBinding>,
    /// The memory that guests may have.
    pub memory: MemoryPolicy,
}

impl RecordingHost {
    /// The rings that are here now.
    ///
    /// # Panics
    /// If another test thread panicked under the lock.
    pub fn rings(&self) -> MutexGuard<'_, BTreeMap<u16, Ring>> {
        self.rings.lock().unwrap()
    }

    /// The numbers of the rings that are here now.
    #[must_use]
    pub fn indices(&self) -> Vec<u16> {
        self.rings().keys().copied().collect()
    }
}

impl PortBackend for RecordingHost {
    fn memory_policy(&self) -> MemoryPolicy {
        self.memory
    }

    fn give(&self, index: u16, ring: Ring) -> Result<(), PortBackendError> {
        assert!(self.rings().insert(index, ring).is_none(), "ring {index} was given twice");
        self.moves.lock().unwrap().push((index, true));
        Ok(())
    }

    fn take(&self, index: u16) -> Result<Option<Ring>, PortBackendError> {
        let ring = self.rings().remove(&index);
        if ring.is_some() {
            self.moves.lock().unwrap().push((index, false));
        }
        Ok(ring)
    }

    fn exchange(
        &self,
        index: u16,
        kind: EventKind,
        event: Option<EventFd>,
    ) -> Result<(), PortBackendError> {
        let mut rings = self.rings();
        rings.get_mut(&index).expect("the ring runs").set_event(kind, event);
        Ok(())
    }

    fn announce(&self, mac: [u8; 6]) {
        self.announced.lock().unwrap().push(mac);
    }

    fn bound(&self, binding: SessionBinding) {
        *self.binding.lock().unwrap() = binding;
    }
}
