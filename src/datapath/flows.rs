//! Which queue pair a flow belongs to: the one that its guest last sent on.
//!
//! Guests pick the queue pair by flow or by CPU, and expect answers where they sent. Linux's XPS
//! and `ethtool -X` depend on it, and the kernel's own tun does it too (`tun_flow_update`).
//!
//! All workers share the table. The worker that takes a flow's packets from the guest writes it;
//! the worker that receives the answers reads it. The table is a hint: a lost or mixed-up entry
//! only moves a flow to another queue pair of its port. So entries are plain bytes without order.

use std::sync::atomic::{AtomicU8, Ordering};

/// Entries, a power of two. More flows than this share entries.
const ENTRIES: usize = 4096;

/// The queue pairs of one port's flows.
#[derive(Debug)]
pub struct FlowTable {
    /// The queue pair plus one, by hash; 0 where no flow was seen.
    pairs: Box<[AtomicU8]>,
}

impl FlowTable {
    /// Remember that a flow was sent on `pair`.
    #[inline]
    pub fn learn(&self, hash: u32, pair: u16) {
        // Queue pairs are 0 to 127: rings are numbered by a byte on the wire.
        let entry = u8::try_from(pair + 1).unwrap_or(0);
        let place = self.place(hash);
        // Written only when it changes, so that the line stays with its readers.
        if place.load(Ordering::Relaxed) != entry {
            place.store(entry, Ordering::Relaxed);
        }
    }

    /// The queue pair that a flow was last sent on.
    #[inline]
    #[must_use]
    pub fn pair(&self, hash: u32) -> Option<u16> {
        u16::from(self.place(hash).load(Ordering::Relaxed)).checked_sub(1)
    }

    #[inline]
    fn place(&self, hash: u32) -> &AtomicU8 {
        &self.pairs[hash as usize % ENTRIES]
    }
}

impl Default for FlowTable {
    fn default() -> Self {
        Self { pairs: (0..ENTRIES).map(|_| AtomicU8::new(0)).collect() }
    }
}
