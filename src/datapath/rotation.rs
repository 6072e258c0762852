//! The order in which a worker looks at the rings it takes packets from. It looks at busy rings
//! every turn, at quiet ones now and then. So many idle guests do not slow a worker down.
//!
//! A quiet ring asks for kicks all the time; its driver needs no notice before the worker sleeps or
//! after it wakes. A busy worker looks at a share of the quiet rings each turn. A worker with
//! nothing else to do looks at all of them.

use super::ids::RingId;

/// Turns without packets after which a ring is quiet.
const QUIET_AFTER: u32 = 64;

/// Busy turns in which each quiet ring is looked at once. A turn of full bursts takes some ten
/// microseconds. So a first packet waits no longer than a kick takes to wake a sleeper.
const TURNS_PER_ROUND: usize = 16;

/// The rings to take packets from.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    busy: Vec<BusyRing>,
    /// The busy ring that this turn looks at first. It differs each turn, since the first ring
    /// finds most of the shared frames and buffers.
    first: usize,
    quiet: Vec<RingId>,
    /// The quiet ring to look at next.
    next: usize,
}

#[derive(Debug)]
struct BusyRing {
    ring: RingId,
    empty_turns: u32,
}

impl Rotation {
    /// Add a ring, which is busy until it proves quiet.
    pub fn add(&mut self, ring: RingId) {
        self.busy.push(BusyRing { ring, empty_turns: 0 });
    }

    /// Forget a ring.
    pub fn remove(&mut self, ring: RingId) {
        self.busy.retain(|busy| busy.ring != ring);
        self.first = 0;
        self.quiet.retain(|&quiet| quiet != ring);
    }

    /// The rings that do not ask for kicks.
    pub fn busy(&self) -> impl Iterator<Item = RingId> {
        self.busy.iter().map(|busy| busy.ring)
    }

    /// The rings that ask for kicks.
    pub fn quiet(&self) -> impl Iterator<Item = RingId> {
        self.quiet.iter().copied()
    }

    /// Whether this ring asks for kicks.
    pub fn is_quiet(&self, ring: RingId) -> bool {
        self.quiet.contains(&ring)
    }

    /// All rings.
    pub fn all(&self) -> impl Iterator<Item = RingId> {
        self.busy().chain(self.quiet())
    }

    /// Begin with another busy ring than in the last turn.
    #[inline]
    pub fn begin_turn(&mut self) {
        self.first = if self.first + 1 < self.busy.len() { self.first + 1 } else { 0 };
    }

    /// The index in `busy` of the ring that is looked at as number `at`.
    #[inline]
    fn index(&self, at: usize) -> usize {
        let index = self.first + at;
        if index < self.busy.len() { index } else { index - self.busy.len() }
    }

    /// The busy ring to look at as number `at` of this turn, if there are so many.
    #[inline]
    pub fn busy_at(&self, at: usize) -> Option<RingId> {
        (at < self.busy.len()).then(|| self.busy[self.index(at)].ring)
    }

    /// Record that the busy ring at `at` had this many packets. False if it is quiet now, and
    /// another has its place.
    #[inline]
    pub fn stays_busy(&mut self, at: usize, taken: usize) -> bool {
        let index = self.index(at);
        let busy = &mut self.busy[index];
        busy.empty_turns = if taken > 0 { 0 } else { busy.empty_turns + 1 };
        if busy.empty_turns < QUIET_AFTER {
            return true;
        }
        self.quiet.push(busy.ring);
        self.busy.remove(index);
        // The next one is in its place, at the same distance from the first.
        if index < self.first {
            self.first -= 1;
        } else if self.first == self.busy.len() {
            self.first = 0;
        }
        false
    }

    /// How many quiet rings to look at in this turn.
    #[inline]
    pub fn share(&self, nothing_else: bool) -> usize {
        if nothing_else { self.quiet.len() } else { self.quiet.len().div_ceil(TURNS_PER_ROUND) }
    }

