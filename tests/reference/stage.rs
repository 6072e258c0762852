//! Where a scene is played: one of the two devices, a front-end, and the guest's drivers.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isonic::profile::{Catalog, Profile};
use isonic::reference::ReferenceDevice;
use isonic::test_support::frontend::{
    Frontend, NEED_REPLY, addresses, code, event, pair, signalled,
};
use isonic::test_support::guest_driver::{Driver, FRONTEND_BASE, GuestRam, Used};
use isonic::test_support::live_port::LivePort;
use isonic::virtqueue::QueueOptions;
use vhost::vhost_user::Listener;

/// Bytes of the guest's memory.
pub const RAM_BYTES: u64 = 16 << 20;
/// Entries of its rings.
pub const RING_SIZE: u16 = 256;
/// The ring that packets to the guest go to.
pub const TO_GUEST: u32 = 0;
/// The ring whose packets a scene looks at.
pub const FROM_GUEST: u32 = 1;
/// A ring that always runs while packets move, to know by its packets that all others are done.
const MARKERS: u32 = 3;
/// The shortest frame on a wire (IEEE 802.3, 3.2.8), without its check sequence.
const WIRE_BYTES_MIN: usize = 60;
/// Ethernet type of the packets that only tell that others are done.
const MARKER_TYPE: [u8; 2] = [0x88, 0xb6];

/// The profile that both devices offer.
pub fn profile() -> Profile {
    Catalog::embedded().get("org.isonic.net.v1").expect("it is embedded").as_ref().clone()
}

/// Which device is on stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    Ours,
    Reference,
}

enum Device {
    Ours(Arc<LivePort>),
    Reference(ReferenceDevice),
}

/// A connection to a new device, with nothing said yet.
pub struct Stage {
    pub frontend: Frontend,
    device: Device,
    pub ram: GuestRam,
    /// The guest's rings 0 to 3.
    pub drivers: Vec<Driver>,
    kicks: Vec<File>,
    calls: Vec<File>,
    /// What was seen so far and not yet asked for: on the wire, and given back on [`FROM_GUEST`].
    departed: Vec<Vec<u8>>,
    completed: Vec<Used>,
}

