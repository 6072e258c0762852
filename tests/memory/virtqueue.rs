//! Split rings against a driver that keeps to virtio 1.2, and against ones that do not.

use isonic::guest_memory::FrontendAddress;
use isonic::test_support::guest_driver::{
    Driver, GuestRam, INDIRECT, NEXT, WRITE, descriptor_bytes,
};
use isonic::virtqueue::{
    ActivateError, Chain, Direction, Fault, Journal, Queue, QueueOptions, Segments,
};

const EVENT_IDX: QueueOptions =
    QueueOptions { event_idx: true, indirect: true, ..QueueOptions::NONE };
const PLAIN: QueueOptions = QueueOptions { indirect: true, ..QueueOptions::NONE };

fn driver(size: u16, options: QueueOptions) -> (GuestRam, Driver, Queue) {
    let mut ram = GuestRam::new(16 << 20);
    let driver = Driver::new(&mut ram, size, options);
    let queue = driver.activate();
    (ram, driver, queue)
}

/// Take one chain and return its bytes.
fn take(queue: &mut Queue, direction: Direction) -> Result<(Chain, Vec<u8>), Fault> {
    let (memory, ring) = queue.parts();
    let ring = ring.any();
    assert!(ring.has_available()?, "nothing available");
    let mut segments = Segments::new();
    let chain = ring.take(memory, direction, &mut segments)?;
    let mut bytes = Vec::new();
    for segment in &segments {
        let mut piece = vec![0; segment.len()];
        segment.read(&mut piece);
        bytes.extend(piece);
    }
    Ok((chain, bytes))
}

fn fault_of(queue: &mut Queue) -> Fault {
    take(queue, Direction::FromGuest).expect_err("the chain is malformed")
}

#[test]
fn chains_of_any_cut_arrive_whole_and_in_order() {
    let (_ram, mut driver, mut queue) = driver(16, PLAIN);
    let frame: Vec<u8> = (0..200).collect();
    let cuts: [&[usize]; 4] = [&[], &[12], &[1, 1, 1, 9, 100], &[5, 50, 60]];
    for pieces in cuts {
        let head = driver.send(&frame, pieces);
        let (taken, bytes) = take(&mut queue, Direction::FromGuest).unwrap();
        assert_eq!((taken.id, &bytes[12..]), (head, frame.as_slice()));
        let ring = queue.ring_mut();
        ring.complete(taken, 0);
        assert!(ring.publish());
        assert_eq!(driver.completed().len(), 1);
    }
}

#[test]
fn indices_wrap_at_the_end_of_their_16_bits() {
    let mut ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&mut ram, 8, EVENT_IDX);
    driver.start_at(0xfffc);
    let mut queue = driver.activate();
    for round in 0..20u8 {
        driver.send(&[round; 60], &[]);
        let (head, bytes) = take(&mut queue, Direction::FromGuest).unwrap();
        assert_eq!(bytes[12..], [round; 60]);
        let ring = queue.ring_mut();
        ring.complete(head, 0);
        ring.publish();
        assert_eq!(driver.completed().len(), 1);
    }
    assert_eq!(queue.ring().position(), u32::from(0xfffcu16.wrapping_add(20)));
}

#[test]
fn an_indirect_table_is_followed() {
    let (mut ram, mut driver, mut queue) = driver(8, PLAIN);
    let data = ram.allocate(64);
    ram.write(data, b"in two parts");
    let table = ram.allocate(32);
    ram.write(table, &descriptor_bytes(data, 6, NEXT, 1));
    ram.write(table + 16, &descriptor_bytes(data + 6, 6, 0, 0));
    driver.raw_descriptor(0, table, 32, INDIRECT, 0);
    driver.raw_offer(0);
    assert_eq!(take(&mut queue, Direction::FromGuest).unwrap().1, b"in two parts");
}

