//! The cost of a packet in the whole datapath, without a NIC and without a kernel.
//!
//! One iteration is a burst of 64 packets; criterion's `elem/s` are packets per second. The clock
//! runs for the device's work alone. Ours is one turn of a worker: commands, inbox, sockets, rings,
//! the MAC lookup of a switch, counters, publication, the notification decision. The reference
//! device's is its ring loop and the notification decision.
//!
//! The guest's driver, and the stand-in for the kernel at the other end of the AF_XDP rings, work
//! before and after, with the clock stopped. The packet is therefore in the cache, and the numbers
//! leave out the cost of a second core's cache lines.

mod common;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use isonic::datapath::{Attachment, Route, UplinkId, WorkerId, frame_max};
use isonic::reference::RingLoop;
use isonic::test_support::guest_driver::{Driver, GuestRam};
use isonic::test_support::rig::Rig;
use isonic::virtqueue::QueueOptions;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

use common::{BURST, LAYOUTS, OPTIONS, RING_SIZE, memory, queue, ram, time};

/// Frame lengths.
const LENGTHS: [usize; 2] = [64, 1500];
/// The buffer that Linux posts for frames of up to 1518 bytes.
const BUFFER: usize = 1536;
const OUTSIDE: [u8; 6] = [0x02, 0xff, 0, 0, 0, 9];

fn mac(number: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, number]
}

fn frame(to: [u8; 6], from: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from[..], &[0x88, 0xb5]].concat();
    frame.resize(len, 0x5a);
    frame
}

/// A guest's two rings, its driver's side.
struct Guest {
    ram: GuestRam,
    to_guest: Driver,
    from_guest: Driver,
}

impl Guest {
    fn new(options: QueueOptions) -> Self {
        let mut ram = ram();
        let to_guest = Driver::new(&mut ram, RING_SIZE, options);
        let from_guest = Driver::new(&mut ram, RING_SIZE, options);
        Self { ram, to_guest, from_guest }
    }

    fn send(&mut self, frame: &[u8]) {
        for _ in 0..BURST {
            self.from_guest.send(frame, &[]);
        }
    }

    fn post(&mut self) {
        self.to_guest.post(BURST, BUFFER);
    }

    /// Take everything back, which must be a burst on `rings` of the two.
    fn completed(&mut self, rings: usize) {
        let completed = self.from_guest.completed().len() + self.to_guest.completed().len();
        assert_eq!(completed, rings * usize::from(BURST), "every packet went through");
    }
}

/// A worker with two guests on one switch.
struct Ours {
    rig: Rig,
    guests: [Guest; 2],
    frame: Vec<u8>,
}

impl Ours {
    fn new(frame: Vec<u8>, options: QueueOptions) -> Self {
        let mut rig = Rig::new(1);
        let guests = [1, 2].map(|number| {
            let attachment = Attachment::Switch { mac: mac(number) };
            let workers = vec![WorkerId(0)];
            let route = Route::new(UplinkId(0), attachment, frame_max(1500), workers);
            let route = Route { ready: vec![0], ..route };
            let port = rig.add_port(route);
            let guest = Guest::new(options);
            rig.give(0, port, 0, guest.to_guest.ring().0);
            rig.give(0, port, 1, guest.from_guest.ring().0);
            guest
        });
        Self { rig, guests, frame }
    }

    fn turn(&mut self) {
        self.rig.workers[0].turn();
    }

    fn clear_wire(&mut self) {
        assert_eq!(self.rig.wires[0].departed().len(), usize::from(BURST));
    }
}

/// The reference device's ring loop, with two guests and a wire of its own.
struct Theirs {
    ring_loop: RingLoop,
    guests: [Guest; 2],
    memories: [GuestMemoryMmap; 2],
    to_guest: Queue,
    from_guest: Queue,
    frame: Vec<u8>,
    /// The wire: a frame's memory for each packet of a burst, as in a UMEM.
    wire: Vec<[u8; 2048]>,
    lens: Vec<usize>,
}

impl Theirs {
    fn new(frame: Vec<u8>) -> Self {
        let guests = [OPTIONS, OPTIONS].map(Guest::new);
        Self {
            ring_loop: RingLoop::new(1522),
            memories: [memory(&guests[0].ram), memory(&guests[1].ram)],
            from_guest: queue(&guests[0].from_guest),
            to_guest: queue(&guests[1].to_guest),
            guests,
            frame,
            wire: vec![[0; 2048]; usize::from(BURST)],
            lens: Vec::with_capacity(usize::from(BURST)),
        }
    }

