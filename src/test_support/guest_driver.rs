//! The driver side of virtqueues: what a guest does, and what a hostile one does.
//!
//! [`GuestRam`] is a guest's memory, a memfd mapped as one region. [`Driver`] is the driver of one
//! ring in it. It keeps to the specification unless told otherwise: the `raw_*` functions write
//! whatever they are given.

use std::fs::File;
use std::sync::Arc;

use crate::guest_memory::{FrontendAddress, GuestAddress, GuestMemory, Region, RegionSpec};
use crate::virtqueue::{EventFd, Queue, QueueAddresses, QueueOptions, QueueSetup, Ring};

/// Added to a guest address to make the front-end's, so that mixing them up is noticed.
pub const FRONTEND_BASE: u64 = 0x7f00_0000_0000;

/// Descriptor flags (virtio 1.2, 2.7.5).
pub const NEXT: u16 = 1;
/// Device-writable.
pub const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = 4;

/// Bytes of the virtio-net header.
pub const HEADER: usize = 12;

/// A guest's memory and a bump allocator in it.
#[derive(Debug)]
pub struct GuestRam {
    /// The file, to be sent to a session.
    pub file: File,
    /// The table with its one region.
    pub memory: Arc<GuestMemory>,
    next: u64,
    bytes: u64,
}

impl GuestRam {
    /// `bytes` of zeroes at guest address 0.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let name = "isonic-guest-ram";
        let fd = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(bytes).unwrap();
        let spec = Self::spec(bytes);
        let region = Region::map(spec, file.try_clone().unwrap()).unwrap();
        let memory = Arc::new(GuestMemory::new(vec![Arc::new(region)]).unwrap());
        Self { file, memory, next: 0x1000, bytes }
    }

    /// The description of its region.
    #[must_use]
    pub fn spec(bytes: u64) -> RegionSpec {
        RegionSpec {
            guest: GuestAddress(0),
            frontend: FrontendAddress(FRONTEND_BASE),
            size: bytes,
            file_offset: 0,
        }
    }

    /// `bytes` not used before, aligned to 64.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let address = self.next.next_multiple_of(64);
        self.next = address + bytes as u64;
        assert!(self.next <= self.bytes, "the test needs a larger guest");
        address
    }

    /// Write at a guest address.
    pub fn write(&self, address: u64, bytes: &[u8]) {
        write(&self.memory, address, bytes);
    }

    /// Read at a guest address.
    #[must_use]
    pub fn read(&self, address: u64, len: usize) -> Vec<u8> {
        read(&self.memory, address, len)
    }
}

fn write(memory: &GuestMemory, address: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        let slice = memory.translate(GuestAddress(address), bytes.len() as u32).unwrap();
        slice.write(bytes);
    }
}

fn read(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.translate(GuestAddress(address), len as u32).unwrap().read(&mut bytes);
    bytes
}

/// A chain the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor.
    pub head: u16,
    /// Bytes the device says it wrote.
    pub written: u32,
}

/// The driver of one split ring.
#[derive(Debug)]
pub struct Driver {
    memory: Arc<GuestMemory>,
    /// Where the parts are, as guest addresses: descriptors, available, used.
    parts: [u64; 3],
    /// Entries.
    pub size: u16,
    /// What was negotiated.
    pub options: QueueOptions,
    /// The available index as last published.
    pub available: u16,
    used_seen: u16,
    /// Each entry's buffer: one page per descriptor.
    buffers: u64,
    free: Vec<u16>,
}

/// Bytes of the buffer that each descriptor has of its own.
pub const BUFFER_BYTES: usize = 4096;

impl Driver {
    /// A ring of `size` entries in `ram`, with a buffer for each.
    pub fn new(ram: &mut GuestRam, size: u16, options: QueueOptions) -> Self {
        let entries = usize::from(size);
        let parts = [
            ram.allocate(16 * entries),
            ram.allocate(6 + 2 * entries),
            ram.allocate(6 + 8 * entries),
        ];
        let buffers = ram.allocate(BUFFER_BYTES * entries);
        Self {
            memory: Arc::clone(&ram.memory),
            parts,
            size,
            options,
            available: 0,
            used_seen: 0,
            buffers,
            free: (0..size).rev().collect(),
        }
    }

