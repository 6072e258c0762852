//! The cost of the ring alone: to take a packet's chain, resolve its buffers, and complete it. One
//! iteration is a burst of 64 packets; criterion's `elem/s` are packets per second. No byte of a
//! packet is touched. The clock runs for the device's side alone; it stands while the driver offers
//! and takes back.

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use isonic::guest_memory::GuestMemory;
use isonic::test_support::guest_driver::{Driver, GuestRam, HEADER};
use isonic::virtqueue::{self, DeviceRing, Direction, Layout, QueueOptions, Segments};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

use common::{BURST, LAYOUTS, OPTIONS, RING_SIZE, memory, queue, ram, time};

struct Bench {
    driver: Driver,
    /// Where the packet is cut into descriptors.
    cut: Vec<usize>,
    ours: virtqueue::Queue,
    theirs: Queue,
    memory: GuestMemoryMmap,
    _ram: GuestRam,
}

/// Take and complete all that the driver has offered.
fn serve<L: Layout>(memory: &GuestMemory, ring: &mut L) {
    while ring.has_available().unwrap() {
        let mut segments = Segments::new();
        let chain = ring.take(memory, Direction::FromGuest, &mut segments).unwrap();
        black_box(&segments);
        ring.complete(chain, 0);
    }
    ring.publish();
    black_box(ring.needs_notification());
}

impl Bench {
    fn new(cut: Vec<usize>, options: QueueOptions) -> Self {
        let mut ram = ram();
        let driver = Driver::new(&mut ram, RING_SIZE, options);
        let (ours, theirs, memory) = (driver.activate(), queue(&driver), memory(&ram));
        Self { driver, cut, ours, theirs, memory, _ram: ram }
    }

    fn offer(&mut self) {
        for _ in 0..BURST {
            self.driver.send(&[0x5a; 64], &self.cut);
        }
    }

    fn clear(&mut self) {
        assert_eq!(self.driver.completed().len(), usize::from(BURST));
    }

    fn ours(&mut self) {
        match self.ours.parts() {
            (memory, DeviceRing::Split(ring)) => serve(memory, ring),
            (memory, DeviceRing::Packed(ring)) => serve(memory, ring),
        }
    }

    fn theirs(&mut self) {
        while let Some(chain) = self.theirs.pop_descriptor_chain(&self.memory) {
            let head = chain.head_index();
            for descriptor in chain.readable() {
                let len = descriptor.len() as usize;
                black_box(self.memory.get_slice(descriptor.addr(), len).unwrap());
            }
            self.theirs.add_used(&self.memory, head, 0).unwrap();
        }
        black_box(self.theirs.needs_notification(&self.memory).unwrap());
    }
}

fn ring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(u64::from(BURST)));
    for (name, cut) in [("one_descriptor", vec![]), ("two_descriptors", vec![HEADER])] {
        for (layout, options) in LAYOUTS {
            let mut bench = Bench::new(cut.clone(), options);
            group.bench_function(format!("{layout}/{name}"), |bencher| {
                let steps = [Bench::offer, Bench::ours, Bench::clear];
                bencher.iter_custom(|bursts| time(bursts, &mut bench, steps));
            });
        }
        let mut bench = Bench::new(cut, OPTIONS);
        group.bench_function(format!("virtio-queue/{name}"), |bencher| {
            let steps = [Bench::offer, Bench::theirs, Bench::clear];
            bencher.iter_custom(|bursts| time(bursts, &mut bench, steps));
        });
    }
}

criterion_group!(benches, ring);
criterion_main!(benches);
