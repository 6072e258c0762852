//! A front-end of our own on a thread of its own. It sends requests and awaits responses, or is
//! connected and idle.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use isonic::device::features::{MRG_RXBUF, PROTOCOL_FEATURES, VERSION_1};
use isonic::test_support::frontend::{Frontend, addresses, code, event, pair};
use isonic::test_support::guest_driver::{Driver, FRONTEND_BASE, GuestRam};
use isonic::virtqueue::QueueOptions;

/// Entries of its rings.
const RING_SIZE: u16 = 256;
/// Bytes of its memory: two rings with a page for each entry, and room.
const RAM_BYTES: u64 = 4 << 20;
/// Bytes of its receive buffers, as Linux posts them for frames of up to 1518 bytes.
const BUFFER: usize = 1536;
/// vhost-user protocol features: MQ and REPLY_ACK.
const PROTOCOL: u64 = 1 << 0 | 1 << 3;
/// Used ring flag: the device polls (virtio 1.2, 2.7.10).
const NO_NOTIFY: u16 = 1;
/// Where a frame's number is.
const NUMBER: usize = 14;
/// How long a packet may take before it is lost.
const LOST: Duration = Duration::from_secs(2);

/// A connected front-end with one queue pair of split rings, which polls them.
pub struct Client {
    _frontend: Frontend,
    _ram: GuestRam,
    to_guest: Driver,
    from_guest: Driver,
    kick: File,
    frame: Vec<u8>,
    /// Sent, and not yet given back.
    in_ring: usize,
    sent: u64,
}

impl Client {
    /// Connects and starts both rings; frames are `len` bytes, from this MAC.
    pub fn connect(socket: &Path, mac: &str, len: usize) -> Self {
        let stream = UnixStream::connect(socket).expect("the backend listens");
        let frontend = Frontend::over(stream);
        let mut ram = GuestRam::new(RAM_BYTES);
        let [mut to_guest, from_guest] =
            [(); 2].map(|()| Driver::new(&mut ram, RING_SIZE, QueueOptions::NONE));
        to_guest.post(RING_SIZE, BUFFER);
        for driver in [&to_guest, &from_guest] {
            driver.want_no_interrupt();
        }
        negotiate(&frontend);
        frontend.ok(code::SET_MEM_TABLE, &memory_table(), &[&ram.file]);
        start_ring(&frontend, 0, &to_guest);
        let kick = start_ring(&frontend, 1, &from_guest);
        let mut frame = vec![0x5a; len];
        frame[..6].copy_from_slice(&[2, 0xff, 0, 0, 0, 9]);
        let bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16).expect("a MAC"));
        frame[6..12].copy_from_slice(&bytes.collect::<Vec<u8>>());
        frame[12..14].copy_from_slice(&[0x88, 0xb5]);
        Self {
            _frontend: frontend,
            _ram: ram,
            to_guest,
            from_guest,
            kick,
            frame,
            in_ring: 0,
            sent: 0,
        }
    }

    /// Sends the next frame; its number, or None while the ring is full.
    fn send(&mut self) -> Option<u64> {
        self.in_ring -= self.from_guest.completed().len();
        if self.in_ring == usize::from(RING_SIZE) {
            return None;
        }
        let number = self.sent;
        self.frame[NUMBER..NUMBER + 8].copy_from_slice(&number.to_le_bytes());
        self.from_guest.send(&self.frame, &[]);
        (self.sent, self.in_ring) = (number + 1, self.in_ring + 1);
        if self.from_guest.used_flags() & NO_NOTIFY == 0 {
            self.kick.write_all(&1u64.to_ne_bytes()).expect("a kick");
        }
        Some(number)
    }

    /// The numbers of the frames that have come back.
    fn received(&mut self) -> Vec<u64> {
        let packets = self.to_guest.received();
        self.to_guest.post(u16::try_from(packets.len()).expect("at most a ring"), BUFFER);
        let number = |frame: &[u8]| frame[NUMBER..NUMBER + 8].try_into().map(u64::from_le_bytes);
        packets.iter().map(|(_, frame)| number(frame).expect("8 bytes")).collect()
    }

    /// Sends one frame and waits until it is back.
    pub fn round_trip(&mut self) -> Duration {
        let start = Instant::now();
        let number = self.send().expect("an empty ring");
        while !self.received().contains(&number) {
            assert!(start.elapsed() < LOST, "a frame did not come back");
        }
        start.elapsed()
    }

    /// Keeps `window` frames on the way for a while; frames that came back per second.
    pub fn rate(&mut self, window: usize, time: Duration) -> f64 {
        let (start, mut on_the_way, mut back) = (Instant::now(), 0, 0);
        while start.elapsed() < time {
            while on_the_way < window && self.send().is_some() {
                on_the_way += 1;
            }
            let came = self.received().len();
            (on_the_way, back) = (on_the_way - came, back + came);
        }
        while on_the_way > 0 {
            assert!(start.elapsed() < time + LOST, "frames did not come back");
            on_the_way -= self.received().len();
        }
        crate::sample::rate(back as u64, start.elapsed())
    }

    /// Sends at a steady rate for a while; how long each frame took, counted from when it was due.
    pub fn under_load(&mut self, rate: f64, time: Duration) -> Vec<Duration> {
        let period = Duration::from_secs_f64(1.0 / rate);
        let (start, first) = (Instant::now(), self.sent);
        let (mut due, mut taken) = (Duration::ZERO, Vec::new());
        let mut dues = Vec::new();
        while start.elapsed() < time {
            if start.elapsed() >= due && self.send().is_some() {
                dues.push(due);
                due += period;
            }
            self.note(start, (first, &dues), &mut taken);
        }
        while taken.len() < dues.len() && start.elapsed() < time + LOST {
            self.note(start, (first, &dues), &mut taken);
        }
        taken
    }

    fn note(
        &mut self,
        start: Instant,
        (first, dues): (u64, &[Duration]),
        taken: &mut Vec<Duration>,
    ) {
        for number in self.received() {
            let place = usize::try_from(number - first).expect("a frame of this run");
            taken.push(start.elapsed() - dues[place]);
        }
    }
}

