//! Shares of things that many ports use: transmit frames, buffers, lent frames.
//!
//! Half of the total is divided evenly among the ports that may want some: a port's *share*, which
//! no other port can take. The other half is first come, first served. So one busy port alone has
//! more than half of the total. A port that comes later finds its share, whatever the others do.

use std::collections::VecDeque;

use super::ids::PortId;

/// Who holds how many of something that is shared.
#[derive(Debug)]
pub(super) struct Shares {
    /// How many there are.
    total: u32,
    /// Ports that may want some.
    ports: u32,
    /// Each one's share.
    share: u32,
    /// By port.
    held: Vec<u32>,
    /// How many are held within their ports' shares.
    within: u32,
}

impl Shares {
    /// Shares of `total`, nothing held, for one port.
    pub fn new(total: u32) -> Self {
        let mut shares = Self { total, ports: 0, share: 0, held: Vec::new(), within: 0 };
        shares.divide(1);
        shares
    }

    /// Have shares for so many ports from now on: at least one each, while the total suffices.
    pub fn divide(&mut self, ports: u32) {
        self.ports = ports;
        self.share = match self.total / 2 / ports.max(1) {
            0 if ports <= self.total => 1,
            share => share,
        };
        self.within = self.held.iter().map(|&held| held.min(self.share)).sum();
    }

    #[inline]
    fn held(&self, port: PortId) -> u32 {
        self.held.get(port.index()).copied().unwrap_or(0)
    }

    /// How many a port may take while so many are `free`.
    #[inline]
    pub fn allowance(&self, port: PortId, free: u32) -> u32 {
        let own = self.share.saturating_sub(self.held(port));
        let unused = (self.share * self.ports).saturating_sub(self.within);
        let of_others = unused.saturating_sub(own);
        own.max(free.saturating_sub(of_others)).min(free)
    }

    /// The port has taken some.
    #[inline]
    pub fn take(&mut self, port: PortId, count: u32) {
        if self.held.len() <= port.index() {
            self.held.resize(port.index() + 1, 0);
        }
        let held = &mut self.held[port.index()];
        let before = (*held).min(self.share);
        *held += count;
        self.within += (*held).min(self.share) - before;
    }

    /// The port has returned some that it took.
    #[inline]
    pub fn give_back(&mut self, port: PortId, count: u32) {
        let Some(held) = self.held.get_mut(port.index()) else { return };
        let before = (*held).min(self.share);
        *held = held.saturating_sub(count);
        self.within -= before - (*held).min(self.share);
    }
}

/// How many frames each port has in flight on a socket. They are counted as returning in the order
/// they were sent. If a NIC completes them in another order, the counts are wrong only until both
/// have completed.
#[derive(Debug)]
pub(super) struct InFlight {
    shares: Shares,
    /// Frames sent one after the other by one port; None for those of a process before us.
    runs: VecDeque<(Option<PortId>, u32)>,
    /// How many of the socket's frames had ever come back at the last look.
    completed: u64,
}

impl InFlight {
    /// A count for `total` frames: `sent` are in flight already, and `completed` have ever come
    /// back.
    pub fn new(total: u32, sent: u32, completed: u64) -> Self {
        let runs = (sent > 0).then_some((None, sent)).into_iter().collect();
        Self { shares: Shares::new(total), runs, completed }
    }

    /// Have shares for so many ports from now on.
    pub fn divide(&mut self, ports: u32) {
        self.shares.divide(ports);
    }

    /// So many frames came back ever.
    #[inline]
    pub fn settle(&mut self, completed: u64) {
        let mut back = completed - self.completed;
        self.completed = completed;
        while back > 0
            && let Some((port, count)) = self.runs.front_mut()
        {
            let of_it = u64::from(*count).min(back);
            // At most the run's.
            #[allow(clippy::cast_possible_truncation)]
            let of_run = of_it as u32;
            back -= of_it;
            *count -= of_run;
            let (port, left) = (*port, *count);
            if let Some(port) = port {
                self.shares.give_back(port, of_run);
            }
            if left == 0 {
                self.runs.pop_front();
            }
        }
    }