    fn transmit(&mut self) {
        let (wire, lens) = (&mut self.wire, &mut self.lens);
        lens.clear();
        self.ring_loop.from_guest(&mut self.from_guest, &self.memories[0], |frame| {
            wire[lens.len()][..frame.len()].copy_from_slice(frame);
            lens.push(frame.len());
        });
        self.from_guest.needs_notification(&self.memories[0]).unwrap();
    }

    fn receive(&mut self) {
        for (bytes, &len) in self.wire.iter().zip(&self.lens) {
            let frame = &bytes[..len];
            self.ring_loop.to_guest(&mut self.to_guest, &self.memories[1], frame).unwrap();
        }
        self.to_guest.needs_notification(&self.memories[1]).unwrap();
    }

    fn arrive(&mut self) {
        self.lens.clear();
        for bytes in &mut self.wire {
            bytes[..self.frame.len()].copy_from_slice(&self.frame);
            self.lens.push(self.frame.len());
        }
    }
}

/// From a guest's transmit ring to the wire.
fn from_guest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("from_guest");
    group.throughput(Throughput::Elements(u64::from(BURST)));
    for len in LENGTHS {
        let frame = frame(OUTSIDE, mac(1), len);
        for (name, options) in LAYOUTS {
            let mut ours = Ours::new(frame.clone(), options);
            group.bench_function(format!("{name}/{len}"), |bencher| {
                bencher.iter_custom(|bursts| {
                    time(
                        bursts,
                        &mut ours,
                        [
                            |ours| ours.guests[0].send(&ours.frame),
                            Ours::turn,
                            |ours| {
                                ours.clear_wire();
                                ours.guests[0].completed(1);
                            },
                        ],
                    )
                });
            });
        }
        let mut theirs = Theirs::new(frame);
        group.bench_function(format!("reference/{len}"), |bencher| {
            bencher.iter_custom(|bursts| {
                time(
                    bursts,
                    &mut theirs,
                    [
                        |theirs| theirs.guests[0].send(&theirs.frame),
                        Theirs::transmit,
                        |theirs| theirs.guests[0].completed(1),
                    ],
                )
            });
        });
    }
}

/// From the wire to a guest's receive ring.
fn to_guest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("to_guest");
    group.throughput(Throughput::Elements(u64::from(BURST)));
    for len in LENGTHS {
        let frame = frame(mac(2), OUTSIDE, len);
        for (name, options) in LAYOUTS {
            let mut ours = Ours::new(frame.clone(), options);
            group.bench_function(format!("{name}/{len}"), |bencher| {
                bencher.iter_custom(|bursts| {
                    time(
                        bursts,
                        &mut ours,
                        [
                            |ours| {
                                ours.guests[1].post();
                                for _ in 0..BURST {
                                    assert!(ours.rig.wires[0].arrive(&ours.frame));
                                }
                            },
                            Ours::turn,
                            |ours| ours.guests[1].completed(1),
                        ],
                    )
                });
            });
        }
        let mut theirs = Theirs::new(frame);
        group.bench_function(format!("reference/{len}"), |bencher| {
            bencher.iter_custom(|bursts| {
                time(
                    bursts,
                    &mut theirs,
                    [
                        |theirs| {
                            theirs.guests[1].post();
                            theirs.arrive();
                        },
                        Theirs::receive,
                        |theirs| theirs.guests[1].completed(1),
                    ],
                )
            });
        });
    }
}

/// From one guest to another: ours copies once, the reference device through its wire.
fn guest_to_guest(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("guest_to_guest");
    group.throughput(Throughput::Elements(u64::from(BURST)));
    for len in LENGTHS {
        let frame = frame(mac(2), mac(1), len);
        for (name, options) in LAYOUTS {
            let mut ours = Ours::new(frame.clone(), options);
            group.bench_function(format!("{name}/{len}"), |bencher| {
                bencher.iter_custom(|bursts| {
                    time(
                        bursts,
                        &mut ours,
                        [
                            |ours| {
                                ours.guests[0].send(&ours.frame);
                                ours.guests[1].post();
                            },
                            Ours::turn,
                            |ours| ours.guests.iter_mut().for_each(|guest| guest.completed(1)),
                        ],
                    )
                });
            });
        }
        let mut theirs = Theirs::new(frame);
        group.bench_function(format!("reference/{len}"), |bencher| {
            bencher.iter_custom(|bursts| {
                time(
                    bursts,
                    &mut theirs,
                    [
                        |theirs| {
                            theirs.guests[0].send(&theirs.frame);
                            theirs.guests[1].post();
                        },
                        |theirs| {
                            theirs.transmit();
                            theirs.receive();
                        },
                        |theirs| theirs.guests.iter_mut().for_each(|guest| guest.completed(1)),
                    ],
                )
            });
        });
    }
}

criterion_group!(benches, from_guest, to_guest, guest_to_guest);
criterion_main!(benches);
