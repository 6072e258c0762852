//! The script: what a front-end and its guest do, and what is to be seen of the device then.

use std::fs::File;

use isonic::device::features::{EVENT_IDX, MRG_RXBUF, VERSION_1};
use isonic::test_support::frontend::{addresses, code, event, pair};
use isonic::test_support::guest_driver::{HEADER, INDIRECT, NEXT, WRITE, descriptor_bytes};

use super::stage::{FROM_GUEST, RAM_BYTES, RING_SIZE, Stage, TO_GUEST, profile};

/// What is played to a new device, and what was seen of it, in words.
pub type Scene = (&'static str, fn(&mut Stage) -> String);

/// Requests that neither device knows by name.
const RESET_OWNER: u32 = 4;
const GET_CONFIG: u32 = 24;
const NO_SUCH_REQUEST: u32 = 99;
/// Bits that the profile does not offer.
const CSUM: u64 = 1;
const PROTOCOL_CONFIG: u64 = 1 << 9;
/// The descriptor that the driver would use last, for chains that it would not make.
const LAST: u16 = RING_SIZE - 1;

/// The longest frame without a VLAN tag. The reference device allows 8 bytes more,
/// tags or not.
const UNTAGGED_MAX: usize = 1514;

/// A frame that nobody else sends; a longer one has two VLAN tags.
pub fn frame(len: usize, number: u8) -> Vec<u8> {
    let tags: &[u8] = if len > UNTAGGED_MAX { &[0x88, 0xa8, 0, 1, 0x81, 0, 0, 2] } else { &[] };
    let mut frame = [&[0x02; 6][..], &[0x52; 6], tags, &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..len).map(|at| number.wrapping_add((at % 251) as u8)));
    frame
}

