//! Packed rings against a driver that keeps to virtio 1.2, and against ones that do not; and one
//! oracle for both layouts.

use std::collections::VecDeque;

use isonic::test_support::guest_driver::{
    Driver, FRONTEND_BASE, GuestRam, INDIRECT, NEXT, WRITE, descriptor_bytes,
};
use isonic::virtqueue::{
    ActivateError, Chain, Direction, Fault, Journal, Journals, Queue, QueueOptions, QueueSetup,
    Segments, settle,
};
use proptest::prelude::*;

const PACKED: QueueOptions =
    QueueOptions { event_idx: true, indirect: true, packed: true, ..QueueOptions::NONE };

/// Descriptor states on the first round (2.8.1): the wrap counters start at 1.
const AVAILABLE: u16 = 1 << 7;

/// The driver area's flags (2.8.14).
const ENABLE: u16 = 0;
const DISABLE: u16 = 1;
const DESCRIPTOR: u16 = 2;

fn driver(size: u16, options: QueueOptions) -> (GuestRam, Driver, Queue) {
    let mut ram = GuestRam::new(16 << 20);
    let driver = Driver::new(&mut ram, size, options);
    let queue = driver.activate();
    (ram, driver, queue)
}

fn take(queue: &mut Queue) -> Result<(Chain, Vec<u8>), Fault> {
    let (memory, ring) = queue.parts();
    let ring = ring.any();
    assert!(ring.has_available()?, "nothing available");
    let mut segments = Segments::new();
    let chain = ring.take(memory, Direction::FromGuest, &mut segments)?;
    let mut bytes = Vec::new();
    for segment in &segments {
        let mut piece = vec![0; segment.len()];
        segment.read(&mut piece);
        bytes.extend(piece);
    }
    Ok((chain, bytes))
}

fn fault_of(queue: &mut Queue) -> Fault {
    take(queue).expect_err("the chain is malformed")
}

#[test]
fn chains_go_around_rings_of_any_size() {
    for size in [1, 2, 3, 5, 7, 8, 13] {
        let (_ram, mut driver, mut queue) = driver(size, PACKED);
        for round in 0..50u8 {
            let cut = vec![12; usize::from(round) % usize::from(size)];
            let frame = vec![round; 60 + cut.len() * 12];
            let id = driver.send(&frame, &cut);
            let (chain, bytes) = take(&mut queue).unwrap();
            assert_eq!((chain.id, &bytes[12..]), (id, frame.as_slice()), "size {size}");
            queue.ring_mut().complete(chain, 0);
            assert!(queue.ring_mut().publish());
            assert_eq!(driver.completed().len(), 1);
            assert!(!queue.ring_mut().has_available().unwrap());
        }
    }
}

#[test]
fn a_burst_is_shown_whole_or_not_at_all() {
    let (_ram, mut driver, mut queue) = driver(8, PACKED);
    for _ in 0..3 {
        driver.send(&[1; 60], &[]);
    }
    for _ in 0..3 {
        let (chain, _) = take(&mut queue).unwrap();
        queue.ring_mut().complete(chain, 0);
    }
    assert!(driver.completed().is_empty(), "the first descriptor's flags are withheld");
    assert!(queue.ring_mut().publish());
    assert!(!queue.ring_mut().publish(), "nothing more to show");
    assert_eq!(driver.completed().len(), 3);
}

#[test]
fn a_ring_that_is_stopped_and_started_goes_on_where_it_was() {
    let (ram, mut driver, mut queue) = driver(5, PACKED);
    assert_eq!(queue.ring().position(), 0x8000_8000, "both wrap counters are 1 at first");
    for round in 0..12u8 {
        driver.send(&[round; 60], &[30]);
        let (chain, _) = take(&mut queue).unwrap();
        queue.ring_mut().complete(chain, 0);
        queue.ring_mut().publish();
        driver.completed();
        let position = queue.ring().position();
        let [low, high] = [position & 0xffff, position >> 16];
        assert_eq!(low, high, "all that was taken is completed");
        let base = u16::try_from(low).unwrap();
        queue = QueueSetup { base, ..driver.setup() }
            .activate(&ram.memory, Journal::private())
            .unwrap();
    }
}