    /// The next quiet ring.
    #[inline]
    pub fn next_quiet(&mut self) -> Option<RingId> {
        if self.next >= self.quiet.len() {
            self.next = 0;
        }
        let ring = self.quiet.get(self.next).copied()?;
        self.next += 1;
        Some(ring)
    }

    /// Record that a ring was kicked: if it was quiet, it is busy now.
    pub fn kicked(&mut self, ring: RingId) {
        let Some(at) = self.quiet.iter().position(|&quiet| quiet == ring) else { return };
        self.quiet.remove(at);
        if at < self.next {
            self.next -= 1;
        }
        self.add(ring);
    }

    /// The quiet ring that was looked at last is busy now.
    pub fn wake(&mut self) {
        self.next -= 1;
        let ring = self.quiet.swap_remove(self.next);
        self.add(ring);
    }
}

#[cfg(test)]
mod tests {
    use super::super::ids::PortId;
    use super::*;

    #[test]
    fn a_kicked_ring_is_looked_at_before_all_quiet_ones_and_none_of_those_is_passed_over() {
        for kicked in RINGS {
            let mut rotation = quiet();
            let first = rotation.next_quiet().unwrap();
            rotation.kicked(kicked);
            assert_eq!(rotation.busy_at(0), Some(kicked));
            rotation.kicked(kicked);
            assert_eq!(rotation.busy().count(), 1, "it is busy once");
            let mut left: Vec<_> = RINGS.into_iter().filter(|&ring| ring != kicked).collect();
            let mut seen: Vec<_> = (0..left.len()).filter_map(|_| rotation.next_quiet()).collect();
            seen.sort_unstable();
            left.sort_unstable();
            assert_eq!(seen, left, "after {first:?} was looked at and {kicked:?} kicked");
        }
    }

    const RINGS: [RingId; 3] = [ring(0), ring(1), ring(2)];

    const fn ring(port: u16) -> RingId {
        RingId { port: PortId(port), index: 1 }
    }

    fn quiet() -> Rotation {
        let mut rotation = Rotation::default();
        RINGS.into_iter().for_each(|ring| rotation.add(ring));
        while rotation.busy_at(0).is_some() {
            rotation.stays_busy(0, 0);
        }
        rotation
    }

    #[test]
    fn a_ring_is_quiet_after_enough_turns_without_packets_and_not_before() {
        let mut rotation = Rotation::default();
        rotation.add(RINGS[0]);
        for _ in 1..QUIET_AFTER {
            assert!(rotation.stays_busy(0, 0));
        }
        assert!(rotation.stays_busy(0, 1), "a packet begins the count anew");
        for _ in 1..QUIET_AFTER {
            assert!(rotation.stays_busy(0, 0));
        }
        assert!(!rotation.stays_busy(0, 0));
        assert_eq!(rotation.busy().count(), 0);
        assert_eq!(rotation.all().count(), 1);
    }

    #[test]
    fn every_quiet_ring_is_looked_at_in_a_round_whatever_wakes_between() {
        let mut rotation = quiet();
        assert_eq!(rotation.share(true), 3);
        assert_eq!(rotation.share(false), 1);
        let first = rotation.next_quiet().unwrap();
        rotation.wake();
        assert_eq!(rotation.busy().collect::<Vec<_>>(), [first]);
        let mut others = [rotation.next_quiet().unwrap(), rotation.next_quiet().unwrap()];
        others.sort_unstable();
        let mut expected: Vec<_> = RINGS.into_iter().filter(|&ring| ring != first).collect();
        expected.sort_unstable();
        assert_eq!(others[..], expected);
        rotation.remove(others[0]);
        assert_eq!(rotation.next_quiet(), Some(others[1]));
        rotation.remove(others[1]);
        assert_eq!(rotation.next_quiet(), None);
    }
}
