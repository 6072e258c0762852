//! The position of a packed ring, written down so that it survives our death.
//!
//! A split ring has its used index in guest memory. A packed ring has no such index. Only the
//! device knows its position and how often it went around; a front-end learns it with
//! GET_VRING_BASE. If we die, the front-end does not learn it. So each packed ring has a slot in a
//! file of its port ([`Journals`](super::Journals)), which the next process finds as it was left:
//!
//! ```text
//! state         position u16, count u16, mark u16, open u16     one word, so never half written
//! setup         size u16, base u16
//! addresses     3 × u64                                         as the front-end gave them
//! completions   128 × { id u16, descriptors u16, written u32 }
//! ```
//!
//! A completion goes to `completions` first and is not shown to the driver. A publication is three
//! steps, and we may end between any two stores of them:
//!
//! 1. `count` completions from `position` on are announced in `state`;
//! 2. they are written to the ring, the flags of the first one last. Before that store the driver
//!    sees none of them, after it all (virtio 1.2, 2.8.6);
//! 3. `state` gets the new position, and no completions.
//!
//! A process that finds step 1 done looks at the first descriptor's flags. If it is still available
//! in its round, step 2 is repeated, whole, with the same words. Otherwise step 2 was done. Chains
//! taken but not announced are untouched in the ring, and are taken again. So every descriptor is
//! given back once.
//!
//! A slot must not be used for another ring: of a VM started since, or of a driver loaded since. It
//! is used only if all of these hold:
//!
//! - Size and addresses match.
//! - The front-end names the base that it named when the ring began; it has learnt no other since.
//! - The ring's memory has the slot's *mark*: a random number that we put into the device area when
//!   a ring begins.
//!
//! The mark is in the offset of an event that we never ask for (2.8.10), which means nothing to
//! drivers. A driver that makes a ring clears that area.

use std::any::Any;
use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use super::setup::QueueSetup;

/// Completions that a slot has room for.
pub(super) const COMPLETIONS_MAX: usize = 128;

/// Chains that may be taken before the first of them is completed. A ring publishes its completions
/// in time to leave room for so many.
pub const TAKEN_MAX: usize = 64;

/// One ring's slot. Only its ring writes to it; atomics, because the next process maps it too.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct JournalSlot {
    state: AtomicU64,
    setup: AtomicU64,
    addresses: [AtomicU64; 3],
    completions: [AtomicU64; COMPLETIONS_MAX],
}

impl JournalSlot {
    /// A slot of no ring, as in a new file.
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            setup: AtomicU64::new(0),
            addresses: [const { AtomicU64::new(0) }; 3],
            completions: [const { AtomicU64::new(0) }; COMPLETIONS_MAX],
        }
    }
}

/// A slot's first word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JournalState {
    /// The position that the driver has seen, as in SET_VRING_BASE.
    pub position: u16,
    /// Completions from there on that are being published.
    pub count: u16,
    /// The ring's mark, never 0.
    pub mark: u16,
}

impl JournalState {
    /// Set in the word of a slot whose ring runs, or ran when we ended.
    const OPEN: u64 = 1 << 48;

    fn to_word(self) -> u64 {
        let [position, count, mark] = [self.position, self.count, self.mark].map(u64::from);
        position | count << 16 | mark << 32 | Self::OPEN
    }

    fn from_word(word: u64) -> Option<Self> {
        let [position, count, mark, open] = fields(word);
        (u64::from(open) == Self::OPEN >> 48).then_some(Self { position, count, mark })
    }
}

/// A chain that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NotedCompletion {
    /// The buffer's id.
    pub id: u16,
    /// Descriptors of the chain.
    pub descriptors: u16,
    /// Bytes written to it.
    pub written: u32,
}

/// The four 16-bit fields of a word, lowest first.
fn fields(word: u64) -> [u16; 4] {
    let [a, b, c, d, e, f, g, h] = word.to_le_bytes();
    [[a, b], [c, d], [e, f], [g, h]].map(u16::from_le_bytes)
}

/// The handle to one ring's slot.
pub struct Journal {
    slot: *const JournalSlot,
    /// Keeps the slot where it is.
    _keep: Arc<dyn Any + Send + Sync>,
}