#[test]
fn a_buffer_may_cross_from_one_region_into_the_next() {
    use isonic::guest_memory::{GuestAddress, GuestMemory, Region, RegionSpec};
    use std::sync::Arc;
    let mut ram = GuestRam::new(1 << 20);
    let mut driver = Driver::new(&mut ram, 8, PLAIN);
    let second = RegionSpec {
        guest: GuestAddress(1 << 20),
        frontend: FrontendAddress(0x1234_0000),
        size: 0x1000,
        file_offset: 0,
    };
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = std::fs::File::from(rustix::fs::memfd_create("isonic-test", flags).unwrap());
    file.set_len(0x1000).unwrap();
    let second = Arc::new(Region::map(second, file).unwrap());
    let first = Arc::new(Region::map(GuestRam::spec(1 << 20), ram.file.try_clone().unwrap()));
    let first = Arc::new(Arc::try_unwrap(first).unwrap().unwrap());
    let memory = Arc::new(GuestMemory::new(vec![first, second]).unwrap());
    memory.translate(GuestAddress((1 << 20) - 4), 4).unwrap().write(b"left");
    memory.translate(GuestAddress(1 << 20), 5).unwrap().write(b"right");
    let mut queue = driver.setup().activate(&memory, Journal::private()).unwrap();
    driver.raw_descriptor(0, (1 << 20) - 4, 9, 0, 0);
    driver.raw_offer(0);
    assert_eq!(take(&mut queue, Direction::FromGuest).unwrap().1, b"leftright");
}

// ---- what a hostile driver does: each is a fault, none a loop or a stray access -----------------

#[test]
fn an_available_index_too_far_ahead_is_a_fault() {
    let (_ram, driver, mut queue) = driver(8, PLAIN);
    driver.raw_available_index(9);
    let fault = queue.ring_mut().has_available().unwrap_err();
    assert_eq!(fault, Fault::AvailableIndex { index: 9, ahead: 9, size: 8 });
    driver.raw_available_index(0xffff);
    assert!(queue.ring_mut().has_available().is_err(), "an index that runs backwards");
}

#[test]
fn a_head_or_next_outside_the_table_is_a_fault() {
    let (_ram, mut driver, mut queue) = driver(8, PLAIN);
    driver.raw_offer(8);
    assert_eq!(fault_of(&mut queue), Fault::DescriptorIndex { index: 8, size: 8 });
    let (_ram, mut driver, mut queue) = self::driver(8, PLAIN);
    driver.raw_descriptor(0, driver.buffer(0), 8, NEXT, 0xffff);
    driver.raw_offer(0);
    assert_eq!(fault_of(&mut queue), Fault::DescriptorIndex { index: 0xffff, size: 8 });
}

#[test]
fn a_chain_that_loops_is_a_fault() {
    let (_ram, mut driver, mut queue) = driver(8, PLAIN);
    driver.raw_descriptor(3, driver.buffer(3), 8, NEXT, 3);
    driver.raw_offer(3);
    assert_eq!(fault_of(&mut queue), Fault::Loop { head: 3, size: 8 });
}

#[test]
fn a_loop_of_empty_descriptors_ends_too() {
    let (_ram, mut driver, mut queue) = driver(8, PLAIN);
    driver.raw_descriptor(0, driver.buffer(0), 0, NEXT, 1);
    driver.raw_descriptor(1, driver.buffer(1), 0, NEXT, 0);
    driver.raw_offer(0);
    assert_eq!(fault_of(&mut queue), Fault::Loop { head: 0, size: 8 });
}

#[test]
fn a_buffer_of_the_other_direction_is_a_fault() {
    let (_ram, mut driver, mut queue) = driver(8, PLAIN);
    driver.raw_descriptor(0, driver.buffer(0), 64, WRITE, 0);
    driver.raw_offer(0);
    assert_eq!(fault_of(&mut queue), Fault::WrongDirection { index: 0, flags: WRITE });
}

#[test]
fn addresses_outside_the_guest_are_faults() {
    let outside = [(64 << 30, 64), ((16 << 20) - 32, 64), (u64::MAX - 8, 64), (0, u32::MAX)];
    for (address, len) in outside {
        let (_ram, mut driver, mut queue) = driver(8, PLAIN);
        driver.raw_descriptor(0, address, len, 0, 0);
        driver.raw_offer(0);
        assert_eq!(fault_of(&mut queue), Fault::Unmapped { index: 0, address, len });
    }
}

