//! The driver side of virtqueues, for a well-behaved guest and for a hostile one.
//!
//! [`GuestRam`] is a guest's memory, a memfd mapped as one region. [`Driver`] is the driver of one
//! ring in it. It keeps to the specification unless told otherwise: the `raw_*` functions write
//! their arguments unchecked.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use crate::device::offloads::Offloads;
use crate::guest_memory::{
    DirtyLog, FrontendAddress, GuestAddress, GuestMemory, Region, RegionSpec,
};
use crate::virtqueue::{
    EventFd, Journal, Queue, QueueAddresses, QueueOptions, QueueSetup, Ring, RingKind,
};

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
    /// The alignment of allocations.
    pub alignment: u64,
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
        Self { file, memory, alignment: 64, next: 0x1000, bytes }
    }

    /// Log the guest's own writes from now on, as a hypervisor does while it migrates. To be called
    /// before any driver is made.
    pub fn log_writes(&mut self, log: Arc<DirtyLog>) {
        self.memory = Arc::new(self.memory.logged(Some(log)));
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes as usize
    }

    /// Whether there is no memory, which is never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
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

    /// `bytes` not used before.
    pub fn allocate(&mut self, bytes: usize) -> u64 {
        let address = self.next.next_multiple_of(self.alignment);
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
        memory.written(&[slice], bytes.len() as u64);
    }
}

fn read(memory: &GuestMemory, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    if len == 0 {
        return bytes;
    }
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

/// Which of a packed ring's descriptors is next, and how often the ring was gone around, modulo 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    index: u16,
    wrap: bool,
}

impl Place {
    const START: Self = Self { index: 0, wrap: true };

    fn next(self, size: u16) -> Self {
        if self.index + 1 == size {
            Self { index: 0, wrap: !self.wrap }
        } else {
            Self { index: self.index + 1, wrap: self.wrap }
        }
    }
}

/// A buffer of a posted chain: guest address and bytes.
type Piece = (u64, usize);

/// The driver of one ring, split or packed.
#[derive(Clone, Debug)]
pub struct Driver {
    memory: Arc<GuestMemory>,
    /// Where the parts are, as guest addresses: descriptors, available, used (packed:
    /// descriptors, driver area, device area).
    parts: [u64; 3],
    /// Entries.
    pub size: u16,
    /// The negotiated options.
    pub options: QueueOptions,
    /// Bytes of the virtio-net header: [`HEADER`], or 10 for a legacy driver that merges nothing.
    pub header: usize,
    /// The available index as last published (split), or chains offered (packed).
    pub available: u16,
    used_seen: u16,
    /// For a packed ring, the places of the next descriptor and of the next used one.
    offer: Place,
    used: Place,
    /// Each entry's buffer: one page per descriptor.
    buffers: u64,
    free: Vec<u16>,
    /// Every chain that was offered, by the device's name for it: each descriptor's own number and
    /// its piece.
    chains: BTreeMap<u16, Vec<(u16, Piece)>>,
    /// Those that the device has not given back, in the order they were offered.
    outstanding: Vec<u16>,
}

/// Bytes of the buffer that each descriptor has of its own.
pub const BUFFER_BYTES: usize = 4096;

/// Descriptor flags of a packed ring (virtio 1.2, 2.8.1).
const AVAILABLE: u16 = 1 << 7;
const USED: u16 = 1 << 15;

impl Driver {
    /// A ring of `size` entries in `ram`, with a buffer for each.
    pub fn new(ram: &mut GuestRam, size: u16, options: QueueOptions) -> Self {
        let entries = usize::from(size);
        let rings = if options.packed { [4, 4] } else { [6 + 2 * entries, 6 + 8 * entries] };
        let parts = [16 * entries, rings[0], rings[1]].map(|bytes| ram.allocate(bytes));
        let buffers = ram.allocate(BUFFER_BYTES * entries);
        Self {
            memory: Arc::clone(&ram.memory),
            parts,
            size,
            options,
            header: HEADER,
            available: 0,
            used_seen: 0,
            offer: Place::START,
            used: Place::START,
            buffers,
            free: (0..size).rev().collect(),
            chains: BTreeMap::new(),
            outstanding: Vec::new(),
        }
    }

    /// This driver as it is now, in a copy of its guest's memory.
    #[must_use]
    pub fn over(&self, ram: &GuestRam) -> Self {
        Self { memory: Arc::clone(&ram.memory), ..self.clone() }
    }