impl Stage {
    pub fn new(who: Who) -> Self {
        let (frontend, device) = match who {
            Who::Ours => {
                let port = Arc::new(LivePort::start(profile().mtu));
                let frontend = Frontend::connect(profile(), Arc::clone(&port) as _);
                (frontend, Device::Ours(port))
            }
            Who::Reference => {
                let folder = tempfile::tempdir().unwrap();
                let path = folder.path().join("socket");
                let mut listener = Listener::new(&path, true).unwrap();
                let frontend = Frontend::over(UnixStream::connect(&path).unwrap());
                let device = ReferenceDevice::serve(profile(), &mut listener).unwrap();
                (frontend, Device::Reference(device))
            }
        };
        let mut ram = GuestRam::new(RAM_BYTES);
        let options = QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE };
        let drivers = (0..4).map(|_| Driver::new(&mut ram, RING_SIZE, options)).collect();
        let events = || (0..4).map(|_| event()).collect();
        let (kicks, calls) = (events(), events());
        let (departed, completed) = (Vec::new(), Vec::new());
        Self { frontend, device, ram, drivers, kicks, calls, departed, completed }
    }

    // ---- messages -----------------------------------------------------------------------------

    /// The number that answers a request without a body.
    pub fn ask(&self, request: u32) -> String {
        match self.frontend.number(request) {
            Some(value) => format!("{value:#x}"),
            None => "session ended".to_owned(),
        }
    }

    /// How a request is acknowledged, and whether the session lives on.
    pub fn tell(&self, request: u32, body: &[u8], files: &[&File]) -> String {
        self.frontend.send(request, NEED_REPLY, body, files);
        let answer = match self.frontend.reply(request) {
            None => return "session ended without an answer".to_owned(),
            Some(body) if body == 0_u64.to_ne_bytes() => "done",
            Some(_) => "refused",
        };
        let lives = self.frontend.number(code::GET_FEATURES).is_some();
        if lives { answer.to_owned() } else { format!("{answer}, session ended") }
    }

    /// A request whose body is one number.
    pub fn tell_number(&self, request: u32, value: u64) -> String {
        self.tell(request, &value.to_ne_bytes(), &[])
    }

    /// A request that both devices must do.
    fn must(&self, request: u32, body: &[u8], files: &[&File]) {
        assert_eq!(self.tell(request, body, files), "done", "request {request}");
    }

    /// Ask for both kinds of features, as every front-end does first (without that the reference
    /// device acknowledges nothing), and acknowledge the protocol's.
    pub fn agree(&self) {
        self.frontend.number(code::GET_FEATURES).unwrap();
        let offered = self.frontend.number(code::GET_PROTOCOL_FEATURES).unwrap();
        self.must(code::SET_PROTOCOL_FEATURES, &offered.to_ne_bytes(), &[]);
    }

    /// All up to the device features: those offered, without these.
    pub fn negotiate_without(&mut self, bits: &[u8]) {
        self.agree();
        self.must(code::SET_OWNER, &[], &[]);
        let without = bits.iter().fold(0, |set, bit| set | 1_u64 << bit);
        let features = profile().features.0 & !without;
        self.must(code::SET_FEATURES, &features.to_ne_bytes(), &[]);
    }

    pub fn negotiate(&mut self) {
        self.negotiate_without(&[]);
    }

    /// Body of a SET_MEM_TABLE with one region of so many bytes.
    pub fn memory_table(bytes: u64) -> Vec<u8> {
        [1, 0, bytes, FRONTEND_BASE, 0].map(u64::to_ne_bytes).concat()
    }

    /// Body of an ADD_MEM_REG or REM_MEM_REG.
    pub fn memory_region(guest: u64) -> Vec<u8> {
        [0, guest, RAM_BYTES, FRONTEND_BASE + guest, 0].map(u64::to_ne_bytes).concat()
    }

    pub fn share(&self) {
        self.must(code::SET_MEM_TABLE, &Self::memory_table(RAM_BYTES), &[&self.ram.file]);
    }

    /// Where a ring is, as SET_VRING_ADDR has it.
    pub fn place(&self, ring: u32) -> [u64; 3] {
        let parts = self.drivers[ring as usize].setup().addresses;
        [parts.descriptors.0, parts.available.0, parts.used.0]
    }

    /// Start a ring from this base in QEMU's order, and enable it.
    pub fn start_ring(&self, ring: u32, base: u32) {
        self.start_disabled(ring, base);
        self.must(code::SET_VRING_ENABLE, &pair(ring, 1), &[]);
        // Ours reminds the driver when a ring is given; the scenes are about what comes later.
        let _ = self.interrupted(ring);
    }

    pub fn start_disabled(&self, ring: u32, base: u32) {
        let number = u64::from(ring).to_ne_bytes();
        self.must(code::SET_VRING_NUM, &pair(ring, u32::from(RING_SIZE)), &[]);
        self.must(code::SET_VRING_BASE, &pair(ring, base), &[]);
        self.must(code::SET_VRING_ADDR, &addresses(ring, 0, self.place(ring)), &[]);
        self.must(code::SET_VRING_KICK, &number, &[&self.kicks[ring as usize]]);
        self.must(code::SET_VRING_CALL, &number, &[&self.calls[ring as usize]]);
    }

    /// All up to running rings, without these features.
    pub fn run_without(&mut self, bits: &[u8]) {
        self.negotiate_without(bits);
        self.share();
        for ring in [TO_GUEST, FROM_GUEST, MARKERS] {
            self.start_ring(ring, 0);
        }
    }

    pub fn run(&mut self) {
        self.run_without(&[]);
    }

    /// GET_VRING_BASE.
    pub fn stop_ring(&self, ring: u32) -> String {
        match self.frontend.stop_ring(ring) {
            Some(base) => format!("base {base}"),
            None => "session ended".to_owned(),
        }
    }

    // ---- packets ------------------------------------------------------------------------------

    pub fn receiver(&mut self) -> &mut Driver {
        &mut self.drivers[TO_GUEST as usize]
    }

    pub fn sender(&mut self) -> &mut Driver {
        &mut self.drivers[FROM_GUEST as usize]
    }

    pub fn kick(&self, ring: u32) {
        rustix::io::write(&self.kicks[ring as usize], &1_u64.to_ne_bytes()).unwrap();
    }

    /// Whether the device has interrupted for this ring since it was last asked.
    pub fn interrupted(&self, ring: u32) -> bool {
        signalled(&self.calls[ring as usize])
    }

    /// A frame arrives from the wire.
    pub fn arrive(&self, frame: &[u8]) {
        match &self.device {
            Device::Ours(port) => port.arrive(frame),
            Device::Reference(device) => device.wire().arrive(frame),
        }
    }

    /// Kick, and wait until the device has looked at everything it was offered before.
    ///
    /// Our worker visits the wire, then each ring in turn, and shows receive rings last, so it is
    /// in its third turn from now that it must have; the reference device gets one event at a
    /// time. A turn is known to have been by its packet on the ring of markers.
    pub fn settle(&mut self) {
        self.kick(FROM_GUEST);
        let frame = [&[0; 12][..], &MARKER_TYPE, &[0; 46]].concat();
        for _ in 0..3 {
            self.drivers[MARKERS as usize].send(&frame, &[]);
            self.kick(MARKERS);
            let mut left = 2;
            until("a marker's completion and departure", || {
                left -= self.drivers[MARKERS as usize].completed().len();
                let departed = match &self.device {
                    Device::Ours(port) => port.departed(),
                    Device::Reference(device) => device.wire().departed(),
                };
                for mut frame in departed {
                    // Ours pads; theirs leaves that to the tap device that it has for a wire.
                    frame.resize(frame.len().max(WIRE_BYTES_MIN), 0);
                    if frame.get(12..14) == Some(&MARKER_TYPE) {
                        left -= 1;
                    } else {
                        self.departed.push(frame);
                    }
                }
                left == 0
            });
        }
        self.completed.extend(self.drivers[FROM_GUEST as usize].completed());
    }

    /// What left on the wire since this was last asked.
    pub fn departed(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.departed)
    }

    /// What the device gave back on [`FROM_GUEST`] since this was last asked.
    pub fn completed(&mut self) -> Vec<Used> {
        std::mem::take(&mut self.completed)
    }
}

/// Wait for something that must happen.
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::yield_now();
    }
}