// SAFETY: the slot is made of atomics; `_keep`, which may be in any thread, keeps it.
unsafe impl Send for Journal {}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("state", &self.state()).finish()
    }
}

impl Journal {
    /// Another handle to the slot, for a ring that continues in other memory: the former ring no
    /// longer writes to it.
    pub(super) fn again(&self) -> Self {
        Self { slot: self.slot, _keep: Arc::clone(&self._keep) }
    }

    /// A journal that ends with us: for rings that no other process resumes.
    #[must_use]
    pub fn private() -> Self {
        let slot = Arc::new(JournalSlot::new());
        // SAFETY: the Arc keeps the slot, and its address stays.
        unsafe { Self::new(Arc::as_ptr(&slot), slot) }
    }

    /// # Safety
    /// `slot` must be valid for shared access as long as `keep` lives.
    pub(super) unsafe fn new(slot: *const JournalSlot, keep: Arc<dyn Any + Send + Sync>) -> Self {
        Self { slot, _keep: keep }
    }

    #[inline]
    fn slot(&self) -> &JournalSlot {
        // SAFETY: valid while `_keep` lives, as `new` was promised; all of it is atomic.
        unsafe { &*self.slot }
    }

    // ---- beginning and ending -------------------------------------------------------------------

    /// The state in which the ring of this setup was left, if the slot is of that very ring, whose
    /// memory has `mark`.
    pub(super) fn left(&self, setup: &QueueSetup, mark: u16) -> Option<JournalState> {
        let state = self.state()?;
        let slot = self.slot();
        let [size, base, ..] = fields(slot.setup.load(Ordering::Relaxed));
        let addresses = slot.addresses.each_ref().map(|word| word.load(Ordering::Relaxed));
        let same = size == setup.size && addresses == addresses_of(setup) && state.mark == mark;
        // A ring that is moved to other memory begins at its present position.
        let expected = setup.base == base || (setup.base, 0) == (state.position, state.count);
        let within = state.position & 0x7fff < setup.size
            && usize::from(state.count) <= COMPLETIONS_MAX
            && (0..state.count).all(|place| {
                (1..=setup.size).contains(&self.completion(usize::from(place)).descriptors)
            });
        (same && expected && within).then_some(state)
    }

    /// Assign the slot to a ring that begins at its base. The slot is found again by the base that
    /// the front-end knows. The ring's memory already has the mark.
    pub(super) fn open(&self, setup: &QueueSetup, mark: u16) {
        let slot = self.slot();
        self.close();
        slot.setup.store(u64::from(setup.size) | u64::from(setup.named) << 16, Ordering::Relaxed);
        for (word, address) in slot.addresses.iter().zip(addresses_of(setup)) {
            word.store(address, Ordering::Relaxed);
        }
        self.store(JournalState { position: setup.base, count: 0, mark });
    }

