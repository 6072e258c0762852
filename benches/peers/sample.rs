//! One measurement.

use std::time::Duration;

use crate::backend::Cost;

/// One measurement.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// Packets per second at the receiver; between guests, both ways together.
    pub packets: f64,
    /// The work of the backend's core; None for a ceiling.
    pub cost: Option<Cost>,
}

/// Per second.
pub fn rate(packets: u64, time: Duration) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "packets of seconds")]
    let packets = packets as f64;
    packets / time.as_secs_f64()
}