    /// What the front-end would say of this ring.
    #[must_use]
    pub fn setup(&self) -> QueueSetup {
        let [descriptors, available, used] =
            self.parts.map(|part| FrontendAddress(FRONTEND_BASE + part));
        QueueSetup {
            size: self.size,
            addresses: QueueAddresses { descriptors, available, used },
            base: 0,
            options: self.options,
        }
    }

    /// The device side of this ring.
    #[must_use]
    pub fn activate(&self) -> Queue {
        self.setup().activate(&self.memory).unwrap()
    }

    /// The device side with a call descriptor, enabled; and that descriptor, to read.
    #[must_use]
    pub fn ring(&self) -> (Ring, File) {
        let eventfd = || {
            let flags = rustix::event::EventfdFlags::NONBLOCK;
            File::from(rustix::event::eventfd(0, flags).unwrap())
        };
        let (kick, call) = (eventfd(), eventfd());
        let ring = Ring {
            queue: self.activate(),
            kick: Some(EventFd::new(kick).unwrap()),
            call: Some(EventFd::new(call.try_clone().unwrap()).unwrap()),
            err: None,
            enabled: true,
            mergeable: true,
            broken: None,
        };
        (ring, call)
    }

    /// The guest address of descriptor `index`'s own buffer.
    #[must_use]
    pub fn buffer(&self, index: u16) -> u64 {
        self.buffers + u64::from(index) * BUFFER_BYTES as u64
    }

    // ---- raw: what a hostile driver may write ---------------------------------------------------