    /// Close the slot: the front-end knows the ring's position, and its base counts when the ring
    /// begins again.
    pub(super) fn close(&self) {
        self.slot().state.store(0, Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    /// A mark that differs from this slot's last one.
    pub(super) fn new_mark(&self) -> u16 {
        let before = self.state().map_or(0, |state| state.mark);
        loop {
            let [mark, ..] = fields(RandomState::new().hash_one(self.slot as usize));
            if mark != 0 && mark != before {
                return mark;
            }
        }
    }

    // ---- per burst ------------------------------------------------------------------------------

    fn state(&self) -> Option<JournalState> {
        JournalState::from_word(self.slot().state.load(Ordering::Acquire))
    }

    /// Store the state at once; none of our other stores is moved across. A process that is killed
    /// has done every store before it and none after it.
    #[inline]
    pub(super) fn store(&self, state: JournalState) {
        self.slot().state.store(state.to_word(), Ordering::Release);
        compiler_fence(Ordering::SeqCst);
    }

    /// Note completion number `place` of the next publication.
    ///
    /// # Panics
    /// More than [`TAKEN_MAX`] chains were taken at once: our own bug.
    #[inline]
    pub(super) fn note(&self, place: usize, completion: NotedCompletion) {
        let NotedCompletion { id, descriptors, written } = completion;
        let word = u64::from(id) | u64::from(descriptors) << 16 | u64::from(written) << 32;
        self.slot().completions[place].store(word, Ordering::Relaxed);
    }

    /// The noted completion.
    #[inline]
    pub(super) fn completion(&self, place: usize) -> NotedCompletion {
        let word = self.slot().completions[place].load(Ordering::Relaxed);
        let [id, descriptors, ..] = fields(word);
        // The upper half.
        #[allow(clippy::cast_possible_truncation)]
        let written = (word >> 32) as u32;
        NotedCompletion { id, descriptors, written }
    }
}

fn addresses_of(setup: &QueueSetup) -> [u64; 3] {
    let parts = setup.addresses;
    [parts.descriptors, parts.available, parts.used].map(|address| address.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest_memory::FrontendAddress;
    use crate::virtqueue::{QueueAddresses, QueueOptions};

    const SETUP: QueueSetup = QueueSetup {
        size: 8,
        addresses: QueueAddresses {
            descriptors: FrontendAddress(0x1000),
            available: FrontendAddress(0x2000),
            used: FrontendAddress(0x3000),
        },
        base: 0x8000,
        named: 0x8000,
        options: QueueOptions { packed: true, ..QueueOptions::NONE },
        log: None,
    };

    fn left_at(position: u16, count: u16) -> Journal {
        let journal = Journal::private();
        journal.open(&SETUP, 7);
        journal.note(0, NotedCompletion { id: 1, descriptors: 2, written: 3 });
        journal.store(JournalState { position, count, mark: 7 });
        journal
    }

    #[test]
    fn a_ring_is_found_where_it_was_left() {
        let left = left_at(0x8003, 1).left(&SETUP, 7);
        assert_eq!(left, Some(JournalState { position: 0x8003, count: 1, mark: 7 }));
    }

    #[test]
    fn another_ring_is_not_found_there() {
        let journal = left_at(0x8003, 0);
        let mut moved = SETUP;
        moved.addresses.used.0 += 4;
        assert_eq!(journal.left(&moved, 7), None, "elsewhere");
        assert_eq!(journal.left(&QueueSetup { size: 16, ..SETUP }, 7), None, "of another size");
        assert_eq!(journal.left(&QueueSetup { base: 0x8001, ..SETUP }, 7), None, "another base");
        assert_eq!(journal.left(&SETUP, 0), None, "its memory was cleared");
        assert_eq!(journal.left(&SETUP, 8), None, "another one was there since");
        assert!(journal.left(&QueueSetup { base: 0x8003, ..SETUP }, 7).is_some(), "it was moved");
    }

    #[test]
    fn a_ring_that_was_stopped_begins_where_the_front_end_says() {
        let journal = left_at(0x8003, 0);
        journal.close();
        assert_eq!(journal.left(&SETUP, 7), None);
    }

    #[test]
    fn a_ring_that_begins_elsewhere_is_found_by_the_base_that_the_front_end_knows() {
        let journal = Journal::private();
        journal.open(&QueueSetup { base: 0x8005, ..SETUP }, 7);
        let found = Some(JournalState { position: 0x8005, count: 0, mark: 7 });
        assert_eq!(journal.left(&SETUP, 7), found);
        journal.store(JournalState { position: 0x8006, count: 0, mark: 7 });
        assert!(journal.left(&SETUP, 7).is_some());
        let by_position = QueueSetup { base: 0x8005, ..SETUP };
        assert_eq!(journal.left(&by_position, 7), None, "nobody was told of that one");
    }

    #[test]
    fn words_that_no_ring_of_this_size_leaves_are_not_believed() {
        assert_eq!(left_at(0x8008, 0).left(&SETUP, 7), None, "behind the end");
        assert_eq!(left_at(0x8000, 129).left(&SETUP, 7), None, "more than there is room for");
        let journal = left_at(0x8000, 2);
        for descriptors in [0, 9] {
            journal.note(1, NotedCompletion { id: 0, descriptors, written: 0 });
            assert_eq!(journal.left(&SETUP, 7), None, "a chain of {descriptors}");
        }
        journal.note(1, NotedCompletion { id: 0, descriptors: 8, written: 0 });
        assert!(journal.left(&SETUP, 7).is_some());
    }

    #[test]
    fn marks_differ_from_the_last_and_from_cleared_memory() {
        let journal = left_at(0x8000, 0);
        assert!((0..100).map(|_| journal.new_mark()).all(|mark| mark != 0 && mark != 7));
    }
}