/// In a journal of its own, which ends with it.
#[test]
fn a_ring_that_another_process_only_began_with_is_found_by_its_own_journal() {
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::open(&directory.path().join("r"), "p", 1).unwrap();
    let mut ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&mut ram, 5, PACKED);
    let mut queue = driver.setup().activate(&ram.memory, journals.ring(0)).unwrap();
    driver.send(&[1; 60], &[30]);
    let (chain, _) = take(&mut queue).unwrap();
    queue.ring_mut().complete(chain, 0);
    queue.ring_mut().publish();
    let position = queue.ring().position();
    let base = u16::try_from(position & 0xffff).unwrap();
    let other = QueueSetup { base, ..driver.setup() };
    drop(other.activate(&ram.memory, Journal::private()).unwrap());
    queue.ring_mut().reclaim();
    drop(queue);
    let again = driver.setup().activate(&ram.memory, journals.ring(0)).unwrap();
    assert_eq!(again.ring().position(), position);
}

#[test]
fn a_ring_that_is_not_retired_goes_on_where_it_was_whatever_base_its_front_end_remembers() {
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::open(&directory.path().join("r"), "p", 1).unwrap();
    let mut ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&mut ram, 5, PACKED);
    let begin = |base: u16, driver: &Driver| {
        QueueSetup { base, ..driver.setup() }.activate(&ram.memory, journals.ring(0)).unwrap()
    };
    for round in 0..12u8 {
        driver.send(&[round; 60], &[30]);
        let mut queue = begin(0x8000, &driver);
        let (chain, bytes) = take(&mut queue).unwrap();
        assert_eq!(bytes[12..], [round; 60]);
        queue.ring_mut().complete(chain, 0);
        queue.ring_mut().publish();
        assert_eq!(driver.completed().len(), 1);
    }
    // 24 descriptors: four times around, and four. Asked for it, it is the front-end's to know.
    let mut queue = begin(0x8000, &driver);
    assert_eq!(queue.ring_mut().retire(), 0x8004_8004);
    assert_eq!(begin(0x8000, &driver).ring().position(), 0x8000_8000);
}

#[test]
fn a_driver_that_begins_anew_is_not_given_an_old_position() {
    let directory = tempfile::tempdir().unwrap();
    let journals = Journals::open(&directory.path().join("r"), "p", 1).unwrap();
    let mut ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&mut ram, 4, PACKED);
    let setup = driver.setup();
    let start = ram.read(0, 0x2000);
    let begin = |ram: &GuestRam| setup.activate(&ram.memory, journals.ring(0)).unwrap();
    let mut queue = begin(&ram);
    driver.send(&[1; 60], &[30]);
    let (chain, _) = take(&mut queue).unwrap();
    queue.ring_mut().complete(chain, 0);
    queue.ring_mut().publish();
    assert_eq!(begin(&ram).ring().position(), 0x8002_8002);
    // A guest that was reset while nobody listened: same place, cleared memory.
    ram.write(0, &start);
    assert_eq!(begin(&ram).ring().position(), 0x8000_8000);
}

#[test]
fn more_is_completed_than_a_journal_notes_and_all_of_it_is_shown() {
    let mut ram = GuestRam::new(4 << 20);
    let mut driver = Driver::new(&mut ram, 500, PACKED);
    let mut queue = driver.activate();
    for _ in 0..500 {
        driver.send(&[1; 60], &[]);
    }
    for _ in 0..500 {
        let (chain, _) = take(&mut queue).unwrap();
        queue.ring_mut().complete(chain, 0);
    }
    let early = driver.completed().len();
    assert!((1..500).contains(&early), "{early} were shown on the way");
    assert!(queue.ring().has_unpublished() && queue.ring_mut().publish());
    assert!(queue.ring_mut().needs_notification());
    assert_eq!(early + driver.completed().len(), 500);
    assert!(!queue.ring_mut().publish());
}

#[test]
fn chains_given_back_are_taken_again_across_the_end_of_the_ring() {
    let (_ram, mut driver, mut queue) = driver(5, PACKED);
    for _ in 0..3 {
        driver.send(&[0; 60], &[30]);
        let (chain, _) = take(&mut queue).unwrap();
        queue.ring_mut().untake(chain);
        let (chain, _) = take(&mut queue).unwrap();
        queue.ring_mut().complete(chain, 0);
        queue.ring_mut().publish();
        assert_eq!(driver.completed().len(), 1);
    }
}

#[test]
fn an_indirect_table_has_all_its_entries_in_order() {
    let (mut ram, mut driver, mut queue) = driver(8, PACKED);
    let data = ram.allocate(64);
    ram.write(data, b"in two parts");
    let table = ram.allocate(32);
    ram.write(table, &descriptor_bytes(data, 6, 0, 0));
    ram.write(table + 16, &descriptor_bytes(data + 6, 6, 0, 0));
    driver.offer_anything(table, 32, INDIRECT);
    assert_eq!(take(&mut queue).unwrap().1, b"in two parts");
}

