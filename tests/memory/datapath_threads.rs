//! A worker on a thread of its own, which sleeps when there is nothing to do: no wake-up is lost,
//! whenever a ring comes or goes.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isonic::datapath::{
    Attachment, ForwardingBuilder, Inbox, PacketPool, PortId, Route, Setup, UplinkId, Watchdog,
    Watched, Worker, WorkerHandle, WorkerId, frame_max,
};
use isonic::platform::interrupt::InterruptibleThread;
use isonic::test_support::frontend::{event, signalled};
use isonic::test_support::guest_driver::{Driver, GuestRam};
use isonic::test_support::ring_pair::{Wire, ring_pair};
use isonic::virtqueue::{EventFd, EventKind, Fault, QueueOptions, Ring};

/// Far longer than any scheduling delay; only a lost wake-up takes so long.
const LOST: Duration = Duration::from_secs(10);

const PORT: PortId = PortId(0);

/// Starts a worker with a switched port and an in-memory wire.
fn start() -> (WorkerHandle, Watched, Wire) {
    let (socket, wire) = ring_pair(0, 256);
    let inbox = Arc::new(Inbox::new(256).unwrap());
    let (handle, mailbox) = WorkerHandle::new(Arc::clone(&inbox));
    let setup = Setup {
        id: WorkerId(0),
        sockets: vec![(UplinkId(0), socket)],
        umems: vec![Some(Arc::clone(wire.umem()))],
        inboxes: vec![inbox],
        pool: PacketPool::new(),
        mailbox,
        lost: crossbeam::channel::unbounded().0,
    };
    let worker = Worker::new(setup).unwrap();
    let turns = worker.turns();
    let thread = InterruptibleThread::spawn("worker".into(), move || worker.run()).unwrap();
    let watched = Watched { turns, thread: Arc::new(thread) };
    handle.add_port(PORT, "port".into()).unwrap();
    let mut table = ForwardingBuilder::default();
    let attachment = Attachment::Switch { mac: [2, 0, 0, 0, 0, 1] };
    let (uplink, workers) = (UplinkId(0), vec![WorkerId(0)]);
    let route = Route::new(uplink, attachment, frame_max(1500), workers);
    table.add(PORT, route);
    handle.set_forwarding(Arc::new(table.build())).unwrap();
    (handle, watched, wire)
}

/// Kick as a driver does: only if the device asks for it (virtio 1.2, 2.7.10.1).
fn kick_if_wanted(driver: &Driver, kick: &File, before: u16) {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    let event = driver.available_event();
    let moved = driver.available.wrapping_sub(before);
    if driver.available.wrapping_sub(event).wrapping_sub(1) < moved {
        rustix::io::write(kick, &1u64.to_ne_bytes()).unwrap();
    }
}

fn ring_with_kick(driver: &Driver) -> (Ring, File) {
    let (mut ring, _call) = driver.ring();
    let kick = event();
    ring.kick = Some(ours(&kick));
    (ring, kick)
}

/// Our end of an eventfd.
fn ours(event: &File) -> EventFd {
    EventFd::new(event.try_clone().unwrap()).unwrap()
}

fn wait_completed(driver: &mut Driver, round: u32) {
    let start = Instant::now();
    while driver.completed().is_empty() {
        assert!(start.elapsed() < LOST, "round {round}: the worker sleeps over a packet");
        std::thread::yield_now();
    }
}

#[test]
fn no_kick_is_lost_around_the_workers_sleep() {
    let (handle, watched, mut wire) = start();
    let mut ram = GuestRam::new(4 << 20);
    let mut driver =
        Driver::new(&mut ram, 256, QueueOptions { event_idx: true, ..QueueOptions::NONE });
    let (ring, kick) = ring_with_kick(&driver);
    handle.give(PORT, 1, ring).unwrap();
    for round in 0..3000u32 {
        let before = driver.available;
        driver.send(&[0x02; 60], &[]);
        kick_if_wanted(&driver, &kick, before);
        wait_completed(&mut driver, round);
        wire.departed();
        // From far shorter to far longer than the worker spins before it sleeps.
        std::thread::sleep(Duration::from_micros(u64::from(round % 7) * 10));
    }
    handle.stop();
    watched.thread.join().unwrap();
}

#[test]
fn a_new_kick_descriptor_wakes_the_worker() {
    let (handle, watched, mut wire) = start();
    let mut ram = GuestRam::new(4 << 20);
    let mut driver =
        Driver::new(&mut ram, 256, QueueOptions { event_idx: true, ..QueueOptions::NONE });
    handle.give(PORT, 1, ring_with_kick(&driver).0).unwrap();
    for round in 0..100 {
        let kick = event();
        handle.exchange((PORT, 1), EventKind::Kick, Some(ours(&kick))).unwrap();
        // Long enough for it to fall asleep.
        std::thread::sleep(Duration::from_micros(500));
        let before = driver.available;
        driver.send(&[0x02; 60], &[]);
        kick_if_wanted(&driver, &kick, before);
        wait_completed(&mut driver, round);
        wire.departed();
    }
    handle.stop();
    watched.thread.join().unwrap();
}