    /// Write a descriptor of the ring's table.
    #[allow(clippy::too_many_arguments, reason = "a descriptor's four fields and its place")]
    pub fn raw_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.parts[0] + 16 * u64::from(index);
        write(&self.memory, at, &descriptor_bytes(address, len, flags, next));
    }

    /// Write the available ring's entry for `position` without publishing it.
    pub fn raw_available_entry(&self, position: u16, head: u16) {
        let at = self.parts[1] + 4 + 2 * u64::from(position & (self.size - 1));
        write(&self.memory, at, &head.to_le_bytes());
    }

    /// Publish an available index.
    pub fn raw_available_index(&self, index: u16) {
        write(&self.memory, self.parts[1] + 2, &index.to_le_bytes());
    }

    /// Make a chain available and publish it.
    pub fn raw_offer(&mut self, head: u16) {
        self.raw_available_entry(self.available, head);
        self.available = self.available.wrapping_add(1);
        self.raw_available_index(self.available);
    }

    /// Set the available ring's flags (NO_INTERRUPT is 1).
    pub fn raw_available_flags(&self, flags: u16) {
        write(&self.memory, self.parts[1], &flags.to_le_bytes());
    }

    /// Ask to be notified when the used index passes `event`.
    pub fn set_used_event(&self, event: u16) {
        let at = self.parts[1] + 4 + 2 * u64::from(self.size);
        write(&self.memory, at, &event.to_le_bytes());
    }

    /// The used ring's flags (NO_NOTIFY is 1).
    #[must_use]
    pub fn used_flags(&self) -> u16 {
        self.read_u16(self.parts[2])
    }

    /// The used index.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.read_u16(self.parts[2] + 2)
    }

    /// When the device wants to be kicked: its avail_event.
    #[must_use]
    pub fn available_event(&self) -> u16 {
        self.read_u16(self.parts[2] + 4 + 8 * u64::from(self.size))
    }

    /// Start the ring elsewhere in the index space, as after long use.
    pub fn start_at(&mut self, index: u16) {
        self.available = index;
        self.used_seen = index;
        self.raw_available_index(index);
        write(&self.memory, self.parts[2] + 2, &index.to_le_bytes());
    }

    fn read_u16(&self, address: u64) -> u16 {
        u16::from_le_bytes(read(&self.memory, address, 2).try_into().unwrap())
    }

    // ---- well-behaved ---------------------------------------------------------------------------

    /// Offer one packet to the device, the header and the frame cut into pieces of these lengths,
    /// a descriptor each; what is left after the last goes into one more. Returns the head.
    pub fn send(&mut self, frame: &[u8], pieces: &[usize]) -> u16 {
        self.send_with_header(&[0; HEADER], frame, pieces)
    }

    /// As [`send`](Self::send), with this header.
    pub fn send_with_header(&mut self, header: &[u8], frame: &[u8], pieces: &[usize]) -> u16 {
        let bytes = [header, frame].concat();
        let mut rest = bytes.as_slice();
        let mut chain: Vec<(u16, usize)> = Vec::new();
        for len in pieces.iter().copied().chain([usize::MAX]) {
            let len = len.min(rest.len());
            let (piece, after) = rest.split_at(len);
            let index = self.free.pop().expect("a free descriptor");
            write(&self.memory, self.buffer(index), piece);
            chain.push((index, len));
            rest = after;
            if rest.is_empty() {
                break;
            }
        }
        self.link(&chain, 0);
        let head = chain[0].0;
        self.raw_offer(head);
        head
    }

    /// Offer `count` receive buffers of `len` bytes each.
    pub fn post(&mut self, count: u16, len: usize) {
        for _ in 0..count {
            let index = self.free.pop().expect("a free descriptor");
            self.link(&[(index, len)], WRITE);
            self.raw_offer(index);
        }
    }

    /// Offer one receive buffer made of several descriptors.
    pub fn post_chain(&mut self, lens: &[usize]) {
        let chain: Vec<_> =
            lens.iter().map(|&len| (self.free.pop().expect("a free descriptor"), len)).collect();
        self.link(&chain, WRITE);
        self.raw_offer(chain[0].0);
    }

    fn link(&self, chain: &[(u16, usize)], flags: u16) {
        for (place, &(index, len)) in chain.iter().enumerate() {
            let next = chain.get(place + 1).map(|&(index, _)| index);
            let flags = if next.is_some() { flags | NEXT } else { flags };
            self.raw_descriptor(
                index,
                self.buffer(index),
                len as u32,
                flags,
                next.unwrap_or_default(),
            );
        }
    }

    /// Take back what the device has completed, in order, and free its descriptors.
    pub fn completed(&mut self) -> Vec<Used> {
        let mut completed = Vec::new();
        while self.used_seen != self.used_index() {
            let at = self.parts[2] + 4 + 8 * u64::from(self.used_seen & (self.size - 1));
            let entry = read(&self.memory, at, 8);
            let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
            let used = Used { head: word(0) as u16, written: word(4) };
            self.release(used.head);
            self.used_seen = self.used_seen.wrapping_add(1);
            completed.push(used);
        }
        completed
    }

    /// Free a chain's descriptors; bounded, since a hostile test may have made it a loop.
    fn release(&mut self, head: u16) {
        let mut index = head;
        for _ in 0..self.size {
            self.free.push(index);
            let bytes = read(&self.memory, self.parts[0] + 16 * u64::from(index), 16);
            let flags = u16::from_le_bytes([bytes[12], bytes[13]]);
            if flags & NEXT == 0 {
                break;
            }
            index = u16::from_le_bytes([bytes[14], bytes[15]]);
        }
    }

    /// The packets the device has delivered: header and frame, put together from as many buffers
    /// as each header's `num_buffers` says (merged receive buffers).
    pub fn received(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let completed = self.completed();
        let mut packets = Vec::new();
        let mut used = completed.into_iter();
        while let Some(first) = used.next() {
            let mut bytes = self.contents(first);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..buffers {
                bytes.extend(self.contents(used.next().expect("num_buffers of them")));
            }
            let frame = bytes.split_off(HEADER);
            packets.push((bytes, frame));
        }
        packets
    }

    /// The bytes written to a completed chain.
    #[must_use]
    pub fn contents(&self, used: Used) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut index = used.head;
        let mut left = used.written as usize;
        for _ in 0..self.size {
            let entry = read(&self.memory, self.parts[0] + 16 * u64::from(index), 16);
            let address = u64::from_le_bytes(entry[..8].try_into().unwrap());
            let len = u32::from_le_bytes(entry[8..12].try_into().unwrap()) as usize;
            let flags = u16::from_le_bytes([entry[12], entry[13]]);
            bytes.extend(read(&self.memory, address, len.min(left)));
            left -= len.min(left);
            if left == 0 || flags & NEXT == 0 {
                break;
            }
            index = u16::from_le_bytes([entry[14], entry[15]]);
        }
        assert_eq!(left, 0, "the device says it wrote more than the chain holds");
        bytes
    }
}

/// A descriptor as it is in memory.
#[must_use]
pub fn descriptor_bytes(address: u64, len: u32, flags: u16, next: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&flags.to_le_bytes());
    bytes[14..].copy_from_slice(&next.to_le_bytes());
    bytes
}