#[test]
fn a_table_from_dpdk_is_taken_though_entries_are_marked_writable() {
    for flags in [[WRITE, 0], [WRITE, WRITE]] {
        let (mut ram, mut driver, mut queue) = driver(8, PACKED);
        let data = ram.allocate(64);
        ram.write(data, b"header, then payload");
        let table = ram.allocate(32);
        ram.write(table, &descriptor_bytes(data, 8, 0, flags[0]));
        ram.write(table + 16, &descriptor_bytes(data + 8, 12, 0, flags[1]));
        driver.offer_anything(table, 32, INDIRECT);
        assert_eq!(take(&mut queue).unwrap().1, b"header, then payload");
    }
}

// ---- what a hostile driver does -----------------------------------------------------------------

#[test]
fn a_ring_that_is_one_endless_chain_is_a_fault() {
    let (_ram, driver, mut queue) = driver(8, PACKED);
    for index in 0..8 {
        driver.raw_descriptor(index, driver.buffer(index), 8, NEXT | AVAILABLE, index);
    }
    assert_eq!(fault_of(&mut queue), Fault::Loop { head: 0, size: 8 });
}

#[test]
fn descriptors_that_stay_available_are_taken_once_per_round_and_never_for_ever() {
    let (_ram, driver, mut queue) = driver(4, PACKED);
    for index in 0..4 {
        driver.raw_descriptor(index, driver.buffer(index), 8, AVAILABLE, index);
    }
    for _ in 0..4 {
        take(&mut queue).unwrap();
    }
    // The next round has the other wrap counter (CVE-2026-16457).
    assert_eq!(queue.ring_mut().has_available(), Ok(false));
}

#[test]
fn wrong_direction_stray_addresses_and_malformed_tables_are_faults() {
    let outside = u64::MAX - 8;
    let cases = [
        (0x1000, 64, WRITE),
        (outside, 64, 0),
        ((16 << 20) - 32, 64, 0),
        (0x1000, 24, INDIRECT),
        (0x1000, 0, INDIRECT),
        (0x1000, 16 * 9, INDIRECT),
        (0x1000, 32, INDIRECT | NEXT),
        ((16 << 20) - 16, 32, INDIRECT),
    ];
    for (address, len, flags) in cases {
        let (_ram, mut driver, mut queue) = driver(8, PACKED);
        driver.offer_anything(address, len, flags);
        let fault = fault_of(&mut queue);
        let expected = match flags {
            WRITE => matches!(fault, Fault::WrongDirection { .. }),
            0 => matches!(fault, Fault::Unmapped { .. }),
            _ if address > 0x1000 => matches!(fault, Fault::Unmapped { .. }),
            _ => matches!(fault, Fault::Indirect { .. }),
        };
        assert!(expected, "{address:#x} {len} {flags:#x}: {fault}");
    }
}

#[test]
fn nested_and_unnegotiated_tables_are_faults() {
    let without = QueueOptions { indirect: false, ..PACKED };
    for options in [PACKED, without] {
        let (mut ram, mut driver, mut queue) = driver(8, options);
        let table = ram.allocate(16);
        ram.write(table, &descriptor_bytes(table, 16, 0, INDIRECT));
        driver.offer_anything(table, 16, INDIRECT);
        assert!(matches!(fault_of(&mut queue), Fault::Indirect { .. }));
    }
}

#[test]
fn impossible_sizes_alignments_and_bases_are_not_started() {
    let mut ram = GuestRam::new(1 << 20);
    let driver = Driver::new(&mut ram, 6, PACKED);
    let good = driver.setup();
    let error = |setup: QueueSetup| setup.activate(&ram.memory, Journal::private()).unwrap_err();
    assert_eq!(error(QueueSetup { size: 0, ..good }), ActivateError::PackedSize(0));
    assert_eq!(error(QueueSetup { size: 0x8001, ..good }), ActivateError::PackedSize(0x8001));
    let base = QueueSetup { base: 0x8006, ..good };
    assert_eq!(error(base), ActivateError::Base { index: 6, size: 6 });
    let mut setup = good;
    setup.addresses.available.0 += 2;
    assert!(matches!(error(setup), ActivateError::Alignment { alignment: 4, .. }));
}

// ---- notification (2.8.10) ----------------------------------------------------------------------

fn complete_one(driver: &mut Driver, queue: &mut Queue) -> bool {
    driver.send(&[0; 60], &[]);
    let (chain, _) = take(queue).unwrap();
    queue.ring_mut().complete(chain, 0);
    queue.ring_mut().publish();
    let wanted = queue.ring_mut().needs_notification();
    driver.completed();
    wanted
}