#[test]
fn malformed_indirect_tables_are_faults() {
    // Length not whole, empty, longer than the ring; chained on; crossing out of memory.
    let cases = [(24, INDIRECT), (0, INDIRECT), (16 * 9, INDIRECT), (32, INDIRECT | NEXT)];
    for (len, flags) in cases {
        let (mut ram, mut driver, mut queue) = driver(8, PLAIN);
        let table = ram.allocate(256);
        driver.raw_descriptor(0, table, len, flags, 1);
        driver.raw_offer(0);
        assert_eq!(fault_of(&mut queue), Fault::Indirect { index: 0, flags, len });
    }
    let (_ram, mut driver, mut queue) = driver(8, PLAIN);
    let address = (16 << 20) - 16;
    driver.raw_descriptor(0, address, 32, INDIRECT, 0);
    driver.raw_offer(0);
    assert_eq!(fault_of(&mut queue), Fault::Unmapped { index: 0, address, len: 32 });
}

#[test]
fn nested_and_unnegotiated_indirect_tables_are_faults() {
    let (mut ram, mut driver, mut queue) = driver(8, PLAIN);
    let table = ram.allocate(32);
    ram.write(table, &descriptor_bytes(table, 16, INDIRECT, 0));
    driver.raw_descriptor(0, table, 16, INDIRECT, 0);
    driver.raw_offer(0);
    assert_eq!(fault_of(&mut queue), Fault::Indirect { index: 0, flags: INDIRECT, len: 16 });

    let without = QueueOptions::NONE;
    let (mut ram, mut driver, mut queue) = self::driver(8, without);
    let table = ram.allocate(32);
    driver.raw_descriptor(0, table, 16, INDIRECT, 0);
    driver.raw_offer(0);
    assert!(matches!(fault_of(&mut queue), Fault::Indirect { .. }));
}

#[test]
fn an_indirect_table_that_loops_or_leaves_itself_is_a_fault() {
    let (mut ram, mut driver, mut queue) = driver(8, PLAIN);
    let table = ram.allocate(64);
    ram.write(table, &descriptor_bytes(0x1000, 4, NEXT, 1));
    ram.write(table + 16, &descriptor_bytes(0x1000, 4, NEXT, 0));
    driver.raw_descriptor(5, table, 32, INDIRECT, 0);
    driver.raw_offer(5);
    assert_eq!(fault_of(&mut queue), Fault::Loop { head: 5, size: 2 });
    let (mut ram, mut driver, mut queue) = self::driver(8, PLAIN);
    let table = ram.allocate(64);
    ram.write(table, &descriptor_bytes(0x1000, 4, NEXT, 2));
    driver.raw_descriptor(0, table, 32, INDIRECT, 0);
    driver.raw_offer(0);
    assert_eq!(fault_of(&mut queue), Fault::DescriptorIndex { index: 2, size: 2 });
}

// ---- set-up -------------------------------------------------------------------------------------

#[test]
fn a_ring_with_bad_size_alignment_or_place_is_not_started() {
    let mut ram = GuestRam::new(1 << 20);
    let driver = Driver::new(&mut ram, 8, PLAIN);
    let good = driver.setup();
    for size in [0, 3, 0xffff] {
        let setup = isonic::virtqueue::QueueSetup { size, ..good };
        assert_eq!(
            setup.activate(&ram.memory, Journal::private()).unwrap_err(),
            ActivateError::Size(size.into())
        );
    }
    let mut setup = good;
    setup.addresses.used = FrontendAddress(good.addresses.used.0 + 2);
    assert!(matches!(
        setup.activate(&ram.memory, Journal::private()),
        Err(ActivateError::Alignment { .. })
    ));
    let mut setup = good;
    setup.addresses.available = FrontendAddress(u64::MAX - 1);
    assert!(matches!(
        setup.activate(&ram.memory, Journal::private()),
        Err(ActivateError::Unmapped { .. })
    ));
    let mut setup = good;
    setup.addresses.descriptors =
        FrontendAddress(good.addresses.descriptors.0 + (1 << 20) - 0x1000 - 64);
    assert!(matches!(
        setup.activate(&ram.memory, Journal::private()),
        Err(ActivateError::Unmapped { .. })
    ));
}

#[test]
fn a_restarted_ring_goes_on_where_the_used_index_says() {
    let (_ram, mut driver, mut queue) = driver(8, PLAIN);
    driver.send(&[1; 60], &[]);
    driver.send(&[2; 60], &[]);
    let (head, _) = take(&mut queue, Direction::FromGuest).unwrap();
    queue.ring_mut().complete(head, 0);
    queue.ring_mut().publish();
    drop(queue);
    // Whatever base the front-end remembers, the second packet is next.
    let mut queue = driver.activate();
    assert_eq!(take(&mut queue, Direction::FromGuest).unwrap().1[12..], [2; 60]);
}

