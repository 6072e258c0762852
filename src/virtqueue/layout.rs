//! The operations of a ring, of any layout.

use std::sync::atomic::{Ordering, fence};

use arrayvec::ArrayVec;

use crate::guest_memory::{GuestMemory, GuestSlice};

use super::chain::{Chain, Direction, Segments};
use super::fault::Fault;
use super::journal::TAKEN_MAX;

/// Most chains taken at once by [`Layout::take_run`].
pub const RUN: usize = 32;
const _: () = assert!(RUN <= TAKEN_MAX, "a journal has room for them");

/// Chains of one descriptor, each with its buffer, which is in one piece.
pub type Run<'m> = ArrayVec<(Chain, GuestSlice<'m>), RUN>;

/// The state of the driver's part of a ring, as our mapping of its memory shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// The driver has written nothing: all that it writes first is zero.
    pub untouched: bool,
    /// The driver has written nothing that was not taken.
    pub quiet: bool,
}

/// The device side of one ring. Hot loops are written once, generic over it, and compiled for each
/// layout.
pub trait Layout {
    /// Entries.
    fn size(&self) -> u16;

    /// The answer to GET_VRING_BASE: the next entry to take. For a packed ring it has both
    /// positions and both wrap counters (vhost-user, "Vring state description").
    fn position(&self) -> u32;

    /// The driver's part of the ring. The look changes nothing, not even the state that we have
    /// seen.
    fn glance(&self) -> Glance;

    /// End the ring's life with this device. Returns its position, which the front-end must
    /// remember from now on.
    fn retire(&mut self) -> u32;

    /// Whether there is a chain to take.
    ///
    /// # Errors
    /// [`Fault::AvailableIndex`].
    fn has_available(&mut self) -> Result<bool, Fault>;

    /// Take the next chain, which [`has_available`](Self::has_available) has reported: append its
    /// pieces to `segments`.
    ///
    /// # Errors
    /// [`Fault`], for a chain that breaks the ring's rules.
    fn take<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
        segments: &mut Segments<'m>,
    ) -> Result<Chain, Fault>;

    /// Take the next chain, which must be there, if it is of the usual kind: one descriptor whose
    /// buffer is in one piece. None, and nothing is taken, for any other chain:
    /// [`take`](Self::take) takes it or finds its fault.
    fn take_one<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
    ) -> Option<(Chain, GuestSlice<'m>)>;

    /// Take the next chains into `run`, at most `most`. It stops where the next chain is missing or
    /// unusual; [`has_available`](Self::has_available) and [`take`](Self::take) tell which. The
    /// caller can then prefetch later chains while it works on the first.
    #[inline]
    fn take_run<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
        most: usize,
        run: &mut Run<'m>,
    ) {
        while run.len() < most && !run.is_full() && self.has_available() == Ok(true) {
            let Some(taken) = self.take_one(memory, direction) else { return };
            run.push(taken);
        }
    }

    /// Return the chain taken last, as if it had not been taken.
    fn untake(&mut self, chain: Chain);

    /// Complete a chain of which `written` bytes were written. Chains are completed in the order
    /// they were taken, and at most [`TAKEN_MAX`] are taken before the first of them is completed.
    /// The driver sees it with the next [`publish`](Self::publish). If very many are completed, it
    /// sees them as soon as no taken chain is left.
    fn complete(&mut self, chain: Chain, written: u32);

    /// Whether [`publish`](Self::publish) would report something new.
    fn has_unpublished(&self) -> bool;

    /// Show the driver all completions. Returns whether there were any that no earlier call has
    /// reported.
    fn publish(&mut self) -> bool;

    /// Whether the driver wants an interrupt for the publications since the last decision. Ask once
    /// per burst, after `publish` and then [`settle`].
    fn needs_notification(&mut self) -> bool;

    /// Descriptors given back in place of the backend before us, since the last call. A migration
    /// lost the last ones that it used, and the driver waited for them.
    fn take_given_back(&mut self) -> u16 {
        0
    }

    /// Ask the driver to kick us for new entries, or not to. After asking, look at
    /// [`has_available`](Self::has_available) again before sleeping.
    fn want_kicks(&mut self, wanted: bool);

    /// Restore the ring's mark: another process has tried to resume the ring and failed.
    fn reclaim(&mut self) {}
}

/// Make publications visible to the drivers of all rings before their wishes are read. It pairs
/// with a driver's barrier between setting its wish and looking for publications (virtio 1.2,
/// 2.7.7.2, 2.8.10). One call serves any number of rings.
#[inline]
pub fn settle() {
    fence(Ordering::SeqCst);
}
