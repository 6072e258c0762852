//! A VM that lives in this process: a front-end at a daemon's socket, with the driver of its rings.

#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::virtqueue::QueueOptions;

use super::frontend::{Frontend, GuestFile, addresses, code, event, pair};
use super::guest_driver::{Driver, FRONTEND_BASE, GuestRam};

const RAM_BYTES: u64 = 64 << 20;
const RING_SIZE: u16 = 256;
const BUFFER_BYTES: usize = 4096;
/// The length of virtio-net's header.
const HEADER_BYTES: usize = 12;
/// The longest frame takes 17.
const PIECES_MAX: usize = 20;
/// How long a ring may be full.
const PATIENCE: Duration = Duration::from_secs(20);

/// A VM with some queue pairs. It uses no interrupts, and looks at its rings when it is told to. It
/// leaves no work to the device, and takes none.
#[derive(Debug)]
pub struct Vm {
    pairs: Vec<Pair>,
    _ram: GuestRam,
    frontend: Frontend,
}

#[derive(Debug)]
struct Pair {
    to_guest: Driver,
    from_guest: Driver,
    kick: File,
}

impl Vm {
    /// Connect to a port's socket, take all that is offered, and start `pairs` queue pairs.
    #[must_use]
    pub fn connect(socket: &Path, pairs: u32) -> Self {
        Self::start(socket, pairs, None)
    }

    /// Connect with one queue pair, as a front-end that maps its memory file privately. The file
    /// that it shares stays empty, whatever the driver writes.
    #[must_use]
    pub fn connect_unshared(socket: &Path) -> Self {
        Self::start(socket, 1, Some(&GuestFile::new(0, FRONTEND_BASE, RAM_BYTES).file))
    }

    fn start(socket: &Path, pairs: u32, shared: Option<&File>) -> Self {
        let options = QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE };
        let mut ram = GuestRam::new(RAM_BYTES);
        let frontend = Frontend::over(UnixStream::connect(socket).unwrap());
        frontend.negotiate();
        let table = [1, 0, RAM_BYTES, FRONTEND_BASE, 0].map(u64::to_ne_bytes).concat();
        frontend.ok(code::SET_MEM_TABLE, &table, &[shared.unwrap_or(&ram.file)]);
        let mut start = |index| {
            let driver = Driver::new(&mut ram, RING_SIZE, options);
            let kick = event();
            // As QEMU's (`event_notifier_init` in its `virtio_bus_set_host_notifier`).
            rustix::io::write(&kick, &1_u64.to_ne_bytes()).unwrap();
            start_ring(&frontend, index, &driver, &kick);
            (driver, kick)
        };
        let pairs = (0..pairs).map(|pair| {
            let ((mut to_guest, _), (from_guest, kick)) = (start(2 * pair), start(2 * pair + 1));
            to_guest.post(RING_SIZE, BUFFER_BYTES);
            Pair { to_guest, from_guest, kick }
        });
        let pairs = pairs.collect();
        Self { pairs, _ram: ram, frontend }
    }

    /// Send a frame on a queue pair; false while its ring has no room for it.
    pub fn try_send(&mut self, pair: usize, frame: &[u8]) -> bool {
        let Pair { from_guest, kick, .. } = &mut self.pairs[pair];
        from_guest.completed();
        let pieces = (HEADER_BYTES + frame.len()).div_ceil(BUFFER_BYTES);
        if from_guest.free_descriptors() < pieces {
            return false;
        }
        from_guest.send(frame, &[BUFFER_BYTES; PIECES_MAX][..pieces - 1]);
        rustix::io::write(&*kick, &1_u64.to_ne_bytes()).unwrap();
        true
    }

    /// Send a frame on the first queue pair, when there is room in its ring.
    pub fn send(&mut self, frame: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !self.try_send(0, frame) {
            assert!(Instant::now() < deadline, "nothing is taken from the ring");
            std::thread::yield_now();
        }
    }

    /// Whether all that was sent was taken.
    pub fn is_quiet(&mut self) -> bool {
        let quiet = |pair: &mut Pair| {
            pair.from_guest.completed();
            pair.from_guest.outstanding().is_empty()
        };
        self.pairs.iter_mut().all(quiet)
    }

    /// The frames that have come, whose buffers are posted again.
    pub fn received(&mut self) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        for Pair { to_guest, .. } in &mut self.pairs {
            for (_, frame) in to_guest.received() {
                frames.push(frame);
            }
            let free = to_guest.free_descriptors();
            to_guest.post(free as u16, BUFFER_BYTES);
        }
        frames
    }

    /// The session, whose messages are the test's to send.
    #[must_use]
    pub fn frontend(&self) -> &Frontend {
        &self.frontend
    }
}

/// In QEMU's order.
fn start_ring(frontend: &Frontend, index: u32, driver: &Driver, kick: &File) {
    let parts = driver.setup().addresses;
    let place = [parts.descriptors.0, parts.available.0, parts.used.0];
    let number = u64::from(index).to_ne_bytes();
    frontend.ok(code::SET_VRING_NUM, &pair(index, u32::from(RING_SIZE)), &[]);
    frontend.ok(code::SET_VRING_BASE, &pair(index, 0), &[]);
    frontend.ok(code::SET_VRING_ADDR, &addresses(index, 0, place), &[]);
    frontend.ok(code::SET_VRING_KICK, &number, &[kick]);
    frontend.ok(code::SET_VRING_CALL, &number, &[&event()]);
    frontend.ok(code::SET_VRING_ENABLE, &pair(index, 1), &[]);
}