// ---- notification (2.7.7, 2.7.10) ---------------------------------------------------------------

fn complete_one(driver: &mut Driver, queue: &mut Queue) -> bool {
    driver.send(&[0; 60], &[]);
    let (head, _) = take(queue, Direction::FromGuest).unwrap();
    let ring = queue.ring_mut();
    ring.complete(head, 0);
    ring.publish();
    let wanted = ring.needs_notification();
    driver.completed();
    wanted
}

#[test]
fn without_event_idx_the_no_interrupt_flag_is_honoured() {
    let (_ram, mut driver, mut queue) = driver(8, PLAIN);
    assert!(complete_one(&mut driver, &mut queue));
    driver.raw_available_flags(1);
    assert!(!complete_one(&mut driver, &mut queue));
    driver.raw_available_flags(0);
    assert!(complete_one(&mut driver, &mut queue));
}

#[test]
fn with_event_idx_one_interrupt_is_sent_as_the_used_index_passes_the_event() {
    let (_ram, mut driver, mut queue) = driver(8, EVENT_IDX);
    driver.set_used_event(0);
    assert!(complete_one(&mut driver, &mut queue), "the first decision always notifies");
    driver.set_used_event(3);
    let decisions: Vec<_> = (0..5).map(|_| complete_one(&mut driver, &mut queue)).collect();
    assert_eq!(decisions, [false, false, true, false, false]);
}

#[test]
fn a_burst_that_jumps_over_the_event_notifies() {
    let (_ram, mut driver, mut queue) = driver(16, EVENT_IDX);
    complete_one(&mut driver, &mut queue);
    driver.set_used_event(4);
    for _ in 0..8 {
        driver.send(&[0; 60], &[]);
    }
    for _ in 0..8 {
        let (head, _) = take(&mut queue, Direction::FromGuest).unwrap();
        queue.ring_mut().complete(head, 0);
    }
    queue.ring_mut().publish();
    assert!(queue.ring_mut().needs_notification());
}

#[test]
fn kicks_are_parked_while_polling_and_asked_for_before_sleep() {
    let (_ram, mut driver, mut queue) = driver(8, EVENT_IDX);
    complete_one(&mut driver, &mut queue);
    queue.ring_mut().want_kicks(false);
    assert_eq!(driver.available_event(), 0x8001, "half the index space away");
    queue.ring_mut().want_kicks(true);
    assert_eq!(driver.available_event(), 1, "the very next chain");
    let (_ram, driver, mut queue) = self::driver(8, PLAIN);
    queue.ring_mut().want_kicks(false);
    assert_eq!(driver.used_flags(), 1);
    queue.ring_mut().want_kicks(true);
    assert_eq!(driver.used_flags(), 0);
}

#[test]
fn what_is_completed_is_invisible_until_published() {
    let (_ram, mut driver, mut queue) = driver(8, PLAIN);
    driver.send(&[0; 60], &[]);
    let (head, _) = take(&mut queue, Direction::FromGuest).unwrap();
    queue.ring_mut().complete(head, 0);
    assert_eq!(driver.used_index(), 0);
    assert!(queue.ring_mut().publish());
    assert!(!queue.ring_mut().publish(), "nothing more to show");
    assert_eq!(driver.used_index(), 1);
}

#[test]
fn a_legacy_driver_hears_of_an_empty_ring_though_it_suppressed_interrupts() {
    for options in [PLAIN, EVENT_IDX] {
        for notify_on_empty in [false, true] {
            let options = QueueOptions { notify_on_empty, ..options };
            let (_ram, mut driver, mut queue) = driver(8, options);
            let wants = |queue: &mut Queue| {
                let (chain, _) = take(queue, Direction::FromGuest).unwrap();
                queue.ring_mut().complete(chain, 0);
                queue.ring_mut().publish();
                queue.ring_mut().needs_notification()
            };
            for _ in 0..3 {
                driver.send(b"packet", &[]);
            }
            // The first decision of a ring with event index is always yes.
            driver.want_no_interrupt();
            let _ = wants(&mut queue);
            assert!(!wants(&mut queue), "one is left to take");
            assert_eq!(wants(&mut queue), notify_on_empty, "none is left: {options:?}");
        }
    }
}
