//! What a ring does, whatever its layout.

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

/// What the driver has written into a ring, as our mapping of its memory shows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Glance {
    /// Nothing at all: everything that the driver writes first is zero.
    pub untouched: bool,
    /// Nothing that was not taken.
    pub quiet: bool,
}

/// The device side of one ring. Hot loops are generic over it, so that each layout has its own
/// compiled loop of the one written.
pub trait Layout {
    /// Entries.
    fn size(&self) -> u16;

    /// What GET_VRING_BASE answers: the next entry to take; of a packed ring both positions and
    /// both wrap counters (vhost-user, "Vring state description").
    fn position(&self) -> u32;

    /// What the driver has written. It changes nothing, not even what we have seen.
    fn glance(&self) -> Glance;

    /// End the ring's life with this device, and answer its position, which is the front-end's to
    /// remember from now on.
    fn retire(&mut self) -> u32;

    /// Whether there is a chain to take.
    ///
    /// # Errors
    /// [`Fault::AvailableIndex`].
    fn has_available(&mut self) -> Result<bool, Fault>;

    /// Take the next chain, which [`has_available`](Self::has_available) said is there: append
    /// its pieces to `segments`.
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
    /// buffer is in one piece. None, and nothing is taken, for any other, which
    /// [`take`](Self::take) takes or finds at fault.
    fn take_one<'m>(
        &mut self,
        memory: &'m GuestMemory,
        direction: Direction,
    ) -> Option<(Chain, GuestSlice<'m>)>;

    /// Take the next chains into `run`, `most` at most, up to the first that is not there or not of
    /// the usual kind: what it is [`has_available`](Self::has_available) and [`take`](Self::take)
    /// say. Then all that follows of them can be on its way while the first is worked on.
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

    /// Give back the chain taken last, as if it had not been.
    fn untake(&mut self, chain: Chain);

    /// Say that a chain is done and `written` bytes of it were written. Chains are completed in
    /// the order they were taken, and at most [`TAKEN_MAX`] are taken before the
    /// first of them is. The driver sees it with the next [`publish`](Self::publish), or, when very
    /// many are done, once all that were taken are.
    fn complete(&mut self, chain: Chain, written: u32);

    /// Whether [`publish`](Self::publish) would have something to answer for.
    fn has_unpublished(&self) -> bool;

    /// Show the driver all that was completed. Answers whether there was anything that this had not
    /// been answered for.
    fn publish(&mut self) -> bool;

    /// Whether the driver wants an interrupt for what was published since the last decision. Ask
    /// once per burst, after `publish` and then [`settle`].
    fn needs_notification(&mut self) -> bool;

    /// Descriptors that were given back in place of the backend before us, since this was last
    /// asked: what it used last was lost in a migration, and the driver waited for it.
    fn take_given_back(&mut self) -> u16 {
        0
    }

    /// Ask the driver to kick us for new entries, or not to. After asking, look at
    /// [`has_available`](Self::has_available) again before sleeping.
    fn want_kicks(&mut self, wanted: bool);

    /// Take the ring's mark back: another process has begun to continue with the ring, and did
    /// not.
    fn reclaim(&mut self) {}
}

/// Have what was published seen by the drivers of all rings before their wishes are read. Pairs
/// with a driver's barrier between setting its wish and looking for what was published (virtio
/// 1.2, 2.7.7.2, 2.8.10). One is enough for any number of rings.
#[inline]
pub fn settle() {
    fence(Ordering::SeqCst);
}