#[test]
fn the_drivers_area_switches_interrupts_on_and_off() {
    let (_ram, mut driver, mut queue) = driver(5, PACKED);
    assert!(complete_one(&mut driver, &mut queue));
    driver.set_driver_area(0, DISABLE);
    assert!(!complete_one(&mut driver, &mut queue));
    driver.set_driver_area(0, ENABLE);
    assert!(complete_one(&mut driver, &mut queue));
}

#[test]
fn one_interrupt_is_sent_as_the_used_position_passes_the_drivers() {
    let (_ram, mut driver, mut queue) = driver(5, PACKED);
    let wrap = 1 << 15;
    driver.set_driver_area(wrap, DESCRIPTOR);
    assert!(complete_one(&mut driver, &mut queue), "the first decision always notifies");
    // Descriptor 3 of the first round.
    driver.set_driver_area(3 | wrap, DESCRIPTOR);
    let decisions: Vec<_> = (0..4).map(|_| complete_one(&mut driver, &mut queue)).collect();
    assert_eq!(decisions, [false, false, true, false]);
    // Descriptor 1 of the second round, whose wrap counter is 0.
    driver.set_driver_area(1, DESCRIPTOR);
    let decisions: Vec<_> = (0..3).map(|_| complete_one(&mut driver, &mut queue)).collect();
    assert_eq!(decisions, [false, true, false]);
}

#[test]
fn kicks_are_switched_off_while_polling() {
    let (_ram, driver, mut queue) = driver(5, PACKED);
    queue.ring_mut().want_kicks(false);
    assert_eq!(driver.device_area_flags(), DISABLE);
    queue.ring_mut().want_kicks(true);
    assert_eq!(driver.device_area_flags(), ENABLE);
}

// ---- the oracle: a ring is a queue of chains, whatever its layout -------------------------------

/// What is done to a ring.
#[derive(Clone, Debug)]
enum Step {
    /// The driver offers a packet of this length cut into this many pieces.
    Offer(usize, usize),
    /// The device takes a chain and completes it.
    Serve,
    /// The device takes a chain and gives it back.
    Reconsider,
    /// The device shows what it completed, and the driver takes it back.
    Publish,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1usize..200, 1usize..4).prop_map(|(len, pieces)| Step::Offer(len, pieces)),
        Just(Step::Serve),
        Just(Step::Reconsider),
        Just(Step::Publish),
    ];
    prop::collection::vec(step, 1..200)
}

proptest! {
    #[test]
    fn a_ring_is_a_queue_of_chains(
        steps in steps(),
        packed: bool,
        event_idx: bool,
        size in 1u16..40,
        start: u16,
    ) {
        let size = if packed { size } else { size.next_power_of_two() };
        let mut ram = GuestRam::new(1 << 20);
        let options = QueueOptions { packed, event_idx, indirect: true, ..QueueOptions::NONE };
        let mut driver = Driver::new(&mut ram, size, options);
        if !packed {
            driver.start_at(start);
        }
        let mut queue = driver.activate();
        let mut room = usize::from(size);
        let (mut waiting, mut served) = (VecDeque::new(), VecDeque::new());
        for step in steps {
            match step {
                Step::Offer(len, pieces) if pieces <= room => {
                    let packet = vec![u8::try_from(len).unwrap(); len + 12 * pieces];
                    let id = driver.send(&packet, &vec![12; pieces - 1]);
                    room -= pieces;
                    waiting.push_back((id, packet, pieces));
                }
                Step::Offer(..) => {}
                Step::Serve | Step::Reconsider => {
                    prop_assert_eq!(queue.ring_mut().has_available().unwrap(), !waiting.is_empty());
                    let Some((id, packet, pieces)) = waiting.front() else { continue };
                    let (chain, bytes) = take(&mut queue).unwrap();
                    prop_assert_eq!((chain.id, &bytes[12..]), (*id, packet.as_slice()));
                    if matches!(step, Step::Reconsider) {
                        queue.ring_mut().untake(chain);
                    } else {
                        queue.ring_mut().complete(chain, 0);
                        served.push_back((*id, *pieces));
                        waiting.pop_front();
                    }
                }
                Step::Publish => {
                    prop_assert_eq!(queue.ring_mut().publish(), !served.is_empty());
                    for used in driver.completed() {
                        let (id, pieces) = served.pop_front().expect("it was served");
                        prop_assert_eq!(used.head, id);
                        room += pieces;
                    }
                    prop_assert!(served.is_empty(), "all that was served is shown");
                }
            }
        }
    }
}

// ---- what the backend before us did not give back ----------------------------------------------