pub const SCENES: &[Scene] = &[
    // ---- questions ----------------------------------------------------------------------------
    ("GET_FEATURES", |stage| stage.ask(code::GET_FEATURES)),
    ("GET_PROTOCOL_FEATURES", |stage| stage.ask(code::GET_PROTOCOL_FEATURES)),
    ("GET_QUEUE_NUM", |stage| {
        stage.agree();
        stage.ask(code::GET_QUEUE_NUM)
    }),
    ("GET_MAX_MEM_SLOTS", |stage| {
        stage.agree();
        stage.ask(code::GET_MAX_MEM_SLOTS)
    }),
    ("GET_STATUS", |stage| {
        stage.agree();
        stage.ask(code::GET_STATUS)
    }),
    ("GET_VRING_BASE of a ring never started", |stage| {
        stage.negotiate();
        stage.stop_ring(FROM_GUEST)
    }),
    ("GET_VRING_BASE of a ring that is not there", |stage| {
        stage.negotiate();
        stage.stop_ring(99)
    }),
    // ---- ownership and features ---------------------------------------------------------------
    ("SET_OWNER", |stage| {
        stage.agree();
        stage.tell(code::SET_OWNER, &[], &[])
    }),
    ("SET_OWNER again", |stage| {
        stage.negotiate();
        stage.tell(code::SET_OWNER, &[], &[])
    }),
    ("RESET_OWNER", |stage| {
        stage.negotiate();
        stage.tell(RESET_OWNER, &[], &[])
    }),
    ("RESET_DEVICE under running rings", |stage| {
        stage.run();
        stage.tell(code::RESET_DEVICE, &[], &[])
    }),
    ("SET_FEATURES as offered", |stage| {
        stage.agree();
        stage.tell_number(code::SET_FEATURES, profile().features.0)
    }),
    ("SET_FEATURES again under running rings", |stage| {
        stage.run();
        stage.tell_number(code::SET_FEATURES, profile().features.0)
    }),
    ("SET_FEATURES with others under running rings", |stage| {
        stage.run();
        stage.tell_number(code::SET_FEATURES, profile().features.0 & !(1 << MRG_RXBUF))
    }),
    ("SET_FEATURES with a bit not offered", |stage| {
        stage.agree();
        stage.tell_number(code::SET_FEATURES, profile().features.0 | CSUM)
    }),
    ("SET_FEATURES without version_1", |stage| {
        stage.agree();
        stage.tell_number(code::SET_FEATURES, profile().features.0 & !(1 << VERSION_1))
    }),
    ("SET_FEATURES of four bytes", |stage| {
        stage.agree();
        stage.tell(code::SET_FEATURES, &[0; 4], &[])
    }),
    ("SET_PROTOCOL_FEATURES with a bit not offered", |stage| {
        stage.agree();
        let offered = stage.frontend.number(code::GET_PROTOCOL_FEATURES).unwrap();
        stage.tell_number(code::SET_PROTOCOL_FEATURES, offered | PROTOCOL_CONFIG)
    }),
    // ---- memory -------------------------------------------------------------------------------
    ("SET_MEM_TABLE", |stage| {
        stage.negotiate();
        stage.tell(code::SET_MEM_TABLE, &Stage::memory_table(RAM_BYTES), &[&stage.ram.file])
    }),
    ("SET_MEM_TABLE of more than its file has", |stage| {
        stage.negotiate();
        stage.tell(code::SET_MEM_TABLE, &Stage::memory_table(2 * RAM_BYTES), &[&stage.ram.file])
    }),
    ("SET_MEM_TABLE without a region", |stage| {
        stage.negotiate();
        stage.tell_number(code::SET_MEM_TABLE, 0)
    }),
    ("ADD_MEM_REG", |stage| {
        stage.negotiate();
        stage.tell(code::ADD_MEM_REG, &Stage::memory_region(0), &[&stage.ram.file])
    }),
    ("ADD_MEM_REG again", |stage| {
        stage.negotiate();
        stage.share();
        stage.tell(code::ADD_MEM_REG, &Stage::memory_region(0), &[&stage.ram.file])
    }),
    ("ADD_MEM_REG over another", |stage| {
        stage.negotiate();
        stage.share();
        stage.tell(code::ADD_MEM_REG, &Stage::memory_region(0x1000), &[&stage.ram.file])
    }),
    ("REM_MEM_REG", |stage| {
        stage.negotiate();
        stage.share();
        stage.tell(code::REM_MEM_REG, &Stage::memory_region(0), &[])
    }),
    ("REM_MEM_REG of a region that is not there", |stage| {
        stage.negotiate();
        stage.tell(code::REM_MEM_REG, &Stage::memory_region(0), &[])
    }),
    // ---- rings --------------------------------------------------------------------------------
    ("SET_VRING_NUM of the largest", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_NUM, &pair(0, u32::from(profile().ring_size_max)), &[])
    }),
    ("SET_VRING_NUM above the largest", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_NUM, &pair(0, 2 * u32::from(profile().ring_size_max)), &[])
    }),
    ("SET_VRING_NUM of nothing", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_NUM, &pair(0, 0), &[])
    }),
    ("SET_VRING_NUM of no power of two", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_NUM, &pair(0, 100), &[])
    }),
    ("SET_VRING_NUM of a ring that is not there", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_NUM, &pair(99, 256), &[])
    }),
    ("SET_VRING_BASE of more than an index", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_BASE, &pair(0, 0x1_0007), &[])
    }),
    ("SET_VRING_ADDR", |stage| {
        stage.negotiate();
        stage.share();
        stage.tell(code::SET_VRING_ADDR, &addresses(0, 0, stage.place(0)), &[])
    }),
    ("SET_VRING_ADDR before the memory", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_ADDR, &addresses(0, 0, stage.place(0)), &[])
    }),
    ("SET_VRING_ADDR outside the memory", |stage| {
        stage.negotiate();
        stage.share();
        stage.tell(code::SET_VRING_ADDR, &addresses(0, 0, [0x1000, 0x2000, 0x3000]), &[])
    }),
    ("SET_VRING_ADDR not aligned", |stage| {
        stage.negotiate();
        stage.share();
        let [descriptors, available, used] = stage.place(0);
        stage.tell(code::SET_VRING_ADDR, &addresses(0, 0, [descriptors + 8, available, used]), &[])
    }),
    ("SET_VRING_ADDR with a log that was not offered", |stage| {
        stage.negotiate();
        stage.share();
        stage.tell(code::SET_VRING_ADDR, &addresses(0, 1, stage.place(0)), &[])
    }),
    ("SET_VRING_KICK", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_KICK, &0_u64.to_ne_bytes(), &[&event()])
    }),
    ("SET_VRING_KICK without the descriptor it announces", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_KICK, &0_u64.to_ne_bytes(), &[])
    }),
    ("SET_VRING_KICK with a file that is no eventfd", |stage| {
        stage.negotiate();
        let file = File::open("/dev/null").unwrap();
        stage.tell(code::SET_VRING_KICK, &0_u64.to_ne_bytes(), &[&file])
    }),
    ("SET_VRING_CALL of a ring that is not there", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_CALL, &0xff_u64.to_ne_bytes(), &[&event()])
    }),
    ("SET_VRING_ERR", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_ERR, &0_u64.to_ne_bytes(), &[&event()])
    }),
    ("SET_VRING_ENABLE", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_ENABLE, &pair(0, 1), &[])
    }),
    ("SET_VRING_ENABLE before SET_FEATURES", |stage| {
        stage.agree();
        stage.tell(code::SET_VRING_ENABLE, &pair(0, 1), &[])
    }),
    ("SET_VRING_ENABLE with a two", |stage| {
        stage.negotiate();
        stage.tell(code::SET_VRING_ENABLE, &pair(0, 2), &[])
    }),
    // ---- requests of network devices, and of others -------------------------------------------
    ("SEND_RARP", |stage| {
        stage.agree();
        stage.tell_number(code::SEND_RARP, 0x0056_3412_0054_5202)
    }),
    ("NET_SET_MTU as the profile has it", |stage| {
        stage.agree();
        stage.tell_number(code::NET_SET_MTU, u64::from(profile().mtu))
    }),
    ("NET_SET_MTU otherwise", |stage| {
        stage.agree();
        stage.tell_number(code::NET_SET_MTU, 1400)
    }),
    ("SET_STATUS", |stage| {
        stage.agree();
        stage.tell_number(code::SET_STATUS, 1)
    }),
    ("GET_CONFIG, not offered", |stage| {
        stage.agree();
        stage.tell(GET_CONFIG, &[0; 20], &[])
    }),
    ("SET_LOG_BASE with an event for a log", |stage| {
        stage.negotiate();
        stage.tell(code::SET_LOG_BASE, &[0x1000_u64, 0].map(u64::to_ne_bytes).concat(), &[&event()])
    }),
    ("a request nobody knows", |stage| {
        stage.agree();
        stage.tell(NO_SUCH_REQUEST, &[0; 8], &[])
    }),
    // ---- packets from the guest ---------------------------------------------------------------
    ("packets of all lengths and cuts", |stage| {
        stage.run();
        let cuts: [&[usize]; 5] = [&[], &[HEADER], &[3, 7, 11], &[1, 1, 1], &[HEADER, 14, 20]];
        for (number, len) in [14, 15, 60, 64, 511, 1500, 1514, 1522].into_iter().enumerate() {
            for pieces in cuts {
                stage.sender().send(&frame(len, number as u8), pieces);
            }
        }
        stage.settle();
        format!("{:02x?} {:?}", stage.departed(), stage.completed())
    }),
    ("a packet in an indirect table", |stage| {
        stage.run();
        let bytes = [vec![0; HEADER], frame(300, 1)].concat();
        let (data, table) = (stage.ram.allocate(512), stage.ram.allocate(32));
        stage.ram.write(data, &bytes);
        stage.ram.write(table, &descriptor_bytes(data, 100, NEXT, 1));
        stage.ram.write(table + 16, &descriptor_bytes(data + 100, 212, 0, 0));
        stage.sender().raw_descriptor(0, table, 32, INDIRECT, 0);
        stage.sender().raw_offer(0);
        stage.settle();
        format!("{:02x?} {:?}", stage.departed(), stage.completed())
    }),
    ("packets that are none, and one that is", |stage| {
        stage.run();
        let good = frame(60, 1);
        let offload = |at: usize| {
            let mut header = [0; HEADER];
            header[at] = 1;
            header
        };
        stage.sender().send(&good[..13], &[]);
        stage.sender().send_with_header(&[], &[0; 5], &[]);
        stage.sender().send(&frame(1523, 2), &[]);
        stage.sender().send_with_header(&offload(0), &good, &[]);
        stage.sender().send_with_header(&offload(1), &good, &[]);
        stage.sender().send(&good, &[]);
        stage.settle();
        format!("{:02x?} {:?}", stage.departed(), stage.completed())
    }),
    ("a chain that starts outside the table, then a packet", |stage| {
        stage.run();
        stage.sender().raw_offer(RING_SIZE + 7);
        sent_after(stage)
    }),
    ("a chain that loops, then a packet", |stage| {
        stage.run();
        let buffer = stage.sender().buffer(LAST);
        stage.sender().raw_descriptor(LAST, buffer, 64, NEXT, LAST);
        stage.sender().raw_offer(LAST);
        sent_after(stage)
    }),
    ("a chain outside the memory, then a packet", |stage| {
        stage.run();
        stage.sender().raw_descriptor(LAST, 2 * RAM_BYTES, 64, 0, 0);
        stage.sender().raw_offer(LAST);
        sent_after(stage)
    }),
    ("a chain the device should write, then a packet", |stage| {
        stage.run();
        let buffer = stage.sender().buffer(LAST);
        stage.sender().raw_descriptor(LAST, buffer, 64, WRITE, 0);
        stage.sender().raw_offer(LAST);
        sent_after(stage)
    }),
    ("an available index beyond the ring", |stage| {
        stage.run();
        stage.sender().raw_available_index(RING_SIZE + 1);
        stage.settle();
        let used = stage.sender().used_index();
        format!("{} on the wire, used index {used}", stage.departed().len())
    }),
    ("a packet on a disabled ring", |stage| {
        stage.run();
        assert_eq!(stage.tell(code::SET_VRING_ENABLE, &pair(FROM_GUEST, 0), &[]), "done");
        sent_after(stage)
    }),
    ("a packet on a ring without a kick descriptor", |stage| {
        stage.run();
        stage.stop_ring(FROM_GUEST);
        let polled = (u64::from(FROM_GUEST) | 0x100).to_ne_bytes();
        assert_eq!(stage.tell(code::SET_VRING_KICK, &polled, &[]), "done");
        sent_after(stage)
    }),
    // ---- packets to the guest -----------------------------------------------------------------
    ("frames into buffers that hold them", |stage| {
        stage.run();
        stage.receiver().post(8, 1536);
        for (number, len) in [14, 60, 64, 511, 1500, 1522].into_iter().enumerate() {
            stage.arrive(&frame(len, number as u8));
        }
        stage.settle();
        format!("{:02x?}", stage.receiver().received())
    }),
    ("frames over several buffers of all sizes", |stage| {
        stage.run();
        stage.receiver().post(20, 100);
        stage.receiver().post_chain(&[1, 1, 5, 10, 20, 100]);
        stage.receiver().post_chain(&[12, 1000, 2000]);
        for (number, len) in [1514, 88, 89, 120].into_iter().enumerate() {
            stage.arrive(&frame(len, number as u8));
        }
        stage.settle();
        format!("{:02x?}", stage.receiver().received())
    }),
    ("buffers that do not suffice are kept", |stage| {
        stage.run();
        stage.receiver().post(3, 100);
        stage.arrive(&frame(500, 1));
        stage.settle();
        let before = stage.receiver().used_index();
        stage.receiver().post(5, 100);
        stage.arrive(&frame(500, 2));
        stage.settle();
        format!("{before} {:02x?}", stage.receiver().received())
    }),
    ("a frame above the MTU", |stage| {
        stage.run();
        stage.receiver().post(8, 4000);
        stage.arrive(&frame(1523, 1));
        stage.settle();
        format!("used index {}", stage.receiver().used_index())
    }),
    ("without mergeable buffers a frame has one or is dropped", |stage| {
        stage.run_without(&[MRG_RXBUF]);
        stage.receiver().post(1, 200);
        stage.receiver().post(4, 1536);
        for (number, len) in [500, 188, 189, 1500].into_iter().enumerate() {
            stage.arrive(&frame(len, number as u8));
        }
        stage.settle();
        format!("{:02x?}", stage.receiver().received())
    }),
    // ---- interrupts ---------------------------------------------------------------------------
    ("interrupts by the event index", |stage| {
        stage.run();
        let mut interrupts = Vec::new();
        for event in [0, 1, 9, 9] {
            stage.sender().set_used_event(event);
            for number in 0..3 {
                stage.sender().send(&frame(60, number), &[]);
            }
            stage.settle();
            interrupts.push(stage.interrupted(FROM_GUEST));
        }
        format!("{interrupts:?}")
    }),
    ("interrupts without the event index", |stage| {
        stage.run_without(&[EVENT_IDX]);
        stage.sender().send(&frame(60, 1), &[]);
        stage.settle();
        format!("{}", stage.interrupted(FROM_GUEST))
    }),
    ("interrupts that the guest does not want", |stage| {
        stage.run_without(&[EVENT_IDX]);
        stage.sender().raw_available_flags(1);
        stage.sender().send(&frame(60, 1), &[]);
        stage.settle();
        format!("{}", stage.interrupted(FROM_GUEST))
    }),
    ("an interrupt for a frame, as no event was asked for", |stage| {
        stage.run();
        stage.receiver().set_used_event(0x8000);
        stage.receiver().post(8, 1536);
        let mut interrupts = Vec::new();
        for number in 0..2 {
            stage.arrive(&frame(60, number));
            stage.settle();
            interrupts.push(stage.interrupted(TO_GUEST));
        }
        format!("{interrupts:?}")
    }),
    // ---- rings that stop and start ------------------------------------------------------------
    ("a ring stops where it is", |stage| {
        stage.run();
        for number in 0..7 {
            stage.sender().send(&frame(60, number), &[]);
        }
        stage.settle();
        stage.stop_ring(FROM_GUEST)
    }),
    ("a ring started again goes on where it was", |stage| {
        stage.run();
        stage.sender().send(&frame(60, 1), &[]);
        stage.settle();
        let base = stage.stop_ring(FROM_GUEST);
        stage.sender().send(&frame(60, 2), &[]);
        stage.start_ring(FROM_GUEST, 1);
        stage.settle();
        format!("{base} {:02x?} {:?}", stage.departed(), stage.completed())
    }),
    ("a ring whose guest wraps its indices", |stage| {
        stage.sender().start_at(0xfffe);
        stage.run();
        stage.stop_ring(FROM_GUEST);
        stage.start_ring(FROM_GUEST, 0xfffe);
        for number in 0..4 {
            stage.sender().send(&frame(60, number), &[]);
        }
        stage.settle();
        let base = stage.stop_ring(FROM_GUEST);
        format!("{base} {:02x?} {:?}", stage.departed(), stage.completed())
    }),
    ("a base behind the used index", |stage| {
        stage.run();
        stage.stop_ring(FROM_GUEST);
        stage.sender().start_at(5);
        stage.start_ring(FROM_GUEST, 3);
        stage.settle();
        let base = stage.stop_ring(FROM_GUEST);
        format!("{base}, used index {}", stage.sender().used_index())
    }),
];

/// Send a packet and say what became of it, and of what was offered before.
fn sent_after(stage: &mut Stage) -> String {
    stage.sender().send(&frame(60, 1), &[]);
    stage.settle();
    let used = stage.sender().used_index();
    format!("{} on the wire, used index {used}", stage.departed().len())
}
