//! Which CPU a thread runs on.

/// The CPU of the backend's one worker.
pub const CPU: usize = 1;

/// Keeps this thread on a CPU, for measurements in this process.
pub fn pin_to(cpu: usize) {
    assert!(core_affinity::set_for_current(core_affinity::CoreId { id: cpu }), "no CPU {cpu}");
}

/// Keeps this thread on the backend's CPU.
pub fn pin() {
    pin_to(CPU);
}

/// Lets this thread run anywhere again.
pub fn unpin() {
    let mut all = rustix::thread::CpuSet::new();
    for cpu in 0..rustix::thread::CpuSet::MAX_CPU {
        all.set(cpu);
    }
    rustix::thread::sched_setaffinity(None, &all).expect("CPUs");
}