    /// How many frames a port may send while so many are `free`.
    #[inline]
    pub fn allowance(&self, port: PortId, free: u32) -> u32 {
        self.shares.allowance(port, free)
    }

    /// The port has sent some.
    #[inline]
    pub fn sent(&mut self, port: PortId, count: u32) {
        if count > 0 {
            self.shares.take(port, count);
            self.runs.push_back((Some(port), count));
        }
    }
}

/// Which ports' received frames other workers hold, for one socket. Some frames never leave, so
/// that the socket receives for the ports here however slow the other workers are.
#[derive(Debug)]
pub(super) struct Lent {
    shares: Shares,
    /// How many more may leave.
    left: u32,
}

impl Lent {
    /// A count for `total` frames that may leave, of which none has.
    pub fn new(total: u32) -> Self {
        Self { shares: Shares::new(total), left: total }
    }

    /// Have shares for so many ports from now on.
    pub fn divide(&mut self, ports: u32) {
        self.shares.divide(ports);
    }

    /// Whether a frame may leave for this port.
    #[inline]
    pub fn allow(&self, port: PortId) -> bool {
        self.shares.allowance(port, self.left) > 0
    }

    /// One has left for this port.
    #[inline]
    pub fn lend(&mut self, port: PortId) {
        self.shares.take(port, 1);
        self.left -= 1;
    }

    /// One is back.
    #[inline]
    pub fn come_home(&mut self, port: PortId) {
        self.shares.give_back(port, 1);
        self.left += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PortId = PortId(0);
    const B: PortId = PortId(1);
    const C: PortId = PortId(7);

    #[test]
    fn a_port_alone_may_have_all() {
        let shares = Shares::new(100);
        assert_eq!(shares.allowance(A, 100), 100);
    }

    #[test]
    fn whoever_comes_first_leaves_every_other_its_share() {
        let mut shares = Shares::new(96);
        shares.divide(3);
        let mut free = 96;
        for port in [A, B] {
            let taken = shares.allowance(port, free);
            shares.take(port, taken);
            free -= taken;
        }
        assert_eq!(free, 16);
        assert_eq!([A, B, C].map(|port| shares.allowance(port, free)), [0, 0, 16]);
        shares.take(C, 16);
        shares.give_back(A, 30);
        // Any port may take what A had beyond its share; A's share is A's.
        assert_eq!([A, B, C].map(|port| shares.allowance(port, 30)), [30, 30, 30]);
        shares.give_back(A, 30);
        assert_eq!([A, B, C].map(|port| shares.allowance(port, 60)), [60, 48, 48]);
    }

    #[test]
    fn each_of_many_ports_has_one_and_of_too_many_none() {
        let mut shares = Shares::new(8);
        shares.divide(8);
        assert_eq!(shares.allowance(A, 8), 1);
        shares.divide(9);
        assert_eq!(shares.allowance(A, 8), 8);
    }

    #[test]
    fn shares_change_with_the_ports_and_what_is_held_counts() {
        let mut shares = Shares::new(64);
        shares.take(A, 60);
        shares.divide(2);
        assert_eq!(shares.allowance(A, 4), 0);
        assert_eq!(shares.allowance(B, 4), 4);
        shares.divide(1);
        assert_eq!(shares.allowance(A, 4), 4);
    }

    #[test]
    fn frames_in_flight_come_back_in_the_order_they_were_sent() {
        let mut flight = InFlight::new(40, 5, 100);
        flight.divide(2);
        flight.sent(A, 20);
        flight.sent(B, 5);
        assert_eq!(flight.allowance(A, 10), 5);
        // The five that were in flight before, and nine of A's.
        flight.settle(114);
        assert_eq!(flight.allowance(A, 24), 19);
        flight.settle(125);
        flight.settle(130);
        assert_eq!((flight.allowance(A, 40), flight.allowance(B, 40)), (30, 30));
    }
}
