//! The processor's cycle counter, which testpmd counts with: its frequency.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Cycles per second.
pub fn hertz() -> f64 {
    static HERTZ: OnceLock<f64> = OnceLock::new();
    *HERTZ.get_or_init(|| {
        let (start, cycles) = (Instant::now(), now());
        std::thread::sleep(Duration::from_millis(200));
        #[allow(clippy::cast_precision_loss, reason = "cycles of a fraction of a second")]
        let cycles = (now() - cycles) as f64;
        cycles / start.elapsed().as_secs_f64()
    })
}

/// Cycles since some moment.
pub fn cycles() -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "only differences matter")]
    let cycles = now() as f64;
    cycles
}

#[cfg(target_arch = "x86_64")]
fn now() -> u64 {
    // SAFETY: reads a counter that every processor of this architecture has.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Elsewhere a nanosecond is a cycle.
#[cfg(not(target_arch = "x86_64"))]
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_nanos()).expect("centuries")
}
