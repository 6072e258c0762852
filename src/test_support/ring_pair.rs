//! AF_XDP rings in plain memory: a [`Socket`] for the datapath, and a [`Wire`] that plays the
//! kernel and the NIC behind it. The whole datapath runs over it without root or a NIC.

use std::any::Any;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::xdp::xsk_ring::{Completion, Fill, RingParts, Rx, Tx};
use crate::xdp::{FRAME_BYTES, FRAME_PACKET_MAX, Socket, SocketParts, Umem};

/// Where the kernel puts a packet in its frame: behind the headroom an XDP program may use.
const HEADROOM: u64 = 256;

/// XDP_PKT_CONTD, in the upper half of a descriptor's second word.
const CONTINUED: u64 = 1 << 32;

/// One ring's memory: three indices and the entries.
#[derive(Debug)]
struct RingMemory {
    words: Box<[u64]>,
    size: u32,
}

/// The kernel's side of one ring.
#[derive(Debug)]
struct KernelRing {
    memory: Arc<RingMemory>,
    index: u32,
}

impl RingMemory {
    /// Producer, consumer and flags, a cache line each, then 16 bytes per entry.
    fn new(size: u32) -> Arc<Self> {
        Arc::new(Self { words: vec![0; 24 + 2 * size as usize].into(), size })
    }

    fn base(&self) -> *mut u64 {
        self.words.as_ptr().cast_mut()
    }

    fn parts(self: &Arc<Self>) -> RingParts {
        let word = |at: usize| self.base().wrapping_add(at).cast::<u32>();
        RingParts {
            producer: word(0),
            consumer: word(8),
            flags: word(16),
            entries: self.base().wrapping_add(24).cast(),
            size: self.size,
            keep: Arc::clone(self) as Arc<dyn Any + Send + Sync>,
        }
    }

    fn index(&self, word: usize) -> &AtomicU32 {
        // SAFETY: aligned words of our own allocation, reached only through atomics.
        unsafe { AtomicU32::from_ptr(self.base().wrapping_add(word).cast()) }
    }
}

impl KernelRing {
    fn new(memory: &Arc<RingMemory>) -> Self {
        Self { memory: Arc::clone(memory), index: 0 }
    }

    /// Entries that the other side has produced and we have not consumed.
    fn filled(&self) -> u32 {
        self.memory.index(0).load(Ordering::Acquire).wrapping_sub(self.index)
    }

    /// Take an entry of `words` 64-bit words that the other side has produced.
    fn consume(&mut self, words: usize) -> Option<[u64; 2]> {
        if self.filled() == 0 {
            return None;
        }
        let slot = 24 + words * (self.index & (self.memory.size - 1)) as usize;
        let mut entry = [0; 2];
        for (word, value) in entry.iter_mut().take(words).enumerate() {
            // SAFETY: inside the allocation; the producer released the entry.
            *value = unsafe { ptr::read_volatile(self.memory.base().add(slot + word)) };
        }
        self.index = self.index.wrapping_add(1);
        self.memory.index(8).store(self.index, Ordering::Release);
        Some(entry)
    }

    /// Produce an entry; false if the ring is full.
    fn produce(&mut self, entry: &[u64]) -> bool {
        let consumed = self.memory.index(8).load(Ordering::Acquire);
        if self.index.wrapping_sub(consumed) == self.memory.size {
            return false;
        }
        let slot = 24 + entry.len() * (self.index & (self.memory.size - 1)) as usize;
        for (word, &value) in entry.iter().enumerate() {
            // SAFETY: inside the allocation; the consumer has released the place.
            unsafe { ptr::write_volatile(self.memory.base().add(slot + word), value) };
        }
        self.index = self.index.wrapping_add(1);
        self.memory.index(0).store(self.index, Ordering::Release);
        true
    }
}

/// The kernel and the NIC behind one queue.
#[derive(Debug)]
pub struct Wire {
    umem: Arc<Umem>,
    base: *mut u8,
    fill: KernelRing,
    rx: KernelRing,
    tx: KernelRing,
    completion: KernelRing,
}

// SAFETY: the base pointer is the UMEM's, which the Arc keeps; frames in the rings are the wire's.
unsafe impl Send for Wire {}

