//! Our part of a guest's outage when it migrates: the time of the requests that stop its rings here
//! and start them there.
//!
//! A request is counted from when it has been read until it was done, so that neither the front-end
//! nor the network is included.

#![forbid(unsafe_code)]

use std::time::Duration;

use vhost::vhost_user::message::FrontendReq;

/// See the module's header.
#[derive(Debug, Default)]
pub(super) struct Outage {
    phase: OutagePhase,
    /// In this phase so far.
    spent: Duration,
    took: OutageTimes,
}

/// The durations of the last stop and of the last start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutageTimes {
    /// From the first GET_VRING_BASE until no ring was started any more. Where a device has one
    /// pair, QEMU stops both rings at once, by SET_STATUS.
    pub stopping: Option<Duration>,
    /// From SET_FEATURES until the last ring was started.
    pub starting: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum OutagePhase {
    #[default]
    Steady,
    Stopping,
    Starting,
}

/// Rings that are started, before a request and after it.
#[derive(Clone, Copy, Debug)]
pub(super) struct StartedRings {
    pub before: usize,
    pub after: usize,
}

/// A change of the rings by a request, where it is worth a line in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RingsChange {
    /// The first was started.
    Started(Duration),
    /// The last was stopped.
    Stopped(Duration),
}

impl Outage {
    /// Note a request that was done in this time.
    pub fn note(
        &mut self,
        code: FrontendReq,
        StartedRings { before, after }: StartedRings,
        elapsed: Duration,
    ) -> Option<RingsChange> {
        if after < before && self.phase != OutagePhase::Stopping {
            self.begin(OutagePhase::Stopping);
        } else if before == 0 && code == FrontendReq::SET_FEATURES {
            // A device is started by its features, memory and rings, in this order, for each pair.
            self.begin(OutagePhase::Starting);
        }
        self.spent += elapsed;
        match self.phase {
            OutagePhase::Stopping if after == 0 => {
                self.phase = OutagePhase::Steady;
                self.took.stopping = Some(self.spent);
                Some(RingsChange::Stopped(self.spent))
            }
            OutagePhase::Starting if after > before => {
                self.took.starting = Some(self.spent);
                (before == 0).then_some(RingsChange::Started(self.spent))
            }
            _ => None,
        }
    }

    fn begin(&mut self, phase: OutagePhase) {
        (self.phase, self.spent) = (phase, Duration::ZERO);
    }

    /// The durations of the last stop and of the last start.
    pub fn took(&self) -> OutageTimes {
        self.took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_start_is_counted_from_the_features_to_the_last_ring_and_a_stop_from_the_first_ring() {
        let mut outage = Outage::default();
        let mut note =
            |code, (before, after)| outage.note(code, StartedRings { before, after }, MS);
        // Requests that a front-end makes when it connects are no part of a start.
        assert_eq!(note(FrontendReq::GET_FEATURES, (0, 0)), None);
        assert_eq!(note(FrontendReq::SET_FEATURES, (0, 0)), None);
        assert_eq!(note(FrontendReq::SET_MEM_TABLE, (0, 0)), None);
        assert_eq!(note(FrontendReq::SET_VRING_KICK, (0, 1)), Some(RingsChange::Started(3 * MS)));
        assert_eq!(note(FrontendReq::SET_VRING_KICK, (1, 2)), None);
        assert_eq!(outage.took().starting, Some(4 * MS));
        let mut note =
            |code, (before, after)| outage.note(code, StartedRings { before, after }, MS);
        // Nor are requests in between.
        assert_eq!(note(FrontendReq::SET_LOG_BASE, (2, 2)), None);
        assert_eq!(note(FrontendReq::SET_FEATURES, (2, 2)), None);
        assert_eq!(note(FrontendReq::GET_VRING_BASE, (2, 1)), None);
        assert_eq!(note(FrontendReq::GET_VRING_BASE, (1, 0)), Some(RingsChange::Stopped(2 * MS)));
        assert_eq!(note(FrontendReq::GET_VRING_BASE, (0, 0)), None);
        assert_eq!(note(FrontendReq::SET_FEATURES, (0, 0)), None);
        assert_eq!(note(FrontendReq::SET_VRING_KICK, (0, 2)), Some(RingsChange::Started(2 * MS)));
        assert_eq!(note(FrontendReq::SET_STATUS, (2, 0)), Some(RingsChange::Stopped(MS)));
        assert_eq!(note(FrontendReq::GET_VRING_BASE, (0, 0)), None);
        let took = OutageTimes { stopping: Some(MS), starting: Some(2 * MS) };
        assert_eq!(outage.took(), took);
    }
}
