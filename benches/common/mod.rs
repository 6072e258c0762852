//! The parts that the benches share: a guest's rings as the reference device sees them, and the
//! clock.

use std::time::{Duration, Instant};

use isonic::test_support::guest_driver::{Driver, FRONTEND_BASE, GuestRam};
use isonic::virtqueue::QueueOptions;
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

/// Packets of one burst: as many as a worker takes from a ring in one turn.
pub const BURST: u16 = 64;
/// Entries of every ring.
pub const RING_SIZE: u16 = 256;
/// The options that Linux negotiates. No driver here asks for an interrupt, so none is sent within
/// a burst.
pub const OPTIONS: QueueOptions =
    QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE };
/// Our rows, and the rings of each. The reference device has split rings alone.
pub const LAYOUTS: [(&str, QueueOptions); 2] =
    [("isonic", OPTIONS), ("isonic_packed", QueueOptions { packed: true, ..OPTIONS })];
/// Bytes of a guest's memory.
const RAM_BYTES: usize = 16 << 20;

/// A guest's memory.
#[must_use]
pub fn ram() -> GuestRam {
    GuestRam::new(RAM_BYTES as u64)
}

/// The guest's memory, for the reference device.
#[must_use]
pub fn memory(ram: &GuestRam) -> GuestMemoryMmap {
    let file = FileOffset::new(ram.file.try_clone().unwrap(), 0);
    let region = (GuestAddress(0), RAM_BYTES, Some(file));
    GuestMemoryMmap::from_ranges_with_files([region]).unwrap()
}

/// The ring of a driver, for the reference device.
#[must_use]
pub fn queue(driver: &Driver) -> Queue {
    let addresses = driver.setup().addresses;
    let [descriptors, available, used] =
        [addresses.descriptors, addresses.available, addresses.used]
            .map(|part| GuestAddress(part.0 - FRONTEND_BASE));
    let mut queue = Queue::new(RING_SIZE).unwrap();
    queue.set_size(driver.size);
    queue.try_set_desc_table_address(descriptors).unwrap();
    queue.try_set_avail_ring_address(available).unwrap();
    queue.try_set_used_ring_address(used).unwrap();
    queue.set_event_idx(driver.options.event_idx);
    queue.set_ready(true);
    queue
}

/// How long `work` takes in `bursts` rounds, without what prepares each and clears up after it.
pub fn time<S>(bursts: u64, state: &mut S, [prepare, work, clear]: [fn(&mut S); 3]) -> Duration {
    let mut total = Duration::ZERO;
    for _ in 0..bursts {
        prepare(state);
        let start = Instant::now();
        work(state);
        total += start.elapsed();
        clear(state);
    }
    total
}