    /// The ring's setup as a front-end sends it.
    #[must_use]
    pub fn setup(&self) -> QueueSetup {
        let [descriptors, available, used] =
            self.parts.map(|part| FrontendAddress(FRONTEND_BASE + part));
        // In a packed ring, both wrap counters start at 1 (2.8.1).
        let base = if self.options.packed { 0x8000 } else { 0 };
        QueueSetup {
            size: self.size,
            addresses: QueueAddresses { descriptors, available, used },
            base,
            named: base,
            options: self.options,
            log: None,
        }
    }

    /// The device side of this ring.
    #[must_use]
    pub fn activate(&self) -> Queue {
        self.setup().activate(&self.memory, Journal::private()).unwrap()
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
            kind: RingKind {
                header_len: self.header,
                mergeable: self.header == HEADER,
                offloads: Offloads::NONE,
            },
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

    /// Write a descriptor of the ring's table. In a split ring, `last` is `next`. In a packed ring
    /// it is the buffer id; `flags` must then say whether the descriptor is available.
    #[allow(clippy::too_many_arguments, reason = "a descriptor's four fields and its place")]
    pub fn raw_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, last: u16) {
        let at = self.parts[0] + 16 * u64::from(index);
        let bytes = if self.options.packed {
            descriptor_bytes(address, len, last, flags)
        } else {
            descriptor_bytes(address, len, flags, last)
        };
        write(&self.memory, at, &bytes);
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

    /// Make a chain of a split ring available and publish it.
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

    /// Set a packed ring's driver area: position and wrap counter, and flags (2.8.14).
    pub fn set_driver_area(&self, position: u16, flags: u16) {
        let bytes = [position.to_le_bytes(), flags.to_le_bytes()].concat();
        write(&self.memory, self.parts[1], &bytes);
    }

    /// The flags of a packed ring's device area: 0 asks for kicks, 1 does not.
    #[must_use]
    pub fn device_area_flags(&self) -> u16 {
        self.read_u16(self.parts[2] + 2)
    }

    /// Ask for no interrupts for a long time, in the terms of the ring.
    pub fn want_no_interrupt(&self) {
        if self.options.packed {
            self.set_driver_area(0, 1);
        } else if self.options.event_idx {
            self.set_used_event(self.used_index().wrapping_add(0x4000));
        } else {
            self.raw_available_flags(1);
        }
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

    /// Offer one packet to the device, with the header and the frame cut into pieces of these
    /// lengths, a descriptor each. One more descriptor takes the remainder. Returns its id.
    pub fn send(&mut self, frame: &[u8], pieces: &[usize]) -> u16 {
        self.send_with_header(&[0; HEADER][..self.header], frame, pieces)
    }

    /// As [`send`](Self::send), with this header.
    pub fn send_with_header(&mut self, header: &[u8], frame: &[u8], pieces: &[usize]) -> u16 {
        let bytes = [header, frame].concat();
        let mut rest = bytes.as_slice();
        let mut chain = Vec::new();
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
        self.offer_own(&chain, 0)
    }

    /// Offer `count` receive buffers of `len` bytes each.
    pub fn post(&mut self, count: u16, len: usize) {
        for _ in 0..count {
            self.post_chain(&[len]);
        }
    }

    /// Offer one receive buffer made of several descriptors.
    pub fn post_chain(&mut self, lens: &[usize]) {
        let take = |&len: &usize| (self.free.pop().expect("a free descriptor"), len);
        let chain: Vec<_> = lens.iter().map(take).collect();
        self.offer_own(&chain, WRITE);
    }

    /// Offer a chain of one descriptor that says anything at all. Returns its id.
    pub fn offer_anything(&mut self, address: u64, len: u32, flags: u16) -> u16 {
        let index = self.free.pop().expect("a free descriptor");
        self.offer_chain(&[(index, (address, len as usize))], flags)
    }

    /// Offer a chain of the descriptors' own buffers.
    fn offer_own(&mut self, chain: &[(u16, usize)], flags: u16) -> u16 {
        let chain: Vec<_> =
            chain.iter().map(|&(index, len)| (index, (self.buffer(index), len))).collect();
        self.offer_chain(&chain, flags)
    }

    fn offer_chain(&mut self, chain: &[(u16, Piece)], flags: u16) -> u16 {
        let id = chain[0].0;
        self.chains.insert(id, chain.to_vec());
        self.outstanding.push(id);
        if self.options.packed {
            self.offer_packed(id, chain, flags);
        } else {
            self.offer_split(chain, flags);
        }
        id
    }

    fn offer_split(&mut self, chain: &[(u16, Piece)], flags: u16) {
        for (place, &(index, (address, len))) in chain.iter().enumerate() {
            let next = chain.get(place + 1).map(|&(index, _)| index);
            let flags = if next.is_some() { flags | NEXT } else { flags };
            self.raw_descriptor(index, address, len as u32, flags, next.unwrap_or_default());
        }
        self.raw_offer(chain[0].0);
    }

    /// The first descriptor last, since it makes the chain available.
    fn offer_packed(&mut self, id: u16, chain: &[(u16, Piece)], flags: u16) {
        let mut places = vec![self.offer];
        for _ in 0..chain.len() {
            places.push(places[places.len() - 1].next(self.size));
        }
        self.offer = places.pop().expect("one more than descriptors");
        let descriptors: Vec<_> = places.into_iter().zip(chain).enumerate().collect();
        for (number, (place, (_, (address, len)))) in descriptors.into_iter().rev() {
            let next = if number + 1 < chain.len() { NEXT } else { 0 };
            let state = if place.wrap { AVAILABLE } else { USED };
            let flags = flags | next | state;
            self.raw_descriptor(place.index, *address, *len as u32, flags, id);
        }
        self.available = self.available.wrapping_add(1);
    }

    /// Descriptors that are the driver's to use.
    #[must_use]
    pub fn free_descriptors(&self) -> usize {
        self.free.len()
    }

    /// The chains that the device has not given back, in the order they were offered.
    #[must_use]
    pub fn outstanding(&self) -> &[u16] {
        &self.outstanding
    }

    /// Take back the chains that the device has completed, in order, and free their descriptors.
    pub fn completed(&mut self) -> Vec<Used> {
        let mut completed = Vec::new();
        while let Some(used) = self.next_used() {
            let chain = self.chains.get(&used.head);
            self.free.extend(chain.into_iter().flatten().map(|&(index, _)| index));
            if let Some(place) = self.outstanding.iter().position(|&id| id == used.head) {
                self.outstanding.remove(place);
            }
            completed.push(used);
        }
        completed
    }

    fn next_used(&mut self) -> Option<Used> {
        if self.options.packed { self.next_used_packed() } else { self.next_used_split() }
    }

    fn next_used_split(&mut self) -> Option<Used> {
        if self.used_seen == self.used_index() {
            return None;
        }
        let at = self.parts[2] + 4 + 8 * u64::from(self.used_seen & (self.size - 1));
        let entry = read(&self.memory, at, 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        self.used_seen = self.used_seen.wrapping_add(1);
        Some(Used { head: word(0) as u16, written: word(4) })
    }

    fn next_used_packed(&mut self) -> Option<Used> {
        let entry = read(&self.memory, self.parts[0] + 16 * u64::from(self.used.index), 16);
        let flags = u16::from_le_bytes([entry[14], entry[15]]);
        let state = if self.used.wrap { AVAILABLE | USED } else { 0 };
        if flags & (AVAILABLE | USED) != state {
            return None;
        }
        let head = u16::from_le_bytes([entry[12], entry[13]]);
        let written = u32::from_le_bytes(entry[8..12].try_into().unwrap());
        assert_eq!(flags & WRITE != 0, written > 0, "only what was written has a length");
        for _ in 0..self.chains[&head].len() {
            self.used = self.used.next(self.size);
        }
        Some(Used { head, written })
    }

    /// The packets the device has delivered: header and frame, put together from as many buffers
    /// as each header's `num_buffers` says (merged receive buffers).
    pub fn received(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let completed = self.completed();
        let mut packets = Vec::new();
        let mut used = completed.into_iter();
        while let Some(first) = used.next() {
            let mut bytes = self.contents(first);
            let merges = self.header == HEADER;
            let buffers = if merges { u16::from_le_bytes([bytes[10], bytes[11]]) } else { 1 };
            for _ in 1..buffers {
                bytes.extend(self.contents(used.next().expect("num_buffers of them")));
            }
            let frame = bytes.split_off(self.header);
            packets.push((bytes, frame));
        }
        packets
    }

    /// The bytes written to a completed chain.
    #[must_use]
    pub fn contents(&self, used: Used) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut left = used.written as usize;
        for &(_, (address, len)) in &self.chains[&used.head] {
            if left == 0 {
                break;
            }
            bytes.extend(read(&self.memory, address, len.min(left)));
            left -= len.min(left);
        }
        assert_eq!(left, 0, "the device says it wrote more than the chain holds");
        bytes
    }
}

/// A descriptor as it is in memory: flags and next in a split ring, id and flags in a packed one.
#[must_use]
pub fn descriptor_bytes(address: u64, len: u32, third: u16, fourth: u16) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&address.to_le_bytes());
    bytes[8..12].copy_from_slice(&len.to_le_bytes());
    bytes[12..14].copy_from_slice(&third.to_le_bytes());
    bytes[14..].copy_from_slice(&fourth.to_le_bytes());
    bytes
}