/// Takes the next chain and gives it back; answers whether the driver is to be interrupted.
fn use_one(queue: &mut Queue) -> bool {
    let (chain, _) = take(queue).unwrap();
    let ring = queue.ring_mut();
    ring.complete(chain, 0);
    ring.publish();
    settle();
    ring.needs_notification()
}

/// Descriptors that each packet of [`migrated`] takes.
const EACH: u16 = 2;

/// A driver of a ring of 10 that is about to look at the second of five packets, and whose device
/// before us used three; of the last `lost` of them the marks did not travel. It begins where the
/// ring is gone around within the packets. Gives the position that the driver waits for.
fn migrated(lost: u16) -> (GuestRam, Driver, Queue, u16) {
    let (ram, mut driver, mut before) = driver(10, PACKED);
    for _ in 0..3 {
        driver.send(&[9; 60], &[30]);
        use_one(&mut before);
    }
    driver.completed();
    for packet in 0..5u8 {
        driver.send(&[packet; 60], &[30]);
    }
    use_one(&mut before);
    assert_eq!(driver.completed().len(), 1);
    let low = |queue: &Queue| u16::try_from(queue.ring().position() & 0xffff).unwrap();
    let awaited = low(&before);
    driver.set_driver_area(awaited, DESCRIPTOR);
    let descriptors = driver.setup().addresses.descriptors.0 - FRONTEND_BASE;
    let mut lost_from = 2 - lost;
    for _ in 0..2 {
        let old = ram.read(descriptors, 160);
        use_one(&mut before);
        if lost_from > 0 {
            lost_from -= 1;
        } else {
            ram.write(descriptors, &old);
        }
    }
    let base = low(&before);
    let setup = QueueSetup { base, ..driver.setup() };
    let queue = setup.activate(&ram.memory, Journal::private()).unwrap();
    (ram, driver, queue, awaited)
}

#[test]
fn a_driver_gets_back_what_the_backend_before_us_used_and_did_not_log() {
    let (_ram, mut driver, mut queue, _) = migrated(2);
    assert!(use_one(&mut queue), "the first decision always interrupts");
    assert!(driver.completed().is_empty(), "the driver waits for an earlier packet");
    assert!(use_one(&mut queue), "there is news");
    let written: Vec<u32> = driver.completed().iter().map(|used| used.written).collect();
    assert_eq!(written, [0; 4], "the two that were lost, empty, and the two of now");
    assert_eq!(queue.ring_mut().take_given_back(), 2 * EACH);
    assert_eq!(queue.ring_mut().take_given_back(), 0, "told once");
    driver.send(&[1; 60], &[30]);
    use_one(&mut queue);
    assert_eq!(driver.completed().len(), 1, "the ring goes around");
}

#[test]
fn a_driver_that_is_merely_slow_gets_nothing_back_twice() {
    for lost in [0, 1] {
        // Of the two that it has not looked at, the first one's mark is there.
        let (_ram, mut driver, mut queue, _) = migrated(lost);
        use_one(&mut queue);
        use_one(&mut queue);
        assert_eq!(queue.ring_mut().take_given_back(), 0);
        assert_eq!(driver.completed().len(), if lost == 0 { 4 } else { 1 });
    }
}

#[test]
fn a_driver_that_stumbles_later_gets_back_the_rest() {
    let (_ram, mut driver, mut queue, awaited) = migrated(1);
    use_one(&mut queue);
    use_one(&mut queue);
    assert_eq!(driver.completed().len(), 1);
    // It asks for the next one, two descriptors on.
    let wrap = if (awaited & 0x7fff) + EACH >= 10 { 0x8000 } else { 0 };
    let next = (((awaited & 0x7fff) + EACH) % 10) | ((awaited & 0x8000) ^ wrap);
    driver.set_driver_area(next, DESCRIPTOR);
    driver.send(&[1; 60], &[30]);
    assert!(use_one(&mut queue));
    assert_eq!(queue.ring_mut().take_given_back(), EACH);
    assert_eq!(driver.completed().len(), 4);
}

#[test]
fn nothing_is_given_back_where_the_driver_does_not_say_what_it_waits_for() {
    for (position, flags) in [(0, ENABLE), (0, DISABLE), (10, DESCRIPTOR), (0x7fff, DESCRIPTOR)] {
        let (_ram, mut driver, mut queue, _) = migrated(2);
        driver.set_driver_area(position, flags);
        use_one(&mut queue);
        use_one(&mut queue);
        assert_eq!(queue.ring_mut().take_given_back(), 0, "{position:#x}, {flags}");
        assert!(driver.completed().is_empty());
    }
}