#[test]
fn a_ring_given_while_the_worker_falls_asleep_is_heard() {
    let (handle, watched, mut wire) = start();
    let mut ram = GuestRam::new(4 << 20);
    let mut driver =
        Driver::new(&mut ram, 256, QueueOptions { event_idx: true, ..QueueOptions::NONE });
    let (mut ring, kick) = ring_with_kick(&driver);
    for round in 0..3000u32 {
        handle.give(PORT, 1, ring).unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(round % 5) * 20));
        let before = driver.available;
        driver.send(&[0x02; 60], &[]);
        kick_if_wanted(&driver, &kick, before);
        wait_completed(&mut driver, round);
        wire.departed();
        ring = handle.take(PORT, 1).unwrap().unwrap();
        std::thread::sleep(Duration::from_micros(u64::from(round % 11) * 10));
    }
    handle.stop();
    watched.thread.join().unwrap();
}

#[test]
fn a_front_end_that_makes_its_call_descriptor_block_breaks_its_own_ring_only() {
    let (handle, watched, mut wire) = start();
    let thread = Arc::clone(&watched.thread);
    let watchdog = Watchdog::start(vec![watched]).unwrap();
    let mut ram = GuestRam::new(4 << 20);
    let options = QueueOptions { event_idx: true, ..QueueOptions::NONE };
    let (mut hostile, mut other) =
        (Driver::new(&mut ram, 64, options), Driver::new(&mut ram, 64, options));
    let (ring, call) = hostile.ring();
    handle.give(PORT, 1, ring).unwrap();
    assert!(signalled(&call), "it is told to look");
    // What any front-end can do to a descriptor it shares: block, and be full.
    let flags = rustix::fs::fcntl_getfl(&call).unwrap();
    rustix::fs::fcntl_setfl(&call, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    hostile.send(&[0x02; 60], &[]);
    handle.inbox().wake();
    wait_completed(&mut hostile, 0);
    // This waits for the worker, which waits for the front-end until it is freed.
    let reports = handle.inspect(PORT).unwrap();
    assert_eq!(reports[0].broken, Some(Fault::CallBlocked));
    handle.give(PORT, 3, other.ring().0).unwrap();
    other.send(&[0x02; 60], &[]);
    handle.inbox().wake();
    wait_completed(&mut other, 0);
    // A packet is completed before the turn ends that shows it to the wire.
    let start = Instant::now();
    let mut departed = 0;
    while departed < 2 {
        departed += wire.departed().len();
        assert!(start.elapsed() < LOST, "{departed} packets left");
    }
    handle.stop();
    thread.join().unwrap();
    drop(watchdog);
}

/// Watch `call` so often that a write to it takes long.
fn watch(call: &File) -> Vec<std::os::fd::OwnedFd> {
    use rustix::event::epoll;
    let duplicates: Vec<File> = (0..200).map(|_| call.try_clone().unwrap()).collect();
    let sets = (0..500).map(|_| {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for file in &duplicates {
            let data = epoll::EventData::new_u64(0);
            epoll::add(&set, file, data, epoll::EventFlags::IN).unwrap();
        }
        set
    });
    let sets = sets.collect();
    // Its duplicates are watched for as long as they are open.
    std::mem::forget(duplicates);
    sets
}

#[test]
fn signals_that_take_long_are_sent_by_another_thread_and_none_is_lost() {
    let (handle, watched, mut wire) = start();
    let mut ram = GuestRam::new(4 << 20);
    let mut driver = Driver::new(&mut ram, 64, QueueOptions::NONE);
    let (ring, call) = driver.ring();
    let _sets = watch(&call);
    handle.give(PORT, 1, ring).unwrap();
    for round in 0..200 {
        assert!(signalled_soon(&call), "round {round}: the guest was not told");
        driver.send(&[0x02; 60], &[]);
        handle.inbox().wake();
        wait_completed(&mut driver, round);
        wire.departed();
    }
    handle.stop();
    watched.thread.join().unwrap();
}

fn signalled_soon(call: &File) -> bool {
    let start = Instant::now();
    while !signalled(call) {
        if start.elapsed() > LOST {
            return false;
        }
        std::thread::yield_now();
    }
    true
}

#[test]
fn a_front_end_that_makes_its_call_descriptor_block_again_and_again_stops_the_worker_once() {
    let (handle, watched, _wire) = start();
    let thread = Arc::clone(&watched.thread);
    let watchdog = Watchdog::start(vec![watched]).unwrap();
    let mut ram = GuestRam::new(4 << 20);
    let driver = Driver::new(&mut ram, 64, QueueOptions { event_idx: true, ..QueueOptions::NONE });
    let (ring, call) = driver.ring();
    let block = || {
        let flags = rustix::fs::fcntl_getfl(&call).unwrap();
        rustix::fs::fcntl_setfl(&call, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
    };
    rustix::io::write(&call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    block();
    // Each time a ring is given its driver is reminded. The first waits for the watchdog.
    handle.give(PORT, 1, ring).unwrap();
    assert_eq!(handle.inspect(PORT).unwrap()[0].broken, Some(Fault::CallBlocked));
    for _ in 0..50 {
        drop(handle.take(PORT, 1).unwrap());
        block();
        let mut ring = driver.ring().0;
        ring.call = Some(EventFd::new(call.try_clone().unwrap()).unwrap());
        block();
        handle.give(PORT, 1, ring).unwrap();
        assert_eq!(handle.inspect(PORT).unwrap()[0].broken, None, "the worker did not wait");
    }
    handle.stop();
    thread.join().unwrap();
    drop(watchdog);
}