/// A queue of `frames` frames (half each way) and the wire at its other end.
#[must_use]
pub fn ring_pair(queue: u32, frames: u32) -> (Socket, Wire) {
    let bytes = frames as usize * FRAME_BYTES as usize;
    let mut memory = vec![0u8; bytes].into_boxed_slice();
    let base = memory.as_mut_ptr();
    // SAFETY: the box stays where it is while the UMEM owns it. Only frame tokens reach it, and the
    // wire, which follows the ring protocol.
    let umem = Arc::new(unsafe { Umem::new(base, bytes, Box::new(memory)) });
    let size = (frames / 2).next_power_of_two();
    let rings = [(); 4].map(|()| RingMemory::new(size));
    let [fill, rx, tx, completion] = &rings;
    let wire = Wire {
        umem: Arc::clone(&umem),
        base,
        fill: KernelRing::new(fill),
        rx: KernelRing::new(rx),
        tx: KernelRing::new(tx),
        completion: KernelRing::new(completion),
    };
    // SAFETY: rings of the layout and entry size that each type expects, used by it alone.
    let parts = unsafe {
        SocketParts {
            rx: Rx::new(rx.parts()),
            tx: Tx::new(tx.parts()),
            fill: Fill::new(fill.parts()),
            completion: Completion::new(completion.parts()),
        }
    };
    (Socket::of_whole(queue, umem, parts), wire)
}

impl Wire {
    /// A frame arrives, in as many pieces as it takes; false if it was lost, whole, for want of
    /// frames to receive into.
    pub fn arrive(&mut self, frame: &[u8]) -> bool {
        let mut pieces = frame.chunks(FRAME_PACKET_MAX as usize).peekable();
        if (self.fill.filled() as usize) < pieces.len() {
            return false;
        }
        while let Some(piece) = pieces.next() {
            assert!(self.arrive_piece(piece, pieces.peek().is_some()), "counted before");
        }
        true
    }

    /// A piece of a frame arrives, and says whether there is `more`; false if it was lost for want
    /// of a frame to receive into.
    pub fn arrive_piece(&mut self, piece: &[u8], more: bool) -> bool {
        assert!(piece.len() <= FRAME_PACKET_MAX as usize);
        let Some([address, _]) = self.fill.consume(1) else { return false };
        let address = address / u64::from(FRAME_BYTES) * u64::from(FRAME_BYTES) + HEADROOM;
        // SAFETY: the frame came out of the fill ring, so it is the kernel's, and in the UMEM.
        unsafe {
            let destination = self.base.add(address as usize);
            ptr::copy_nonoverlapping(piece.as_ptr(), destination, piece.len());
        }
        let len = piece.len() as u64 | if more { CONTINUED } else { 0 };
        assert!(self.rx.produce(&[address, len]), "as many places as frames");
        true
    }

    /// Take the transmitted packets, their pieces joined, and give the frames back.
    ///
    /// # Panics
    /// If a frame was shown without its last piece.
    pub fn departed(&mut self) -> Vec<Vec<u8>> {
        let (mut frames, mut frame) = (Vec::new(), Vec::new());
        while let Some([address, len]) = self.tx.consume(2) {
            let mut piece = vec![0; len as usize & 0xffff_ffff];
            // SAFETY: the frame came out of the tx ring, so it is the kernel's, and in the UMEM.
            unsafe {
                let source = self.base.add(address as usize);
                ptr::copy_nonoverlapping(source, piece.as_mut_ptr(), piece.len());
            }
            assert!(self.completion.produce(&[address]), "as many places as frames");
            frame.extend(piece);
            if len & CONTINUED == 0 {
                frames.push(std::mem::take(&mut frame));
            }
        }
        assert!(frame.is_empty(), "half a frame was shown to the kernel");
        frames
    }

    /// Reflect everything transmitted back to where it came from, without looking at it.
    pub fn reflect(&mut self) -> usize {
        let frames = self.departed();
        frames.iter().filter(|frame| self.arrive(frame)).count()
    }

    /// The frame memory.
    #[must_use]
    pub fn umem(&self) -> &Arc<Umem> {
        &self.umem
    }
}
