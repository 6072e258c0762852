//! Detects a socket that stands still, by its progress at each look, and decides when zero-copy has
//! done so too often.
//!
//! The clock is no measure. After a suspend, or under heavy load, much time has passed without a
//! look, and without a wake-up of the kernel.

use std::time::{Duration, Instant};

use crate::xdp::SocketProgress;

/// Looks in a row, a quarter of a second apart, without progress. The first may come right after
/// its last frame was given to the kernel; each wakes the kernel.
const LOOKS: u32 = 3;

/// So many stalls ...
const STALLS_MAX: usize = 3;
/// ... within this time end the trust in the mode that stood still.
const STALLS_WITHIN: Duration = Duration::from_secs(600);

/// The direction that stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// Frames are with the kernel to be transmitted, and none comes back.
    Transmit,
    /// The kernel finds no frame to receive into and brings none, though it has got all of them.
    Receive,
}

/// The progress of one socket.
#[derive(Clone, Copy, Debug, Default)]
pub struct StallDetector {
    last: SocketProgress,
    transmit: u32,
    receive: u32,
}

impl StallDetector {
    /// The detector of a socket at its first look.
    pub fn new(progress: SocketProgress) -> Self {
        Self { last: progress, ..Self::default() }
    }

    /// Look at the socket. A stall is reported once; then the counting begins anew.
    pub fn look(&mut self, now: SocketProgress) -> Option<Stall> {
        let last = std::mem::replace(&mut self.last, now);
        let sends = now.transmitting == 0 || now.completed != last.completed;
        let receives = now.received != last.received || now.fill_ring_empty == last.fill_ring_empty;
        self.transmit = if sends { 0 } else { self.transmit + 1 };
        self.receive = if receives { 0 } else { self.receive + 1 };
        let stall = match (self.transmit, self.receive) {
            (LOOKS, _) => Stall::Transmit,
            (_, LOOKS) => Stall::Receive,
            _ => return None,
        };
        (self.transmit, self.receive) = (0, 0);
        Some(stall)
    }
}

/// The trust in a mode of sockets; once lost it does not come back.
#[derive(Debug, Default)]
pub struct Trust {
    stalls: Vec<Instant>,
    lost: bool,
}

impl Trust {
    /// Count a stall of a socket of that mode.
    pub fn stalled(&mut self, now: Instant) {
        self.stalls.retain(|&stall| now - stall < STALLS_WITHIN);
        self.stalls.push(now);
        self.lost |= self.stalls.len() >= STALLS_MAX;
    }

    /// Whether it is lost.
    pub fn is_lost(&self) -> bool {
        self.lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_stalls_in_ten_minutes_lose_the_trust_for_good_and_three_in_more_do_not() {
        let start = Instant::now();
        let after = |minutes: [u64; 3]| {
            let mut trust = Trust::default();
            for minute in minutes {
                assert!(!trust.is_lost());
                trust.stalled(start + Duration::from_secs(60 * minute));
            }
            trust.is_lost()
        };
        assert!(after([0, 4, 9]));
        assert!(!after([0, 4, 10]));
        let mut trust = Trust { lost: true, ..Trust::default() };
        trust.stalled(start);
        assert!(trust.is_lost());
    }

    const IDLE: SocketProgress =
        SocketProgress { transmitting: 0, completed: 100, received: 100, fill_ring_empty: 7 };

    fn looks(all: impl IntoIterator<Item = SocketProgress>) -> Vec<Stall> {
        let mut detector = StallDetector::new(IDLE);
        all.into_iter().filter_map(|progress| detector.look(progress)).collect()
    }

    #[test]
    fn idleness_is_no_stall() {
        assert_eq!(looks([IDLE; 10]), []);
    }

    #[test]
    fn frames_that_do_not_come_back_are_told_of_at_the_third_look_and_again_after_three() {
        let stuck = SocketProgress { transmitting: 5, ..IDLE };
        assert_eq!(looks([stuck; 2]), []);
        assert_eq!(looks([stuck; 3]), [Stall::Transmit]);
        assert_eq!(looks([stuck; 6]), [Stall::Transmit; 2]);
    }

    #[test]
    fn one_frame_that_comes_back_is_enough() {
        let slow = (0..20).map(|look: u64| SocketProgress {
            transmitting: 2048,
            completed: 100 + look / 2,
            ..IDLE
        });
        assert_eq!(looks(slow), []);
    }

    #[test]
    fn frames_that_come_and_go_between_two_looks_are_no_stall() {
        let waiting = SocketProgress { transmitting: 5, ..IDLE };
        assert_eq!(looks([waiting, waiting, IDLE, waiting, waiting, IDLE]), []);
    }

    #[test]
    fn a_starved_fill_ring_is_told_of_and_a_busy_one_is_not() {
        let starved = (1..=3).map(|look| SocketProgress { fill_ring_empty: 7 + look, ..IDLE });
        assert_eq!(looks(starved), [Stall::Receive]);
        let overloaded = (1..=9).map(|look| SocketProgress {
            fill_ring_empty: 7 + look,
            received: 100 + look,
            ..IDLE
        });
        assert_eq!(looks(overloaded), []);
    }
}
