//! Packets between a `virtio-queue` ring and our own memory, the plain way.

use virtio_queue::{DescriptorChain, Error, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Bytes of the virtio-net header (virtio 1.2, 5.1.6).
const HEADER: usize = 12;
/// Bytes of an Ethernet header: no frame is shorter.
const ETHERNET: usize = 14;
/// Where `num_buffers` is in the header.
const NUM_BUFFERS: usize = 10;

/// The loop of one device: its state beside the rings, kept so that no packet allocates.
#[derive(Debug)]
pub struct RingLoop {
    /// VIRTIO_NET_F_MRG_RXBUF was negotiated.
    pub mergeable: bool,
    /// Header and frame, as long as the longest.
    packet: Vec<u8>,
    /// The buffers of the frame being delivered.
    buffers: Vec<(GuestAddress, usize)>,
    /// The chains they belong to, and how much of each is written.
    chains: Vec<(u16, usize)>,
}

impl RingLoop {
    /// For frames of at most `frame_max` bytes.
    #[must_use]
    pub fn new(frame_max: usize) -> Self {
        let packet = vec![0; HEADER + frame_max];
        Self { mergeable: true, packet, buffers: Vec::new(), chains: Vec::new() }
    }

    /// Take every packet of a transmit ring and let `forward` see its frame. Packets that are
    /// too short, too long, or ask for an offload are dropped. Returns how many were given back: a
    /// chain whose head is outside the ring cannot be.
    pub fn from_guest(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        mut forward: impl FnMut(&[u8]),
    ) -> usize {
        let mut given_back = 0;
        while let Some(chain) = queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            if let Some(frame) = self.read(chain, memory) {
                forward(frame);
            }
            given_back += usize::from(queue.add_used(memory, head, 0).is_ok());
        }
        given_back
    }

    /// The frame that a chain holds, if it is one.
    fn read(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
    ) -> Option<&[u8]> {
        let mut len = 0;
        for descriptor in chain.readable() {
            let end = len + usize::try_from(descriptor.len()).ok()?;
            let part = self.packet.get_mut(len..end)?;
            memory.read_slice(part, descriptor.addr()).ok()?;
            len = end;
        }
        // Bit 0 of the flags asks for a checksum, the second byte for segmentation.
        let plain = self.packet[0] & 1 == 0 && self.packet[1] == 0;
        (len >= HEADER + ETHERNET && plain).then(|| &self.packet[HEADER..len])
    }

    /// Deliver `frame` to a receive ring, over several buffers where it must be and may be.
    /// Returns false, with the ring as it was, if there are not enough.
    ///
    /// # Errors
    /// Those of `virtio-queue`: a chain's head is outside the ring, or its buffer outside the
    /// memory.
    pub fn to_guest(
        &mut self,
        queue: &mut Queue,
        memory: &GuestMemoryMmap,
        frame: &[u8],
    ) -> Result<bool, Error> {
        let first = queue.next_avail();
        let len = HEADER + frame.len();
        if len > self.packet.len() || !self.gather(queue, memory, len) {
            queue.set_next_avail(first);
            return Ok(false);
        }
        self.packet[..HEADER].fill(0);
        let count = u16::try_from(self.chains.len()).expect("no more chains than ring entries");
        self.packet[NUM_BUFFERS..HEADER].copy_from_slice(&count.to_le_bytes());
        self.packet[HEADER..len].copy_from_slice(frame);
        let mut rest = &self.packet[..len];
        for &(address, buffer) in &self.buffers {
            let (part, after) = rest.split_at(buffer.min(rest.len()));
            memory.write_slice(part, address).map_err(Error::GuestMemory)?;
            rest = after;
        }
        for &(head, written) in &self.chains {
            let written = u32::try_from(written).expect("no more than the packet");
            queue.add_used(memory, head, written)?;
        }
        Ok(true)
    }

    /// Take chains until they hold `len` bytes; false if there are too few.
    fn gather(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap, len: usize) -> bool {
        self.buffers.clear();
        self.chains.clear();
        let mut gathered = 0;
        while gathered < len && (self.mergeable || self.chains.is_empty()) {
            let Some(chain) = queue.pop_descriptor_chain(memory) else { return false };
            let (head, before) = (chain.head_index(), gathered);
            for descriptor in chain.writable() {
                let buffer = descriptor.len() as usize;
                self.buffers.push((descriptor.addr(), buffer));
                gathered += buffer;
            }
            self.chains.push((head, gathered.min(len) - before));
        }
        gathered >= len
    }
}
