//! Frames that a VM sends back (`isonic::test_support::echo_vm`), each known by its number.

use super::PacketSocket;

/// The frames' sender, an address that no device has.
const OUTSIDE: [u8; 6] = [0x02, 0xff, 0, 0, 0, 9];
/// Bytes of Ethernet, IPv4 and UDP headers.
const HEADERS: usize = 14 + 20 + 8;
/// Flows differ by their address and port, so that a NIC spreads them over its queues.
const FLOWS: u32 = 16;
/// Most frames under way, fewer than any ring on the way has room for.
const WINDOW: u32 = 64;

/// Sends so many frames, of these lengths in turn, to the VM with this address. Panics unless each
/// comes back once, with the contents it had, and in the order of its flow.
pub fn exchange(socket: &mut PacketSocket, vm: [u8; 6], frames: u32, lengths: &[usize]) {
    let length = |number: u32| lengths[number as usize % lengths.len()];
    let (mut sent, mut last) = (0, [None; FLOWS as usize]);
    for returned in 0..frames {
        // The first frame of each flow goes alone. A tap moves a flow to the queue that its answers
        // come from, and frames under way then may be overtaken.
        let window = if returned < FLOWS { 1 } else { WINDOW };
        while sent < frames.min(returned + window) {
            socket.send(&frame([vm, OUTSIDE], length(sent), sent, Direction::ToVm));
            sent += 1;
        }
        let received = next_from(socket, vm).unwrap_or_else(|| {
            panic!("{returned} of {sent} frames came back, then none: last of each flow {last:?}")
        });
        let number = number_of(&received);
        assert!(number < sent, "frame {number} was not sent: {received:02x?}");
        let expected = frame([OUTSIDE, vm], length(number), number, Direction::FromVm);
        assert!(received == expected, "frame {number} came back changed: {received:02x?}");
        let last = &mut last[(number % FLOWS) as usize];
        assert!(*last < Some(number), "frame {number} came back again, or after {last:?}");
        *last = Some(number);
    }
}

/// Others' frames are passed over.
fn next_from(socket: &mut PacketSocket, vm: [u8; 6]) -> Option<Vec<u8>> {
    loop {
        let frame = socket.receive()?;
        if frame.get(6..12) == Some(&vm) {
            return Some(frame);
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    ToVm,
    FromVm,
}

/// A datagram of frame `number`: Ethernet, IPv4 (RFC 791), UDP (RFC 768) without a checksum, the
/// number, and bytes that follow from it.
fn frame([to, from]: [[u8; 6]; 2], len: usize, number: u32, direction: Direction) -> Vec<u8> {
    let flow = u8::try_from(number % FLOWS).expect("one of few");
    let mut ends = [source(flow), [10, 77, 9, 254]];
    let mut ports = [4000 + u16::from(flow), 7];
    if direction == Direction::FromVm {
        ends.reverse();
        ports.reverse();
    }
    let bytes = |count: usize| u16::try_from(count).expect("a datagram").to_be_bytes();
    let mut header = [&[0x45, 0][..], &bytes(len - 14), &[0, 0, 0x40, 0, 64, 17, 0, 0]].concat();
    header.extend(ends.concat());
    let checksum = internet_checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);
    let mut frame = [&to[..], &from[..], &[8, 0], &header].concat();
    frame.extend(ports.map(u16::to_be_bytes).concat());
    frame.extend([bytes(len - 34), [0; 2]].concat());
    frame.extend(number.to_be_bytes());
    let mut state = number.wrapping_mul(0x9e37_79b9) | 1;
    frame.resize_with(len, || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[1]
    });
    frame
}

/// The source address of a flow. A NIC chooses the queue by one bit of a hash. The hash is linear
/// in the bits of addresses, and has a new key at each boot. Addresses that differ in four bits
/// alone would have the same queue at one boot of sixteen.
fn source(flow: u8) -> [u8; 4] {
    let mixed = u32::from(flow).wrapping_add(1).wrapping_mul(0x9e37_79b9);
    let [a, b, ..] = (mixed ^ mixed >> 15).wrapping_mul(0x85eb_ca6b).to_be_bytes();
    [10, a, b, flow]
}

fn number_of(frame: &[u8]) -> u32 {
    let bytes = frame.get(HEADERS..HEADERS + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(u32::MAX, u32::from_be_bytes)
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded")
}