fn negotiate(frontend: &Frontend) {
    let offered = frontend.number(code::GET_FEATURES).expect("features");
    let wanted = [VERSION_1, PROTOCOL_FEATURES, MRG_RXBUF];
    let wanted = wanted.iter().fold(0, |set, bit| set | 1u64 << bit);
    let protocol = frontend.number(code::GET_PROTOCOL_FEATURES).expect("protocol features");
    // Before this there is no REPLY_ACK to ask for.
    frontend.send(code::SET_PROTOCOL_FEATURES, 1, &(protocol & PROTOCOL).to_ne_bytes(), &[]);
    frontend.ok(code::SET_OWNER, &[], &[]);
    frontend.ok(code::SET_FEATURES, &(offered & wanted).to_ne_bytes(), &[]);
}

/// Body of a SET_MEM_TABLE with the one region of a [`GuestRam`].
fn memory_table() -> Vec<u8> {
    [1, 0, RAM_BYTES, FRONTEND_BASE, 0].iter().flat_map(|value: &u64| value.to_ne_bytes()).collect()
}

/// Gives its kick descriptor.
fn start_ring(frontend: &Frontend, index: u32, driver: &Driver) -> File {
    let (setup, kick) = (driver.setup(), event());
    let parts = setup.addresses;
    let parts = [parts.descriptors.0, parts.available.0, parts.used.0];
    frontend.ok(code::SET_VRING_NUM, &pair(index, u32::from(RING_SIZE)), &[]);
    frontend.ok(code::SET_VRING_BASE, &pair(index, 0), &[]);
    frontend.ok(code::SET_VRING_ADDR, &addresses(index, 0, parts), &[]);
    frontend.ok(code::SET_VRING_KICK, &u64::from(index).to_ne_bytes(), &[&kick]);
    frontend.ok(code::SET_VRING_CALL, &u64::from(index).to_ne_bytes(), &[&event()]);
    frontend.ok(code::SET_VRING_ENABLE, &pair(index, 1), &[]);
    kick
}
